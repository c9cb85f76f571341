//! The server's side.

use super::{Devices, RANGES_MAX, READ_MAX, Reply, Request, receive, send};
use crate::error::{Error, Kind, Result};
use crate::point::volume::{Administer, Change, Changed, StoreInfo};
use crate::point::{PointId, PointSource};
use crate::serve::export::{self, Export};
use crate::serve::figures::Collector;
use crate::serve::front::Service;
use crate::serve::listen::Stream;
use crate::serve::nbd;
use crate::store::Live;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

/// Answers what commands ask of a live volume.
pub struct Control {
    /// Gone when the server has begun to close it.
    live: Weak<Live>,
    figures: Arc<Collector>,
    stop: Arc<AtomicBool>,
    devices: Arc<Devices>,
    guard: Option<Guard>,
}

/// Says why no snapshot may be made now.
type Guard = Box<dyn Fn() -> Result<()> + Send + Sync>;

impl Control {
    /// Answers for `live`, whose figures `figures` has; `stop` is set when a client ends the server.
    #[must_use]
    pub fn new(live: &Arc<Live>, figures: Arc<Collector>, stop: Arc<AtomicBool>) -> Self {
        Self { live: Arc::downgrade(live), figures, stop, devices: Arc::default(), guard: None }
    }

    /// Makes snapshots only where `guard` has nothing against it.
    #[must_use]
    pub fn guarded(self, guard: impl Fn() -> Result<()> + Send + Sync + 'static) -> Self {
        Self { guard: Some(Box::new(guard)), ..self }
    }

    /// The connections that serve devices.
    #[must_use]
    pub fn devices(&self) -> Arc<Devices> {
        Arc::clone(&self.devices)
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
                    stream,
                    sender,
                    || ender.end(),
                )
            }
        }
    }

    fn open(&self, point: PointId) -> Result<Arc<dyn Export>> {
        export::open(&self.live.upgrade().ok_or_else(ended)?, point)
    }

    fn answer(&self, request: Request, data: &mut Vec<u8>) -> Result<Reply> {
        data.clear();
        let live = self.live.upgrade().ok_or_else(ended)?;
        match request {
            Request::Describe => live.look(|view| {
                Ok(Reply::Volume {
                    info: Box::new(StoreInfo {
                        origin_path: live.origin_path().to_path_buf(),
                        ..view.info()
                    }),
                    snapshots: view.snapshots(),
                    points: view.points(),
                    chunk_bits: view.chunk_bits(),
                })
            }),
            Request::Sharing => {
                let picture = live.picture();
                let sharing = picture.view.sharing();
                picture.pin.ensure_good().and(sharing).map(Reply::Sharing)
            }
            Request::Figures => Ok(Reply::Figures(Box::new(self.figures.collect()?))),
            Request::Changed { from, to, start } => changed(&live, from, to, start),
            Request::Read { point, offset, length } => {
                if length > READ_MAX {
                    return Err(Error::new(Kind::Usage, format!("a read of {length} bytes")));
                }
                data.resize(length, 0);
                match point {
                    PointId::Origin => live.read_origin(offset, data)?,
                    PointId::Snapshot(id) => live.read_snapshot(id, offset, data)?,
                }
                Ok(Reply::Data)
            }
            Request::Change(change) => {
                if let (Change::Create { .. }, Some(guard)) = (&change, &self.guard) {
                    guard()?;
                }
                let changed = make(&live, &change)?;
                Ok(Reply::Changed(Box::new(changed)))
            }
            Request::Serve(_) => Err(Error::new(Kind::Usage, "a device has a connection of its own")),
            Request::Stop => {
                self.stop.store(true, Ordering::Relaxed);
                Ok(Reply::Done)
            }
        }
    }
}

fn ended() -> Error {
    Error::new(Kind::Busy, "the server is being ended")
}

/// Makes a change of the snapshot table.
fn make(live: &Live, change: &Change) -> Result<Changed> {
    match change {
        Change::Create { tag, name } => live.create_snapshot(*tag, name.as_deref()).map(Changed::Snapshot),
        Change::Delete(id) => live.delete_snapshot(*id).map(|()| Changed::Done),
        change => live.change(|writer| Administer::change(writer, change)),
    }
}

fn changed(live: &Live, from: Option<PointId>, to: PointId, start: u64) -> Result<Reply> {
    let picture = live.picture();
    let list = || {
        let mut ranges = Vec::new();
        for range in picture.view.changed(from, to)? {
            let range = range?;
            if range.end <= start {
                continue;
            }
            if ranges.len() == RANGES_MAX {
                return Ok(Reply::Ranges { ranges, more: true });
            }
            ranges.push((range.start.max(start), range.end));
        }
        Ok(Reply::Ranges { ranges, more: false })
    };
    let listed = list();
    picture.pin.ensure_good().and(listed)
}

impl Service for Control {
    fn serve<S: Stream>(&self, mut stream: S) -> Result<()> {
        stream.ensure_own_user()?;
        let mut data = Vec::new();
        while let Some(request) = receive(&mut stream)? {
            if let Request::Serve(point) = request {
                return self.serve_device(stream, point);
            }
            let reply = self.answer(request, &mut data).unwrap_or_else(|error| Reply::from(&error));
            send(&mut stream, &reply)?;
            if matches!(reply, Reply::Data) {
                stream.write_all(&data).map_err(|error| Error::io("cannot answer", error))?;
            }
        }
        Ok(())
    }
}
