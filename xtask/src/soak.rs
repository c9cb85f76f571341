//! `cargo xtask soak`: many rounds of what `tests/soak` does a few of in every test run.

use crate::shell::{cargo, run as shell};
use anyhow::Result;

/// Arguments of `soak`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many commands to kill
    #[arg(long, default_value_t = 500)]
    rounds: u64,
    /// Where chance begins; a failure names the seed that repeats it
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Kills commands until one of them harms something.
pub fn run(args: &Args) -> Result<()> {
    let test = "soak::killed_at_any_moment_nothing_is_lost";
    let mut command = cargo();
    command.args(["test", "--locked", "--test", "all", "--", "--exact", "--nocapture", test]);
    command.env("DDSNAP_SOAK", args.rounds.to_string()).env("DDSNAP_SEED", args.seed.to_string());
    shell(&mut command)
}
