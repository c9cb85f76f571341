//! `write`: standard input onto the origin or a snapshot.

use super::common::{RateArgs, SnapName, VolArgs, parse_size};
use super::documents;
use super::open::{self, Rewriter};
use super::transfer::{Limited, PIECE_BYTES, read_full};
use crate::error::{Error, Kind, Result};
use crate::point::PointId;
use crate::point::volume::Rewrite;
use crate::store::SnapshotState;
use crate::ui::Ui;
use crate::ui::exit::Exit;
use crate::units::Epoch;
use std::io::Read;

const EXAMPLES: &str = "Examples:
  ddsnap write data.snap < new.img
  ddsnap write data.snap --offset 64k < block.bin
  ddsnap write --dry-run data.snap 2 < block.bin";

/// Write standard input onto the origin or a snapshot
///
/// What the snapshots need of the origin is copied to the store first. If it is interrupted, or the input
/// or the store ends too early, the bytes before that point are written and the rest is not; every snapshot
/// stays whole.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    #[command(flatten)]
    vol: VolArgs,
    /// The snapshot to write onto; the origin by default
    #[arg(value_name = "SNAP", default_value = "origin", hide_default_value = true)]
    snap: SnapName,
    /// Byte to begin with
    #[arg(long, value_name = "N", value_parser = parse_size, default_value = "0")]
    offset: u64,
    /// Do everything in memory only, and print what would be overwritten; the exit status is as without it
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    rate: RateArgs,
}

/// Runs the command.
///
/// # Errors
/// `Kind::NoSpace` if the store is full or the input longer than the room; `Kind::Refused` while an
/// operation is incomplete.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let doing = || format!("cannot write onto {} of {}", args.snap, args.vol.vol.display());
    write(args, ui).map_err(|error| error.doing(doing()))?;
    Ok(Exit::Done)
}

/// Where the input goes.
struct Target {
    /// `None` is the origin.
    snapshot: Option<Epoch>,
    end: u64,
}

fn write(args: &Args, ui: &Ui) -> Result<()> {
    let mut rewriter = open::rewriter(&args.vol, args.dry_run)?;
    if args.dry_run && matches!(rewriter, Rewriter::Server(_)) {
        let what = "a server writes what it is given: --dry-run needs the store itself";
        return Err(open::held_by_server(&args.vol.vol, what));
    }
    let volume = rewriter.volume();
    let target = target(args, volume)?;
    let before = volume.now()?.events;
    // Before anybody reads: the length is that from the current position on.
    let length = input_length();
    let input = ui.data_input()?;
    if let Some(length) = length
        && args.offset.checked_add(length).is_none_or(|end| end > target.end)
    {
        return Err(too_long(&target, args.offset).hint("nothing was written"));
    }
    ui.progress().stage("writing", length);
    let mut written = 0;
    let result = copy(
        args,
        volume,
        &target,
        Limited::new(input, args.rate.rate_limit, ui.stop_wanted()),
        &mut written,
        ui,
    );
    ui.end_progress();
    documents::warn_of_events(&before, &volume.now()?, &volume.volume().snapshots(), ui);
    if args.dry_run {
        result?;
        let (from, to) = (args.offset, args.offset + written);
        return ui.print(&format!("would overwrite bytes {from} to {to} of {}: standard input", args.snap));
    }
    let closed = rewriter.close();
    let so_far = format!("{written} bytes from byte {} on were written", args.offset);
    result.map_err(|error| match error.hint_text() {
        Some(hint) => {
            let hint = format!("{so_far}; {hint}");
            error.hint(hint)
        }
        None => error.hint(so_far),
    })?;
    closed?;
    ui.explain(&format!("wrote {written} bytes"));
    Ok(())
}

fn target(args: &Args, rewrite: &dyn Rewrite) -> Result<Target> {
    let view = rewrite.volume();
    let target = if args.snap == SnapName::Origin {
        open::ensure_complete(&view.info(), &view.snapshots(), &args.vol.vol, false)?;
        Target { snapshot: None, end: view.info().origin_size }
    } else {
        let snapshots = view.snapshots();
        let snapshot = args.snap.snapshot(&snapshots)?;
        if snapshot.state == SnapshotState::Squashed {
            return Err(Error::new(Kind::Refused, "it was given up when the store was full"));
        }
        Target { snapshot: Some(snapshot.id), end: snapshot.size_bytes }
    };
    if args.offset > target.end {
        let what = format!("byte {} lies past its size, {} bytes", args.offset, target.end);
        return Err(Error::new(Kind::Usage, what));
    }
    Ok(target)
}

fn copy(
    args: &Args,
    volume: &mut dyn Rewrite,
    target: &Target,
    mut input: impl Read,
    written: &mut u64,
    ui: &Ui,
) -> Result<()> {
    let mut buf = vec![0; PIECE_BYTES];
    loop {
        let len = read_full(&mut input, &mut buf)?;
        ui.progress().check()?;
        let offset = args.offset + *written;
        let room = usize::try_from(target.end - offset).unwrap_or(usize::MAX);
        let piece = &buf[..len.min(room)];
        if !piece.is_empty() {
            volume.rewrite(target.snapshot.map_or(PointId::Origin, PointId::Snapshot), &[(offset, piece)])?;
            *written += piece.len() as u64;
            ui.progress().advance(piece.len() as u64);
        }
        if len > room {
            return Err(too_long(target, args.offset));
        }
        if len < buf.len() {
            return Ok(());
        }
    }
}

fn too_long(target: &Target, offset: u64) -> Error {
    let room = target.end - offset;
    Error::new(
        Kind::NoSpace,
        format!("the input is longer than the {room} bytes from byte {offset} to the end"),
    )
}

/// How much standard input holds, if it is a regular file.
fn input_length() -> Option<u64> {
    let stat = rustix::fs::fstat(rustix::stdio::stdin()).ok()?;
    let at = rustix::fs::seek(rustix::stdio::stdin(), rustix::fs::SeekFrom::Current(0)).ok()?;
    let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
    is_file.then(|| u64::try_from(stat.st_size).ok()?.checked_sub(at)).flatten()
}
