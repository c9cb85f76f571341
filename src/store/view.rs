//! Reading a store: look-ups, changelists, the bytes of a point.

use super::changes::{self, Index};
use super::index::BlockReader;
use super::state::{Liveness, State, keeper};
use super::{fingerprint, recover};
use crate::block::ReadAt;
use crate::error::{Error, Kind, Result};
use crate::format::checkpoint::Role;
use crate::format::record::Encoding;
use crate::format::run::{Key, PAGE_BITS, Value};
use crate::format::table::Snapshot;
use crate::point::volume::{
    FullPolicy, PendingOperation, Sharing, SnapshotInfo, SnapshotState, StoreInfo, Volume,
};
use crate::point::{Changes, ChunkRange, Identity, Point, PointId, PointSource, data_ranges};
use crate::units::{Epoch, Tag, Uuid, index};
use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

/// Longest single read of the origin while serving a snapshot.
const READ_MAX: u64 = 4 << 20;

/// A store opened for reading.
pub struct View {
    pub(super) device: Arc<dyn ReadAt>,
    pub(super) origin: Option<Arc<dyn ReadAt>>,
    pub(super) state: State,
    pub(super) reader: Arc<BlockReader>,
}

impl View {
    /// Records since the last checkpoint, and their bytes: what a recovery would have to replay.
    #[must_use]
    pub fn log_since_checkpoint(&self) -> (u64, u64) {
        (self.state.log_records, self.state.log_bytes)
    }

    /// Opens a store for reading; replays its log in memory. `origin` is needed to read data only.
    ///
    /// # Errors
    /// `Kind::Damaged` if `store` is not a sound store, `Kind::Unsupported` if it is of a newer version,
    /// `Kind::Mismatch` if `origin` is smaller than the store says.
    pub fn open(store: Arc<dyn ReadAt>, origin: Option<Arc<dyn ReadAt>>) -> Result<Self> {
        let state = recover::load(store.as_ref())?;
        let reader = Arc::new(BlockReader::new(Arc::clone(&store)));
        let view = Self { device: store, origin: None, state, reader };
        match origin {
            Some(origin) => view.with_origin(origin),
            None => Ok(view),
        }
    }

    /// The same store with its origin, which can be looked for once the store has said where it is.
    ///
    /// # Errors
    /// `Kind::Mismatch` if `origin` is smaller than the store says.
    pub fn with_origin(mut self, origin: Arc<dyn ReadAt>) -> Result<Self> {
        if origin_changed(&self.state, origin.as_ref())? {
            self.state.volume.equals = None;
            for snapshot in self.state.snapshots.values_mut() {
                snapshot.tainted = true;
            }
        }
        self.origin = Some(origin);
        Ok(self)
    }

    /// The same tables once more, which do not change with these.
    pub(super) fn fork(&self) -> Self {
        Self {
            device: Arc::clone(&self.device),
            origin: self.origin.clone(),
            state: self.state.clone(),
            reader: Arc::clone(&self.reader),
        }
    }

    pub(super) fn index(&self) -> Index<'_> {
        Index { reader: &self.reader, memory: &self.state.memory, runs: &self.state.runs }
    }

    /// Facts of the store as a whole.
    #[must_use]
    pub fn info(&self) -> StoreInfo {
        let state = &self.state;
        let sum = |role: Role| -> u64 {
            state.segments.values().filter(|segment| segment.role == role).map(|segment| segment.live).sum()
        };
        let store_size = state.sb.end();
        let used = state.segments.len() as u64;
        StoreInfo {
            uuid: state.sb.uuid,
            volume: state.volume.volume,
            chunk_size: state.sb.chunk_size(),
            block_size: state.sb.block_size(),
            segment_size: state.sb.segment_size(),
            store_size,
            free_bytes: (u64::from(state.sb.segments) - used) << state.sb.segment_bits,
            data_bytes: sum(Role::Log) + self.memory_bytes(),
            metadata_bytes: sum(Role::Index),
            store_path: self.device.path().to_path_buf(),
            origin_path: PathBuf::from(OsStr::from_bytes(&state.volume.path)),
            origin_size: state.volume.origin_size,
            created_secs: state.sb.created_secs,
            full_policy: match state.volume.squash_when_full {
                true => FullPolicy::Squash,
                false => FullPolicy::Fail,
            },
            uncommitted: state.sb.uncommitted,
            pending: state.operation.as_ref().map(|operation| PendingOperation {
                before: Epoch(operation.before),
                pinned: (operation.pinned != 0).then_some(Epoch(operation.pinned)),
                label: operation.label.clone(),
                token: operation.token,
                forced: operation.forced,
            }),
            origin_equals: state.volume.equals.map(|(volume, id, generation)| Identity {
                volume,
                id,
                generation,
            }),
            events: state.events.clone(),
            legacy: None,
        }
    }

    fn memory_bytes(&self) -> u64 {
        let data = self.state.memory.iter().filter(|(key, _)| key.class != 2);
        data.map(|(_, value)| self.state.cost(value)).sum()
    }

    /// All user-visible snapshots, oldest first, squashed ones included.
    #[must_use]
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        self.state.snapshots.values().filter(|snapshot| !snapshot.hidden).map(describe).collect()
    }

    /// Counts sharing for every normal snapshot, oldest first. Reads the whole index once.
    ///
    /// # Errors
    /// `Kind::Io`, `Kind::Damaged`.
    pub fn sharing(&self) -> Result<Vec<Sharing>> {
        let live = self.state.live_ids();
        // A range of snapshots that share an entry adds one to each of them: count the ranges' ends.
        let mut counts = vec![std::collections::BTreeMap::<usize, u64>::new(); live.len()];
        let mut scan = self.index().scan(Key::MIN)?;
        let mut liveness = Liveness::new(&live);
        while let Some((key, _)) = scan.next_entry()? {
            if key.class == 1 {
                if let Ok(at) = live.binary_search(&key.a) {
                    count(&mut counts, at, 1);
                }
                continue;
            }
            if key.class > 1 {
                break;
            }
            if let Some(before) = liveness.since(key) {
                let first = live.partition_point(|id| *id <= before);
                let end = live.partition_point(|id| *id <= key.b);
                for at in first..end {
                    count(&mut counts, at, end - first);
                }
            }
        }
        let sharing = live
            .iter()
            .zip(counts)
            .filter(|(id, _)| self.state.snapshots.get(id).is_some_and(|snapshot| !snapshot.hidden));
        Ok(sharing
            .map(|(id, counts)| {
                let mut shared_by = vec![0; live.len()];
                for (sharers, entries) in counts {
                    if let Some(slot) = shared_by.get_mut(sharers - 1) {
                        *slot = entries;
                    }
                }
                Sharing { id: Epoch(*id), shared_by }
            })
            .collect())
    }

    /// Chunks of which change bits and exceptions say different things: (live snapshot, chunk, true if only the
    /// bits say that it changed before the next live snapshot). Reads the whole index and keeps its bits in memory:
    /// for tests.
    ///
    /// # Errors
    /// `Kind::Io`, `Kind::Damaged`.
    pub fn change_bits_against_exceptions(&self) -> Result<Vec<(u64, u64, bool)>> {
        let live = self.state.live_ids();
        let mut scan = self.index().scan(Key::MIN)?;
        let mut preserved = std::collections::BTreeSet::new();
        let mut marked = std::collections::BTreeSet::new();
        while let Some((key, value)) = scan.next_entry()? {
            match key.class {
                0 => preserved.extend(keeper(&live, 0, key.b).map(|owner| (owner, key.a))),
                2 => {
                    let Some(owner) = keeper(&live, 0, key.a) else { continue };
                    let set = (0..128_u64).filter(|at| value.bits() >> at & 1 == 1);
                    marked.extend(set.map(|at| (owner, (key.b << PAGE_BITS) + at)));
                }
                _ => {}
            }
        }
        let odd = preserved.symmetric_difference(&marked);
        Ok(odd.map(|pair| (pair.0, pair.1, marked.contains(pair))).collect())
    }

    /// The snapshot `id`, if it can be an endpoint.
    pub(super) fn endpoint(&self, id: Epoch) -> Result<&Snapshot> {
        let gone = "the snapshot is there no longer: it was deleted, or given up when the store ran full";
        let snapshot = self.state.snapshots.get(&id.0).ok_or_else(|| Error::new(Kind::NotFound, gone))?;
        if snapshot.squashed {
            return Err(Error::new(
                Kind::NotFound,
                format!("snapshot {} was squashed when the store ran full; its data are gone", snapshot.tag),
            ));
        }
        Ok(snapshot)
    }

    pub(super) fn size_of(&self, point: PointId) -> Result<u64> {
        match point {
            PointId::Origin => Ok(self.state.volume.origin_size),
            PointId::Snapshot(id) => Ok(self.endpoint(id)?.size_bytes),
        }
    }

    pub(super) fn need_origin(&self) -> Result<&dyn ReadAt> {
        self.origin.as_deref().ok_or_else(|| {
            Error::new(Kind::NotFound, "the origin is needed and was not given").hint("name it with --origin")
        })
    }

    /// Where chunk `chunk` of snapshot `id` is preserved; `None` if the origin still has it.
    pub(super) fn find(&self, id: u64, chunk: u64) -> Result<Option<Value>> {
        // A generation of 0 says that the snapshot was never written.
        if self.state.snapshots.get(&id).is_some_and(|snapshot| snapshot.generation > 0) {
            let overlay = Key::overlay(id, chunk);
            if let Some((key, value)) = self.index().scan(overlay)?.next_entry()?
                && key == overlay
            {
                return Ok(Some(value));
            }
        }
        let first = self.index().scan(Key::exception(chunk, id))?.next_entry()?;
        Ok(first.filter(|(key, _)| key.class == 0 && key.a == chunk).map(|(_, value)| value))
    }

    /// How many index entries the deletion of snapshot `id` makes dead: what changed after it and also between
    /// its older neighbour and it (everything if it is the oldest), and its overlay.
    pub(super) fn count_dead(&self, id: u64) -> Result<u64> {
        let live = self.state.live_ids();
        let Ok(at) = live.binary_search(&id) else { return Ok(0) };
        let next = live.get(at + 1).copied().unwrap_or(u64::MAX);
        let index = self.index();
        let mut pages = index.changed_pages(id, next);
        if let Some(older) = at.checked_sub(1).and_then(|at| live.get(at)) {
            pages = changes::combine(pages, index.changed_pages(*older, id), |a, b| a & b);
        }
        let mut dead = 0;
        for page in pages.chain(index.overlay_pages(id)?) {
            dead += u64::from(page?.1.count_ones());
        }
        Ok(dead)
    }

    /// The bytes of a preserved chunk, verified.
    pub(super) fn fetch(&self, value: &Value) -> Result<Vec<u8>> {
        fetch(self.device.as_ref(), self.state.sb.chunk_size(), value)
    }

    /// Reads snapshot `id` from byte `offset`; returns the ranges of bytes that the origin had.
    ///
    /// # Errors
    /// As [`PointSource::read`].
    pub fn read_noting(&self, id: Epoch, offset: u64, buf: &mut [u8]) -> Result<Vec<(u64, u64)>> {
        self.ensure_inside(PointId::Snapshot(id), offset, buf.len())?;
        self.read_snapshot(id.0, offset, buf)
    }

    fn ensure_inside(&self, point: PointId, offset: u64, length: usize) -> Result<()> {
        let size = self.size_of(point)?;
        match offset.checked_add(length as u64).filter(|end| *end <= size) {
            Some(_) => Ok(()),
            None => {
                let what = format!("{length} bytes at {offset} end past the point's {size} bytes");
                Err(Error::new(Kind::Usage, what))
            }
        }
    }

    fn read_snapshot(&self, id: u64, offset: u64, buf: &mut [u8]) -> Result<Vec<(u64, u64)>> {
        let mut noted = Vec::new();
        let bits = self.state.sb.chunk_bits;
        let end = offset + buf.len() as u64;
        // What the origin still has is read in one go: its range so far, to be read before the next exception.
        let mut pending = offset..offset;
        let mut at = offset;
        while at < end {
            let chunk = at >> bits;
            let stop = end.min((chunk + 1) << bits);
            match self.find(id, chunk)? {
                Some(value) => {
                    self.read_origin(&pending, offset, buf, &mut noted)?;
                    let bytes = self.fetch(&value)?;
                    let skip = index(at - (chunk << bits));
                    let target = &mut buf[index(at - offset)..index(stop - offset)];
                    let have = bytes.get(skip..).unwrap_or(&[]);
                    let length = have.len().min(target.len());
                    target[..length].copy_from_slice(&have[..length]);
                    target[length..].fill(0);
                    pending = stop..stop;
                }
                None => pending.end = stop,
            }
            if pending.end - pending.start >= READ_MAX {
                self.read_origin(&pending, offset, buf, &mut noted)?;
                pending.start = stop;
            }
            at = stop;
        }
        self.read_origin(&pending, offset, buf, &mut noted)?;
        Ok(noted)
    }

    /// The chunks of `to` that are not known to be zeroes: where the origin's file has data, and what the store has.
    fn possibly_nonzero(&self, to: PointId, chunks: u64) -> Result<Changes<'_>> {
        let Some(origin) = &self.origin else {
            let all = ChunkRange { start: 0, end: chunks };
            return Ok(Box::new((chunks > 0).then_some(Ok(all)).into_iter()));
        };
        let size = self.state.volume.origin_size;
        let mut pages = changes::pages_of(data_ranges(origin.as_ref(), 0..size, self.state.sb.chunk_bits));
        if let PointId::Snapshot(id) = to {
            for more in [self.index().changed_pages(id.0, u64::MAX), self.index().overlay_pages(id.0)?] {
                pages = changes::combine(pages, more, |a, b| a | b);
            }
        }
        Ok(Box::new(changes::ranges(pages, chunks)))
    }

    /// Where, among `chunks`, the origin's file may have other than zeroes.
    ///
    /// # Errors
    /// `Kind::Io`; `Kind::Damaged` if it has become smaller.
    pub fn data_within(&self, chunks: &Range<u64>) -> Result<Vec<ChunkRange>> {
        let bits = self.state.sb.chunk_bits;
        let end = (chunks.end << bits).min(self.state.volume.origin_size);
        data_ranges(self.need_origin()?, chunks.start << bits..end, bits).collect()
    }

    /// The parts of `chunks`, which begin and end with a page of change bits, where snapshot `id` may have other than
    /// zeroes. The origin had `data` before these tables were: what was a hole then was one for the snapshot too,
    /// unless they say that it was preserved.
    ///
    /// # Errors
    /// `Kind::NotFound`; `Kind::Io`, `Kind::Damaged`.
    pub fn nonzero_within(
        &self,
        id: Epoch,
        data: Vec<ChunkRange>,
        chunks: &Range<u64>,
    ) -> Result<Vec<ChunkRange>> {
        let size = self.endpoint(id)?.size_bytes.div_ceil(u64::from(self.state.sb.chunk_size()));
        let (first, end) = (chunks.start >> PAGE_BITS, chunks.end >> PAGE_BITS);
        let mut pages = changes::pages_of(data.into_iter().map(Ok));
        let index = self.index();
        for more in [index.changed_pages_from(id.0, u64::MAX, first), index.overlay_pages(id.0)?] {
            let behind = more.skip_while(move |page| page.as_ref().is_ok_and(|page| page.0 < first));
            let inside = behind.take_while(move |page| page.as_ref().map_or(true, |page| page.0 < end));
            pages = changes::combine(pages, Box::new(inside), |a, b| a | b);
        }
        changes::ranges(pages, size.min(chunks.end)).collect()
    }

    /// Reads `range` of the origin into `buf`, which begins at byte `base`, and notes it.
    fn read_origin(
        &self,
        range: &Range<u64>,
        base: u64,
        buf: &mut [u8],
        noted: &mut Vec<(u64, u64)>,
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        noted.push((range.start, range.end));
        self.need_origin()?.read_at(&mut buf[index(range.start - base)..index(range.end - base)], range.start)
    }
}

/// The bytes that `device` has of a preserved chunk, verified.
pub(super) fn fetch(device: &dyn ReadAt, chunk_size: u32, value: &Value) -> Result<Vec<u8>> {
    if value.raw_length > chunk_size || value.stored_length > value.raw_length {
        return Err(Error::damaged("preserved chunk is longer than a chunk").at_offset(value.word));
    }
    let mut bytes = vec![0; value.raw_length as usize];
    match value.encoding {
        Encoding::Raw => device.read_at(&mut bytes, value.word)?,
        Encoding::Zeroes => {}
        Encoding::Lost => {
            return Err(Error::damaged("a preserved chunk is lost: a repair found it gone, and said so")
                .at_path(device.path()));
        }
    }
    let crc = crc32fast::hash(&bytes);
    if crc != value.crc {
        return Err(Error::damaged(format!(
            "preserved chunk has checksum {crc:08x}, its record says {:08x}",
            value.crc
        ))
        .at_path(device.path())
        .at_offset(value.word));
    }
    Ok(bytes)
}

fn count(counts: &mut [std::collections::BTreeMap<usize, u64>], at: usize, sharers: usize) {
    if let Some(map) = counts.get_mut(at) {
        *map.entry(sharers).or_default() += 1;
    }
}

/// True if the origin was written since the store was closed, or may have been. Refuses an origin that is too small.
pub(super) fn origin_changed(state: &State, origin: &dyn ReadAt) -> Result<bool> {
    Ok(fingerprint_differs(state, origin)? || state.volume.unwatched)
}

/// True if it shows that the origin was written since the store was closed. Refuses an origin that is too small.
pub(super) fn fingerprint_differs(state: &State, origin: &dyn ReadAt) -> Result<bool> {
    let size = state.volume.origin_size;
    if origin.size() < size {
        return Err(Error::new(
            Kind::Mismatch,
            format!("origin has {} bytes, the store says {size}", origin.size()),
        )
        .at_path(origin.path())
        .hint("name the right origin with --origin"));
    }
    match &state.fingerprint {
        Some(then) => Ok(fingerprint::differs(then, &fingerprint::take(origin, size)?)),
        None => Ok(false),
    }
}

pub(super) fn describe(snapshot: &Snapshot) -> SnapshotInfo {
    SnapshotInfo {
        id: Epoch(snapshot.id),
        tag: Tag(snapshot.tag),
        name: (!snapshot.name.is_empty()).then(|| snapshot.name.clone()),
        size_bytes: snapshot.size_bytes,
        created_secs: snapshot.created_secs,
        priority: snapshot.priority,
        use_count: snapshot.use_count,
        generation: snapshot.generation,
        state: if snapshot.squashed { SnapshotState::Squashed } else { SnapshotState::Normal },
        tainted: snapshot.tainted,
        holds: snapshot.holds.clone(),
    }
}

impl Volume for View {
    fn info(&self) -> StoreInfo {
        Self::info(self)
    }

    fn snapshots(&self) -> Vec<SnapshotInfo> {
        Self::snapshots(self)
    }

    fn sharing(&self) -> Result<Vec<Sharing>> {
        Self::sharing(self)
    }
}

impl PointSource for View {
    fn chunk_bits(&self) -> u32 {
        self.state.sb.chunk_bits
    }

    fn points(&self) -> Vec<Point> {
        let volume = self.state.volume.volume;
        let visible = self.state.snapshots.values().filter(|snapshot| !snapshot.hidden && !snapshot.squashed);
        let mut points: Vec<_> = visible.map(|snapshot| snapshot_point(volume, snapshot)).collect();
        points.push(Point {
            id: PointId::Origin,
            tag: Tag::ORIGIN,
            name: None,
            size_bytes: self.state.volume.origin_size,
            created_secs: 0,
            identity: Identity { volume, id: u64::MAX, generation: self.state.volume.generation },
        });
        points
    }

    fn changed(&self, from: Option<PointId>, to: PointId) -> Result<Changes<'_>> {
        let size = self.size_of(to)?;
        let chunks = size.div_ceil(u64::from(self.state.sb.chunk_size()));
        let Some(from) = from else {
            return self.possibly_nonzero(to, chunks);
        };
        let epoch = |point| match point {
            PointId::Snapshot(id) => id.0,
            PointId::Origin => u64::MAX,
        };
        let (low, high) = (epoch(from).min(epoch(to)), epoch(from).max(epoch(to)));
        let mut pages = self.index().changed_pages(low, high);
        // What only one of the two has differs, whoever wrote it; a chunk of which one has less than the other too.
        let other = self.size_of(from)?;
        if other != size {
            let shared = other.min(size) >> self.state.sb.chunk_bits;
            let tail = (shared < chunks).then_some(Ok(ChunkRange { start: shared, end: chunks }));
            pages = changes::combine(pages, changes::pages_of(tail.into_iter()), |a, b| a | b);
        }
        for point in [from, to] {
            if let PointId::Snapshot(id) = point {
                pages = changes::combine(pages, self.index().overlay_pages(id.0)?, |a, b| a | b);
            }
        }
        Ok(Box::new(changes::ranges(pages, chunks)))
    }

    fn read(&self, point: PointId, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.ensure_inside(point, offset, buf.len())?;
        match point {
            PointId::Origin => self.need_origin()?.read_at(buf, offset),
            PointId::Snapshot(id) => self.read_snapshot(id.0, offset, buf).map(|_| ()),
        }
    }

    fn known_crc(&self, point: PointId, chunk: u64) -> Result<Option<u32>> {
        let PointId::Snapshot(id) = point else { return Ok(None) };
        let start = chunk << self.state.sb.chunk_bits;
        let length =
            self.endpoint(id)?.size_bytes.saturating_sub(start).min(u64::from(self.state.sb.chunk_size()));
        let found = self.find(id.0, chunk)?;
        // What a repair could only guess from change bits has no checksum that anything could be compared with.
        let guessed = |value: &Value| value.encoding == Encoding::Lost && value.crc == 0;
        let whole = found.filter(|value| u64::from(value.raw_length) == length && !guessed(value));
        Ok(whole.map(|value| value.crc))
    }
}

fn snapshot_point(volume: Uuid, snapshot: &Snapshot) -> Point {
    Point {
        id: PointId::Snapshot(Epoch(snapshot.id)),
        tag: Tag(snapshot.tag),
        name: (!snapshot.name.is_empty()).then(|| snapshot.name.clone()),
        size_bytes: snapshot.size_bytes,
        created_secs: snapshot.created_secs,
        identity: Identity { volume, id: snapshot.id, generation: snapshot.generation },
    }
}
