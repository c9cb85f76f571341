//! The index from the log records alone.
//!
//! The newest checkpoint still says which snapshots there are and what must exist in every segment; its runs
//! are thrown away. Records are found by looking at every block. What they give is compared with what must
//! exist: only a full match leaves the snapshots as they were. Otherwise an exception may be lost, and a lost
//! exception would read as newer data, so every snapshot is marked and reading it must be insisted on.
//! Writes go only to segments that the checkpoint knows to be free.

use super::scan::{self, Found};
use crate::block::{ReadAt, WriteAt};
use crate::error::{Kind, Result};
use crate::format::checkpoint::{Role, Segment};
use crate::format::record::{Record, RecordKind};
use crate::format::run::IndexEntry;
use crate::format::superblock::Superblock;
use crate::format::table::Snapshot;
use crate::progress::Progress;
use crate::store::index::{BlockReader, MemTable};
use crate::store::merge;
use crate::store::publish::{self, Plan};
use crate::store::recover::{Superblocks, data_holds, read_record};
use crate::store::state::{State, digest, key_of};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// Entries collected in memory before they go to a run.
const MEMORY_ENTRIES: usize = 256 << 10;

/// What a rebuild found.
#[derive(Debug, Clone)]
pub struct RebuildReport {
    /// Sound records found.
    pub records: u64,
    /// Index entries written.
    pub entries: u64,
    /// Why the snapshots could not be proven whole; empty if they were.
    pub doubts: Vec<String>,
}

/// Rebuilds the index of the store on `device` and publishes it.
///
/// # Errors
/// `Kind::Damaged` if no checkpoint survives, `Kind::NoSpace` if the new index does not fit, `Kind::Io`,
/// `Kind::Interrupted`. Until the last moment nothing that was there is overwritten.
pub fn rebuild(device: &Arc<dyn WriteAt>, now_secs: i64, progress: &dyn Progress) -> Result<RebuildReport> {
    let reading: Arc<dyn ReadAt> = Arc::<dyn WriteAt>::clone(device);
    let superblocks = match Superblocks::read(device.as_ref()).newest_first() {
        Ok(list) => list,
        Err(error) if error.kind() == Kind::Damaged => Vec::new(),
        Err(error) => return Err(error.at_path(device.path())),
    };
    let (sb, checkpoint) = scan::find_checkpoint(device.as_ref(), &superblocks, progress)?;
    let generation = superblocks.iter().map(|sb| sb.generation).max().unwrap_or(0).max(sb.generation);
    let records = scan::find_records(device.as_ref(), &sb, &checkpoint.ends, progress)?;
    let mut state = State::new(Superblock { generation: generation + 1, ..sb }, checkpoint);
    let mut work = Rebuild { device, reader: BlockReader::new(reading), doubts: Vec::new(), progress };
    let expected = forget_index(&mut state);
    let (old, new): (Vec<Found>, Vec<Found>) =
        records.iter().partition(|record| record.sequence <= state.chain.position.sequence);
    let superseded = work.collect_old(&mut state, &old)?;
    work.compare(&state, &expected, &superseded);
    work.apply_new(&mut state, &new)?;
    if !work.doubts.is_empty() {
        for snapshot in state.snapshots.values_mut() {
            snapshot.tainted = true;
        }
        let text = format!("index rebuilt, snapshots uncertain: {}", work.doubts.join("; "));
        state.events.push((now_secs, text.chars().take(1000).collect()));
    }
    publish::publish(device.as_ref(), &work.reader, &mut state, Plan { sweep: true, extra: 1 })?;
    Ok(RebuildReport { records: records.len() as u64, entries: state.run_entries(), doubts: work.doubts })
}

struct Rebuild<'a> {
    device: &'a Arc<dyn WriteAt>,
    reader: BlockReader,
    doubts: Vec<String>,
    progress: &'a dyn Progress,
}

/// Empties the index and the counts; returns what must exist. Old index segments keep their place until the
/// new index is published, so nothing is overwritten before.
fn forget_index(state: &mut State) -> BTreeMap<u32, Segment> {
    let expected = state
        .segments
        .iter()
        .filter(|(_, segment)| segment.role == Role::Log)
        .map(|(n, s)| (*n, *s))
        .collect();
    for segment in state.segments.values_mut() {
        (segment.count, segment.live, segment.digest) = (0, 0, 0);
        if segment.role == Role::Emptied {
            segment.role = Role::Index;
        }
    }
    state.runs.clear();
    state.low = None;
    state.high = None;
    state.sb.copies = [Vec::new(), Vec::new()];
    expected
}

impl Rebuild<'_> {
    /// Collects the entries of the records that the checkpoint covers, and keeps those that were in the index
    /// when it was made: needed by a snapshot that is live or was deleted since the last sweep.
    fn collect_old(&mut self, state: &mut State, records: &[Found]) -> Result<Vec<IndexEntry>> {
        let mut superseded = Vec::new();
        for found in records {
            self.progress.check()?;
            let record = read_record(self.device.as_ref(), &state.sb, found.address)?;
            if !matches!(
                record.kind,
                RecordKind::CopyOut | RecordKind::SnapshotWrite | RecordKind::Relocation
            ) {
                continue;
            }
            // Free segments may hold old copies of what was moved elsewhere: their space can be reused any time.
            let segment = state.sb.segment_of(record.address).and_then(|number| state.segments.get(&number));
            if segment.is_none_or(|segment| segment.role != Role::Log) {
                continue;
            }
            let before = replaceable(&state.memory, &record);
            let intact = self.intact(state, found, &record)?;
            state.index_entries(&record, &intact);
            superseded.extend(before.into_iter().filter(|(key, value)| state.memory.get(key) != Some(value)));
            if state.memory.len() >= MEMORY_ENTRIES {
                merge::flush_memory(self.device.as_ref(), state)?;
            }
        }
        merge::flush_memory(self.device.as_ref(), state)?;
        let mut needed = state.live_ids();
        needed.extend(state.graves.keys());
        needed.sort_unstable();
        needed.dedup();
        superseded.extend(merge::merge_all(self.device.as_ref(), &self.reader, state, &needed)?);
        Ok(superseded)
    }

    /// Which entries of a record can be believed: all, unless a newer record lies over a part of it.
    fn intact(&self, state: &State, found: &Found, record: &Record) -> Result<Vec<bool>> {
        (0..record.entries.len())
            .map(|number| match found.overlapped {
                true => scan::entry_holds(self.device.as_ref(), &state.sb, record, number),
                false => Ok(true),
            })
            .collect()
    }

    /// Compares what was found with what must exist, segment by segment.
    fn compare(&mut self, state: &State, expected: &BTreeMap<u32, Segment>, superseded: &[IndexEntry]) {
        // A version that a newer one replaced may or may not have been merged away when the checkpoint was made.
        let mut older: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        for (key, value) in superseded {
            if let Some(segment) = state.sb.segment_of(value.word) {
                let slot = older.entry(segment).or_default();
                slot.0 += 1;
                slot.1 = slot.1.wrapping_add(digest(*key, value));
            }
        }
        for (number, must) in expected {
            let has = state.segments.get(number).map_or((0, 0), |segment| (segment.count, segment.digest));
            let (count, sum) = older.get(number).copied().unwrap_or((0, 0));
            let with_older = (has.0 + count, has.1.wrapping_add(sum));
            let want = (must.count, must.digest);
            if has != want && with_older != want {
                self.doubts
                    .push(format!("segment {number} must hold {} chunks, {} were found", must.count, has.0));
            }
        }
    }

    /// Applies the records after the checkpoint. A gap in their sequence leaves every snapshot in doubt.
    fn apply_new(&mut self, state: &mut State, records: &[Found]) -> Result<()> {
        let mut list = Vec::with_capacity(records.len());
        let mut durable = state.durable;
        let mut highest = 0;
        for found in records {
            let record = read_record(self.device.as_ref(), &state.sb, found.address)?;
            durable = durable.max(record.durable);
            highest = highest.max(record.sequence);
            list.push(record);
        }
        for record in list {
            let follows = state.chain.is_followed_by(&record);
            if record.sequence > durable
                && !(follows && data_holds(self.device.as_ref(), &state.sb, &record)?)
            {
                break;
            }
            if !follows {
                self.doubts.push(format!(
                    "records between {} and {} are lost",
                    state.chain.position.sequence, record.sequence
                ));
            }
            let segment = state.sb.segment_of(record.address);
            let at = state.chain.promised.iter().position(|promised| Some(*promised) == segment);
            let Some(at) = at else {
                self.doubts.push(format!("record {} lies outside the promised log", record.sequence));
                continue;
            };
            if record.epoch > state.epoch && !matches!(record.kind, RecordKind::Create | RecordKind::Begin) {
                state.add_snapshot(lost_snapshot(state, &record));
            }
            state.apply(at, &record)?;
        }
        if durable > state.chain.position.sequence {
            self.doubts
                .push(format!("records after {} up to {durable} are lost", state.chain.position.sequence));
        }
        // What was not applied stays on the device until the log overwrites it: it must be older than all to come.
        state.chain.position.sequence = state.chain.position.sequence.max(highest).max(durable);
        Ok(())
    }
}

/// Stands for the snapshot that began the epoch of `record` and whose own record is lost: what was preserved
/// for it is still there. Its tag is the highest one free, its name says what it is.
fn lost_snapshot(state: &State, record: &Record) -> Snapshot {
    let taken: HashSet<u32> = state.snapshots.values().map(|snapshot| snapshot.tag).collect();
    Snapshot {
        id: record.epoch,
        tag: (0..u32::MAX).rev().find(|tag| !taken.contains(tag)).unwrap_or(0),
        name: format!("recovered-{}", record.epoch),
        use_count: 0,
        size_bytes: state.volume.origin_size,
        created_secs: record.time_secs,
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

/// The entries that `record` may replace, as they are now.
fn replaceable(memory: &MemTable, record: &Record) -> Vec<IndexEntry> {
    let keys = record.entries.iter().map(key_of);
    keys.filter_map(|key| memory.get(&key).map(|value| (key, *value))).collect()
}
