//! `delete`: snapshots that are no longer needed.

use super::common::{SnapName, VolArgs, title};
use super::open;
use crate::error::{Error, Kind, Result};
use crate::point::volume::Change;
use crate::store::SnapshotInfo;
use crate::ui::exit::Exit;
use crate::ui::{Ui, escape};

const EXAMPLES: &str = "Examples:
  ddsnap delete data.snap 1
  ddsnap delete --dry-run data.snap @0 monday";

/// Delete snapshots
///
/// Every snapshot is looked up before the first is deleted. One that is held or has a use count above zero
/// stays, unless --force insists.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    vol: VolArgs,
    /// Which snapshots: tags, @N counted from the newest, or names
    #[arg(value_name = "SNAP", required = true)]
    snaps: Vec<SnapName>,
    /// Delete snapshots in use too
    #[arg(long)]
    force: bool,
    /// Only print what would be deleted, and why; the exit status is as without it
    #[arg(long)]
    dry_run: bool,
}

/// Runs the command.
///
/// # Errors
/// `Kind::NotFound`, `Kind::Busy` for a snapshot in use; then nothing was deleted.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let doing = || format!("cannot delete snapshots of {}", args.vol.vol.display());
    delete(args, ui).map_err(|error| error.doing(doing()))?;
    Ok(Exit::Done)
}

fn delete(args: &Args, ui: &Ui) -> Result<()> {
    if args.dry_run {
        let view = open::changer_view(&args.vol)?;
        for snapshot in choose(args, &view.snapshots())? {
            let mut reason = "named on the command line".to_owned();
            if let Some(holder) = holder(&snapshot) {
                reason.push_str(&format!(", --force overrides that {holder}"));
            }
            ui.print(&format!("would delete {}: {reason}", title(&snapshot)))?;
        }
        return Ok(());
    }
    let mut volume = open::changer(&args.vol)?;
    let chosen = choose(args, &volume.snapshots()?)?;
    for snapshot in chosen {
        if ui.interrupted() {
            break;
        }
        for hold in &snapshot.holds {
            volume.change(&Change::Release(snapshot.id, hold.clone()))?;
        }
        if let Ok(count @ 1..) = i32::try_from(snapshot.use_count) {
            volume.change(&Change::UseCount(snapshot.id, -count))?;
        }
        volume.change(&Change::Delete(snapshot.id))?;
        ui.explain(&format!("deleted {}", title(&snapshot)));
    }
    volume.close()?;
    ui.progress().check()
}

/// The snapshots meant, each once, all of them deletable.
fn choose(args: &Args, snapshots: &[SnapshotInfo]) -> Result<Vec<SnapshotInfo>> {
    let (mut chosen, vol): (Vec<SnapshotInfo>, _) = (Vec::new(), args.vol.vol.display());
    for name in &args.snaps {
        let snapshot = name.snapshot(snapshots)?;
        if let Some(holder) = holder(snapshot).filter(|_| !args.force) {
            let (tag, count) = (snapshot.tag, snapshot.use_count);
            let hint = match snapshot.holds.first() {
                Some(hold) => format!("'ddsnap release {vol} {tag} {hold}' lets go of it; --force insists"),
                None => format!("'ddsnap usecount {vol} {tag} -{count}' lets go of it; --force insists"),
            };
            return Err(Error::new(Kind::Busy, format!("{} is in use: {holder}", title(snapshot))).hint(hint));
        }
        if !chosen.iter().any(|other| other.id == snapshot.id) {
            chosen.push(snapshot.clone());
        }
    }
    Ok(chosen)
}

/// Why a snapshot stays, if it does.
fn holder(snapshot: &SnapshotInfo) -> Option<String> {
    match (snapshot.holds.as_slice(), snapshot.use_count) {
        ([], 0) => None,
        ([], count) => Some(format!("its use count is {count}")),
        (holds, _) => Some(format!("it is held for {}", escape::line(&holds.join(", ")))),
    }
}
