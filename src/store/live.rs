//! A store that many threads read and write at once: the heart of a running server.
//!
//! A writer holds the chunks that it writes from the decision whether they must be copied out until the origin has the
//! new bytes. Copy-outs go through one thread that appends what has gathered since its last flush as few records and
//! makes them durable together; only then may their origin writes begin. A snapshot is created while no writer holds
//! anything. Locks are taken in this order: `gate`, chunks, `log`, `core`; no read or write of a device happens under
//! `core` but those of the rare operations that [`Live::change`] runs.
//!
//! A reader of a snapshot that finds a chunk nowhere in the store reads the origin and looks again: if the chunk was
//! preserved in the meantime, that counts. What it fetches from the store counts if the index still says so afterwards.

use super::origin::Geometry;
use super::users::User;
use super::view::{View, fetch};
use super::work::{Figures, Operation, Work};
use super::writer::{Draft, Need, Writer};
use crate::block::WriteAt;
use crate::error::{Error, Kind, Result};
use crate::format::record::{Entry, RecordKind, pad};
use crate::format::run::Value;
use crate::units::{Epoch, index};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc,
};
use std::thread::JoinHandle;

/// Bytes that one writer preserves at a time, and that a reader of a snapshot reads at a time: bounds memory.
const SLICE: u64 = 4 << 20;

/// A store and its origin, open for many threads.
pub struct Live {
    shared: Arc<Shared>,
    jobs: Option<mpsc::Sender<Job>>,
    committer: Option<JoinHandle<()>>,
}

struct Shared {
    /// Held by each write; a snapshot is created when nobody holds it.
    gate: RwLock<()>,
    busy: Busy,
    /// Held by whoever appends to the log.
    log: Mutex<()>,
    core: RwLock<Writer>,
    store: Arc<dyn WriteAt>,
    origin: Arc<dyn WriteAt>,
    origin_size: AtomicU64,
    clock: fn() -> i64,
    work: Work,
}

/// Chunks to be preserved, and who waits for that.
struct Job {
    entries: Vec<Entry>,
    /// Each entry's data, padded to the block size.
    data: Vec<u8>,
    done: mpsc::SyncSender<Result<()>>,
}

impl Live {
    /// Takes over a store that was opened with its origin. `clock` tells seconds since 1970.
    ///
    /// # Errors
    /// `Kind::NotFound` without an origin; `Kind::Io`, `Kind::NoSpace`.
    pub fn start(mut writer: Writer, clock: fn() -> i64) -> Result<Self> {
        writer.need_origin()?;
        let origin = writer.origin.clone();
        let origin = origin.ok_or_else(|| Error::new(Kind::NotFound, "the origin is needed"))?;
        // Whatever happens to the origin from now on, happens under the store's eyes.
        writer.begin_session()?;
        writer.origin_dirty = true;
        let shared = Arc::new(Shared {
            gate: RwLock::new(()),
            busy: Busy::default(),
            log: Mutex::new(()),
            store: Arc::clone(&writer.device),
            origin,
            origin_size: AtomicU64::new(writer.view.state.volume.origin_size),
            core: RwLock::new(writer),
            clock,
            work: Work::default(),
        });
        let (jobs, queue) = mpsc::channel();
        let committing = Arc::clone(&shared);
        let committer = std::thread::Builder::new()
            .name("committer".into())
            .spawn(move || committing.commit_jobs(&queue))
            .map_err(|error| Error::io("cannot start a thread", error))?;
        Ok(Self { shared, jobs: Some(jobs), committer: Some(committer) })
    }

    /// Where the origin is, which may be elsewhere than the store remembers.
    #[must_use]
    pub fn origin_path(&self) -> &Path {
        self.shared.origin.path()
    }

    /// Bytes of the origin.
    #[must_use]
    pub fn origin_size(&self) -> u64 {
        self.shared.origin_size.load(Ordering::Acquire)
    }

    /// What was done since the start, and is being done. Takes no lock.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.shared.work.now()
    }

    /// Runs `look` on the tables as they are now: nobody changes them meanwhile, so it must not take long.
    pub fn look<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        look(&self.shared.core().view)
    }

    /// Opens a snapshot: it stays until the user of it is dropped.
    ///
    /// # Errors
    /// `Kind::NotFound`.
    pub fn open_snapshot(&self, id: Epoch) -> Result<User> {
        let core = self.shared.core();
        core.view.endpoint(id)?;
        Ok(core.users.add(id.0))
    }

    /// Reads the origin from byte `offset`.
    ///
    /// # Errors
    /// `Kind::Usage` past the end; `Kind::Io`.
    pub fn read_origin(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let _running = self.shared.work.begin(Operation::ReadOrigin(buf.len()));
        self.ensure_inside(offset, buf.len() as u64)?;
        self.shared.origin.read_at(buf, offset)
    }

    /// Writes the origin at byte `offset`, copying out first what snapshots need. The bytes are durable after
    /// [`Live::flush`].
    ///
    /// # Errors
    /// `Kind::Usage` past the end; `Kind::NoSpace` if the store is full, with nothing written from some chunk on;
    /// `Kind::Io`.
    pub fn write_origin(&self, offset: u64, data: &[u8]) -> Result<()> {
        let _running = self.shared.work.begin(Operation::WriteOrigin(data.len()));
        self.ensure_inside(offset, data.len() as u64)?;
        let mut at = offset;
        for slice in data.chunks(index(SLICE)) {
            self.write_slice(at, slice)?;
            at += slice.len() as u64;
        }
        Ok(())
    }

    fn write_slice(&self, offset: u64, data: &[u8]) -> Result<()> {
        let shared = &self.shared;
        let _open = shared.gate.read().unwrap_or_else(PoisonError::into_inner);
        let (first, end, needed, geometry, epoch, touched);
        let _held;
        {
            let bits = shared.core().view.state.sb.chunk_bits;
            (first, end) = (offset >> bits, ((offset + data.len() as u64 - 1) >> bits) + 1);
            _held = shared.busy.hold(first, end);
            let core = shared.core();
            core.ensure_sound()?;
            let mut chunks = Vec::new();
            for chunk in first..end {
                if core.needs_copy(chunk)? {
                    chunks.push(chunk);
                }
            }
            needed = chunks;
            (geometry, epoch) = (Geometry::of(&core.view.state), core.view.state.epoch);
            touched = core.origin_touched;
        }
        if !needed.is_empty() || !touched {
            let (entries, data) = geometry.copy_out(shared.origin.as_ref(), &needed, epoch)?;
            self.preserve(entries, data)?;
        }
        shared.origin.write_at(data, offset)
    }

    /// Has chunks preserved, and waits until that is durable.
    fn preserve(&self, entries: Vec<Entry>, data: Vec<u8>) -> Result<()> {
        let (done, wait) = mpsc::sync_channel(1);
        let stopped = || Error::new(Kind::Io, "the store is being closed");
        let jobs = self.jobs.as_ref().ok_or_else(stopped)?;
        let _queued = self.shared.work.queue();
        jobs.send(Job { entries, data, done }).map_err(|_| stopped())?;
        wait.recv().map_err(|_| stopped())?
    }

    /// Makes every write that has returned durable.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn flush(&self) -> Result<()> {
        let _running = self.shared.work.begin(Operation::Flush);
        self.shared.origin.flush()
    }

    /// Reads snapshot `id` from byte `offset`.
    ///
    /// # Errors
    /// `Kind::NotFound` if there is none; `Kind::Usage` past its end; `Kind::Damaged` for what is lost; `Kind::Io`.
    pub fn read_snapshot(&self, id: Epoch, offset: u64, buf: &mut [u8]) -> Result<()> {
        let _running = self.shared.work.begin(Operation::ReadSnapshot(buf.len()));
        let mut at = offset;
        for slice in buf.chunks_mut(index(SLICE)) {
            self.read_slice(id, at, slice)?;
            at += slice.len() as u64;
        }
        Ok(())
    }

    fn read_slice(&self, id: Epoch, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut known = self.shared.places(id, offset, buf.len())?;
        let mut outdated = vec![true; known.len()];
        // A chunk changes its place once for each time that it is preserved or moved, so this ends.
        loop {
            let outcome = self.shared.fetch_places(&known, &outdated, offset, buf);
            let now = self.shared.places(id, offset, buf.len())?;
            for (outdated, (old, new)) in outdated.iter_mut().zip(known.iter().zip(&now)) {
                *outdated = old != new;
            }
            if !outdated.contains(&true) {
                return outcome;
            }
            known = now;
            // After an error nothing says which of the chunks were read.
            if outcome.is_err() {
                outdated.fill(true);
            }
        }
    }

    /// Runs `work` while nobody writes: for snapshots and other changes of the tables.
    ///
    /// # Errors
    /// What `work` says.
    pub fn change<T>(&self, work: impl FnOnce(&mut Writer) -> Result<T>) -> Result<T> {
        let shared = &self.shared;
        let _running = shared.work.begin(Operation::Change);
        let _closed = shared.gate.write().unwrap_or_else(PoisonError::into_inner);
        let _log = shared.log();
        let mut core = shared.core_mut();
        core.now_secs = (shared.clock)();
        let outcome = work(&mut core);
        shared.origin_size.store(core.view.state.volume.origin_size, Ordering::Release);
        outcome
    }

    /// Waits for every write, and closes the store cleanly.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn close(mut self) -> Result<()> {
        self.stop();
        let shared = Arc::clone(&self.shared);
        drop(self);
        let in_use = || Error::new(Kind::Busy, "the store is still in use");
        let shared = Arc::into_inner(shared).ok_or_else(in_use)?;
        let mut writer = shared.core.into_inner().unwrap_or_else(PoisonError::into_inner);
        writer.now_secs = (shared.clock)();
        writer.close()
    }

    fn stop(&mut self) {
        drop(self.jobs.take());
        if let Some(committer) = self.committer.take() {
            // A panic in it has been told already, and its jobs have failed.
            let _ = committer.join();
        }
    }

    fn ensure_inside(&self, offset: u64, length: u64) -> Result<()> {
        let size = self.origin_size();
        match offset.checked_add(length).filter(|end| *end <= size) {
            Some(_) => Ok(()),
            None => {
                let what = format!("{length} bytes at {offset} end past the origin's {size} bytes");
                Err(Error::new(Kind::Usage, what))
            }
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn core(&self) -> RwLockReadGuard<'_, Writer> {
        self.core.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn core_mut(&self) -> RwLockWriteGuard<'_, Writer> {
        self.core.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> MutexGuard<'_, ()> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the chunks of a range of snapshot `id` are preserved; `None` where the origin still has them.
    fn places(&self, id: Epoch, offset: u64, length: usize) -> Result<Vec<Option<Value>>> {
        let core = self.core();
        let size = core.view.endpoint(id)?.size_bytes;
        let end = offset.checked_add(length as u64).filter(|end| *end <= size).ok_or_else(|| {
            Error::new(
                Kind::Usage,
                format!("{length} bytes at {offset} end past the snapshot's {size} bytes"),
            )
        })?;
        let bits = core.view.state.sb.chunk_bits;
        (offset >> bits..end.div_ceil(1 << bits)).map(|chunk| core.view.find(id.0, chunk)).collect()
    }

    /// Fills those chunks of `buf`, which begins at byte `offset`, that are `wanted`.
    fn fetch_places(
        &self,
        places: &[Option<Value>],
        wanted: &[bool],
        offset: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        let (chunk_size, bits) = {
            let core = self.core();
            (core.view.state.sb.chunk_size(), core.view.state.sb.chunk_bits)
        };
        let end = offset + buf.len() as u64;
        let range = |chunk: u64| (chunk << bits).max(offset)..((chunk + 1) << bits).min(end);
        let mut list = (offset >> bits..).zip(places.iter().zip(wanted)).peekable();
        while let Some((chunk, (place, wanted))) = list.next() {
            if !wanted {
                continue;
            }
            let mut bytes = range(chunk);
            let Some(value) = place else {
                // What the origin has is read in one go.
                while let Some((next, _)) = list.next_if(|(_, (place, wanted))| place.is_none() && **wanted) {
                    bytes.end = range(next).end;
                }
                let target = &mut buf[index(bytes.start - offset)..index(bytes.end - offset)];
                self.origin.read_at(target, bytes.start)?;
                continue;
            };
            let found = fetch(self.store.as_ref(), chunk_size, value)?;
            let target = &mut buf[index(bytes.start - offset)..index(bytes.end - offset)];
            let have = found.get(index(bytes.start - (chunk << bits))..).unwrap_or(&[]);
            let length = have.len().min(target.len());
            target[..length].copy_from_slice(&have[..length]);
            target[length..].fill(0);
        }
        Ok(())
    }

    /// Commits jobs until nobody can send any more.
    fn commit_jobs(&self, queue: &mpsc::Receiver<Job>) {
        while let Ok(first) = queue.recv() {
            // What gathered during the last flush is made durable by the next.
            let jobs: Vec<Job> = std::iter::once(first).chain(queue.try_iter()).collect();
            let _log = self.log();
            let (appended, outcome) = self.append_jobs(&jobs);
            // Also what was appended before an error: it counts, and is not copied out again.
            let committed = self.commit();
            if committed.is_ok() {
                self.work.committed(jobs.iter().take(appended).map(|job| job.entries.len()).sum());
            }
            for (number, job) in jobs.iter().enumerate() {
                let result = match (&committed, &outcome) {
                    (Err(error), _) => Err(again(error)),
                    (Ok(()), Err(error)) if number >= appended => Err(again(error)),
                    _ => {
                        let core = self.core();
                        job.entries.iter().for_each(|entry| core.copied.mark(entry.chunk));
                        Ok(())
                    }
                };
                // Who no longer waits has given up its write.
                let _ = job.done.send(result);
            }
        }
    }

    /// Appends the chunks of all jobs; returns how many jobs were appended whole.
    fn append_jobs(&self, jobs: &[Job]) -> (usize, Result<()>) {
        let touch = || {
            let mut core = self.core_mut();
            core.now_secs = (self.clock)();
            core.touch_origin(Need::Ordinary)
        };
        if let Err(error) = touch() {
            return (0, Err(error));
        }
        let bits = self.core().view.state.sb.block_bits;
        let all = jobs.iter().enumerate().flat_map(|(number, job)| {
            let mut at = 0;
            job.entries.iter().map(move |entry| {
                let start = at;
                at += index(pad(u64::from(entry.stored_length), bits));
                (number, entry, job.data.get(start..at).unwrap_or(&[]))
            })
        });
        let mut all = all.peekable();
        while let Some((number, ..)) = all.peek() {
            let number = *number;
            let (room, epoch) = {
                let core = self.core();
                (core.record_chunks(), core.view.state.epoch)
            };
            let mut draft = Draft::plain(RecordKind::CopyOut, epoch, Vec::new());
            for (_, entry, data) in all.by_ref().take(room) {
                draft.entries.push(*entry);
                draft.data.extend_from_slice(data);
            }
            if let Err(error) = self.append(draft) {
                return (number, Err(error));
            }
        }
        (jobs.len(), Ok(()))
    }

    fn append(&self, draft: Draft) -> Result<()> {
        let skip = {
            let mut core = self.core_mut();
            let length = draft.length(core.view.state.sb.block_bits);
            core.ensure_space(length, Need::Ordinary)?;
            core.skip_before(&draft)
        };
        skip.map_or(Ok(()), |skip| self.put(skip))?;
        self.put(draft)
    }

    /// Writes a record at the end of the log, which only the holder of `log` moves.
    fn put(&self, draft: Draft) -> Result<()> {
        let write = || {
            let composed = {
                let core = self.core();
                core.ensure_sound()?;
                core.compose(draft)?
            };
            composed.write(self.store.as_ref())?;
            self.core_mut().enter(&composed)
        };
        let outcome = write();
        self.core_mut().failed |= outcome.is_err();
        outcome
    }

    /// Makes every appended record durable.
    fn commit(&self) -> Result<()> {
        self.core().ensure_sound()?;
        let outcome = self.store.flush();
        let mut core = self.core_mut();
        core.failed |= outcome.is_err();
        outcome?;
        core.view.state.durable = core.view.state.chain.position.sequence;
        Ok(())
    }
}

/// The same error, for one more of those that it concerns.
fn again(error: &Error) -> Error {
    Error::new(error.kind(), error.to_string())
}

/// Ranges of chunks that somebody writes.
#[derive(Default)]
struct Busy {
    ranges: Mutex<Vec<(u64, u64)>>,
    freed: Condvar,
}

/// Chunks that one writer holds.
struct Held<'a> {
    busy: &'a Busy,
    range: (u64, u64),
}

impl Busy {
    /// Waits until nobody else holds any chunk from `first` to before `end`, and holds them.
    fn hold(&self, first: u64, end: u64) -> Held<'_> {
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        while ranges.iter().any(|held| held.0 < end && first < held.1) {
            ranges = self.freed.wait(ranges).unwrap_or_else(PoisonError::into_inner);
        }
        ranges.push((first, end));
        Held { busy: self, range: (first, end) }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut ranges = self.busy.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = ranges.iter().position(|range| *range == self.range) {
            ranges.swap_remove(at);
        }
        drop(ranges);
        self.busy.freed.notify_all();
    }
}
