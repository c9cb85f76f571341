//! Devices that fail, bytes that flip, and sizes at the far end.

use crate::model::{Random, World, depth, options, read_all, seeds};
use ddsnap::block::faulty::{Faulty, Operation};
use ddsnap::block::memory::Memory;
use ddsnap::block::{ReadAt, WriteAt};
use ddsnap::error::Kind;
use ddsnap::point::{PointId, PointSource};
use ddsnap::progress::Silent;
use ddsnap::store::{View, Writer};
use ddsnap::units::{Epoch, Tag, index};
use std::sync::Arc;

/// A busy store, closed, with its origin and the model of both.
fn sample(seed: u64, store_size: u64) -> (Memory, Memory, crate::model::Model) {
    let mut random = Random(seed);
    let origin = Arc::new(Memory::from_bytes(&random.bytes((200 << 10) + 777)));
    let store = Arc::new(Memory::new(store_size));
    let mut world = World::new(store.clone(), origin.clone(), 4096, seed);
    world.tight = true;
    for _ in 0..40 {
        world.step();
    }
    if world.model.pending.is_some() {
        world.roll_back();
    }
    world.writer.take().expect("open").close().expect("close");
    (store.snapshot(), origin.snapshot(), world.model)
}

/// A few calls of every sort; the first error ends them. Says whether there was one.
fn calls(
    store: &Arc<dyn WriteAt>,
    origin: &Arc<dyn WriteAt>,
    live: &[u64],
) -> Result<(), ddsnap::error::Error> {
    let mut writer = Writer::open(Arc::clone(store), Some(Arc::clone(origin)), 3)?;
    let mut random = Random(9);
    for round in 0..3 {
        writer.resize_origin(200_000 - 10_000 * u64::from(round), &Silent)?;
        writer.write_origin(random.below(90_000), &random.bytes(90_000))?;
        writer.create_snapshot(Tag(1000 + round), None)?;
        writer.write_origin(random.below(90_000), &random.bytes(60_000))?;
        let mut buf = vec![0; 40_000];
        for id in live {
            writer.view().read(PointId::Snapshot(Epoch(*id)), 0, &mut buf)?;
        }
        writer.revert(Epoch(live[round as usize % live.len()]), &Silent)?;
    }
    writer.close()
}

#[test]
fn a_device_that_fails_once_costs_an_error_and_no_snapshot() {
    let (store, origin, model) = sample(3, 16 << 20);
    let live = model.readable();
    let mut failures = 0;
    for operation in [Operation::Read, Operation::Write, Operation::Flush, Operation::SetSize] {
        for on_store in [true, false] {
            for nth in 1..120 {
                let devices =
                    [Arc::new(Faulty::new(store.snapshot())), Arc::new(Faulty::new(origin.snapshot()))];
                devices[usize::from(!on_store)].fail_nth(operation, nth, Kind::Io);
                let outcome = calls(&(devices[0].clone() as _), &(devices[1].clone() as _), &live);
                // A superblock or checkpoint that cannot be read has a second copy; late ones are never asked for.
                let Err(error) = outcome else { continue };
                assert_eq!(error.kind(), Kind::Io, "{operation:?} {nth}: {error}");
                failures += 1;
                let what = format!("{operation:?} {nth} on the store: {on_store}");
                let now: Arc<dyn ReadAt> = Arc::new(devices[1].inner().snapshot());
                let view = View::open(Arc::new(devices[0].inner().snapshot()), Some(now)).expect(&what);
                for id in &live {
                    let expected = &model.snaps[id].bytes;
                    let point = PointId::Snapshot(Epoch(*id));
                    let found = read_all(&view, point, expected.len(), &mut Random(nth)).expect(&what);
                    crate::model::assert_same(&found, expected, &format!("{what}: snapshot {id}"));
                }
            }
        }
    }
    assert!(failures > 50, "only {failures} failures were met");
}

#[test]
fn after_a_failed_call_the_writer_still_reads_no_wrong_byte() {
    let (store, origin, model) = sample(5, 5 << 19);
    for nth in 1..60 {
        for operation in [Operation::Read, Operation::Write] {
            let faulty = Arc::new(Faulty::new(store.snapshot()));
            let mut writer =
                Writer::open(faulty.clone(), Some(Arc::new(origin.snapshot())), 3).expect("open");
            faulty.fail_from(operation, faulty.count(operation) + nth, Kind::Io);
            let mut random = Random(nth);
            while writer.write_origin(random.below(100_000), &random.bytes(70_000)).is_ok()
                && writer.create_snapshot(Tag(random.next() as u32), None).is_ok()
            {}
            faulty.thaw();
            let kept: Vec<u64> = writer.view().snapshots().iter().map(|row| row.id.0).collect();
            for id in model.readable().into_iter().filter(|id| kept.contains(id)) {
                let expected = &model.snaps[&id].bytes;
                let found =
                    read_all(writer.view(), PointId::Snapshot(Epoch(id)), expected.len(), &mut random);
                if let Ok(found) = found {
                    crate::model::assert_same(&found, expected, &format!("{operation:?} {nth}: {id}"));
                }
            }
        }
    }
}

#[test]
fn what_failed_first_is_told_with_all_that_is_refused_afterwards() {
    let (store, origin, _) = sample(5, 5 << 19);
    for operation in [Operation::Write, Operation::Flush] {
        let faulty = Arc::new(Faulty::new(store.snapshot()));
        let mut writer = Writer::open(faulty.clone(), Some(Arc::new(origin.snapshot())), 3).expect("open");
        faulty.fail_nth(operation, faulty.count(operation) + 1, Kind::NoSpace);
        let first = writer.create_snapshot(Tag(2000), None).expect_err("it fails");
        assert_eq!(first.kind(), Kind::NoSpace);
        for _ in 0..2 {
            let later = writer.create_snapshot(Tag(2000), None).expect_err("nothing is written any more");
            assert_eq!(later.kind(), Kind::Io);
            assert!(later.what().contains(&format!("an earlier write failed ({})", first.what())), "{later}");
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_is_an_error_or_harmless() {
    for seed in seeds(3) {
        let (store, origin, model) = sample(seed, 5 << 19);
        let mut random = Random(seed);
        for _ in 0..700 * depth() {
            let at = match random.below(3) {
                0 => (64 << 10) + random.below(4096) + (448 << 10) * random.below(2),
                _ => (1 << 20) + random.below(store.size() - (1 << 20)),
            };
            let damaged = store.snapshot();
            let mut byte = [0];
            damaged.read_at(&mut byte, at).expect("inside");
            damaged.write_at(&[byte[0] ^ 1 << random.below(8)], at).expect("inside");
            let Ok(view) = View::open(Arc::new(damaged), Some(Arc::new(origin.snapshot()))) else { continue };
            let what = format!("seed {seed}, a bit of byte {at}");
            let ids: Vec<u64> = view.snapshots().iter().map(|row| row.id.0).collect();
            assert_eq!(ids, model.snaps.keys().copied().collect::<Vec<_>>(), "{what}");
            for id in model.readable() {
                let expected = &model.snaps[&id].bytes;
                let point = PointId::Snapshot(Epoch(id));
                if let Ok(found) = read_all(&view, point, expected.len(), &mut random) {
                    crate::model::assert_same(&found, expected, &format!("{what}: snapshot {id}"));
                }
            }
        }
    }
}

#[test]
fn a_store_of_64_tib_keeps_its_far_end() {
    let size = 64 << 40;
    let store: Arc<dyn WriteAt> = Arc::new(Memory::new(size));
    let origin: Arc<dyn WriteAt> = Arc::new(Memory::new(size));
    let shape = crate::model::Shape { store_size: size, origin_size: size, chunk_size: 16384 };
    Writer::initialize(&store, &options(shape)).expect("initialize");
    let mut writer = Writer::open(Arc::clone(&store), Some(Arc::clone(&origin)), 1).expect("open");
    writer.write_origin(size - 5000, &[1; 5000]).expect("write");
    let id = writer.create_snapshot(Tag(1), None).expect("create").id;
    writer.write_origin(size - 5000, &[2; 5000]).expect("write");
    writer.close().expect("close");
    let writer = Writer::open(store, Some(origin), 2).expect("reopen");
    for (point, value) in [(PointId::Snapshot(id), 1), (PointId::Origin, 2)] {
        let mut buf = [0; 5001];
        writer.view().read(point, size - 5001, &mut buf).expect("read");
        assert_eq!((buf[0], &buf[1..]), (0, &[value; 5000][..]));
    }
    let changes = writer.view().changed(Some(PointId::Snapshot(id)), PointId::Origin).expect("changed");
    assert_eq!(changes.map(|range| range.expect("range").start).collect::<Vec<_>>(), [(size >> 14) - 1]);
}

#[test]
fn ten_thousand_snapshots_come_and_go() {
    const COUNT: u32 = 10_000;
    let origin: Arc<dyn WriteAt> = Arc::new(Memory::new(1 << 20));
    let store: Arc<dyn WriteAt> = Arc::new(Memory::new(1 << 30));
    let shape = crate::model::Shape { store_size: 1 << 30, origin_size: 1 << 20, chunk_size: 4096 };
    Writer::initialize(&store, &options(shape)).expect("initialize");
    let mut writer = Writer::open(Arc::clone(&store), Some(Arc::clone(&origin)), 1).expect("open");
    let began = std::time::Instant::now();
    let mut ids = Vec::new();
    for tag in 0..COUNT {
        let place = u64::from(tag % 256) * 4096;
        writer.write_origin(place, &(tag + 1).to_le_bytes()).expect("write");
        ids.push(writer.create_snapshot(Tag(tag), None).expect("create").id);
    }
    let made = began.elapsed();
    writer.close().expect("close");
    let mut writer = Writer::open(Arc::clone(&store), Some(origin), 2).expect("reopen");
    assert_eq!(writer.view().snapshots().len(), COUNT as usize);
    for tag in (0..COUNT).step_by(97) {
        let mut value = [0; 4];
        let point = PointId::Snapshot(ids[index(u64::from(tag))]);
        writer.view().read(point, u64::from(tag % 256) * 4096, &mut value).expect("read");
        assert_eq!(u32::from_le_bytes(value), tag + 1);
    }
    let read = began.elapsed();
    for id in ids {
        writer.delete_snapshot(id).expect("delete");
    }
    assert!(writer.view().snapshots().is_empty());
    let all = began.elapsed();
    eprintln!("10,000 snapshots: made {made:?}, listed and read {:?}, deleted {:?}", read - made, all - read);
    assert!(all.as_secs() < 120, "10,000 snapshots took {all:?}");
}
