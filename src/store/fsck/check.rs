//! Looking for damage, without a way to write.

use super::balance::balance;
use super::beyond::add_beyond;
use super::data::check_data;
use super::gone::{self, Gone};
use super::walk::check_runs;
use crate::block::ReadAt;
use crate::error::{Kind, Result};
use crate::format::run::IndexEntry;
use crate::format::superblock::Superblock;
use crate::format::table::Snapshot;
use crate::point::finding::Affected;
use crate::point::finding::{Code, Finding, Severity};
use crate::progress::Progress;
use crate::store::index::BlockReader;
use crate::store::outdated;
use crate::store::recover::{self, Superblocks, newer_checkpoint, read_checkpoint};
use crate::store::state::State;
use crate::store::view::{View, origin_changed};
use crate::units::{Epoch, Tag};
use std::collections::HashMap;
use std::sync::Arc;

/// What to look at.
#[derive(Debug, Clone, Copy, Default)]
pub struct CheckOptions {
    /// Read every preserved chunk and every record, and compare their checksums.
    pub data: bool,
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
    /// Chunks that are gone and not marked as such.
    pub(super) gone: Vec<Gone>,
    /// Chunks that no sound record describes.
    pub(super) unlogged: Vec<IndexEntry>,
}

impl CheckReport {
    /// The worst severity found; `None` if nothing was.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(Finding::severity).max()
    }

    /// True if something is wrong, not only worth knowing.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        self.worst().is_some_and(|worst| worst > Severity::Note)
    }

    /// True if the store can be opened as it is.
    #[must_use]
    pub fn opens(&self) -> bool {
        let shut = [Code::SuperblockLost, Code::StoreTruncated, Code::CheckpointLost, Code::LogBroken];
        !self.findings.iter().any(|finding| shut.contains(&finding.code))
    }

    /// Turns damage into a finding; passes on what is not damage.
    fn note_damage<T>(&mut self, code: Code, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.kind() == Kind::Damaged => {
                self.findings.push(Finding::of(code, &error));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Checks the store on `device`; with its `origin`, that too.
///
/// # Errors
/// `Kind::Io` if the medium fails where the tables lie, `Kind::Unsupported` for a newer format,
/// `Kind::Interrupted`. Damage is a finding, not an error.
pub fn check(
    device: &Arc<dyn ReadAt>,
    origin: Option<&dyn ReadAt>,
    options: CheckOptions,
    progress: &dyn Progress,
) -> Result<CheckReport> {
    let (mut report, view) = look(device, options, progress)?;
    if let (Some(view), Some(origin)) = (&view, origin) {
        check_origin(view, origin, &mut report)?;
    }
    Ok(report)
}

/// Checks the store on `device` alone. It is open then, unless what was found keeps it shut, and says where its
/// origin is.
///
/// # Errors
/// As [`check`].
pub fn look(
    device: &Arc<dyn ReadAt>,
    options: CheckOptions,
    progress: &dyn Progress,
) -> Result<(CheckReport, Option<View>)> {
    let mut report = CheckReport::default();
    let Some(state) = check_log(device.as_ref(), &mut report)? else { return Ok((report, None)) };
    report.records = state.log_records;
    let view = View {
        device: Arc::clone(device),
        origin: None,
        reader: Arc::new(BlockReader::new(Arc::clone(device))),
        state,
    };
    if check_runs(&view, &mut report, progress)? {
        check_balance(&view, &mut report, progress)?;
        if options.data {
            check_data(&view, &mut report, progress)?;
        }
    }
    check_tables(&view.state, &mut report);
    Ok((report, Some(view)))
}

/// Both superblocks, both copies of the checkpoint, the log since: what opening the store needs.
fn check_log(device: &dyn ReadAt, report: &mut CheckReport) -> Result<Option<State>> {
    let superblocks = Superblocks::read(device);
    let lost = superblocks.copies.iter().all(Result::is_err);
    for (name, copy) in ["first", "second"].iter().zip(&superblocks.copies) {
        if let Err(error) = copy
            && error.kind() == Kind::Damaged
        {
            let code = if lost { Code::SuperblockLost } else { Code::SuperblockCopy };
            let text = format!("{name} superblock: {}", error.what());
            report.findings.push(Finding { text, ..Finding::of(code, error) });
        }
    }
    if let [Ok(a), Ok(b)] = &superblocks.copies
        && a != b
    {
        // One publication apart is what a crash leaves. More is a write that the device lost.
        let near = a.generation.wrapping_sub(b.generation) <= 1 && a.uuid == b.uuid;
        let code = if near { Code::SuperblockDiffers } else { Code::SuperblockCopy };
        let text = format!("superblocks are of generations {} and {}", a.generation, b.generation);
        report.findings.push(Finding::new(code, text));
    }
    let newest = match superblocks.newest_first() {
        Err(error) if error.kind() == Kind::Damaged => return Ok(None),
        newest => newest?,
    };
    let Some(sb) = newest.into_iter().next() else { return Ok(None) };
    if device.size() < sb.end() {
        let text = format!(
            "the device has {} bytes, its superblock says {}: restore its full size; \
             `--rebuild` gives up what lies beyond",
            device.size(),
            sb.end()
        );
        report.findings.push(Finding::new(Code::StoreTruncated, text));
        return Ok(None);
    }
    if !check_checkpoint(device, &sb, report)? {
        return Ok(None);
    }
    let replayed = recover::load_and_replay(device);
    let Some(state) = report.note_damage(Code::LogBroken, replayed)? else { return Ok(None) };
    let newest = outdated::ensure_newest_of_all(device, &state);
    Ok(report.note_damage(Code::CheckpointLost, newest)?.map(|()| state))
}

/// True if one of the copies is sound.
fn check_checkpoint(device: &dyn ReadAt, sb: &Superblock, report: &mut CheckReport) -> Result<bool> {
    if let Some(newer) = newer_checkpoint(device, sb)? {
        let text = format!(
            "the superblock is an old one: it tells of checkpoint {}, and {newer} lies in its place",
            sb.checkpoint
        );
        report.findings.push(Finding::new(Code::CheckpointLost, text));
        return Ok(false);
    }
    let mut damage = Vec::new();
    for (name, copy) in [("first", 0), ("second", 1)] {
        if let Err(error) = read_checkpoint(device, sb, copy) {
            if error.kind() != Kind::Damaged {
                return Err(error);
            }
            damage.push((format!("{name} copy of checkpoint {}: {}", sb.checkpoint, error.what()), error));
        }
    }
    let code = if damage.len() == 2 { Code::CheckpointLost } else { Code::CheckpointCopy };
    let sound = damage.len() < 2;
    let findings =
        damage.iter().map(|(text, error)| Finding { text: text.clone(), ..Finding::of(code, error) });
    report.findings.extend(findings);
    Ok(sound)
}

fn check_balance(view: &View, report: &mut CheckReport, progress: &dyn Progress) -> Result<()> {
    let mut found = balance(view, &view.state.live_ids(), progress)?;
    add_beyond(view, &mut found.missing, progress)?;
    if found.unmarked > 0 {
        let text = format!("{} preserved chunks are not among the changes of their epoch", found.unmarked);
        report.findings.push(Finding::new(Code::ChangesIncomplete, text));
    }
    if !found.missing.is_empty() {
        let affected = gone::affected(view, &mut found.missing)?;
        let text = format!(
            "{} chunks are not where they were any more, and the index has no entry for them",
            found.missing.len()
        );
        report.findings.push(Finding::new(Code::ChunkMissing, text).concerning(affected));
        report.gone.append(&mut found.missing);
    }
    Ok(())
}

fn check_tables(state: &State, report: &mut CheckReport) {
    if let Some(operation) = &state.operation {
        let text = format!("{} is incomplete: resume it or roll it back", operation.label);
        report.findings.push(Finding::new(Code::OperationPending, text));
        if !state.snapshots.contains_key(&operation.before) {
            let text =
                format!("{} keeps the state before it in a snapshot that is not there", operation.label);
            report.findings.push(Finding::new(Code::SnapshotImpossible, text));
        }
    }
    for snapshot in state.snapshots.values() {
        if snapshot.id > state.epoch {
            let text =
                format!("snapshot {} has id {}, the epoch is {}", snapshot.tag, snapshot.id, state.epoch);
            report.findings.push(Finding::new(Code::SnapshotImpossible, text));
        }
    }
    let tainted = whole(state, |snapshot| snapshot.tainted);
    if !tainted.is_empty() {
        let text = "the origin was changed behind the store's back, or a rebuild could not prove these whole";
        report.findings.push(Finding::new(Code::SnapshotsTainted, text).concerning(tainted));
    }
    let mut seen: HashMap<u32, u64> = HashMap::new();
    for snapshot in state.snapshots.values().filter(|snapshot| !snapshot.hidden) {
        if let Some(other) = seen.insert(snapshot.tag, snapshot.id) {
            let text = format!("snapshots with ids {other} and {} have tag {}", snapshot.id, snapshot.tag);
            report.findings.push(Finding::new(Code::TagTwice, text));
        }
    }
}

/// The snapshots that `chosen` names, as a whole.
fn whole(state: &State, chosen: impl Fn(&Snapshot) -> bool) -> Vec<Affected> {
    let rows = state
        .snapshots
        .values()
        .filter(|snapshot| !snapshot.hidden && !snapshot.squashed && chosen(snapshot));
    rows.map(|snapshot| Affected {
        id: Epoch(snapshot.id),
        tag: Some(Tag(snapshot.tag)),
        ranges: Vec::new(),
        more: 0,
    })
    .collect()
}

/// Adds what is wrong with `origin` as that of the store that `view` shows.
///
/// # Errors
/// `Kind::Io`.
pub fn check_origin(view: &View, origin: &dyn ReadAt, report: &mut CheckReport) -> Result<()> {
    let state = &view.state;
    let (has, needs) = (origin.size(), state.volume.origin_size);
    if has < needs {
        let text = format!(
            "{} has {has} bytes, the store says {needs}: enlarge it (what comes back need not be what was there), \
             then 'ddsnap resize -o {has}' makes it as small again; or name the right one with --origin",
            origin.path().display()
        );
        report.findings.push(Finding::new(Code::OriginSmall, text));
    } else if origin_changed(state, origin)? && !state.snapshots.is_empty() {
        let text = format!("{} is not what it was when the store was closed", origin.path().display());
        let all = whole(state, |snapshot| !snapshot.tainted);
        report.findings.push(Finding::new(Code::OriginChanged, text).concerning(all));
    }
    Ok(())
}
