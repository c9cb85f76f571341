//! The control socket: commands reach the volume of a running server.
//!
//! A client is another `ddsnap` of the same user. It asks one thing at a time: a length (u32, big endian) and a JSON
//! document each way, with bytes after some. What is long is asked for in pieces, so that no client can make the
//! server keep more than one piece for it, and a slow one keeps nobody waiting.
//!
//! To read, a client takes the tables as they are, and reads store and origin itself. What it read of the origin counts
//! if the server says that nothing of it was preserved meanwhile. What it needs stays until its connection ends.

mod client;
mod devices;
mod ending;
mod server;
#[cfg(test)]
mod tests;

pub use client::{Client, Served, serve_ublk, show};
pub use devices::Devices;
pub use ending::Ending;
pub use server::Control;

use crate::error::{Error, Kind, Result};
use crate::point::volume::{Begin, Change, Changed, SnapshotInfo, StoreInfo};
use crate::point::{Identity, Point, PointId};
use crate::serve::figures::ServerFigures;
use crate::store::{Preserved, StorePlan};
use crate::units::Epoch;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Longest request, without what follows it.
const REQUEST_MAX: u32 = 256 << 10;
/// Longest answer, without what follows it.
const ANSWER_MAX: u32 = 32 << 20;
/// Most bytes of one read or write.
const READ_MAX: usize = 4 << 20;
/// Longest tables.
const TABLES_MAX: usize = 1 << 30;

/// A device of the server.
#[derive(Debug, Serialize, Deserialize)]
struct Place {
    path: PathBuf,
    /// Number and inode, which another one at the same path does not have.
    stamp: Option<(u64, u64)>,
    /// It is read past the cache of the system.
    direct: bool,
}

/// What a client asks for.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// What the volume is, with its snapshots.
    Describe,
    /// What the server has done.
    Figures,
    /// A snapshot is needed until the connection ends.
    Hold(Epoch),
    /// The origin as it is now is needed until the connection ends.
    Freeze,
    /// The tables as they are now, and where to read what they name, until the connection ends.
    Attach,
    /// Whether all that was attached is still kept.
    Kept,
    /// Which of these bytes of a snapshot the origin no longer has.
    Preserved { id: Epoch, ranges: Vec<(u64, u64)> },
    /// Bytes of a point.
    Read { point: PointId, offset: u64, length: usize },
    /// Size and generation of a point.
    Measure(PointId),
    /// A change of the snapshot table.
    Change(Change),
    /// Room for so many bytes of chunks.
    Room(u64),
    /// A long operation.
    Begin(Begin),
    /// Bytes of a point, by offset and length; they follow.
    Write { point: PointId, pieces: Vec<(u64, usize)> },
    /// What was written is to be durable.
    Flush,
    /// Another size of the origin, by itself or within a long operation.
    OriginSize { size: u64, within: bool },
    /// Another size of the store.
    StoreSize(u64),
    /// The end of the long operation.
    End(Option<Identity>),
    /// Nothing is needed any more.
    Release,
    /// A point as a device: if the answer is `Device`, this connection speaks NBD from then on, without negotiation.
    Serve(PointId),
    /// A point as this device of ublk, which takes so many requests at a time and is not started yet. Served until it
    /// is taken away, or the server ends.
    Ublk { point: PointId, number: u32, depth: u16 },
    /// A point as the only file, `name`, in this empty folder. Shown until it is unmounted, or the server ends.
    Show { point: PointId, folder: PathBuf, name: String },
    /// The end of the server. The answer comes when its store is closed, or why it is not.
    Stop,
}

/// What the server answers.
#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    Volume {
        info: Box<StoreInfo>,
        snapshots: Vec<SnapshotInfo>,
        points: Vec<Point>,
        chunk_bits: u32,
        /// The process.
        pid: u32,
    },
    Figures(Box<ServerFigures>),
    Frozen(Box<Point>),
    /// Where store and origin are, with what tells them from others. So many bytes of tables follow.
    Attached {
        store: Place,
        origin: Place,
        length: usize,
    },
    Ranges(Vec<(u64, u64)>),
    /// The bytes follow.
    Data,
    Measure(u64, u64),
    Changed(Box<Changed>),
    Preserved(Preserved),
    Resized(StorePlan),
    /// Bytes, and what it can do as NBD says it.
    Device {
        size: u64,
        flags: u16,
    },
    Done,
    Failed {
        kind: Kind,
        what: String,
        hint: Option<String>,
    },
}

impl From<&Error> for Reply {
    fn from(error: &Error) -> Self {
        let hint = error.hint_text().map(str::to_owned);
        Self::Failed { kind: error.kind(), what: error.to_string(), hint }
    }
}

/// Where the server that has the store at `path` open can be found by that store: an abstract socket, of which nothing
/// stays when the server ends, however it does. `None` if there is neither a file nor a block device.
#[must_use]
pub fn store_name(path: &Path) -> Option<SocketAddr> {
    let meta = std::fs::metadata(path).ok()?;
    // Neither number is given to anything else while the server has it open.
    let name = match meta.file_type() {
        kind if kind.is_file() => format!("ddsnap/file/{:x}/{:x}", meta.dev(), meta.ino()),
        kind if kind.is_block_device() => format!("ddsnap/device/{:x}", meta.rdev()),
        _ => return None,
    };
    SocketAddr::from_abstract_name(name).ok()
}

fn send(stream: &mut impl Write, document: &impl Serialize) -> Result<()> {
    let failed = |error| Error::io("cannot write to the control socket", error);
    let text = serde_json::to_vec(document).map_err(|error| failed(error.into()))?;
    let length = u32::try_from(text.len()).ok().filter(|length| *length <= ANSWER_MAX);
    let length = length.ok_or_else(|| Error::new(Kind::Unsupported, "an answer is too long"))?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(&text);
    stream.write_all(&bytes).map_err(failed)
}

/// The next document, of at most `most` bytes; `None` if the other side has ended.
fn receive<T: DeserializeOwned>(stream: &mut impl Read, most: u32) -> Result<Option<T>> {
    let failed = |error| Error::io("cannot read from the control socket", error);
    let mut length = [0; 4];
    match stream.read_exact(&mut length) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read.map_err(failed)?,
    }
    let length = u32::from_be_bytes(length);
    if length > most {
        return Err(Error::damaged(format!("a document of {length} bytes came from the control socket")));
    }
    let mut text = Vec::new();
    // Room is made as the bytes come, not as a length promises them.
    stream.take(u64::from(length)).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 != u64::from(length) {
        return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
    }
    let document = serde_json::from_slice(&text);
    let wrong = |error| Error::damaged(format!("no request or answer came from the control socket: {error}"));
    document.map(Some).map_err(wrong)
}
