//! The exception tree, and what it leads to.

use super::super::bits::Bits;
use super::super::blocks::Blocks;
use super::super::recover::Recovered;
use super::super::space::Bitmap;
use super::super::walk::{Broken, Care, Found, Rule, Walk};
use super::tally::Tally;
use crate::error::Result;
use crate::format::legacy::SECTOR;
use crate::format::legacy::superblock::Superblock;
use crate::format::legacy::tree::{Exception, Leaf};
use crate::point::finding::Code;
use crate::progress::Progress;
use std::collections::{BTreeMap, BTreeSet};

/// Chunks that are used twice whose snapshots are told; those beyond are only counted.
const TWICE_MAX: usize = 4096;

/// A walk over the whole tree that goes on after damage.
pub(in crate::legacy) struct Tree<'a> {
    pub sb: &'a Superblock,
    pub blocks: &'a Blocks,
    recovered: &'a Recovered,
    pub tally: Tally<'a>,
    /// Areas of the metadata, in sectors.
    areas: Vec<(&'static str, u64, u64)>,
    metadata: Bitmap<'a>,
    data: Bitmap<'a>,
    /// Blocks that the tree consists of.
    pub own: Bits,
    /// Chunks that it leads to.
    pub chunks: Bits,
    /// Chunks of the data space that are used twice.
    pub twice: BTreeSet<u64>,
    /// A part of the tree could not be followed: what is not reached may be in use all the same.
    pub is_cut: bool,
    /// Exceptions looked at.
    pub exceptions: u64,
}

impl<'a> Tree<'a> {
    pub fn new(sb: &'a Superblock, blocks: &'a Blocks, recovered: &'a Recovered, tally: Tally<'a>) -> Self {
        Self {
            sb,
            blocks,
            recovered,
            tally,
            areas: sb.areas(),
            metadata: Bitmap::new(blocks, sb.metadata, &recovered.deferred),
            data: Bitmap::new(blocks, *sb.data_space(), &recovered.deferred),
            own: Bits::new(sb.metadata.chunks),
            chunks: Bits::new(sb.data_space().chunks),
            twice: BTreeSet::new(),
            is_cut: false,
            exceptions: 0,
        }
    }

    /// Looks at every block and every exception.
    ///
    /// # Errors
    /// `Kind::Io`, `Kind::Interrupted`.
    pub fn look(&mut self, progress: &dyn Progress) -> Result<()> {
        let (blocks, root) = (self.blocks, self.recovered.root);
        let mut walk = Walk::with(blocks, root, &mut *self);
        while let Some(found) = walk.next_leaf()? {
            progress.check()?;
            walk.take_nodes();
            match found.sectors.len() {
                1 => walk.care.leaf(&found.leaf)?,
                _ => walk.care.overfull(&found)?,
            }
        }
        Ok(())
    }

    /// True if block `block` belongs to the superblock, a bitmap or the journal.
    pub fn area(&self, block: u64) -> Option<&'static str> {
        let sector = block * self.blocks.sectors();
        let mut areas = self.areas.iter();
        areas.find(|(_, begin, end)| (*begin..*end).contains(&sector)).map(|(name, ..)| *name)
    }

    /// Leaves that are for the same chunks: the original could not hold them in one.
    fn overfull(&mut self, found: &Found) -> Result<()> {
        let mut said: BTreeMap<u32, u64> = BTreeMap::new();
        for &sector in &found.sectors {
            let leaf = Leaf::decode(&self.blocks.read(sector)?)?;
            for entry in &leaf.entries {
                let mask = leaf.of(entry).iter().fold(0, |mask, exception| mask | exception.share);
                let chunk = u64::from(entry.chunk);
                if let Some(before) = said.get(&entry.chunk) {
                    let both = before & mask;
                    let text = || {
                        format!(
                            "chunk {chunk} is in the leaf at sector {sector}, outside the keys of that leaf, and in \
                             the one before; {} snapshots are in both",
                            both.count_ones()
                        )
                    };
                    let offset = Some(sector * SECTOR);
                    self.tally.add_chunks(Code::LegacyOverfull, offset, (both, chunk..chunk + 1), text);
                }
                *said.entry(entry.chunk).or_default() |= mask;
            }
            self.leaf(&leaf)?;
        }
        if !self.tally.has(Code::LegacyOverfull) {
            let text = || format!("the leaves at sectors {:?} are for the same chunks", found.sectors);
            self.tally.add(Code::LegacyOverfull, None, text);
        }
        Ok(())
    }

    fn leaf(&mut self, leaf: &Leaf) -> Result<()> {
        let live = self.sb.live();
        for entry in &leaf.entries {
            let chunk = u64::from(entry.chunk);
            let mut said = 0;
            for exception in leaf.of(entry) {
                let share = exception.share;
                if share == 0 || share & !live != 0 {
                    let text = || format!("chunk {chunk} is kept for snapshots {share:#x} of {live:#x}");
                    self.tally.add(Code::LegacyShareStale, self.place(exception), text);
                }
                if share & said != 0 {
                    let text = || {
                        let twice = (share & said).count_ones();
                        format!("{twice} snapshots have two preserved versions of chunk {chunk}")
                    };
                    let concerned = (share & said, chunk..chunk + 1);
                    self.tally.add_chunks(Code::LegacyShareTwice, self.place(exception), concerned, text);
                }
                said |= share;
                self.exception(chunk, exception)?;
            }
        }
        Ok(())
    }

    /// Where the bytes of an exception are in the store.
    fn place(&self, exception: &Exception) -> Option<u64> {
        exception.physical.checked_mul(1 << self.sb.chunk_bits())
    }

    fn exception(&mut self, chunk: u64, exception: &Exception) -> Result<()> {
        self.exceptions += 1;
        let at = exception.physical;
        let offset = self.place(exception);
        let concerned = (exception.share, chunk..chunk + 1);
        let count = self.sb.data_space().chunks;
        if at >= count {
            let text = || format!("chunk {chunk} is said to lie in chunk {at} of {count}");
            self.tally.add_chunks(Code::LegacyChunkPlace, None, concerned, text);
            return Ok(());
        }
        let area = if self.sb.data.is_none() { self.area(at) } else { None };
        if let Some(area) = area {
            let text = || format!("chunk {chunk} is said to lie in chunk {at}, where the {area} is");
            self.tally.add_chunks(Code::LegacyChunkPlace, offset, concerned, text);
            return Ok(());
        }
        if !self.chunks.set(at) && self.twice.len() < TWICE_MAX {
            self.twice.insert(at);
        }
        if !self.data.is_used(at)? {
            let was_deleted = exception.share & self.recovered.half_deleted != 0;
            let code = if was_deleted { Code::LegacyDeletion } else { Code::LegacyChunkFree };
            let text =
                || format!("chunk {chunk} lies in chunk {at} of the store, which the bitmap says is free");
            self.tally.add_chunks(code, offset, concerned, text);
        }
        Ok(())
    }

    /// Which snapshots need the chunks that are used twice.
    ///
    /// # Errors
    /// `Kind::Io`, `Kind::Interrupted`.
    pub fn tell_twice(&mut self, progress: &dyn Progress) -> Result<()> {
        if self.twice.is_empty() {
            return Ok(());
        }
        self.own.clear();
        let again = Again { seen: &mut self.own, blocks: self.blocks };
        let mut walk = Walk::with(self.blocks, self.recovered.root, again);
        while let Some(found) = walk.next_leaf()? {
            progress.check()?;
            walk.take_nodes();
            for entry in &found.leaf.entries {
                let chunk = u64::from(entry.chunk);
                let twice = |exception: &&Exception| self.twice.contains(&exception.physical);
                for exception in found.leaf.of(entry).iter().filter(twice) {
                    let at = exception.physical;
                    let text = || format!("chunk {at} of the store is used twice, once for chunk {chunk}");
                    let concerned = (exception.share, chunk..chunk + 1);
                    let offset = Some(at << self.sb.chunk_bits());
                    self.tally.add_chunks(Code::LegacyChunkTwice, offset, concerned, text);
                }
            }
        }
        Ok(())
    }
}

impl Care for &mut Tree<'_> {
    fn enter(&mut self, sector: u64, low: u64, high: Option<u64>) -> Result<bool> {
        if !self.blocks.is_place(sector) {
            // Reading it says so.
            return Ok(true);
        }
        let block = sector / self.blocks.sectors();
        let concerned = (self.sb.live(), low..high.unwrap_or(u64::MAX));
        let offset = Some(sector * SECTOR);
        if let Some(area) = self.area(block) {
            self.is_cut = true;
            let text = || format!("the tree leads to sector {sector}, where the {area} is");
            self.tally.add_chunks(Code::LegacyTreePlace, offset, concerned, text);
            return Ok(false);
        }
        if !self.own.set(block) {
            self.is_cut = true;
            let text = || format!("the tree leads to sector {sector} twice");
            self.tally.add_chunks(Code::LegacyTreePlace, offset, concerned, text);
            return Ok(false);
        }
        if !self.metadata.is_used(block)? {
            let text = || format!("the bitmap says that the block of the tree at sector {sector} is free");
            self.tally.add(Code::LegacyTreeFree, offset, text);
        }
        Ok(true)
    }

    fn broken(&mut self, broken: Broken) -> Result<()> {
        let code = match broken.rule {
            Rule::Place => Code::LegacyTreePlace,
            Rule::Node => Code::LegacyNode,
            Rule::Leaf => Code::LegacyLeaf,
            Rule::Order => Code::LegacyOrder,
            Rule::Lost => Code::LegacyLost,
        };
        // What a leaf with foreign chunks leads to is seen.
        self.is_cut |= !matches!(broken.rule, Rule::Order | Rule::Lost);
        let concerned = (self.sb.live(), broken.low..broken.high.unwrap_or(u64::MAX));
        let offset = broken.sector.checked_mul(SECTOR);
        self.tally.add_chunks(code, offset, concerned, || broken.error.what().to_owned());
        Ok(())
    }
}

/// Goes the same way again, saying nothing.
struct Again<'a> {
    seen: &'a mut Bits,
    blocks: &'a Blocks,
}

impl Care for Again<'_> {
    fn enter(&mut self, sector: u64, _low: u64, _high: Option<u64>) -> Result<bool> {
        Ok(self.blocks.is_place(sector) && self.seen.set(sector / self.blocks.sectors()))
    }

    fn broken(&mut self, _broken: Broken) -> Result<()> {
        Ok(())
    }
}
