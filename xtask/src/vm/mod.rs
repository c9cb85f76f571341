//! `cargo xtask vmtest`: tests with real kernel devices, in a throw-away machine without KVM, disk image or network.
//!
//! User-mode Linux is a Linux kernel that runs as an ordinary process. Its root is the host's, copy-on-write, so it
//! runs what was just built; nothing of what it does reaches the host.

mod guest;
mod kernel;

use crate::shell::{cargo, has, run as shell};
use anyhow::{Context, Result, bail};
use guest::{End, Guest};
use kernel::Kernel;
use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Power cuts in a run of all tests.
const CUTS: u32 = 4;

/// With this begin the names of the tests that need devices of ublk.
const UBLK: &str = "vm_ublk";

/// Arguments of `vmtest`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Boot this program (a kernel for user-mode Linux with everything built in) instead of Debian's; also
    /// DDSNAP_VM_KERNEL. Without it the tests of ublk run with what is in ~/.cache/ddsnap-vm as NAME/linux
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// A disk, /dev/vmdisk1 and so on: an empty one of so many MiB, or a FILE that keeps what is written
    #[arg(long, value_name = "MIB|FILE")]
    disk: Vec<String>,
    /// Memory in MiB, which also holds what is written to files
    #[arg(long, default_value_t = 1024)]
    memory: u32,
    /// Seconds after which the machine is ended
    #[arg(long, default_value_t = 1800)]
    limit: u64,
    /// Run only the tests whose name contains this word
    #[arg(long, default_value = "vm_", conflicts_with = "command")]
    only: String,
    /// How often the power is cut while a volume is written, to look whether all is there that was promised
    /// [default: 4]; with a command: run it so often with the same disks, until it cuts the power, and once more
    #[arg(long)]
    cuts: Option<u32>,
    /// Run this in the machine instead of the tests; `echo c >/proc/sysrq-trigger` cuts its power (status 125)
    #[arg(last = true)]
    command: Vec<String>,
}

/// Runs the tests, or a command, whose exit status becomes ours.
pub fn run(args: &Args) -> Result<()> {
    if args.command.is_empty() {
        return tests(args);
    }
    let scratch = tempfile::tempdir()?;
    let mut disks = Vec::new();
    for (number, disk) in args.disk.iter().enumerate() {
        disks.push(match disk.parse::<u64>() {
            Ok(size) => {
                let path = scratch.path().join(number.to_string());
                File::create(&path)?.set_len(size << 20)?;
                path
            }
            Err(_) => std::fs::canonicalize(disk).with_context(|| format!("no disk {disk}"))?,
        });
    }
    let mut guest = Guest {
        kernel: kernel(args)?,
        command: args.command.clone(),
        disks,
        memory: args.memory,
        limit: Duration::from_secs(args.limit),
        is_cut: true,
    };
    for round in 1..=args.cuts.unwrap_or(0) {
        match guest.run()? {
            End::Died => {}
            _ => bail!("round {round}: the machine ended, and not by a power cut"),
        }
    }
    guest.is_cut = false;
    let end = guest.run()?;
    drop(scratch);
    match end {
        End::Status(0) => Ok(()),
        End::Status(status) => std::process::exit(status),
        End::Died => std::process::exit(125),
        End::Late => bail!("not done after {} seconds", args.limit),
    }
}

/// The kernel that was asked for.
fn wanted(args: &Args) -> Option<PathBuf> {
    args.kernel.clone().or_else(|| std::env::var_os("DDSNAP_VM_KERNEL").map(PathBuf::from))
}

fn kernel(args: &Args) -> Result<Kernel> {
    wanted(args).map_or_else(Kernel::packaged, |image| Kernel::built(&image))
}

/// Runs the tests that need the machine, in it: cargo runs this program instead of theirs. Those that need ublk, which
/// Debian's kernel has not, run with the kernels that were put into the cache; where there is none they say so.
fn tests(args: &Args) -> Result<()> {
    let main = kernel(args)?;
    let others = match wanted(args) {
        None => Kernel::cached()?,
        Some(_) => Vec::new(),
    };
    let disks = ["--disk", "256", "--disk", "256"];
    let words: &[&str] = if others.is_empty() { &[&args.only] } else { &[&args.only, "--skip", UBLK] };
    in_machine(args, &main, &disks, words)?;
    let only = if UBLK.starts_with(&args.only) { UBLK } else { &args.only };
    for other in others.iter().filter(|_| only.starts_with(UBLK)) {
        println!("=== ublk: {}", other.image.display());
        in_machine(args, other, &disks, &[only])?;
    }
    let cuts = args.cuts.unwrap_or(CUTS).to_string();
    let disks = ["--disk", "32", "--disk", "256", "--disk", "1", "--cuts", &cuts];
    in_machine(args, &main, &disks, &["power_cut_round"])
}

/// Runs the tests that `words` choose.
fn in_machine(args: &Args, kernel: &Kernel, options: &[&str], words: &[&str]) -> Result<()> {
    let target = Command::new("rustc").arg("-vV").output().context("cannot run rustc")?;
    let target = String::from_utf8(target.stdout)?;
    let target =
        target.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let variable = format!("CARGO_TARGET_{}_RUNNER", target.to_uppercase().replace('-', "_"));
    let mut runner = format!("{} vmtest --limit {}", std::env::current_exe()?.display(), args.limit);
    runner += &format!(" --memory {} {}", args.memory, options.join(" "));
    if kernel.modules.is_none() {
        runner += &format!(" --kernel {}", kernel.image.display());
    }
    let mut command = cargo();
    command.args(["test", "--locked", "--test", "all", "--", "--ignored", "--test-threads=1"]).args(words);
    shell(command.env(variable, runner + " --"))
}

/// As a step of all tests; the reason if there is no machine here.
pub fn step() -> Result<Option<String>> {
    for (program, package) in guest::PROGRAMS.into_iter().chain([("dmsetup", "dmsetup")]) {
        if !has(program) {
            return Ok(Some(format!("no virtual machine: {program} is not installed (package {package})")));
        }
    }
    let args = Args {
        kernel: None,
        disk: Vec::new(),
        memory: 1024,
        limit: 1800,
        only: "vm_".into(),
        cuts: None,
        command: Vec::new(),
    };
    // A kernel that cannot be had is a reason; one that does not start is a failure, but where namespaces are not
    // to be had either.
    if let Err(error) = kernel(&args) {
        return Ok(Some(format!("no virtual machine: {error:#}")));
    }
    let allowed = Command::new("unshare").args(namespaces()).args(["--", "true"]).output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        return Ok(Some("no virtual machine: unshare is not allowed".into()));
    }
    tests(&args).map(|()| None)
}

/// The guest's processes are processes here, in a namespace that ends with its first one.
fn namespaces() -> Vec<&'static str> {
    let mut words = vec!["--pid", "--fork", "--kill-child", "--mount-proc"];
    if !rustix::process::geteuid().is_root() {
        words.extend(["--user", "--map-root-user"]);
    }
    words
}
