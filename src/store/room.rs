//! Making room: checkpoints, sweeps, and what happens when the store is full.

use super::publish::Plan;
use super::state::State;
use super::writer::{LOG_RESERVE_BLOCKS, Need, Writer};
use crate::error::{Error, Kind, Result};
use crate::format::table::Snapshot;
use crate::units::Epoch;

/// Records between two checkpoints, at most: bounds the time of a replay.
const INTERVAL_RECORDS: u64 = 4096;
/// Bytes of index for a chunk: its entry, its part in a page of change bits, and the ends of blocks.
pub(super) const INDEX_BYTES: u64 = 64;
/// Blocks that records of chunks may need for more headers than full ones would.
const WASTED_BLOCKS: u64 = 8;
/// Index entries between two checkpoints, at most: bounds the memory table.
const INTERVAL_ENTRIES: usize = 64 << 10;

pub(super) const SWEEP: Plan = Plan { sweep: true, extra: 0 };
pub(super) const PLAIN: Plan = Plan { sweep: false, extra: 0 };
/// What frees space without giving anything up; emptied segments become usable one checkpoint later, hence twice.
pub(super) const STEPS: [Plan; 4] = [PLAIN, PLAIN, SWEEP, PLAIN];

impl Writer {
    /// Makes sure that a record of `length` bytes fits; with `Need::Ordinary` by all means that the store's
    /// policy allows.
    pub(super) fn ensure_space(&mut self, length: u64, need: Need) -> Result<()> {
        let state = &self.view.state;
        let entries_max = entries_max(state);
        let due = state.log_records >= INTERVAL_RECORDS || state.memory.len() >= entries_max;
        if due && !self.attended {
            self.checkpoint_if_possible(PLAIN)?;
        }
        for plan in STEPS {
            if self.fits(length, need) {
                return Ok(());
            }
            self.checkpoint_if_possible(plan)?;
        }
        self.force_space(length, need)
    }

    /// As [`Writer::ensure_space`], when checkpoints and sweeps have given all they can.
    pub(super) fn force_space(&mut self, length: u64, need: Need) -> Result<()> {
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
            // Who only reads gives way before any snapshot is given up.
            if self.pins.revoke() {
                for plan in [PLAIN, PLAIN] {
                    self.checkpoint_if_possible(plan)?;
                    if self.fits(length, need) {
                        return Ok(());
                    }
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
        let needed = bytes;
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
    pub(super) fn room(&self) -> u64 {
        let state = &self.view.state;
        let spare = state.free_segments().saturating_sub(state.reserve());
        let segments = spare + state.chain.segments_ahead().len() as u64;
        // A log that ends inside a segment, and what a commit leaves there, cost one of them.
        let whole = segments.saturating_sub(2) * self.chunks_of_a_segment();
        // The index takes its part, and as much again in the reserve for being merged.
        let share = u64::from(state.sb.segment_size());
        let indexed = whole * share / (share + 3 * INDEX_BYTES * self.chunks_of_a_segment());
        indexed << state.sb.chunk_bits
    }

    /// A checkpoint, unless even the reserve cannot hold one: then the log goes on with what it has.
    pub(super) fn checkpoint_if_possible(&mut self, plan: Plan) -> Result<()> {
        if !self.can_checkpoint() {
            return Ok(());
        }
        self.checkpoint(plan)
    }

    /// False if even the reserve cannot hold a checkpoint.
    pub(super) fn can_checkpoint(&self) -> bool {
        let state = &self.view.state;
        let size = u64::from(state.sb.segment_size());
        let tables = state.metadata_bytes() + (state.memory.len() as u64) * 48;
        let emptied = state.releasable(self.pins.oldest()).count() as u64;
        state.free_segments() + emptied >= 2 + tables.div_ceil(size)
    }

    /// True if a record of `length` bytes fits and the log is not far beyond the bounds of a replay.
    pub(super) fn accepts(&self, length: u64, need: Need) -> bool {
        let state = &self.view.state;
        let overdue =
            state.log_records >= 2 * INTERVAL_RECORDS || state.memory.len() >= 2 * entries_max(state);
        !overdue && self.fits(length, need)
    }

    /// How many chunks the promised log surely takes: what ordinary commits leave alone is left, and what a few records
    /// that end early waste.
    pub(super) fn room_in_log(&self) -> u64 {
        let state = &self.view.state;
        if state.log_records >= 2 * INTERVAL_RECORDS {
            return 0;
        }
        let segments = state.chain.segments_ahead().len() as u64;
        let chunks =
            self.chunks_within(state.chain.left_here(&state.sb)) + segments * self.chunks_of_a_segment();
        let kept = (LOG_RESERVE_BLOCKS + WASTED_BLOCKS) * self.block();
        // Each may add an entry, and one for a page of changes.
        let entries = (2 * entries_max(state)).saturating_sub(state.memory.len()) as u64 / 2;
        chunks.saturating_sub(kept.div_ceil(u64::from(state.sb.chunk_size()))).min(entries)
    }

    /// The checkpoint that is due, if one is: half of the promised log is used, so that it is made before the rest is.
    pub(super) fn due(&self) -> Option<Plan> {
        let state = &self.view.state;
        let ahead = state.chain.segments_ahead().len();
        let log = state.log_records >= INTERVAL_RECORDS || state.chain.at > 0 && state.chain.at >= ahead;
        match (self.sweep_is_due(), log || state.memory.len() >= entries_max(state)) {
            (true, _) => Some(SWEEP),
            (false, true) => Some(PLAIN),
            (false, false) => None,
        }
    }

    /// Deletes or squashes the snapshot that the policy gives up first. False if there is none.
    fn give_up_a_snapshot(&mut self) -> Result<bool> {
        if let Some(id) = self.frozen().first() {
            self.log_deletion(Epoch(*id), false, false, String::new())?;
            return Ok(true);
        }
        if self.keeps_snapshots || self.attended && self.view.state.operation.is_some() {
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
                .filter(|snapshot| !self.users.uses(snapshot.id))
                .filter(|snapshot| snapshot.in_use() == in_use && snapshot.holds.is_empty())
                .min_by_key(|snapshot: &&Snapshot| (snapshot.priority, snapshot.id))
                .map(|snapshot| (snapshot.id, snapshot.tag))
        };
        if let Some((id, tag)) = candidates(false) {
            self.log_deletion(Epoch(id), true, false, format!("snapshot {tag} deleted: the store was full"))?;
            return Ok(true);
        }
        // A hold is a promise to somebody else; a use count may be given up if the policy says so.
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
        if self.attended || !self.sweep_is_due() {
            return Ok(());
        }
        self.checkpoint_if_possible(SWEEP)
    }

    fn sweep_is_due(&self) -> bool {
        let state = &self.view.state;
        let total = state.run_entries() + state.memory.len() as u64;
        state.unswept > 0 && state.unswept.saturating_mul(4) >= total
    }
}

fn entries_max(state: &State) -> usize {
    INTERVAL_ENTRIES.min(state.sb.segment_size() as usize / 64)
}
