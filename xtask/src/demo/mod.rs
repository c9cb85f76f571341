//! `cargo xtask demo`: the real program at work on a real file system, told as it goes. Every claim it makes is
//! checked, and a claim that does not hold fails the demonstration.

mod files;
mod stage;

use crate::report::table;
use crate::shell::{cargo, has, root, run as shell};
use anyhow::{Context, Result, bail, ensure};
use files::Volume;
pub use files::{letter, noise};
use stage::{Stage, mib};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Size of the volume in MiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(32..=65536))]
    size: u64,
    /// Use the development build, which is quicker to make and slower to run
    #[arg(long)]
    dev: bool,
    /// Random pieces instead of a file system, as where mkfs.ext4 is missing
    #[arg(long)]
    synthetic: bool,
    /// Keep the files and say where they are
    #[arg(long)]
    keep: bool,
}

/// Builds the program, then shows it.
pub fn run(args: &Args) -> Result<()> {
    let binary = build(args.dev)?;
    let folder = tempfile::Builder::new().prefix("ddsnap-demo-").tempdir().context("cannot make a folder")?;
    let mut stage = Stage::new(&binary, folder.path());
    let result = play(&mut stage, args);
    if args.keep {
        println!("\nThe files are in {}", folder.keep().display());
    }
    result
}

/// Builds the binary and says where it is.
pub fn build(dev: bool) -> Result<PathBuf> {
    println!("Building ddsnap ...");
    let profile = if dev { "dev" } else { "release" };
    shell(cargo().args(["build", "--quiet", "--locked", "--package", "ddsnap", "--profile", profile]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let binary = root().join(target).join(if dev { "debug" } else { "release" }).join("ddsnap");
    ensure!(binary.is_file(), "cargo built no {}", binary.display());
    Ok(binary)
}

fn play(stage: &mut Stage, args: &Args) -> Result<()> {
    let size = args.size << 20;
    let volume = make_volume(stage, size, !args.synthetic)?;
    first_snapshot(stage, size)?;
    a_day_of_work(stage, &volume)?;
    look_back(stage, &volume)?;
    replicate(stage, &volume, size)?;
    distrust(stage)?;
    clean_up(stage)?;
    println!("\n{}", table(&["what was timed", " MiB", " seconds", " MiB/s"], &stage.timings));
    println!("Every one of {} checks held.", stage.checks);
    Ok(())
}

fn make_volume(stage: &mut Stage, size: u64, file_system: bool) -> Result<Volume> {
    stage.chapter("A volume to look after");
    let volume = Volume::make(stage.folder(), size, file_system)?;
    stage.say(&volume.description);
    fs::copy(stage.path("vol.img"), stage.path("kept-aside.img")).context("cannot copy the volume")?;
    Ok(volume)
}

fn first_snapshot(stage: &mut Stage, size: u64) -> Result<()> {
    stage.chapter("A snapshot store, and a first snapshot");
    stage.say("All snapshots share one store. A snapshot costs nothing until the volume changes.");
    let store_mib = (size >> 20).max(64);
    stage.run(&["initialize", "--size", &format!("{store_mib}M"), "vol.snap", "vol.img"])?;
    stage.run(&["create", "vol.snap", "0", "--name", "monday"])?;
    stage.run(&["list", "vol.snap"])
}

fn a_day_of_work(stage: &mut Stage, volume: &Volume) -> Result<()> {
    stage.chapter("A day of work");
    stage.say(&volume.change(stage.folder())?);
    stage.say("Two plain images can be compared without any store; what differs is a delta:");
    let bytes = 2 * fs::metadata(stage.path("vol.img"))?.len();
    let compare = ["create-delta", "--compare", "vol.img", "tuesday.img", "-o", "day.delta"];
    stage.timed("compare two images", bytes, |stage| stage.run(&compare))?;
    stage.run(&["delta", "info", "day.delta"])?;
    stage.say("Applied to the store, it changes the volume, and the store keeps what monday needs:");
    let bytes = fs::metadata(stage.path("day.delta"))?.len();
    let apply = ["apply-delta", "day.delta", "vol.snap"];
    stage.timed("apply through the store", bytes, |stage| stage.run(&apply))?;
    stage.same("vol.img", "tuesday.img", "the volume is what the day made of it")?;
    stage.run(&["create", "vol.snap", "1", "--name", "tuesday"])?;
    stage.run(&["list", "vol.snap"])?;
    stage.run(&["status", "vol.snap"])
}

fn look_back(stage: &mut Stage, volume: &Volume) -> Result<()> {
    stage.chapter("Looking back");
    stage.say("The store knows what changed without reading the volume:");
    stage.run(&["-v", "changelist", "vol.snap", "0-1.changes", "0", "1"])?;
    stage.say("And monday is still there, whole:");
    let size = fs::metadata(stage.path("vol.img"))?.len();
    stage.timed("export a snapshot", size, |stage| {
        stage.run(&["export", "vol.snap", "monday", "monday.img"])
    })?;
    stage.same("monday.img", "kept-aside.img", "the exported snapshot is the volume as it was")?;
    check_file_system(stage, volume, "monday.img")
}

fn replicate(stage: &mut Stage, volume: &Volume, size: u64) -> Result<()> {
    stage.chapter("A replica elsewhere");
    stage.say("Between the two there may be ssh or nc; a pipe is all it takes. First everything, then changes only:");
    let replica = fs::File::create(stage.path("replica.img")).context("cannot make the replica")?;
    replica.set_len(size)?;
    let apply = ["apply-delta", "-", "replica.img"];
    let sent = stage
        .timed("first replication", size, |stage| stage.pipe(&["create-delta", "vol.snap", "0"], &apply))?;
    stage.same("replica.img", "kept-aside.img", "the replica is monday")?;
    let create = ["create-delta", "vol.snap", "0", "1"];
    let apply = ["apply-delta", "--undo", "back.delta", "-", "replica.img"];
    let sent_again = stage.timed("second replication", size, |stage| stage.pipe(&create, &apply))?;
    stage.say(&format!("Sent {} at first, then {}.", mib(sent), mib(sent_again)));
    ensure!(sent_again < sent, "the second replication sent {sent_again} bytes, the first {sent}");
    stage.same("replica.img", "vol.img", "the replica is tuesday")?;
    println!("  BLAKE3 vol.img      {}", stage.digest("vol.img")?);
    println!("  BLAKE3 replica.img  {}", stage.digest("replica.img")?);
    check_file_system(stage, volume, "replica.img")?;
    stage.say("The undo file takes the replica back to monday, and may be thrown away instead:");
    stage.run(&["apply-delta", "--undo", "forth.delta", "back.delta", "replica.img"])?;
    stage.same("replica.img", "kept-aside.img", "the replica is monday again")
}

fn distrust(stage: &mut Stage) -> Result<()> {
    stage.chapter("What does not fit is refused");
    stage.say("One byte of the delta is changed on its way:");
    let mut delta = fs::read(stage.path("day.delta"))?;
    let middle = delta.len() / 2;
    let byte = delta.get_mut(middle).context("the delta is empty")?;
    *byte ^= 0x10;
    fs::write(stage.path("damaged.delta"), delta)?;
    fs::copy(stage.path("kept-aside.img"), stage.path("other.img"))?;
    stage.run_expecting(&["apply-delta", "--undo", "never.delta", "damaged.delta", "other.img"], 3)?;
    stage.same("other.img", "kept-aside.img", "the target was not touched")
}

fn clean_up(stage: &mut Stage) -> Result<()> {
    stage.chapter("Letting go");
    stage.say("Deleting gives back what only that snapshot needed:");
    stage.run(&["delete", "vol.snap", "monday"])?;
    stage.run(&["list", "vol.snap"])
}

/// Lets the file system's own checker say that an image is sound.
fn check_file_system(stage: &mut Stage, volume: &Volume, image: &str) -> Result<()> {
    if !volume.is_ext4 {
        return Ok(());
    }
    if !has("e2fsck") {
        println!("  (e2fsck is not installed: the file system in {image} was not checked)");
        return Ok(());
    }
    let program = sbin("e2fsck");
    let output = Command::new(program).args(["-f", "-n"]).arg(stage.path(image)).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("e2fsck -fn {image}: {}\n{said}", output.status);
    }
    stage.passed(&format!("e2fsck -fn {image}: {}", said.lines().last().unwrap_or_default().trim()));
    Ok(())
}

/// File system tools are found even where the search path leaves sbin out.
fn sbin(program: &str) -> PathBuf {
    ["/usr/sbin", "/sbin"]
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.is_file())
        .unwrap_or_else(|| PathBuf::from(program))
}
