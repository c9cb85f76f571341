//! The bitmaps against what is in use.

use super::super::blocks::Holes;
use super::super::space::Bitmap;
use super::tree::Tree;
use crate::error::Result;
use crate::format::legacy::SECTOR;
use crate::format::legacy::superblock::Space;
use crate::point::finding::Code;
use crate::progress::Progress;

/// Compares the bitmap of each space with what the tree leads to.
///
/// # Errors
/// `Kind::Io`, `Kind::Interrupted`.
pub(super) fn balance(tree: &mut Tree<'_>, progress: &dyn Progress) -> Result<()> {
    let sb = tree.sb;
    tree.free.0 = balance_space(tree, "metadata", sb.metadata, progress)?;
    tree.free.1 = match sb.data {
        Some(data) => Some(balance_space(tree, "data", data, progress)?),
        None => None,
    };
    Ok(())
}

/// A space, as 64 of its chunks at a time are compared.
struct Part<'a> {
    name: &'a str,
    space: Space,
    is_data: bool,
}

/// Returns how many chunks are free.
fn balance_space(tree: &mut Tree<'_>, name: &str, space: Space, progress: &dyn Progress) -> Result<u64> {
    let part = Part { name, space, is_data: name == "data" };
    let mut bitmap = Bitmap::new(tree.blocks, space, tree.deferred);
    let words = tree.blocks.size / 8;
    let mut holes = Holes::default();
    let mut free = 0;
    for number in 0..space.bitmap_blocks {
        progress.check()?;
        let sector = space.bitmap_base + number * tree.blocks.sectors();
        let is_hole = !tree.blocks.moved.contains_key(&sector) && tree.blocks.holes(&mut holes, sector)? > 0;
        for word in number * words..(number + 1) * words {
            if word * 64 >= space.chunks {
                break;
            }
            let used = if is_hole && tree.deferred.is_empty() { 0 } else { bitmap.word(word)? };
            part.compare(tree, word, used);
            let inside = space.chunks.saturating_sub(word * 64).min(64);
            free += inside - u64::from(used.count_ones());
        }
    }
    let clear = bitmap.clear_behind_end()?;
    let offset = Some(space.bitmap_base * SECTOR);
    if clear > 0 {
        let text = || format!("{clear} chunks behind the end of the {name} space are said to be free");
        tree.tally.add(Code::LegacyEnd, offset, text);
    }
    // After a crash they are counted anew.
    if !tree.sb.is_busy() && free != space.free {
        let said = space.free;
        let text = || format!("the superblock counts {said} free {name} chunks, the bitmap has {free}");
        tree.tally.add(Code::LegacyFreeCount, None, text);
    }
    Ok(free)
}

impl Part<'_> {
    /// Compares 64 chunks.
    fn compare(&self, tree: &mut Tree<'_>, word: u64, used: u64) {
        let is_combined = tree.sb.data.is_none();
        let own = if self.is_data { 0 } else { tree.own.word(word) };
        let chunks = if self.is_data || is_combined { tree.chunks.word(word) } else { 0 };
        let area = if self.is_data { 0 } else { area_bits(tree, word) };
        let each =
            |bits: u64| (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| word * 64 + bit);
        for at in each(own & chunks) {
            tree.is_twice |= tree.twice.set(at);
        }
        for at in each(area & !used) {
            let area = tree.blocks.area(at * tree.blocks.sectors()).unwrap_or("metadata");
            let text = || format!("the bitmap says that {} block {at}, of the {area}, is free", self.name);
            tree.tally.add(Code::LegacyAreaFree, Some(at << self.space.bits), text);
        }
        for at in each(used & !own & !chunks & !area) {
            match self.is_data {
                true => {
                    tree.data_leaks.0.get_or_insert(at);
                    tree.data_leaks.1 += 1;
                }
                false => _ = tree.leaks.set(at),
            }
        }
    }
}

/// Which of 64 metadata blocks belong to areas.
fn area_bits(tree: &Tree<'_>, word: u64) -> u64 {
    let sectors = tree.blocks.sectors();
    let (first, end) = (word * 64, word * 64 + 64);
    tree.areas.iter().fold(0, |bits, (_, from, to)| {
        let (from, to) = ((from / sectors).max(first), to.div_ceil(sectors).min(end));
        if from >= to {
            return bits;
        }
        let ones = u64::MAX >> (64 - (to - from));
        bits | ones << (from - first)
    })
}
