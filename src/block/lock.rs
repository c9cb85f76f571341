//! Locks on stores and devices: `flock(2)`, taken without waiting for whoever works with them.
//!
//! They belong to the open file and vanish with the process, so a held store answers at once with [`Kind::Busy`], and
//! no lock is ever left behind.

use super::mount::sys_block;
use crate::error::{Error, Kind, Result};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Tries of a lock before it counts as held, for one that waits a moment: udev takes one on a block device for moments
/// whenever it changed, and a command must not fail because of that.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// Whom a lock keeps out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// Writers.
    Shared,
    /// Everybody.
    Exclusive,
}

impl Lock {
    /// Locks `file`, which was opened at `path`.
    ///
    /// # Errors
    /// `Kind::Busy` if another process holds it, `Kind::Io`.
    pub fn take(self, file: &File, path: &Path, waits: bool) -> Result<()> {
        let operation = match self {
            Self::Shared => FlockOperation::NonBlockingLockShared,
            Self::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        let tries = if waits { TRIES } else { 1 };
        for attempt in 1..=tries {
            match retry_interrupted(|| rustix::fs::flock(file, operation)) {
                Ok(()) => return Ok(()),
                Err(Errno::WOULDBLOCK) if attempt < tries => std::thread::sleep(PAUSE),
                Err(Errno::WOULDBLOCK) => break,
                Err(e) => {
                    let e = std::io::Error::from(e);
                    return Err(Error::io(format!("cannot lock: {e}"), e).at_path(path));
                }
            }
        }
        let (what, hint) = match self {
            Self::Exclusive => {
                ("another process holds it", "wait for that process to end, or stop it; fuser -v names it")
            }
            Self::Shared => {
                ("another process holds it for writing", "wait for the writer to end; fuser -v names it")
            }
        };
        Err(Error::new(Kind::Busy, what).at_path(path).hint(hint))
    }

    /// Locks the file behind loop device `number`. None if it is no loop device, or its file is gone from here.
    ///
    /// # Errors
    /// As [`Lock::take`].
    pub fn take_backing(self, number: u64) -> Result<Option<File>> {
        let Ok(name) = std::fs::read(sys_block(number).join("loop/backing_file")) else { return Ok(None) };
        let path = PathBuf::from(OsStr::from_bytes(name.trim_ascii_end()));
        let Ok(file) = File::open(&path) else { return Ok(None) };
        self.take(&file, &path, false)?;
        Ok(Some(file))
    }
}

fn retry_interrupted(mut call: impl FnMut() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}
