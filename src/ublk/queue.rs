//! The requests of a device: they come, are done by whoever serves it, and are told done.

use super::ring::{Descriptors, Done, Relay, Ring, What};
use crate::error::{Error, Kind, Result};
use crate::format::ublk::{QueueCommand, Request, data_position};
use crate::units::index;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::OFlags;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;

/// Stands for the bell, where tags stand for requests.
const BELL: u32 = u32::MAX;

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
    /// The bytes of a request were moved, as [`Queue::relay`] or [`Queue::fetch`] was told.
    Moved(u16, Result<Request>),
    /// They were not, or not all.
    NotMoved(u16, Result<Request>),
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
    done: Vec<Done>,
    moving: usize,
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
                Error::new(Kind::Refused, what).at_path(&path)
            }
            _ => Error::io(format!("cannot serve it: {error}"), error).at_path(&path),
        };
        // It never waits, which the ring only takes for true if it is told so: else another thread would copy.
        let at_once = OFlags::NONBLOCK.bits().cast_signed();
        let device =
            File::options().read(true).write(true).custom_flags(at_once).open(&path).map_err(failed)?;
        let descriptors = Descriptors::map(&device, depth).map_err(failed)?;
        // One more, for the bell.
        let ring = Ring::new(u32::from(depth).saturating_add(1), depth).map_err(failed)?;
        let (device, bell) = (Arc::new(device), Arc::clone(bell));
        let mut queue = Self { ring, descriptors, device, depth, bell, done: Vec::new(), moving: 0 };
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

    /// Requests whose bytes the kernel is moving.
    #[must_use]
    pub const fn moving(&self) -> usize {
        self.moving
    }

    /// Waits until something happens or the bell rings.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn wait(&mut self) -> Result<Vec<Event>> {
        self.ring.wait(&mut self.done).map_err(failed)?;
        let mut events = Vec::new();
        for Done { token, result, what } in std::mem::take(&mut self.done) {
            let Ok(tag) = u16::try_from(token) else {
                self.bell.rest();
                self.ring.watch(&self.bell.0, BELL).map_err(failed)?;
                continue;
            };
            self.moving -= usize::from(what != What::Command);
            let request = self.descriptors.get(tag).map(|bytes| Request::decode(&bytes));
            events.push(match (request, what) {
                (Some(request), What::Command) if result == 0 => Event::Request(tag, request),
                (Some(request), What::Bytes) if is_whole(&request, result) => Event::Moved(tag, request),
                (Some(request), What::Bytes | What::Broken) => Event::NotMoved(tag, request),
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

    /// Has the kernel read `length` bytes of `file` from byte `offset` on and give them to the request with `tag`,
    /// without this thread; handed over as by [`Queue::commit`]. [`Event::Moved`] comes then, or [`Event::NotMoved`].
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn relay(&mut self, tag: u16, file: &Arc<File>, offset: u64, length: u32) -> Result<()> {
        // The command is not linked to it: with Linux 6.12 requests got lost then.
        let relay = Relay { from: (file, offset), to: (&self.device, data_position(tag)), length };
        self.moving += 1;
        self.ring.relay(&relay, tag).map_err(failed)
    }

    /// Has the kernel bring what is to be written by the request with `tag`, `length` bytes, to where
    /// [`Queue::fetched`] finds it; otherwise as [`Queue::relay`].
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn fetch(&mut self, tag: u16, length: u32) -> Result<()> {
        self.moving += 1;
        self.ring.fetch((&self.device, data_position(tag)), length, tag).map_err(failed)
    }

    /// What is to be written by the request with `tag`, which is of this `length` and was fetched.
    #[must_use]
    pub fn fetched(&self, tag: u16, length: u32) -> Option<&[u8]> {
        self.ring.bytes(tag).get(..index(u64::from(length)))
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
        self.ring.queue(&self.device, command, u32::from(tag)).map_err(failed)
    }
}

/// True if as many bytes came as a request has.
fn is_whole(request: &Result<Request>, came: i32) -> bool {
    request.as_ref().is_ok_and(|request| u32::try_from(came) == Ok(request.length))
}

fn failed(error: std::io::Error) -> Error {
    Error::io(format!("cannot serve ublk: {error}"), error)
}
