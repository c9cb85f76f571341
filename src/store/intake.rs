//! A new store filled with what another one preserved: its snapshots first, then chunks in any order.
//!
//! It is made by the writer as any store is, of the same records. Only its superblocks have another magic until the
//! end, and its snapshots are tainted so long: whoever revives half of it must insist on reading it.

use super::fingerprint;
use super::fsck::{CheckOptions, CheckReport, check};
use super::origin::Geometry;
use super::recover::Superblocks;
use super::room::INDEX_BYTES;
use super::types::{InitOptions, Kept};
use super::unpublished::{self, Unpublished};
use super::view::View;
use super::writer::{Draft, Need, Writer};
use crate::block::memory::Memory;
use crate::block::{ReadAt, WriteAt};
use crate::error::{Error, Kind, Result};
use crate::format::record::{Encoding, Entry, EntryClass, Record, RecordKind};
use crate::format::superblock::{FIRST_SEGMENT, Superblock};
use crate::format::table::Snapshot;
use crate::point::volume::{FullPolicy, SnapshotInfo, SnapshotState};
use crate::progress::Progress;
use crate::units::Epoch;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Finest step in which sizes of a store are tried.
const SIZE_STEP: u64 = 1 << 20;

/// What a store must hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// Chunks with data, at most.
    pub chunks: u64,
    /// Chunks of which it is only known that they are lost.
    pub marks: u64,
}

/// A chunk as snapshots have it.
pub struct Preserve<'a> {
    /// Chunk number.
    pub chunk: u64,
    /// An exception: the newest snapshot that reads it, with all older ones down to that of the next exception. An
    /// overlay: the only one.
    pub owner: Epoch,
    /// Which of the two.
    pub class: EntryClass,
    /// Its bytes; shorter than a chunk only where all volumes end.
    pub data: Taken<'a>,
}

/// What is left of a chunk.
#[derive(Clone, Copy)]
pub enum Taken<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// Nothing: reading so many bytes is an error for good.
    Lost(u32),
}

/// A store that is being filled.
pub struct Intake {
    writer: Writer,
    device: Arc<Unpublished>,
    /// Snapshots that got chunks of their own.
    written: BTreeSet<u64>,
    /// Snapshots that were tainted where they come from.
    tainted: Vec<u64>,
}

/// True if a store was being filled on `device` and never finished, so that nothing on it is of value.
///
/// # Errors
/// `Kind::Io`.
pub fn is_unfinished(device: &dyn ReadAt) -> Result<bool> {
    let finished = super::recover::Superblocks::read(device).copies.iter().any(Result::is_ok);
    Ok(!finished && unpublished::is_marked(device)?)
}

impl Room {
    /// How many bytes of chunks take as much.
    #[must_use]
    pub fn bytes(&self, options: &InitOptions) -> u64 {
        let bytes = self.chunks.saturating_mul(u64::from(options.chunk_size));
        // What is lost has an entry in a record, one in the index, and as much again while that is merged.
        bytes.saturating_add(self.marks.saturating_mul(4 * INDEX_BYTES))
    }
}

/// The size in bytes of a store that is sure to hold `room`: the smallest, to a percent. At most as large as asked for
/// by `enough`, if that is sure to be.
///
/// # Errors
/// `Kind::Usage` if the options make no sense.
pub fn size_for(options: &InitOptions, room: Room, enough: Option<u64>) -> Result<u64> {
    let bytes = room.bytes(options);
    if let Some(size) = enough.filter(|size| holds(*size, options, bytes).unwrap_or(false)) {
        return Ok(size);
    }
    let mut size = FIRST_SEGMENT.saturating_add(bytes).next_multiple_of(SIZE_STEP);
    loop {
        match holds(size, options, bytes) {
            Ok(true) => return Ok(size),
            Err(error) if error.kind() != Kind::Usage || size > 1 << 62 => return Err(error),
            // A store can also be too small to be one at all.
            _ => size = (size + size / 100).next_multiple_of(SIZE_STEP).max(size + SIZE_STEP),
        }
    }
}

/// True if an empty store of `size` bytes has room for `bytes` of chunks.
fn holds(size: u64, options: &InitOptions, bytes: u64) -> Result<bool> {
    Ok(empty_room(size, options, None)? >= bytes)
}

/// The bytes of chunks that an empty store of `size` bytes has room for: asks one.
fn empty_room(size: u64, options: &InitOptions, kept: Option<&Kept>) -> Result<u64> {
    let device: Arc<dyn WriteAt> = Arc::new(Memory::new(size));
    Writer::initialize_beside(&device, options, kept)?;
    let mut writer = Writer::open(device, None, options.now_secs)?;
    writer.view.state.kept = kept.map(|kept| Arc::clone(&kept.segments)).unwrap_or_default();
    Ok(writer.room())
}

/// The bytes of chunks that are sure to fit into a store on a device of `size` bytes on which `kept` must stay as it
/// is; `None` if there can be no store at all.
///
/// # Errors
/// `Kind::Usage` if the options make no sense.
pub fn room_beside(size: u64, options: &InitOptions, kept: &Kept) -> Result<Option<u64>> {
    match empty_room(size, options, Some(kept)) {
        // Too few segments, be it for any store or for the first checkpoint.
        Err(error) if matches!(error.kind(), Kind::Usage | Kind::NoSpace) => Ok(None),
        other => other.map(Some),
    }
}

impl Intake {
    /// Makes an empty store on all of `device` with `snapshots`, oldest first, whose ids are kept. `now_secs` stamps
    /// records; the time in `options` is when the store was made.
    ///
    /// # Errors
    /// As [`Writer::initialize`]; `Kind::Usage` for ids that do not ascend.
    pub fn begin(
        device: Arc<dyn WriteAt>,
        options: &InitOptions,
        policy: FullPolicy,
        snapshots: &[SnapshotInfo],
        now_secs: i64,
    ) -> Result<Self> {
        super::initialize::forget_checkpoints(device.as_ref())?;
        Self::fill(Unpublished::new(device)?, options, None, (policy, snapshots, now_secs))
    }

    /// As [`Intake::begin`], beside another store on the same device of which nothing is overwritten.
    ///
    /// # Errors
    /// As [`Intake::begin`].
    pub fn beside(
        device: Arc<dyn WriteAt>,
        options: &InitOptions,
        kept: &Kept,
        policy: FullPolicy,
        snapshots: &[SnapshotInfo],
        now_secs: i64,
    ) -> Result<Self> {
        let device = Unpublished::beside(device, kept.clone());
        Self::fill(device, options, Some(kept), (policy, snapshots, now_secs))
    }

    fn fill(
        device: Unpublished,
        options: &InitOptions,
        kept: Option<&Kept>,
        (policy, snapshots, now_secs): (FullPolicy, &[SnapshotInfo], i64),
    ) -> Result<Self> {
        let device = Arc::new(device);
        let writing: Arc<dyn WriteAt> = Arc::<Unpublished>::clone(&device);
        Writer::initialize_beside(&writing, options, kept)?;
        let mut writer = Writer::open(writing, None, now_secs)?;
        writer.view.state.kept = kept.map(|kept| Arc::clone(&kept.segments)).unwrap_or_default();
        writer.keeps_snapshots = true;
        writer.set_full_policy(policy)?;
        let mut intake = Self { writer, device, written: BTreeSet::new(), tainted: Vec::new() };
        snapshots.iter().try_for_each(|snapshot| intake.take_snapshot(snapshot))?;
        Ok(intake)
    }

    fn take_snapshot(&mut self, info: &SnapshotInfo) -> Result<()> {
        let writer = &mut self.writer;
        if info.id.0 <= writer.view.state.epoch {
            let what = format!("snapshot id {} does not come after {}", info.id, writer.view.state.epoch);
            return Err(Error::new(Kind::Usage, what));
        }
        let mut snapshot = writer.new_snapshot(info.tag.0, info.name.as_deref().unwrap_or(""), false);
        snapshot.id = info.id.0;
        snapshot.use_count = info.use_count;
        snapshot.size_bytes = info.size_bytes;
        snapshot.created_secs = info.created_secs;
        snapshot.priority = info.priority;
        snapshot.squashed = info.state == SnapshotState::Squashed;
        snapshot.tainted = true;
        snapshot.holds.clone_from(&info.holds);
        if info.tainted {
            self.tainted.push(info.id.0);
        }
        let mut body = Vec::new();
        snapshot.encode(&mut body);
        let length = Record::header_length(0, body.len(), writer.view.state.sb.block_bits);
        writer.ensure_space(length, Need::Ordinary)?;
        writer.append(Draft::plain(RecordKind::Create, snapshot.id, body))
    }

    /// Takes in chunks; durable only when the store is published.
    ///
    /// # Errors
    /// `Kind::NoSpace`, `Kind::Io`.
    pub fn put(&mut self, chunks: &[Preserve<'_>]) -> Result<()> {
        for group in chunks.chunk_by(|a, b| a.class == b.class) {
            let kind = match group.first().map(|first| first.class) {
                Some(EntryClass::Overlay) => RecordKind::SnapshotWrite,
                _ => RecordKind::CopyOut,
            };
            let mut rest = group;
            while !rest.is_empty() {
                let (now, after) = rest.split_at(self.writer.record_chunks().min(rest.len()));
                rest = after;
                let mut entries = Vec::with_capacity(now.len());
                let mut data = Vec::new();
                for chunk in now {
                    entries.push(self.entry(chunk, &mut data));
                }
                self.writer.append_chunks(kind, entries, data)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, chunk: &Preserve<'_>, data: &mut Vec<u8>) -> Entry {
        if chunk.class == EntryClass::Overlay {
            self.written.insert(chunk.owner.0);
        }
        match chunk.data {
            Taken::Whole(bytes) => Geometry::of(&self.writer.view.state).encode(
                (chunk.chunk, chunk.owner.0),
                chunk.class,
                bytes,
                data,
            ),
            Taken::Lost(length) => Entry {
                chunk: chunk.chunk,
                owner: chunk.owner.0,
                sequence: 0,
                crc: 0,
                raw_length: length,
                stored_length: 0,
                encoding: Encoding::Lost,
                class: chunk.class,
            },
        }
    }

    /// All chunks are there: what the snapshots are becomes what they read. `event` is what `status` tells of it;
    /// `origin` is looked at, so that later changes of it behind the store's back are noticed.
    ///
    /// # Errors
    /// `Kind::NoSpace`, `Kind::Io`.
    pub fn finish(mut self, origin: &dyn ReadAt, event: &str) -> Result<Whole> {
        let mut writer = self.writer;
        for id in &self.written {
            // A generation of 0 says that a snapshot was never written.
            if let Some(found) = writer.view.state.snapshots.get(id) {
                let snapshot = Snapshot { generation: 1, ..found.clone() };
                writer.log_attributes(&snapshot)?;
            }
        }
        writer.accept_taint()?;
        for id in self.tainted.drain(..) {
            if let Some(found) = writer.view.state.snapshots.get(&id) {
                let snapshot = Snapshot { tainted: true, ..found.clone() };
                writer.log_attributes(&snapshot)?;
            }
        }
        let event = (writer.now_secs, event.to_owned());
        writer.checkpoint_with(super::room::PLAIN, |state| state.events.push(event))?;
        writer.last_fingerprint = Some(fingerprint::take(origin, writer.view.state.volume.origin_size)?);
        writer.close()?;
        Ok(Whole { device: self.device })
    }
}

/// A store that is whole, and still none.
pub struct Whole {
    device: Arc<Unpublished>,
}

impl Whole {
    /// Reads back all of it and compares every checksum.
    ///
    /// # Errors
    /// As [`check`].
    pub fn check(&self, progress: &dyn Progress) -> Result<CheckReport> {
        let device: Arc<dyn ReadAt> = Arc::<Unpublished>::clone(&self.device);
        check(&device, None, CheckOptions { data: true }, progress)
    }

    /// It as it will be read.
    ///
    /// # Errors
    /// As [`View::open`].
    pub fn view(&self, origin: Arc<dyn ReadAt>) -> Result<View> {
        View::open(Arc::<Unpublished>::clone(&self.device), Some(origin))
    }

    /// The superblock that makes it a store.
    ///
    /// # Errors
    /// `Kind::Damaged` if it was not written.
    pub fn superblock(&self) -> Result<Superblock> {
        let found = Superblocks::read(self.device.as_ref()).newest_first()?.into_iter().next();
        found.ok_or_else(|| Error::damaged("the new store has no superblock"))
    }

    /// Makes it a store.
    ///
    /// # Errors
    /// `Kind::Io`; what lies there is then no store, or all of it.
    pub fn publish(self) -> Result<()> {
        self.device.publish()
    }
}
