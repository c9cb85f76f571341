//! Crashes: the store is reopened after prefixes of everything it wrote, with what a volatile cache may keep
//! of the rest. Snapshots keep their bytes, whatever happens.

use crate::model::{Model, Pending, Random, Snap, World, assert_same, depth, read_all, same_row, seeds};
use ddsnap::block::memory::Memory;
use ddsnap::block::record::{CrashImage, DeviceId, Event, Log, Recorder, Replay};
use ddsnap::block::{ReadAt, WriteAt};
use ddsnap::point::PointId;
use ddsnap::progress::Silent;
use ddsnap::store::{SnapshotInfo, SnapshotState, View, Writer};
use ddsnap::units::{Epoch, index};
use std::collections::BTreeMap;
use std::sync::Arc;

const STORE: DeviceId = DeviceId(0);
const ORIGIN: DeviceId = DeviceId(1);
const CHUNK: u32 = 4096;

/// One call and what it made of the model; its events are those after the step before up to `end`.
struct Step {
    label: String,
    end: usize,
    before: Model,
    after: Model,
}

/// A recorded run: both devices at its begin, every event, every step.
struct Run {
    store: Memory,
    origin: Memory,
    log: Log,
    steps: Vec<Step>,
}

impl Run {
    /// Records `steps` random steps over devices that hold what `model` says (a new store without one).
    fn record(store: &Memory, origin: &Memory, model: Option<Model>, seed: u64, steps: usize) -> Self {
        let log = Log::new();
        let recorder = |memory: &Memory, id| -> Arc<dyn WriteAt> {
            Arc::new(Recorder::new(memory.snapshot(), &log, id))
        };
        let devices = (recorder(store, STORE), recorder(origin, ORIGIN));
        let fresh = model.is_none();
        let mut world = match model {
            Some(model) => World::adopt(devices.0, devices.1, model, seed),
            None => World::new(devices.0, devices.1, CHUNK, seed),
        };
        // A small store runs full; a third of the runs are roomy.
        world.tight = true;
        world.snapshots_max = 5;
        let mut run = Self { store: store.snapshot(), origin: origin.snapshot(), log, steps: Vec::new() };
        let opened = world.model.clone();
        run.add("open".into(), opened.clone(), opened);
        if fresh {
            // A crash inside `initialize` leaves no store; what counts begins after it.
            run.steps[0].label = "initialize".into();
        }
        for _ in 0..steps {
            let before = world.model.clone();
            let label = world.step();
            run.add(label, before, world.model.clone());
        }
        run
    }

    fn add(&mut self, label: String, before: Model, after: Model) {
        self.steps.push(Step { label, end: self.log.len(), before, after });
    }

    /// The step that a crash after `n` events interrupts, or that was the last to end before it.
    fn step_at(&self, n: usize) -> (&str, &Model, &Model) {
        let at = self.steps.partition_point(|step| step.end < n);
        let step = &self.steps[at.min(self.steps.len() - 1)];
        if step.end == n {
            (&step.label, &step.after, &step.after)
        } else {
            (&step.label, &step.before, &step.after)
        }
    }
}

/// What a check of a crashed store found, for going on from there.
fn check(
    view: &View,
    origin: &Memory,
    before: &Model,
    after: &Model,
    random: &mut Random,
    what: &str,
) -> Model {
    let mut found = before.clone();
    found.touched = None;
    let mut bytes = origin.to_vec().expect("small");
    // A file is cut after the store knows its new size, and grown before.
    bytes.truncate(index(view.info().origin_size));
    // What an operation gains holds anything until the operation has ended.
    let gained = view.info().pending.is_some() && after.origin.len() > before.origin.len();
    let known = if gained { bytes.len().min(before.origin.len()) } else { bytes.len() };
    check_origin(&bytes[..known], before, after, what);
    let sizes = [before.origin.len(), after.origin.len()];
    assert!(sizes.contains(&bytes.len()), "{what}: origin has {} bytes, never {sizes:?}", bytes.len());
    found.origin = Arc::new(bytes);
    found.versions = vec![Arc::clone(&found.origin)];
    found.snaps = check_snapshots(view, before, after, random, what);
    check_operation(view, &mut found, before, after, random, what);
    let info = view.info();
    if let Some(equals) = info.origin_equals {
        let known = [before, after].into_iter().filter_map(|model| model.equals.as_ref());
        let known = known.into_iter().find(|(identity, _)| *identity == equals);
        let (_, bytes) = known.unwrap_or_else(|| unreachable!("{what}: origin equals {equals:?}"));
        assert_same(&found.origin, bytes, &format!("{what}: the point that the origin is said to equal"));
    }
    found.equals = info.origin_equals.map(|identity| (identity, Arc::clone(&found.origin)));
    // The next id is above all that were handed out durably; the model only needs the order.
    found.epoch = before.epoch.max(after.epoch);
    crate::model::check_points(view, &found, random, what);
    found
}

/// Every byte of the origin is one that it held since it was last durable.
fn check_origin(bytes: &[u8], before: &Model, after: &Model, what: &str) {
    let versions: Vec<&Arc<Vec<u8>>> =
        before.versions.iter().chain(&after.versions).chain([&after.origin]).collect();
    for (number, found) in bytes.chunks(512).enumerate() {
        let start = number * 512;
        let held = |version: &&Arc<Vec<u8>>| version.get(start..start + found.len()) == Some(found);
        if versions.iter().any(held) {
            continue;
        }
        for (at, byte) in found.iter().enumerate() {
            let known = versions.iter().any(|version| version.get(start + at) == Some(byte));
            assert!(known, "{what}: origin byte {} was never {byte}", start + at);
        }
    }
}

fn check_snapshots(
    view: &View,
    before: &Model,
    after: &Model,
    random: &mut Random,
    what: &str,
) -> BTreeMap<u64, Snap> {
    let rows: BTreeMap<u64, SnapshotInfo> = view.snapshots().into_iter().map(|row| (row.id.0, row)).collect();
    for id in before.snaps.keys().filter(|id| after.snaps.contains_key(id)) {
        assert!(rows.contains_key(id), "{what}: snapshot {id} is lost");
    }
    let mut found = BTreeMap::new();
    for (id, row) in rows {
        let (old, new) = (before.snaps.get(&id), after.snaps.get(&id));
        let mut snap =
            old.or(new).unwrap_or_else(|| unreachable!("{what}: snapshot {id} from nowhere")).clone();
        let known = [old, new].into_iter().flatten().any(|snap| same_row(&row, snap));
        // A new content generation and the attributes of a call in flight are single records: all or nothing.
        assert!(known, "{what}: {row:?} is neither {old:?} nor {new:?}");
        (snap.priority, snap.use_count) = (row.priority, row.use_count);
        snap.squashed = row.state == SnapshotState::Squashed;
        if !snap.squashed {
            let label = format!("{what}: snapshot {id}");
            let bytes = read_all(view, PointId::Snapshot(Epoch(id)), snap.bytes.len(), random).expect(&label);
            let other = new.map(|snap| &snap.bytes).or(after.given_up.get(&id)).unwrap_or(&snap.bytes);
            if snap.bytes == *other {
                assert_same(&bytes, &snap.bytes, &label);
            }
            let chunks = bytes.chunks(CHUNK as usize).zip(snap.bytes.chunks(CHUNK as usize));
            for (number, ((now, old), new)) in chunks.zip(other.chunks(CHUNK as usize)).enumerate() {
                assert!(now == old || now == new, "{label}: chunk {number} is neither old nor new");
            }
            snap.bytes = Arc::new(bytes);
        }
        found.insert(id, snap);
    }
    found
}

/// A begun operation is there with the state before it, unless its begin or end was in flight.
fn check_operation(
    view: &View,
    found: &mut Model,
    before: &Model,
    after: &Model,
    random: &mut Random,
    what: &str,
) {
    let known = [before.pending.clone(), after.pending.clone()];
    let ids = known.each_ref().map(|pending| pending.as_ref().map(|pending| pending.before));
    let now = view.info().pending;
    let id = now.as_ref().map(|pending| pending.before.0);
    found.pending = known.into_iter().flatten().find(|pending| Some(pending.before) == id);
    if let (Some(now), None, Some(bytes)) = (&now, &found.pending, &after.passing) {
        // The call in flight was to end it again.
        found.pending = Some(Pending { before: now.before.0, bytes: Arc::clone(bytes), token: now.token });
    } else {
        assert!(ids.contains(&id), "{what}: operation {id:?}, expected one of {ids:?}");
    }
    if let Some(pending) = &found.pending {
        let point = PointId::Snapshot(Epoch(pending.before));
        let bytes = read_all(view, point, pending.bytes.len(), random).expect(what);
        assert_same(&bytes, &pending.bytes, &format!("{what}: the state before the operation"));
    }
}

fn open_view(store: &Memory, origin: &Memory, what: &str) -> View {
    let origin: Arc<dyn ReadAt> = Arc::new(origin.snapshot());
    View::open(Arc::new(store.snapshot()), Some(origin))
        .unwrap_or_else(|error| unreachable!("{what}: cannot open: {error}"))
}

/// Opens for writing, checks, rolls back what is pending or closes, checks again.
fn check_writer(store: &Memory, origin: &Memory, model: &Model, random: &mut Random, what: &str) {
    let (store, origin) = (Arc::new(store.snapshot()), Arc::new(origin.snapshot()));
    let open = || {
        let (store, origin): (Arc<dyn WriteAt>, Arc<dyn WriteAt>) = (store.clone(), origin.clone());
        Writer::open(store, Some(origin), 5).unwrap_or_else(|error| unreachable!("{what}: {error}"))
    };
    let mut writer = open();
    crate::model::check_points(writer.view(), model, random, &format!("{what}, writer"));
    if let Some(pending) = &model.pending {
        writer.roll_back(&Silent).unwrap_or_else(|error| unreachable!("{what}: {error}"));
        let mut now = origin.to_vec().expect("small");
        now.truncate(pending.bytes.len());
        assert_same(&now, &pending.bytes, &format!("{what}: rolled back"));
    }
    writer.close().expect("close");
    let mut model = model.clone();
    if let Some(pending) = model.pending.take() {
        model.origin = pending.bytes;
    }
    crate::model::check_points(open().view(), &model, random, &format!("{what}, closed after the crash"));
}

/// Pairs of images to try: the four extremes, and some at random.
fn pairs(stores: usize, origins: usize, random: &mut Random, extra: usize) -> Vec<(usize, usize)> {
    let mut pairs = vec![(0, 0), (1.min(stores - 1), 1.min(origins - 1))];
    pairs.extend([(0, 1.min(origins - 1)), (1.min(stores - 1), 0)]);
    pairs.extend((0..extra).map(|_| (random.pick(stores), random.pick(origins))));
    pairs.sort_unstable();
    pairs.dedup();
    pairs
}

/// Walks a run's events and tries crashes after each `n` that `chosen` picks; `again` crashes a second time.
fn crash_everywhere(run: &Run, seed: u64, chance: u64, again: usize) -> usize {
    let events: Vec<Event> = run.log.events();
    let (mut store, mut origin) = (Replay::new(&run.store, STORE), Replay::new(&run.origin, ORIGIN));
    let mut random = Random(seed ^ 0xc4a5);
    let mut tried = 0;
    let first = run.steps.first().map_or(0, |step| step.end);
    for n in 0..=events.len() {
        if n > 0 {
            store.step(&events[n - 1]);
            origin.step(&events[n - 1]);
        }
        let initializing = run.steps[0].label == "initialize" && n < first;
        if initializing || random.below(chance) != 0 {
            continue;
        }
        let stores: Vec<CrashImage> = store.images(random.next(), 3).collect();
        let origins: Vec<CrashImage> = origin.images(random.next(), 2).collect();
        let (label, before, after) = run.step_at(n);
        for (s, o) in pairs(stores.len(), origins.len(), &mut random, 3) {
            let (s, o) = (&stores[s], &origins[o]);
            let what = format!(
                "seed {seed}, {n} of {} events, in {label}; store: {}; origin: {}",
                events.len(),
                s.label,
                o.label
            );
            let view = open_view(&s.content, &o.content, &what);
            let found = check(&view, &o.content, before, after, &mut random, &what);
            tried += 1;
            if random.below(4) == 0 {
                check_writer(&s.content, &o.content, &found, &mut random, &what);
            }
            if again > 0 && random.below(16) == 0 {
                let next = Run::record(&s.content, &o.content, Some(found), random.next(), 5);
                tried += crash_everywhere(&next, random.next(), 24, again - 1);
            }
        }
        // An open after a crash repairs the copy that was torn; until then the other one is all there is.
        if n >= first {
            let what = format!("seed {seed}, {n} events");
            lose_superblocks(&stores[0], &origins[0], (before, after), &mut random, &what);
        }
    }
    tried
}

/// Either copy of the superblock can be lost at any time.
fn lose_superblocks(
    store: &CrashImage,
    origin: &CrashImage,
    (before, after): (&Model, &Model),
    random: &mut Random,
    what: &str,
) {
    for (name, offset) in [("A", 64 << 10), ("B", 512 << 10)] {
        let damaged = store.content.snapshot();
        damaged.write_at(&random.bytes(4096), offset).expect("inside");
        let what = format!("{what}, superblock {name} lost");
        let view = open_view(&damaged, &origin.content, &what);
        let found = check(&view, &origin.content, before, after, random, &what);
        if random.below(8) == 0 {
            check_writer(&damaged, &origin.content, &found, random, &what);
        }
    }
}

fn origin_of(seed: u64) -> Memory {
    let mut random = Random(seed);
    let length = (100 << 10) + index(random.below(60 << 10));
    Memory::from_bytes(&random.bytes(length)).named("origin")
}

#[test]
fn snapshots_survive_a_crash_anywhere_and_another_one_after_it() {
    let mut tried = 0;
    for seed in seeds(10) {
        let store_size = if seed % 3 == 0 { 16 << 20 } else { 5 << 19 };
        let run = Run::record(&Memory::new(store_size), &origin_of(seed), None, seed, 60);
        tried += crash_everywhere(&run, seed, (40 / depth()).max(1), 2);
    }
    eprintln!("{tried} crashes");
}
