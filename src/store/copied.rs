//! Which chunks need no copy-out: a cache, so that most writes are decided without the index.

use super::state::bit;
use crate::format::run::PAGE_BITS;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Pages kept before the cache is started afresh: 24 MiB.
const PAGES_MAX: usize = 512 << 10;

/// Pages of chunks that some snapshot of the newest epoch no longer needs from the origin, as far as they were asked
/// for.
#[derive(Default)]
pub struct Copied(Mutex<HashMap<u64, u128>>);

impl Copied {
    fn pages(&self) -> MutexGuard<'_, HashMap<u64, u128>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `chunk` was copied out; `None` if its page is not known.
    pub fn get(&self, chunk: u64) -> Option<bool> {
        self.pages().get(&(chunk >> PAGE_BITS)).map(|bits| bits & bit(chunk) != 0)
    }

    /// Takes note of a page that was looked up.
    pub fn put(&self, page: u64, bits: u128) {
        let mut pages = self.pages();
        if pages.len() >= PAGES_MAX {
            pages.clear();
        }
        pages.insert(page, bits);
    }

    /// Takes note that `chunk` was copied out. A page that is not known must be read afresh: half a page would have a
    /// chunk copied out twice, the second time with newer data.
    pub fn mark(&self, chunk: u64) {
        if let Some(bits) = self.pages().get_mut(&(chunk >> PAGE_BITS)) {
            *bits |= bit(chunk);
        }
    }

    /// Forgets everything: another snapshot is the newest now.
    pub fn clear(&self) {
        self.pages().clear();
    }
}
