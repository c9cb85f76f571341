//! `server --ublk`: what `ddsnap attach` does with ublk, done by the server itself once it answers.

use crate::cmd::attach::Served;
use crate::dm::device::{self, Device, Node};
use crate::error::{Kind, Result};
use crate::serve::front::Serve;
use crate::ublk::device as ublk;
use crate::ui::log::Log;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// The origin as a device of ublk, and all others of this volume that wait.
pub struct Ublk {
    /// By which the server is found.
    store: PathBuf,
    log: Arc<Log>,
    stopped: Mutex<bool>,
    stop: Condvar,
}

impl Ublk {
    /// For the server that has the store at `store` open.
    ///
    /// # Errors
    /// `Kind::NotFound` if the kernel has no such devices; `Kind::Refused` without the right to.
    pub fn new(store: PathBuf, log: Arc<Log>) -> Result<Self> {
        ublk::ensure_available()?;
        if !ublk::outlives_kills() {
            let what = "this kernel may crash if the server is killed while its ublk devices are used";
            log.line(&format!("{what}: Linux 6.15 is mended"));
        }
        Ok(Self { store, log, stopped: Mutex::default(), stop: Condvar::new() })
    }

    fn connect(&self) -> Result<()> {
        let volume = Served::find(&self.store)?;
        let number = volume.connect_ublk(None)?;
        self.log.line(&format!("origin is {}", ublk::path(number).display()));
        let present = volume.devices()?;
        for snapshot in &volume.snapshots {
            let identity = volume.identity_of(Some(snapshot));
            let is_there =
                |device: &Device| device.identity == identity && matches!(device.node, Some(Node::Ublk(_)));
            if present.iter().any(is_there) {
                let number = volume.connect_ublk(Some(snapshot))?;
                self.log.line(&format!("snapshot {} is {}", snapshot.tag, ublk::path(number).display()));
            }
        }
        Ok(())
    }

    /// Takes away what nobody holds. What is mounted, or has a name, waits for the next server.
    fn tidy(&self) -> Result<()> {
        let unnamed = |device: &Device| device.mapped.is_none() && matches!(device.node, Some(Node::Ublk(_)));
        for device in Served::find(&self.store)?.devices()?.into_iter().filter(unnamed) {
            match device::detach(&[device]) {
                // It waits.
                Err(error) if error.kind() == Kind::Busy => {}
                detached => detached?,
            }
        }
        Ok(())
    }
}

impl Serve for Ublk {
    fn run(&self) -> Result<()> {
        self.connect().map_err(|error| error.doing("cannot make the device of ublk"))?;
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        while !*stopped {
            stopped = self.stop.wait(stopped).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn stop(&self) {
        if let Err(error) = self.tidy() {
            self.log.line(&error.to_string());
        }
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.notify_all();
    }
}
