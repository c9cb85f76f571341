//! Repairs of a store of 2008: a plan, made by reading only, whose writes come in an order that no crash can hurt.
//!
//! First come writes that no reader of the old state looks at: blocks that recovery takes from the journal go home,
//! where the journal still lies over them, and a new tree goes to free blocks. Then the superblock is decided on beside
//! itself (`format::legacy::repair`): from then on readers see the new state, a store that was shut down cleanly, of
//! which they need neither bitmaps nor journal. These come next, the superblock last. A plan that was cut short is made
//! again from what is there: up to the decision the old state is whole, from it on the new tree is.
//!
//! | file | owns |
//! |---|---|
//! | `ground` | bitmaps, free counts and journal as the tree proves them |
//! | `salvage` | which leaves are left of a tree that is broken |
//! | `orphans` | leaves that nothing leads to |
//! | `grow` | a new tree of leaves, in free blocks |

mod ground;
mod grow;
mod orphans;
mod salvage;
#[cfg(test)]
mod tests;

use super::blocks::Blocks;
use super::check::{Tally, Tree, check_journal, look, tell_faults, weigh};
use super::recover::{Recovered, recover};
use super::ring;
use super::store::{Devices, ensure_pair, ensure_size, superblock_of};
use crate::block::{ReadAt, WriteAt};
use crate::error::{Kind, Result};
use crate::format::legacy::SECTOR;
use crate::format::legacy::repair::{self, Settled, decide, settle};
use crate::format::legacy::superblock::{self, Candidate, OFFSET, Release, SIZE, Superblock};
use crate::point::finding::{Code, Finding, Leave};
use crate::progress::Progress;
use crate::units::index;
use std::sync::Arc;

/// What a write is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// A node or leaf.
    Tree,
    /// What the superblock becomes.
    Decision,
    /// A bitmap.
    Bitmap,
    /// A commit of the journal.
    Journal,
    /// The superblock.
    Superblock,
}

impl What {
    /// The word in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tree => "tree",
            Self::Decision => "decision",
            Self::Bitmap => "bitmap",
            Self::Journal => "journal",
            Self::Superblock => "superblock",
        }
    }
}

/// One write of a plan, to the metadata device.
#[derive(Debug, Clone)]
pub struct Write {
    /// Byte offset.
    pub offset: u64,
    /// What it is for.
    pub what: What,
    /// What is there before it, as many bytes; nothing for a block that is free.
    pub old: Vec<u8>,
    /// What is there after it.
    pub new: Vec<u8>,
}

impl Write {
    /// The write of `new` at `offset`; `None` if that is there already.
    ///
    /// # Errors
    /// `Kind::Io`.
    fn of(device: &dyn ReadAt, what: What, offset: u64, new: Vec<u8>) -> Result<Option<Self>> {
        let mut old = vec![0; new.len()];
        device.read_at(&mut old, offset)?;
        Ok((old != new).then_some(Self { offset, what, old, new }))
    }
}

/// Everything that a repair would write, in stages: each is durable before the next begins.
#[derive(Debug, Default)]
struct Plan {
    stages: Vec<Vec<Write>>,
    /// There is more to do than may be done.
    is_open: bool,
    lost: Vec<Finding>,
    refused: Vec<Finding>,
}

impl Plan {
    fn refused(why: impl Into<String>) -> Self {
        Self { refused: vec![Finding::new(Code::LegacyRefused, why)], ..Self::default() }
    }

    fn apply(&self, device: &dyn WriteAt, progress: &dyn Progress) -> Result<()> {
        for stage in self.stages.iter().filter(|stage| !stage.is_empty()) {
            progress.check()?;
            for write in stage {
                device.write_at(&write.new, write.offset)?;
            }
            device.flush()?;
        }
        Ok(())
    }
}

/// What a repair did.
#[derive(Debug, Default)]
pub struct Repaired {
    /// In the order in which they were made.
    pub writes: Vec<Write>,
    /// What was given up.
    pub lost: Vec<Finding>,
    /// Why nothing was done, if it could not be done safely.
    pub refused: Vec<Finding>,
}

/// Repairs a store of 2008 as far as `leave` goes, on `device`, which is the metadata device among `devices`, and which
/// nobody else changes. `release` as for [`super::Store::open`].
///
/// A repair that is interrupted can be run again.
///
/// # Errors
/// `Kind::Io` if the medium fails; `Kind::Mismatch` for devices that do not belong together; `Kind::Interrupted`.
pub fn repair(
    devices: &Devices,
    device: &dyn WriteAt,
    release: Option<Release>,
    leave: Leave,
    progress: &dyn Progress,
) -> Result<Repaired> {
    let mut done = Repaired::default();
    let mut run = |mut plan: Plan| -> Result<()> {
        plan.apply(device, progress)?;
        done.writes.extend(plan.stages.drain(..).flatten());
        done.lost.append(&mut plan.lost);
        done.refused.append(&mut plan.refused);
        Ok(())
    };
    run(unfinished(devices)?)?;
    let plan = plan(devices, release, leave, progress)?;
    // While the bitmaps are as they were before a decision it has to stand.
    let is_open = plan.is_open || !plan.refused.is_empty();
    run(plan)?;
    if !is_open {
        run(undecided(metadata_of(devices).as_ref())?)?;
    }
    Ok(done)
}

/// The superblock of a repair that was cut short after its decision, which stands until all is written.
fn unfinished(devices: &Devices) -> Result<Plan> {
    let metadata = metadata_of(devices);
    let decided = match superblock_of(metadata.as_ref()) {
        Ok((block, true)) => block,
        Err(error) if error.kind() != Kind::Damaged => return Err(error),
        _ => return Ok(Plan::default()),
    };
    let mut plan = Plan::default();
    let write = Write::of(metadata.as_ref(), What::Superblock, OFFSET, decided)?;
    plan.stages.push(write.into_iter().collect());
    Ok(plan)
}

fn metadata_of(devices: &Devices) -> &Arc<dyn ReadAt> {
    devices.metadata.as_ref().unwrap_or(&devices.store)
}

fn plan(devices: &Devices, release: Option<Release>, leave: Leave, progress: &dyn Progress) -> Result<Plan> {
    let metadata = metadata_of(devices);
    let chosen = superblock_of(metadata.as_ref()).and_then(|(block, is_decided)| {
        Ok((superblock::choose(&block, metadata.size(), release)?, block, is_decided))
    });
    let (Candidate { superblock: sb, faults }, block, is_decided) = match chosen {
        // A check tells why.
        Err(error) if error.kind() == Kind::Damaged => return Ok(Plan { is_open: true, ..Plan::default() }),
        chosen => chosen?,
    };
    ensure_pair(&sb, devices)?;
    if let Err(error) = ensure_size(&sb, devices) {
        return Ok(Plan::refused(error.to_string()));
    }
    let mut blocks = Blocks::new(Arc::clone(metadata), &sb);
    let mut recovered = recover(&sb, &mut blocks)?;
    let tally = || {
        let mut tally = Tally::of(&sb, is_decided);
        tell_faults(&faults, &mut tally);
        tally
    };
    weigh(&sb, &mut blocks, &mut recovered, &tally(), progress)?;
    let tree = checked(&sb, &blocks, &recovered, tally(), progress)?;
    let Some(root) = tree.above.filter(|_| leave == Leave::Everything) else {
        return Draft { tree, leave, block: &block, is_moved: false }.plan();
    };
    drop(tree);
    let recovered = Recovered { root, ..recovered };
    let tree = checked(&sb, &blocks, &recovered, tally(), progress)?;
    Draft { tree, leave, block: &block, is_moved: true }.plan()
}

/// What there is, with what a check tells of the journal.
fn checked<'a>(
    sb: &'a Superblock,
    blocks: &'a Blocks,
    recovered: &'a Recovered,
    tally: Tally<'a>,
    progress: &dyn Progress,
) -> Result<Tree<'a>> {
    let mut tree = look(sb, blocks, recovered, tally, progress)?;
    check_journal(&mut tree, recovered)?;
    Ok(tree)
}

/// The tree is not what it should be, or not where: with leave for everything it is made anew.
const BROKEN: [Code; 5] =
    [Code::LegacyTreePlace, Code::LegacyNode, Code::LegacyLeaf, Code::LegacyOrphan, Code::LegacyDeletion];
/// The tree or the journal contradicts itself or the bitmaps, and nothing tells what is right.
const CONTRARY: [Code; 7] = [
    Code::LegacyUnrecovered,
    Code::LegacyOrder,
    Code::LegacyShareTwice,
    Code::LegacyShareNone,
    Code::LegacyShareStale,
    Code::LegacyChunkPlace,
    Code::LegacyContrary,
];

/// The tree can be followed, and may still not be all there was: what gives nothing up leaves it alone.
const DOUBTFUL: [Code; 2] = [Code::LegacyOverfull, Code::LegacyLeak];

/// The bitmaps are wrong, so what they say of blocks that nothing leads to proves nothing.
const WRONG: [Code; 3] = [Code::LegacyAreaFree, Code::LegacyTreeFree, Code::LegacyChunkFree];

/// What a plan is made of.
struct Draft<'a> {
    tree: Tree<'a>,
    leave: Leave,
    /// The superblock.
    block: &'a [u8],
    /// The tree begins at another root than the superblock of a store that was shut down says.
    is_moved: bool,
}

impl Draft<'_> {
    fn plan(mut self) -> Result<Plan> {
        let has = |codes: &[Code]| codes.iter().copied().find(|code| self.tree.tally.has(*code));
        let broken = has(&BROKEN).or(has(&[Code::LegacyRoot]));
        if !self.is_moved && !self.tree.tally.codes().any(|code| self.leave.mends(code)) {
            return Ok(Plan::default());
        }
        let twice = self.tree.is_twice.then_some(Code::LegacyChunkTwice);
        if let Some(code) = has(&CONTRARY).or(twice) {
            // A journal whose sums prove next to nothing is believed if what it makes is whole, and only then. And what
            // seems to be used by nothing may be what a damaged part of the tree should lead to.
            let what = format!(
                "with '{code}' beside what there is to repair, nothing proves that the tree is the one that was"
            );
            return Ok(Plan::refused(what));
        }
        if self.tree.is_unreadable {
            return Ok(Plan::refused("the medium fails where the tree is: copy it to a sound one first"));
        }
        if let Some(code) = has(&WRONG).filter(|_| self.leave == Leave::Everything && broken.is_some()) {
            let what = format!(
                "the tree is damaged, and '{code}' tells that the bitmaps are too: what is free is not known"
            );
            return Ok(Plan::refused(what));
        }
        match self.leave {
            Leave::Safe if broken.or(has(&DOUBTFUL)).is_some() => {
                Ok(Plan { is_open: true, ..Plan::default() })
            }
            Leave::Everything if has(&[Code::LegacyRoot, Code::LegacyOverfull]).is_some() => {
                Ok(Plan::refused("leaves that have the same chunks cannot be put into a new tree"))
            }
            Leave::Everything if broken.is_some() => self.regrow(),
            Leave::Safe | Leave::Everything => self.restore(),
        }
    }

    /// The tree stays: what recovery takes from the journal goes home.
    fn restore(&mut self) -> Result<Plan> {
        let blocks = self.tree.blocks;
        let mut first = Vec::new();
        for (home, from) in &blocks.moved {
            // A block that is not of the tree any more may hold data.
            if self.tree.own.has(home / blocks.sectors()) {
                let new = blocks.read_home(*from)?;
                first.extend(Write::of(blocks.device(), What::Tree, home * SECTOR, new)?);
            }
        }
        let root = self.tree.root;
        self.settle(first, (root.sector, root.levels), None)
    }

    /// A new tree of the leaves that are left.
    fn regrow(&mut self) -> Result<Plan> {
        let gone = match self.tree.tally.has(Code::LegacyDeletion) {
            true => self.tree.half_deleted,
            false => 0,
        };
        let pieces = match salvage::pieces(&self.tree)? {
            Ok(pieces) => pieces,
            Err(why) => return Ok(Plan::refused(why)),
        };
        let grown = match grow::grow(&self.tree, &pieces, gone)? {
            Ok(grown) => grown,
            Err(why) => return Ok(Plan::refused(why)),
        };
        (self.tree.own, self.tree.chunks) = (grown.own, grown.chunks);
        let place = self.tree.sb.snapshots.iter().position(|snapshot| snapshot.mask() & gone != 0);
        let mut plan = self.settle(grown.writes, grown.root, place)?;
        plan.lost.extend(grown.lost);
        Ok(plan)
    }

    /// Everything that follows from the tree, after the writes of `first`.
    fn settle(&mut self, first: Vec<Write>, (root, levels): (u64, u32), gone: Option<usize>) -> Result<Plan> {
        let (sb, blocks) = (self.tree.sb, self.tree.blocks);
        let (mut then, metadata_free, data_free) = ground::bitmaps(&mut self.tree)?;
        let written = first.iter().chain(&then).map(|write| (write.offset / SECTOR, write.new.as_slice()));
        let is_kept = ring::fits(sb, blocks, &self.tree.own, &written.collect())?;
        let journal = ground::journal(sb, blocks, (metadata_free, data_free), is_kept)?;
        then.extend(journal.writes);
        let settled = Settled {
            root,
            levels,
            sequence: journal.sequence,
            journal_next: journal.next,
            metadata_free,
            data_free,
            gone,
        };
        let mut after = self.block.to_vec();
        settle(&mut after, sb.release, &settled);
        let device = blocks.device();
        let superblock = Write::of(device, What::Superblock, OFFSET, after.clone())?;
        let mut stages = vec![first];
        if superblock.is_some() {
            let offset = OFFSET + repair::OFFSET as u64;
            let decision = decide(self.block, &after);
            let mut last = after;
            last[repair::OFFSET..].copy_from_slice(&decision);
            stages.push(Write::of(device, What::Decision, offset, decision.clone())?.into_iter().collect());
            stages.push(then);
            stages.push(Write::of(device, What::Superblock, OFFSET, last)?.into_iter().collect());
            let new = vec![0; repair::SIZE];
            stages.push(vec![Write { offset, what: What::Decision, old: decision, new }]);
        } else {
            stages.push(then);
        }
        Ok(Plan { stages, lost: self.given_up(), ..Plan::default() })
    }

    /// That what nothing leads to is free from now on.
    fn given_up(&self) -> Vec<Finding> {
        let mut told = Tally::new(self.tree.sb);
        if self.tree.tally.has(Code::LegacyLeak) {
            let text = || "what nothing leads to is free now: if snapshots had it, it is given up".into();
            told.add_whole(Code::LegacyLeak, None, self.tree.sb.live(), text);
        }
        told.into_findings()
    }
}

/// Takes back what was decided, once the superblock says the same.
fn undecided(device: &dyn ReadAt) -> Result<Plan> {
    let mut plan = Plan::default();
    if let Ok((_, true)) = superblock_of(device) {
        let offset = OFFSET + repair::OFFSET as u64;
        let write = Write::of(device, What::Decision, offset, vec![0; repair::SIZE])?;
        plan.stages.push(write.into_iter().collect());
    }
    Ok(plan)
}

/// Bytes of a block.
fn block_size(sb: &Superblock) -> usize {
    index(sb.block_size())
}

const _: () = assert!(repair::OFFSET + repair::SIZE == SIZE);
