//! Checkpoints: the index brought up to date, both copies of the tables, then superblock A, flush,
//! superblock B, flush.

use super::index::BlockReader;
use super::merge;
use super::recover;
use super::space::Stream;
use super::state::State;
use crate::block::{ReadAt, WriteAt};
use crate::error::{Error, Kind, Result};
use crate::format::checkpoint::{PART_HEADER_SIZE, encode_part};
use crate::format::end;
use crate::format::record::{RecordKind, pad};
use crate::format::superblock::{Extent, OFFSETS, PARTS_MAX, Superblock};
use crate::units::index;

/// What a checkpoint does besides publishing the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Merge everything and drop what is dead.
    pub sweep: bool,
    /// Segments to promise to the log even out of the reserve.
    pub extra: u64,
}

/// `length` rounded up to the store's block size.
pub fn padded(state: &State, length: usize) -> usize {
    index(pad(length as u64, state.sb.block_bits))
}

/// Makes a checkpoint of `state` at the end of its log. On an error the state is beyond use: reopen.
pub fn publish(device: &dyn WriteAt, reader: &BlockReader, state: &mut State, plan: Plan) -> Result<()> {
    let graves: Vec<_> = state.graves.values().copied().collect();
    state.release_emptied();
    merge::flush_memory(device, state)?;
    if plan.sweep {
        merge::sweep(device, reader, state)?;
    } else {
        merge::merge_tiers(device, reader, state)?;
    }
    let old: [Vec<Extent>; 2] = state.sb.copies.clone();
    for extent in old.iter().flatten() {
        state.release(extent.address, u64::from(extent.length));
    }
    let mut sb = state.sb.clone();
    sb.generation = sb.generation.saturating_add(1);
    sb.checkpoint = sb.checkpoint.saturating_add(1);
    // Allocation adds rows to the tables it makes room for; the slack is for those.
    let bound = state.to_checkpoint().encode().len() + SLACK;
    let part_max = state.sb.segment_size() as usize / 2 - PART_HEADER_SIZE;
    let parts = (bound + SEGMENT_ROW * promise_max(state)).div_ceil(part_max);
    if parts > PARTS_MAX {
        return Err(Error::new(Kind::NoSpace, format!("the tables need {parts} parts, 64 are possible")));
    }
    let bound = bound + SEGMENT_ROW * promise_max(state);
    sb.copies = [Stream::Low, Stream::High].map(|_| Vec::new());
    let mut lengths = Vec::new();
    for part in 0..parts {
        let length = part_max.min(bound - part * part_max);
        lengths.push(length);
        for (copy, stream) in sb.copies.iter_mut().zip([Stream::Low, Stream::High]) {
            let length = padded(state, PART_HEADER_SIZE + length);
            let address = state.allocate(stream, length as u64)?;
            copy.push(Extent { address, length: u32::try_from(length).unwrap_or(0), crc: 0 });
        }
    }
    // What the checkpoint covers was flushed; should it be lost, this says how far the log must go.
    sb.durable = sb.durable.max(state.chain.position.sequence);
    state.renounce();
    state.collect_empty();
    state.promise(plan.extra)?;
    let mut payload = state.to_checkpoint().encode();
    if payload.len() > bound {
        return Err(Error::damaged("the tables outgrew the room made for them"));
    }
    payload.resize(bound, 0);
    write_copies(device, &mut sb, &payload, &lengths)?;
    device.flush()?;
    write_superblocks(device, &sb)?;
    state.sb = sb;
    state.durable = state.chain.position.sequence;
    state.log_bytes = 0;
    state.log_records = 0;
    retire(device, state, &old, &graves)
}

/// Room for rows that publishing itself adds.
const SLACK: usize = 1024;
/// Bytes of a segment row and its place in the list of promises.
const SEGMENT_ROW: usize = 36;

/// Most segments that one checkpoint promises.
fn promise_max(state: &State) -> usize {
    let interval = index((256 << 20) / u64::from(state.sb.segment_size())).max(8) + 8;
    interval.min(state.sb.segments as usize)
}

fn write_copies(device: &dyn WriteAt, sb: &mut Superblock, payload: &[u8], lengths: &[usize]) -> Result<()> {
    let parts = u32::try_from(lengths.len()).unwrap_or(0);
    // What is cut short here leaves parts behind, and its number is used again.
    let publication = super::writer::random_u64()?;
    let mut rest = payload;
    for (number, length) in lengths.iter().enumerate() {
        let (slice, after) = rest.split_at_checked(*length).unwrap_or((rest, &[]));
        rest = after;
        let part = u32::try_from(number).unwrap_or(0);
        for copy in 0..2 {
            let Some(address) = sb.copies[copy].get(number).map(|extent| extent.address) else { continue };
            let bytes = encode_part(sb, sb.checkpoint, address, (part, parts), publication, slice);
            device.write_at(&bytes, address)?;
            if let Some(extent) = sb.copies[copy].get_mut(number) {
                extent.crc = crc32fast::hash(&bytes);
            }
        }
    }
    Ok(())
}

/// Notes in both copies how far the log is durable, should its end be lost. The second may become durable any time:
/// the first is.
pub fn note_durable(device: &dyn WriteAt, sb: &Superblock) -> Result<()> {
    let bytes = padded_bytes(sb);
    let [first, second] = OFFSETS;
    device.write_at(&bytes, first)?;
    device.flush()?;
    device.write_at(&bytes, second)
}

/// Marks that the log ends here. Nothing waits until that is durable: a mark that is missing costs only what it proves.
pub fn mark_end(device: &dyn WriteAt, state: &State) -> Result<()> {
    let Some((mut mark, address)) = end_mark(state) else { return Ok(()) };
    mark.resize(state.sb.block_size() as usize, 0);
    device.write_at(&mark, address)
}

/// True if the log was closed where `state` says that it ends.
pub fn is_end_marked(device: &dyn ReadAt, state: &State) -> Result<bool> {
    let Some((mark, address)) = end_mark(state) else { return Ok(false) };
    let mut found = vec![0; mark.len()];
    match device.read_at(&mut found, address) {
        Ok(()) => Ok(found == mark),
        Err(error) if error.kind() == Kind::Io => Ok(false),
        Err(error) => Err(error),
    }
}

/// The mark that the log ends here, and where it lies; `None` if it ends with the last segment that it may use.
fn end_mark(state: &State) -> Option<(Vec<u8>, u64)> {
    let (_, address) = state.chain.next_place(&state.sb)?;
    let last = &state.chain.position;
    Some((end::encode(&state.sb.uuid, address, last.sequence, last.crc), address))
}

/// A superblock as it is written: padded to a block.
pub fn padded_bytes(sb: &Superblock) -> Vec<u8> {
    let mut bytes = sb.encode();
    bytes.resize(index(pad(bytes.len() as u64, sb.block_bits)), 0);
    bytes
}

/// Publishes `sb`: copy A, flush, copy B, flush.
pub fn write_superblocks(device: &dyn WriteAt, sb: &Superblock) -> Result<()> {
    let bytes = padded_bytes(sb);
    for offset in OFFSETS {
        device.write_at(&bytes, offset)?;
        device.flush()?;
    }
    Ok(())
}

/// Makes the checkpoints that `superblocks` publish unrecognisable.
pub fn forget(device: &dyn WriteAt, superblocks: &[Superblock]) -> Result<()> {
    for sb in superblocks {
        let zeroes = vec![0; sb.block_size() as usize];
        for extent in sb.copies.iter().flatten() {
            if extent.address.checked_add(u64::from(sb.block_size())).is_some_and(|end| end <= device.size())
            {
                device.write_at(&zeroes, extent.address)?;
            }
        }
    }
    device.flush()
}

/// Overwrites what the new checkpoint contradicts: the one before it, and the records that made snapshots
/// deleted since. Only then may a record of those deletions be overwritten.
fn retire(
    device: &dyn WriteAt,
    state: &mut State,
    old: &[Vec<Extent>; 2],
    graves: &[crate::format::checkpoint::Grave],
) -> Result<()> {
    let zeroes = vec![0; state.sb.block_size() as usize];
    for extent in old.iter().flatten() {
        device.write_at(&zeroes, extent.address)?;
    }
    for grave in graves.iter().filter(|grave| grave.created_at != 0) {
        let found = recover::read_record(device, &state.sb, grave.created_at);
        let same = found.is_ok_and(|record| {
            record.sequence == grave.created_sequence
                && matches!(record.kind, RecordKind::Create | RecordKind::Begin)
        });
        if same {
            device.write_at(&zeroes, grave.created_at)?;
        }
        if let Some(grave) = state.graves.get_mut(&grave.id) {
            grave.created_at = 0;
        }
    }
    device.flush()
}
