//! Each rule broken on purpose, in a small store.

use super::{Checked, check};
use crate::block::memory::Memory;
use crate::error::Kind;
use crate::format::legacy::superblock::{MAGIC, Release};
use crate::legacy::{Devices, Store};
use crate::point::finding::{Code, Severity};
use crate::point::volume::Volume;
use crate::point::{PointId, PointSource};
use crate::progress::Silent;
use crate::units::Epoch;
use std::collections::BTreeSet;
use std::sync::Arc;

const SB: usize = 4096;
/// Blocks of 512 bytes in the store.
const BLOCKS: usize = 124;
/// Chunks of 512 bytes in the origin.
const CHUNKS: usize = 64;
const BITMAP: usize = 16 * 512;
const JOURNAL: usize = 17 * 512;
const JOURNAL_BLOCKS: usize = 12;
const LEAF_A: usize = 29 * 512;
const LEAF_B: usize = 30 * 512;
const ROOT: usize = 31 * 512;
const FREE: usize = SB + 1616 + 16;

/// A store of two snapshots: chunk 1 preserved for each, chunks 5 and 40 for both.
pub(in crate::legacy) struct Sample(Vec<u8>);

impl Sample {
    pub fn new() -> Self {
        let mut sample = Self(vec![0; BLOCKS * 512]);
        sample.0[SB..SB + 8].copy_from_slice(&MAGIC);
        sample.put64(SB + 16, 31).put64(SB + 32, CHUNKS as u64);
        for (at, tag, bit) in [(0, 7, 0), (1, 9, 1)] {
            let entry = SB + 56 + at * 24;
            sample.put32(entry + 4, tag).put64(entry + 16, CHUNKS as u64);
            sample.0[entry + 10] = bit;
        }
        sample.put32(SB + 1592, 2).put32(SB + 1596, 1).put32(SB + 1600, 17).put32(SB + 1608, 12);
        sample.put32(SB + 1612, 12).put64(SB + 1616, 16).put64(SB + 1624, BLOCKS as u64);
        sample.put64(SB + 1648, 1).put32(SB + 1656, 9).put32(SB + 1704, 9);
        for at in 0..JOURNAL_BLOCKS {
            let commit = JOURNAL + at * 512;
            sample.0[commit..commit + 8].copy_from_slice(b"MAGICNUM");
            sample.put32(commit + 8, 0x6963_7070).put32(commit + 12, u32::try_from(at).unwrap());
        }
        sample.leaf(LEAF_A, &[(1, &[(1, 40), (2, 41)]), (5, &[(3, 42)])]);
        sample.leaf(LEAF_B, &[(40, &[(3, 43)])]);
        sample.node(ROOT, &[(0, 29), (32, 30)]);
        (0..32).chain(40..44).chain(BLOCKS..128).for_each(|chunk| sample.mark(chunk));
        sample.count();
        sample
    }

    fn put32(&mut self, at: usize, value: u32) -> &mut Self {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
        self
    }

    fn put64(&mut self, at: usize, value: u64) -> &mut Self {
        self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
        self
    }

    fn mark(&mut self, chunk: usize) {
        self.0[BITMAP + chunk / 8] |= 1 << (chunk % 8);
    }

    fn clear(&mut self, chunk: usize) {
        self.0[BITMAP + chunk / 8] &= !(1 << (chunk % 8));
    }

    /// Sets the free counts to what the bitmap has.
    fn count(&mut self) {
        let free = (0..BLOCKS).filter(|chunk| self.0[BITMAP + chunk / 8] >> (chunk % 8) & 1 == 0).count();
        self.put64(FREE, free as u64);
        for at in 0..JOURNAL_BLOCKS {
            self.put64(JOURNAL + at * 512 + 28, free as u64);
        }
    }

    fn node(&mut self, at: usize, children: &[(u64, u64)]) {
        self.put32(at, u32::try_from(children.len()).unwrap());
        for (number, (key, sector)) in children.iter().enumerate() {
            self.put64(at + 8 + 16 * number, *key).put64(at + 16 + 16 * number, *sector);
        }
    }

    fn leaf(&mut self, at: usize, chunks: &[(u32, &[(u64, u64)])]) {
        self.put32(at, 0x1eaf).put32(at + 4, u32::try_from(chunks.len()).unwrap());
        let all: usize = chunks.iter().map(|(_, list)| list.len()).sum();
        let mut next = 512 - 16 * all;
        for (number, (chunk, list)) in chunks.iter().enumerate() {
            self.put32(at + 24 + 8 * number, u32::try_from(next).unwrap());
            self.put32(at + 28 + 8 * number, *chunk);
            for (share, physical) in *list {
                self.put64(at + next, *share).put64(at + next + 8, *physical);
                next += 16;
            }
        }
        self.put32(at + 24 + 8 * chunks.len(), 512);
    }

    /// Exchanges two blocks.
    fn swap(&mut self, a: usize, b: usize) {
        (0..512).for_each(|at| self.0.swap(a + at, b + at));
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn origin() -> Vec<u8> {
        vec![7; CHUNKS * 512]
    }

    fn devices(&self) -> Devices {
        Devices {
            store: Arc::new(Memory::from_bytes(&self.0)),
            metadata: None,
            origin: Some(Arc::new(Memory::from_bytes(&[7; CHUNKS * 512]))),
        }
    }

    fn check(&self) -> Checked {
        check(&self.devices(), Some(Release::R10), &Silent).unwrap()
    }

    fn codes(&self) -> Vec<Code> {
        self.check().findings.iter().map(|finding| finding.code).collect()
    }
}

/// A rule, how to break it, what is found, and for the first of it the byte ranges of both snapshots.
pub(in crate::legacy) type Damage =
    (&'static str, fn(&mut Sample), &'static [Code], [&'static [(u64, u64)]; 2]);

const NOBODY: [&[(u64, u64)]; 2] = [&[], &[]];
const CHUNK_1: &[(u64, u64)] = &[(512, 1024)];
const CHUNK_5: &[(u64, u64)] = &[(2560, 3072)];
/// Up to the first chunk, and from the last one on, that the other leaf has.
const IN_LEAF_A: &[(u64, u64)] = &[(0, 40 * 512)];
const IN_LEAF_B: &[(u64, u64)] = &[(6 * 512, 64 * 512)];
const EVERYWHERE: &[(u64, u64)] = &[(0, 64 * 512)];

/// All of them.
pub(in crate::legacy) fn damages() -> Vec<Damage> {
    superblock_damages().into_iter().chain(tree_damages()).chain(space_damages()).collect()
}

fn superblock_damages() -> Vec<Damage> {
    use Code::{LegacyField, LegacyFreeCount, LegacyJournal, LegacySnapshots, LegacySuperblock};
    vec![
        ("S1 magic", |s| s.0[SB] ^= 1, &[LegacySuperblock], NOBODY),
        ("S2 block size", |s| _ = s.put32(SB + 1656, 8), &[LegacySuperblock], NOBODY),
        ("S3 snapshots", |s| _ = s.put32(SB + 1592, 65), &[LegacySnapshots], NOBODY),
        ("S3 levels", |s| _ = s.put32(SB + 1596, 0), &[LegacySuperblock], NOBODY),
        ("S4 tags", |s| _ = s.put32(SB + 56 + 28, 7), &[LegacySnapshots], NOBODY),
        ("S4 bits", |s| s.0[SB + 56 + 34] = 0, &[LegacySnapshots], NOBODY),
        ("S5 flags", |s| s.0[SB + 40] = 4, &[LegacyField], NOBODY),
        ("S6 origin offset", |s| s.0[SB + 24] = 1, &[LegacyField], NOBODY),
        ("S7 bitmap length", |s| s.0[SB + 1648] = 2, &[LegacySuperblock], NOBODY),
        ("S8 overlap", |s| s.0[SB + 1600] = 16, &[LegacySuperblock], NOBODY),
        ("S8 device cut short", |s| s.0.truncate(123 * 512), &[LegacySuperblock], NOBODY),
        ("S9 root", |s| s.0[SB + 16] = 124, &[LegacySuperblock], NOBODY),
        ("device grown", |s| s.0.resize(126 * 512, 0), &[Code::LegacyGrown], NOBODY),
        ("B3 free count", |s| s.0[FREE] -= 1, &[LegacyFreeCount, LegacyJournal], NOBODY),
        ("J1 two gaps", |s| s.0[JOURNAL + 5 * 512 + 12] = 77, &[LegacyJournal], NOBODY),
        ("J2 sequence", |s| s.0[SB + 1612] = 13, &[LegacyJournal], NOBODY),
        ("J2 position", |s| s.0[SB + 1604] = 3, &[LegacyJournal], NOBODY),
        ("J3 free count", |s| s.0[JOURNAL + 11 * 512 + 28] -= 1, &[LegacyJournal], NOBODY),
        ("crash", |s| s.0[SB + 40] = 2, &[Code::LegacyRecovery], NOBODY),
        (
            "crash J1",
            |s| {
                s.0[SB + 40] = 2;
                s.0[JOURNAL + 5 * 512 + 12] = 77;
            },
            &[Code::LegacyRecovery, Code::LegacyUnrecovered],
            NOBODY,
        ),
        (
            "crash no journal",
            |s| {
                s.0[SB + 40] = 2;
                s.0[JOURNAL..LEAF_A].fill(0);
                s.mark(60);
            },
            &[Code::LegacyRecovery, Code::LegacyUnrecovered, Code::LegacyLeak],
            NOBODY,
        ),
    ]
}

fn tree_damages() -> Vec<Damage> {
    use Code::{LegacyChunkPlace, LegacyChunkTwice, LegacyLeaf, LegacyLeak, LegacyNode, LegacyTreePlace};
    use Code::{LegacyOrder, LegacyShareNone, LegacyShareStale, LegacyShareTwice, LegacyTreeFree};
    vec![
        ("T1 in the journal", |s| s.0[ROOT + 32] = 18, &[LegacyTreePlace], [IN_LEAF_B; 2]),
        ("T1 outside", |s| s.0[ROOT + 32] = 124, &[LegacyTreePlace], [IN_LEAF_B; 2]),
        ("T1 twice", |s| s.0[ROOT + 32] = 29, &[LegacyTreePlace], [IN_LEAF_B; 2]),
        ("T1 itself", |s| s.0[ROOT + 32] = 31, &[LegacyTreePlace], [IN_LEAF_B; 2]),
        (
            "T1 free",
            |s| {
                s.clear(30);
                s.count();
            },
            &[LegacyTreeFree],
            NOBODY,
        ),
        ("T2 count", |s| s.0[ROOT] = 0, &[LegacyNode], [EVERYWHERE; 2]),
        ("T2 capacity", |s| s.0[ROOT] = 32, &[LegacyNode], [EVERYWHERE; 2]),
        ("T3 magic", |s| s.0[LEAF_A] ^= 1, &[LegacyLeaf], [IN_LEAF_A; 2]),
        ("T3 version", |s| s.0[LEAF_A + 2] = 1, &[LegacyLeaf], [IN_LEAF_A; 2]),
        ("T3 base chunk", |s| s.0[LEAF_B + 8] = 1, &[LegacyLeaf], [IN_LEAF_B; 2]),
        ("T3 end", |s| s.0[LEAF_B + 32] = 8, &[LegacyLeaf], [IN_LEAF_B; 2]),
        ("T3 offset", |s| s.0[LEAF_B + 24] ^= 8, &[LegacyLeaf], [IN_LEAF_B; 2]),
        (
            "T3 under a key too high",
            |s| _ = s.put64(ROOT + 24, 60).put32(LEAF_B, 0),
            &[LegacyLeaf],
            [IN_LEAF_B; 2],
        ),
        (
            "T3 before a key too low",
            |s| _ = s.put64(ROOT + 24, 2).put32(LEAF_A, 0),
            &[LegacyLeaf],
            [IN_LEAF_A; 2],
        ),
        ("T4 order", |s| s.0[LEAF_A + 36] = 1, &[LegacyLeaf], [IN_LEAF_A; 2]),
        ("T4 range", |s| s.0[LEAF_A + 36] = 33, &[LegacyOrder], [IN_LEAF_A; 2]),
        (
            "T4 two leaves",
            |s| _ = s.put64(ROOT + 24, 0).put32(LEAF_B + 28, 5),
            &[LegacyOrder],
            [EVERYWHERE; 2],
        ),
        ("T4 beyond the end", |s| s.0[LEAF_B + 29] = 1, &[LegacyOrder], [IN_LEAF_B; 2]),
        ("T4 leaf swapped", |s| s.swap(LEAF_A, LEAF_B), &[LegacyOrder], [EVERYWHERE; 2]),
        ("T4 leaf not in the tree", |s| s.0[ROOT] = 1, &[Code::LegacyOrphan], [IN_LEAF_B; 2]),
        (
            "T4 overfull",
            |s| {
                s.leaf(LEAF_A, &[(5, &[(1, 40), (2, 41)])]);
                s.leaf(LEAF_B, &[(5, &[(3, 42)]), (40, &[(3, 43)])]);
                s.put64(ROOT + 24, 0);
            },
            &[Code::LegacyOverfull],
            [CHUNK_5; 2],
        ),
        (
            "T4 overfull, end",
            |s| {
                s.leaf(LEAF_A, &[(5, &[(1, 40), (2, 41)])]);
                s.leaf(LEAF_B, &[(5, &[(3, 42)]), (40, &[(3, 43)])]);
                s.put64(ROOT + 24, 0);
                s.clear(125);
                s.count();
            },
            &[Code::LegacyOverfull, Code::LegacyEnd],
            [CHUNK_5; 2],
        ),
        ("T5 empty", |s| s.0[LEAF_A + 464] = 0, &[LegacyShareNone], [CHUNK_1; 2]),
        ("T5 not live", |s| s.0[LEAF_A + 464] = 5, &[LegacyShareStale], [CHUNK_1; 2]),
        (
            "T5 not live, end",
            |s| {
                s.0[LEAF_A + 464] = 5;
                s.clear(125);
                s.count();
            },
            &[LegacyShareStale, Code::LegacyEnd],
            [CHUNK_1; 2],
        ),
        ("T5 bit of another", |s| s.0[SB + 56 + 34] = 29, &[LegacyShareNone, LegacyShareStale], [CHUNK_1; 2]),
        ("T5 twice", |s| s.0[LEAF_A + 464] = 3, &[LegacyShareTwice], [IN_LEAF_A; 2]),
        ("T6 outside", |s| s.0[LEAF_A + 472] = 124, &[LegacyChunkPlace, LegacyLeak], [CHUNK_1, &[]]),
        ("T6 in the bitmap", |s| s.0[LEAF_A + 472] = 16, &[LegacyChunkPlace, LegacyLeak], [CHUNK_1, &[]]),
        (
            "T6 two chunks",
            |s| s.0[LEAF_A + 472] = 42,
            &[LegacyChunkTwice, LegacyLeak],
            [&[(512, 1024), (2560, 3072)], CHUNK_5],
        ),
        ("T6 the tree's", |s| s.0[LEAF_A + 472] = 30, &[LegacyChunkTwice, LegacyLeak], [CHUNK_1, &[]]),
    ]
}

fn space_damages() -> Vec<Damage> {
    fn bit(sample: &mut Sample, chunk: usize, used: bool) {
        if used {
            sample.mark(chunk)
        } else {
            sample.clear(chunk)
        }
        sample.count();
    }
    vec![
        ("T6 free", |s| bit(s, 42, false), &[Code::LegacyChunkFree], [CHUNK_5; 2]),
        (
            "T6 elsewhere",
            |s| s.0[LEAF_A + 472] = 60,
            &[Code::LegacyContrary, Code::LegacyLeak],
            [CHUNK_1, &[]],
        ),
        ("B1 leak", |s| bit(s, 60, true), &[Code::LegacyLeak], NOBODY),
        (
            "B1 leak, count",
            |s| {
                bit(s, 60, true);
                s.0[FREE] -= 1;
            },
            &[Code::LegacyLeak, Code::LegacyFreeCount, Code::LegacyJournal],
            NOBODY,
        ),
        ("B1 leaf of before", |s| s.leaf(LEAF_A, &[(1, &[(1, 40), (2, 41)])]), &[Code::LegacyLeak], NOBODY),
        ("B1 area", |s| bit(s, 3, false), &[Code::LegacyAreaFree], NOBODY),
        ("B2 end", |s| bit(s, 125, false), &[Code::LegacyEnd], NOBODY),
        (
            "deletion",
            |s| {
                bit(s, 40, false);
                s.0[SB + 40] = 2;
            },
            &[Code::LegacyRecovery, Code::LegacyDeletion],
            NOBODY,
        ),
        (
            "stale root",
            |s| {
                s.leaf(34 * 512, &[(50, &[(3, 44)])]);
                s.node(33 * 512, &[(0, 34)]);
                s.node(32 * 512, &[(0, 31), (50, 33)]);
                [32, 33, 34, 44].into_iter().for_each(|chunk| bit(s, chunk, true));
            },
            &[Code::LegacyRoot, Code::LegacyOrphan, Code::LegacyLeak],
            NOBODY,
        ),
    ]
}

#[test]
fn a_sound_store_has_no_findings() {
    let checked = Sample::new().check();
    assert!(checked.findings.is_empty(), "{:?}", checked.findings);
    assert_eq!((checked.commits, checked.exceptions), (12, 4));
}

#[test]
fn every_rule_that_is_broken_is_told_with_whom_it_concerns() {
    let mut told: BTreeSet<Code> = BTreeSet::new();
    for (name, damage, codes, ranges) in damages() {
        let mut sample = Sample::new();
        damage(&mut sample);
        assert_eq!(sample.codes(), codes, "{name}: {:?}", sample.check().findings);
        told.extend(codes);
        let findings = sample.check().findings;
        let of = |tag: u32| -> Vec<(u64, u64)> {
            let affected = findings[0].affected.iter().filter(|one| one.tag.unwrap().0 == tag);
            affected.flat_map(|one| &one.ranges).map(|range| (range.start, range.end)).collect()
        };
        assert_eq!([of(7), of(9)], ranges.map(<[_]>::to_vec), "{name}");
    }
    // These need other devices, or a repair.
    let others =
        [Code::LegacyUnproven, Code::LegacyRepair, Code::LegacyHome, Code::LegacyLost, Code::LegacyRefused];
    let missing: Vec<Code> = Code::all()
        .filter(|code| code.name().starts_with("legacy-") && !others.contains(code) && !told.contains(code))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Unless what is damaged says where, nothing tells which chunks are those of before.
#[test]
fn what_is_in_use_for_nothing_taints_what_reads_without_an_error() {
    for (name, damage, ..) in damages() {
        let mut sample = Sample::new();
        damage(&mut sample);
        let Ok(store) = Store::open(sample.devices(), Some(Release::R10), &Silent) else { continue };
        let tainted = store.snapshots().iter().filter(|snapshot| snapshot.tainted).count();
        match name {
            _ if name.starts_with("B1 lea") => {
                assert_eq!((tainted, store.doubts().count()), (2, 1), "{name}")
            }
            "T6 outside" => assert_eq!((tainted, store.doubts().count()), (0, 2)),
            _ => {}
        }
    }
}

#[test]
fn a_crash_over_a_damaged_tree_is_told_as_both() {
    let mut sample = Sample::new();
    sample.0[SB + 40] = 2;
    sample.0[LEAF_A] ^= 1;
    assert_eq!(sample.codes(), [Code::LegacyRecovery, Code::LegacyLeaf]);
}

#[test]
fn an_origin_that_was_cut_is_told() {
    let mut devices = Sample::new().devices();
    devices.origin = Some(Arc::new(Memory::from_bytes(&[7; CHUNKS * 512 - 1])));
    let checked = check(&devices, None, &Silent).unwrap();
    assert_eq!(checked.findings.len(), 1);
    assert_eq!(checked.findings[0].code, Code::OriginSmall);
    assert_eq!(checked.findings[0].affected.len(), 2);
}

/// True if every byte of both snapshots can be read.
fn reads(devices: Devices) -> bool {
    let Ok(store) = Store::open(devices, None, &Silent) else { return false };
    store.sharing().is_ok()
        && store.points().iter().filter(|point| point.id != PointId::Origin).count() == 2
        && [1, 2].into_iter().all(|id| {
            let mut image = vec![0; CHUNKS * 512];
            store.read(PointId::Snapshot(Epoch(id)), 0, &mut image).is_ok()
        })
}

#[test]
fn whatever_byte_is_wrong_the_check_ends_and_what_it_calls_sound_reads() {
    let sample = Sample::new();
    let places = (SB..SB + 1760).chain(BITMAP..32 * 512);
    let mut sound = 0;
    for at in places {
        for bits in [0x01, 0x80, 0xff] {
            for flags in [0, 2] {
                let mut damaged = Sample(sample.0.clone());
                damaged.0[SB + 40] = flags;
                damaged.0[at] ^= bits;
                let checked = match check(&damaged.devices(), None, &Silent) {
                    Ok(checked) => checked,
                    Err(error) => {
                        assert_eq!(error.kind(), Kind::Mismatch, "byte {at}: {error}");
                        continue;
                    }
                };
                let is_sound = checked.findings.iter().all(|finding| finding.severity() == Severity::Note);
                // Fewer snapshots than there were is nothing that a check can see.
                let in_table = (SB..SB + 1600).contains(&at);
                assert!(!is_sound || in_table || reads(damaged.devices()), "byte {at} ^ {bits:#x}");
                sound += usize::from(is_sound);
            }
        }
    }
    assert!(sound > 1000, "{sound}");
}

#[test]
fn a_store_that_is_cut_short_anywhere_is_told() {
    let sample = Sample::new();
    for size in (0..BLOCKS * 512).step_by(64) {
        let cut = Sample(sample.0[..size].to_vec());
        assert_eq!(cut.codes(), [Code::LegacySuperblock], "{size} bytes");
    }
}
