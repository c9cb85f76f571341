//! `revert`: the origin back to what a snapshot holds.

use super::common::{AcceptArgs, SnapName, VolArgs};
use super::documents;
use super::open::{self, Rewriter};
use crate::error::{Error, Kind, Result};
use crate::point::PointId;
use crate::point::volume::Rewrite;
use crate::store::{Reverted, differing_bytes, plan_revert, revert as revert_to, roll_back as roll_back_all};
use crate::ui::exit::Exit;
use crate::ui::{Ui, size};
use crate::units::Epoch;

const EXAMPLES: &str = "Examples:
  ddsnap revert --dry-run data.snap 1
  ddsnap revert data.snap 1";

/// Make the origin what it was at a snapshot
///
/// Everything written to the origin since is gone, unless another snapshot holds it: make one first to be able to
/// come back. All snapshots stay what they are, none is given up. The origin takes on the size of the snapshot; a
/// block device must have that size at least. A revert that was interrupted is resumed by the same command, or
/// undone by --rollback.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(override_usage = "ddsnap revert [OPTIONS] VOL SNAP
       ddsnap revert --rollback VOL")]
pub struct Args {
    #[command(flatten)]
    vol: VolArgs,
    /// The snapshot: a tag, @N counted from the newest, or a name
    #[arg(value_name = "SNAP", required_unless_present = "rollback")]
    snap: Option<SnapName>,
    /// Put the origin back to where it was before an interrupted revert or apply-delta
    #[arg(long, conflicts_with = "snap")]
    rollback: bool,
    /// Only print how many bytes would change; the exit status is as without it
    #[arg(long)]
    dry_run: bool,
    /// Revert to a snapshot although it is tainted: it may not be what it was
    #[arg(long)]
    accept_taint: bool,
}

/// Runs the command.
///
/// # Errors
/// `Kind::NotFound`; `Kind::Busy` if the origin is mounted or in use, or another operation is incomplete;
/// `Kind::NoSpace`: nothing has changed then.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    match &args.snap {
        Some(snap) => revert(args, snap, ui)
            .map_err(|error| error.doing(format!("cannot revert {} to {snap}", args.vol.vol.display())))?,
        None => roll_back(&args.vol, args.dry_run, ui)?,
    }
    Ok(Exit::Done)
}

fn revert(args: &Args, snap: &SnapName, ui: &Ui) -> Result<()> {
    // A server knows its origin, and sees all that happens to it.
    let mut rewriter = match args.dry_run || args.accept_taint || open::is_served(&args.vol.vol) {
        true => open::rewriter(&args.vol, args.dry_run)?,
        false => Rewriter::Store(Box::new(open::writer_with_known_origin(&args.vol)?)),
    };
    let volume = rewriter.volume();
    if args.dry_run {
        let plan = plan_revert(volume, snapshot(args, snap, volume)?, ui.progress())?;
        ui.end_progress();
        tell_plan(&plan, snap, ui)?;
        return if plan.resumed { Ok(()) } else { volume.ensure_room(plan.preserved_bytes()) };
    }
    let before = volume.now()?.events;
    let result = snapshot(args, snap, volume).and_then(|id| revert_to(volume, id, ui.progress()));
    ui.end_progress();
    let after = volume.now()?;
    documents::warn_of_events(&before, &after, &volume.volume().snapshots(), ui);
    let closed = rewriter.close();
    let reverted = result.map_err(|error| match (after.pending.is_some(), error.hint_text()) {
        (true, None) => error.hint(format!(
            "the same command resumes it, 'ddsnap revert --rollback {}' undoes it",
            args.vol.vol.display()
        )),
        _ => error,
    })?;
    closed?;
    let resumed = if reverted.resumed { "resumed: " } else { "" };
    ui.explain(&format!(
        "{resumed}put back {}: the origin equals {snap}",
        size::human(reverted.changed_bytes)
    ));
    Ok(())
}

fn snapshot(args: &Args, snap: &SnapName, rewrite: &dyn Rewrite) -> Result<Epoch> {
    let accept = AcceptArgs { accept_incomplete: false, accept_taint: args.accept_taint };
    match open::readable_point(rewrite.volume(), &args.vol.vol, snap, &accept)?.id {
        PointId::Snapshot(id) => Ok(id),
        PointId::Origin => Err(Error::new(Kind::Usage, "the origin is what it is; name a snapshot")),
    }
}

fn tell_plan(plan: &Reverted, snap: &SnapName, ui: &Ui) -> Result<()> {
    let resumed = if plan.resumed { "go on and " } else { "" };
    ui.print(&format!(
        "would {resumed}change {} bytes of the origin: {snap} differs there",
        plan.changed_bytes
    ))?;
    if plan.size_before != plan.size_after {
        ui.print(&format!(
            "would change the size of the origin from {} to {} bytes: {snap} has that size",
            plan.size_before, plan.size_after
        ))?;
    }
    Ok(())
}

/// Undoes an incomplete operation on the origin.
///
/// # Errors
/// `Kind::NotFound` if there is none; `Kind::Io`, `Kind::Damaged`, `Kind::Interrupted`.
pub fn roll_back(vol: &VolArgs, dry_run: bool, ui: &Ui) -> Result<()> {
    let roll_back = || {
        let mut rewriter = open::rewriter(vol, dry_run)?;
        let is_dry = matches!(rewriter, Rewriter::Server(_)) && dry_run;
        let volume = rewriter.volume();
        let before = volume.now()?;
        let label = before.pending.as_ref().map(|pending| pending.label.clone()).unwrap_or_default();
        let bytes = match before.pending.as_ref().filter(|_| is_dry) {
            Some(pending) => {
                let point = PointId::Snapshot(pending.before);
                let size = volume.measure(point)?.0.min(before.origin_size);
                differing_bytes(volume, point, size, ui.progress())?
            }
            None => roll_back_all(volume, ui.progress())?,
        };
        ui.end_progress();
        documents::warn_of_events(&before.events, &volume.now()?, &volume.volume().snapshots(), ui);
        if dry_run {
            return ui.print(&format!("would put back {bytes} bytes of the origin: '{label}' is incomplete"));
        }
        rewriter.close()?;
        ui.explain(&format!("put back {}: '{label}' is undone", size::human(bytes)));
        Ok(())
    };
    roll_back().map_err(|error| error.doing(format!("cannot roll back {}", vol.vol.display())))
}
