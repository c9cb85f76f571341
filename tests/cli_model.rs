//! Random commands against a model in memory: same answers, always.

use crate::cli_errors::seed;
use crate::harness::{Dir, Rng, noise};
use std::collections::BTreeMap;

const SIZE: usize = 640 << 10;

/// What the volume must hold.
struct Model {
    origin: Vec<u8>,
    /// Tag and content, oldest first.
    snapshots: Vec<(u32, Vec<u8>)>,
    next_tag: u32,
}

#[test]
fn random_commands_agree_with_the_model() {
    let seed = seed();
    for round in 0..4 {
        run_sequence(seed.wrapping_add(round), 40);
    }
}

fn run_sequence(seed: u64, steps: usize) {
    let mut rng = Rng(seed);
    let dir = Dir::new();
    let origin = noise(seed, SIZE);
    dir.write("data.img", &origin);
    dir.write("replica.img", &origin);
    let chunk = ["4k", "16k", "64k"][rng.below(3) as usize];
    dir.ok(&format!("initialize --size 48M -c {chunk} data.snap data.img"));
    let mut model = Model { origin, snapshots: Vec::new(), next_tag: 0 };
    let mut log = format!("seed {seed}, chunk {chunk}\n");
    for _ in 0..steps {
        let line = step(&dir, &mut rng, &mut model, &log);
        log += &line;
        log += "\n";
    }
    compare_all(&dir, &model, &log);
    dir.ok("fsck -n --data data.snap");
}

fn step(dir: &Dir, rng: &mut Rng, model: &mut Model, log: &str) -> String {
    match rng.below(10) {
        0 | 1 => create(dir, rng, model),
        2..=5 => write_origin(dir, rng, model),
        6 if !model.snapshots.is_empty() => write_snapshot(dir, rng, model),
        7 if !model.snapshots.is_empty() => delete(dir, rng, model),
        8 if model.snapshots.len() >= 2 => replicate(dir, rng, model, log),
        _ => read(dir, rng, model, log),
    }
}

fn create(dir: &Dir, rng: &mut Rng, model: &mut Model) -> String {
    let tag = model.next_tag;
    model.next_tag += 1 + rng.below(5) as u32;
    let line = format!("create data.snap {tag}");
    dir.ok(&line);
    model.snapshots.push((tag, model.origin.clone()));
    line
}

/// A place and bytes for it: now aligned, now not; now noise, now zeros.
fn random_write(rng: &mut Rng) -> (usize, Vec<u8>) {
    let mut offset = rng.below(SIZE as u64) as usize;
    if rng.below(2) == 0 {
        offset &= !0xfff;
    }
    let most = [1, 100, 5000, 70_000, SIZE][rng.below(5) as usize].min(SIZE - offset);
    let len = 1 + rng.below(most as u64) as usize;
    let data = if rng.below(4) == 0 { vec![0; len] } else { rng.bytes(len) };
    (offset, data)
}

fn write_origin(dir: &Dir, rng: &mut Rng, model: &mut Model) -> String {
    let (offset, data) = random_write(rng);
    let line = format!("write data.snap --offset {offset}");
    dir.ok_with(&line, &data);
    model.origin[offset..offset + data.len()].copy_from_slice(&data);
    format!("{line} # {} bytes", data.len())
}

fn write_snapshot(dir: &Dir, rng: &mut Rng, model: &mut Model) -> String {
    let (offset, data) = random_write(rng);
    let index = rng.below(model.snapshots.len() as u64) as usize;
    let (tag, content) = &mut model.snapshots[index];
    let line = format!("write data.snap {tag} --offset {offset}");
    dir.ok_with(&line, &data);
    content[offset..offset + data.len()].copy_from_slice(&data);
    format!("{line} # {} bytes", data.len())
}

fn delete(dir: &Dir, rng: &mut Rng, model: &mut Model) -> String {
    let index = rng.below(model.snapshots.len() as u64) as usize;
    let (tag, _) = model.snapshots.remove(index);
    let line = format!("delete data.snap {tag}");
    dir.ok(&line);
    line
}

fn read(dir: &Dir, rng: &mut Rng, model: &Model, log: &str) -> String {
    let index = rng.below(model.snapshots.len() as u64 + 1) as usize;
    let (name, content) = match model.snapshots.get(index) {
        Some((tag, content)) => (tag.to_string(), content),
        None => ("origin".to_owned(), &model.origin),
    };
    let (offset, data) = random_write(rng);
    let line = format!("read data.snap {name} --offset {offset} --length {}", data.len());
    let run = dir.ok(&line);
    assert!(run.stdout == content[offset..offset + data.len()], "{log}{line}: wrong bytes");
    line
}

/// A changelist that misses nothing, and a delta that turns one point into another.
fn replicate(dir: &Dir, rng: &mut Rng, model: &Model, log: &str) -> String {
    let pick = |rng: &mut Rng| &model.snapshots[rng.below(model.snapshots.len() as u64) as usize];
    let (from, to) = (pick(rng), pick(rng));
    let line = format!("{} to {}", from.0, to.0);
    let changes = dir.ok(&format!("changelist --json data.snap - {} {}", from.0, to.0)).json();
    let covered = covered(&changes["block_metadata"]);
    for (at, (a, b)) in from.1.iter().zip(&to.1).enumerate() {
        let inside = covered.range(..=at as u64).next_back().is_some_and(|(_, end)| (at as u64) < *end);
        assert!(a == b || inside, "{log}changelist {line}: byte {at} differs and is not listed");
    }
    dir.ok(&format!("create-delta data.snap {} {} -o out.delta", from.0, to.0));
    dir.ok("delta verify out.delta");
    dir.write("replica.img", &from.1);
    dir.ok("apply-delta out.delta replica.img");
    assert!(dir.read("replica.img") == to.1, "{log}apply {line}: wrong bytes");
    line
}

/// Start and end of every listed range.
fn covered(list: &serde_json::Value) -> BTreeMap<u64, u64> {
    let ranges = list.as_array().unwrap().iter();
    ranges
        .map(|range| {
            let start = range["byte_offset"].as_u64().unwrap();
            (start, start + range["size_bytes"].as_u64().unwrap())
        })
        .collect()
}

fn compare_all(dir: &Dir, model: &Model, log: &str) {
    assert!(dir.read("data.img") == model.origin, "{log}the origin differs");
    let tags: String = model.snapshots.iter().map(|(tag, _)| format!("{tag} ")).collect();
    assert_eq!(dir.ok("status -l data.snap").text(), format!("{tags}\n"), "{log}");
    for (tag, content) in &model.snapshots {
        assert!(dir.ok(&format!("read data.snap {tag}")).stdout == *content, "{log}snapshot {tag} differs");
    }
}
