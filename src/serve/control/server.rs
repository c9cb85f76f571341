//! The server's side.

use super::{Devices, Ending, Place, READ_MAX, REQUEST_MAX, Reply, Request, receive, send};
use crate::block::ReadAt;
use crate::error::{Error, Kind, Result};
use crate::point::volume::{Administer, Change, Changed, StoreInfo};
use crate::point::{PointId, PointSource};
use crate::progress::Silent;
use crate::serve::export::{self, Export};
use crate::serve::figures::Collector;
use crate::serve::front::{Serve, Service};
use crate::serve::fuse::Fuse;
use crate::serve::listen::Stream;
use crate::serve::watched::Watch;
use crate::serve::{frozen, nbd, ublk};
use crate::store::{Live, Pin, User};
use crate::units::Epoch;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Answers what commands ask of a live volume, at one place or several.
#[derive(Clone)]
pub struct Control {
    /// Gone when the server has begun to close it.
    live: Weak<Live>,
    figures: Arc<Collector>,
    stop: Arc<AtomicBool>,
    watch: Arc<Watch>,
    /// Bytes that clients have sent or will be sent, now in memory.
    memory: Arc<AtomicUsize>,
    devices: Arc<Devices>,
    ending: Arc<Ending>,
    /// What requests of devices are kept in: not what clients of the network can use up.
    requests: Arc<nbd::Memory>,
    guard: Option<Guard>,
    outlive: Option<Outlive>,
}

/// Says why no snapshot may be made now.
type Guard = Arc<dyn Fn() -> Result<()> + Send + Sync>;

/// Has what is held outlive this process, if it can.
type Outlive = Arc<dyn Fn(&Live) + Send + Sync>;

/// Clients of this process so far; none is number 0.
static CLIENTS: AtomicU64 = AtomicU64::new(1);

/// How often it is looked whether a file is still shown.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a client may take to hear how the server has ended.
const LAST_WORD: Duration = Duration::from_secs(5);

/// Most bytes for all clients together.
const MEMORY_MAX: usize = 256 << 20;

/// Bytes of one request, or its answer, that are in memory.
struct Share {
    memory: Arc<AtomicUsize>,
    bytes: usize,
}

impl Share {
    fn take(memory: &Arc<AtomicUsize>, bytes: usize) -> Result<Self> {
        let share = Self { memory: Arc::clone(memory), bytes };
        match memory.fetch_add(bytes, Ordering::AcqRel).saturating_add(bytes) <= MEMORY_MAX {
            true => Ok(share),
            false => Err(Error::new(Kind::Busy, "too many commands want something at once")),
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Most snapshots, and most tables, that one client needs.
const NEEDS_MAX: usize = 4096;
/// Most moments of the origin that one client needs.
const FROZEN_MAX: usize = 4;

/// What a client needs until its connection ends.
#[derive(Default)]
struct Needs {
    claim: Claim,
    users: Vec<User>,
    pins: Vec<Pin>,
    frozen: Vec<Frozen>,
}

/// Whom the origin belongs to once it begins to change it as a whole.
#[derive(Default)]
struct Claim {
    live: Weak<Live>,
    /// Tells it from all others.
    client: u64,
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(live) = self.live.upgrade() {
            live.let_go(self.client);
        }
    }
}

/// What the origin was at a moment.
struct Frozen {
    live: Weak<Live>,
    id: Epoch,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Some(live) = self.live.upgrade() {
            // What stays is removed when the store is closed, or opened again.
            let _ = live.thaw(self.id);
        }
    }
}

impl Needs {
    /// Refuses one more, if there are more than any command needs.
    fn ensure_few(&self) -> Result<()> {
        match self.users.len() < NEEDS_MAX && self.pins.len() < NEEDS_MAX && self.frozen.len() < FROZEN_MAX {
            true => Ok(()),
            false => Err(Error::new(Kind::Busy, "one command needs too much at once")),
        }
    }

    fn ensure_good(&self) -> Result<()> {
        self.pins.iter().try_for_each(Pin::ensure_good)
    }
}

impl Control {
    /// Answers for `live`, whose figures `figures` has; `stop` is set when a client ends the server, and `watch` tells
    /// what devices fail.
    #[must_use]
    pub fn new(live: &Arc<Live>, figures: Arc<Collector>, stop: Arc<AtomicBool>, watch: Arc<Watch>) -> Self {
        let (memory, requests, devices, ending) = Default::default();
        let live = Arc::downgrade(live);
        Self { live, figures, stop, watch, memory, requests, devices, ending, guard: None, outlive: None }
    }

    /// Makes snapshots, hidden ones too, only where `guard` has nothing against it.
    #[must_use]
    pub fn guarded(self, guard: impl Fn() -> Result<()> + Send + Sync + 'static) -> Self {
        Self { guard: Some(Arc::new(guard)), ..self }
    }

    /// The connections that serve devices.
    #[must_use]
    pub fn devices(&self) -> Arc<Devices> {
        Arc::clone(&self.devices)
    }

    /// Calls `outlive` before the origin becomes a device that outlives this process.
    #[must_use]
    pub fn outliving(self, outlive: impl Fn(&Live) + Send + Sync + 'static) -> Self {
        Self { outlive: Some(Arc::new(outlive)), ..self }
    }

    /// Who is told how the server has ended.
    #[must_use]
    pub fn ending(&self) -> Arc<Ending> {
        Arc::clone(&self.ending)
    }

    /// Ends the server, and tells how that went.
    fn end<S: Stream>(&self, mut stream: S) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let failed = |error: std::io::Error| Error::io(format!("connection: {error}"), error);
        stream.set_limit(Some(LAST_WORD)).map_err(failed)?;
        self.ending.tell(|outcome| send(&mut stream, outcome))
    }

    fn ensure_unguarded(&self) -> Result<()> {
        self.guard.as_ref().map_or(Ok(()), |guard| guard())
    }

    /// Serves a point on `stream`, to its end.
    fn serve_device<S: Stream>(&self, mut stream: S, point: PointId) -> Result<()> {
        let failed = |error: std::io::Error| Error::io(format!("connection: {error}"), error);
        let (sender, ender, last) = (
            stream.again().map_err(failed)?,
            stream.again().map_err(failed)?,
            stream.again().map_err(failed)?,
        );
        let traffic = self.figures.traffic();
        let (_present, _open) = (traffic.connect(), traffic.open());
        let place = self.devices.add(move || last.end());
        let opened = match &place {
            None => Err(ended()),
            Some(_) => self.open(point),
        };
        match opened {
            Err(error) => send(&mut stream, &Reply::from(&error)),
            Ok(export) => {
                let flags = nbd::transmission_flags(export.as_ref());
                send(&mut stream, &Reply::Device { size: export.size(), flags })?;
                nbd::serve(
                    &nbd::Session { export, structured: false, contexts: Vec::new() },
                    &self.requests,
                    (stream, sender),
                    &ender,
                )
            }
        }
    }

    /// Serves a point as a device of ublk, to its end. The connection has no part in it but to tell that it begins.
    fn serve_ublk<S: Stream>(&self, mut stream: S, point: PointId, device: (u32, u16)) -> Result<()> {
        let traffic = self.figures.traffic();
        let _open = traffic.open();
        let end = Arc::new(ublk::End::new()?);
        let place = {
            let end = Arc::clone(&end);
            self.devices.add(move || end.end())
        };
        let opened = match &place {
            None => Err(ended()),
            Some(_) => self.open(point),
        };
        let mut tell = |begun: Result<()>| {
            send(&mut stream, &begun.map_or_else(|error| Reply::from(&error), |()| Reply::Done))
        };
        match opened {
            Err(error) => tell(Err(error)),
            Ok(export) => ublk::Device { number: device.0, depth: device.1, export, end }.serve(tell),
        }
    }

    /// Shows a point as a file, until it is unmounted or this server ends. The connection has no part in it but to
    /// tell that it begins.
    fn serve_file<S: Stream>(&self, mut stream: S, point: PointId, file: (&Path, String)) -> Result<()> {
        let traffic = self.figures.traffic();
        let _open = traffic.open();
        let is_ending = Arc::new(AtomicBool::new(false));
        let place = {
            let is_ending = Arc::clone(&is_ending);
            self.devices.add(move || is_ending.store(true, Ordering::Release))
        };
        let opened = match &place {
            None => Err(ended()),
            Some(_) => self.open(point),
        };
        let shown = opened.and_then(|export| {
            let is_read_only = export.is_read_only();
            let exports = frozen::Frozen(BTreeMap::from([(file.1, export)]));
            Fuse::mount(Arc::new(exports), file.0, is_read_only)
        });
        match shown {
            Err(error) => send(&mut stream, &Reply::from(&error)),
            Ok(shown) => {
                send(&mut stream, &Reply::Done)?;
                while !shown.is_over() && !is_ending.load(Ordering::Acquire) {
                    std::thread::sleep(PAUSE);
                }
                shown.stop();
                Ok(())
            }
        }
    }

    /// What a device of the kernel is given.
    fn open(&self, point: PointId) -> Result<Arc<dyn Export>> {
        let live = self.live.upgrade().ok_or_else(ended)?;
        if let (PointId::Origin, Some(outlive)) = (point, &self.outlive) {
            outlive(&live);
        }
        let export = export::open_outlived(&live, point)?;
        let snapshots = live.look(|view| view.snapshots());
        let tag = snapshots.iter().find(|snapshot| PointId::Snapshot(snapshot.id) == point);
        let name = tag.map_or("origin".to_owned(), |snapshot| format!("snap/{}", snapshot.tag));
        Ok(self.watch.over(&name, export))
    }

    /// Answers `request`, which came with `data`; what goes with the answer is in it afterwards. `share` counts both.
    fn answer(
        &self,
        request: Request,
        needs: &mut Needs,
        (data, share): (&mut Vec<u8>, &mut Option<Share>),
    ) -> Result<Reply> {
        let live = self.live.upgrade().ok_or_else(ended)?;
        let came = std::mem::take(data);
        match request {
            Request::Describe => Ok(describe(&live)),
            Request::Figures => Ok(Reply::Figures(Box::new(self.figures.collect()?))),
            Request::Kept => needs.ensure_good().map(|()| Reply::Done),
            Request::Preserved { id, ranges } => {
                needs.ensure_good()?;
                let bytes = ranges.iter().map(|(start, end)| end.saturating_sub(*start));
                ensure_bounded(bytes.fold(0, u64::saturating_add))?;
                live.preserved(id, &ranges).map(Reply::Ranges)
            }
            Request::Read { point, offset, length } => {
                ensure_bounded(length as u64)?;
                *share = Some(Share::take(&self.memory, length)?);
                data.resize(length, 0);
                match point {
                    PointId::Origin => live.read_origin(offset, data)?,
                    PointId::Snapshot(id) => live.read_snapshot(id, offset, data)?,
                }
                Ok(Reply::Data)
            }
            Request::Measure(point) => live
                .look(|view| view.measure(point))
                .map(|(size, generation)| Reply::Measure(size, generation)),
            Request::Write { point, pieces } => {
                let mut rest = came.as_slice();
                for (offset, length) in pieces {
                    let (piece, after) = rest.split_at_checked(length).unwrap_or((rest, &[]));
                    rest = after;
                    match point {
                        PointId::Origin => live.rewrite_origin(needs.claim.client, offset, piece)?,
                        PointId::Snapshot(id) => live.write_snapshot(id, offset, piece)?,
                    }
                }
                Ok(Reply::Done)
            }
            Request::Serve(_) | Request::Ublk { .. } | Request::Show { .. } | Request::Stop => {
                Err(Error::new(Kind::Usage, "this takes a connection of its own"))
            }
            Request::Change(change) => {
                if matches!(change, Change::Create { .. }) {
                    self.ensure_unguarded()?;
                }
                make(&live, &change).map(|changed| Reply::Changed(Box::new(changed)))
            }
            Request::Hold(_) | Request::Freeze | Request::Attach | Request::Release => {
                self.need(request, &live, needs, (data, share))
            }
            other => change(&live, needs.claim.client, other),
        }
    }

    /// Requests for what is needed until the connection ends.
    fn need(
        &self,
        request: Request,
        live: &Live,
        needs: &mut Needs,
        (data, share): (&mut Vec<u8>, &mut Option<Share>),
    ) -> Result<Reply> {
        if let Request::Release = request {
            *needs = self.nothing_needed(needs.claim.client);
            return Ok(Reply::Done);
        }
        needs.ensure_few()?;
        match request {
            Request::Hold(id) => {
                needs.users.push(live.open_snapshot(id)?);
                Ok(Reply::Done)
            }
            Request::Freeze => {
                self.ensure_unguarded()?;
                let point = live.freeze()?;
                if let PointId::Snapshot(id) = point.id {
                    needs.frozen.push(Frozen { live: Weak::clone(&self.live), id });
                }
                Ok(Reply::Frozen(Box::new(point)))
            }
            _ => {
                let picture = live.picture()?;
                *data = picture.encode()?;
                *share = Some(Share::take(&self.memory, data.len())?);
                needs.pins.push(picture.pin);
                let [store, origin] = live.devices().map(place);
                Ok(Reply::Attached { store, origin, length: data.len() })
            }
        }
    }

    fn nothing_needed(&self, client: u64) -> Needs {
        Needs { claim: Claim { live: Weak::clone(&self.live), client }, ..Needs::default() }
    }
}

fn ended() -> Error {
    Error::new(Kind::Busy, "the server is being ended")
}

/// Requests that change what the volume is.
fn change(live: &Live, client: u64, request: Request) -> Result<Reply> {
    let done = |()| Reply::Done;
    match request {
        Request::Room(bytes) => live.change(|writer| writer.ensure_room_for(bytes)).map(done),
        Request::Flush => live.flush().map(done),
        Request::Begin(begin) => live.begin_operation(client, &begin).map(done),
        Request::End(equals) => live.end_operation(client, equals).map(done),
        Request::OriginSize { size, within } => {
            live.resize_origin(client, (size, within), &Silent).map(Reply::Preserved)
        }
        Request::StoreSize(size) => live.resize_store(size, &Silent).map(Reply::Resized),
        _ => Err(Error::new(Kind::Usage, "this request is not known")),
    }
}

fn describe(live: &Live) -> Reply {
    live.look(|view| Reply::Volume {
        info: Box::new(StoreInfo { origin_path: live.origin_path().to_path_buf(), ..view.info() }),
        snapshots: view.snapshots(),
        points: view.points(),
        chunk_bits: view.chunk_bits(),
        pid: std::process::id(),
    })
}

fn place(device: &dyn ReadAt) -> Place {
    let stamp = device.file_stamp().map(|(number, inode, _)| (number, inode));
    Place { path: device.path().to_path_buf(), stamp, direct: device.is_direct() }
}

fn ensure_bounded(length: u64) -> Result<()> {
    match length <= READ_MAX as u64 {
        true => Ok(()),
        false => Err(Error::new(Kind::Usage, format!("{length} bytes at once"))),
    }
}

/// Makes a change of the snapshot table.
fn make(live: &Live, change: &Change) -> Result<Changed> {
    match change {
        Change::Create { tag, name } => live.create_snapshot(*tag, name.as_deref()).map(Changed::Snapshot),
        Change::Delete(id) => live.delete_snapshot(*id).map(|()| Changed::Done),
        change => live.change_table(|writer| Administer::change(writer, change)),
    }
}

/// Bytes that follow a request. There is no way past too many of them but to read them.
fn following(request: &Request) -> Result<usize> {
    let Request::Write { pieces, .. } = request else { return Ok(0) };
    let length = pieces.iter().fold(0, |sum: usize, piece| sum.saturating_add(piece.1));
    ensure_bounded(length as u64).map(|()| length)
}

impl Service for Control {
    fn serve<S: Stream>(&self, mut stream: S) -> Result<()> {
        stream.ensure_own_user()?;
        let client = CLIENTS.fetch_add(1, Ordering::Relaxed);
        let (mut needs, mut data) = (self.nothing_needed(client), Vec::new());
        while let Some(request) = receive(&mut stream, REQUEST_MAX)? {
            match request {
                Request::Serve(point) => {
                    drop(needs);
                    return self.serve_device(stream, point);
                }
                Request::Ublk { point, number, depth } => {
                    drop(needs);
                    return self.serve_ublk(stream, point, (number, depth));
                }
                Request::Show { point, folder, name } => {
                    drop(needs);
                    return self.serve_file(stream, point, (&folder, name));
                }
                Request::Stop => {
                    drop(needs);
                    return self.end(stream);
                }
                _ => {}
            }
            let length = following(&request)?;
            let mut share = Some(Share::take(&self.memory, length)?);
            data.clear();
            data.resize(length, 0);
            stream.read_exact(&mut data).map_err(|error| Error::io("a request was cut short", error))?;
            let reply = self.answer(request, &mut needs, (&mut data, &mut share));
            let reply = reply.unwrap_or_else(|error| Reply::from(&error));
            send(&mut stream, &reply)?;
            if matches!(reply, Reply::Data | Reply::Attached { .. }) {
                stream.write_all(&data).map_err(|error| Error::io("cannot answer", error))?;
            }
            if data.capacity() > READ_MAX {
                data = Vec::new();
            }
        }
        Ok(())
    }
}
