//! What a store is at a moment: the checkpoint's tables brought up to date by the log records since.
//!
//! [`State::apply`] is the only place that says what a record means; replay and live writing both use it,
//! so what a crash leaves is what was there before it.

use super::chain::Chain;
use super::index::{MemTable, unite};
use crate::error::{Error, Result};
use crate::format::checkpoint::{Checkpoint, Grave, OpenSegment, Run, Segment};
use crate::format::record::{Encoding, Entry, EntryClass, Record, RecordKind, pad};
use crate::format::run::{IndexEntry, Key, PAGE_BITS, Value};
use crate::format::superblock::Superblock;
use crate::format::table::{self, Deletion, Fingerprint, Operation, RawOpen, RawTaint, Snapshot, Volume};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Events kept; older ones are dropped.
const EVENTS_MAX: usize = 64;
/// Ended incarnations kept; scans ignore what those wrote beyond their ends.
const ENDS_MAX: usize = 64;

/// Tables of a store, brought up to date.
#[derive(Clone)]
pub struct State {
    /// The newest sound superblock.
    pub sb: Superblock,
    /// End of the log, and the segments it may use.
    pub chain: Chain,
    /// Highest sequence known durable.
    pub durable: u64,
    /// Current epoch.
    pub epoch: u64,
    /// Next run number.
    pub next_run: u64,
    /// Index entries known dead and not dropped yet.
    pub unswept: u64,
    /// Segment open for index pieces and first copies of checkpoints.
    pub low: OpenSegment,
    /// Segment open for second copies of checkpoints.
    pub high: OpenSegment,
    /// Ended incarnations and their last sequences.
    pub ends: Vec<(u64, u64)>,
    /// Snapshots by id, hidden and squashed ones included.
    pub snapshots: BTreeMap<u64, Snapshot>,
    /// Deleted snapshots not swept yet, by id.
    pub graves: BTreeMap<u64, Grave>,
    /// Segments in use.
    pub segments: BTreeMap<u32, Segment>,
    /// Runs, newest first.
    pub runs: Vec<Run>,
    /// Events, oldest first.
    pub events: Vec<(i64, String)>,
    /// The volume.
    pub volume: Volume,
    /// The pending long operation.
    pub operation: Option<Operation>,
    /// What the log since the checkpoint adds to the index.
    pub memory: MemTable,
    /// The origin at the last close, if that was clean.
    pub fingerprint: Option<Fingerprint>,
    /// Bytes of log since the checkpoint.
    pub log_bytes: u64,
    /// Records since the checkpoint.
    pub log_records: u64,
    /// Only segments below this are taken; fewer than the store has while it is being made smaller.
    pub limit: u32,
    /// With which checkpoint each segment was emptied, as far as this session did it.
    pub emptied: BTreeMap<u32, u64>,
    /// Somebody reads tables as old as this checkpoint: what was emptied later is not used yet.
    pub keep: Option<u64>,
    /// Segments that are never taken, though nothing of this store is in them: another one lies there.
    pub kept: Arc<BTreeSet<u32>>,
}

impl State {
    /// The state a checkpoint stands for.
    pub fn new(sb: Superblock, checkpoint: Checkpoint) -> Self {
        Self {
            limit: sb.segments,
            kept: Arc::default(),
            sb,
            chain: Chain::new(checkpoint.log, checkpoint.promised),
            durable: checkpoint.log.sequence,
            epoch: checkpoint.epoch,
            next_run: checkpoint.next_run,
            unswept: checkpoint.unswept,
            low: checkpoint.low,
            high: checkpoint.high,
            ends: checkpoint.ends,
            snapshots: checkpoint.snapshots.into_iter().map(|snapshot| (snapshot.id, snapshot)).collect(),
            graves: checkpoint.graves.into_iter().map(|grave| (grave.id, grave)).collect(),
            segments: checkpoint.segments.into_iter().collect(),
            runs: checkpoint.runs,
            events: checkpoint.events,
            volume: checkpoint.volume,
            operation: checkpoint.operation,
            memory: MemTable::new(),
            fingerprint: None,
            log_bytes: 0,
            log_records: 0,
            emptied: BTreeMap::new(),
            keep: None,
        }
    }

    /// The tables as a checkpoint; the memory table must have been flushed to a run.
    pub fn to_checkpoint(&self) -> Checkpoint {
        Checkpoint {
            log: self.chain.position,
            epoch: self.epoch,
            next_run: self.next_run,
            unswept: self.unswept,
            low: self.low,
            high: self.high,
            ends: self.ends.clone(),
            promised: self.chain.segments_from_here().to_vec(),
            snapshots: self.snapshots.values().cloned().collect(),
            graves: self.graves.values().copied().collect(),
            segments: self.segments.iter().map(|(number, segment)| (*number, *segment)).collect(),
            runs: self.runs.clone(),
            events: self.events.clone(),
            volume: self.volume.clone(),
            operation: self.operation.clone(),
        }
    }

    /// Brings the state up to date with `record`, which the chain has proven and which lies in promised
    /// segment `at`.
    ///
    /// # Errors
    /// `Kind::Damaged` if its body makes no sense.
    pub fn apply(&mut self, at: usize, record: &Record) -> Result<()> {
        self.absorb(record)?;
        self.chain.advance(&self.sb, at, record);
        self.durable = self.durable.max(record.durable);
        self.log_bytes += record.length();
        self.log_records += 1;
        Ok(())
    }

    /// What `record` means for the tables and the index, wherever it lies.
    ///
    /// # Errors
    /// `Kind::Damaged` if its body makes no sense.
    pub fn absorb(&mut self, record: &Record) -> Result<()> {
        let body = &mut record.body.as_slice();
        self.fingerprint = None;
        match record.kind {
            RecordKind::CopyOut | RecordKind::SnapshotWrite | RecordKind::Relocation => {
                self.index_entries(record, &vec![true; record.entries.len()]);
            }
            RecordKind::Create => {
                let mut snapshot = Snapshot::decode(body)?;
                snapshot.created_at = record.address;
                snapshot.created_sequence = record.sequence;
                self.add_snapshot(snapshot);
            }
            RecordKind::Delete => {
                let (deletion, dead) = decode_deletion(body)?;
                self.unswept = self.unswept.saturating_add(dead);
                self.delete(&deletion, record.time_secs);
            }
            RecordKind::Attributes => {
                let snapshot = Snapshot::decode(body)?;
                self.snapshots.insert(snapshot.id, snapshot);
            }
            RecordKind::Volume => self.volume = Volume::decode(body)?,
            RecordKind::Begin => {
                self.operation = Some(Operation::decode(body)?);
                let mut snapshot = Snapshot::decode(body)?;
                // As with a snapshot of a user: deleted, its record must be overwritten before the deletion's.
                snapshot.created_at = record.address;
                snapshot.created_sequence = record.sequence;
                self.add_snapshot(snapshot);
            }
            RecordKind::End => {
                self.volume = Volume::decode(body)?;
                let (deletion, dead) = decode_deletion(body)?;
                self.unswept = self.unswept.saturating_add(dead);
                self.delete(&deletion, record.time_secs);
                self.operation = None;
            }
            RecordKind::Taint => {
                let raw: RawTaint = table::take(body)?;
                if raw.set.get() == 1 {
                    // Whoever wrote behind the store's back made the origin something else.
                    self.volume.equals = None;
                }
                for (_, snapshot) in self.snapshots.range_mut(..=raw.up_to.get()) {
                    snapshot.tainted = raw.set.get() == 1;
                }
            }
            RecordKind::Open => {
                let raw: RawOpen = table::take(body)?;
                self.ends.push((raw.incarnation.get(), raw.end.get()));
                let excess = self.ends.len().saturating_sub(ENDS_MAX);
                self.ends.drain(..excess);
            }
            RecordKind::Idle => self.fingerprint = table::decode_fingerprint(body)?,
            RecordKind::Skip => {}
        }
        self.epoch = self.epoch.max(record.epoch);
        Ok(())
    }

    /// Enters the chunks of `record` that `intact` vouches for into the memory table.
    pub fn index_entries(&mut self, record: &Record, intact: &[bool]) {
        for ((key, value), intact) in entries_of(record, self.sb.block_bits).zip(intact) {
            if !intact {
                continue;
            }
            self.memory.insert(key, value);
            if key.class == 0 {
                self.mark_changes(Key::changes(key.b, key.a >> PAGE_BITS), bit(key.a));
            }
        }
    }

    /// Adds change `bits` to those that the memory table keeps under `key`.
    pub fn mark_changes(&mut self, key: Key, bits: u128) {
        unite(&mut self.memory, key, bits);
    }

    /// A number that no run has had.
    pub fn take_run_number(&mut self) -> u64 {
        self.next_run += 1;
        self.next_run - 1
    }

    /// Enters a snapshot that begins an epoch.
    pub fn add_snapshot(&mut self, snapshot: Snapshot) {
        self.epoch = self.epoch.max(snapshot.id);
        self.snapshots.insert(snapshot.id, snapshot);
    }

    fn delete(&mut self, deletion: &Deletion, time_secs: i64) {
        let grave = |snapshot: &Snapshot| Grave {
            id: snapshot.id,
            created_at: snapshot.created_at,
            created_sequence: snapshot.created_sequence,
        };
        if deletion.squashed {
            if let Some(snapshot) = self.snapshots.get_mut(&deletion.id) {
                snapshot.squashed = true;
                // The snapshot stays in the table, so the record that made it contradicts nothing.
                let grave = Grave { created_at: 0, ..grave(snapshot) };
                self.graves.insert(grave.id, grave);
            }
        } else if let Some(snapshot) = self.snapshots.remove(&deletion.id) {
            self.graves.insert(snapshot.id, grave(&snapshot));
        }
        if deletion.automatic {
            self.events.push((time_secs, deletion.reason.clone()));
            let excess = self.events.len().saturating_sub(EVENTS_MAX);
            self.events.drain(..excess);
        }
    }

    /// Ids of snapshots that keep exceptions alive, ascending.
    pub fn live_ids(&self) -> Vec<u64> {
        self.snapshots.values().filter(|snapshot| !snapshot.squashed).map(|snapshot| snapshot.id).collect()
    }

    /// The newest snapshot that keeps exceptions alive.
    pub fn newest_live(&self) -> Option<u64> {
        self.snapshots.values().rev().find(|snapshot| !snapshot.squashed).map(|snapshot| snapshot.id)
    }

    /// Entries in all runs.
    pub fn run_entries(&self) -> u64 {
        self.runs.iter().map(|run| run.entries).sum()
    }

    /// What `value` counts in its segment.
    pub fn cost(&self, value: &Value) -> u64 {
        pad(u64::from(value.stored_length), self.sb.block_bits) + ENTRY_COST
    }
}

/// Bytes an entry without data counts in its segment, so that its record is kept.
const ENTRY_COST: u64 = 40;

/// The index key of a record's entry.
pub fn key_of(entry: &Entry) -> Key {
    match entry.class {
        EntryClass::Exception => Key::exception(entry.chunk, entry.owner),
        EntryClass::Overlay => Key::overlay(entry.owner, entry.chunk),
    }
}

/// The index entries that `record` stands for, in its order.
pub fn entries_of(record: &Record, block_bits: u32) -> impl Iterator<Item = IndexEntry> {
    record.located(block_bits).map(|(address, entry)| {
        let value = Value {
            word: data_address(record, address, entry),
            crc: entry.crc,
            raw_length: entry.raw_length,
            stored_length: entry.stored_length,
            encoding: entry.encoding,
        };
        (key_of(entry), value)
    })
}

/// The address that the index keeps for `entry` of `record`, whose data would lie at `address`. A chunk of
/// zeroes, or one that is lost, lives in the header alone, and its address must still name the right segment.
pub fn data_address(record: &Record, address: u64, entry: &Entry) -> u64 {
    if entry.encoding == Encoding::Raw { address } else { record.address }
}

thread_local! {
    /// A number of zeroes and its checksum: nearly all chunks are of one length.
    static ZEROES: Cell<(u32, u32)> = const { Cell::new((0, 0)) };
}

/// True if `length` zeroes have the checksum `crc`.
pub fn zeroes_hold(length: u32, crc: u32) -> bool {
    ZEROES.with(|known| {
        if known.get().0 != length {
            known.set((length, crc32fast::hash(&vec![0; length as usize])));
        }
        known.get().1 == crc
    })
}

/// The bit of `chunk` in its page of change bits.
pub fn bit(chunk: u64) -> u128 {
    1 << (chunk & ((1 << PAGE_BITS) - 1))
}

/// A digest of an index entry; segments keep the wrapping sum of theirs.
pub fn digest(key: Key, value: &Value) -> u64 {
    let mut bytes = [0; 32];
    for (to, number) in bytes.chunks_exact_mut(8).zip([u64::from(key.class), key.a, key.b, value.word]) {
        to.copy_from_slice(&number.to_le_bytes());
    }
    // In one go: eight bytes at a time take several times as long.
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes);
    let low = hasher.clone().finalize();
    hasher.update(&value.crc.to_le_bytes());
    u64::from(hasher.finalize()) << 32 | u64::from(low)
}

/// Appends a deletion and the number of index entries it makes dead.
pub fn encode_deletion(deletion: &Deletion, dead: u64, out: &mut Vec<u8>) {
    deletion.encode(out);
    out.extend_from_slice(&dead.to_le_bytes());
}

fn decode_deletion(body: &mut &[u8]) -> Result<(Deletion, u64)> {
    let deletion = Deletion::decode(body)?;
    let (dead, rest) =
        body.split_first_chunk().ok_or_else(|| Error::damaged("delete record is cut short"))?;
    *body = rest;
    Ok((deletion, u64::from_le_bytes(*dead)))
}

/// Tells which entries snapshots need, asked in key order.
pub struct Liveness<'a> {
    live: &'a [u64],
    /// The exception before: its chunk and epoch.
    previous: (u64, u64),
}

impl<'a> Liveness<'a> {
    /// For the snapshots `live` (ascending ids).
    pub fn new(live: &'a [u64]) -> Self {
        Self { live, previous: (u64::MAX, 0) }
    }

    /// The largest earlier epoch with an exception of the same chunk, 0 for none, if a snapshot needs that of `key`.
    pub fn since(&mut self, key: Key) -> Option<u64> {
        let before = if self.previous.0 == key.a { self.previous.1 } else { 0 };
        self.previous = (key.a, key.b);
        keeper(self.live, before, key.b).map(|_| before)
    }

    /// True if a snapshot needs the exception or overlay of `key`.
    pub fn needs(&mut self, key: Key) -> bool {
        match key.class {
            0 => self.since(key).is_some(),
            _ => self.live.binary_search(&key.a).is_ok(),
        }
    }
}

/// Which snapshot keeps an entry of `epoch` alive: the largest live id not above it, if it is above `previous`,
/// the largest earlier epoch with an entry for the same chunk (0 for none).
pub fn keeper(live: &[u64], previous: u64, epoch: u64) -> Option<u64> {
    let count = live.partition_point(|id| *id <= epoch);
    live.get(count.checked_sub(1)?).copied().filter(|id| *id > previous)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_lives_while_a_snapshot_between_its_predecessor_and_itself_lives() {
        let live = [3, 7, 9];
        assert_eq!(keeper(&live, 0, 2), None);
        assert_eq!(keeper(&live, 0, 3), Some(3));
        assert_eq!(keeper(&live, 3, 6), None);
        assert_eq!(keeper(&live, 3, 8), Some(7));
        assert_eq!(keeper(&live, 8, 20), Some(9));
        assert_eq!(keeper(&live, 9, 20), None);
    }
}
