//! Rows 1 to 6: through NBD, which any machine has.

use super::served::{OVERWRITE, Served};
use super::{Side, compare_reads, ensure_overwritten, overwrite_ours, seconds, times, volume};
use crate::bench::data::Pattern;
use crate::bench::lab::{Lab, finish, median, need};
use crate::bench::large::huge_volume;
use crate::bench::sheet::{Goal, Line, Row, figure, mib};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs::{self, File};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A load that a server does not lag behind: writes a second.
const RATE: u32 = 2000;

pub fn rows() -> Vec<Row> {
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
    ensure_overwritten(lab, &lab.path("data.img"))?;
    Ok(took)
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
        ("16 KiB at random, 32 at a time, 1 snapshot", &|| overwrite_ours(lab, 1, Served::ours)),
        ("qcow2 overlay, qemu-nbd --cache=writeback", &|| overwrite_overlay(lab, "writeback")),
        ("qcow2 overlay, qemu-nbd --cache=none", &|| overwrite_overlay(lab, "none")),
        ("btrfs snapshot, nbdkit file", &|| overwrite_btrfs(lab)),
    ];
    let mut lines = times(lab, &sides, Goal::AtLeast(1.5))?;
    let sides: [Side<'_>; 2] =
        [("the same", &|| overwrite_ours(lab, 1, Served::ours)), ("the bytes alone", &|| bytes_alone(lab))];
    lines.extend(times(lab, &sides, Goal::Told)?);
    Ok(lines)
}

fn many_snapshots(lab: &Lab) -> Result<Vec<Line>> {
    let sides: [Side<'_>; 2] = [
        ("1,000 snapshots", &|| overwrite_ours(lab, 1000, Served::ours)),
        ("1 snapshot", &|| overwrite_ours(lab, 1, Served::ours)),
    ];
    times(lab, &sides, Goal::AtLeast(0.97))
}

fn plain_writes(lab: &Lab) -> Result<Vec<Line>> {
    let sides: [Side<'_>; 2] =
        [("no snapshot", &|| overwrite_ours(lab, 0, Served::ours)), ("nbdkit file", &|| overwrite_file(lab))];
    times(lab, &sides, Goal::AtLeast(0.9))
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
    let status = fs::read_to_string(format!("/proc/{}/status", served.id()))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse()?;
    served.end()?;
    let what = format!("peak memory, {exceptions} exceptions, volume {} GiB", (lab.size() * 2048) >> 30);
    let line = Line::new(what, mib(kib << 10), "", String::new());
    Ok(vec![line.judged(kib as f64 / 1024.0, " MiB", Goal::AtMost(200.0))])
}

fn reads(lab: &Lab) -> Result<Vec<Line>> {
    volume(lab, 1)?;
    compare_reads(lab, Served::ours, ("nbdkit file", |lab| Served::file(lab, "data.img")))
}
