//! Of which chunks of which snapshots nothing can be believed: the one answer for readers, listings and upgrades.

use crate::error::Error;
use std::ops::Range;

/// Chunks that cannot be told, with the snapshots (by their bits) that this concerns.
#[derive(Debug, Clone, Default)]
pub struct Lost(Vec<(Range<u64>, u64)>);

impl Lost {
    /// From ranges in any order, which may overlap.
    pub(super) fn of(ranges: &[(Range<u64>, u64)]) -> Self {
        let mut edges: Vec<(u64, bool, u64)> = Vec::with_capacity(ranges.len() * 2);
        for (range, mask) in ranges.iter().filter(|(range, mask)| !range.is_empty() && *mask != 0) {
            edges.extend([(range.start, true, *mask), (range.end, false, *mask)]);
        }
        edges.sort_unstable();
        let mut lost: Vec<(Range<u64>, u64)> = Vec::new();
        let (mut counts, mut mask, mut from) = ([0usize; 64], 0u64, 0);
        for (at, is_start, concerned) in edges {
            if mask != 0 && from < at {
                match lost.last_mut() {
                    Some((last, same)) if last.end == from && *same == mask => last.end = at,
                    _ => lost.push((from..at, mask)),
                }
            }
            from = at;
            for (bit, count) in counts.iter_mut().enumerate().filter(|(bit, _)| concerned >> bit & 1 == 1) {
                *count = if is_start { *count + 1 } else { *count - 1 };
                mask = if *count > 0 { mask | 1 << bit } else { mask & !(1 << bit) };
            }
        }
        Self(lost)
    }

    /// True if everything can be believed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first of `chunks` that cannot be told for a snapshot of `mask`, and those after it as far as that goes.
    #[must_use]
    pub fn first(&self, mask: u64, chunks: &Range<u64>) -> Option<Range<u64>> {
        let begin = self.0.partition_point(|(range, _)| range.end <= chunks.start);
        let inside = self.0.iter().skip(begin).take_while(|(range, _)| range.start < chunks.end);
        let (range, _) = inside.into_iter().find(|(_, concerned)| concerned & mask != 0)?;
        Some(range.start.max(chunks.start)..range.end)
    }

    /// True if none of `chunks` can be told for any snapshot of `mask`.
    pub(super) fn covers(&self, mask: u64, chunks: &Range<u64>) -> bool {
        let begin = self.0.partition_point(|(range, _)| range.end <= chunks.start);
        let inside = self.0.iter().skip(begin).take_while(|(range, _)| range.start < chunks.end);
        let end = inside.into_iter().try_fold(chunks.start, |at, (range, concerned)| {
            (range.start <= at && concerned & mask == mask).then_some(range.end)
        });
        end.is_some_and(|end| end >= chunks.end)
    }

    /// Where the next range begins or ends behind chunk `from`: up to there the answer for it is that for all.
    #[must_use]
    pub fn edge(&self, from: u64) -> Option<u64> {
        let at = self.0.partition_point(|(range, _)| range.end <= from);
        self.0.get(at).map(|(range, _)| if range.start > from { range.start } else { range.end })
    }

    /// The first chunk from `from` on that cannot be told for some snapshot.
    #[must_use]
    pub fn next(&self, from: u64) -> Option<u64> {
        let at = self.0.partition_point(|(range, _)| range.end <= from);
        self.0.get(at).map(|(range, _)| range.start.max(from))
    }
}

/// What reading `chunks` says.
pub(super) fn error(chunks: &Range<u64>) -> Error {
    let which = match chunks.end {
        u64::MAX => format!("from chunk {} on", chunks.start),
        end if end - chunks.start == 1 => format!("of chunk {}", chunks.start),
        end => format!("of the chunks from {} to {}", chunks.start, end - 1),
    };
    let what = format!("what was preserved {which} is lost, or cannot be told");
    Error::damaged(what).hint("'ddsnap fsck -n' tells what is damaged, and what mends it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_overlap_are_told_apart_by_whom_they_concern() {
        let lost = Lost::of(&[(5..9, 1), (0..3, 0), (7..7, 1), (8..12, 3), (12..20, 2), (30..u64::MAX, 4)]);
        assert_eq!(lost.0, [(5..8, 1), (8..12, 3), (12..20, 2), (30..u64::MAX, 4)]);
        assert_eq!(lost.first(1, &(0..100)), Some(5..8));
        assert_eq!(lost.first(2, &(0..100)), Some(8..12));
        assert_eq!(lost.first(2, &(10..11)), Some(10..12));
        assert_eq!(lost.first(1, &(12..100)), None);
        assert_eq!(lost.first(0, &(0..100)), None);
        assert_eq!(
            (lost.next(0), lost.next(10), lost.next(25), Lost::default().next(0)),
            (Some(5), Some(10), Some(30), None)
        );
        let edges = [0, 5, 7, 8, 19, 20, 30].map(|from| lost.edge(from));
        let expected = [5, 8, 8, 12, 20, 30, u64::MAX].map(Some);
        assert_eq!((edges, Lost::default().edge(0)), (expected, None));
        assert!(lost.covers(2, &(9..20)) && lost.covers(3, &(8..12)) && !lost.covers(3, &(8..13)));
        assert!(!lost.covers(2, &(19..31)) && !lost.covers(2, &(22..23)));
        assert!(Lost::of(&[]).is_empty() && error(&(3..4)).to_string().contains("chunk 3"));
    }
}
