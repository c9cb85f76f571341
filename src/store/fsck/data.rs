//! Reading everything that is preserved: every chunk must hold its checksum, every record its header.
//!
//! Segments are read whole and in order, several at a time, at the speed of the device. What must be in them
//! comes from the index, for as many segments at once as fit in memory.

use super::check::CheckReport;
use super::gone::{self, Gone};
use super::segment::Window;
use super::workers;
use crate::error::Result;
use crate::format::checkpoint::Role;
use crate::format::record::{Encoding, pad};
use crate::format::run::{IndexEntry, Key, Value};
use crate::point::finding::{Code, Finding};
use crate::progress::Progress;
use crate::store::state::{Liveness, data_address, key_of, zeroes_hold};
use crate::store::view::View;

/// Where something lies that a record describes, and what it is.
type Logged = (u64, Key);

/// Chunks looked for in one go: 56 MiB of them.
const BATCH_ENTRIES: u64 = 1 << 20;

/// What reading a segment gave.
#[derive(Default)]
struct Read {
    bytes: u64,
    damaged: Vec<IndexEntry>,
    unreadable: Vec<IndexEntry>,
    unlogged: Vec<IndexEntry>,
    overlaps: Vec<u64>,
    lost: Vec<IndexEntry>,
}

/// Reads and verifies every chunk that a snapshot needs.
pub fn check_data(view: &View, report: &mut CheckReport, progress: &dyn Progress) -> Result<()> {
    let segments = segments(view);
    let size = u64::from(view.state.sb.segment_size());
    progress.stage("data", Some(segments.len() as u64 * size));
    let mut all = Read::default();
    let mut rest = segments.as_slice();
    while !rest.is_empty() {
        let mut entries = 0;
        let count = rest.iter().take_while(|(_, count)| {
            entries += count;
            entries <= BATCH_ENTRIES
        });
        let (batch, after) = rest.split_at(count.count().max(1));
        read_batch(view, batch, &mut all, progress)?;
        rest = after;
    }
    tell(view, report, all)
}

/// Segments that hold something a snapshot may need, with the number of entries to expect in each.
fn segments(view: &View) -> Vec<(u32, u64)> {
    let state = &view.state;
    let mut counts: std::collections::BTreeMap<u32, u64> = state
        .segments
        .iter()
        .filter(|(_, segment)| segment.role == Role::Log && segment.count > 0)
        .map(|(number, segment)| (*number, segment.count))
        .collect();
    for value in state.memory.iter().filter(|(key, _)| key.class < 2).map(|(_, value)| value) {
        if let Some(number) = state.sb.segment_of(value.word) {
            *counts.entry(number).or_default() += 1;
        }
    }
    counts.into_iter().collect()
}

fn read_batch(view: &View, batch: &[(u32, u64)], all: &mut Read, progress: &dyn Progress) -> Result<()> {
    let sb = &view.state.sb;
    let expected = expected(view, batch, progress)?;
    let read = workers::map_with(&expected, |window: &mut Window, (number, expected)| {
        progress.check()?;
        let mut expected = expected.clone();
        expected.sort_unstable_by_key(|(key, value)| (value.word, *key));
        let read = read_segment(view, window, *number, &expected)?;
        progress.advance(u64::from(sb.segment_size()));
        Ok(read)
    })?;
    for mut read in read {
        all.bytes += read.bytes;
        all.damaged.append(&mut read.damaged);
        all.unreadable.append(&mut read.unreadable);
        all.unlogged.append(&mut read.unlogged);
        all.overlaps.append(&mut read.overlaps);
        all.lost.append(&mut read.lost);
    }
    Ok(())
}

/// What the snapshots need of each segment of `batch`, in no order.
fn expected(
    view: &View,
    batch: &[(u32, u64)],
    progress: &dyn Progress,
) -> Result<Vec<(u32, Vec<IndexEntry>)>> {
    let (state, live) = (&view.state, view.state.live_ids());
    let mut found: Vec<(u32, Vec<IndexEntry>)> =
        batch.iter().map(|(number, _)| (*number, Vec::new())).collect();
    let mut liveness = Liveness::new(&live);
    let mut scan = view.index().scan(Key::MIN)?;
    let mut steps = 0u32;
    while let Some((key, value)) = scan.next_entry()?.filter(|(key, _)| key.class < 2) {
        steps = steps.wrapping_add(1);
        if steps.is_multiple_of(1 << 16) {
            progress.check()?;
        }
        if !liveness.needs(key) {
            continue;
        }
        let segment = state.sb.segment_of(value.word);
        let at = segment.and_then(|segment| found.binary_search_by_key(&segment, |(number, _)| *number).ok());
        if let Some((_, entries)) = at.and_then(|at| found.get_mut(at)) {
            entries.push((key, value));
        }
    }
    Ok(found)
}

fn read_segment(view: &View, window: &mut Window, number: u32, expected: &[IndexEntry]) -> Result<Read> {
    let mut read = Read::default();
    if expected.is_empty() {
        return Ok(read);
    }
    let (sound, mut logged) = sum_segment(view, window, number, expected)?;
    // Records lie one after the other: sorting what is nearly sorted costs less than hashing.
    logged.sort();
    let mut end_before = 0;
    for ((key, value), sound) in expected.iter().zip(sound) {
        let stored = u64::from(value.stored_length);
        read.bytes += stored;
        if value.encoding == Encoding::Raw {
            if value.word < end_before {
                read.overlaps.push(value.word);
            }
            end_before = value.word + pad(stored, view.state.sb.block_bits);
        }
        if value.encoding == Encoding::Lost {
            read.lost.push((*key, *value));
        } else if sound {
            if logged.binary_search(&(value.word, *key)).is_err() {
                read.unlogged.push((*key, *value));
            }
        } else if window.is_unreadable(value.word, stored) {
            read.unreadable.push((*key, *value));
        } else {
            read.damaged.push((*key, *value));
        }
    }
    Ok(read)
}

/// Reads a segment once: whether what each of `expected` (by address) leads to holds its checksum, and what the
/// records say lies there.
fn sum_segment(
    view: &View,
    window: &mut Window,
    number: u32,
    expected: &[IndexEntry],
) -> Result<(Vec<bool>, Vec<Logged>)> {
    let sb = &view.state.sb;
    let mut sound = Vec::with_capacity(expected.len());
    let mut logged = Vec::with_capacity(expected.len());
    let mut next = sb.segment_address(number);
    window.walk(view.device.as_ref(), sb, number, &mut |window, _| {
        window.blocks(&mut next, u64::from(sb.block_size()), &mut |address, bytes| {
            if let Some(record) = window.record(address, bytes, sb)? {
                let located = record.located(sb.block_bits);
                logged.extend(
                    located.map(|(address, entry)| (data_address(&record, address, entry), key_of(entry))),
                );
            }
            Ok(())
        });
        while let Some((_, value)) = expected.get(sound.len()) {
            if !window.has(value.word, u64::from(value.stored_length)) {
                return next.min(value.word);
            }
            sound.push(holds(window, value));
        }
        next
    })?;
    // Beyond the end of the device there is nothing.
    sound.resize(expected.len(), false);
    Ok((sound, logged))
}

/// True if what `value` leads to holds its checksum.
fn holds(window: &Window, value: &Value) -> bool {
    match value.encoding {
        Encoding::Zeroes => zeroes_hold(value.raw_length, value.crc),
        _ => window.holds(value.word, value.stored_length, value.crc),
    }
}

/// Makes findings of what was read.
fn tell(view: &View, report: &mut CheckReport, all: Read) -> Result<()> {
    report.data_bytes = all.bytes;
    for word in all.overlaps {
        let text = "two preserved chunks claim the same bytes";
        report.findings.push(Finding::new(Code::DoubleUse, text).at(word));
    }
    for (code, what, found) in [
        (Code::ChunkDamaged, "do not hold their checksums", &all.damaged),
        (Code::ChunkUnreadable, "cannot be read from the medium", &all.unreadable),
        (Code::ChunkLost, "are marked as lost", &all.lost),
    ] {
        let Some((_, first)) = found.first() else { continue };
        let mut gone: Vec<Gone> = found.iter().map(|(key, value)| Gone::of(*key, value)).collect();
        let affected = gone::affected(view, &mut gone)?;
        let text = format!("{} preserved chunks {what}", gone.len());
        report.findings.push(Finding::new(code, text).at(first.word).concerning(affected));
        if code == Code::ChunkDamaged {
            report.gone.append(&mut gone);
        }
    }
    if let Some((_, first)) = all.unlogged.first() {
        let text = format!(
            "{} preserved chunks are whole, but the headers of their records are not",
            all.unlogged.len()
        );
        report.findings.push(Finding::new(Code::RecordDamaged, text).at(first.word));
        report.unlogged = all.unlogged;
    }
    Ok(())
}
