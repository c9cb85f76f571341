//! Sockets: who listens, and what becomes of a connection.

use super::export::Exports;
use super::nbd;
use crate::error::{Error, Kind, Result};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a client may take to choose what it wants.
const NEGOTIATION: Duration = Duration::from_secs(30);

/// Where a front end listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A socket of this machine.
    Unix(PathBuf),
    /// A host and a port.
    Tcp(String),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(PathBuf::from(path))),
            Some(("tcp", address)) if address.contains(':') => Ok(Self::Tcp(address.to_owned())),
            _ => Err(format!("'{text}' is no address: write unix:PATH or tcp:HOST:PORT")),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// Both directions of a connection.
pub trait Stream: Read + Write + Send + Sync + Sized + 'static {
    /// A second handle of the same connection.
    ///
    /// # Errors
    /// What the system says.
    fn again(&self) -> std::io::Result<Self>;

    /// Limits how long a read or write may take.
    ///
    /// # Errors
    /// What the system says.
    fn set_limit(&self, limit: Option<Duration>) -> std::io::Result<()>;

    /// Ends both directions, whoever uses them.
    fn end(&self);

    /// Refuses a peer that is not this process's user or the superuser of this machine.
    ///
    /// # Errors
    /// `Kind::Refused`; `Kind::Io`.
    fn ensure_own_user(&self) -> Result<()>;
}

/// What becomes of the connections of a front end.
pub trait Service: Send + Sync + 'static {
    /// Serves one connection to its end.
    ///
    /// # Errors
    /// What ends it early.
    fn serve<S: Stream>(&self, stream: S) -> Result<()>;
}

macro_rules! stream {
    ($kind:ty, $own_user:expr) => {
        impl Stream for $kind {
            fn again(&self) -> std::io::Result<Self> {
                self.try_clone()
            }

            fn set_limit(&self, limit: Option<Duration>) -> std::io::Result<()> {
                self.set_read_timeout(limit).and_then(|()| self.set_write_timeout(limit))
            }

            fn end(&self) {
                // What is gone already needs no end.
                let _ = self.shutdown(Shutdown::Both);
            }

            fn ensure_own_user(&self) -> Result<()> {
                $own_user(self)
            }
        }
    };
}

fn peer_is_own(stream: &UnixStream) -> Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(stream)
        .map_err(|error| Error::io("cannot tell who connects", error.into()))?;
    match peer.uid.is_root() || peer.uid == rustix::process::geteuid() {
        true => Ok(()),
        false => Err(Error::new(Kind::Refused, format!("user {} may not control it", peer.uid.as_raw()))),
    }
}

stream!(UnixStream, peer_is_own);
stream!(TcpStream, |_| Err(Error::new(Kind::Refused, "nobody is known on the network")));

/// A socket that waits for connections.
pub enum Listener {
    /// Of this machine. The file is removed with it.
    Unix(UnixListener, PathBuf),
    /// Of the network.
    Tcp(TcpListener),
}

impl Listener {
    /// Listens at `address`. A unix socket is for its owner alone (mode 0600); one that a dead server left is taken
    /// over.
    ///
    /// # Errors
    /// `Kind::Exists`, `Kind::Busy`, `Kind::Io`.
    pub fn bind(address: &Address) -> Result<Self> {
        match address {
            Address::Unix(path) => bind_unix(path),
            Address::Tcp(address) => {
                let failed = |error| Error::io(format!("cannot listen at tcp:{address}: {error}"), error);
                let list: Vec<_> = address.to_socket_addrs().map_err(failed)?.collect();
                TcpListener::bind(list.as_slice()).map(Self::Tcp).map_err(failed)
            }
        }
    }

    /// Where it listens, with the port that the system chose.
    #[must_use]
    pub fn address(&self) -> Address {
        match self {
            Self::Unix(_, path) => Address::Unix(path.clone()),
            Self::Tcp(listener) => {
                Address::Tcp(listener.local_addr().map(|address| address.to_string()).unwrap_or_default())
            }
        }
    }

    /// Makes a waiting [`Front::run`] return.
    fn end(&self) {
        // What fails here was no longer listening.
        let _ = match self {
            Self::Unix(listener, _) => rustix::net::shutdown(listener, rustix::net::Shutdown::Both),
            Self::Tcp(listener) => rustix::net::shutdown(listener, rustix::net::Shutdown::Both),
        };
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Somebody may have removed it.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn is_passing(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let known = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(
        known,
        Some(Errno::CONNABORTED | Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::INTR)
    )
}

/// True if the other side has ended the connection.
fn is_gone(error: &Error) -> bool {
    use std::io::ErrorKind;
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    source.is_some_and(|source| {
        matches!(source.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof)
    })
}

fn bind_unix(path: &Path) -> Result<Listener> {
    let failed =
        |error: std::io::Error| Error::io(format!("cannot listen there: {error}"), error).at_path(path);
    if let Ok(meta) = std::fs::symlink_metadata(path) {
        if !meta.file_type().is_socket() {
            return Err(Error::new(Kind::Exists, "exists and is no socket").at_path(path));
        }
        if UnixStream::connect(path).is_ok() {
            return Err(Error::new(Kind::Busy, "a server listens there already").at_path(path));
        }
        std::fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(Listener::Unix(listener, path.to_path_buf()))
}

/// Tells of connections that failed.
pub type Report = Arc<dyn Fn(&Error) + Send + Sync>;

/// A front end: a listener and its connections.
pub struct Front<T> {
    listener: Listener,
    service: Arc<T>,
    report: Report,
    stopping: AtomicBool,
    connections: Mutex<Vec<Connection>>,
}

struct Connection {
    end: Box<dyn Fn() + Send>,
    thread: JoinHandle<()>,
}

impl<T: Service> Front<T> {
    /// Serves at `listener`.
    #[must_use]
    pub fn new(listener: Listener, service: T, report: Report) -> Self {
        let (stopping, connections) = (AtomicBool::new(false), Mutex::default());
        Self { listener, service: Arc::new(service), report, stopping, connections }
    }

    /// Serves a connection in threads of its own.
    fn start<S: Stream>(&self, stream: S) -> std::io::Result<()> {
        let (service, report) = (Arc::clone(&self.service), Arc::clone(&self.report));
        let (ender, last) = (stream.again()?, stream.again()?);
        let run = move || {
            match service.serve(stream) {
                Err(error) if !is_gone(&error) => report(&error),
                // Who goes away, at whatever moment, needs no word.
                _ => {}
            }
            last.end();
        };
        let thread = std::thread::Builder::new().name("connection".into()).spawn(run)?;
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|connection| !connection.thread.is_finished());
        // One that came while `stop` was taking those there are: nobody else would end it.
        if self.stopping.load(Ordering::Acquire) {
            ender.end();
        }
        connections.push(Connection { end: Box::new(move || ender.end()), thread });
        Ok(())
    }

    /// Serves connections as they come, until [`Front::stop`].
    ///
    /// # Errors
    /// `Kind::Io` if the socket fails.
    pub fn run(&self) -> Result<()> {
        loop {
            let accepted = match &self.listener {
                Listener::Unix(listener, _) => listener.accept().and_then(|(stream, _)| self.start(stream)),
                Listener::Tcp(listener) => listener.accept().and_then(|(stream, _)| {
                    // Requests are small and answered one by one.
                    stream.set_nodelay(true)?;
                    self.start(stream)
                }),
            };
            match accepted {
                _ if self.stopping.load(Ordering::Acquire) => return Ok(()),
                Ok(()) => {}
                // One that is gone before it was accepted, or a moment without descriptors: the next may do.
                Err(error) if is_passing(&error) => {
                    (self.report)(&Error::io(format!("cannot accept a connection: {error}"), error));
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(error) => return Err(Error::io(format!("cannot accept connections: {error}"), error)),
            }
        }
    }

    /// Takes no more connections, ends those there are, and waits for their threads: requests under way are done.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.listener.end();
        let connections =
            std::mem::take(&mut *self.connections.lock().unwrap_or_else(PoisonError::into_inner));
        connections.iter().for_each(|connection| (connection.end)());
        for connection in connections {
            // A panic in it has been told already.
            let _ = connection.thread.join();
        }
    }
}

/// Serves NBD.
pub struct Nbd(pub Arc<dyn Exports>);

impl Service for Nbd {
    fn serve<S: Stream>(&self, mut stream: S) -> Result<()> {
        let failed = |error: std::io::Error| Error::io(format!("connection: {error}"), error);
        stream.set_limit(Some(NEGOTIATION)).map_err(failed)?;
        let Some(session) = nbd::negotiate(&mut stream, self.0.as_ref())? else { return Ok(()) };
        stream.set_limit(None).map_err(failed)?;
        let (sender, ender) = (stream.again().map_err(failed)?, stream.again().map_err(failed)?);
        nbd::serve(&session, stream, sender, || ender.end())
    }
}
