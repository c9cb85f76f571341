//! Who has a snapshot open: it is neither deleted nor given up meanwhile. And who has the live origin.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Stands for the live origin among the ids of snapshots.
pub(super) const ORIGIN: u64 = u64::MAX;

/// How many have each snapshot open, by its id.
#[derive(Default, Clone)]
pub struct Users(Arc<Mutex<HashMap<u64, u64>>>);

/// Somebody who has a snapshot open, until it is dropped.
pub struct User {
    users: Users,
    id: u64,
}

impl Users {
    fn counts(&self) -> MutexGuard<'_, HashMap<u64, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more user of snapshot `id`.
    pub(super) fn add(&self, id: u64) -> User {
        *self.counts().entry(id).or_default() += 1;
        User { users: self.clone(), id }
    }

    /// True if anybody has anything open.
    pub(super) fn any(&self) -> bool {
        !self.counts().is_empty()
    }

    /// True if somebody has snapshot `id` open.
    pub(super) fn uses(&self, id: u64) -> bool {
        self.counts().contains_key(&id)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let mut counts = self.users.counts();
        if let Some(count) = counts.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.id);
            }
        }
    }
}
