//! A writer's side: it has its chunks to itself, and leaves its bytes to the lander in its turn.

use super::{Room, Table, Turns, gone, wait};
use crate::error::Result;
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

/// Chunks that one writer has for itself.
pub struct Claim<'a> {
    turns: &'a Turns,
    range: (u64, u64),
    direct: bool,
}

/// What a writer that comes first in line does next.
enum Step {
    Done,
    Wait,
    /// At most so long.
    Pause(Duration),
    /// Has it land alone, and waits for that: until then it is not acknowledged.
    Alone,
    /// For another try to land what is before it.
    Retry,
}

impl Table {
    fn is_claimed(&self, first: u64, end: u64) -> bool {
        self.claims.iter().any(|claim| claim.0 < end && first < claim.1)
    }

    /// Holds a write if there is memory, and room in the log for it and all that is held already. Whatever cannot be
    /// sure of that is to land alone.
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
        Ok(if count > 0 { Step::Wait } else { Step::Alone })
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
        self.give_up_direct(&mut table);
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
                Ok(Step::Alone) => match table.held.put_awaited(offset, data) {
                    Ok(()) => {
                        let (taken, outcome) = turns.answer(table);
                        table = taken;
                        outcome
                    }
                    failed => failed,
                },
                Ok(Step::Done) => Ok(()),
                Err(error) => Err(error),
            };
            table.line.pop_front();
            table.call_first();
            turns.call_lander(&table);
            return outcome;
        }
    }

    /// As [`Claim::hold`], if that waits for nobody: false, and nothing is held, if it might.
    ///
    /// # Errors
    /// As [`Claim::hold`].
    pub fn hold_at_once(mut self, offset: u64, data: &[u8], room: Room<'_>) -> Result<bool> {
        let mut table = self.turns.table();
        if !table.line.is_empty() {
            return Ok(false);
        }
        let Step::Done = table.try_hold(offset, data, room)? else { return Ok(false) };
        self.give_up_direct(&mut table);
        self.turns.call_lander(&table);
        Ok(true)
    }

    /// It will not write the origin itself.
    fn give_up_direct(&mut self, table: &mut Table) {
        if std::mem::take(&mut self.direct) {
            table.direct -= 1;
            if table.stopped.is_some() {
                self.turns.landed.notify_all();
            }
        }
    }
}

impl Turns {
    /// Waits until nobody else has any chunk from `first` to before `end`, and claims them.
    pub fn claim(&self, first: u64, end: u64) -> Claim<'_> {
        let mut table = self.table();
        while table.is_claimed(first, end) {
            table = self.wait_freed(table);
        }
        self.claim_free(&mut table, first, end)
    }

    /// As [`Turns::claim`], if nobody has them.
    pub fn claim_at_once(&self, first: u64, end: u64) -> Option<Claim<'_>> {
        let mut table = self.table();
        if table.is_claimed(first, end) { None } else { Some(self.claim_free(&mut table, first, end)) }
    }

    fn claim_free(&self, table: &mut Table, first: u64, end: u64) -> Claim<'_> {
        table.claims.push((first, end));
        let direct = table.stopped.is_none() && !table.held.touches(first, end);
        table.direct += usize::from(direct);
        Claim { turns: self, range: (first, end), direct }
    }

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
