//! Who reads tables as they were: what these name lies where it is until they are done.
//!
//! Tables are as old as the last checkpoint that they contain. A segment that was emptied with a later one may still be
//! read through them.

use crate::error::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many read tables of each checkpoint, by its number.
#[derive(Default, Clone)]
pub struct Pins(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    counts: BTreeMap<u64, u64>,
    /// Set when the pins there are now no longer count.
    revoked: Arc<AtomicBool>,
}

/// Somebody who reads tables as they were, until it is dropped.
pub struct Pin {
    pins: Pins,
    checkpoint: u64,
    revoked: Arc<AtomicBool>,
}

impl Pins {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more reader of tables that contain `checkpoint` and none after it.
    pub(super) fn add(&self, checkpoint: u64) -> Pin {
        let mut table = self.table();
        *table.counts.entry(checkpoint).or_default() += 1;
        Pin { pins: self.clone(), checkpoint, revoked: Arc::clone(&table.revoked) }
    }

    /// The oldest checkpoint whose tables somebody reads.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.table().counts.keys().next().copied()
    }

    /// Ends all pins, for space is needed. False if there are none.
    pub(super) fn revoke(&self) -> bool {
        let mut table = self.table();
        table.revoked.store(true, Ordering::Release);
        table.revoked = Arc::default();
        !std::mem::take(&mut table.counts).is_empty()
    }
}

impl Pin {
    fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    /// Fails if what its tables name may have been overwritten.
    ///
    /// # Errors
    /// `Kind::NoSpace`.
    pub fn ensure_good(&self) -> Result<()> {
        match self.is_revoked() {
            true => {
                Err(Error::new(Kind::NoSpace, "the store ran full and took back the space of what was read"))
            }
            false => Ok(()),
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut table = self.pins.table();
        if self.is_revoked() {
            return;
        }
        if let Some(count) = table.counts.get_mut(&self.checkpoint) {
            *count -= 1;
            if *count == 0 {
                table.counts.remove(&self.checkpoint);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_pin_counts_until_it_is_dropped_or_revoked() {
        let pins = Pins::default();
        assert_eq!(pins.oldest(), None);
        assert!(!pins.revoke());
        let (first, again, later) = (pins.add(3), pins.add(3), pins.add(5));
        drop(first);
        assert_eq!(pins.oldest(), Some(3));
        drop(again);
        assert_eq!(pins.oldest(), Some(5));
        assert!(pins.revoke() && later.is_revoked());
        let new = pins.add(5);
        drop(later);
        assert!(pins.oldest() == Some(5) && !new.is_revoked());
    }
}
