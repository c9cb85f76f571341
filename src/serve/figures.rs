//! What a server tells of itself.

use crate::block::counted::{Counted, Counts};
use crate::error::{Error, Kind, Result};
use crate::store::{Figures, Live};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

/// Clients of NBD, now and ever.
#[derive(Debug, Default)]
pub struct Traffic {
    connections: AtomicU64,
    connections_total: AtomicU64,
    exports_open: AtomicU64,
}

/// Something that lasts until it is dropped.
pub struct Present<'a>(&'a AtomicU64);

impl<'a> Present<'a> {
    fn in_count(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Traffic {
    /// A client has connected.
    pub fn connect(&self) -> Present<'_> {
        self.connections_total.fetch_add(1, Ordering::Relaxed);
        Present::in_count(&self.connections)
    }

    /// A client has chosen an export.
    pub fn open(&self) -> Present<'_> {
        Present::in_count(&self.exports_open)
    }
}

/// A server's figures at one moment.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct ServerFigures {
    /// Seconds since the start.
    pub uptime_secs: u64,
    /// Clients of NBD.
    pub connections: u64,
    /// Clients of NBD that there ever were.
    pub connections_total: u64,
    /// Connections that have chosen an export.
    pub exports_open: u64,
    /// What the volume has done.
    pub volume: Figures,
    /// What was done with the store's device.
    pub store: Counted,
    /// What was done with the origin's device.
    pub origin: Counted,
    /// Records that a recovery would have to replay.
    pub log_records: u64,
    /// Bytes of them.
    pub log_bytes: u64,
}

/// Where figures come from.
pub struct Collector {
    live: Weak<Live>,
    traffic: Arc<Traffic>,
    store: Arc<Counts>,
    origin: Arc<Counts>,
    started: Instant,
}

impl Collector {
    /// Figures of `live`, whose devices count in `store` and `origin`, from now on.
    #[must_use]
    pub fn new(live: &Arc<Live>, store: &Arc<Counts>, origin: &Arc<Counts>) -> Self {
        Self {
            live: Arc::downgrade(live),
            traffic: Arc::default(),
            store: Arc::clone(store),
            origin: Arc::clone(origin),
            started: Instant::now(),
        }
    }

    /// Where clients are counted.
    #[must_use]
    pub fn traffic(&self) -> Arc<Traffic> {
        Arc::clone(&self.traffic)
    }

    /// The volume.
    ///
    /// # Errors
    /// `Kind::Busy` if the server is being ended.
    pub fn live(&self) -> Result<Arc<Live>> {
        self.live.upgrade().ok_or_else(|| Error::new(Kind::Busy, "the server is being ended"))
    }

    /// The figures now.
    ///
    /// # Errors
    /// `Kind::Busy` if the server is being ended.
    pub fn collect(&self) -> Result<ServerFigures> {
        let live = self.live()?;
        let (log_records, log_bytes) = live.look(|view| view.log_since_checkpoint());
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Ok(ServerFigures {
            uptime_secs: self.started.elapsed().as_secs(),
            connections: get(&self.traffic.connections),
            connections_total: get(&self.traffic.connections_total),
            exports_open: get(&self.traffic.exports_open),
            volume: live.figures(),
            store: self.store.now(),
            origin: self.origin.now(),
            log_records,
            log_bytes,
        })
    }

    /// Operations that run, and a number that grows with anything that is done. Takes no lock, so it never waits.
    #[must_use]
    pub fn pulse(&self) -> (u64, u64) {
        let devices = [self.store.now(), self.origin.now()];
        let done = devices.iter().map(|now| now.reads + now.writes + now.flushes).sum::<u64>();
        match self.live.upgrade() {
            Some(live) => (live.figures().running, done + live.figures().ended),
            // While it is being closed the devices tell.
            None => (1, done),
        }
    }
}
