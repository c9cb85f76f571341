//! Finding the newest superblock and checkpoint, and replaying the log after it in memory.
//!
//! Nothing here writes: a reader recovers exactly as a writer does.

use super::chain::{Chain, segment_end};
use super::outdated;
use super::state::State;
use super::switch;
use super::unpublished;
use crate::block::ReadAt;
use crate::error::{Error, Kind, Result};
use crate::format::checkpoint::{Checkpoint, decode_part, peek_part};
use crate::format::record::{Encoding, Record};
use crate::format::superblock::{self, Superblock};
use crate::units::index;

/// Sequences skipped at each open: more than any interval between checkpoints can hold, so that what a
/// dead incarnation wrote beyond its recorded end can never pass for a later record.
pub const OPEN_JUMP: u64 = 1 << 20;

/// What to do about a store that cannot be opened.
pub const REBUILD_HINT: &str = "look with `ddsnap fsck -n`, then repair with `ddsnap fsck --rebuild`";

/// The two superblock copies as found.
pub struct Superblocks {
    /// Each copy, or why it does not count.
    pub copies: [Result<Superblock>; 2],
}

impl Superblocks {
    /// Reads both copies.
    pub fn read(device: &dyn ReadAt) -> Self {
        let copies = superblock::OFFSETS.map(|offset| {
            let mut bytes = vec![0; superblock::SIZE];
            if offset + superblock::SIZE as u64 > device.size() {
                return Err(
                    Error::damaged(format!("device ends at {} bytes", device.size())).at_offset(offset)
                );
            }
            device.read_at(&mut bytes, offset)?;
            Superblock::decode(&bytes).map_err(|error| error.at_offset(offset))
        });
        Self { copies }
    }

    /// True if both copies are sound and say the same.
    pub fn agree(&self) -> bool {
        matches!(&self.copies, [Ok(a), Ok(b)] if a == b)
    }

    /// The sound copies, newest first.
    ///
    /// # Errors
    /// The first copy's error if neither is sound; `Kind::Unsupported` if one is of a newer format.
    pub fn newest_first(self) -> Result<Vec<Superblock>> {
        let mut sound = Vec::new();
        let mut first_error = None;
        for copy in self.copies {
            match copy {
                Ok(sb) => sound.push(sb),
                Err(error) if error.kind() == Kind::Unsupported => return Err(error),
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        sound.sort_by_key(|sb| std::cmp::Reverse((sb.generation, sb.durable)));
        match first_error {
            Some(error) if sound.is_empty() => Err(error),
            _ => Ok(sound),
        }
    }
}

/// Loads the newest sound checkpoint and replays the log after it; refuses what is known to be the store of once.
///
/// # Errors
/// `Kind::Damaged`, `Kind::Unsupported`, `Kind::Io`.
pub fn load(device: &dyn ReadAt) -> Result<State> {
    let state = load_and_replay(device)?;
    outdated::ensure_newest(device, &state).map_err(|error| error.at_path(device.path()))?;
    Ok(state)
}

/// As [`load`], whether there was a newer store or not.
pub fn load_and_replay(device: &dyn ReadAt) -> Result<State> {
    let located = |error: Error| error.at_path(device.path());
    let mut state = load_checkpoint(device).map_err(located)?;
    replay(device, &mut state).map_err(located)?;
    Ok(state)
}

/// Loads the newest sound checkpoint; the log after it is not read.
pub fn load_checkpoint(device: &dyn ReadAt) -> Result<State> {
    switch::ensure_whole(device)?;
    let lost = |error: Error| match error.kind() {
        Kind::Damaged => {
            error.hint("for a new store run `ddsnap initialize`, for an old one `ddsnap fsck --rebuild`")
        }
        _ => error,
    };
    let found = Superblocks::read(device).newest_first();
    if found.is_err() && unpublished::is_marked(device)? {
        return Err(Error::damaged("this is no store yet: an upgrade onto it was not finished")
            .hint("run the same `ddsnap upgrade` again; nothing here is of value"));
    }
    // Only the newest: its checkpoint was durable before it, so an older one is no way back from a crash, but into the
    // past.
    let mut first_error = None;
    if let Some(sb) = found.map_err(lost)?.into_iter().next() {
        if device.size() < sb.end() {
            return Err(Error::damaged(format!(
                "store is cut short: {} bytes, its superblock says {}",
                device.size(),
                sb.end()
            ))
            .hint("restore the device's full size; nothing is lost while the rest is kept"));
        }
        for copy in 0..2 {
            match read_checkpoint(device, &sb, copy) {
                Ok(checkpoint) => return Ok(State::new(sb, checkpoint)),
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
    }
    Err(first_error.unwrap_or_else(|| Error::damaged("no superblock")).hint(REBUILD_HINT))
}

/// Reads one copy of the checkpoint that `sb` publishes.
pub fn read_checkpoint(device: &dyn ReadAt, sb: &Superblock, copy: usize) -> Result<Checkpoint> {
    let mut payload = Vec::new();
    let extents = sb.copies.get(copy).map_or(&[][..], Vec::as_slice);
    for (number, extent) in extents.iter().enumerate() {
        let end = extent.address.checked_add(u64::from(extent.length));
        if end.is_none_or(|end| end > sb.end()) || extent.length > sb.segment_size() {
            return Err(Error::damaged("checkpoint lies outside the store").at_offset(extent.address));
        }
        let mut bytes = vec![0; extent.length as usize];
        device.read_at(&mut bytes, extent.address)?;
        if crc32fast::hash(&bytes) != extent.crc {
            return Err(Error::damaged("checkpoint part does not hold the checksum in the superblock")
                .at_offset(extent.address));
        }
        let part = decode_part(&bytes, extent.address)?;
        let same = part.number == sb.checkpoint
            && part.part as usize == number
            && part.parts as usize == extents.len()
            && same_geometry(&part.geometry, sb);
        if !same {
            return Err(Error::damaged(format!(
                "checkpoint {} part {} found, expected {} part {number}",
                part.number, part.part, sb.checkpoint
            ))
            .at_offset(extent.address));
        }
        payload.extend_from_slice(&part.payload);
    }
    let checkpoint = Checkpoint::decode(&payload)?;
    validate(sb, &checkpoint)?;
    Ok(checkpoint)
}

/// The number of a newer checkpoint that lies where `sb` says that one is: publishing never overwrites those that
/// count, so `sb` does not count any more.
///
/// # Errors
/// `Kind::Io`.
pub fn newer_checkpoint(device: &dyn ReadAt, sb: &Superblock) -> Result<Option<u64>> {
    for extent in sb.copies.iter().flatten() {
        let mut bytes = vec![0; sb.block_size() as usize];
        let fits = extent.address.checked_add(bytes.len() as u64).is_some_and(|end| end <= device.size());
        if !fits {
            continue;
        }
        device.read_at(&mut bytes, extent.address)?;
        let length = peek_part(&bytes, extent.address).filter(|length| *length <= sb.segment_size() as usize);
        let whole = length.filter(|length| extent.address + *length as u64 <= device.size());
        let Some(length) = whole else { continue };
        bytes.resize(length, 0);
        device.read_at(&mut bytes, extent.address)?;
        if let Ok(part) = decode_part(&bytes, extent.address)
            && part.number > sb.checkpoint
            && same_geometry(&part.geometry, sb)
        {
            return Ok(Some(part.number));
        }
    }
    Ok(None)
}

/// True if both speak of the same store, and measure it alike.
fn same_geometry(part: &Superblock, sb: &Superblock) -> bool {
    let measures = |sb: &Superblock| (sb.uuid, sb.salt, sb.chunk_bits, sb.block_bits, sb.segment_bits);
    measures(part) == measures(sb)
}

/// What later code relies on without asking again.
pub fn validate(sb: &Superblock, checkpoint: &Checkpoint) -> Result<()> {
    let outside = |what: &str, number: u64| {
        Error::damaged(format!("checkpoint names {what} {number}, the store has {} segments", sb.segments))
    };
    for segment in &checkpoint.promised {
        if *segment >= sb.segments {
            return Err(outside("log segment", u64::from(*segment)));
        }
    }
    let first = checkpoint.promised.first().ok_or_else(|| Error::damaged("checkpoint promises no log"))?;
    let start = sb.segment_address(*first);
    if checkpoint.log.address < start || checkpoint.log.address > start + u64::from(sb.segment_size()) {
        return Err(Error::damaged("checkpoint's log position is outside its segment"));
    }
    for piece in checkpoint.runs.iter().flat_map(|run| &run.pieces) {
        if sb.segment_of(piece.address).is_none() || piece.blocks == 0 || piece.blocks > 127 {
            return Err(outside("an index piece at byte", piece.address));
        }
    }
    Ok(())
}

/// Reads the record at `address` if a whole, sound one lies there inside its segment.
pub fn read_record(device: &dyn ReadAt, sb: &Superblock, address: u64) -> Result<Record> {
    let none = || Error::damaged("no record here").at_offset(address);
    let segment = sb.segment_of(address).ok_or_else(none)?;
    let end = segment_end(sb, segment);
    let block = u64::from(sb.block_size());
    if address + block > end {
        return Err(none());
    }
    let mut bytes = vec![0; index(block)];
    device.read_at(&mut bytes, address)?;
    let length = Record::peek(&bytes, address, sb.uuid).ok_or_else(none)?;
    if address + length as u64 > end {
        return Err(none());
    }
    if length > bytes.len() {
        bytes.resize(length, 0);
        device.read_at(&mut bytes, address)?;
    }
    let record = Record::decode(&bytes, address, sb)?;
    if address + record.length() > end {
        return Err(none());
    }
    Ok(record)
}

/// Walks the chain from the checkpoint's position and brings `state` up to date.
pub fn replay(device: &dyn ReadAt, state: &mut State) -> Result<()> {
    let mut chain = state.chain.clone();
    let mut records = Vec::new();
    let mut durable = state.durable;
    while let Some((at, record)) = next_record(device, &state.sb, &chain)? {
        durable = durable.max(record.durable);
        chain.advance(&state.sb, at, &record);
        records.push((at, record));
    }
    // A record that nothing later claims durable may be torn. The commit rule makes it safe to drop: what it
    // preserves was not overwritten yet.
    let mut end = records.len();
    for (number, (_, record)) in records.iter().enumerate() {
        if record.sequence > durable && !data_holds(device, &state.sb, record)? {
            end = number;
            break;
        }
    }
    records.truncate(end);
    for (at, record) in &records {
        state.apply(*at, record)?;
    }
    refuse_gap(device, state)
}

/// The record that comes next in the chain, with the number of its promised segment.
pub fn next_record(device: &dyn ReadAt, sb: &Superblock, chain: &Chain) -> Result<Option<(usize, Record)>> {
    let Some((at, address)) = chain.next_place(sb) else { return Ok(None) };
    match read_record(device, sb, address) {
        Ok(record) if chain.is_followed_by(&record) => Ok(Some((at, record))),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == Kind::Damaged => Ok(None),
        Err(error) => Err(error),
    }
}

/// True if every chunk of `record` holds its checksum.
pub fn data_holds(device: &dyn ReadAt, sb: &Superblock, record: &Record) -> Result<bool> {
    for (address, entry) in record.located(sb.block_bits) {
        if entry.encoding != Encoding::Raw {
            continue;
        }
        let mut bytes = vec![0; entry.stored_length as usize];
        device.read_at(&mut bytes, address)?;
        if crc32fast::hash(&bytes) != entry.crc {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Refuses a chain that ends although a later record claims durability of what is missing: that is damage,
/// not a torn tail, and going on would serve newer data as older.
///
/// Looks block by block at the rest of the current segment, at the next promised one, and at those after it that
/// begin with a later record: one commit can span many small segments. Of the others it looks at the first block.
/// Only damage that swallows all of these passes for a tail.
fn refuse_gap(device: &dyn ReadAt, state: &State) -> Result<()> {
    let sb = &state.sb;
    let sequence = state.chain.position.sequence;
    if sequence < sb.durable {
        return Err(Error::damaged(format!(
            "the log ends after record {sequence}, but the superblock says that record {} was durable",
            sb.durable
        ))
        .at_offset(state.chain.position.address)
        .hint(REBUILD_HINT));
    }
    let Some((at, address)) = state.chain.next_place(sb) else { return Ok(()) };
    let ahead = state.chain.promised.get(at..).unwrap_or(&[]);
    for (number, segment) in ahead.iter().enumerate() {
        let start = sb.segment_address(*segment);
        let (start, end) = match number {
            0 => (address, segment_end(sb, *segment)),
            1 => (start, segment_end(sb, *segment)),
            _ if begins_later(device, sb, start, sequence)? => (start, segment_end(sb, *segment)),
            _ => continue,
        };
        if let Some(found) = later_claim(device, sb, start, end, sequence)? {
            return Err(Error::damaged(format!(
                "the log breaks off after record {sequence}, but record {} at byte {} says that record {} \
                 was durable",
                found.sequence, found.address, found.durable
            ))
            .at_offset(address)
            .hint(REBUILD_HINT));
        }
    }
    Ok(())
}

/// True if a sound record beyond `sequence` lies at `address`.
fn begins_later(device: &dyn ReadAt, sb: &Superblock, address: u64, sequence: u64) -> Result<bool> {
    match read_record(device, sb, address) {
        Ok(record) => Ok(record.sequence > sequence),
        Err(error) if error.kind() == Kind::Damaged => Ok(false),
        Err(error) => Err(error),
    }
}

/// The first sound record in `start..end` that claims durability beyond `sequence`.
fn later_claim(
    device: &dyn ReadAt,
    sb: &Superblock,
    start: u64,
    end: u64,
    sequence: u64,
) -> Result<Option<Record>> {
    // Every open comes by here: few enough to stay in the processor's cache, and in the same memory.
    const WINDOW: u64 = 64 << 10;
    let block = u64::from(sb.block_size());
    let mut window = vec![0; index(WINDOW)];
    let mut at = start;
    while at < end {
        let length = WINDOW.min(end - at);
        let bytes = window.get_mut(..index(length)).unwrap_or(&mut []);
        device.read_at(bytes, at)?;
        for offset in (0..length).step_by(index(block)) {
            let candidate = bytes.get(index(offset)..).unwrap_or(&[]);
            if Record::peek(candidate, at + offset, sb.uuid).is_none() {
                continue;
            }
            match read_record(device, sb, at + offset) {
                Ok(record) if record.durable > sequence => return Ok(Some(record)),
                Ok(_) => {}
                Err(error) if error.kind() == Kind::Damaged => {}
                Err(error) => return Err(error),
            }
        }
        at += length;
    }
    Ok(None)
}
