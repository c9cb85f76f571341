//! `cargo xtask bench online`: what a server costs whoever writes and reads through it, beside what one would run
//! instead. All sides are used through NBD by the same fio, in turns.

use super::data::Pattern;
use super::lab::{Lab, Missing, finish, median, need};
use super::large::huge_volume;
use super::sheet::{self, Goal, Line, Row, figure, mib, time};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Arguments of `bench online`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these rows of the table (repeatable)
    #[arg(long, value_name = "ROW", value_parser = clap::value_parser!(u8).range(1..=6))]
    only: Vec<u8>,
    /// Size of the volume in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    #[arg(value_parser = clap::value_parser!(u64).range(64..=65536))]
    size: u64,
    /// Folder for the scratch files; the build folder by default
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Repetitions of each side, alternating; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    runs: u16,
}

const HEAD: &str = "# Benchmarks of a served volume

Written by `cargo xtask bench online`, never by hand. Every side was used through NBD by the same fio, in turns; the
medians count. What was written was compared with what it should be, and the snapshot with what the volume was before.
The numbers tell of these versions on this machine and of nothing else:

";

/// What fio writes: known, so that it can be found again, and no zeroes.
const BYTES: [u8; 4] = [0xde, 0xad, 0xbe, 0xef];

/// Seconds of a measurement that has no end of its own. A small volume is there to show that it works.
fn seconds(lab: &Lab) -> u64 {
    if lab.size() < 256 << 20 { 2 } else { 10 }
}

/// A load that a server does not lag behind: writes a second.
const RATE: u32 = 2000;

/// Measures and prints the table; a whole run also writes docs/benchmarks-online.md.
pub fn run(args: &Args) -> Result<()> {
    let lines = measure(args, crate::demo::build(false)?)?;
    println!("\n{}", sheet::console(&lines));
    if args.only.is_empty() {
        let folder = args.dir.clone().unwrap_or_else(|| crate::shell::root().join("target"));
        let what = format!("- volume: {} MiB; {} repetitions of each side\n", args.size, args.runs);
        let facts = [sheet::host(&folder), vec![sheet::load(), what]].concat().join("\n");
        sheet::write_page("docs/benchmarks-online.md", HEAD, &rows(), &lines, &facts)?;
    }
    Ok(())
}

/// The rows that need nothing but fio, on a small volume and with the development build: they can be measured, and the
/// bytes are right.
pub fn smoke() -> Result<()> {
    let args = Args { only: vec![2, 6], size: 64, dir: None, runs: 1 };
    measure(&args, crate::demo::build(true)?).map(drop)
}

fn measure(args: &Args, binary: PathBuf) -> Result<Vec<Line>> {
    need("fio")?;
    let lab = Lab::new(binary, args.dir.as_deref(), args.size << 20, args.runs.into())?;
    let mut lines = Vec::new();
    for row in rows().iter().filter(|row| args.only.is_empty() || args.only.contains(&row.number)) {
        println!("{:2}  {} ...", row.number, row.what);
        let found = (row.measure)(&lab).with_context(|| format!("row {}: {}", row.number, row.what))?;
        lines.extend(found.into_iter().map(|line| line.of(row.number)));
        lab.clear()?;
    }
    Ok(lines)
}

fn rows() -> Vec<Row> {
    vec![
        Row {
            number: 1,
            what: "first overwrites of a volume with a snapshot",
            volumes: 24,
            commands: "fio --ioengine=nbd --rw=randwrite --bs=16k --iodepth=32 --end_fsync=1\n\
                       ddsnap server data.snap --nbd unix:nbd, chunks of 16 KiB\n\
                       qemu-nbd -f qcow2 --cache=MODE overlay.qcow2\n\
                       btrfs subvolume snapshot; nbdkit file data.img\n\
                       the bytes alone: nbdkit file data.img without a snapshot, then dd bs=8M oflag=dsync of as many",
            limit: "Each side writes the whole volume once, at random, and flushes. Ours also writes what was there \
                    before, to its store, and flushes that before each batch: twice the bytes of an overlay, which \
                    leaves the old ones where they are and pays when it is given up. btrfs does as the overlay does. \
                    The last line is what nobody can save who puts the new bytes where the old ones were.",
            measure: first_overwrites,
        },
        Row {
            number: 2,
            what: "writers while snapshots are made",
            volumes: 24,
            commands: "fio --ioengine=nbd --rw=randwrite --bs=16k --iodepth=32 --time_based [--rate_iops=2000]\n\
                       ddsnap create SOCK N, each second",
            limit: "How long single writes take: while as many come as can be taken, each waits for its turn, snapshot \
                    or not; at a rate that the server keeps up with, what is left is the pause. Making a snapshot \
                    lands what was told and flushes the origin; writes that come meanwhile are held.",
            measure: pauses,
        },
        Row {
            number: 3,
            what: "first overwrites with 1,000 snapshots",
            volumes: 24,
            commands: "as row 1",
            limit: "One chunk is copied once, however many snapshots share it.",
            measure: many_snapshots,
        },
        Row {
            number: 4,
            what: "overwrites without a snapshot",
            volumes: 24,
            commands: "as row 1, against nbdkit file data.img",
            limit: "Nothing is copied or held: a write takes a look into the tables more.",
            measure: plain_writes,
        },
        Row {
            number: 5,
            what: "reads of the live origin",
            volumes: 24,
            commands: "fio --ioengine=nbd --rw=read --bs=1M --iodepth=4; --rw=randread --bs=4k --iodepth=32",
            limit: "From the page cache: what is measured is the protocol.",
            measure: reads,
        },
        Row {
            number: 6,
            what: "memory of the server",
            volumes: 24,
            commands: "ddsnap server of a sparse volume, one chunk in 16 preserved (1 TiB, 4 million at 512 MiB)\n\
                       fio --rw=randwrite --bs=16k --iodepth=32, a snapshot made each second; VmHWM",
            limit: "Held writes take 64 MiB at most, the cache of the index 24 MiB; the rest is buffers of what is \
                    under way.",
            measure: memory,
        },
    ]
}

/// A server that is ended with this.
struct Served {
    child: Child,
    uri: String,
}

impl Served {
    fn start(mut child: Child, lab: &Lab, socket: &str, export: &str) -> Result<Self> {
        let path = lab.path(socket);
        let begun = Instant::now();
        while !path.exists() {
            if let Some(status) = child.try_wait()? {
                bail!("a server ended at once: {status}");
            }
            ensure!(begun.elapsed() < Duration::from_secs(60), "no server at {}", path.display());
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(200));
        Ok(Self { child, uri: format!("nbd+unix:///{export}?socket={}", path.display()) })
    }

    fn ours(lab: &Lab) -> Result<Self> {
        Self::ours_of(lab, "data.snap")
    }

    fn ours_of(lab: &Lab, store: &str) -> Result<Self> {
        let mut command = lab.ddsnap(&["server", store, "--socket", "sock", "--nbd", "unix:nbd"]);
        Self::start(command.stderr(Stdio::null()).spawn()?, lab, "nbd", "origin")
    }

    fn other(lab: &Lab, program: &str, args: &[&str]) -> Result<Self> {
        need(program)?;
        if lab.path("other").exists() {
            fs::remove_file(lab.path("other"))?;
        }
        Self::start(lab.program(program, args).spawn()?, lab, "other", "")
    }

    /// A file as it is, without any snapshot.
    fn file(lab: &Lab, image: &str) -> Result<Self> {
        let socket = lab.path("other").display().to_string();
        Self::other(lab, "nbdkit", &["-f", "-U", &socket, "file", image])
    }

    /// Runs fio on it; returns its report and how many seconds it took.
    fn fio(&self, lab: &Lab, args: &[&str]) -> Result<(Value, f64)> {
        let (uri, size) = (format!("--uri={}", self.uri), format!("--size={}", lab.size()));
        let pattern = format!("--buffer_pattern=0x{}", BYTES.map(|byte| format!("{byte:02x}")).concat());
        let common = ["--name=x", "--ioengine=nbd", &uri, &size, &pattern, "--output-format=json"];
        let begun = Instant::now();
        let output = finish(&mut lab.program("fio", &[&common[..], args].concat()))?;
        let took = begun.elapsed().as_secs_f64();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let start = text.find('{').context("fio reports nothing")?;
        let report: Value = serde_json::from_str(text.get(start..).unwrap_or_default())?;
        Ok((report["jobs"][0].clone(), took))
    }

    /// Ends it as a service manager does, and waits.
    fn end(mut self) -> Result<()> {
        self.terminate();
        let status = self.child.wait()?;
        ensure!(status.success() || status.code().is_none(), "a server ended: {status}");
        Ok(())
    }

    fn terminate(&self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // One that has ended already needs none.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.terminate();
            let _ = self.child.wait();
        }
    }
}

const OVERWRITE: [&str; 4] = ["--rw=randwrite", "--bs=16k", "--iodepth=32", "--end_fsync=1"];

/// A new volume with a store and `snapshots`.
fn volume(lab: &Lab, snapshots: u32) -> Result<()> {
    if lab.path("data.snap").exists() {
        fs::remove_file(lab.path("data.snap"))?;
    }
    Pattern::new(1).fill(&lab.path("data.img"), lab.size())?;
    let size = format!("{}M", (lab.size() >> 19) + 512);
    lab.run(&["initialize", "--size", &size, "data.snap", "data.img"])?;
    (1..=snapshots).try_for_each(|tag| lab.run(&["create", "data.snap", &tag.to_string()]))?;
    lab.settle()
}

/// Seconds that overwriting a volume with so many snapshots takes; then every byte is looked at.
fn overwrite_ours(lab: &Lab, snapshots: u32) -> Result<f64> {
    volume(lab, snapshots)?;
    let served = Served::ours(lab)?;
    let took = served.fio(lab, &OVERWRITE)?.1;
    served.end()?;
    ensure_overwritten(lab)?;
    if snapshots > 0 {
        lab.run(&["export", "data.snap", &snapshots.to_string(), "exported.img"])?;
        Pattern::new(1).fill(&lab.path("expected.img"), lab.size())?;
        lab.same("exported.img", "expected.img")?;
        ["exported.img", "expected.img"].iter().try_for_each(|name| fs::remove_file(lab.path(name)))?;
    }
    Ok(took)
}

fn ensure_overwritten(lab: &Lab) -> Result<()> {
    let (mut file, mut buf) = (File::open(lab.path("data.img"))?, vec![0; 1 << 20]);
    let expected = BYTES.repeat(buf.len() / BYTES.len());
    for at in 0..lab.size() >> 20 {
        file.read_exact(&mut buf)?;
        ensure!(buf == expected, "MiB {at} of the origin is not what fio wrote");
    }
    Ok(())
}

fn overwrite_overlay(lab: &Lab, cache: &str) -> Result<f64> {
    need("qemu-img")?;
    Pattern::new(1).fill(&lab.path("base.img"), lab.size())?;
    let create = ["create", "-q", "-f", "qcow2", "-b", "base.img", "-F", "raw", "overlay.qcow2"];
    finish(&mut lab.program("qemu-img", &create))?;
    lab.settle()?;
    let (socket, cache) = (lab.path("other").display().to_string(), format!("--cache={cache}"));
    let args = ["-f", "qcow2", &cache, "-k", &socket, "-t", "-e", "4", "overlay.qcow2"];
    let served = Served::other(lab, "qemu-nbd", &args)?;
    let took = served.fio(lab, &OVERWRITE)?.1;
    served.end()?;
    Ok(took)
}

fn overwrite_btrfs(lab: &Lab) -> Result<f64> {
    need("mkfs.btrfs")?;
    let btrfs = |args: &[&str]| finish(&mut lab.program("btrfs", args)).map(drop);
    if !lab.path("bt").exists() {
        File::create(lab.path("bt.img"))?.set_len(lab.size() * 4 + (1 << 30))?;
        finish(&mut lab.program("mkfs.btrfs", &["-q", "bt.img"]))?;
        lab.mount("bt.img", "bt")?;
    } else {
        btrfs(&["subvolume", "delete", "-c", "bt/volume", "bt/snapshot"])?;
    }
    btrfs(&["subvolume", "create", "bt/volume"])?;
    Pattern::new(1).fill(&lab.path("bt/volume/data.img"), lab.size())?;
    btrfs(&["subvolume", "snapshot", "bt/volume", "bt/snapshot"])?;
    finish(&mut lab.program("sync", &["-f", "bt"]))?;
    lab.settle()?;
    let served = Served::file(lab, "bt/volume/data.img")?;
    let took = served.fio(lab, &OVERWRITE)?.1;
    served.end()?;
    Ok(took)
}

fn overwrite_file(lab: &Lab) -> Result<f64> {
    Pattern::new(1).fill(&lab.path("data.img"), lab.size())?;
    lab.settle()?;
    let served = Served::file(lab, "data.img")?;
    let took = served.fio(lab, &OVERWRITE)?.1;
    served.end()?;
    ensure_overwritten(lab)?;
    Ok(took)
}

type Side<'a> = (&'a str, &'a dyn Fn() -> Result<f64>);

/// The medians of all sides, run in turns; why a side could not be run, where a tool is missing.
fn in_turns(lab: &Lab, sides: &[Side<'_>]) -> Result<Vec<Result<f64, String>>> {
    let mut found: Vec<Result<Vec<f64>, String>> = sides.iter().map(|_| Ok(Vec::new())).collect();
    for _ in 0..lab.runs() {
        for ((name, side), found) in sides.iter().zip(&mut found) {
            ensure!(!lab.stop_wanted(), "interrupted");
            let Ok(values) = found else { continue };
            match side() {
                Ok(value) => {
                    println!("    {name}: {}", figure(value, ""));
                    values.push(value);
                }
                Err(error) => match error.downcast_ref::<Missing>() {
                    Some(missing) => *found = Err(format!("{name}: {missing}")),
                    None => return Err(error.context((*name).to_owned())),
                },
            }
        }
    }
    Ok(found.into_iter().map(|values| values.map(median)).collect())
}

/// A line for each side but the first, which is ours: the first one's time against each.
fn times(lab: &Lab, sides: &[Side<'_>], goal: Goal) -> Result<Vec<Line>> {
    let mut found = in_turns(lab, sides)?.into_iter();
    let ours = found.next().context("no side")?.map_err(Missing)?;
    let others = sides.iter().skip(1).zip(found);
    Ok(others
        .map(|((name, _), other)| match other {
            Ok(theirs) => {
                Line::new(sides[0].0, time(ours), *name, time(theirs)).judged(theirs / ours, "x", goal)
            }
            Err(why) => Line::not_measured(0, why),
        })
        .collect())
}

/// What writing every byte and saving every old one takes at least: one after the other, each as fast as can be.
fn bytes_alone(lab: &Lab) -> Result<f64> {
    let written = overwrite_file(lab)?;
    Pattern::new(1).fill(&lab.path("expected.img"), lab.size())?;
    let begun = Instant::now();
    finish(
        &mut lab.program("dd", &["if=expected.img", "of=saved.img", "bs=8M", "oflag=dsync", "status=none"]),
    )?;
    let saved = begun.elapsed().as_secs_f64();
    ["expected.img", "saved.img"].iter().try_for_each(|name| fs::remove_file(lab.path(name)))?;
    Ok(written + saved)
}

fn first_overwrites(lab: &Lab) -> Result<Vec<Line>> {
    let sides: [Side<'_>; 4] = [
        ("16 KiB at random, 32 at a time, 1 snapshot", &|| overwrite_ours(lab, 1)),
        ("qcow2 overlay, qemu-nbd --cache=writeback", &|| overwrite_overlay(lab, "writeback")),
        ("qcow2 overlay, qemu-nbd --cache=none", &|| overwrite_overlay(lab, "none")),
        ("btrfs snapshot, nbdkit file", &|| overwrite_btrfs(lab)),
    ];
    let mut lines = times(lab, &sides, Goal::AtLeast(1.5))?;
    let sides: [Side<'_>; 2] =
        [("the same", &|| overwrite_ours(lab, 1)), ("the bytes alone", &|| bytes_alone(lab))];
    lines.extend(times(lab, &sides, Goal::Told)?);
    Ok(lines)
}

fn many_snapshots(lab: &Lab) -> Result<Vec<Line>> {
    let sides: [Side<'_>; 2] =
        [("1,000 snapshots", &|| overwrite_ours(lab, 1000)), ("1 snapshot", &|| overwrite_ours(lab, 1))];
    times(lab, &sides, Goal::AtLeast(0.97))
}

fn plain_writes(lab: &Lab) -> Result<Vec<Line>> {
    let sides: [Side<'_>; 2] =
        [("no snapshot", &|| overwrite_ours(lab, 0)), ("nbdkit file", &|| overwrite_file(lab))];
    times(lab, &sides, Goal::Told)
}

/// What fio tells while it writes, and a snapshot is made each second, if so wished.
fn write_and_create(lab: &Lab, served: &Served, args: &[&str], create: bool) -> Result<Value> {
    let (ended, seconds) = (AtomicBool::new(false), seconds(lab));
    let runtime = format!("--runtime={seconds}");
    let tags = 10..if create { 10 + seconds } else { 10 };
    let mut commands: Vec<_> = tags
        .map(|tag| {
            let (new, old) = (tag.to_string(), (tag - 1).max(9).to_string());
            [lab.ddsnap(&["create", "sock", &new]), lab.ddsnap(&["delete", "sock", &old])]
        })
        .collect();
    let report = std::thread::scope(|scope| {
        let creating = scope.spawn(|| -> Result<()> {
            for commands in &mut commands {
                std::thread::sleep(Duration::from_secs(1));
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                commands.iter_mut().try_for_each(|command| finish(command).map(drop))?;
            }
            Ok(())
        });
        let common = ["--rw=randwrite", "--bs=16k", "--iodepth=32", "--time_based", &runtime];
        let report = served.fio(lab, &[&common, args].concat());
        ended.store(true, Ordering::Relaxed);
        match creating.join() {
            Ok(created) => created.and(report),
            Err(_) => bail!("making snapshots failed"),
        }
    })?;
    Ok(report.0)
}

/// Milliseconds that writes took: of half of them, of 99 in 100, of all.
fn latencies(lab: &Lab, args: &[&str], create: bool) -> Result<[f64; 3]> {
    volume(lab, 1)?;
    lab.run(&["create", "data.snap", "9"])?;
    let served = Served::ours(lab)?;
    let report = write_and_create(lab, &served, args, create)?;
    served.end()?;
    let write = &report["write"]["clat_ns"];
    let of = |value: &Value| value.as_f64().map(|ns| ns / 1e6).context("fio tells no latency");
    let percentile = &write["percentile"];
    Ok([of(&percentile["50.000000"])?, of(&percentile["99.000000"])?, of(&write["max"])?])
}

fn pauses(lab: &Lab) -> Result<Vec<Line>> {
    let rate = format!("--rate_iops={RATE}");
    let mut lines = pauses_under(lab, "as many as can be taken", &[])?;
    lines.extend(pauses_under(lab, &format!("{RATE} a second"), &[&rate])?);
    Ok(lines)
}

fn pauses_under(lab: &Lab, load: &str, args: &[&str]) -> Result<Vec<Line>> {
    let (mut with, mut without) = ([const { Vec::new() }; 3], [const { Vec::new() }; 3]);
    for _ in 0..lab.runs() {
        for (found, create) in [(&mut with, true), (&mut without, false)] {
            let latencies = latencies(lab, args, create)?;
            println!("    {load}, snapshots made: {create}: {latencies:.2?} ms");
            found.iter_mut().zip(latencies).for_each(|(all, one)| all.push(one));
        }
    }
    let goals = [Goal::Told, Goal::AtMost(20.0), Goal::Told];
    let lines = with.into_iter().zip(without).zip(goals).zip(["half", "99 of 100", "all"]);
    Ok(lines
        .map(|(((with, without), goal), which)| {
            let (with, without) = (median(with), median(without));
            let what = format!("{load}: {which} writes took at most, a snapshot made each second");
            Line::new(what, figure(with, " ms"), "none made", figure(without, " ms"))
                .judged(with, " ms", goal)
        })
        .collect())
}

fn memory(lab: &Lab) -> Result<Vec<Line>> {
    let memory = lab.in_memory(lab.size() * 16)?;
    let lab = memory.as_ref().unwrap_or(lab);
    let exceptions = huge_volume(lab, lab.size() * 2048)?;
    let served = Served::ours_of(lab, "huge.snap")?;
    lab.run(&["create", "sock", "9"])?;
    write_and_create(lab, &served, &[], true)?;
    lab.run(&["status", "-v", "sock"])?;
    let status = fs::read_to_string(format!("/proc/{}/status", served.child.id()))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse()?;
    served.end()?;
    let what = format!("peak memory, {exceptions} exceptions, volume {} GiB", (lab.size() * 2048) >> 30);
    let line = Line::new(what, mib(kib << 10), "", String::new());
    Ok(vec![line.judged(kib as f64 / 1024.0, " MiB", Goal::AtMost(200.0))])
}

fn reads(lab: &Lab) -> Result<Vec<Line>> {
    volume(lab, 1)?;
    let runtime = format!("--runtime={}", seconds(lab) / 2);
    let read = |served: Served, args: &[&str], field: &str| -> Result<f64> {
        let report = served.fio(lab, &[args, &["--time_based", &runtime]].concat())?.0;
        served.end()?;
        report["read"][field].as_f64().context("fio tells no speed")
    };
    let mut lines = Vec::new();
    let shapes: [(&str, &[&str], &str, f64, &str); 2] = [
        (
            "1 MiB in order, 4 at a time",
            &["--rw=read", "--bs=1M", "--iodepth=4"],
            "bw_bytes",
            1048576.0,
            " MiB/s",
        ),
        (
            "4 KiB at random, 32 at a time",
            &["--rw=randread", "--bs=4k", "--iodepth=32"],
            "iops",
            1.0,
            " a second",
        ),
    ];
    for (name, args, field, unit, words) in shapes {
        let sides: [Side<'_>; 2] = [
            (name, &|| read(Served::ours(lab)?, args, field)),
            ("nbdkit file", &|| read(Served::file(lab, "data.img")?, args, field)),
        ];
        let found: Vec<_> = in_turns(lab, &sides)?.into_iter().collect::<Result<_, _>>().map_err(Missing)?;
        let [ours, theirs] = found[..] else { bail!("two sides") };
        lines.push(
            Line::new(name, figure(ours / unit, words), "nbdkit file", figure(theirs / unit, words)).judged(
                ours / theirs,
                "x",
                Goal::Told,
            ),
        );
    }
    Ok(lines)
}
