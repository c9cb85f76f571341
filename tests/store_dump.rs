//! A store restored from its dump is the same store: in place with all its data, elsewhere without.

use crate::model::{Random, Shape, World, check_points, seeds};
use ddsnap::block::memory::Memory;
use ddsnap::block::record::{DeviceId, Log, Recorder, Replay};
use ddsnap::block::{ReadAt, WriteAt};
use ddsnap::dump::{Options, Part, Render, Yaml, dump, read_tables};
use ddsnap::error::{Error, Kind, Result};
use ddsnap::point::{PointId, PointSource};
use ddsnap::progress::Silent;
use ddsnap::store::View;
use ddsnap::store::fsck::{CheckOptions, Code, check};
use ddsnap::store::restore::{Target, restore};
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A whole dump in YAML, and how many things were damaged.
fn yaml(store: &Arc<Memory>, anonymous: bool) -> (String, u64) {
    let options = Options {
        superblock: false,
        checkpoint: false,
        snapshots: false,
        log: None,
        index: false,
        space: false,
        chunk: None,
        record: None,
        hex: false,
        anonymous,
    };
    let (mut text, mut render) = (String::new(), Yaml::default());
    let mut sink = |part: &Part, last: bool| {
        text.push_str(&if last { render.end(part) } else { render.part(part) });
        Ok(())
    };
    let device: Arc<dyn ReadAt> = store.clone();
    let damaged = dump(device, &options, &mut sink, &Silent).unwrap();
    (text, damaged)
}

/// Restores `text` onto `store`, unless the store is newer.
fn put(text: &str, store: &Arc<Memory>) -> Result<u64> {
    let dumped = read_tables(text.as_bytes())?;
    let target = Target::look(store.as_ref(), &dumped.superblock, &dumped.tables, &Silent)?;
    if let Some(newer) = target.newer {
        return Err(Error::new(Kind::Refused, newer));
    }
    let device: Arc<dyn WriteAt> = store.clone();
    let mut entries = dumped.entries(text.as_bytes());
    restore(&device, dumped.superblock.clone(), dumped.tables.clone(), &target, &mut entries, None)
}

fn documents(text: &str) -> Vec<Value> {
    text.split("---\n").skip(1).map(|document| serde_yaml::from_str(document).unwrap()).collect()
}

/// Everything that a restore must keep. Not kept: number and publications of the checkpoint, where the index lies and
/// in how many runs, which entries of a segment were superseded, what is promised to the log beyond its position, and
/// the fingerprint of the origin.
fn essence(text: &str) -> Vec<Value> {
    let mut kept = Vec::new();
    for mut document in documents(text) {
        let name = document["part"].as_str().unwrap().to_owned();
        let map = document.as_object_mut().unwrap();
        match name.as_str() {
            "store" => ["generation", "checkpoint"].iter().for_each(|key| drop(map.remove(*key).unwrap())),
            "state" => {
                map["promised"].as_array_mut().unwrap().truncate(1);
                for key in ["next_run", "low", "high", "fingerprint"] {
                    map.remove(key).unwrap();
                }
            }
            "snapshots" | "graves" | "events" | "index" => {}
            _ => continue,
        }
        kept.push(document);
    }
    kept
}

/// Nothing is left that leads to the data but the records themselves.
fn wipe_metadata(store: &Memory) {
    for (number, block) in store.to_vec().unwrap().chunks(4096).enumerate() {
        if [&b"ddsnapSB"[..], b"ddsnapCK", b"ddIX"].iter().any(|magic| block.starts_with(magic)) {
            store.write_at(&[0x55; 4096], number as u64 * 4096).unwrap();
        }
    }
}

fn findings(store: &Arc<Memory>, data: bool) -> Vec<(Code, String)> {
    let device: Arc<dyn ReadAt> = store.clone();
    let report = check(&device, None, CheckOptions { data }, &Silent).unwrap();
    let findings = report.findings.iter().filter(|finding| finding.code != Code::OperationPending);
    findings.map(|finding| (finding.code, finding.text.clone())).collect()
}

/// A random world after `steps`, with the log as a crash leaves it or a close.
fn world(seed: u64, steps: usize) -> (World, Arc<Memory>, Arc<Memory>) {
    let mut random = Random(seed);
    let shape = Shape { store_size: 24 << 20, origin_size: 300_001 + seed * 13_577, chunk_size: 4096 };
    let origin = Arc::new(Memory::from_bytes(&random.bytes(ddsnap::units::index(shape.origin_size))));
    let store = Arc::new(Memory::new(shape.store_size));
    let mut world = World::new(store.clone(), origin.clone(), shape.chunk_size, random.next());
    for _ in 0..steps {
        world.step();
    }
    if seed.is_multiple_of(2) {
        world.writer.take().unwrap().close().unwrap();
    } else {
        drop(world.writer.take());
    }
    (world, store, origin)
}

#[test]
fn in_place_every_snapshot_reads_as_before() {
    for seed in seeds(8) {
        let (world, store, origin) = world(seed, 90);
        let (text, damaged) = yaml(&store, false);
        assert_eq!(damaged, 0, "seed {seed}");
        // A store that is sound can be restored too, as long as it is not newer.
        for wiped in [true, false] {
            let place = Arc::new(store.snapshot());
            if wiped {
                wipe_metadata(&place);
                assert!(View::open(place.clone(), None).is_err());
            }
            put(&text, &place).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert_eq!(findings(&place, true), [], "seed {seed}");
            let view = View::open(place.clone(), Some(origin.clone())).unwrap();
            check_points(&view, &world.model, &mut Random(seed), &format!("seed {seed}"));
            assert_eq!(essence(&yaml(&place, false).0), essence(&text), "seed {seed}");
            // It goes on as any store does.
            let mut next = World::adopt(place, Arc::new(origin.snapshot()), world.model.clone(), seed);
            for step in 0..15 {
                next.step();
                next.check(&format!("seed {seed}, step {step} after it was restored"));
            }
        }
    }
}

#[test]
fn elsewhere_everything_but_the_data_is_the_same() {
    let mut lost = 0;
    for seed in seeds(6) {
        let (world, store, origin) = world(seed, 90);
        let (text, _) = yaml(&store, false);
        let elsewhere = Arc::new(Memory::new(store.size()));
        put(&text, &elsewhere).unwrap();
        assert_eq!(findings(&elsewhere, false), [], "seed {seed}");
        assert_eq!(essence(&yaml(&elsewhere, false).0), essence(&text), "seed {seed}");
        let view = View::open(elsewhere, Some(origin)).unwrap();
        for id in world.model.readable() {
            let point = PointId::Snapshot(ddsnap::units::Epoch(id));
            let expected = world.model.bytes(point);
            for (number, chunk) in expected.chunks(4096).enumerate() {
                let mut bytes = vec![0; chunk.len()];
                match view.read(point, number as u64 * 4096, &mut bytes) {
                    Ok(()) => assert!(bytes == chunk, "seed {seed}: snapshot {id} lies"),
                    Err(error) => {
                        assert_eq!(error.kind(), Kind::Damaged);
                        lost += 1;
                    }
                }
            }
        }
    }
    assert!(lost > 100, "only {lost} chunks were missing");
}

#[test]
fn a_dump_that_is_older_than_the_store_is_noticed() {
    for seed in seeds(4) {
        let (mut world, store, origin) = world(seed, 40);
        let (text, _) = yaml(&store, false);
        world = World::adopt(store.clone(), origin, world.model, seed);
        world.write();
        world.create();
        drop(world.writer.take());
        wipe_metadata(&store);
        assert_eq!(put(&text, &store).unwrap_err().kind(), Kind::Refused, "seed {seed}");
    }
}

#[test]
fn an_anonymous_dump_makes_a_store_that_answers_the_same() {
    for seed in seeds(4) {
        let (world, store, origin) = world(seed, 90);
        let (text, damaged) = yaml(&store, true);
        assert_eq!((damaged, &text), (0, &yaml(&store, true).0), "the same store, the same pseudonyms");
        let elsewhere = Arc::new(Memory::new(store.size()));
        put(&text, &elsewhere).unwrap();
        assert_eq!(findings(&elsewhere, false), [], "seed {seed}");
        let (before, after) =
            (View::open(store, None).unwrap(), View::open(elsewhere, Some(origin)).unwrap());
        let shared =
            |view: &View| view.sharing().unwrap().into_iter().map(|row| row.shared_by).collect::<Vec<_>>();
        assert_eq!(shared(&before), shared(&after));
        assert_eq!(before.snapshots().len(), after.snapshots().len());
        for (a, b) in before.snapshots().iter().zip(after.snapshots()) {
            assert_eq!((a.id, a.tag, a.size_bytes, a.state), (b.id, b.tag, b.size_bytes, b.state));
            assert_eq!(a.name.is_some(), b.name.is_some());
            assert!(a.name.is_none() || a.name != b.name);
        }
        let ids = world.model.readable();
        for pair in ids.windows(2) {
            let [from, to] = [pair[0], pair[1]].map(|id| PointId::Snapshot(ddsnap::units::Epoch(id)));
            let list = |view: &View| {
                let changes = view.changed(Some(from), to).unwrap();
                changes.map(|range| range.map(|range| (range.start, range.end)).unwrap()).collect::<Vec<_>>()
            };
            assert_eq!(list(&before), list(&after), "seed {seed}");
        }
    }
}

#[test]
fn a_dump_that_was_cut_or_changed_is_refused() {
    let (_, store, _) = world(2, 60);
    let (text, _) = yaml(&store, false);
    let step = (text.len() / 400).max(1);
    for cut in (0..text.len()).step_by(step).chain(text.len() - 80..text.len() - 1) {
        let error = read_tables(&text.as_bytes()[..cut]).expect_err("a dump that was cut");
        assert!(matches!(error.kind(), Kind::Damaged | Kind::Mismatch), "{cut}: {error}");
    }
    // Whole documents may be missing, twice there, or out of order.
    let documents: Vec<&str> = text.split_inclusive("---\n").collect();
    for left_out in 1..documents.len() {
        let rest: Vec<&str> =
            documents.iter().enumerate().filter(|(n, _)| *n != left_out).map(|(_, d)| *d).collect();
        assert!(read_tables(rest.concat().as_bytes()).is_err(), "without document {left_out}");
    }
    let last_line = text.trim_end().rfind('\n').unwrap();
    let mut random = Random(5);
    for _ in 0..500 {
        let mut bytes = text.clone().into_bytes();
        let at = random.pick(last_line);
        bytes[at] ^= 1 << random.below(8);
        assert!(read_tables(bytes.as_slice()).is_err(), "byte {at}");
    }
    let error = read_tables(format!("{text}---\npart: more\n").as_bytes()).unwrap_err();
    assert!(error.to_string().contains("something follows the end"), "{error}");
}

/// `text` with its last line made to fit again, as somebody who means harm would.
fn sealed(text: &str) -> String {
    let end = text.trim_end().rfind('\n').unwrap() + 1;
    let sum = <sha2::Sha256 as sha2::Digest>::digest(&text.as_bytes()[..end]);
    format!("{}sha256: \"{}\"\n", &text[..end], hex::encode(sum))
}

#[test]
fn tables_that_no_store_can_have_are_refused_before_anything_is_written() {
    let preserving = (0..).map(|seed| world(seed, 60).1).map(|store| (yaml(&store, false).0, store));
    let (text, store) = preserving
        .into_iter()
        .find(|(text, _)| text.lines().any(|line| line.starts_with("- {chunk: ") && line.contains("\"raw\"")))
        .unwrap();
    put(&sealed(&text), &Arc::new(Memory::new(store.size()))).unwrap();
    let log = text.lines().find(|line| line.starts_with("log: ")).unwrap();
    let raw = |line: &&str| {
        line.starts_with("- {chunk: ") && line.contains("address: ") && line.contains("\"raw\"")
    };
    let exception = text.lines().find(raw).unwrap();
    let number = |from: &str| {
        from.split(|c: char| !c.is_ascii_digit()).find(|word| !word.is_empty()).unwrap().to_owned()
    };
    let address = number(exception.split("address: ").nth(1).unwrap());
    for (from, to) in [
        ("chunk_size: 4096", "chunk_size: 4095"),
        ("chunk_size: 4096", "chunk_size: 2147483648"),
        ("block_size: 4096", "block_size: 131072"),
        ("segment_size: 262144", "segment_size: 4096"),
        ("segment_size: 131072", "segment_size: 4096"),
        ("promised: [", "promised: [99999999, "),
        ("promised: [", "promised: [0, 0, "),
        ("snapshots:\n- {id: ", "snapshots:\n- {id: 1844674407370955"),
        (log, "log: {address: 5, sequence: 1, crc: \"00000000\", incarnation: \"0000000000000000\"}"),
        ("- {number: 0,", "- {number: 4294967295,"),
        ("encoding: \"raw\"", "encoding: \"rot13\""),
        (&format!("address: {address}, encoding"), "address: 3, encoding"),
        (&format!("address: {address}, encoding"), "address: 18446744073709551615, encoding"),
        ("stored: 4096", "stored: 4294967295"),
        ("stored: 4096", "stored: -1"),
        (exception, "- &a [*a]"),
        ("schema: \"ddsnap.dump/1\"", "schema: \"ddsnap.dump/2\""),
        ("whole: true", "whole: false"),
    ] {
        // What lies on the device is told before and not read.
        let (physical, tables) = match from.starts_with("schema") || from.starts_with("whole") {
            true => ("", text.as_str()),
            false => text.split_at(text.find("part: store\n").unwrap()),
        };
        let changed = physical.to_owned() + &tables.replacen(from, to, 1);
        if changed == text {
            assert!(from.starts_with("segment_size"), "{from} is not in the dump");
            continue;
        }
        let target = Arc::new(Memory::new(store.size()));
        let error = put(&sealed(&changed), &target).expect_err(to);
        assert!(
            matches!(error.kind(), Kind::Damaged | Kind::Unsupported | Kind::Mismatch),
            "{from} -> {to}: {error}"
        );
        assert!(View::open(target, None).is_err(), "{from} -> {to} was published");
    }
}

#[test]
fn hostile_yaml_ends_soon_with_an_error_that_names_its_place() {
    let bomb = {
        let mut text = "---\npart: dump\na: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (a, b) in "abcdefghij".chars().zip("bcdefghijk".chars()) {
            text += &format!("{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n");
        }
        text
    };
    let deep = format!("---\npart: dump\nx: {}\n", "[".repeat(1 << 20));
    let lists = format!("---\npart: dump\nx:\n{}\n", "- ".repeat(1 << 20));
    let lines = format!("---\npart: dump\nx: {}\n", "[\n".repeat(1 << 20));
    let indented: String = (0..2000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    let indented = format!("---\npart: dump\n{indented}");
    let long = format!("---\npart: dump\nx: \"{}\"\n", "y".repeat(5 << 20));
    let endless = "---\n".repeat(1 << 20);
    let types = "---\npart: dump\nschema: [1]\ndevice_bytes: x\n".to_owned();
    let binary = String::from_utf8_lossy(&Random(1).bytes(1 << 20)).into_owned();
    for (name, text) in [
        ("bomb", bomb),
        ("deep", deep),
        ("lists", lists),
        ("lines", lines),
        ("indented", indented),
        ("long", long),
        ("endless", endless),
        ("types", types),
        ("binary", binary),
    ] {
        let start = Instant::now();
        let error = read_tables(text.as_bytes()).expect_err(name);
        assert_eq!(error.kind(), Kind::Damaged, "{name}: {error}");
        assert!(start.elapsed() < Duration::from_secs(20), "{name}");
        assert!(name == "binary" || error.to_string().contains("line "), "{name}: {error}");
    }
}

/// Over a store that is sound, too: until the new superblocks are durable, the old one is what it was.
#[test]
fn a_crash_during_a_restore_costs_nothing() {
    for seed in seeds(2) {
        let (world, store, origin) = world(seed, 60);
        let (text, _) = yaml(&store, false);
        let dumped = read_tables(text.as_bytes()).unwrap();
        let target = Target::look(store.as_ref(), &dumped.superblock, &dumped.tables, &Silent).unwrap();
        let log = Log::new();
        let device: Arc<dyn WriteAt> = Arc::new(Recorder::new(store.snapshot(), &log, DeviceId(0)));
        let (sb, tables) = (dumped.superblock.clone(), dumped.tables.clone());
        restore(&device, sb, tables, &target, &mut dumped.entries(text.as_bytes()), None).unwrap();
        let mut replay = Replay::new(&store, DeviceId(0));
        let mut images = 0;
        for event in log.events() {
            replay.step(&event);
            for image in replay.images(seed, 2) {
                let what = format!("seed {seed}: {}", image.label);
                let crashed = View::open(Arc::new(image.content), Some(origin.clone())).expect(&what);
                check_points(&crashed, &world.model, &mut Random(seed), &what);
                images += 1;
            }
        }
        assert!(images > 20, "only {images} images");
    }
}
