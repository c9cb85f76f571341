//! A command's side: the volume of a running server as if it were here.

use super::{ANSWER_MAX, Place, READ_MAX, Reply, Request, TABLES_MAX, receive, send, store_name};
use crate::block::ReadAt;
use crate::block::file::FileReader;
use crate::error::{Error, Kind, Result};
use crate::point::volume::{
    Administer, Begin, Change, Changed, Rewrite, Sharing, SnapshotInfo, StoreInfo, Volume,
};
use crate::point::{Changes, ChunkRange, Identity, Point, PointId, PointSource};
use crate::progress::Progress;
use crate::serve::figures::ServerFigures;
use crate::serve::listen::{Stream, is_gone, socket_error};
use crate::store::{Preserved, StorePlan, View};
use crate::units::{Epoch, index};
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

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
    /// Connects to the server that listens at `path`, or has the store there open, for `point`.
    ///
    /// # Errors
    /// As [`Client::connect`]; `Kind::NotFound` if there is no such point; `Kind::Busy` for an origin that a command
    /// changes as a whole.
    pub fn connect(path: &Path, point: PointId) -> Result<Self> {
        // It never is a `Client`, whose last word would be one too many.
        let mut stream = dial(path)?;
        let Reply::Device { size, flags } = converse(&mut stream, &Request::Serve(point), &[])? else {
            return Err(unexpected());
        };
        Ok(Self { stream, size, flags })
    }
}

/// Makes the server that listens at `path`, or has the store there open, serve `point` as ublk device `number`, which
/// takes `depth` requests at a time.
///
/// # Errors
/// As [`Served::connect`]; `Kind::Refused` if the server may not; `Kind::Busy` if another process serves it.
pub fn serve_ublk(path: &Path, point: PointId, (number, depth): (u32, u16)) -> Result<()> {
    // It never is a `Client`: nobody listens for its last word.
    match converse(&mut dial(path)?, &Request::Ublk { point, number, depth }, &[])? {
        Reply::Done => Ok(()),
        _ => Err(unexpected()),
    }
}

/// Makes the server that listens at `path`, or has the store there open, show `point` as the file `name` in `folder`.
///
/// # Errors
/// As [`Served::connect`]; `Kind::Unsupported` if the server cannot mount there.
pub fn show(path: &Path, point: PointId, (folder, name): (&Path, &str)) -> Result<()> {
    let (folder, name) = (folder.to_path_buf(), name.to_owned());
    // As for ublk.
    match converse(&mut dial(path)?, &Request::Show { point, folder, name }, &[])? {
        Reply::Done => Ok(()),
        _ => Err(unexpected()),
    }
}

/// Chunks whose holes are looked at between two looks at the tables; whole pages of change bits.
const HOLES_STEP: u64 = 8 << 20;

/// A connection to a server.
pub struct Client {
    stream: Mutex<UnixStream>,
    info: StoreInfo,
    snapshots: Vec<SnapshotInfo>,
    points: Vec<Point>,
    chunk_bits: u32,
    pid: u32,
    /// It must not change anything.
    is_dry: bool,
    /// What the origin was when it was asked to be held.
    frozen: OnceLock<Point>,
    /// The tables as they were when something was first read.
    attached: OnceLock<View>,
}

impl Client {
    /// Connects to the server that listens at `path`, or has the store there open.
    ///
    /// # Errors
    /// `Kind::NotFound` if nobody listens there; `Kind::Io`; what the server says.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = Mutex::new(dial(path)?);
        match ask(&stream, &Request::Describe, &[], None)? {
            Reply::Volume { info, snapshots, points, chunk_bits, pid } => {
                let (frozen, attached) = (OnceLock::new(), OnceLock::new());
                let (info, is_dry) = (*info, false);
                Ok(Self { stream, info, snapshots, points, chunk_bits, pid, is_dry, frozen, attached })
            }
            _ => Err(unexpected()),
        }
    }

    /// One that refuses from now on to change bytes, sizes or the state of the volume, if `is_dry`.
    #[must_use]
    pub const fn kept_dry(mut self, is_dry: bool) -> Self {
        self.is_dry = is_dry;
        self
    }

    fn ensure_not_dry(&self) -> Result<()> {
        match self.is_dry {
            false => Ok(()),
            true => Err(Error::new(Kind::Refused, "a server would do it, and this is to change nothing")),
        }
    }

    /// True if `path` is a store that a server has open.
    #[must_use]
    pub fn serves(path: &Path) -> bool {
        connect_to_owner(path).is_some()
    }

    /// The server's process.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Where the store is that the server has open.
    #[must_use]
    pub fn store_path(&self) -> PathBuf {
        self.info.store_path.clone()
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

    /// Ends the server, and waits until its store is closed.
    ///
    /// # Errors
    /// Why the store was not closed, as the server says it; `Kind::Io` if it goes without a word.
    pub fn stop(&self) -> Result<()> {
        self.done(&Request::Stop)
    }

    fn ask(&self, request: &Request) -> Result<Reply> {
        ask(&self.stream, request, &[], None)
    }

    /// The tables as they were when something was first read.
    fn attached(&self) -> Result<&View> {
        if let Some(view) = self.attached.get() {
            return Ok(view);
        }
        // Whoever comes first counts.
        let view = self.attach()?;
        Ok(self.attached.get_or_init(|| view))
    }

    fn attach(&self) -> Result<View> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let Reply::Attached { store, origin, length } = converse(&mut stream, &Request::Attach, &[])? else {
            return Err(unexpected());
        };
        if length > TABLES_MAX {
            return Err(unexpected());
        }
        let mut bytes = Vec::new();
        let got = (&mut *stream).take(length as u64).read_to_end(&mut bytes).map_err(cut)?;
        if got != length {
            return Err(ended());
        }
        View::from_picture(&bytes, open(&store)?, open(&origin)?)
    }

    /// What was read here of the tables and what they name. What the server no longer keeps for this client may look
    /// damaged: then the error is that.
    fn kept<T>(&self, read: Result<T>) -> Result<T> {
        read.map_err(|error| self.done(&Request::Kept).err().unwrap_or(error))
    }

    /// What `point` is called where it is read.
    fn stands_for(&self, point: PointId) -> PointId {
        match (point, self.frozen.get()) {
            (PointId::Origin, Some(frozen)) => frozen.id,
            (point, _) => point,
        }
    }

    fn read_snapshot(&self, id: Epoch, offset: u64, buf: &mut [u8]) -> Result<()> {
        let view = self.attached()?;
        let noted = match view.read_noting(id, offset, buf) {
            Ok(noted) if noted.is_empty() => return Ok(()),
            Ok(noted) => noted,
            // The origin may have become smaller, or a full store has taken back what these tables name: the server
            // knows, and what is an error there too is one.
            Err(_) => return self.read_now(PointId::Snapshot(id), offset, buf),
        };
        for (start, end) in self.preserved(id, noted)? {
            let at = index(start.saturating_sub(offset));
            let piece = buf.get_mut(at..index(end.saturating_sub(offset))).ok_or_else(unexpected)?;
            self.read_now(PointId::Snapshot(id), start, piece)?;
        }
        Ok(())
    }

    /// The chunks of `window` where snapshot `id` may have other than zeroes.
    fn nonzero_within(&self, id: Epoch, window: &Range<u64>) -> Result<Vec<ChunkRange>> {
        let everything = |_| vec![ChunkRange { start: window.start, end: window.end }];
        // First the holes, then the tables: what somebody made a hole was preserved before, and they say so.
        let data = self.attached()?.data_within(window).unwrap_or_else(everything);
        let tables = self.attach()?;
        self.kept(tables.nonzero_within(id, data, window))
    }

    /// All chunks where snapshot `id` may have other than zeroes.
    fn nonzero(&self, id: Epoch) -> Result<Changes<'_>> {
        let size = self.attached()?.measure(PointId::Snapshot(id))?.0;
        let chunks = size.div_ceil(1 << self.chunk_bits);
        let (mut next, mut ready) = (0, Vec::<ChunkRange>::new().into_iter());
        let mut open: Option<ChunkRange> = None;
        Ok(Box::new(std::iter::from_fn(move || {
            loop {
                match ready.next() {
                    Some(range) => match &mut open {
                        Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                        _ => {
                            if let Some(done) = open.replace(range) {
                                return Some(Ok(done));
                            }
                        }
                    },
                    None if next < chunks => {
                        let window = next..next + HOLES_STEP;
                        next = window.end;
                        match self.nonzero_within(id, &window) {
                            Ok(ranges) => ready = ranges.into_iter(),
                            Err(error) => {
                                next = chunks;
                                return Some(Err(error));
                            }
                        }
                    }
                    None => return open.take().map(Ok),
                }
            }
        })))
    }

    fn preserved(&self, id: Epoch, ranges: Vec<(u64, u64)>) -> Result<Vec<(u64, u64)>> {
        match self.ask(&Request::Preserved { id, ranges })? {
            Reply::Ranges(ranges) => Ok(ranges),
            _ => Err(unexpected()),
        }
    }

    fn done(&self, request: &Request) -> Result<()> {
        match self.ask(request)? {
            Reply::Done => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// Gives the origin another size.
    ///
    /// # Errors
    /// `Kind::Busy` if others use it; what the server says.
    pub fn resize_origin(&self, size: u64, within: bool) -> Result<Preserved> {
        match self.ask(&Request::OriginSize { size, within })? {
            Reply::Preserved(preserved) => Ok(preserved),
            _ => Err(unexpected()),
        }
    }

    /// Gives the store another size.
    ///
    /// # Errors
    /// What the server says.
    pub fn resize_store(&self, size: u64) -> Result<StorePlan> {
        match self.ask(&Request::StoreSize(size))? {
            Reply::Resized(plan) => Ok(plan),
            _ => Err(unexpected()),
        }
    }
}

/// Connects to the server that has the store at `path` open, or else listens there.
fn dial(path: &Path) -> Result<UnixStream> {
    if let Some(stream) = connect_to_owner(path) {
        return Ok(stream);
    }
    UnixStream::connect(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => {
            Error::new(Kind::NotFound, "no server listens there: it has ended").at_path(path)
        }
        _ => socket_error("cannot connect", error, path),
    })
}

/// Connects to the server that has the store at `path` open, if there is one that can be trusted.
fn connect_to_owner(path: &Path) -> Option<UnixStream> {
    let stream = UnixStream::connect_addr(&store_name(path)?).ok()?;
    // The name is free for anybody to take.
    stream.ensure_own_user().is_ok().then_some(stream)
}

impl Drop for Client {
    fn drop(&mut self) {
        // Whoever runs the next command must not meet what this one needed. A server that has ended needs no word.
        let _ = self.done(&Request::Release);
    }
}

/// Opens a device of the server for reading.
fn open(place: &Place) -> Result<Arc<dyn ReadAt>> {
    let hint = "the server's devices must be seen at the same paths where the command runs";
    let device = match place.direct {
        true => FileReader::open_direct(&place.path),
        false => FileReader::open_origin_read(&place.path),
    };
    let device = device.map_err(|error| error.hint(hint))?;
    let stamp = device.file_stamp().map(|(number, inode, _)| (number, inode));
    if stamp != place.stamp {
        let what = "this is not what the server has open there";
        return Err(Error::new(Kind::Mismatch, what).at_path(&place.path).hint(hint));
    }
    Ok(Arc::new(device))
}

/// Nobody is there any more who would answer.
fn ended() -> Error {
    Error::new(Kind::Io, "the server does not answer any more")
        .hint("it has ended, or takes no more connections: give the command again when it runs")
}

fn lost(error: Error) -> Error {
    if is_gone(&error) { ended() } else { error }
}

fn cut(error: std::io::Error) -> Error {
    lost(Error::io("the connection to the server is cut", error))
}

fn unexpected() -> Error {
    Error::damaged("the server answered something else")
}

/// Asks one thing; `more` goes with it, and the bytes of a read go to `data`.
fn ask(stream: &Mutex<UnixStream>, request: &Request, more: &[u8], data: Option<&mut [u8]>) -> Result<Reply> {
    let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
    match (converse(&mut stream, request, more)?, data) {
        (Reply::Data, Some(data)) => {
            stream.read_exact(data).map_err(cut)?;
            Ok(Reply::Data)
        }
        (reply, _) => Ok(reply),
    }
}

fn converse(stream: &mut UnixStream, request: &Request, more: &[u8]) -> Result<Reply> {
    send(stream, request).map_err(lost)?;
    stream.write_all(more).map_err(cut)?;
    match receive(stream, ANSWER_MAX).map_err(lost)?.ok_or_else(ended)? {
        Reply::Failed { kind, what, hint } => {
            let error = Error::new(kind, what);
            Err(match hint {
                Some(hint) => error.hint(hint),
                None => error,
            })
        }
        reply => Ok(reply),
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
        self.kept(self.attached()?.sharing())
    }

    fn hold(&self, points: &[PointId]) -> Result<()> {
        for point in points {
            match point {
                PointId::Snapshot(id) => self.done(&Request::Hold(*id))?,
                PointId::Origin if self.frozen.get().is_some() => {}
                PointId::Origin => match self.ask(&Request::Freeze)? {
                    Reply::Frozen(point) => {
                        self.frozen.get_or_init(|| *point);
                    }
                    _ => return Err(unexpected()),
                },
            }
        }
        Ok(())
    }
}

impl PointSource for Client {
    fn chunk_bits(&self) -> u32 {
        self.chunk_bits
    }

    fn points(&self) -> Vec<Point> {
        let mut points = self.points.clone();
        if let (Some(frozen), Some(origin)) = (self.frozen.get(), points.last_mut()) {
            *origin = Point { id: PointId::Origin, ..frozen.clone() };
        }
        points
    }

    fn changed(&self, from: Option<PointId>, to: PointId) -> Result<Changes<'_>> {
        match (from.map(|point| self.stands_for(point)), self.stands_for(to)) {
            (None, PointId::Snapshot(id)) => self.nonzero(id),
            (from, to) => {
                let changes = self.kept(self.attached()?.changed(from, to))?;
                Ok(Box::new(changes.map(|change| self.kept(change))))
            }
        }
    }

    fn read(&self, point: PointId, offset: u64, buf: &mut [u8]) -> Result<()> {
        let id = match self.stands_for(point) {
            // What was written last may be in the server's memory only.
            PointId::Origin => return self.read_now(PointId::Origin, offset, buf),
            PointId::Snapshot(id) => id,
        };
        let mut at = offset;
        for piece in buf.chunks_mut(READ_MAX) {
            self.read_snapshot(id, at, piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn known_crc(&self, point: PointId, chunk: u64) -> Result<Option<u32>> {
        self.kept(self.attached()?.known_crc(self.stands_for(point), chunk))
    }
}

impl Rewrite for Client {
    fn volume(&self) -> &dyn Volume {
        self
    }

    fn now(&self) -> Result<StoreInfo> {
        Administer::info(self)
    }

    fn measure(&self, point: PointId) -> Result<(u64, u64)> {
        match self.ask(&Request::Measure(point))? {
            Reply::Measure(size, generation) => Ok((size, generation)),
            _ => Err(unexpected()),
        }
    }

    fn differing(&self, point: PointId, from: u64, most: usize) -> Result<Vec<ChunkRange>> {
        // As it is now, not when something was first read.
        let tables = self.attach()?;
        self.kept(tables.differing(point, from, most))
    }

    fn read_now(&self, point: PointId, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut at = offset;
        for piece in buf.chunks_mut(READ_MAX) {
            let request = Request::Read { point, offset: at, length: piece.len() };
            at += piece.len() as u64;
            match ask(&self.stream, &request, &[], Some(piece))? {
                Reply::Data => {}
                _ => return Err(unexpected()),
            }
        }
        Ok(())
    }

    fn rewrite(&mut self, point: PointId, pieces: &[(u64, &[u8])]) -> Result<()> {
        self.ensure_not_dry()?;
        for (offset, data) in pieces {
            let mut at = *offset;
            for piece in data.chunks(READ_MAX) {
                let request = Request::Write { point, pieces: vec![(at, piece.len())] };
                at += piece.len() as u64;
                ask(&self.stream, &request, piece, None)?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.done(&Request::Flush)
    }

    fn ensure_room(&mut self, bytes: u64) -> Result<()> {
        self.done(&Request::Room(bytes))
    }

    fn begin(&mut self, operation: &Begin) -> Result<()> {
        self.ensure_not_dry()?;
        self.done(&Request::Begin(operation.clone()))
    }

    fn set_origin_size(&mut self, size: u64, _progress: &dyn Progress) -> Result<()> {
        self.ensure_not_dry()?;
        self.resize_origin(size, true).map(|_| ())
    }

    fn end(&mut self, equals: Option<Identity>) -> Result<()> {
        self.ensure_not_dry()?;
        self.done(&Request::End(equals))
    }
}
