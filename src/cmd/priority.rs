//! `priority`: which snapshots survive longer when the store is full.

use super::common::{SnapName, VolArgs};
use super::open;
use crate::error::Result;
use crate::point::volume::Change;
use crate::ui::Ui;
use crate::ui::exit::Exit;

const EXAMPLES: &str = "Examples:
  ddsnap priority data.snap 2 127
  ddsnap priority data.snap @0 -5";

/// Set the priority of a snapshot
///
/// When the store is full, snapshots of lower priority go first. Prints the new priority as in 2008, that
/// is as an unsigned 32-bit number: -5 is printed as 4294967291.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    #[command(flatten)]
    vol: VolArgs,
    /// Which snapshot: a tag, @N counted from the newest, or a name
    #[arg(value_name = "SNAP")]
    snap: SnapName,
    /// From -128 to 127; higher survives longer
    #[arg(value_name = "PRIORITY", value_parser = clap::value_parser!(i8))]
    priority: i8,
}

/// Runs the command.
///
/// # Errors
/// `Kind::NotFound`.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let doing = || format!("cannot set the priority of {} in {}", args.snap, args.vol.vol.display());
    set(args).map_err(|error| error.doing(doing()))?;
    ui.print(&u32::from_le_bytes(i32::from(args.priority).to_le_bytes()).to_string())?;
    Ok(Exit::Done)
}

fn set(args: &Args) -> Result<()> {
    let mut volume = open::changer(&args.vol)?;
    let id = args.snap.snapshot(&volume.snapshots()?)?.id;
    volume.change(&Change::Priority(id, args.priority))?;
    volume.close()
}
