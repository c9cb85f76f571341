//! What lies at home and what the journal has last, where they differ.

use super::build::{Built, Shape, Transaction, leaf_block};
use super::{check, sample};
use crate::block::memory::Memory;
use crate::legacy::repair::Repaired;
use crate::legacy::{Devices, check as look, repair};
use crate::point::finding::{Code, Leave};
use crate::point::volume::Volume;
use crate::progress::Silent;
use std::sync::Arc;

/// A store of two levels and a leaf per chunk.
fn deep() -> Built {
    Built::new(Shape { leaf_max: 1, node_max: 4, journal: 40, ..Shape::COMBINED }, &sample())
}

fn commit(blocks: &[(u64, &[u8])]) -> Transaction {
    let blocks = blocks.iter().map(|(home, bytes)| (*home, bytes.to_vec())).collect();
    Transaction { blocks, ..Transaction::default() }
}

/// Puts `transactions` into the journal of a store that was shut down after them.
fn shut_down(built: &mut Built, transactions: &[Transaction]) {
    built.journal(3, 60, transactions);
    let blocks: usize = transactions.iter().map(|transaction| transaction.blocks.len() + 1).sum();
    built.sb.sequence.set(60 + u32::try_from(transactions.len()).unwrap());
    built.sb.journal_next.set(3 + u32::try_from(blocks).unwrap());
    built.seal();
}

fn codes(built: &Built) -> Vec<Code> {
    let checked = look(&built.devices(), None, &Silent).unwrap();
    checked.findings.into_iter().map(|finding| finding.code).collect()
}

/// Repairs `built`.
fn repaired(built: &Built, leave: Leave) -> (Built, Repaired) {
    let device = Arc::new(Memory::from_bytes(&built.metadata));
    let devices = Devices { store: Arc::<Memory>::clone(&device), metadata: None, origin: None };
    let done = repair(&devices, device.as_ref(), None, leave, &Silent).unwrap();
    let mut after = built.clone();
    for write in &done.writes {
        let at = usize::try_from(write.offset).unwrap();
        after.metadata[at..at + write.new.len()].copy_from_slice(&write.new);
    }
    (after, done)
}

/// Asserts that all snapshots of `built` are tainted, that what is at home is read, and that nothing is written.
fn is_doubtful(built: &Built) {
    let store = built.open().unwrap();
    assert!(store.snapshots().iter().all(|info| info.tainted));
    assert!(codes(built).contains(&Code::LegacyUnrecovered), "{:?}", codes(built));
    assert_eq!(sharing(built), Some(sample().sharing()));
    for leave in [Leave::Safe, Leave::Everything] {
        assert!(repaired(built, leave).1.writes.is_empty());
    }
}

fn sharing(built: &Built) -> Option<Vec<Vec<u64>>> {
    let rows = built.open().unwrap().sharing().ok()?;
    Some(rows.into_iter().map(|row| row.shared_by).collect())
}

/// Nothing was flushed: the home of a block can be newer than all that is left of the journal.
#[test]
fn blocks_of_a_commit_that_is_gone_are_not_overwritten_with_older_ones() {
    let mut built = deep();
    let leaf = built.levels[0][0];
    let (older, right) = (leaf_block(9, &[]), built.get(leaf));
    built.journal(3, 60, &[commit(&[(leaf, &older)]), commit(&[(leaf, &right)])]);
    built.crash();
    check(&built, &sample());
    assert_eq!(codes(&built), [Code::LegacyRecovery]);
    // The newest commit is the block behind the last one that it has.
    built.put(u64::from(built.sb.journal_base.get()) + 6, &[0; 512]);
    is_doubtful(&built);
    // Without its blocks nothing tells of it: the home may be older just as well.
    built.put(u64::from(built.sb.journal_base.get()) + 5, &[0; 512]);
    assert_eq!(built.open().unwrap().snapshots().iter().filter(|info| info.tainted).count(), 3);
    assert_ne!(sharing(&built), Some(sample().sharing()));
}

#[test]
fn a_home_that_nothing_was_to_be_done_for_and_that_differs_is_in_doubt_after_a_crash() {
    for is_used in [true, false] {
        let mut built = deep();
        let (leaf, other) = (built.levels[0][0], built.levels[0][1]);
        let home = if is_used { leaf } else { built.spare[0] };
        let (older, newest) = (leaf_block(9, &[]), built.get(other));
        built.journal(3, 60, &[commit(&[(home, &older)]), commit(&[(other, &newest)])]);
        built.crash();
        match is_used {
            true => is_doubtful(&built),
            false => check(&built, &sample()),
        }
    }
}

#[test]
fn a_block_older_or_worse_than_its_copy_is_read_from_the_journal_and_put_home() {
    let whole = deep();
    let leaf = whole.levels[0][0];
    let right = whole.get(leaf);
    for wrong in [leaf_block(9, &[]), vec![0xdb; 512]] {
        let mut built = whole.clone();
        built.put(leaf, &wrong);
        shut_down(&mut built, &[commit(&[(leaf, &leaf_block(9, &[]))]), commit(&[(leaf, &right)])]);
        check(&built, &sample());
        assert!(codes(&built).contains(&Code::LegacyHome), "{:?}", codes(&built));
        let (after, done) = repaired(&built, Leave::Safe);
        assert!(done.lost.is_empty() && done.refused.is_empty(), "{done:?}");
        assert_eq!((codes(&after), after.get(leaf)), (vec![], right.clone()));
        check(&after, &sample());
        // Without the journal it is damage as any other.
        built.sb.sequence.set(7);
        built.seal();
        let store = built.open().unwrap();
        let is_told = store.snapshots().iter().all(|info| info.tainted) || !store.lost().is_empty();
        assert!(is_told && !codes(&built).contains(&Code::LegacyHome));
    }
}

#[test]
fn a_copy_that_is_damaged_is_no_loss_and_a_journal_begun_anew_mends_it() {
    let mut built = deep();
    let leaf = built.levels[0][0];
    shut_down(&mut built, &[commit(&[(leaf, &[0xdb; 512])])]);
    check(&built, &sample());
    assert_eq!(codes(&built), [Code::LegacyJournal]);
    let (after, done) = repaired(&built, Leave::Safe);
    assert!(done.lost.is_empty() && done.refused.is_empty(), "{done:?}");
    assert_eq!(codes(&after), []);
    check(&after, &sample());
}

/// Of two share masks that can both be nothing tells which is right.
#[test]
fn two_versions_that_both_fit_are_in_doubt() {
    let mut built = deep();
    let is_single = |leaf: &u64| built.get(*leaf)[24..26] == [0xf0, 1];
    let leaf = built.levels[0].iter().copied().find(is_single).unwrap();
    let mut other = built.get(leaf);
    other[496] = if other[496] == 7 { 3 } else { 7 };
    shut_down(&mut built, &[commit(&[(leaf, &other)])]);
    is_doubtful(&built);
}
