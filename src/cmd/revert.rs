//! `revert`: the origin back to what a snapshot holds.

use super::common::{AcceptArgs, SnapName, VolArgs};
use super::{documents, open};
use crate::error::{Error, Kind, Result};
use crate::point::PointId;
use crate::store::{Reverted, Writer};
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
    if args.dry_run {
        let mut writer = open::dry_writer(&args.vol)?;
        let plan = writer.plan_revert(snapshot(args, snap, &writer)?, ui.progress())?;
        ui.end_progress();
        tell_plan(&plan, snap, ui)?;
        return if plan.resumed { Ok(()) } else { writer.ensure_room_for(plan.preserved_bytes()) };
    }
    let mut writer = match args.accept_taint {
        true => open::writer_with_origin(&args.vol)?,
        false => open::writer_with_known_origin(&args.vol)?,
    };
    let before = writer.view().info().events;
    let result = snapshot(args, snap, &writer).and_then(|id| writer.revert(id, ui.progress()));
    ui.end_progress();
    documents::warn_of_events(&before, &writer.view().info(), &writer.view().snapshots(), ui);
    let pending = writer.view().info().pending.is_some();
    let closed = writer.close();
    let reverted = result.map_err(|error| match (pending, error.hint_text()) {
        (true, None) => error.hint("the same command resumes it, 'ddsnap revert --rollback VOL' undoes it"),
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

fn snapshot(args: &Args, snap: &SnapName, writer: &Writer) -> Result<Epoch> {
    let accept = AcceptArgs { accept_incomplete: false, accept_taint: args.accept_taint };
    match open::readable_point(writer.view(), &args.vol.vol, snap, &accept)?.id {
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
        let mut writer = if dry_run { open::dry_writer(vol)? } else { open::writer_with_origin(vol)? };
        let before = writer.view().info().events;
        let label = writer.view().info().pending.map(|pending| pending.label).unwrap_or_default();
        let bytes = writer.roll_back(ui.progress())?;
        ui.end_progress();
        documents::warn_of_events(&before, &writer.view().info(), &writer.view().snapshots(), ui);
        if dry_run {
            return ui.print(&format!("would put back {bytes} bytes of the origin: '{label}' is incomplete"));
        }
        writer.close()?;
        ui.explain(&format!("put back {}: '{label}' is undone", size::human(bytes)));
        Ok(())
    };
    roll_back().map_err(|error| error.doing(format!("cannot roll back {}", vol.vol.display())))
}
