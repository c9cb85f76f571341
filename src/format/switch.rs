//! The record of a switch from a store of 2008 to one of today on the same device.
//!
//! It fills the first sector, which a device writes whole or not at all. While it is there, it says what the device
//! holds, whatever else lies where superblocks are.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::field::raw_struct;
use super::superblock::{BLOCK_BITS, FIRST_SEGMENT, OFFSETS};
use crate::error::{Error, Kind, Result};
use crate::units::Uuid;
use std::ops::Range;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// First eight bytes.
pub const MAGIC: [u8; 8] = *b"ddsnapSW";
/// Bytes of the record, at the begin of the device.
pub const SIZE: usize = 512;
/// Newest version of the record.
const VERSION: u32 = 1;
/// The old superblock and what lies before it.
const HEAD_BYTES: u64 = 8192;

raw_struct! {
    /// The record as it lies on disk.
    pub struct RawSwitch, "Switch record", 512 {
        magic: [u8; 8], "bytes", "`ddsnapSW`";
        version: U32, "u32", "version of the record, 1; a reader refuses what is newer";
        phase: U32, "u32", "1 switching, 2 switched, 3 being taken back, 4 being committed";
        uuid: [u8; 16], "uuid", "identifies the new store";
        saved: U64, "u64 bytes", "where what the switch overwrites is saved, and the new superblock behind it";
        block_bits: U32, "u32", "log2 of the metadata block size of the new store: the length of a superblock";
        old_crc: U32, "crc32", "of the bytes of the old store that are saved";
        new_crc: U32, "crc32", "of the block with the new superblock";
        unused: [u8; 456], "bytes", "zero";
        crc: U32, "crc32", "of the 508 bytes before";
    }
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The superblocks are being written.
    Switching,
    /// The new store is there and can be taken back.
    Switched,
    /// The old store is being put back.
    TakingBack,
    /// There is no way back any more.
    Committing,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Switching, Self::Switched, Self::TakingBack, Self::Committing];
}

/// The record, decoded and validated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    /// How far it is.
    pub phase: Phase,
    /// Identifies the new store.
    pub uuid: Uuid,
    /// Byte address of what is saved, [`Switch::saved_bytes`] of it.
    pub saved: u64,
    /// log2 of the metadata block size of the new store.
    pub block_bits: u32,
    /// CRC-32 of the bytes of the old store.
    pub old_crc: u32,
    /// CRC-32 of the new superblock, padded to a block.
    pub new_crc: u32,
}

impl Switch {
    /// Bytes of a superblock of the new store, padding included.
    #[must_use]
    pub fn block(&self) -> u64 {
        1u64.checked_shl(self.block_bits).unwrap_or(0)
    }

    /// What the switch may overwrite, ascending: saved in this order.
    #[must_use]
    pub fn places(&self) -> [Range<u64>; 3] {
        places(self.block())
    }

    /// Bytes that are saved of the old store.
    #[must_use]
    pub fn old_bytes(&self) -> u64 {
        HEAD_BYTES.saturating_add(self.block().saturating_mul(2))
    }

    /// All that lies at [`Switch::saved`]: what is saved, then the new superblock.
    #[must_use]
    pub fn saved_bytes(&self) -> u64 {
        self.old_bytes().saturating_add(self.block())
    }

    /// The 512 bytes on disk.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = RawSwitch::new_zeroed();
        raw.magic = MAGIC;
        raw.version = U32::new(VERSION);
        raw.phase = U32::new(match self.phase {
            Phase::Switching => 1,
            Phase::Switched => 2,
            Phase::TakingBack => 3,
            Phase::Committing => 4,
        });
        raw.uuid = self.uuid.0;
        raw.saved = U64::new(self.saved);
        raw.block_bits = U32::new(self.block_bits);
        raw.old_crc = U32::new(self.old_crc);
        raw.new_crc = U32::new(self.new_crc);
        raw.crc = U32::new(sum(&raw));
        raw.as_bytes().to_vec()
    }

    /// Decodes the first bytes of a device of `device_size` bytes; `None` if no such record is there.
    ///
    /// # Errors
    /// `Kind::Damaged` if it is one whose checksum does not hold, or that makes no sense; `Kind::Unsupported` if it
    /// is of a newer version.
    pub fn decode(bytes: &[u8], device_size: u64) -> Result<Option<Self>> {
        let Ok((raw, _)) = RawSwitch::read_from_prefix(bytes) else { return Ok(None) };
        if raw.magic != MAGIC {
            return Ok(None);
        }
        let damaged = |what: &str| Error::damaged(format!("the record of an upgrade in place {what}"));
        if sum(&raw) != raw.crc.get() {
            return Err(damaged("does not hold its checksum"));
        }
        if raw.version.get() != VERSION {
            let what = format!("the record of an upgrade in place has version {}", raw.version.get());
            return Err(Error::new(Kind::Unsupported, what).hint("use a newer ddsnap for this store"));
        }
        let phase = usize::try_from(raw.phase.get().wrapping_sub(1)).ok();
        let phase = phase.and_then(|at| Phase::ALL.get(at).copied());
        let phase = phase.ok_or_else(|| damaged("is of a phase that there is not"))?;
        let found = Self {
            phase,
            uuid: Uuid(raw.uuid),
            saved: raw.saved.get(),
            block_bits: raw.block_bits.get(),
            old_crc: raw.old_crc.get(),
            new_crc: raw.new_crc.get(),
        };
        let end = found.saved.checked_add(found.saved_bytes());
        let fits = BLOCK_BITS.contains(&found.block_bits)
            && found.saved >= FIRST_SEGMENT
            && end.is_some_and(|end| end <= device_size);
        if fits { Ok(Some(found)) } else { Err(damaged("names a place outside the store")) }
    }
}

fn places(block: u64) -> [Range<u64>; 3] {
    let [a, b] = OFFSETS.map(|offset| offset..offset.saturating_add(block));
    [0..HEAD_BYTES, a, b]
}

fn sum(raw: &RawSwitch) -> u32 {
    crc32fast::hash(raw.as_bytes().split_last_chunk::<4>().map_or(&[][..], |(rest, _)| rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    const SIZE_OF_DEVICE: u64 = 8 << 20;

    fn sample(phase: Phase) -> Switch {
        Switch { phase, uuid: Uuid([9; 16]), saved: 3 << 20, block_bits: 12, old_crc: 5, new_crc: 6 }
    }

    #[test]
    fn round_trips() {
        for phase in Phase::ALL {
            let bytes = sample(phase).encode();
            assert_eq!(bytes.len(), SIZE);
            assert_eq!(Switch::decode(&bytes, SIZE_OF_DEVICE).unwrap(), Some(sample(phase)));
        }
    }

    #[test]
    fn what_is_cut_or_makes_no_sense_is_none() {
        let bytes = sample(Phase::Switched).encode();
        for length in 0..SIZE {
            assert_eq!(Switch::decode(&bytes[..length], SIZE_OF_DEVICE).unwrap(), None);
        }
        assert!(Switch::decode(&bytes, 3 << 20).is_err(), "behind the end of the device");
        for (saved, block_bits) in [(0, 12), (u64::MAX, 12), (3 << 20, 11), (3 << 20, 17), (3 << 20, 99)] {
            let wrong = Switch { saved, block_bits, ..sample(Phase::Switched) };
            let error = Switch::decode(&wrong.encode(), SIZE_OF_DEVICE).unwrap_err();
            assert_eq!(error.kind(), Kind::Damaged);
        }
        for (at, value, kind) in [(8, 2, Kind::Unsupported), (12, 0, Kind::Damaged), (12, 5, Kind::Damaged)] {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            let crc = crc32fast::hash(&bytes[..508]);
            bytes[508..].copy_from_slice(&crc.to_le_bytes());
            assert_eq!(Switch::decode(&bytes, SIZE_OF_DEVICE).unwrap_err().kind(), kind);
        }
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_seen(at in 0usize..SIZE, bit in 0u8..8) {
            let mut bytes = sample(Phase::Switching).encode();
            bytes[at] ^= 1 << bit;
            // Without its magic it is none.
            match Switch::decode(&bytes, SIZE_OF_DEVICE) {
                Ok(found) => assert!(found.is_none() && at < 8),
                Err(_) => assert!(at >= 8),
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1000)) {
            assert_eq!(Switch::decode(&bytes, SIZE_OF_DEVICE).unwrap(), None);
        }
    }
}
