//! Named damage: every field of every structure, and every table that says what is not so. For each: what a check
//! finds, what mends it, and that nothing is found afterwards.

use super::tests::{Random, Sample, assert_clean, assert_rescued, sample, surviving};
use super::without::give_tags;
use super::{CheckOptions, Code, Leave, RebuildOptions, check, repair};
use crate::block::memory::Memory;
use crate::block::{ReadAt, WriteAt};
use crate::format::checkpoint::{
    PART_HEADER_SIZE, RawCheckpoint, RawPart, RawPiece, RawRun, RawSegment, Role, Segment,
};
use crate::format::field::Table;
use crate::format::record::{Encoding, HEADER_SIZE, RawEntry, RawHeader};
use crate::format::run::{Key, PAGE_BITS, RawBlockHeader, RawDirectoryEntry, RawIndexEntry, Value};
use crate::format::superblock::{OFFSETS, RawSuperblock};
use crate::point::{PointId, PointSource};
use crate::progress::Silent;
use crate::store::room::PLAIN;
use crate::store::state::{State, bit};
use crate::store::{View, Writer};
use crate::units::Epoch;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

/// What a check of `store` finds, notes left out.
fn found(store: &Arc<Memory>) -> (super::CheckReport, BTreeSet<Code>) {
    let device: Arc<dyn ReadAt> = store.clone();
    let report = check(&device, None, CheckOptions { data: true }, &Silent).unwrap();
    let codes = report.findings.iter().map(|finding| finding.code);
    let bad = codes.filter(|code| code.severity() > super::Severity::Note).collect();
    (report, bad)
}

fn options() -> RebuildOptions {
    RebuildOptions { now_secs: 5, ..RebuildOptions::default() }
}

/// Damages `store`, expects exactly `codes`, mends with the least leave that `codes` need, and expects nothing after.
fn try_damage(sample: &Sample, what: &str, codes: &[Code], damage: &dyn Fn(&Memory)) {
    let survivors: Vec<_> = surviving(&View::open(sample.store.clone(), None).unwrap(), &HashSet::new());
    let store = Arc::new(sample.store.snapshot());
    damage(&store);
    let (report, bad) = found(&store);
    assert_eq!(bad, codes.iter().copied().collect(), "{what}: {:?}", report.findings);
    let device: Arc<dyn WriteAt> = store.clone();
    let lossy = codes.iter().any(|code| code.repair() == super::Repair::Mark);
    if lossy {
        repair(&device, &report, Leave::Safe, &options(), &Silent).unwrap();
        assert!(found(&store).1.contains(&codes[0]), "{what}: -p gave something up");
    }
    let (report, _) = found(&store);
    let leave = if lossy { Leave::Everything } else { Leave::Safe };
    let repaired = repair(&device, &report, leave, &options(), &Silent).unwrap();
    assert!(repaired.rebuilt.is_none_or(|rebuilt| rebuilt.published), "{what}");
    assert_clean(&store, what);
    if lossy {
        assert_rescued(sample, &store, &[], what);
    } else {
        assert_rescued(sample, &store, &survivors, what);
    }
}

/// Flips one bit of every field of a structure of `table` at byte `address`.
fn every_field(sample: &Sample, table: &Table, address: u64, codes: &[Code]) {
    let mut random = Random(address);
    for field in table.fields {
        let at = address + field.offset as u64 + random.below(field.width as u64);
        let bit = 1u8 << random.below(8);
        let what = format!("{}.{} at byte {at}", table.title, field.name);
        try_damage(sample, &what, codes, &|store| flip(store, at, bit));
    }
}

fn flip(store: &Memory, at: u64, bit: u8) {
    let mut byte = [0];
    store.read_at(&mut byte, at).unwrap();
    store.write_at(&[byte[0] ^ bit], at).unwrap();
}

/// A sample whose log is all covered by a checkpoint.
fn settled(seed: u64) -> Sample {
    let sample = sample(seed);
    let mut writer = Writer::open(sample.store.clone(), None, 4).unwrap();
    writer.checkpoint(PLAIN).unwrap();
    writer.close().unwrap();
    sample
}

#[test]
fn every_field_of_the_superblocks() {
    let sample = settled(11);
    for offset in OFFSETS {
        every_field(&sample, &RawSuperblock::TABLE, offset, &[Code::SuperblockCopy]);
    }
}

#[test]
fn every_field_of_a_checkpoint() {
    let sample = settled(12);
    let view = View::open(sample.store.clone(), None).unwrap();
    for copy in &view.state.sb.copies {
        let address = copy[0].address;
        every_field(&sample, &RawPart::TABLE, address, &[Code::CheckpointCopy]);
        let payload = address + PART_HEADER_SIZE as u64;
        every_field(&sample, &RawCheckpoint::TABLE, payload, &[Code::CheckpointCopy]);
        for table in [RawSegment::TABLE, RawRun::TABLE, RawPiece::TABLE] {
            every_field(&sample, &table, payload + RawCheckpoint::TABLE.size as u64, &[Code::CheckpointCopy]);
        }
    }
}

#[test]
fn every_field_of_the_index() {
    let sample = settled(13);
    let view = View::open(sample.store.clone(), None).unwrap();
    let piece = view.state.runs[0].pieces[0];
    let codes = [Code::IndexDamaged];
    every_field(&sample, &RawBlockHeader::TABLE, piece.address, &codes);
    every_field(&sample, &RawDirectoryEntry::TABLE, piece.address + 32, &codes);
    every_field(&sample, &RawBlockHeader::TABLE, piece.address + 4096, &codes);
    every_field(&sample, &RawIndexEntry::TABLE, piece.address + 4096 + 32, &codes);
}

/// A preserved chunk that some snapshot needs, and the record that holds it.
fn a_logged_chunk(sample: &Sample) -> (u64, u64) {
    let view = View::open(sample.store.clone(), None).unwrap();
    let survivors = surviving(&view, &HashSet::new());
    let sb = &view.state.sb;
    let words: HashSet<u64> =
        survivors.iter().filter(|(_, value)| value.encoding == Encoding::Raw).map(|(_, v)| v.word).collect();
    for number in 0..sb.segments {
        for record in super::segment::records(view.device.as_ref(), sb, number) {
            if let Some((word, _)) = record.located(sb.block_bits).find(|(word, _)| words.contains(word)) {
                return (record.address, word);
            }
        }
    }
    panic!("no chunk is preserved");
}

#[test]
fn every_field_of_a_record_and_a_byte_of_its_data() {
    let sample = settled(14);
    let (record, word) = a_logged_chunk(&sample);
    every_field(&sample, &RawHeader::TABLE, record, &[Code::RecordDamaged]);
    every_field(&sample, &RawEntry::TABLE, record + HEADER_SIZE as u64, &[Code::RecordDamaged]);
    try_damage(&sample, "data", &[Code::ChunkDamaged], &|store| flip(store, word + 77, 4));
}

/// Tables that hold their checksums and say what is not so: the name, what is changed, what must be found.
type Lie = (&'static str, fn(&mut State), &'static [Code]);

fn first_log_segment(state: &mut State) -> &mut Segment {
    let promised = state.chain.promised.clone();
    state
        .segments
        .iter_mut()
        .find(|(number, segment)| {
            segment.role == Role::Log && segment.count > 0 && !promised.contains(number)
        })
        .map(|(_, segment)| segment)
        .unwrap()
}

fn a_free_page(state: &State) -> (u64, u64) {
    // Beyond every chunk there is.
    (*state.live_ids().last().unwrap(), (state.volume.origin_size >> state.sb.chunk_bits >> 7) + 3)
}

const LIES: [Lie; 9] = [
    ("a segment counts one entry too many", |state| first_log_segment(state).count += 1, &[Code::SpaceCount]),
    ("a segment counts too few bytes", |state| first_log_segment(state).live -= 40, &[Code::SpaceCount]),
    ("a segment's digest is another", |state| first_log_segment(state).digest ^= 1, &[Code::SpaceCount]),
    (
        "a change without a chunk",
        |state| {
            let (id, page) = a_free_page(state);
            state.memory.insert(Key::changes(id, page), Value::from_bits(5));
        },
        &[Code::ChunkMissing],
    ),
    (
        "a chunk without a change",
        |state| {
            let (id, page) = a_free_page(state);
            let word = state.sb.segment_address(state.chain.promised[state.chain.at]);
            let value = Value {
                word,
                crc: crc32fast::hash(&[0; 4096]),
                raw_length: 4096,
                stored_length: 0,
                encoding: Encoding::Zeroes,
            };
            state.memory.insert(Key::exception(page << 7, id), value);
        },
        &[Code::ChangesIncomplete, Code::RecordDamaged],
    ),
    (
        "an entry that leads beyond the store",
        |state| {
            let (id, page) = a_free_page(state);
            let word = state.sb.end() + 4096;
            let value =
                Value { word, crc: 0, raw_length: 4096, stored_length: 4096, encoding: Encoding::Raw };
            state.memory.insert(Key::exception(page << 7, id), value);
        },
        &[Code::IndexDamaged],
    ),
    ("a run with another number of entries", |state| state.runs[0].entries += 1, &[Code::IndexDamaged]),
    (
        "two snapshots with one tag",
        |state| {
            let tag = state.snapshots.values().next().unwrap().tag;
            state.snapshots.values_mut().next_back().unwrap().tag = tag;
        },
        &[Code::TagTwice],
    ),
    (
        "a snapshot from the future",
        |state| {
            let mut row = state.snapshots.values().next_back().unwrap().clone();
            (row.id, row.tag) = (state.epoch + 9, 99_999);
            state.snapshots.insert(row.id, row);
        },
        &[Code::SnapshotImpossible],
    ),
];

#[test]
fn tables_that_say_what_is_not_so() {
    let sample = settled(15);
    for (what, lie, codes) in LIES {
        let store = Arc::new(sample.store.snapshot());
        let mut writer = Writer::open(store.clone(), None, 4).unwrap();
        // Twice: the first flushes the log's part of the index, so that a lie in the tables stays as it is told.
        writer.checkpoint(PLAIN).unwrap();
        writer.checkpoint_with(PLAIN, lie).unwrap();
        drop(writer);
        let (report, bad) = found(&store);
        assert_eq!(bad, codes.iter().copied().collect(), "{what}: {:?}", report.findings);
        let device: Arc<dyn WriteAt> = store.clone();
        repair(&device, &report, Leave::Everything, &options(), &Silent).unwrap();
        if codes.iter().all(|code| code.repair() != super::Repair::Manual) {
            assert_clean(&store, what);
            assert_rescued(&sample, &store, &[], what);
        }
    }
}

/// A lost chunk without a known checksum is no base that a delta could be proven by.
#[test]
fn a_chunk_known_only_by_its_change_bit_has_no_checksum() {
    let sample = settled(16);
    let view = View::open(sample.store.clone(), None).unwrap();
    let id = *view.state.live_ids().last().unwrap();
    let chunk = (0..700).find(|chunk| view.find(id, *chunk).unwrap().is_none()).unwrap();
    let mut writer = Writer::open(sample.store.clone(), None, 4).unwrap();
    writer.checkpoint(PLAIN).unwrap();
    let lie = |state: &mut State| {
        state.memory.insert(Key::changes(id, chunk >> PAGE_BITS), Value::from_bits(bit(chunk)));
    };
    writer.checkpoint_with(PLAIN, lie).unwrap();
    drop(writer);
    let device: Arc<dyn WriteAt> = sample.store.clone();
    let (report, _) = found(&sample.store);
    repair(&device, &report, Leave::Everything, &options(), &Silent).unwrap();
    let view = View::open(sample.store.clone(), Some(sample.origin)).unwrap();
    let point = PointId::Snapshot(Epoch(id));
    assert!(view.find(id, chunk).unwrap().is_some_and(|value| value.encoding == Encoding::Lost));
    assert_eq!(view.known_crc(point, chunk).unwrap(), None);
    assert!(view.read(point, chunk << view.state.sb.chunk_bits, &mut [0; 10]).is_err());
}

#[test]
fn a_snapshot_that_stands_for_a_lost_one_yields_its_tag() {
    let mut state = View::open(settled(15).store, None).unwrap().state;
    let tag = state.snapshots.values().next().unwrap().tag;
    let before: Vec<u32> = state.snapshots.values().map(|snapshot| snapshot.tag).collect();
    give_tags(&mut state);
    assert!(state.snapshots.values().map(|snapshot| snapshot.tag).eq(before.iter().copied()));
    // The newest stands for a lost one, under a tag that a record gives to the first.
    let stand_in = state.snapshots.values_mut().next_back().unwrap();
    (stand_in.tag, stand_in.created_sequence) = (tag, 0);
    let id = stand_in.id;
    give_tags(&mut state);
    assert_eq!(state.snapshots.values().next().unwrap().tag, tag);
    assert!(!before.contains(&state.snapshots[&id].tag));
    // One that has no record either, but came first.
    state.snapshots.values_mut().for_each(|snapshot| (snapshot.tag, snapshot.created_sequence) = (7, 0));
    give_tags(&mut state);
    let tags: HashSet<u32> = state.snapshots.values().map(|snapshot| snapshot.tag).collect();
    assert_eq!(tags.len(), state.snapshots.len());
}
