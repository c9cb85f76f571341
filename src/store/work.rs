//! What a live store has done since it was started, and is doing.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts that many threads add to.
#[derive(Default)]
pub(super) struct Work {
    begun: AtomicU64,
    ended: AtomicU64,
    origin_reads: Kind,
    origin_writes: Kind,
    snapshot_reads: Kind,
    flushes: AtomicU64,
    changes: AtomicU64,
    copied_chunks: AtomicU64,
    commits: AtomicU64,
    queued: AtomicU64,
}

#[derive(Default)]
struct Kind {
    count: AtomicU64,
    bytes: AtomicU64,
}

/// What a live store has done, and is doing, at one moment. All but `running` and `queued` only grow.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Operations under way.
    pub running: u64,
    /// Operations that have ended, well or not.
    pub ended: u64,
    /// Writers that leave their bytes to be landed, and wait for memory or room in the log.
    pub queued: u64,
    /// Reads of the origin.
    pub origin_reads: u64,
    /// Bytes asked for by them.
    pub origin_read_bytes: u64,
    /// Writes of the origin.
    pub origin_writes: u64,
    /// Bytes of them.
    pub origin_written_bytes: u64,
    /// Reads of snapshots.
    pub snapshot_reads: u64,
    /// Bytes asked for by them.
    pub snapshot_read_bytes: u64,
    /// Flushes of the origin.
    pub flushes: u64,
    /// Changes of the snapshot table, and other operations that stop all writers.
    pub changes: u64,
    /// Chunks that were copied out.
    pub copied_chunks: u64,
    /// Commits of copied chunks: one flush of the store each.
    pub commits: u64,
}

/// An operation of a live store.
#[derive(Clone, Copy)]
pub(super) enum Operation {
    ReadOrigin(usize),
    WriteOrigin(usize),
    ReadSnapshot(usize),
    Flush,
    Change,
    Land,
}

/// An operation under way, until it is dropped.
pub(super) struct Running<'a>(&'a AtomicU64);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

impl Work {
    /// Counts an operation, under way until what this returns is dropped.
    pub(super) fn begin(&self, operation: Operation) -> Running<'_> {
        let add = |count: &AtomicU64, number: usize| {
            count.fetch_add(number as u64, Ordering::Relaxed);
        };
        let add_kind = |kind: &Kind, bytes| {
            add(&kind.count, 1);
            add(&kind.bytes, bytes);
        };
        add(&self.begun, 1);
        match operation {
            Operation::ReadOrigin(bytes) => add_kind(&self.origin_reads, bytes),
            Operation::WriteOrigin(bytes) => add_kind(&self.origin_writes, bytes),
            Operation::ReadSnapshot(bytes) => add_kind(&self.snapshot_reads, bytes),
            Operation::Flush => add(&self.flushes, 1),
            Operation::Change => add(&self.changes, 1),
            Operation::Land => {}
        }
        Running(&self.ended)
    }

    /// A writer waits for memory or room until what this returns is dropped.
    pub(super) fn queue(&self) -> Queued<'_> {
        self.queued.fetch_add(1, Ordering::Relaxed);
        Queued(&self.queued)
    }

    /// A commit has made this many chunks durable.
    pub(super) fn committed(&self, chunks: usize) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.copied_chunks.fetch_add(chunks as u64, Ordering::Relaxed);
    }

    pub(super) fn now(&self) -> Figures {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        // In this order: what ends in between would else be more than what has begun.
        let ended = self.ended.load(Ordering::Acquire);
        let begun = get(&self.begun);
        Figures {
            running: begun.saturating_sub(ended),
            ended,
            queued: get(&self.queued),
            origin_reads: get(&self.origin_reads.count),
            origin_read_bytes: get(&self.origin_reads.bytes),
            origin_writes: get(&self.origin_writes.count),
            origin_written_bytes: get(&self.origin_writes.bytes),
            snapshot_reads: get(&self.snapshot_reads.count),
            snapshot_read_bytes: get(&self.snapshot_reads.bytes),
            flushes: get(&self.flushes),
            changes: get(&self.changes),
            copied_chunks: get(&self.copied_chunks),
            commits: get(&self.commits),
        }
    }
}

/// A writer that waits for memory or room.
pub(super) struct Queued<'a>(&'a AtomicU64);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
