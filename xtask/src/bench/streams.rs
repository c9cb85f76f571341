//! Rows 1 to 6: deltas and comparisons against cat, zstd, dd and cmp.

use super::data::{CHUNK, MIB, Pattern, changed_mib, origin, patch, store};
use super::lab::{Duel, Lab, drain, finish, need, pipe};
use super::sheet::{Goal, Line, Row, figure, mib, rate};
use crate::demo::noise;
use anyhow::{Result, ensure};
use ddsnap::units::Tag;
use std::fs::{self, File};
use std::io::Write;
use std::process::Stdio;

/// The rows of this file.
pub fn rows() -> Vec<Row> {
    vec![
        Row {
            number: 1,
            what: "create-delta, raw, to a pipe",
            volumes: 12,
            commands: "ddsnap create-delta vol.snap 0 1 -r -g 0 | reader\ncat changed.bin | reader",
            limit: "A quarter of the volume changed, in runs of a MiB. The reader only reads, in pieces of 1 MiB. \
                    `cat` copies every byte twice, into its buffer and into the pipe; a delta adds a CRC of every \
                    chunk and of every extent, a BLAKE3 digest of the whole, and a copy between threads.",
            measure: raw_delta,
        },
        Row {
            number: 2,
            what: "create-delta, zstd level 1",
            volumes: 12,
            commands: "ddsnap create-delta vol.snap 0 1 -g 1 | reader\nzstd -q -1 -T0 -c changed.bin | reader",
            limit: "The same changes. Both run the same compressor on all processors; extents of 1 MiB are \
                    compressed apart from each other, and checksums come on top.",
            measure: zstd_delta,
        },
        Row {
            number: 3,
            what: "create-delta -b, 1 % of each chunk changed",
            volumes: 4,
            commands: "time ddsnap create-delta --compare -b old.img new.img -o best.delta\n\
                       zstd -q -3 -T0 -k new.img",
            limit: "Four places of each chunk are overwritten with noise, which is 1 % that nothing can compress. \
                    Speed is bytes of the new image for each second of processor time, reading both included. \
                    `-b` tries plain zstd as well as zstd with the old data as prefix and keeps the smaller, so \
                    it compresses every byte twice; the compressor is the bound.",
            measure: prefix_delta,
        },
        Row {
            number: 4,
            what: "apply-delta, raw, onto a file",
            volumes: 12,
            commands: "ddsnap apply-delta raw.delta target.img\n\
                       dd if=changed.bin of=dd.img bs=1M conv=notrunc\n\
                       dd if=changed.bin of=dd.img bs=1M conv=notrunc,fsync",
            limit: "Before the first byte is written the whole delta and the base are verified, so each changed \
                    byte is read three times (the delta twice, the base once), and summed each time. It ends \
                    with a flush, as `conv=fsync` does; without a flush nothing is on the disk yet.",
            measure: apply,
        },
        Row {
            number: 5,
            what: "comparing two identical files",
            volumes: 8,
            commands: "ddsnap changelist --compare a.img b.img -\ncmp a.img b.img",
            limit: "Two processors read and compare in turns of 1 MiB; `cmp` uses one. Copying out of the page \
                    cache is the bound for both.",
            measure: compare,
        },
        Row {
            number: 6,
            what: "comparing reflinked files, 1 % changed",
            volumes: 9,
            commands: "mkfs.xfs -m reflink=1 xfs.img; mount -o loop xfs.img xfs\n\
                       ddsnap changelist --compare xfs/a.img xfs/b.img -\ncat xfs/a.img xfs/b.img > /dev/null",
            limit: "Every hundredth chunk is its own extent, so the file system's map of extents is what has to be \
                    read; only what the maps do not share needs comparing.",
            measure: reflink,
        },
    ]
}

/// Makes `vol.img`, a store of it with snapshots 0 and 1, and `changed.bin`: what changed between them.
fn volume(lab: &Lab) -> Result<()> {
    Pattern::new(1).fill(&lab.path("vol.img"), lab.size())?;
    let new = Pattern::new(2);
    let store_size = lab.size() / 4 * 3 / 2 + 64 * MIB;
    let mut writer = store(lab, "vol.snap", store_size, "vol.img", origin(lab, "vol.img")?)?;
    writer.create_snapshot(Tag(0), None)?;
    let mut changed = File::create(lab.path("changed.bin"))?;
    for number in changed_mib(lab.size()) {
        writer.write_origin(number * MIB, new.mib(number))?;
        changed.write_all(new.mib(number))?;
    }
    writer.create_snapshot(Tag(1), None)?;
    writer.close()?;
    lab.settle()
}

fn changed_bytes(lab: &Lab) -> u64 {
    lab.size() / 4
}

/// A line that compares throughput.
fn speed(what: &str, against: &str, bytes: u64, duel: Duel, goal: Goal) -> Line {
    Line::new(what, rate(bytes, duel.ours), against, rate(bytes, duel.theirs)).judged(duel.speed(), "x", goal)
}

fn raw_delta(lab: &Lab) -> Result<Vec<Line>> {
    volume(lab)?;
    let raw = ["create-delta", "vol.snap", "0", "1", "-r", "-g", "0"];
    let bytes = changed_bytes(lab);
    let duel = lab.duel(&|_| Ok(()), &|_| drain(&mut lab.ddsnap(&raw)).map(drop), &|_| {
        let sent = drain(&mut lab.program("cat", &["changed.bin"]))?;
        ensure!(sent == bytes, "cat sent {sent} bytes");
        Ok(())
    })?;
    check_delta(lab, &raw)?;
    Ok(vec![speed("raw delta to a pipe", "cat of the same bytes", bytes, duel, Goal::AtLeast(0.7))])
}

fn zstd_delta(lab: &Lab) -> Result<Vec<Line>> {
    need("zstd")?;
    volume(lab)?;
    let packed = ["create-delta", "vol.snap", "0", "1", "-g", "1"];
    let duel = lab.duel(&|_| Ok(()), &|_| drain(&mut lab.ddsnap(&packed)).map(drop), &|_| {
        drain(&mut lab.program("zstd", &["-q", "-1", "-T0", "-c", "changed.bin"])).map(drop)
    })?;
    check_delta(lab, &packed)?;
    let bytes = changed_bytes(lab);
    Ok(vec![speed("zstd 1 delta to a pipe", "zstd -1 -T0", bytes, duel, Goal::AtLeast(0.95))])
}

/// The delta that `create` makes turns the old volume into the new one.
fn check_delta(lab: &Lab, create: &[&str]) -> Result<()> {
    Pattern::new(1).fill(&lab.path("target.img"), lab.size())?;
    pipe(&mut lab.ddsnap(create), &mut lab.ddsnap(&["apply-delta", "-", "target.img"]))?;
    lab.same("target.img", "vol.img")
}

fn prefix_delta(lab: &Lab) -> Result<Vec<Line>> {
    need("zstd")?;
    let size = lab.size() / 4;
    let pattern = Pattern::new(1);
    pattern.fill(&lab.path("old.img"), size)?;
    let mut new = File::create(lab.path("new.img"))?;
    for chunk in 0..size / CHUNK {
        let mut bytes = pattern.chunk(chunk).to_vec();
        for (place, quarter) in bytes.chunks_mut(4096).enumerate() {
            let change = noise(chunk << 8 | place as u64, 41);
            let at = usize::try_from(chunk.wrapping_mul(977) % 4000)?;
            quarter[at..at + 41].copy_from_slice(&change);
        }
        new.write_all(&bytes)?;
    }
    drop(new);
    let create = lab.ddsnap(&["create-delta", "--compare", "-b", "old.img", "new.img", "-o", "best.delta"]);
    let seconds = lab.alone(&|_| Ok(lab.cost(&create, Stdio::null())?.cpu.max(0.001)))?;
    finish(&mut lab.program("zstd", &["-q", "-3", "-T0", "-k", "new.img"]))?;
    let plain = fs::metadata(lab.path("new.img.zst"))?.len();
    let best = fs::metadata(lab.path("best.delta"))?.len();
    lab.run(&["apply-delta", "--undo", "back.delta", "best.delta", "old.img"])?;
    lab.same("old.img", "new.img")?;
    let speed = size as f64 / seconds / f64::from(1 << 30);
    let (smaller, fast) = (Goal::AtLeast(10.0), Goal::AtLeast(0.5));
    Ok(vec![
        Line::new("-b: size", mib(best), "zstd -3 of the new image", mib(plain)).judged(
            plain as f64 / best as f64,
            "x smaller",
            smaller,
        ),
        Line::new("-b: speed of one processor", figure(speed, " GiB/s"), "", String::new())
            .judged(speed, " GiB/s", fast),
    ])
}

fn apply(lab: &Lab) -> Result<Vec<Line>> {
    let mut lines = apply_in(lab, "disk")?;
    if let Some(memory) = lab.in_memory(lab.size() * 3)? {
        lines.extend(apply_in(&memory, "in memory")?);
    }
    Ok(lines)
}

fn apply_in(lab: &Lab, place: &str) -> Result<Vec<Line>> {
    volume(lab)?;
    lab.run(&["create-delta", "vol.snap", "0", "1", "-r", "-g", "0", "-o", "raw.delta"])?;
    let old = Pattern::new(1);
    old.fill(&lab.path("target.img"), lab.size())?;
    old.fill(&lab.path("dd.img"), changed_bytes(lab))?;
    let before = |_| {
        for number in changed_mib(lab.size()) {
            patch(&lab.path("target.img"), number * MIB, old.mib(number))?;
        }
        lab.settle()
    };
    let bytes = changed_bytes(lab);
    let mut lines = Vec::new();
    for conv in ["conv=notrunc", "conv=notrunc,fsync"] {
        let dd = ["if=changed.bin", "of=dd.img", "bs=1M", conv, "status=none"];
        let duel = lab.duel(&before, &|_| lab.run(&["apply-delta", "raw.delta", "target.img"]), &|_| {
            finish(&mut lab.program("dd", &dd)).map(drop)
        })?;
        let what = format!("raw delta onto a file, {place}");
        lines.push(speed(&what, &format!("dd bs=1M {conv}"), bytes, duel, Goal::AtLeast(0.8)));
    }
    lab.same("dd.img", "changed.bin")?;
    lab.run(&["apply-delta", "raw.delta", "target.img"])?;
    lab.same("target.img", "vol.img")?;
    Ok(lines)
}

fn compare(lab: &Lab) -> Result<Vec<Line>> {
    need("cmp")?;
    let pattern = Pattern::new(1);
    pattern.fill(&lab.path("a.img"), lab.size())?;
    pattern.fill(&lab.path("b.img"), lab.size())?;
    lab.settle()?;
    let duel = lab.duel(
        &|_| Ok(()),
        &|_| {
            let output =
                finish(&mut lab.ddsnap(&["changelist", "--json", "--compare", "a.img", "b.img", "-"]))?;
            let list: serde_json::Value = serde_json::from_slice(&output.stdout)?;
            ensure!(list["block_metadata"].as_array().is_some_and(Vec::is_empty), "differences in {list}");
            Ok(())
        },
        &|_| finish(&mut lab.program("cmp", &["a.img", "b.img"])).map(drop),
    )?;
    // One different byte must be seen.
    let last = pattern.mib(lab.size() / MIB - 1).last().copied().unwrap_or(0);
    patch(&lab.path("b.img"), lab.size() - 1, &[last ^ 1])?;
    lab.run(&["create-delta", "--compare", "a.img", "b.img", "-o", "d.delta"])?;
    lab.run(&["apply-delta", "d.delta", "a.img"])?;
    lab.same("a.img", "b.img")?;
    Ok(vec![speed("compare identical files", "cmp", 2 * lab.size(), duel, Goal::AtLeast(2.0))])
}

fn reflink(lab: &Lab) -> Result<Vec<Line>> {
    need("mkfs.xfs")?;
    super::data::sparse(&lab.path("xfs.img"), lab.size() * 2 + (512 << 20))?;
    finish(&mut lab.program("mkfs.xfs", &["-q", "-m", "reflink=1", "xfs.img"]))?;
    lab.mount("xfs.img", "xfs")?;
    let new = Pattern::new(2);
    Pattern::new(1).fill(&lab.path("xfs/a.img"), lab.size())?;
    finish(&mut lab.program("cp", &["--reflink=always", "xfs/a.img", "xfs/b.img"]))?;
    for chunk in (0..lab.size() / CHUNK).step_by(100) {
        patch(&lab.path("xfs/b.img"), chunk * CHUNK, new.chunk(chunk))?;
    }
    lab.settle()?;
    finish(&mut lab.program("sync", &["-f", "xfs/b.img"]))?;
    let read_both = |_| {
        let mut cat = lab.program("cat", &["xfs/a.img", "xfs/b.img"]);
        finish(cat.stdout(Stdio::null())).map(drop)
    };
    // Both files into the page cache.
    read_both(0)?;
    let duel = lab.duel(
        &|_| Ok(()),
        &|_| lab.run(&["changelist", "--compare", "xfs/a.img", "xfs/b.img", "changes.cl"]),
        &read_both,
    )?;
    lab.run(&["create-delta", "--compare", "xfs/a.img", "xfs/b.img", "-o", "d.delta"])?;
    lab.run(&["apply-delta", "d.delta", "xfs/a.img"])?;
    lab.same("xfs/a.img", "xfs/b.img")?;
    let what = "compare reflinked files, 1 % changed";
    Ok(vec![speed(what, "reading both once", 2 * lab.size(), duel, Goal::AtLeast(20.0))])
}
