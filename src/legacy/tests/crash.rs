//! What crashes left, from the journal and the root to a deletion half done.

use super::build::{Built, Shape, Transaction, leaf_block, node_block};
use super::model::Model;
use super::{check, sample, shapes};
use crate::block::memory::Memory;
use crate::legacy::{Devices, repair};
use crate::point::finding::{Code, Leave};
use crate::point::volume::Volume;
use crate::progress::Silent;
use std::sync::Arc;

/// A store of two levels and a leaf per chunk.
fn deep() -> Built {
    Built::new(Shape { leaf_max: 1, node_max: 4, journal: 40, ..Shape::COMBINED }, &sample())
}

#[test]
fn blocks_of_the_newest_commit_are_read_from_the_journal() {
    for shape in shapes() {
        // Less than the ring, at its start, in its middle, and past its end; sequence numbers wrap.
        for (position, sequence) in [(0, 20), (3, 20), (7, u32::MAX), (7, 1 << 31), (6, 0)] {
            let mut built = Built::new(shape, &sample());
            let sectors: Vec<u64> = built.metadata_sectors().into_iter().rev().take(5).collect();
            let transaction = built.lose(&sectors);
            built.journal(position, sequence, &[Transaction::default(), transaction]);
            built.crash();
            check(&built, &sample());
        }
    }
}

#[test]
fn a_store_that_was_shut_down_does_not_look_into_its_journal() {
    let mut built = deep();
    let junk = Transaction { blocks: vec![(built.root(), vec![0; 512])], ..Transaction::default() };
    built.journal(0, 5, &[junk]);
    check(&built, &sample());
}

/// The sums of commits prove next to nothing: one whose blocks would go where no metadata can be is damaged. It counts
/// no more, and nothing tells what it was.
#[test]
fn a_commit_for_places_that_cannot_be_is_not_replayed() {
    let shape = Shape { block_bits: 12, chunk_bits: 12, leaf_max: 2, ..Shape::COMBINED };
    let whole = Built::new(shape, &sample());
    let leaf = whole.levels[0][0];
    let (journal, end) = (u64::from(whole.sb.journal_base.get()), whole.metadata.len() as u64 / 512);
    for (home, is_sound) in [
        (leaf, true),
        (whole.sb.metadata.bitmap_base.get(), true),
        (leaf + 1, false),
        (whole.root() + 4, false),
        (8, false),
        (journal, false),
        (journal + 16, false),
        (whole.root(), false),
        (end, false),
        (u64::MAX, false),
    ] {
        let mut built = whole.clone();
        let bytes = built.get(if is_sound { home } else { leaf });
        // At home is all of it already, so that a damaged commit costs nothing.
        let blocks = vec![(built.root(), built.get(built.root())), (home, bytes)];
        built.journal(3, 40, &[Transaction { blocks, ..Transaction::default() }]);
        built.crash();
        let store = built.open().unwrap();
        assert!(store.snapshots().iter().all(|info| info.tainted != is_sound), "{home}");
        let damage: Vec<_> = store.damage().map(|finding| finding.code).collect();
        assert_eq!(damage, if is_sound { vec![] } else { vec![Code::LegacyUnrecovered] }, "{home}");
        assert_eq!(store.sharing().unwrap()[0].shared_by, sample().sharing()[0], "{home}");
        let device = Arc::new(Memory::from_bytes(&built.metadata));
        for leave in [Leave::Safe, Leave::Everything].into_iter().filter(|_| !is_sound) {
            let devices = Devices { store: Arc::<Memory>::clone(&device), metadata: None, origin: None };
            let repaired = repair(&devices, device.as_ref(), None, leave, &Silent).unwrap();
            assert!(repaired.writes.is_empty(), "{home}: {:?}", repaired.writes);
            assert_eq!(repaired.refused.len(), 1, "{home}");
        }
    }
}

/// In normal mode blocks go home at once: only the newest commit may not have got there, and what an older one says
/// of a block that was freed meanwhile counts no more.
#[test]
fn older_commits_are_at_home() {
    let mut built = deep();
    let stale = (built.spare[0], leaf_block(9, &[]));
    let newest = built.lose(&[built.levels[0][0]]);
    let older = Transaction { blocks: vec![stale], ..Transaction::default() };
    built.journal(35, u32::MAX - 1, &[older, newest]);
    built.crash();
    check(&built, &sample());
}

/// In deferred mode everything from the oldest commit with a deferred range on is in the journal only.
#[test]
fn deferred_commits_are_replayed_together() {
    let mut built = deep();
    let stale = (built.levels[0][1], leaf_block(9, &[]));
    let before = Transaction { blocks: vec![stale], ..Transaction::default() };
    let chunk = *built.places.values().next().unwrap();
    let (leaves, nodes) = (built.levels[0].clone(), built.levels[1].clone());
    let mut oldest = built.lose(&[leaves[0], leaves[2]]);
    built.mark(chunk, false);
    oldest.deferred = (chunk, 1);
    // The newer version of a block counts.
    oldest.blocks.push((leaves[3], leaf_block(9, &[])));
    let middle = built.lose(&[leaves[3], nodes[0]]);
    let newest = built.lose(&[built.root()]);
    built.journal(38, 9, &[before, oldest, middle, newest]);
    built.crash();
    check(&built, &sample());
    // The deferred chunk counts as used: 40 blocks of room less what is used.
    let legacy = built.open().unwrap().info();
    assert_eq!(legacy.free_bytes, built.sb.metadata.free.get() * 512);
}

#[test]
fn a_barrier_says_that_everything_before_it_is_at_home() {
    let mut built = deep();
    let leaves = built.levels[0].clone();
    let stale = |sector: u64| vec![(sector, leaf_block(9, &[]))];
    let spare = built.spare.clone();
    let deferred = Transaction { blocks: stale(spare[0]), deferred: (9999, 2), is_barrier: false };
    let barrier = Transaction { blocks: stale(spare[1]), is_barrier: true, ..Transaction::default() };
    let after = built.lose(&[leaves[2]]);
    let newest = built.lose(&[leaves[3], built.root()]);
    built.journal(1, 70, &[deferred.clone(), barrier, after, newest]);
    built.crash();
    check(&built, &sample());
    // As the newest it is itself what may not be at home.
    let mut built = deep();
    let mut barrier = built.lose(&[leaves[1], leaves[0]]);
    barrier.is_barrier = true;
    built.journal(1, 70, &[deferred, barrier]);
    built.crash();
    check(&built, &sample());
}

#[test]
fn a_commit_that_was_overwritten_in_part_ends_the_run() {
    let mut built = deep();
    let leaves = built.levels[0].clone();
    let mut newest = built.lose(&leaves[1..4]);
    newest.deferred = (9998, 1);
    // The older one would be deferred too, but the newer one lies over its blocks.
    let older =
        Transaction { blocks: vec![(leaves[0], vec![0; 512]); 38], deferred: (9999, 1), is_barrier: false };
    built.journal(0, 70, &[older, newest]);
    built.crash();
    check(&built, &sample());
}

/// A root that was split: the superblock names the left half, one or two levels below.
#[test]
fn the_root_is_looked_for_above() {
    let mut built = Built::new(Shape { leaf_max: 1, node_max: 2, ..Shape::COMBINED }, &sample());
    let top = built.levels.len() - 1;
    assert!(top >= 3, "{top} levels");
    for below in 1..top {
        built.sb.root.set(built.levels[top - below][0]);
        built.sb.levels.set(u32::try_from(top - below).unwrap());
        built.crash();
        check(&built, &sample());
        // And from the journal, where a copy of it does not count.
        let mut lost = built.clone();
        let transaction = lost.lose(&[lost.root()]);
        lost.journal(4, 90, &[transaction]);
        lost.crash();
        check(&lost, &sample());
    }
}

/// Nodes that look like a parent, and are none: a copy in the journal, one that is free, one whose child is free.
#[test]
fn what_only_looks_like_a_parent_is_none() {
    let mut built = Built::new(Shape { leaf_max: 3, ..Shape::COMBINED }, &sample());
    let (root, free) = (built.root(), built.spare[0]);
    let wrong = built.levels[0][1];
    let parent = node_block(9, &[(0, root), (9, wrong)]);
    let (inside, beside, orphan) = (u64::from(built.sb.journal_base.get()), built.spare[1], built.take());
    built.put(inside, &parent);
    built.put(beside, &parent);
    built.crash();
    check(&built, &sample());
    // In use for nothing: whether it belongs to what was done last nobody knows.
    built.put(orphan, &node_block(9, &[(0, root), (9, free)]));
    built.mark(orphan, true);
    built.crash();
    let store = built.open().unwrap();
    assert!(store.snapshots().iter().all(|info| info.tainted));
    assert_eq!(store.sharing().unwrap()[0].shared_by, sample().sharing()[0]);
    // In use, with children in use: it is the root, whatever it leads to.
    built.mark(free, true);
    built.put(free, &node_block(9, &[(0, wrong)]));
    assert_ne!(
        built.open().unwrap().sharing().ok().map(|rows| rows[0].shared_by.clone()),
        Some(sample().sharing()[0].clone())
    );
}

/// A root that a deletion dropped is free: its first child is the root.
#[test]
fn the_root_is_looked_for_below() {
    let mut built = Built::new(Shape { leaf_max: 3, ..Shape::COMBINED }, &sample());
    let (root, dropped, again) = (built.root(), built.spare[0], built.spare[1]);
    built.put(dropped, &node_block(9, &[(0, root), (20, built.levels[0][0])]));
    built.put(again, &node_block(9, &[(0, dropped)]));
    for (sector, levels) in [(dropped, 2), (again, 3)] {
        built.sb.root.set(sector);
        built.sb.levels.set(levels);
        built.crash();
        check(&built, &sample());
    }
}

/// One snapshot refers to chunks that are free: it was being deleted, and is said to be unreliable. If two do, there
/// is another cause.
#[test]
fn a_snapshot_half_deleted_is_marked() {
    let model = sample();
    for (count, expected) in [(1, [true, false, false]), (2, [false; 3])] {
        let mut built = Built::new(Shape::COMBINED, &model);
        for bit in 0..count {
            let own = |chunk: usize| model.exceptions(chunk).into_iter().find(|own| own.0 == 1 << bit);
            let (chunk, own) = (0..40).find_map(|chunk| Some((chunk as u64, own(chunk)?))).unwrap();
            built.mark(built.places[&(chunk, own.1)], false);
        }
        built.crash();
        let tainted: Vec<bool> = built.open().unwrap().snapshots().iter().map(|info| info.tainted).collect();
        assert_eq!(tainted, expected);
    }
}

/// A tree that recovery finds damaged does not keep the snapshots from being listed.
#[test]
fn damage_found_by_recovery_is_told_and_does_not_hide_the_list() {
    let mut built = deep();
    built.lose(&[built.levels[0][3]]);
    built.crash();
    let store = built.open().unwrap();
    assert_eq!(store.snapshots().len(), 3);
    let damage: Vec<_> = store.damage().map(|finding| finding.code).collect();
    assert_eq!(damage, [Code::LegacyLeaf]);
    assert!(store.sharing().is_err());
}

#[test]
fn a_crashed_store_without_a_journal_reads_as_its_blocks_say() {
    let mut built = Built::new(Shape::COMBINED, &Model::new(4));
    for position in 0..built.shape.journal {
        let sector = u64::from(built.sb.journal_base.get() + position);
        built.put(sector, &[0; 512]);
    }
    built.crash();
    check(&built, &Model::new(4));
}
