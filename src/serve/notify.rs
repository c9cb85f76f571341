//! What a service manager is told: datagrams to a socket that it names (the protocol of `sd_notify(3)`).

use crate::error::{Error, Kind, Result};
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// A service manager that listens, or none.
pub struct Manager(Option<(UnixDatagram, SocketAddr)>);

impl Manager {
    /// Nobody listens.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// The one at `address`: a path, or `@` and an abstract name.
    ///
    /// # Errors
    /// `Kind::Unsupported` for an address of another kind; `Kind::Io`.
    pub fn at(address: &OsStr) -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::io(format!("cannot speak to the service manager at {}: {error}", address.display()), error)
        };
        let socket_address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
            [b'/', ..] => SocketAddr::from_pathname(address),
            _ => {
                let what = format!("the service manager's address {} is of no known kind", address.display());
                return Err(Error::new(Kind::Unsupported, what));
            }
        };
        let socket = UnixDatagram::unbound().map_err(failed)?;
        // Nobody waits for a manager that does not read.
        socket.set_nonblocking(true).map_err(failed)?;
        Ok(Self(Some((socket, socket_address.map_err(failed)?))))
    }

    /// True if somebody listens.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Tells `state`: lines of `NAME=VALUE`. A manager that is gone needs no word.
    pub fn tell(&self, state: &str) {
        if let Some((socket, address)) = &self.0 {
            let _ = socket.send_to_addr(state.as_bytes(), address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_hears_what_it_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let name = format!("ddsnap-test-{}", std::process::id());
        let hidden =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name.as_bytes()).unwrap()).unwrap();
        for (socket, address) in [(socket, path.into_os_string()), (hidden, format!("@{name}").into())] {
            let manager = Manager::at(&address).unwrap();
            assert!(manager.is_there());
            manager.tell("READY=1");
            let mut heard = [0; 20];
            let length = socket.recv(&mut heard).unwrap();
            assert_eq!(&heard[..length], b"READY=1");
            drop(socket);
            manager.tell("STOPPING=1");
        }
        Manager::none().tell("READY=1");
        for wrong in ["", "vsock:2:1234", "relative"] {
            assert_eq!(
                Manager::at(OsStr::new(wrong)).err().map(|error| error.kind()),
                Some(Kind::Unsupported)
            );
        }
    }
}
