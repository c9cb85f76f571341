//! `cargo xtask soak`: many rounds of what `tests/soak` does a few of in every test run, or real work on file systems.

use crate::shell::{cargo, has, root, run as shell};
use anyhow::{Result, bail};
use std::ffi::OsString;
use std::process::Command;

/// Arguments of `soak`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many commands to kill; with --live, hundreds of operations of fsx
    #[arg(long, default_value_t = 500)]
    rounds: u64,
    /// Where chance begins; a failure names the seed that repeats it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Instead, work on file systems of a served volume while snapshots come and go: fsx, git, cargo; as root, with
    /// FUSE and loop devices
    #[arg(long)]
    live: bool,
    /// With --live: only this file system, of ext4, xfs and btrfs
    #[arg(long, requires = "live", value_parser = SYSTEMS)]
    only: Option<String>,
}

const SYSTEMS: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// Kills commands until one of them harms something, or works on file systems.
pub fn run(args: &Args) -> Result<()> {
    // Whoever makes a mount namespace of the one that all see has a mounted file system mounted still, once it is
    // unmounted here: those of this run are seen by nobody.
    let mut command = match args.live {
        true => among(Command::new("unshare"), &cargo()),
        false => cargo(),
    };
    command.args(["test", "--locked", "--test", "all", "--"]);
    if args.live {
        let systems =
            SYSTEMS.into_iter().filter(|name| args.only.as_deref().is_none_or(|only| only == *name));
        command.args(["--ignored", "--nocapture", "--test-threads=1"]);
        command.args(systems.map(|name| format!("soak::live::{name}_")));
        command.env("PATH", tools()?);
    } else {
        command.args(["--exact", "--nocapture", "soak::killed_at_any_moment_nothing_is_lost"]);
    }
    command.env("DDSNAP_SOAK", args.rounds.to_string()).env("DDSNAP_SEED", args.seed.to_string());
    shell(&mut command)
}

/// A program that runs cargo.
fn among(mut runner: Command, cargo: &Command) -> Command {
    runner.args(["--mount", "--"]).arg(cargo.get_program()).current_dir(root());
    runner
}

/// The search path with `fsx` in it, which is installed once.
fn tools() -> Result<OsString> {
    if !rustix::process::geteuid().is_root() {
        bail!("only root may mount file systems");
    }
    for program in ["git", "fio", "losetup", "fsfreeze", "unshare"] {
        if !has(program) {
            bail!("{program} is not installed");
        }
    }
    let folder = root().join("target/tools");
    if !folder.join("bin/fsx").exists() {
        shell(cargo().args(["install", "--locked", "fsx", "--root"]).arg(&folder))?;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    Ok(std::env::join_paths(std::iter::once(folder.join("bin")).chain(std::env::split_paths(&path)))?)
}
