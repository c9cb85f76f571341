//! The exception tree, and what it leads to.
//!
//! Damage may be in a key as well as in what the key leads to. So of nothing between the last chunk before it and the
//! first one behind it is it known what was preserved.

use super::super::bits::Bits;
use super::super::blocks::Blocks;
use super::super::lost::Lost;
use super::super::space::Bitmap;
use super::super::walk::{Broken, Care, Found, Root, Rule, Walk};
use super::tally::Tally;
use crate::error::{Kind, Result};
use crate::format::legacy::SECTOR;
use crate::format::legacy::superblock::Superblock;
use crate::format::legacy::tree::{Entry, Exception, Leaf};
use crate::point::finding::Code;
use crate::progress::Progress;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// A walk over the whole tree that goes on after damage.
pub(in crate::legacy) struct Tree<'a> {
    pub sb: &'a Superblock,
    pub blocks: &'a Blocks,
    pub root: Root,
    /// Chunks in use though the bitmap does not say so yet.
    pub deferred: &'a BTreeSet<u64>,
    pub tally: Tally<'a>,
    /// Areas of the metadata, in sectors.
    pub(super) areas: Vec<(&'static str, u64, u64)>,
    metadata: Bitmap<'a>,
    data: Bitmap<'a>,
    /// Blocks that the tree consists of.
    pub own: Bits,
    /// Chunks that it leads to.
    pub chunks: Bits,
    /// Chunks of the data space that are used twice, and whether there are any.
    pub(super) twice: Bits,
    pub is_twice: bool,
    /// A part of the tree could not be followed: what is not reached may be in use all the same.
    pub is_cut: bool,
    /// The medium failed where the tree leads to.
    pub is_unreadable: bool,
    /// Exceptions looked at.
    pub exceptions: u64,
    /// Blocks in use that nothing leads to; of a data space of its own the first, and how many.
    pub(super) leaks: Bits,
    pub(super) data_leaks: (Option<u64>, u64),
    /// Free chunks of the metadata space and, if there is one, of the data space.
    pub free: (u64, Option<u64>),
    /// Bits of the one snapshot whose deletion was interrupted.
    pub half_deleted: u64,
    /// Bits of the snapshots of which anything may be wrong.
    pub tainted: u64,
    /// The tree is a part of one that begins here.
    pub above: Option<Root>,
    pub(super) lost: Vec<(Range<u64>, u64)>,
    /// First and last chunk of each leaf that keeps the rules, ascending.
    pub(super) leaves: Vec<(u64, u64)>,
    /// What is damaged since the last of them.
    gaps: Vec<Gap>,
    /// Leaves that do not belong where they are.
    foreign: Vec<u64>,
    /// What is used and said to be free.
    pub(super) unused: Vec<Unused>,
    /// One past the last chunk that the origin or any snapshot has.
    end: u64,
}

/// Damage whose neighbours are not known yet.
struct Gap {
    code: Code,
    offset: Option<u64>,
    text: String,
    chunks: Range<u64>,
}

/// Something that the tree uses and the bitmap says is free.
pub(super) enum Unused {
    /// A block for these chunks, at a sector.
    Block(u64, Range<u64>),
    /// What a chunk leads to.
    Chunk(u64, Exception),
}

impl<'a> Tree<'a> {
    pub fn new(
        sb: &'a Superblock,
        blocks: &'a Blocks,
        root: Root,
        deferred: &'a BTreeSet<u64>,
        tally: Tally<'a>,
    ) -> Self {
        Self {
            sb,
            blocks,
            root,
            deferred,
            tally,
            areas: sb.areas(),
            metadata: Bitmap::new(blocks, sb.metadata, deferred),
            data: Bitmap::new(blocks, *sb.data_space(), deferred),
            own: Bits::new(sb.metadata.chunks),
            chunks: Bits::new(sb.data_space().chunks),
            twice: Bits::new(sb.data_space().chunks),
            is_twice: false,
            is_cut: false,
            is_unreadable: false,
            exceptions: 0,
            leaks: Bits::new(sb.metadata.chunks),
            data_leaks: (None, 0),
            free: (0, None),
            half_deleted: 0,
            tainted: 0,
            above: None,
            lost: Vec::new(),
            leaves: Vec::new(),
            gaps: Vec::new(),
            foreign: Vec::new(),
            unused: Vec::new(),
            end: end_of(sb),
        }
    }

    /// Looks at every block and every exception.
    ///
    /// # Errors
    /// `Kind::Io`, `Kind::Interrupted`.
    pub fn look(&mut self, progress: &dyn Progress) -> Result<()> {
        let (blocks, root) = (self.blocks, self.root);
        let mut walk = Walk::with(blocks, root, &mut *self);
        while let Some(found) = walk.next_leaf()? {
            progress.check()?;
            walk.care.found(&found)?;
        }
        self.close(u64::MAX);
        self.mark_foreign()
    }

    /// Everything that cannot be believed.
    pub fn lost(&self) -> Lost {
        Lost::of(&self.lost)
    }

    /// True if something is in use that nothing leads to.
    pub(super) fn leaks(&self) -> bool {
        self.data_leaks.1 > 0 || self.leaks.each().next().is_some()
    }

    fn found(&mut self, found: &Found) -> Result<()> {
        let range = found.leaf.entries.first().zip(found.leaf.entries.last());
        let Some((first, last)) = range.map(|(first, last)| (u64::from(first.chunk), u64::from(last.chunk)))
        else {
            return Ok(());
        };
        if !found.is_sound {
            self.exceptions += found.leaf.exceptions.len() as u64;
            self.foreign.extend(&found.sectors);
            return Ok(());
        }
        let is_believed = match found.sectors.len() {
            1 => self.leaf(&found.leaf)?,
            _ => self.overfull(found)?,
        };
        if is_believed {
            self.close(first);
            self.leaves.push((first, last));
        }
        Ok(())
    }

    /// The first leaf behind damage begins with chunk `next`.
    fn close(&mut self, next: u64) {
        let known = self.leaves.last().map_or(0, |leaf| leaf.1 + 1);
        let live = self.sb.live();
        for gap in std::mem::take(&mut self.gaps) {
            let chunks = known.min(gap.chunks.start)..next.max(gap.chunks.end);
            self.tally.add_chunks(gap.code, gap.offset, (live, chunks.clone()), || gap.text);
            self.lost.push((chunks, live));
        }
    }

    /// What foreign leaves lead to is no leak, and is theirs only if nothing else has it.
    fn mark_foreign(&mut self) -> Result<()> {
        for sector in std::mem::take(&mut self.foreign) {
            let Ok(leaf) = Leaf::decode(&self.blocks.read(sector)?) else { continue };
            for exception in &leaf.exceptions {
                let is_own = self.sb.data.is_none() && self.own.has(exception.physical);
                if exception.physical < self.sb.data_space().chunks && !is_own {
                    self.chunks.set(exception.physical);
                }
            }
        }
        Ok(())
    }

    /// Leaves that are for the same chunks: the original could not hold them in one.
    fn overfull(&mut self, found: &Found) -> Result<bool> {
        let mut said: BTreeMap<u32, u64> = BTreeMap::new();
        let mut is_believed = true;
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
            is_believed &= self.leaf(&leaf)?;
        }
        Ok(is_believed)
    }

    /// False if a leaf contradicts itself, so that nothing of it is believed.
    fn leaf(&mut self, leaf: &Leaf) -> Result<bool> {
        let live = self.sb.live();
        let gaps = self.gaps.len();
        let mut known = self.leaves.last().map_or(0, |leaf| leaf.1 + 1);
        for entry in &leaf.entries {
            let chunk = u64::from(entry.chunk);
            if chunk < self.end {
                known = chunk + 1;
            } else {
                self.beyond(leaf, entry, known);
            }
            let mut said = 0;
            for exception in leaf.of(entry) {
                let share = exception.share;
                let offset = self.place(exception);
                let text = || format!("chunk {chunk} is kept for snapshots {share:#x} of {live:#x}");
                if share & live == 0 {
                    let concerned = (live, chunk..chunk + 1);
                    self.tally.add_chunks(Code::LegacyShareNone, offset, concerned, text);
                    self.lost.push((chunk..chunk + 1, live));
                } else if share & !live != 0 {
                    let concerned = (live, chunk..chunk + 1);
                    self.tally.add_chunks(Code::LegacyShareStale, offset, concerned, text);
                    self.lost.push((chunk..chunk + 1, live));
                }
                if share & said != 0 {
                    let twice = (share & said).count_ones();
                    let text = format!("{twice} snapshots have two preserved versions of chunk {chunk}");
                    self.gaps.push(Gap {
                        code: Code::LegacyShareTwice,
                        offset,
                        text,
                        chunks: chunk..chunk + 1,
                    });
                }
                said |= share;
                self.exception(chunk, exception)?;
            }
        }
        Ok(self.gaps.len() == gaps)
    }

    /// A chunk that nobody has was another one, behind the last that is known.
    fn beyond(&mut self, leaf: &Leaf, entry: &Entry, known: u64) {
        let mask = leaf.of(entry).iter().fold(0, |mask, exception| mask | exception.share) & self.sb.live();
        let offset = leaf.of(entry).first().and_then(|exception| self.place(exception));
        let text = || {
            let (chunk, end) = (entry.chunk, self.end);
            format!("chunk {chunk} is preserved; the origin and the snapshots have no more than {end} chunks")
        };
        let chunks = known.min(self.end)..u64::MAX;
        self.tally.add_chunks(Code::LegacyOrder, offset, (mask, chunks.clone()), text);
        self.lost.push((chunks, mask));
    }

    /// Where the bytes of an exception are in the store.
    pub(super) fn place(&self, exception: &Exception) -> Option<u64> {
        exception.physical.checked_mul(1 << self.sb.chunk_bits())
    }

    fn exception(&mut self, chunk: u64, exception: &Exception) -> Result<()> {
        self.exceptions += 1;
        let at = exception.physical;
        let count = self.sb.data_space().chunks;
        let sector = at.checked_mul(self.blocks.sectors());
        let area = sector.filter(|_| self.sb.data.is_none()).and_then(|sector| self.blocks.area(sector));
        if at >= count || area.is_some() {
            let text = || match area {
                None => format!("chunk {chunk} is said to lie in chunk {at} of {count}"),
                Some(area) => format!("chunk {chunk} is said to lie in chunk {at}, where the {area} is"),
            };
            // Where one number is nonsense the other may be, too.
            let live = self.sb.live();
            let mask = if exception.share & !live == 0 { exception.share } else { live };
            let offset = area.and(self.place(exception));
            self.tally.add_chunks(Code::LegacyChunkPlace, offset, (mask, chunk..chunk + 1), text);
            self.lost.push((chunk..chunk + 1, mask));
            return Ok(());
        }
        if !self.chunks.set(at) {
            self.is_twice = true;
            self.twice.set(at);
        }
        if !self.data.is_used(at)? {
            self.unused.push(Unused::Chunk(chunk, *exception));
        }
        Ok(())
    }

    /// Which snapshots need the chunks that are used twice.
    ///
    /// # Errors
    /// `Kind::Io`, `Kind::Interrupted`.
    pub(super) fn tell_twice(&mut self, progress: &dyn Progress) -> Result<()> {
        if !self.is_twice {
            return Ok(());
        }
        let mut seen = Bits::new(self.sb.metadata.chunks);
        let again = Again { seen: &mut seen, blocks: self.blocks };
        let mut walk = Walk::with(self.blocks, self.root, again);
        while let Some(found) = walk.next_leaf()? {
            progress.check()?;
            for entry in &found.leaf.entries {
                let chunk = u64::from(entry.chunk);
                for exception in found.leaf.of(entry).iter().filter(|one| self.twice.has(one.physical)) {
                    let at = exception.physical;
                    let text = || format!("chunk {at} of the store is used twice, once for chunk {chunk}");
                    let concerned = (exception.share, chunk..chunk + 1);
                    let offset = Some(at << self.sb.chunk_bits());
                    self.tally.add_chunks(Code::LegacyChunkTwice, offset, concerned.clone(), text);
                    self.lost.push((concerned.1, concerned.0 & self.sb.live()));
                }
            }
        }
        Ok(())
    }
}

/// One past the last chunk that the origin or any snapshot has.
fn end_of(sb: &Superblock) -> u64 {
    let snapshots = sb.snapshots.iter().map(|snapshot| snapshot.sectors);
    let sectors = snapshots.fold(sb.origin_sectors, u64::max);
    sectors.saturating_mul(SECTOR).div_ceil(1 << sb.chunk_bits())
}

impl Care for &mut Tree<'_> {
    fn enter(&mut self, sector: u64, low: u64, high: Option<u64>) -> Result<bool> {
        if !self.blocks.is_place(sector) || self.blocks.area(sector).is_some() {
            // Reading it says so.
            return Ok(true);
        }
        let block = sector / self.blocks.sectors();
        let chunks = low..high.unwrap_or(u64::MAX);
        if !self.own.set(block) {
            self.is_cut = true;
            let text = format!("the tree leads to sector {sector} twice");
            self.gaps.push(Gap { code: Code::LegacyTreePlace, offset: Some(sector * SECTOR), text, chunks });
            return Ok(false);
        }
        if !self.metadata.is_used(block)? {
            self.unused.push(Unused::Block(sector, chunks));
        }
        Ok(true)
    }

    fn broken(&mut self, broken: Broken) -> Result<bool> {
        let code = match broken.rule {
            Rule::Place => Code::LegacyTreePlace,
            Rule::Node => Code::LegacyNode,
            Rule::Leaf => Code::LegacyLeaf,
            Rule::Order => Code::LegacyOrder,
            Rule::Lost => Code::LegacyLost,
        };
        self.is_unreadable |= broken.error.kind() == Kind::Io;
        let chunks = broken.low..broken.high.unwrap_or(u64::MAX);
        let offset = broken.sector.checked_mul(SECTOR);
        let text = broken.error.what().to_owned();
        if broken.rule == Rule::Lost {
            let live = self.sb.live();
            self.tally.add_chunks(code, offset, (live, chunks.clone()), || text);
            self.lost.push((chunks, live));
            return Ok(true);
        }
        // What a leaf with foreign chunks leads to is seen.
        self.is_cut |= broken.rule != Rule::Order;
        self.gaps.push(Gap { code, offset, text, chunks });
        Ok(true)
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

    fn broken(&mut self, _broken: Broken) -> Result<bool> {
        Ok(false)
    }
}
