//! Index runs: immutable sorted tables, cut into pieces, each a directory block and data blocks.
//!
//! A block says which run it belongs to and where in it, and its checksum is kept by its parent (the
//! directory; the directory's by the checkpoint), so a stale block cannot prove that something is absent.
//! One key space holds three classes: exceptions (chunk, epoch), overlays (snapshot, chunk) and change
//! bits (epoch, page of 128 chunks).

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::field::raw_struct;
use super::record::Encoding;
use crate::error::{Error, Result};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Bytes of an index block.
pub const BLOCK_SIZE: usize = 4096;
/// Entries in a full block.
pub const ENTRIES_PER_BLOCK: usize = 101;
/// Most data blocks in a piece.
pub const PIECE_BLOCKS_MAX: usize = 127;
/// Chunks covered by one entry of change bits.
pub const PAGE_BITS: u32 = 7;
const MAGIC: [u8; 4] = *b"ddIX";
const HEADER_SIZE: usize = 32;

raw_struct! {
    /// Head of an index block.
    pub struct RawBlockHeader, "Index block header", 32 {
        magic: [u8; 4], "bytes", "`ddIX`";
        crc: U32, "crc32", "CRC-32 of the block with this field zero";
        run: U64, "u64", "number of the run, never reused";
        position: U64, "u64", "number of the block in its run, directories included";
        entries: U16, "u16", "entries in the block, up to 101 (directory: 127)";
        directory: u8, "u8", "1 for a directory";
        reserved: [u8; 5], "bytes", "zero";
    }
}

raw_struct! {
    /// One entry of an index block. Keys ascend by (class, a, b).
    pub struct RawIndexEntry, "Index entry", 40 {
        a: U64, "u64", "exception: chunk; overlay: snapshot id; change bits: epoch";
        b: U64, "u64", "exception: epoch; overlay: chunk; change bits: page of 128 chunks";
        word: U64, "u64 bytes", "address of the data; change bits: chunks 0 to 63 of the page";
        crc: U32, "crc32", "CRC-32 of the decoded data; change bits: chunks 64 to 95";
        raw_length: U32, "u32 bytes", "bytes after decoding; change bits: chunks 96 to 127";
        stored_length: U32, "u32 bytes", "bytes stored before padding";
        encoding: u8, "u8", "as in record entries";
        class: u8, "u8", "0 exception, 1 overlay, 2 change bits";
        reserved: U16, "u16", "zero";
    }
}

raw_struct! {
    /// One entry of a directory block: a data block of the piece, in order.
    pub struct RawDirectoryEntry, "Index directory entry", 24 {
        a: U64, "u64", "first key of the block";
        b: U64, "u64", "first key of the block";
        class: U32, "u32", "first key of the block";
        crc: U32, "crc32", "CRC-32 of the whole block as it lies on disk";
    }
}

/// A key: class, then two numbers whose meaning depends on it. Ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// 0 exception, 1 overlay, 2 change bits.
    pub class: u8,
    /// Exception: chunk; overlay: snapshot id; change bits: epoch.
    pub a: u64,
    /// Exception: epoch; overlay: chunk; change bits: page.
    pub b: u64,
}

impl Key {
    /// The least key.
    pub const MIN: Self = Self { class: 0, a: 0, b: 0 };

    /// An exception: `chunk` as it was until `epoch`.
    #[must_use]
    pub fn exception(chunk: u64, epoch: u64) -> Self {
        Self { class: 0, a: chunk, b: epoch }
    }

    /// A chunk written on snapshot `id`.
    #[must_use]
    pub fn overlay(id: u64, chunk: u64) -> Self {
        Self { class: 1, a: id, b: chunk }
    }

    /// The change bits of `epoch` for the chunks of `page`.
    #[must_use]
    pub fn changes(epoch: u64, page: u64) -> Self {
        Self { class: 2, a: epoch, b: page }
    }
}

/// What a key leads to: where the data lie, or change bits packed into the same fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value {
    /// Byte address of the data.
    pub word: u64,
    /// CRC-32 of the decoded data.
    pub crc: u32,
    /// Bytes after decoding.
    pub raw_length: u32,
    /// Bytes stored.
    pub stored_length: u32,
    /// How they are stored.
    pub encoding: Encoding,
}

impl Value {
    /// Change bits: bit i stands for chunk `128 * page + i`.
    #[must_use]
    pub fn from_bits(bits: u128) -> Self {
        let low = |shift: u32| u32::try_from((bits >> shift) & u128::from(u32::MAX)).unwrap_or(0);
        Self {
            word: u64::from(low(0)) | (u64::from(low(32)) << 32),
            crc: low(64),
            raw_length: low(96),
            stored_length: 0,
            encoding: Encoding::Raw,
        }
    }

    /// The change bits.
    #[must_use]
    pub fn bits(&self) -> u128 {
        u128::from(self.word) | (u128::from(self.crc) << 64) | (u128::from(self.raw_length) << 96)
    }
}

/// A key with its value.
pub type IndexEntry = (Key, Value);

/// Encodes a data block; at most [`ENTRIES_PER_BLOCK`] entries.
#[must_use]
pub fn encode_block(run: u64, position: u64, entries: &[IndexEntry]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(BLOCK_SIZE);
    for (key, value) in entries {
        let raw = RawIndexEntry {
            a: U64::new(key.a),
            b: U64::new(key.b),
            word: U64::new(value.word),
            crc: U32::new(value.crc),
            raw_length: U32::new(value.raw_length),
            stored_length: U32::new(value.stored_length),
            encoding: value.encoding.to_raw(),
            class: key.class,
            reserved: U16::new(0),
        };
        payload.extend_from_slice(raw.as_bytes());
    }
    seal(run, position, entries.len(), false, &payload)
}

/// Encodes a directory block: first key and checksum of each data block.
#[must_use]
pub fn encode_directory(run: u64, position: u64, blocks: &[(Key, u32)]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(BLOCK_SIZE);
    for (key, crc) in blocks {
        let raw = RawDirectoryEntry {
            a: U64::new(key.a),
            b: U64::new(key.b),
            class: U32::new(u32::from(key.class)),
            crc: U32::new(*crc),
        };
        payload.extend_from_slice(raw.as_bytes());
    }
    seal(run, position, blocks.len(), true, &payload)
}

fn seal(run: u64, position: u64, entries: usize, directory: bool, payload: &[u8]) -> Vec<u8> {
    let mut header = RawBlockHeader::new_zeroed();
    header.magic = MAGIC;
    header.run = U64::new(run);
    header.position = U64::new(position);
    header.entries = U16::new(u16::try_from(entries).unwrap_or(u16::MAX));
    header.directory = u8::from(directory);
    let mut hasher = crc32fast::Hasher::new();
    let padding = BLOCK_SIZE.saturating_sub(HEADER_SIZE).saturating_sub(payload.len());
    hasher.update(header.as_bytes());
    hasher.update(payload);
    hasher.update(&vec![0; padding]);
    header.crc = U32::new(hasher.finalize());
    let mut block = Vec::with_capacity(BLOCK_SIZE);
    block.extend_from_slice(header.as_bytes());
    block.extend_from_slice(payload);
    block.resize(BLOCK_SIZE, 0);
    block
}

/// The checksum a parent keeps of a block: CRC-32 of all its 4096 bytes.
#[must_use]
pub fn block_crc(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// The number of the run that a block of an index belongs to, if it is a sound one.
#[must_use]
pub fn run_of(bytes: &[u8]) -> Option<u64> {
    let raw = RawBlockHeader::ref_from_prefix(bytes).ok()?.0;
    (raw.magic == MAGIC && own_crc(bytes)? == raw.crc.get()).then_some(raw.run.get())
}

/// The checksum that a block's own head should name.
fn own_crc(bytes: &[u8]) -> Option<u32> {
    let (before, rest) = bytes.get(..BLOCK_SIZE)?.split_at_checked(4)?;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(before);
    hasher.update(&[0; 4]);
    hasher.update(rest.get(4..)?);
    Some(hasher.finalize())
}

/// Block `position` of `run`, proven by its own checksum alone, for when what its parent keeps is lost.
///
/// # Errors
/// `Kind::Damaged` if it is not that.
pub fn decode_orphan(bytes: &[u8], run: u64, position: u64) -> Result<Vec<IndexEntry>> {
    if run_of(bytes) != Some(run) {
        return Err(Error::damaged(format!("no block of run {run} is here")));
    }
    decode_block(bytes, run, position)
}

/// Decodes a data block whose bytes the caller has checked against the directory's checksum.
///
/// # Errors
/// `Kind::Damaged` if it is not block `position` of `run` or its entries are not in order.
pub fn decode_block(bytes: &[u8], run: u64, position: u64) -> Result<Vec<IndexEntry>> {
    let (count, payload) = unseal(bytes, run, position, false)?;
    let mut entries: Vec<IndexEntry> = Vec::with_capacity(count.min(ENTRIES_PER_BLOCK));
    for raw in payload.chunks_exact(size_of::<RawIndexEntry>()).take(count) {
        let raw =
            RawIndexEntry::read_from_bytes(raw).map_err(|_| Error::damaged("index entry is cut short"))?;
        let key = Key { class: raw.class, a: raw.a.get(), b: raw.b.get() };
        if key.class > 2 || entries.last().is_some_and(|(last, _)| *last >= key) {
            return Err(Error::damaged(format!("index block {position} of run {run} is out of order")));
        }
        let encoding = Encoding::from_raw(raw.encoding)
            .ok_or_else(|| Error::damaged(format!("index encoding {} is unknown", raw.encoding)))?;
        entries.push((
            key,
            Value {
                word: raw.word.get(),
                crc: raw.crc.get(),
                raw_length: raw.raw_length.get(),
                stored_length: raw.stored_length.get(),
                encoding,
            },
        ));
    }
    if entries.len() != count {
        return Err(Error::damaged(format!("index block {position} of run {run} claims {count} entries")));
    }
    Ok(entries)
}

/// Decodes a directory block: first key and checksum of each data block, in order.
///
/// # Errors
/// As [`decode_block`].
pub fn decode_directory(bytes: &[u8], run: u64, position: u64) -> Result<Vec<(Key, u32)>> {
    let (count, payload) = unseal(bytes, run, position, true)?;
    if count > PIECE_BLOCKS_MAX {
        return Err(Error::damaged(format!("index directory claims {count} blocks, at most 127 fit")));
    }
    payload
        .chunks_exact(size_of::<RawDirectoryEntry>())
        .take(count)
        .map(|raw| {
            let raw = RawDirectoryEntry::read_from_bytes(raw)
                .map_err(|_| Error::damaged("index directory is cut short"))?;
            let class = u8::try_from(raw.class.get())
                .map_err(|_| Error::damaged(format!("index class {} is unknown", raw.class.get())))?;
            Ok((Key { class, a: raw.a.get(), b: raw.b.get() }, raw.crc.get()))
        })
        .collect()
}

fn unseal(bytes: &[u8], run: u64, position: u64, directory: bool) -> Result<(usize, &[u8])> {
    let (header, payload) = RawBlockHeader::read_from_prefix(bytes)
        .map_err(|_| Error::damaged(format!("index block is cut short: {} bytes", bytes.len())))?;
    if header.magic != MAGIC
        || header.run.get() != run
        || header.position.get() != position
        || header.directory != u8::from(directory)
    {
        return Err(Error::damaged(format!(
            "index block says run {} position {}, expected run {run} position {position}",
            header.run.get(),
            header.position.get()
        )));
    }
    Ok((usize::from(header.entries.get()), payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    fn entries(count: usize) -> Vec<IndexEntry> {
        (0..count as u64).map(|i| (Key::exception(i, 7), Value::from_bits(u128::from(i) << 60))).collect()
    }

    #[test]
    fn blocks_and_directories_round_trip() {
        for count in [0, 1, ENTRIES_PER_BLOCK] {
            let block = encode_block(5, 9, &entries(count));
            assert_eq!(block.len(), BLOCK_SIZE);
            assert_eq!(decode_block(&block, 5, 9).unwrap(), entries(count));
            assert!(decode_block(&block, 6, 9).is_err());
            assert!(decode_directory(&block, 5, 9).is_err());
        }
        let blocks: Vec<_> = (0..127).map(|i| (Key::overlay(i, 2), 3)).collect();
        let directory = encode_directory(5, 0, &blocks);
        assert_eq!(directory.len(), BLOCK_SIZE);
        assert_eq!(decode_directory(&directory, 5, 0).unwrap(), blocks);
    }

    #[test]
    fn disorder_is_refused() {
        let mut list = entries(3);
        list.swap(0, 1);
        assert!(decode_block(&encode_block(1, 1, &list), 1, 1).is_err());
    }

    proptest! {
        #[test]
        fn bits_round_trip(bits in any::<u128>()) {
            assert_eq!(Value::from_bits(bits).bits(), bits);
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let _ = decode_block(&bytes, 0, 0);
            let _ = decode_directory(&bytes, 0, 0);
        }
    }
}
