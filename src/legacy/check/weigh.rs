//! What is at home against the journal, in a store that was shut down: which of two versions of a block is the
//! right one.
//!
//! No block has a sum. But of two versions the wrong one does not fit the others: an older leaf leads to less than
//! the bitmap says is in use. So the store is looked at with either, and one with which nothing is lost is right
//! if with the other one something is, or more does not fit. Everything else is in doubt.

use super::super::blocks::Blocks;
use super::super::recover::{Differs, Recovered};
use super::super::ring;
use super::tally::Tally;
use super::tree::Tree;
use crate::error::Result;
use crate::format::legacy::SECTOR;
use crate::format::legacy::superblock::Superblock;
use crate::point::finding::{Code, Severity};
use crate::progress::Progress;

/// Lays what the journal has over what is at home, in memory, where that is right, and notes in `recovered` what it
/// found.
///
/// # Errors
/// `Kind::Io`, `Kind::Interrupted`.
pub(in crate::legacy) fn weigh(
    sb: &Superblock,
    blocks: &mut Blocks,
    recovered: &mut Recovered,
    tally: &Tally<'_>,
    progress: &dyn Progress,
) -> Result<()> {
    // A repair that was cut short writes the journal last.
    if sb.is_busy() || tally.has(Code::LegacyRepair) {
        return Ok(());
    }
    let newest = ring::differing(sb, blocks)?;
    if newest.is_empty() {
        return Ok(());
    }
    let tree = super::look(sb, blocks, recovered, tally.clone(), progress)?;
    // What was freed later holds anything.
    let used: Vec<u64> = newest.keys().copied().filter(|home| tree.has(*home)).collect();
    let at_home = damage(&tree);
    drop(tree);
    let Some(first) = used.first().copied() else { return Ok(()) };
    blocks.moved = newest;
    let in_journal = damage(&super::look(sb, blocks, recovered, tally.clone(), progress)?);
    if in_journal < at_home && !in_journal.0 {
        recovered.differs = Some(Differs::AtHome(used.len(), first));
        return Ok(());
    }
    blocks.moved.clear();
    if at_home < in_journal && !at_home.0 {
        recovered.differs = Some(Differs::InJournal(used.len(), first));
        return Ok(());
    }
    recovered.doubt = Some(format!(
        "the block at sector {first} is not the newest version of it in the journal, and nothing tells which is right"
    ));
    Ok(())
}

/// Whether anything is lost, and how many kinds of damage there are.
fn damage(tree: &Tree<'_>) -> (bool, usize) {
    let is_lost = tree.tally.codes().any(|code| code.severity() == Severity::Loss);
    (is_lost, tree.tally.codes().count())
}

impl Tree<'_> {
    /// True if the block at sector `home` is of the tree or of a bitmap.
    pub(in crate::legacy) fn has(&self, home: u64) -> bool {
        self.own.has(home / self.blocks.sectors()) || self.blocks.area(home).is_some()
    }

    /// Says where home and journal differ.
    pub(super) fn tell_differs(&mut self, differs: Differs) {
        match differs {
            Differs::AtHome(count, first) => {
                let text = || {
                    format!(
                        "{count} blocks, the first at sector {first}, are not what the journal has of them last"
                    )
                };
                self.tally.add(Code::LegacyHome, first.checked_mul(SECTOR), text);
            }
            Differs::InJournal(count, first) => {
                let text = || {
                    format!(
                        "what it has last of {count} blocks, the first at sector {first}, is not what they are"
                    )
                };
                self.tally.add(Code::LegacyJournal, Some(self.sb.journal_base * SECTOR), text);
            }
        }
    }
}
