//! What a live store holds in memory: read at once, durable after a flush, never too late for a snapshot.

use crate::random::{Random, seeds};
use crate::store_live::{snapshots_while, write};
use ddsnap::block::counted::Counting;
use ddsnap::block::faulty::{Faulty, Operation};
use ddsnap::block::file::FileWriter;
use ddsnap::block::memory::Memory;
use ddsnap::block::record::{DeviceId, Log, Recorder, Replay};
use ddsnap::block::{ReadAt, WriteAt};
use ddsnap::error::{Kind, Result};
use ddsnap::point::volume::Change;
use ddsnap::point::{PointId, PointSource};
use ddsnap::store::{InitOptions, Live, View, Writer};
use ddsnap::units::{Epoch, Tag, index};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

const STORE: DeviceId = DeviceId(0);
const ORIGIN: DeviceId = DeviceId(1);
const CELL: u64 = 512;
/// Units of one cell, several in each chunk, and then units of several chunks.
const SMALL: u64 = 512;
const LARGE: u64 = 24;
const LARGE_CELLS: u64 = 27;
const CELLS: u64 = SMALL + LARGE * LARGE_CELLS;
const SIZE: u64 = CELLS * CELL;
const WRITERS: u64 = 6;

/// The cells of a unit, which one writer writes as a whole.
fn cells(unit: u64) -> std::ops::Range<u64> {
    match unit.checked_sub(SMALL) {
        None => unit..unit + 1,
        Some(large) => SMALL + large * LARGE_CELLS..SMALL + (large + 1) * LARGE_CELLS,
    }
}

fn content(unit: u64, version: u64) -> Vec<u8> {
    let range = cells(unit);
    version.to_le_bytes().repeat(index((range.end - range.start) * CELL / 8))
}

/// The version in each cell; a cell is never half of one and half of another.
fn versions(image: &[u8]) -> Vec<u64> {
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    let cell = |bytes: &[u8]| {
        assert!(bytes.chunks(8).all(|part| part == &bytes[..8]), "a torn cell");
        word(&bytes[..8])
    };
    image.chunks(index(CELL)).map(cell).collect()
}

fn initialized(size: u64) -> Memory {
    let store = Arc::new(Memory::new(size));
    let options = InitOptions {
        chunk_size: 4096,
        block_size: 4096,
        origin_path: "/origin".into(),
        origin_size: SIZE,
        now_secs: 1,
    };
    Writer::initialize(&(Arc::clone(&store) as Arc<dyn WriteAt>), &options).unwrap();
    store.snapshot()
}

fn live(store: Arc<dyn WriteAt>, origin: Arc<dyn WriteAt>, memory: usize) -> Live {
    Live::start_with(Writer::open(store, Some(origin), 1).unwrap(), || 1, memory).unwrap()
}

/// A snapshot, what it holds, and how much had been recorded when it had been made.
struct Snap {
    id: Epoch,
    image: Vec<u8>,
    made: usize,
}

/// Versions that were flushed, by unit, and how much had been recorded by then.
type Flushed = Vec<(usize, u64, u64)>;

struct World {
    live: Live,
    log: Log,
    /// By unit: the version that was written last and has returned.
    told: Vec<AtomicU64>,
    snaps: Mutex<Vec<Snap>>,
}

impl World {
    fn write(&self, number: u64, seed: u64, writes: u64) -> Flushed {
        let mut random = Random(seed ^ number << 32);
        let (mut flushed, mut mine) = (Vec::new(), Vec::new());
        let mut seen = vec![0; index(CELLS)];
        for version in 1..=writes {
            let (first, units) = if random.below(3) == 0 { (SMALL, LARGE) } else { (0, SMALL) };
            let unit = first + random.below(units / WRITERS) * WRITERS + number;
            let (offset, bytes) = (cells(unit).start * CELL, content(unit, version));
            write(&self.live, random.below(2) == 0, offset, &bytes).unwrap();
            self.told[index(unit)].store(version, Ordering::SeqCst);
            mine.push((unit, version));
            let mut back = vec![0; bytes.len()];
            self.live.read_origin(offset, &mut back).unwrap();
            assert!(back == bytes, "unit {unit} is not what was written");
            let from = random.below(CELLS);
            let mut back = vec![0; index((1 + random.below(CELLS - from).min(60)) * CELL)];
            let start = (from * CELL).min(SIZE - back.len() as u64);
            self.live.read_origin(start, &mut back).unwrap();
            for (cell, now) in (start / CELL..).zip(versions(&back)) {
                let before = std::mem::replace(&mut seen[index(cell)], now);
                assert!(before <= now, "cell {cell} went back from {before} to {now}");
            }
            if random.below(12) == 0 {
                self.live.flush().unwrap();
                let at = self.log.len();
                flushed.extend(mine.drain(..).map(|(unit, version)| (at, unit, version)));
            }
        }
        flushed
    }

    fn create(&self, tag: u32) {
        let told = |at: &AtomicU64| at.load(Ordering::SeqCst);
        let before: Vec<u64> = self.told.iter().map(told).collect();
        let id = self.live.create_snapshot(Tag(tag), None).unwrap().id;
        let made = self.log.len();
        let mut image = vec![0; index(SIZE)];
        self.live.read_snapshot(id, 0, &mut image).unwrap();
        let found = versions(&image);
        for (unit, before) in (0..).zip(before) {
            let range = cells(unit);
            let of_unit = &found[index(range.start)..index(range.end)];
            assert!(of_unit.iter().all(|version| *version == of_unit[0]), "unit {unit} is cut by a snapshot");
            assert!(of_unit[0] >= before, "unit {unit} was told and is not in the snapshot");
        }
        self.snaps.lock().unwrap().push(Snap { id, image, made });
    }
}

#[test]
fn a_crash_costs_nothing_that_was_flushed_and_no_snapshot_a_byte() {
    for (seed, memory) in seeds(2).into_iter().flat_map(|seed| [(seed, 64 << 10), (seed, 8 << 20)]) {
        let (store, origin, log) = (initialized(64 << 20), Memory::new(SIZE), Log::new());
        let record = |memory: &Memory, id| Arc::new(Recorder::new(memory.snapshot(), &log, id));
        let world = World {
            live: live(record(&store, STORE), record(&origin, ORIGIN), memory),
            log: log.clone(),
            told: (0..SMALL + LARGE).map(|_| AtomicU64::new(0)).collect(),
            snaps: Mutex::default(),
        };
        let ended = AtomicBool::new(false);
        let flushed: Flushed = std::thread::scope(|scope| {
            let world = &world;
            let writers: Vec<_> =
                (0..WRITERS).map(|number| scope.spawn(move || world.write(number, seed, 150))).collect();
            scope.spawn(|| {
                for tag in 0..40 {
                    if !ended.load(Ordering::Relaxed) || tag < 3 {
                        world.create(tag);
                        std::thread::sleep(std::time::Duration::from_millis(2));
                    }
                }
            });
            let flushed = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
            ended.store(true, Ordering::Relaxed);
            flushed
        });
        let World { live, snaps, .. } = world;
        let (written, snaps) = (log.len(), snaps.into_inner().unwrap());
        drop(live);
        assert!(flushed.len() > 100 && snaps.len() >= 3);
        let mut random = Random(seed);
        let (mut stores, mut origins) = (Replay::new(&store, STORE), Replay::new(&origin, ORIGIN));
        for (n, event) in log.events().iter().enumerate() {
            stores.step(event);
            origins.step(event);
            if random.below(written as u64 / 40 + 1) != 0 {
                continue;
            }
            let images: Vec<_> = origins.images(random.next(), 2).collect();
            for origin in &images {
                let mut bytes = vec![0; index(SIZE)];
                origin.content.read_at(&mut bytes, 0).unwrap();
                let found = versions(&bytes);
                for (_, unit, version) in flushed.iter().filter(|(at, ..)| *at <= n) {
                    let range = cells(*unit);
                    let kept = found[index(range.start)..index(range.end)].iter().all(|now| now >= version);
                    assert!(kept, "seed {seed}, event {n}, {}: unit {unit} was flushed", origin.label);
                }
            }
            for store in stores.images(random.next(), 1) {
                let origin = &images[random.pick(images.len())];
                let view =
                    View::open(Arc::new(store.content), Some(Arc::new(origin.content.snapshot()))).unwrap();
                for snap in snaps.iter().filter(|snap| snap.made <= n) {
                    let mut bytes = vec![0; snap.image.len()];
                    view.read(PointId::Snapshot(snap.id), 0, &mut bytes).unwrap();
                    assert!(bytes == snap.image, "seed {seed}, event {n}, {}: {}", store.label, snap.id);
                }
            }
        }
    }
}

/// A device whose flushes wait while they are told to.
struct Gate {
    inner: Memory,
    closed: Mutex<bool>,
    changed: Condvar,
    waiting: AtomicBool,
}

impl Gate {
    fn new() -> Arc<Self> {
        let (inner, changed) = (initialized(8 << 20), Condvar::new());
        Arc::new(Self { inner, closed: Mutex::new(false), changed, waiting: AtomicBool::new(false) })
    }

    fn close(&self) {
        *self.closed.lock().unwrap() = true;
    }

    fn open(&self) {
        *self.closed.lock().unwrap() = false;
        self.changed.notify_all();
    }
}

impl ReadAt for Gate {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.inner.read_at(buf, offset)
    }
}

impl WriteAt for Gate {
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.inner.write_at(buf, offset)
    }

    fn flush(&self) -> Result<()> {
        let mut closed = self.closed.lock().unwrap();
        while *closed {
            self.waiting.store(true, Ordering::SeqCst);
            closed = self.changed.wait(closed).unwrap();
        }
        self.inner.flush()
    }

    fn set_size(&self, size_bytes: u64) -> Result<()> {
        self.inner.set_size(size_bytes)
    }
}

#[test]
fn writers_go_on_while_a_snapshot_is_made_and_are_not_in_it() {
    let store = Gate::new();
    let origin = Arc::new(Memory::new(SIZE));
    let live = live(store.clone(), origin.clone(), 1 << 20);
    live.create_snapshot(Tag(1), None).unwrap();
    live.write_origin(0, &[1; 8192]).unwrap();
    live.flush().unwrap();
    store.close();
    let made = std::thread::scope(|scope| {
        // Its record is written, and not durable: the lander has nothing left to flush.
        let create = scope.spawn(|| live.create_snapshot(Tag(2), None).unwrap().id);
        while !store.waiting.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        for number in 0..40 {
            write(&live, number % 2 == 0, number * 4096 + 5, &[2; 4096]).unwrap();
        }
        let mut back = [0; 10];
        live.read_origin(0, &mut back).unwrap();
        assert_eq!(back, [1, 1, 1, 1, 1, 2, 2, 2, 2, 2]);
        assert!(!create.is_finished());
        origin.read_at(&mut back, 0).unwrap();
        assert_eq!(back, [1; 10], "the origin is what the snapshot is to have");
        store.open();
        create.join().unwrap()
    });
    let mut image = vec![0; 16384];
    live.read_snapshot(made, 0, &mut image).unwrap();
    assert!(image[..8192].iter().all(|byte| *byte == 1) && image[8192..].iter().all(|byte| *byte == 0));
    live.close().unwrap();
    let mut bytes = vec![0; 41 * 4096];
    origin.read_at(&mut bytes, 0).unwrap();
    assert!(bytes[..5] == [1; 5] && bytes[5..5 + 40 * 4096].iter().all(|byte| *byte == 2));
}

#[test]
fn what_would_wait_is_not_written_at_once() {
    let (store, origin) = (Gate::new(), Arc::new(Memory::new(SIZE)));
    let live = live(store.clone(), origin.clone(), 0);
    let put = |chunk: u64, byte: u8| live.write_origin_at_once(chunk * 4096, &[byte; 4096]).unwrap();
    let get = |chunk: u64| {
        let mut back = [0; 4096];
        live.read_origin(chunk * 4096, &mut back).unwrap();
        back
    };
    let id = live.create_snapshot(Tag(1), None).unwrap().id;
    store.close();
    // What is told to be written cannot land, until the memory of four chunks is full.
    let refused = (0..9).find(|chunk| !put(*chunk, 7)).unwrap();
    assert!((1..=4).contains(&refused));
    assert_eq!((get(refused - 1), get(refused)), ([7; 4096], [0; 4096]));
    // Nor what comes after somebody who waits.
    std::thread::scope(|scope| {
        scope.spawn(|| live.write_origin(0, &[8; 16384]).unwrap());
        while live.figures().queued == 0 {
            std::thread::yield_now();
        }
        assert!(!put(refused, 9) && !put(0, 9));
        store.open();
    });
    live.flush().unwrap();
    assert!(put(refused, 9));
    assert_eq!((get(0), get(refused)), ([8; 4096], [9; 4096]));
    // Where nothing is preserved the origin itself has it at once.
    live.delete_snapshot(id).unwrap();
    live.flush().unwrap();
    let before = live.figures();
    assert!(put(39, 5));
    let mut there = [0; 4096];
    origin.read_at(&mut there, 39 * 4096).unwrap();
    assert_eq!((there, live.figures().origin_writes), ([5; 4096], before.origin_writes + 1));
    assert_eq!(live.write_origin_at_once(SIZE - 1, &[1; 2]).unwrap_err().kind(), Kind::Usage);
    live.close().unwrap();
}

fn faulty() -> (Arc<Faulty<Memory>>, Arc<Faulty<Memory>>) {
    (Arc::new(Faulty::new(initialized(8 << 20))), Arc::new(Faulty::new(Memory::new(SIZE))))
}

#[test]
fn what_cannot_land_is_told_by_every_flush_and_kept_until_it_can() {
    let (store, origin) = faulty();
    let live = live(store, origin.clone(), 1 << 20);
    let id = live.create_snapshot(Tag(1), None).unwrap().id;
    let gone = live.create_snapshot(Tag(2), None).unwrap().id;
    live.settle().unwrap();
    origin.fail_from(Operation::Write, origin.count(Operation::Write) + 1, Kind::Io);
    live.write_origin(100, &[7; 5000]).unwrap();
    for _ in 0..3 {
        assert_eq!(live.flush().unwrap_err().kind(), Kind::Io);
        let mut back = vec![0; 5000];
        live.read_origin(100, &mut back).unwrap();
        assert!(back == [7; 5000]);
    }
    // Nothing more is taken that could not be kept, no snapshot is made, and tables still change.
    assert_eq!(live.write_origin(90_000, &[8; 100]).unwrap_err().kind(), Kind::Io);
    assert_eq!(live.write_origin(200, &[8; 10]).unwrap_err().kind(), Kind::Io);
    assert_eq!(live.create_snapshot(Tag(3), None).unwrap_err().kind(), Kind::Io);
    assert!(live.picture().is_err());
    live.delete_snapshot(gone).unwrap();
    live.change_table(|writer| {
        ddsnap::point::volume::Administer::change(writer, &Change::Priority(id, 3)).map(drop)
    })
    .unwrap();
    origin.thaw();
    live.flush().unwrap();
    live.write_origin(90_000, &[8; 100]).unwrap();
    live.create_snapshot(Tag(3), None).unwrap();
    let mut image = vec![1; 16384];
    live.read_snapshot(id, 0, &mut image).unwrap();
    assert!(image.iter().all(|byte| *byte == 0));
    live.close().unwrap();
    let mut back = vec![0; 5000];
    origin.inner().read_at(&mut back, 100).unwrap();
    assert!(back == [7; 5000]);
}

#[test]
fn a_store_that_fails_is_not_closed_as_if_all_were_well() {
    let (store, origin) = faulty();
    let live = live(store.clone(), origin.clone(), 1 << 20);
    let id = live.create_snapshot(Tag(1), None).unwrap().id;
    live.settle().unwrap();
    store.fail_nth(Operation::Flush, store.count(Operation::Flush) + 1, Kind::Io);
    live.write_origin(0, &[7; 5000]).unwrap();
    assert_eq!(live.flush().unwrap_err().kind(), Kind::Io);
    assert_eq!(live.flush().unwrap_err().kind(), Kind::Io);
    assert_eq!(live.close().unwrap_err().kind(), Kind::Io);
    let mut back = [1; 5000];
    origin.inner().read_at(&mut back, 0).unwrap();
    assert!(back == [0; 5000], "nothing is written that was not preserved durably");
    let view =
        View::open(Arc::new(store.inner().snapshot()), Some(Arc::new(origin.inner().snapshot()))).unwrap();
    view.read(PointId::Snapshot(id), 0, &mut back).unwrap();
    assert!(back == [0; 5000]);
}

#[test]
fn a_full_store_refuses_the_write_and_keeps_all_that_it_took() {
    let store = Arc::new(initialized(2560 << 10));
    let origin = Arc::new(Memory::from_bytes(&vec![9; 4 << 20]));
    let device: Arc<dyn WriteAt> = Arc::clone(&store) as _;
    let mut writer = Writer::open(device, Some(Arc::clone(&origin) as _), 1).unwrap();
    writer.resize_origin(4 << 20, &ddsnap::progress::Silent).unwrap();
    let live = Live::start_with(writer, || 1, 8 << 20).unwrap();
    let id = live.create_snapshot(Tag(1), None).unwrap().id;
    let hold = Change::Hold(id, "x".into());
    live.change_table(|writer| ddsnap::point::volume::Administer::change(writer, &hold).map(drop)).unwrap();
    let chunk = |number: u64| vec![u8::try_from(number % 250 + 1).unwrap(); 4096];
    let mut taken = Vec::new();
    let refused =
        (0..1024).find(|number| match write(&live, number % 2 == 0, number * 4096, &chunk(*number)) {
            Ok(()) => {
                taken.push(*number);
                false
            }
            Err(error) => {
                assert_eq!(error.kind(), Kind::NoSpace);
                true
            }
        });
    let refused = refused.expect("the store is smaller than the origin");
    live.flush().unwrap();
    let mut bytes = vec![0; 4096];
    for number in &taken {
        origin.read_at(&mut bytes, number * 4096).unwrap();
        assert!(bytes == chunk(*number));
    }
    live.read_origin(refused * 4096, &mut bytes).unwrap();
    assert!(bytes == [9; 4096], "a write that was refused was not done");
    let mut image = vec![1; 1 << 20];
    live.read_snapshot(id, 0, &mut image).unwrap();
    assert!(image.iter().all(|byte| *byte == 9));
    let release = Change::Release(id, "x".into());
    live.change_table(|writer| ddsnap::point::volume::Administer::change(writer, &release).map(drop))
        .unwrap();
    live.delete_snapshot(id).unwrap();
    live.write_origin(refused * 4096, &chunk(refused)).unwrap();
    live.close().unwrap();
    origin.read_at(&mut bytes, refused * 4096).unwrap();
    assert!(bytes == chunk(refused));
}

#[test]
fn what_lies_in_the_origins_file_is_no_older_than_what_was_told() {
    const AREA: u64 = SIZE / WRITERS / 4096 * 4096;
    let dir = tempfile::tempdir().unwrap();
    let (path, counts) = (dir.path().join("origin"), Arc::default());
    std::fs::write(&path, vec![0; index(SIZE)]).unwrap();
    let origin = Arc::new(Counting::new(FileWriter::open(&path).unwrap(), &counts));
    let live = live(Arc::new(initialized(64 << 20)), origin, 1 << 20);
    let (there, held) = (AtomicU64::new(0), AtomicU64::new(0));
    let writer = |number: u64| {
        let mut random = Random(number);
        for round in 0..150 {
            let length = 1 + random.below(9000);
            let bytes = random.bytes(index(length));
            let offset = number * AREA + random.below(AREA - length);
            write(&live, round % 2 == 0, offset, &bytes).unwrap();
            if round % 10 == 0 {
                live.flush().unwrap();
            }
            let file = live.origin_file(offset, bytes.len());
            let Some(file) = file else {
                held.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let mut back = vec![0; bytes.len()];
            file.read_exact_at(&mut back, offset).unwrap();
            assert!(back == bytes, "{} bytes at {offset} are not what was written", bytes.len());
            there.fetch_add(1, Ordering::Relaxed);
        }
    };
    snapshots_while(&live, WRITERS, writer);
    assert!(there.into_inner() >= WRITERS * 15 && held.into_inner() > 0);
    assert!(live.origin_file(SIZE - 1, 2).is_none(), "past its end");
    let before = (counts.now(), live.figures());
    assert!(live.origin_file(SIZE - 4096, 4096).is_some());
    let after = (counts.now(), live.figures());
    assert_eq!(after.0.read_bytes, before.0.read_bytes + 4096);
    assert_eq!(after.1.origin_reads, before.1.origin_reads + 1);
    assert_eq!(after.1.origin_read_bytes, before.1.origin_read_bytes + 4096);
    live.close().unwrap();
}
