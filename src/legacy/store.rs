//! A store of 2008 as a source of points in time.

use super::blocks::Blocks;
use super::check::{Tally, look, weigh};
use super::lost::{self, Lost};
use super::preserved::Preserved;
use super::recover::{Recovered, recover};
use super::walk::{Found, Past, Root, Walk};
use crate::block::ReadAt;
use crate::error::{Error, Kind, Result};
use crate::format::legacy::repair;
use crate::format::legacy::superblock::{self, Fault, OFFSET, Release, SIZE, Snapshot, Space, Superblock};
use crate::format::legacy::tree::Exception;
use crate::format::legacy::{SECTOR, SNAPSHOTS_MAX};
use crate::point::finding::{Code, Finding, Severity};
use crate::point::volume::{FullPolicy, Legacy, Sharing, SnapshotInfo, SnapshotState, StoreInfo, Volume};
use crate::point::{Changes, ChunkRange, Identity, Point, PointId, PointSource};
use crate::progress::Progress;
use crate::units::{Epoch, Tag, Uuid, index};
use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// What a store of 2008 lies on.
#[derive(Clone)]
pub struct Devices {
    /// The snapshot store.
    pub store: Arc<dyn ReadAt>,
    /// The device with its metadata, if they are not in the store.
    pub metadata: Option<Arc<dyn ReadAt>>,
    /// The origin; needed to read data only.
    pub origin: Option<Arc<dyn ReadAt>>,
}

/// A store of 2008, opened for reading.
pub struct Store {
    sb: Superblock,
    faults: Vec<Fault>,
    blocks: Blocks,
    /// What recovery made of them.
    recovered: Recovered,
    root: Root,
    /// What cannot be believed: reading it is an error.
    lost: Lost,
    /// What is damaged, as a check tells it.
    damage: Vec<Finding>,
    /// Bits of the snapshots of which anything may be wrong.
    tainted: u64,
    /// Free chunks of the metadata space and, if there is one, of the data space.
    free: (u64, Option<u64>),
    data: Arc<dyn ReadAt>,
    origin: Option<Arc<dyn ReadAt>>,
    /// Leaves read last, the newest first.
    recent: Mutex<VecDeque<Arc<Found>>>,
}

/// Leaves kept: a few for each thread that reads, as far as they fit into so many bytes of blocks.
const RECENT_LEAVES: u64 = 16;
const RECENT_BYTES: u64 = 4 << 20;

impl Store {
    /// Opens a store; replays its journal in memory if it was not shut down cleanly, and looks through its metadata for
    /// what cannot be believed. `release` says which layout its superblock has; otherwise the one that makes sense is
    /// taken.
    ///
    /// # Errors
    /// `Kind::Damaged` if there is no sound superblock; `Kind::Mismatch` for devices that do not belong together;
    /// `Kind::Io`, `Kind::Interrupted`.
    pub fn open(devices: Devices, release: Option<Release>, progress: &dyn Progress) -> Result<Self> {
        let metadata = devices.metadata.clone().unwrap_or_else(|| Arc::clone(&devices.store));
        let (block, is_decided) = superblock_of(metadata.as_ref())?;
        let chosen = superblock::choose(&block, metadata.size(), release)
            .map_err(|error| error.at_path(metadata.path()))?;
        let sb = chosen.superblock;
        ensure_pair(&sb, &devices)?;
        ensure_size(&sb, &devices)?;
        let mut blocks = Blocks::new(metadata, &sb);
        let mut recovered = recover(&sb, &mut blocks)?;
        weigh(&sb, &mut blocks, &mut recovered, &Tally::of(&sb, is_decided), progress)?;
        let mut tree = look(&sb, &blocks, &recovered, Tally::of(&sb, is_decided), progress)?;
        let (root, lost, counted) = (tree.root, tree.lost(), tree.free);
        let tainted = tree.tainted | tree.half_deleted;
        tree.tally.keep(|code| code.severity() == Severity::Loss);
        let damage = tree.tally.into_findings();
        let free = if sb.is_busy() { counted } else { said(&sb) };
        let (data, origin) = (devices.store, devices.origin);
        let (faults, recent) = (chosen.faults, Mutex::default());
        Ok(Self { sb, faults, blocks, recovered, root, lost, damage, tainted, free, data, origin, recent })
    }

    /// The origin, if it was given.
    #[must_use]
    pub fn origin(&self) -> Option<&dyn ReadAt> {
        self.origin.as_deref()
    }

    /// Everything that the tree preserves, in order of chunks.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn preserved(&self) -> Result<Preserved<'_>> {
        Ok(Preserved::new(self.walk(0)?))
    }

    /// Which chunks cannot be told: reading them is an error.
    #[must_use]
    pub fn lost(&self) -> &Lost {
        &self.lost
    }

    /// What a look through the metadata found damaged that concerns any snapshot.
    pub fn damage(&self) -> impl Iterator<Item = &Finding> {
        self.damage.iter().filter(|finding| !finding.affected.is_empty())
    }

    /// As [`Store::damage`], without a deletion that was interrupted: its snapshot is marked.
    pub fn doubts(&self) -> impl Iterator<Item = &Finding> {
        self.damage().filter(|finding| finding.code != Code::LegacyDeletion)
    }

    /// The bit of each snapshot in share masks, oldest first; none for one that was squashed.
    #[must_use]
    pub fn masks(&self) -> Vec<u64> {
        self.sb.snapshots.iter().map(Snapshot::mask).collect()
    }

    /// Where the preserved chunk `physical` begins on [`Store::data`], in bytes; `None` if none can be there.
    #[must_use]
    pub fn place(&self, physical: u64) -> Option<u64> {
        self.ensure_place(physical).ok()
    }

    /// As [`Store::place`].
    fn ensure_place(&self, chunk: u64) -> Result<u64> {
        let bits = self.sb.chunk_bits();
        // A data space may be larger than its device says only if the device was cut.
        if chunk >= self.sb.data_space().chunks || (chunk + 1) << bits > self.data.size() {
            let what = format!("the tree names chunk {chunk}, which lies outside the store");
            return Err(Error::damaged(what).at_path(self.data.path()));
        }
        let area = if self.sb.data.is_none() { self.blocks.area((chunk << bits) / SECTOR) } else { None };
        if let Some(name) = area {
            let what = format!("the tree names chunk {chunk} for data, where the {name} is");
            return Err(Error::damaged(what).at_path(self.data.path()));
        }
        Ok(chunk << bits)
    }

    /// The device with the preserved chunks.
    #[must_use]
    pub fn data(&self) -> &dyn ReadAt {
        self.data.as_ref()
    }

    /// What it was opened with, what recovery made of that, and the root that is read from.
    pub(super) fn parts(&self) -> (&Superblock, &Blocks, &Recovered, Root) {
        (&self.sb, &self.blocks, &self.recovered, self.root)
    }

    fn walk(&self, from: u64) -> Result<Walk<'_, Past>> {
        Walk::past(&self.blocks, self.root, from)
    }

    /// Refuses chunks that cannot be told for the snapshots of `mask`.
    fn ensure_known(&self, mask: u64, chunks: &Range<u64>) -> Result<()> {
        let known = self.lost.first(mask, chunks).map(|lost| lost::error(&lost).at_path(self.data.path()));
        known.map_or(Ok(()), Err)
    }

    fn chunk_size(&self) -> u64 {
        1 << self.sb.chunk_bits()
    }

    /// Bytes of the origin. The original served, and protected, whole chunks only; a store that it never started has
    /// not been told yet.
    fn origin_size(&self) -> u64 {
        let size = self.sb.origin_sectors * SECTOR;
        size - size % self.chunk_size()
    }

    fn size_of(&self, point: PointId) -> Result<u64> {
        match point {
            PointId::Origin => Ok(self.origin_size()),
            PointId::Snapshot(id) => Ok(self.snapshot(id)?.sectors * SECTOR),
        }
    }

    /// The snapshot at place `id` of the table, counted from 1.
    fn snapshot(&self, id: Epoch) -> Result<&Snapshot> {
        let at = usize::try_from(id.0.wrapping_sub(1)).unwrap_or(usize::MAX);
        let found = self.sb.snapshots.get(at);
        let found =
            found.ok_or_else(|| Error::new(Kind::NotFound, format!("there is no snapshot with id {id}")))?;
        if found.mask() == 0 {
            let what =
                format!("snapshot {} was squashed when the store ran full; its data are gone", found.tag);
            return Err(Error::new(Kind::NotFound, what));
        }
        Ok(found)
    }

    /// The bit of a point; none for the origin.
    fn mask(&self, point: PointId) -> Result<u64> {
        match point {
            PointId::Origin => Ok(0),
            PointId::Snapshot(id) => Ok(self.snapshot(id)?.mask()),
        }
    }

    fn numbered(&self) -> impl Iterator<Item = (Epoch, &Snapshot)> {
        (1..).map(Epoch).zip(&self.sb.snapshots)
    }

    /// What differs in the chunks before `tail`, then all of `tail`.
    fn between(&self, from: PointId, to: PointId, tail: Range<u64>) -> Result<Changes<'_>> {
        let masks = (self.mask(from)?, self.mask(to)?);
        let lost = self.lost.first(masks.0 | masks.1, &(0..tail.start));
        let mut changed = Changed { walk: self.walk(0)?, masks, tail, lost, ready: VecDeque::new() };
        Ok(Box::new(std::iter::from_fn(move || changed.next_range().transpose())))
    }

    fn read_snapshot(&self, mask: u64, offset: u64, buf: &mut [u8]) -> Result<()> {
        let bits = self.sb.chunk_bits();
        let end = offset + buf.len() as u64;
        self.ensure_known(mask, &(offset >> bits..end.div_ceil(self.chunk_size())))?;
        // What lies before this has been read, but for one run of chunks.
        let mut done = offset;
        let mut run = Run { place: 0, bytes: done..done };
        let mut next = Some(offset >> bits).filter(|_| done < end);
        while let Some(chunk) = next {
            let Some(found) = self.leaf_of(chunk)? else { break };
            let skipped = found.leaf.entries.partition_point(|entry| u64::from(entry.chunk) < chunk);
            for entry in found.leaf.entries.iter().skip(skipped) {
                let begin = u64::from(entry.chunk) << bits;
                if begin >= end {
                    break;
                }
                let owned = found.leaf.of(entry).iter().find(|exception| exception.share & mask != 0);
                let Some(exception) = owned else { continue };
                let from = begin.max(done);
                let to = (begin + self.chunk_size()).min(end);
                self.read_origin(done..from, offset, buf)?;
                let place = self.ensure_place(exception.physical)? + (from - begin);
                if !run.take(place, from..to) {
                    self.read_run(&run, offset, buf)?;
                    run = Run { place, bytes: from..to };
                }
                done = to;
            }
            next = found.high.filter(|high| high.checked_mul(1 << bits).is_some_and(|high| high < end));
        }
        self.read_run(&run, offset, buf)?;
        self.read_origin(done..end, offset, buf)
    }

    /// The leaf that `chunk` belongs to: mostly it is that of the chunk before.
    fn leaf_of(&self, chunk: u64) -> Result<Option<Arc<Found>>> {
        let recent = || self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let covers = |found: &&Arc<Found>| found.low <= chunk && found.high.is_none_or(|high| chunk < high);
        if let Some(found) = recent().iter().find(covers) {
            return Ok(Some(Arc::clone(found)));
        }
        let Some(found) = self.walk(chunk)?.next_leaf()? else { return Ok(None) };
        let found = Arc::new(found);
        let mut recent = recent();
        let kept = RECENT_LEAVES.min(RECENT_BYTES / self.blocks.size);
        recent.truncate(index(kept.saturating_sub(1)));
        recent.push_front(Arc::clone(&found));
        Ok(Some(found))
    }

    /// Reads `run` into `buf`, which begins at byte `base` of the snapshot.
    fn read_run(&self, run: &Run, base: u64, buf: &mut [u8]) -> Result<()> {
        let bytes = &run.bytes;
        match bytes.is_empty() {
            true => Ok(()),
            false => {
                self.data.read_at(&mut buf[index(bytes.start - base)..index(bytes.end - base)], run.place)
            }
        }
    }

    /// Reads `range` of the origin into `buf`, which begins at byte `base`.
    fn read_origin(&self, range: Range<u64>, base: u64, buf: &mut [u8]) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let origin = self.origin.as_deref().ok_or_else(|| {
            Error::new(
                Kind::NotFound,
                "the origin is needed, and a store of 2008 does not remember where it is",
            )
            .hint("name it with --origin")
        })?;
        if range.end > origin.size() {
            let what = format!(
                "the snapshot shares bytes {} to {} with the origin, which has only {}",
                range.start,
                range.end,
                origin.size()
            );
            return Err(Error::damaged(what).at_path(origin.path()));
        }
        origin.read_at(&mut buf[index(range.start - base)..index(range.end - base)], range.start)
    }
}

/// Preserved bytes of a snapshot that follow one another in the store as well.
struct Run {
    /// The first one in the store.
    place: u64,
    /// Which they are of the snapshot.
    bytes: Range<u64>,
}

impl Run {
    /// Takes `more`, which lies at byte `place` of the store, if that continues it.
    fn take(&mut self, place: u64, more: Range<u64>) -> bool {
        let follows =
            self.bytes.end == more.start && self.place + (self.bytes.end - self.bytes.start) == place;
        if follows && !self.bytes.is_empty() {
            self.bytes.end = more.end;
            return true;
        }
        false
    }
}

/// The bytes of the superblock, and whether they are those that a repair decided on and has not written yet.
///
/// # Errors
/// `Kind::Damaged` for a device that is too small for one; `Kind::Io`.
pub(super) fn superblock_of(metadata: &dyn ReadAt) -> Result<(Vec<u8>, bool)> {
    let mut block = vec![0; SIZE];
    if metadata.size() < OFFSET + SIZE as u64 {
        let what = format!("a store of 2008 has more than {} bytes", metadata.size());
        return Err(Error::damaged(what).at_path(metadata.path()));
    }
    metadata.read_at(&mut block, OFFSET)?;
    Ok(match repair::decided(&block) {
        Some(decided) => (decided, true),
        None => (block, false),
    })
}

/// Refuses devices that are not those of the store.
///
/// # Errors
/// `Kind::Mismatch`.
pub(super) fn ensure_pair(sb: &Superblock, devices: &Devices) -> Result<()> {
    let what = match (&sb.data, &devices.metadata) {
        (None, Some(_)) => "its metadata are in the store itself: there is no separate metadata device",
        (Some(_), None) => "this is the metadata device of a store of 2008, not the store",
        _ => return Ok(()),
    };
    Err(Error::new(Kind::Mismatch, what)
        .at_path(devices.metadata.as_ref().unwrap_or(&devices.store).path())
        .hint("name the device with the data as the store and, if there is one, that with the metadata with --meta"))
}

pub(super) fn ensure_size(sb: &Superblock, devices: &Devices) -> Result<()> {
    let found = devices.store.size();
    match &sb.data {
        Some(data) if found >> data.bits < data.chunks => {
            let what = format!("the store has {found} bytes, its metadata speak of {} chunks", data.chunks);
            Err(Error::new(Kind::Mismatch, what).at_path(devices.store.path()))
        }
        _ => Ok(()),
    }
}

/// Free chunks as the superblock says, which is right after a clean shutdown.
fn said(sb: &Superblock) -> (u64, Option<u64>) {
    // A count that cannot be is told as a fault of the superblock.
    let said = |space: Space| space.free.min(space.chunks);
    (said(sb.metadata), sb.data.map(said))
}

impl Volume for Store {
    fn info(&self) -> StoreInfo {
        let sb = &self.sb;
        let (metadata_free, data_free) = self.free;
        let used = |space: &Space, free: u64| space.chunks.saturating_sub(free) << space.bits;
        let unknown = Uuid([0; 16]);
        StoreInfo {
            uuid: unknown,
            volume: unknown,
            chunk_size: u32::try_from(self.chunk_size()).unwrap_or(u32::MAX),
            block_size: u32::try_from(sb.block_size()).unwrap_or(u32::MAX),
            segment_size: 0,
            store_size: sb.data_space().chunks << sb.chunk_bits(),
            free_bytes: data_free.unwrap_or(metadata_free) << sb.chunk_bits(),
            data_bytes: sb.data.as_ref().zip(data_free).map_or(0, |(data, free)| used(data, free)),
            metadata_bytes: used(&sb.metadata, metadata_free),
            store_path: self.data.path().to_path_buf(),
            origin_path: PathBuf::new(),
            origin_size: self.origin_size(),
            created_secs: sb.created_secs.cast_signed(),
            full_policy: FullPolicy::Squash,
            uncommitted: false,
            pending: None,
            origin_equals: None,
            events: Vec::new(),
            legacy: Some(Legacy {
                release: sb.release.name(),
                is_clean: !sb.is_busy(),
                separate: sb.data.map(|_| (sb.block_size(), sb.metadata.chunks, metadata_free)),
                notices: self.faults.iter().map(|fault| format!("superblock: {}", fault.text)).collect(),
            }),
        }
    }

    fn snapshots(&self) -> Vec<SnapshotInfo> {
        let describe = |(id, snapshot): (Epoch, &Snapshot)| SnapshotInfo {
            id,
            tag: Tag(snapshot.tag),
            name: None,
            size_bytes: snapshot.sectors * SECTOR,
            created_secs: snapshot.created_secs.into(),
            priority: snapshot.priority,
            use_count: snapshot.use_count.into(),
            generation: 0,
            state: if snapshot.mask() == 0 { SnapshotState::Squashed } else { SnapshotState::Normal },
            tainted: snapshot.mask() & self.tainted != 0,
            holds: Vec::new(),
        };
        self.numbered().map(describe).collect()
    }

    fn sharing(&self) -> Result<Vec<Sharing>> {
        let live = self.sb.live();
        self.ensure_known(live, &(0..u64::MAX))?;
        let mut counts = vec![[0u64; SNAPSHOTS_MAX]; SNAPSHOTS_MAX];
        let mut walk = self.walk(0)?;
        while let Some(found) = walk.next_leaf()? {
            for exception in &found.leaf.exceptions {
                let mut share = exception.share & live;
                let degree = index(u64::from(share.count_ones()));
                while share != 0 {
                    counts[index(u64::from(share.trailing_zeros()))][degree - 1] += 1;
                    share &= share - 1;
                }
            }
        }
        let degrees = self.sb.snapshots.len();
        let normal = self.numbered().filter(|(_, snapshot)| snapshot.mask() != 0);
        let row = |(id, snapshot): (Epoch, &Snapshot)| {
            let counts = &counts[usize::from(snapshot.bit)];
            Sharing { id, shared_by: counts.iter().copied().take(degrees).collect() }
        };
        Ok(normal.map(row).collect())
    }
}

impl PointSource for Store {
    fn chunk_bits(&self) -> u32 {
        self.sb.chunk_bits()
    }

    fn points(&self) -> Vec<Point> {
        // Nothing in the store proves which content a snapshot has: it can have been written to.
        let identity = Identity { volume: Uuid([0; 16]), id: 0, generation: 0 };
        let usable = self.numbered().filter(|(_, snapshot)| snapshot.mask() != 0);
        let mut points: Vec<_> = usable
            .map(|(id, snapshot)| Point {
                id: PointId::Snapshot(id),
                tag: Tag(snapshot.tag),
                name: None,
                size_bytes: snapshot.sectors * SECTOR,
                created_secs: snapshot.created_secs.into(),
                identity,
            })
            .collect();
        points.push(Point {
            id: PointId::Origin,
            tag: Tag::ORIGIN,
            name: None,
            size_bytes: self.origin_size(),
            created_secs: 0,
            identity,
        });
        points
    }

    fn changed(&self, from: Option<PointId>, to: PointId) -> Result<Changes<'_>> {
        let chunks = self.size_of(to)?.div_ceil(self.chunk_size());
        let Some(from) = from else {
            let all = ChunkRange { start: 0, end: chunks };
            return Ok(Box::new((chunks > 0).then_some(Ok(all)).into_iter()));
        };
        let (other, size) = (self.size_of(from)?, self.size_of(to)?);
        // Of what only the larger one has the tree need not know anything.
        let tail = if other == size { chunks } else { chunks.min(other.min(size) >> self.sb.chunk_bits()) };
        self.between(from, to, tail..chunks)
    }

    fn listed(&self, from: Option<PointId>, to: PointId) -> Result<Changes<'_>> {
        let chunks = self.size_of(to)?.div_ceil(self.chunk_size());
        match from {
            Some(from) => self.between(from, to, chunks..chunks),
            None => self.changed(None, to),
        }
    }

    fn read(&self, point: PointId, offset: u64, buf: &mut [u8]) -> Result<()> {
        let size = self.size_of(point)?;
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > size) {
            let what = format!("{} bytes at {offset} end past the point's {size} bytes", buf.len());
            return Err(Error::new(Kind::Usage, what));
        }
        match point {
            PointId::Origin => self.read_origin(offset..offset + buf.len() as u64, offset, buf),
            PointId::Snapshot(_) => self.read_snapshot(self.mask(point)?, offset, buf),
        }
    }

    fn known_crc(&self, _point: PointId, _chunk: u64) -> Result<Option<u32>> {
        Ok(None)
    }
}

/// The chunks that two snapshots do not share, in order.
struct Changed<'a> {
    walk: Walk<'a, Past>,
    /// The bits of the two points; none for the origin.
    masks: (u64, u64),
    /// Chunks that come last, whatever the tree says of them and those behind.
    tail: Range<u64>,
    /// The first that cannot be told.
    lost: Option<Range<u64>>,
    /// Found; the last one may grow.
    ready: VecDeque<ChunkRange>,
}

impl Changed<'_> {
    fn next_range(&mut self) -> Result<Option<ChunkRange>> {
        while self.ready.len() < 2 {
            let Some(found) = self.walk.next_leaf()? else {
                if !self.tail.is_empty() {
                    self.push(self.tail.start, self.tail.end);
                    self.tail.start = self.tail.end;
                }
                break;
            };
            self.push_leaf(&found);
        }
        let next = self.ready.pop_front();
        match &self.lost {
            Some(lost) if next.is_none_or(|next| next.end > lost.start) => Err(lost::error(lost)),
            _ => Ok(next),
        }
    }

    fn push_leaf(&mut self, found: &Found) {
        let (from, to) = self.masks;
        for entry in &found.leaf.entries {
            let is_split =
                |exception: &Exception| (exception.share & from == 0) != (exception.share & to == 0);
            let chunk = u64::from(entry.chunk);
            if chunk < self.tail.start && found.leaf.of(entry).iter().any(is_split) {
                self.push(chunk, chunk + 1);
            }
        }
    }

    fn push(&mut self, start: u64, end: u64) {
        match self.ready.back_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => self.ready.push_back(ChunkRange { start, end }),
        }
    }
}
