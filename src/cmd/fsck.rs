//! `fsck`: looks for damage in a store, and repairs what can be repaired.

use super::common::{OldArgs, RateArgs, VolArgs};
use super::fsck_report::{self, Outcome};
use super::{documents, fsck_old, open, open_old};
use crate::block::file::FileReader;
use crate::block::overlay::Overlay;
use crate::block::{ReadAt, WriteAt};
use crate::error::{Error, Kind, Result};
use crate::legacy;
use crate::progress::Progress;
use crate::store::fsck::{
    self, CheckOptions, CheckReport, Code, Finding, Leave, RebuildOptions, Repaired, rebuild, repair,
};
use crate::store::{is_unfinished, switch};
use crate::ui::exit::Exit;
use crate::ui::{Ui, time};
use crate::units::Uuid;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const EXAMPLES: &str = "Examples:
  ddsnap fsck -n data.snap
  ddsnap fsck -n --data --json data.snap
  ddsnap fsck -y --dry-run data.snap

The exit status is that of fsck(8): 0 clean, 1 repaired, 4 something is left or lost, 8 could not be checked.";

/// Check a snapshot store, and repair it if asked to
///
/// Without -n, -p or -y, and without a terminal to ask on, nothing is changed. A repair never changes the
/// bytes of a snapshot: what is gone is marked, so that reading it is an error, and what cannot be proven any more
/// must be insisted on to be read.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("leave").args(["no", "preen", "yes"]))]
pub struct Args {
    /// Only look, change nothing
    #[arg(short, long, conflicts_with_all = ["rebuild", "accept_taint", "dry_run"])]
    no: bool,
    /// Repair what can be repaired without giving anything up
    #[arg(short, long)]
    preen: bool,
    /// Repair everything; mark what is lost for good
    #[arg(short, long)]
    yes: bool,
    /// Rebuild the index from the records, damaged or not; give up what is gone
    #[arg(long, conflicts_with = "preen")]
    rebuild: bool,
    /// Of several stores of which something is left, rebuild this one; else it is the one that was written last
    #[arg(long, value_name = "UUID", value_parser = parse_uuid, requires = "rebuild")]
    uuid: Option<Uuid>,
    /// Read all preserved data and all records, and compare their checksums
    #[arg(long)]
    data: bool,
    /// Only print what would be repaired, and what would be lost; the exit status is as with -n
    #[arg(long)]
    dry_run: bool,
    /// Accept tainted snapshots for good as they read now
    #[arg(long)]
    accept_taint: bool,
    /// Where the origin is now, if not where the store remembers it
    #[arg(long, value_name = "PATH")]
    origin: Option<PathBuf>,
    #[command(flatten)]
    old: OldArgs,
    #[command(flatten)]
    rate: RateArgs,
    /// Print one JSON document (schema ddsnap.fsck/1)
    #[arg(long)]
    json: bool,
    /// The snapshot store: a block device or a file
    #[arg(value_name = "STORE")]
    store: PathBuf,
}

/// The identity of a store, as reports print it.
fn parse_uuid(text: &str) -> std::result::Result<Uuid, String> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let mut bytes = [0; 16];
    hex::decode_to_slice(digits, &mut bytes).map_err(|_| "expected 32 hexadecimal digits".to_owned())?;
    Ok(Uuid(bytes))
}

/// Runs the command.
///
/// # Errors
/// Whatever leaves the question open: the store cannot be opened, the medium fails.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let doing = || format!("cannot check {}", args.store.display());
    check_and_repair(args, ui).map_err(|error| error.doing(doing()))
}

fn check_and_repair(args: &Args, ui: &Ui) -> Result<Exit> {
    let paced = args.rate.paced(ui);
    let progress = paced.as_deref().unwrap_or_else(|| ui.progress());
    if let Some(devices) = open_old::devices(&args.store, &args.old, args.origin.as_deref())? {
        return check_old(args, devices, ui, progress);
    }
    let (device, leave, found) = look_first(args, ui, progress)?;
    if leave.is_none() && switch::ensure_settled(&open::store_reader(&args.store, &args.old)?).is_err() {
        documents::warn_uncommitted(&args.store, ui);
    }
    let mut outcome =
        Outcome { found: found.clone(), left: found, dry_run: args.dry_run, ..Outcome::default() };
    tell_what_else(args, &outcome, ui)?;
    if let (Some(device), Some(leave)) = (device, leave) {
        let mendable = outcome.found.findings.iter().any(|finding| leave.mends(finding.code));
        if args.rebuild || mendable {
            mend(args, leave, &device, &mut outcome, ui, progress)?;
            outcome.left = look(args, &as_reader(&device), progress)?;
            outcome.left.findings.extend(outcome.refused.clone());
        }
    }
    if args.accept_taint && !args.dry_run && outcome.left.opens() {
        outcome.taint_accepted = accept_taint(args)?;
    }
    report(args, &outcome, ui)
}

/// What a device without any superblock may be instead of a damaged store.
fn tell_what_else(args: &Args, outcome: &Outcome, ui: &Ui) -> Result<()> {
    let is_lost = outcome.found.findings.iter().any(|finding| finding.code == Code::SuperblockLost);
    if !is_lost || outcome.found.records > 0 {
        return Ok(());
    }
    if is_unfinished(&FileReader::open_origin_read(&args.store)?)? {
        ui.warn("it holds an upgrade that was not finished: run that 'ddsnap upgrade' again");
    } else {
        ui.warn("if it has the data of a store of 2008, name the device with its metadata with --meta");
    }
    Ok(())
}

fn report(args: &Args, outcome: &Outcome, ui: &Ui) -> Result<Exit> {
    if args.json {
        ui.json(&outcome.document())?;
    } else {
        outcome.print(&args.store, ui)?;
    }
    Ok(outcome.exit())
}

/// A store of 2008 has no index that could be rebuilt, and tells nothing of taint.
fn check_old(args: &Args, devices: legacy::Devices, ui: &Ui, progress: &dyn Progress) -> Result<Exit> {
    if args.rebuild || args.accept_taint {
        let what = "a store of 2008 has neither an index to rebuild nor taint to accept";
        return Err(Error::new(Kind::Unsupported, what)
            .at_path(&args.store)
            .hint("-p and -y repair it; 'ddsnap upgrade' makes a new store of what can be read"));
    }
    let wish = fsck_old::Wish {
        store: &args.store,
        old: &args.old,
        origin: args.origin.as_deref(),
        leave: leave(args),
        no: args.no,
        dry_run: args.dry_run,
        data: args.data,
        json: args.json,
    };
    report(args, &fsck_old::run(&wish, devices, ui, progress)?, ui)
}

/// How far the options let a repair go; none of them asks for one.
fn leave(args: &Args) -> Option<Leave> {
    match (args.preen, args.yes || args.rebuild || args.dry_run) {
        (true, _) => Some(Leave::Safe),
        (_, true) => Some(Leave::Everything),
        _ => None,
    }
}

/// What repairs write to, if there is leave for any.
type Device = Option<Arc<dyn WriteAt>>;

/// Opens the store as the user gives leave, and looks at it. What is repaired later is what was seen then: nobody
/// else can change it in between.
fn look_first(args: &Args, ui: &Ui, progress: &dyn Progress) -> Result<(Device, Option<Leave>, CheckReport)> {
    let given = leave(args);
    let device = given.map(|_| self::device(args)).transpose()?;
    let found = match &device {
        Some(device) => look(args, &as_reader(device), progress)?,
        None => look(args, &open::store_reader(&args.store, &args.old)?, progress)?,
    };
    if !args.json {
        fsck_report::print_findings(&found.findings, ui)?;
    }
    let question = format!("{} can be repaired", args.store.display());
    if given.is_some() || args.no || !found.is_bad() || ui.confirm(&question, "-y").is_err() {
        return Ok((device, given, found));
    }
    let device = self::device(args)?;
    let found = look(args, &as_reader(&device), progress)?;
    Ok((Some(device), Some(Leave::Everything), found))
}

/// The same device, for reading.
fn as_reader(device: &Arc<dyn WriteAt>) -> Arc<dyn ReadAt> {
    Arc::<dyn WriteAt>::clone(device)
}

/// Looks at the store, and at its origin if that is where it should be.
fn look(args: &Args, store: &Arc<dyn ReadAt>, progress: &dyn Progress) -> Result<CheckReport> {
    let (mut report, view) = fsck::look(store, CheckOptions { data: args.data }, progress)?;
    let Some(view) = view else { return Ok(report) };
    let found = match &args.origin {
        Some(path) => Ok(FileReader::open_origin_read(path)?),
        None => FileReader::open_origin_read(&view.info().origin_path),
    };
    match found {
        Ok(origin) => fsck::check_origin(&view, &origin, &mut report)?,
        Err(error) => report.findings.push(Finding::new(Code::OriginMissing, error.to_string())),
    }
    Ok(report)
}

/// What repairs write to: the store, or a picture of it in memory.
fn device(args: &Args) -> Result<Arc<dyn WriteAt>> {
    Ok(match args.dry_run {
        true => {
            let store = open::store_reader(&args.store, &args.old)?;
            switch::ensure_settled(&store)?;
            Arc::new(Overlay::new(store))
        }
        false => Arc::new(open::store_writer(&args.store, &args.old)?),
    })
}

fn mend(
    args: &Args,
    leave: Leave,
    device: &Arc<dyn WriteAt>,
    outcome: &mut Outcome,
    ui: &Ui,
    progress: &dyn Progress,
) -> Result<()> {
    let options = RebuildOptions {
        now_secs: time::now_secs(),
        give_up: true,
        shorter: args.rebuild,
        origin: args.origin.as_deref().map(hint_of).transpose()?,
        uuid: args.uuid,
    };
    let repaired = match args.rebuild {
        true => rebuild(device, &options, progress)
            .map(|report| Repaired { rebuilt: Some(report), ..Repaired::default() }),
        false => repair(device, &outcome.found, leave, &options, progress),
    };
    match repaired {
        Ok(repaired) => {
            let refused = repaired.rebuilt.iter().filter(|report| !report.published);
            outcome.refused = refused.flat_map(|report| report.findings.clone()).collect();
            outcome.repaired = repaired;
            Ok(())
        }
        // Nothing to rebuild from: that is an answer, not a failure to look.
        Err(error) if error.kind() == Kind::Damaged => {
            ui.error(&error.doing(format!("cannot rebuild {}", args.store.display())));
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// The path and size of an origin, for a store that has forgotten them.
fn hint_of(path: &Path) -> Result<(Vec<u8>, u64)> {
    let origin = FileReader::open_origin_read(path)?;
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    Ok((path.as_os_str().as_bytes().to_vec(), origin.size()))
}

/// True if there was anything to accept.
fn accept_taint(args: &Args) -> Result<bool> {
    // With the origin at hand, what it holds now is what is accepted.
    let vol = VolArgs { vol: args.store.clone(), origin: args.origin.clone(), old: OldArgs::default() };
    let mut writer = match open::writer_with_origin(&vol) {
        Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Busy | Kind::Mismatch) => {
            open::writer(&args.store, &args.old)?
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
