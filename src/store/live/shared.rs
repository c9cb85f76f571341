//! The tables of a store that many threads use, and the locks that order who changes them.

use super::turns::{Spent, Turns};
use crate::block::WriteAt;
use crate::error::Result;
use crate::store::index::BlockReader;
use crate::store::picture::Picture;
use crate::store::room::PLAIN;
use crate::store::work::Work;
use crate::store::writer::{Need, Writer};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError, mpsc,
};

/// Bytes of log that a change of the snapshot table takes, at most.
const CHANGE_BYTES: u64 = 32 << 10;

/// What the threads of a server share: the tables, the devices, and the locks that order who changes them.
pub(super) struct Shared {
    /// Held while a checkpoint is made, and by whoever must not meet one.
    pub publishing: Mutex<()>,
    /// Has the checkpointer look whether there is something to do; `None` ends it.
    pub wake: Mutex<Option<mpsc::SyncSender<()>>>,
    /// Held by whoever replaces what the origin has; the client that does, from one time to the next.
    pub owner: Mutex<u64>,
    pub turns: Turns,
    /// Bytes of one write that are held or written at a time: there is memory for them wherever they begin.
    pub slice: usize,
    /// Held by whoever appends to the log.
    pub log: Mutex<()>,
    pub core: RwLock<Writer>,
    pub store: Arc<dyn WriteAt>,
    pub reader: Arc<BlockReader>,
    pub origin: Arc<dyn WriteAt>,
    pub origin_size: AtomicU64,
    pub chunk_bits: u32,
    pub clock: fn() -> i64,
    pub work: Work,
    /// So many of the next writes of the origin are to be done by who may wait.
    pub slow: AtomicU32,
}

impl Shared {
    pub fn core(&self) -> RwLockReadGuard<'_, Writer> {
        self.core.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn core_mut(&self) -> RwLockWriteGuard<'_, Writer> {
        self.core.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn log(&self) -> MutexGuard<'_, ()> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn publishing(&self) -> MutexGuard<'_, ()> {
        self.publishing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn try_publishing(&self) -> Option<MutexGuard<'_, ()>> {
        match self.publishing.try_lock() {
            Ok(publishing) => Some(publishing),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Chunks that the log surely takes, where that can be told at once.
    pub fn room(&self) -> Option<u64> {
        self.core.try_read().ok().map(|core| core.room_in_log())
    }

    /// Takes from the promised log what a change of the snapshot table takes, with what it leaves unused of a segment.
    pub fn spend_change(&self) -> Spent<'_> {
        self.turns.spend((2 * CHANGE_BYTES).div_ceil(1 << self.chunk_bits), &|| self.room())
    }

    /// Makes a checkpoint that would else be made while nobody writes.
    pub fn make_ready(&self) -> Result<()> {
        let _publishing = self.publishing();
        let is_ready = self.core().accepts(CHANGE_BYTES, Need::Ordinary);
        match is_ready {
            true => Ok(()),
            false => self.checkpoint_apart(PLAIN),
        }
    }

    pub fn picture(&self) -> Picture {
        let core = self.core();
        // Together: no checkpoint comes between.
        Picture { view: core.view.fork(), pin: core.pins.add(core.view.state.sb.checkpoint) }
    }

    /// The log and the tables, when a few blocks can be appended: there is room, or it can be made, for no checkpoint
    /// is being made.
    pub fn try_ready(&self) -> Option<(MutexGuard<'_, ()>, RwLockWriteGuard<'_, Writer>)> {
        let (log, core) = (self.log(), self.core_mut());
        let ready = core.since.is_none() || core.accepts(CHANGE_BYTES, Need::Ordinary);
        ready.then_some((log, core))
    }

    /// As [`Shared::try_ready`], and waits until it is so.
    pub fn ready(&self) -> (MutexGuard<'_, ()>, RwLockWriteGuard<'_, Writer>) {
        loop {
            if let Some(ready) = self.try_ready() {
                return ready;
            }
            drop(self.publishing());
        }
    }

    /// Runs `work` on the tables, which the caller has for itself.
    pub fn run<T>(&self, core: &mut Writer, work: impl FnOnce(&mut Writer) -> Result<T>) -> Result<T> {
        core.now_secs = (self.clock)();
        // What is written through this goes past the writer, which is to flush it where that matters.
        core.origin_dirty = true;
        let outcome = work(core);
        self.origin_size.store(core.view.state.volume.origin_size, Ordering::Release);
        outcome
    }
}
