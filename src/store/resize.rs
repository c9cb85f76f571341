//! A larger or smaller store.
//!
//! A larger one: the device first, then a checkpoint that knows more segments. A smaller one: everything beyond
//! the new end moves below it, a piece at a time, each step a store in its own right; then a checkpoint that
//! knows fewer segments; then the device. A crash in between leaves the old or the new store, whole.

use super::initialize::SEGMENTS_MIN;
use super::origin_size::Preserved;
use super::publish::Plan;
use super::relocate::{batch_bytes, movable};
use super::room::{PLAIN, SWEEP};
use super::state::State;
use super::writer::{Draft, Writer};
use crate::error::{Error, Kind, Result};
use crate::format::checkpoint::{PART_HEADER_SIZE, Role};
use crate::format::record::{Record, RecordKind};
use crate::format::superblock::{FIRST_SEGMENT, PARTS_MAX};
use crate::progress::Progress;
use crate::units::index;

/// Bytes that one segment in use adds to the tables, at most.
const ROW: u64 = 40;

/// What another size of a store takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StorePlan {
    /// Bytes that the store uses now.
    pub size_before: u64,
    /// Bytes that it will use: at most the size asked for, whole segments.
    pub size_after: u64,
    /// Bytes of chunks and index beyond the new end, to be moved.
    pub moved_bytes: u64,
    /// The smallest size that is sure to work as things are spread now; packing them closer may allow less.
    pub smallest_bytes: u64,
    /// The largest size that its tables can describe.
    pub largest_bytes: u64,
}

impl Writer {
    /// What giving the store `size` bytes would take, when it has taken in `more`.
    #[must_use]
    pub fn plan_store_size(&self, size: u64, more: Preserved) -> StorePlan {
        let state = &self.view.state;
        let (sb, segment) = (&state.sb, u64::from(state.sb.segment_size()));
        let segments = size.saturating_sub(FIRST_SEGMENT) / segment;
        let beyond = state.segments.iter().filter(|(number, _)| u64::from(**number) >= segments);
        StorePlan {
            size_before: sb.end(),
            size_after: FIRST_SEGMENT + segments * segment,
            moved_bytes: beyond.map(|(_, segment)| segment.live).sum(),
            smallest_bytes: FIRST_SEGMENT + self.segments_needed(more) * segment,
            largest_bytes: FIRST_SEGMENT + segments_possible(state) * segment,
        }
    }

    /// Gives the store `size` bytes. Durable when this returns; all snapshots keep what they hold, none is given
    /// up. Interrupted, the store has its old size.
    ///
    /// # Errors
    /// `Kind::Busy` while a long operation is pending; `Kind::NoSpace` if `size` is below the smallest or above
    /// the largest of [`Writer::plan_store_size`], `Kind::Mismatch` if the device has less: nothing has changed
    /// then.
    pub fn resize_store(&mut self, size: u64, progress: &dyn Progress) -> Result<StorePlan> {
        self.ensure_sound()?;
        self.ensure_idle()?;
        let mut plan = self.plan_store_size(size, Preserved::default());
        let state = &self.view.state;
        let segments = u32::try_from((plan.size_after - FIRST_SEGMENT) >> state.sb.segment_bits);
        let segments = segments.unwrap_or(u32::MAX);
        if segments < state.sb.segments {
            if size < plan.smallest_bytes {
                // What is known dead may be in the way, and what lives may be packed closer.
                self.checkpoint(SWEEP)?;
                self.checkpoint(PLAIN)?;
                while self.plan_store_size(size, Preserved::default()).smallest_bytes > size
                    && self.gather()?
                {
                    progress.check()?;
                }
                plan = self.plan_store_size(size, Preserved::default());
            }
            self.ensure_possible(size, &plan)?;
            progress.stage("move", Some(plan.moved_bytes));
            let outcome = self.sparing(|writer| writer.shrink_to(segments, progress));
            self.view.state.limit = self.view.state.sb.segments;
            outcome?;
        } else {
            self.ensure_possible(size, &plan)?;
            let more = segments > state.sb.segments;
            if self.device.size() < size {
                self.device.set_size(size).map_err(|error| match error.kind() {
                    Kind::Mismatch => error.hint("make the device larger first"),
                    _ => error,
                })?;
                self.device.flush()?;
            }
            if more {
                self.publish_segments(segments)?;
            }
        }
        if self.device.size() > size {
            match self.device.set_size(size) {
                // A device is cut by its owner, if at all.
                Err(error) if error.kind() == Kind::Mismatch => {}
                other => other.and_then(|()| self.device.flush())?,
            }
        }
        Ok(plan)
    }

    fn ensure_possible(&self, size: u64, plan: &StorePlan) -> Result<()> {
        let what = if plan.size_after < plan.size_before && size < plan.smallest_bytes {
            format!("{size} bytes are too few: what it holds needs {}", plan.smallest_bytes)
        } else if plan.size_after > plan.largest_bytes {
            format!("{size} bytes are too many: its tables can describe {}", plan.largest_bytes)
        } else {
            return Ok(());
        };
        let error = Error::new(Kind::NoSpace, what).at_path(self.device.path());
        Err(match plan.size_after < plan.size_before {
            true => error.hint("delete snapshots first, or take that size"),
            false => error.hint("a new store of that size takes larger segments"),
        })
    }

    /// The fewest segments that what lies beyond them is sure to find room in, as things are spread now.
    fn segments_needed(&self, more: Preserved) -> u64 {
        let state = &self.view.state;
        let memory = state.memory.iter().filter(|(key, _)| key.class != 2);
        let mut beyond = more.cost() + memory.map(|(_, value)| state.cost(value)).sum::<u64>();
        let index_bytes = state.metadata_bytes() + (state.memory.len() as u64 + more.chunks) * 64;
        let keep = RESERVE_SEGMENTS + 3 * index_bytes.div_ceil(u64::from(state.sb.segment_size()));
        let mut segments = u64::from(state.sb.segments);
        let mut free = segments.saturating_sub(state.segments.len() as u64);
        let mut used = state.segments.iter().rev().peekable();
        while segments > SEGMENTS_MIN {
            match used.next_if(|(number, _)| u64::from(**number) + 1 == segments) {
                Some((_, segment)) if segment.role == Role::Log => beyond += segment.live,
                Some(_) => {}
                None => free = free.saturating_sub(1),
            }
            if free < keep + self.packed(beyond) {
                break;
            }
            segments -= 1;
        }
        segments
    }

    /// Segments that `live` bytes of chunks take when they are moved.
    fn packed(&self, live: u64) -> u64 {
        let state = &self.view.state;
        let (segment, block) = (u64::from(state.sb.segment_size()), self.block());
        // A record holds a batch; behind the last one of a segment less than a chunk and its header is left over.
        let batch = batch_bytes(self) as u64;
        let header = Record::header_length(index(batch / block), 0, state.sb.block_bits);
        let usable = segment - u64::from(state.sb.chunk_size()) - 4 * block;
        (live.saturating_mul(batch + header) / batch).div_ceil(usable)
    }

    /// Packs the sparsest segments together. False if that frees none.
    fn gather(&mut self) -> Result<bool> {
        let before = self.view.state.free_segments();
        let sparse = movable(&self.view.state, |_| true);
        Ok(self.empty_into_free(&sparse)? && self.view.state.free_segments() > before)
    }

    /// Moves everything to the segments below `segments`, then publishes a store of so many.
    fn shrink_to(&mut self, segments: u32, progress: &dyn Progress) -> Result<()> {
        self.view.state.limit = segments;
        self.leave_segment(segments)?;
        // Each round frees at least one segment; the bound only guards against a mistake.
        for _ in 0..2 * u64::from(self.view.state.sb.segments) {
            progress.check()?;
            if self.view.state.segments.range(segments..).next().is_none() {
                self.forget_beyond(segments)?;
                return self.publish_segments(segments);
            }
            let before = self.live_beyond(segments);
            let beyond = movable(&self.view.state, |number| number >= segments);
            if beyond.is_empty() {
                // Only index is left, which a sweep writes anew below the limit, and what is empty already.
                for plan in [SWEEP, PLAIN] {
                    self.checkpoint(plan)?;
                }
            } else if !self.empty_into_free(&beyond)? {
                break;
            }
            progress.advance(before.saturating_sub(self.live_beyond(segments)));
        }
        Err(Error::new(Kind::NoSpace, "the store has too little room to move things in; it has its old size")
            .at_path(self.device.path()))
    }

    fn live_beyond(&self, segments: u32) -> u64 {
        self.view.state.segments.range(segments..).map(|(_, segment)| segment.live).sum()
    }

    /// Empties as many of `candidates` (live bytes, segment), in their order, as free segments can take. False
    /// if that is none.
    fn empty_into_free(&mut self, candidates: &[(u64, u32)]) -> Result<bool> {
        let state = &self.view.state;
        let keep = 3 + 2 * state.metadata_bytes().div_ceil(u64::from(state.sb.segment_size()));
        let room = state.free_segments().saturating_sub(keep).min(STEP_SEGMENTS);
        let mut live = 0;
        let chosen: Vec<u32> = candidates
            .iter()
            .take_while(|(bytes, _)| {
                live += bytes;
                self.packed(live) <= room
            })
            .map(|(_, number)| *number)
            .collect();
        if chosen.is_empty() {
            return Ok(false);
        }
        self.checkpoint(Plan { sweep: false, extra: room })?;
        let whole = self.empty_segments(&chosen)?;
        for plan in [SWEEP, PLAIN] {
            self.checkpoint(plan)?;
        }
        Ok(whole)
    }

    /// Lets the log go on below the limit if it stands beyond.
    fn leave_segment(&mut self, segments: u32) -> Result<()> {
        let here = |state: &State| state.chain.promised.get(state.chain.at).copied().unwrap_or(0);
        if here(&self.view.state) < segments {
            return Ok(());
        }
        self.checkpoint(Plan { sweep: false, extra: 2 })?;
        let epoch = self.view.state.epoch;
        if self.view.state.chain.left_here(&self.view.state.sb) >= 2 * self.block() {
            self.append(Draft::plain(RecordKind::Skip, epoch, Vec::new()))?;
        }
        // The first record below; it says what is known already.
        let volume = self.view.state.volume.clone();
        self.log_volume(&volume)
    }

    /// Makes what made the present snapshots unrecognisable where it lies beyond the new end: were the store made
    /// larger again, a rescue could take it for a snapshot that was deleted meanwhile. The checkpoint knows them.
    fn forget_beyond(&mut self, segments: u32) -> Result<()> {
        let end = self.view.state.sb.segment_address(segments);
        let zeroes = vec![0; self.view.state.sb.block_size() as usize];
        for snapshot in self.view.state.snapshots.values().filter(|snapshot| snapshot.created_at >= end) {
            self.device.write_at(&zeroes, snapshot.created_at)?;
        }
        self.device.flush()
    }

    fn publish_segments(&mut self, segments: u32) -> Result<()> {
        self.checkpoint_with(PLAIN, |state| {
            state.sb.segments = segments;
            state.limit = segments;
            let end = state.sb.end();
            for snapshot in state.snapshots.values_mut().filter(|snapshot| snapshot.created_at >= end) {
                snapshot.created_at = 0;
            }
        })
    }
}

/// Segments kept free besides what lives and three times the index: the reserve, open ends of both streams, the
/// log ahead, and a few to move things in.
const RESERVE_SEGMENTS: u64 = 16;
/// Segments filled between two checkpoints of a move, at most.
const STEP_SEGMENTS: u64 = 16;

/// Segments that the tables can describe when all are in use.
fn segments_possible(state: &State) -> u64 {
    let part = u64::from(state.sb.segment_size()) / 2 - PART_HEADER_SIZE as u64;
    let fixed = state.to_checkpoint().encode().len() as u64 + (64 << 10);
    let rows = (PARTS_MAX as u64 * part).saturating_sub(fixed) / ROW;
    rows.max(u64::from(state.sb.segments)).min(u64::from(u32::MAX))
}
