//! Index runs are written once, then merged: the only place where dead entries leave and space is freed.

use super::changes::Index;
use super::index::{BlockReader, Loose, MemTable, Scan};
use super::space::Stream;
use super::state::{Liveness, State};
use crate::block::WriteAt;
use crate::error::Result;
use crate::format::checkpoint::{Piece, Run};
use crate::format::run::{self, BLOCK_SIZE, ENTRIES_PER_BLOCK, IndexEntry, Key, PIECE_BLOCKS_MAX, Value};
use std::collections::BTreeMap;

/// A run that is this much larger than the newer ones together is left alone by ordinary merges.
const TIER_RATIO: u64 = 4;

/// Writes a run piece by piece.
struct RunBuilder<'a> {
    device: &'a dyn WriteAt,
    run: Run,
    position: u64,
    blocks_max: usize,
    /// The piece as it will lie there, room for its directory first.
    bytes: Vec<u8>,
    directory: Vec<(Key, u32)>,
    entries: Vec<IndexEntry>,
    piece_entries: u32,
}

impl<'a> RunBuilder<'a> {
    fn new(device: &'a dyn WriteAt, state: &mut State) -> Self {
        let number = state.take_run_number();
        Self::numbered(device, state, number)
    }

    fn numbered(device: &'a dyn WriteAt, state: &State, number: u64) -> Self {
        let run = Run { number, entries: 0, from: Key::MIN, pieces: Vec::new() };
        let half = state.sb.segment_size() as usize / BLOCK_SIZE / 2;
        Self {
            device,
            run,
            position: 0,
            blocks_max: PIECE_BLOCKS_MAX.min(half - 1),
            bytes: Vec::new(),
            directory: Vec::new(),
            entries: Vec::with_capacity(ENTRIES_PER_BLOCK),
            piece_entries: 0,
        }
    }

    fn push(&mut self, state: &mut State, entry: IndexEntry) -> Result<()> {
        self.entries.push(entry);
        self.run.entries += 1;
        if self.entries.len() == ENTRIES_PER_BLOCK {
            self.end_block(state)?;
        }
        Ok(())
    }

    fn end_block(&mut self, state: &mut State) -> Result<()> {
        let Some((first, _)) = self.entries.first() else { return Ok(()) };
        let number = self.directory.len() as u64 + 1;
        let block = run::encode_block(self.run.number, self.position + number, &self.entries);
        self.directory.push((*first, run::block_crc(&block)));
        if self.bytes.is_empty() {
            self.bytes.resize(BLOCK_SIZE, 0);
        }
        self.bytes.extend_from_slice(&block);
        self.piece_entries += u32::try_from(self.entries.len()).unwrap_or(0);
        self.entries.clear();
        if self.directory.len() == self.blocks_max { self.end_piece(state) } else { Ok(()) }
    }

    fn end_piece(&mut self, state: &mut State) -> Result<()> {
        let Some((first, _)) = self.directory.first().copied() else { return Ok(()) };
        let directory = run::encode_directory(self.run.number, self.position, &self.directory);
        let blocks = self.directory.len();
        self.bytes.splice(..BLOCK_SIZE, directory.iter().copied());
        self.bytes.resize(super::publish::padded(state, self.bytes.len()), 0);
        let address = state.allocate(Stream::Low, self.bytes.len() as u64)?;
        self.device.write_at(&self.bytes, address)?;
        self.bytes.clear();
        self.run.pieces.push(Piece {
            address,
            position: self.position,
            first,
            blocks: u32::try_from(blocks).unwrap_or(0),
            entries: self.piece_entries,
            crc: run::block_crc(&directory),
        });
        self.position += blocks as u64 + 1;
        self.directory.clear();
        self.piece_entries = 0;
        Ok(())
    }

    fn finish(mut self, state: &mut State) -> Result<Run> {
        self.end_block(state)?;
        self.end_piece(state)?;
        Ok(self.run)
    }

    /// Makes it the newest run, unless it is empty. Returns its entries.
    fn finish_newest(self, state: &mut State) -> Result<u64> {
        let run = self.finish(state)?;
        let count = run.entries;
        if count > 0 {
            state.runs.insert(0, run);
        }
        Ok(count)
    }
}

/// Writes the memory table out as the newest run and empties it.
pub fn flush_memory(device: &dyn WriteAt, state: &mut State) -> Result<()> {
    if state.memory.is_empty() {
        return Ok(());
    }
    let memory = std::mem::take(&mut state.memory);
    write_run(device, state, &mut memory.into_iter().map(Ok))?;
    Ok(())
}

/// Writes `entries`, which ascend by key, as the newest run. Returns their number.
pub fn write_run(
    device: &dyn WriteAt,
    state: &mut State,
    entries: &mut dyn Iterator<Item = Result<IndexEntry>>,
) -> Result<u64> {
    let mut builder = RunBuilder::new(device, state);
    for entry in entries {
        let (key, value) = entry?;
        state.count_entry(key, &value);
        builder.push(state, (key, value))?;
    }
    builder.finish_newest(state)
}

/// Writes `loose` and its change bits as the newest run. What leads into segments is not counted there.
///
/// # Errors
/// `Kind::NoSpace` if the run does not fit, `Kind::Io`.
pub fn spill(device: &dyn WriteAt, state: &mut State, loose: &Loose) -> Result<()> {
    let mut builder = RunBuilder::numbered(device, state, loose.number());
    let changes = loose.changes.iter().map(|(key, value)| (*key, *value));
    for entry in loose.entries().iter().copied().chain(changes) {
        builder.push(state, entry)?;
    }
    builder.finish_newest(state).map(drop)
}

/// Merges the newest runs while the next older one is not much larger than they are together, so that the
/// number of runs stays logarithmic.
pub fn merge_tiers(device: &dyn WriteAt, reader: &BlockReader, state: &mut State) -> Result<()> {
    let mut count = 1;
    let mut entries = state.runs.first().map_or(0, |run| run.entries);
    while let Some(next) = state.runs.get(count) {
        if next.entries > entries.saturating_mul(TIER_RATIO) {
            break;
        }
        entries += next.entries;
        count += 1;
    }
    match count {
        0 | 1 => Ok(()),
        all if all == state.runs.len() => sweep(device, reader, state),
        _ => merge_newest(device, reader, state, count),
    }
}

/// Merges the newest `count` runs; nothing but superseded entries is dropped.
fn merge_newest(device: &dyn WriteAt, reader: &BlockReader, state: &mut State, count: usize) -> Result<()> {
    let runs: Vec<Run> = state.runs.drain(..count).collect();
    let memory = MemTable::new();
    let mut scan = Scan::new(reader, &memory, &runs, Key::MIN)?;
    let mut builder = RunBuilder::new(device, state);
    while let Some((key, value)) = scan.next_entry()? {
        for older in &scan.superseded {
            state.drop_entry(key, older);
        }
        builder.push(state, (key, value))?;
    }
    let merged = builder.finish(state)?;
    release_runs(state, &runs);
    state.runs.insert(0, merged);
    Ok(())
}

/// Merges all runs into one: drops dead and superseded entries, folds the change bits of deleted snapshots
/// into those of their older neighbours, and closes the graves.
pub fn sweep(device: &dyn WriteAt, reader: &BlockReader, state: &mut State) -> Result<()> {
    let live = state.live_ids();
    let merge = Merge { live: &live, loose: &[], counted: true };
    merge_all(device, reader, state, &merge, &mut |_, _, _| Ok(()))?;
    state.graves = BTreeMap::new();
    state.unswept = 0;
    Ok(())
}

/// What to merge besides the runs, and what to keep of it.
pub struct Merge<'a> {
    /// The snapshots (ascending ids) that need what is kept.
    pub live: &'a [u64],
    /// What is newer than every run, the newest first.
    pub loose: &'a [Loose],
    /// Segments count what is merged. Otherwise they count nothing of it, and then what is kept.
    pub counted: bool,
}

/// Merges all runs into one and keeps what snapshots need. `each` sees every exception and overlay in order, needed
/// or not, with the walk that gave it. Returns the superseded values that were dropped and lay elsewhere.
pub fn merge_all(
    device: &dyn WriteAt,
    reader: &BlockReader,
    state: &mut State,
    merge: &Merge<'_>,
    each: &mut dyn FnMut(&State, IndexEntry, &Scan) -> Result<()>,
) -> Result<Vec<IndexEntry>> {
    let runs = std::mem::take(&mut state.runs);
    let mut superseded = Vec::new();
    let none = MemTable::new();
    let mut builder = RunBuilder::new(device, state);
    let mut scan = Scan::new(reader, &none, &runs, Key::MIN)?.under(merge.loose);
    let mut liveness = Liveness::new(merge.live);
    while let Some((key, value)) = scan.next_entry()? {
        if key.class > 1 {
            break;
        }
        each(state, (key, value), &scan)?;
        for older in &scan.superseded {
            if merge.counted {
                state.drop_entry(key, older);
            }
            if older.word != value.word {
                superseded.push((key, *older));
            }
        }
        match (liveness.needs(key), merge.counted) {
            (true, counted) => {
                if !counted {
                    state.count_entry(key, &value);
                }
                builder.push(state, (key, value))?;
            }
            (false, true) => state.drop_entry(key, &value),
            (false, false) => {}
        }
    }
    let changes = Loose::all_changes(merge.loose);
    let index = Index { reader, memory: &changes, runs: &runs };
    for (number, id) in merge.live.iter().enumerate() {
        let end = merge.live.get(number + 1).copied().unwrap_or(u64::MAX);
        for page in index.changed_pages(*id, end) {
            let (page, bits) = page?;
            builder.push(state, (Key::changes(*id, page), Value::from_bits(bits)))?;
        }
    }
    let merged = builder.finish(state)?;
    release_runs(state, &runs);
    if merged.entries > 0 {
        state.runs.push(merged);
    }
    Ok(superseded)
}

fn release_runs(state: &mut State, runs: &[Run]) {
    for piece in runs.iter().flat_map(|run| &run.pieces) {
        let bytes = (piece.blocks as usize + 1) * BLOCK_SIZE;
        let length = super::publish::padded(state, bytes);
        state.release(piece.address, length as u64);
    }
}
