//! How engines tell of their progress and learn that they should stop, without knowing who listens.

use crate::error::{Error, Kind, Result};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A listener for a long operation. Called from any thread, often: implementations must be cheap.
pub trait Progress: Send + Sync {
    /// A stage begins; `total_bytes` when it is known beforehand.
    fn stage(&self, name: &str, total_bytes: Option<u64>);

    /// `bytes` more of the stage are done.
    fn advance(&self, bytes: u64);

    /// True once the user asked to stop (SIGINT, SIGTERM).
    fn interrupted(&self) -> bool;

    /// Stops the operation if the user asked for it.
    ///
    /// # Errors
    /// `Kind::Interrupted`.
    fn check(&self) -> Result<()> {
        if self.interrupted() { Err(Error::new(Kind::Interrupted, "interrupted")) } else { Ok(()) }
    }
}

/// Listens to nothing and never stops.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn stage(&self, _name: &str, _total_bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
    fn interrupted(&self) -> bool {
        false
    }
}

/// Lets bytes through at a rate.
#[derive(Debug)]
pub struct Throttle {
    rate: u64,
    tokens: f64,
    last: Instant,
}

impl Throttle {
    /// Lets `rate` bytes a second through.
    #[must_use]
    pub fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), tokens: 0.0, last: Instant::now() }
    }

    /// Waits until `bytes` more may pass.
    ///
    /// # Errors
    /// `Kind::Interrupted`.
    #[expect(clippy::cast_precision_loss, reason = "a rate need not be exact to the byte")]
    pub fn wait(&mut self, bytes: u64, progress: &dyn Progress) -> Result<()> {
        let rate = self.rate as f64;
        loop {
            let now = Instant::now();
            self.tokens += now.duration_since(self.last).as_secs_f64() * rate;
            self.tokens = self.tokens.min((rate / 4.0).max(bytes as f64));
            self.last = now;
            if self.tokens >= bytes as f64 {
                self.tokens -= bytes as f64;
                return Ok(());
            }
            progress.check()?;
            let missing = (bytes as f64 - self.tokens) / rate;
            std::thread::sleep(Duration::from_secs_f64(missing.clamp(0.001, 0.2)));
        }
    }
}

/// Passes everything on, and holds back whoever advances faster than a rate.
pub struct Paced<'a> {
    inner: &'a dyn Progress,
    throttle: Mutex<Throttle>,
}

impl<'a> Paced<'a> {
    /// Lets `rate` bytes a second be done, on all threads together.
    pub fn new(inner: &'a dyn Progress, rate: u64) -> Self {
        Self { inner, throttle: Mutex::new(Throttle::new(rate)) }
    }
}

impl Progress for Paced<'_> {
    fn stage(&self, name: &str, total_bytes: Option<u64>) {
        self.inner.stage(name, total_bytes);
    }

    fn advance(&self, bytes: u64) {
        self.inner.advance(bytes);
        // Whoever is interrupted while waiting learns it at the next check.
        let _interrupted =
            self.throttle.lock().unwrap_or_else(PoisonError::into_inner).wait(bytes, self.inner);
    }

    fn interrupted(&self) -> bool {
        self.inner.interrupted()
    }
}
