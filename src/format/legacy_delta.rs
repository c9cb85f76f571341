//! The delta file of 2008.
//!
//! | part | bytes |
//! |---|---|
//! | header | [`RawHeader`], 28 bytes |
//! | extents | [`RawExtent`], 52 bytes each, and their payloads, until all chunks of the header are told |
//!
//! The payload of an extent is the data itself, or a VCDIFF of it against the same bytes of the source; either may lie
//! in a zlib stream. The sums are plain sums of bytes: they show most damage, but not bytes that changed places.
//!
//! The size of the volume is told nowhere: the last chunk may be partial, and then its extent is shorter than its
//! chunks.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::delta::{CHUNK_BITS_MAX, CHUNK_BITS_MIN, EXTENT_BYTES_MAX, VOLUME_BYTES_MAX};
use crate::error::{Error, Result, ensure};
use crate::format::field::raw_struct;
use crate::units::Tag;
use zerocopy::FromBytes;
use zerocopy::little_endian::{U32, U64};

raw_struct! {
    /// Header of a delta file of 2008.
    pub struct RawHeader, "Delta header of 2008", 28 {
        magic: [u8; 8], "bytes", "'jc' padded with zeros";
        chunks: U64, "u64 chunks", "in all extents";
        chunk_bytes: U32, "u32 bytes", "chunk size, a power of two from 512 to 1 MiB";
        source_tag: U32, "u32", "tag of the source snapshot; all ones: none, a whole volume";
        target_tag: U32, "u32", "tag of the target snapshot; all ones for the origin";
    }
}

raw_struct! {
    /// Header of an extent of 2008. The payload follows.
    pub struct RawExtent, "Delta extent of 2008", 52 {
        magic: U32, "u32", "bead0023";
        mode: U32, "u32", "1 VCDIFF against the source, 2 the data itself";
        compressed: U32, "u32", "1 if the payload lies in a zlib stream; all else means that it does not";
        offset: U64, "u64 bytes", "where the extent begins; at a chunk";
        chunks: U64, "u64 chunks", "at least 1, at most 1 MiB";
        payload_bytes: U64, "u64 bytes", "at most the bytes of the chunks";
        source_sum: U64, "u64", "sum of the bytes of the source; means nothing without a source, or past the end of it";
        target_sum: U64, "u64", "sum of the bytes of the target";
    }
}

/// First eight bytes.
pub const MAGIC: [u8; 8] = *b"jc\0\0\0\0\0\0";
/// Bytes of the header.
pub const HEADER_BYTES: usize = size_of::<RawHeader>();
/// Bytes of the header of an extent.
pub const EXTENT_HEADER_BYTES: usize = size_of::<RawExtent>();
const EXTENT_MAGIC: u32 = 0xbead_0023;
const MODE_XDELTA: u32 = 1;
const MODE_RAW: u32 = 2;

/// True if `head` begins a delta file of 2008. The magic is compared up to its first zero byte, as in 2008.
#[must_use]
pub fn is_delta(head: &[u8]) -> bool {
    head.len() >= MAGIC.len() && head.first_chunk::<3>() == MAGIC.first_chunk::<3>()
}

/// The sum by which 2008 knew bytes.
#[must_use]
pub fn sum(bytes: &[u8]) -> u64 {
    // A sum of so few bytes fits 32 bits, in which a processor adds many at once.
    let piece = |bytes: &[u8]| bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    bytes.chunks(1 << 16).fold(0u64, |sum, bytes| sum.saturating_add(u64::from(piece(bytes))))
}

/// The decoded header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Chunks in all extents.
    pub chunks: u64,
    /// log2 of the chunk size in bytes, 9 to 20.
    pub chunk_bits: u32,
    /// Tag of the source snapshot; `None`: the delta is of a whole volume.
    pub source: Option<Tag>,
    /// Tag of the target.
    pub target: Tag,
}

impl Header {
    /// The header as bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let raw = RawHeader {
            magic: MAGIC,
            chunks: U64::new(self.chunks),
            chunk_bytes: U32::new(1u32.checked_shl(self.chunk_bits).unwrap_or(0)),
            source_tag: U32::new(self.source.unwrap_or(Tag::ORIGIN).0),
            target_tag: U32::new(self.target.0),
        };
        zerocopy::transmute!(raw)
    }

    /// Decodes and checks the header.
    ///
    /// # Errors
    /// `Kind::Damaged`.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self> {
        let raw = RawHeader::read_from_bytes(bytes.as_slice())
            .map_err(|_| Error::damaged("delta header of 2008 is cut short"))?;
        ensure(is_delta(&raw.magic), || format!("not a delta of 2008: magic is {}", hex::encode(raw.magic)))?;
        let size = raw.chunk_bytes.get();
        let chunk_bits = size.trailing_zeros();
        ensure(size.is_power_of_two() && (CHUNK_BITS_MIN..=CHUNK_BITS_MAX).contains(&chunk_bits), || {
            format!("chunks have {size} bytes, expected a power of two from 512 to 1048576")
        })?;
        let chunks = raw.chunks.get();
        ensure(chunks <= VOLUME_BYTES_MAX >> chunk_bits, || format!("delta claims {chunks} chunks"))?;
        let source = Some(Tag(raw.source_tag.get())).filter(|tag| *tag != Tag::ORIGIN);
        Ok(Self { chunks, chunk_bits, source, target: Tag(raw.target_tag.get()) })
    }
}

/// How a payload stands for the data of its extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coding {
    /// It is a VCDIFF against the source.
    pub xdelta: bool,
    /// It lies in a zlib stream.
    pub zlib: bool,
}

/// All of them.
pub const CODINGS: [Coding; 4] = [
    Coding { xdelta: false, zlib: false },
    Coding { xdelta: false, zlib: true },
    Coding { xdelta: true, zlib: false },
    Coding { xdelta: true, zlib: true },
];

impl Coding {
    /// True if the payload is the data itself.
    #[must_use]
    pub fn is_plain(self) -> bool {
        !self.xdelta && !self.zlib
    }

    /// Name for people and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match (self.xdelta, self.zlib) {
            (false, false) => "raw",
            (false, true) => "raw-zlib",
            (true, false) => "xdelta",
            (true, true) => "xdelta-zlib",
        }
    }
}

/// A decoded extent header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// What the payload is.
    pub coding: Coding,
    /// First chunk.
    pub chunk: u64,
    /// Number of chunks, at least 1.
    pub chunks: u32,
    /// Length of the payload, at most that of the chunks.
    pub payload_bytes: u32,
    /// Sum of the bytes of the source.
    pub source_sum: u64,
    /// Sum of the bytes of the target.
    pub target_sum: u64,
}

impl Extent {
    /// The header as bytes.
    #[must_use]
    pub fn encode(&self, header: &Header) -> [u8; EXTENT_HEADER_BYTES] {
        let raw = RawExtent {
            magic: U32::new(EXTENT_MAGIC),
            mode: U32::new(if self.coding.xdelta { MODE_XDELTA } else { MODE_RAW }),
            compressed: U32::new(u32::from(self.coding.zlib)),
            offset: U64::new(self.chunk.checked_shl(header.chunk_bits).unwrap_or(0)),
            chunks: U64::new(u64::from(self.chunks)),
            payload_bytes: U64::new(u64::from(self.payload_bytes)),
            source_sum: U64::new(self.source_sum),
            target_sum: U64::new(self.target_sum),
        };
        zerocopy::transmute!(raw)
    }

    /// Decodes and checks a header. After this every length that it implies is bounded.
    ///
    /// # Errors
    /// `Kind::Damaged`.
    pub fn decode(bytes: &[u8; EXTENT_HEADER_BYTES], header: &Header) -> Result<Self> {
        let raw = RawExtent::read_from_bytes(bytes.as_slice())
            .map_err(|_| Error::damaged("extent header of 2008 is cut short"))?;
        ensure(raw.magic.get() == EXTENT_MAGIC, || {
            format!("not an extent of 2008: magic is {:08x}, expected {EXTENT_MAGIC:08x}", raw.magic.get())
        })?;
        let mode = raw.mode.get();
        ensure(matches!(mode, MODE_XDELTA | MODE_RAW), || {
            format!("extent has mode {mode}, expected 1 or 2")
        })?;
        let (offset, chunks, payload) = (raw.offset.get(), raw.chunks.get(), raw.payload_bytes.get());
        let max = u64::from(EXTENT_BYTES_MAX) >> header.chunk_bits;
        ensure((1..=max).contains(&chunks), || format!("extent has {chunks} chunks, expected 1 to {max}"))?;
        let bytes = chunks.checked_shl(header.chunk_bits).unwrap_or(u64::MAX);
        let end = offset.checked_add(bytes).filter(|end| *end <= VOLUME_BYTES_MAX);
        let chunk = offset.checked_shr(header.chunk_bits).unwrap_or(0);
        ensure(end.is_some() && chunk.checked_shl(header.chunk_bits) == Some(offset), || {
            format!("extent begins at byte {offset}, expected the beginning of a chunk")
        })?;
        ensure((1..=bytes).contains(&payload), || {
            format!("extent of {bytes} bytes has a payload of {payload} bytes")
        })?;
        Ok(Self {
            coding: Coding { xdelta: mode == MODE_XDELTA, zlib: raw.compressed.get() == 1 },
            chunk,
            chunks: u32::try_from(chunks).unwrap_or(u32::MAX),
            payload_bytes: u32::try_from(payload).unwrap_or(u32::MAX),
            source_sum: raw.source_sum.get(),
            target_sum: raw.target_sum.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

    use super::*;

    const HEADER: Header = Header { chunks: 13, chunk_bits: 12, source: Some(Tag(0)), target: Tag(1) };

    #[test]
    fn both_headers_come_back() {
        let whole = Header { source: None, target: Tag::ORIGIN, ..HEADER };
        for header in [HEADER, whole] {
            assert_eq!(Header::decode(&header.encode()).unwrap(), header);
        }
        for coding in CODINGS {
            let (source_sum, target_sum) = (u64::MAX, 7);
            let extent = Extent { coding, chunk: 5, chunks: 256, payload_bytes: 99, source_sum, target_sum };
            assert_eq!(Extent::decode(&extent.encode(&HEADER), &HEADER).unwrap(), extent);
        }
    }

    #[test]
    fn bounds_are_kept() {
        let bytes = HEADER.encode();
        for (at, value) in [(0, b'x'), (2, 1), (16, 1), (17, 0), (18, 0x20), (15, 0x80)] {
            let mut bad = bytes;
            bad[at] = value;
            assert!(Header::decode(&bad).is_err(), "{at}");
        }
        let coding = Coding { xdelta: false, zlib: false };
        let extent =
            Extent { coding, chunk: 5, chunks: 2, payload_bytes: 8192, source_sum: 0, target_sum: 0 };
        let bytes = extent.encode(&HEADER);
        for (at, value) in [
            (0, 0),
            (4, 3),
            (4, 0),
            (12, 1),
            (19, 0x80),
            (20, 0),
            (21, 1),
            (27, 1),
            (28, 1),
            (29, 0),
            (35, 1),
        ] {
            let mut bad = bytes;
            bad[at] = value;
            assert!(Extent::decode(&bad, &HEADER).is_err(), "{at}");
        }
    }

    #[test]
    fn a_sum_is_a_sum() {
        assert_eq!(sum(&[]), 0);
        assert_eq!(sum(&[255; 1 << 20]), 255 << 20);
        assert_eq!(sum(&[1, 2, 3]), 6);
    }
}
