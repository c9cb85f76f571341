//! A store from its tables and the entries of its index, as a dump holds them.
//!
//! The log is not written: where its data still lie in place they are used, elsewhere they are missing, which
//! their checksums tell. Index, checkpoint and superblocks are made anew in space that the tables say is free, with
//! the code that a rebuild uses, so nothing live is overwritten before the new superblocks are durable.

use super::fsck::ground;
use super::fsck::survey::survey;
use super::index::BlockReader;
use super::merge;
use super::publish::{self, Plan};
use super::recover::{self, Superblocks};
use super::state::State;
use crate::block::{ReadAt, WriteAt};
use crate::error::{Error, Kind, Result};
use crate::format::checkpoint;
use crate::format::checkpoint::{Checkpoint, Role};
use crate::format::record::{self, Encoding};
use crate::format::run::{IndexEntry, Key};
use crate::format::superblock::{BLOCK_BITS, CHUNK_BITS, FIRST_SEGMENT, SEGMENT_BITS, Superblock};
use crate::progress::Progress;
use crate::units::{Uuid, index};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What lies where a store is to be restored, as far as it matters.
#[derive(Debug, Clone)]
pub struct Target {
    /// Stores that lie there, or what is left of them, by the first MiBs.
    pub stores: BTreeSet<Uuid>,
    /// Why the store that lies there is newer than the dump; `None` if it is not.
    pub newer: Option<String>,
    generation: u64,
    checkpoint: u64,
    sequence: u64,
}

/// How far remains of other stores are looked for.
const REMAINS_BYTES: u64 = 8 << 20;

impl Target {
    /// Looks at `device`, where the store that `sb` and `tables` tell of is to be restored. Reads all of it if
    /// anything is left of that store.
    ///
    /// # Errors
    /// `Kind::Io`, `Kind::Interrupted`; `Kind::Mismatch` if it is too small; `Kind::Unsupported` for a store of a
    /// newer format.
    pub fn look(
        device: &dyn ReadAt,
        sb: &Superblock,
        tables: &Checkpoint,
        progress: &dyn Progress,
    ) -> Result<Self> {
        if device.size() < sb.end() {
            let what = format!("it has {} bytes, the store needs {}", device.size(), sb.end());
            return Err(Error::new(Kind::Mismatch, what)
                .at_path(device.path())
                .hint("make it as large as the store was"));
        }
        let superblocks = match Superblocks::read(device).newest_first() {
            Ok(list) => list,
            Err(error) if error.kind() == Kind::Damaged => Vec::new(),
            Err(error) => return Err(error.at_path(device.path())),
        };
        let mut target = Self {
            stores: superblocks.iter().map(|sb| sb.uuid).collect(),
            newer: None,
            generation: sb.generation,
            checkpoint: sb.checkpoint,
            sequence: tables.log.sequence,
        };
        target.stores.extend(remains(device)?);
        let own: Vec<Superblock> = superblocks.into_iter().filter(|found| found.uuid == sb.uuid).collect();
        for found in &own {
            target.generation = target.generation.max(found.generation);
            target.checkpoint = target.checkpoint.max(found.checkpoint);
            if found.checkpoint > sb.checkpoint && !holds_the_same(device, found, tables) {
                target.newer = Some(format!(
                    "it has checkpoint {}, the dump is of checkpoint {}",
                    found.checkpoint, sb.checkpoint
                ));
            }
        }
        if !device.next_data(0)?.is_empty() {
            target.look_for_newer(device, sb, tables, progress)?;
        }
        Ok(target)
    }

    /// Records and checkpoints that are newer than the dump: what they preserved is not in it.
    fn look_for_newer(
        &mut self,
        device: &dyn ReadAt,
        sb: &Superblock,
        tables: &Checkpoint,
        progress: &dyn Progress,
    ) -> Result<()> {
        match ground::find(device, None, progress) {
            Ok(found) if found.sb.uuid == sb.uuid => {
                self.checkpoint = self.checkpoint.max(found.sb.checkpoint);
                let same = found.checkpoint.as_ref().is_some_and(|there| is_same(there, tables));
                if found.sb.checkpoint > sb.checkpoint && !same {
                    let (there, here) = (found.sb.checkpoint, sb.checkpoint);
                    self.newer.get_or_insert(format!("checkpoint {there} is newer than the dump's {here}"));
                }
            }
            Err(error) if error.kind() != Kind::Damaged => return Err(error),
            _ => {}
        }
        let last = tables.log.sequence;
        let mut durable = last;
        for found in survey(device, sb, &tables.ends, progress)?.records {
            if found.sequence <= last {
                continue;
            }
            self.sequence = self.sequence.max(found.sequence);
            let record = recover::read_record(device, sb, found.address)?;
            durable = durable.max(record.durable);
            // What a crash cut short never counted.
            if durable > last || recover::data_holds(device, sb, &record)? {
                self.newer.get_or_insert(format!(
                    "record {} is newer than the dump's last, {last}",
                    found.sequence
                ));
            }
        }
        Ok(())
    }
}

/// True if the checkpoint that `sb` publishes holds what `tables` do.
fn holds_the_same(device: &dyn ReadAt, sb: &Superblock, tables: &Checkpoint) -> bool {
    let found = [0, 1].into_iter().find_map(|copy| recover::read_checkpoint(device, sb, copy).ok());
    found.is_some_and(|found| is_same(&found, tables))
}

/// True if nothing happened between the two but that the index was written anew: they stand for the same place in
/// the log and say the same of the past. What a repair or an older dump made doubtful is not the same.
fn is_same(there: &Checkpoint, here: &Checkpoint) -> bool {
    (there.log.sequence, there.log.incarnation, there.epoch)
        == (here.log.sequence, here.log.incarnation, here.epoch)
        && (&there.snapshots, &there.graves) == (&here.snapshots, &here.graves)
        && (&there.volume, &there.operation, &there.events) == (&here.volume, &here.operation, &here.events)
}

/// Identities of stores whose records or checkpoints lie in the first MiBs.
fn remains(device: &dyn ReadAt) -> Result<BTreeSet<Uuid>> {
    let mut bytes = vec![0; index(device.size().min(REMAINS_BYTES))];
    device.read_at(&mut bytes, 0)?;
    let magics = [record::MAGIC, checkpoint::MAGIC];
    let blocks = bytes.chunks(4096).filter(|block| magics.iter().any(|magic| block.starts_with(magic)));
    // Both structures have the store's identity after their magic.
    Ok(blocks.filter_map(|block| block.get(8..24)?.first_chunk()).map(|uuid| Uuid(*uuid)).collect())
}

/// Refuses tables that no store can have: what the engine relies on without asking again.
///
/// # Errors
/// `Kind::Damaged`.
pub fn validate(sb: &Superblock, tables: &Checkpoint) -> Result<()> {
    let wrong = |what: String| Err(Error::damaged(what));
    for (name, value, bounds) in [
        ("chunk", sb.chunk_bits, CHUNK_BITS),
        ("block", sb.block_bits, BLOCK_BITS),
        ("segment", sb.segment_bits, SEGMENT_BITS),
    ] {
        if !bounds.contains(&value) {
            return wrong(format!(
                "{name} size 2^{value}, expected 2^{} to 2^{}",
                bounds.start(),
                bounds.end()
            ));
        }
    }
    if sb.block_bits > sb.chunk_bits || sb.segment_bits < sb.block_bits + 4 || sb.segments == 0 {
        return wrong("block, chunk and segment size do not fit each other".to_owned());
    }
    let mut roles = std::collections::BTreeMap::new();
    for (number, segment) in &tables.segments {
        if *number >= sb.segments || roles.insert(*number, segment.role).is_some() {
            return wrong(format!(
                "segment {number} is listed twice, or beyond the {} there are",
                sb.segments
            ));
        }
    }
    let promised: BTreeSet<u32> = tables.promised.iter().copied().collect();
    if promised.len() != tables.promised.len() {
        return wrong("a segment is promised to the log twice".to_owned());
    }
    if let Some(number) = promised.iter().find(|number| roles.get(number) != Some(&Role::Log)) {
        return wrong(format!("segment {number} is promised to the log, but holds none"));
    }
    let mut last = 0;
    for snapshot in &tables.snapshots {
        if snapshot.id <= last || snapshot.id > tables.epoch {
            return wrong(format!(
                "snapshot id {} is out of order, or beyond epoch {}",
                snapshot.id, tables.epoch
            ));
        }
        last = snapshot.id;
    }
    recover::validate(sb, tables)
}

/// Writes the store that `sb`, `tables` and `entries` (in key order) tell of to `device`, which `target` is what was
/// found of. `uncertain` says why reading its snapshots must be insisted on. Returns the number of entries.
///
/// # Errors
/// `Kind::Damaged` if an entry makes no sense or out of `entries`; `Kind::NoSpace` if there is no room for the new
/// index; `Kind::Io`. Until the last moment nothing that the tables know of is overwritten.
pub fn restore(
    device: &Arc<dyn WriteAt>,
    sb: Superblock,
    tables: Checkpoint,
    target: &Target,
    entries: &mut dyn Iterator<Item = Result<IndexEntry>>,
    uncertain: Option<(i64, String)>,
) -> Result<u64> {
    validate(&sb, &tables)?;
    let sb = Superblock {
        generation: target.generation.saturating_add(1),
        checkpoint: target.checkpoint,
        durable: 0,
        copies: [Vec::new(), Vec::new()],
        ..sb
    };
    let in_place = target.stores.contains(&sb.uuid);
    let mut state = State::new(sb, Checkpoint { runs: Vec::new(), low: None, high: None, ..tables });
    // What is left of the log on the device must be older than all to come.
    state.chain.position.sequence = target.sequence;
    for segment in state.segments.values_mut() {
        (segment.count, segment.live, segment.digest) = (0, 0, 0);
        if segment.role == Role::Emptied {
            // Not free before the new checkpoint is durable.
            segment.role = Role::Index;
        }
    }
    if let Some((now_secs, why)) = uncertain {
        state.snapshots.values_mut().for_each(|snapshot| snapshot.tainted = true);
        state.events.push((now_secs, format!("restored, snapshots uncertain: {why}")));
    }
    if !in_place && !device.next_data(0)?.is_empty() {
        // Whatever was recognisable here is gone before the store appears.
        device.write_at(&vec![0; index(FIRST_SEGMENT)], 0)?;
        device.flush()?;
    }
    let mut last = None;
    let (sb, log) = (state.sb.clone(), log_segments(&state));
    let mut checked = entries.map(|entry| {
        let entry = entry?;
        check_entry(&sb, &log, &entry, last.replace(entry.0))?;
        Ok(entry)
    });
    let count = merge::write_run(device.as_ref(), &mut state, &mut checked)?;
    let reader = BlockReader::new(Arc::<dyn WriteAt>::clone(device));
    publish::publish(device.as_ref(), &reader, &mut state, Plan { sweep: false, extra: 1 })?;
    Ok(count)
}

fn log_segments(state: &State) -> BTreeSet<u32> {
    let log = state.segments.iter().filter(|(_, segment)| segment.role == Role::Log);
    log.map(|(number, _)| *number).collect()
}

/// Refuses an entry that the engine would stumble over.
fn check_entry(
    sb: &Superblock,
    log: &BTreeSet<u32>,
    (key, value): &IndexEntry,
    last: Option<Key>,
) -> Result<()> {
    if key.class > 2 || last.is_some_and(|last| last >= *key) {
        return Err(Error::damaged(format!("an entry of the index is out of order: {key:?}")));
    }
    if key.class == 2 {
        return Ok(());
    }
    let segment = sb.segment_of(value.word).filter(|segment| log.contains(segment));
    let end = value.word.checked_add(record::pad(u64::from(value.stored_length), sb.block_bits));
    let inside = segment.is_some_and(|segment| {
        end.is_some_and(|end| end <= sb.segment_address(segment) + u64::from(sb.segment_size()))
    });
    let lengths = value.raw_length <= sb.chunk_size()
        && value.stored_length <= value.raw_length
        && (value.encoding == Encoding::Raw) == (value.stored_length > 0);
    match inside && lengths {
        true => Ok(()),
        false => Err(Error::damaged(format!(
            "an entry of the index leads nowhere: {key:?}, {} bytes at byte {}",
            value.stored_length, value.word
        ))),
    }
}
