//! What a crash left: the journal laid over the metadata in memory, and the root that the superblock may not know yet.
//!
//! The original wrote the superblock rarely and replayed its journal wrongly (all blocks of a commit went to one
//! place), so neither is followed: the superblock's root is only where the search begins.

use super::blocks::Blocks;
use super::space::Bitmap;
use super::walk::{Root, Walk};
use crate::error::{Kind, Result};
use crate::format::legacy::journal::Commit;
use crate::format::legacy::superblock::{Space, Superblock};
use crate::format::legacy::tree::{Node, has_leaf_magic};
use crate::units::index;
use std::collections::{BTreeMap, BTreeSet};

/// What recovery found out beside the blocks in [`Blocks`].
pub(super) struct Recovered {
    /// Where the tree begins.
    pub root: Root,
    /// Chunks in use though the bitmap does not say so yet.
    pub deferred: BTreeSet<u64>,
    /// Bits of the one snapshot whose deletion was interrupted.
    pub half_deleted: u64,
    /// What could not be made good, for people.
    pub notices: Vec<String>,
}

/// Reads a store that was shut down cleanly as its superblock says, any other one through its journal.
///
/// # Errors
/// `Kind::Io`, `Kind::Damaged`.
pub(super) fn recover(sb: &Superblock, blocks: &mut Blocks) -> Result<Recovered> {
    let mut found = Recovered {
        root: Root { sector: sb.root, levels: sb.levels },
        deferred: BTreeSet::new(),
        half_deleted: 0,
        notices: Vec::new(),
    };
    if !sb.is_busy() {
        return Ok(found);
    }
    let deferred = replay(sb, blocks)?;
    // Deferred mode worked in the combined layout only; in the other one it booked in the wrong bitmap.
    if sb.data.is_none() {
        found.deferred = deferred;
    }
    match find_root(sb, &mut found, blocks) {
        Err(error) if error.kind() == Kind::Damaged => {
            found.notices.push(format!("what the crash left of the tree is damaged: {error}"));
        }
        other => other?,
    }
    Ok(found)
}

fn find_root(sb: &Superblock, found: &mut Recovered, blocks: &Blocks) -> Result<()> {
    found.root = true_root(sb, found.root, blocks, &found.deferred)?;
    found.half_deleted = half_deleted(sb, found.root, blocks, &found.deferred)?;
    Ok(())
}

/// The root that `root` has become, or what it has become a part of.
///
/// # Errors
/// `Kind::Io`, `Kind::Damaged`.
pub(super) fn true_root(
    sb: &Superblock,
    root: Root,
    blocks: &Blocks,
    deferred: &BTreeSet<u64>,
) -> Result<Root> {
    // A shutdown saves the root that there is. If that is free in the bitmap, the bitmap is wrong: what lies beside
    // the root's first child is not given up for that.
    let root = if sb.is_busy() { lower_root(root, blocks, sb.metadata, deferred)? } else { root };
    higher_root(sb, root, blocks, deferred)
}

/// Lays the blocks of the last run of commits over the device. Returns the deferred chunks.
fn replay(sb: &Superblock, blocks: &mut Blocks) -> Result<BTreeSet<u64>> {
    let size = u64::from(sb.journal_size);
    let place = |position: u64| sb.journal_base + position * blocks.sectors();
    let read = |position: u64| commit_at(sb, blocks, position);
    let run = last_run(commits(sb, blocks)?, size, read)?;
    let mut deferred = BTreeSet::new();
    let oldest = oldest_to_replay(&run);
    let mut moved = BTreeMap::new();
    for (back, (position, commit)) in run.iter().enumerate() {
        let (first, count) = commit.deferred;
        deferred.extend(first..first.saturating_add(count.into()));
        if back > oldest {
            continue;
        }
        let entries = commit.homes.len() as u64;
        for (home, at) in commit.homes.iter().zip(0..) {
            let from = place((position + size - entries + at) % size);
            // The newest commit comes first; within one, the last version counts.
            let version = moved.entry(*home).or_insert((back, from));
            if version.0 == back {
                version.1 = from;
            }
        }
    }
    blocks.moved = moved.into_iter().map(|(home, (_, from))| (home, from)).collect();
    Ok(deferred)
}

/// Position and sequence of the sound commits of the journal, in order of the ring. The rest is read again of those
/// that count, a few of a whole ring.
///
/// # Errors
/// `Kind::Io`.
pub(super) fn commits(sb: &Superblock, blocks: &Blocks) -> Result<Vec<(u64, u32)>> {
    let mut commits = Vec::new();
    for position in 0..u64::from(sb.journal_size) {
        commits.extend(commit_at(sb, blocks, position)?.map(|commit| (position, commit.sequence)));
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

/// The newest commit and those before it that nothing has overwritten, down to a barrier; the newest first.
fn last_run(
    mut commits: Vec<(u64, u32)>,
    size: u64,
    read: impl Fn(u64) -> Result<Option<Commit>>,
) -> Result<Vec<(u64, Commit)>> {
    let mut run = Vec::new();
    let newest = commits.iter().map(|(_, sequence)| *sequence);
    // Sequence numbers wrap.
    let Some(newest) = newest.reduce(|a, b| if b.wrapping_sub(a) < 1 << 31 { b } else { a }) else {
        return Ok(run);
    };
    commits.sort_by_key(|(_, sequence)| newest.wrapping_sub(*sequence));
    let mut claimed = vec![false; index(size)];
    for ((position, sequence), expected) in commits.into_iter().zip(0u32..) {
        if newest.wrapping_sub(sequence) != expected {
            break;
        }
        let Some(commit) = read(position)? else { break };
        let entries = commit.homes.len() as u64;
        let places = (0..=entries).map(|back| index((position + size - back % size) % size));
        if entries >= size || places.clone().any(|place| claimed[place]) {
            break;
        }
        places.for_each(|place| claimed[place] = true);
        let is_barrier = commit.is_barrier;
        run.push((position, commit));
        if is_barrier {
            break;
        }
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
fn lower_root(mut root: Root, blocks: &Blocks, space: Space, deferred: &BTreeSet<u64>) -> Result<Root> {
    let mut bitmap = Bitmap::new(blocks, space, deferred);
    while root.levels > 1 && !bitmap.is_used(root.sector / blocks.sectors())? {
        let node = Node::decode(&blocks.read(root.sector)?)?;
        let Some(&(_, child)) = node.children.first() else { break };
        root = Root { sector: child, levels: root.levels - 1 };
    }
    Ok(root)
}

/// A root that was split has become the first child of one that the superblock does not know.
fn higher_root(sb: &Superblock, mut root: Root, blocks: &Blocks, deferred: &BTreeSet<u64>) -> Result<Root> {
    let mut unexplained = unexplained(sb, root, blocks, deferred)?;
    while unexplained.any() && u64::from(root.levels) < 33 {
        let Some(parent) = unexplained.find(|sector| is_parent(sb, blocks, sector, root.sector, deferred))?
        else {
            break;
        };
        root = Root { sector: parent, levels: root.levels + 1 };
    }
    Ok(root)
}

/// Blocks that are in use, but not for anything known.
struct Unexplained<'a> {
    blocks: &'a Blocks,
    /// A bit for each block, 64 of them under the number of the first / 64: what a device only claims to have takes
    /// no memory.
    bits: BTreeMap<u64, u64>,
    root: u64,
}

impl Unexplained<'_> {
    fn any(&self) -> bool {
        self.bits.values().any(|word| *word != 0)
    }

    /// The first of them that may be a node above the root and is one by `test`; the search for the next root goes on
    /// from there.
    fn find(&mut self, test: impl Fn(u64) -> Result<bool>) -> Result<Option<u64>> {
        let blocks = self.blocks;
        for (word, bits) in &self.bits {
            for block in (0..64).filter(|bit| bits >> bit & 1 == 1).map(|bit| word * 64 + bit) {
                let sector = block * blocks.sectors();
                if (blocks.moved.contains_key(&sector) || blocks.first_child(sector)? == self.root)
                    && test(sector)?
                {
                    self.root = sector;
                    return Ok(Some(sector));
                }
            }
        }
        Ok(None)
    }
}

fn unexplained<'a>(
    sb: &Superblock,
    root: Root,
    blocks: &'a Blocks,
    deferred: &BTreeSet<u64>,
) -> Result<Unexplained<'a>> {
    let mut bits: BTreeMap<u64, u64> = BTreeMap::new();
    Bitmap::new(blocks, sb.metadata, deferred)
        .each_used(|word, used| *bits.entry(word).or_default() |= used)?;
    let mut explain = |block: u64| {
        if let Some(word) = bits.get_mut(&(block / 64)) {
            *word &= !(1 << (block % 64));
        }
    };
    for (_, begin, end) in sb.areas() {
        (begin / blocks.sectors()..end.div_ceil(blocks.sectors())).for_each(&mut explain);
    }
    let mut walk = Walk::new(blocks, root, 0)?;
    while let Some(found) = walk.next_leaf()? {
        for sector in found.sectors.into_iter().chain(walk.take_nodes()) {
            explain(sector / blocks.sectors());
        }
        if sb.data.is_none() {
            found.leaf.exceptions.iter().for_each(|exception| explain(exception.physical));
        }
    }
    walk.take_nodes().into_iter().for_each(|sector| explain(sector / blocks.sectors()));
    Ok(Unexplained { blocks, bits, root: root.sector })
}

/// True if the block at `sector` is a node whose first child is `root`.
fn is_parent(
    sb: &Superblock,
    blocks: &Blocks,
    sector: u64,
    root: u64,
    deferred: &BTreeSet<u64>,
) -> Result<bool> {
    let block = blocks.read(sector)?;
    let Ok(node) = Node::decode(&block) else { return Ok(false) };
    let first = node.children.first().map(|child| child.1);
    if has_leaf_magic(&block) || node.children.len() < 2 || first != Some(root) || !node.is_ascending() {
        return Ok(false);
    }
    let mut bitmap = Bitmap::new(blocks, sb.metadata, deferred);
    for (_, child) in node.children {
        if !blocks.is_place(child) || !bitmap.is_used(child / blocks.sectors())? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The bit of the one snapshot that refers to chunks which are free: its deletion was interrupted. 0 if there is none,
/// or if several do, which has another cause.
fn half_deleted(sb: &Superblock, root: Root, blocks: &Blocks, deferred: &BTreeSet<u64>) -> Result<u64> {
    let live = sb.live();
    let mut bitmap = Bitmap::new(blocks, *sb.data_space(), deferred);
    let mut walk = Walk::new(blocks, root, 0)?;
    let mut owners = 0;
    while let Some(found) = walk.next_leaf()? {
        for exception in &found.leaf.exceptions {
            if !bitmap.is_used(exception.physical)? {
                owners |= exception.share & live;
            }
        }
    }
    Ok(if owners.count_ones() == 1 { owners } else { 0 })
}
