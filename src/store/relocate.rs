//! Emptying segments: what still lives in them moves to the log, so that they can be freed.

use super::publish::{Plan, padded};
use super::recover::read_record;
use super::room::{PLAIN, SWEEP};
use super::state::{State, data_address, key_of};
use super::writer::{Draft, Need, Writer};
use crate::error::{Error, Kind, Result};
use crate::format::checkpoint::Role;
use crate::format::record::{Entry, Record, RecordKind};
use crate::units::index;

/// A segment with fewer live bytes than this share of it is worth emptying.
const SPARSE_SHARE: u64 = 2;
/// Chunks of one relocation record, at most: its header stays small against the smallest segment.
const ENTRIES_MAX: usize = 256;

/// Live chunks on their way to the log.
#[derive(Default)]
struct Moving {
    entries: Vec<Entry>,
    data: Vec<u8>,
}

impl Writer {
    /// Empties the sparsest segments. False if nothing can be gained.
    pub(super) fn relocate_sparse(&mut self) -> Result<bool> {
        let state = &self.view.state;
        let size = u64::from(state.sb.segment_size());
        let mut sparse = movable(state, |_| true);
        sparse.retain(|(live, _)| *live < size / SPARSE_SHARE);
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
        if !self.empty_segments(&chosen)? {
            return Ok(false);
        }
        let before = self.view.state.free_segments();
        self.checkpoint_if_possible(SWEEP)?;
        self.checkpoint_if_possible(PLAIN)?;
        Ok(self.view.state.free_segments() > before || self.view.state.chain.segments_ahead().len() > 1)
    }

    /// Copies every chunk that the index still finds in `segments` to the log, durably. False if the log has no
    /// room for all of them: what was moved until then is as good where it is now.
    pub(super) fn empty_segments(&mut self, segments: &[u32]) -> Result<bool> {
        let mut moving = Moving::default();
        let outcome = segments
            .iter()
            .try_for_each(|segment| self.empty_segment(*segment, &mut moving))
            .and_then(|()| self.flush_moving(&mut moving));
        let whole = match outcome {
            Err(error) if error.kind() == Kind::NoSpace => false,
            other => other.map(|()| true)?,
        };
        self.commit()?;
        Ok(whole)
    }

    fn empty_segment(&mut self, segment: u32, moving: &mut Moving) -> Result<()> {
        let sb = self.view.state.sb.clone();
        let mut at = sb.segment_address(segment);
        let end = at + u64::from(sb.segment_size());
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
            self.move_record(&record, moving)?;
        }
        Ok(())
    }

    fn move_record(&mut self, record: &Record, moving: &mut Moving) -> Result<()> {
        let bits = self.view.state.sb.block_bits;
        for (address, entry) in record.located(bits) {
            let key = key_of(entry);
            let word = data_address(record, address, entry);
            let current = self.view.index().scan(key)?.next_entry()?;
            if current.is_none_or(|(found, value)| found != key || value.word != word) {
                continue;
            }
            let mut bytes = vec![0; entry.stored_length as usize];
            self.device.read_at(&mut bytes, address)?;
            // A chunk that fails its checksum moves as it is: reading it goes on to fail, as it must.
            bytes.resize(padded(&self.view.state, bytes.len()), 0);
            if !self.takes(moving, bytes.len()) {
                self.flush_moving(moving)?;
            }
            moving.data.extend_from_slice(&bytes);
            moving.entries.push(*entry);
        }
        Ok(())
    }

    /// True if one more chunk of `length` bytes can go into the same record: it fits where the log stands, or a
    /// new segment would not take it either.
    fn takes(&self, moving: &Moving, length: usize) -> bool {
        let state = &self.view.state;
        let record = |entries: usize, data: usize| {
            Record::header_length(entries, 0, state.sb.block_bits) + data as u64
        };
        let here = state.chain.left_here(&state.sb).saturating_sub(2 * self.block());
        let fits_one = here >= record(1, length);
        let room = if fits_one { here } else { u64::from(state.sb.segment_size()) };
        moving.entries.is_empty()
            || moving.entries.len() < ENTRIES_MAX
                && moving.data.len() + length <= batch_bytes(self)
                && record(moving.entries.len() + 1, moving.data.len() + length) <= room
    }

    fn flush_moving(&mut self, moving: &mut Moving) -> Result<()> {
        let Moving { entries, data } = std::mem::take(moving);
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
}

/// Segments of log that can be emptied, those with the fewest live bytes first: (live bytes, segment).
pub(super) fn movable(state: &State, chosen: impl Fn(u32) -> bool) -> Vec<(u64, u32)> {
    let promised = state.chain.segments_from_here();
    let mut found: Vec<(u64, u32)> = state
        .segments
        .iter()
        .filter(|(number, segment)| segment.role == Role::Log && !promised.contains(number))
        .map(|(number, segment)| (segment.live, *number))
        .filter(|(_, number)| chosen(*number))
        .collect();
    found.sort_unstable();
    found
}

/// Bytes of chunks in one relocation record, at most.
pub(super) fn batch_bytes(writer: &Writer) -> usize {
    let sb = &writer.view.state.sb;
    index(u64::from(sb.segment_size() / 4).clamp(u64::from(sb.chunk_size()), 1 << 20))
}
