//! The salt of record checksums from the records themselves, for when no superblock and no checkpoint is left.
//!
//! A CRC is linear, so it can be walked backwards: from a header's checksum over its bytes to the state that the
//! salt left behind, which is the same for every record of a store. Any salt that leads to that state will do.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::record::{HEADER_SIZE, MAGIC, RawHeader};
use super::superblock::{BLOCK_BITS, CHUNK_BITS, SEGMENT_BITS};
use crate::units::Uuid;
use zerocopy::FromBytes;

/// Longest header that is looked at: enough records have shorter ones.
const HEADER_MAX: usize = 64 << 10;

/// What a record tells of its store without the salt. Nothing proves it: what most of them say counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Testimony {
    /// The store's identity.
    pub uuid: Uuid,
    /// A salt with which the header's checksum holds.
    pub salt: u64,
    /// log2 of the chunk size.
    pub chunk_bits: u32,
    /// log2 of the metadata block size.
    pub block_bits: u32,
    /// log2 of the segment size.
    pub segment_bits: u32,
}

/// What the record header at byte `address` says, and its time in seconds since 1970, if its bytes are all in `bytes`
/// and look like one.
#[must_use]
pub fn testify(bytes: &[u8], address: u64) -> Option<(Testimony, i64)> {
    let raw = RawHeader::ref_from_prefix(bytes).ok()?.0;
    let length = usize::try_from(raw.header_length.get()).ok()?;
    let (chunk_bits, block_bits, segment_bits) =
        (u32::from(raw.chunk_bits), u32::from(raw.block_bits), u32::from(raw.segment_bits));
    let plausible = raw.magic == MAGIC
        && raw.address.get() == address
        && (HEADER_SIZE..=HEADER_MAX).contains(&length)
        && CHUNK_BITS.contains(&chunk_bits)
        && BLOCK_BITS.contains(&block_bits)
        && SEGMENT_BITS.contains(&segment_bits);
    if !plausible {
        return None;
    }
    let (head, rest) = bytes.get(..length)?.split_at_checked(HEADER_SIZE.saturating_sub(4))?;
    let mut state = !raw.crc.get();
    let bytes = head.iter().copied().chain([0; 4]).chain(rest.iter().skip(4).copied());
    // Backwards: the last byte first.
    let all: Vec<u8> = bytes.collect();
    for byte in all.iter().rev() {
        state = step_back(state, *byte);
    }
    let salt = salt_for(state);
    let said = Testimony { uuid: Uuid(raw.uuid), salt, chunk_bits, block_bits, segment_bits };
    Some((said, raw.time.get()))
}

const TABLE: [u32; 256] = table();

#[allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "constant, evaluated by the compiler"
)]
const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut number = 0u32;
    while number < 256 {
        let mut value = number;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ 0xedb8_8320 } else { value >> 1 };
            bit += 1;
        }
        table[number as usize] = value;
        number += 1;
    }
    table
}

/// The state before `byte` led to `state`: the high byte of a state tells which row of the table made it.
fn step_back(state: u32, byte: u8) -> u32 {
    let high = state >> 24;
    let found = (0u8..=255).zip(TABLE).find(|(_, row)| row >> 24 == high);
    let (number, row) = found.unwrap_or((0, 0));
    ((state ^ row) << 8) | u32::from(number ^ byte)
}

/// Eight bytes that lead from the first state of a CRC-32 to `state`: four zeroes and four chosen ones.
fn salt_for(state: u32) -> u64 {
    let after_zeroes = !crc32fast::hash(&[0; 4]);
    let needed = (0..4).fold(state, |state, _| step_back(state, 0));
    u64::from(after_zeroes ^ needed) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::record::{Record, RecordKind};
    use crate::format::superblock::Superblock;
    use proptest::prelude::{any, proptest};

    fn store(salt: u64) -> Superblock {
        Superblock {
            uuid: Uuid([4; 16]),
            generation: 1,
            salt,
            chunk_bits: 15,
            block_bits: 12,
            segment_bits: 21,
            segments: 30,
            created_secs: 0,
            checkpoint: 1,
            durable: 0,
            uncommitted: false,
            copies: [Vec::new(), Vec::new()],
        }
    }

    fn header(sb: &Superblock, body: usize) -> Vec<u8> {
        let mut record = Record {
            address: 1 << 21,
            sequence: 5,
            incarnation: 6,
            durable: 4,
            epoch: 3,
            time_secs: 2,
            previous_crc: 1,
            kind: RecordKind::Volume,
            entries: Vec::new(),
            body: vec![0xa7; body],
            header_length: 0,
            data_length: 0,
            crc: 0,
        };
        record.encode(sb)
    }

    proptest! {
        #[test]
        fn a_salt_found_proves_every_record_of_the_store(salt in any::<u64>(), body in 0usize..9000) {
            let sb = store(salt);
            let (found, _) = testify(&header(&sb, body), 1 << 21).unwrap();
            assert_eq!((found.uuid, found.chunk_bits, found.block_bits, found.segment_bits), (sb.uuid, 15, 12, 21));
            let rescued = Superblock { salt: found.salt, ..sb.clone() };
            assert!(Record::decode(&header(&sb, 17), 1 << 21, &rescued).is_ok());
            assert!(Record::decode(&header(&store(salt ^ 1), 17), 1 << 21, &rescued).is_err());
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
            assert_eq!(testify(&bytes, 0), None);
        }
    }
}
