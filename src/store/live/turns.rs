//! Who waits for whom: writers for each other, for memory and for room in the log; the lander for something to land;
//! whoever stops the writers for what they have begun.
//!
//! A writer claims its chunks, so no two decide about one chunk at a time. Having decided, it either writes the origin
//! itself, or leaves its bytes to the lander. While writers are stopped none of them writes the origin: all that comes
//! is held, in a batch that lands when they are let go again.

use super::held::Held;
use super::journal::Journal;
use super::pace::Pace;
use crate::error::{Error, Kind, Result};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

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

/// Chunks that one writer has for itself.
pub struct Claim<'a> {
    turns: &'a Turns,
    range: (u64, u64),
    direct: bool,
}

/// Writers are stopped, and everything they began before has landed, until this is dropped.
pub struct Stopped<'a>(&'a Turns);

/// So many chunks of the log are somebody's who changes the tables, until this is dropped.
pub struct Spent<'a>(&'a Turns, u64);

/// What a writer that comes first in line does next.
enum Step {
    Done,
    Wait,
    /// At most so long.
    Pause(Duration),
    /// For the end of its own landing: it was not acknowledged.
    Await,
    /// For another try to land what is before it.
    Retry,
}

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

    /// Waits until nobody else has any chunk from `first` to before `end`, and claims them.
    pub fn claim(&self, first: u64, end: u64) -> Claim<'_> {
        let mut table = self.table();
        while table.claims.iter().any(|claim| claim.0 < end && first < claim.1) {
            table = self.wait_freed(table);
        }
        table.claims.push((first, end));
        let direct = table.stopped.is_none() && !table.held.touches(first, end);
        table.direct += usize::from(direct);
        Claim { turns: self, range: (first, end), direct }
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

    /// Holds a write if there is memory, and room in the log for it and all that is held already. Whatever cannot be
    /// sure of that is held alone.
    fn try_hold(&mut self, offset: u64, data: &[u8], room: Room<'_>) -> Result<Step> {
        if self.ended {
            return Err(gone());
        }
        if self.failure.is_some() {
            return Ok(Step::Retry);
        }
        let count = self.held.count();
        let Some(cost) = self.held.cost(offset, data.len()) else { return Ok(Step::Wait) };
        if count + cost > self.held.capacity() || !self.held.has_room(data.len()) {
            return Ok(Step::Wait);
        }
        let total = (count + cost) as u64;
        // While writers are stopped the tables are not to be looked at: that would be to wait for who stopped them.
        if total > self.promised() && self.stopped.is_none() {
            self.room = room().unwrap_or(self.room);
        }
        if total <= self.promised() {
            let now = Instant::now();
            if let Some(wait) = self.pace.wait(now, count) {
                return Ok(Step::Pause(wait));
            }
            self.pace.come(now, count, cost);
            self.held.put(offset, data)?;
            if self.held.newest_count() >= self.pace.batch() {
                self.held.seal();
            }
            return Ok(Step::Done);
        }
        if count > 0 {
            return Ok(Step::Wait);
        }
        self.held.put_awaited(offset, data)?;
        Ok(Step::Await)
    }
}

impl Claim<'_> {
    /// True if its writer may write the origin, should no chunk need to be copied out.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Leaves a write to the lander; in its turn, when there is memory for it.
    ///
    /// # Errors
    /// Why it was not taken; or, where that cannot be known before, why it could not land.
    pub fn hold(mut self, offset: u64, data: &[u8], room: Room<'_>) -> Result<()> {
        let turns = self.turns;
        let mut table = turns.table();
        if std::mem::take(&mut self.direct) {
            table.direct -= 1;
            if table.stopped.is_some() {
                turns.landed.notify_all();
            }
        }
        let ticket = table.tickets;
        table.tickets += 1;
        table.line.push_back((ticket, std::thread::current()));
        loop {
            let first = table.line.front().is_some_and(|(first, _)| *first == ticket);
            let step = if first { table.try_hold(offset, data, room) } else { Ok(Step::Wait) };
            let outcome = match step {
                Ok(Step::Wait) => {
                    drop(table);
                    std::thread::park();
                    table = turns.table();
                    continue;
                }
                Ok(Step::Pause(wait)) => {
                    drop(table);
                    std::thread::park_timeout(wait);
                    table = turns.table();
                    continue;
                }
                Ok(Step::Retry) => {
                    let (taken, outcome) = turns.retry(table);
                    table = taken;
                    if outcome.is_ok() {
                        continue;
                    }
                    outcome
                }
                Ok(Step::Await) => {
                    let (taken, outcome) = turns.answer(table);
                    table = taken;
                    outcome
                }
                Ok(Step::Done) => Ok(()),
                Err(error) => Err(error),
            };
            table.line.pop_front();
            table.call_first();
            turns.call_lander(&table);
            return outcome;
        }
    }
}

impl Turns {
    /// Waits for another try of what did not land.
    fn retry<'a>(&'a self, mut table: MutexGuard<'a, Table>) -> (MutexGuard<'a, Table>, Result<()>) {
        let seen = table.failures;
        self.have_tried(&mut table);
        loop {
            let tried = table.ensure_landing(seen);
            if table.failure.is_none() || tried.is_err() {
                return (table, tried);
            }
            table = wait(&self.landed, table);
        }
    }

    /// Waits for the end of what is landing alone.
    fn answer<'a>(&'a self, mut table: MutexGuard<'a, Table>) -> (MutexGuard<'a, Table>, Result<()>) {
        self.call_lander(&table);
        loop {
            match table.answer.take() {
                Some(outcome) => return (table, outcome),
                None if table.ended => return (table, Err(gone())),
                None => table = wait(&self.landed, table),
            }
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut table = self.turns.table();
        if let Some(at) = table.claims.iter().position(|claim| *claim == self.range) {
            table.claims.swap_remove(at);
        }
        table.direct -= usize::from(self.direct);
        if table.blocked > 0 {
            self.turns.freed.notify_all();
        }
        if table.stopped.is_some() {
            self.turns.landed.notify_all();
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    const BYTES: usize = 64 << 10;

    /// A lander that has an origin of bytes, and fails when it is told to.
    fn land(turns: &Turns, origin: &Mutex<Vec<u8>>, fails: &Mutex<bool>) {
        while let Some(chunks) = turns.next_batch() {
            if *fails.lock().unwrap() {
                turns.landed(chunks.len(), Err(Error::new(Kind::Io, "told to")), 1000);
                continue;
            }
            for group in chunks.chunks(3) {
                let mut data = Vec::new();
                let mut at = 0;
                for (offset, length) in turns.lift(group, &mut data) {
                    let start = usize::try_from(offset).unwrap();
                    origin.lock().unwrap()[start..start + length].copy_from_slice(&data[at..at + length]);
                    at += length;
                }
                turns.release(group);
            }
            turns.landed(chunks.len(), Ok(()), 1000);
        }
        turns.ended();
    }

    fn write(turns: &Turns, origin: &Mutex<Vec<u8>>, offset: usize, data: &[u8]) -> Result<()> {
        let (first, end) = (offset >> 8, ((offset + data.len() - 1) >> 8) + 1);
        let claim = turns.claim(first as u64, end as u64);
        if claim.is_direct() && data[0].is_multiple_of(4) {
            origin.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
            return Ok(());
        }
        claim.hold(offset as u64, data, &|| Some(1000))
    }

    #[test]
    fn many_writers_share_little_memory_and_each_byte_is_the_last_written() {
        let (turns, origin) = (Turns::new(Held::new(8, 16 << 8)), Mutex::new(vec![0; BYTES]));
        let fails = Mutex::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| land(&turns, &origin, &fails));
            let writers: Vec<_> = (0..8)
                .map(|writer: usize| {
                    let (turns, origin) = (&turns, &origin);
                    scope.spawn(move || {
                        // Each has every eighth stretch of 64 bytes: four writers share a chunk.
                        let mut model = vec![0; BYTES];
                        for round in 1..2000 {
                            let stretch = (round * 7919 % (BYTES / 512)) * 512 + writer * 64;
                            let data = [u8::try_from(round % 255 + 1).unwrap(); 64];
                            write(turns, origin, stretch, &data).unwrap();
                            model[stretch..stretch + 64].copy_from_slice(&data);
                            let mut back = [0; 64];
                            for rest in turns.fill(stretch as u64, &mut back) {
                                let from = stretch + rest.start;
                                let bytes = origin.lock().unwrap()[from..from + rest.len()].to_vec();
                                back[rest].copy_from_slice(&bytes);
                            }
                            assert!(back == data);
                        }
                        model
                    })
                })
                .collect();
            for _ in 0..50 {
                let stopped = turns.stop().unwrap();
                let before = origin.lock().unwrap().clone();
                std::thread::sleep(Duration::from_micros(300));
                assert!(*origin.lock().unwrap() == before, "somebody writes who was stopped");
                drop(stopped);
            }
            let models: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
            turns.settle().unwrap();
            let origin = origin.lock().unwrap().clone();
            for (at, byte) in origin.iter().enumerate() {
                assert_eq!(*byte, models[at % 512 / 64][at], "byte {at}");
            }
            turns.end();
        });
        turns.ensure_empty().unwrap();
    }

    #[test]
    fn whoever_waits_for_what_cannot_land_is_told() {
        let (turns, origin) = (Turns::new(Held::new(8, 16 << 8)), Mutex::new(vec![0; BYTES]));
        let fails = Mutex::new(true);
        std::thread::scope(|scope| {
            scope.spawn(|| land(&turns, &origin, &fails));
            write(&turns, &origin, 0, &[1; 100]).unwrap();
            assert!(turns.settle().is_err() && turns.settle().is_err() && turns.stop().is_err());
            assert!(write(&turns, &origin, 5, &[2; 10]).is_err());
            *fails.lock().unwrap() = false;
            write(&turns, &origin, 50, &[3; 10]).unwrap();
            turns.settle().unwrap();
            assert_eq!(origin.lock().unwrap()[45..65], [[1; 5], [3; 5], [3; 5], [1; 5]].concat());
            *fails.lock().unwrap() = true;
            write(&turns, &origin, 600, &[5; 10]).unwrap();
            turns.end();
        });
        assert!(turns.ensure_empty().is_err() && turns.settle().is_err() && turns.stop().is_err());
        assert!(write(&turns, &origin, 600, &[5; 10]).is_err());
    }

    #[test]
    fn what_a_batch_took_of_the_log_is_no_room_for_the_next() {
        let turns = Turns::new(Held::new(8, 64 << 8));
        let write =
            |chunk: u64, room: u64| turns.claim(chunk, chunk + 1).hold(chunk << 8, &[1; 9], &|| Some(room));
        (0..4).for_each(|chunk| write(chunk, 4).unwrap());
        let batch = turns.next_batch().unwrap();
        // It is in the log, which is full by that; the origin has it, and the lander has said nothing yet.
        turns.release(&batch);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| write(9, 0));
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(turns.fill(9 << 8, &mut [0; 9]).len(), 0, "it is held");
            turns.landed(batch.len(), Ok(()), 0);
            let alone = turns.next_batch().unwrap();
            turns.landed(alone.len(), Err(Error::new(Kind::NoSpace, "full")), 0);
            assert_eq!(
                waits.join().unwrap().unwrap_err().kind(),
                Kind::NoSpace,
                "it was not told that it is written"
            );
        });
        turns.ensure_empty().unwrap();
    }

    #[test]
    fn without_room_a_write_lands_alone_and_its_failure_is_its_own() {
        let (turns, origin) = (Turns::new(Held::new(8, 16 << 8)), Mutex::new(vec![0; BYTES]));
        let fails = Mutex::new(true);
        std::thread::scope(|scope| {
            scope.spawn(|| land(&turns, &origin, &fails));
            let write = |offset: u64, data: &[u8]| {
                turns.claim(offset >> 8, (offset >> 8) + 1).hold(offset, data, &|| None)
            };
            // Nobody has said yet that the log has any room.
            assert_eq!(write(0, &[1; 100]).unwrap_err().kind(), Kind::Io);
            turns.settle().unwrap();
            *fails.lock().unwrap() = false;
            assert_eq!(turns.fill(0, &mut [0; 100]).first(), Some(&(0..100)));
            write(0, &[2; 100]).unwrap();
            turns.end();
        });
        turns.ensure_empty().unwrap();
        assert_eq!(origin.lock().unwrap()[99], 2);
    }
}
