//! Rows 11 to 13: a sparse terabyte; memory and space where there is much to remember.

use super::data::{
    CHUNK, MIB, Pattern, allocated, occupied, origin, origin_of, patch, sparse, store, touch, void_store,
};
use super::lab::{Lab, finish, finish_with, need, pipe};
use super::sheet::{Goal, Line, Row, mib, time};
use anyhow::{Context, Result, ensure};
use ddsnap::units::Tag;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Stdio;

/// The rows of this file.
pub fn rows() -> Vec<Row> {
    vec![
        Row {
            number: 11,
            what: "replicating one changed chunk of 1 TiB",
            volumes: 2,
            commands: "ddsnap create vol.snap N\n\
                       ddsnap create-delta vol.snap M N | ddsnap apply-delta - replica.img\n\
                       rsync --inplace --no-whole-file vol.img replica.img     # at the volume's size, and scaled",
            limit: "Three commands and their flushes; nothing is read but tables and the chunk. rsync has to read and \
                    sum both files. A sparse TiB takes it most of an hour, so it was run on sparse files of the \
                    volume's size and its time scaled by the size, which does not count that its lists of sums \
                    grow, too.",
            measure: one_chunk,
        },
        Row {
            number: 12,
            what: "peak memory of every command",
            volumes: 4,
            commands: "time ddsnap COMMAND ...   # on a sparse volume of 256 times the size, one chunk in 16 preserved",
            limit: "Index blocks are read through a cache of 24 MiB, unions of change bits through a window of 8 MiB, \
                    pipelines hold a few extents for each processor. Commands that read a whole volume do so on one \
                    of the ordinary size, because a TiB of zeroes takes minutes. A size \
                    of 4096 MiB makes a TiB and 4 million chunks.",
            measure: memory,
        },
        Row {
            number: 13,
            what: "metadata in the store",
            volumes: 4,
            commands: "ddsnap status --json STORE     # metadata_bytes; and a block of header for each record\n\
                       du of the store, less its data  # the most that was ever written",
            limit: "Judged is what is in use: index, checkpoints and the blocks of record headers. A chunk costs 40 \
                    bytes in its record's header, which is padded to a block of 4 KiB, and 41 in the index. The bound \
                    is the padding: a commit of a single chunk costs a whole block. A merge of the index needs its \
                    space twice for a while, and what it leaves is used again: that is in what was ever written, \
                    as are the unused ends of segments.",
            measure: space,
        },
    ]
}

const TIB: u64 = 1 << 40;

fn one_chunk(lab: &Lab) -> Result<Vec<Line>> {
    need("rsync")?;
    for name in ["vol.img", "replica.img"] {
        sparse(&lab.path(name), TIB)?;
    }
    for name in ["src.img", "dst.img"] {
        sparse(&lab.path(name), lab.size())?;
    }
    lab.run(&["initialize", "--size", "1G", "vol.snap", "vol.img"])?;
    lab.run(&["create", "vol.snap", "0"])?;
    let pattern = Pattern::new(1);
    let place = |run: usize, size: u64| (run as u64 * 0x9e37_79b1 + 7) % (size / CHUNK) * CHUNK;
    let before = |run: usize| {
        fs::write(lab.path("chunk.bin"), pattern.chunk(run as u64))?;
        let input = File::open(lab.path("chunk.bin"))?;
        let offset = place(run, TIB).to_string();
        finish_with(&mut lab.ddsnap(&["write", "vol.snap", "--offset", &offset]), input.into())?;
        patch(&lab.path("src.img"), place(run, lab.size()), pattern.chunk(run as u64))?;
        lab.settle()
    };
    let ours = |run: usize| {
        let (old, new) = (run.to_string(), (run + 1).to_string());
        lab.run(&["create", "vol.snap", &new])?;
        pipe(
            &mut lab.ddsnap(&["create-delta", "vol.snap", &old, &new]),
            &mut lab.ddsnap(&["apply-delta", "-", "replica.img"]),
        )
    };
    let rsync = |_| {
        finish(
            &mut lab
                .program("rsync", &["--ignore-times", "--inplace", "--no-whole-file", "src.img", "dst.img"]),
        )
        .map(drop)
    };
    let duel = lab.duel(&before, &ours, &rsync)?;
    lab.same("src.img", "dst.img")?;
    let replica = File::open(lab.path("replica.img"))?;
    for run in 0..lab.runs() {
        let mut bytes = vec![0; 16 << 10];
        replica.read_exact_at(&mut bytes, place(run, TIB))?;
        ensure!(bytes == pattern.chunk(run as u64), "the replica lacks chunk {run}");
    }
    ensure!(allocated(&lab.path("replica.img"))? <= lab.runs() as u64 * 2 * CHUNK, "the replica was filled");
    let scaled = duel.theirs * (TIB / lab.size()) as f64;
    let against = format!("rsync of {}: {}, scaled", mib(lab.size()), time(duel.theirs));
    Ok(vec![
        Line::new("replicate one chunk of 1 TiB", time(duel.ours), against, time(scaled)).judged(
            scaled / duel.ours,
            "x",
            Goal::AtLeast(100.0),
        ),
        Line::new("the same, time", time(duel.ours), "", String::new()).judged(
            duel.ours * 1000.0,
            " ms",
            Goal::AtMost(50.0),
        ),
    ])
}

/// A store of a volume 256 times as large as the others, with an exception for each 256 KiB of it: 4 million of 1 TiB
/// at the full size. Snapshot 1 is before, snapshot 2 after. Returns the number of exceptions.
fn huge(lab: &Lab) -> Result<u64> {
    huge_volume(lab, lab.size() * 256)
}

/// As [`huge`], of a volume of so many bytes.
pub fn huge_volume(lab: &Lab, volume: u64) -> Result<u64> {
    let exceptions = volume / (256 << 10);
    let mut writer = void_store(lab, "huge.snap", volume / 16 + 2048 * MIB, volume)?;
    writer.create_snapshot(Tag(1), None)?;
    let step = usize::try_from(volume / CHUNK / exceptions)?;
    touch(lab, &mut writer, (0..volume / CHUNK).step_by(step))?;
    writer.create_snapshot(Tag(2), None)?;
    writer.close()?;
    Ok(exceptions)
}

/// Command lines measured in turn, each with its input.
type Cases = Vec<(Vec<&'static str>, Option<&'static str>)>;

/// On the store of many exceptions.
fn huge_cases() -> Cases {
    let plain = |words: &'static str| (words.split(' ').collect(), None);
    vec![
        plain("list huge.snap"),
        plain("status huge.snap"),
        plain("status -v --json huge.snap"),
        plain("policy huge.snap"),
        plain("priority huge.snap 1 5"),
        plain("usecount huge.snap 1 0"),
        plain("create huge.snap 3"),
        (vec!["write", "huge.snap", "--offset", "32k"], Some("chunks.bin")),
        (vec!["write", "huge.snap", "1", "--offset", "32k"], Some("chunks.bin")),
        plain("read huge.snap 1 --length 256M"),
        plain("changelist huge.snap changes.cl 1 2"),
        plain("changelist --json huge.snap changes.json 1 2"),
        plain("create-delta huge.snap 1 2 -o huge.delta"),
        plain("delta info huge.delta"),
        plain("delta verify huge.delta"),
        plain("apply-delta --dry-run huge.delta huge.snap.img"),
        plain("fsck -n huge.snap"),
        plain("fsck -n --data huge.snap"),
        plain("fsck -y --rebuild huge.snap"),
        plain("delete huge.snap 1"),
        plain("list huge.snap"),
    ]
}

/// On a volume of ordinary size, where every byte is read.
fn volume_cases() -> Cases {
    let plain = |words: &'static str| (words.split(' ').collect(), None);
    vec![
        plain("initialize --size 512M vol.snap vol.img"),
        plain("create vol.snap 0"),
        plain("export vol.snap 0 exported.img"),
        plain("create-delta vol.snap 0 -o full.delta"),
        plain("create-delta --compare -b vol.img new.img -o day.delta"),
        plain("apply-delta day.delta vol.snap"),
        plain("delta verify day.delta"),
        plain("apply-delta --undo back.delta day.delta exported.img"),
    ]
}

fn memory(lab: &Lab) -> Result<Vec<Line>> {
    need("time")?;
    // In memory where there is room: reading holes of a file costs nothing there, and neither do 4 million flushes.
    let memory = lab.in_memory(lab.size() * 2)?;
    let lab = memory.as_ref().unwrap_or(lab);
    let exceptions = huge(lab)?;
    let pattern = Pattern::new(1);
    pattern.fill(&lab.path("chunks.bin"), 8 * MIB)?;
    let mut found = measure_all(lab, &huge_cases())?;
    for name in ["huge.snap", "huge.snap.img", "huge.delta", "changes.cl", "changes.json"] {
        fs::remove_file(lab.path(name))?;
    }
    pattern.fill(&lab.path("vol.img"), lab.size() / 4)?;
    pattern.fill(&lab.path("new.img"), lab.size() / 4)?;
    let new = Pattern::new(2);
    for number in (0..lab.size() / 4 / MIB).step_by(16) {
        patch(&lab.path("new.img"), number * MIB, new.mib(number))?;
    }
    found.extend(measure_all(lab, &volume_cases())?);
    lab.same("exported.img", "new.img")?;
    lab.same("vol.img", "new.img")?;
    found.sort_by_key(|(_, kib)| std::cmp::Reverse(*kib));
    let (worst, kib) = found.first().context("nothing was measured")?;
    let others: Vec<String> =
        found.iter().skip(1).take(4).map(|(name, kib)| format!("{name} {}", kib >> 10)).collect();
    let what = format!("peak memory, {exceptions} exceptions: {worst}");
    let against = format!("next: {}", others.join(", "));
    Ok(vec![Line::new(what, mib(kib << 10), against, String::new()).judged(
        *kib as f64 / 1024.0,
        " MiB",
        Goal::AtMost(300.0),
    )])
}

/// Peak memory of each command, in KiB.
fn measure_all(lab: &Lab, cases: &Cases) -> Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    for (args, input) in cases {
        ensure!(!lab.stop_wanted(), "interrupted");
        let input = match input {
            Some(name) => File::open(lab.path(name))?.into(),
            None => Stdio::null(),
        };
        let start = std::time::Instant::now();
        let cost = lab.cost(&lab.ddsnap(args), input)?;
        let seconds = start.elapsed().as_secs_f64();
        println!("    {:4} MiB {:7} {}", cost.memory_kib >> 10, time(seconds), args.join(" "));
        let words = args.iter().filter(|word| !word.contains('.')).copied();
        found.push((words.collect::<Vec<_>>().join(" "), cost.memory_kib));
    }
    Ok(found)
}

fn space(lab: &Lab) -> Result<Vec<Line>> {
    let memory = lab.in_memory(lab.size() * 2)?;
    let lab = memory.as_ref().unwrap_or(lab);
    let exceptions = huge(lab)?;
    let taken = allocated(&lab.path("huge.snap"))?;
    let preserved = exceptions * CHUNK;
    let share = |metadata: u64, data: u64| 100.0 * metadata as f64 / data as f64;
    let line = |what: String, metadata: u64, data: u64, goal: Goal| {
        let line = Line::new(what, mib(metadata), "bytes preserved", mib(data));
        line.judged(share(metadata, data), " %", goal)
    };
    let metadata = in_use(lab, "huge.snap", exceptions.div_ceil(RECORD_ENTRIES))?;
    let mut lines = vec![
        line(format!("metadata, {exceptions} chunks of zeroes"), metadata, preserved, Goal::AtMost(1.0)),
        line("the same, the most ever written".to_owned(), taken, preserved, Goal::Told),
    ];
    fs::remove_file(lab.path("huge.snap"))?;
    fs::remove_file(lab.path(&origin_of("huge.snap")))?;
    let size = lab.size() / 4;
    for (what, batch, goal) in [("batches of 1 MiB", 64, Goal::AtMost(1.0)), ("single chunks", 1, Goal::Told)]
    {
        let chunks = if batch == 1 { (size / CHUNK).min(4096) } else { size / CHUNK };
        let (taken, data) = real(lab, chunks, batch)?;
        let metadata = in_use(lab, "vol.snap", chunks.div_ceil((batch as u64).min(RECORD_ENTRIES)))?;
        lines.push(line(format!("metadata, {what}"), metadata, data, goal));
        lines.push(
            Line::new(
                format!("whole segments ever used, {what}"),
                mib(taken - data),
                "bytes preserved",
                mib(data),
            )
            .judged(share(taken - data, data), " %", Goal::Told),
        );
        fs::remove_file(lab.path("vol.snap"))?;
    }
    Ok(lines)
}

/// Entries that fill one block of a record's header.
const RECORD_ENTRIES: u64 = 99;

/// Bytes of index and checkpoints that a store has in use, and of the headers of `records` records, a block each.
fn in_use(lab: &Lab, store: &str, records: u64) -> Result<u64> {
    let output = finish(&mut lab.ddsnap(&["status", "--json", store]))?;
    let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let index = status["store"]["metadata_bytes"].as_u64().context("no metadata_bytes")?;
    Ok(index + records * 4096)
}

/// Overwrites `chunks` chunks of real data, `batch` with each commit. Returns what the store takes, unused ends of
/// segments included, and what it preserves.
fn real(lab: &Lab, chunks: u64, batch: usize) -> Result<(u64, u64)> {
    let size = chunks * CHUNK;
    Pattern::new(1).fill(&lab.path("vol.img"), size.next_multiple_of(MIB))?;
    let new = Pattern::new(2);
    let mut writer = store(lab, "vol.snap", size * 3 / 2 + 1024 * MIB, "vol.img", origin(lab, "vol.img")?)?;
    writer.create_snapshot(Tag(0), None)?;
    let all: Vec<u64> = (0..chunks).collect();
    for batch in all.chunks(batch) {
        let pieces: Vec<_> = batch.iter().map(|chunk| (chunk * CHUNK, new.chunk(*chunk))).collect();
        writer.write_origin_many(&pieces)?;
    }
    writer.close()?;
    let output = finish(&mut lab.ddsnap(&["status", "--json", "vol.snap"]))?;
    let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let shared = status["snapshots"][0]["chunks"].as_u64();
    ensure!(shared == Some(chunks), "{chunks} chunks were changed, status says {status}");
    let segment = status["store"]["segment_size"].as_u64().context("no segment size")?;
    Ok((occupied(lab, "vol.snap", segment)?, size))
}
