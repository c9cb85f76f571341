//! The mark behind the last record of a store that was closed.
//!
//! It lies where the next record will be, which overwrites it: as long as it is whole, no record came after the one
//! that it names. Without a superblock nothing else proves that.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::field::raw_struct;
use crate::units::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// First eight bytes.
pub const MAGIC: [u8; 8] = *b"ddsnapED";
/// Bytes of the mark, at the begin of a block.
pub const SIZE: usize = 64;

raw_struct! {
    /// The mark as it lies on disk.
    pub struct RawEnd, "End of the log", 64 {
        magic: [u8; 8], "bytes", "`ddsnapED`";
        uuid: [u8; 16], "uuid", "identifies the store";
        address: U64, "u64 bytes", "byte address of this mark in the store";
        sequence: U64, "u64", "sequence of the last record";
        record_crc: U32, "crc32", "CRC of the last record";
        unused: [u8; 16], "bytes", "zero";
        crc: U32, "crc32", "of the 60 bytes before";
    }
}

/// The mark at byte `address` of store `uuid`, behind the record `sequence` whose CRC is `record_crc`.
#[must_use]
pub fn encode(uuid: &Uuid, address: u64, sequence: u64, record_crc: u32) -> Vec<u8> {
    let mut raw = RawEnd::new_zeroed();
    raw.magic = MAGIC;
    raw.uuid = uuid.0;
    raw.address = U64::new(address);
    raw.sequence = U64::new(sequence);
    raw.record_crc = U32::new(record_crc);
    let sum = raw.as_bytes().split_last_chunk::<4>().map_or(0, |(before, _)| crc32fast::hash(before));
    raw.crc = U32::new(sum);
    raw.as_bytes().to_vec()
}

/// The sequence that a mark at byte `address` of store `uuid` names; `None` if `bytes` begin with none.
#[must_use]
pub fn sequence_of(bytes: &[u8], uuid: &Uuid, address: u64) -> Option<u64> {
    let found = bytes.get(..SIZE).filter(|found| found.starts_with(&MAGIC))?;
    let raw = RawEnd::read_from_bytes(found).ok()?;
    let sequence = raw.sequence.get();
    (encode(uuid, address, sequence, raw.record_crc.get()) == found).then_some(sequence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_of_its_place_and_its_record() {
        let mark = |uuid: u8, address, sequence, crc| encode(&Uuid([uuid; 16]), address, sequence, crc);
        let one = mark(1, 2, 3, 4);
        assert_eq!((one.len(), one.starts_with(&MAGIC)), (SIZE, true));
        assert_eq!(one, mark(1, 2, 3, 4));
        assert_eq!(sequence_of(&one, &Uuid([1; 16]), 2), Some(3));
        assert_eq!(sequence_of(&one, &Uuid([1; 16]), 3), None);
        assert_eq!(sequence_of(&one, &Uuid([2; 16]), 2), None);
        assert!((0..SIZE).all(|length| sequence_of(&one[..length], &Uuid([1; 16]), 2).is_none()));
        assert!((0..SIZE).all(|at| {
            let mut bad = one.clone();
            bad[at] ^= 1;
            sequence_of(&bad, &Uuid([1; 16]), 2).is_none()
        }));
        for other in [mark(2, 2, 3, 4), mark(1, 3, 3, 4), mark(1, 2, 4, 4), mark(1, 2, 3, 5)] {
            assert_ne!(one[60..], other[60..]);
        }
    }
}
