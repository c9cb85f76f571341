//! Finding records and checkpoints by looking at every block, for when the way to them is lost.

use crate::block::ReadAt;
use crate::error::{Error, Kind, Result};
use crate::format::checkpoint::{self, Checkpoint, Part};
use crate::format::record::{Encoding, Record, RecordKind};
use crate::format::superblock::{FIRST_SEGMENT, Superblock};
use crate::format::table::{self, RawOpen};
use crate::progress::Progress;
use crate::store::chain::segment_end;
use crate::store::recover::{read_checkpoint, read_record};
use crate::units::index;
use std::collections::{BTreeMap, HashMap};

const WINDOW: u64 = 4 << 20;
const STEP: u64 = 4096;

/// Where a sound record lies.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// Its sequence.
    pub sequence: u64,
    /// Its incarnation.
    pub incarnation: u64,
    /// Its byte address.
    pub address: u64,
    /// Its length in bytes.
    pub length: u64,
    /// A newer record has overwritten part of its extent: only checksums can say what is left.
    pub overlapped: bool,
}

/// The newest whole checkpoint: by the superblocks, else by looking at every block of the device.
pub fn find_checkpoint(
    device: &dyn ReadAt,
    superblocks: &[Superblock],
    progress: &dyn Progress,
) -> Result<(Superblock, Checkpoint)> {
    for sb in superblocks {
        for copy in 0..2 {
            if let Ok(checkpoint) = read_checkpoint(device, sb, copy) {
                return Ok((sb.clone(), checkpoint));
            }
        }
    }
    progress.stage("looking for checkpoints", Some(device.size()));
    let mut parts: BTreeMap<u64, HashMap<u32, Part>> = BTreeMap::new();
    each_block(device, 0, device.size(), STEP, progress, &mut |bytes, address| {
        let Some(length) = checkpoint::peek_part(bytes, address) else { return Ok(()) };
        let mut whole = vec![0; length];
        if address + length as u64 > device.size() {
            return Ok(());
        }
        device.read_at(&mut whole, address)?;
        if let Ok(part) = checkpoint::decode_part(&whole, address)
            && superblocks.iter().all(|sb| sb.uuid == part.geometry.uuid)
        {
            parts.entry(part.number).or_default().insert(part.part, part);
        }
        Ok(())
    })?;
    for found in parts.into_values().rev() {
        if let Some(whole) = assemble(&found) {
            return Ok(whole);
        }
    }
    Err(Error::damaged("no checkpoint survives: nothing says what the records belong to")
        .at_path(device.path()))
}

fn assemble(found: &HashMap<u32, Part>) -> Option<(Superblock, Checkpoint)> {
    let any = found.values().next()?;
    let mut payload = Vec::new();
    for number in 0..any.parts {
        payload.extend_from_slice(&found.get(&number)?.payload);
    }
    Some((any.geometry.clone(), Checkpoint::decode(&payload).ok()?))
}

/// Every sound record in the segments of `sb`, by ascending sequence. Where extents overlap the newest
/// sequence claims them first; a header inside a newer record is what used to lie there. What a dead
/// incarnation (`ends`: incarnation, last sequence) wrote beyond its end is left out.
pub fn find_records(
    device: &dyn ReadAt,
    sb: &Superblock,
    ends: &[(u64, u64)],
    progress: &dyn Progress,
) -> Result<Vec<Found>> {
    let end = sb.segment_address(sb.segments);
    progress.stage("looking for records", Some(end - FIRST_SEGMENT));
    let mut found = Vec::new();
    let mut ends: HashMap<u64, u64> = ends.iter().copied().collect();
    let block = u64::from(sb.block_size());
    each_block(device, FIRST_SEGMENT, end, block, progress, &mut |bytes, address| {
        if Record::peek(bytes, address, sb.uuid).is_none() {
            return Ok(());
        }
        let record = match read_record(device, sb, address) {
            Ok(record) => record,
            Err(error) if error.kind() == Kind::Damaged => return Ok(()),
            Err(error) => return Err(error),
        };
        if record.kind == RecordKind::Open
            && let Ok(raw) = table::take::<RawOpen>(&mut record.body.as_slice())
        {
            ends.insert(raw.incarnation.get(), raw.end.get());
        }
        found.push(Found {
            sequence: record.sequence,
            incarnation: record.incarnation,
            address,
            length: record.length(),
            overlapped: false,
        });
        Ok(())
    })?;
    found.retain(|record| ends.get(&record.incarnation).is_none_or(|end| record.sequence <= *end));
    Ok(claim(found, sb))
}

fn claim(mut found: Vec<Found>, sb: &Superblock) -> Vec<Found> {
    found.sort_unstable_by_key(|record| std::cmp::Reverse(record.sequence));
    let mut claims: BTreeMap<u64, u64> = BTreeMap::new();
    let mut kept = Vec::with_capacity(found.len());
    for mut record in found {
        let before = claims.range(..=record.address).next_back();
        if before.is_some_and(|(_, end)| *end > record.address) {
            continue;
        }
        let end =
            (record.address + record.length).min(segment_end(sb, sb.segment_of(record.address).unwrap_or(0)));
        record.overlapped = claims.range(record.address..end).next().is_some();
        claims.insert(record.address, end);
        kept.push(record);
    }
    kept.reverse();
    kept
}

/// True if the data of entry `number` of `record` still hold their checksum.
pub fn entry_holds(device: &dyn ReadAt, sb: &Superblock, record: &Record, number: usize) -> Result<bool> {
    let Some((address, entry)) = record.located(sb.block_bits).nth(number) else { return Ok(false) };
    if entry.encoding != Encoding::Raw {
        return Ok(true);
    }
    let mut bytes = vec![0; entry.stored_length as usize];
    device.read_at(&mut bytes, address)?;
    Ok(crc32fast::hash(&bytes) == entry.crc)
}

/// Calls `each` with the bytes from every `step`-aligned address on (at least 4096 of them where the device
/// has them) of `start..end`.
fn each_block(
    device: &dyn ReadAt,
    start: u64,
    end: u64,
    step: u64,
    progress: &dyn Progress,
    each: &mut dyn FnMut(&[u8], u64) -> Result<()>,
) -> Result<()> {
    let mut at = start;
    while at < end {
        progress.check()?;
        let length = WINDOW.min(end - at);
        let mut bytes = vec![0; index(length)];
        device.read_at(&mut bytes, at)?;
        for offset in (0..length).step_by(index(step)) {
            each(bytes.get(index(offset)..).unwrap_or(&[]), at + offset)?;
        }
        progress.advance(length);
        at += length;
    }
    Ok(())
}
