//! Rows 14 to 16: looking for damage in metadata and in data, and rebuilding from what is found.

use super::data::{CHUNK, MIB, Pattern, allocated, origin, sparse, store, touch, void_store};
use super::lab::{Lab, finish, need};
use super::sheet::{Goal, Line, Row, figure, mib, rate};
use anyhow::{Context, Result, bail, ensure};
use ddsnap::units::Tag;
use rustix::fs::Advice;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::process::Stdio;

/// The rows of this file.
pub fn rows() -> Vec<Row> {
    vec![
        Row {
            number: 14,
            what: "checking metadata",
            volumes: 6,
            commands: "ddsnap fsck -n huge.snap   # one chunk in 16 of a volume preserved; then a run of chunks\n\
                       thin_restore -i thin.xml -o thin.bin; thin_check thin.bin   # as many mappings, spread alike",
            limit: "Both check every block of their trees and all counts. Four thin devices have a quarter of the \
                    mappings each, half of those of three of them shared with the first. Neither format knows \
                    runs: an entry is one chunk, in 40 bytes with the checksum of its data, or one block, in 16 \
                    bytes. Ours also reads change bits (an entry for 8 scattered chunks, or for 128 in a row) and \
                    holds every exception against them; decoding entries is the bound, on as many processors as \
                    there are. thin_check counts references to data blocks, on one. Which version it was stands \
                    in the line.",
            measure: metadata,
        },
        Row {
            number: 15,
            what: "checking data",
            volumes: 6,
            commands: "ddsnap fsck -n --data vol.snap\ndd if=vol.snap of=/dev/null bs=4M",
            limit: "Every byte of every segment in use is read and summed, and every record and chunk held against \
                    the index. Copying out of the page cache is the bound of both where the store is cached, the \
                    device where it is not: then the store is evicted before each run of either. Ours is told in \
                    bytes that the store takes, dd's in bytes of the file, some of which are holes.",
            measure: |lab| against_dd(lab, "fsck -n --data", &["fsck", "-n", "--data", "vol.snap"], 0.8),
        },
        Row {
            number: 16,
            what: "rebuilding a store from its records",
            volumes: 6,
            commands: "ddsnap fsck -y --rebuild vol.snap\ndd if=vol.snap of=/dev/null bs=4M",
            limit: "The metadata is checked as it is, every block is read once and looked at, every chunk held \
                    against the sum in its record; the index is made again from records and what is left of the \
                    old one, flushed, and checked. Reading is the bound, and some flushes come on top.",
            measure: |lab| against_dd(lab, "fsck --rebuild", &["fsck", "-y", "--rebuild", "vol.snap"], 0.7),
        },
    ]
}

fn metadata(lab: &Lab) -> Result<Vec<Line>> {
    need("thin_check")?;
    // In memory where there is room: neither side is to wait for a disk.
    let memory = lab.in_memory(lab.size() * 2)?;
    let lab = memory.as_ref().unwrap_or(lab);
    let count = lab.size() / 1024;
    let version = finish(&mut lab.program("thin_check", &["-V"]))?;
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    let mut lines = Vec::new();
    for (what, step) in [("scattered", 16), ("in a row", 1)] {
        exceptions(lab, count, step)?;
        mappings(lab, count, step)?;
        let check = ["fsck", "-n", "huge.snap"];
        let duel = lab.duel(&|_| Ok(()), &|_| lab.run(&check), &|_| {
            finish(&mut lab.program("thin_check", &["thin.bin"])).map(drop)
        })?;
        let each = |seconds: f64| figure(seconds * 1e9 / count as f64, " ns");
        lines.push(
            Line::new(
                format!("fsck -n, each of {count} exceptions, {what}"),
                each(duel.ours),
                format!("thin_check {version}, each of {count} mappings"),
                each(duel.theirs),
            )
            .judged(duel.speed(), "x", Goal::AtLeast(1.0)),
        );
        if step > 1 {
            lines.extend(memory_lines(lab)?);
        }
        lab.clear()?;
    }
    Ok(lines)
}

/// Peak memory of the ways to check the store of many exceptions.
fn memory_lines(lab: &Lab) -> Result<Vec<Line>> {
    let peak = |args: &[&str]| Ok::<_, anyhow::Error>(lab.cost(&lab.ddsnap(args), Stdio::null())?.memory_kib);
    let theirs = lab.cost(&lab.program("thin_check", &["thin.bin"]), Stdio::null())?.memory_kib;
    let cases: [(&str, &[&str]); 3] = [
        ("fsck -n", &["fsck", "-n", "huge.snap"]),
        ("fsck -n --data", &["fsck", "-n", "--data", "huge.snap"]),
        ("fsck --rebuild", &["fsck", "-y", "--rebuild", "huge.snap"]),
    ];
    let mut lines = Vec::new();
    for (name, args) in cases {
        let kib = peak(args)?;
        lines.push(
            Line::new(format!("peak memory, {name}"), mib(kib << 10), "thin_check", mib(theirs << 10))
                .judged(kib as f64 / 1024.0, " MiB", Goal::AtMost(300.0)),
        );
    }
    lab.run(&["fsck", "-n", "--data", "huge.snap"])?;
    Ok(lines)
}

/// A store with `count` exceptions, for every `step`-th chunk of a volume.
fn exceptions(lab: &Lab, count: u64, step: u64) -> Result<()> {
    let volume = count * step * CHUNK;
    let mut writer = void_store(lab, "huge.snap", lab.size() * 16 + 2048 * MIB, volume)?;
    writer.create_snapshot(Tag(1), None)?;
    touch(lab, &mut writer, (0..volume / CHUNK).step_by(usize::try_from(step)?))?;
    writer.create_snapshot(Tag(2), None)?;
    writer.close()?;
    let output = finish(&mut lab.ddsnap(&["status", "--json", "huge.snap"]))?;
    let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let found = status["snapshots"][0]["chunks"].as_u64();
    ensure!(found == Some(count), "{count} chunks were changed, status says {status}");
    Ok(())
}

/// Metadata of a thin pool with `count` mappings in four devices, for every `step`-th block of each. Half of what
/// three of them map is shared with the first.
fn mappings(lab: &Lab, count: u64, step: u64) -> Result<()> {
    let each = count / 4;
    let mut xml = BufWriter::new(File::create(lab.path("thin.xml"))?);
    writeln!(
        xml,
        "<superblock uuid=\"\" time=\"1\" transaction=\"1\" data_block_size=\"128\" nr_data_blocks=\"{count}\">"
    )?;
    for device in 0..4 {
        writeln!(
            xml,
            "<device dev_id=\"{device}\" mapped_blocks=\"{each}\" transaction=\"0\" creation_time=\"0\" \
             snap_time=\"1\">"
        )?;
        for number in 0..each {
            let block = number * step;
            let shared = device > 0 && number % 2 == 0;
            let data = if shared { number } else { device * each + number };
            writeln!(
                xml,
                "<single_mapping origin_block=\"{block}\" data_block=\"{data}\" time=\"{}\"/>",
                u8::from(!shared)
            )?;
        }
        writeln!(xml, "</device>")?;
    }
    writeln!(xml, "</superblock>")?;
    xml.into_inner().context("the description of a thin pool was not written")?.flush()?;
    // Leaves that are half full, 16 bytes a mapping, and room for the maps of space.
    sparse(&lab.path("thin.bin"), (count * 64).max(16 * MIB))?;
    finish(&mut lab.program("thin_restore", &["-i", "thin.xml", "-o", "thin.bin"]))?;
    let dump = finish(&mut lab.program("thin_dump", &["thin.bin", "-o", "dump.xml"]))?;
    ensure!(dump.stderr.is_empty(), "thin_dump: {}", String::from_utf8_lossy(&dump.stderr));
    let mapped = fs::read_to_string(lab.path("dump.xml"))?.matches("mapped_blocks=\"").count();
    ensure!(mapped == 4, "the thin pool has {mapped} devices");
    for name in ["thin.xml", "dump.xml"] {
        fs::remove_file(lab.path(name))?;
    }
    Ok(())
}

/// `args` on a store of real data against reading the store with dd: cached on a disk, evicted there, in memory.
fn against_dd(lab: &Lab, what: &str, args: &[&str], goal: f64) -> Result<Vec<Line>> {
    need("dd")?;
    let mut lines = Vec::new();
    let used = preserve(lab)?;
    lines.push(dd_duel(lab, what, "disk, cached", args, used, goal, &|| finish(&mut dd(lab)).map(drop))?);
    lines.push(dd_duel(lab, what, "disk, evicted", args, used, goal, &|| evict(lab))?);
    lab.clear()?;
    if let Some(memory) = lab.in_memory(lab.size())? {
        let used = preserve(&memory)?;
        lines.push(dd_duel(&memory, what, "in memory", args, used, goal, &|| Ok(()))?);
    }
    Ok(lines)
}

fn dd(lab: &Lab) -> std::process::Command {
    lab.program("dd", &["if=vol.snap", "of=/dev/null", "bs=4M"])
}

/// `used`: bytes that the store takes.
fn dd_duel(
    lab: &Lab,
    what: &str,
    place: &str,
    args: &[&str],
    used: u64,
    goal: f64,
    before: &dyn Fn() -> Result<()>,
) -> Result<Line> {
    let whole = fs::metadata(lab.path("vol.snap"))?.len();
    let ours = |_| {
        let output = lab.ddsnap(args).output()?;
        // For fsck(8), 1 means that it repaired what it was asked to.
        match output.status.code() {
            Some(0 | 1) => Ok(()),
            _ => bail!("{}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr)),
        }
    };
    let duel = lab.duel(&|_| before(), &ours, &|_| finish(&mut dd(lab)).map(drop))?;
    lab.run(&["fsck", "-n", "--data", "vol.snap"])?;
    lab.run(&["export", "vol.snap", "0", "exported.img"])?;
    lab.same("exported.img", "expected.img")?;
    fs::remove_file(lab.path("exported.img"))?;
    let cost = lab.cost(&lab.ddsnap(args), Stdio::null())?;
    Ok(Line::new(
        format!("{what}, {place} ({} MiB of memory)", cost.memory_kib >> 10),
        rate(used, duel.ours),
        "dd bs=4M of the store",
        rate(whole, duel.theirs),
    )
    .judged(used as f64 / duel.ours / (whole as f64 / duel.theirs), "x", Goal::AtLeast(goal)))
}

/// Writes out what is cached of the store and forgets it.
fn evict(lab: &Lab) -> Result<()> {
    let file = File::open(lab.path("vol.snap"))?;
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    Ok(())
}

/// A store nearly full of the chunks of a volume that was overwritten once, in a random order, for snapshot 0.
/// Returns the bytes that it takes. What snapshot 0 must be is left in `expected.img`.
fn preserve(lab: &Lab) -> Result<u64> {
    let size = lab.size() / 2;
    let chunks = size / CHUNK;
    let (old, new) = (Pattern::new(1), Pattern::new(2));
    old.fill(&lab.path("vol.img"), size)?;
    fs::copy(lab.path("vol.img"), lab.path("expected.img"))?;
    let mut writer = store(lab, "vol.snap", size + size / 16 + 64 * MIB, "vol.img", origin(lab, "vol.img")?)?;
    writer.create_snapshot(Tag(0), None)?;
    // An odd factor permutes the chunks of a volume whose size is a power of two, or nearly does.
    let order: Vec<u64> = (0..chunks).map(|number| number.wrapping_mul(0x9e37_79b1) % chunks).collect();
    for batch in order.chunks(64) {
        ensure!(!lab.stop_wanted(), "interrupted");
        let pieces: Vec<_> = batch.iter().map(|chunk| (chunk * CHUNK, new.chunk(*chunk))).collect();
        writer.write_origin_many(&pieces)?;
    }
    writer.close()?;
    lab.settle()?;
    allocated(&lab.path("vol.snap"))
}
