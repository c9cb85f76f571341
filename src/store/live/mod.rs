//! A store that many threads read and write at once: the heart of a running server.
//!
//! **Writes.** A write of chunks that no snapshot needs goes to the origin at once. Any other is *held* in memory
//! and told to be written; one thread, the *lander*, takes what has gathered, reads the old chunks, appends them
//! to the log, makes that durable with one flush, and only then writes the origin and gives the memory back. So a
//! commit carries what came during the last one, however few writers there are.
//!
//! - [`Live::flush`] returns when all that was told before has landed and the origin was flushed. What cannot land
//!   stays in memory; every flush has it tried again and tells why it failed, and nothing more is held until it
//!   has landed.
//! - Readers of the origin take what is held before what the origin has. Tables know nothing of it:
//!   [`Live::settle`] waits until they do. A snapshot never needs it, for it is newer than every snapshot.
//! - Batches land in order, and a chunk of which something is held is written by nobody but the lander: no write
//!   overtakes an older one of its chunk.
//! - What is held surely fits the log as it is promised. Where that is not so, a write waits until nothing else is
//!   held, lands alone, with all means of making room, and is told what became of it.
//! - To make a snapshot the writers are *stopped*: what was told lands in the old epoch, what comes is held for
//!   the next one. Nobody waits but for memory, which is bounded; and `pace` has writers come no faster than
//!   things land.
//! - Closing lands everything. A crash loses only what was not flushed.
//!
//! A crash of this process alone loses them too, unless there is a [`Journal`]: whoever starts next takes it up.
//!
//! Memory for held bytes is taken at the start; beside it a held chunk costs a node of a tree, which is little beside
//! what serving a request takes. A server locks its memory where it may.
//!
//! Another thread makes checkpoints, on a copy of the tables that it takes up to date before it becomes the
//! tables. Locks are taken in this order: stopped writers, `publishing`, the table of `turns`, `log`, `core`; no
//! read or write of a device happens under `core` but look-ups in the index, and those of the rare operations that
//! [`Live::change`] runs.

mod background;
mod held;
mod journal;
mod land;
mod pace;
mod read;
mod rewrite;
mod shared;
mod turns;
mod write;

use super::picture::Picture;
use super::room::PLAIN;
use super::users::User;
use super::view::View;
use super::work::{Figures, Operation, Work};
use super::writer::Writer;
use crate::block::ReadAt;
use crate::error::{Error, Kind, Result};
use crate::format::table::Deletion;
use crate::point::Point;
use crate::point::volume::SnapshotInfo;
use crate::units::{Epoch, Tag, index};
use held::Held;
pub use journal::Journal;
use shared::Shared;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, mpsc};
use std::thread::JoinHandle;
use turns::Turns;

/// Bytes of one write that are held or written at a time, at most.
const WRITE_SLICE: usize = 1 << 20;

/// Bytes of memory for what is held: several slices of the largest chunks.
const HELD_BYTES: usize = 64 << 20;

/// A store and its origin, open for many threads.
pub struct Live {
    shared: Arc<Shared>,
    lander: Option<JoinHandle<()>>,
    checkpointer: Option<JoinHandle<()>>,
}

impl Live {
    /// Takes over a store that was opened with its origin. `clock` tells seconds since 1970.
    ///
    /// # Errors
    /// `Kind::NotFound` without an origin; `Kind::Io`, `Kind::NoSpace`.
    pub fn start(writer: Writer, clock: fn() -> i64) -> Result<Self> {
        Self::start_with(writer, clock, HELD_BYTES)
    }

    /// As [`Live::start`], with at most `held` bytes of memory for writes that have not landed; four chunks at least.
    ///
    /// # Errors
    /// As [`Live::start`].
    pub fn start_with(mut writer: Writer, clock: fn() -> i64, held: usize) -> Result<Self> {
        writer.need_origin()?;
        let origin = writer.origin.clone();
        let origin = origin.ok_or_else(|| Error::new(Kind::NotFound, "the origin is needed"))?;
        // Whatever happens to the origin from now on, happens under the store's eyes.
        writer.begin_session()?;
        writer.remove_leftovers()?;
        writer.attended = true;
        let (wake, woken) = mpsc::sync_channel(1);
        let chunk_bits = writer.view.state.sb.chunk_bits;
        let held = held.max(4 << chunk_bits);
        let shared = Arc::new(Shared {
            publishing: Mutex::new(()),
            wake: Mutex::new(Some(wake)),
            owner: Mutex::new(0),
            turns: Turns::new(Held::new(chunk_bits, held)),
            slice: WRITE_SLICE.min(held / 2),
            log: Mutex::new(()),
            store: Arc::clone(&writer.device),
            reader: Arc::clone(&writer.view.reader),
            origin,
            origin_size: AtomicU64::new(writer.view.state.volume.origin_size),
            chunk_bits,
            core: RwLock::new(writer),
            clock,
            work: Work::default(),
            slow: AtomicU32::new(0),
        });
        let (landing, publishing) = (Arc::clone(&shared), Arc::clone(&shared));
        // From here on the threads that run are ended whatever happens.
        let mut live = Self { shared, lander: None, checkpointer: None };
        live.lander = Some(spawn("lander", move || landing.land_batches())?);
        live.checkpointer = Some(spawn("checkpointer", move || publishing.checkpoint_when_due(&woken))?);
        live.shared.wake();
        Ok(live)
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

    /// The tables as they are now, to be read at leisure. All writes that have returned are in them.
    ///
    /// # Errors
    /// As [`Live::settle`].
    pub fn picture(&self) -> Result<Picture> {
        self.settle()?;
        Ok(self.shared.picture())
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
        let origin = &self.shared.origin;
        self.read_origin_by(offset, buf, |buf, at| origin.read_at(buf, at).map(|()| true)).map(|_| ())
    }

    /// As [`Live::read_origin`], if that waits for no device: false, with anything in `buf`, if it might.
    ///
    /// # Errors
    /// As [`Live::read_origin`].
    pub fn read_origin_cached(&self, offset: u64, buf: &mut [u8]) -> Result<bool> {
        let origin = &self.shared.origin;
        let is_read = self.read_origin_by(offset, buf, |buf, at| origin.read_cached(buf, at))?;
        if is_read {
            drop(self.shared.work.begin(Operation::ReadOrigin(buf.len())));
        }
        Ok(is_read)
    }

    /// The file in which these bytes of the origin lie at the same offset, if none of them is held: whoever reads them
    /// there from now on reads them as [`Live::read_origin`] does. It counts as a read that has ended.
    #[must_use]
    pub fn origin_file(&self, offset: u64, length: usize) -> Option<Arc<File>> {
        self.ensure_inside(offset, length as u64).ok()?;
        let end = (offset + length as u64).div_ceil(1 << self.shared.chunk_bits);
        if self.shared.turns.holds(offset >> self.shared.chunk_bits, end) {
            return None;
        }
        let file = self.shared.origin.file_with(offset, length)?;
        drop(self.shared.work.begin(Operation::ReadOrigin(length)));
        Some(file)
    }

    fn read_origin_by(
        &self,
        offset: u64,
        buf: &mut [u8],
        read: impl Fn(&mut [u8], u64) -> Result<bool>,
    ) -> Result<bool> {
        self.ensure_inside(offset, buf.len() as u64)?;
        // What is held now, and of the rest what the origin has then: it is no older.
        for rest in self.shared.turns.fill(offset, buf) {
            let start = offset + rest.start as u64;
            if !read(&mut buf[rest], start)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Has a journal at `path`, in memory that outlives this process, if there is none yet: writes that have returned
    /// are not lost with this process alone, if the next takes the journal up. It is taken away when all has landed in
    /// the end.
    ///
    /// # Errors
    /// As [`Journal::create`].
    pub fn journal_at(&self, path: &Path) -> Result<()> {
        let bytes = self.shared.turns.bytes() + 2 * self.shared.slice;
        self.journal(|| Journal::create(path, bytes as u64))
    }

    /// As [`Live::journal_at`], with the journal that `make` makes, which has room for two MiB at least.
    ///
    /// # Errors
    /// What `make` says; `Kind::Io`.
    pub fn journal(&self, make: impl FnOnce() -> Result<Journal>) -> Result<()> {
        self.shared.turns.journal(make)
    }

    /// True if writes that have returned are not lost with this process alone.
    #[must_use]
    pub fn is_journaled(&self) -> bool {
        self.shared.turns.is_journaled()
    }

    /// Writes what has not landed of the journal that a killed process left, before anybody else writes. When this
    /// returns it has landed, and is needed no more. Returns how many bytes there were.
    ///
    /// # Errors
    /// `Kind::Damaged` for what is no journal; as [`Live::write_origin`], [`Live::settle`].
    pub fn take_up(&self, journal: &dyn ReadAt) -> Result<u64> {
        let size = self.origin_size();
        let bytes = journal::replay(journal, |offset, data| {
            // It may have become smaller.
            let inside = index(size.saturating_sub(offset).min(data.len() as u64));
            self.write_origin(offset, &data[..inside])
        })?;
        self.settle()?;
        Ok(bytes)
    }

    /// Waits until every write that has returned has landed: the tables and the devices have it. It may not be durable.
    ///
    /// # Errors
    /// Why one has not: `Kind::Io`, `Kind::NoSpace`. It stays in memory, where readers find it, and is tried again each
    /// time that somebody waits for it.
    pub fn settle(&self) -> Result<()> {
        self.shared.turns.settle()
    }

    /// Makes every write that has returned durable.
    ///
    /// # Errors
    /// As [`Live::settle`]; `Kind::Io`.
    pub fn flush(&self) -> Result<()> {
        let _running = self.shared.work.begin(Operation::Flush);
        self.settle()?;
        self.shared.origin.flush()
    }

    /// Makes a snapshot of the origin with every write that has returned; durable when this returns. Writes that come
    /// meanwhile are held, and not in it: they wait only if there is no memory left.
    ///
    /// # Errors
    /// As [`Writer::create_snapshot`], [`Live::settle`].
    pub fn create_snapshot(&self, tag: Tag, name: Option<&str>) -> Result<SnapshotInfo> {
        self.begin_epoch(|writer| writer.create_snapshot(tag, name))
    }

    /// Runs `work`, which begins an epoch and appends no more than a few blocks.
    fn begin_epoch<T>(&self, work: impl FnOnce(&mut Writer) -> Result<T>) -> Result<T> {
        let shared = &self.shared;
        let _running = shared.work.begin(Operation::Change);
        // What gathered in the caches is written before anybody waits for it, and what that let gather too.
        for _ in 0..2 {
            shared.origin.flush()?;
        }
        let _spent = shared.spend_change();
        loop {
            let stopped = shared.turns.stop()?;
            if let Some((log, mut core)) = shared.try_ready() {
                let outcome = shared.run(&mut core, work);
                drop((log, core));
                drop(stopped);
                return outcome;
            }
            drop(stopped);
            drop(shared.publishing());
        }
    }

    /// Deletes a snapshot; durable when this returns.
    ///
    /// # Errors
    /// As [`Writer::delete_snapshot`].
    pub fn delete_snapshot(&self, id: Epoch) -> Result<()> {
        self.shared.core().ensure_deletable(id)?;
        // Counting reads much of the index, which nobody should wait for.
        let picture = self.shared.picture();
        let dead = picture.view.count_dead(id.0);
        let dead = picture.pin.ensure_good().and(dead)?;
        drop(picture);
        let deletion = Deletion { id: id.0, automatic: false, squashed: false, reason: String::new() };
        self.change_table(|writer| {
            writer.ensure_deletable(id)?;
            writer.log_counted(&deletion, dead)
        })
    }

    /// Makes a checkpoint beside whatever else goes on.
    ///
    /// # Errors
    /// `Kind::Io`; `Kind::NoSpace`.
    pub fn checkpoint(&self) -> Result<()> {
        let _publishing = self.shared.publishing();
        self.shared.checkpoint_apart(PLAIN)
    }

    /// Keeps the origin as it is now in a snapshot that nobody sees, until [`Live::thaw`]. A full store may end it
    /// earlier.
    ///
    /// # Errors
    /// As [`Live::create_snapshot`].
    pub fn freeze(&self) -> Result<Point> {
        self.begin_epoch(Writer::freeze)
    }

    /// Ends what [`Live::freeze`] began.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn thaw(&self, id: Epoch) -> Result<()> {
        let dead = self.shared.picture().view.count_dead(id.0)?;
        self.change_table(|writer| writer.thaw(id, dead))
    }

    /// The devices of the store and of the origin.
    #[must_use]
    pub fn devices(&self) -> [&dyn ReadAt; 2] {
        [self.shared.store.as_ref(), self.shared.origin.as_ref()]
    }

    /// Runs `work` while nobody writes the origin, which has every write that has returned, and no checkpoint is made
    /// but by it.
    ///
    /// # Errors
    /// As [`Live::settle`]; what `work` says.
    pub fn change<T>(&self, work: impl FnOnce(&mut Writer) -> Result<T>) -> Result<T> {
        // How much of the log `work` takes is not known: nobody is told anything meanwhile.
        let _spent = self.shared.turns.spend_all();
        loop {
            self.shared.make_ready()?;
            let stopped = self.shared.turns.stop()?;
            // A checkpoint that has begun is one that nobody should wait for who writes.
            let Some(publishing) = self.shared.try_publishing() else { continue };
            let outcome = self.run(&publishing, work);
            drop(stopped);
            return outcome;
        }
    }

    /// As [`Live::change`], for `work` that neither reads nor writes the origin: writers go on, and what is held may be
    /// what the store has no room for.
    ///
    /// # Errors
    /// What `work` says.
    pub fn change_table<T>(&self, work: impl FnOnce(&mut Writer) -> Result<T>) -> Result<T> {
        self.shared.make_ready()?;
        let _spent = self.shared.spend_change();
        let publishing = self.shared.publishing();
        self.run(&publishing, work)
    }

    fn run<T>(
        &self,
        _publishing: &MutexGuard<'_, ()>,
        work: impl FnOnce(&mut Writer) -> Result<T>,
    ) -> Result<T> {
        let shared = &self.shared;
        let _running = shared.work.begin(Operation::Change);
        let log = shared.log();
        let outcome = shared.run(&mut shared.core_mut(), work);
        drop(log);
        shared.wake();
        outcome
    }

    /// Lands every write, and closes the store cleanly.
    ///
    /// # Errors
    /// `Kind::Io`; as [`Live::settle`], and then as if the power had gone.
    pub fn close(mut self) -> Result<()> {
        self.stop();
        self.shared.turns.ensure_empty()?;
        let shared = Arc::clone(&self.shared);
        drop(self);
        let in_use = || Error::new(Kind::Busy, "the store is still in use");
        let shared = Arc::into_inner(shared).ok_or_else(in_use)?;
        let mut writer = shared.core.into_inner().unwrap_or_else(PoisonError::into_inner);
        writer.now_secs = (shared.clock)();
        writer.attended = false;
        // What went to the origin after the last snapshot was made went past the writer.
        writer.origin_dirty = true;
        writer.remove_leftovers()?;
        writer.close()
    }

    fn stop(&mut self) {
        self.shared.turns.end();
        drop(self.shared.wake.lock().unwrap_or_else(PoisonError::into_inner).take());
        for thread in self.lander.take().into_iter().chain(self.checkpointer.take()) {
            // A panic in it has been told already, and whoever waited for it has failed.
            let _ = thread.join();
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

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let builder = std::thread::Builder::new().name(name.into());
    builder.spawn(work).map_err(|error| Error::io("cannot start a thread", error))
}

impl Drop for Live {
    fn drop(&mut self) {
        self.stop();
    }
}
