//! Parts: how a checkpoint is cut into pieces, each with a head of its own that says whose it is.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::count;
use crate::error::{Error, Result};
use crate::format::field::raw_struct;
use crate::format::superblock::{BLOCK_BITS, CHUNK_BITS, SEGMENT_BITS, Superblock};
use crate::format::table::put;
use crate::units::Uuid;
use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// First eight bytes of a part.
pub const MAGIC: [u8; 8] = *b"ddsnapCK";
/// Bytes of a part's head.
pub const PART_HEADER_SIZE: usize = 96;

raw_struct! {
    /// Head of one part of a checkpoint.
    pub struct RawPart, "Checkpoint part", 96 {
        magic: [u8; 8], "bytes", "`ddsnapCK`";
        uuid: [u8; 16], "uuid", "the store's";
        number: U64, "u64", "number of the checkpoint, never reused";
        address: U64, "u64 bytes", "byte address of this part in the store";
        salt: U64, "u64", "the salt of record checksums";
        created: I64, "i64 seconds", "when the store was made";
        part: U32, "u32", "number of this part, from 0";
        parts: U32, "u32", "number of parts, up to 64";
        length: U32, "u32 bytes", "bytes of payload after this head";
        chunk_bits: U32, "u32", "as in the superblock";
        block_bits: U32, "u32", "as in the superblock";
        segment_bits: U32, "u32", "as in the superblock";
        segments: U32, "u32", "as in the superblock";
        crc: U32, "crc32", "CRC-32 of head and payload with this field zero";
        publication: U64, "u64", "random; all parts of one attempt to publish this number have the same";
    }
}

/// One part of a checkpoint as found on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Number of the checkpoint.
    pub number: u64,
    /// Number of this part.
    pub part: u32,
    /// Number of parts.
    pub parts: u32,
    /// Which attempt to publish the number this belongs to.
    pub publication: u64,
    /// Its slice of the payload.
    pub payload: Vec<u8>,
    /// Geometry, salt and identity repeated from the superblock, so that a rescue can do without one.
    /// Generation, checkpoint number and copies are not known from here.
    pub geometry: Superblock,
}

/// Encodes part `part` of `parts` of checkpoint `number`, padded to the block size.
#[must_use]
pub fn encode_part(
    sb: &Superblock,
    number: u64,
    address: u64,
    (part, parts): (u32, u32),
    publication: u64,
    payload: &[u8],
) -> Vec<u8> {
    let mut raw = RawPart::new_zeroed();
    raw.magic = MAGIC;
    raw.uuid = sb.uuid.0;
    raw.number = U64::new(number);
    raw.address = U64::new(address);
    raw.salt = U64::new(sb.salt);
    raw.created = I64::new(sb.created_secs);
    raw.part = U32::new(part);
    raw.parts = U32::new(parts);
    raw.publication = U64::new(publication);
    raw.length = count(payload);
    raw.chunk_bits = U32::new(sb.chunk_bits);
    raw.block_bits = U32::new(sb.block_bits);
    raw.segment_bits = U32::new(sb.segment_bits);
    raw.segments = U32::new(sb.segments);
    raw.crc = U32::new(part_checksum(&raw, payload));
    let mut out = Vec::new();
    put(&mut out, &raw);
    out.extend_from_slice(payload);
    let padded = crate::format::record::pad(out.len() as u64, sb.block_bits);
    out.resize(usize::try_from(padded).unwrap_or(out.len()), 0);
    out
}

fn part_checksum(raw: &RawPart, payload: &[u8]) -> u32 {
    let mut unsummed = *raw;
    unsummed.crc = U32::new(0);
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(unsummed.as_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// Length in bytes of head and payload if `bytes` begin with a plausible part at `address`.
#[must_use]
pub fn peek_part(bytes: &[u8], address: u64) -> Option<usize> {
    let raw = RawPart::ref_from_prefix(bytes).ok()?.0;
    let length = usize::try_from(raw.length.get()).ok()?.checked_add(PART_HEADER_SIZE)?;
    (raw.magic == MAGIC && raw.address.get() == address && length <= (32 << 20)).then_some(length)
}

/// Decodes one part found at `address`.
///
/// # Errors
/// `Kind::Damaged` if it is none or its checksum does not hold.
pub fn decode_part(bytes: &[u8], address: u64) -> Result<Part> {
    let none = || Error::damaged("no checkpoint here").at_offset(address);
    let length = peek_part(bytes, address).ok_or_else(none)?;
    let raw = RawPart::read_from_prefix(bytes).map_err(|_| none())?.0;
    let payload = bytes.get(PART_HEADER_SIZE..length).ok_or_else(none)?;
    let crc = part_checksum(&raw, payload);
    if crc != raw.crc.get() {
        return Err(Error::damaged(format!(
            "checkpoint checksum is {:08x}, its bytes give {crc:08x}",
            raw.crc.get()
        ))
        .at_offset(address));
    }
    let geometry =
        [(raw.chunk_bits, CHUNK_BITS), (raw.block_bits, BLOCK_BITS), (raw.segment_bits, SEGMENT_BITS)];
    if let Some((bits, _)) = geometry.into_iter().find(|(bits, bounds)| !bounds.contains(&bits.get())) {
        return Err(Error::damaged(format!("checkpoint gives a size of 2^{}", bits.get())).at_offset(address));
    }
    Ok(Part {
        number: raw.number.get(),
        part: raw.part.get(),
        parts: raw.parts.get(),
        publication: raw.publication.get(),
        payload: payload.to_vec(),
        geometry: Superblock {
            uuid: Uuid(raw.uuid),
            generation: 0,
            salt: raw.salt.get(),
            chunk_bits: raw.chunk_bits.get(),
            block_bits: raw.block_bits.get(),
            segment_bits: raw.segment_bits.get(),
            segments: raw.segments.get(),
            created_secs: raw.created.get(),
            checkpoint: raw.number.get(),
            durable: 0,
            uncommitted: false,
            copies: [Vec::new(), Vec::new()],
        },
    })
}
