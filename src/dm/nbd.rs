//! NBD devices of the kernel. It is given a connected socket, on which the other side serves the transmission phase of
//! NBD with simple replies, and from then on does all by itself: whoever asked for the device may end.
//!
//! Source: the kernel's `include/uapi/linux/nbd-netlink.h`.

use crate::error::{Error, Kind, Result};
use crate::format::netlink::{
    CONTROL_FAMILY, Message, attribute_text, attribute_u32, attribute_u64, find as find_attribute, messages,
    nest, number, request,
};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, netlink, recv, send, socket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Commands of the family.
mod command {
    pub const CONNECT: u8 = 1;
    pub const DISCONNECT: u8 = 2;
    pub const RECONFIGURE: u8 = 3;
    /// Of the family of families: tell a family's number.
    pub const GET_FAMILY: u8 = 3;
}

/// Attributes of the family.
mod key {
    pub const INDEX: u16 = 1;
    pub const SIZE_BYTES: u16 = 2;
    pub const BLOCK_SIZE_BYTES: u16 = 3;
    pub const SERVER_FLAGS: u16 = 5;
    pub const SOCKETS: u16 = 7;
    pub const DEAD_CONNECTION_SECS: u16 = 8;
    pub const BACKEND_IDENTIFIER: u16 = 10;
    /// Inside of `SOCKETS`.
    pub const SOCKET_ITEM: u16 = 1;
    /// Inside of `SOCKET_ITEM`.
    pub const SOCKET_FD: u16 = 1;
    /// Of the family of families.
    pub const FAMILY_ID: u16 = 1;
    /// Of the family of families.
    pub const FAMILY_NAME: u16 = 2;
}

/// What a device is made of.
pub struct Link<'a, Fd: AsFd> {
    /// The connection.
    pub socket: Fd,
    /// Bytes; what follows the last whole sector cannot be reached.
    pub size: u64,
    /// Bytes of the smallest request.
    pub block_size: u32,
    /// What the server can do, as NBD says it.
    pub flags: u16,
    /// How long requests wait for a server that is gone, in seconds.
    pub wait_secs: u64,
    /// Names what is behind it; the kernel takes no other in its place.
    pub identity: &'a str,
}

/// Where device number `index` is.
#[must_use]
pub fn path(index: u32) -> PathBuf {
    PathBuf::from(format!("/dev/nbd{index}"))
}

/// Makes a device; returns its number.
///
/// # Errors
/// `Kind::NotFound` if the kernel has no NBD; `Kind::Refused` without the right to; `Kind::Io`.
pub fn connect<Fd: AsFd>(link: &Link<'_, Fd>) -> Result<u32> {
    let attributes = [attribute_u64(key::SERVER_FLAGS, u64::from(link.flags)), link.attributes()?];
    let answer = Socket::open()?.ask(command::CONNECT, &attributes.concat())?;
    let index = find_attribute(&answer, key::INDEX)?.and_then(number);
    let index = index.ok_or_else(|| Error::damaged("the kernel does not tell which NBD device it made"))?;
    set_look(index, LOOK);
    Ok(index)
}

/// How often the kernel looks at requests that are under way, in milliseconds. What a dead connection had it sends over
/// the next one when it looks; nothing fails by it, as the device has no time limit.
const LOOK: u32 = 5_000;
/// How often it does if nobody says.
const LOOK_DEFAULT: u32 = 30_000;

/// Says how often the kernel looks at requests that begin from now on. Where it cannot be told it looks as it does.
fn set_look(index: u32, milliseconds: u32) {
    let place = format!("/sys/block/nbd{index}/queue/io_timeout");
    let _ = std::fs::write(place, milliseconds.to_string());
}

/// Gives a device another connection, if the one it has is dead; otherwise the kernel takes no notice of it. Its size
/// becomes that of the link in any case.
///
/// # Errors
/// As [`connect`].
pub fn reconnect<Fd: AsFd>(index: u32, link: &Link<'_, Fd>) -> Result<()> {
    let attributes = [attribute_u32(key::INDEX, index), link.attributes()?];
    Socket::open()?.ask(command::RECONFIGURE, &attributes.concat()).map(|_| ())
}

/// Ends a device; requests under way fail.
///
/// # Errors
/// As [`connect`].
pub fn disconnect(index: u32) -> Result<()> {
    // Whoever uses it next has several connections, maybe, of which each look would end one.
    set_look(index, LOOK_DEFAULT);
    Socket::open()?.ask(command::DISCONNECT, &attribute_u32(key::INDEX, index)).map(|_| ())
}

/// The devices there are, with what is behind them, where that is named.
#[must_use]
pub fn devices() -> Vec<(u32, String)> {
    let entries = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let mut devices: Vec<_> = entries
        .filter_map(|entry| {
            let index = entry.file_name().to_str()?.strip_prefix("nbd")?.parse().ok()?;
            let identity = std::fs::read_to_string(entry.path().join("backend")).ok()?;
            Some((index, identity.trim_end().to_owned()))
        })
        .collect();
    devices.sort();
    devices
}

/// The device with `identity` behind it.
#[must_use]
pub fn find(identity: &str) -> Option<u32> {
    devices().into_iter().find(|(_, found)| found == identity).map(|(index, _)| index)
}

impl<Fd: AsFd> Link<'_, Fd> {
    fn attributes(&self) -> Result<Vec<u8>> {
        let fd = u32::try_from(self.socket.as_fd().as_raw_fd());
        let fd = fd.map_err(|_| Error::new(Kind::Io, "this is no open socket"))?;
        let sockets = nest(key::SOCKET_ITEM, &attribute_u32(key::SOCKET_FD, fd));
        let attributes = [
            attribute_u64(key::SIZE_BYTES, self.size),
            attribute_u64(key::BLOCK_SIZE_BYTES, u64::from(self.block_size)),
            attribute_u64(key::DEAD_CONNECTION_SECS, self.wait_secs),
            attribute_text(key::BACKEND_IDENTIFIER, self.identity),
            nest(key::SOCKETS, &sockets),
        ];
        Ok(attributes.concat())
    }
}

/// A way to the kernel.
struct Socket {
    fd: OwnedFd,
    family: u16,
}

/// Longest answer.
const ANSWER_MAX: usize = 64 << 10;

impl Socket {
    fn open() -> Result<Self> {
        if !Path::new("/sys/block/nbd0").exists() && !Path::new("/sys/module/nbd").exists() {
            // Whether that helped shows next.
            let _ = Command::new("modprobe").arg("nbd").stdin(Stdio::null()).stderr(Stdio::null()).status();
        }
        let failed = |error: Errno| Error::io("cannot ask the kernel", error.into());
        let fd = socket(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::GENERIC)).map_err(failed)?;
        let name = attribute_text(key::FAMILY_NAME, "nbd");
        let missing = |error: Error| {
            Error::new(Kind::NotFound, format!("this kernel has no NBD devices: {error}"))
                .hint("'modprobe nbd' loads them where the kernel has them as a module")
        };
        let answer = exchange(&fd, CONTROL_FAMILY, command::GET_FAMILY, &name).map_err(missing)?;
        let family = find_attribute(&answer, key::FAMILY_ID)?.and_then(number);
        let family = family.and_then(|family| u16::try_from(family).ok());
        let family = family.ok_or_else(|| Error::damaged("the kernel does not tell the number of NBD"))?;
        Ok(Self { fd, family })
    }

    fn ask(&self, command: u8, attributes: &[u8]) -> Result<Vec<u8>> {
        exchange(&self.fd, self.family, command, attributes)
    }
}

/// Asks one thing; returns the attributes of the answer, once it is done.
fn exchange(fd: &OwnedFd, family: u16, command: u8, attributes: &[u8]) -> Result<Vec<u8>> {
    const SEQUENCE: u32 = 1;
    let failed = |error: Errno| Error::io(format!("the kernel does not answer: {error}"), error.into());
    send(fd, &request(family, command, SEQUENCE, attributes), SendFlags::empty()).map_err(failed)?;
    let mut answer = Vec::new();
    let mut bytes = vec![0; ANSWER_MAX];
    loop {
        let (received, _) = match recv(fd, &mut bytes, RecvFlags::empty()) {
            Err(Errno::INTR) => continue,
            received => received.map_err(failed)?,
        };
        for (sequence, message) in messages(bytes.get(..received).unwrap_or(&[]))? {
            match message {
                _ if sequence != SEQUENCE => {}
                Message::Answer(attributes) => answer = attributes.to_vec(),
                Message::Outcome(0) => return Ok(answer),
                Message::Outcome(number) => return Err(refused(number)),
            }
        }
    }
}

fn refused(number: i32) -> Error {
    let error = std::io::Error::from_raw_os_error(number);
    match Errno::from_raw_os_error(number) {
        Errno::PERM | Errno::ACCESS => {
            Error::new(Kind::Refused, "only root makes devices of the kernel").hint("run it as root")
        }
        _ => Error::io(format!("the kernel refuses: {error}"), error),
    }
}
