//! `hold` and `release`: snapshots that somebody needs.

use super::common::{SnapName, VolArgs, parse_hold, title};
use super::open;
use crate::error::Result;
use crate::point::volume::{Change, Changed};
use crate::ui::Ui;
use crate::ui::exit::Exit;

const HOLD_EXAMPLES: &str = "Examples:
  ddsnap hold data.snap 1 offsite
  ddsnap hold data.snap @0 usb-disk";

const RELEASE_EXAMPLES: &str = "Examples:
  ddsnap hold data.snap 1 usb && ddsnap release data.snap 1 usb";

/// Hold a snapshot for somebody who needs it
///
/// A snapshot that is held is not deleted, and no full store gives it up, until every hold is released; only
/// 'ddsnap delete --force' overrides that. Give each target of a replication a hold of its own:
/// 'ddsnap create-delta --hold NAME' moves it along.
#[derive(Debug, clap::Args)]
#[command(after_help = HOLD_EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    held: HeldArgs,
}

/// Let go of a snapshot that is held
#[derive(Debug, clap::Args)]
#[command(after_help = RELEASE_EXAMPLES)]
pub struct ReleaseArgs {
    #[command(flatten)]
    held: HeldArgs,
}

#[derive(Debug, clap::Args)]
struct HeldArgs {
    #[command(flatten)]
    vol: VolArgs,
    /// The snapshot: a tag, @N counted from the newest, or a name
    #[arg(value_name = "SNAP")]
    snap: SnapName,
    /// Who needs it: a letter, then letters, digits and . _ - : +, at most 64 bytes
    #[arg(value_name = "NAME", value_parser = parse_hold)]
    name: String,
}

/// Runs `hold`.
///
/// # Errors
/// `Kind::NotFound`; those of opening the store.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let HeldArgs { vol, snap, name } = &args.held;
    let hold = || {
        let mut volume = open::changer(vol)?;
        let snapshot = snap.snapshot(&volume.snapshots()?)?.clone();
        let made = volume.change(&Change::Hold(snapshot.id, name.clone()))?;
        volume.close()?;
        let already = if matches!(made, Changed::New(false)) { " already" } else { "" };
        ui.explain(&format!("{} is{already} held for {name}", title(&snapshot)));
        Ok(Exit::Done)
    };
    hold().map_err(|error: crate::error::Error| {
        error.doing(format!("cannot hold {snap} of {}", vol.vol.display()))
    })
}

/// Runs `release`.
///
/// # Errors
/// `Kind::NotFound`; those of opening the store.
pub fn release(args: &ReleaseArgs, ui: &Ui) -> Result<Exit> {
    let HeldArgs { vol, snap, name } = &args.held;
    let release = || {
        let mut volume = open::changer(vol)?;
        let snapshot = snap.snapshot(&volume.snapshots()?)?.clone();
        volume.change(&Change::Release(snapshot.id, name.clone()))?;
        volume.close()?;
        ui.explain(&format!("{} is no longer held for {name}", title(&snapshot)));
        Ok(Exit::Done)
    };
    release().map_err(|error: crate::error::Error| {
        error.doing(format!("cannot release {snap} of {}", vol.vol.display()))
    })
}

/// Holds for the target `name` what a delta from `from` to `to` makes it need, and lets go of what it no longer does.
///
/// # Errors
/// `Kind::NotFound`; `Kind::Usage` for the origin, which cannot be held; those of opening the store.
pub fn move_along(vol: &VolArgs, from: Option<&SnapName>, to: &SnapName, name: &str) -> Result<()> {
    let mut volume = open::changer(vol)?;
    let snapshots = volume.snapshots()?;
    let id = |snap: &SnapName| snap.snapshot(&snapshots).map(|snapshot| snapshot.id);
    let (from, to) = (from.map(id).transpose()?, id(to)?);
    volume.change(&Change::MoveHold { name: name.to_owned(), from, to })?;
    volume.close()
}
