//! Connections that became devices: they hold the store, so they must end before it is closed.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

type End = Box<dyn Fn() + Send>;

/// The connections that serve devices; `None` once they were ended.
pub struct Devices(Mutex<Option<BTreeMap<u64, End>>>);

/// A place in the list, until it is dropped.
pub(super) struct Place<'a> {
    devices: &'a Devices,
    number: u64,
}

impl Default for Devices {
    fn default() -> Self {
        Self(Mutex::new(Some(BTreeMap::new())))
    }
}

impl Devices {
    /// Adds a connection that `end` ends; `None` if it is too late.
    pub(super) fn add(&self, end: impl Fn() + Send + 'static) -> Option<Place<'_>> {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let list = list.as_mut()?;
        let number = list.last_key_value().map_or(0, |(last, _)| last + 1);
        list.insert(number, Box::new(end));
        Some(Place { devices: self, number })
    }

    /// Ends them all, and every one that comes: a device waits for the next server.
    pub fn end(&self) {
        let list = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        list.iter().flat_map(BTreeMap::values).for_each(|end| end());
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(list) = self.devices.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            list.remove(&self.number);
        }
    }
}
