//! Two plain devices or files as the two points of a volume whose past nobody recorded.

use super::{Changes, ChunkRange, Identity, Point, PointId, PointSource};
use crate::block::ReadAt;
use crate::error::{Error, Kind, Result};
use crate::units::{Epoch, Tag, Uuid};
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;

/// An old state, if there is one, and a new one. What changed is found by comparing them.
pub struct Files {
    old: Option<Arc<dyn ReadAt>>,
    new: Arc<dyn ReadAt>,
    chunk_bits: u32,
    old_tag: Tag,
    new_tag: Tag,
}

/// Bytes that one thread compares at a time.
const PIECE_BYTES: u64 = 1 << 20;

impl Files {
    /// The old point.
    pub const OLD: PointId = PointId::Snapshot(Epoch(0));
    /// The new point.
    pub const NEW: PointId = PointId::Snapshot(Epoch(1));

    /// A source of chunks of 2^`chunk_bits` bytes; the tags are what deltas made of it will say.
    ///
    /// # Errors
    /// `Kind::Usage` if `chunk_bits` is not 9 to 20.
    pub fn new(
        old: Option<(Arc<dyn ReadAt>, Tag)>,
        new: (Arc<dyn ReadAt>, Tag),
        chunk_bits: u32,
    ) -> Result<Self> {
        if !(9..=20).contains(&chunk_bits) {
            let what = format!("chunks of 2^{chunk_bits} bytes, expected 2^9 to 2^20");
            return Err(Error::new(Kind::Usage, what));
        }
        let old_tag = old.as_ref().map_or(Tag::ORIGIN, |(_, tag)| *tag);
        Ok(Self { old: old.map(|(old, _)| old), new: new.0, chunk_bits, old_tag, new_tag: new.1 })
    }

    fn at(&self, point: PointId) -> Result<&Arc<dyn ReadAt>> {
        let found = match point {
            Self::OLD => self.old.as_ref(),
            Self::NEW => Some(&self.new),
            _ => None,
        };
        found.ok_or_else(|| Error::new(Kind::NotFound, format!("a pair of files has no point {point:?}")))
    }

    fn point(id: PointId, tag: Tag, size_bytes: u64) -> Point {
        // Nothing is known of plain devices but their size and their data.
        let identity = Identity { volume: Uuid([0; 16]), id: 0, generation: 0 };
        Point { id, tag, name: None, size_bytes, created_secs: 0, identity }
    }
}

impl PointSource for Files {
    fn chunk_bits(&self) -> u32 {
        self.chunk_bits
    }

    fn points(&self) -> Vec<Point> {
        let old = self.old.iter().map(|old| Self::point(Self::OLD, self.old_tag, old.size()));
        old.chain([Self::point(Self::NEW, self.new_tag, self.new.size())]).collect()
    }

    fn changed(&self, from: Option<PointId>, to: PointId) -> Result<Changes<'_>> {
        let to = self.at(to)?;
        let Some(from) = from else {
            let end = to.size().div_ceil(1 << self.chunk_bits);
            return Ok(Box::new((end > 0).then_some(Ok(ChunkRange { start: 0, end })).into_iter()));
        };
        let from = self.at(from)?;
        Ok(Box::new(Compare {
            from: from.as_ref(),
            to: to.as_ref(),
            chunk_bits: self.chunk_bits,
            offset: 0,
            runs: VecDeque::new(),
            failed: false,
        }))
    }

    fn read(&self, point: PointId, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.at(point)?.read_at(buf, offset)
    }

    fn known_crc(&self, _point: PointId, _chunk: u64) -> Result<Option<u32>> {
        Ok(None)
    }
}

/// Compares two files, a few pieces at a time on as many threads.
struct Compare<'a> {
    from: &'a dyn ReadAt,
    to: &'a dyn ReadAt,
    chunk_bits: u32,
    offset: u64,
    runs: VecDeque<ChunkRange>,
    failed: bool,
}

impl Compare<'_> {
    fn next_run(&mut self) -> Result<Option<ChunkRange>> {
        // The last run may go on in the next pieces.
        while self.runs.len() < 2 && self.offset < self.to.size() {
            let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get).min(16);
            let starts: Vec<u64> = (0u64..)
                .take(threads)
                .map(|index| self.offset.saturating_add(index.saturating_mul(PIECE_BYTES)))
                .filter(|start| *start < self.to.size())
                .collect();
            let this = &*self;
            let found = thread::scope(|scope| {
                let tasks: Vec<_> =
                    starts.iter().map(|start| scope.spawn(move || this.compare(*start))).collect();
                tasks
                    .into_iter()
                    .map(|task| {
                        task.join()
                            .unwrap_or_else(|_| Err(Error::new(Kind::Io, "a worker thread ended early")))
                    })
                    .collect::<Result<Vec<_>>>()
            })?;
            self.offset = self.offset.saturating_add(PIECE_BYTES.saturating_mul(starts.len() as u64));
            for chunk in found.into_iter().flatten() {
                match self.runs.back_mut() {
                    Some(last) if last.end == chunk => last.end = chunk.saturating_add(1),
                    _ => self.runs.push_back(ChunkRange { start: chunk, end: chunk.saturating_add(1) }),
                }
            }
        }
        Ok(self.runs.pop_front())
    }

    /// The chunks that differ in the piece at `start`. A chunk that only one side has all of differs.
    fn compare(&self, start: u64) -> Result<Vec<u64>> {
        let read = |file: &dyn ReadAt| -> Result<Vec<u8>> {
            let len = file.size().saturating_sub(start).min(PIECE_BYTES);
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
            if !bytes.is_empty() {
                file.read_at(&mut bytes, start)?;
            }
            Ok(bytes)
        };
        let (old, new) = (read(self.from)?, read(self.to)?);
        let chunk = 1usize << self.chunk_bits;
        let mut old = old.chunks(chunk);
        let first = start >> self.chunk_bits;
        let pairs = (first..).zip(new.chunks(chunk));
        Ok(pairs.filter_map(|(number, new)| (old.next() != Some(new)).then_some(number)).collect())
    }
}

impl Iterator for Compare<'_> {
    type Item = Result<ChunkRange>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.next_run();
        self.failed = next.is_err();
        next.transpose()
    }
}
