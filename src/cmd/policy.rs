//! `policy`: what a store does when it is full and every snapshot is in use.

use super::common::VolArgs;
use super::open;
use crate::error::Result;
use crate::point::volume::Change;
use crate::store::FullPolicy;
use crate::ui::Ui;
use crate::ui::exit::Exit;

const EXAMPLES: &str = "Examples:
  ddsnap policy data.snap
  ddsnap policy data.snap squash";

/// Show or set what a store does when it is full
///
/// A full store first deletes snapshots that nobody uses, those of lowest priority and the oldest first, and
/// says so in 'ddsnap list'. The policy decides what comes then, when every snapshot left has a use count: the
/// write to the origin fails, or the store gives up (squashes) a snapshot so that the write succeeds. A snapshot
/// that is held (see ddsnap-hold(8)) is never given up: if all are, the write fails.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    vol: VolArgs,
    /// The new policy
    #[arg(value_name = "POLICY")]
    policy: Option<Choice>,
}

/// The policies, as words of the command line.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Choice {
    /// Fail the write; every snapshot stays whole
    Fail,
    /// Give up snapshots, so that the write succeeds
    Squash,
}

/// Runs the command.
///
/// # Errors
/// Those of opening the store.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let path = &args.vol.vol;
    let policy = match args.policy {
        None => open::view(path, &args.vol.old, ui).map(|view| view.info().full_policy),
        Some(choice) => set(args, choice),
    };
    let policy =
        policy.map_err(|error| error.doing(format!("cannot tell the policy of {}", path.display())))?;
    ui.print(match policy {
        FullPolicy::Fail => "fail",
        FullPolicy::Squash => "squash",
    })?;
    Ok(Exit::Done)
}

fn set(args: &Args, choice: Choice) -> Result<FullPolicy> {
    let policy = match choice {
        Choice::Fail => FullPolicy::Fail,
        Choice::Squash => FullPolicy::Squash,
    };
    let mut volume = open::changer(&args.vol)?;
    volume.change(&Change::FullPolicy(policy))?;
    volume.close()?;
    Ok(policy)
}
