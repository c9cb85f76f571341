//! Log records: header block(s), then data, in one write inside one segment.
//!
//! A header names its own address, sequence, incarnation and the checksum of the header before it, so it
//! counts only where the chain leads. Its checksum is seeded with the store's salt, which user data never
//! contains, so preserved bytes cannot pose as a record.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::field::raw_struct;
use super::superblock::Superblock;
use crate::error::{Error, Result};
use crate::units::Uuid;
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// First eight bytes of a record.
pub const MAGIC: [u8; 8] = *b"ddsnapRC";
/// Bytes of the fixed part of a header.
pub const HEADER_SIZE: usize = 128;
/// Bytes of one entry.
pub const ENTRY_SIZE: usize = 40;
/// Most entries a record can have.
pub const ENTRIES_MAX: u32 = 4096;
/// Most bytes of kind-specific body.
pub const BODY_MAX: u32 = 16 << 10;
/// Most bytes of a header with entries and body, before padding.
pub const HEADER_MAX: usize = HEADER_SIZE + ENTRY_SIZE * 4096 + (16 << 10);

raw_struct! {
    /// The fixed part of a record header.
    pub struct RawHeader, "Record header", 128 {
        magic: [u8; 8], "bytes", "`ddsnapRC`";
        uuid: [u8; 16], "uuid", "the store's";
        address: U64, "u64 bytes", "byte address of this header in the store";
        sequence: U64, "u64", "counts records; jumps by 2^20 at each open, never reused";
        incarnation: U64, "u64", "random, new at every open for writing";
        durable: U64, "u64", "highest sequence known durable when this was written";
        epoch: U64, "u64", "the current epoch";
        time: I64, "i64 seconds", "when it was written, since 1970 UTC";
        previous_crc: U32, "crc32", "checksum of the header before this one in the chain";
        kind: U16, "u16", "see the list of kinds";
        flags: U16, "u16", "zero";
        entries: U32, "u32", "number of entries, up to 4096";
        header_length: U32, "u32 bytes", "header, entries and body, padded to the block size";
        data_length: U32, "u32 bytes", "data that follows, padded to the block size";
        body_length: U32, "u32 bytes", "bytes of body after the entries, up to 16384";
        chunk_bits: u8, "u8", "as in the superblock, for the day when none is left";
        block_bits: u8, "u8", "as in the superblock";
        segment_bits: u8, "u8", "as in the superblock";
        reserved: [u8; 25], "bytes", "zero";
        crc: U32, "crc32", "CRC-32 of the salt (8 bytes) and the header, this field zero";
    }
}

raw_struct! {
    /// One entry of a record: a chunk it preserves. Data follow in order, each padded to the block size.
    pub struct RawEntry, "Record entry", 40 {
        chunk: U64, "u64", "chunk number on the origin";
        owner: U64, "u64", "exception: its epoch; overlay: the snapshot's id";
        sequence: U64, "u64", "sequence of the record that first held it (relocation keeps it)";
        crc: U32, "crc32", "CRC-32 of the chunk's bytes after decoding";
        raw_length: U32, "u32 bytes", "bytes after decoding; less than a chunk only at the end of the origin";
        stored_length: U32, "u32 bytes", "bytes in the store before padding; 0 for zeroes and what is lost";
        encoding: u8, "u8", "0 raw, 1 zeroes, 2 lost: known to be gone, reading it is an error";
        class: u8, "u8", "0 exception, 1 overlay of a written snapshot";
        reserved: U16, "u16", "zero";
    }
}

/// What a record does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum RecordKind {
    /// Preserves chunks before the origin changes.
    CopyOut = 1,
    /// Makes a snapshot.
    Create = 2,
    /// Deletes a snapshot.
    Delete = 3,
    /// Replaces a snapshot's attributes.
    Attributes = 4,
    /// Writes chunks of a snapshot.
    SnapshotWrite = 5,
    /// Holds chunks moved from elsewhere.
    Relocation = 6,
    /// Replaces what is known of the volume.
    Volume = 7,
    /// Begins a long operation on the origin.
    Begin = 8,
    /// Ends it.
    End = 9,
    /// Ends a segment early.
    Skip = 10,
    /// States durability at a clean close.
    Idle = 11,
    /// Starts an incarnation.
    Open = 12,
    /// Sets or clears the taint of snapshots.
    Taint = 13,
}

impl RecordKind {
    /// Every kind, for documentation and decoding.
    pub const ALL: [Self; 13] = [
        Self::CopyOut,
        Self::Create,
        Self::Delete,
        Self::Attributes,
        Self::SnapshotWrite,
        Self::Relocation,
        Self::Volume,
        Self::Begin,
        Self::End,
        Self::Skip,
        Self::Idle,
        Self::Open,
        Self::Taint,
    ];

    fn from_raw(raw: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u16 == raw)
    }
}

/// Which key space an entry belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryClass {
    /// Preserved for snapshots; `owner` is the epoch.
    Exception,
    /// Written on a snapshot; `owner` is the snapshot's id.
    Overlay,
}

/// How a chunk is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// As it is.
    Raw,
    /// All zero bytes; nothing is stored.
    Zeroes,
    /// It was stored, and is known to be gone: reading it is an error, for what lies behind it is newer.
    Lost,
}

impl Encoding {
    /// The number on disk.
    #[must_use]
    pub fn to_raw(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zeroes => 1,
            Self::Lost => 2,
        }
    }

    /// From the number on disk.
    #[must_use]
    pub fn from_raw(raw: u8) -> Option<Self> {
        match raw {
            0 => Some(Self::Raw),
            1 => Some(Self::Zeroes),
            2 => Some(Self::Lost),
            _ => None,
        }
    }
}

/// One preserved or written chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Chunk number.
    pub chunk: u64,
    /// Epoch or snapshot id, by class.
    pub owner: u64,
    /// Sequence of the record that first held it.
    pub sequence: u64,
    /// CRC-32 of the decoded bytes.
    pub crc: u32,
    /// Bytes after decoding.
    pub raw_length: u32,
    /// Bytes stored, before padding.
    pub stored_length: u32,
    /// How it is stored.
    pub encoding: Encoding,
    /// Key space.
    pub class: EntryClass,
}

/// A record header, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Byte address in the store.
    pub address: u64,
    /// Position in the chain.
    pub sequence: u64,
    /// Which opening wrote it.
    pub incarnation: u64,
    /// Highest sequence known durable when it was written.
    pub durable: u64,
    /// Current epoch.
    pub epoch: u64,
    /// When, seconds since 1970 UTC.
    pub time_secs: i64,
    /// Checksum of the header before it.
    pub previous_crc: u32,
    /// What it does.
    pub kind: RecordKind,
    /// Its chunks.
    pub entries: Vec<Entry>,
    /// Kind-specific bytes.
    pub body: Vec<u8>,
    /// Bytes of header blocks; filled by [`Record::encode`] and [`Record::decode`].
    pub header_length: u32,
    /// Bytes of data after them, padding included.
    pub data_length: u32,
    /// Its own checksum, the next record's back link.
    pub crc: u32,
}

/// `value` rounded up to a multiple of 2^`bits`.
#[must_use]
pub fn pad(value: u64, bits: u32) -> u64 {
    let mask = 1u64.checked_shl(bits).map_or(u64::MAX, |unit| unit.saturating_sub(1));
    value.saturating_add(mask) & !mask
}

impl Record {
    /// Bytes of header blocks for `entries` entries and `body` bytes of body.
    #[must_use]
    pub fn header_length(entries: usize, body: usize, block_bits: u32) -> u64 {
        let bytes = entries.saturating_mul(ENTRY_SIZE).saturating_add(HEADER_SIZE).saturating_add(body);
        pad(bytes as u64, block_bits)
    }

    /// The whole record's length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        u64::from(self.header_length).saturating_add(u64::from(self.data_length))
    }

    /// Each entry with the byte address of its data.
    pub fn located(&self, block_bits: u32) -> impl Iterator<Item = (u64, &Entry)> {
        let mut at = self.address.saturating_add(u64::from(self.header_length));
        self.entries.iter().map(move |entry| {
            let here = at;
            at = at.saturating_add(pad(u64::from(entry.stored_length), block_bits));
            (here, entry)
        })
    }

    /// The header blocks; sets `header_length`, `data_length` and `crc`. The caller bounds entries and body.
    pub fn encode(&mut self, sb: &Superblock) -> Vec<u8> {
        let block_bits = sb.block_bits;
        let header_length = Self::header_length(self.entries.len(), self.body.len(), block_bits);
        self.header_length = u32::try_from(header_length).unwrap_or(u32::MAX);
        let data: u64 =
            self.entries.iter().map(|entry| pad(u64::from(entry.stored_length), block_bits)).sum();
        self.data_length = u32::try_from(data).unwrap_or(u32::MAX);
        let mut raw = RawHeader::new_zeroed();
        raw.magic = MAGIC;
        raw.uuid = sb.uuid.0;
        raw.address = U64::new(self.address);
        raw.sequence = U64::new(self.sequence);
        raw.incarnation = U64::new(self.incarnation);
        raw.durable = U64::new(self.durable);
        raw.epoch = U64::new(self.epoch);
        raw.time = I64::new(self.time_secs);
        raw.previous_crc = U32::new(self.previous_crc);
        raw.kind = U16::new(self.kind as u16);
        raw.entries = U32::new(u32::try_from(self.entries.len()).unwrap_or(u32::MAX));
        raw.header_length = U32::new(self.header_length);
        raw.data_length = U32::new(self.data_length);
        raw.body_length = U32::new(u32::try_from(self.body.len()).unwrap_or(u32::MAX));
        let bits = |bits: u32| u8::try_from(bits).unwrap_or(0);
        raw.chunk_bits = bits(sb.chunk_bits);
        raw.block_bits = bits(sb.block_bits);
        raw.segment_bits = bits(sb.segment_bits);
        let mut bytes = Vec::with_capacity(usize::try_from(header_length).unwrap_or(0));
        bytes.extend_from_slice(raw.as_bytes());
        for entry in &self.entries {
            bytes.extend_from_slice(entry.to_raw().as_bytes());
        }
        bytes.extend_from_slice(&self.body);
        bytes.resize(usize::try_from(header_length).unwrap_or(bytes.len()), 0);
        self.crc = checksum(sb.salt, &bytes);
        raw.crc = U32::new(self.crc);
        for (to, from) in bytes.iter_mut().zip(raw.as_bytes()) {
            *to = *from;
        }
        bytes
    }

    /// Reads the lengths from the first 128 bytes of what may be a record at `address`: the number of header
    /// bytes to read before [`Record::decode`] can judge it. `None` if it cannot be one.
    #[must_use]
    pub fn peek(bytes: &[u8], address: u64, uuid: Uuid) -> Option<usize> {
        let raw = RawHeader::ref_from_prefix(bytes).ok()?.0;
        let length = usize::try_from(raw.header_length.get()).ok()?;
        let plausible = raw.magic == MAGIC
            && raw.uuid == uuid.0
            && raw.address.get() == address
            && length >= HEADER_SIZE
            && length <= HEADER_MAX.saturating_add(1 << 16);
        plausible.then_some(length)
    }

    /// Decodes and validates the header blocks of a record of the store `sb`.
    ///
    /// # Errors
    /// `Kind::Damaged` if anything does not hold.
    pub fn decode(bytes: &[u8], address: u64, sb: &Superblock) -> Result<Self> {
        let length = Self::peek(bytes, address, sb.uuid)
            .ok_or_else(|| Error::damaged("no record header here").at_offset(address))?;
        let bytes = bytes
            .get(..length)
            .ok_or_else(|| Error::damaged("record header is cut short").at_offset(address))?;
        let (raw, rest) = RawHeader::read_from_prefix(bytes)
            .map_err(|_| Error::damaged("record header is cut short").at_offset(address))?;
        let crc = checksum(sb.salt, bytes);
        if crc != raw.crc.get() {
            return Err(Error::damaged(format!(
                "record checksum is {:08x}, its bytes give {crc:08x}",
                raw.crc.get()
            ))
            .at_offset(address));
        }
        let record = Self::from_raw(&raw, rest, sb.block_bits).map_err(|error| error.at_offset(address))?;
        let long =
            |entry: &&Entry| entry.raw_length > sb.chunk_size() || entry.stored_length > entry.raw_length;
        match record.entries.iter().find(long) {
            Some(entry) => {
                let text =
                    format!("record holds {} bytes of a chunk", entry.raw_length.max(entry.stored_length));
                Err(Error::damaged(text).at_offset(address))
            }
            None => Ok(record),
        }
    }

    fn from_raw(raw: &RawHeader, rest: &[u8], block_bits: u32) -> Result<Self> {
        let kind = RecordKind::from_raw(raw.kind.get())
            .ok_or_else(|| Error::damaged(format!("record kind {} is unknown", raw.kind.get())))?;
        if raw.entries.get() > ENTRIES_MAX || raw.body_length.get() > BODY_MAX {
            return Err(Error::damaged(format!(
                "record claims {} entries and {} bytes of body",
                raw.entries.get(),
                raw.body_length.get()
            )));
        }
        let count = usize::try_from(raw.entries.get()).unwrap_or(0);
        let body_length = usize::try_from(raw.body_length.get()).unwrap_or(0);
        if Self::header_length(count, body_length, block_bits) != u64::from(raw.header_length.get()) {
            return Err(Error::damaged("record lengths disagree"));
        }
        let split = count.saturating_mul(ENTRY_SIZE);
        let (table, rest) =
            rest.split_at_checked(split).ok_or_else(|| Error::damaged("record entries are cut short"))?;
        let body = rest.get(..body_length).ok_or_else(|| Error::damaged("record body is cut short"))?;
        let entries = table
            .chunks_exact(ENTRY_SIZE)
            .map(|bytes| RawEntry::read_from_bytes(bytes).ok().and_then(|entry| Entry::from_raw(&entry)))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| Error::damaged("record entry has an unknown class or encoding"))?;
        let data: u64 = entries.iter().map(|entry| pad(u64::from(entry.stored_length), block_bits)).sum();
        if data != u64::from(raw.data_length.get()) {
            return Err(Error::damaged("record data length disagrees with its entries"));
        }
        Ok(Self {
            address: raw.address.get(),
            sequence: raw.sequence.get(),
            incarnation: raw.incarnation.get(),
            durable: raw.durable.get(),
            epoch: raw.epoch.get(),
            time_secs: raw.time.get(),
            previous_crc: raw.previous_crc.get(),
            kind,
            entries,
            body: body.to_vec(),
            header_length: raw.header_length.get(),
            data_length: raw.data_length.get(),
            crc: raw.crc.get(),
        })
    }
}

impl Entry {
    fn to_raw(self) -> RawEntry {
        RawEntry {
            chunk: U64::new(self.chunk),
            owner: U64::new(self.owner),
            sequence: U64::new(self.sequence),
            crc: U32::new(self.crc),
            raw_length: U32::new(self.raw_length),
            stored_length: U32::new(self.stored_length),
            encoding: self.encoding.to_raw(),
            class: match self.class {
                EntryClass::Exception => 0,
                EntryClass::Overlay => 1,
            },
            reserved: U16::new(0),
        }
    }

    fn from_raw(raw: &RawEntry) -> Option<Self> {
        let encoding = Encoding::from_raw(raw.encoding)?;
        if (encoding == Encoding::Raw) != (raw.stored_length.get() > 0) {
            return None;
        }
        Some(Self {
            chunk: raw.chunk.get(),
            owner: raw.owner.get(),
            sequence: raw.sequence.get(),
            crc: raw.crc.get(),
            raw_length: raw.raw_length.get(),
            stored_length: raw.stored_length.get(),
            encoding,
            class: match raw.class {
                0 => EntryClass::Exception,
                1 => EntryClass::Overlay,
                _ => return None,
            },
        })
    }
}

/// CRC-32 over the salt and the header bytes with the checksum field taken as zero.
fn checksum(salt: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    let (before, rest) = bytes.split_at_checked(HEADER_SIZE.saturating_sub(4)).unwrap_or((bytes, &[]));
    hasher.update(before);
    hasher.update(&[0; 4]);
    hasher.update(rest.get(4..).unwrap_or(&[]));
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use proptest::prelude::{any, proptest};

    fn store() -> Superblock {
        Superblock {
            uuid: Uuid([9; 16]),
            generation: 1,
            salt: 77,
            chunk_bits: 14,
            block_bits: 12,
            segment_bits: 20,
            segments: 64,
            created_secs: 0,
            checkpoint: 1,
            durable: 0,
            uncommitted: false,
            copies: [Vec::new(), Vec::new()],
        }
    }

    fn sample(entries: usize, body: usize) -> Record {
        let entry = |i: usize| Entry {
            chunk: i as u64,
            owner: 3,
            sequence: 12,
            crc: 99,
            raw_length: 16384,
            stored_length: if i.is_multiple_of(2) { 16384 } else { 0 },
            encoding: if i.is_multiple_of(2) { Encoding::Raw } else { Encoding::Zeroes },
            class: EntryClass::Exception,
        };
        Record {
            address: 1 << 20,
            sequence: 12,
            incarnation: 55,
            durable: 11,
            epoch: 3,
            time_secs: 1_700_000_000,
            previous_crc: 4,
            kind: RecordKind::CopyOut,
            entries: (0..entries).map(entry).collect(),
            body: vec![0xab; body],
            header_length: 0,
            data_length: 0,
            crc: 0,
        }
    }

    #[test]
    fn round_trips() {
        for (entries, body) in [(0, 0), (1, 0), (64, 10), (1000, 3), (0, 16384)] {
            let mut record = sample(entries, body);
            let bytes = record.encode(&store());
            assert_eq!(bytes.len() % 4096, 0);
            assert_eq!(Record::decode(&bytes, 1 << 20, &store()).unwrap(), record);
        }
    }

    #[test]
    fn the_wrong_salt_or_address_is_no_record() {
        let bytes = sample(3, 0).encode(&store());
        for (address, salt) in [(1 << 20, 78), (2 << 20, 77)] {
            let error = Record::decode(&bytes, address, &Superblock { salt, ..store() }).unwrap_err();
            assert_eq!(error.kind(), Kind::Damaged);
        }
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_seen(at in 0usize..4096, bit in 0u8..8) {
            let mut bytes = sample(3, 5).encode(&store());
            bytes[at] ^= 1 << bit;
            assert!(Record::decode(&bytes, 1 << 20, &store()).is_err());
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
            assert!(Record::decode(&bytes, 0, &store()).is_err());
        }
    }
}
