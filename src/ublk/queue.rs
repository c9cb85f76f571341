//! The requests of a device: they come, are done by whoever serves it, and are told done.

use super::ring::{Descriptors, Ring};
use crate::error::{Error, Result};
use crate::format::ublk::{QueueCommand, Request, data_position};
use rustix::event::{EventfdFlags, eventfd};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

/// Stands for the bell, where tags stand for requests.
const BELL: u64 = u64::MAX;

/// Wakes the thread that waits for requests.
pub struct Bell(OwnedFd);

impl Bell {
    /// One that nobody has rung.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn new() -> Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        fd.map(Self).map_err(|error| Error::io("cannot wait for requests", error.into()))
    }

    /// Wakes it, now or when it next waits.
    pub fn ring(&self) {
        // Any number will do. It fails only when it was written too often to be counted, and is readable then.
        let _ = rustix::io::write(&self.0, &[1; 8]);
    }

    fn rest(&self) {
        // Nothing to read is as good.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

/// Data of requests. Any thread may use it.
#[derive(Clone)]
pub struct Data(Arc<File>);

impl Data {
    /// What is to be written by the request with `tag`.
    ///
    /// # Errors
    /// What the system says.
    pub fn take(&self, tag: u16, buf: &mut [u8]) -> std::io::Result<()> {
        self.0.read_exact_at(buf, data_position(tag))
    }

    /// Gives what the request with `tag` has read.
    ///
    /// # Errors
    /// What the system says.
    pub fn give(&self, tag: u16, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all_at(bytes, data_position(tag))
    }
}

/// What happens to a queue.
pub enum Event {
    /// There is a request.
    Request(u16, Result<Request>),
    /// No request will have this tag any more.
    Gone,
}

/// What is left of a queue: see [`Queue::end`].
pub struct Rest {
    _ring: Ring,
}

/// Where the requests of a device come.
pub struct Queue {
    ring: Ring,
    descriptors: Descriptors,
    device: Arc<File>,
    depth: u16,
    bell: Arc<Bell>,
    done: Vec<(u64, i32)>,
}

impl Queue {
    /// Opens the queue of device `number`, which takes `depth` requests at a time, and asks for them: only then can the
    /// device be started. What is done with it afterwards is for this thread, and [`Bell::ring`] wakes it.
    ///
    /// # Errors
    /// `Kind::Refused` if this process may not; `Kind::Busy` if another one serves it; `Kind::NotFound`, `Kind::Io`.
    pub fn open(number: u32, depth: u16, bell: &Arc<Bell>) -> Result<Self> {
        let path = PathBuf::from(format!("/dev/ublkc{number}"));
        let failed = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                let what = "the server may not serve ublk devices: only root may";
                Error::new(crate::error::Kind::Refused, what).at_path(&path)
            }
            _ => Error::io(format!("cannot serve it: {error}"), error).at_path(&path),
        };
        let device = File::options().read(true).write(true).open(&path).map_err(failed)?;
        let descriptors = Descriptors::map(&device, depth).map_err(failed)?;
        // One more, for the bell.
        let ring = Ring::new(u32::from(depth).saturating_add(1)).map_err(failed)?;
        let (device, bell) = (Arc::new(device), Arc::clone(bell));
        let mut queue = Self { ring, descriptors, device, depth, bell, done: Vec::new() };
        queue.begin()?;
        Ok(queue)
    }

    /// Data of its requests.
    #[must_use]
    pub fn data(&self) -> Data {
        Data(Arc::clone(&self.device))
    }

    /// How many tags there are.
    #[must_use]
    pub const fn depth(&self) -> u16 {
        self.depth
    }

    /// Waits until something happens or the bell rings.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn wait(&mut self) -> Result<Vec<Event>> {
        self.ring.wait(&mut self.done).map_err(failed)?;
        let mut events = Vec::new();
        for (token, result) in std::mem::take(&mut self.done) {
            let Ok(tag) = u16::try_from(token) else {
                self.bell.rest();
                self.ring.watch(&self.bell.0, BELL).map_err(failed)?;
                continue;
            };
            events.push(match self.descriptors.get(tag) {
                Some(bytes) if result == 0 => Event::Request(tag, Request::decode(&bytes)),
                _ => Event::Gone,
            });
        }
        Ok(events)
    }

    /// Tells that the request with `tag` is done: bytes read or written, or a negative error number. It is handed over
    /// with the next [`Queue::wait`] or [`Queue::end`].
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn commit(&mut self, tag: u16, result: i32) -> Result<()> {
        self.hand_over(QueueCommand::Commit { tag, result }, tag)
    }

    /// Hands over what was told done, and lets go of all but what may only be dropped when this thread has ended.
    ///
    /// Of a thread that ends, the kernel takes back itself, there and then, what it has asked for. If the ring ends
    /// before, a worker of the kernel does, beside requests that come to the thread at the same time: before Linux 6.15
    /// both can end the same command, and the kernel dies of it (CVE-2025-37906).
    #[must_use]
    pub fn end(mut self) -> Rest {
        // The next server is given what the kernel was not told of.
        let _ = self.ring.submit();
        Rest { _ring: self.ring }
    }

    fn begin(&mut self) -> Result<()> {
        for tag in 0..self.depth {
            self.hand_over(QueueCommand::Fetch { tag }, tag)?;
        }
        self.ring.watch(&self.bell.0, BELL).map_err(failed)?;
        self.ring.submit().map_err(failed)
    }

    fn hand_over(&mut self, command: QueueCommand, tag: u16) -> Result<()> {
        self.ring.queue(&self.device, command, u64::from(tag)).map_err(failed)
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::io(format!("cannot serve ublk: {error}"), error)
}
