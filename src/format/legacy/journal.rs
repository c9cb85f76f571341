//! Commit blocks of the journal of 2008.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use crate::format::field::raw_struct;
use zerocopy::FromBytes;
use zerocopy::little_endian::{U32, U64};

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
        let words = usize::try_from(block_bits / 4).ok()?.max(3);
        let (words, _) = <[U32]>::ref_from_prefix_with_elems(block, words).ok()?;
        if words.iter().fold(0u32, |sum, word| sum.wrapping_add(word.get())) != 0 {
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
