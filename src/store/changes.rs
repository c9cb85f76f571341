//! Which chunks changed: unions of change bits over epochs, streamed in bounded memory.

use super::index::{BlockReader, MemTable, Scan};
use super::state::bit;
use crate::error::Result;
use crate::format::checkpoint::Run;
use crate::format::run::{Key, PAGE_BITS};
use crate::point::ChunkRange;
use std::iter::Peekable;

/// Pages collected at a time before older epochs' pages are cut off: 8 MiB.
const WINDOW_PAGES: usize = 256 << 10;

/// A page of 128 chunks and which of them changed.
pub type Page = (u64, u128);
/// Pages in ascending order, none empty, none twice.
pub type Pages<'a> = Box<dyn Iterator<Item = Result<Page>> + Send + 'a>;

/// The index as a whole: memory table over runs.
#[derive(Clone, Copy)]
pub struct Index<'a> {
    /// Verified blocks.
    pub reader: &'a BlockReader,
    /// The log since the checkpoint.
    pub memory: &'a MemTable,
    /// Runs, newest first.
    pub runs: &'a [Run],
}

impl<'a> Index<'a> {
    /// A walk from `key` on.
    pub fn scan(self, key: Key) -> Result<Scan<'a>> {
        Scan::new(self.reader, self.memory, self.runs, key)
    }

    /// The union of the change bits of epochs `from..to`.
    pub fn changed_pages(self, from: u64, to: u64) -> Pages<'a> {
        self.changed_pages_from(from, to, 0)
    }

    /// As [`Index::changed_pages`], from page `page` on.
    pub fn changed_pages_from(self, from: u64, to: u64, page: u64) -> Pages<'a> {
        Box::new(Union { index: self, from, to, page: Some(page), ready: Vec::new().into_iter() })
    }

    /// The chunks written on snapshot `id`, as pages.
    pub fn overlay_pages(self, id: u64) -> Result<Pages<'a>> {
        let mut scan = self.scan(Key::overlay(id, 0))?;
        let mut ahead: Option<Page> = None;
        let mut ended = false;
        Ok(Box::new(std::iter::from_fn(move || {
            while !ended {
                let next = match scan.next_entry() {
                    Ok(next) => next.filter(|(key, _)| key.class == 1 && key.a == id),
                    Err(error) => {
                        ended = true;
                        return Some(Err(error));
                    }
                };
                let Some((key, _)) = next else {
                    ended = true;
                    break;
                };
                let page = key.b >> PAGE_BITS;
                match &mut ahead {
                    Some((found, bits)) if *found == page => *bits |= bit(key.b),
                    _ => {
                        if let Some(done) = ahead.replace((page, bit(key.b))) {
                            return Some(Ok(done));
                        }
                    }
                }
            }
            ahead.take().map(Ok)
        })))
    }
}

/// Collects pages of all epochs window by window: a window is as many pages as fit in memory.
struct Union<'a> {
    index: Index<'a>,
    from: u64,
    to: u64,
    /// First page of the next window; `None` when there is none.
    page: Option<u64>,
    ready: std::vec::IntoIter<Page>,
}

impl Union<'_> {
    fn fill(&mut self, start: u64) -> Result<()> {
        let mut pages: Vec<Page> = Vec::new();
        let mut end = u64::MAX;
        let mut scan = self.index.scan(Key::changes(self.from, start))?;
        while let Some((key, value)) = scan.next_entry()? {
            if key.class != 2 || key.a >= self.to {
                break;
            }
            if key.b < start {
                scan = self.index.scan(Key::changes(key.a, start))?;
                continue;
            }
            if key.b >= end {
                scan = self.index.scan(Key::changes(key.a + 1, start))?;
                continue;
            }
            pages.push((key.b, value.bits()));
            if pages.len() >= WINDOW_PAGES {
                unite(&mut pages);
                if pages.len() > WINDOW_PAGES / 2 {
                    pages.truncate(WINDOW_PAGES / 2);
                    end = pages.last().map_or(end, |(page, _)| page + 1);
                }
            }
        }
        unite(&mut pages);
        self.ready = pages.into_iter();
        self.page = (end != u64::MAX).then_some(end);
        Ok(())
    }
}

/// Sorts pages and unites those with the same number.
fn unite(pages: &mut Vec<Page>) {
    pages.sort_unstable_by_key(|(page, _)| *page);
    pages.dedup_by(|next, kept| {
        let same = next.0 == kept.0;
        if same {
            kept.1 |= next.1;
        }
        same
    });
}

impl Iterator for Union<'_> {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(page) = self.ready.next() {
                return Some(Ok(page));
            }
            let start = self.page.take()?;
            if let Err(error) = self.fill(start) {
                return Some(Err(error));
            }
        }
    }
}

/// Walks two page streams together and yields what `combine` makes of each page's bits (0 where a stream
/// has none); empty results are left out.
pub fn combine<'a>(a: Pages<'a>, b: Pages<'a>, combine: fn(u128, u128) -> u128) -> Pages<'a> {
    let (mut a, mut b) = (a.peekable(), b.peekable());
    Box::new(std::iter::from_fn(move || {
        loop {
            let page = match (front(&mut a), front(&mut b)) {
                (Err(()), _) => return a.next(),
                (_, Err(())) => return b.next(),
                (Ok(None), Ok(None)) => return None,
                (Ok(Some(page)), Ok(None)) | (Ok(None), Ok(Some(page))) => page,
                (Ok(Some(one)), Ok(Some(other))) => one.min(other),
            };
            let bits = combine(take_page(&mut a, page), take_page(&mut b, page));
            if bits != 0 {
                return Some(Ok((page, bits)));
            }
        }
    }))
}

/// The pages of ascending, disjoint `ranges` of chunks.
pub fn pages_of<'a>(ranges: impl Iterator<Item = Result<ChunkRange>> + Send + 'a) -> Pages<'a> {
    let mut ranges = ranges.peekable();
    let mut rest: Option<ChunkRange> = None;
    Box::new(std::iter::from_fn(move || {
        let first = match rest.take().map(Ok).or_else(|| ranges.next())? {
            Ok(range) => range,
            Err(error) => return Some(Err(error)),
        };
        let page = first.start >> PAGE_BITS;
        let end = (page + 1) << PAGE_BITS;
        let (mut bits, mut next) = (0, Some(first));
        while let Some(range) = next {
            let stop = range.end.min(end);
            let count = stop - range.start;
            let run = if count == 128 { u128::MAX } else { (1u128 << count) - 1 };
            bits |= run << (range.start & ((1 << PAGE_BITS) - 1));
            if range.end > end {
                rest = Some(ChunkRange { start: end, end: range.end });
                break;
            }
            // An error in front stays there for the next call.
            let ahead = ranges.next_if(|range| range.as_ref().is_ok_and(|range| range.start < end));
            next = ahead.and_then(Result::ok);
        }
        Some(Ok((page, bits)))
    }))
}

/// The number of the page in front; `Err` if an error is.
fn front(pages: &mut Peekable<Pages<'_>>) -> std::result::Result<Option<u64>, ()> {
    match pages.peek() {
        None => Ok(None),
        Some(Ok((page, _))) => Ok(Some(*page)),
        Some(Err(_)) => Err(()),
    }
}

fn take_page(pages: &mut Peekable<Pages<'_>>, page: u64) -> u128 {
    match pages.next_if(|next| next.as_ref().is_ok_and(|(found, _)| *found == page)) {
        Some(Ok((_, bits))) => bits,
        _ => 0,
    }
}

/// Runs of chunks below `limit` out of pages.
pub fn ranges(pages: Pages<'_>, limit: u64) -> impl Iterator<Item = Result<ChunkRange>> + Send + '_ {
    let mut pages = pages;
    let mut current: Option<Page> = None;
    let mut open: Option<ChunkRange> = None;
    let mut failed = false;
    std::iter::from_fn(move || {
        loop {
            let (page, bits) = match current.take() {
                Some(page) => page,
                None if failed => return None,
                None => match pages.next() {
                    Some(Ok(page)) => page,
                    Some(Err(error)) => {
                        failed = true;
                        return Some(Err(error));
                    }
                    None => return open.take().map(Ok),
                },
            };
            if bits == 0 {
                continue;
            }
            let first = bits.trailing_zeros();
            let count = (bits >> first).trailing_ones();
            let run = if count == 128 { u128::MAX } else { ((1u128 << count) - 1) << first };
            current = Some((page, bits & !run));
            let start = (page << PAGE_BITS) + u64::from(first);
            let end = (start + u64::from(count)).min(limit);
            if start >= end {
                continue;
            }
            match &mut open {
                Some(range) if range.end == start => range.end = end,
                _ => {
                    if let Some(done) = open.replace(ChunkRange { start, end }) {
                        return Some(Ok(done));
                    }
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(list: &[Page]) -> Pages<'static> {
        let list = list.to_vec();
        Box::new(list.into_iter().map(Ok))
    }

    fn collect(list: &[Page], limit: u64) -> Vec<(u64, u64)> {
        ranges(pages(list), limit).map(|range| range.map(|range| (range.start, range.end)).unwrap()).collect()
    }

    #[test]
    fn runs_cross_pages_and_stop_at_the_limit() {
        assert_eq!(collect(&[(0, 0b1011)], 1000), [(0, 2), (3, 4)]);
        assert_eq!(collect(&[(0, u128::MAX), (1, 1)], 1000), [(0, 129)]);
        assert_eq!(collect(&[(0, 1 << 127), (1, u128::MAX), (3, 2)], 200), [(127, 200)]);
        assert_eq!(collect(&[], 5), []);
    }

    #[test]
    fn ranges_become_pages_and_ranges_again() {
        let back = |list: &[(u64, u64)]| {
            let given: Vec<_> =
                list.iter().map(|(start, end)| Ok(ChunkRange { start: *start, end: *end })).collect();
            let found = ranges(pages_of(given.into_iter()), u64::MAX);
            found.map(|range| range.map(|range| (range.start, range.end)).unwrap()).collect::<Vec<_>>()
        };
        for list in [
            &[][..],
            &[(130, 400)],
            &[(128, 129)],
            &[(0, 1), (3, 5), (127, 129), (255, 256), (1000, 1128)],
            &[(0, 128), (129, 130), (200, 600)],
        ] {
            assert_eq!(back(list), list);
        }
    }

    #[test]
    fn combining_walks_both_sides() {
        let a = [(1, 6), (3, 1)];
        let b = [(0, 1), (1, 3)];
        let list = |f| combine(pages(&a), pages(&b), f).map(std::result::Result::unwrap).collect::<Vec<_>>();
        assert_eq!(list(|a, b| a | b), [(0, 1), (1, 7), (3, 1)]);
        assert_eq!(list(|a, b| a & b), [(1, 2)]);
    }
}
