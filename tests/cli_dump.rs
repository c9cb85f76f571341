//! `dump`: everything is shown, damaged or not, and nothing is touched.

use crate::harness::{Dir, Run, noise, volume};
use ddsnap::format::superblock::OFFSETS;
use serde_json::Value;

/// A volume whose index lies in runs, after a checkpoint, with a chunk written on a snapshot.
fn settled() -> Dir {
    let dir = volume();
    dir.ok_with("write data.snap 1 --offset 64k", &noise(8, 20_000));
    dir.run("fsck --rebuild data.snap").expect(1);
    dir.ok_with("write data.snap --offset 0", &noise(9, 30_000));
    dir
}

fn parts<'a>(document: &'a Value, name: &str) -> Vec<&'a Value> {
    document["parts"].as_array().unwrap().iter().filter(|part| part["part"] == name).collect()
}

/// All rows of a table that comes in parts.
fn rows<'a>(document: &'a Value, part: &str, key: &str) -> Vec<&'a Value> {
    parts(document, part).iter().filter_map(|part| part[key].as_array()).flatten().collect()
}

fn wipe(dir: &Dir, offset: u64) {
    dir.patch("data.snap", usize::try_from(offset).unwrap(), |bytes| bytes[..4096].fill(0xff));
}

/// Byte addresses of blocks that begin with `magic`.
fn blocks(dir: &Dir, magic: &[u8]) -> Vec<usize> {
    let bytes = dir.read("data.snap");
    (0..bytes.len()).step_by(4096).filter(|at| bytes[*at..].starts_with(magic)).collect()
}

#[test]
fn a_whole_dump_is_sound_and_complete_in_every_format() {
    let dir = settled();
    let text = dir.untouched(|dir| dir.ok("dump data.snap")).text();
    for heading in ["== superblock, both copies", "== checkpoint, both copies", "== snapshots: 2", "monday"] {
        assert!(text.contains(heading), "{heading} is missing:\n{text}");
    }
    let json = dir.untouched(|dir| dir.ok("dump --format json data.snap")).json();
    assert_eq!(json["schema"], "ddsnap.dump/1");
    let end = parts(&json, "end")[0];
    assert_eq!((&end["damaged"], &end["complete"]), (&0.into(), &true.into()));
    assert_eq!(end["parts"], json["parts"].as_array().unwrap().len() - 1);
    let exceptions = rows(&json, "index", "exceptions");
    assert_eq!(end["exceptions"], exceptions.len());
    assert!(exceptions.len() > 10 && !rows(&json, "index", "overlays").is_empty());
    assert_eq!(rows(&json, "snapshots", "snapshots")[0]["name"], "monday");

    let yaml = dir.untouched(|dir| dir.ok("dump --format yaml data.snap")).text();
    let documents: Vec<&str> = yaml.split("---\n").skip(1).collect();
    assert_eq!(documents.len(), json["parts"].as_array().unwrap().len());
    for (document, part) in documents.iter().zip(json["parts"].as_array().unwrap()) {
        let mut found: Value = serde_yaml::from_str(document).unwrap();
        if part["part"] == "end" {
            found.as_object_mut().unwrap().remove("sha256").unwrap();
        }
        assert_eq!(found, *part);
    }
}

#[test]
fn parts_can_be_chosen() {
    let dir = settled();
    for (option, part) in [
        ("--superblock", "superblock"),
        ("--checkpoint", "checkpoint"),
        ("--snapshots", "snapshots"),
        ("--log", "record"),
        ("--log=0..", "record"),
        ("--index", "index"),
        ("--space", "segments"),
        ("--chunk 6", "chunk_place"),
    ] {
        let json = dir.untouched(|dir| dir.ok(&format!("dump --format json {option} data.snap"))).json();
        assert!(!parts(&json, part).is_empty(), "{option}");
        assert_eq!(parts(&json, "end")[0]["complete"], false, "{option}");
        let others = ["superblock", "checkpoint", "snapshots", "record", "index", "segments", "chunk_place"];
        for other in others.iter().filter(|other| **other != part) {
            assert!(parts(&json, other).is_empty(), "{option} shows {other}");
        }
    }
    // Older records are still there, and each can be asked for by its address.
    let all = dir.ok("dump --format json --log=0.. data.snap").json();
    let since = dir.ok("dump --format json --log data.snap").json();
    assert!(parts(&all, "record").len() > parts(&since, "record").len());
    for record in parts(&all, "record") {
        let (address, sequence) = (&record["fields"]["address"], &record["fields"]["sequence"]);
        let one = dir.ok(&format!("dump --format json --record {address} data.snap")).json();
        assert_eq!(parts(&one, "record")[0]["fields"]["sequence"], *sequence);
        let range = dir.ok(&format!("dump --format json --log={sequence}..{sequence} data.snap")).json();
        assert_eq!(parts(&range, "record"), [record]);
    }
}

#[test]
fn with_hex_the_bytes_shown_are_those_that_lie_there() {
    let dir = settled();
    let bytes = dir.read("data.snap");
    let json = dir.untouched(|dir| dir.ok("dump --format json --hex data.snap")).json();
    let mut shown = 0;
    let mut open: Vec<&Value> = vec![&json];
    while let Some(value) = open.pop() {
        if let (Some(at), Some(hex)) = (value["at"].as_u64(), value["bytes"].as_str()) {
            let at = usize::try_from(at).unwrap();
            assert_eq!(hex, hex::encode(&bytes[at..at + hex.len() / 2]));
            shown += 1;
        }
        open.extend(value.as_array().into_iter().flatten());
        open.extend(value.as_object().into_iter().flat_map(|object| object.values()));
    }
    assert!(shown > 400, "only {shown} fields came with their bytes");
    assert!(dir.ok("dump --hex --superblock data.snap").text().contains("6464736e61705342"));
}

#[test]
fn a_chunk_is_found_wherever_it_is_with_who_reads_it() {
    let dir = settled();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let readers = |run: &Run| -> Vec<String> {
        let json = run.json();
        let places = parts(&json, "chunk_place");
        places.iter().flat_map(|place| place["read_by_snapshots"].as_array().unwrap()).map(text).collect()
    };
    // Chunk 6 was written between the snapshots, chunk 57 after the second, chunk 4 on the first one.
    assert_eq!(readers(&dir.ok("dump --format json --chunk 6 data.snap")), ["1 (id 1)"]);
    assert_eq!(readers(&dir.ok("dump --format json --chunk 57 data.snap")), ["1 (id 1)", "2 (id 2)"]);
    assert_eq!(readers(&dir.ok("dump --format json --chunk 4 data.snap")), ["1 (id 1)"]);
    assert_eq!(readers(&dir.ok("dump --format json --chunk 40 data.snap")), [""; 0]);
    dir.ok("dump --chunk 18446744073709551615 data.snap");
    let place = dir.ok("dump --format json --chunk 6 data.snap").json();
    let place = parts(&place, "chunk_place")[0];
    assert_eq!((&place["data_holds"], &place["record"]["kind"]), (&true.into(), &"copy-out".into()));
    let at = usize::try_from(place["address"].as_u64().unwrap()).unwrap();
    dir.patch("data.snap", at, |bytes| bytes[5] ^= 1);
    let run = dir.untouched(|dir| dir.run("dump --chunk 6 data.snap")).expect(3);
    assert!(run.text().contains("DAMAGED: chunk 6: preserved in epoch 1"), "{}", run.describe());
}

#[test]
fn damage_is_shown_with_its_bytes_and_costs_nothing_else() {
    let dir = settled();
    let whole = dir.ok("dump --format json data.snap").json();
    let good = dir.read("data.snap");
    for lost in [&OFFSETS[..1], &OFFSETS[1..], &OFFSETS[..]] {
        lost.iter().for_each(|offset| wipe(&dir, *offset));
        let run = dir.untouched(|dir| dir.run("dump --format json data.snap")).expect(3);
        let json = run.says("is damaged").json();
        assert_eq!(parts(&json, "damage").len(), lost.len());
        assert!(parts(&json, "bytes").iter().all(|part| part["raw"].as_str().unwrap().starts_with("ffff")));
        for table in ["exceptions", "overlays", "changes"] {
            assert_eq!(rows(&json, "index", table), rows(&whole, "index", table));
        }
        assert_eq!(parts(&json, "end")[0]["complete"], true);
        dir.write("data.snap", &good);
    }
    // Without its index the store is not complete; every other block is still shown.
    let number = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
    let pieces = rows(&whole, "pieces", "pieces");
    let blocks_of = |piece: &&Value| {
        let (at, blocks) = (number(&piece["address"]), number(&piece["blocks"]));
        (0..=blocks).map(move |block| at + block * 4096)
    };
    let index: Vec<usize> = pieces.iter().flat_map(blocks_of).collect();
    assert!(index.len() > 1);
    for at in &index {
        dir.patch("data.snap", at + 100, |bytes| bytes[0] ^= 1);
        let json = dir.untouched(|dir| dir.run("dump --format json data.snap")).expect(3).json();
        assert_eq!(parts(&json, "end")[0]["complete"], false);
        assert!(!parts(&json, "snapshots").is_empty());
        dir.write("data.snap", &good);
    }
    // Nothing at all is left but records.
    for magic in [&b"ddsnapSB"[..], b"ddsnapCK"] {
        for at in blocks(&dir, magic) {
            wipe(&dir, at as u64);
        }
    }
    let json = dir.untouched(|dir| dir.run("dump --format json data.snap")).expect(3).json();
    let records = rows(&json, "looks_like_records", "found");
    assert_eq!(records.len(), blocks(&dir, b"ddsnapRC").len());
    // What is found does not depend on what follows, and a terabyte of nothing takes no time.
    std::fs::OpenOptions::new().write(true).open(dir.path("data.snap")).unwrap().set_len(1 << 40).unwrap();
    let json = dir.run("dump --format json data.snap").expect(3).json();
    assert_eq!(rows(&json, "looks_like_records", "found"), records);
}

#[test]
fn what_is_no_store_and_what_is_no_record_is_said_to_be_none() {
    let dir = settled();
    dir.untouched(|dir| dir.run("dump new.img")).expect(3);
    dir.untouched(|dir| dir.run("dump --record 4096 data.snap"))
        .expect(3)
        .says_out("DAMAGED: record at byte 4096");
    dir.untouched(|dir| dir.run("dump --record 99999999999 data.snap")).expect(3);
    for args in ["dump --log=9..3 data.snap", "dump --chunk x data.snap", "dump --anonymous --hex data.snap"]
    {
        dir.untouched(|dir| dir.run(args)).expect(2);
    }
    let store = std::fs::File::open(dir.path("data.snap")).unwrap();
    store.lock().unwrap();
    dir.run("dump data.snap").expect(4);
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    let dir = settled();
    for format in ["text", "yaml", "json"] {
        let run = dir.shell(&format!("ddsnap dump --format {format} data.snap | head -c 10")).expect(0);
        assert_eq!((run.stdout.len(), run.stderr.as_str()), (10, ""));
    }
}

#[test]
fn nothing_in_a_store_reaches_a_terminal_as_more_than_text() {
    let dir = Dir::new();
    let origin = "evil\x1b[2J\u{202e}\n---\npart: end\u{85}";
    dir.write(origin, &noise(1, 1 << 20));
    dir.run_args(&["initialize", "--size", "32M", "data.snap", origin], b"").expect(0);
    for format in ["text", "yaml", "json"] {
        for more in ["", "--hex"] {
            let text = dir.ok(&format!("dump --format {format} {more} data.snap")).text();
            let harmless = |c: char| c == '\n' || !(c.is_control() || c == '\u{202e}');
            assert!(text.contains("evil") && text.chars().all(harmless), "{format}");
        }
    }
}
