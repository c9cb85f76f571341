//! Looking for damage in a store of 2008, recovered in memory, without a way to write.
//!
//! | file | owns |
//! |---|---|
//! | `tree` | the exception tree, and what it leads to |
//! | `space` | the bitmaps against what is in use |
//! | `judge` | what each of the two proves of the other |
//! | `weigh` | what is at home against the journal |
//! | `tally` | findings, gathered by code |

mod judge;
mod space;
mod tally;
#[cfg(test)]
pub(super) mod tests;
mod tree;
mod weigh;

use super::blocks::Blocks;
use super::recover::{Recovered, commit_at, commits, gaps, recover, root_above};
use super::store::{Devices, superblock_of};
use super::walk::Root;
use crate::error::{Kind, Result};
use crate::format::legacy::SECTOR;
use crate::format::legacy::superblock::{self, Candidate, Fault, OFFSET, Release, Rule, Space, Superblock};
use crate::point::finding::{Code, Finding};
use crate::progress::Progress;
use std::sync::Arc;
pub(super) use tally::Tally;
pub(super) use tree::Tree;
pub(super) use weigh::weigh;

/// What a check found, and how much it looked at.
#[derive(Debug, Default)]
pub struct Checked {
    /// Everything found; one for each code, with the first place and how many there are.
    pub findings: Vec<Finding>,
    /// Commits of the journal.
    pub commits: u64,
    /// Exceptions of the tree.
    pub exceptions: u64,
}

/// Checks a store of 2008; with its origin, the size of that too. `release` as for [`super::Store::open`].
///
/// # Errors
/// `Kind::Io` if the medium fails where metadata lie; `Kind::Mismatch` for devices that do not belong together;
/// `Kind::Interrupted`. Damage is a finding, not an error.
pub fn check(devices: &Devices, release: Option<Release>, progress: &dyn Progress) -> Result<Checked> {
    let metadata = devices.metadata.as_ref().unwrap_or(&devices.store);
    let found = superblock_of(metadata.as_ref())
        .and_then(|(block, is_decided)| Ok((superblock::candidates(&block, metadata.size())?, is_decided)));
    let (mut candidates, is_decided) = match found {
        Err(error) if error.kind() == Kind::Damaged => {
            let finding = Finding::of(Code::LegacySuperblock, &error);
            return Ok(Checked { findings: vec![finding], ..Checked::default() });
        }
        found => found?,
    };
    candidates.retain(|candidate| release.is_none_or(|release| candidate.superblock.release == release));
    // The one that can be read comes before the one that cannot.
    candidates.sort_by_key(|candidate| !candidate.is_usable());
    let Some(Candidate { superblock: sb, faults }) = candidates.into_iter().next() else {
        return Ok(Checked::default());
    };
    let is_usable = faults.iter().all(|fault| !fault.is_fatal());
    let mut tally = Tally::of(&sb, is_decided);
    tell_faults(&faults, &mut tally);
    let fits = is_usable && check_devices(&sb, devices, &mut tally)?;
    if !fits {
        return Ok(Checked { findings: tally.into_findings(), ..Checked::default() });
    }
    check_metadata(&sb, devices, tally, progress)
}

/// Adds what speaks against the superblock.
pub(super) fn tell_faults(faults: &[Fault], tally: &mut Tally<'_>) {
    for fault in faults {
        let code = match fault.rule {
            Rule::Layout => Code::LegacySuperblock,
            Rule::Snapshots => Code::LegacySnapshots,
            Rule::Free => Code::LegacyFreeCount,
            Rule::Journal => Code::LegacyJournal,
            Rule::Constant => Code::LegacyField,
        };
        tally.add(code, Some(OFFSET), || fault.text.clone());
    }
}

/// What is behind a superblock that makes sense.
fn check_metadata(
    sb: &Superblock,
    devices: &Devices,
    tally: Tally<'_>,
    progress: &dyn Progress,
) -> Result<Checked> {
    let metadata = devices.metadata.as_ref().unwrap_or(&devices.store);
    let mut blocks = Blocks::new(Arc::clone(metadata), sb);
    let mut recovered = recover(sb, &mut blocks)?;
    weigh(sb, &mut blocks, &mut recovered, &tally, progress)?;
    let mut tree = look(sb, &blocks, &recovered, tally, progress)?;
    let commits = check_journal(&mut tree, &recovered)?;
    Ok(Checked { findings: tree.tally.into_findings(), commits, exceptions: tree.exceptions })
}

/// Looks at the tree, at what it leads to, and at what the bitmaps say of both, adding to `tally`.
///
/// # Errors
/// `Kind::Io`, `Kind::Interrupted`.
pub(super) fn look<'a>(
    sb: &'a Superblock,
    blocks: &'a Blocks,
    recovered: &'a Recovered,
    tally: Tally<'a>,
    progress: &dyn Progress,
) -> Result<Tree<'a>> {
    let at = |root: Root| -> Result<Tree<'a>> {
        progress.stage("tree", None);
        let mut tree = Tree::new(sb, blocks, root, &recovered.deferred, tally.clone());
        tree.look(progress)?;
        progress.stage("bitmaps", None);
        space::balance(&mut tree, progress)?;
        Ok(tree)
    };
    let mut tree = at(recovered.root)?;
    let saved = Root { sector: sb.root, levels: sb.levels };
    if saved != tree.root && tree.leaks() {
        // The root was taken for one that a deletion dropped; it explains more than what is below it.
        let other = at(saved)?;
        if !other.leaks() && !other.is_cut {
            tree = other;
        }
    }
    // What is not reached may be in use by what could not be followed.
    if (sb.is_busy() || !tree.is_cut) && !tree.tally.has(Code::LegacyRepair) {
        let root = root_above(sb, tree.root, blocks, &recovered.deferred, (&tree.own, &tree.leaks))?;
        match root == tree.root {
            true => {}
            false if sb.is_busy() => tree = at(root)?,
            false => tell_root(&mut tree, root),
        }
    }
    if let Some(differs) = recovered.differs {
        tree.tell_differs(differs);
    }
    let unexplained = recovered.unexplained.iter().find(|home| tree.has(**home)).map(|home| {
        format!("the block at sector {home} is not the last version of it in the journal, which was at home already")
    });
    tree.judge(recovered.doubt.as_deref().or(unexplained.as_deref()), progress)?;
    Ok(tree)
}

/// A store that was shut down may have lost the root of its tree in a crash before.
fn tell_root(tree: &mut Tree<'_>, root: Root) {
    let text = format!(
        "a tree of {} levels that begins at sector {} has the one at sector {} as a part",
        root.levels, root.sector, tree.root.sector
    );
    let (live, offset) = (tree.sb.live(), root.sector.checked_mul(SECTOR));
    tree.tally.add_whole(Code::LegacyRoot, offset, live, || text);
    tree.tainted |= live;
    tree.above = Some(root);
}

/// True if the devices are as large as the store.
fn check_devices(sb: &Superblock, devices: &Devices, tally: &mut Tally<'_>) -> Result<bool> {
    super::store::ensure_pair(sb, devices)?;
    let grown = |name: &str, size: u64, space: &Space, tally: &mut Tally<'_>| {
        let has = size >> space.bits;
        if has > space.chunks {
            let text = format!("the {name} has room for {has} chunks, the store has {}", space.chunks);
            tally.add(Code::LegacyGrown, None, || text);
        }
    };
    let metadata = devices.metadata.as_ref().unwrap_or(&devices.store);
    grown("device of the metadata", metadata.size(), &sb.metadata, tally);
    let origin =
        devices.origin.as_ref().map(|origin| (origin.size(), sb.origin_sectors.saturating_mul(SECTOR)));
    // The original served whole chunks only.
    let whole = |size: u64| size >> sb.chunk_bits() << sb.chunk_bits();
    if let Some((has, needs)) = origin.filter(|(has, needs)| *has < whole(*needs)) {
        let text = || format!("the origin has {has} bytes, the store says {needs}");
        tally.add_whole(Code::OriginSmall, None, sb.live(), text);
    }
    let Some(data) = &sb.data else { return Ok(true) };
    let size = devices.store.size();
    grown("store", size, data, tally);
    let fits = size >> data.bits >= data.chunks;
    if !fits {
        let text = || format!("the store has {size} bytes, its metadata speak of {} chunks", data.chunks);
        tally.add(Code::StoreTruncated, None, text);
    }
    Ok(fits)
}

/// What a recovery does, or that none is needed. Returns how many commits the journal has.
///
/// # Errors
/// `Kind::Io`.
pub(super) fn check_journal(tree: &mut Tree<'_>, recovered: &Recovered) -> Result<u64> {
    let (sb, blocks) = (tree.sb, tree.blocks);
    let offset = Some(sb.journal_base * SECTOR);
    if sb.is_busy() {
        let text = what_recovery_does(tree);
        tree.tally.add(Code::LegacyRecovery, Some(OFFSET), || text);
        return Ok(recovered.commits);
    }
    let commits = commits(sb, blocks)?;
    let count = commits.len() as u64;
    let tally = &mut tree.tally;
    // In the order of the ring there is one commit whose number the next one does not follow: the newest.
    let mut gaps = gaps(&commits);
    let Some((position, sequence)) = gaps.next() else {
        tally.add(Code::LegacyJournal, offset, || "the journal has no newest commit".into());
        return Ok(count);
    };
    let more = gaps.count();
    if more > 0 {
        let text = || format!("the numbers of the commits break off in {} places, not in one", more + 1);
        tally.add(Code::LegacyJournal, offset, text);
        return Ok(count);
    }
    let next = (sequence.wrapping_add(1), (position + 1) % u64::from(sb.journal_size.max(1)));
    if next != (sb.sequence, u64::from(sb.journal_next)) {
        let text = || {
            format!(
                "after the newest commit come number {} in block {}; the superblock says {} in block {}",
                next.0, next.1, sb.sequence, sb.journal_next
            )
        };
        tally.add(Code::LegacyJournal, offset, text);
    }
    let Some(newest) = commit_at(sb, blocks, position)? else { return Ok(count) };
    let free = (newest.metadata_free, newest.data_free);
    let said = (sb.metadata.free, sb.data.map_or(0, |data| data.free));
    if free != said {
        let text = || format!("the newest commit left {free:?} chunks free, the superblock says {said:?}");
        tally.add(Code::LegacyJournal, offset, text);
    }
    Ok(count)
}

fn what_recovery_does(tree: &Tree<'_>) -> String {
    let (sb, root) = (tree.sb, tree.root);
    let mut text = format!("recovery takes {} blocks from the journal", tree.blocks.moved.len());
    if (root.sector, root.levels) != (sb.root, sb.levels) {
        text += &format!(
            ", begins the tree at sector {} with {} levels instead of {} with {}",
            root.sector, root.levels, sb.root, sb.levels
        );
    }
    let deferred = tree.deferred.len();
    if deferred > 0 {
        text += &format!(", takes {deferred} chunks for used that the bitmap does not have yet");
    }
    text + ", and counts what is free"
}
