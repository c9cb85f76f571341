//! What of its device a store of 2008 uses: everything that either its bitmaps or its tree say.

use super::bits::Bits;
use super::blocks::Blocks;
use super::space::Bitmap;
use super::store::Store;
use super::walk::{Broken, Care, Root, Walk};
use crate::error::Result;
use crate::format::legacy::SECTOR;
use crate::progress::Progress;
use std::ops::Range;

impl Store {
    /// Hands `found` ranges of bytes of [`Store::data`], in any order and more than once, that together are all that
    /// the store uses there: what a bitmap says is in use, the tree and what it leads to, and the areas of metadata.
    /// What lies outside is looked at by nobody who reads or checks the store, nor by its recovery.
    ///
    /// # Errors
    /// `Kind::Io`, `Kind::Damaged`, `Kind::Interrupted`.
    pub fn each_used(&self, progress: &dyn Progress, found: &mut dyn FnMut(Range<u64>)) -> Result<()> {
        let (sb, blocks, recovered, root) = self.parts();
        let is_combined = sb.data.is_none();
        let bits = sb.chunk_bits();
        let at =
            |chunk: u64| chunk.saturating_mul(1 << bits)..chunk.saturating_add(1).saturating_mul(1 << bits);
        let mut bitmap = Bitmap::new(blocks, *sb.data_space(), &recovered.deferred);
        for word in 0..sb.data_space().chunks.div_ceil(64) {
            let used = bitmap.word(word)?;
            (0..64).filter(|bit| used >> bit & 1 == 1).for_each(|bit| found(at(word * 64 + bit)));
        }
        if is_combined {
            for (_, begin, end) in sb.areas() {
                found(begin.saturating_mul(SECTOR)..end.saturating_mul(SECTOR));
            }
        }
        // Recovery begins with the root that the superblock names, even if that is free by now.
        let mut seen = Bits::new(blocks.count);
        let mut tree = |sector: u64| {
            if is_combined {
                let begin = sector.saturating_mul(SECTOR);
                found(begin..begin.saturating_add(blocks.size));
            }
        };
        let chunks = sb.data_space().chunks;
        let mut places = Bits::new(chunks);
        for root in [root, recovered.root, Root { sector: sb.root, levels: sb.levels }] {
            let mut walk = Walk::with(blocks, root, Everything { seen: &mut seen, blocks, found: &mut tree });
            while let Some(leaf) = walk.next_leaf()? {
                progress.check()?;
                walk.take_nodes();
                leaf.leaf.exceptions.iter().for_each(|exception| {
                    places.set(exception.physical);
                });
            }
        }
        (0..chunks).filter(|chunk| places.has(*chunk)).for_each(|chunk| found(at(chunk)));
        Ok(())
    }
}

/// Goes wherever the tree leads, whatever is broken in it.
struct Everything<'a> {
    seen: &'a mut Bits,
    blocks: &'a Blocks,
    found: &'a mut dyn FnMut(u64),
}

impl Care for Everything<'_> {
    fn enter(&mut self, sector: u64, _low: u64, _high: Option<u64>) -> Result<bool> {
        if !self.blocks.is_place(sector) || !self.seen.set(sector / self.blocks.sectors()) {
            return Ok(false);
        }
        (self.found)(sector);
        Ok(true)
    }

    fn broken(&mut self, _broken: Broken) -> Result<bool> {
        Ok(true)
    }
}
