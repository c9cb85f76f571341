//! A store again from what is found on the device.
//!
//! Three witnesses are heard. The newest checkpoint, if one survives, says which snapshots there are and what must
//! exist in every segment. The records are found by looking at every block. The old index is read as far as its
//! blocks still prove themselves: what it says of the time before the checkpoint wins over older records. What is
//! missing after that is marked: a chunk that the change bits, the index or a record know of, and whose bytes are
//! gone, becomes an entry that says so. Where not even that much is known, the snapshots concerned are tainted.
//!
//! Everything is written to segments that hold nothing, and counts only when the new superblocks are durable.

use super::balance::balance;
use super::beyond::add_beyond;
use super::collect::Collected;
use super::doubt::lacking;
use super::gone::{self, Gone};
use super::ground::{self, Ground, OtherStore};
use super::salvage::{Blank, salvage};
use super::survey::{Found, Survey, survey};
use super::workers;
use crate::block::{ReadAt, WriteAt};
use crate::error::{Error, Kind, Result};
use crate::format::checkpoint::{Checkpoint, Role, Run, Segment};
use crate::format::record::{Encoding, Record, RecordKind};
use crate::format::run::{IndexEntry, Key, Value};
use crate::format::superblock::{FIRST_SEGMENT, Superblock};
use crate::point::finding::{Code, Finding};
use crate::progress::Progress;
use crate::store::index::BlockReader;
use crate::store::merge::{self, Merge};
use crate::store::publish::{Plan, is_end_marked};
use crate::store::recover::{data_holds, read_record};
use crate::store::state::{Liveness, State, entries_of, zeroes_hold};
use crate::store::view::View;
use crate::store::writer::Writer;
use crate::units::Uuid;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Records whose headers are read at once.
const RECORDS_AT_ONCE: usize = 1 << 10;

/// How to rebuild.
#[derive(Debug, Clone, Default)]
pub struct RebuildOptions {
    /// Stamps records and events: seconds since 1970 UTC.
    pub now_secs: i64,
    /// Go on although something is lost for good: what is known of it is marked.
    pub give_up: bool,
    /// The device was made smaller for good: give up what lay beyond its end.
    pub shorter: bool,
    /// The origin's path and size in bytes, should nothing on the device tell.
    pub origin: Option<(Vec<u8>, u64)>,
    /// Of several stores of which something is left here, this one; the one that was written last if none is named.
    pub uuid: Option<Uuid>,
}

/// What a rebuild found and did.
#[derive(Debug, Clone)]
pub struct RebuildReport {
    /// Sound records found.
    pub records: u64,
    /// Index entries written.
    pub entries: u64,
    /// What is lost, and for whom; empty if everything was brought back.
    pub findings: Vec<Finding>,
    /// False if something is lost and giving it up was not allowed: the store is as it was.
    pub published: bool,
    /// Chunks written to the log again because their records are gone.
    pub relogged: u64,
    /// Chunks marked as lost.
    pub marked: u64,
    /// Which store it is.
    pub uuid: Uuid,
    /// Stores of which something is left here, too.
    pub others: Vec<OtherStore>,
}

/// Rebuilds the store on `device` and publishes it.
///
/// # Errors
/// `Kind::Damaged` if nothing of a store is left, `Kind::NoSpace` if the new index does not fit, `Kind::Io`,
/// `Kind::Interrupted`; `Kind::Refused` for what an upgrade in place made and nobody committed. Until the last moment
/// nothing that was there is overwritten.
pub fn rebuild(
    device: &Arc<dyn WriteAt>,
    options: &RebuildOptions,
    progress: &dyn Progress,
) -> Result<RebuildReport> {
    crate::store::switch::ensure_settled(device.as_ref())?;
    let Ground { mut sb, mut checkpoint, mut sealed, others } =
        ground::find(device.as_ref(), options.uuid, progress)?;
    let fitting = device.size().saturating_sub(FIRST_SEGMENT) >> sb.segment_bits;
    let fitting = u32::try_from(fitting).unwrap_or(u32::MAX);
    if fitting < sb.segments && !options.shorter {
        let what = format!("the device has {} bytes, its store had {}", device.size(), sb.end());
        return Err(Error::damaged(what)
            .at_path(device.path())
            .hint(
                "restore its full size; if the store was made smaller since, or what lies beyond is lost for good, \
                 `ddsnap fsck --rebuild` takes the device as it is",
            ));
    }
    sb.segments = sb.segments.min(fitting);
    sb.generation = sb.generation.saturating_add(1);
    sb.copies = [Vec::new(), Vec::new()];
    let ends = checkpoint.as_ref().map_or(&[][..], |checkpoint| &checkpoint.ends);
    let mut survey = survey(device.as_ref(), &sb, ends, progress)?;
    let is_old = checkpoint.as_ref().is_some_and(|checkpoint| is_outdated(&survey, &sb, checkpoint));
    if survey.last_checkpoint > sb.checkpoint.saturating_add(u64::from(!is_old)) {
        // The superblock is older than what lies here: an attempt that was cut short counts one further, but no record
        // relies on it.
        let newer = ground::look(device.as_ref(), &sb, progress)?;
        sb.checkpoint = newer.sb.checkpoint;
        sealed = false;
        checkpoint = newer.checkpoint.or(checkpoint);
        let ends = checkpoint.as_ref().map_or(&[][..], |checkpoint| &checkpoint.ends);
        survey = self::survey(device.as_ref(), &sb, ends, progress)?;
    }
    if survey.unreadable > 0 {
        let what = format!("{} blocks of the store cannot be read from the medium", survey.unreadable);
        return Err(Error::new(Kind::Io, what).at_path(device.path()).hint(
            "copy it to a sound device first, with a tool that goes on (ddrescue), and rebuild there",
        ));
    }
    let is_old = checkpoint.as_ref().is_some_and(|checkpoint| is_outdated(&survey, &sb, checkpoint));
    let mut work = Rebuild::new(device, survey, progress);
    let state = match checkpoint {
        Some(checkpoint) if !is_old => work.with_checkpoint(sb, checkpoint, sealed)?,
        past => work.without_checkpoint(sb, past, options)?,
    };
    let report = work.finish(state, options)?;
    Ok(RebuildReport { others, ..report })
}

/// A rebuild on its way.
pub(super) struct Rebuild<'a> {
    pub device: &'a Arc<dyn WriteAt>,
    pub survey: Survey,
    pub progress: &'a dyn Progress,
    /// Addresses of records behind the end of the log: torn, or never made durable.
    torn: Vec<u64>,
    /// Something that counts again lies where the log was to go on.
    ahead: bool,
    /// Chunks that are known to be gone.
    pub gone: Vec<Gone>,
    /// Chunks that changed and were not found.
    pub missing: Vec<Gone>,
    /// By segment the highest epoch of exceptions that only old records tell of, and that older snapshots read: if
    /// the segment is not as it must be they may have been dropped long ago, and stand before ones that are lost.
    pub revived: BTreeMap<u32, u64>,
    /// Chunks that are there, but no record says so any more.
    pub unlogged: Vec<IndexEntry>,
    /// Why something may be lost that nothing tells of.
    pub doubts: Vec<String>,
    /// Snapshots up to this id may need it.
    pub doubtful: u64,
    /// Written snapshots that may need it, by id.
    pub doubtful_overlays: Vec<u64>,
}

impl Rebuild<'_> {
    /// The state from a checkpoint, the old index and the records.
    fn with_checkpoint(&mut self, sb: Superblock, checkpoint: Checkpoint, sealed: bool) -> Result<State> {
        let mut state = State::new(sb, checkpoint);
        let runs = state.runs.clone();
        let expected = forget_index(&mut state);
        let position = state.chain.position.sequence;
        let records = std::mem::take(&mut self.survey.records);
        let (old, new): (Vec<Found>, Vec<Found>) =
            records.iter().partition(|record| record.sequence <= position);
        // What is newer than the checkpoint is not overwritten, wherever it lies, before all is done.
        for number in new.iter().filter_map(|record| state.sb.segment_of(record.address)) {
            state.segments.entry(number).or_insert(Segment {
                role: Role::Index,
                count: 0,
                live: 0,
                digest: 0,
            });
        }
        let mut found = Collected::default();
        self.collect(&mut state, &old, &mut found)?;
        let mut superseded = found.take_superseded();
        let salvaged_from = state.next_run;
        let blanks = self.salvage(&mut state, &runs, &mut found)?;
        let mut needed = state.live_ids();
        needed.extend(state.graves.keys());
        needed.sort_unstable();
        needed.dedup();
        superseded.extend(self.judge_and_merge(&mut state, &needed, salvaged_from, found)?);
        let lacking = lacking(&state, &expected, &superseded);
        self.doubt_revived(&lacking);
        // Snapshots deleted since count too: what was preserved for them may stand before what is lost.
        self.missing = self.missing(&state, &needed)?;
        self.restart_log_if_gone(&mut state)?;
        self.apply_new(&mut state, &new, sealed)?;
        let is_last = self.survey.last_end <= state.chain.position.sequence;
        let is_closed =
            is_last && state.fingerprint.is_some() && is_end_marked(self.device.as_ref(), &state)?;
        if !sealed && !is_closed {
            // What came after may be lost without a trace, unless the last record says what the origin was like then.
            self.doubt(
                state.epoch,
                "no superblock is left to say how far the log goes, nor a mark of its end",
            );
        }
        if self.ahead {
            super::without::begin_log(&mut state)?;
        }
        // What was stated again since the checkpoint counts.
        self.gone.retain(|gone| !state.memory.contains_key(&gone.key));
        self.missing.retain(|gone| !state.memory.contains_key(&gone.key));
        self.unlogged.retain(|(key, _)| !state.memory.contains_key(key));
        let memory: Vec<IndexEntry> = state.memory.iter().map(|(key, value)| (*key, *value)).collect();
        for (key, value) in memory.iter().filter(|(key, _)| key.class < 2) {
            self.judge(&state, *key, value, true)?;
        }
        self.doubt_blanks(&state, &blanks, lacking.values().sum());
        Ok(state)
    }

    /// Collects the entries of records that the checkpoint covers.
    fn collect(&mut self, state: &mut State, records: &[Found], collected: &mut Collected) -> Result<()> {
        for batch in records.chunks(RECORDS_AT_ONCE) {
            // Free segments may hold old copies of what was moved elsewhere: the new index may lie there by now.
            let role =
                |address| state.sb.segment_of(address).and_then(|nr| state.segments.get(&nr)).map(|s| s.role);
            let batch: Vec<&Found> =
                batch.iter().filter(|found| role(found.address) == Some(Role::Log)).collect();
            let read = workers::map(&batch, |found| {
                self.progress.check()?;
                read_record(self.device.as_ref(), &state.sb, found.address)
            })?;
            for (found, record) in batch.into_iter().zip(read).filter(|(_, record)| holds_chunks(record)) {
                self.take_intact(state, found, &record, collected);
                collected.relieve(self.device.as_ref(), state)?;
            }
        }
        collected.settle(state.take_run_number());
        Ok(())
    }

    /// Collects what is left of the old index. Returns what of it is lost.
    fn salvage(&mut self, state: &mut State, runs: &[Run], collected: &mut Collected) -> Result<Vec<Blank>> {
        let mut blanks = Vec::new();
        // The newest comes last, and wins.
        for run in runs.iter().rev() {
            let mut each = |entries: &[IndexEntry]| {
                self.progress.check()?;
                entries.iter().for_each(|entry| collected.add(*entry));
                collected.relieve(self.device.as_ref(), state)
            };
            blanks.extend(salvage(self.device.as_ref(), run, &mut each)?);
        }
        collected.settle(state.take_run_number());
        Ok(blanks)
    }

    /// Collects the entries of a record that count: all, but what a newer record has overwritten was not needed any
    /// more.
    pub fn take_intact(&self, state: &State, found: &Found, record: &Record, collected: &mut Collected) {
        let bits = state.sb.block_bits;
        for (entry, (address, _)) in entries_of(record, bits).zip(record.located(bits)) {
            if !found.overlapped || !self.survey.bad.contains(&address) {
                collected.add(entry);
            }
        }
    }

    /// Merges what was `collected` into one run of what the snapshots `needed` need, and judges what those that live
    /// need of it. Runs from `salvaged_from` on are those of the old index. Returns what newer versions replaced.
    pub fn judge_and_merge(
        &mut self,
        state: &mut State,
        needed: &[u64],
        salvaged_from: u64,
        collected: Collected,
    ) -> Result<Vec<IndexEntry>> {
        let live = state.live_ids();
        let reader = BlockReader::new(Arc::<dyn WriteAt>::clone(self.device));
        let mut liveness = Liveness::new(&live);
        let merge = Merge { live: needed, loose: collected.settled(), counted: false };
        merge::merge_all(self.device.as_ref(), &reader, state, &merge, &mut |state, (key, value), scan| {
            let salvaged = scan.source.is_some_and(|run| run >= salvaged_from);
            let logged = !salvaged || scan.superseded.iter().any(|older| older.word == value.word);
            if liveness.needs(key) {
                self.ahead |= is_ahead(state, value.word);
                if !salvaged && key.class == 0 && needed.binary_search(&key.b).is_err() {
                    self.note_revived(state, key, &value);
                }
                self.judge(state, key, &value, logged)?;
            }
            Ok(())
        })
    }

    /// Notes a chunk that is gone, or that no record describes.
    fn judge(&mut self, state: &State, key: Key, value: &Value, logged: bool) -> Result<()> {
        let segment = state.sb.segment_of(value.word).and_then(|number| state.segments.get(&number));
        let placed = segment.is_some_and(|segment| segment.role == Role::Log);
        if value.encoding == Encoding::Lost {
            return Ok(());
        }
        let bad = value.encoding == Encoding::Raw && self.survey.bad.contains(&value.word);
        if bad || !placed {
            self.gone.push(Gone::of(key, value));
        } else if !logged {
            match holds(self.device.as_ref(), state, value)? {
                true => self.unlogged.push((key, *value)),
                false => self.gone.push(Gone::of(key, value)),
            }
        }
        Ok(())
    }

    /// Where the log went on beyond the end of a device that was cut short, it begins afresh.
    fn restart_log_if_gone(&mut self, state: &mut State) -> Result<()> {
        let segments = state.sb.segments;
        if state.chain.promised.iter().all(|segment| *segment < segments) {
            return Ok(());
        }
        state.chain.promised.retain(|segment| *segment < segments);
        let here = state.sb.segment_of(state.chain.position.address);
        if here.is_none() || state.chain.promised.first().copied() != here {
            self.doubt(state.epoch, "the log went on beyond the end of the device");
            super::without::begin_log(state)?;
        }
        Ok(())
    }

    /// Applies the records after the checkpoint. A gap in their sequence leaves every snapshot in doubt.
    ///
    /// What lies behind the end of the log is torn or was never durable. Unless it is `sealed`, nothing tells that from
    /// records whose neighbours are lost, and everything is in doubt: then what is whole counts.
    fn apply_new(&mut self, state: &mut State, records: &[Found], sealed: bool) -> Result<()> {
        let mut list = Vec::with_capacity(records.len());
        let mut durable = state.durable.max(state.sb.durable);
        let mut highest = 0;
        // Segments of promised log with what was found last in each, by address.
        let mut applied: Vec<(usize, u64)> = Vec::new();
        for found in records {
            let record = read_record(self.device.as_ref(), &state.sb, found.address)?;
            durable = durable.max(record.durable);
            highest = highest.max(record.sequence);
            list.push(record);
        }
        for record in list {
            let follows = state.chain.is_followed_by(&record);
            let ends = record.sequence > durable
                && !((follows || !sealed) && data_holds(self.device.as_ref(), &state.sb, &record)?);
            if ends || sealed && !self.torn.is_empty() {
                self.torn.push(record.address);
                continue;
            }
            if !follows {
                let last = state.chain.position.sequence;
                let text = format!("records between {last} and {} are lost", record.sequence);
                // What is lost came before: at the beginning of an epoch nothing of it can be.
                let begins = matches!(record.kind, RecordKind::Create | RecordKind::Begin);
                self.doubt(record.epoch.saturating_sub(u64::from(begins)), &text);
            }
            let segment = state.sb.segment_of(record.address);
            let at = state.chain.promised.iter().position(|promised| Some(*promised) == segment);
            let at = at.ok_or_else(|| Error::damaged("a record outside the promised log"))?;
            if record.epoch > state.epoch && !matches!(record.kind, RecordKind::Create | RecordKind::Begin) {
                state.add_snapshot(super::without::lost_snapshot(state, record.epoch, record.time_secs));
            }
            state.apply(at, &record)?;
            applied.push((at, record.address));
        }
        // With a checkpoint that is older than what lies here the log can seem to go on before records that count.
        let here = (state.chain.at, state.chain.position.address);
        if applied.iter().any(|place| *place >= here) {
            super::without::begin_log(state)?;
        }
        let last = state.chain.position.sequence;
        if durable > last {
            self.doubt(state.epoch, &format!("records after {last} up to {durable} are lost"));
        }
        // What was not applied stays on the device until the log overwrites it: it must be older than all to come.
        state.chain.position.sequence = last.max(highest).max(durable);
        Ok(())
    }

    /// Changes without an exception, between any two of the snapshots `needed`.
    pub fn missing(&self, state: &State, needed: &[u64]) -> Result<Vec<Gone>> {
        let view = self.view_of(state.clone());
        Ok(balance(&view, needed, self.progress)?.missing)
    }

    fn view_of(&self, state: State) -> View {
        let device: Arc<dyn ReadAt> = Arc::<dyn WriteAt>::clone(self.device);
        View { device: Arc::clone(&device), origin: None, reader: Arc::new(BlockReader::new(device)), state }
    }

    /// Marks what is gone, taints what is in doubt, publishes, and restates in the log what has no record.
    fn finish(mut self, mut state: State, options: &RebuildOptions) -> Result<RebuildReport> {
        super::without::give_tags(&mut state);
        let (mut gone, mut missing) = (std::mem::take(&mut self.gone), std::mem::take(&mut self.missing));
        for one in gone.iter().chain(&missing) {
            let lost = super::mend::lost_value(&state, one);
            state.memory.insert(one.key, lost);
        }
        let mut view = self.view_of(state);
        let mut cut_off = Vec::new();
        add_beyond(&view, &mut cut_off, self.progress)?;
        for one in cut_off {
            view.state.memory.insert(one.key, super::mend::lost_value(&view.state, &one));
            missing.push(one);
        }
        gone::keep_needed(&mut view, &mut gone)?;
        gone::keep_needed(&mut view, &mut missing)?;
        let mut findings = Vec::new();
        for (code, what, list) in [
            (Code::ChunkDamaged, "preserved chunks are gone", &mut gone),
            (
                Code::ChunkMissing,
                "chunks are not where they were any more, and nothing tells where they were preserved",
                &mut missing,
            ),
        ] {
            if !list.is_empty() {
                let affected = gone::affected(&view, list)?;
                findings.push(Finding::new(code, format!("{} {what}", list.len())).concerning(affected));
            }
        }
        findings.extend(self.taint(&mut view.state, options.now_secs));
        let mut report = RebuildReport {
            records: self.survey.found,
            entries: 0,
            published: findings.is_empty() || options.give_up,
            findings,
            relogged: 0,
            marked: (gone.len() + missing.len()) as u64,
            uuid: view.state.sb.uuid,
            others: Vec::new(),
        };
        if !report.published {
            return Ok(report);
        }
        gone.append(&mut missing);
        // The log goes on above their sequences, so the next rebuild would take them for records of its past.
        let zeroes = vec![0; view.state.sb.block_size() as usize];
        self.torn.iter().try_for_each(|address| self.device.write_at(&zeroes, *address))?;
        let mut writer = Writer::adopt(Arc::clone(self.device), view.state, options.now_secs)?;
        // Merged into one run already: only what snapshots deleted since leave behind is worth another.
        let sweep = !writer.view().state.graves.is_empty();
        writer.checkpoint(Plan { sweep, extra: 1 })?;
        report.entries = writer.view().state.run_entries();
        // Another one frees the segments of the old index, which the first could only empty.
        writer.checkpoint_if_possible(Plan { sweep: false, extra: 1 })?;
        report.relogged = writer.restate(&gone, &self.unlogged)?;
        writer.close()?;
        Ok(report)
    }
}

impl<'a> Rebuild<'a> {
    fn new(device: &'a Arc<dyn WriteAt>, survey: Survey, progress: &'a dyn Progress) -> Self {
        Self {
            device,
            survey,
            progress,
            torn: Vec::new(),
            ahead: false,
            gone: Vec::new(),
            missing: Vec::new(),
            revived: BTreeMap::new(),
            unlogged: Vec::new(),
            doubts: Vec::new(),
            doubtful: 0,
            doubtful_overlays: Vec::new(),
        }
    }
}

/// True if the log went on where `checkpoint` did not promise that it would: there was a newer one, and nothing that
/// this one says of segments counts any more.
fn is_outdated(survey: &Survey, sb: &Superblock, checkpoint: &Checkpoint) -> bool {
    let promised: BTreeSet<u32> = checkpoint.promised.iter().copied().collect();
    let newer = survey.records.iter().rev().take_while(|it| it.sequence > checkpoint.log.sequence);
    newer.into_iter().any(|it| sb.segment_of(it.address).is_none_or(|number| !promised.contains(&number)))
}

/// True if `record` preserves chunks.
pub(super) fn holds_chunks(record: &Record) -> bool {
    matches!(record.kind, RecordKind::CopyOut | RecordKind::SnapshotWrite | RecordKind::Relocation)
}

/// True if the data that `value` leads to hold their checksum.
fn holds(device: &dyn ReadAt, state: &State, value: &Value) -> Result<bool> {
    if value.encoding != Encoding::Raw {
        return Ok(value.encoding == Encoding::Lost || zeroes_hold(value.raw_length, value.crc));
    }
    let end = value.word.checked_add(u64::from(value.stored_length));
    if value.stored_length > state.sb.chunk_size() || end.is_none_or(|end| end > device.size()) {
        return Ok(false);
    }
    let mut bytes = vec![0; value.stored_length as usize];
    device.read_at(&mut bytes, value.word)?;
    Ok(crc32fast::hash(&bytes) == value.crc)
}

/// True if the byte at `word` lies where the log goes on after the checkpoint: an older copy, whose newer one is lost.
fn is_ahead(state: &State, word: u64) -> bool {
    let (chain, segment) = (&state.chain, state.sb.segment_of(word));
    let here = chain.promised.get(chain.at).copied();
    segment.is_some_and(|segment| chain.segments_ahead().contains(&segment))
        || segment.is_some() && segment == here && word >= chain.position.address
}

/// Empties the index and the counts; returns what must exist. Old index segments keep their place until the
/// new index is published, so nothing is overwritten before.
fn forget_index(state: &mut State) -> BTreeMap<u32, Segment> {
    let expected = state
        .segments
        .iter()
        .filter(|(_, segment)| segment.role == Role::Log)
        .map(|(n, s)| (*n, *s))
        .collect();
    let segments = state.sb.segments;
    state.segments.retain(|number, _| *number < segments);
    for segment in state.segments.values_mut() {
        (segment.count, segment.live, segment.digest) = (0, 0, 0);
        if segment.role == Role::Emptied {
            segment.role = Role::Index;
        }
    }
    state.runs.clear();
    state.low = None;
    state.high = None;
    expected
}
