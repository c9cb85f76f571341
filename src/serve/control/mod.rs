//! The control socket: commands reach the volume of a running server.
//!
//! A client is another `ddsnap` of the same user. It asks one thing at a time: a length (u32, big endian) and a JSON
//! document each way, after `Read` the bytes too. What is long is asked for in pieces, so that no client can make the
//! server keep more than one piece for it, and a slow one keeps nobody waiting.

mod client;
mod devices;
mod server;
#[cfg(test)]
mod tests;

pub use client::{Client, Served};
pub use devices::Devices;
pub use server::Control;

use crate::error::{Error, Kind, Result};
use crate::point::volume::{Change, Changed, Sharing, SnapshotInfo, StoreInfo};
use crate::point::{Point, PointId};
use crate::serve::figures::ServerFigures;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};

/// Longest document.
const DOCUMENT_MAX: u32 = 32 << 20;
/// Most runs of chunks in one answer.
const RANGES_MAX: usize = 128 << 10;
/// Most bytes of one read.
const READ_MAX: usize = 4 << 20;

/// What a client asks for.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// What the volume is, with its snapshots.
    Describe,
    /// Who shares what.
    Sharing,
    /// What the server has done.
    Figures,
    /// Chunks that differ, from the first run that ends behind chunk `start`.
    Changed { from: Option<PointId>, to: PointId, start: u64 },
    /// Bytes of a point.
    Read { point: PointId, offset: u64, length: usize },
    /// A change of the snapshot table.
    Change(Change),
    /// A point as a device: if the answer is `Device`, this connection speaks NBD from then on, without negotiation.
    Serve(PointId),
    /// The end of the server.
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
    },
    Sharing(Vec<Sharing>),
    Figures(Box<ServerFigures>),
    /// Runs of chunks; `more` may follow.
    Ranges {
        ranges: Vec<(u64, u64)>,
        more: bool,
    },
    /// The bytes follow.
    Data,
    Changed(Box<Changed>),
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

fn send(stream: &mut impl Write, document: &impl Serialize) -> Result<()> {
    let failed = |error| Error::io("cannot write to the control socket", error);
    let text = serde_json::to_vec(document).map_err(|error| failed(error.into()))?;
    let length = u32::try_from(text.len()).ok().filter(|length| *length <= DOCUMENT_MAX);
    let length = length.ok_or_else(|| Error::new(Kind::Unsupported, "an answer is too long"))?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(&text);
    stream.write_all(&bytes).map_err(failed)
}

/// The next document; `None` if the other side has ended.
fn receive<T: DeserializeOwned>(stream: &mut impl Read) -> Result<Option<T>> {
    let failed = |error| Error::io("cannot read from the control socket", error);
    let mut length = [0; 4];
    match stream.read_exact(&mut length) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read.map_err(failed)?,
    }
    let length = u32::from_be_bytes(length);
    if length > DOCUMENT_MAX {
        return Err(Error::damaged(format!("a document of {length} bytes came from the control socket")));
    }
    let mut text = Vec::new();
    // Room is made as the bytes come, not as a length promises them.
    stream.take(u64::from(length)).read_to_end(&mut text).map_err(failed)?;
    let document = serde_json::from_slice(&text);
    let wrong = |error| Error::damaged(format!("no request or answer came from the control socket: {error}"));
    document.map(Some).map_err(wrong)
}
