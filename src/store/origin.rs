//! Writing the origin and snapshots: copy out first, commit, then change.

use super::state::{State, bit};
use super::writer::{Draft, Need, Writer};
use crate::error::{Error, Kind, Result};
use crate::format::record::{ENTRY_SIZE, Encoding, Entry, EntryClass, HEADER_SIZE, Record, RecordKind, pad};
use crate::format::run::{Key, PAGE_BITS};
use crate::units::{Epoch, index};

/// Bytes of chunks in one record, at most; a single chunk may be all of it.
const RECORD_BYTES_MAX: u64 = 2 << 20;

/// True if every byte of `bytes` is zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_le_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// What must be known to preserve chunks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    chunk_bits: u32,
    block_bits: u32,
    origin_size: u64,
}

impl Geometry {
    /// As `state` has it.
    pub fn of(state: &State) -> Self {
        let (sb, origin_size) = (&state.sb, state.volume.origin_size);
        Self { chunk_bits: sb.chunk_bits, block_bits: sb.block_bits, origin_size }
    }

    /// Reads `chunks` (ascending) of `origin` and makes the entries that preserve them for `epoch`, and their data,
    /// each padded to the block size.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn copy_out(
        self,
        origin: &dyn crate::block::WriteAt,
        chunks: &[u64],
        epoch: u64,
    ) -> Result<(Vec<Entry>, Vec<u8>)> {
        let mut entries = Vec::with_capacity(chunks.len());
        let mut data = Vec::new();
        let runs = || {
            chunks.chunk_by(|a, b| a + 1 == *b).filter_map(|run| {
                let (first, last) = (run.first()?, run.last()?);
                Some((run, first << self.chunk_bits..((last + 1) << self.chunk_bits).min(self.origin_size)))
            })
        };
        if runs().nth(1).is_some() {
            origin.will_read(&runs().map(|(_, range)| range).collect::<Vec<_>>());
        }
        for (run, range) in runs() {
            let mut old = vec![0; index(range.end - range.start)];
            origin.read_at(&mut old, range.start)?;
            for (chunk, bytes) in run.iter().zip(old.chunks(1 << self.chunk_bits)) {
                entries.push(self.encode((*chunk, epoch), EntryClass::Exception, bytes, &mut data));
            }
        }
        Ok((entries, data))
    }

    /// Appends the stored form of `bytes` to `data` and returns the entry of `chunk` that belongs to `owner`.
    pub fn encode(
        self,
        (chunk, owner): (u64, u64),
        class: EntryClass,
        bytes: &[u8],
        data: &mut Vec<u8>,
    ) -> Entry {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let zeroes = is_zero(bytes);
        if !zeroes {
            data.extend_from_slice(bytes);
            data.resize(index(pad(data.len() as u64, self.block_bits)), 0);
        }
        Entry {
            chunk,
            owner,
            sequence: 0,
            crc: crc32fast::hash(bytes),
            raw_length: length,
            stored_length: if zeroes { 0 } else { length },
            encoding: if zeroes { Encoding::Zeroes } else { Encoding::Raw },
            class,
        }
    }
}

impl Writer {
    pub(super) fn need_origin(&self) -> Result<&dyn crate::block::WriteAt> {
        self.origin.as_deref().ok_or_else(|| {
            Error::new(Kind::NotFound, "the origin is needed and was not given").hint("name it with --origin")
        })
    }

    /// Writes `data` at byte `offset` of the origin, copying out first what snapshots need. Any length and
    /// alignment inside the origin; pass large pieces (1 MiB and more): each call is at least one commit.
    ///
    /// # Errors
    /// `Kind::NoSpace` (the origin is unchanged by the failing commit), `Kind::Io`.
    pub fn write_origin(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.write_origin_many(&[(offset, data)])
    }

    /// Writes several pieces, each given by its byte offset and its data, with one commit for all of them:
    /// scattered small changes cost one flush of the store together. Written in the order given; a later piece
    /// wins where two overlap.
    ///
    /// # Errors
    /// As [`Writer::write_origin`]; a piece outside the origin fails all of them before anything is changed.
    pub fn write_origin_many(&mut self, pieces: &[(u64, &[u8])]) -> Result<()> {
        self.ensure_sound()?;
        self.need_origin()?;
        let size = self.view.state.volume.origin_size;
        let mut ranges = Vec::with_capacity(pieces.len());
        for (offset, data) in pieces {
            let end = offset.checked_add(data.len() as u64).filter(|end| *end <= size).ok_or_else(|| {
                Error::new(
                    Kind::Usage,
                    format!("{} bytes at {offset} end past the origin's {size} bytes", data.len()),
                )
            })?;
            if !data.is_empty() {
                ranges.push((*offset, end));
            }
        }
        if ranges.is_empty() {
            return Ok(());
        }
        self.touch_origin(Need::Ordinary)?;
        self.copy_out(&ranges)?;
        // Not only what this call appended: one that failed may have left records behind it, and
        // the chunks they preserve are not copied out again.
        if self.view.state.durable < self.view.state.chain.position.sequence {
            self.commit()?;
        }
        self.origin_dirty = true;
        let origin = self.need_origin()?;
        pieces
            .iter()
            .filter(|(_, data)| !data.is_empty())
            .try_for_each(|(at, data)| origin.write_at(data, *at))
    }

    /// Records, before the first write of this session, that the origin is no longer what it was.
    pub(super) fn touch_origin(&mut self, need: Need) -> Result<()> {
        if self.origin_touched {
            return Ok(());
        }
        let mut volume = self.view.state.volume.clone();
        volume.generation += 1;
        volume.equals = None;
        let mut body = Vec::new();
        volume.encode(&mut body);
        let length = Record::header_length(0, body.len(), self.view.state.sb.block_bits);
        self.ensure_space(length, need)?;
        let epoch = self.view.state.epoch;
        self.append(Draft::plain(RecordKind::Volume, epoch, body))?;
        self.origin_touched = true;
        self.touched_at = self.view.state.chain.position.sequence;
        Ok(())
    }

    /// Appends records that preserve every chunk of the byte `ranges` that some snapshot still has from the
    /// origin.
    pub(super) fn copy_out(&mut self, ranges: &[(u64, u64)]) -> Result<()> {
        let bits = self.view.state.sb.chunk_bits;
        let mut needed = Vec::new();
        for (offset, end) in ranges {
            for chunk in offset >> bits..=(end - 1) >> bits {
                if self.needs_copy(chunk)? {
                    needed.push(chunk);
                }
            }
        }
        // Two pieces may touch one chunk, and long runs are read at once.
        needed.sort_unstable();
        needed.dedup();
        let mut rest = needed.as_slice();
        while !rest.is_empty() {
            let (chunks, after) = rest.split_at(self.record_chunks().min(rest.len()));
            self.copy_out_batch(chunks)?;
            rest = after;
        }
        Ok(())
    }

    /// How many chunks the next record should hold, at least 1: as many entries as fill a block, inside 2 MiB and half
    /// a segment, and cut where the current segment ends. What is left there is lost: records of a MiB that are not
    /// cut waste a quarter of segments of 4 MiB.
    pub(super) fn record_chunks(&self) -> usize {
        let state = &self.view.state;
        let left = self.chunks_in(state.chain.left_here(&state.sb));
        index(if left == 0 { self.record_chunks_max() } else { left })
    }

    fn record_chunks_max(&self) -> u64 {
        let sb = &self.view.state.sb;
        let entries = (self.block() - HEADER_SIZE as u64) / ENTRY_SIZE as u64;
        entries.min((u64::from(sb.segment_size() / 2).min(RECORD_BYTES_MAX) >> sb.chunk_bits).max(1))
    }

    /// How many chunks one record takes of `left` bytes of a segment: one block is for its header, and one for that
    /// of a session's first record.
    fn chunks_in(&self, left: u64) -> u64 {
        (left.saturating_sub(2 * self.block()) >> self.view.state.sb.chunk_bits).min(self.record_chunks_max())
    }

    /// How many chunks a whole segment takes.
    pub(super) fn chunks_of_a_segment(&self) -> u64 {
        self.chunks_within(u64::from(self.view.state.sb.segment_size()))
    }

    /// How many chunks `left` bytes of a segment take.
    pub(super) fn chunks_within(&self, mut left: u64) -> u64 {
        let mut total = 0;
        while let count @ 1.. = self.chunks_in(left) {
            total += count;
            left = left.saturating_sub(self.block() + (count << self.view.state.sb.chunk_bits));
        }
        total
    }

    /// True if the newest live snapshot still has `chunk` from the origin.
    pub(super) fn needs_copy(&self, chunk: u64) -> Result<bool> {
        let Some(newest) = self.view.state.newest_live() else { return Ok(false) };
        if let Some(copied) = self.copied.get(chunk) {
            return Ok(!copied);
        }
        let page = chunk >> PAGE_BITS;
        // Epochs since the newest live snapshot: its own, those of younger deleted ones, and the current one.
        let now = self.view.state.epoch;
        let younger = self.view.state.graves.range(newest + 1..).map(|(id, _)| *id).filter(|id| *id < now);
        let mut epochs: Vec<u64> = std::iter::once(newest).chain(younger).collect();
        if now > newest {
            epochs.push(now);
        }
        let mut bits = 0;
        for epoch in epochs {
            let key = Key::changes(epoch, page);
            if let Some((found, value)) = self.view.index().scan(key)?.next_entry()?
                && found == key
            {
                bits |= value.bits();
            }
        }
        self.copied.put(page, bits);
        Ok(bits & bit(chunk) == 0)
    }

    fn copy_out_batch(&mut self, chunks: &[u64]) -> Result<()> {
        let state = &self.view.state;
        let geometry = Geometry::of(state);
        let (entries, data) = geometry.copy_out(self.need_origin()?, chunks, state.epoch)?;
        self.append_chunks(RecordKind::CopyOut, entries, data)?;
        chunks.iter().for_each(|chunk| self.copied.mark(*chunk));
        Ok(())
    }

    pub(super) fn append_chunks(
        &mut self,
        kind: RecordKind,
        entries: Vec<Entry>,
        data: Vec<u8>,
    ) -> Result<()> {
        let bits = self.view.state.sb.block_bits;
        let length = Record::header_length(entries.len(), 0, bits) + data.len() as u64;
        self.ensure_space(length, Need::Ordinary)?;
        let epoch = self.view.state.epoch;
        self.append(Draft { kind, epoch, entries, body: Vec::new(), data })
    }

    /// Writes `data` at byte `offset` of a snapshot.
    ///
    /// # Errors
    /// `Kind::NotFound`, `Kind::NoSpace`, `Kind::Io`.
    pub fn write_snapshot(&mut self, id: Epoch, offset: u64, data: &[u8]) -> Result<()> {
        self.ensure_sound()?;
        let size = self.view.endpoint(id)?.size_bytes;
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= size).ok_or_else(|| {
            Error::new(
                Kind::Usage,
                format!("{} bytes at {offset} end past the snapshot's {size} bytes", data.len()),
            )
        })?;
        if data.is_empty() {
            return Ok(());
        }
        self.writing = Some(id.0);
        let outcome = self.write_overlay(id, offset, end, data);
        self.writing = None;
        outcome
    }

    fn write_overlay(&mut self, id: Epoch, offset: u64, end: u64, data: &[u8]) -> Result<()> {
        self.touch_snapshot(id)?;
        let size = self.view.endpoint(id)?.size_bytes;
        let geometry = Geometry::of(&self.view.state);
        let chunk_size = u64::from(self.view.state.sb.chunk_size());
        let chunks: Vec<u64> = (offset / chunk_size..=(end - 1) / chunk_size).collect();
        let mut rest = chunks.as_slice();
        while !rest.is_empty() {
            let (chunks, after) = rest.split_at(self.record_chunks().min(rest.len()));
            rest = after;
            let mut entries = Vec::with_capacity(chunks.len());
            let mut stored = Vec::new();
            for chunk in chunks {
                let start = chunk * chunk_size;
                let mut bytes = vec![0; index((start + chunk_size).min(size) - start)];
                let (from, to) = (offset.max(start), end.min(start + bytes.len() as u64));
                if from > start || to < start + bytes.len() as u64 {
                    crate::point::PointSource::read(
                        &self.view,
                        crate::point::PointId::Snapshot(id),
                        start,
                        &mut bytes,
                    )?;
                }
                bytes[index(from - start)..index(to - start)]
                    .copy_from_slice(&data[index(from - offset)..index(to - offset)]);
                entries.push(geometry.encode((*chunk, id.0), EntryClass::Overlay, &bytes, &mut stored));
            }
            self.append_chunks(RecordKind::SnapshotWrite, entries, stored)?;
        }
        self.commit()
    }

    /// Gives a snapshot a new content generation at its first write in this session.
    fn touch_snapshot(&mut self, id: Epoch) -> Result<()> {
        if self.touched_snapshots.contains(&id.0) {
            return Ok(());
        }
        let mut snapshot = self.view.endpoint(id)?.clone();
        snapshot.generation += 1;
        self.log_attributes(&snapshot)?;
        self.touched_snapshots.insert(id.0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::faulty::{Faulty, Operation};
    use crate::block::memory::Memory;
    use crate::point::{PointId, PointSource};
    use crate::store::InitOptions;
    use crate::units::Tag;
    use std::sync::Arc;

    const ORIGIN: u64 = 4 << 20;

    fn store() -> (Arc<Faulty<Memory>>, Arc<Faulty<Memory>>, Writer) {
        let device = Arc::new(Faulty::new(Memory::new(2560 << 10)));
        let store: Arc<dyn crate::block::WriteAt> = Arc::clone(&device) as _;
        let options = InitOptions {
            chunk_size: 4096,
            block_size: 4096,
            origin_path: "/origin".into(),
            origin_size: ORIGIN,
            now_secs: 1,
        };
        Writer::initialize(&store, &options).unwrap();
        let origin = Arc::new(Faulty::new(Memory::from_bytes(&vec![1; index(ORIGIN)])));
        let writer = Writer::open(store, Some(Arc::clone(&origin) as _), 1).unwrap();
        (device, origin, writer)
    }

    #[test]
    fn what_a_failed_write_left_uncommitted_is_committed_before_it_is_relied_on() {
        let (device, origin, mut writer) = store();
        let id = writer.create_snapshot(Tag(1), None).unwrap().id;
        // The first records of this write are appended, then the origin cannot be read.
        origin.fail_nth(Operation::Read, origin.count(Operation::Read) + 2, Kind::Io);
        assert_eq!(writer.write_origin(0, &[2; 256 << 10]).unwrap_err().kind(), Kind::Io);
        let before = device.count(Operation::Flush);
        writer.write_origin(0, &[3; 4096]).unwrap();
        assert_eq!(device.count(Operation::Flush), before + 1);
        let mut bytes = [0; 4096];
        writer.view().read(PointId::Snapshot(id), 0, &mut bytes).unwrap();
        assert_eq!(bytes, [1; 4096]);
    }

    #[test]
    fn records_fill_their_segments_to_the_end() {
        let device: Arc<dyn crate::block::WriteAt> = Arc::new(Memory::new(64 << 20));
        let options = InitOptions {
            chunk_size: 16384,
            block_size: 4096,
            origin_path: "/origin".into(),
            origin_size: 4 * ORIGIN,
            now_secs: 1,
        };
        Writer::initialize(&device, &options).unwrap();
        let origin = Arc::new(Memory::from_bytes(&vec![1; index(4 * ORIGIN)]));
        let mut writer = Writer::open(device, Some(origin), 1).unwrap();
        writer.create_snapshot(Tag(1), None).unwrap();
        for number in 0..16 {
            writer.write_origin(number << 20, &vec![2; 1 << 20]).unwrap();
        }
        let info = writer.view().info();
        let log = writer.view.state.segments.values().filter(|segment| segment.live > 0).count() as u64;
        let used = log * u64::from(info.segment_size);
        // 16 MiB of chunks, a header block for 30 of them at most, ends of segments too short for one more.
        assert!(used < 4 * ORIGIN * 108 / 100, "{used} bytes of segments of {}", info.segment_size);
    }

    #[test]
    fn pieces_that_share_a_chunk_preserve_it_once() {
        let (device, _, mut writer) = store();
        let id = writer.create_snapshot(Tag(1), None).unwrap().id;
        let before = device.count(Operation::Flush);
        writer.write_origin_many(&[(9000, &[2; 10]), (100, &[3; 5000]), (9005, &[4; 10]), (0, &[])]).unwrap();
        assert_eq!(device.count(Operation::Flush) - before, 1);
        let mut bytes = [0; 12288];
        writer.view().read(PointId::Snapshot(id), 0, &mut bytes).unwrap();
        assert_eq!(bytes, [1; 12288]);
        writer.view().read(PointId::Origin, 9000, &mut bytes[..15]).unwrap();
        assert_eq!(bytes[..15], [2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4]);
        assert_eq!(writer.view().sharing().unwrap()[0].shared_by, [3]);
        let outside = writer.write_origin_many(&[(0, &[9; 10]), (ORIGIN - 1, &[9; 2])]).unwrap_err();
        assert_eq!(outside.kind(), Kind::Usage);
        writer.view().read(PointId::Origin, 0, &mut bytes[..1]).unwrap();
        assert_eq!(bytes[0], 1);
    }
}
