//! How engines tell of their progress and learn that they should stop, without knowing who listens.

use crate::error::{Error, Kind, Result};

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
