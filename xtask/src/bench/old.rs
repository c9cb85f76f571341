//! Rows 17 and 18: reading a store of 2008 with many preserved chunks, and making deltas from it.

use super::data::{MIB, Pattern, sparse};
use super::lab::{Lab, drain, finish};
use super::sheet::{Goal, Line, Row, mib, rate, time};
use anyhow::{Context, Result, ensure};
use ddsnap::format::legacy::SECTOR;
use ddsnap::format::legacy::journal::empty_commit;
use ddsnap::format::legacy::superblock::{MAGIC, OFFSET, RawSuperblock};
use ddsnap::format::legacy::tree::{Entry, Exception, Leaf, Node};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::time::Instant;
use zerocopy::{FromZeros, IntoBytes};

/// The rows of this file.
pub fn rows() -> Vec<Row> {
    vec![
        Row {
            number: 17,
            what: "a store of 2008 with many preserved chunks",
            volumes: 1,
            commands: "ddsnap status -v old.snap; ddsnap changelist old.snap list 1 2; ddsnap fsck -n old.snap\n\
                   # against reading every block of its metadata once; a preserved chunk for each 4 KiB of the size",
            limit: "The tree is walked leaf by leaf, each read once; fsck walks every bit of the bitmap as well, and \
                holds a bit for each block of the store, and another for each chunk. Judged is the time beyond \
                that of reading the metadata, and the peak of memory in hundredths of the size of the store.",
            measure: many,
        },
        Row {
            number: 18,
            what: "create-delta from a store of 2008",
            volumes: 4,
            commands: "ddsnap upgrade --origin origin.img --size SIZE old.snap new.snap\n\
                   ddsnap create-delta --origin origin.img old.snap 1 -r -g 0 | reader   # then 1 2\n\
                   ddsnap create-delta new.snap 1 -r -g 0 | reader",
            limit: "The same snapshots, in chunks of 4 KiB. All of snapshot 1 is preserved, in pieces of 169 chunks \
                    as the original laid them out; what differs from snapshot 2 is every other chunk, which that \
                    one reads from the origin. The new store keeps sums of its chunks and the old one none.",
            measure: issue,
        },
    ]
}

/// log2 of the block and chunk size.
const BITS: u32 = 12;
const BLOCK: u64 = 1 << BITS;
/// Chunks in a leaf, which are all that fit.
const PER_LEAF: u64 = 169;
const JOURNAL: u32 = 125;

fn many(lab: &Lab) -> Result<Vec<Line>> {
    let count = lab.size() / BLOCK;
    let built = build(lab, count, None)?;
    let store = File::open(lab.path("old.snap"))?;
    let read = lab.alone(&|_| {
        let start = Instant::now();
        let mut block = vec![0; usize::try_from(BLOCK)?];
        for number in &built.metadata {
            store.read_exact_at(&mut block, number * BLOCK)?;
        }
        Ok(start.elapsed().as_secs_f64())
    })?;
    let commands: [(&str, &[&str]); 3] = [
        ("status -v", &["status", "-v", "old.snap"]),
        ("changelist", &["changelist", "old.snap", "list", "1", "2"]),
        ("fsck -n", &["fsck", "-n", "old.snap"]),
    ];
    let mut lines = Vec::new();
    for (what, args) in commands {
        let clear = || {
            if what == "changelist" {
                std::fs::remove_file(lab.path("list")).ok();
            }
        };
        let took = lab.alone(&|_| {
            clear();
            let start = Instant::now();
            lab.run(args)?;
            Ok(start.elapsed().as_secs_f64())
        })?;
        let blocks = format!("reading {} blocks of metadata", built.metadata.len());
        let name = format!("{what}, {count} preserved chunks");
        let line = Line::new(name, time(took), blocks, time(read));
        lines.push(line.judged(took - read, " s", Goal::AtMost(1.0)));
        clear();
        let kib = lab.cost(&lab.ddsnap(args), Stdio::null())?.memory_kib;
        // What a program needs before it has seen any store does not grow with one.
        let limit = (built.size / 100) as f64 / MIB as f64 + 16.0;
        let line = Line::new(format!("peak memory, {what}"), mib(kib << 10), "the store", mib(built.size));
        lines.push(line.judged(kib as f64 / 1024.0, " MiB", Goal::AtMost(limit)));
    }
    // Every other chunk is preserved for snapshot 1 alone.
    let list = std::fs::metadata(lab.path("list"))?.len();
    ensure!(list == 20 + 8 + 8 * count.div_ceil(2), "a changelist of {count} chunks has {list} bytes");
    let found = finish(&mut lab.ddsnap(&["fsck", "-n", "--json", "old.snap"]))?;
    let found: serde_json::Value = serde_json::from_slice(&found.stdout)?;
    let is_sound = found["findings"].as_array().is_some_and(Vec::is_empty);
    ensure!(is_sound && found["looked_at"]["entries"] == count, "fsck says {found}");
    Ok(lines)
}

/// What was built: blocks of metadata in the order of the tree, and bytes of the store.
struct Built {
    metadata: Vec<u64>,
    size: u64,
}

/// Deltas of a store and of what an upgrade makes of it.
fn issue(lab: &Lab) -> Result<Vec<Line>> {
    let count = lab.size() / 4 / BLOCK;
    Pattern::new(2).fill(&lab.path("origin.img"), count * BLOCK)?;
    build(lab, count, Some(&Pattern::new(1)))?;
    let size = (count * BLOCK * 2 + 64 * MIB).to_string();
    lab.run(&["upgrade", "--origin", "origin.img", "--size", &size, "old.snap", "new.snap"])?;
    lab.settle()?;
    for tag in ["1", "2"] {
        lab.run(&["export", "--origin", "origin.img", "old.snap", tag, "old.img"])?;
        lab.run(&["export", "new.snap", tag, "new.img"])?;
        lab.same("old.img", "new.img")?;
        for name in ["old.img", "new.img"] {
            std::fs::remove_file(lab.path(name))?;
        }
    }
    let mut lines = Vec::new();
    for (what, from, to, bytes) in
        [("all of a snapshot", "1", None, count * BLOCK), ("what differs", "1", Some("2"), count / 2 * BLOCK)]
    {
        let issue = |store: &[&str]| {
            let args: Vec<&str> = ["create-delta", "-r", "-g", "0"]
                .iter()
                .chain(store)
                .copied()
                .chain([from])
                .chain(to)
                .collect();
            let sent = drain(&mut lab.ddsnap(&args))?;
            ensure!(sent > bytes && sent < bytes + bytes / 10 + MIB, "{sent} bytes for {bytes}");
            Ok(())
        };
        let duel = lab.duel(&|_| Ok(()), &|_| issue(&["--origin", "origin.img", "old.snap"]), &|_| {
            issue(&["new.snap"])
        })?;
        let (ours, theirs) = (rate(bytes, duel.ours), rate(bytes, duel.theirs));
        let line = Line::new(format!("raw delta, store of 2008: {what}"), ours, "the store upgraded", theirs);
        lines.push(line.judged(duel.speed(), "x", Goal::AtLeast(0.9)));
    }
    Ok(lines)
}

/// A store with `count` preserved chunks, each leaf before its chunks; half of them for both snapshots. They are
/// those of `pattern`, or holes.
fn build(lab: &Lab, count: u64, pattern: Option<&Pattern>) -> Result<Built> {
    let leaves = count.div_ceil(PER_LEAF);
    let room = count + leaves + leaves.div_ceil(200) + 16;
    let bitmap = (room + 4096).div_ceil(8 * BLOCK);
    let begin = 2 + bitmap + u64::from(JOURNAL);
    let blocks = begin + room;
    sparse(&lab.path("old.snap"), blocks * BLOCK)?;
    let file = File::options().write(true).open(lab.path("old.snap"))?;
    let size = usize::try_from(BLOCK)?;
    let (mut children, mut metadata, mut skipped) = (Vec::new(), Vec::new(), 0);
    for first in (0..count).step_by(usize::try_from(PER_LEAF)?) {
        let chunks = first..(first + PER_LEAF).min(count);
        let mut leaf = Leaf::default();
        let place = begin + metadata.len() as u64 + skipped;
        for chunk in chunks.clone() {
            let start = leaf.exceptions.len();
            let share = if chunk % 2 == 0 { 1 } else { 3 };
            leaf.exceptions.push(Exception { share, physical: place + 1 + chunk - first });
            leaf.entries.push(Entry { chunk: u32::try_from(chunk)?, range: start..start + 1 });
        }
        file.write_all_at(&leaf.encode(size).context("a leaf is too full")?, place * BLOCK)?;
        for (chunk, at) in chunks.clone().zip(place + 1..) {
            let bytes = pattern.map(|pattern| pattern.part(chunk * BLOCK, size)).unwrap_or_default();
            file.write_all_at(bytes, at * BLOCK)?;
        }
        children.push((first, place * BLOCK / SECTOR));
        metadata.push(place);
        skipped += chunks.end - chunks.start;
    }
    // Nodes come behind everything else.
    let mut next = begin + metadata.len() as u64 + skipped;
    let mut levels = 0;
    while levels == 0 || children.len() > 1 {
        let below = std::mem::take(&mut children);
        for part in below.chunks(Node::capacity(size)) {
            let node = Node { children: part.to_vec() }.encode(size).context("a node is too full")?;
            file.write_all_at(&node, next * BLOCK)?;
            metadata.push(next);
            children.push((part.first().map_or(0, |child| child.0), next * BLOCK / SECTOR));
            next += 1;
        }
        levels += 1;
    }
    let root = children.first().map_or(0, |child| child.1);
    finish_store(&file, (blocks, next, bitmap), (root, levels), count)?;
    metadata.extend(1..2 + bitmap);
    lab.settle()?;
    Ok(Built { metadata, size: blocks * BLOCK })
}

/// Bitmap, journal and superblock of a store of `blocks` blocks, of which those up to `used` are in use.
fn finish_store(
    file: &File,
    (blocks, used, bitmap): (u64, u64, u64),
    (root, levels): (u64, u32),
    count: u64,
) -> Result<()> {
    let mut bits = vec![0u8; usize::try_from(bitmap * BLOCK)?];
    for block in (0..used).chain(blocks..blocks.next_multiple_of(8)) {
        if let Some(byte) = bits.get_mut(usize::try_from(block / 8)?) {
            *byte |= 1 << (block % 8);
        }
    }
    file.write_all_at(&bits, 2 * BLOCK)?;
    let free = blocks - used;
    for number in 0..JOURNAL {
        let commit = empty_commit(BITS, number, (free, 0));
        file.write_all_at(&commit, (2 + bitmap + u64::from(number)) * BLOCK)?;
    }
    let mut sb = RawSuperblock::new_zeroed();
    sb.magic = MAGIC;
    sb.root.set(root);
    sb.levels.set(levels);
    sb.origin_sectors.set(count * BLOCK / SECTOR);
    sb.snapshots.set(2);
    for (number, snapshot) in (0u8..2).zip(&mut sb.table) {
        snapshot.tag.set(u32::from(number) + 1);
        snapshot.bit = number;
        snapshot.sectors.set(count * BLOCK / SECTOR);
    }
    sb.journal_base.set(u32::try_from((2 + bitmap) * BLOCK / SECTOR)?);
    sb.journal_size.set(JOURNAL);
    sb.sequence.set(JOURNAL);
    sb.metadata.bitmap_base.set(2 * BLOCK / SECTOR);
    sb.metadata.chunks.set(blocks);
    sb.metadata.free.set(free);
    sb.metadata.bitmap_blocks.set(bitmap);
    sb.metadata.bits.set(BITS);
    sb.data.bits.set(BITS);
    file.write_all_at(sb.as_bytes(), OFFSET)?;
    Ok(())
}
