//! Which chunks go into a delta, in runs small enough to be one extent.

use crate::error::{Error, Result};
use crate::format::delta::Geometry;
use crate::point::{Changes, ChunkRange};

/// One run of chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    /// To be read; at most one extent's worth.
    Read {
        /// First chunk.
        start: u64,
        /// Number of chunks, at least 1.
        chunks: u32,
    },
    /// Known to be zero in the target of a full-volume delta.
    Hole {
        /// First chunk.
        start: u64,
        /// Number of chunks, at least 1.
        chunks: u32,
    },
}

impl Run {
    /// One past the last chunk.
    pub(crate) fn end(self) -> u64 {
        let (Self::Read { start, chunks } | Self::Hole { start, chunks }) = self;
        start.saturating_add(u64::from(chunks))
    }
}

/// Iterator over the runs of a delta.
///
/// Changes are cut at the end of the target. Incremental: all that lies past the end of a smaller source is
/// added, whatever the changes say, so that a target that was only grown cannot keep what was there before.
/// Full volume: what the changes leave out becomes holes, so that the delta covers every chunk.
pub(crate) struct Plan<'a> {
    changes: Changes<'a>,
    geometry: Geometry,
    /// Where the changes stop counting and the tail begins.
    limit: u64,
    /// Chunks before this are planned.
    next: u64,
    current: Option<(ChunkRange, bool)>,
    waiting: Option<ChunkRange>,
    exhausted: bool,
}

impl<'a> Plan<'a> {
    pub(crate) fn new(changes: Changes<'a>, geometry: Geometry) -> Self {
        let chunks = geometry.target_chunks();
        let limit = match geometry.source_size {
            Some(size) if size < geometry.target_size => size >> geometry.chunk_bits,
            _ => chunks,
        };
        Self { changes, geometry, limit, next: 0, current: None, waiting: None, exhausted: false }
    }

    /// The next run.
    pub(crate) fn next_run(&mut self) -> Result<Option<Run>> {
        loop {
            if let Some((range, hole)) = self.current {
                return Ok(Some(self.cut(range, hole)));
            }
            let Some(range) = self.next_range()? else { return Ok(None) };
            let is_full = self.geometry.source_size.is_none();
            if is_full && range.start > self.next {
                self.current = Some((ChunkRange { start: self.next, end: range.start }, true));
                self.waiting = (range.start < range.end).then_some(range);
            } else if range.start < range.end {
                self.current = Some((range, false));
            }
            self.next = range.end;
        }
    }

    fn next_range(&mut self) -> Result<Option<ChunkRange>> {
        if let Some(range) = self.waiting.take() {
            return Ok(Some(range));
        }
        if self.exhausted {
            return Ok(None);
        }
        match self.changes.next().transpose()? {
            Some(range) if range.start < self.next || range.end <= range.start => {
                Err(Error::damaged(format!(
                    "changed chunks {}..{} come after chunk {}, expected ascending runs",
                    range.start, range.end, self.next
                )))
            }
            Some(range) if range.start < self.limit => {
                Ok(Some(ChunkRange { start: range.start, end: range.end.min(self.limit) }))
            }
            _ => {
                // Past the limit nothing more can count; the rest is the tail, or empty.
                self.exhausted = true;
                let end = self.geometry.target_chunks();
                let start = if self.limit < end { self.limit.max(self.next) } else { end };
                Ok(Some(ChunkRange { start, end }))
            }
        }
    }

    fn cut(&mut self, range: ChunkRange, hole: bool) -> Run {
        let max = if hole { u32::MAX } else { self.geometry.extent_chunks_max() };
        let chunks = u32::try_from(range.end.saturating_sub(range.start)).unwrap_or(u32::MAX).min(max);
        let start = range.start;
        let rest = ChunkRange { start: start.saturating_add(u64::from(chunks)), end: range.end };
        self.current = (rest.start < rest.end).then_some((rest, hole));
        if hole { Run::Hole { start, chunks } } else { Run::Read { start, chunks } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(ranges: &[(u64, u64)], source_size: Option<u64>, target_size: u64) -> Result<Vec<Run>> {
        let changes: Vec<_> = ranges.iter().map(|&(start, end)| Ok(ChunkRange { start, end })).collect();
        let geometry = Geometry { chunk_bits: 18, source_size, target_size };
        let mut plan = Plan::new(Box::new(changes.into_iter()), geometry);
        let mut runs = Vec::new();
        while let Some(run) = plan.next_run()? {
            runs.push(run);
        }
        Ok(runs)
    }

    const C: u64 = 1 << 18;

    fn read(start: u64, chunks: u32) -> Run {
        Run::Read { start, chunks }
    }

    fn hole(start: u64, chunks: u32) -> Run {
        Run::Hole { start, chunks }
    }

    #[test]
    fn runs_are_cut_to_extents_and_to_the_target() {
        assert_eq!(
            plan(&[(1, 7), (9, 20)], Some(10 * C), 10 * C).unwrap(),
            [read(1, 4), read(5, 2), read(9, 1)]
        );
        assert_eq!(plan(&[(1, 2), (30, 31)], Some(40 * C), 10 * C).unwrap(), [read(1, 1)]);
        assert_eq!(plan(&[], Some(10 * C), 10 * C).unwrap(), []);
        assert_eq!(plan(&[], Some(0), 0).unwrap(), []);
    }

    #[test]
    fn what_grew_is_always_there() {
        assert_eq!(plan(&[(0, 1)], Some(2 * C), 4 * C).unwrap(), [read(0, 1), read(2, 2)]);
        assert_eq!(plan(&[(0, 3)], Some(2 * C + 1), 4 * C).unwrap(), [read(0, 2), read(2, 2)]);
        assert_eq!(plan(&[(3, 4)], Some(C), 4 * C).unwrap(), [read(1, 3)]);
    }

    #[test]
    fn a_full_volume_has_no_gaps() {
        assert_eq!(
            plan(&[(1, 2), (4, 5)], None, 6 * C).unwrap(),
            [hole(0, 1), read(1, 1), hole(2, 2), read(4, 1), hole(5, 1)]
        );
        assert_eq!(plan(&[], None, 6 * C).unwrap(), [hole(0, 6)]);
        assert_eq!(plan(&[(0, 6)], None, 5 * C + 1).unwrap(), [read(0, 4), read(4, 2)]);
        let huge = plan(&[], None, (5 << 32) * C).unwrap();
        assert_eq!(huge.len(), 6);
    }

    #[test]
    fn disorder_is_seen() {
        assert!(plan(&[(4, 5), (3, 4)], Some(10 * C), 10 * C).is_err());
        assert!(plan(&[(4, 4)], Some(10 * C), 10 * C).is_err());
    }
}
