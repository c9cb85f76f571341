//! The superblock: two copies at fixed offsets, each naming a checkpoint and both of its copies.
//!
//! A superblock is only rewritten to publish a checkpoint: copy A, flush, copy B, flush. At most one of the
//! two can be torn, so the newest one that holds its checksum is the truth.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::field::raw_struct;
use crate::error::{Error, Kind, Result};
use crate::units::Uuid;
use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// First eight bytes of a superblock.
pub const MAGIC: [u8; 8] = *b"ddsnapSB";
/// First eight bytes of a superblock of a store that is being filled: none yet, and never one unless it is finished.
pub const UNFINISHED_MAGIC: [u8; 8] = *b"ddsnapUP";
/// The feature of a store that an upgrade in place has made and nobody has committed: it can be read only, for nothing
/// that the old store used may be overwritten.
pub const UNCOMMITTED: u32 = 1;
/// Newest format version this program writes and reads.
pub const VERSION: u32 = 1;
/// Byte offsets of the two copies.
pub const OFFSETS: [u64; 2] = [64 << 10, 512 << 10];
/// Byte offset of segment 0; everything before it but the superblocks is zero.
pub const FIRST_SEGMENT: u64 = 1 << 20;
/// Bytes of a superblock copy that carry meaning.
pub const SIZE: usize = 4096;
/// Most parts a checkpoint can have.
pub const PARTS_MAX: usize = 64;
/// Chunk sizes: 4 KiB to 1 MiB.
pub const CHUNK_BITS: std::ops::RangeInclusive<u32> = 12..=20;
/// Block sizes: 4 KiB to 64 KiB.
pub const BLOCK_BITS: std::ops::RangeInclusive<u32> = 12..=16;
/// Segment sizes: 64 KiB to 16 MiB.
pub const SEGMENT_BITS: std::ops::RangeInclusive<u32> = 16..=24;

raw_struct! {
    /// Where one part of a checkpoint lies.
    pub struct RawExtent, "Extent", 16 {
        address: U64, "u64 bytes", "byte address in the store; 0 if unused";
        length: U32, "u32 bytes", "length, a multiple of the block size";
        crc: U32, "crc32", "CRC-32 of the part's bytes";
    }
}

raw_struct! {
    /// The superblock as it lies on disk.
    pub struct RawSuperblock, "Superblock", 4096 {
        magic: [u8; 8], "bytes", "`ddsnapSB`";
        version: U32, "u32", "format version, 1; a reader refuses what is newer";
        incompat: U32, "u32 bits", "features a reader must know: 1 not committed, see below; others 0";
        compat: U32, "u32 bits", "features a reader may ignore; none yet";
        crc: U32, "crc32", "CRC-32 of the 4096 bytes with this field zero";
        uuid: [u8; 16], "uuid", "identifies the store";
        generation: U64, "u64", "counts publications; the higher of two sound copies is the newer";
        salt: U64, "u64", "seeds the record checksums, so that user data cannot pose as a record";
        chunk_bits: U32, "u32", "log2 of the chunk size, 12 to 20";
        block_bits: U32, "u32", "log2 of the metadata block size, 12 to 16";
        segment_bits: U32, "u32", "log2 of the segment size, 16 to 24";
        segments: U32, "u32", "number of segments, from byte 1048576 on";
        created: I64, "i64 seconds", "time of creation since 1970 UTC";
        checkpoint: U64, "u64", "number of the checkpoint published here";
        parts: U32, "u32", "number of parts of the checkpoint, 1 to 64";
        reserved: U32, "u32", "zero";
        copy_a: [RawExtent; 64], "64 extents", "the parts, first copy";
        copy_b: [RawExtent; 64], "64 extents", "the parts, second copy";
        durable: U64, "u64", "highest sequence known durable: the log goes so far at least";
        unused: [u8; 1944], "bytes", "zero; kept by rewrites";
    }
}

/// Where one part of a checkpoint lies, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Byte address in the store.
    pub address: u64,
    /// Length in bytes.
    pub length: u32,
    /// CRC-32 of the bytes.
    pub crc: u32,
}

/// The superblock, decoded and validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Identifies the store.
    pub uuid: Uuid,
    /// Counts publications.
    pub generation: u64,
    /// Seeds the record checksums.
    pub salt: u64,
    /// log2 of the chunk size.
    pub chunk_bits: u32,
    /// log2 of the metadata block size.
    pub block_bits: u32,
    /// log2 of the segment size.
    pub segment_bits: u32,
    /// Number of segments.
    pub segments: u32,
    /// Time of creation, seconds since 1970 UTC.
    pub created_secs: i64,
    /// Number of the checkpoint published here.
    pub checkpoint: u64,
    /// Highest sequence known durable at the last checkpoint or close; 0 if unknown.
    pub durable: u64,
    /// An upgrade in place made it, and it may still be taken back: nothing may be written.
    pub uncommitted: bool,
    /// The parts of the checkpoint: both copies, equally long.
    pub copies: [Vec<Extent>; 2],
}

impl Superblock {
    /// Chunk size in bytes.
    #[must_use]
    pub fn chunk_size(&self) -> u32 {
        1u32.checked_shl(self.chunk_bits).unwrap_or(0)
    }

    /// Metadata block size in bytes.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        1u32.checked_shl(self.block_bits).unwrap_or(0)
    }

    /// Segment size in bytes.
    #[must_use]
    pub fn segment_size(&self) -> u32 {
        1u32.checked_shl(self.segment_bits).unwrap_or(0)
    }

    /// Byte address of `segment`.
    #[must_use]
    pub fn segment_address(&self, segment: u32) -> u64 {
        FIRST_SEGMENT.saturating_add(u64::from(segment) << self.segment_bits)
    }

    /// The segment that holds byte `address`, if any does.
    #[must_use]
    pub fn segment_of(&self, address: u64) -> Option<u32> {
        let segment = u32::try_from(address.checked_sub(FIRST_SEGMENT)? >> self.segment_bits).ok()?;
        (segment < self.segments).then_some(segment)
    }

    /// Size in bytes that the store needs to hold every segment.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.segment_address(self.segments)
    }

    /// The 4096 bytes on disk.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = RawSuperblock::new_zeroed();
        raw.magic = MAGIC;
        raw.version = U32::new(VERSION);
        raw.incompat = U32::new(if self.uncommitted { UNCOMMITTED } else { 0 });
        raw.uuid = self.uuid.0;
        raw.generation = U64::new(self.generation);
        raw.salt = U64::new(self.salt);
        raw.chunk_bits = U32::new(self.chunk_bits);
        raw.block_bits = U32::new(self.block_bits);
        raw.segment_bits = U32::new(self.segment_bits);
        raw.segments = U32::new(self.segments);
        raw.created = I64::new(self.created_secs);
        raw.checkpoint = U64::new(self.checkpoint);
        raw.durable = U64::new(self.durable);
        raw.parts = U32::new(u32::try_from(self.copies[0].len()).unwrap_or(u32::MAX));
        for (slots, parts) in [&mut raw.copy_a, &mut raw.copy_b].into_iter().zip(&self.copies) {
            for (slot, part) in slots.iter_mut().zip(parts) {
                *slot = RawExtent {
                    address: U64::new(part.address),
                    length: U32::new(part.length),
                    crc: U32::new(part.crc),
                };
            }
        }
        raw.crc = U32::new(crc32fast::hash(raw.as_bytes()));
        raw.as_bytes().to_vec()
    }

    /// Decodes one copy of a store that was being filled; `None` if it is not that.
    #[must_use]
    pub fn decode_unfinished(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&UNFINISHED_MAGIC)?;
        Self::decode(&[&MAGIC[..], rest].concat()).ok()
    }

    /// Decodes and validates the 4096 bytes of one copy.
    ///
    /// # Errors
    /// `Kind::Damaged` if it is no superblock or its checksum does not hold, `Kind::Unsupported` if it is of
    /// a newer version or uses features unknown here.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let raw = RawSuperblock::read_from_prefix(bytes)
            .map_err(|_| Error::damaged(format!("superblock is cut short: {} bytes", bytes.len())))?
            .0;
        if raw.magic != MAGIC {
            return Err(Error::damaged(format!(
                "superblock magic is {}, expected {}",
                hex::encode(raw.magic),
                hex::encode(MAGIC)
            )));
        }
        let mut unsummed = raw;
        unsummed.crc = U32::new(0);
        let crc = crc32fast::hash(unsummed.as_bytes());
        if crc != raw.crc.get() {
            return Err(Error::damaged(format!(
                "superblock checksum is {:08x}, its bytes give {crc:08x}",
                raw.crc.get()
            )));
        }
        if raw.version.get() != VERSION || raw.incompat.get() & !UNCOMMITTED != 0 {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "store has format version {} (features {:#x}), this program knows version {VERSION}",
                    raw.version.get(),
                    raw.incompat.get()
                ),
            )
            .hint("use a newer ddsnap for this store"));
        }
        Self::from_raw(&raw)
    }

    fn from_raw(raw: &RawSuperblock) -> Result<Self> {
        for (name, value, bounds) in [
            ("chunk", raw.chunk_bits.get(), CHUNK_BITS),
            ("block", raw.block_bits.get(), BLOCK_BITS),
            ("segment", raw.segment_bits.get(), SEGMENT_BITS),
        ] {
            if !bounds.contains(&value) {
                return Err(Error::damaged(format!(
                    "superblock gives {name} size 2^{value}, expected 2^{} to 2^{}",
                    bounds.start(),
                    bounds.end()
                )));
            }
        }
        let parts = usize::try_from(raw.parts.get()).unwrap_or(usize::MAX);
        if parts == 0 || parts > PARTS_MAX {
            return Err(Error::damaged(format!(
                "superblock names {parts} checkpoint parts, expected 1 to 64"
            )));
        }
        let copies = [&raw.copy_a, &raw.copy_b].map(|slots| {
            slots
                .iter()
                .take(parts)
                .map(|slot| Extent {
                    address: slot.address.get(),
                    length: slot.length.get(),
                    crc: slot.crc.get(),
                })
                .collect()
        });
        Ok(Self {
            uuid: Uuid(raw.uuid),
            generation: raw.generation.get(),
            salt: raw.salt.get(),
            chunk_bits: raw.chunk_bits.get(),
            block_bits: raw.block_bits.get(),
            segment_bits: raw.segment_bits.get(),
            segments: raw.segments.get(),
            created_secs: raw.created.get(),
            checkpoint: raw.checkpoint.get(),
            durable: raw.durable.get(),
            uncommitted: raw.incompat.get() & UNCOMMITTED != 0,
            copies,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    fn sample() -> Superblock {
        let part = Extent { address: 1 << 20, length: 4096, crc: 7 };
        Superblock {
            uuid: Uuid([3; 16]),
            generation: 9,
            salt: 0x1234_5678_9abc_def0,
            chunk_bits: 14,
            block_bits: 12,
            segment_bits: 20,
            segments: 64,
            created_secs: 1_700_000_000,
            checkpoint: 5,
            durable: 77,
            uncommitted: false,
            copies: [vec![part], vec![Extent { address: 9 << 20, ..part }]],
        }
    }

    #[test]
    fn round_trips() {
        for uncommitted in [false, true] {
            let sb = Superblock { uncommitted, ..sample() };
            assert_eq!(Superblock::decode(&sb.encode()).unwrap(), sb);
        }
    }

    #[test]
    fn what_is_unfinished_is_no_superblock() {
        let mut bytes = sample().encode();
        assert_eq!(Superblock::decode_unfinished(&bytes), None);
        bytes[..8].copy_from_slice(&UNFINISHED_MAGIC);
        assert_eq!(Superblock::decode(&bytes).unwrap_err().kind(), Kind::Damaged);
        assert_eq!(Superblock::decode_unfinished(&bytes), Some(sample()));
        bytes[100] ^= 1;
        assert_eq!(Superblock::decode_unfinished(&bytes), None);
    }

    #[test]
    fn refuses_newer_versions_and_unknown_features_even_with_a_good_checksum() {
        for (at, value) in [(8, 2), (12, 2), (12, 3), (15, 0x80)] {
            let mut bytes = sample().encode();
            bytes[at] = value;
            bytes[20..24].fill(0);
            let crc = crc32fast::hash(&bytes);
            bytes[20..24].copy_from_slice(&crc.to_le_bytes());
            assert_eq!(Superblock::decode(&bytes).unwrap_err().kind(), Kind::Unsupported);
        }
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_seen(at in 0usize..4096, bit in 0u8..8) {
            let mut bytes = sample().encode();
            bytes[at] ^= 1 << bit;
            assert!(Superblock::decode(&bytes).is_err());
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            assert!(Superblock::decode(&bytes).is_err());
        }
    }
}
