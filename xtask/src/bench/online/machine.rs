//! Rows 9 and 10: devices of a kernel, in a throw-away machine, where this program measures, too.

use super::served::{OVERWRITE, device, fio};
use super::{SHAPES, Side, ensure_overwritten, in_turns};
use crate::bench::data::{Pattern, patch};
use crate::bench::lab::{Lab, finish, need};
use crate::bench::sheet::{Goal, Line, Row, figure, time};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// MiB of the volume there, where everything is slower.
pub const SIZE: u64 = 256;
const VOLUME: &str = "/dev/vmdisk1";
const STORE: &str = "/dev/vmdisk2";
/// Begins a line with a name and a figure for the host.
const MARK: &str = "measured";
/// Asks `attach` for a device of ublk.
const UBLK: [&str; 2] = ["--by", "ublk"];
/// Name of ours.
const ATTACHED: &str = "attached";

pub fn rows() -> Vec<Row> {
    vec![
        Row {
            number: 9,
            what: "first overwrites of a device with a snapshot",
            volumes: 24,
            commands: "in user-mode Linux: fio --ioengine=libaio --direct=1, as row 1\n\
                       ddsnap server /dev/vmdisk2; ddsnap attach\n\
                       dmsetup create: snapshot-origin, snapshot P 32",
            limit: "The machine has one processor, and a system call takes 20 us there, while what stays inside of the \
                    kernel runs at full speed; its disks are in the memory of the host. What is measured is how often \
                    a request comes out of the kernel. The last line is what that costs where nothing is preserved.",
            measure: first_overwrites,
        },
        Row {
            number: 10,
            what: "a device of ublk",
            volumes: 24,
            commands: "in user-mode Linux: fio --ioengine=libaio --direct=1, otherwise as rows 4 and 5\n\
                       ddsnap server /dev/vmdisk2; ddsnap attach --by ublk\n\
                       rublk add loop -f /dev/vmdisk1",
            limit: "As row 9. The other side hands the file's reads and writes to the kernel, many with one call; ours \
                    looks into the tables before each.",
            measure: devices,
        },
    ]
}

/// Runs this program in the machine, which measures row `row` there; names and figures that it prints.
fn measured(lab: &Lab, row: u8) -> Result<Vec<(String, f64)>> {
    for program in ["unshare", "modprobe", "dmsetup"] {
        need(program)?;
    }
    for (disk, size) in [("volume.disk", SIZE), ("store.disk", 2 * SIZE)] {
        File::create(lab.path(disk))?.set_len(size << 20)?;
    }
    let program = std::env::current_exe()?;
    let mut command = Command::new(&program);
    command
        .arg("vmtest")
        .arg("--disk")
        .arg(lab.path("volume.disk"))
        .arg("--disk")
        .arg(lab.path("store.disk"));
    command.arg("--").arg(program).args(["bench", "online", "--dir", "/run", "--size", &SIZE.to_string()]);
    command.args(["--only", &row.to_string(), "--runs", &lab.runs().to_string(), "--inside"]);
    let output = finish(command.arg(lab.binary()))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = said.lines().filter_map(|line| line.strip_prefix(MARK)?.strip_prefix('\t')?.split_once('\t'));
    let found: Vec<_> =
        lines.map(|(name, value)| Ok((name.to_owned(), value.parse()?))).collect::<Result<_>>()?;
    ensure!(!found.is_empty(), "nothing was measured in the machine:\n{said}");
    found.iter().for_each(|(name, value)| println!("    {name}: {}", figure(*value, "")));
    Ok(found)
}

/// In the machine: measures `row` and prints what [`measured`] looks for.
pub fn inside(lab: &Lab, row: u8) -> Result<()> {
    let print = |name: &str, found: Vec<Result<f64, String>>| {
        for (who, value) in [ATTACHED, "other"].into_iter().zip(found) {
            match value {
                Ok(value) => println!("{MARK}\t{who} {name}\t{value}"),
                Err(why) => eprintln!("{why}"),
            }
        }
    };
    if row == 9 {
        let sides: [Side<'_>; 2] = [
            (ATTACHED, &|| overwrite_attached(lab, 1, &[])),
            ("dm-snapshot", &|| overwrite_dm_snapshot(lab)),
        ];
        print("overwrites", in_turns(lab, &sides)?);
        print("way", in_turns(lab, &[(ATTACHED, &|| overwrite_attached(lab, 0, &[]))])?);
        return Ok(());
    }
    for shape in SHAPES {
        let read = |place: &Path| -> Result<f64> { shape.measure(lab, &device(place)) };
        let ours = || attached(lab, 0, &UBLK, |device| read(device));
        let theirs = || ublk_loop(lab, |device| read(device));
        print(shape.what, in_turns(lab, &[(ATTACHED, &ours), ("ublk loop", &theirs)])?);
    }
    let theirs = || ublk_loop(lab, |there| Ok(fio(lab, &device(there), &OVERWRITE)?.1));
    let sides: [Side<'_>; 2] = [(ATTACHED, &|| overwrite_attached(lab, 0, &UBLK)), ("ublk loop", &theirs)];
    print("overwrites", in_turns(lab, &sides)?);
    Ok(())
}

fn fill(lab: &Lab) -> Result<()> {
    Pattern::new(1).fill(Path::new(VOLUME), lab.size())?;
    finish(&mut lab.program("sync", &[])).map(drop)
}

/// Ended with this.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended where all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `work` returns of a device that is attached, in a certain `way`, to a server of a new volume with so many
/// snapshots.
fn attached<T>(lab: &Lab, snapshots: u32, way: &[&str], work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    fill(lab)?;
    lab.run(&["initialize", "--yes", STORE, VOLUME])?;
    (1..=snapshots).try_for_each(|tag| lab.run(&["create", STORE, &tag.to_string()]))?;
    let mut command = lab.ddsnap(&["server", STORE, "--socket", "sock"]);
    let mut server = Server(command.stderr(Stdio::null()).spawn()?);
    let begun = Instant::now();
    while !lab.path("sock").exists() {
        ensure!(begun.elapsed() < Duration::from_secs(60), "no server");
        std::thread::sleep(Duration::from_millis(20));
    }
    let told = finish(lab.ddsnap(&["attach", "sock", "--name", "v"]).args(way))?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let there = told.lines().find_map(|line| line.strip_prefix("origin ")).context("no device")?;
    let found = work(Path::new(there));
    lab.run(&["detach", "v"])?;
    lab.run(&["stop", "sock"])?;
    ensure!(server.0.wait()?.success(), "the server failed");
    lab.run(&["fsck", "-n", "--data", STORE])?;
    found
}

fn overwrite_attached(lab: &Lab, snapshots: u32, way: &[&str]) -> Result<f64> {
    let took = attached(lab, snapshots, way, |there| Ok(fio(lab, &device(there), &OVERWRITE)?.1))?;
    ensure_overwritten(lab, Path::new(VOLUME))?;
    Ok(took)
}

/// Makes a device, which is gone after `work`.
fn mapped<T>(lab: &Lab, name: &str, table: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    finish(&mut lab.program("dmsetup", &["create", name, "--table", table]))?;
    let found = work();
    finish(&mut lab.program("dmsetup", &["remove", name]))?;
    found
}

fn overwrite_dm_snapshot(lab: &Lab) -> Result<f64> {
    fill(lab)?;
    // A store of exceptions begins with zeroes.
    patch(Path::new(STORE), 0, &vec![0; 1 << 20])?;
    let sectors = lab.size() / 512;
    let took = mapped(lab, "origin", &format!("0 {sectors} snapshot-origin {VOLUME}"), || {
        mapped(lab, "snapshot", &format!("0 {sectors} snapshot {VOLUME} {STORE} P 32"), || {
            Ok(fio(lab, &device(Path::new("/dev/mapper/origin")), &OVERWRITE)?.1)
        })
    })?;
    ensure_overwritten(lab, Path::new(VOLUME))?;
    Ok(took)
}

/// What `work` returns of the volume as a device of ublk without snapshots.
fn ublk_loop<T>(lab: &Lab, work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    need("rublk")?;
    fill(lab)?;
    finish(&mut lab.program("rublk", &["add", "loop", "-f", VOLUME, "-n", "7", "-q", "1"]))?;
    let found = work(Path::new("/dev/ublkb7"));
    end_loop(lab)?;
    found
}

/// How often rublk is told to take its device away: now and then it fails, and the device stays.
const ENDS: u32 = 5;

fn end_loop(lab: &Lab) -> Result<()> {
    let mut told = None;
    for _ in 0..ENDS {
        if let Err(error) = finish(&mut lab.program("rublk", &["del", "-n", "7"])) {
            eprintln!("{error:#}");
            told = Some(error);
        }
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            if !Path::new("/dev/ublkc7").exists() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Err(told.unwrap_or_else(|| anyhow!("rublk does not take its device away")))
}

/// The figures of both sides, ours and the other's; the reason if there is no other.
fn pair(found: &[(String, f64)], name: &str) -> Result<(f64, Option<f64>)> {
    let get =
        |who: &str| found.iter().find(|(key, _)| *key == format!("{who} {name}")).map(|(_, value)| *value);
    match get(ATTACHED) {
        Some(ours) => Ok((ours, get("other"))),
        None => bail!("the machine did not measure {name}"),
    }
}

fn first_overwrites(lab: &Lab) -> Result<Vec<Line>> {
    let found = measured(lab, 9)?;
    let overwrites = overwrites(&found, "1 snapshot", "dm-snapshot", Goal::AtLeast(1.5))?;
    let ((way, _), (_, theirs)) = (pair(&found, "way")?, pair(&found, "overwrites")?);
    let theirs = theirs.context("dm-snapshot was not measured")?;
    let alone = Line::new("the same without a snapshot", time(way), "dm-snapshot with one", time(theirs));
    Ok(vec![overwrites, alone.judged(theirs / way, "x", Goal::Told)])
}

fn overwrites(found: &[(String, f64)], what: &str, against: &str, goal: Goal) -> Result<Line> {
    let (ours, theirs) = pair(found, "overwrites")?;
    Ok(match theirs {
        None => Line::not_measured(0, format!("{against} is not to be had")),
        Some(theirs) => {
            let what = format!("16 KiB at random, 32 at a time, {what}");
            Line::new(what, time(ours), against, time(theirs)).judged(theirs / ours, "x", goal)
        }
    })
}

fn devices(lab: &Lab) -> Result<Vec<Line>> {
    let found = measured(lab, 10)?;
    let mut lines = Vec::new();
    for shape in SHAPES {
        let (ours, theirs) = pair(&found, shape.what)?;
        lines.push(match theirs {
            None => Line::not_measured(0, "rublk is not to be had".into()),
            Some(theirs) => shape.line(ours, "ublk loop", theirs),
        });
    }
    lines.push(overwrites(&found, "no snapshot", "ublk loop", Goal::AtLeast(0.9))?);
    Ok(lines)
}
