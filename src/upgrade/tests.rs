//! Stores of 2008 built from models, upgraded, and compared with what the models mean.

use super::{CopyOptions, Outcome, Plan, copy, plan, store_options};
use crate::block::memory::Memory;
use crate::block::record::{DeviceId, Log, Recorder, Replay};
use crate::block::{ReadAt, WriteAt};
use crate::error::{Kind, Result};
use crate::format::legacy::superblock::Release;
use crate::legacy::tests::build::{Built, Shape};
use crate::legacy::tests::model::{Model, Random, image};
use crate::legacy::{Devices, Store};
use crate::point::volume::Volume;
use crate::point::{PointId, PointSource};
use crate::progress::Silent;
use crate::store::fsck::{CheckOptions, RebuildOptions, check, rebuild};
use crate::store::{View, Writer, is_unfinished, size_for};
use crate::units::{Epoch, index};
use std::sync::Arc;

pub(super) const OPTIONS: CopyOptions =
    CopyOptions { accept_lost: false, verify: true, now_secs: 1_700_000_000 };

pub(super) fn shape(bits: u32) -> Shape {
    Shape { block_bits: bits, chunk_bits: bits, ..Shape::COMBINED }
}

/// A device that is sure to hold what `store` preserves.
fn device_for(old: &Store, plan: &Plan) -> Memory {
    Memory::new(size_for(&store_options(old, 4096, "/origin".into()), plan.room, None).unwrap())
}

fn upgrade(old: &Store, device: Arc<dyn WriteAt>, options: CopyOptions) -> Result<Outcome> {
    let plan = plan(old, &Silent)?;
    copy(old, device, (&store_options(old, 4096, "/origin".into()), plan.bytes), options, &Silent)
}

/// Upgrades into a store of just the size that is needed, and `spare` bytes.
fn upgraded(built: &Built, spare: u64) -> (Arc<Memory>, Outcome) {
    let store = built.open().unwrap();
    let needed = device_for(&store, &plan(&store, &Silent).unwrap()).size();
    let device = Arc::new(Memory::new(needed + spare));
    let outcome = upgrade(&store, Arc::<Memory>::clone(&device), OPTIONS).unwrap();
    assert!(outcome.finished && outcome.losses.is_empty());
    (device, outcome)
}

/// What is lost costs by the range, not by the chunk.
#[test]
fn snapshots_said_to_be_far_larger_than_the_origin_are_planned_at_once() {
    for bits in [9, 12, 16] {
        let mut built = Built::new(shape(bits), &Random(3).model(40, 60));
        let before = plan(&built.open().unwrap(), &Silent).unwrap();
        let each = |store: &Store| -> u64 {
            let units = super::units::Units::new(store).unwrap();
            units.filter(|want| want.pieces.is_empty()).count() as u64
        };
        // One that is not squashed.
        let entries = (0..).map(|at| 4096 + 56 + 24 * at);
        let entry = entries.into_iter().find(|at| built.metadata[at + 10] < 64).unwrap() + 16;
        for sectors in [1u64 << 17, (1 << 17) + 5] {
            built.metadata[entry..entry + 8].copy_from_slice(&sectors.to_le_bytes());
            let store = built.open().unwrap();
            let plan = plan(&store, &Silent).unwrap();
            assert_eq!((plan.room.marks, plan.bytes >= before.bytes), (each(&store), true), "{bits}");
            let bytes: u64 = plan.losses.iter().map(|loss| loss.bytes).sum();
            assert!(bytes < sectors * 512 && bytes > sectors * 512 - (128 << 16), "{bits}: {bytes}");
        }
        built.metadata[entry..entry + 8].copy_from_slice(&(1u64 << (23 + bits)).to_le_bytes());
        let huge = plan(&built.open().unwrap(), &Silent).unwrap();
        assert!(huge.room.marks > 1 << 28, "{}", huge.room.marks);
    }
}

fn view(device: &Arc<Memory>, origin: &[u8]) -> Result<View> {
    View::open(Arc::<Memory>::clone(device), Some(Arc::new(Memory::from_bytes(origin))))
}

/// Each usable snapshot: its id and its bytes.
pub(super) fn images(model: &Model, bits: u32) -> Vec<(PointId, Vec<u8>)> {
    let numbered = (1..).map(|id| PointId::Snapshot(Epoch(id))).zip(&model.snapshots);
    let live = numbered.filter_map(|(id, held)| {
        Some((id, image(&held.versions.as_ref()?[..index(held.chunks)], 1 << bits)))
    });
    live.collect()
}

pub(super) fn read(source: &dyn PointSource, point: PointId, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    source.read(point, 0, &mut bytes).unwrap();
    bytes
}

pub(super) fn assert_images(source: &dyn PointSource, expected: &[(PointId, Vec<u8>)], what: &str) {
    for (point, bytes) in expected {
        assert!(read(source, *point, bytes.len()) == *bytes, "{what}: {point:?}");
    }
}

pub(super) fn assert_table(view: &View, built: &Built) {
    let store = built.open().unwrap();
    let (old, new) = (store.snapshots(), view.snapshots());
    assert_eq!(old.len(), new.len());
    for (old, new) in old.iter().zip(&new) {
        assert_eq!(
            (old.id, old.tag, old.size_bytes, old.created_secs),
            (new.id, new.tag, new.size_bytes, new.created_secs)
        );
        assert_eq!(
            (old.priority, old.use_count, old.state, old.tainted),
            (new.priority, new.use_count, new.state, new.tainted)
        );
    }
    let (old, new) = (store.info(), view.info());
    assert_eq!(
        (old.origin_size, old.created_secs, old.full_policy),
        (new.origin_size, new.created_secs, new.full_policy)
    );
}

/// Changes of the new store are those of the old one, in its own chunks.
pub(super) fn assert_changes(built: &Built, view: &View, model: &Model, what: &str) {
    let store = built.open().unwrap();
    let points: Vec<PointId> = view.points().iter().map(|point| point.id).collect();
    let ratio = view.chunk_bits() - built.shape.chunk_bits;
    for (from, to) in points.iter().flat_map(|from| points.iter().map(move |to| (*from, *to))) {
        // A point does not differ from itself; the store names what was written on it all the same.
        if from == to {
            continue;
        }
        let all = |source: &dyn PointSource| -> Vec<u64> {
            let ranges = source.changed(Some(from), to).unwrap().map(Result::unwrap);
            ranges.flat_map(|range| range.start..range.end).collect()
        };
        let mut wanted: Vec<u64> = all(&store).iter().map(|chunk| chunk >> ratio).collect();
        wanted.dedup();
        let mut found = all(view);
        // What is behind the end of the smaller one, in the same chunk of today, has no chunk of its own.
        let size = |point| {
            let found = view.points().into_iter().find(|found| found.id == point);
            found.map_or(0, |point| point.size_bytes)
        };
        let end = size(from).min(size(to));
        if size(from) != size(to) && !end.is_multiple_of(1 << view.chunk_bits()) {
            found.retain(|chunk| *chunk != end >> view.chunk_bits());
            wanted.retain(|chunk| *chunk != end >> view.chunk_bits());
        }
        assert_eq!(found, wanted, "{what}: {from:?} to {to:?} of {} snapshots", model.snapshots.len());
    }
}

/// Whatever is written to the origin and to snapshots from now on, the others keep their bytes.
fn assert_goes_on(device: &Arc<Memory>, built: &Built, model: &Model, random: &mut Random, what: &str) {
    let origin: Arc<Memory> = Arc::new(Memory::from_bytes(&built.origin));
    let store = Arc::new(device.snapshot());
    let mut writer =
        Writer::open(store, Some(Arc::<Memory>::clone(&origin) as Arc<dyn WriteAt>), 1_700_000_001).unwrap();
    let mut expected = images(model, built.shape.chunk_bits);
    for round in 0..30u8 {
        let at = random.below(built.origin.len()) as u64;
        let length = (1 + random.below(9000)).min(built.origin.len() - index(at));
        let data = vec![round | 1; length];
        let usable: Vec<usize> =
            (0..expected.len()).filter(|number| expected[*number].1.len() >= length).collect();
        if round % 5 == 4 && !usable.is_empty() {
            let (PointId::Snapshot(id), bytes) = &mut expected[usable[random.below(usable.len())]] else {
                return;
            };
            let at = random.below(bytes.len() - length + 1);
            bytes[at..at + length].copy_from_slice(&data);
            writer.write_snapshot(*id, at as u64, &data).unwrap();
        } else {
            writer.write_origin(at, &data).unwrap();
        }
        assert_images(writer.view(), &expected, &format!("{what}, write {round}"));
    }
}

/// Something of everything.
pub(super) fn sample() -> Model {
    let mut model = Model::new(40);
    model.create(7);
    model.write_origin(0);
    model.write_origin(39);
    model.create(3);
    model.write_snapshot(0, 5);
    for chunk in [0, 1, 17, 30] {
        model.write_origin(chunk);
    }
    model.write_snapshot(1, 17);
    model.write_snapshot(1, 8);
    model.create(4_294_967_294);
    model
}

pub(super) fn shapes() -> Vec<Shape> {
    let odd = Shape { block_bits: 12, chunk_bits: 10, ..Shape::SEPARATE };
    let large = Shape { block_bits: 12, chunk_bits: 14, ..Shape::SEPARATE };
    let old = Shape { release: Release::R04, ..shape(12) };
    vec![shape(9), shape(11), shape(12), shape(13), odd, large, old]
}

#[test]
fn every_layout_is_upgraded() {
    for shape in shapes() {
        for model in [sample(), Model::new(24)] {
            let built = Built::new(shape, &model);
            let (device, outcome) = upgraded(&built, 0);
            let view = view(&device, &built.origin).unwrap();
            assert_images(&view, &images(&model, shape.chunk_bits), &format!("{shape:?}"));
            assert_table(&view, &built);
            assert_changes(&built, &view, &model, &format!("{shape:?}"));
            if shape.chunk_bits >= 12 {
                // What several snapshots share is there once.
                let exceptions: usize =
                    (0..model.origin.len()).map(|chunk| model.exceptions(chunk).len()).sum();
                assert_eq!(outcome.chunks, exceptions as u64);
                let rows: Vec<_> = view.sharing().unwrap().into_iter().map(|row| row.shared_by).collect();
                assert_eq!(rows, model.sharing());
            }
        }
    }
}

#[test]
fn random_histories_are_upgraded_and_go_on() {
    let shapes = shapes();
    for seed in 0..80u64 {
        let mut random = Random(seed);
        let shape = Shape { seed, ..shapes[random.below(shapes.len())] };
        let mut model = random.model(24, 20 + index(seed) * 2);
        if shape.release == Release::R04 {
            let chunks = model.origin.len() as u64;
            model.snapshots.iter_mut().for_each(|snapshot| snapshot.chunks = chunks);
        }
        let what = format!("seed {seed}, {shape:?}");
        let built = Built::new(shape, &model);
        let (device, _) = upgraded(&built, 16 << 20);
        let view = view(&device, &built.origin).unwrap();
        assert_images(&view, &images(&model, shape.chunk_bits), &what);
        assert_table(&view, &built);
        assert_changes(&built, &view, &model, &what);
        assert_eq!(view.change_bits_against_exceptions().unwrap(), [], "{what}");
        let report =
            check(&(device.clone() as Arc<dyn ReadAt>), None, CheckOptions { data: true }, &Silent).unwrap();
        assert!(report.findings.is_empty(), "{what}: {:?}", report.findings);
        assert_goes_on(&device, &built, &model, &mut random, &what);
    }
}

/// A store is as large as is said to be needed, and not much larger, when it is filled.
#[test]
fn the_size_that_is_asked_for_is_enough() {
    for (bits, chunks) in [(9, 3000), (12, 2000), (14, 700), (16, 200)] {
        let mut model = Model::new(chunks);
        for tag in 0..3 {
            model.create(tag);
            (0..index(chunks))
                .filter(|chunk| chunk % 5 != tag as usize)
                .for_each(|chunk| model.write_origin(chunk));
        }
        let shape =
            Shape { block_bits: 12, leaf_max: 60, node_max: 200, chunk_bits: bits, ..Shape::SEPARATE };
        let built = Built::new(shape, &model);
        let (device, outcome) = upgraded(&built, 0);
        assert!(device.size() < outcome.bytes * 3 / 2 + (8 << 20), "{} for {}", device.size(), outcome.bytes);
        assert_images(&view(&device, &built.origin).unwrap(), &images(&model, bits), &format!("{bits}"));
    }
}

#[test]
fn a_crash_leaves_no_store_or_all_of_it() {
    let model = sample();
    let built = Built::new(shape(12), &model);
    let store = built.open().unwrap();
    let log = Log::new();
    let plan = plan(&store, &Silent).unwrap();
    let initial = device_for(&store, &plan);
    // Something was there before.
    initial.write_at(&[0xa7; 100_000], 50_000).unwrap();
    let recorder = Arc::new(Recorder::new(initial.snapshot(), &log, DeviceId(0)));
    upgrade(&store, recorder, OPTIONS).unwrap();
    let expected = images(&model, 12);
    let mut replay = Replay::new(&initial, DeviceId(0));
    let (mut whole, mut unfinished, mut revived) = (0, 0, 0);
    for (number, event) in log.events().iter().enumerate() {
        replay.step(event);
        for crash in replay.images(number as u64, 4) {
            let what = format!("after event {number}, {}", crash.label);
            let device = Arc::new(crash.content);
            if let Ok(view) = view(&device, &built.origin) {
                assert_images(&view, &expected, &what);
                assert_table(&view, &built);
                whole += 1;
                continue;
            }
            let is_marked = is_unfinished(device.as_ref()).unwrap();
            unfinished += usize::from(is_marked);
            // Records are never there before the mark.
            let has_records =
                device.to_vec().unwrap().chunks(4096).any(|block| block.starts_with(b"ddsnapRC"));
            assert!(is_marked || !has_records, "{what}");
            revived += usize::from(revive(&device.snapshot(), &built.origin, &expected, &what));
            // What is left is no obstacle.
            upgrade(&store, Arc::<Memory>::clone(&device), OPTIONS).unwrap();
            assert_images(&view(&device, &built.origin).unwrap(), &expected, &what);
        }
    }
    assert!(whole >= 2 && unfinished > 20 && revived > 0, "{whole} {unfinished} {revived}");
}

/// Half of an upgrade that is made a store by force is not trusted, and what is trusted is all of it.
fn revive(device: &Memory, origin: &[u8], expected: &[(PointId, Vec<u8>)], what: &str) -> bool {
    let device: Arc<dyn WriteAt> = Arc::new(device.snapshot());
    let options = RebuildOptions { now_secs: 1, give_up: true, shorter: false, origin: None, uuid: None };
    if rebuild(&device, &options, &Silent).is_err() {
        return false;
    }
    let reader: Arc<dyn ReadAt> = device;
    let origin: Arc<dyn ReadAt> = Arc::new(Memory::from_bytes(origin));
    let Ok(view) = View::open(reader, Some(origin)) else { return false };
    let snapshots = view.snapshots();
    // Once its log was closed all of it is there.
    if snapshots.iter().any(|snapshot| !snapshot.tainted) {
        assert_eq!(snapshots.len(), expected.len(), "{what}");
        assert_images(&view, expected, what);
    }
    true
}

/// Whatever the tree has lost reads as an error, all else as before.
#[test]
fn damage_is_carried_over_as_damage() {
    let mut lost = 0;
    for seed in 0..150u64 {
        let mut random = Random(seed);
        let shape = Shape { seed, leaf_max: 3, node_max: 3, ..shape(12) };
        let model = random.model(30, 60);
        let mut built = Built::new(shape, &model);
        let sectors: Vec<u64> = built.levels.iter().flatten().copied().collect();
        let sector = sectors[random.below(sectors.len())];
        // Nearly all of a block is unused.
        let at = if random.below(2) == 0 { random.below(64) } else { 4096 - 1 - random.below(100) };
        built.metadata[index(sector) * 512 + at] ^= 1 << random.below(8);
        let expected = images(&model, 12);
        let Ok(store) = built.open() else { continue };
        let planned = plan(&store, &Silent).unwrap();
        let device = Arc::new(Memory::new(64 << 20));
        let refused = upgrade(&store, Arc::<Memory>::clone(&device), OPTIONS).unwrap();
        let sound = refused.losses.is_empty() && store.doubts().next().is_none();
        assert_eq!(refused.finished, sound, "seed {seed}");
        assert_eq!(planned.losses.is_empty(), refused.losses.is_empty(), "seed {seed}");
        if refused.finished {
            assert_same_reads(&store, &view(&device, &built.origin).unwrap(), &expected, seed);
            continue;
        }
        assert!(view(&device, &built.origin).is_err());
        lost += 1;
        let accepted = CopyOptions { accept_lost: true, ..OPTIONS };
        assert!(upgrade(&store, Arc::<Memory>::clone(&device), accepted).unwrap().finished);
        assert_same_reads(&store, &view(&device, &built.origin).unwrap(), &expected, seed);
    }
    assert!(lost > 20, "{lost}");
}

/// Chunk by chunk both stores give the same bytes. The old one may fail beside damage: then the new one has lost the
/// chunk, or knows what it was.
fn assert_same_reads(old: &Store, new: &View, expected: &[(PointId, Vec<u8>)], seed: u64) {
    for (point, bytes) in expected {
        for (number, chunk) in bytes.chunks(4096).enumerate() {
            let (mut was, mut is) = (vec![0; 4096], vec![0; 4096]);
            let offset = number as u64 * 4096;
            let (before, after) = (old.read(*point, offset, &mut was), new.read(*point, offset, &mut is));
            let what = format!("seed {seed}: {point:?} at {offset}: {before:?} {after:?}");
            match (before, after) {
                (Ok(()), Ok(())) => assert!(was == is, "{what}"),
                (Err(_), Ok(())) => assert!(is == chunk, "{what}"),
                // Which chunks a damaged key hid from the old one it cannot know.
                (_, Err(error)) => assert_eq!(error.kind(), Kind::Damaged, "{what}"),
            }
        }
    }
}

/// What a check finds and reading does not: two versions of one chunk, a root that is none.
#[test]
fn what_cannot_be_believed_is_not_carried_over() {
    let model = sample();
    let mut built = Built::new(shape(12), &model);
    let (chunk, place) =
        (0, |built: &Built| built.places.iter().map(|(key, at)| (*key, *at)).collect::<Vec<_>>());
    let places = place(&built);
    let first = places.iter().find(|((of, _), _)| *of == chunk).unwrap().1;
    let other = places.iter().find(|((of, _), _)| *of != chunk).unwrap().1;
    for leaf in built.levels[0].clone() {
        let mut block = built.get(leaf);
        for at in (0..block.len()).step_by(16) {
            if block[at + 8..at + 16] == other.to_le_bytes() {
                block[at + 8..at + 16].copy_from_slice(&first.to_le_bytes());
            }
        }
        built.put(leaf, &block);
    }
    let store = built.open().unwrap();
    // The other place is in use for nothing, too.
    assert_eq!(store.doubts().count(), 2);
    let device = Arc::new(Memory::new(64 << 20));
    assert!(!upgrade(&store, Arc::<Memory>::clone(&device), OPTIONS).unwrap().finished);
    let accepted = CopyOptions { accept_lost: true, ..OPTIONS };
    let outcome = upgrade(&store, Arc::<Memory>::clone(&device), accepted).unwrap();
    assert!(outcome.finished && !outcome.losses.is_empty());
    let view = view(&device, &built.origin).unwrap();
    for affected in &store.doubts().next().unwrap().affected {
        for range in &affected.ranges {
            let error = view.read(PointId::Snapshot(affected.id), range.start, &mut [0; 512]).unwrap_err();
            assert_eq!(error.kind(), Kind::Damaged);
        }
    }
}

#[test]
fn a_bad_place_costs_only_the_chunk_on_it() {
    let model = sample();
    for shape in [shape(12), Shape::SEPARATE] {
        let built = Built::new(shape, &model);
        let devices = built.devices();
        let bits = shape.chunk_bits;
        // One chunk that all older snapshots have, in a place that cannot be read.
        let (_, place) = built.places.iter().next().unwrap();
        let bad = BadPlace { inner: Arc::clone(&devices.store), range: place << bits..(place + 1) << bits };
        let store = Store::open(Devices { store: Arc::new(bad), ..devices }, None, &Silent).unwrap();
        let device = Arc::new(Memory::new(64 << 20));
        assert!(plan(&store, &Silent).unwrap().losses.is_empty());
        let refused = upgrade(&store, Arc::<Memory>::clone(&device), OPTIONS).unwrap();
        assert!(!refused.finished && !refused.losses.is_empty());
        assert!(view(&device, &built.origin).is_err());
        let accepted = CopyOptions { accept_lost: true, ..OPTIONS };
        let outcome = upgrade(&store, Arc::<Memory>::clone(&device), accepted).unwrap();
        let ranges: Vec<_> = outcome.losses.iter().flat_map(|loss| loss.affected.ranges.clone()).collect();
        assert!(ranges.iter().all(|range| range.end - range.start == 4096), "{ranges:?}");
        let view = view(&device, &built.origin).unwrap();
        for loss in outcome.losses.iter() {
            let point = PointId::Snapshot(loss.affected.id);
            let error = view.read(point, loss.affected.ranges[0].start, &mut [0; 512]).unwrap_err();
            assert_eq!(error.kind(), Kind::Damaged);
        }
    }
}

/// Fails where `range` is read.
struct BadPlace {
    inner: Arc<dyn ReadAt>,
    range: std::ops::Range<u64>,
}

impl ReadAt for BadPlace {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn path(&self) -> &std::path::Path {
        self.inner.path()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        if offset < self.range.end && self.range.start < offset + buf.len() as u64 {
            return Err(crate::error::Error::new(Kind::Io, "bad place"));
        }
        self.inner.read_at(buf, offset)
    }
}

/// What lies beyond the end of an origin that became smaller is preserved while the device still has it, and lost
/// with it.
#[test]
fn a_tail_that_the_origin_gave_up_is_kept_or_lost() {
    for bits in [9, 12] {
        let mut model = Model::new(64);
        model.create(1);
        model.write_origin(60);
        model.create(2);
        model.write_origin(3);
        let mut built = Built::new(shape(bits), &model);
        built.sb.origin_sectors.set(33 << (bits - 9));
        built.seal();
        let expected = images(&model, bits);
        let (device, _) = upgraded(&built, 0);
        let view = view(&device, &built.origin).unwrap();
        assert_images(&view, &expected, "tail");
        // The new store does not need it any more.
        let cut = &built.origin[..33 << bits];
        assert_images(&self::view(&device, cut).unwrap(), &expected, "tail cut off");
        built.origin.truncate(40 << bits);
        let store = built.open().unwrap();
        assert_eq!(plan(&store, &Silent).unwrap().losses.iter().count(), 2);
        let device = Arc::new(Memory::new(64 << 20));
        let accepted = CopyOptions { accept_lost: true, ..OPTIONS };
        assert!(upgrade(&store, Arc::<Memory>::clone(&device), accepted).unwrap().finished);
        let view = self::view(&device, &built.origin).unwrap();
        let mut bytes = vec![0; 40 << bits];
        for (point, whole) in &expected {
            view.read(*point, 0, &mut bytes).unwrap();
            assert!(bytes == whole[..bytes.len()]);
            assert_eq!(view.read(*point, 48 << bits, &mut [0; 512]).unwrap_err().kind(), Kind::Damaged);
        }
    }
}
