//! What the tree and the bitmaps prove of each other.
//!
//! One that contradicts the other one way only is wrong by itself: a bit that was never set, or never cleared. If there
//! are both, something in use that the tree does not lead to and something that it leads to and is free, then either a
//! place in the tree is wrong or the bitmap, and nothing tells which.

use super::super::bits::Bits;
use super::super::blocks::Holes;
use super::tree::{Tree, Unused};
use crate::error::{Kind, Result};
use crate::format::legacy::SECTOR;
use crate::format::legacy::tree::{Leaf, has_leaf_magic};
use crate::point::finding::Code;
use crate::progress::Progress;

/// With so many areas said to be free it is the bitmap that is wrong.
const RUBBISH: u64 = 8;
/// Blocks looked at between two looks at whether to stop.
const STEP: usize = 1 << 12;

/// A leaf that nothing leads to.
struct Orphan {
    sector: u64,
    leaf: Leaf,
    first: u64,
    last: u64,
}

impl Tree<'_> {
    /// Says what the bitmaps tell of the tree, and the tree of them. `doubt` is why the journal is not to be believed.
    ///
    /// # Errors
    /// `Kind::Io`, `Kind::Interrupted`.
    pub(super) fn judge(&mut self, doubt: Option<&str>, progress: &dyn Progress) -> Result<()> {
        // Bitmaps that a repair has yet to write prove nothing.
        let is_proof = !self.tally.has(Code::LegacyRepair);
        let has_leaks = is_proof && self.leaks();
        let is_rubbish = self.tally.count(Code::LegacyAreaFree) >= RUBBISH;
        self.tell_unused(has_leaks && !is_rubbish);
        if is_proof {
            self.tell_orphans(progress)?;
        }
        if is_proof {
            self.tell_leaks();
        }
        self.tell_doubt(doubt, has_leaks);
        self.tell_twice(progress)
    }

    /// What the tree uses and the bitmap says is free; if other things are in use for nothing either may be wrong.
    fn tell_unused(&mut self, is_contrary: bool) {
        let live = self.sb.live();
        let unused = std::mem::take(&mut self.unused);
        let owners = unused.iter().fold(0, |owners, one| match one {
            Unused::Chunk(_, exception) => owners | exception.share & live,
            Unused::Block(..) => owners,
        });
        // Chunks of one snapshot alone: its deletion was interrupted.
        if self.sb.is_busy() && owners.count_ones() == 1 && !is_contrary {
            self.half_deleted = owners;
        }
        for one in unused {
            let (code, offset, mask, chunks, what) = match one {
                Unused::Block(sector, chunks) => {
                    let what = format!("the block of the tree at sector {sector}");
                    (Code::LegacyTreeFree, Some(sector * SECTOR), live, chunks, what)
                }
                Unused::Chunk(chunk, exception) => {
                    let code =
                        if self.half_deleted == 0 { Code::LegacyChunkFree } else { Code::LegacyDeletion };
                    let what =
                        format!("chunk {} of the store, where chunk {chunk} lies,", exception.physical);
                    (code, self.place(&exception), exception.share & live, chunk..chunk + 1, what)
                }
            };
            let text = || format!("the bitmap says that {what} is free");
            if is_contrary {
                let text = || format!("{}, and of other places that they are in use for nothing", text());
                self.tally.add_chunks(Code::LegacyContrary, offset, (mask, chunks.clone()), text);
                self.lost.push((chunks, mask));
            } else if code == Code::LegacyTreeFree {
                self.tally.add(code, offset, text);
            } else {
                self.tally.add_chunks(code, offset, (mask, chunks), text);
            }
        }
    }

    /// Leaves that nothing leads to, unless what they preserve is known to be lost.
    fn tell_orphans(&mut self, progress: &dyn Progress) -> Result<()> {
        let orphans = self.orphans(progress)?;
        let (live, lost) = (self.sb.live(), self.lost());
        let mut claimed = Bits::new(self.sb.data_space().chunks);
        for Orphan { sector, leaf, first, last } in orphans {
            self.leaks.unset(sector / self.blocks.sectors());
            for exception in &leaf.exceptions {
                let at = exception.physical;
                let is_new = at < self.sb.data_space().chunks && claimed.set(at) && !self.chunks.has(at);
                match self.sb.data {
                    None => self.leaks.unset(at),
                    Some(_) if is_new => self.data_leaks.1 = self.data_leaks.1.saturating_sub(1),
                    Some(_) => {}
                }
            }
            if lost.covers(live, &(first..last + 1)) {
                continue;
            }
            // What lies beside it may have been in others that are gone.
            let behind = self.leaves.partition_point(|leaf| leaf.0 <= first);
            let before = behind.checked_sub(1).and_then(|at| self.leaves.get(at));
            let begin = before.map_or(0, |leaf| leaf.1 + 1).min(first);
            let end = self.leaves.get(behind).map_or(u64::MAX, |leaf| leaf.0).max(last + 1);
            let text = || {
                format!(
                    "the leaf at sector {sector} preserves chunks from {first} to {last}, and nothing leads to it"
                )
            };
            let offset = Some(sector * SECTOR);
            self.tally.add_chunks(Code::LegacyOrphan, offset, (live, begin..end), text);
            self.lost.push((begin..end, live));
        }
        Ok(())
    }

    fn orphans(&self, progress: &dyn Progress) -> Result<Vec<Orphan>> {
        let (blocks, live) = (self.blocks, self.sb.live());
        let mut holes = Holes::default();
        let (mut found, mut targets) = (Vec::new(), Bits::new(self.sb.data_space().chunks));
        for (number, block) in self.leaks.each().enumerate() {
            if number % STEP == 0 {
                progress.check()?;
            }
            let sector = block * blocks.sectors();
            let is_moved = blocks.moved.contains_key(&sector);
            if !is_moved && (blocks.holes(&mut holes, sector)? > 0 || !blocks.begins_as_leaf(sector)?) {
                continue;
            }
            let block = match blocks.read(sector) {
                Err(error) if error.kind() == Kind::Io => continue,
                block => block?,
            };
            let Some(leaf) = Leaf::decode(&block).ok().filter(|_| has_leaf_magic(&block)) else { continue };
            let (Some(first), Some(last)) = (leaf.entries.first(), leaf.entries.last()) else { continue };
            let (first, last) = (first.chunk.into(), last.chunk.into());
            if leaf.exceptions.iter().any(|exception| exception.share & live != 0) {
                leaf.exceptions.iter().for_each(|exception| _ = targets.set(exception.physical));
                found.push(Orphan { sector, leaf, first, last });
            }
        }
        // What a leaf leads to is data, whatever it looks like.
        let is_data =
            |orphan: &Orphan| self.sb.data.is_none() && targets.has(orphan.sector / blocks.sectors());
        found.retain(|orphan| !is_data(orphan));
        Ok(found)
    }

    /// What is in use and not reached. The original left none behind, so a block of the tree may be an older one than
    /// the bitmap.
    fn tell_leaks(&mut self) {
        // What is not reached may be in use by what could not be followed.
        if self.is_cut {
            return;
        }
        let live = self.sb.live();
        // A number that is nonsense is one that should lead there. Whatever else is wrong does not tell that nothing is
        // older than it should be.
        let leaks = self.leaks.each().count() as u64 + self.data_leaks.1;
        if leaks > self.tally.count(Code::LegacyChunkPlace) {
            self.tainted |= live;
        }
        let text = |name: &str, at: u64| {
            format!("the bitmap says that {name} chunk {at} is in use, nothing leads to it")
        };
        if let Some(first) = self.leaks.each().next() {
            let count = self.leaks.each().count() as u64;
            let offset = Some(first << self.sb.metadata.bits);
            self.tally.add_many(Code::LegacyLeak, offset, (count, live), || text("metadata", first));
        }
        let (first, count) = self.data_leaks;
        self.tally.add_many(Code::LegacyLeak, None, (count, live), || text("data", first.unwrap_or(0)));
    }

    /// A journal is believed if what it makes is whole.
    fn tell_doubt(&mut self, doubt: Option<&str>, has_leaks: bool) {
        let live = self.sb.live();
        let leaks = "blocks are in use that nothing leads to: what was done last is not in the journal";
        let doubt = doubt.or((has_leaks && !self.is_cut && self.sb.is_busy()).then_some(leaks));
        if let Some(text) = doubt {
            self.tainted |= live;
            self.tally.add_whole(Code::LegacyUnrecovered, None, live, || text.to_owned());
        }
    }
}
