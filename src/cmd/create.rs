//! `create`: a snapshot of the origin as it is now.

use super::common::{VolArgs, parse_name, parse_tag, title};
use super::{documents, open};
use crate::error::Result;
use crate::point::volume::{Change, Changed};
use crate::ui::Ui;
use crate::ui::exit::Exit;
use crate::units::Tag;

const EXAMPLES: &str = "Examples:
  ddsnap create data.snap 3
  ddsnap create data.snap 4 --name tuesday

Prints nothing; with -v, standard error tells what was made.";

/// Make a snapshot of the origin as it is now
///
/// Costs no space until the origin changes. Offline, the origin must not be mounted or in use: what a file
/// system still holds in memory would be missing from the snapshot.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    #[command(flatten)]
    vol: VolArgs,
    /// Tag of the new snapshot: a number from 0 to 4294967294 that no other snapshot has
    #[arg(value_name = "SNAP", value_parser = parse_tag)]
    snap: Tag,
    /// A name for it, which works wherever a snapshot is named
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    name: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// `Kind::Exists` for a tag or name that is taken; `Kind::Busy` for a mounted origin.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let doing = || format!("cannot create snapshot {} in {}", args.snap, args.vol.vol.display());
    let made = create(args, ui).map_err(|error| error.doing(doing()))?;
    ui.explain(&made);
    Ok(Exit::Done)
}

fn create(args: &Args, ui: &Ui) -> Result<String> {
    let mut volume = open::changer_with_origin(&args.vol)?;
    let info = volume.info()?;
    open::ensure_complete(&info, &volume.snapshots()?, &args.vol.vol, false)?;
    let result = volume.change(&Change::Create { tag: args.snap, name: args.name.clone() });
    // What was given up to make room is gone even if the room did not suffice.
    documents::warn_of_events(&info.events, &volume.info()?, &volume.snapshots()?, ui);
    let made = result?;
    volume.close()?;
    match made {
        Changed::Snapshot(snapshot) => {
            Ok(format!("created {} of {} bytes", title(&snapshot), snapshot.size_bytes))
        }
        _ => Ok("created".to_owned()),
    }
}
