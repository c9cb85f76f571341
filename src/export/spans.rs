//! Which parts of a point to read.

use crate::error::{Error, Result};
use crate::point::Changes;
use std::ops::Range;

/// Bytes read at once, unless one unit is larger.
pub(super) const PIECE_BYTES: u64 = 1 << 20;

/// Ranges of bytes that cover all changes, widened to whole units, ascending, disjoint, cut at the end of the point
/// and to pieces.
pub(super) struct Spans<'a> {
    changes: Changes<'a>,
    chunk_bits: u32,
    unit: u64,
    size: u64,
    /// From here to the end everything is covered, whatever the changes say.
    tail: u64,
    /// Bytes before this are covered.
    next: u64,
    current: Range<u64>,
    exhausted: bool,
}

impl<'a> Spans<'a> {
    /// `unit` is a power of two; all from the unit that holds byte `tail` on is covered, nothing more if that is the
    /// end.
    pub(super) fn new(changes: Changes<'a>, chunk_bits: u32, unit: u64, size: u64, tail: u64) -> Self {
        let tail = if tail < size { tail / unit * unit } else { size };
        Self { changes, chunk_bits, unit, size, tail, next: 0, current: 0..0, exhausted: false }
    }

    pub(super) fn next_span(&mut self) -> Result<Option<Range<u64>>> {
        while self.current.is_empty() {
            let Some(range) = self.next_range()? else { return Ok(None) };
            self.current = range;
        }
        let end = self.current.end.min(self.current.start.saturating_add(PIECE_BYTES.max(self.unit)));
        let span = self.current.start..end;
        self.current.start = end;
        Ok(Some(span))
    }

    fn next_range(&mut self) -> Result<Option<Range<u64>>> {
        if self.exhausted {
            return Ok(None);
        }
        let range = match self.changes.next().transpose()? {
            Some(range) => self.widen(range.start, range.end)?,
            None => self.tail..self.size,
        };
        if range.start >= self.tail {
            self.exhausted = true;
            return Ok(Some(self.tail.max(self.next)..self.size));
        }
        // One unit may hold the end of one run and the beginning of the next.
        let range = range.start.max(self.next)..range.end.min(self.size);
        self.next = range.end.max(self.next);
        Ok(Some(range))
    }

    fn widen(&self, first: u64, end: u64) -> Result<Range<u64>> {
        let byte = |chunk: u64| chunk.saturating_mul(1 << self.chunk_bits);
        let start = byte(first) / self.unit * self.unit;
        let end = byte(end).checked_next_multiple_of(self.unit).unwrap_or(u64::MAX);
        if start >= end || byte(first) < self.next.saturating_sub(self.unit) {
            return Err(Error::damaged(format!("changed chunks {first}.. come after byte {}", self.next)));
        }
        Ok(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::point::ChunkRange;

    fn spans(ranges: &[(u64, u64)], unit: u64, size: u64, tail: u64) -> Vec<(u64, u64)> {
        let changes: Vec<_> = ranges.iter().map(|&(start, end)| Ok(ChunkRange { start, end })).collect();
        let mut spans = Spans::new(Box::new(changes.into_iter()), 12, unit, size, tail);
        let mut out = Vec::new();
        while let Some(span) = spans.next_span().unwrap() {
            out.push((span.start, span.end));
        }
        out
    }

    const K: u64 = 1 << 10;

    #[test]
    fn changes_become_whole_units_once() {
        assert_eq!(
            spans(&[(1, 2), (3, 4), (30, 31)], 16 * K, 200 * K, 200 * K),
            [(0, 16 * K), (112 * K, 128 * K)]
        );
        assert_eq!(spans(&[(1, 5), (6, 7)], 16 * K, 200 * K, 200 * K), [(0, 32 * K)]);
        assert_eq!(spans(&[(1, 2), (5, 6)], K, 200 * K, 200 * K), [(4 * K, 8 * K), (20 * K, 24 * K)]);
        assert_eq!(spans(&[], 16 * K, 200 * K, 200 * K), []);
    }

    #[test]
    fn the_end_and_the_tail_are_cut_to_the_size() {
        assert_eq!(spans(&[(0, 100)], 16 * K, 200 * K + 1, 200 * K + 1), [(0, 200 * K + 1)]);
        assert_eq!(spans(&[(1, 2)], 16 * K, 100 * K, 70 * K), [(0, 16 * K), (64 * K, 100 * K)]);
        assert_eq!(spans(&[(17, 90)], 16 * K, 100 * K, 70 * K), [(64 * K, 100 * K)]);
        assert_eq!(spans(&[(15, 90)], 16 * K, 100 * K, 70 * K), [(48 * K, 100 * K)]);
        assert_eq!(spans(&[(0, 1)], 16 * K, 0, 0), [(0, 0); 0]);
    }

    #[test]
    fn long_runs_are_cut_to_pieces() {
        assert_eq!(
            spans(&[(0, 513)], 4 * K, 4096 * K, 4096 * K),
            [(0, 1024 * K), (1024 * K, 2048 * K), (2048 * K, 2052 * K)]
        );
    }
}
