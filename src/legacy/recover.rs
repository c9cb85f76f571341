//! What a crash left: the journal laid over the metadata in memory, and the root that the superblock may not know yet.
//!
//! The original wrote the superblock rarely and replayed its journal wrongly (all blocks of a commit went to one
//! place), so neither is followed: the superblock's root is only where the search begins.

use super::bits::Bits;
use super::blocks::{Blocks, Holes};
use super::ring;
use super::space::Bitmap;
use super::walk::Root;
use crate::error::{Kind, Result};
use crate::format::legacy::journal::Commit;
use crate::format::legacy::superblock::{LEVELS_MAX, Space, Superblock};
use crate::format::legacy::tree::{Node, has_leaf_magic};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// What recovery found out beside the blocks in [`Blocks`].
pub(super) struct Recovered {
    /// Where the tree begins, but for a root above it, which shows only in what nothing else explains.
    pub root: Root,
    /// Chunks in use though the bitmap does not say so yet.
    pub deferred: BTreeSet<u64>,
    /// Commits of a journal that counts.
    pub commits: u64,
    /// Why such a journal does not tell what was done last.
    pub doubt: Option<String>,
    /// Homes after a crash that should hold what the journal has of them, and do not.
    pub unexplained: BTreeSet<u64>,
    /// What a clean shutdown left that does not agree with the journal.
    pub differs: Option<Differs>,
}

/// Blocks whose home and whose newest version in the journal are not the same, where it shows which of them is right:
/// how many, and the home of the first.
#[derive(Clone, Copy)]
pub(super) enum Differs {
    /// That in the journal, which counts from now on.
    AtHome(usize, u64),
    /// That at home.
    InJournal(usize, u64),
}

/// Commits, the newest first, each with its position in the ring.
pub(super) type Run = Vec<(u64, Commit)>;

/// Reads a store that was shut down cleanly as its superblock says, any other one through its journal.
///
/// # Errors
/// `Kind::Io`.
pub(super) fn recover(sb: &Superblock, blocks: &mut Blocks) -> Result<Recovered> {
    let mut found = Recovered {
        root: Root { sector: sb.root, levels: sb.levels },
        deferred: BTreeSet::new(),
        commits: 0,
        doubt: None,
        unexplained: BTreeSet::new(),
        differs: None,
    };
    if !sb.is_busy() {
        return Ok(found);
    }
    let commits = commits(sb, blocks)?;
    found.commits = commits.len() as u64;
    // A crash leaves one place where the numbers break off: after the newest.
    let breaks = gaps(&commits).count();
    if breaks > 1 {
        found.doubt = Some(format!("the numbers of the commits break off in {breaks} places, not in one"));
    }
    let run = history(sb, blocks, commits)?;
    let (deferred, damaged) = replay(sb, blocks, &run);
    found.doubt = found.doubt.or(damaged);
    if found.doubt.is_none() {
        find_newer(sb, blocks, &run, &mut found)?;
    }
    // Deferred mode worked in the combined layout only; in the other one it booked in the wrong bitmap.
    if sb.data.is_none() {
        found.deferred = deferred;
    }
    found.root = lower_root(found.root, blocks, sb.metadata, &found.deferred)?;
    Ok(found)
}

/// Lays the blocks of the last run of commits over the device, but for commits that are damaged. Returns the deferred
/// chunks, and what is damaged.
fn replay(sb: &Superblock, blocks: &mut Blocks, run: &Run) -> (BTreeSet<u64>, Option<String>) {
    let mut deferred = BTreeSet::new();
    let oldest = oldest_to_replay(run);
    // What was deferred before a barrier is in the bitmap.
    let barrier = run.iter().position(|(_, commit)| commit.is_barrier).unwrap_or(run.len());
    let (mut moved, mut damaged) = (BTreeMap::new(), None);
    for (back, (position, commit)) in run.iter().enumerate().take(barrier.saturating_add(1)) {
        let (first, count) = commit.deferred;
        deferred.extend(first..first.saturating_add(count.into()));
        if back > oldest {
            continue;
        }
        if let Some(why) = fault(commit, blocks) {
            damaged = Some(format!("commit {} {why}", commit.sequence));
            continue;
        }
        for (home, from) in commit.homes.iter().zip(places(sb, blocks, *position, commit)) {
            // The newest commit comes first.
            moved.entry(*home).or_insert(from);
        }
    }
    blocks.moved = moved;
    (deferred, damaged)
}

/// Where the blocks of `commit`, which is at `position` of the ring, are: sectors, in the order of its homes.
pub(super) fn places(
    sb: &Superblock,
    blocks: &Blocks,
    position: u64,
    commit: &Commit,
) -> impl Iterator<Item = u64> + use<> {
    let (size, entries) = (u64::from(sb.journal_size), commit.homes.len() as u64);
    let (base, sectors) = (sb.journal_base, blocks.sectors());
    (0..entries).map(move |at| base + (position + size - entries + at) % size * sectors)
}

/// Looks for what a commit wrote home that is gone from the journal, as the newest one can be: nothing was flushed, so
/// the blocks may have been written that came after it.
fn find_newer(sb: &Superblock, blocks: &mut Blocks, run: &Run, found: &mut Recovered) -> Result<()> {
    let barrier = run.iter().position(|(_, commit)| commit.is_barrier);
    let is_deferred = run.iter().any(|(_, commit)| commit.deferred.1 > 0);
    match barrier {
        Some(barrier) => found.unexplained = ring::unexplained(sb, blocks, run, barrier)?,
        // In deferred mode blocks stay away from home until there is a barrier.
        None if is_deferred => {}
        None => {
            if let Some(home) = ring::overwritten(sb, blocks, run)? {
                found.doubt = Some(format!(
                    "the newest commit is gone: the block at sector {home} is newer than the last version of it"
                ));
                // Before that commit was begun everything else was at home.
                blocks.moved.clear();
                return Ok(());
            }
            found.unexplained = ring::unexplained(sb, blocks, run, 0)?;
        }
    }
    Ok(())
}

/// Why the original cannot have written `commit`. Its sum does not cover where its blocks go.
fn fault(commit: &Commit, blocks: &Blocks) -> Option<String> {
    let mut seen = HashSet::new();
    commit.homes.iter().find_map(|home| {
        if !blocks.is_home(*home) {
            return Some(format!("has a block for sector {home}, where no block of the metadata can be"));
        }
        (!seen.insert(*home)).then(|| format!("has two blocks for sector {home}"))
    })
}

/// Position and sequence of the sound commits of the journal, in order of the ring. The rest is read again of those
/// that count, a few of a whole ring.
///
/// # Errors
/// `Kind::Io`.
pub(super) fn commits(sb: &Superblock, blocks: &Blocks) -> Result<Vec<(u64, u32)>> {
    let (mut commits, mut holes, mut position) = (Vec::new(), Holes::default(), 0);
    while position < u64::from(sb.journal_size) {
        let skip = blocks.holes(&mut holes, sb.journal_base + position * blocks.sectors())?;
        if skip == 0 {
            commits.extend(commit_at(sb, blocks, position)?.map(|commit| (position, commit.sequence)));
        }
        position += skip.max(1);
    }
    Ok(commits)
}

/// The commits that are not followed by the next one in the ring: one, the newest, in a sound journal.
pub(super) fn gaps(commits: &[(u64, u32)]) -> impl Iterator<Item = (u64, u32)> {
    let next = commits.iter().cycle().skip(1);
    let pairs =
        commits.iter().zip(next).filter(|((_, sequence), (_, next))| *next != sequence.wrapping_add(1));
    pairs.map(|(commit, _)| *commit)
}

/// The commit in block `position` of the journal, if a sound one is there.
///
/// # Errors
/// `Kind::Io`.
pub(super) fn commit_at(sb: &Superblock, blocks: &Blocks, position: u64) -> Result<Option<Commit>> {
    let block = blocks.read_home(sb.journal_base + position * blocks.sectors())?;
    Ok(Commit::decode(&block, sb.metadata.bits))
}

/// The newest of `commits` and those before it that nothing has overwritten.
///
/// # Errors
/// `Kind::Io`.
pub(super) fn history(sb: &Superblock, blocks: &Blocks, mut commits: Vec<(u64, u32)>) -> Result<Run> {
    let (mut run, size) = (Run::new(), u64::from(sb.journal_size));
    let newest = commits.iter().map(|(_, sequence)| *sequence);
    // Sequence numbers wrap.
    let Some(newest) = newest.reduce(|a, b| if b.wrapping_sub(a) < 1 << 31 { b } else { a }) else {
        return Ok(run);
    };
    commits.sort_by_key(|(_, sequence)| newest.wrapping_sub(*sequence));
    let mut claimed = HashSet::new();
    for ((position, sequence), expected) in commits.into_iter().zip(0u32..) {
        if newest.wrapping_sub(sequence) != expected {
            break;
        }
        let Some(commit) = commit_at(sb, blocks, position)? else { break };
        let entries = commit.homes.len() as u64;
        let places = (0..=entries).map(|back| (position + size - back % size) % size);
        if entries >= size || places.clone().any(|place| claimed.contains(&place)) {
            break;
        }
        claimed.extend(places);
        run.push((position, commit));
    }
    Ok(run)
}

/// How far back in `run` blocks may not be at home yet.
fn oldest_to_replay(run: &[(u64, Commit)]) -> usize {
    if let Some(barrier) = run.iter().position(|(_, commit)| commit.is_barrier) {
        return barrier.saturating_sub(1);
    }
    run.iter().rposition(|(_, commit)| commit.deferred.1 > 0).unwrap_or(0)
}

/// A root that is free was dropped by a deletion: the tree goes on at its first child.
fn lower_root(saved: Root, blocks: &Blocks, space: Space, deferred: &BTreeSet<u64>) -> Result<Root> {
    let mut bitmap = Bitmap::new(blocks, space, deferred);
    let mut root = saved;
    while root.levels > 1 && !bitmap.is_used(root.sector / blocks.sectors())? {
        let node = match blocks.read_tree(root.sector).and_then(|block| Node::decode(&block)) {
            Err(error) if error.kind() == Kind::Damaged => return Ok(saved),
            node => node?,
        };
        let Some(&(_, child)) = node.children.first() else { break };
        root = Root { sector: child, levels: root.levels - 1 };
    }
    // If everything down there is free it is the bitmap that is wrong.
    let is_root = bitmap.is_used(root.sector / blocks.sectors())?;
    Ok(if is_root { root } else { saved })
}

/// The root of the tree that `root` has become a part of: one that was split has become the first child of one that
/// the superblock does not know, and that nothing leads to. `own` are the blocks of the tree at `root`, `leaks` those
/// in use that nothing leads to.
///
/// # Errors
/// `Kind::Io`.
pub(super) fn root_above(
    sb: &Superblock,
    mut root: Root,
    blocks: &Blocks,
    deferred: &BTreeSet<u64>,
    (own, leaks): (&Bits, &Bits),
) -> Result<Root> {
    let sectors = blocks.sectors();
    while root.levels < LEVELS_MAX {
        let mut found = None;
        for sector in leaks.each().map(|block| block * sectors) {
            if (blocks.moved.contains_key(&sector) || blocks.first_child(sector)? == root.sector)
                && is_parent(sb, blocks, sector, root.sector, (deferred, own))?
            {
                found = Some(sector);
                break;
            }
        }
        let Some(sector) = found else { break };
        root = Root { sector, levels: root.levels + 1 };
    }
    Ok(root)
}

/// True if the block at `sector` is a node whose first child is `root`, and whose others are nodes beside it.
fn is_parent(
    sb: &Superblock,
    blocks: &Blocks,
    sector: u64,
    root: u64,
    (deferred, own): (&BTreeSet<u64>, &Bits),
) -> Result<bool> {
    let Some(node) = node_at(blocks, sector)? else { return Ok(false) };
    if node.children.len() < 2 || node.children.first().map(|child| child.1) != Some(root) {
        return Ok(false);
    }
    let mut bitmap = Bitmap::new(blocks, sb.metadata, deferred);
    for (_, child) in node.children.into_iter().skip(1) {
        let block = child / blocks.sectors();
        // What the root leads to is no part of something beside it.
        if !blocks.is_place(child)
            || own.has(block)
            || !bitmap.is_used(block)?
            || node_at(blocks, child)?.is_none()
        {
            return Ok(false);
        }
    }
    bitmap.is_used(root / blocks.sectors())
}

/// The node at `sector`, if one can be there.
fn node_at(blocks: &Blocks, sector: u64) -> Result<Option<Node>> {
    let block = match blocks.read_tree(sector) {
        Err(error) if error.kind() == Kind::Damaged => return Ok(None),
        block => block?,
    };
    let node = Node::decode(&block).ok().filter(|node| !has_leaf_magic(&block) && node.is_ascending());
    Ok(node)
}
