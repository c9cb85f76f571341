//! Two plain devices or files as the two points of a volume whose past nobody recorded.

use super::compare::{Compare, Pair};
use super::{Changes, Identity, Point, PointId, PointSource, data_ranges};
use crate::block::ReadAt;
use crate::error::{Error, Kind, Result};
use crate::units::{Epoch, Tag, Uuid};
use std::sync::Arc;

/// An old state, if there is one, and a new one. What changed is found by comparing them.
pub struct Files {
    old: Option<Arc<dyn ReadAt>>,
    new: Arc<dyn ReadAt>,
    chunk_bits: u32,
    old_tag: Tag,
    new_tag: Tag,
    once: bool,
}

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
        Ok(Self {
            old: old.map(|(old, _)| old),
            new: new.0,
            chunk_bits,
            old_tag,
            new_tag: new.1,
            once: false,
        })
    }

    /// Says that after [`PointSource::changed`] nothing will be read, so what it reads need not be cached.
    #[must_use]
    pub fn read_once(self) -> Self {
        Self { once: true, ..self }
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
            return Ok(Box::new(data_ranges(to.as_ref(), 0..to.size(), self.chunk_bits)));
        };
        let (old, new) = (Arc::clone(self.at(from)?), Arc::clone(to));
        let pair = Pair { old, new, chunk_bits: self.chunk_bits, once: self.once };
        Ok(Box::new(Compare::start(&pair)?))
    }

    fn read(&self, point: PointId, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.at(point)?.read_at(buf, offset)
    }

    fn known_crc(&self, _point: PointId, _chunk: u64) -> Result<Option<u32>> {
        Ok(None)
    }
}
