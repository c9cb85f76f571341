//! Many threads on one store: snapshots keep their bytes while everything changes, also across a crash.

use crate::harness::Ends;
use crate::model::Random;
use crate::random::seeds;
use ddsnap::block::memory::Memory;
use ddsnap::block::record::{Change, DeviceId, Event, Log, Recorder, Replay};
use ddsnap::block::{ReadAt, WriteAt};
use ddsnap::error::Result;
use ddsnap::format::superblock;
use ddsnap::point::{PointId, PointSource};
use ddsnap::store::{InitOptions, Journal, Live, View, Writer};
use ddsnap::units::{Epoch, Tag, index};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const STORE: DeviceId = DeviceId(0);
const ORIGIN: DeviceId = DeviceId(1);
const JOURNAL: DeviceId = DeviceId(2);
const ORIGIN_SIZE: u64 = (1 << 20) + 1000;
const WRITERS: u64 = 6;

/// A snapshot, what it holds, and how much had been recorded when it had been made.
struct Snap {
    id: Epoch,
    image: Vec<u8>,
    made: usize,
}

struct World {
    store: Memory,
    origin: Memory,
    log: Log,
    live: Live,
    snaps: Mutex<Vec<Snap>>,
    deleted: Mutex<Vec<Epoch>>,
}

impl World {
    fn new(seed: u64, store_size: u64) -> Self {
        Self::with_memory(seed, store_size, 64 << 20)
    }

    /// With so many bytes of memory for what is held.
    fn with_memory(seed: u64, store_size: u64, held: usize) -> Self {
        let (store, origin) =
            (Memory::new(store_size), Memory::from_bytes(&Random(seed).bytes(index(ORIGIN_SIZE))));
        let device: Arc<dyn WriteAt> = Arc::new(store.snapshot());
        let options = InitOptions {
            chunk_size: 4096,
            block_size: 4096,
            origin_path: PathBuf::from("/origin"),
            origin_size: ORIGIN_SIZE,
            now_secs: 1,
        };
        Writer::initialize(&device, &options).unwrap();
        let mut bytes = vec![0; index(store_size)];
        device.read_at(&mut bytes, 0).unwrap();
        let store = Memory::from_bytes(&bytes);
        let log = Log::new();
        let record = |memory: &Memory, id| -> Arc<dyn WriteAt> {
            Arc::new(Recorder::new(memory.snapshot(), &log, id))
        };
        let writer = Writer::open(record(&store, STORE), Some(record(&origin, ORIGIN)), 1).unwrap();
        let live = Live::start_with(writer, || 1, held).unwrap();
        Self { store, origin, log, live, snaps: Mutex::default(), deleted: Mutex::default() }
    }

    fn create(&self, tag: u32) {
        if tag % 2 == 1 {
            return self.create_quickly(tag);
        }
        let (id, image) = self
            .live
            .change(|writer| {
                let id = writer.create_snapshot(Tag(tag), None)?.id;
                let mut image = vec![0; index(ORIGIN_SIZE)];
                writer.view().read(PointId::Origin, 0, &mut image)?;
                Ok((id, image))
            })
            .unwrap();
        let made = self.log.len();
        self.snaps.lock().unwrap().push(Snap { id, image, made });
    }

    /// As a server does. What it holds at first is what it must go on to hold.
    fn create_quickly(&self, tag: u32) {
        let id = self.live.create_snapshot(Tag(tag), None).unwrap().id;
        let made = self.log.len();
        let mut image = vec![0; index(ORIGIN_SIZE)];
        self.live.read_snapshot(id, 0, &mut image).unwrap();
        self.snaps.lock().unwrap().push(Snap { id, image, made });
    }

    fn delete(&self, random: &mut Random) {
        let mut snaps = self.snaps.lock().unwrap();
        let at = random.pick(snaps.len());
        let id = snaps[at].id;
        self.deleted.lock().unwrap().push(id);
        self.live.delete_snapshot(id).unwrap();
        snaps.remove(at);
    }

    fn write(&self, random: &mut Random) {
        let most = if random.below(4) == 0 { 60_000 } else { 5000 };
        let length = 1 + random.below(most);
        let offset = random.below(ORIGIN_SIZE - length);
        let bytes = match random.below(5) {
            0 => vec![0; index(length)],
            _ => random.bytes(index(length)),
        };
        write(&self.live, random.below(2) == 0, offset, &bytes).unwrap();
        if random.below(8) == 0 {
            self.live.flush().unwrap();
        }
    }

    fn read(&self, random: &mut Random) {
        let (id, offset, expected) = {
            let snaps = self.snaps.lock().unwrap();
            let Some(snap) = snaps.get(random.pick(snaps.len().max(1))) else { return };
            let length = 1 + random.below(100_000);
            let offset = random.below(ORIGIN_SIZE - length);
            (snap.id, offset, snap.image[index(offset)..index(offset + length)].to_vec())
        };
        let mut bytes = vec![0; expected.len()];
        match self.live.read_snapshot(id, offset, &mut bytes) {
            Ok(()) => assert!(bytes == expected, "snapshot {id} at {offset}"),
            // It may have been deleted by now.
            Err(error) => {
                let deleted = self.deleted.lock().unwrap();
                assert!(deleted.contains(&id), "{error}");
            }
        }
    }

    /// Writers, readers, and somebody who makes and deletes snapshots.
    fn run(&self, seed: u64, snapshots: u32, writes: u32) {
        let (ended, written) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let (ended, written) = (&ended, &written);
            let _ends = Ends(ended);
            let writers: Vec<_> = (0..WRITERS)
                .map(|number| {
                    scope.spawn(move || {
                        let mut random = Random(seed ^ number << 32);
                        for _ in 0..writes {
                            self.write(&mut random);
                            written.fetch_add(1, Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            for number in 0..2 {
                scope.spawn(move || {
                    let mut random = Random(seed ^ (100 + number) << 32);
                    while !ended.load(Ordering::Relaxed) {
                        self.read(&mut random);
                    }
                });
            }
            let mut random = Random(seed ^ 0x5eed);
            for tag in 0..snapshots {
                // Each epoch has its part of the writes.
                let part = u64::from(tag) * WRITERS * u64::from(writes) / u64::from(snapshots);
                while written.load(Ordering::Relaxed) < part
                    && !writers.iter().all(|writer| writer.is_finished())
                {
                    std::thread::sleep(Duration::from_micros(200));
                }
                self.create(tag);
                self.live.checkpoint().unwrap();
                if self.snaps.lock().unwrap().len() > 4 {
                    self.delete(&mut random);
                }
                std::thread::yield_now();
            }
            for writer in writers {
                writer.join().unwrap();
            }
        });
    }
}

fn assert_snapshots<'a>(view: &View, snaps: impl IntoIterator<Item = &'a Snap>, what: &str) {
    for snap in snaps {
        let mut bytes = vec![0; snap.image.len()];
        view.read(PointId::Snapshot(snap.id), 0, &mut bytes)
            .unwrap_or_else(|error| panic!("{what}: snapshot {}: {error}", snap.id));
        assert!(bytes == snap.image, "{what}: snapshot {}", snap.id);
    }
}

fn view(store: &Memory, origin: &Memory) -> View {
    View::open(Arc::new(store.snapshot()), Some(Arc::new(origin.snapshot()))).unwrap()
}

/// Checkpoints that were published.
fn checkpoints(log: &Log) -> usize {
    let at = superblock::OFFSETS[1];
    let superblock = |event: &Event| {
        event.device == STORE && matches!(&event.change, Change::Write { offset, .. } if *offset == at)
    };
    log.events().iter().filter(|event| superblock(event)).count()
}

#[test]
fn a_picture_stays_what_it_was() {
    for seed in seeds(2) {
        let world = World::new(seed, 24 << 20);
        world.run(seed, 3, 40);
        let mut random = Random(seed ^ 0x91c);
        (0..40).for_each(|_| world.write(&mut random));
        let (first, last) = {
            let snaps = world.snaps.lock().unwrap();
            (snaps[0].id, snaps[snaps.len() - 1].id)
        };
        let picture = world.live.picture().unwrap();
        let look = || {
            let view = &picture.view;
            let (from, to) = (PointId::Snapshot(first), PointId::Snapshot(last));
            let changed: Vec<_> = view.changed(Some(from), to).unwrap().map(Result::unwrap).collect();
            let chunks = ORIGIN_SIZE / 4096;
            let kept: Vec<_> = (0..chunks).map(|chunk| view.known_crc(from, chunk).unwrap()).collect();
            let sharing = view.sharing().unwrap().into_iter().map(|sharing| sharing.shared_by);
            (changed, kept, sharing.collect::<Vec<_>>())
        };
        let before = look();
        assert!(before.1.iter().any(Option::is_some));
        let published = checkpoints(&world.log);
        let ids: Vec<_> = world.snaps.lock().unwrap().drain(..).map(|snap| snap.id).collect();
        for id in ids {
            world.live.delete_snapshot(id).unwrap();
        }
        world.run(seed + 1, 20, 150);
        assert!(checkpoints(&world.log) > published + 1);
        assert!(before == look());
        picture.pin.ensure_good().unwrap();
        drop(picture);
        world.live.close().unwrap();
    }
}

#[test]
fn a_full_store_takes_a_picture_back_before_it_gives_up_a_snapshot() {
    let world = World::new(7, 3200 << 10);
    let mut random = Random(7);
    world.create(0);
    let picture = world.live.picture().unwrap();
    let mut tag = 2;
    // Each round replaces the volume: without the picture, what the last snapshot kept is free again.
    while picture.pin.ensure_good().is_ok() {
        assert!(tag < 40, "the picture costs no space");
        let kept = world.snaps.lock().unwrap().pop().unwrap();
        world.live.delete_snapshot(kept.id).unwrap();
        world.create(tag);
        tag += 2;
        world.live.write_origin(0, &random.bytes(index(ORIGIN_SIZE))).unwrap();
    }
    let snaps = world.snaps.lock().unwrap();
    assert_eq!(world.live.look(|view| view.snapshots().len()), 1);
    let mut bytes = vec![0; index(ORIGIN_SIZE)];
    world.live.read_snapshot(snaps[0].id, 0, &mut bytes).unwrap();
    assert!(bytes == snaps[0].image);
}

#[test]
fn a_clean_end_leaves_nothing_of_the_origin_to_be_written_out() {
    let world = World::new(5, 64 << 20);
    world.live.create_snapshot(Tag(1), None).unwrap();
    world.live.write_origin(5000, &[7; 9000]).unwrap();
    let World { log, live, .. } = world;
    live.close().unwrap();
    let events = log.events();
    let last = events.iter().rfind(|event| event.device == ORIGIN).unwrap();
    assert!(matches!(last.change, Change::Flush), "the origin was written last, and not flushed");
}

#[test]
fn an_operation_ends_when_what_was_written_before_it_is_durable() {
    let world = World::new(6, 64 << 20);
    world.live.create_snapshot(Tag(1), None).unwrap();
    world.live.change(|writer| writer.begin_operation("test", [1; 32], false, None)).unwrap();
    world.live.write_origin(5000, &[7; 9000]).unwrap();
    world.live.change(|writer| writer.end_operation(None)).unwrap();
    let events = world.log.events();
    let flushed = events.iter().rposition(|event| event.device == ORIGIN).unwrap();
    let last = &events[flushed];
    assert!(matches!(last.change, Change::Flush), "the origin was written last, and not flushed");
    let end = events.iter().rposition(|event| matches!(event.change, Change::Write { .. })).unwrap();
    assert!(events[end].device == STORE && flushed < end, "the state before is given up too early");
}

#[test]
fn who_writes_reads_it_back_whether_or_not_it_has_landed() {
    const AREA: u64 = ORIGIN_SIZE / WRITERS;
    let world = World::new(3, 64 << 20);
    let writer = |number: u64| {
        let (mut random, start) = (Random(number), number * AREA);
        let mut area = vec![0; index(AREA)];
        world.live.write_origin(start, &area).unwrap();
        for _ in 0..200 {
            let length = 1 + random.below(20_000);
            let at = index(random.below(AREA - length));
            area[at..at + index(length)].copy_from_slice(&random.bytes(index(length)));
            let at_once = random.below(2) == 0;
            write(&world.live, at_once, start + at as u64, &area[at..at + index(length)]).unwrap();
            let (mut read, mut cached) = (vec![1; area.len()], vec![2; area.len()]);
            world.live.read_origin(start, &mut read).unwrap();
            assert!(world.live.read_origin_cached(start, &mut cached).unwrap());
            assert!(read == area && cached == area);
        }
    };
    snapshots_while(&world.live, WRITERS, writer);
}

/// Writes in the ordinary way, or at once if that is possible.
pub fn write(live: &Live, at_once: bool, offset: u64, bytes: &[u8]) -> Result<()> {
    match at_once && live.write_origin_at_once(offset, bytes)? {
        true => Ok(()),
        false => live.write_origin(offset, bytes),
    }
}

/// Runs so many writers, who are told their number, and makes snapshots until the last has ended.
pub fn snapshots_while(live: &Live, writers: u64, write: impl Fn(u64) + Sync) {
    std::thread::scope(|scope| {
        let write = &write;
        let writers: Vec<_> = (0..writers).map(|number| scope.spawn(move || write(number))).collect();
        for tag in 1.. {
            if writers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                break;
            }
            live.create_snapshot(Tag(tag), None).unwrap();
        }
    });
}

#[test]
fn snapshots_keep_their_bytes_under_many_writers() {
    for seed in seeds(4) {
        let world = World::new(seed, 64 << 20);
        world.run(seed, 20, 150);
        let World { store, origin, log, live, snaps, .. } = world;
        live.close().unwrap();
        let (mut end, mut last) = (Replay::new(&store, STORE), Replay::new(&origin, ORIGIN));
        for event in log.events() {
            end.step(&event);
            last.step(&event);
        }
        let all = |replay: &Replay| replay.images(0, 0).next().unwrap().content;
        let view = view(&all(&end), &all(&last));
        assert!(view.snapshots().iter().all(|snapshot| !snapshot.tainted));
        assert_snapshots(&view, &snaps.into_inner().unwrap(), &format!("seed {seed}"));
        assert_eq!(view.change_bits_against_exceptions().unwrap(), []);
    }
}

#[test]
fn a_crash_under_many_writers_costs_no_snapshot_a_byte() {
    for seed in seeds(3) {
        let world = World::new(seed, 8 << 20);
        world.run(seed, 16, 90);
        let World { store, origin, log, live, snaps, .. } = world;
        let written = log.len();
        drop(live);
        assert!(checkpoints(&log) >= 16, "too few checkpoints are cut short");
        let snaps = snaps.into_inner().unwrap();
        let mut random = Random(seed);
        let (mut stores, mut origins) = (Replay::new(&store, STORE), Replay::new(&origin, ORIGIN));
        for (n, event) in log.events().iter().enumerate() {
            stores.step(event);
            origins.step(event);
            if random.below(written as u64 / 60 + 1) != 0 {
                continue;
            }
            let images: Vec<_> = origins.images(random.next(), 1).collect();
            for store in stores.images(random.next(), 2) {
                let origin = &images[random.pick(images.len())];
                let what =
                    format!("seed {seed}, event {n}, store: {}, origin: {}", store.label, origin.label);
                let view = view(&store.content, &origin.content);
                assert_snapshots(&view, snaps.iter().filter(|snap| snap.made <= n), &what);
            }
        }
    }
}

/// Bytes that one writer has for itself: several writers share a chunk.
const CELL: u64 = 700;

/// What a writer made of a cell, and how long the log was when it was told so.
struct Told {
    cell: u64,
    image: Vec<u8>,
    told: usize,
}

/// Writes cells of its own, one after the other, until there are `enough` of all writers, never more than `allowed`.
fn write_cells(
    world: &World,
    seed: u64,
    number: u64,
    (written, allowed, enough): (&AtomicU64, &AtomicU64, u64),
) -> Vec<Told> {
    let mut random = Random(seed ^ number << 32);
    let mut origin = vec![0; index(ORIGIN_SIZE)];
    world.origin.read_at(&mut origin, 0).unwrap();
    let mut told = Vec::new();
    while written.load(Ordering::Relaxed) < enough {
        if written.load(Ordering::Relaxed) >= allowed.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_micros(100));
            continue;
        }
        // Few of them, so that what has just landed is written again.
        let cell = random.below(60) * WRITERS + number;
        let from = random.below(CELL);
        let length = 1 + random.below(CELL - from);
        let bytes = random.bytes(index(length));
        let at = index(cell * CELL + from);
        origin[at..at + bytes.len()].copy_from_slice(&bytes);
        world.live.write_origin(cell * CELL + from, &bytes).unwrap();
        let image = origin[index(cell * CELL)..index((cell + 1) * CELL)].to_vec();
        told.push(Told { cell, image, told: world.log.len() });
        written.fetch_add(1, Ordering::Relaxed);
    }
    told
}

#[test]
fn a_killed_process_loses_nothing_that_it_told_since_it_has_a_journal() {
    const SNAPSHOTS: u32 = 10;
    const WRITES: u64 = 150;
    for seed in seeds(3) {
        // Little memory and a small journal: writers wait for both, and it goes round.
        let world = World::with_memory(seed, 8 << 20, 64 << 10);
        let journal = Memory::new(96 << 10);
        let (written, allowed, mut begun) = (AtomicU64::new(0), AtomicU64::new(0), 0);
        let told: Vec<_> = std::thread::scope(|scope| {
            let (world, written, allowed) = (&world, &written, &allowed);
            let enough = (written, allowed, u64::from(SNAPSHOTS) * WRITES);
            let writers: Vec<_> = (0..WRITERS)
                .map(|number| scope.spawn(move || write_cells(world, seed, number, enough)))
                .collect();
            for tag in 0..SNAPSHOTS {
                world.create_quickly(tag);
                if tag == 2 {
                    let device = Recorder::new(journal.snapshot(), &world.log, JOURNAL);
                    world.live.journal(|| Journal::over(Arc::new(device))).unwrap();
                    begun = world.log.len();
                }
                // The next snapshot is made while they write.
                allowed.fetch_add(WRITES, Ordering::Relaxed);
                while written.load(Ordering::Relaxed) < u64::from(tag) * WRITES + WRITES / 2
                    && !writers.iter().any(|writer| writer.is_finished())
                {
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        let World { store, origin, log, live, snaps, .. } = world;
        let written = log.len();
        drop(live);
        let snaps = snaps.into_inner().unwrap();
        let mut random = Random(seed);
        let devices = [store, origin, journal];
        let apply = |event: &Event, part: u64| {
            let device = &devices[index(u64::from(event.device.0))];
            if let Change::Write { offset, bytes } = &event.change {
                let length = bytes.len() as u64 * part / 8;
                device.write_at(&bytes[..index(length)], *offset).unwrap();
            }
        };
        let (mut checked, mut taken_up) = (0, 0);
        for (n, event) in log.events().iter().enumerate().take(written) {
            // A process that is killed may leave half of a call, but no half of few bytes. What is told is in the
            // journal for a moment only.
            let one_of = if event.device == JOURNAL { 60 } else { 200 };
            if n >= begun && random.below(one_of) == 0 {
                let is_short = matches!(&event.change, Change::Write { bytes, .. } if bytes.len() < 32);
                apply(event, if is_short { 0 } else { random.below(8) });
                taken_up += assert_told(&devices, n, &told, &snaps, &format!("seed {seed}, event {n}"));
                checked += 1;
            }
            apply(event, 8);
        }
        assert!(taken_up > 0, "{checked} checked, nothing taken up");
    }
}

/// Goes on where a process was killed at event `n`, and finds what it had told. Returns the bytes that the journal had.
fn assert_told(devices: &[Memory; 3], n: usize, told: &[Vec<Told>], snaps: &[Snap], what: &str) -> u64 {
    let [store, origin, journal] = devices.each_ref().map(|device| Arc::new(device.snapshot()));
    let writer = Writer::open(store.clone(), Some(origin.clone()), 2).unwrap();
    let live = Live::start(writer, || 2).unwrap();
    let bytes = live.take_up(journal.as_ref()).unwrap();
    live.close().unwrap();
    let mut found = vec![0; index(ORIGIN_SIZE)];
    origin.read_at(&mut found, 0).unwrap();
    for writes in told {
        let before = writes.partition_point(|write| write.told <= n);
        for cell in writes[..before].iter().map(|write| write.cell) {
            let last = writes[..before].iter().rfind(|write| write.cell == cell).unwrap();
            // The next one was under way, perhaps.
            let next = writes.get(before).filter(|next| next.cell == cell).unwrap_or(last);
            let bytes = &found[index(cell * CELL)..index((cell + 1) * CELL)];
            let mut places = bytes.iter().zip(last.image.iter().zip(&next.image));
            assert!(places.all(|(byte, (last, next))| byte == last || byte == next), "{what}: cell {cell}");
        }
    }
    assert_snapshots(&view(&store, &origin), snaps.iter().filter(|snap| snap.made <= n), what);
    bytes
}

/// What is done to the snapshot table while a store fills.
#[derive(Debug, Clone, Copy)]
enum Changes {
    None,
    Priority,
    CreateAndDelete,
}

/// Fills a store whose one snapshot nothing gives up, in bursts of writes with changes of the snapshot table between
/// them or, if `beside`, at the same time. True if every write that was told to be done has landed.
fn told_writes_land(seed: u64, changes: Changes, beside: bool) -> bool {
    let world = World::new(seed, 3200 << 10);
    let mut random = Random(seed);
    let kept = world.live.create_snapshot(Tag(1), None).unwrap().id;
    world.live.change_table(|writer| writer.add_use_count(kept, 1)).unwrap();
    let change = |times: u64| {
        for number in 0..times {
            // In a full store it may be refused.
            let _ = match changes {
                Changes::None => Ok(()),
                Changes::Priority => {
                    world.live.change_table(|writer| writer.set_priority(kept, (number % 100) as i8))
                }
                Changes::CreateAndDelete => world
                    .live
                    .create_snapshot(Tag(2), None)
                    .and_then(|made| world.live.delete_snapshot(made.id)),
            };
        }
    };
    let (mut chunk, chunks, mut full) = (0, ORIGIN_SIZE >> 12, false);
    while chunk < chunks && !full {
        let (burst, times) = (1 + random.below(40), random.below(60));
        let bytes = random.bytes(4096);
        std::thread::scope(|scope| {
            if beside {
                scope.spawn(|| change(times));
            }
            for _ in 0..burst.min(chunks - chunk) {
                full |= world.live.write_origin(chunk << 12, &bytes).is_err();
                chunk += 1;
            }
        });
        if world.live.flush().is_err() {
            return false;
        }
        if !beside {
            change(times);
        }
    }
    true
}

#[test]
fn what_was_told_lands_whatever_the_snapshot_table_goes_through() {
    let mut found = Vec::new();
    for changes in [Changes::None, Changes::Priority, Changes::CreateAndDelete] {
        for beside in [false, true] {
            let seeds = (0..25).filter(|seed| !told_writes_land(*seed, changes, beside));
            found.push((changes, beside, seeds.collect::<Vec<_>>()));
        }
    }
    assert!(found.iter().all(|(_, _, seeds)| seeds.is_empty()), "{found:?}");
}
