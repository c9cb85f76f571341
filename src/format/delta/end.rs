//! The end marker, without which a delta was cut short.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::END_MAGIC;
use crate::error::{Error, Result, ensure};
use crate::format::field::raw_struct;
use zerocopy::FromBytes;
use zerocopy::little_endian::{U32, U64};

raw_struct! {
    /// The last bytes of a delta.
    pub struct RawEnd, "Delta end marker", 72 {
        magic: U32, "u32", "dde70002";
        reserved: U32, "u32", "0";
        extents: U64, "u64", "number of extents";
        chunks: U64, "u64 chunks", "number of chunks in all extents";
        data_bytes: U64, "u64 bytes", "bytes of the target that the extents cover";
        payload_bytes: U64, "u64 bytes", "bytes of all payloads";
        digest: [u8; 32], "blake3", "of every byte of the stream before this field; names the delta";
    }
}

/// What the end marker says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct End {
    /// Number of extents.
    pub extents: u64,
    /// Number of chunks in all extents.
    pub chunks: u64,
    /// Bytes of the target that the extents cover.
    pub data_bytes: u64,
    /// Bytes of all payloads.
    pub payload_bytes: u64,
    /// BLAKE3 of every byte before the digest.
    pub digest: [u8; 32],
}

impl End {
    /// Bytes of the marker before its digest, which the digest covers.
    pub const COVERED_BYTES: usize = 40;

    /// The marker as bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; size_of::<RawEnd>()] {
        let raw = RawEnd {
            magic: U32::new(END_MAGIC),
            reserved: U32::new(0),
            extents: U64::new(self.extents),
            chunks: U64::new(self.chunks),
            data_bytes: U64::new(self.data_bytes),
            payload_bytes: U64::new(self.payload_bytes),
            digest: self.digest,
        };
        zerocopy::transmute!(raw)
    }

    /// Decodes the marker. The caller compares counts and digest with what it saw.
    ///
    /// # Errors
    /// `Kind::Damaged`.
    pub fn decode(bytes: &[u8; size_of::<RawEnd>()]) -> Result<Self> {
        let raw = RawEnd::read_from_bytes(bytes.as_slice())
            .map_err(|_| Error::damaged("end marker is cut short"))?;
        ensure(raw.magic.get() == END_MAGIC, || {
            format!("end marker has magic {:08x}, expected {END_MAGIC:08x}", raw.magic)
        })?;
        ensure(raw.reserved.get() == 0, || format!("reserved field of the end marker is {}", raw.reserved))?;
        Ok(Self {
            extents: raw.extents.get(),
            chunks: raw.chunks.get(),
            data_bytes: raw.data_bytes.get(),
            payload_bytes: raw.payload_bytes.get(),
            digest: raw.digest,
        })
    }
}
