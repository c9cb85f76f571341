//! Front ends: a listener, and what becomes of its connections.

use super::export::Exports;
use super::figures::Traffic;
use super::listen::{Accepted, Listener, Stream, is_gone};
use super::nbd::{self, Agreed, Encryption};
use super::tls::Tls;
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, ThreadId};
use std::time::Duration;

/// How long a client may take to choose what it wants.
const NEGOTIATION: Duration = Duration::from_secs(30);

/// What becomes of the connections of a front end.
pub trait Service: Send + Sync + 'static {
    /// Serves one connection to its end.
    ///
    /// # Errors
    /// What ends it early.
    fn serve<S: Stream>(&self, stream: S) -> Result<()>;
}

fn is_passing(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let known = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(
        known,
        Some(
            Errno::CONNABORTED
                | Errno::MFILE
                | Errno::NFILE
                | Errno::NOBUFS
                | Errno::NOMEM
                | Errno::INTR
                // There is no thread to be had.
                | Errno::AGAIN
        )
    )
}

/// Tells of connections that failed.
pub type Report = Arc<dyn Fn(&Error) + Send + Sync>;

/// A front end: a listener and its connections.
pub struct Front<T> {
    listener: Listener,
    service: Arc<T>,
    report: Report,
    stopping: AtomicBool,
    connections: Arc<Connections>,
}

struct Connection {
    end: Box<dyn Fn() + Send>,
    thread: JoinHandle<()>,
}

/// Those that have not ended, by their threads.
#[derive(Default)]
struct Connections(Mutex<HashMap<ThreadId, Connection>>);

impl Connections {
    fn table(&self) -> MutexGuard<'_, HashMap<ThreadId, Connection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the connection of this thread out of the table, however it ends: with it go its descriptors.
struct Leaving(Arc<Connections>);

impl Drop for Leaving {
    fn drop(&mut self) {
        let gone = self.0.table().remove(&std::thread::current().id());
        drop(gone);
    }
}

/// Something that serves until it is stopped.
pub trait Serve: Send + Sync {
    /// Serves connections as they come, until [`Serve::stop`].
    ///
    /// # Errors
    /// `Kind::Io` if the socket fails.
    fn run(&self) -> Result<()>;

    /// Takes no more connections, ends those there are, and waits for their threads: requests under way are done.
    fn stop(&self);
}

impl<T: Service> Front<T> {
    /// Serves at `listener`.
    #[must_use]
    pub fn new(listener: Listener, service: T, report: Report) -> Self {
        let (stopping, connections) = (AtomicBool::new(false), Arc::default());
        Self { listener, service: Arc::new(service), report, stopping, connections }
    }

    /// Serves a connection in threads of its own.
    fn start<S: Stream>(&self, stream: S) -> std::io::Result<()> {
        let (service, report) = (Arc::clone(&self.service), Arc::clone(&self.report));
        let (ender, last) = (stream.again()?, stream.again()?);
        let connections = Arc::clone(&self.connections);
        let run = move || {
            let _leaving = Leaving(connections);
            // Both are let go of before.
            let (service, last) = (service, last);
            match service.serve(stream) {
                Err(error) if !is_gone(&error) => report(&error),
                // Who goes away, at whatever moment, needs no word.
                _ => {}
            }
            last.end();
        };
        // It is in the table before it can leave.
        let mut connections = self.connections.table();
        let thread = std::thread::Builder::new().name("connection".into()).spawn(run)?;
        // One that came while `stop` was taking those there are: nobody else would end it.
        if self.stopping.load(Ordering::Acquire) {
            ender.end();
        }
        connections.insert(thread.thread().id(), Connection { end: Box::new(move || ender.end()), thread });
        Ok(())
    }
}

impl<T: Service> Serve for Front<T> {
    fn run(&self) -> Result<()> {
        loop {
            let started = match self.listener.accept() {
                Ok(None) => return Ok(()),
                Ok(Some(Accepted::Unix(stream))) => self.start(stream),
                Ok(Some(Accepted::Tcp(stream))) => {
                    // Requests are small and answered one by one. Where it cannot be had, answers come later.
                    let _ = stream.set_nodelay(true);
                    self.start(stream)
                }
                Err(error) => Err(error),
            };
            match started {
                Ok(()) => {}
                // One that is gone before it was accepted, or a moment without descriptors or threads: the next may do.
                Err(error) if is_passing(&error) => {
                    (self.report)(&Error::io(format!("cannot accept a connection: {error}"), error));
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(error) => return Err(Error::io(format!("cannot accept connections: {error}"), error)),
            }
        }
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.listener.end();
        let connections = std::mem::take(&mut *self.connections.table());
        connections.values().for_each(|connection| (connection.end)());
        for connection in connections.into_values() {
            // A panic in it has been told already.
            let _ = connection.thread.join();
        }
    }
}

/// Serves NBD.
pub struct Nbd {
    /// What there is.
    pub exports: Arc<dyn Exports>,
    /// Where clients are counted.
    pub traffic: Arc<Traffic>,
    /// What requests are kept in.
    pub memory: Arc<nbd::Memory>,
    /// How connections are encrypted, and whether they must be.
    pub tls: Option<(Tls, bool)>,
}

impl Nbd {
    /// Serves a client that has chosen.
    fn transmit<S: Stream>(&self, session: &nbd::Session, stream: S) -> Result<()> {
        let failed = |error: std::io::Error| Error::io(format!("connection: {error}"), error);
        stream.set_limit(None).map_err(failed)?;
        let _open = self.traffic.open();
        let (sender, ender) = (stream.again().map_err(failed)?, stream.again().map_err(failed)?);
        nbd::serve(session, &self.memory, (stream, sender), &ender)
    }
}

impl Service for Nbd {
    fn serve<S: Stream>(&self, mut stream: S) -> Result<()> {
        let failed = |error: std::io::Error| Error::io(format!("connection: {error}"), error);
        let _present = self.traffic.connect();
        stream.set_limit(Some(NEGOTIATION)).map_err(failed)?;
        let encryption = match self.tls {
            None => Encryption::Settled,
            Some((_, false)) => Encryption::Offered,
            Some((_, true)) => Encryption::Required,
        };
        let agreed = nbd::negotiate(&mut stream, self.exports.as_ref(), encryption)?;
        match (agreed, &self.tls) {
            (Agreed::On(session), _) => self.transmit(&session, stream),
            (Agreed::ToEncrypt(flags), Some((tls, _))) => {
                let mut stream = tls.accept(stream)?;
                let last = stream.again().map_err(failed)?;
                let agreed = nbd::negotiate_encrypted(&mut stream, self.exports.as_ref(), flags);
                let served = agreed.and_then(|agreed| match agreed {
                    Agreed::On(session) => self.transmit(&session, stream),
                    _ => Ok(()),
                });
                last.part();
                served
            }
            _ => Ok(()),
        }
    }
}
