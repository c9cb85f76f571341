//! What `fsck` says of what it found and did.

use crate::error::Result;
use crate::legacy::{self, What};
use crate::store::fsck::{Affected, CheckReport, Finding, RebuildReport, Repair, Repaired};
use crate::ui::exit::Exit;
use crate::ui::{Ui, escape};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Ranges of a snapshot printed for people; JSON has all.
const RANGES: usize = 4;
/// Writes of a repair that is not made printed for people; JSON has all.
const WRITES: usize = 64;

/// What was found, done and left.
#[derive(Default)]
pub struct Outcome {
    /// Before any repair.
    pub found: CheckReport,
    /// After it.
    pub left: CheckReport,
    /// What a rebuild would have given up, and was not allowed to.
    pub refused: Vec<Finding>,
    /// What was done.
    pub repaired: Repaired,
    /// What was done to a store of 2008.
    pub old: Option<legacy::Repaired>,
    /// Taint was accepted.
    pub taint_accepted: bool,
    /// Nothing of it happened.
    pub dry_run: bool,
}

impl Outcome {
    fn published(&self) -> Option<&RebuildReport> {
        self.repaired.rebuilt.as_ref().filter(|rebuilt| rebuilt.published)
    }

    /// True if something could not be brought back.
    fn is_lossy(&self) -> bool {
        self.old.as_ref().is_some_and(|old| !old.lost.is_empty())
            || self.repaired.marked > 0
            || self.published().is_some_and(|rebuilt| !rebuilt.findings.is_empty())
    }

    fn is_repaired(&self) -> bool {
        self.repaired.republished
            || self.repaired.relogged > 0
            || self.published().is_some()
            || self.old.as_ref().is_some_and(|old| !old.writes.is_empty())
            || self.taint_accepted
    }

    /// The exit status.
    pub fn exit(&self) -> Exit {
        // What a dry run would mend is still there after it.
        let is_left = self.left.is_bad() || (self.dry_run && self.found.is_bad());
        let bad = self.is_lossy() || is_left;
        match (bad, self.is_repaired() && !self.dry_run) {
            (true, _) => Exit::FsckLeft,
            (false, true) => Exit::FsckRepaired,
            (false, false) => Exit::Done,
        }
    }

    /// Prints what was done and what is left.
    pub fn print(&self, store: &Path, ui: &Ui) -> Result<()> {
        let would = if self.dry_run { "would be " } else { "" };
        if self.repaired.republished {
            ui.print(&format!(
                "{would}repaired: both superblocks and both copies of the tables are written anew"
            ))?;
        }
        if self.repaired.marked > 0 {
            ui.print(&format!(
                "{would}marked: {} chunks as lost; reading them is an error",
                self.repaired.marked
            ))?;
        }
        if self.repaired.relogged > 0 {
            ui.print(&format!(
                "{would}repaired: {} chunks are written to the log again",
                self.repaired.relogged
            ))?;
        }
        if let Some(rebuilt) = &self.repaired.rebuilt {
            self.print_rebuild(rebuilt, would, ui)?;
        }
        if let Some(old) = &self.old {
            self.print_old(old, would, ui)?;
        }
        if self.taint_accepted {
            ui.print("accepted: no snapshot is tainted any more")?;
        }
        let looked = format!(
            "{} records, {} index entries, {} bytes of data",
            self.left.records, self.left.entries, self.left.data_bytes
        );
        let touched = self.is_repaired() || self.repaired.marked > 0;
        let verdict = match (self.left.is_bad(), touched) {
            (true, true) => {
                ui.print("left:")?;
                print_findings(&self.left.findings, ui)?;
                "errors are left"
            }
            (true, false) => "errors are left",
            (false, _) if self.is_lossy() => "usable, but something is lost",
            (false, _) => "clean",
        };
        let would = if self.dry_run && touched { "would be " } else { "" };
        ui.print(&format!(
            "{}: {would}{verdict}; looked at {looked}",
            escape::line(&store.display().to_string())
        ))
    }

    fn print_rebuild(&self, rebuilt: &RebuildReport, would: &str, ui: &Ui) -> Result<()> {
        let verb = if rebuilt.published { "rebuilt" } else { "not rebuilt" };
        ui.print(&format!(
            "{would}{verb}: {} index entries from {} records",
            rebuilt.entries, rebuilt.records
        ))?;
        if rebuilt.relogged > 0 {
            ui.print(&format!("{would}repaired: {} chunks are written to the log again", rebuilt.relogged))?;
        }
        if rebuilt.published && rebuilt.marked > 0 {
            ui.print(&format!("{would}marked: {} chunks as lost; reading them is an error", rebuilt.marked))?;
        }
        for other in &rebuilt.others {
            let tables = match other.checkpoint {
                Some(number) => format!("checkpoint {number}"),
                None => "no checkpoint".to_owned(),
            };
            ui.print(&format!(
                "note: this is store {}; of store {} there are {} records and {tables}: `--rebuild --uuid {}` takes \
                 that one, as long as nothing overwrites it",
                rebuilt.uuid, other.uuid, other.records, other.uuid
            ))?;
        }
        if !rebuilt.published {
            ui.print("something is lost for good: -y rebuilds all the same, and marks it")?;
            // Listed with what is left.
            return Ok(());
        }
        print_all(&rebuilt.findings, !rebuilt.published, ui)
    }

    fn print_old(&self, old: &legacy::Repaired, would: &str, ui: &Ui) -> Result<()> {
        if old.writes.is_empty() {
            return Ok(());
        }
        let mut counts: BTreeMap<What, u64> = BTreeMap::new();
        for write in &old.writes {
            *counts.entry(write.what).or_default() += 1;
        }
        let counts: Vec<String> =
            counts.into_iter().map(|(what, count)| format!("{count} of the {}", what.name())).collect();
        ui.print(&format!("{would}repaired: writes: {}", counts.join(", ")))?;
        if self.dry_run {
            for write in old.writes.iter().take(WRITES) {
                let differ = write.old.iter().zip(&write.new).filter(|(old, new)| old != new).count();
                let (offset, size, what) = (write.offset, write.new.len(), write.what.name());
                let change = match write.old.is_empty() {
                    true => "where it is free".to_owned(),
                    false => format!("{differ} of them change"),
                };
                ui.print(&format!("    {size} bytes at byte {offset}: {what}, {change}"))?;
            }
            if old.writes.len() > WRITES {
                ui.print(&format!("    and {} more (--json has them)", old.writes.len() - WRITES))?;
            }
        }
        print_all(&old.lost, false, ui)
    }

    /// The JSON document.
    pub fn document(&self) -> Value {
        json!({
            "schema": "ddsnap.fsck/1",
            "verdict": self.exit().name(),
            "dry_run": self.dry_run,
            "findings": list(&self.found.findings),
            "left": list(&self.left.findings),
            "repair": {
                "republished": self.repaired.republished,
                "marked": self.repaired.marked,
                "relogged": self.repaired.relogged,
                "taint_accepted": self.taint_accepted,
                "writes": self.old.as_ref().map_or_else(Vec::new, |old| self.writes(&old.writes)),
                "lost": list(self.old.as_ref().map_or(&[], |old| &old.lost)),
                "rebuilt": self.repaired.rebuilt.as_ref().map(|rebuilt| json!({
                    "published": rebuilt.published,
                    "records": rebuilt.records,
                    "entries": rebuilt.entries,
                    "marked": rebuilt.marked,
                    "relogged": rebuilt.relogged,
                    "findings": list(&rebuilt.findings),
                    "uuid": rebuilt.uuid.to_string(),
                    "others": rebuilt.others.iter().map(|other| json!({
                        "uuid": other.uuid.to_string(),
                        "records": other.records,
                        "written_secs": other.written_secs,
                        "checkpoint": other.checkpoint,
                    })).collect::<Vec<_>>(),
                })),
            },
            "looked_at": {
                "records": self.left.records,
                "entries": self.left.entries,
                "data_bytes": self.left.data_bytes,
            },
        })
    }
}

impl Outcome {
    /// The writes of a repair of a store of 2008; what they replace is told as long as it is there, and
    /// if it means anything.
    fn writes(&self, writes: &[legacy::Write]) -> Vec<Value> {
        let bytes = |bytes: &[u8]| (self.dry_run && !bytes.is_empty()).then(|| hex::encode(bytes));
        let write = |write: &legacy::Write| {
            json!({
                "offset": write.offset,
                "length": write.new.len(),
                "what": write.what.name(),
                "old": bytes(&write.old),
                "new": bytes(&write.new),
            })
        };
        writes.iter().map(write).collect()
    }
}

/// Prints findings: what, for whom, what it means, what mends it.
pub fn print_findings(findings: &[Finding], ui: &Ui) -> Result<()> {
    print_all(findings, true, ui)
}

/// `open`: it is not mended yet.
fn print_all(findings: &[Finding], open: bool, ui: &Ui) -> Result<()> {
    for (number, finding) in findings.iter().enumerate() {
        let offset = finding.offset.map(|offset| format!(" at byte {offset}")).unwrap_or_default();
        let (word, code) = (finding.severity().name(), finding.code);
        ui.print(&format!("{word}: {code}{offset}: {}", escape::line(&finding.text)))?;
        for affected in &finding.affected {
            ui.print(&format!("    {}", describe(affected)))?;
        }
        if findings.get(number + 1).is_some_and(|next| next.code == finding.code) {
            continue;
        }
        ui.print(&format!("    {}", finding.code.meaning()))?;
        if open || finding.code.repair() == Repair::Accept {
            ui.print(&format!("    repair: {}", finding.code.repair().explain()))?;
        }
    }
    Ok(())
}

/// The snapshot and its bytes, for people.
pub fn describe(affected: &Affected) -> String {
    let name = match affected.tag {
        Some(tag) => format!("snapshot {tag}"),
        None => "the state before the pending operation".into(),
    };
    if affected.ranges.is_empty() {
        return name;
    }
    let shown: Vec<String> = affected
        .ranges
        .iter()
        .take(RANGES)
        .map(|range| format!("{} to {}", range.start, range.end))
        .collect();
    let more = (affected.ranges.len().saturating_sub(RANGES)) as u64 + affected.more;
    let more = if more > 0 { format!(" and {more} ranges more (--json has them)") } else { String::new() };
    format!("{name}: bytes {}{more}", shown.join(", "))
}

fn list(findings: &[Finding]) -> Value {
    findings
        .iter()
        .map(|finding| {
            json!({
                "code": finding.code.name(),
                "severity": finding.severity().name(),
                "meaning": finding.code.meaning(),
                "repair": finding.code.repair().name(),
                "text": finding.text,
                "offset": finding.offset,
                "snapshots": finding.affected.iter().map(snapshot).collect::<Vec<_>>(),
            })
        })
        .collect()
}

fn snapshot(affected: &Affected) -> Value {
    json!({
        "id": affected.id.0,
        "tag": affected.tag.map(|tag| tag.0),
        "ranges": affected.ranges.iter().map(|range| [range.start, range.end]).collect::<Vec<_>>(),
        "more": affected.more,
    })
}
