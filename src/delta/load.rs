//! The bytes of one run on both sides.

use super::buffer::Buffer;
use crate::error::Result;
use crate::format::delta::{Geometry, crc};
use crate::point::{PointId, PointSource};

/// What encoding needs to know of a run.
pub(crate) struct Loaded {
    /// The run's bytes inside the target.
    pub(crate) new: Buffer,
    /// The run's bytes inside the source, if they were read.
    pub(crate) base: Option<Buffer>,
    /// One CRC a chunk of the source, if the delta shall carry them.
    pub(crate) base_crcs: Option<Vec<u32>>,
}

/// Reads runs from a source of points.
#[derive(Clone, Copy)]
pub(crate) struct Loader<'a> {
    pub(crate) source: &'a dyn PointSource,
    pub(crate) from: Option<PointId>,
    pub(crate) to: PointId,
    pub(crate) geometry: Geometry,
    /// The delta shall carry CRCs of the base.
    pub(crate) base_crc: bool,
    /// The encoding refers to the bytes of the base.
    pub(crate) base_data: bool,
}

impl Loader<'_> {
    /// Loads the `chunks` chunks from `start`.
    pub(crate) fn load(&self, start: u64, chunks: u32) -> Result<Loaded> {
        let geometry = &self.geometry;
        let offset = geometry.offset(start);
        let mut new = Buffer::unwritten(to_usize(geometry.result_bytes(start, u64::from(chunks))));
        self.source.read(self.to, offset, &mut new)?;
        let Some(from) = self.from else { return Ok(Loaded { new, base: None, base_crcs: None }) };
        let mut base_crcs = None;
        if self.base_crc && !self.base_data {
            base_crcs = self.known_crcs(from, start, chunks)?;
        }
        let mut base = None;
        if self.base_data || (self.base_crc && base_crcs.is_none()) {
            let mut bytes = Buffer::unwritten(to_usize(geometry.base_bytes(start, u64::from(chunks))));
            if !bytes.is_empty() {
                self.source.read(from, offset, &mut bytes)?;
            }
            base_crcs = Some(chunk_crcs(geometry, chunks, &bytes));
            base = Some(bytes);
        }
        Ok(Loaded { new, base, base_crcs })
    }

    /// The CRCs of the base without reading it; `None` if one is unknown.
    fn known_crcs(&self, from: PointId, start: u64, chunks: u32) -> Result<Option<Vec<u32>>> {
        let geometry = &self.geometry;
        let source = Geometry { target_size: geometry.source_size.unwrap_or(0), ..*geometry };
        let mut crcs = Vec::with_capacity(to_usize(u64::from(chunks)));
        for chunk in start..start.saturating_add(u64::from(chunks)) {
            let bytes = geometry.base_bytes(chunk, 1);
            let known = if bytes == 0 {
                Some(0)
            } else if bytes == source.result_bytes(chunk, 1) {
                self.source.known_crc(from, chunk)?
            } else {
                // The target ends inside this chunk: the source's CRC covers more than the delta's does.
                None
            };
            let Some(known) = known else { return Ok(None) };
            crcs.push(known);
        }
        Ok(Some(crcs))
    }
}

/// One CRC for each of `chunks` chunks of `bytes`; chunks past its end have the CRC of nothing.
pub(crate) fn chunk_crcs(geometry: &Geometry, chunks: u32, bytes: &[u8]) -> Vec<u32> {
    let mut pieces = bytes.chunks(to_usize(geometry.chunk_bytes()));
    (0..chunks).map(|_| pieces.next().map_or(0, crc)).collect()
}

/// A length that is known to be bounded.
pub(crate) fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
