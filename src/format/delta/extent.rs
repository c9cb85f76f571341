//! The header of one extent.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::{EXTENT_MAGIC, ExtentKind, Geometry, crc};
use crate::error::{Error, Kind, Result, ensure};
use crate::format::field::raw_struct;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

raw_struct! {
    /// Header of an extent. Result CRCs (not for zero extents), base CRCs (if flagged) and payload follow.
    pub struct RawExtent, "Delta extent", 36 {
        magic: U32, "u32", "dde70001";
        kind: U32, "u32", "0 zero, 1 raw, 2 zstd, 3 zstd with the base as prefix; 4 and 5 reserved for xdelta";
        chunk: U64, "u64 chunks", "first chunk; beyond all earlier extents";
        chunks: U32, "u32 chunks", "1 or more, inside the target; with CRCs or payload at most 1 MiB of data";
        flags: U32, "u32", "bit 0: base CRCs follow; others 0";
        payload_bytes: U32, "u32 bytes", "zero: 0; raw: the extent's bytes inside the target; zstd: fewer than that";
        body_crc: U32, "crc32", "of all that follows: result CRCs, base CRCs, payload";
        header_crc: U32, "crc32", "of the 32 bytes before";
    }
}

const FLAG_BASE_CRCS: u32 = 1;

/// A decoded extent header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How the payload stands for the result.
    pub kind: ExtentKind,
    /// First chunk.
    pub chunk: u64,
    /// Number of chunks, at least 1.
    pub chunks: u32,
    /// True if base CRCs follow.
    pub base_crcs: bool,
    /// Length of the payload.
    pub payload_bytes: u32,
    /// CRC of everything that follows the header.
    pub body_crc: u32,
}

impl Extent {
    /// Number of result CRCs that follow the header.
    #[must_use]
    pub fn result_crc_count(&self) -> usize {
        if self.kind == ExtentKind::Zero { 0 } else { to_usize(self.chunks) }
    }

    /// Number of base CRCs that follow the result CRCs.
    #[must_use]
    pub fn base_crc_count(&self) -> usize {
        if self.base_crcs { to_usize(self.chunks) } else { 0 }
    }

    /// Bytes of both CRC arrays.
    #[must_use]
    pub fn arrays_bytes(&self) -> usize {
        self.result_crc_count().saturating_add(self.base_crc_count()).saturating_mul(4)
    }

    /// Length of the payload.
    #[must_use]
    pub fn payload_len(&self) -> usize {
        to_usize(self.payload_bytes)
    }

    /// The header as bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; size_of::<RawExtent>()] {
        let mut raw = RawExtent {
            magic: U32::new(EXTENT_MAGIC),
            kind: U32::new(self.kind.number()),
            chunk: U64::new(self.chunk),
            chunks: U32::new(self.chunks),
            flags: U32::new(if self.base_crcs { FLAG_BASE_CRCS } else { 0 }),
            payload_bytes: U32::new(self.payload_bytes),
            body_crc: U32::new(self.body_crc),
            header_crc: U32::new(0),
        };
        raw.header_crc = U32::new(header_crc(&raw));
        zerocopy::transmute!(raw)
    }

    /// Decodes and checks a header against the geometry; `next_chunk` is one past the extent before.
    ///
    /// After this every length that the header implies is bounded.
    ///
    /// # Errors
    /// `Kind::Damaged`; `Kind::Unsupported` for a sound header of an unknown kind.
    pub fn decode(
        bytes: &[u8; size_of::<RawExtent>()],
        geometry: &Geometry,
        next_chunk: u64,
    ) -> Result<Self> {
        let raw = RawExtent::read_from_bytes(bytes.as_slice())
            .map_err(|_| Error::damaged("extent header is cut short"))?;
        let (expected, found) = (raw.header_crc.get(), header_crc(&raw));
        ensure(expected == found, || format!("extent header has CRC {found:08x}, expected {expected:08x}"))?;
        let unsupported = |what: String| Error::new(Kind::Unsupported, what);
        let kind = ExtentKind::from_number(raw.kind.get())
            .ok_or_else(|| unsupported(format!("extent is of unknown kind {}", raw.kind)))?;
        let flags = raw.flags.get();
        if flags & !FLAG_BASE_CRCS != 0 {
            return Err(unsupported(format!("extent uses unknown features (flags {flags:#x})")));
        }
        let extent = Self {
            kind,
            chunk: raw.chunk.get(),
            chunks: raw.chunks.get(),
            base_crcs: flags & FLAG_BASE_CRCS != 0,
            payload_bytes: raw.payload_bytes.get(),
            body_crc: raw.body_crc.get(),
        };
        extent.check_place(geometry, next_chunk)?;
        extent.check_lengths(geometry)?;
        Ok(extent)
    }

    fn check_place(&self, geometry: &Geometry, next_chunk: u64) -> Result<()> {
        let chunks = geometry.target_chunks();
        ensure(self.chunks > 0, || "extent has no chunks".to_owned())?;
        ensure(self.chunk >= next_chunk, || {
            format!("extent begins at chunk {}, expected {next_chunk} or later", self.chunk)
        })?;
        let end = self.chunk.checked_add(u64::from(self.chunks));
        ensure(end.is_some_and(|end| end <= chunks), || {
            format!(
                "extent of {} chunks at chunk {} reaches past the {chunks} of the target",
                self.chunks, self.chunk
            )
        })?;
        let covered = geometry.covered_from();
        ensure(self.chunk <= next_chunk.max(covered), || match geometry.source_size {
            None => format!("full-volume delta skips chunks {next_chunk} to {}", self.chunk),
            Some(size) => {
                let first = next_chunk.max(covered);
                format!("delta skips chunks {first} to {}, but its source has only {size} bytes", self.chunk)
            }
        })
    }

    fn check_lengths(&self, geometry: &Geometry) -> Result<()> {
        let incremental = geometry.source_size.is_some();
        ensure(incremental || !self.base_crcs, || "full-volume delta has base CRCs".to_owned())?;
        ensure(self.kind != ExtentKind::ZstdBase || self.base_crcs, || {
            "extent refers to its base without the CRCs of it".to_owned()
        })?;
        let limited = self.kind != ExtentKind::Zero || self.base_crcs;
        let max = geometry.extent_chunks_max();
        ensure(!limited || self.chunks <= max, || {
            format!("extent has {} chunks, expected at most {max}", self.chunks)
        })?;
        let data = geometry.result_bytes(self.chunk, u64::from(self.chunks));
        let payload = u64::from(self.payload_bytes);
        let fits = match self.kind {
            ExtentKind::Zero => payload == 0,
            ExtentKind::Raw => payload == data,
            ExtentKind::Zstd | ExtentKind::ZstdBase => payload > 0 && payload < data,
        };
        ensure(fits, || {
            format!("{} extent of {data} bytes has a payload of {payload} bytes", self.kind.name())
        })
    }
}

fn header_crc(raw: &RawExtent) -> u32 {
    let bytes = raw.as_bytes();
    crc(bytes.split_at_checked(32).map_or(bytes, |(before, _)| before))
}

fn to_usize(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
