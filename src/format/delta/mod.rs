//! The delta stream, version 1: what turns one point of a volume into another.
//!
//! A delta is written and read from front to back; nothing in it points anywhere. All integers are little
//! endian, every structure is unaligned and without padding.
//!
//! | part | bytes |
//! |---|---|
//! | header | [`RawHeader`], the name of the source point, the name of the target point, CRC-32 of all of it |
//! | extents, ascending and disjoint | [`RawExtent`], result CRCs, base CRCs, payload |
//! | end marker | [`RawEnd`], with a BLAKE3 digest of every byte before the digest itself |
//!
//! Nothing may follow the end marker. A stream without one was cut short.
//!
//! **Result CRCs**: one CRC-32 (IEEE) a chunk, of the chunk's bytes inside the target size. A zero extent has
//! none, for its result is known. **Base CRCs**, if the extent's flag says so: one a chunk, of the chunk's bytes
//! inside both the source and the target size (nothing at all: 0), so that a target already cut to its new size
//! can still be proven to be the right base.
//!
//! **Extents** hold at most [`EXTENT_BYTES_MAX`] bytes of the volume, at least one chunk; only zero extents
//! without base CRCs may be longer. A full-volume delta has no source and covers every chunk of the target; an
//! incremental one covers what differs, and always all that lies past the end of a smaller source.
//!
//! **A stream that was cut** is continued by [`RawContinuation`] and the rest of its bytes. Only a receiver that
//! has the beginning can read that.
//!
//! **Promises to later versions**: magic, version and header length keep their places, and the last four bytes
//! of the header are the CRC of the rest, so that a newer version can be told from damage.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

mod continuation;
mod end;
mod extent;
mod geometry;
mod header;

pub use continuation::{RawContinuation, ResumePoint};
pub use end::{End, RawEnd};
pub use extent::{Extent, RawExtent};
pub use geometry::Geometry;
pub use header::{Encoding, Header, PointLabel, RawHeader, RawPoint};

/// Version this program writes, and the newest it reads.
pub const VERSION: u32 = 1;
/// First eight bytes of a delta. The first is not ASCII and the last is a line feed, so that a text-mode
/// transfer shows at once.
pub const MAGIC: [u8; 8] = *b"\x89ddelta\n";
/// First eight bytes of what a cut stream is continued with.
pub const CONTINUATION_MAGIC: [u8; 8] = *b"\x89ddcont\n";
/// Bytes of volume data in one extent, at most.
pub const EXTENT_BYTES_MAX: u32 = 1 << 20;
/// Smallest chunk: 512 bytes.
pub const CHUNK_BITS_MIN: u32 = 9;
/// Largest chunk: 1 MiB.
pub const CHUNK_BITS_MAX: u32 = 20;
/// Longest name of a point in bytes.
pub const NAME_BYTES_MAX: usize = 1024;
/// Largest volume: offsets stay positive as signed numbers, as the system calls want them.
pub const VOLUME_BYTES_MAX: u64 = i64::MAX as u64;
/// Bytes before the length of the header is known.
pub const PREAMBLE_BYTES: usize = 16;
/// Longest header.
pub const HEADER_BYTES_MAX: u32 = 1 << 16;
/// Marks an extent.
pub const EXTENT_MAGIC: u32 = 0xdde7_0001;
/// Marks the end.
pub const END_MAGIC: u32 = 0xdde7_0002;

/// How the payload of an extent stands for its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExtentKind {
    /// No payload: the result is zeros.
    Zero,
    /// The payload is the result.
    Raw,
    /// The payload is a zstd frame of the result.
    Zstd,
    /// The payload is a zstd frame of the result that refers to the base bytes as its prefix.
    ZstdBase,
}

impl ExtentKind {
    /// The number in the stream. 4 (xdelta) and 5 (xdelta inside zstd) are reserved.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Zero => 0,
            Self::Raw => 1,
            Self::Zstd => 2,
            Self::ZstdBase => 3,
        }
    }

    /// The kind with this number in the stream.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Zero),
            1 => Some(Self::Raw),
            2 => Some(Self::Zstd),
            3 => Some(Self::ZstdBase),
            _ => None,
        }
    }

    /// Name for people and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Raw => "raw",
            Self::Zstd => "zstd",
            Self::ZstdBase => "zstd-base",
        }
    }
}

/// CRC-32 (IEEE) of `bytes`, as used everywhere in a delta.
#[must_use]
pub fn crc(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

#[cfg(test)]
mod tests;
