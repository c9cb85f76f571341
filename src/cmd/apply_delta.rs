//! `apply-delta`: a delta onto a plain device or file, or onto the origin of a volume.

use super::common::{OldArgs, RateArgs, VolArgs};
use super::transfer::Limited;
use super::{documents, open, open_old, overlap, revert};
use crate::block::WriteAt;
use crate::block::file::{FileReader, FileWriter};
use crate::block::overlay::Overlay;
use crate::delta::{
    ApplyOptions, ApplySummary, BasedTarget, FileTarget, Input, Part, TargetState, apply, apply_to_store,
};
use crate::error::{Error, Kind, Result};
use crate::ui::exit::Exit;
use crate::ui::{Ui, size};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "Examples:
  ddsnap apply-delta 1-2.delta copy.img
  ddsnap apply-delta --undo back.delta 1-2.delta copy.img
  ddsnap create-delta data.snap 1 2 - | ddsnap apply-delta --resume - copy.img
  ddsnap apply-delta --resume-token copy.img
  ddsnap apply-delta --dry-run 1-2.delta copy.img";

/// Apply a delta to a device, a file, or the origin of a volume
///
/// DELTA is a delta, or what 'rbd export-diff' writes; such a diff proves nothing of its base and mostly needs --force.
/// It may also be a delta of 2008: TARGET must have its final size then, and only sums of bytes are proven.
/// The whole delta and its base are verified before anything is written. If TARGET is a snapshot store, its
/// origin is changed, its snapshots stay whole, and an apply that was interrupted can be resumed by the same
/// command or rolled back. On a plain TARGET, the same command resumes, and --undo makes a way back.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(override_usage = "ddsnap apply-delta [OPTIONS] DELTA TARGET
       ddsnap apply-delta --resume-token TARGET
       ddsnap apply-delta --rollback VOL")]
pub struct Args {
    /// The delta ('-' is standard input), then the device, file or snapshot store to apply it to
    #[arg(value_name = "OPERAND", required = true, num_args = 1..=2)]
    operands: Vec<PathBuf>,
    /// Put the origin of VOL back to where it was before an interrupted apply
    #[arg(long, conflicts_with_all = ["undo", "force"])]
    rollback: bool,
    /// Keep what arrives on standard input in a file, until all of it is there and applied; take the rest of a
    /// stream that was cut before
    #[arg(long, conflicts_with_all = ["rollback", "dry_run"])]
    resume: bool,
    /// Print what 'create-delta --resume-token' needs to send the rest for TARGET
    #[arg(long, conflicts_with_all = ["rollback", "resume", "undo", "force", "dry_run", "rate_limit"])]
    resume_token: bool,
    /// The folder in which arriving data is kept; if not given, that of TARGET, or /var/tmp for a device
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
    /// The device or file with the state that a delta of 2008 applies to, if not TARGET itself
    #[arg(long, value_name = "PATH", conflicts_with_all = ["rollback", "resume_token"])]
    base: Option<PathBuf>,
    /// First write a delta that takes a plain TARGET back
    #[arg(long, value_name = "FILE")]
    undo: Option<PathBuf>,
    /// Apply even if TARGET is not the base that the delta was made from
    #[arg(long)]
    force: bool,
    /// Verify only, and print what would be written; the exit status is as without it
    #[arg(long)]
    dry_run: bool,
    /// Where the origin is now, if not where the store remembers it
    #[arg(long, value_name = "PATH")]
    origin: Option<PathBuf>,
    #[command(flatten)]
    rate: RateArgs,
    #[command(flatten)]
    old: OldArgs,
}

/// Runs the command.
///
/// # Errors
/// `Kind::Damaged`, `Kind::Unsupported` for a bad delta, `Kind::Mismatch` for a wrong base,
/// `Kind::Refused` if the base cannot be proven; then nothing was written.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    if args.spool.is_some() && !args.resume && !args.resume_token {
        return Err(Error::new(Kind::Usage, "--spool goes with --resume and --resume-token"));
    }
    match (args.rollback || args.resume_token, args.operands.as_slice()) {
        (true, [target]) if args.resume_token => print_token(args, target, ui)?,
        (true, [vol]) => revert::roll_back(&volume(args, vol), args.dry_run, ui)?,
        (false, [delta, target]) => {
            let doing = || format!("cannot apply {} to {}", delta.display(), target.display());
            let summary = match args.resume {
                true => apply_kept(args, delta, target, ui),
                false => input(args, delta, ui).and_then(|input| apply_any(args, input, delta, target, ui)),
            };
            let summary = summary.map_err(|error| error.doing(doing()))?;
            report(args, target, &summary, ui)?;
        }
        (true, _) => {
            let what = "--rollback and --resume-token take one operand, VOL or TARGET";
            return Err(Error::new(Kind::Usage, what));
        }
        (false, _) => return Err(Error::new(Kind::Usage, "expected two operands, DELTA and TARGET")),
    }
    Ok(Exit::Done)
}

/// Receives into the part that belongs to the target, and applies that once it is whole.
fn apply_kept(args: &Args, delta: &Path, target: &Path, ui: &Ui) -> Result<ApplySummary> {
    if delta.as_os_str() != "-" {
        let what = "--resume goes with a delta on standard input";
        return Err(Error::new(Kind::Usage, what).hint("a delta in a file is all there: leave out --resume"));
    }
    let part = Part::open(&part_path(args, target)?)?;
    let mut stream = Limited::new(ui.data_input()?, args.rate.rate_limit, ui.stop_wanted());
    let input = part.receive(&mut stream, ui.progress())?;
    let result = apply_any(args, input, delta, target, ui);
    // What was applied, and what cannot be applied anywhere, is of no use; the rest may be once its cause is gone.
    if result.as_ref().map_or_else(|e| matches!(e.kind(), Kind::Damaged | Kind::Unsupported), |_| true) {
        part.remove()?;
    }
    result
}

fn print_token(args: &Args, target: &Path, ui: &Ui) -> Result<()> {
    let point = part_path(args, target).and_then(|path| Part::resume_point(&path, ui.progress()));
    let doing = || format!("cannot tell what was received for {}", target.display());
    ui.print(&point.map_err(|error| error.doing(doing()))?.to_string())
}

/// Where data for a target is kept: named by the target, so that the next run finds it.
fn part_path(args: &Args, target: &Path) -> Result<PathBuf> {
    let failed = |error| Error::io(format!("cannot find it: {error}"), error).at_path(target);
    let real = std::fs::canonicalize(target).map_err(failed)?;
    let is_file = std::fs::metadata(&real).map_err(failed)?.is_file();
    let folder = match (&args.spool, real.parent()) {
        (Some(folder), _) => folder.as_path(),
        (None, Some(parent)) if is_file => parent,
        _ => Path::new("/var/tmp"),
    };
    let hash = blake3::hash(real.as_os_str().as_bytes()).to_hex();
    let mut name = real.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.ddsnap-part", &hash[..16]));
    Ok(folder.join(name))
}

fn apply_any(args: &Args, mut input: Input, delta: &Path, target: &Path, ui: &Ui) -> Result<ApplySummary> {
    if overlap::is_same(delta, target) {
        return Err(Error::new(Kind::Usage, "DELTA and TARGET are the same"));
    }
    let options =
        ApplyOptions { force: args.force, undo: args.undo.clone(), dry_run: args.dry_run, threads: 0 };
    let result = apply_input(args, &mut input, target, &options, ui);
    let Some(diff) = input.diff() else { return result };
    let quoted =
        |name: &Option<String>, none: &str| name.as_ref().map_or(none.to_owned(), |name| format!("'{name}'"));
    let way = format!("from {} to {}", quoted(&diff.from, "nothing"), quoted(&diff.to, "the live image"));
    if args.dry_run {
        ui.print(&format!("rbd diff {way}, {} bytes", diff.size_bytes))?;
    } else if args.force && diff.from.is_some() && !diff.described {
        ui.warn(&format!("nothing proves that {} was the base of this rbd diff {way}", target.display()));
    } else {
        ui.explain(&format!("rbd diff {way}"));
    }
    result.map_err(|error| match error.kind() {
        Kind::Refused if args.force => error,
        Kind::Refused => error.hint(format!("this rbd diff leads {way}; --force applies it regardless")),
        _ => error,
    })
}

fn apply_input(
    args: &Args,
    input: &mut Input,
    target: &Path,
    options: &ApplyOptions,
    ui: &Ui,
) -> Result<ApplySummary> {
    if open::is_served(target) || open::is_store(target)? {
        if args.base.is_some() {
            return Err(Error::new(Kind::Usage, "a store keeps its old data itself: leave out --base"));
        }
        let vol = volume(args, target);
        let mut rewriter = open::rewriter(&vol, args.dry_run)?;
        let volume = rewriter.volume();
        let before = volume.now()?.events;
        let result = apply_to_store(volume, input, options, ui.progress());
        let after = volume.now()?;
        documents::warn_of_events(&before, &after, &volume.volume().snapshots(), ui);
        let is_pending = after.pending.is_some();
        let closed = if args.dry_run { Ok(()) } else { rewriter.close() };
        let summary =
            result.map_err(|error| if is_pending { rollback_hint(error, target) } else { error })?;
        return closed.map(|()| summary);
    }
    if args.dry_run {
        let file = Overlay::new(FileReader::open_origin_read(target)?);
        open_old::refuse(&file, &args.old)?;
        return apply_plain(args, input, &FileTarget::new(&file), options, ui);
    }
    open::ensure_not_held(target)?;
    let file = FileWriter::open(target)?;
    open_old::refuse(&file, &args.old)?;
    let summary = apply_plain(args, input, &FileTarget::new(&file), options, ui)?;
    file.flush()?;
    Ok(summary)
}

fn apply_plain(
    args: &Args,
    input: &mut Input,
    target: &FileTarget<'_>,
    options: &ApplyOptions,
    ui: &Ui,
) -> Result<ApplySummary> {
    let Some(base) = &args.base else { return apply(input, target, options, ui.progress()) };
    if overlap::is_same(base, target.path()) {
        return Err(Error::new(Kind::Usage, "--base and TARGET are the same: leave out --base"));
    }
    let base = FileReader::open_origin_read(base)?;
    apply(input, &BasedTarget::new(target, &base), options, ui.progress())
}

fn volume(args: &Args, vol: &Path) -> VolArgs {
    VolArgs { vol: vol.to_path_buf(), origin: args.origin.clone(), old: args.old.clone() }
}

fn input(args: &Args, delta: &Path, ui: &Ui) -> Result<Input> {
    let rate = args.rate.rate_limit;
    if delta.as_os_str() == "-" {
        return Ok(Input::from_reader(Box::new(Limited::new(ui.data_input()?, rate, ui.stop_wanted()))));
    }
    if rate.is_none() {
        return Input::open(delta);
    }
    let file = File::open(delta).map_err(|error| Error::io("cannot open the delta", error).at_path(delta))?;
    Ok(Input::from_reader(Box::new(Limited::new(file, rate, ui.stop_wanted()))))
}

/// An apply that stops in the middle leaves its operation pending.
fn rollback_hint(error: Error, vol: &Path) -> Error {
    if matches!(error.kind(), Kind::Io | Kind::NoSpace | Kind::Interrupted) {
        let vol = vol.display();
        error.hint(format!(
            "the same command resumes; 'ddsnap apply-delta --rollback {vol}' goes back; 'ddsnap status {vol}' tells"
        ))
    } else {
        error
    }
}

fn report(args: &Args, target: &Path, summary: &ApplySummary, ui: &Ui) -> Result<()> {
    let (written, target) = (summary.written_bytes, target.display());
    if args.dry_run {
        let held = summary.unchanged_bytes;
        ui.print(&format!(
            "would write {written} bytes to {target}: the delta differs there; {held} bytes are there already"
        ))?;
        if summary.size_before != summary.size_after {
            let (before, after) = (summary.size_before, summary.size_after);
            ui.print(&format!(
                "would change the size of {target} from {before} to {after} bytes: the delta says so"
            ))?;
        }
        return Ok(());
    }
    let resumed = if summary.resumed { "resumed: " } else { "" };
    ui.explain(&format!("{resumed}wrote {} to {target}", size::human(written)));
    if summary.info.legacy.is_some() {
        ui.explain(
            "a delta of 2008 proves sums of bytes only: neither their order, nor what it does not change, nor the size",
        );
    }
    Ok(())
}
