//! Bitmaps, free counts and journal, as they are if the tree is right.

use super::super::blocks::Blocks;
use super::super::check::Tree;
use super::super::recover::{commit_at, commits, gaps};
use super::{What, Write};
use crate::error::Result;
use crate::format::legacy::SECTOR;
use crate::format::legacy::journal::{empty_commit, set_free};
use crate::format::legacy::superblock::{Space, Superblock};
use crate::units::index;

/// The writes that make the bitmaps say what the tree leads to, then the free metadata blocks and the free data chunks
/// (0 in the combined layout).
///
/// # Errors
/// `Kind::Io`.
pub(super) fn bitmaps(tree: &mut Tree<'_>) -> Result<(Vec<Write>, u64, u64)> {
    let sb = tree.sb;
    for (_, begin, end) in sb.areas() {
        let sectors = sb.block_sectors();
        for block in begin / sectors..end.div_ceil(sectors) {
            tree.own.set(block);
        }
    }
    let mut writes = Vec::new();
    let Some(data) = sb.data else {
        let free = bitmap(tree, sb.metadata, (true, true), &mut writes)?;
        return Ok((writes, free, 0));
    };
    let metadata_free = bitmap(tree, sb.metadata, (true, false), &mut writes)?;
    let data_free = bitmap(tree, data, (false, true), &mut writes)?;
    Ok((writes, metadata_free, data_free))
}

/// Adds the writes for one bitmap, of what the tree consists of and of what it leads to; returns how many are free.
fn bitmap(
    tree: &Tree<'_>,
    space: Space,
    (own, chunks): (bool, bool),
    writes: &mut Vec<Write>,
) -> Result<u64> {
    let blocks = tree.blocks;
    let bits = blocks.size * 8;
    let mut free = 0;
    for number in 0..space.bitmap_blocks {
        let begin = number * bits;
        let mut block = vec![0u8; index(blocks.size)];
        for bits in [own.then(|| tree.own.words(begin)), chunks.then(|| tree.chunks.words(begin))] {
            let words = bits.into_iter().flatten();
            for (bytes, word) in block.as_chunks_mut::<8>().0.iter_mut().zip(words) {
                *bytes = (u64::from_le_bytes(*bytes) | word).to_le_bytes();
            }
        }
        let inside = space.chunks.saturating_sub(begin).min(bits);
        // As in 2008, what is behind the end counts as used as far as its byte goes.
        for bit in inside..inside.next_multiple_of(8) {
            block[index(bit / 8)] |= 1 << (bit % 8);
        }
        let whole = &block[..index(inside.div_ceil(8))];
        free += whole.iter().map(|byte| u64::from(byte.count_zeros())).sum::<u64>();
        let offset = (space.bitmap_base + number * blocks.sectors()) * SECTOR;
        writes.extend(Write::of(blocks.device(), What::Bitmap, offset, block)?);
    }
    Ok(free)
}

/// The journal of a store that was shut down.
pub(super) struct Journal {
    pub writes: Vec<Write>,
    /// Number of the next commit, and the block that it goes to.
    pub sequence: u32,
    pub next: u32,
}

/// The writes that make the newest commit say what is free. A journal without one newest commit is begun anew, and one
/// that is not to be kept because it has other versions of blocks than there will be.
///
/// # Errors
/// `Kind::Io`.
pub(super) fn journal(sb: &Superblock, blocks: &Blocks, free: (u64, u64), is_kept: bool) -> Result<Journal> {
    let place = |position: u64| (sb.journal_base + position * blocks.sectors()) * SECTOR;
    let mut journal = Journal { writes: Vec::new(), sequence: sb.sequence, next: 0 };
    let commits = commits(sb, blocks)?;
    let mut gaps = gaps(&commits);
    if is_kept
        && let (Some((position, sequence)), None) = (gaps.next(), gaps.next())
        && let Some(commit) = commit_at(sb, blocks, position)?
    {
        journal.sequence = sequence.wrapping_add(1);
        journal.next = u32::try_from((position + 1) % u64::from(sb.journal_size)).unwrap_or(0);
        if (commit.metadata_free, commit.data_free) != free {
            let mut block = blocks.read_home(place(position) / SECTOR)?;
            set_free(&mut block, sb.metadata.bits, free);
            journal.writes.extend(Write::of(blocks.device(), What::Journal, place(position), block)?);
        }
        return Ok(journal);
    }
    for (position, back) in (0..u64::from(sb.journal_size)).zip((1..=sb.journal_size).rev()) {
        let block = empty_commit(sb.metadata.bits, sb.sequence.wrapping_sub(back), free);
        journal.writes.extend(Write::of(blocks.device(), What::Journal, place(position), block)?);
    }
    Ok(journal)
}
