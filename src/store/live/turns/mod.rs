//! Who waits for whom: writers for each other, for memory and for room in the log; the lander for something to land;
//! whoever stops the writers for what they have begun.
//!
//! A writer claims its chunks, so no two decide about one chunk at a time. Having decided, it either writes the origin
//! itself, or leaves its bytes to the lander. While writers are stopped none of them writes the origin: all that comes
//! is held, in a batch that lands when they are let go again.

mod claim;
#[cfg(test)]
mod tests;

use super::held::Held;
use super::journal::Journal;
use super::pace::Pace;
use crate::error::{Error, Kind, Result};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::Instant;

/// More chunks than any log takes.
const ALL: u64 = 1 << 40;

/// Writers, the lander, and what is between them.
pub struct Turns {
    table: Mutex<Table>,
    /// For the lander: there is something to do.
    work: Condvar,
    /// For writers whose chunk another one has, and for those who would stop all writers.
    freed: Condvar,
    /// For whoever waits for the lander.
    landed: Condvar,
}

struct Table {
    held: Held,
    pace: Pace,
    /// When the batch that lands began to.
    begun: Instant,
    /// Ranges of chunks that writers decide about, write, or wait to have held.
    claims: Vec<(u64, u64)>,
    /// Who waits for `freed`.
    blocked: usize,
    /// Writers that may write the origin themselves.
    direct: usize,
    /// Writers are stopped; that many batches land before they are let go.
    stopped: Option<usize>,
    /// Chunks that the log surely takes, those counted that are held, but for what others take of it meanwhile.
    room: u64,
    /// How much that is, in chunks.
    spent: u64,
    /// Why the oldest batch has not landed, and how often that went wrong.
    failure: Option<Error>,
    failures: u64,
    try_again: bool,
    /// The lander waits for work.
    idle: bool,
    /// What became of the write that somebody waits for.
    answer: Option<Result<()>>,
    /// Writers that wait for memory or room, in their order.
    line: VecDeque<(u64, Thread)>,
    tickets: u64,
    ending: bool,
    ended: bool,
}

/// Writers are stopped, and everything they began before has landed, until this is dropped.
pub struct Stopped<'a>(&'a Turns);

/// So many chunks of the log are somebody's who changes the tables, until this is dropped.
pub struct Spent<'a>(&'a Turns, u64);

/// How much more the log takes, where that can be told at once.
type Room<'a> = &'a dyn Fn() -> Option<u64>;

impl Turns {
    /// Nobody waits; `held` is where writes are kept.
    pub fn new(held: Held) -> Self {
        let table = Table {
            pace: Pace::new(held.capacity()),
            begun: Instant::now(),
            held,
            claims: Vec::new(),
            blocked: 0,
            direct: 0,
            stopped: None,
            room: 0,
            spent: 0,
            failure: None,
            failures: 0,
            try_again: false,
            idle: false,
            answer: None,
            line: VecDeque::new(),
            tickets: 0,
            ending: false,
            ended: false,
        };
        let [work, freed, landed] = [(); 3].map(|()| Condvar::new());
        Self { table: Mutex::new(table), work, freed, landed }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_freed<'a>(&'a self, mut table: MutexGuard<'a, Table>) -> MutexGuard<'a, Table> {
        table.blocked += 1;
        let mut table = wait(&self.freed, table);
        table.blocked -= 1;
        table
    }

    /// Bytes that there is memory for.
    pub fn bytes(&self) -> usize {
        self.table().held.bytes()
    }

    /// As [`Held::journal`].
    pub fn journal(&self, make: impl FnOnce() -> Result<Journal>) -> Result<()> {
        self.table().held.journal(make)
    }

    /// As [`Held::is_journaled`].
    pub fn is_journaled(&self) -> bool {
        self.table().held.is_journaled()
    }

    /// As [`Held::fill`].
    pub fn fill(&self, offset: u64, buf: &mut [u8]) -> Vec<Range<usize>> {
        self.table().held.fill(offset, buf)
    }

    /// True if something may be held of the chunks from `first` to before `end`.
    pub fn holds(&self, first: u64, end: u64) -> bool {
        self.table().held.touches(first, end)
    }

    /// Waits until everything has landed that was acknowledged before.
    ///
    /// # Errors
    /// Why it has not landed: what is held stays held, and every call of this has it tried again.
    pub fn settle(&self) -> Result<()> {
        let mut table = self.table();
        let (last, seen) = (table.held.last(), table.failures);
        if table.held.landed() < last {
            self.have_tried(&mut table);
        }
        while table.held.landed() < last {
            table.ensure_landing(seen)?;
            table = wait(&self.landed, table);
        }
        Ok(())
    }

    /// Has the lander try again, if it has given up.
    fn have_tried(&self, table: &mut Table) {
        table.try_again = true;
        self.call_lander(table);
    }

    fn call_lander(&self, table: &Table) {
        if table.idle {
            self.work.notify_one();
        }
    }

    /// Stops the writers: when this returns, all that was acknowledged before has landed, and nobody writes the origin.
    ///
    /// # Errors
    /// Why something has not landed; then nobody is stopped.
    pub fn stop(&self) -> Result<Stopped<'_>> {
        let mut table = self.table();
        while table.stopped.is_some() {
            table = self.wait_freed(table);
        }
        table.stopped = Some(table.held.seal());
        let (stopped, seen) = (Stopped(self), table.failures);
        self.have_tried(&mut table);
        while table.direct > 0 || table.stopped != Some(0) {
            if let Err(error) = table.ensure_landing(seen) {
                drop((table, stopped));
                return Err(error);
            }
            table = wait(&self.landed, table);
        }
        drop(table);
        Ok(stopped)
    }

    /// Takes room in the log from what writers are promised, and waits until what they were promised is left beside it.
    /// What fails to land keeps nobody waiting: it may need what is to be done.
    pub fn spend(&self, chunks: u64, room: Room<'_>) -> Spent<'_> {
        let mut table = self.table();
        table.spent += chunks;
        loop {
            let count = table.held.count() as u64;
            if count > table.promised() {
                table.room = room().unwrap_or(table.room);
            }
            if count <= table.promised() || count == 0 || table.failure.is_some() || table.ended {
                return Spent(self, chunks);
            }
            self.call_lander(&table);
            table = wait(&self.landed, table);
        }
    }

    /// Has no writer be promised anything; what they were promised before is landed by [`Turns::stop`].
    pub fn spend_all(&self) -> Spent<'_> {
        self.table().spent += ALL;
        Spent(self, ALL)
    }

    /// The chunks of the next batch to land, oldest first; waits for one. `None` when there will be no more.
    pub fn next_batch(&self) -> Option<Vec<u64>> {
        let mut table = self.table();
        loop {
            if table.failure.is_none() || table.try_again {
                if table.stopped.is_none() && table.held.none_sealed() {
                    table.held.seal();
                }
                let chunks = table.held.oldest().filter(|_| table.stopped != Some(0));
                if chunks.is_some() {
                    table.try_again = false;
                    table.begun = Instant::now();
                    return chunks;
                }
            }
            if table.ending {
                return None;
            }
            table.idle = true;
            table = wait(&self.work, table);
            table.idle = false;
        }
    }

    /// As [`Held::lift`].
    pub fn lift(&self, chunks: &[u64], data: &mut Vec<u8>) -> Vec<(u64, usize)> {
        self.table().held.lift(chunks, data)
    }

    /// The origin has what the oldest batch holds of `chunks`.
    pub fn release(&self, chunks: &[u64]) {
        let mut table = self.table();
        table.held.release(chunks);
        // The log has taken them, and may have been asked before that.
        table.room = table.room.saturating_sub(chunks.len() as u64);
        table.call_first();
    }

    /// The lander is done with the oldest batch, of so many chunks; the log takes `room` chunks now.
    pub fn landed(&self, chunks: usize, outcome: Result<()>, room: u64) {
        let mut table = self.table();
        table.room = room;
        let took = table.begun.elapsed();
        table.pace.learn(chunks, took);
        let awaited = table.held.oldest_is_awaited();
        match outcome {
            Err(error) if !awaited => {
                table.failures += 1;
                table.failure = Some(error);
            }
            outcome => {
                table.held.retire();
                table.stopped = table.stopped.map(|before| before.saturating_sub(1));
                match awaited {
                    true => table.answer = Some(outcome),
                    false => table.failure = None,
                }
            }
        }
        table.call_first();
        self.landed.notify_all();
    }

    /// Has the lander end once all has landed, or could not.
    pub fn end(&self) {
        let mut table = self.table();
        table.ending = true;
        self.have_tried(&mut table);
    }

    /// The lander has ended, in whatever way: nobody waits for it any more.
    pub fn ended(&self) {
        let mut table = self.table();
        table.ended = true;
        table.call_first();
        self.landed.notify_all();
    }

    /// Ends the journal; fails if something is held that did not land.
    ///
    /// # Errors
    /// Why it did not. Then the journal keeps it.
    pub fn ensure_empty(&self) -> Result<()> {
        let mut table = self.table();
        match table.held.count() {
            0 => {
                table.held.end_journal();
                Ok(())
            }
            _ => Err(table.failure.as_ref().map_or_else(gone, again)),
        }
    }
}

impl Table {
    /// Fails if landing has failed since there were `seen` failures, and still does.
    fn ensure_landing(&self, seen: u64) -> Result<()> {
        match &self.failure {
            Some(error) if self.failures > seen || self.ended => Err(again(error)),
            _ if self.ended => Err(gone()),
            _ => Ok(()),
        }
    }

    /// Chunks that may be held.
    fn promised(&self) -> u64 {
        self.room.saturating_sub(self.spent)
    }

    /// Wakes who comes first in line.
    fn call_first(&self) {
        if let Some((_, thread)) = self.line.front() {
            thread.unpark();
        }
    }
}

impl Drop for Spent<'_> {
    fn drop(&mut self) {
        let mut table = self.0.table();
        table.spent -= self.1;
        // The log was asked before, perhaps.
        table.room = table.room.saturating_sub(self.1);
        table.call_first();
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        let mut table = self.0.table();
        table.stopped = None;
        table.call_first();
        self.0.call_lander(&table);
        self.0.freed.notify_all();
    }
}

fn wait<'a>(condition: &Condvar, table: MutexGuard<'a, Table>) -> MutexGuard<'a, Table> {
    condition.wait(table).unwrap_or_else(PoisonError::into_inner)
}

fn gone() -> Error {
    Error::new(Kind::Io, "the store is being closed")
}

/// The same error, for one more of those that it concerns.
fn again(error: &Error) -> Error {
    Error::new(error.kind(), error.to_string())
}
