//! Chunks that writers hold.

use std::sync::{Condvar, Mutex, PoisonError};

/// Ranges of chunks that somebody writes.
#[derive(Default)]
pub struct Busy {
    ranges: Mutex<Vec<(u64, u64)>>,
    freed: Condvar,
}

/// Chunks that one writer holds.
pub struct Held<'a> {
    busy: &'a Busy,
    range: (u64, u64),
}

impl Busy {
    /// Waits until nobody else holds any chunk from `first` to before `end`, and holds them.
    pub fn hold(&self, first: u64, end: u64) -> Held<'_> {
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
