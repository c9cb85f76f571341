//! Walking every run of the index alone: checksums, order, counts, and what leads into each segment.

use super::check::CheckReport;
use super::workers;
use crate::error::{Error, Kind, Result};
use crate::format::checkpoint::{Piece, Role, Run};
use crate::format::run::{BLOCK_SIZE, IndexEntry, Key};
use crate::point::finding::{Code, Finding};
use crate::progress::Progress;
use crate::store::state::{State, digest};
use crate::store::view::View;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

/// Damaged blocks listed one by one; those beyond are counted.
const LISTED: usize = 16;

/// What the index leads to in a segment: entries, bytes they need, sum of their digests.
type Use = (u64, u64, u64);

/// What walking a piece gave.
#[derive(Default)]
struct Walked {
    entries: u64,
    last: Option<Key>,
    damage: Vec<Error>,
}

/// Walks every run. True if all of them are sound, so that the index can be believed.
pub fn check_runs(view: &View, report: &mut CheckReport, progress: &dyn Progress) -> Result<bool> {
    let state = &view.state;
    let pieces: Vec<(&Run, &Piece)> =
        state.runs.iter().flat_map(|run| run.pieces.iter().map(move |piece| (run, piece))).collect();
    let bytes = pieces.iter().map(|(_, piece)| piece_bytes(piece)).sum();
    progress.stage("index", Some(bytes));
    let uses: Mutex<HashMap<u32, Use>> = Mutex::default();
    let walked = workers::map(&pieces, |(run, piece)| {
        progress.check()?;
        let mut here = HashMap::new();
        let walked = walk_piece(view, run, piece, &mut here)?;
        let mut uses = uses.lock().unwrap_or_else(PoisonError::into_inner);
        for (segment, (count, live, sum)) in here {
            let slot = uses.entry(segment).or_default();
            *slot = (slot.0 + count, slot.1 + live, slot.2.wrapping_add(sum));
        }
        progress.advance(piece_bytes(piece));
        Ok(walked)
    })?;
    let uses = uses.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut damage = Vec::new();
    let mut entries: HashMap<u64, u64> = HashMap::new();
    let mut last: Option<(u64, Key)> = None;
    for ((run, piece), mut walked) in pieces.iter().zip(walked) {
        damage.append(&mut walked.damage);
        if last.is_some_and(|(number, key)| number == run.number && key >= piece.first) {
            let text = format!("run {} is out of order at {}", run.number, describe(piece.first));
            damage.push(Error::damaged(text).at_offset(piece.address));
        }
        last = walked.last.map(|key| (run.number, key));
        *entries.entry(run.number).or_default() += walked.entries;
        report.entries += walked.entries;
    }
    if damage.is_empty() {
        for run in state.runs.iter().filter(|run| run.from == Key::MIN) {
            let found = entries.get(&run.number).copied().unwrap_or(0);
            if found != run.entries {
                let text =
                    format!("run {} has {found} entries, the checkpoint says {}", run.number, run.entries);
                damage.push(Error::damaged(text));
            }
        }
    }
    let sound = damage.is_empty();
    list_damage(report, &damage);
    if sound {
        compare_uses(state, &uses, report);
    }
    check_places(state, &pieces, report);
    Ok(sound)
}

fn piece_bytes(piece: &Piece) -> u64 {
    (u64::from(piece.blocks) + 1) * BLOCK_SIZE as u64
}

fn list_damage(report: &mut CheckReport, damage: &[Error]) {
    report.findings.extend(damage.iter().take(LISTED).map(|error| Finding::of(Code::IndexDamaged, error)));
    if damage.len() > LISTED {
        let text = format!("{} more blocks of the index are damaged", damage.len() - LISTED);
        report.findings.push(Finding::new(Code::IndexDamaged, text));
    }
}

fn walk_piece(view: &View, run: &Run, piece: &Piece, uses: &mut HashMap<u32, Use>) -> Result<Walked> {
    let mut walked = Walked::default();
    let Some(directory) = note(view.reader.directory(run.number, piece), &mut walked)? else {
        return Ok(walked);
    };
    for (number, (first, crc)) in directory.iter().enumerate() {
        let block = view.reader.block_once(run.number, piece, number, *crc);
        let Some(entries) = note(block, &mut walked)? else { continue };
        if entries.first().is_some_and(|(key, _)| key != first)
            || walked.last.is_some_and(|last| last >= *first)
        {
            let text = format!("run {} is out of order at {}", run.number, describe(*first));
            walked.damage.push(Error::damaged(text).at_offset(piece.address));
        }
        for entry in entries.iter().filter(|(key, _)| *key >= run.from) {
            walk_entry(&view.state, run, entry, &mut walked, uses);
        }
        walked.last = entries.last().map(|(key, _)| *key);
    }
    Ok(walked)
}

/// Notes damage; passes on what is not.
fn note<T>(result: Result<T>, walked: &mut Walked) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == Kind::Damaged => {
            walked.damage.push(error);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn walk_entry(
    state: &State,
    run: &Run,
    (key, value): &IndexEntry,
    walked: &mut Walked,
    uses: &mut HashMap<u32, Use>,
) {
    walked.entries += 1;
    if key.class == 2 {
        return;
    }
    let number = state.sb.segment_of(value.word);
    let end = value.word.saturating_add(u64::from(value.stored_length));
    let inside = number.filter(|number| {
        state.segments.get(number).is_some_and(|segment| segment.role == Role::Log)
            && end <= crate::store::chain::segment_end(&state.sb, *number)
    });
    match inside {
        Some(number) if value.raw_length <= state.sb.chunk_size() => {
            let slot = uses.entry(number).or_default();
            *slot = (slot.0 + 1, slot.1 + state.cost(value), slot.2.wrapping_add(digest(*key, value)));
        }
        _ => {
            let text = format!("run {} leads to byte {} for {}", run.number, value.word, describe(*key));
            walked.damage.push(Error::damaged(text));
        }
    }
}

/// A key for people.
fn describe(key: Key) -> String {
    match key.class {
        0 => format!("chunk {} of epoch {}", key.a, key.b),
        1 => format!("chunk {} written on snapshot {}", key.b, key.a),
        _ => format!("changes of epoch {} in page {}", key.a, key.b),
    }
}

/// What the index leads to must be what the checkpoint says must exist.
fn compare_uses(state: &State, uses: &HashMap<u32, Use>, report: &mut CheckReport) {
    for (number, segment) in state.segments.iter().filter(|(_, segment)| segment.role == Role::Log) {
        let has = uses.get(number).copied().unwrap_or_default();
        if has != (segment.count, segment.live, segment.digest) {
            let text = format!(
                "segment {number}: the index leads to {} chunks in {} bytes, the checkpoint says {} in {}",
                has.0, has.1, segment.count, segment.live
            );
            let finding = Finding::new(Code::SpaceCount, text).at(state.sb.segment_address(*number));
            report.findings.push(finding);
        }
    }
}

/// Index pieces and checkpoints must lie in segments of their own, none over another, and be counted there.
fn check_places(state: &State, pieces: &[(&Run, &Piece)], report: &mut CheckReport) {
    let block = u64::from(state.sb.block_size());
    let mut places: Vec<(u64, u64)> = pieces
        .iter()
        .map(|(_, piece)| (piece.address, piece_bytes(piece).next_multiple_of(block)))
        .chain(state.sb.copies.iter().flatten().map(|extent| (extent.address, u64::from(extent.length))))
        .collect();
    places.sort_unstable();
    let mut counts: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
    let mut end_before = 0;
    for (address, length) in places {
        let segment = state.sb.segment_of(address);
        let role = segment.and_then(|number| state.segments.get(&number)).map(|segment| segment.role);
        if address < end_before || role != Some(Role::Index) {
            let text = format!("{length} bytes of metadata lie where something else does");
            report.findings.push(Finding::new(Code::DoubleUse, text).at(address));
        }
        end_before = address.saturating_add(length);
        if let Some(number) = segment {
            let slot = counts.entry(number).or_default();
            *slot = (slot.0 + 1, slot.1 + length);
        }
    }
    for (number, segment) in state.segments.iter().filter(|(_, segment)| segment.role == Role::Index) {
        let has = counts.get(number).copied().unwrap_or_default();
        if has != (segment.count, segment.live) {
            let text = format!(
                "segment {number}: {} pieces of metadata in {} bytes, the checkpoint says {} in {}",
                has.0, has.1, segment.count, segment.live
            );
            report.findings.push(Finding::new(Code::SpaceCount, text).at(state.sb.segment_address(*number)));
        }
    }
    for number in state.chain.promised.iter() {
        if state.segments.get(number).is_none_or(|segment| segment.role != Role::Log) {
            let text = format!("segment {number} is promised to the log and holds something else");
            report.findings.push(Finding::new(Code::DoubleUse, text).at(state.sb.segment_address(*number)));
        }
    }
}
