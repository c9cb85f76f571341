//! Commit blocks of the journal of 2008.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use crate::format::field::raw_struct;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// First eight bytes of a commit block.
pub const MAGIC: [u8; 8] = *b"MAGICNUM";
/// Longest deferred range in chunks.
const DEFERRED_MAX: u32 = 2;

raw_struct! {
    /// Ends a transaction: its blocks lie in the ring before it. The home sectors of the blocks follow, 8 bytes each.
    pub struct RawCommit, "Store of 2008: commit block", 52 {
        magic: [u8; 8], "bytes", "`MAGICNUM`";
        checksum: U32, "u32", "makes the first words of the block sum up to 0: three, or log2 of the block size / 4";
        sequence: U32, "u32", "counts commits, wraps";
        entries: U32, "u32", "blocks of the transaction";
        data_free: U64, "u64", "free data chunks after it; 0 in the combined layout";
        metadata_free: U64, "u64", "free metadata blocks after it";
        deferred: U64, "u64 chunk", "first chunk of a range that is in use though the bitmap does not say so yet";
        range: U32, "u32", "bit 0: a barrier; the others: length of the deferred range";
        unused: U32, "u32", "0";
    }
}

/// A commit block, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Counts commits, wraps.
    pub sequence: u32,
    /// Home sectors of the blocks, in the order in which they lie in the ring.
    pub homes: Vec<u64>,
    /// Free metadata blocks after it.
    pub metadata_free: u64,
    /// Free data chunks after it.
    pub data_free: u64,
    /// Chunks in use though the bitmap does not say so yet: first and count; mostly none.
    pub deferred: (u64, u32),
    /// Everything before it is at home.
    pub is_barrier: bool,
}

impl Commit {
    /// Reads `block` of 2^`block_bits` bytes; `None` if it is no sound commit block.
    ///
    /// The sum covers a few words only, up to blocks of 32 KiB not even the sequence: it proves little.
    #[must_use]
    pub fn decode(block: &[u8], block_bits: u32) -> Option<Self> {
        let (raw, rest) = RawCommit::ref_from_prefix(block).ok()?;
        if raw.magic != MAGIC {
            return None;
        }
        if sum(block, block_bits)? != 0 {
            return None;
        }
        let entries = usize::try_from(raw.entries.get()).ok()?;
        // The original never deferred more than two chunks in a commit.
        if raw.range.get() >> 1 > DEFERRED_MAX {
            return None;
        }
        let (homes, _) = <[U64]>::ref_from_prefix_with_elems(rest, entries).ok()?;
        Some(Self {
            sequence: raw.sequence.get(),
            homes: homes.iter().map(|home| home.get()).collect(),
            metadata_free: raw.metadata_free.get(),
            data_free: raw.data_free.get(),
            deferred: (raw.deferred.get(), raw.range.get() >> 1),
            is_barrier: raw.range.get() & 1 == 1,
        })
    }
}

/// The sum over the words of `block` that the original looked at.
fn sum(block: &[u8], block_bits: u32) -> Option<u32> {
    let words = usize::try_from(block_bits / 4).ok()?.max(3);
    let (words, _) = <[U32]>::ref_from_prefix_with_elems(block, words).ok()?;
    Some(words.iter().fold(0u32, |sum, word| sum.wrapping_add(word.get())))
}

/// Sets the free counts of the commit in `block`: metadata blocks, data chunks (0 in the combined layout).
pub fn set_free(block: &mut [u8], block_bits: u32, (metadata_free, data_free): (u64, u64)) {
    if let Ok((raw, _)) = RawCommit::mut_from_prefix(block) {
        raw.metadata_free.set(metadata_free);
        raw.data_free.set(data_free);
        raw.checksum.set(0);
    }
    let sum = sum(block, block_bits).unwrap_or(0);
    if let Ok((raw, _)) = RawCommit::mut_from_prefix(block) {
        raw.checksum.set(sum.wrapping_neg());
    }
}

/// A commit of nothing, as one that fills a block of 2^`block_bits` bytes.
#[must_use]
pub fn empty_commit(block_bits: u32, sequence: u32, free: (u64, u64)) -> Vec<u8> {
    let size = 1u64.checked_shl(block_bits).and_then(|size| usize::try_from(size).ok()).unwrap_or(0);
    let mut block = vec![0; size];
    let raw = RawCommit { magic: MAGIC, sequence: sequence.into(), ..RawCommit::new_zeroed() };
    if let Some(head) = block.get_mut(..size_of::<RawCommit>()) {
        head.copy_from_slice(raw.as_bytes());
    }
    set_free(&mut block, block_bits, free);
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_commit_is_sound_at_every_block_size() {
        for bits in 9..=24 {
            let mut block = empty_commit(bits, 77, (5, 6));
            let commit = Commit::decode(&block, bits).unwrap();
            assert_eq!((commit.sequence, commit.homes.len()), (77, 0), "{bits}");
            assert_eq!((commit.metadata_free, commit.data_free, commit.deferred), (5, 6, (0, 0)));
            // As the original stored it.
            let stored = u32::from_le_bytes(block[8..12].try_into().unwrap());
            if bits < 16 {
                assert_eq!(stored, 0x6963_7070);
            }
            set_free(&mut block, bits, (7, 8));
            let commit = Commit::decode(&block, bits).unwrap();
            assert_eq!((commit.metadata_free, commit.data_free), (7, 8));
        }
    }
}
