//! The store as it ought to be: an in-memory map of points to bytes, and a world that does the same to it and
//! to a real store.

pub use crate::random::{Random, depth, seeds};
use ddsnap::block::{ReadAt, WriteAt};
use ddsnap::error::{Error, Kind};
use ddsnap::point::{Identity, PointId, PointSource};
use ddsnap::progress::Silent;
use ddsnap::store::{InitOptions, Preserved, SnapshotInfo, SnapshotState, View, Writer};
use ddsnap::units::{Epoch, Tag, index};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A snapshot as it ought to be.
#[derive(Debug, Clone)]
pub struct Snap {
    pub tag: u32,
    pub name: Option<String>,
    pub bytes: Arc<Vec<u8>>,
    pub priority: i8,
    pub use_count: u32,
    /// Chunks written on the snapshot itself.
    pub written: BTreeSet<u64>,
    pub squashed: bool,
}

/// A long operation that is under way.
#[derive(Debug, Clone)]
pub struct Pending {
    pub before: u64,
    pub bytes: Arc<Vec<u8>>,
    pub token: [u8; 32],
}

/// All points as they ought to be.
#[derive(Debug, Clone)]
pub struct Model {
    pub chunk_size: u64,
    pub origin: Arc<Vec<u8>>,
    /// What the origin held since it was last durable, that content first.
    pub versions: Vec<Arc<Vec<u8>>>,
    pub snaps: BTreeMap<u64, Snap>,
    pub pending: Option<Pending>,
    /// The state before a long operation that the last call both began and ended.
    pub passing: Option<Arc<Vec<u8>>>,
    /// What the store may say that the origin equals, and the content meant.
    pub equals: Option<(Identity, Arc<Vec<u8>>)>,
    /// Chunks of the origin written in each epoch; `None` after a crash, when that is not known exactly.
    pub touched: Option<BTreeMap<u64, BTreeSet<u64>>>,
    pub epoch: u64,
    /// What the last call wrote on a snapshot that the store then gave up to make room for it.
    pub given_up: BTreeMap<u64, Arc<Vec<u8>>>,
}

impl Model {
    pub fn new(chunk_size: u64, origin: Vec<u8>) -> Self {
        let origin = Arc::new(origin);
        Self {
            chunk_size,
            versions: vec![Arc::clone(&origin)],
            origin,
            snaps: BTreeMap::new(),
            pending: None,
            passing: None,
            equals: None,
            touched: Some(BTreeMap::new()),
            epoch: 0,
            given_up: BTreeMap::new(),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let at = index(offset);
        Arc::make_mut(&mut self.origin)[at..at + data.len()].copy_from_slice(data);
        self.versions.push(Arc::clone(&self.origin));
        self.touch(offset, data.len() as u64);
        if !data.is_empty() {
            self.equals = None;
        }
    }

    fn touch(&mut self, offset: u64, length: u64) {
        if let (Some(touched), true) = (&mut self.touched, length > 0) {
            let chunks = offset / self.chunk_size..=(offset + length - 1) / self.chunk_size;
            touched.entry(self.epoch).or_default().extend(chunks);
        }
    }

    /// Cuts or lengthens the origin.
    fn resize(&mut self, size: usize) {
        let before = self.origin.len();
        Arc::make_mut(&mut self.origin).resize(size, 0);
        let (low, high) = (before.min(size) as u64, before.max(size) as u64);
        self.touch(low, high - low);
    }

    /// A long operation has begun.
    fn begun(&mut self, before: u64, token: [u8; 32]) {
        self.pending = Some(Pending { before, bytes: Arc::clone(&self.origin), token });
        self.epoch = before;
        self.settle_origin();
    }

    fn settle_origin(&mut self) {
        self.versions = vec![Arc::clone(&self.origin)];
    }

    /// What `point` holds; the snapshot of a long operation counts as one.
    pub fn bytes(&self, point: PointId) -> &Arc<Vec<u8>> {
        match point {
            PointId::Origin => &self.origin,
            PointId::Snapshot(id) => match &self.pending {
                Some(pending) if pending.before == id.0 => &pending.bytes,
                _ => &self.snaps[&id.0].bytes,
            },
        }
    }

    pub fn readable(&self) -> Vec<u64> {
        self.snaps.iter().filter(|(_, snap)| !snap.squashed).map(|(id, _)| *id).collect()
    }

    /// Every chunk that may differ between two points because it was written.
    fn touched_between(&self, a: PointId, b: PointId) -> Option<BTreeSet<u64>> {
        let epoch = |point| match point {
            PointId::Origin => u64::MAX,
            PointId::Snapshot(id) => id.0,
        };
        let (low, high) = (epoch(a).min(epoch(b)), epoch(a).max(epoch(b)));
        let mut all: BTreeSet<u64> =
            self.touched.as_ref()?.range(low..high).flat_map(|(_, chunks)| chunks).copied().collect();
        for point in [a, b] {
            if let PointId::Snapshot(id) = point {
                all.extend(&self.snaps[&id.0].written);
            }
        }
        Some(all)
    }
}

/// All bytes of `point`, read in pieces that begin and end anywhere.
pub fn read_all(view: &View, point: PointId, length: usize, random: &mut Random) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; length];
    let mut at = 0;
    while at < length {
        let piece = (1 + random.pick(160 << 10)).min(length - at);
        view.read(point, at as u64, &mut bytes[at..at + piece])?;
        at += piece;
    }
    Ok(bytes)
}

/// Asserts that both are equal and says where they are not.
pub fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    if found == expected {
        return;
    }
    let at = found.iter().zip(expected).position(|(a, b)| a != b);
    let count = found.iter().zip(expected).filter(|(a, b)| a != b).count();
    assert!(
        found == expected,
        "{what}: {} bytes against {}, {count} differ, first at {at:?}",
        found.len(),
        expected.len()
    );
}

/// Compares everything that `view` answers about the points of `model`.
pub fn check_points(view: &View, model: &Model, random: &mut Random, what: &str) {
    let odd = view.change_bits_against_exceptions().expect(what);
    assert_eq!(odd, [], "{what}: change bits without an exception, or an exception without its bit");
    for (id, snap) in &model.snaps {
        let point = PointId::Snapshot(Epoch(*id));
        if snap.squashed {
            let error = view.read(point, 0, &mut [0]).expect_err("a squashed snapshot was read");
            assert_eq!(error.kind(), Kind::NotFound, "{what}");
            continue;
        }
        let label = format!("{what}: snapshot {id}");
        let found = read_all(view, point, snap.bytes.len(), random).expect(&label);
        assert_same(&found, &snap.bytes, &label);
        check_crcs(view, model, point, &label);
    }
    if let Some(pending) = &model.pending {
        let point = PointId::Snapshot(Epoch(pending.before));
        let found = read_all(view, point, pending.bytes.len(), random).expect("hidden snapshot");
        assert_same(&found, &pending.bytes, &format!("{what}: the state before the operation"));
    }
    let found = read_all(view, PointId::Origin, model.origin.len(), random).expect("origin");
    assert_same(&found, &model.origin, &format!("{what}: origin"));
    let mut points: Vec<_> = model.readable().into_iter().map(|id| PointId::Snapshot(Epoch(id))).collect();
    points.push(PointId::Origin);
    for pair in points.windows(2) {
        check_changes(view, model, pair[0], pair[1], what);
    }
    for _ in 0..3 {
        let (a, b) = (points[random.pick(points.len())], points[random.pick(points.len())]);
        if a != b {
            check_changes(view, model, a, b, what);
        }
    }
}

fn check_crcs(view: &View, model: &Model, point: PointId, what: &str) {
    for (number, chunk) in model.bytes(point).chunks(index(model.chunk_size)).enumerate() {
        if let Some(crc) = view.known_crc(point, number as u64).expect(what) {
            assert_eq!(crc, crc32fast::hash(chunk), "{what}: known checksum of chunk {number}");
        }
    }
}

fn check_changes(view: &View, model: &Model, a: PointId, b: PointId, what: &str) {
    let mut listed = BTreeSet::new();
    let mut last = None;
    for range in view.changed(Some(a), b).expect(what) {
        let range = range.expect(what);
        assert!(range.start < range.end, "{what}: empty range");
        assert!(last.is_none_or(|last| last < range.start), "{what}: ranges touch or go back");
        last = Some(range.end);
        listed.extend(range.start..range.end);
    }
    let size = index(model.chunk_size);
    for (number, (x, y)) in model.bytes(a).chunks(size).zip(model.bytes(b).chunks(size)).enumerate() {
        let number = number as u64;
        assert!(x == y || listed.contains(&number), "{what}: {a:?}..{b:?} misses chunk {number}");
    }
    let shared = model.bytes(a).len().min(model.bytes(b).len()) / size;
    let total = model.bytes(b).len().div_ceil(size);
    if model.bytes(a).len() != model.bytes(b).len() {
        let tail: BTreeSet<u64> = (shared as u64..total as u64).collect();
        assert!(tail.is_subset(&listed), "{what}: {a:?}..{b:?} misses what only one has");
        return;
    }
    if let Some(touched) = model.touched_between(a, b) {
        let extra: Vec<_> = listed.difference(&touched).collect();
        assert!(extra.is_empty(), "{what}: {a:?}..{b:?} lists chunks never written: {extra:?}");
    }
}

/// True if `info` says of the snapshot what `snap` does.
pub fn same_row(info: &SnapshotInfo, snap: &Snap) -> bool {
    info.tag == Tag(snap.tag)
        && info.name == snap.name
        && info.priority == snap.priority
        && info.use_count == snap.use_count
        && info.size_bytes == snap.bytes.len() as u64
        && (info.state == SnapshotState::Squashed) == snap.squashed
        && !info.tainted
}

/// What a world is made of.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub store_size: u64,
    pub origin_size: u64,
    pub chunk_size: u32,
}

/// Options that fit `shape`.
pub fn options(shape: Shape) -> InitOptions {
    InitOptions {
        chunk_size: shape.chunk_size,
        block_size: 4096,
        origin_path: "/origin".into(),
        origin_size: shape.origin_size,
        now_secs: 1_700_000_000,
    }
}

/// A store, its origin, the model, and what comes next.
pub struct World {
    pub store: Arc<dyn WriteAt>,
    pub origin: Arc<dyn WriteAt>,
    pub writer: Option<Writer>,
    pub model: Model,
    pub random: Random,
    /// The store may run full: snapshots may go, calls may fail for want of space.
    pub tight: bool,
    /// The policy is to squash.
    pub squash: bool,
    pub snapshots_max: usize,
    pub refused: usize,
    pub lost: usize,
}

impl World {
    /// Formats `store`, opens it for a copy of what `origin` holds now.
    pub fn new(store: Arc<dyn WriteAt>, origin: Arc<dyn WriteAt>, chunk_size: u32, seed: u64) -> Self {
        let shape = Shape { store_size: store.size(), origin_size: origin.size(), chunk_size };
        Writer::initialize(&store, &options(shape)).expect("initialize");
        let mut bytes = vec![0; index(origin.size())];
        origin.read_at(&mut bytes, 0).expect("origin");
        Self::adopt(store, origin, Model::new(u64::from(chunk_size), bytes), seed)
    }

    /// Opens a store that holds what `model` says.
    pub fn adopt(store: Arc<dyn WriteAt>, origin: Arc<dyn WriteAt>, model: Model, seed: u64) -> Self {
        let writer = Writer::open(Arc::clone(&store), Some(Arc::clone(&origin)), 1).expect("open");
        Self {
            store,
            origin,
            writer: Some(writer),
            model,
            random: Random(seed),
            tight: false,
            squash: false,
            snapshots_max: 8,
            refused: 0,
            lost: 0,
        }
    }

    pub fn view(&self) -> &View {
        self.writer.as_ref().expect("open").view()
    }

    fn writer(&mut self) -> &mut Writer {
        self.writer.as_mut().expect("open")
    }

    /// Does something at random to both; says what.
    pub fn step(&mut self) -> String {
        self.model.given_up.clear();
        self.model.passing = None;
        let label = match self.random.below(100) {
            0..=47 => self.write(),
            48..=61 => self.create(),
            62..=69 => self.delete(),
            70..=76 => self.write_snapshot(),
            77..=78 => self.set_priority(),
            79..=80 => self.use_count(),
            81..=83 => self.reopen(true),
            84..=86 => self.reopen(false),
            87..=90 => self.begin(),
            91..=92 => self.end(),
            93..=94 => self.roll_back(),
            95..=96 => self.resize_origin(),
            97 => self.resize_store(),
            _ => self.revert(),
        };
        self.follow(&label);
        label
    }

    /// Asserts that `outcome` is success, or want of space where that is allowed.
    fn granted<T>(&mut self, outcome: Result<T, Error>, what: &str) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                assert!(self.tight && error.kind() == Kind::NoSpace, "{what}: {error}");
                self.refused += 1;
                None
            }
        }
    }

    fn extent(&mut self, size: usize) -> (u64, Vec<u8>) {
        let size = size as u64;
        let offset = self.random.below(size);
        let most = [1, 700, 4096, 20_000, 90_000, 400_000][self.random.pick(6)];
        let length = (1 + self.random.below(most)).min(size - offset);
        let data = match self.random.below(6) {
            0 => vec![0; index(length)],
            _ => self.random.bytes(index(length)),
        };
        match self.random.below(3) {
            // Whole chunks: the common case of every file system.
            0 => (offset / self.model.chunk_size * self.model.chunk_size, data),
            _ => (offset, data),
        }
    }

    pub fn write(&mut self) -> String {
        let (offset, data) = self.extent(self.model.origin.len());
        let label = format!("write {} at {offset}", data.len());
        let outcome = self.writer().write_origin(offset, &data);
        match self.granted(outcome, &label) {
            Some(()) => self.model.write(offset, &data),
            None => {
                // The copies made for it stay, and its generation counts.
                self.model.touch(offset, data.len() as u64);
                if self.view().info().origin_equals.is_none() {
                    self.model.equals = None;
                }
            }
        }
        label
    }

    pub fn create(&mut self) -> String {
        if self.model.pending.is_some() {
            let error = self.writer().create_snapshot(Tag(7), None).expect_err("made while pending");
            assert_eq!(error.kind(), Kind::Busy);
            return "create while an operation is pending".into();
        }
        if self.model.snaps.len() >= self.snapshots_max {
            return self.delete();
        }
        let tag = (0..).find(|tag| self.model.snaps.values().all(|snap| snap.tag != *tag)).unwrap_or(0);
        let name = (self.random.below(3) == 0).then(|| format!("name {}", self.random.next()));
        let outcome = self.writer().create_snapshot(Tag(tag), name.as_deref());
        let Some(info) = self.granted(outcome, "create") else { return "create, refused".into() };
        self.model.epoch = info.id.0;
        self.model.settle_origin();
        let bytes = Arc::clone(&self.model.origin);
        let snap =
            Snap { tag, name, bytes, priority: 0, use_count: 0, written: BTreeSet::new(), squashed: false };
        self.model.snaps.insert(info.id.0, snap);
        format!("create {}", info.id)
    }

    fn any_snapshot(&mut self) -> Option<u64> {
        let ids: Vec<u64> = self.model.snaps.keys().copied().collect();
        (!ids.is_empty()).then(|| ids[self.random.pick(ids.len())])
    }

    pub fn delete(&mut self) -> String {
        let Some(id) = self.any_snapshot() else { return "delete nothing".into() };
        let outcome = self.writer().delete_snapshot(Epoch(id));
        if self.model.snaps[&id].use_count > 0 {
            assert_eq!(outcome.expect_err("deleted while in use").kind(), Kind::Busy);
            return format!("delete {id}, in use");
        }
        if let (Some(_), Err(error)) = (&self.model.pending, &outcome) {
            assert_eq!(
                error.to_string(),
                format!("snapshot {} is needed by an incomplete operation", self.model.snaps[&id].tag)
            );
            return format!("delete {id}, needed");
        }
        // A full store can always delete.
        outcome.expect("delete");
        self.model.snaps.remove(&id);
        format!("delete {id}")
    }

    pub fn write_snapshot(&mut self) -> String {
        let ids = self.model.readable();
        if ids.is_empty() {
            return self.create();
        }
        let id = ids[self.random.pick(ids.len())];
        let (offset, data) = self.extent(self.model.snaps[&id].bytes.len());
        let label = format!("write {} at {offset} of snapshot {id}", data.len());
        let outcome = self.writer().write_snapshot(Epoch(id), offset, &data);
        if outcome.is_err() && self.lost_now(id) {
            // The store gave up the very snapshot to make room for it.
            let mut bytes = Vec::clone(&self.model.snaps[&id].bytes);
            bytes[index(offset)..index(offset) + data.len()].copy_from_slice(&data);
            self.model.given_up.insert(id, Arc::new(bytes));
            return label;
        }
        let chunk = self.model.chunk_size;
        let snap = self.model.snaps.get_mut(&id).expect("picked");
        snap.written.extend(offset / chunk..=(offset + data.len() as u64 - 1) / chunk);
        if outcome.is_ok() {
            Arc::make_mut(&mut snap.bytes)[index(offset)..index(offset) + data.len()].copy_from_slice(&data);
        } else {
            // Chunk by chunk it is the old or the new content.
            let bytes = Arc::clone(&snap.bytes);
            let mut random = self.random.clone();
            let found = read_all(self.view(), PointId::Snapshot(Epoch(id)), bytes.len(), &mut random);
            let found = found.expect("after a refused write");
            for (at, byte) in found.iter().enumerate() {
                let new = at.checked_sub(index(offset)).and_then(|at| data.get(at));
                assert!(*byte == bytes[at] || Some(byte) == new, "{label}: byte {at} is neither");
            }
            self.model.snaps.get_mut(&id).expect("picked").bytes = Arc::new(found);
        }
        self.granted(outcome, &label);
        label
    }

    /// True if the store does not list `id` as a usable snapshot any more.
    fn lost_now(&self, id: u64) -> bool {
        let rows = self.view().snapshots();
        !rows.iter().any(|row| row.id.0 == id && row.state == SnapshotState::Normal)
    }

    fn set_priority(&mut self) -> String {
        let Some(id) = self.any_snapshot() else { return "priority of nothing".into() };
        let priority = i8::from_le_bytes([self.random.next().to_le_bytes()[0]]);
        self.writer().set_priority(Epoch(id), priority).expect("priority");
        self.model.snaps.get_mut(&id).expect("picked").priority = priority;
        format!("priority {id} {priority}")
    }

    fn use_count(&mut self) -> String {
        let Some(id) = self.any_snapshot() else { return "use count of nothing".into() };
        let snap = self.model.snaps.get_mut(&id).expect("picked");
        // At most half are in use, so that a full store has something to give up.
        let diff = if snap.use_count > 0 { -1 } else { i32::from(id % 2 == 0) };
        snap.use_count = snap.use_count.saturating_add_signed(diff);
        let expected = snap.use_count;
        let found = self.writer().add_use_count(Epoch(id), diff).expect("use count");
        assert_eq!(found, expected);
        format!("use count {id} {diff:+}")
    }

    /// Opens the store again after closing it, or without.
    pub fn reopen(&mut self, close: bool) -> String {
        let writer = self.writer.take().expect("open");
        if close {
            writer.close().expect("close");
            self.model.settle_origin();
        } else {
            drop(writer);
        }
        let origin = Some(Arc::clone(&self.origin));
        self.writer = Some(Writer::open(Arc::clone(&self.store), origin, 2).expect("reopen"));
        format!("reopen, closed: {close}")
    }

    pub fn begin(&mut self) -> String {
        if let Some(pending) = &self.model.pending {
            let token = pending.token;
            let other = self.writer().begin_operation("other", [0xff; 32], false, None);
            assert_eq!(other.expect_err("two operations").kind(), Kind::Busy);
            self.writer().begin_operation("again", token, false, None).expect("resume");
            return "resume".into();
        }
        let token = [self.random.next().to_le_bytes()[0] & 0x7f; 32];
        let outcome = self.writer().begin_operation("an operation", token, false, None);
        if self.granted(outcome, "begin").is_some() {
            let before = self.view().info().pending.expect("begun").before.0;
            self.model.begun(before, token);
        }
        "begin".into()
    }

    fn end(&mut self) -> String {
        if self.model.pending.is_none() {
            let error = self.writer().end_operation(None).expect_err("nothing to end");
            assert_eq!(error.kind(), Kind::NotFound);
            return "end nothing".into();
        }
        let volume = self.view().info().volume;
        let identity = Identity { volume, id: self.random.next(), generation: 3 };
        self.writer().end_operation(Some(identity)).expect("end");
        self.model.pending = None;
        self.model.settle_origin();
        self.model.equals = Some((identity, Arc::clone(&self.model.origin)));
        "end".into()
    }

    pub fn roll_back(&mut self) -> String {
        let Some(pending) = self.model.pending.take() else { return self.write() };
        self.writer().roll_back(&Silent).expect("roll back");
        self.model.resize(pending.bytes.len());
        self.model.origin = pending.bytes;
        self.model.settle_origin();
        self.model.equals = None;
        "roll back".into()
    }

    /// Gives the origin any size; what it gains holds what its device says.
    pub fn resize_origin(&mut self) -> String {
        let size = index(40_000 + self.random.below(160_000));
        let label = format!("resize the origin to {size}");
        let outcome = self.writer().resize_origin(size as u64, &Silent);
        if self.model.pending.is_some() {
            assert_eq!(outcome.expect_err("resized while pending").kind(), Kind::Busy);
            return "resize while an operation is pending".into();
        }
        let before = self.model.origin.len();
        if self.granted(outcome, &label).is_none() {
            self.model.touched = None;
            return label;
        }
        self.model.resize(size);
        if size > before {
            let origin = Arc::make_mut(&mut self.model.origin);
            self.origin.read_at(&mut origin[before..], before as u64).expect("gained");
        }
        if size != before {
            self.model.equals = None;
        }
        self.model.versions.push(Arc::clone(&self.model.origin));
        label
    }

    /// Makes the store larger, or as small as its plan says it can be.
    pub fn resize_store(&mut self) -> String {
        let before = self.view().info().store_size;
        let smallest = self.writer().plan_store_size(before, Preserved::default()).smallest_bytes;
        let size = match self.random.below(3) {
            0 => smallest,
            1 => smallest + self.random.below(before - smallest + 1),
            _ => before + self.random.below(1 << 20),
        };
        let label = format!("resize the store to {size}");
        let outcome = self.writer().resize_store(size, &Silent);
        if self.model.pending.is_some() {
            assert_eq!(outcome.expect_err("resized while pending").kind(), Kind::Busy);
            return "resize the store while an operation is pending".into();
        }
        let plan = outcome.expect(&label);
        assert_eq!(self.view().info().store_size, plan.size_after, "{label}");
        assert_eq!(self.store.size(), size, "{label}");
        if smallest > 5 << 18 {
            let refused = self.writer().resize_store(5 << 18, &Silent);
            assert_eq!(refused.expect_err("far too small").kind(), Kind::NoSpace, "{label}");
        }
        label
    }

    pub fn revert(&mut self) -> String {
        let ids = self.model.readable();
        if ids.is_empty() {
            return self.create();
        }
        let id = ids[self.random.pick(ids.len())];
        let label = format!("revert to snapshot {id}");
        let outcome = self.writer().revert(Epoch(id), &Silent);
        if self.model.pending.is_some() && outcome.as_ref().is_err_and(|error| error.kind() == Kind::Busy) {
            return "revert while an operation is pending".into();
        }
        self.model.touched = None;
        if let Some(pending) = self.model.pending.take() {
            assert!(outcome.as_ref().is_ok_and(|reverted| reverted.resumed), "{label}: begun {pending:?}");
        } else {
            self.model.passing = Some(Arc::clone(&self.model.origin));
        }
        let Some(reverted) = self.granted(outcome, &label) else {
            if let Some(pending) = self.view().info().pending {
                self.model.begun(pending.before.0, pending.token);
                self.roll_back();
                // A crash before it was rolled back finds some of it.
                let bytes = Arc::clone(&self.model.snaps[&id].bytes);
                self.model.versions.push(bytes);
            }
            return label;
        };
        let bytes = Arc::clone(&self.model.snaps[&id].bytes);
        assert_eq!(reverted.size_before, self.model.origin.len() as u64, "{label}");
        assert_eq!(reverted.size_after, bytes.len() as u64, "{label}");
        let points = self.view().points();
        let identity =
            points.iter().find(|point| point.id == PointId::Snapshot(Epoch(id))).map(|point| point.identity);
        self.model.resize(bytes.len());
        self.model.origin = Arc::clone(&bytes);
        self.model.settle_origin();
        self.model.equals = identity.map(|identity| (identity, bytes));
        label
    }

    /// Lets the model follow what a full store gave up, and compares the tables.
    fn follow(&mut self, label: &str) {
        let rows: BTreeMap<u64, SnapshotInfo> =
            self.view().snapshots().into_iter().map(|row| (row.id.0, row)).collect();
        let mut gone = Vec::new();
        for (id, snap) in &mut self.model.snaps {
            match rows.get(id) {
                None => gone.push(*id),
                Some(row) if row.state == SnapshotState::Squashed && !snap.squashed => {
                    assert!(self.squash && snap.use_count > 0, "{label}: {id} squashed against the policy");
                    snap.squashed = true;
                    self.lost += 1;
                }
                Some(_) => {}
            }
        }
        let events = self.view().info().events;
        for id in &gone {
            let snap = self.model.snaps.remove(id).expect("listed");
            assert!(self.tight && snap.use_count == 0 && !snap.squashed, "{label}: snapshot {id} vanished");
            let text = format!("snapshot {} deleted: the store was full", snap.tag);
            assert!(events.iter().any(|(_, event)| *event == text), "{label}: no event for {id}");
            let unused = self.model.snaps.iter().filter(|(_, kept)| kept.use_count == 0 && !kept.squashed);
            for (kept_id, kept) in unused.filter(|(kept_id, _)| !gone.contains(kept_id)) {
                let order = (snap.priority, *id) < (kept.priority, *kept_id);
                // What was made by this very call came after the choice, and what it writes to is no choice.
                let pinned = self.view().info().pending.and_then(|pending| pending.pinned);
                let spared = *kept_id == self.model.epoch
                    || pinned == Some(Epoch(*kept_id))
                    || label.ends_with(&format!("of snapshot {kept_id}"));
                assert!(order || spared, "{label}: {id} went before {kept_id}");
            }
            self.lost += 1;
        }
        assert_eq!(rows.len(), self.model.snaps.len(), "{label}: number of snapshots");
        for (id, snap) in &self.model.snaps {
            assert!(same_row(&rows[id], snap), "{label}: {:?} against {snap:?}", rows[id]);
        }
        let info = self.view().info();
        assert_eq!(
            info.pending.map(|pending| pending.before.0),
            self.model.pending.as_ref().map(|pending| pending.before),
            "{label}: pending"
        );
        assert_eq!(info.origin_equals, self.model.equals.as_ref().map(|(identity, _)| *identity), "{label}");
    }

    /// Compares every answer, of the writer's own view and of a fresh reader.
    pub fn check(&mut self, what: &str) {
        let mut random = self.random.clone();
        check_points(self.view(), &self.model, &mut random, what);
        let store: Arc<dyn ReadAt> = Arc::<dyn WriteAt>::clone(&self.store);
        let origin: Arc<dyn ReadAt> = Arc::<dyn WriteAt>::clone(&self.origin);
        let view = View::open(store, Some(origin)).expect(what);
        check_points(&view, &self.model, &mut random, &format!("{what}, fresh reader"));
    }
}
