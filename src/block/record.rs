//! Records every change of a device in order, and builds what a crash at any moment may leave behind.
//!
//! The model is a disk with a volatile cache: after a crash every write before the device's last flush is
//! there; of the writes after it (the *window*) any subset may be, in any order, and each of them may be torn
//! between sectors. A flush of one device promises nothing about another.

use super::memory::Memory;
use super::{ReadAt, WriteAt};
use crate::error::Result;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Names one of the devices that share a [`Log`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u32);

/// A change of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// These bytes were written at this offset.
    Write {
        /// Byte offset.
        offset: u64,
        /// What was written.
        bytes: Arc<[u8]>,
    },
    /// Every earlier change of the same device is durable.
    Flush,
    /// The size changed to this many bytes; volatile like a write until the next flush.
    SetSize(u64),
}

/// One entry of a [`Log`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Which device changed.
    pub device: DeviceId,
    /// How.
    pub change: Change,
}

/// The changes of one or more devices in one order. Clones are the same log.
#[derive(Debug, Clone, Default)]
pub struct Log {
    events: Arc<Mutex<Vec<Event>>>,
}

impl Log {
    /// An empty log.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Everything that happened so far.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.lock().clone()
    }

    /// Number of events so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// True if nothing happened yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `call` and records `change` if it succeeds. The lock is held all the while, so that the order in
    /// the log is the order on the devices even when threads compete. What failed is not recorded: a failed
    /// flush promises nothing.
    fn record(&self, device: DeviceId, change: Change, call: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut events = self.lock();
        call()?;
        events.push(Event { device, change });
        Ok(())
    }
}

/// Passes everything through to `inner` and records every change that succeeded.
#[derive(Debug)]
pub struct Recorder<D> {
    inner: D,
    device: DeviceId,
    log: Log,
}

impl<D: WriteAt> Recorder<D> {
    /// Records the changes of `inner` into `log` under the name `device`.
    pub fn new(inner: D, log: &Log, device: DeviceId) -> Self {
        Self { inner, device, log: log.clone() }
    }

    /// What lies below.
    pub fn inner(&self) -> &D {
        &self.inner
    }
}

impl<D: WriteAt> ReadAt for Recorder<D> {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.inner.read_at(buf, offset)
    }

    fn read_cached(&self, buf: &mut [u8], offset: u64) -> Result<bool> {
        self.inner.read_cached(buf, offset)
    }

    fn file_stamp(&self) -> Option<(u64, u64, i64)> {
        self.inner.file_stamp()
    }
}

impl<D: WriteAt> WriteAt for Recorder<D> {
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let change = Change::Write { offset, bytes: buf.into() };
        self.log.record(self.device, change, || self.inner.write_at(buf, offset))
    }

    fn flush(&self) -> Result<()> {
        self.log.record(self.device, Change::Flush, || self.inner.flush())
    }

    fn set_size(&self, size_bytes: u64) -> Result<()> {
        self.log.record(self.device, Change::SetSize(size_bytes), || self.inner.set_size(size_bytes))
    }
}

/// What one device may look like after a crash.
#[derive(Debug, Clone)]
pub struct CrashImage {
    /// How it came about, for the message of a failing test.
    pub label: String,
    /// The content.
    pub content: Memory,
}

/// The images one device may show if the machine stops after the first `n` of `events`; `initial` is its
/// content before the first event.
///
/// In order: everything arrived; nothing of the window arrived; the last write torn in several ways after all
/// others; then `random_count` random ones. The same arguments give the same images. For every prefix of a
/// long log [`Replay`] does the same work without starting over.
pub fn crash_images(
    initial: &Memory,
    events: &[Event],
    device: DeviceId,
    n: usize,
    seed: u64,
    random_count: usize,
) -> impl Iterator<Item = CrashImage> + use<> {
    let mut replay = Replay::new(initial, device);
    for event in events.iter().take(n) {
        replay.step(event);
    }
    replay.into_images(seed, random_count)
}

/// A walk through a log: what is durable on one device, and what is still in the window.
#[derive(Debug, Clone)]
pub struct Replay {
    device: DeviceId,
    durable: Memory,
    window: Vec<Change>,
}

impl Replay {
    /// Begins before the first event, with `initial` on the device.
    #[must_use]
    pub fn new(initial: &Memory, device: DeviceId) -> Self {
        Self { device, durable: initial.snapshot(), window: Vec::new() }
    }

    /// Passes one event; those of other devices change nothing.
    pub fn step(&mut self, event: &Event) {
        if event.device != self.device {
            return;
        }
        match &event.change {
            Change::Flush => {
                for change in self.window.drain(..) {
                    apply(&self.durable, &change);
                }
            }
            change => self.window.push(change.clone()),
        }
    }

    /// Number of changes that a crash now may lose.
    #[must_use]
    pub fn window_len(&self) -> usize {
        self.window.len()
    }

    /// The images of a crash now, as [`crash_images`] describes them.
    pub fn images(&self, seed: u64, random_count: usize) -> impl Iterator<Item = CrashImage> + use<> {
        self.clone().into_images(seed, random_count)
    }

    fn into_images(self, seed: u64, random_count: usize) -> impl Iterator<Item = CrashImage> + use<> {
        let mut plans = vec![Plan::all("all of the window", &self.window)];
        // With an empty window there is one possible image only.
        if !self.window.is_empty() {
            plans.push(Plan { label: "none of the window".into(), changes: Vec::new() });
            plans.extend(torn_last(&self.window));
        }
        let mut random = Random::new(seed);
        let random_count = if self.window.is_empty() { 0 } else { random_count };
        let window = self.window;
        let random_plans = (0..random_count).map(move |i| Plan::random(i, seed, &window, &mut random));
        let durable = self.durable;
        plans.into_iter().chain(random_plans).map(move |plan| {
            let content = durable.snapshot();
            for change in &plan.changes {
                apply(&content, change);
            }
            CrashImage { label: plan.label, content }
        })
    }
}

/// A choice of changes, in the order in which they reach the disk.
struct Plan {
    label: String,
    changes: Vec<Change>,
}

impl Plan {
    fn all(label: &str, window: &[Change]) -> Self {
        Self { label: label.into(), changes: window.to_vec() }
    }

    fn random(index: usize, seed: u64, window: &[Change], random: &mut Random) -> Self {
        // Mostly-kept and mostly-lost windows find different mistakes than coin tosses do.
        let keep_of_8 = 1 + random.below(7);
        let mut kept: Vec<usize> = (0..window.len()).filter(|_| random.below(8) < keep_of_8).collect();
        for i in (1..kept.len()).rev() {
            kept.swap(i, random.below(i + 1));
        }
        let mut changes = Vec::new();
        for &i in &kept {
            match &window[i] {
                Change::Write { offset, bytes } if random.below(4) == 0 => {
                    let grain = [512, 4096][random.below(2)];
                    changes
                        .extend(sectors(*offset, bytes, grain).into_iter().filter(|_| random.below(2) == 0));
                }
                change => changes.push(change.clone()),
            }
        }
        Self { label: format!("random {index} of seed {seed}: window changes {kept:?}"), changes }
    }
}

/// Tears the last write of the window between its sectors, everything before it applied.
fn torn_last(window: &[Change]) -> Vec<Plan> {
    let Some(last) = window.iter().rposition(|change| matches!(change, Change::Write { .. })) else {
        return Vec::new();
    };
    let Change::Write { offset, bytes } = &window[last] else { return Vec::new() };
    let mut plans = Vec::new();
    for grain in [512, 4096] {
        let parts = sectors(*offset, bytes, grain);
        let count = parts.len();
        if count < 2 {
            continue;
        }
        let mut tears = vec![
            ("first sector only", 0..1),
            ("all but the first sector", 1..count),
            ("all but the last sector", 0..count - 1),
            ("last sector only", count - 1..count),
        ];
        if count > 3 {
            tears.push(("first half", 0..count / 2));
            tears.push(("second half", count / 2..count));
        }
        for (name, range) in tears {
            let others = window.iter().enumerate().filter(|(i, _)| *i != last).map(|(_, change)| change);
            let changes = others.chain(&parts[range]).cloned().collect();
            let label = format!("last write ({} bytes at {offset}) torn at {grain}: {name}", bytes.len());
            plans.push(Plan { label, changes });
        }
    }
    plans
}

/// Splits a write into the sectors of the device it touches.
fn sectors(offset: u64, bytes: &[u8], grain: usize) -> Vec<Change> {
    let mut parts = Vec::new();
    let mut done = 0;
    while done < bytes.len() {
        let at = offset + done as u64;
        let into_sector = usize::try_from(at % grain as u64).expect("less than a sector");
        let take = (grain - into_sector).min(bytes.len() - done);
        parts.push(Change::Write { offset: at, bytes: bytes[done..done + take].into() });
        done += take;
    }
    parts
}

/// Applies a change to an image. A write past the end (its size change was lost) is clipped.
fn apply(content: &Memory, change: &Change) {
    match change {
        Change::Write { offset, bytes } => {
            let room = usize::try_from(content.size().saturating_sub(*offset)).unwrap_or(usize::MAX);
            let bytes = &bytes[..bytes.len().min(room)];
            if !bytes.is_empty() {
                content.write_at(bytes, *offset).expect("clipped to the size");
            }
        }
        Change::SetSize(size) => content.set_size(*size).expect("memory takes any size"),
        Change::Flush => {}
    }
}

/// SplitMix64: small, good enough to pick subsets, and the same everywhere for the same seed.
#[derive(Debug)]
struct Random {
    state: u64,
}

impl Random {
    fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not zero.
    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("below a usize")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::faulty::{Faulty, Operation};
    use crate::error::Kind;
    use std::collections::BTreeSet;

    const STORE: DeviceId = DeviceId(0);
    const ORIGIN: DeviceId = DeviceId(1);

    fn contents(images: impl Iterator<Item = CrashImage>) -> Vec<Vec<u8>> {
        images.map(|image| image.content.to_vec().unwrap()).collect()
    }

    #[test]
    fn one_log_keeps_the_order_of_two_devices() {
        let log = Log::new();
        assert!(log.is_empty());
        let store = Recorder::new(Memory::new(10), &log, STORE);
        let origin = Recorder::new(Memory::new(10), &log, ORIGIN);
        store.write_at(&[1, 2], 3).unwrap();
        store.flush().unwrap();
        origin.write_at(&[4], 5).unwrap();
        store.set_size(20).unwrap();
        let write = |device, offset, bytes: &[u8]| Event {
            device,
            change: Change::Write { offset, bytes: bytes.into() },
        };
        let expected = [
            write(STORE, 3, &[1, 2]),
            Event { device: STORE, change: Change::Flush },
            write(ORIGIN, 5, &[4]),
            Event { device: STORE, change: Change::SetSize(20) },
        ];
        assert_eq!(log.events(), expected);
        assert_eq!(log.len(), 4);
        assert_eq!(store.inner().to_vec().unwrap()[3..5], [1, 2]);
    }

    #[test]
    fn what_failed_is_not_in_the_log() {
        let log = Log::new();
        let device = Faulty::new(Memory::new(10));
        device.fail_nth(Operation::Write, 1, Kind::Io);
        device.fail_nth(Operation::Flush, 1, Kind::Io);
        let recorder = Recorder::new(device, &log, STORE);
        assert!(recorder.write_at(&[1], 0).is_err());
        assert!(recorder.flush().is_err());
        assert!(log.is_empty());
        recorder.write_at(&[1], 0).unwrap();
        assert_eq!(log.len(), 1);
    }

    /// Two one-byte writes, a flush of each device in between: which images are possible after each event.
    #[test]
    fn the_flush_decides_what_a_crash_can_lose() {
        let log = Log::new();
        let initial = Memory::new(2);
        let store = Recorder::new(initial.snapshot(), &log, STORE);
        let origin = Recorder::new(Memory::new(2), &log, ORIGIN);
        store.write_at(&[1], 0).unwrap();
        origin.flush().unwrap();
        store.flush().unwrap();
        store.write_at(&[2], 1).unwrap();
        store.write_at(&[3], 0).unwrap();
        let expected: [&[[u8; 2]]; 6] = [
            &[[0, 0]],
            &[[0, 0], [1, 0]],
            &[[0, 0], [1, 0]], // the origin's flush says nothing about the store
            &[[1, 0]],
            &[[1, 0], [1, 2]],
            &[[1, 0], [1, 2], [3, 0], [3, 2]],
        ];
        for (n, possible) in expected.iter().enumerate() {
            let seen: BTreeSet<Vec<u8>> =
                contents(crash_images(&initial, &log.events(), STORE, n, 1, 100)).into_iter().collect();
            let possible: BTreeSet<Vec<u8>> = possible.iter().map(|bytes| bytes.to_vec()).collect();
            assert_eq!(seen, possible, "after {n} events");
        }
        assert_eq!(initial.to_vec().unwrap(), [0, 0]);
    }

    #[test]
    fn the_last_write_is_torn_at_sectors_of_the_device() {
        let log = Log::new();
        let initial = Memory::new(16 << 10);
        let device = Recorder::new(initial.snapshot(), &log, STORE);
        // Begins in the middle of a sector: 256 bytes, then 15 whole sectors, then 256 bytes.
        device.write_at(&[7; 8192], 256).unwrap();
        let images: Vec<_> = crash_images(&initial, &log.events(), STORE, 1, 1, 0).collect();
        let written =
            |image: &CrashImage| image.content.to_vec().unwrap().iter().filter(|&&b| b == 7).count();
        let counts: Vec<usize> = images.iter().map(written).collect();
        let at_512 = [256, 8192 - 256, 8192 - 256, 256, 256 + 7 * 512, 256 + 8 * 512];
        let at_4096 = [3840, 8192 - 3840, 3840 + 4096, 256];
        assert_eq!(counts, [&[8192, 0][..], &at_512, &at_4096].concat());
        let first = images[2].content.to_vec().unwrap();
        assert!(first[256..512].iter().all(|&b| b == 7), "{}", images[2].label);
    }

    #[test]
    fn a_single_sector_is_never_torn() {
        let log = Log::new();
        let initial = Memory::new(4096);
        let device = Recorder::new(initial.snapshot(), &log, STORE);
        device.write_at(&[7; 512], 1024).unwrap();
        let seen: BTreeSet<_> =
            contents(crash_images(&initial, &log.events(), STORE, 1, 9, 200)).into_iter().collect();
        assert_eq!(seen.len(), 2, "whole or not at all");
    }

    #[test]
    fn a_seed_repeats_itself_and_another_differs() {
        let log = Log::new();
        let initial = Memory::new(64 << 10);
        let device = Recorder::new(initial.snapshot(), &log, STORE);
        for i in 0..16u8 {
            device.write_at(&[i + 1; 4096], u64::from(i) * 4096).unwrap();
        }
        let images = |seed| contents(crash_images(&initial, &log.events(), STORE, 16, seed, 20));
        assert_eq!(images(5), images(5));
        assert_ne!(images(5), images(6));
        let distinct: BTreeSet<_> = images(5).into_iter().collect();
        assert!(distinct.len() > 15, "only {} different images", distinct.len());
    }

    #[test]
    fn overlapping_writes_may_arrive_in_either_order() {
        let log = Log::new();
        let initial = Memory::new(512);
        let device = Recorder::new(initial.snapshot(), &log, STORE);
        device.write_at(&[1; 2], 0).unwrap();
        device.write_at(&[2; 2], 1).unwrap();
        let seen: BTreeSet<_> = contents(crash_images(&initial, &log.events(), STORE, 2, 3, 200))
            .into_iter()
            .map(|bytes| bytes[..3].to_vec())
            .collect();
        let expected = [[0, 0, 0], [0, 2, 2], [1, 1, 0], [1, 1, 2], [1, 2, 2]];
        assert_eq!(seen, expected.iter().map(|bytes| bytes.to_vec()).collect());
    }

    #[test]
    fn a_lost_size_change_takes_the_writes_behind_it_along() {
        let log = Log::new();
        let initial = Memory::from_bytes(&[1; 4]);
        let device = Recorder::new(initial.snapshot(), &log, STORE);
        device.set_size(6).unwrap();
        device.write_at(&[2, 2, 2], 3).unwrap();
        let seen: BTreeSet<_> =
            contents(crash_images(&initial, &log.events(), STORE, 2, 3, 200)).into_iter().collect();
        assert!(seen.contains(&vec![1, 1, 1, 2, 2, 2]));
        assert!(seen.contains(&vec![1, 1, 1, 1]));
        assert!(seen.contains(&vec![1, 1, 1, 2]), "only the part inside the old size");
        assert!(seen.contains(&vec![1, 1, 1, 1, 0, 0]));
    }

    #[test]
    fn replay_step_by_step_equals_starting_over() {
        let log = Log::new();
        let initial = Memory::new(8192);
        let device = Recorder::new(initial.snapshot(), &log, STORE);
        for i in 0..10u8 {
            device.write_at(&[i + 1; 1000], u64::from(i) * 500).unwrap();
            if i % 3 == 2 {
                device.flush().unwrap();
            }
        }
        let events = log.events();
        assert_eq!(events.len(), 13);
        let mut replay = Replay::new(&initial, STORE);
        for n in 0..=events.len() {
            let whole = contents(crash_images(&initial, &events, STORE, n, 2, 5));
            assert_eq!(contents(replay.images(2, 5)), whole, "after {n} events");
            if let Some(event) = events.get(n) {
                replay.step(event);
            }
        }
        assert_eq!(replay.window_len(), 1);
    }
}
