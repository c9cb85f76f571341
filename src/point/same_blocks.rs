//! Which bytes of two files lie on the same blocks, so that they are equal without being read.

use crate::block::ReadAt;
use crate::block::shared::{SharedExtent, SharedExtents};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// Walks the maps of two files side by side.
pub(super) struct SameBlocks {
    /// None once nothing more can be told.
    pair: Option<(Arc<dyn ReadAt>, Arc<dyn ReadAt>)>,
    ranges: VecDeque<Range<u64>>,
    /// How far `ranges` tells.
    until: u64,
}

impl SameBlocks {
    /// Of two files that do not lie in the same file system, or in one that shares no blocks, nothing is told.
    pub(super) fn new(old: Arc<dyn ReadAt>, new: Arc<dyn ReadAt>) -> Self {
        let space = old.space();
        let pair = (space.is_some() && space == new.space()).then_some((old, new));
        Self { pair, ranges: VecDeque::new(), until: 0 }
    }

    /// `start`: up to where the bytes from `at` on are the same (`at` itself if they may differ); `end`: up to
    /// where it is known that nothing after that is. `at` never goes back.
    pub(super) fn at(&mut self, at: u64) -> Range<u64> {
        if at >= self.until && !self.load(at) {
            return at..u64::MAX;
        }
        while self.ranges.front().is_some_and(|range| range.end <= at) {
            self.ranges.pop_front();
        }
        match self.ranges.front() {
            Some(range) if range.start <= at => range.end..self.until.max(range.end),
            Some(range) => at..range.start,
            None => at..self.until,
        }
    }

    fn load(&mut self, at: u64) -> bool {
        let Some((old, new)) = &self.pair else { return false };
        // The old side is asked again after the new: what it said both times was so when the new side answered.
        let answers = (old.shared_extents(at), new.shared_extents(at), old.shared_extents(at));
        let (Some(before), Some(new), Some(after)) = answers else {
            self.pair = None;
            return false;
        };
        let old = common(&before, &after);
        let same = common(&old, &new);
        self.until = same.until;
        self.ranges.clear();
        for extent in same.extents {
            match self.ranges.back_mut() {
                Some(last) if last.end == extent.start => last.end = extent.end,
                _ => self.ranges.push_back(extent.start..extent.end),
            }
        }
        self.until > at
    }
}

/// What both have at the same place of the file and of the medium.
fn common(a: &SharedExtents, b: &SharedExtents) -> SharedExtents {
    let until = a.until.min(b.until);
    let mut extents = Vec::new();
    let (mut left, mut right) = (a.extents.iter().peekable(), b.extents.iter().peekable());
    while let (Some(x), Some(y)) = (left.peek(), right.peek()) {
        let (start, end) = (x.start.max(y.start), x.end.min(y.end).min(until));
        let address = |extent: &SharedExtent| extent.address.wrapping_add(start.wrapping_sub(extent.start));
        if start < end && address(x) == address(y) {
            extents.push(SharedExtent { start, end, address: address(x) });
        }
        if x.end <= y.end {
            left.next();
        } else {
            right.next();
        }
    }
    SharedExtents { extents, until }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(until: u64, extents: &[(u64, u64, u64)]) -> SharedExtents {
        let extents = extents.iter().map(|&(start, end, address)| SharedExtent { start, end, address });
        SharedExtents { extents: extents.collect(), until }
    }

    #[test]
    fn the_same_address_at_the_same_offset_is_common() {
        let cases = [
            // Cut differently, and shifted by what differs in start.
            (map(100, &[(0, 50, 1000)]), map(100, &[(10, 60, 1010)]), map(100, &[(10, 50, 1010)])),
            (map(100, &[(0, 50, 1000)]), map(100, &[(0, 50, 1001)]), map(100, &[])),
            // The same blocks at another offset.
            (map(100, &[(0, 50, 1000)]), map(100, &[(50, 100, 1000)]), map(100, &[])),
            // No more than both tell of.
            (map(30, &[(0, 50, 1000)]), map(100, &[(0, 50, 1000)]), map(30, &[(0, 30, 1000)])),
            (
                map(100, &[(0, 10, 0), (10, 20, 90), (20, 30, 50)]),
                map(100, &[(0, 30, 0), (30, 40, 70)]),
                map(100, &[(0, 10, 0)]),
            ),
        ];
        for (a, b, expected) in cases {
            assert_eq!(common(&a, &b), expected);
            assert_eq!(common(&b, &a), expected);
        }
    }
}
