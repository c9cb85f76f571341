//! Sockets: addresses, who listens, streams.

use crate::error::{Error, Kind, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

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
            Some(("tcp", address)) if has_port(address) => Ok(Self::Tcp(address.to_owned())),
            _ => Err(format!("'{text}' is no address: write unix:PATH or tcp:HOST:PORT")),
        }
    }
}

fn has_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// True if the other side has ended the connection.
#[must_use]
pub fn is_gone(error: &Error) -> bool {
    use std::io::ErrorKind;
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    source.is_some_and(|source| {
        matches!(source.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof)
    })
}

/// From where a socket may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// From wherever the address is known.
    Anywhere,
    /// From this machine only.
    ThisMachine,
}

/// What can be done with a connection beside reading and writing.
pub trait Wire: Sync {
    /// Ends both directions, whoever uses them.
    fn end(&self);

    /// True if so much room for what is written is free that writing 128 KiB waits for nobody, about.
    fn takes_more(&self) -> bool;
}

/// Both directions of a connection.
pub trait Stream: Wire + Read + Write + Send + Sized + 'static {
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

    /// Refuses a peer that is not this process's user or the superuser of this machine.
    ///
    /// # Errors
    /// `Kind::Refused`; `Kind::Io`.
    fn ensure_own_user(&self) -> Result<()>;
}

macro_rules! stream {
    ($kind:ty, $own_user:expr) => {
        impl Wire for $kind {
            fn end(&self) {
                // What is gone already needs no end.
                let _ = self.shutdown(Shutdown::Both);
            }

            fn takes_more(&self) -> bool {
                let now = Timespec { tv_sec: 0, tv_nsec: 0 };
                // Whoever cannot be asked may have to be waited for.
                matches!(poll(&mut [PollFd::new(self, PollFlags::OUT)], Some(&now)), Ok(1))
            }
        }

        impl Stream for $kind {
            fn again(&self) -> std::io::Result<Self> {
                self.try_clone()
            }

            fn set_limit(&self, limit: Option<Duration>) -> std::io::Result<()> {
                self.set_read_timeout(limit).and_then(|()| self.set_write_timeout(limit))
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
pub struct Listener {
    socket: Socket,
    /// The file of a socket that was made here.
    file: Option<PathBuf>,
    /// Readable once nobody shall wait any more. The socket itself may belong to a service manager, which goes on
    /// using it, so it is not shut down.
    ended: OwnedFd,
}

enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A connection that was accepted.
pub enum Accepted {
    /// Of this machine.
    Unix(UnixStream),
    /// Of the network.
    Tcp(TcpStream),
}

impl Listener {
    /// Listens at `address`. A unix socket is for its owner alone (mode 0600); one that a dead server left is taken
    /// over, and its file is removed with the listener.
    ///
    /// # Errors
    /// `Kind::Usage` if it could be reached from further than `reach`; `Kind::Exists`, `Kind::Busy`, `Kind::Io`.
    pub fn bind(address: &Address, reach: Reach) -> Result<Self> {
        match address {
            Address::Unix(path) => Self::new(Socket::Unix(bind_unix(path)?), Some(path.clone()))
                .map_err(|error| error.at_path(path)),
            Address::Tcp(address) => {
                let failed = |error| Error::io(format!("cannot listen at tcp:{address}: {error}"), error);
                let list: Vec<_> = address.to_socket_addrs().map_err(failed)?.collect();
                if reach == Reach::ThisMachine && !list.iter().all(|address| address.ip().is_loopback()) {
                    let what =
                        format!("other machines can reach tcp:{address}, and this is for programs here");
                    return Err(
                        Error::new(Kind::Usage, what).hint("127.0.0.1 and localhost are of this machine")
                    );
                }
                Self::new(Socket::Tcp(TcpListener::bind(list.as_slice()).map_err(failed)?), None)
            }
        }
    }

    /// Takes a socket of this machine on which somebody else made this process listen.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn of_unix(socket: UnixListener) -> Result<Self> {
        Self::new(Socket::Unix(socket), None)
    }

    /// As [`Listener::of_unix`], for one of the network.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn of_tcp(socket: TcpListener) -> Result<Self> {
        Self::new(Socket::Tcp(socket), None)
    }

    fn new(socket: Socket, file: Option<PathBuf>) -> Result<Self> {
        let failed = |error: std::io::Error| Error::io(format!("cannot listen: {error}"), error);
        match &socket {
            Socket::Unix(socket) => socket.set_nonblocking(true),
            Socket::Tcp(socket) => socket.set_nonblocking(true),
        }
        .map_err(failed)?;
        let ended = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| failed(error.into()))?;
        Ok(Self { socket, file, ended })
    }

    /// Where it listens, with the port that the system chose.
    #[must_use]
    pub fn address(&self) -> Address {
        match &self.socket {
            Socket::Unix(socket) => {
                let address = socket.local_addr();
                let path = address.as_ref().ok().and_then(|address| address.as_pathname());
                Address::Unix(path.unwrap_or(Path::new("")).to_path_buf())
            }
            Socket::Tcp(socket) => {
                Address::Tcp(socket.local_addr().map(|address| address.to_string()).unwrap_or_default())
            }
        }
    }

    /// True if only this machine reaches it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match &self.socket {
            Socket::Unix(_) => true,
            Socket::Tcp(socket) => socket.local_addr().is_ok_and(|address| address.ip().is_loopback()),
        }
    }

    /// The next connection; `None` after [`Listener::end`].
    ///
    /// # Errors
    /// What the system says.
    pub fn accept(&self) -> std::io::Result<Option<Accepted>> {
        loop {
            let ready = {
                let socket = match &self.socket {
                    Socket::Unix(socket) => PollFd::new(socket, PollFlags::IN),
                    Socket::Tcp(socket) => PollFd::new(socket, PollFlags::IN),
                };
                let mut wanted = [socket, PollFd::new(&self.ended, PollFlags::IN)];
                rustix::io::retry_on_intr(|| poll(&mut wanted, None))?;
                wanted.map(|wanted| !wanted.revents().is_empty())
            };
            if ready[1] {
                return Ok(None);
            }
            let accepted = match &self.socket {
                Socket::Unix(socket) => socket.accept().map(|(stream, _)| Accepted::Unix(stream)),
                Socket::Tcp(socket) => socket.accept().map(|(stream, _)| Accepted::Tcp(stream)),
            };
            match accepted {
                // Who was there a moment ago has gone away.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                accepted => return accepted.map(Some),
            }
        }
    }

    /// Makes [`Listener::accept`] return `None` from now on.
    pub fn end(&self) {
        // Any number will do. It fails only when it was written too often to be counted, and is readable then.
        let _ = rustix::io::write(&self.ended, &[1; 8]);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.file {
            // Somebody may have removed it.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Why nothing can be done `what` says with the socket at `path`. A path can be too long for one.
#[must_use]
pub fn socket_error(what: &str, error: std::io::Error, path: &Path) -> Error {
    let what = format!("{what}: {error}");
    match error.kind() {
        std::io::ErrorKind::InvalidInput => Error::new(Kind::Usage, what),
        _ => Error::io(what, error),
    }
    .at_path(path)
}

fn bind_unix(path: &Path) -> Result<UnixListener> {
    let failed = |error: std::io::Error| socket_error("cannot listen there", error, path);
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
    Ok(listener)
}
