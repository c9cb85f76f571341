//! Without the newest checkpoint: what the records say is all there is, but for the tables of an older one.
//!
//! Nothing proves that all of them were found, so every snapshot is tainted: listed, and read when insisted on.

use super::collect::Collected;
use super::rebuild::{Rebuild, RebuildOptions, holds_chunks};
use crate::error::{Error, Kind, Result};
use crate::format::checkpoint::{Checkpoint, LogPosition, Role, Segment};
use crate::format::record::{EntryClass, Record, RecordKind};
use crate::format::superblock::Superblock;
use crate::format::table::{self, RawOpen, Snapshot, Volume};
use crate::store::recover::{OPEN_JUMP, read_record};
use crate::store::space::Stream;
use crate::store::state::State;
use crate::store::writer::random_u64;
use crate::units::{Tag, Uuid};
use std::collections::HashSet;

/// The tag of no snapshot.
const NO_TAG: u32 = Tag::ORIGIN.0;

impl Rebuild<'_> {
    /// The state from the records alone, and from what `past`, which is not the newest checkpoint, says of snapshots
    /// and the volume.
    pub(super) fn without_checkpoint(
        &mut self,
        sb: Superblock,
        past: Option<Checkpoint>,
        options: &RebuildOptions,
    ) -> Result<State> {
        let why = match past {
            Some(_) => "the newest checkpoint is lost, and an older one knows little of the segments",
            None => "no checkpoint survives",
        };
        let mut tables = Tables::of(past.as_ref());
        let mut state = blank(sb, past)?;
        let records = std::mem::take(&mut self.survey.records);
        for number in &self.survey.used {
            state.segments.insert(*number, Segment { role: Role::Index, count: 0, live: 0, digest: 0 });
        }
        for found in &records {
            let segment =
                state.sb.segment_of(found.address).and_then(|number| state.segments.get_mut(&number));
            if let Some(segment) = segment {
                segment.role = Role::Log;
            }
        }
        make_room(&mut state, records.iter().map(|found| u64::from(found.entries)).sum())?;
        state.next_run = self.survey.last_run + 1;
        let mut collected = Collected::default();
        for found in &records {
            self.progress.check()?;
            let record = read_record(self.device.as_ref(), &state.sb, found.address)?;
            if holds_chunks(&record) {
                tables.bring_back(&mut state, &record);
                self.take_intact(&state, found, &record, &mut collected);
                collected.relieve(self.device.as_ref(), &mut state)?;
            } else if record.sequence > tables.known {
                tables.learn(&mut state, &record)?;
                state.absorb(&record)?;
            }
            state.chain.position.sequence = state.chain.position.sequence.max(record.sequence);
        }
        tables.settle(&mut state, options);
        collected.settle(state.take_run_number());
        let all = state.next_run;
        let live = state.live_ids();
        self.judge_and_merge(&mut state, &live, all, collected)?;
        self.missing = self.missing(&state, &live)?;
        begin_log(&mut state)?;
        self.doubts.push(format!("{why}: nothing proves that every record was found"));
        self.doubtful = u64::MAX;
        Ok(state)
    }
}

/// What the records tell in passing.
#[derive(Default)]
struct Tables {
    /// The tables began with all that came of records up to this one,
    known: u64,
    /// and of epochs up to this one: snapshots that are not in them were deleted.
    epoch: u64,
    /// What an open record says of the volume.
    volume: bool,
    /// Bytes of the origin that some chunk was preserved of.
    extent: u64,
}

impl Tables {
    fn of(past: Option<&Checkpoint>) -> Self {
        let (known, epoch) = past.map_or((0, 0), |past| (past.log.sequence, past.epoch));
        Self { known, epoch, volume: past.is_some(), extent: 0 }
    }

    fn learn(&mut self, state: &mut State, record: &Record) -> Result<()> {
        let body = &mut record.body.as_slice();
        match record.kind {
            RecordKind::Open => {
                let _raw: RawOpen = table::take(body)?;
                // Sessions that had no room for it left it out.
                if let Ok(volume) = Volume::decode(body) {
                    state.volume = volume;
                    self.volume = true;
                }
            }
            RecordKind::Volume | RecordKind::End => self.volume = true,
            _ => {}
        }
        Ok(())
    }

    /// Stands in for the snapshots that the chunks of `record` were preserved for and that no record made.
    fn bring_back(&mut self, state: &mut State, record: &Record) {
        for entry in &record.entries {
            let known = state.snapshots.contains_key(&entry.owner) || state.graves.contains_key(&entry.owner);
            if !known && entry.owner > self.epoch {
                let snapshot = lost_snapshot(state, entry.owner, record.time_secs);
                state.add_snapshot(snapshot);
            }
            if entry.class == EntryClass::Exception {
                let start = entry.chunk << state.sb.chunk_bits;
                self.extent = self.extent.max(start.saturating_add(u64::from(entry.raw_length)));
            }
        }
        state.epoch = state.epoch.max(record.epoch);
    }

    fn settle(&self, state: &mut State, options: &RebuildOptions) {
        if !self.volume {
            state.volume.volume = state.sb.uuid;
            let sizes = state.snapshots.values().map(|snapshot| snapshot.size_bytes);
            state.volume.origin_size = sizes.max().unwrap_or(0).max(self.extent);
        }
        if let Some((path, size)) = &options.origin {
            state.volume.path.clone_from(path);
            if !self.volume {
                state.volume.origin_size = *size;
            }
        }
        // Nothing says what happened to the origin since.
        state.volume.equals = None;
        let size = state.volume.origin_size;
        for snapshot in state.snapshots.values_mut().filter(|snapshot| snapshot.size_bytes == 0) {
            snapshot.size_bytes = size;
        }
        state.fingerprint = None;
    }
}

/// Tables that say nothing, but what `past` says of snapshots and the volume.
fn blank(sb: Superblock, past: Option<Checkpoint>) -> Result<State> {
    let volume = Volume {
        volume: Uuid([0; 16]),
        origin_size: 0,
        squash_when_full: false,
        unwatched: false,
        generation: 0,
        equals: None,
        path: Vec::new(),
    };
    // A superblock that survives says how far the log went: what comes must be newer.
    let log = LogPosition {
        address: sb.segment_address(0),
        sequence: past.as_ref().map_or(0, |past| past.log.sequence).max(sb.durable),
        crc: 0,
        incarnation: random_u64()?,
    };
    let tables = Checkpoint::empty(log, volume);
    let tables = match past {
        None => tables,
        Some(past) => Checkpoint {
            epoch: past.epoch,
            ends: past.ends,
            snapshots: past.snapshots,
            graves: past.graves,
            events: past.events,
            volume: past.volume,
            operation: past.operation,
            ..tables
        },
    };
    Ok(State::new(sb, tables))
}

/// Frees segments that hold no record if the new index of `entries` might not fit otherwise.
fn make_room(state: &mut State, entries: u64) -> Result<()> {
    const LEAST: u64 = 8;
    // Once as they are found and once merged, with what their change bits take.
    const ENTRY_BYTES: u64 = 2 * 48;
    let index = entries.saturating_mul(ENTRY_BYTES).div_ceil(u64::from(state.sb.segment_size()));
    if state.free_segments() < LEAST.saturating_add(index) {
        state.segments.retain(|_, segment| segment.role == Role::Log);
    }
    if state.free_segments() >= LEAST {
        return Ok(());
    }
    Err(Error::new(Kind::NoSpace, "every segment of the store holds records, none is left for a new index")
        .hint("enlarge the device or file of the store, and rebuild again"))
}

/// Begins the log afresh in a free segment.
pub(super) fn begin_log(state: &mut State) -> Result<()> {
    let segment = state.take_segment(Role::Log, Stream::Low)?;
    let last = state.chain.position.sequence;
    state.chain.promised = vec![segment];
    state.chain.at = 0;
    state.chain.position = LogPosition {
        address: state.sb.segment_address(segment),
        sequence: last + OPEN_JUMP,
        crc: 0,
        incarnation: random_u64()?,
    };
    Ok(())
}

/// Stands for the snapshot that began `epoch` and whose own record is lost: what was preserved for it is still
/// there. Its name says what it is, its tag is given in the end.
pub(super) fn lost_snapshot(state: &State, epoch: u64, time_secs: i64) -> Snapshot {
    Snapshot {
        id: epoch,
        tag: NO_TAG,
        name: format!("recovered-{epoch}"),
        use_count: 0,
        size_bytes: state.volume.origin_size,
        created_secs: time_secs,
        generation: 0,
        created_at: 0,
        created_sequence: 0,
        priority: 0,
        squashed: false,
        tainted: true,
        hidden: false,
        holds: Vec::new(),
    }
}

/// Gives snapshots without a tag, or whose tag another one has, the highest that are free, the oldest first: one that
/// stands for a lost one may have been given what a record, found later, gives to another. Whoever has a record of its
/// own keeps its tag.
pub(super) fn give_tags(state: &mut State) {
    let mut shown: Vec<_> = state.snapshots.values_mut().filter(|snapshot| !snapshot.hidden).collect();
    shown.sort_unstable_by_key(|snapshot| (snapshot.created_sequence == 0, snapshot.id));
    let mut taken: HashSet<u32> = shown.iter().map(|snapshot| snapshot.tag).collect();
    taken.insert(NO_TAG);
    let mut kept = HashSet::from([NO_TAG]);
    let mut free = (0..NO_TAG).rev().filter(|tag| !taken.contains(tag));
    for snapshot in shown {
        if !kept.insert(snapshot.tag) {
            snapshot.tag = free.next().unwrap_or(NO_TAG);
        }
    }
}
