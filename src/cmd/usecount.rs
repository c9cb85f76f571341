//! `usecount`: who still needs a snapshot.

use super::common::{SnapName, VolArgs};
use super::open;
use crate::error::Result;
use crate::point::volume::{Change, Changed};
use crate::ui::Ui;
use crate::ui::exit::Exit;

const EXAMPLES: &str = "Examples:
  ddsnap usecount data.snap 2
  ddsnap usecount data.snap 2 1
  ddsnap usecount data.snap 1 0";

/// Print or change the use count of a snapshot
///
/// A snapshot with a use count above zero is held: it cannot be deleted, neither by hand nor when the store
/// is full. Prints the use count.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    #[command(flatten)]
    vol: VolArgs,
    /// Which snapshot: a tag, @N counted from the newest, or a name
    #[arg(value_name = "SNAP")]
    snap: SnapName,
    /// What to add to the use count; negative to take away
    #[arg(value_name = "DIFF")]
    diff: Option<i32>,
}

/// Runs the command.
///
/// # Errors
/// `Kind::NotFound`; `Kind::Usage` if the use count would leave its range.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let verb = if args.diff.is_some() { "change" } else { "tell" };
    let doing = || format!("cannot {verb} the use count of {} in {}", args.snap, args.vol.vol.display());
    let count = match args.diff {
        None => tell(args, ui),
        Some(diff) => change(args, diff),
    };
    ui.print(&count.map_err(|error| error.doing(doing()))?.to_string())?;
    Ok(Exit::Done)
}

fn tell(args: &Args, ui: &Ui) -> Result<u32> {
    let snapshots = open::view(&args.vol.vol, &args.vol.old, ui)?.snapshots();
    Ok(args.snap.snapshot(&snapshots)?.use_count)
}

fn change(args: &Args, diff: i32) -> Result<u32> {
    let mut volume = open::changer(&args.vol)?;
    let snapshot = args.snap.snapshot(&volume.snapshots()?)?.clone();
    let made = volume.change(&Change::UseCount(snapshot.id, diff))?;
    volume.close()?;
    match made {
        Changed::UseCount(count) => Ok(count),
        _ => Ok(snapshot.use_count),
    }
}
