//! Stores of 2008 built from models and read back; then damaged in every way that is cheap to think of.

pub(crate) mod build;
mod crash;
mod hostile;
pub(crate) mod model;
mod ring;

use super::Store;
use crate::error::Kind;
use crate::format::legacy::superblock::Release;
use crate::point::volume::{SnapshotState, Volume};
use crate::point::{PointId, PointSource};
use crate::progress::Silent;
use crate::units::{Epoch, index};
use build::{Built, Shape};
use model::{Model, Random, image};

fn chunks_of(changes: crate::point::Changes<'_>) -> Vec<u64> {
    changes.map(Result::unwrap).flat_map(|range| range.start..range.end).collect()
}

/// Each point that has data: id, versions, size in chunks.
fn points(model: &Model) -> Vec<(PointId, Vec<u64>, u64)> {
    let numbered = (1..).map(Epoch).zip(&model.snapshots);
    let live = numbered.filter_map(|(id, snapshot)| {
        let versions = snapshot.versions.clone()?;
        Some((PointId::Snapshot(id), versions, snapshot.chunks))
    });
    let origin = (PointId::Origin, model.origin.clone(), model.origin.len() as u64);
    live.chain([origin]).collect()
}

/// Asserts that `built` says of itself, and reads as, what the model means.
fn check(built: &Built, model: &Model) {
    check_store(&built.open().unwrap(), built.shape, model);
}

fn check_store(store: &Store, shape: Shape, model: &Model) {
    assert_eq!(store.chunk_bits(), shape.chunk_bits);
    let infos = store.snapshots();
    assert_eq!(infos.len(), model.snapshots.len());
    for (info, held) in infos.iter().zip(&model.snapshots) {
        assert_eq!((info.tag.0, info.size_bytes), (held.tag, held.chunks << shape.chunk_bits));
        assert_eq!((info.priority, info.use_count, info.tainted), (-5, 3, false));
        assert_eq!(info.created_secs, 1_200_000_000 + i64::from(held.tag % 1000));
        assert_eq!(info.state == SnapshotState::Squashed, held.bit == 64);
        if held.bit == 64 {
            let refused = store.read(PointId::Snapshot(info.id), 0, &mut [0]).unwrap_err();
            assert_eq!(refused.kind(), Kind::NotFound);
        }
    }
    let rows: Vec<_> = store.sharing().unwrap().into_iter().map(|row| row.shared_by).collect();
    assert_eq!(rows, model.sharing());
    let legacy = store.info().legacy.unwrap();
    assert_eq!((legacy.release, legacy.notices), (shape.release.name(), Vec::new()));
    let points = points(model);
    assert_eq!(store.points().len(), points.len());
    check_images(store, shape, &points);
    check_changes(store, &points);
}

fn check_images(store: &Store, shape: Shape, points: &[(PointId, Vec<u64>, u64)]) {
    let mut random = Random(7);
    for (point, versions, chunks) in points {
        let expected = image(&versions[..index(*chunks)], 1 << shape.chunk_bits);
        let mut found = vec![0; expected.len()];
        store.read(*point, 0, &mut found).unwrap();
        assert!(found == expected, "{point:?} of {shape:?}");
        for _ in 0..4 {
            let from = random.below(expected.len());
            let to = from + random.below(expected.len() - from);
            store.read(*point, from as u64, &mut found[from..to]).unwrap();
            assert!(found[from..to] == expected[from..to], "{point:?} of {shape:?}: {from}..{to}");
        }
        let past = store.read(*point, expected.len() as u64, &mut [0]).unwrap_err();
        assert_eq!(past.kind(), Kind::Usage);
    }
}

fn check_changes(store: &Store, points: &[(PointId, Vec<u64>, u64)]) {
    for (from, old, old_chunks) in points {
        for (to, new, chunks) in points {
            let differs = |chunk: &u64| old[index(*chunk)] != new[index(*chunk)];
            let listed: Vec<u64> = (0..*chunks).filter(differs).collect();
            assert_eq!(chunks_of(store.listed(Some(*from), *to).unwrap()), listed, "{from:?} {to:?}");
            let or_beyond = |chunk: &u64| differs(chunk) || chunk >= old_chunks;
            let changed: Vec<u64> = (0..*chunks).filter(or_beyond).collect();
            assert_eq!(chunks_of(store.changed(Some(*from), *to).unwrap()), changed, "{from:?} {to:?}");
        }
        let all: Vec<u64> = (0..points.iter().find(|point| point.0 == *from).unwrap().2).collect();
        assert_eq!(chunks_of(store.changed(None, *from).unwrap()), all);
    }
}

/// Something of everything, small enough to tell by hand.
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
    model.create(4_294_967_294);
    model
}

pub(super) fn shapes() -> Vec<Shape> {
    let combined = [Shape::COMBINED, Shape { seed: 0, leaf_max: 1, ..Shape::COMBINED }];
    let deep = Shape { leaf_max: 1, node_max: 2, seed: 5, ..Shape::COMBINED };
    let large = Shape { block_bits: 12, chunk_bits: 12, leaf_max: 169, ..Shape::COMBINED };
    let old = Shape { release: Release::R04, ..Shape::COMBINED };
    let old_separate = Shape { release: Release::R04, ..Shape::SEPARATE };
    let blocks = Shape { block_bits: 9, chunk_bits: 13, leaf_max: 2, node_max: 3, ..Shape::SEPARATE };
    let huge = Shape { block_bits: 16, chunk_bits: 9, journal: 8, ..Shape::SEPARATE };
    [&combined[..], &[deep, large, old, old_separate, blocks, huge, Shape::SEPARATE]].concat()
}

#[test]
fn every_layout_reads_as_its_model() {
    for shape in shapes() {
        check(&Built::new(shape, &sample()), &sample());
        check(&Built::new(shape, &Model::new(3)), &Model::new(3));
    }
}

/// The first preserved chunk of a separate store lies at chunk 0, where the original did not look for it.
#[test]
fn chunk_0_of_a_data_device_is_read_as_any_other() {
    let built = Built::new(Shape::SEPARATE, &sample());
    let at_0: Vec<_> = built.places.iter().filter(|(_, at)| **at == 0).collect();
    assert_eq!(at_0.len(), 1);
    check(&built, &sample());
}

#[test]
fn a_squashed_snapshot_is_listed_and_not_read() {
    let mut model = sample();
    model.squash(1);
    model.write_origin(30);
    check(&Built::new(Shape::COMBINED, &model), &model);
}

#[test]
fn snapshots_are_smaller_than_an_origin_that_grew() {
    let mut model = sample();
    model.grow(9);
    model.write_origin(44);
    model.create(9);
    model.write_origin(2);
    check(&Built::new(Shape::SEPARATE, &model), &model);
}

#[test]
fn all_64_snapshots_can_share_a_chunk_or_each_have_their_own() {
    let mut model = Model::new(6);
    for tag in 0..64 {
        model.create(tag);
        if tag % 2 == 0 {
            model.write_origin(1);
        }
    }
    for at in 0..64 {
        model.write_snapshot(at, 2);
    }
    model.write_origin(4);
    model.write_origin(1);
    assert!(model.exceptions(4) == [(u64::MAX, 4 + 1)] && model.exceptions(2).len() == 64);
    let shape = Shape { block_bits: 12, chunk_bits: 12, ..Shape::COMBINED };
    check(&Built::new(shape, &model), &model);
}

/// Thirty exceptions of a chunk do not fit a leaf of 512 bytes: the original put the last into a second leaf for the
/// same chunks, as if it belonged to all snapshots, and forgot the first.
#[test]
fn the_leaf_that_an_overfull_chunk_made_unreachable_is_read() {
    let mut model = Model::new(12);
    for tag in 0..30 {
        model.create(tag);
        model.write_origin(6);
        if tag % 9 == 0 {
            model.write_origin(2);
            model.write_origin(9);
        }
    }
    let all = (1 << 30) - 1;
    let built = Built::with_leaves(Shape::COMBINED, &model, |entries| {
        let mut leaves = Vec::new();
        for (chunk, mut list) in entries {
            let newest = list[0].1;
            let rest = if list.len() == 30 { list.split_off(1) } else { std::mem::take(&mut list) };
            leaves.push((u64::from(chunk), vec![(chunk, rest)]));
            if !list.is_empty() {
                leaves.push((0, vec![(chunk, vec![(all, newest)])]));
            }
        }
        leaves
    });
    assert_eq!(built.levels[0].len(), 4);
    check(&built, &model);
}

#[test]
fn random_histories_read_as_their_models() {
    let shapes = shapes();
    for seed in 0..60u64 {
        let mut random = Random(seed);
        let shape = Shape { seed, ..shapes[random.below(shapes.len())] };
        let mut model = random.model(24, 20 + usize::try_from(seed).unwrap() * 3);
        // Leaves of 512 bytes hold 29 exceptions of a chunk, and release 0.4 knew no sizes of snapshots.
        let most = (0..model.origin.len()).map(|chunk| model.exceptions(chunk).len()).max().unwrap();
        if shape.release == Release::R04 {
            let chunks = model.origin.len() as u64;
            model.snapshots.iter_mut().for_each(|snapshot| snapshot.chunks = chunks);
        }
        assert!(most <= 29, "seed {seed}");
        check(&Built::new(shape, &model), &model);
    }
}

/// What the superblock says wrongly, it is taken to task for by name.
#[test]
fn a_layout_that_was_named_is_the_only_one_tried() {
    let built = Built::new(Shape::COMBINED, &sample());
    let error = Store::open(built.devices(), Some(Release::R04), &Silent).err().unwrap();
    assert_eq!(error.kind(), Kind::Damaged);
    assert!(error.to_string().contains("as release 0.4: log2 of the metadata block size is 0"), "{error}");
    assert!(Store::open(built.devices(), Some(Release::R10), &Silent).is_ok());
}

#[test]
fn devices_that_do_not_belong_together_are_refused() {
    let (combined, separate) =
        (Built::new(Shape::COMBINED, &sample()), Built::new(Shape::SEPARATE, &sample()));
    let mut devices = separate.devices();
    devices.store = devices.metadata.take().unwrap();
    assert_eq!(Store::open(devices, None, &Silent).err().unwrap().kind(), Kind::Mismatch);
    let mut devices = combined.devices();
    devices.metadata = Some(std::sync::Arc::clone(&devices.store));
    assert_eq!(Store::open(devices, None, &Silent).err().unwrap().kind(), Kind::Mismatch);
    let mut short = separate;
    short.data.truncate(short.data.len() - 1);
    assert_eq!(short.open().err().unwrap().kind(), Kind::Mismatch);
}

/// The seeds of the fuzz target: how to open it, then the metadata device from the superblock on. `UPDATE_CORPUS=1`
/// writes them afresh.
#[test]
fn the_seeds_of_the_fuzz_target_are_stores() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/corpus/legacy");
    let small = Shape { leaf_max: 2, journal: 12, ..Shape::COMBINED };
    let separate = Shape { block_bits: 9, chunk_bits: 9, ..Shape::SEPARATE };
    let mut seeds = vec![Built::new(small, &sample()), Built::new(Shape { node_max: 2, ..small }, &sample())];
    seeds.push(Built::new(Shape { journal: 12, release: Release::R04, ..separate }, &sample()));
    for built in &mut seeds[1..] {
        let lost = built.lose(&[built.root(), built.levels[0][0]]);
        built.journal(10, u32::MAX, &[lost]);
        built.crash();
    }
    for (number, built) in seeds.iter().enumerate() {
        let path = folder.join(format!("seed-{number}"));
        let bytes = [&[u8::from(built.shape.separate)], &built.metadata[4096..]].concat();
        if option_env!("UPDATE_CORPUS").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        assert!(std::fs::read(&path).unwrap() == bytes, "seed-{number} is not what it would be now");
        check(built, &sample());
    }
}
