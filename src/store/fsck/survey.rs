//! Finding every record by looking at every block, and whether its data hold their checksums.

use super::segment::Window;
use super::workers;
use crate::block::ReadAt;
use crate::error::Result;
use crate::format::end;
use crate::format::record::{Encoding, Record, RecordKind};
use crate::format::run;
use crate::format::superblock::Superblock;
use crate::format::table::{self, RawOpen};
use crate::progress::Progress;
use crate::store::chain::segment_end;
use crate::store::origin::is_zero;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

/// No store has counted this far: what names a higher run only looks like a block of an index.
const RUN_MAX: u64 = 1 << 48;

/// Segments looked at before what they showed is added up: a grown store can have millions, mostly empty.
const BATCH: usize = 1 << 14;

/// Where a sound record lies.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// Its sequence.
    pub sequence: u64,
    /// Its byte address.
    pub address: u64,
    /// Entries in it.
    pub entries: u32,
    /// A newer record has overwritten part of its extent: what does not hold its checksum was never lost.
    pub overlapped: bool,
}

/// What is on the device.
#[derive(Debug, Default)]
pub struct Survey {
    /// Every sound record, by ascending sequence. Where extents overlap the newest claims them first: a header
    /// inside a newer record is what used to lie there. What a dead incarnation wrote beyond its end is left out.
    pub records: Vec<Found>,
    /// How many of them there are.
    pub found: u64,
    /// Addresses of data that do not hold their checksums.
    pub bad: HashSet<u64>,
    /// Segments in which something other than zeroes lies.
    pub used: Vec<u32>,
    /// Blocks that the medium does not give back.
    pub unreadable: u64,
    /// The highest number of an index run seen.
    pub last_run: u64,
    /// The highest number of a checkpoint of this store seen.
    pub last_checkpoint: u64,
    /// The highest sequence that a mark of the log's end names.
    pub last_end: u64,
}

/// A record as one segment shows it.
struct Seen {
    sequence: u64,
    incarnation: u64,
    address: u64,
    length: u64,
    entries: u32,
    /// What an open record says of the incarnation before: its number and its last sequence.
    ended: Option<(u64, u64)>,
}

/// One segment.
#[derive(Default)]
struct Sight {
    seen: Vec<Seen>,
    bad: Vec<u64>,
    blank: bool,
    unreadable: u64,
    last_run: u64,
    last_checkpoint: u64,
    last_end: u64,
}

/// Looks at every segment. `ends`: incarnations known to have ended, and their last sequences.
pub fn survey(
    device: &dyn ReadAt,
    sb: &Superblock,
    ends: &[(u64, u64)],
    progress: &dyn Progress,
) -> Result<Survey> {
    let size = u64::from(sb.segment_size());
    progress.stage("looking for records", Some(u64::from(sb.segments) * size));
    let mut survey = Survey::default();
    let mut ends: HashMap<u64, u64> = ends.iter().copied().collect();
    let mut seen = Vec::new();
    for first in (0..sb.segments).step_by(BATCH) {
        let last = first.saturating_add(u32::try_from(BATCH).unwrap_or(u32::MAX)).min(sb.segments);
        let numbers = with_data(device, sb, first..last);
        progress.advance(u64::from(last - first).saturating_sub(numbers.len() as u64) * size);
        let sights = workers::map_with(&numbers, |window: &mut Window, number| {
            progress.check()?;
            let sight = look(device, sb, window, *number)?;
            progress.advance(size);
            Ok(sight)
        })?;
        for (number, mut sight) in numbers.iter().zip(sights) {
            if !sight.blank {
                survey.used.push(*number);
            }
            survey.bad.extend(sight.bad);
            survey.unreadable += sight.unreadable;
            survey.last_run = survey.last_run.max(sight.last_run);
            survey.last_checkpoint = survey.last_checkpoint.max(sight.last_checkpoint);
            survey.last_end = survey.last_end.max(sight.last_end);
            ends.extend(sight.seen.iter().filter_map(|seen| seen.ended));
            seen.append(&mut sight.seen);
        }
    }
    seen.retain(|record| ends.get(&record.incarnation).is_none_or(|end| record.sequence <= *end));
    survey.records = claim(seen, sb);
    survey.found = survey.records.len() as u64;
    Ok(survey)
}

/// Which of the segments `range` are not holes altogether, ascending. What cannot be told is read.
fn with_data(device: &dyn ReadAt, sb: &Superblock, range: Range<u32>) -> Vec<u32> {
    let mut known = 0..0;
    let has_data = |number: &u32| {
        let start = sb.segment_address(*number);
        // One answer speaks of many segments, and looking for it can take as long as what it speaks of.
        if known.end <= start {
            known = device.next_data(start).unwrap_or(start..start + 1);
        }
        known.start < segment_end(sb, *number) && !known.is_empty()
    };
    range.filter(has_data).collect()
}

fn look(device: &dyn ReadAt, sb: &Superblock, window: &mut Window, number: u32) -> Result<Sight> {
    let mut sight = Sight { blank: true, ..Sight::default() };
    let mut next = sb.segment_address(number);
    // Data of records whose end was not read yet: address, length, checksum.
    let mut ahead: Vec<(u64, u32, u32)> = Vec::new();
    let each = &mut |window: &Window, fresh: u64| {
        let bytes = window.from(fresh);
        sight.blank = sight.blank && is_zero(bytes);
        let runs = bytes.chunks_exact(run::BLOCK_SIZE).filter_map(run::run_of);
        sight.last_run = runs.filter(|run| *run < RUN_MAX).max().unwrap_or(0).max(sight.last_run);
        window.blocks(&mut next, u64::from(sb.block_size()), &mut |address, bytes| {
            if let Some(part) = window.checkpoint(address, bytes)?
                && part.geometry.uuid == sb.uuid
            {
                sight.last_checkpoint = sight.last_checkpoint.max(part.number);
            }
            sight.last_end = end::sequence_of(bytes, &sb.uuid, address).unwrap_or(0).max(sight.last_end);
            if let Some(record) = window.record(address, bytes, sb)? {
                let raw = record.located(sb.block_bits).filter(|(_, entry)| entry.encoding == Encoding::Raw);
                ahead.extend(raw.map(|(address, entry)| (address, entry.stored_length, entry.crc)));
                sight.seen.push(seen(&record));
            }
            Ok(())
        });
        ahead.retain(|(address, length, crc)| {
            let has = window.has(*address, u64::from(*length));
            if has && !window.holds(*address, *length, *crc) {
                sight.bad.push(*address);
            }
            !has
        });
        ahead.iter().map(|(address, ..)| *address).fold(next, u64::min)
    };
    window.walk(device, sb, number, each)?;
    sight.unreadable = window.unreadable.len() as u64;
    sight.blank = sight.blank && window.unreadable.is_empty();
    Ok(sight)
}

fn seen(record: &Record) -> Seen {
    let open = table::take::<RawOpen>(&mut record.body.as_slice()).ok();
    Seen {
        sequence: record.sequence,
        incarnation: record.incarnation,
        address: record.address,
        length: record.length(),
        entries: u32::try_from(record.entries.len()).unwrap_or(u32::MAX),
        ended: open
            .filter(|_| record.kind == RecordKind::Open)
            .map(|raw| (raw.incarnation.get(), raw.end.get())),
    }
}

fn claim(mut seen: Vec<Seen>, sb: &Superblock) -> Vec<Found> {
    seen.sort_unstable_by_key(|record| std::cmp::Reverse(record.sequence));
    let mut claims: BTreeMap<u64, u64> = BTreeMap::new();
    let mut kept = Vec::with_capacity(seen.len());
    for record in seen {
        let before = claims.range(..=record.address).next_back();
        if before.is_some_and(|(_, end)| *end > record.address) {
            continue;
        }
        let limit = segment_end(sb, sb.segment_of(record.address).unwrap_or(0));
        let end = (record.address + record.length).min(limit);
        let overlapped = claims.range(record.address..end).next().is_some();
        claims.insert(record.address, end);
        let Seen { sequence, address, entries, .. } = record;
        kept.push(Found { sequence, address, entries, overlapped });
    }
    kept.reverse();
    kept
}
