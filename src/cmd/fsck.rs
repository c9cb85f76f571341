//! `fsck`: looks for damage in a store, and repairs what can be repaired.

use super::common::VolArgs;
use super::open;
use crate::error::{Kind, Result};
use crate::store::fsck::check::{CheckOptions, CheckReport, Finding, Severity, check};
use crate::store::fsck::rebuild::{RebuildReport, rebuild};
use crate::ui::exit::Exit;
use crate::ui::{Ui, escape, time};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;

const EXAMPLES: &str = "Examples:
  ddsnap fsck -n data.snap
  ddsnap fsck -n --data --json data.snap

The exit status is that of fsck(8): 0 clean, 1 repaired, 4 left uncorrected, 8 could not be checked.";

/// Check a snapshot store, and repair it if asked to
///
/// Without -n, -p or -y, and without a terminal to ask on, nothing is changed. A repair never changes the
/// bytes of a snapshot: what cannot be proven any more is marked, and must be insisted on to be read.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("leave").args(["no", "preen", "yes"]))]
pub struct Args {
    /// Only look, change nothing
    #[arg(short, long, conflicts_with_all = ["rebuild", "accept_taint"])]
    no: bool,
    /// Repair what can be repaired from its second copy
    #[arg(short, long)]
    preen: bool,
    /// Repair all that can be repaired; rebuild the index if it is damaged
    #[arg(short, long)]
    yes: bool,
    /// Rebuild the index from the records, damaged or not
    #[arg(long, conflicts_with = "preen")]
    rebuild: bool,
    /// Read all preserved data and compare their checksums
    #[arg(long)]
    data: bool,
    /// Accept tainted snapshots for good as they read now
    #[arg(long)]
    accept_taint: bool,
    /// Print one JSON document (schema ddsnap.fsck/1)
    #[arg(long)]
    json: bool,
    /// The snapshot store: a block device or a file
    #[arg(value_name = "STORE")]
    store: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// Whatever leaves the question open: the store cannot be opened, the medium fails.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let doing = || format!("cannot check {}", args.store.display());
    check_and_repair(args, ui).map_err(|error| error.doing(doing()))
}

/// What was done about the findings.
#[derive(Default)]
struct Repair {
    superblocks: bool,
    rebuilt: Option<RebuildReport>,
    taint_accepted: bool,
}

impl Repair {
    /// True if a rebuild could not prove that nothing was lost.
    fn has_doubts(&self) -> bool {
        self.rebuilt.as_ref().is_some_and(|rebuilt| !rebuilt.doubts.is_empty())
    }

    fn is_any(&self) -> bool {
        self.superblocks || self.rebuilt.is_some() || self.taint_accepted
    }
}

fn check_and_repair(args: &Args, ui: &Ui) -> Result<Exit> {
    let found = look(args, ui)?;
    if !args.json {
        print_findings(&found, ui)?;
    }
    let mut repair = Repair::default();
    let mut left = found.clone();
    if args.rebuild || (!args.no && is_bad(&found) && has_leave(args, ui)) {
        left = mend(args, found.clone(), &mut repair, ui)?;
    }
    if args.accept_taint && !is_broken(&left) {
        repair.taint_accepted = accept_taint(args)?;
    }
    let exit = match (is_bad(&left) || repair.has_doubts(), repair.is_any()) {
        (true, _) => Exit::FsckLeft,
        (false, true) => Exit::FsckRepaired,
        (false, false) => Exit::Done,
    };
    if args.json {
        ui.json(&document(&found, &left, &repair, exit))?;
    } else {
        print_end(args, &left, &repair, ui)?;
    }
    Ok(exit)
}

fn look(args: &Args, ui: &Ui) -> Result<CheckReport> {
    let store = open::store_reader(&args.store)?;
    check(&store, CheckOptions { data: args.data }, ui.progress())
}

/// True if something is wrong, not only worth knowing.
fn is_bad(report: &CheckReport) -> bool {
    report.worst().is_some_and(|worst| worst > Severity::Note)
}

/// True if the store cannot be opened as it is.
fn is_broken(report: &CheckReport) -> bool {
    report.findings.iter().any(|finding| matches!(finding.code, "superblock-lost" | "log-broken"))
}

fn is_superblock(finding: &Finding) -> bool {
    matches!(finding.code, "superblock-copy" | "superblock-differs")
}

/// True if a rebuild of the index may help; it brings no data back.
fn wants_rebuild(report: &CheckReport) -> bool {
    let bad = |finding: &&Finding| finding.severity > Severity::Note && finding.code != "chunk-damaged";
    report.findings.iter().any(|finding| bad(&finding))
}

fn has_leave(args: &Args, ui: &Ui) -> bool {
    let question = format!("{} can be repaired", args.store.display());
    args.preen || args.yes || ui.confirm(&question, "-y").is_ok()
}

/// Repairs, and looks again.
fn mend(args: &Args, mut report: CheckReport, repair: &mut Repair, ui: &Ui) -> Result<CheckReport> {
    if report.findings.iter().any(is_superblock) && !is_broken(&report) {
        // Opening makes both copies say the same.
        open::writer(&args.store)?.close()?;
        repair.superblocks = true;
        report = look(args, ui)?;
    }
    if args.rebuild || (!args.preen && wants_rebuild(&report)) {
        let store = Arc::new(open::store_writer(&args.store)?);
        let store: Arc<dyn crate::block::WriteAt> = store;
        match rebuild(&store, time::now_secs(), ui.progress()) {
            Ok(rebuilt) => repair.rebuilt = Some(rebuilt),
            // Nothing to rebuild from: that is an answer, not a failure to look.
            Err(error) if error.kind() == Kind::Damaged => {
                ui.error(&error.doing(format!("cannot rebuild {}", args.store.display())));
            }
            Err(error) => return Err(error),
        }
        drop(store);
        report = look(args, ui)?;
    }
    Ok(report)
}

/// True if there was anything to accept.
fn accept_taint(args: &Args) -> Result<bool> {
    // With the origin at hand, what it holds now is what is accepted.
    let vol = VolArgs { vol: args.store.clone(), origin: None };
    let mut writer = match open::writer_with_origin(&vol) {
        Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Busy | Kind::Mismatch) => {
            open::writer(&args.store)?
        }
        opened => opened?,
    };
    let tainted = writer.view().snapshots().iter().any(|snapshot| snapshot.tainted);
    if tainted {
        writer.accept_taint()?;
    }
    writer.close()?;
    Ok(tainted)
}

fn severity_word(severity: Severity) -> &'static str {
    match severity {
        Severity::Note => "note",
        Severity::Repairable => "repairable",
        Severity::Loss => "loss",
    }
}

fn print_findings(report: &CheckReport, ui: &Ui) -> Result<()> {
    for finding in &report.findings {
        let offset = finding.offset.map(|offset| format!(" at byte {offset}")).unwrap_or_default();
        let snapshots: String = finding.snapshots.iter().map(|tag| format!(" {tag}")).collect();
        let snapshots =
            if snapshots.is_empty() { snapshots } else { format!(" (snapshots concerned:{snapshots})") };
        let (word, code) = (severity_word(finding.severity), finding.code);
        ui.print(&format!("{word}: {code}{offset}: {}{snapshots}", escape::line(&finding.text)))?;
    }
    Ok(())
}

fn print_end(args: &Args, left: &CheckReport, repair: &Repair, ui: &Ui) -> Result<()> {
    if repair.superblocks {
        ui.print("repaired: both superblocks say the same again")?;
    }
    if let Some(rebuilt) = &repair.rebuilt {
        ui.print(&format!("rebuilt: {} index entries from {} records", rebuilt.entries, rebuilt.records))?;
        for doubt in &rebuilt.doubts {
            ui.print(&format!("doubt: {}", escape::line(doubt)))?;
        }
        if repair.has_doubts() {
            ui.print("every snapshot is marked as tainted: something that it needs may be lost")?;
        }
    }
    if repair.taint_accepted {
        ui.print("accepted: no snapshot is tainted any more")?;
    }
    let path = args.store.display();
    let looked = format!(
        "{} records, {} index entries, {} bytes of data",
        left.records, left.entries, left.data_bytes
    );
    let verdict = match (is_bad(left), repair.is_any()) {
        (true, true) => {
            print_findings(left, ui)?;
            "errors are left"
        }
        (true, false) => "errors are left",
        (false, _) if repair.has_doubts() => "usable, but something is lost",
        (false, _) => "clean",
    };
    ui.print(&format!("{path}: {verdict}; looked at {looked}"))
}

fn findings_json(report: &CheckReport) -> Value {
    report
        .findings
        .iter()
        .map(|finding| {
            json!({
                "code": finding.code,
                "severity": severity_word(finding.severity),
                "text": finding.text,
                "offset": finding.offset,
                "snapshots": finding.snapshots.iter().map(|tag| tag.0).collect::<Vec<_>>(),
            })
        })
        .collect()
}

fn document(found: &CheckReport, left: &CheckReport, repair: &Repair, exit: Exit) -> Value {
    json!({
        "schema": "ddsnap.fsck/1",
        "verdict": exit.name(),
        "findings": findings_json(found),
        "left": findings_json(left),
        "repair": {
            "superblocks": repair.superblocks,
            "taint_accepted": repair.taint_accepted,
            "rebuilt": repair.rebuilt.as_ref().map(|rebuilt| json!({
                "records": rebuilt.records,
                "entries": rebuilt.entries,
                "doubts": rebuilt.doubts,
            })),
        },
        "looked_at": { "records": left.records, "entries": left.entries, "data_bytes": left.data_bytes },
    })
}
