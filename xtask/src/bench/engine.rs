//! Rows 7 to 10: changelists, copy-outs and deletes, in small stores and large ones.

use super::data::{CHUNK, MIB, Pattern, origin, origin_of, store, touch, void_store};
use super::lab::{Lab, drain, finish_with};
use super::sheet::{Goal, Line, Row, figure, rate, time};
use anyhow::{Result, ensure};
use ddsnap::store::Writer;
use ddsnap::units::Tag;
use std::cell::RefCell;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Instant;

/// The rows of this file.
pub fn rows() -> Vec<Row> {
    vec![
        Row {
            number: 7,
            what: "changelist between two snapshots",
            volumes: 2,
            commands: "ddsnap changelist small.snap - 1 2\nddsnap changelist large.snap - 1 2",
            limit: "As many chunks changed between the two snapshots, evenly spread; the other volume is 16 times as \
                    large and its store keeps 16 times as many chunks of an earlier epoch, that is of every chunk. \
                    Change bits are sorted by epoch, so only those of the epoch asked for are read: spread over \
                    more pages of 128 chunks in a larger volume, at most one page a chunk. What is left to pay is \
                    reading the tables of a larger store when it is opened.",
            measure: changelist,
        },
        Row {
            number: 8,
            what: "writing one chunk with 1,000 snapshots",
            volumes: 2,
            commands: "ddsnap write many.snap --offset N < chunk\nddsnap write one.snap --offset N < chunk",
            limit: "One chunk is copied once, however many snapshots share it. A whole command: open, replay, copy \
                    out, flush, write, flush, mark; the checkpoint that is read at opening lists the snapshots.",
            measure: many_snapshots,
        },
        Row {
            number: 9,
            what: "copying out, batches of 1 MiB",
            volumes: 8,
            commands: "ours: Writer::write_origin_many with 64 chunks of 16 KiB, until each was overwritten once\n\
                       theirs: pread 64 chunks, pwrite them to another file, fdatasync it, pwrite the new data",
            limit: "Both read the old data, write it elsewhere, flush that, and write the new data; one flush for \
                    every MiB and one of the origin at the end. Ours also sums every chunk, finds chunks of \
                    zeroes, writes a header of 4 KiB for each batch, and keeps an index.",
            measure: copy_out,
        },
        Row {
            number: 10,
            what: "deleting a snapshot",
            volumes: 2,
            commands: "ddsnap delete small.snap N\nddsnap delete small.snap M     # four times the epoch\n\
                       ddsnap delete large.snap N     # 16 times the store",
            limit: "A delete counts what it makes dead from the change bits of the epochs at its two sides. What is \
                    dead is dropped from the index later, by the sweep that comes when a quarter of the index is \
                    dead: linear in the store, but paid by the quarter that it frees. The last line counts it.",
            measure: delete,
        },
    ]
}

/// Snapshots 1 and 2 of a volume of `chunks` chunks, `changed` of which differ; before that, all of them changed.
fn history(lab: &Lab, name: &str, chunks: u64, changed: u64) -> Result<()> {
    let mut writer = void_store(lab, name, chunks * CHUNK / 4 + 512 * MIB, chunks * CHUNK)?;
    writer.create_snapshot(Tag(0), None)?;
    touch(lab, &mut writer, 0..chunks)?;
    writer.create_snapshot(Tag(1), None)?;
    let step = usize::try_from(chunks / changed)?;
    touch(lab, &mut writer, (0..chunks).step_by(step))?;
    writer.create_snapshot(Tag(2), None)?;
    writer.close()?;
    Ok(())
}

fn changelist(lab: &Lab) -> Result<Vec<Line>> {
    let (chunks, changed) = (lab.size() / CHUNK, lab.size() / MIB);
    history(lab, "small.snap", chunks, changed)?;
    history(lab, "large.snap", chunks * 16, changed)?;
    let list = |name: &str| {
        let bytes = drain(&mut lab.ddsnap(&["changelist", name, "-", "1", "2"]))?;
        ensure!(bytes >= changed * 8, "the changelist of {name} has {bytes} bytes for {changed} chunks");
        Ok(())
    };
    let duel = lab.quick_duel(&|_| Ok(()), &|_| list("large.snap"), &|_| list("small.snap"))?;
    let against = format!("{} chunks, {} preserved", chunks, chunks + changed);
    let what = format!("{changed} changes; {} chunks, {} preserved", chunks * 16, chunks * 16 + changed);
    Ok(vec![Line::new(what, time(duel.ours), against, time(duel.theirs)).judged(
        duel.ours / duel.theirs,
        "x the time",
        Goal::AtMost(1.3),
    )])
}

/// A store with `snapshots` snapshots of a volume of 64 MiB, one chunk changed after each.
fn snapshots(lab: &Lab, name: &str, snapshots: u32) -> Result<()> {
    let origin_name = origin_of(name);
    Pattern::new(1).fill(&lab.path(&origin_name), 64 * MIB)?;
    let new = Pattern::new(2);
    let mut writer = store(lab, name, 512 * MIB, &origin_name, origin(lab, &origin_name)?)?;
    for tag in 0..snapshots {
        writer.create_snapshot(Tag(tag), None)?;
        let chunk = u64::from(tag % 1024);
        writer.write_origin(chunk * CHUNK, new.chunk(chunk))?;
    }
    writer.close()?;
    Ok(())
}

fn many_snapshots(lab: &Lab) -> Result<Vec<Line>> {
    let mut lines = many_in(lab, "disk")?;
    if let Some(memory) = lab.in_memory(1 << 30)? {
        lines.extend(many_in(&memory, "in memory")?);
    }
    Ok(lines)
}

fn many_in(lab: &Lab, place: &str) -> Result<Vec<Line>> {
    snapshots(lab, "many.snap", 1000)?;
    snapshots(lab, "one.snap", 1)?;
    fs::write(lab.path("chunk.bin"), Pattern::new(3).chunk(5))?;
    let write = |name: &str, run: usize| {
        // The second half of the volume: never changed before.
        let offset = ((2048 + run as u64) * CHUNK).to_string();
        let input = File::open(lab.path("chunk.bin"))?;
        finish_with(&mut lab.ddsnap(&["write", name, "--offset", &offset]), input.into()).map(drop)
    };
    let duel = lab.quick_duel(&|_| Ok(()), &|run| write("many.snap", run), &|run| write("one.snap", run))?;
    for name in ["many.snap", "one.snap"] {
        let offset = (2048 * CHUNK).to_string();
        let old = lab.ddsnap(&["read", name, "0", "--offset", &offset, "--length", "16k"]).output()?;
        ensure!(old.stdout == Pattern::new(1).chunk(2048), "snapshot 0 of {name} lost its data");
    }
    Ok(vec![
        Line::new(
            format!("write one chunk, 1,000 snapshots, {place}"),
            time(duel.ours),
            "1 snapshot",
            time(duel.theirs),
        )
        .judged(duel.ours / duel.theirs, "x the time", Goal::AtMost(1.1)),
    ])
}

fn copy_out(lab: &Lab) -> Result<Vec<Line>> {
    let mut lines = copy_out_in(lab, "disk")?;
    if let Some(memory) = lab.in_memory(lab.size())? {
        lines.extend(copy_out_in(&memory, "in memory")?);
    }
    Ok(lines)
}

fn copy_out_in(lab: &Lab, place: &str) -> Result<Vec<Line>> {
    let size = lab.size() / 4;
    let chunks = size / CHUNK;
    let (old, new) = (Pattern::new(1), Pattern::new(2));
    old.fill(&lab.path("vol.img"), size)?;
    let mut lines = Vec::new();
    // An odd factor permutes the chunks of a volume whose size is a power of two, or nearly does.
    for (what, factor) in [("sequential", 1), ("random", 0x9e37_79b1)] {
        let order: Vec<u64> = (0..chunks).map(|number| number.wrapping_mul(factor) % chunks).collect();
        let batches: Vec<Vec<(u64, &[u8])>> = order
            .chunks(64)
            .map(|batch| batch.iter().map(|chunk| (chunk * CHUNK, new.chunk(*chunk))).collect())
            .collect();
        let writer: RefCell<Option<Writer>> = RefCell::default();
        let fresh = |_| {
            old.fill(&lab.path("vol.img"), size)?;
            // One that was made for the other side holds the volume still.
            drop(writer.borrow_mut().take());
            for name in ["vol.snap", "copy.bin"] {
                if lab.path(name).exists() {
                    fs::remove_file(lab.path(name))?;
                }
            }
            let mut made =
                store(lab, "vol.snap", size * 3 / 2 + 512 * MIB, "vol.img", origin(lab, "vol.img")?)?;
            made.create_snapshot(Tag(0), None)?;
            *writer.borrow_mut() = Some(made);
            super::data::sparse(&lab.path("copy.bin"), size)?;
            lab.settle()
        };
        let ours = |_| {
            let Some(mut writer) = writer.borrow_mut().take() else { return Ok(()) };
            batches.iter().try_for_each(|batch| writer.write_origin_many(batch))?;
            Ok(writer.close()?)
        };
        let duel = lab.duel(&fresh, &ours, &|_| by_hand(lab, &batches))?;
        fresh(0)?;
        ours(0)?;
        lab.run(&["export", "vol.snap", "0", "exported.img"])?;
        old.fill(&lab.path("expected.img"), size)?;
        lab.same("exported.img", "expected.img")?;
        fs::remove_file(lab.path("exported.img"))?;
        lines.push(
            Line::new(
                format!("copy out, {what}, {place}"),
                rate(size, duel.ours),
                "read, write, flush, write",
                rate(size, duel.theirs),
            )
            .judged(duel.speed(), "x", Goal::AtLeast(0.7)),
        );
    }
    Ok(lines)
}

/// What copying out cannot do without: read the old data, write it elsewhere, flush, write the new data.
fn by_hand(lab: &Lab, batches: &[Vec<(u64, &[u8])>]) -> Result<()> {
    let origin = File::options().read(true).write(true).open(lab.path("vol.img"))?;
    let copy = File::options().write(true).open(lab.path("copy.bin"))?;
    let mut at = 0;
    let mut old = vec![0; 1 << 20];
    for batch in batches {
        let mut used = 0;
        for (offset, data) in batch {
            origin.read_exact_at(&mut old[used..used + data.len()], *offset)?;
            used += data.len();
        }
        copy.write_all_at(&old[..used], at)?;
        copy.sync_data()?;
        at += used as u64;
        for (offset, data) in batch {
            origin.write_all_at(data, *offset)?;
        }
    }
    origin.sync_data()?;
    Ok(())
}

/// A store that keeps every chunk of the volume for snapshot 0, then snapshots with `epoch` changed chunks each.
fn epochs(lab: &Lab, name: &str, chunks: u64, epochs: &[u64]) -> Result<()> {
    let mut writer = void_store(lab, name, chunks * CHUNK / 4 + 512 * MIB, chunks * CHUNK)?;
    writer.create_snapshot(Tag(0), None)?;
    touch(lab, &mut writer, 0..chunks)?;
    for (tag, epoch) in (1..).zip(epochs) {
        writer.create_snapshot(Tag(tag), None)?;
        let step = usize::try_from(chunks / epoch)?;
        touch(lab, &mut writer, (0..chunks).step_by(step))?;
    }
    writer.create_snapshot(Tag(u32::MAX - 1), None)?;
    writer.close()?;
    Ok(())
}

fn delete(lab: &Lab) -> Result<Vec<Line>> {
    let (chunks, epoch) = (lab.size() / CHUNK, lab.size() / MIB);
    // Odd tags are short epochs, even ones four times as long; the last one of each is never deleted.
    let pairs = (lab.runs() + 1) * 2;
    let plan: Vec<u64> =
        (0..pairs as u64).map(|number| if number % 2 == 0 { epoch } else { 4 * epoch }).collect();
    epochs(lab, "small.snap", chunks, &plan)?;
    epochs(lab, "large.snap", chunks * 16, &plan)?;
    let delete = |name: &str, tag: usize| lab.run(&["delete", name, &tag.to_string()]);
    // Every delete in both stores, so that what lies beside a deleted snapshot is alike.
    let short = lab.duel(&|_| Ok(()), &|run| delete("large.snap", 2 * run + 1), &|run| {
        delete("small.snap", 2 * run + 1)
    })?;
    let long = lab.duel(&|_| Ok(()), &|run| delete("large.snap", 2 * run + 2), &|run| {
        delete("small.snap", 2 * run + 2)
    })?;
    let whole = |name: &str, chunks: u64| -> Result<f64> {
        let start = Instant::now();
        delete(name, 0)?;
        Ok(start.elapsed().as_secs_f64() * 1e6 / chunks as f64)
    };
    let (swept, swept_large) = (whole("small.snap", chunks)?, whole("large.snap", chunks * 16)?);
    Ok(vec![
        Line::new(
            format!("delete, {} changed chunks in the epoch", 4 * epoch),
            time(long.theirs),
            format!("{epoch} changed chunks"),
            time(short.theirs),
        )
        .judged(long.theirs / short.theirs, "x the time", Goal::AtMost(4.0)),
        Line::new(
            format!("delete, {epoch} of {} preserved chunks", chunks * 16),
            time(short.ours),
            format!("{epoch} of {chunks}"),
            time(short.theirs),
        )
        .judged(short.ours / short.theirs, "x the time", Goal::AtMost(1.3)),
        Line::new(
            format!("delete and sweep, each of {} chunks", chunks * 16),
            figure(swept_large, " us"),
            format!("each of {chunks}"),
            figure(swept, " us"),
        )
        .judged(swept_large / swept, "x the time", Goal::AtMost(1.3)),
    ])
}
