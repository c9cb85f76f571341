//! What the journal proves of the blocks at home: it has the newest version of each that it names.
//!
//! The original wrote a block into the ring, then the commit, then the block to its home, and began the next
//! transaction after that. So behind a clean shutdown every home holds the newest version that the ring has of it,
//! and after a crash every one but those of the last run. A home that holds another one is damaged, or older than
//! it should be; or the commit that wrote it is gone from the ring.

use super::bits::Bits;
use super::blocks::Blocks;
use super::recover::{Run, commits, history, places};
use crate::error::Result;
use crate::format::legacy::superblock::Superblock;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Home sector to the sectors in the journal with its versions, the newest first, each with how many commits ago.
pub(super) type Versions = BTreeMap<u64, Vec<(usize, u64)>>;

/// Everything that the commits of `run`, the newest first, have.
pub(super) fn versions(sb: &Superblock, blocks: &Blocks, run: &Run) -> Versions {
    let mut found = Versions::new();
    for (back, (position, commit)) in run.iter().enumerate() {
        for (home, from) in commit.homes.iter().zip(places(sb, blocks, *position, commit)) {
            if blocks.is_home(*home) {
                found.entry(*home).or_default().push((back, from));
            }
        }
    }
    found
}

/// The homes of a store that was shut down that hold another version than the newest of the journal, and where that is;
/// none if the journal does not end where the superblock says.
///
/// # Errors
/// `Kind::Io`.
pub(super) fn differing(sb: &Superblock, blocks: &Blocks) -> Result<BTreeMap<u64, u64>> {
    let run = history(sb, blocks, commits(sb, blocks)?)?;
    let is_newest = run.first().is_some_and(|(position, commit)| {
        let next = (position + 1) % u64::from(sb.journal_size.max(1));
        (commit.sequence.wrapping_add(1), next) == (sb.sequence, u64::from(sb.journal_next))
    });
    let mut found = BTreeMap::new();
    for (home, list) in versions(sb, blocks, &run).into_iter().filter(|_| is_newest) {
        let Some((_, newest)) = list.first() else { continue };
        if blocks.read_home(home)? != blocks.read_home(*newest)? {
            found.insert(home, *newest);
        }
    }
    Ok(found)
}

/// The homes after a crash that hold another version than the newest of the journal though nothing was to be done for
/// them any more: `run` was at home from the commit on that lies `back` ones before the newest.
///
/// # Errors
/// `Kind::Io`.
pub(super) fn unexplained(sb: &Superblock, blocks: &Blocks, run: &Run, back: usize) -> Result<BTreeSet<u64>> {
    let mut found = BTreeSet::new();
    for (home, list) in versions(sb, blocks, run) {
        let newest = list.first().filter(|(at, _)| *at >= back && !blocks.moved.contains_key(&home));
        if let Some((_, newest)) = newest
            && blocks.read_home(home)? != blocks.read_home(*newest)?
        {
            found.insert(home);
        }
    }
    Ok(found)
}

/// A block that a recovery would lay over a newer one. It is newer if it is none of the versions that `run` has, and
/// lies in the ring behind the newest commit, where the next one, which is gone, had it.
///
/// # Errors
/// `Kind::Io`.
pub(super) fn overwritten(sb: &Superblock, blocks: &Blocks, run: &Run) -> Result<Option<u64>> {
    let mut open: BTreeMap<u64, u64> = BTreeMap::new();
    let versions = versions(sb, blocks, run);
    for home in blocks.moved.keys() {
        let block = blocks.read_home(*home)?;
        let mut is_known = false;
        for (_, from) in versions.get(home).into_iter().flatten() {
            is_known = is_known || blocks.read_home(*from)? == block;
        }
        if !is_known {
            open.insert(digest(&block), *home);
        }
    }
    let Some((newest, _)) = run.first().filter(|_| !open.is_empty()) else { return Ok(None) };
    let size = u64::from(sb.journal_size);
    let commits: BTreeSet<u64> = commits(sb, blocks)?.into_iter().map(|(position, _)| position).collect();
    let behind = (1..size).map(|step| (newest + step) % size);
    for position in behind.take_while(|position| !commits.contains(position)) {
        let block = blocks.read_home(sb.journal_base + position * blocks.sectors())?;
        if let Some(home) = open.get(&digest(&block))
            && blocks.read_home(*home)? == block
        {
            return Ok(Some(*home));
        }
    }
    Ok(None)
}

/// True if the journal has no other version of any block in `own`, or of a bitmap, than there will be at home, where
/// `written` says what a repair puts there.
///
/// # Errors
/// `Kind::Io`.
pub(super) fn fits(
    sb: &Superblock,
    blocks: &Blocks,
    own: &Bits,
    written: &BTreeMap<u64, &[u8]>,
) -> Result<bool> {
    let run = history(sb, blocks, commits(sb, blocks)?)?;
    for (home, list) in versions(sb, blocks, &run) {
        let is_used = own.has(home / blocks.sectors());
        let Some((_, newest)) = list.first().filter(|_| is_used) else { continue };
        let wanted = blocks.read_home(*newest)?;
        let is_same = match written.get(&home) {
            Some(bytes) => **bytes == *wanted,
            None => blocks.read_home(home)? == wanted,
        };
        if !is_same {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Tells blocks apart well enough to look closer at those that seem to be the same.
fn digest(block: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    block.hash(&mut hasher);
    hasher.finish()
}
