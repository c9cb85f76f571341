//! Change bits against exceptions: each must prove the other.
//!
//! For every live snapshot s, "chunk c changed between s and the next live snapshot" holds exactly if the index
//! has an exception (c, e) with s <= e < next. A bit without an entry is an exception that vanished, which would
//! read as newer data; an entry without a bit would be left out of changelists.

use super::gone::Gone;
use super::workers;
use crate::error::Result;
use crate::format::run::{Key, PAGE_BITS};
use crate::progress::Progress;
use crate::store::index::Scan;
use crate::store::state::{bit, keeper};
use crate::store::view::View;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

/// Parts into which the volume is cut for the threads.
const PARTS: u64 = 16;

/// What does not balance.
#[derive(Debug, Default)]
pub struct Balance {
    /// Exceptions that are not among the changes.
    pub unmarked: u64,
    /// Changes without an exception, as the exceptions they must have been.
    pub missing: Vec<Gone>,
}

/// Walks exceptions and change bits together, in parts of the volume, for the snapshots `live` (ascending ids).
pub fn balance(view: &View, live: &[u64], progress: &dyn Progress) -> Result<Balance> {
    let epochs = epochs(view)?;
    let pages = (last_chunk(view, &epochs)? >> PAGE_BITS) + 1;
    let step = pages.div_ceil(PARTS);
    let parts: Vec<Range<u64>> = (0..PARTS).map(|part| part * step..(part + 1) * step).collect();
    progress.stage("changes", Some(PARTS));
    let found = workers::map(&parts, |part| {
        progress.check()?;
        let found = balance_part(view, &epochs, live, part)?;
        progress.advance(1);
        Ok(found)
    })?;
    let mut sum = Balance::default();
    for part in found {
        sum.unmarked += part.unmarked;
        sum.missing.extend(part.missing);
    }
    Ok(sum)
}

/// Every epoch that has change bits, ascending.
fn epochs(view: &View) -> Result<Vec<u64>> {
    let mut epochs = Vec::new();
    let mut from = 0;
    while let Some((key, _)) = view.index().scan(Key::changes(from, 0))?.next_entry()? {
        epochs.push(key.a);
        from = key.a + 1;
    }
    Ok(epochs)
}

/// The last chunk that any exception or change bit can concern.
fn last_chunk(view: &View, epochs: &[u64]) -> Result<u64> {
    let sizes = view.state.snapshots.values().map(|snapshot| snapshot.size_bytes);
    let size = sizes.chain([view.state.volume.origin_size]).max().unwrap_or(0);
    let mut chunk = size >> view.state.sb.chunk_bits;
    // Deleted snapshots may have been larger than any there is.
    while let Some((key, _)) =
        view.index().scan(Key::exception(chunk + 1, 0))?.next_entry()?.filter(|(key, _)| key.class == 0)
    {
        chunk = key.a.max(chunk.saturating_mul(2));
    }
    for epoch in epochs {
        while let Some((key, _)) = view
            .index()
            .scan(Key::changes(*epoch, (chunk >> PAGE_BITS) + 1))?
            .next_entry()?
            .filter(|(key, _)| key.class == 2 && key.a == *epoch)
        {
            chunk = (key.b << PAGE_BITS).max(chunk.saturating_mul(2));
        }
    }
    Ok(chunk)
}

/// Bits of one page by the snapshot that owns them.
type Bits = Vec<(u64, u128)>;

fn set(bits: &mut Bits, owner: u64, more: u128) {
    match bits.iter_mut().find(|(found, _)| *found == owner) {
        Some((_, bits)) => *bits |= more,
        None => bits.push((owner, more)),
    }
}

fn get(bits: &Bits, owner: u64) -> u128 {
    bits.iter().find(|(found, _)| *found == owner).map_or(0, |(_, bits)| *bits)
}

/// The change bits of a part of the volume, page by page, those of all epochs together.
struct Marked<'a> {
    scans: Vec<Scan<'a>>,
    /// The next page of each scan, with its bits and their owner.
    heads: BinaryHeap<Reverse<(u64, usize, u64, u128)>>,
    epochs: &'a [u64],
    live: &'a [u64],
    end: u64,
}

impl<'a> Marked<'a> {
    fn new(view: &'a View, epochs: &'a [u64], live: &'a [u64], part: &Range<u64>) -> Result<Self> {
        let scans = epochs.iter().map(|epoch| view.index().scan(Key::changes(*epoch, part.start)));
        let scans = scans.collect::<Result<Vec<_>>>()?;
        let mut marked = Self { scans, heads: BinaryHeap::new(), epochs, live, end: part.end };
        for number in 0..epochs.len() {
            marked.advance(number)?;
        }
        Ok(marked)
    }

    fn advance(&mut self, number: usize) -> Result<()> {
        let (Some(scan), Some(epoch)) = (self.scans.get_mut(number), self.epochs.get(number)) else {
            return Ok(());
        };
        let Some(owner) = keeper(self.live, 0, *epoch) else { return Ok(()) };
        if let Some((key, value)) = scan.next_entry()?
            && key.class == 2
            && key.a == *epoch
            && key.b < self.end
        {
            self.heads.push(Reverse((key.b, number, owner, value.bits())));
        }
        Ok(())
    }

    fn page(&self) -> Option<u64> {
        self.heads.peek().map(|Reverse((page, ..))| *page)
    }

    /// Takes the bits of `page`, which no head is before.
    fn take(&mut self, page: u64) -> Result<Bits> {
        let mut bits = Bits::new();
        while self.page() == Some(page) {
            let Some(Reverse((_, number, owner, more))) = self.heads.pop() else { break };
            set(&mut bits, owner, more);
            self.advance(number)?;
        }
        Ok(bits)
    }
}

fn balance_part(view: &View, epochs: &[u64], live: &[u64], part: &Range<u64>) -> Result<Balance> {
    let mut balance = Balance::default();
    if part.start >= part.end {
        return Ok(balance);
    }
    let mut marked = Marked::new(view, epochs, live, part)?;
    let mut scan = view.index().scan(Key::exception(part.start << PAGE_BITS, 0))?;
    let mut head = scan.next_entry()?;
    loop {
        let entry_page = head.filter(|(key, _)| key.class == 0).map(|(key, _)| key.a >> PAGE_BITS);
        let entry_page = entry_page.filter(|page| *page < part.end);
        let Some(page) = entry_page.into_iter().chain(marked.page()).min() else { break };
        let mut entries = Bits::new();
        while let Some((key, _)) = head.filter(|(key, _)| key.class == 0 && key.a >> PAGE_BITS == page) {
            if let Some(owner) = keeper(live, 0, key.b) {
                set(&mut entries, owner, bit(key.a));
            }
            head = scan.next_entry()?;
        }
        let marks = marked.take(page)?;
        for (owner, bits) in &entries {
            balance.unmarked += u64::from((bits & !get(&marks, *owner)).count_ones());
        }
        for (owner, bits) in &marks {
            missing(view, page, *owner, bits & !get(&entries, *owner), &mut balance.missing);
        }
    }
    Ok(balance)
}

fn missing(view: &View, page: u64, owner: u64, bits: u128, out: &mut Vec<Gone>) {
    let mut left = bits;
    while left != 0 {
        let chunk = (page << PAGE_BITS) + u64::from(left.trailing_zeros());
        left &= left - 1;
        out.push(Gone { key: Key::exception(chunk, owner), raw_length: view.state.sb.chunk_size(), crc: 0 });
    }
}
