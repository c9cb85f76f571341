//! A command's side: the volume of a running server as if it were here.

use super::{READ_MAX, Reply, Request, receive, send};
use crate::error::{Error, Kind, Result};
use crate::point::volume::{Administer, Change, Changed, Sharing, SnapshotInfo, StoreInfo, Volume};
use crate::point::{Changes, ChunkRange, Point, PointId, PointSource};
use crate::serve::figures::ServerFigures;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// A point that is served on a connection of its own: NBD without negotiation, simple replies.
pub struct Served {
    /// The connection.
    pub stream: UnixStream,
    /// Bytes.
    pub size: u64,
    /// What it can do, as NBD says it.
    pub flags: u16,
}

impl Served {
    /// Connects to the server that listens at `path`, for `point`.
    ///
    /// # Errors
    /// As [`Client::connect`]; `Kind::NotFound` if there is no such point.
    pub fn connect(path: &Path, point: PointId) -> Result<Self> {
        let stream = Mutex::new(dial(path)?);
        let Reply::Device { size, flags } = ask(&stream, &Request::Serve(point), None)? else {
            return Err(unexpected());
        };
        Ok(Self { stream: stream.into_inner().unwrap_or_else(PoisonError::into_inner), size, flags })
    }
}

fn dial(path: &Path) -> Result<UnixStream> {
    UnixStream::connect(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => {
            Error::new(Kind::NotFound, "no server listens there: it has ended").at_path(path)
        }
        _ => Error::io(format!("cannot connect: {error}"), error).at_path(path),
    })
}

/// A connection to a server.
pub struct Client {
    stream: Mutex<UnixStream>,
    info: StoreInfo,
    snapshots: Vec<SnapshotInfo>,
    points: Vec<Point>,
    chunk_bits: u32,
}

impl Client {
    /// Connects to the server that listens at `path`.
    ///
    /// # Errors
    /// `Kind::NotFound` if nobody listens there; `Kind::Io`; what the server says.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = dial(path)?;
        let stream = Mutex::new(stream);
        match ask(&stream, &Request::Describe, None)? {
            Reply::Volume { info, snapshots, points, chunk_bits } => {
                Ok(Self { stream, info: *info, snapshots, points, chunk_bits })
            }
            _ => Err(unexpected()),
        }
    }

    /// What the server has done.
    ///
    /// # Errors
    /// `Kind::Io`; `Kind::Busy` if it is being ended.
    pub fn figures(&self) -> Result<ServerFigures> {
        match self.ask(&Request::Figures)? {
            Reply::Figures(figures) => Ok(*figures),
            _ => Err(unexpected()),
        }
    }

    /// Ends the server.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn stop(&self) -> Result<()> {
        self.ask(&Request::Stop).map(|_| ())
    }

    /// Waits until the server is gone.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn wait_for_end(&self) -> Result<()> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = stream.read(&mut [0; 1]);
        gone.map(|_| ()).map_err(|error| Error::io("cannot wait for the server", error))
    }

    fn ask(&self, request: &Request) -> Result<Reply> {
        ask(&self.stream, request, None)
    }
}

fn unexpected() -> Error {
    Error::damaged("the server answered something else")
}

/// Asks one thing; the bytes of a read go to `data`.
fn ask(stream: &Mutex<UnixStream>, request: &Request, data: Option<&mut [u8]>) -> Result<Reply> {
    let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
    send(&mut *stream, request)?;
    let reply = receive(&mut *stream)?;
    match (reply.ok_or_else(|| Error::new(Kind::Io, "the server has ended"))?, data) {
        (Reply::Failed { kind, what, hint }, _) => {
            let error = Error::new(kind, what);
            Err(match hint {
                Some(hint) => error.hint(hint),
                None => error,
            })
        }
        (Reply::Data, Some(data)) => {
            stream.read_exact(data).map_err(|error| Error::io("the server has ended", error))?;
            Ok(Reply::Data)
        }
        (reply, _) => Ok(reply),
    }
}

impl Administer for Client {
    fn info(&self) -> Result<StoreInfo> {
        match self.ask(&Request::Describe)? {
            Reply::Volume { info, .. } => Ok(*info),
            _ => Err(unexpected()),
        }
    }

    fn snapshots(&self) -> Result<Vec<SnapshotInfo>> {
        match self.ask(&Request::Describe)? {
            Reply::Volume { snapshots, .. } => Ok(snapshots),
            _ => Err(unexpected()),
        }
    }

    fn change(&mut self, change: &Change) -> Result<Changed> {
        match self.ask(&Request::Change(change.clone()))? {
            Reply::Changed(changed) => Ok(*changed),
            _ => Err(unexpected()),
        }
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

impl Volume for Client {
    fn info(&self) -> StoreInfo {
        self.info.clone()
    }

    fn snapshots(&self) -> Vec<SnapshotInfo> {
        self.snapshots.clone()
    }

    fn sharing(&self) -> Result<Vec<Sharing>> {
        match self.ask(&Request::Sharing)? {
            Reply::Sharing(sharing) => Ok(sharing),
            _ => Err(unexpected()),
        }
    }
}

impl PointSource for Client {
    fn chunk_bits(&self) -> u32 {
        self.chunk_bits
    }

    fn points(&self) -> Vec<Point> {
        self.points.clone()
    }

    fn changed(&self, from: Option<PointId>, to: PointId) -> Result<Changes<'_>> {
        let mut ahead = Vec::new().into_iter();
        let mut next = Some(0);
        Ok(Box::new(std::iter::from_fn(move || {
            loop {
                if let Some((start, end)) = ahead.next() {
                    return Some(Ok(ChunkRange { start, end }));
                }
                let reply = self.ask(&Request::Changed { from, to, start: next.take()? });
                match reply {
                    Ok(Reply::Ranges { ranges, more }) => {
                        next = ranges.last().map(|range| range.1).filter(|_| more);
                        ahead = ranges.into_iter();
                    }
                    Ok(_) => return Some(Err(unexpected())),
                    Err(error) => return Some(Err(error)),
                }
            }
        })))
    }

    fn read(&self, point: PointId, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut at = offset;
        for piece in buf.chunks_mut(READ_MAX) {
            let request = Request::Read { point, offset: at, length: piece.len() };
            at += piece.len() as u64;
            match ask(&self.stream, &request, Some(piece))? {
                Reply::Data => {}
                _ => return Err(unexpected()),
            }
        }
        Ok(())
    }

    fn known_crc(&self, _point: PointId, _chunk: u64) -> Result<Option<u32>> {
        Ok(None)
    }
}
