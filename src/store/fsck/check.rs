//! Looking for damage, without a way to write.

use crate::block::ReadAt;
use crate::error::{Error, Kind, Result};
use crate::format::checkpoint::{Role, Run};
use crate::format::run::{Key, PAGE_BITS, Value};
use crate::format::superblock::Superblock;
use crate::progress::Progress;
use crate::store::index::{BlockReader, RunCursor};
use crate::store::recover::{self, Superblocks, read_checkpoint};
use crate::store::state::{State, bit, digest, keeper};
use crate::store::view::View;
use crate::units::Tag;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What to look at.
#[derive(Debug, Clone, Copy)]
pub struct CheckOptions {
    /// Read every preserved chunk and compare its checksum.
    pub data: bool,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Note,
    /// Wrong, but nothing is lost: a repair restores it from what is sound.
    Repairable,
    /// Data are lost or cannot be proven.
    Loss,
}

/// One thing found.
#[derive(Debug, Clone)]
pub struct Finding {
    /// Stable code ("superblock-copy").
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found beside what was expected.
    pub text: String,
    /// Byte address in the store, where there is one.
    pub offset: Option<u64>,
    /// Tags of the snapshots concerned.
    pub snapshots: Vec<Tag>,
}

/// What a check found and how much it looked at.
#[derive(Debug, Clone, Default)]
pub struct CheckReport {
    /// Everything found, in the order of looking.
    pub findings: Vec<Finding>,
    /// Log records replayed.
    pub records: u64,
    /// Index entries looked at.
    pub entries: u64,
    /// Bytes of preserved data verified.
    pub data_bytes: u64,
}

impl CheckReport {
    /// The worst severity found; `None` if nothing was.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }

    fn add(&mut self, code: &'static str, severity: Severity, text: impl Into<String>) -> &mut Finding {
        self.findings.push(Finding {
            code,
            severity,
            text: text.into(),
            offset: None,
            snapshots: Vec::new(),
        });
        let last = self.findings.len() - 1;
        &mut self.findings[last]
    }

    /// Turns damage into a finding; passes on what is not damage.
    fn note_damage<T>(
        &mut self,
        code: &'static str,
        severity: Severity,
        result: Result<T>,
    ) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.kind() == Kind::Damaged => {
                self.add(code, severity, error.to_string());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Checks the store on `device`.
///
/// # Errors
/// `Kind::Io` if the medium fails, `Kind::Unsupported` for a newer format, `Kind::Interrupted`. Damage is a
/// finding, not an error.
pub fn check(
    device: &Arc<dyn ReadAt>,
    options: CheckOptions,
    progress: &dyn Progress,
) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    let superblocks = Superblocks::read(device.as_ref());
    for (name, copy) in ["first", "second"].iter().zip(&superblocks.copies) {
        match copy {
            Err(error) if error.kind() == Kind::Damaged => {
                report.add("superblock-copy", Severity::Repairable, format!("{name} superblock: {error}"));
            }
            _ => {}
        }
    }
    if let [Ok(a), Ok(b)] = &superblocks.copies
        && a != b
    {
        report.add(
            "superblock-differs",
            Severity::Repairable,
            format!(
                "superblocks are of generations {} and {}: a publication was cut short",
                a.generation, b.generation
            ),
        );
    }
    let newest = report.note_damage("superblock-lost", Severity::Loss, superblocks.newest_first())?;
    let Some(sb) = newest.and_then(|list| list.into_iter().next()) else { return Ok(report) };
    check_checkpoint(device.as_ref(), &sb, &mut report)?;
    let loaded = recover::load(device.as_ref());
    let Some(state) = report.note_damage("log-broken", Severity::Loss, loaded)? else { return Ok(report) };
    report.records = state.log_records;
    let view = View {
        device: Arc::clone(device),
        origin: None,
        reader: BlockReader::new(Arc::clone(device)),
        state,
    };
    if check_runs(&view, &mut report, progress)? {
        check_entries(&view, options, &mut report, progress)?;
    }
    check_tables(&view.state, &mut report);
    Ok(report)
}

fn check_checkpoint(device: &dyn ReadAt, sb: &Superblock, report: &mut CheckReport) -> Result<()> {
    for (name, copy) in [("first", 0), ("second", 1)] {
        if let Err(error) = read_checkpoint(device, sb, copy) {
            if error.kind() != Kind::Damaged {
                return Err(error);
            }
            let text = format!("{name} copy of checkpoint {}: {error}", sb.checkpoint);
            report.add("checkpoint-copy", Severity::Repairable, text);
        }
    }
    Ok(())
}

/// Walks every run alone: checksums, order, counts, and what each segment must hold. True if all are sound.
fn check_runs(view: &View, report: &mut CheckReport, progress: &dyn Progress) -> Result<bool> {
    let state = &view.state;
    progress.stage("index", None);
    let mut found: BTreeMap<u32, (u64, u64, u64)> = BTreeMap::new();
    let mut sound = true;
    for run in &state.runs {
        progress.check()?;
        let walked = walk_run(view, run, &mut |key, value| {
            if key.class < 2
                && let Some(segment) = state.sb.segment_of(value.word)
            {
                let slot = found.entry(segment).or_default();
                slot.0 += 1;
                slot.1 += state.cost(value);
                slot.2 = slot.2.wrapping_add(digest(key, value));
            }
        });
        match report.note_damage("index-damaged", Severity::Repairable, walked)? {
            Some(entries) => report.entries += entries,
            None => sound = false,
        }
    }
    for (number, segment) in &state.segments {
        let expected = (segment.count, segment.live, segment.digest);
        let has = found.get(number).copied().unwrap_or_default();
        if sound && segment.role == Role::Log && has != expected {
            report.add(
                "space-count",
                Severity::Repairable,
                format!(
                    "segment {number}: the index leads to {} chunks in {} bytes, the checkpoint says {} in {}",
                    has.0, has.1, expected.0, expected.1
                ),
            );
        }
    }
    Ok(sound)
}

fn walk_run(view: &View, run: &Run, each: &mut dyn FnMut(Key, &Value)) -> Result<u64> {
    let state = &view.state;
    let mut cursor = RunCursor::seek(&view.reader, run, Key::MIN)?;
    let mut last: Option<Key> = None;
    let mut entries = 0;
    while let Some((key, value)) = cursor.head().copied() {
        if last.is_some_and(|last| last >= key) {
            return Err(Error::damaged(format!("run {} is out of order at {key:?}", run.number)));
        }
        let segment = state.sb.segment_of(value.word).and_then(|number| state.segments.get(&number));
        let misled = key.class < 2 && segment.is_none_or(|segment| segment.role != Role::Log);
        if misled || (key.class < 2 && value.raw_length > state.sb.chunk_size()) {
            return Err(Error::damaged(format!(
                "run {} leads to byte {} for {key:?}",
                run.number, value.word
            )));
        }
        each(key, &value);
        entries += 1;
        last = Some(key);
        cursor.advance()?;
    }
    if entries != run.entries {
        return Err(Error::damaged(format!(
            "run {} has {entries} entries, the checkpoint says {}",
            run.number, run.entries
        )));
    }
    Ok(entries)
}

/// Walks the index as a whole: every exception must be among the changes of its epoch, and with `data` every
/// chunk must hold its checksum.
fn check_entries(
    view: &View,
    options: CheckOptions,
    report: &mut CheckReport,
    progress: &dyn Progress,
) -> Result<()> {
    let state = &view.state;
    let live = state.live_ids();
    let total: u64 =
        state.segments.values().filter(|segment| segment.role == Role::Log).map(|s| s.live).sum();
    progress.stage(if options.data { "data" } else { "changes" }, options.data.then_some(total));
    let mut unproven: HashMap<(u64, u64), u128> = HashMap::new();
    let mut previous = (u64::MAX, 0);
    let mut scan = view.index().scan(Key::MIN)?;
    while let Some((key, value)) = scan.next_entry()? {
        if key.class == 0 {
            let before = if previous.0 == key.a { previous.1 } else { 0 };
            previous = (key.a, key.b);
            if let Some(owner) = keeper(&live, 0, key.b) {
                *unproven.entry((owner, key.a >> PAGE_BITS)).or_default() |= bit(key.a);
            }
            if options.data && keeper(&live, before, key.b).is_some() {
                let concerned = |id: u64| id > before && id <= key.b;
                check_chunk(view, key.a, &value, &concerned, report)?;
            }
        } else if key.class == 1 {
            if options.data && live.binary_search(&key.a).is_ok() {
                check_chunk(view, key.b, &value, &|id| id == key.a, report)?;
            }
        } else if let Some(owner) = keeper(&live, 0, key.a)
            && let Some(bits) = unproven.get_mut(&(owner, key.b))
        {
            *bits &= !value.bits();
        }
        if key.class < 2 {
            progress.advance(state.cost(&value));
            progress.check()?;
        }
    }
    let missing: u32 = unproven.values().map(|bits| bits.count_ones()).sum();
    if missing > 0 {
        let text = format!("{missing} preserved chunks are not among the changes of their epoch");
        report.add("changes-incomplete", Severity::Repairable, text);
    }
    Ok(())
}

fn check_chunk(
    view: &View,
    chunk: u64,
    value: &Value,
    concerned: &dyn Fn(u64) -> bool,
    report: &mut CheckReport,
) -> Result<()> {
    report.data_bytes += u64::from(value.stored_length);
    let Err(error) = view.fetch(value) else { return Ok(()) };
    if error.kind() != Kind::Damaged {
        return Err(error);
    }
    let start = chunk << view.state.sb.chunk_bits;
    let text = format!("{error}; bytes {start} to {} are lost", start + u64::from(value.raw_length));
    let snapshots = view.state.snapshots.values().filter(|snapshot| concerned(snapshot.id));
    let snapshots = snapshots.map(|snapshot| Tag(snapshot.tag)).collect();
    let finding = report.add("chunk-damaged", Severity::Loss, text);
    finding.offset = Some(value.word);
    finding.snapshots = snapshots;
    Ok(())
}

fn check_tables(state: &State, report: &mut CheckReport) {
    if let Some(operation) = &state.operation {
        let text = format!("{} is incomplete: resume it or roll it back", operation.label);
        report.add("operation-pending", Severity::Note, text);
    }
    let tainted: Vec<Tag> =
        state.snapshots.values().filter(|snapshot| snapshot.tainted).map(|s| Tag(s.tag)).collect();
    if !tainted.is_empty() {
        let text = "the origin was changed behind the store's back, or a rebuild could not prove these whole";
        report.add("snapshots-tainted", Severity::Note, text).snapshots = tainted;
    }
    let tags: Vec<u32> = state.snapshots.values().filter(|s| !s.hidden).map(|s| s.tag).collect();
    let unique: std::collections::HashSet<u32> = tags.iter().copied().collect();
    if unique.len() != tags.len() {
        report.add("tag-twice", Severity::Repairable, "two snapshots have the same tag");
    }
}
