//! A point-in-time source: geometry, a list of points, what changed between two, how to read one.
//!
//! Everything that makes changelists, deltas or exports stands on [`PointSource`] alone, so a store, a pair
//! of plain devices or a store of 2008 are the same to it.

mod compare;
pub mod files;
pub mod finding;
pub mod import;
mod same_blocks;
pub mod volume;

use crate::block::ReadAt;
use crate::error::Result;
use crate::units::{Epoch, Tag, Uuid};
use std::ops::Range;

/// Names one point of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum PointId {
    /// A snapshot, by its internal id.
    Snapshot(Epoch),
    /// The origin as it is now.
    Origin,
}

/// What makes a point the same point anywhere: (volume, internal id, content generation).
///
/// The generation is 0 for a snapshot never written to, and counts up with the first write after each
/// time it was handed out. For the origin `id` is `u64::MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    /// The volume whose past this is.
    pub volume: Uuid,
    /// Internal id (epoch) of the snapshot; `u64::MAX` for the origin.
    pub id: u64,
    /// Content generation.
    pub generation: u64,
}

/// A point and what is known of it without reading its data.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Point {
    /// Which point.
    pub id: PointId,
    /// The user's tag ([`Tag::ORIGIN`] for the origin).
    pub tag: Tag,
    /// The user's name for it, if any.
    pub name: Option<String>,
    /// Size in bytes (not necessarily a multiple of the chunk size).
    pub size_bytes: u64,
    /// Creation time, seconds since 1970 UTC (0 for the origin).
    pub created_secs: i64,
    /// Identity for base checks.
    pub identity: Identity,
}

/// A run of chunk numbers `start..end`, never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkRange {
    /// First chunk.
    pub start: u64,
    /// One past the last chunk.
    pub end: u64,
}

/// Ascending, disjoint, non-adjacent runs of chunks.
pub type Changes<'a> = Box<dyn Iterator<Item = Result<ChunkRange>> + Send + 'a>;

/// A source of points in time, readable by many threads at once, never written.
pub trait PointSource: Send + Sync {
    /// log2 of the chunk size in bytes.
    fn chunk_bits(&self) -> u32;

    /// All points that can be endpoints, oldest first, the origin (if there is one) last.
    fn points(&self) -> Vec<Point>;

    /// The chunks that may differ between `from` and `to` (a superset of what differs), limited to chunks
    /// inside `to`. Order of the two does not matter for stores. `from == None` lists every chunk of `to`
    /// that may be non-zero.
    ///
    /// # Errors
    /// `Kind::NotFound` if a point does not exist, `Kind::Damaged`/`Kind::Io` from the medium.
    fn changed(&self, from: Option<PointId>, to: PointId) -> Result<Changes<'_>>;

    /// What a changelist of 2008 names: the same, but a store of 2008 never listed chunks that only the larger of two
    /// points has, unless they were written.
    ///
    /// # Errors
    /// As [`PointSource::changed`].
    fn listed(&self, from: Option<PointId>, to: PointId) -> Result<Changes<'_>> {
        self.changed(from, to)
    }

    /// Fills `buf` with bytes of `point` from byte `offset`; the range must lie inside the point.
    ///
    /// # Errors
    /// `Kind::NotFound`, `Kind::Io`, `Kind::Damaged` (a checksum that does not hold).
    fn read(&self, point: PointId, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// CRC-32 (IEEE) of the whole `chunk` of `point` (a last partial chunk: of its bytes inside the point),
    /// when known without reading data.
    ///
    /// # Errors
    /// As [`PointSource::read`].
    fn known_crc(&self, point: PointId, chunk: u64) -> Result<Option<u32>>;
}

/// The chunks of 2^`chunk_bits` bytes, among `bytes` of `device`, that are not known to be zeroes.
pub fn data_ranges(
    device: &dyn ReadAt,
    bytes: Range<u64>,
    chunk_bits: u32,
) -> impl Iterator<Item = Result<ChunkRange>> + Send + '_ {
    let (mut offset, size) = (bytes.start, bytes.end);
    let mut open: Option<ChunkRange> = None;
    std::iter::from_fn(move || {
        while offset < size {
            let data = match device.next_data(offset) {
                Ok(data) => data,
                Err(error) => {
                    offset = size;
                    return Some(Err(error));
                }
            };
            if data.is_empty() {
                offset = size;
                break;
            }
            offset = data.end;
            let end = data.end.min(size).div_ceil(1 << chunk_bits);
            let range = ChunkRange { start: data.start >> chunk_bits, end };
            if range.start >= range.end {
                continue;
            }
            match &mut open {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => {
                    if let Some(done) = open.replace(range) {
                        return Some(Ok(done));
                    }
                }
            }
        }
        open.take().map(Ok)
    })
}
