//! Making room: checkpoints, sweeps, relocation, and what happens when the store is full.

use super::publish::Plan;
use super::recover::read_record;
use super::state::{data_address, key_of};
use super::writer::{Draft, Need, Writer};
use crate::error::{Error, Kind, Result};
use crate::format::checkpoint::Role;
use crate::format::record::{Entry, Record, RecordKind};
use crate::format::table::Snapshot;
use crate::units::Epoch;

/// Records between two checkpoints, at most: bounds the time of a replay.
const INTERVAL_RECORDS: u64 = 4096;
/// Index entries between two checkpoints, at most: bounds the memory table.
const INTERVAL_ENTRIES: usize = 64 << 10;
/// A segment with fewer live bytes than this share of it is worth emptying.
const SPARSE_SHARE: u64 = 2;

const SWEEP: Plan = Plan { sweep: true, extra: 0 };
const PLAIN: Plan = Plan { sweep: false, extra: 0 };

impl Writer {
    /// Makes sure that a record of `length` bytes fits; with `Need::Ordinary` by all means that the store's
    /// policy allows.
    pub(super) fn ensure_space(&mut self, length: u64, need: Need) -> Result<()> {
        let state = &self.view.state;
        let entries_max = INTERVAL_ENTRIES.min(state.sb.segment_size() as usize / 64);
        if state.log_records >= INTERVAL_RECORDS || state.memory.len() >= entries_max {
            self.checkpoint_if_possible(PLAIN)?;
        }
        // Emptied segments become usable one checkpoint later, hence each step twice.
        for plan in [PLAIN, PLAIN, SWEEP, PLAIN] {
            if self.fits(length, need) {
                return Ok(());
            }
            self.checkpoint_if_possible(plan)?;
        }
        if self.fits(length, need) {
            return Ok(());
        }
        if need == Need::Reserve {
            self.checkpoint_if_possible(Plan { sweep: false, extra: 1 })?;
            if self.fits(length, need) {
                return Ok(());
            }
        } else {
            while self.relocate_sparse()? {
                if self.fits(length, need) {
                    return Ok(());
                }
            }
            while self.give_up_a_snapshot()? {
                for plan in [SWEEP, PLAIN] {
                    self.checkpoint_if_possible(plan)?;
                    if self.fits(length, need) {
                        return Ok(());
                    }
                }
                while self.relocate_sparse()? {
                    if self.fits(length, need) {
                        return Ok(());
                    }
                }
            }
        }
        Err(Error::new(Kind::NoSpace, "the snapshot store is full")
            .at_path(self.device.path())
            .hint("delete snapshots with `ddsnap delete`, or use a larger store"))
    }

    /// Makes sure, without giving up any snapshot, that `bytes` of chunks can be preserved.
    ///
    /// # Errors
    /// `Kind::NoSpace`; nothing has changed then.
    pub fn ensure_room_for(&mut self, bytes: u64) -> Result<()> {
        self.ensure_sound()?;
        // Headers take a block for 64 chunks or more, and segments are not filled to their ends.
        let needed = bytes.saturating_add(bytes / 8);
        for plan in [SWEEP, PLAIN] {
            if self.room() >= needed {
                return Ok(());
            }
            self.checkpoint_if_possible(plan)?;
        }
        if self.room() >= needed {
            return Ok(());
        }
        Err(Error::new(
            Kind::NoSpace,
            format!(
                "preserving what is overwritten may take {needed} bytes, the store has room for {}",
                self.room()
            ),
        )
        .at_path(self.device.path())
        .hint("delete snapshots with `ddsnap delete`, or use a larger store"))
    }

    /// Bytes that copy-outs can take before anything has to be given up.
    fn room(&self) -> u64 {
        let state = &self.view.state;
        let spare = state.free_segments().saturating_sub(state.reserve());
        let segments = spare + state.chain.segments_ahead().len() as u64;
        (segments << state.sb.segment_bits) + state.chain.left_here(&state.sb)
    }

    /// A checkpoint, unless even the reserve cannot hold one: then the log goes on with what it has.
    fn checkpoint_if_possible(&mut self, plan: Plan) -> Result<()> {
        let state = &self.view.state;
        let size = u64::from(state.sb.segment_size());
        let tables = state.metadata_bytes() + (state.memory.len() as u64) * 48;
        let usable = state.free_segments()
            + state.segments.values().filter(|segment| segment.role == Role::Emptied).count() as u64;
        if usable < 2 + tables.div_ceil(size) {
            return Ok(());
        }
        self.checkpoint(plan)
    }

    /// Moves the live chunks of the sparsest segments to the log, so that those segments can be freed.
    /// False if nothing can be gained.
    fn relocate_sparse(&mut self) -> Result<bool> {
        let state = &self.view.state;
        let size = u64::from(state.sb.segment_size());
        let promised = state.chain.segments_from_here();
        let mut sparse: Vec<(u64, u32)> = state
            .segments
            .iter()
            .filter(|(number, segment)| segment.role == Role::Log && !promised.contains(number))
            .map(|(number, segment)| (segment.live, *number))
            .filter(|(live, _)| *live < size / SPARSE_SHARE)
            .collect();
        sparse.sort_unstable();
        let mut live = 0;
        let chosen: Vec<u32> = sparse
            .into_iter()
            .take_while(|(bytes, _)| {
                live += bytes + 4 * u64::from(state.sb.block_size());
                live <= size + size / 4
            })
            .map(|(_, number)| number)
            .collect();
        if chosen.len() < 3 || state.free_segments() < 3 {
            return Ok(false);
        }
        self.checkpoint_if_possible(Plan { sweep: false, extra: 2 })?;
        for segment in chosen {
            match self.empty_segment(segment) {
                // What was moved until then is as good where it is now; giving up snapshots may go further.
                Err(error) if error.kind() == Kind::NoSpace => {
                    self.commit()?;
                    return Ok(false);
                }
                other => other?,
            }
        }
        self.commit()?;
        let before = self.view.state.free_segments();
        self.checkpoint_if_possible(SWEEP)?;
        self.checkpoint_if_possible(PLAIN)?;
        Ok(self.view.state.free_segments() > before || self.view.state.chain.segments_ahead().len() > 1)
    }

    /// Copies every chunk that the index still finds in `segment` to the log.
    fn empty_segment(&mut self, segment: u32) -> Result<()> {
        let sb = self.view.state.sb.clone();
        let start = sb.segment_address(segment);
        let end = start + u64::from(sb.segment_size());
        let mut at = start;
        while at < end {
            let record = match read_record(self.device.as_ref(), &sb, at) {
                Ok(record) => record,
                // A retired record was overwritten with zeroes; what follows it still counts.
                Err(error) if error.kind() == Kind::Damaged => {
                    at += self.block();
                    continue;
                }
                Err(error) => return Err(error),
            };
            at += record.length();
            self.move_record(&record)?;
        }
        Ok(())
    }

    fn move_record(&mut self, record: &Record) -> Result<()> {
        let located: Vec<(u64, Entry)> =
            record.located(self.view.state.sb.block_bits).map(|(address, entry)| (address, *entry)).collect();
        let mut entries = Vec::new();
        let mut data = Vec::new();
        for (address, entry) in located {
            let key = key_of(&entry);
            let word = data_address(record, address, &entry);
            let current = self.view.index().scan(key)?.next_entry()?;
            if current.is_none_or(|(found, value)| found != key || value.word != word) {
                continue;
            }
            let mut bytes = vec![0; entry.stored_length as usize];
            self.device.read_at(&mut bytes, address)?;
            // A chunk that fails its checksum moves as it is: reading it goes on to fail, as it must.
            bytes.resize(super::publish::padded(&self.view.state, bytes.len()), 0);
            data.extend_from_slice(&bytes);
            entries.push(entry);
        }
        if entries.is_empty() {
            return Ok(());
        }
        let length =
            Record::header_length(entries.len(), 0, self.view.state.sb.block_bits) + data.len() as u64;
        if !self.fits(length, Need::Reserve) {
            return Err(Error::new(Kind::NoSpace, "the snapshot store is full"));
        }
        let epoch = self.view.state.epoch;
        self.append(Draft { kind: RecordKind::Relocation, epoch, entries, body: Vec::new(), data })
    }

    /// Deletes or squashes the snapshot that the policy gives up first. False if there is none.
    fn give_up_a_snapshot(&mut self) -> Result<bool> {
        if self.keeps_snapshots {
            return Ok(false);
        }
        let state = &self.view.state;
        let pinned = state.operation.as_ref().map_or(0, |operation| operation.pinned);
        let candidates = |in_use: bool| {
            state
                .snapshots
                .values()
                .filter(|snapshot| !snapshot.hidden && !snapshot.squashed)
                .filter(|snapshot| snapshot.id != pinned && Some(snapshot.id) != self.writing)
                .filter(|snapshot| (snapshot.use_count > 0) == in_use)
                .min_by_key(|snapshot: &&Snapshot| (snapshot.priority, snapshot.id))
                .map(|snapshot| (snapshot.id, snapshot.tag))
        };
        if let Some((id, tag)) = candidates(false) {
            self.log_deletion(Epoch(id), true, false, format!("snapshot {tag} deleted: the store was full"))?;
            return Ok(true);
        }
        match candidates(true).filter(|_| state.volume.squash_when_full) {
            Some((id, tag)) => {
                let reason = format!("snapshot {tag} squashed: the store was full");
                self.log_deletion(Epoch(id), true, true, reason)?;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Sweeps when a good part of the index is known dead, so that the work is in proportion to what it frees.
    pub(super) fn sweep_if_due(&mut self) -> Result<()> {
        let state = &self.view.state;
        let total = state.run_entries() + state.memory.len() as u64;
        if state.unswept == 0 || state.unswept.saturating_mul(4) < total {
            return Ok(());
        }
        self.checkpoint_if_possible(SWEEP)
    }
}
