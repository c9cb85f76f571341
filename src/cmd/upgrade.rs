//! `upgrade`: a store of 2008 made into one of today.

use super::common::{OldArgs, RateArgs, parse_size};
use super::fsck_report::describe;
use super::initialize::{BLOCK_DEFAULT, content, missing_hint};
use super::{open, open_old, overlap, upgrade_in_place};
use crate::block::file::{FileReader, FileWriter};
use crate::block::{ReadAt, WriteAt};
use crate::error::{Error, Kind, Result};
use crate::legacy;
use crate::point::volume::Volume;
use crate::store::{InitOptions, is_unfinished, size_for};
use crate::ui::exit::Exit;
use crate::ui::{Ui, escape, time};
use crate::upgrade::{CopyOptions, Losses, Outcome, Plan, copy, plan, store_options};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const EXAMPLES: &str = "Examples:
  ddsnap upgrade --dry-run --origin old.img --size 16M old.snap new.snap
  ddsnap upgrade --origin old.img --size 16M old.snap new.snap
  ddsnap upgrade --in-place --dry-run --origin old.img old.snap
  ddsnap upgrade --in-place --origin old.img old.snap && ddsnap upgrade --commit old.snap
  ddsnap upgrade --in-place --origin old.img old.snap && ddsnap upgrade --rollback old.snap";

/// Make a store of today of a store of 2008, with all its snapshots
///
/// Every snapshot keeps its tag, time, priority and use count, and reads as before. The old store is only read, the
/// origin too, which must not be written meanwhile. NEWSTORE is a block device or a file with room enough, all of
/// which will be used; --dry-run tells how much that is. Until all is in it and was read back it is no store:
/// interrupted, run the command again.
///
/// With --in-place it is made of free space on the device of STORE; until --commit it can only be read, and --rollback
/// makes it the old one again.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("way").args(["in_place", "commit", "rollback"]))]
pub struct Args {
    /// Where the origin of the old store is
    #[arg(long, value_name = "PATH", required_unless_present = "way")]
    pub(super) origin: Option<PathBuf>,
    #[command(flatten)]
    pub(super) old: OldArgs,
    /// Make the new store on the device of STORE, in what the old one leaves free; NEWSTORE is left out
    #[arg(long, conflicts_with_all = ["size", "yes"])]
    pub(super) in_place: bool,
    /// Give up the way back: what was upgraded in place becomes a store as any other
    #[arg(long, conflicts_with_all = OF_THE_MAKING)]
    pub(super) commit: bool,
    /// Take an upgrade in place back: every byte of the old store as it was
    #[arg(long, conflicts_with_all = OF_THE_MAKING)]
    pub(super) rollback: bool,
    /// Overwrite a store or a file system in NEWSTORE without asking; with --rollback, whatever took the place of STORE
    #[arg(short, long, conflicts_with = "commit")]
    pub(super) yes: bool,
    /// Metadata block size of the new store: a power of two from 4k to 64k, at most a chunk [default: 4k]
    #[arg(short, long = "block-size", value_name = "BLOCK", value_parser = parse_size)]
    block: Option<u64>,
    /// Make NEWSTORE as a new sparse file of this size
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,
    /// Take over snapshots that can be read only in part: reading what is lost of them is an error for good
    #[arg(long)]
    pub(super) accept_lost: bool,
    /// Do not read the new store back
    #[arg(long)]
    pub(super) no_verify: bool,
    /// Only tell what would be taken over, how much room that needs, and what would be overwritten
    #[arg(long)]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) rate: RateArgs,
    /// The store of 2008
    #[arg(value_name = "STORE")]
    pub(super) store: PathBuf,
    /// Where the new store is to be
    #[arg(value_name = "NEWSTORE", required_unless_present = "way", conflicts_with = "way")]
    new: Option<PathBuf>,
}

/// Options of making a store, which neither --commit nor --rollback does.
const OF_THE_MAKING: [&str; 9] =
    ["origin", "meta", "layout", "block", "size", "accept_lost", "no_verify", "dry_run", "rate_limit"];

impl Args {
    /// Where the new store is to be.
    pub(super) fn target(&self) -> &Path {
        self.new.as_deref().unwrap_or(&self.store)
    }

    /// Where the origin is.
    pub(super) fn origin(&self) -> Result<&Path> {
        self.origin
            .as_deref()
            .ok_or_else(|| Error::new(Kind::Usage, "it needs --origin, where the origin is"))
    }
}

/// Runs the command.
///
/// # Errors
/// `Kind::Refused` if something of value would be overwritten, or a snapshot cannot be read in full, and nobody
/// insists; `Kind::Usage` if STORE is no store of 2008, or NEWSTORE is too small; `Kind::Damaged`, `Kind::Busy`,
/// `Kind::Io`.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let doing = || format!("cannot upgrade {}", args.store.display());
    let done = match args.in_place || args.commit || args.rollback {
        true => upgrade_in_place::run(args, ui),
        false => upgrade(args, ui),
    };
    done.map_err(|error| error.doing(doing()))?;
    Ok(Exit::Done)
}

fn upgrade(args: &Args, ui: &Ui) -> Result<()> {
    let (new, origin) = (args.target(), args.origin()?);
    overlap::ensure_output_elsewhere(new, &[args.store.as_path(), origin])?;
    if let Some(meta) = &args.old.meta {
        overlap::ensure_output_elsewhere(new, &[meta])?;
    }
    open::ensure_not_held(origin)?;
    let old = old(args, ui)?;
    let options = options(args, &old)?;
    let plan = plan(&old, ui.progress())?;
    ui.end_progress();
    tell_rest(args, &old, ui);
    tell_damage(&plan.losses, &old, ui)?;
    if args.dry_run {
        return dry_run(args, &old, &options, &plan, ui);
    }
    ensure_accepted(args, &plan.losses, &old)?;
    let made = args.size.is_some();
    if made {
        ensure_room(args, args.size.unwrap_or(0), &options, &plan)?;
    } else if new.exists() {
        open::ensure_not_held(new)?;
    }
    let device: Arc<dyn WriteAt> = Arc::new(match args.size {
        Some(size) => FileWriter::create(new, size).map_err(|error| match error.kind() {
            Kind::Exists => error.hint("without --size, the existing file is used as it is"),
            _ => error,
        })?,
        None => FileWriter::open(new).map_err(|error| missing_hint(error, new))?,
    });
    let result = fill(args, &old, &device, (&options, &plan), ui);
    if result.is_err() && made {
        // It was not there before, so nothing of the user's is lost.
        let _ = std::fs::remove_file(new);
    }
    result
}

pub(super) fn options(args: &Args, store: &legacy::Store) -> Result<InitOptions> {
    let block = args.block.unwrap_or(u64::from(BLOCK_DEFAULT));
    let block = u32::try_from(block)
        .map_err(|_| Error::new(Kind::Usage, format!("a block size of {block} bytes is too large")))?;
    let origin = args.origin()?;
    let path = std::fs::canonicalize(origin)
        .map_err(|error| Error::io("cannot find its absolute path", error).at_path(origin))?;
    Ok(store_options(store, block, path))
}

/// Opens the old store.
fn old(args: &Args, ui: &Ui) -> Result<legacy::Store> {
    let none = || Error::new(Kind::Usage, "this is no snapshot store of 2008").at_path(&args.store);
    open_old::store(&args.store, &args.old, Some(args.origin()?), ui)?.ok_or_else(none)
}

/// Says what part of the origin nobody protects.
pub(super) fn tell_rest(args: &Args, store: &legacy::Store, ui: &Ui) {
    let known = store.info().origin_size;
    let found = store.origin().map_or(known, ReadAt::size);
    if found > known {
        ui.warn(&format!(
            "the origin has {found} bytes, the old store keeps the past of {known}; 'ddsnap resize {} -o {found}' \
             adds the rest later",
            args.target().display()
        ));
    }
}

pub(super) fn tell_damage(losses: &Losses, old: &legacy::Store, ui: &Ui) -> Result<()> {
    for finding in old.doubts() {
        ui.print(&format!("doubtful: {}: {}", finding.code, escape::line(&finding.text)))?;
        for affected in &finding.affected {
            ui.print(&format!("    {}", describe(affected)))?;
        }
    }
    tell_losses(losses, ui)
}

fn tell_losses(losses: &Losses, ui: &Ui) -> Result<()> {
    for loss in losses.iter() {
        ui.print(&format!("lost: {} bytes of {}", loss.bytes, describe(&loss.affected)))?;
    }
    Ok(())
}

pub(super) fn ensure_accepted(args: &Args, losses: &Losses, old: &legacy::Store) -> Result<()> {
    if args.accept_lost {
        return Ok(());
    }
    let what = match (losses.iter().len(), old.doubts().next().is_none()) {
        (0, true) => return Ok(()),
        (0, false) => "the old store is damaged, and some of its snapshots may be wrong".to_owned(),
        (count, _) => format!("{count} of its snapshots cannot be read in full"),
    };
    Err(Error::new(Kind::Refused, what).hint(
        "--accept-lost takes them over all the same: reading what is lost is an error then, never other data",
    ))
}

fn ensure_room(args: &Args, size: u64, options: &InitOptions, plan: &Plan) -> Result<()> {
    let needed = size_for(options, plan.room, Some(size))?;
    if needed <= size {
        return Ok(());
    }
    let what = format!("it has {size} bytes, what the old store preserves needs up to {needed}");
    Err(Error::new(Kind::Usage, what)
        .at_path(args.target())
        .hint("use a larger device or file; nothing was changed"))
}

fn fill(
    args: &Args,
    old: &legacy::Store,
    device: &Arc<dyn WriteAt>,
    (options, plan): (&InitOptions, &Plan),
    ui: &Ui,
) -> Result<()> {
    ensure_room(args, device.size(), options, plan)?;
    if is_unfinished(device.as_ref())? {
        ui.explain(&format!(
            "{} holds an upgrade that was not finished: it begins again",
            args.target().display()
        ));
    } else if let Some(content) = content(device)?
        && !args.yes
    {
        ui.confirm(&format!("{} holds {content}, which would be lost", args.target().display()), "-y")?;
    }
    let paced = args.rate.paced(ui);
    let progress = paced.as_deref().unwrap_or_else(|| ui.progress());
    let how =
        CopyOptions { accept_lost: args.accept_lost, verify: !args.no_verify, now_secs: time::now_secs() };
    let outcome = copy(old, Arc::clone(device), (options, plan.bytes), how, progress)?;
    if !tell_outcome(args, &outcome, (plan, old), ui)? {
        return Ok(());
    }
    summary(args, old, &outcome, ui)
}

/// False, or an error, if there is no new store: more was lost than the plan knew.
pub(super) fn tell_outcome(
    args: &Args,
    outcome: &Outcome,
    (plan, old): (&Plan, &legacy::Store),
    ui: &Ui,
) -> Result<bool> {
    ui.end_progress();
    if total(&outcome.losses) > total(&plan.losses) {
        // The medium failed too.
        tell_losses(&outcome.losses, ui)?;
    }
    if !outcome.finished {
        ensure_accepted(args, &outcome.losses, old)?;
    }
    Ok(outcome.finished)
}

fn total(losses: &Losses) -> u64 {
    losses.iter().map(|loss| loss.bytes).sum()
}

fn summary(args: &Args, store: &legacy::Store, outcome: &Outcome, ui: &Ui) -> Result<()> {
    ui.print(&format!("{}: {}", args.target().display(), taken_over(store, outcome)))?;
    ui.explain(&format!("{} was only read and can still be used as it was", args.store.display()));
    Ok(())
}

/// What a plan tells.
pub(super) fn would_take_over(old: &legacy::Store, options: &InitOptions, plan: &Plan) -> String {
    format!(
        "would take over {} snapshots: {} chunks of {} bytes, {} of them written on one snapshot alone",
        old.snapshots().len(),
        plan.exceptions + plan.overlays,
        options.chunk_size,
        plan.overlays
    )
}

/// What an outcome tells.
pub(super) fn taken_over(store: &legacy::Store, outcome: &Outcome) -> String {
    let checked = match &outcome.check {
        Some(report) => format!("; {} bytes read back and found whole", report.data_bytes),
        None => String::new(),
    };
    format!(
        "{} snapshots, {} chunks of {} bytes in all{checked}",
        store.snapshots().len(),
        outcome.chunks,
        outcome.bytes
    )
}

fn dry_run(args: &Args, old: &legacy::Store, options: &InitOptions, plan: &Plan, ui: &Ui) -> Result<()> {
    let needed = size_for(options, plan.room, None)?;
    ui.print(&would_take_over(old, options, plan))?;
    ui.print(&format!("needs a device or file of up to {needed} bytes"))?;
    ensure_accepted(args, &plan.losses, old)?;
    let new = args.target().display();
    if let Some(size) = args.size {
        ensure_room(args, size, options, plan)?;
        if args.target().exists() {
            return Err(Error::new(Kind::Exists, "it is there already")
                .at_path(args.target())
                .hint("without --size, the existing file is used as it is"));
        }
        return ui.print(&format!("would create {new} of {size} bytes: --size was given"));
    }
    let device = FileReader::open(args.target()).map_err(|error| missing_hint(error, args.target()))?;
    open::ensure_not_held(args.target())?;
    ensure_room(args, device.size(), options, plan)?;
    let reason = match content(&device)? {
        _ if is_unfinished(&device)? => "it holds an upgrade that was not finished".to_owned(),
        Some(content) => format!("it holds {content}, so -y or an answer is needed"),
        None => "nothing known is on it".to_owned(),
    };
    ui.print(&format!("would overwrite {new} of {} bytes: {reason}", device.size()))
}
