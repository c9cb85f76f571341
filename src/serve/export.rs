//! What front ends offer: the live origin, and every snapshot.

use crate::error::{Error, Kind, Result};
use crate::point::volume::{SnapshotInfo, SnapshotState};
use crate::point::{PointId, PointSource};
use crate::store::{Live, User};
use crate::units::{Epoch, Tag};
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

/// A device that clients use, many at a time.
pub trait Export: Send + Sync {
    /// Bytes.
    fn size(&self) -> u64;

    /// True if it cannot be written.
    fn is_read_only(&self) -> bool;

    /// The size of request that does not make the store work for bytes that nobody asked for.
    fn preferred_size(&self) -> u32;

    /// Fills `buf` from byte `offset`.
    ///
    /// # Errors
    /// `Kind::Usage` past the end; `Kind::Io`, `Kind::Damaged`; `Kind::NotFound` if it is gone.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// As [`Export::read`], if that waits for no device: false, with anything in `buf`, if it might.
    ///
    /// # Errors
    /// As [`Export::read`].
    fn read_cached(&self, offset: u64, buf: &mut [u8]) -> Result<bool> {
        let (_, _) = (offset, buf);
        Ok(false)
    }

    /// The open file in which these bytes lie at the same offset, for whoever reads them there himself at once, which
    /// is as [`Export::read`] then; `None` if they, or some of them, are to be had in another way.
    fn file_with(&self, offset: u64, length: usize) -> Option<Arc<File>> {
        let (_, _) = (offset, length);
        None
    }

    /// Writes at byte `offset`; durable after [`Export::flush`].
    ///
    /// # Errors
    /// `Kind::Refused` if it is read-only; `Kind::Usage` past the end; `Kind::NoSpace`, `Kind::Io`.
    fn write(&self, offset: u64, data: &[u8]) -> Result<()>;

    /// As [`Export::write`], for little data and if that waits for nobody: false, and nothing is written, if it might.
    ///
    /// # Errors
    /// As [`Export::write`].
    fn write_at_once(&self, offset: u64, data: &[u8]) -> Result<bool> {
        let (_, _) = (offset, data);
        Ok(false)
    }

    /// Makes `length` bytes from `offset` zeroes.
    ///
    /// # Errors
    /// As [`Export::write`].
    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        let zeroes = vec![0; crate::units::index(length.min(ZEROES))];
        let mut at = 0;
        while at < length {
            let slice = zeroes.get(..crate::units::index((length - at).min(ZEROES))).unwrap_or(&zeroes);
            self.write(offset + at, slice)?;
            at += slice.len() as u64;
        }
        Ok(())
    }

    /// Nobody needs these bytes. They may stay as they are.
    ///
    /// # Errors
    /// As [`Export::write`].
    fn discard(&self, offset: u64, length: u64) -> Result<()>;

    /// The tags of the snapshots since which it can tell what has changed.
    fn bases(&self) -> Vec<Tag> {
        Vec::new()
    }

    /// The chunks from byte `offset` on that may differ from snapshot `base`, or, without one, be other than zeroes.
    ///
    /// # Errors
    /// `Kind::Usage` past the end; `Kind::NotFound` if there is no such snapshot; `Kind::Io`, `Kind::Damaged`.
    fn differing(&self, base: Option<Tag>, offset: u64, length: u64) -> Result<Differing> {
        ensure_inside(offset, length, self.size())?;
        let end = offset + length;
        match base {
            None => Ok(Differing { ranges: std::iter::once(offset..end).collect(), end }),
            Some(_) => Err(Error::new(Kind::NotFound, "there is no snapshot to compare with")),
        }
    }

    /// Makes every write that has returned durable.
    ///
    /// # Errors
    /// `Kind::Io`.
    fn flush(&self) -> Result<()>;
}

/// Which bytes of a range differ from something else.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Differing {
    /// Ascending, disjoint, inside of the range.
    pub ranges: Vec<Range<u64>>,
    /// How far it was looked.
    pub end: u64,
}

/// Most ranges that are told at a time.
const RANGES_MAX: usize = 16 << 10;

/// Zeroes written at a time.
const ZEROES: u64 = 1 << 20;

/// The exports of a server, by name.
pub trait Exports: Send + Sync {
    /// All names, and what each one is, for people.
    fn names(&self) -> Vec<(String, String)>;

    /// The export `name`.
    ///
    /// # Errors
    /// `Kind::NotFound`.
    fn open(&self, name: &str) -> Result<Arc<dyn Export>>;

    /// Bytes of the export `name`, and whether it cannot be written. To look at it is not to use it.
    ///
    /// # Errors
    /// `Kind::NotFound`.
    fn look(&self, name: &str) -> Result<(u64, bool)> {
        self.open(name).map(|export| (export.size(), export.is_read_only()))
    }
}

fn bases(live: &Live) -> Vec<Tag> {
    let snapshots = live.look(|view| view.snapshots()).into_iter();
    snapshots
        .filter(|snapshot| snapshot.state == SnapshotState::Normal)
        .map(|snapshot| snapshot.tag)
        .collect()
}

fn differing(live: &Live, base: Option<Tag>, point: PointId, range: Range<u64>) -> Result<Differing> {
    // What is held is in no table yet.
    live.settle()?;
    live.look(|view| {
        let snapshots = view.snapshots();
        let known = |tag: Tag| snapshots.iter().find(|snapshot| snapshot.tag == tag);
        let gone = || Error::new(Kind::NotFound, "the snapshot to compare with is gone");
        let base = base.map(|tag| known(tag).map(|snapshot| PointId::Snapshot(snapshot.id)).ok_or_else(gone));
        let bits = view.chunk_bits();
        let mut found = Differing { ranges: Vec::new(), end: range.end };
        for chunks in view.changed(base.transpose()?, point)? {
            let chunks = chunks?;
            let (start, end) = ((chunks.start << bits).max(range.start), (chunks.end << bits).min(range.end));
            if start >= range.end {
                break;
            }
            if found.ranges.len() == RANGES_MAX {
                found.end = start;
                break;
            }
            if start < end {
                found.ranges.push(start..end);
            }
        }
        Ok(found)
    })
}

/// The live origin.
struct Origin {
    live: Arc<Live>,
    outlived: bool,
    /// Nobody changes it as a whole while it is open.
    _user: User,
}

impl Origin {
    /// True if what is only held must not be told to be written.
    fn is_lost_with_this_process(&self) -> bool {
        self.outlived && !self.live.is_journaled()
    }
}

impl Export for Origin {
    fn size(&self) -> u64 {
        self.live.origin_size()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn preferred_size(&self) -> u32 {
        self.live.look(|view| view.info().chunk_size)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.live.read_origin(offset, buf)
    }

    fn read_cached(&self, offset: u64, buf: &mut [u8]) -> Result<bool> {
        self.live.read_origin_cached(offset, buf)
    }

    fn file_with(&self, offset: u64, length: usize) -> Option<Arc<File>> {
        self.live.origin_file(offset, length)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.live.write_origin(offset, data)?;
        if self.is_lost_with_this_process() { self.live.settle() } else { Ok(()) }
    }

    fn write_at_once(&self, offset: u64, data: &[u8]) -> Result<bool> {
        if self.is_lost_with_this_process() {
            Ok(false)
        } else {
            self.live.write_origin_at_once(offset, data)
        }
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        // Forwarding it would preserve what a weekly fstrim discards, all of it.
        ensure_inside(offset, length, self.size())
    }

    fn bases(&self) -> Vec<Tag> {
        bases(&self.live)
    }

    fn differing(&self, base: Option<Tag>, offset: u64, length: u64) -> Result<Differing> {
        ensure_inside(offset, length, self.size())?;
        differing(&self.live, base, PointId::Origin, offset..offset + length)
    }

    fn flush(&self) -> Result<()> {
        self.live.flush()
    }
}

/// A snapshot.
struct Snapshot {
    live: Arc<Live>,
    id: Epoch,
    size: u64,
    /// It stays while it is open.
    _user: User,
}

impl Snapshot {
    fn refuse<T>(&self) -> Result<T> {
        Err(Error::new(Kind::Refused, "snapshots are offered for reading only"))
    }
}

impl Export for Snapshot {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn preferred_size(&self) -> u32 {
        self.live.look(|view| view.info().chunk_size)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.live.read_snapshot(self.id, offset, buf)
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Result<()> {
        self.refuse()
    }

    fn discard(&self, _offset: u64, _length: u64) -> Result<()> {
        self.refuse()
    }

    fn bases(&self) -> Vec<Tag> {
        bases(&self.live)
    }

    fn differing(&self, base: Option<Tag>, offset: u64, length: u64) -> Result<Differing> {
        ensure_inside(offset, length, self.size)?;
        differing(&self.live, base, PointId::Snapshot(self.id), offset..offset + length)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

pub(super) fn ensure_inside(offset: u64, length: u64, size: u64) -> Result<()> {
    match offset.checked_add(length).filter(|end| *end <= size) {
        Some(_) => Ok(()),
        None => Err(Error::new(Kind::Usage, format!("{length} bytes at {offset} end past its {size} bytes"))),
    }
}

/// The name of the live origin; the empty name stands for it too.
const ORIGIN: &str = "origin";
/// What comes before the tag of a snapshot.
const SNAPSHOT: &str = "snap/";

/// A point of a live volume.
///
/// # Errors
/// `Kind::NotFound`; `Kind::Busy` for the origin while a command changes it as a whole.
pub fn open(live: &Arc<Live>, point: PointId) -> Result<Arc<dyn Export>> {
    open_for(live, point, false)
}

/// As [`open`], for a device of the kernel, which goes on with another server where this one is killed: when it
/// returns, a write is in the journal, or has landed if there is none. A file system above would not know that what it
/// has written, and not flushed, is gone.
///
/// # Errors
/// As [`open`].
pub fn open_outlived(live: &Arc<Live>, point: PointId) -> Result<Arc<dyn Export>> {
    open_for(live, point, true)
}

fn open_for(live: &Arc<Live>, point: PointId, outlived: bool) -> Result<Arc<dyn Export>> {
    let PointId::Snapshot(id) = point else {
        let user = live.open_origin()?;
        return Ok(Arc::new(Origin { live: Arc::clone(live), outlived, _user: user }));
    };
    let user = live.open_snapshot(id)?;
    let snapshots = live.look(|view| view.snapshots());
    let found = snapshots.into_iter().find(|snapshot| snapshot.id == id);
    let found = found.ok_or_else(|| Error::new(Kind::NotFound, "there is no such snapshot"))?;
    Ok(Arc::new(Snapshot { live: Arc::clone(live), id, size: found.size_bytes, _user: user }))
}

/// The exports of a store: `origin`, and `snap/TAG` for each snapshot.
pub struct Volume(pub Arc<Live>);

impl Volume {
    fn usable(&self) -> impl Iterator<Item = SnapshotInfo> {
        self.0
            .look(|view| view.snapshots())
            .into_iter()
            .filter(|snapshot| snapshot.state == SnapshotState::Normal)
    }

    fn find(&self, name: &str) -> Result<SnapshotInfo> {
        let wanted = |snapshot: &SnapshotInfo| {
            name.strip_prefix(SNAPSHOT).is_some_and(|tag| snapshot.tag.to_string() == tag)
        };
        let found = self.usable().find(wanted);
        found.ok_or_else(|| Error::new(Kind::NotFound, format!("there is no export '{name}'")))
    }
}

fn is_origin(name: &str) -> bool {
    name.is_empty() || name == ORIGIN
}

impl Exports for Volume {
    fn names(&self) -> Vec<(String, String)> {
        let origin = (ORIGIN.to_owned(), "the live origin".to_owned());
        let describe = |snapshot: SnapshotInfo| {
            let name = snapshot.name.map(|name| format!(" '{name}'")).unwrap_or_default();
            (format!("{SNAPSHOT}{}", snapshot.tag), format!("snapshot {}{name}", snapshot.tag))
        };
        std::iter::once(origin).chain(self.usable().map(describe)).collect()
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Export>> {
        if is_origin(name) {
            return open(&self.0, PointId::Origin);
        }
        open(&self.0, PointId::Snapshot(self.find(name)?.id))
    }

    fn look(&self, name: &str) -> Result<(u64, bool)> {
        if is_origin(name) {
            return Ok((self.0.origin_size(), false));
        }
        Ok((self.find(name)?.size_bytes, true))
    }
}
