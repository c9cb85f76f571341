//! Memory for requests: what all connections of a server have of it together, and each of them.
//!
//! Clients that send requests and take no replies keep what they have. They cannot keep others from going on: a
//! connection that has nothing gets a slice at least, and does its request slice by slice.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes of requests and replies of all connections that are in memory at a time, beside a slice for each.
const TOTAL_MAX: usize = 256 << 20;
/// Bytes of one connection, beside one more request.
const CONNECTION_MAX: usize = 64 << 20;
/// Bytes that a connection gets however little is left.
const SLICE: usize = 1 << 20;

/// What all connections take theirs from.
pub struct Memory {
    most: usize,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Default)]
struct State {
    used: usize,
    /// Connections that wait for some of it.
    waiting: usize,
}

impl Default for Memory {
    fn default() -> Self {
        Self::of(TOTAL_MAX)
    }
}

impl Memory {
    /// `most` bytes, beside a slice for each connection.
    pub(super) fn of(most: usize) -> Self {
        Self { most, state: Mutex::default(), freed: Condvar::new() }
    }

    /// Bytes that are taken.
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.state().used
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one connection has of it.
pub(super) struct Account<'a> {
    memory: &'a Memory,
    /// Changed only by who has the state of the memory.
    mine: AtomicUsize,
}

impl<'a> Account<'a> {
    pub fn new(memory: &'a Memory) -> Self {
        Self { memory, mine: AtomicUsize::new(0) }
    }

    /// Takes `bytes`, or a slice if there is not room for more. Waits while there is no room and this connection has
    /// something: what it has is given back when it was done.
    pub fn take(&self, bytes: usize) -> Share<'_> {
        let mut state = self.memory.state();
        let granted = loop {
            let mine = self.mine.load(Ordering::Relaxed);
            let fits = state.used.saturating_add(bytes) <= self.memory.most;
            match (mine, fits) {
                (0, false) => break bytes.min(SLICE),
                (mine, true) if mine == 0 || mine.saturating_add(bytes) <= CONNECTION_MAX => break bytes,
                _ if bytes == 0 => break 0,
                _ => {}
            }
            state.waiting += 1;
            state = self.memory.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        };
        state.used = state.used.saturating_add(granted);
        self.mine.fetch_add(granted, Ordering::Relaxed);
        Share { account: self, bytes: granted }
    }
}

/// Bytes that a connection has.
pub(super) struct Share<'a> {
    account: &'a Account<'a>,
    /// How many; fewer than were wanted where there was not room for them.
    pub bytes: usize,
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let memory = self.account.memory;
        let mut state = memory.state();
        state.used = state.used.saturating_sub(self.bytes);
        self.account.mine.fetch_sub(self.bytes, Ordering::Relaxed);
        if state.waiting > 0 {
            memory.freed.notify_all();
        }
    }
}
