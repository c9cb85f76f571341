//! Changes of whole volumes while others use them: long operations, other sizes, bytes on snapshots.

use super::Live;
use crate::error::{Error, Kind, Result};
use crate::point::Identity;
use crate::point::volume::Begin;
use crate::progress::Progress;
use crate::store::users::{ORIGIN, User};
use crate::store::writer::Writer;
use crate::store::{Preserved, StorePlan};
use crate::units::Epoch;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// No client has this number.
const NOBODY: u64 = 0;

/// How long it is waited for whoever changes the origin.
const PATIENCE: Duration = Duration::from_secs(2);

impl Live {
    /// Opens the origin: nothing changes it as a whole until the user of it is dropped.
    ///
    /// # Errors
    /// `Kind::Busy` while a long operation is pending.
    pub fn open_origin(&self) -> Result<User> {
        let core = self.shared.core();
        core.ensure_idle()?;
        Ok(core.users.add(ORIGIN))
    }

    /// As [`Live::write_origin`], for `client` who replaces what is there, to whom the origin belongs until
    /// [`Live::let_go`]: not while others have it open. While a long operation is pending only the client may that
    /// has gone on with it.
    ///
    /// # Errors
    /// As [`Live::write_origin`]; `Kind::Busy`.
    pub fn rewrite_origin(&self, client: u64, offset: u64, data: &[u8]) -> Result<()> {
        let owner = self.owned_by(client)?;
        ensure_closed(&self.shared.core())?;
        let outcome = self.write_origin(offset, data);
        drop(owner);
        outcome
    }

    /// Ends that the origin belongs to `client`, if it does.
    pub fn let_go(&self, client: u64) {
        let mut owner = self.owner();
        if *owner == client {
            *owner = NOBODY;
        }
    }

    /// Makes the origin `client`'s, unless somebody has left a long operation that this one has not gone on with.
    fn owned_by(&self, client: u64) -> Result<MutexGuard<'_, u64>> {
        let mut owner = self.free_for(client)?;
        if *owner == NOBODY {
            self.shared.core().ensure_idle()?;
            *owner = client;
        }
        Ok(owner)
    }

    /// Waits a little while the origin is another one's: whose command was killed is noticed in a moment.
    fn free_for(&self, client: u64) -> Result<MutexGuard<'_, u64>> {
        let begun = Instant::now();
        loop {
            let owner = self.owner();
            if *owner == NOBODY || *owner == client {
                return Ok(owner);
            }
            drop(owner);
            if begun.elapsed() > PATIENCE {
                return Err(Error::new(Kind::Busy, "another command is changing the origin")
                    .hint("wait until it has ended, or end it"));
            }
            std::thread::sleep(PATIENCE / 100);
        }
    }

    fn owner(&self) -> MutexGuard<'_, u64> {
        self.shared.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes at byte `offset` of a snapshot; durable when this returns.
    ///
    /// # Errors
    /// As [`Writer::write_snapshot`]; `Kind::Busy` if others have it open.
    pub fn write_snapshot(&self, id: Epoch, offset: u64, data: &[u8]) -> Result<()> {
        self.change(|writer| {
            if writer.users.uses(id.0) {
                return Err(Error::new(Kind::Busy, "the snapshot is open")
                    .hint("end the clients and commands that use it first"));
            }
            writer.write_snapshot(id, offset, data)
        })
    }

    /// As [`Writer::begin_operation`], for `client`, to whom the origin belongs then.
    ///
    /// # Errors
    /// As [`Writer::begin_operation`]; `Kind::Busy` if others have the origin open, or it is another client's.
    pub fn begin_operation(&self, client: u64, begin: &Begin) -> Result<()> {
        let mut owner = self.free_for(client)?;
        self.change(|writer| {
            ensure_closed(writer)?;
            writer.begin_operation(&begin.label, begin.token, begin.forced, begin.pinned)
        })?;
        *owner = client;
        Ok(())
    }

    /// As [`Writer::end_operation`], for the client to whom the origin belongs.
    ///
    /// # Errors
    /// As [`Writer::end_operation`]; `Kind::Busy`.
    pub fn end_operation(&self, client: u64, equals: Option<Identity>) -> Result<()> {
        let _owner = self.owned_by(client)?;
        self.change(|writer| writer.end_operation(equals))
    }

    /// As [`Writer::resize_origin`], or within a long operation. What is cut off is preserved step by step.
    ///
    /// # Errors
    /// As [`Writer::resize_origin`]; `Kind::Busy` if it is to become smaller and others have it open.
    pub fn resize_origin(
        &self,
        client: u64,
        (size, within): (u64, bool),
        progress: &dyn Progress,
    ) -> Result<Preserved> {
        let _owner = self.owned_by(client)?;
        if within {
            self.change(|writer| writer.sparing(|writer| writer.change_origin_size(size, progress)))?;
            return Ok(Preserved::default());
        }
        let mut plan = Preserved::default();
        let windows = {
            let core = self.shared.core();
            core.ensure_idle()?;
            if size < core.view.state.volume.origin_size {
                ensure_closed(&core)?;
            }
            core.tail_windows(size).collect::<Vec<_>>()
        };
        for window in &windows {
            progress.check()?;
            self.shared.core().plan_window(*window, &mut plan)?;
        }
        self.change(|writer| writer.ensure_room_for(plan.cost()))?;
        for window in windows {
            progress.check()?;
            self.change(|writer| {
                writer.sparing(|writer| writer.copy_out(&[window]))?;
                writer.commit()
            })?;
        }
        self.change(|writer| {
            if size < writer.view.state.volume.origin_size {
                ensure_closed(writer)?;
            }
            writer.resize_origin(size, progress)
        })?;
        Ok(plan)
    }

    /// As [`Writer::resize_store`]. Everybody waits while things are moved, so a store that is used is not made
    /// smaller.
    ///
    /// # Errors
    /// As [`Writer::resize_store`]; `Kind::Busy`.
    pub fn resize_store(&self, size: u64, progress: &dyn Progress) -> Result<StorePlan> {
        self.change(|writer| {
            if size < writer.view.state.sb.end() && (writer.users.any() || writer.pins.oldest().is_some()) {
                return Err(Error::new(
                    Kind::Busy,
                    "the volume is in use while its store would be made smaller",
                )
                .hint("end the clients and commands that use it first"));
            }
            writer.resize_store(size, progress)
        })
    }
}

fn ensure_closed(writer: &Writer) -> Result<()> {
    match writer.users.uses(ORIGIN) {
        false => Ok(()),
        true => Err(Error::new(Kind::Busy, "the origin is open").hint("end the clients that use it first")),
    }
}
