//! `fsck`: what it finds, what it repairs, and its own exit statuses.

use crate::cli_errors::seed;
use crate::harness::{DDSNAP, Dir, Rng, golden, volume};
use ddsnap::format::superblock::OFFSETS;
use serde_json::json;
use std::path::Path;

fn wipe(dir: &Dir, offset: u64) {
    dir.patch("data.snap", usize::try_from(offset).unwrap(), |bytes| bytes[..4096].fill(0xff));
}

fn assert_reads(dir: &Dir) {
    assert_eq!(dir.ok("read data.snap 1").stdout, dir.read("monday.img"));
    assert_eq!(dir.ok("read data.snap 2").stdout, dir.read("second.img"));
}

#[test]
fn a_sound_store_is_clean_and_untouched() {
    let dir = volume();
    for args in ["fsck -n data.snap", "fsck data.snap", "fsck -p data.snap", "fsck -y --data data.snap"] {
        let run = dir.untouched(|dir| dir.ok(args));
        assert!(run.text().starts_with("data.snap: clean; "), "{}", run.describe());
    }
    let document = dir.untouched(|dir| dir.ok("fsck -n --data --json data.snap")).json();
    assert_eq!(document["schema"], "ddsnap.fsck/1");
    assert_eq!(document["findings"], serde_json::json!([]));
    assert!(document["looked_at"]["data_bytes"].as_u64().unwrap() > 0);
}

#[test]
fn either_superblock_is_repaired_from_the_other() {
    for offset in OFFSETS {
        let dir = volume();
        wipe(&dir, offset);
        let run = dir.untouched(|dir| dir.run("fsck -n data.snap")).expect(4);
        assert!(run.text().contains("repairable: superblock-copy"), "{}", run.describe());
        // Without a terminal and without leave, nothing happens.
        dir.untouched(|dir| dir.run("fsck data.snap")).expect(4);
        dir.run("fsck -p data.snap").expect(1);
        dir.untouched(|dir| dir.ok("fsck -n data.snap"));
        assert_reads(&dir);
    }
}

#[test]
fn without_any_superblock_the_index_is_rebuilt() {
    let dir = volume();
    OFFSETS.into_iter().for_each(|offset| wipe(&dir, offset));
    let run = dir.untouched(|dir| dir.run("fsck -n data.snap")).expect(4);
    assert!(run.text().contains("loss: superblock-lost"), "{}", run.describe());
    dir.untouched(|dir| dir.run("fsck -y --dry-run data.snap")).expect(4).says_out("would be rebuilt");
    // Nothing is lost, so it is safe.
    let run = dir.run("fsck -p data.snap").expect(1);
    assert!(run.text().contains("rebuilt: "), "{}", run.describe());
    dir.ok("fsck -n --data data.snap");
    assert_reads(&dir);
}

#[test]
fn a_rebuild_can_be_asked_for() {
    let dir = volume();
    let document = dir.run("fsck --rebuild --json data.snap").expect(1).json();
    assert_eq!(document["verdict"], "repaired");
    assert_eq!(document["repair"]["rebuilt"]["findings"], serde_json::json!([]));
    dir.ok("fsck -n --data data.snap");
    assert_reads(&dir);
    dir.run("fsck -n --rebuild data.snap").expect(16);
}

#[test]
fn of_two_stores_on_a_device_either_can_be_rebuilt() {
    let dir = volume();
    let first = dir.ok("list --json data.snap").json()["snapshots"].clone();
    dir.ok("initialize -y data.snap data.img");
    dir.ok("create data.snap 9");
    for copy in [64 << 10, 512 << 10] {
        wipe(&dir, copy);
    }
    let lost = dir.read("data.snap");
    let run = dir.run("fsck --rebuild data.snap").expect(1).says_out("of store ");
    let uuid = run.text().split("--uuid ").nth(1).unwrap().get(..36).unwrap().to_owned();
    assert_eq!(dir.ok("list --json data.snap").json()["snapshots"].as_array().unwrap().len(), 1);
    dir.write("data.snap", &lost);
    dir.run("fsck --rebuild --uuid 1234 data.snap").expect(16);
    dir.run("fsck -y --uuid 00000000-0000-4000-8000-000000000000 data.snap").expect(16);
    let run = dir.run(&format!("fsck --rebuild --json --uuid {uuid} data.snap")).expect(4);
    assert_eq!(run.json()["repair"]["rebuilt"]["uuid"], uuid.as_str());
    let again = dir.ok("list --json data.snap").json()["snapshots"].clone();
    let tags = |rows: &serde_json::Value| -> Vec<u64> {
        rows.as_array().unwrap().iter().map(|row| row["id"].as_u64().unwrap()).collect()
    };
    assert_eq!(tags(&again), tags(&first));
}

#[test]
fn what_is_no_store_is_left_alone() {
    let dir = volume();
    dir.copy("new.img", "data.snap");
    for args in ["fsck -n data.snap", "fsck -y data.snap", "fsck --rebuild data.snap"] {
        dir.untouched(|dir| dir.run(args)).expect(4);
    }
}

#[test]
fn what_cannot_be_checked_is_8_and_what_cannot_be_meant_is_16() {
    let dir = volume();
    let mut text = String::new();
    dir.patch("copy.img", 4096, |bytes| bytes[..8].copy_from_slice(b"test\xdd\x07\x06\x04"));
    for (args, code) in [
        ("fsck -n nowhere", 8),
        ("fsck -n .", 16),
        ("fsck --rebuild copy.img", 8),
        ("fsck", 16),
        ("fsck --bogus x", 16),
        ("fsck -n -y data.snap", 16),
    ] {
        let run = dir.untouched(|dir| dir.run(args)).expect(code);
        text.push_str(&dir.mask(&run.transcript()));
        text.push('\n');
    }
    golden("fsck-errors.txt", &text);
    let store = std::fs::File::open(dir.path("data.snap")).unwrap();
    store.lock().unwrap();
    dir.untouched(|dir| dir.run("fsck -n data.snap")).expect(8);
    std::os::unix::fs::symlink(DDSNAP, dir.path("fsck.ddsnap")).unwrap();
    dir.shell("./fsck.ddsnap nope").expect(8);
}

#[test]
fn lost_records_leave_doubt_that_must_be_insisted_on() {
    let dir = volume();
    let good = dir.read("data.snap");
    // Kind 1 at byte 76 of a record: chunks copied out.
    let is_copy_out = |block: &[u8]| block.starts_with(b"ddsnapRC") && block[76] == 1;
    let places: Vec<usize> = (0..good.len()).step_by(4096).filter(|at| is_copy_out(&good[*at..])).collect();
    assert!(places.len() > 1);
    for at in places {
        let mut bad = good.clone();
        bad[at..at + 4096].fill(0);
        dir.write("data.snap", &bad);
        let run = dir.untouched(|dir| dir.run("fsck -n data.snap"));
        if run.code == Some(0) {
            // The last record of all: nothing tells a lost one from one that was never written.
            continue;
        }
        let run = run.expect(4);
        assert!(run.text().contains("loss: log-broken"), "{}", run.describe());
        dir.untouched(|dir| dir.run("read data.snap 1")).expect(3);
        let run = dir.run("fsck -y data.snap").expect(4);
        assert!(run.text().contains("loss: uncertain"), "{}", run.describe());
        dir.untouched(|dir| dir.run("read data.snap 1")).expect(5).says("--accept-taint");
        // The second was made after what is lost, or is in doubt as well.
        let second = dir.untouched(|dir| dir.run("read data.snap 2"));
        if second.code == Some(0) {
            assert_eq!(second.stdout, dir.read("second.img"));
        } else {
            second.expect(5).says("--accept-taint");
        }
        dir.ok("create data.snap 3");
        assert_eq!(dir.ok("read data.snap 3").stdout, dir.read("data.img"));
    }
}

#[test]
fn a_changed_origin_taints_until_it_is_accepted() {
    let dir = volume();
    // Behind the store's back, at the place that every file system touches.
    dir.patch("data.img", 1024, |bytes| bytes[..64].fill(0x77));
    dir.ok("create data.snap 3");
    let warned = dir.ok("list data.snap");
    assert!(warned.stderr.contains("snapshot 1 (monday) is tainted"), "{}", warned.describe());
    dir.untouched(|dir| dir.run("read data.snap 1")).expect(5).says("fsck --accept-taint data.snap");
    dir.untouched(|dir| dir.ok("read data.snap 1 --accept-taint"));
    dir.run("fsck --accept-taint data.snap").expect(1);
    dir.ok("read data.snap 1");
    assert_eq!(dir.ok("list data.snap").stderr, "");
    dir.untouched(|dir| dir.ok("fsck --accept-taint data.snap"));
}

/// Whatever is flipped: a repair ends, and no snapshot reads as something it was not.
#[test]
fn repairs_of_flipped_bytes_never_lie() {
    let dir = volume();
    let good = dir.read("data.snap");
    let blocks: Vec<usize> =
        (0..good.len() / 4096).filter(|n| good[n * 4096..][..4096].iter().any(|byte| *byte != 0)).collect();
    let seed = seed();
    let mut rng = Rng(seed);
    for _ in 0..25 {
        let block = blocks[rng.below(blocks.len() as u64) as usize];
        let at = block * 4096 + rng.below(4096) as usize;
        let mut bad = good.clone();
        bad[at] ^= 1 << rng.below(8);
        dir.write("data.snap", &bad);
        let run = dir.run("fsck -y --data data.snap");
        assert!(matches!(run.code, Some(0 | 1 | 4)), "byte {at}, seed {seed}:{}", run.describe());
        for (tag, image) in [("1", "monday.img"), ("2", "second.img")] {
            let run = dir.run(&format!("read data.snap {tag}"));
            match run.code {
                Some(0) => assert!(run.stdout == dir.read(image), "byte {at}, seed {seed}: wrong data"),
                Some(3 | 5) => {}
                // The record that made it was the one that was hit.
                Some(1) if run.stderr.contains("there is no snapshot") => {}
                _ => panic!("byte {at}, seed {seed}:{}", run.describe()),
            }
        }
    }
}

/// A rebuild that was asked for may lose what the index still led to: trying says so beforehand.
#[test]
fn a_dry_run_ends_as_the_real_one_when_something_would_be_lost() {
    let dir = volume();
    let good = dir.read("data.snap");
    let is_copy_out = |block: &[u8]| block.starts_with(b"ddsnapRC") && block[76] == 1;
    let places: Vec<usize> = (0..good.len()).step_by(4096).filter(|at| is_copy_out(&good[*at..])).collect();
    let mut lossy = 0;
    for at in places {
        let mut bad = good.clone();
        // The data of its first chunk.
        bad[at + 4096..at + 8192].fill(0xa5);
        dir.write("data.snap", &bad);
        let trial = dir.untouched(|dir| dir.run("fsck --rebuild --dry-run data.snap"));
        let real = dir.run("fsck --rebuild data.snap");
        assert!(
            matches!((trial.code, real.code), (Some(4), Some(4)) | (Some(0), Some(1))),
            "{}",
            real.describe()
        );
        lossy += usize::from(real.code == Some(4));
    }
    assert!(lossy > 0);
}

/// Nothing in the log claims its last records durable, but the superblock of a closed store does.
#[test]
fn the_end_of_a_closed_log_is_missed_when_it_is_gone() {
    for lost in 1..=6 {
        let dir = volume();
        let mut store = dir.read("data.snap");
        let mut places: Vec<usize> =
            (0..store.len()).step_by(4096).filter(|at| store[*at..].starts_with(b"ddsnapRC")).collect();
        // By sequence, at byte 32 of a record.
        places.sort_by_key(|at| u64::from_le_bytes(store[at + 32..at + 40].try_into().unwrap()));
        for at in places.iter().rev().take(lost) {
            store[*at..at + 4096].fill(0);
        }
        dir.write("data.snap", &store);
        let run = dir.untouched(|dir| dir.run("fsck -n data.snap"));
        if lost == 1 {
            // The mark of the close itself says nothing that is needed.
            run.expect(0);
        } else {
            run.expect(4).says_out("log-broken");
            dir.run("fsck -y data.snap").expect(4);
        }
        for (tag, image) in [("1", "monday.img"), ("2", "second.img")] {
            let read = dir.run(&format!("read data.snap {tag}"));
            assert!(
                read.code != Some(0) || read.stdout == dir.read(image),
                "{lost} lost: {}",
                read.describe()
            );
        }
        dir.ok("fsck -n data.snap");
    }
}

#[test]
fn what_fsck_publishes_still_tells_that_the_origin_was_changed() {
    for (how, damage) in [("-p", 16), ("--rebuild", 0), ("-y", 16)] {
        let dir = volume();
        if damage > 0 {
            dir.patch("data.snap", damage * 4096, |bytes| bytes[..4096].fill(0));
        }
        dir.run(&format!("fsck {how} data.snap")).expect(1);
        // A file's time is part of what is remembered; its bytes are in any case.
        dir.patch("data.img", 4096, |bytes| bytes[..4096].fill(0x5a));
        let run = dir.run("read data.snap 1").expect(5);
        assert!(run.stderr.contains("tainted"), "{how}: {}", run.stderr);
    }
}

#[test]
fn an_origin_that_is_newer_than_what_is_left_of_the_log_is_noticed() {
    let dir = volume();
    dir.run("fsck --rebuild data.snap").expect(1);
    let before = dir.read("data.snap");
    dir.ok_with("write data.snap --offset 128k", &[0x77; 40_000]);
    // Everything that the last session wrote is gone, and the superblocks.
    dir.write("data.snap", &before);
    for block in [16, 128] {
        dir.patch("data.snap", block * 4096, |bytes| bytes[..4096].fill(0));
    }
    dir.run("fsck -y data.snap");
    dir.run("read data.snap 1").expect(5);
}

#[test]
fn a_superblock_that_measures_otherwise_than_the_tables_is_not_believed() {
    let dir = volume();
    for copy in [64 << 10, 512 << 10] {
        dir.patch("data.snap", copy, |bytes| {
            bytes[56] += 1;
            bytes[20..24].fill(0);
            let crc = crc32fast::hash(&bytes[..4096]);
            bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        });
    }
    dir.run("fsck -n data.snap").expect(4);
    dir.run("read data.snap 1").expect(3);
}

#[test]
fn a_store_of_2008_without_a_superblock_is_looked_at_and_not_repaired() {
    let dir = Dir::new();
    let mut store = vec![0; 64 << 10];
    store[4096..4104].copy_from_slice(&[0x74, 0x65, 0x73, 0x74, 0xdd, 0x07, 0x06, 0x04]);
    dir.write("old.snap", &store);
    let run = dir.untouched(|dir| dir.run("fsck -n --data old.snap")).expect(4);
    assert!(run.text().contains("loss: legacy-superblock at byte 4096"), "{}", run.describe());
    assert!(run.text().contains("note: legacy-unproven"), "{}", run.describe());
    let document = dir.untouched(|dir| dir.run("fsck -n --json old.snap")).expect(4).json();
    assert_eq!(document["schema"], "ddsnap.fsck/1");
    assert_eq!(document["findings"][0]["code"], "legacy-superblock");
    for leave in ["-p", "-y", "--dry-run"] {
        let run = dir.untouched(|dir| dir.run(&format!("fsck {leave} old.snap"))).expect(4);
        assert!(run.text().contains("legacy-superblock"), "{}", run.describe());
    }
    for other in ["--rebuild", "--accept-taint"] {
        let run = dir.untouched(|dir| dir.run(&format!("fsck {other} old.snap"))).expect(8);
        assert!(run.stderr.contains("ddsnap upgrade"), "{}", run.describe());
    }
}

/// A small store of 2008 that crashed, its origin, and the sector of its root.
fn crashed_store_of_2008(dir: &Dir) -> u64 {
    let seed = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/corpus/legacy/seed-1");
    let mut store = vec![0; 4096];
    store.extend_from_slice(&std::fs::read(seed).unwrap()[1..]);
    dir.write("old.snap", &store);
    dir.write("origin.img", &[1; 40 * 512]);
    u64::from_le_bytes(store[4112..4120].try_into().unwrap())
}

/// Fills the block at `at`, and its copies in the journal.
fn overwrite(store: &mut [u8], at: usize, byte: u8) {
    let old = store[at..at + 512].to_vec();
    store.chunks_mut(512).filter(|block| **block == *old).for_each(|block| block.fill(byte));
}

#[test]
fn a_crash_of_2008_is_written_down_and_a_lost_root_made_anew() {
    let dir = Dir::new();
    let root = crashed_store_of_2008(&dir);
    let images =
        |dir: &Dir| [7, 3].map(|tag| dir.ok(&format!("read old.snap {tag} --origin origin.img")).stdout);
    let before = images(&dir);
    let run = dir.untouched(|dir| dir.run("fsck -p --dry-run old.snap")).expect(0);
    for words in ["legacy-recovery", "would be repaired: writes: ", "bytes at byte 4096: superblock"] {
        assert!(run.text().contains(words), "{}", run.describe());
    }
    let run = dir.run("fsck -p old.snap").expect(1);
    assert!(run.text().contains("old.snap: clean; looked at"), "{}", run.describe());
    assert_eq!(
        dir.untouched(|dir| dir.run("fsck -n --json old.snap")).expect(0).json()["findings"],
        json!([])
    );
    assert!(images(&dir) == before);

    // The block that the superblock of the repaired store names is overwritten.
    let mut store = dir.read("old.snap");
    let at = usize::try_from(root).unwrap() * 512;
    assert_eq!(store[4112..4120], root.to_le_bytes());
    overwrite(&mut store, at, 0xff);
    dir.write("old.snap", &store);
    assert!(dir.untouched(|dir| dir.run("fsck -n old.snap")).expect(4).text().contains("legacy-node"));
    dir.untouched(|dir| dir.run("fsck -p old.snap")).expect(4);
    let run = dir.untouched(|dir| dir.run("fsck -y --dry-run --json old.snap")).expect(4);
    let writes = run.json()["repair"]["writes"].as_array().unwrap().clone();
    assert!(writes.iter().any(|write| write["what"] == "tree" && write["new"].is_string()), "{writes:?}");
    let run = dir.run("fsck -y --json old.snap").expect(1).json();
    assert_eq!((&run["left"], &run["repair"]["lost"]), (&json!([]), &json!([])));
    assert!(images(&dir) == before);
}

#[test]
fn what_a_store_of_2008_lost_is_told_and_marked() {
    let dir = Dir::new();
    crashed_store_of_2008(&dir);
    dir.run("fsck -p old.snap").expect(1);
    // A leaf is overwritten: what was preserved of its chunks is gone, everything else is not.
    let mut store = dir.read("old.snap");
    let is_leaf = |at: &usize| store[*at..*at + 4] == [0xaf, 0x1e, 0, 0];
    let journal = usize::try_from(u32::from_le_bytes(store[5696..5700].try_into().unwrap())).unwrap() * 512;
    let leaf = (journal + 12 * 512..store.len()).step_by(512).find(is_leaf).unwrap();
    overwrite(&mut store, leaf, 0);
    dir.write("old.snap", &store);
    let found = dir.untouched(|dir| dir.run("fsck -n --json old.snap")).expect(4).json()["findings"].clone();
    let ranges = |finding: &serde_json::Value| {
        let snapshots = finding["snapshots"].as_array().unwrap();
        snapshots.iter().map(|one| one["ranges"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(found[0]["code"], "legacy-leaf");
    let run = dir.run("fsck -y --json old.snap").expect(4).json();
    let lost = &run["repair"]["lost"];
    assert_eq!(lost[0]["code"], "legacy-lost");
    // The nodes say which chunks it was for; before, what lies between the leaves beside it was not believed either.
    let bounds = |finding| {
        let all = ranges(finding).into_iter();
        all.map(|one| [0, 1].map(|at| one[0][at].as_u64().unwrap())).collect::<Vec<_>>()
    };
    for (marked, told) in bounds(&lost[0]).into_iter().zip(bounds(&found[0])) {
        assert!(told[0] <= marked[0] && marked[1] == told[1], "{marked:?} {told:?}");
    }
    // It stays an error to read, and nothing else is found any more.
    let again = dir.untouched(|dir| dir.run("fsck -n --json old.snap")).expect(0).json()["findings"].clone();
    assert_eq!((again.as_array().unwrap().len(), &again[0]["code"]), (1, &json!("legacy-lost")));
    assert_eq!(ranges(&again[0]), ranges(&lost[0]));
    let begin = ranges(&lost[0])[0][0][0].as_u64().unwrap();
    let run =
        dir.run(&format!("read old.snap 7 --offset {begin} --length 512 --origin origin.img")).expect(3);
    assert!(run.stderr.contains("lost"), "{}", run.describe());
}
