//! Deltas of 2008: those that the program of 2008 wrote, and our own.

use crate::harness::{Dir, noise, skip, volume};
use serde_json::Value;
use sha2::Digest;
use std::path::{Path, PathBuf};

/// What the program of 2008 left, if it is at hand.
fn originals() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.join("shared/golden");
    let folder = std::env::var_os("DDSNAP_GOLDEN").map_or(beside, PathBuf::from);
    folder.join("delta-4k").is_dir().then_some(folder)
}

fn read(path: &Path) -> Option<Vec<u8>> {
    if let Ok(bytes) = std::fs::read(path) {
        return Some(bytes);
    }
    let packed = std::fs::read(format!("{}.zst", path.display())).ok()?;
    Some(zstd::decode_all(packed.as_slice()).unwrap())
}

#[test]
fn what_2008_wrote_is_read_and_raw_deltas_are_written_the_same() {
    let Some(folder) = originals() else { return skip("no data of the program of 2008") };
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let case = entry.unwrap().path();
        if !case.file_name().unwrap().to_string_lossy().starts_with("delta-") {
            continue;
        }
        let facts: Value = serde_json::from_slice(&std::fs::read(case.join("case.json")).unwrap()).unwrap();
        let source = read(&case.join("source.img"));
        let target = read(&case.join("target.img")).unwrap();
        let hash = hex::encode(sha2::Sha256::digest(&target));
        assert_eq!(facts["files"]["target"]["sha256"], hash.as_str());
        for (name, wanted) in facts["deltas"].as_object().unwrap() {
            let delta = read(&case.join(format!("delta-{name}.bin"))).unwrap();
            eprintln!("{}, {name}", case.display());
            original(&delta, wanted, &case, source.as_deref(), &target);
            seen += 1;
        }
    }
    assert!(seen >= 40, "only {seen} deltas");
}

fn original(delta: &[u8], wanted: &Value, case: &Path, source: Option<&[u8]>, target: &[u8]) {
    let dir = Dir::new();
    dir.write("delta", delta);
    let info = dir.ok("delta info --json delta").json();
    assert_eq!(info["format"], "2008");
    assert_eq!(info["chunks"], wanted["header"]["chunk_num"]);
    assert_eq!(info["chunk_size"], wanted["header"]["chunk_size"]);
    assert_eq!(info["extents"], wanted["n_extents"]);
    assert_eq!(info["stream_bytes"], delta.len());
    dir.ok("delta verify delta");
    let mut ready = source.unwrap_or_default().to_vec();
    ready.resize(target.len(), 0);
    dir.write("image", &ready);
    dir.ok("apply-delta --undo back delta image");
    assert!(dir.read("image") == target);
    dir.ok("apply-delta back image");
    assert!(dir.read("image") == ready);
    let mut based = "";
    if let Some(source) = source {
        dir.write("vol(0)", source);
        based = " --base vol(0)";
        dir.ok("apply-delta --base vol(0) delta image");
        assert!(dir.read("image") == target);
        dir.write("image", &ready);
    }
    dir.write("vol(1)", target);
    let options: Vec<&str> =
        wanted["options"].as_array().unwrap().iter().map(|o| o.as_str().unwrap()).collect();
    let list = case.join("changelist");
    let made = ["create-delta", "--format", "2008", list.to_str().unwrap(), "ours", "vol"];
    dir.run_args(&[&made[..], &options].concat(), &[]).expect(0);
    let ours = dir.read("ours");
    dir.run_args(&[&made[..], &["-r"]].concat(), &[]).expect(0);
    let raw = dir.read("ours");
    assert!(ours.len() <= raw.len());
    if options.contains(&"-r") && !options.contains(&"-g") {
        assert!(ours == delta);
    }
    dir.write("ours", &ours);
    dir.ok(&format!("apply-delta{based} ours image"));
    assert!(dir.read("image") == target);
}

/// A folder with `old(1)` and `old(2)`, which are 100 KiB and a bit, and a list of what differs in chunks of 4 KiB.
fn pair() -> (Dir, Vec<u8>, Vec<u8>) {
    let dir = Dir::new();
    let old: Vec<u8> = noise(7, 100_100).iter().map(|byte| b'a' + byte % 16).collect();
    let mut new = old.clone();
    new[5000..5030].copy_from_slice(b"thirty bytes of other content!");
    new[40_960..57_344].fill(0);
    new[100_050..].fill(b'!');
    dir.write("old(1)", &old);
    dir.write("old(2)", &new);
    let list = [1, 10, 11, 12, 13, 24, u64::MAX].map(u64::to_le_bytes).concat();
    dir.write("list", &[&b"rln\0\0\0\0\0\x0c\0\0\0\x01\0\0\0\x02\0\0\0"[..], &list].concat());
    dir.write("image", &old);
    (dir, old, new)
}

const WAYS: [(&str, &str); 5] =
    [("raw", "-r"), ("xdelta", "-x"), ("default", ""), ("raw-zlib", "-r -g 6"), ("best", "-b")];

#[test]
fn our_own_stay_readable() {
    let (dir, old, new) = pair();
    for (name, way) in WAYS {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/legacy-delta").join(name);
        dir.ok(&format!("create-delta {way} --format 2008 list made old"));
        if std::env::var_os("UPDATE_CORPUS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, dir.read("made")).unwrap();
        }
        let kept = std::fs::read(&path).unwrap();
        // Compressors may find other ways with time; plain data may not.
        assert!(!matches!(name, "raw" | "xdelta" | "default") || kept == dir.read("made"), "{name}");
        dir.write("kept", &kept);
        dir.write("image", &old);
        dir.ok("delta verify kept image").says_out("sound");
        let run = dir.ok("apply-delta --base old(1) kept image -v");
        assert!(dir.read("image") == new, "{name}");
        run.says("sums of bytes only");
        // Once more, with nothing to do; then from a pipe.
        dir.ok("apply-delta --base old(1) kept image");
        dir.write("image", &old);
        dir.ok_with("apply-delta --base old(1) - image", &kept);
        assert!(dir.read("image") == new, "{name}");
    }
}

#[test]
fn what_cannot_be_right_is_refused() {
    let (dir, _, new) = pair();
    dir.ok("create-delta --format 2008 list delta old");
    dir.ok("create-delta --format 2008 -r list raw old");
    dir.untouched(|dir| dir.run("apply-delta delta image").expect(5).says("--base"));
    dir.write("other", &noise(1, 100_100));
    dir.untouched(|dir| dir.run("apply-delta raw other").expect(3).says("not what the delta was made from"));
    dir.untouched(|dir| dir.run("apply-delta --base other delta image").expect(3));
    dir.untouched(|dir| dir.run("delta verify delta other").expect(3));
    dir.write("short", &new[..90_000]);
    dir.untouched(|dir| dir.run("apply-delta raw short").expect(3).says("final size"));
    dir.ok("create-delta --compare old(1) old(2) -o today");
    dir.untouched(|dir| dir.run("apply-delta --base old(1) today image").expect(2).says("leave out --base"));
    dir.untouched(|dir| dir.run("delta merge delta delta -o all").says("delta of 2008"));
    dir.patch("raw", 200, |bytes| bytes[0] ^= 1);
    dir.untouched(|dir| dir.run("apply-delta raw image").expect(3));
    dir.untouched(|dir| dir.run("delta verify raw").expect(3));
    for (args, says) in [
        ("-g 10 list x old", "0 to 9"),
        ("--resume list x old", "cannot be continued"),
        ("missing x old", ""),
    ] {
        let run = dir.untouched(|dir| dir.run(&format!("create-delta --format 2008 {args}")));
        assert_ne!(run.code, Some(0), "{args}");
        run.says(says);
    }
}

#[test]
fn a_store_of_2008_is_no_target() {
    let (dir, ..) = pair();
    dir.ok("create-delta --compare old(1) old(2) -o full");
    dir.patch("image", 4096, |bytes| bytes[..8].copy_from_slice(b"\x74\x65\x73\x74\xdd\x07\x06\x04"));
    for args in ["full image", "--force full image", "--dry-run full image"] {
        dir.untouched(|dir| dir.run(&format!("apply-delta {args}")).expect(5).says("2008"));
    }
}

#[test]
fn a_whole_volume_is_all_of_it() {
    let (dir, _, new) = pair();
    let list = |chunks: u64| {
        let numbers: Vec<u8> = (0..chunks).chain([u64::MAX]).flat_map(u64::to_le_bytes).collect();
        [&b"rln\0\0\0\0\0\x0c\0\0\0\xff\xff\xff\xff\x02\0\0\0"[..], &numbers].concat()
    };
    dir.write("some", &list(9));
    dir.write("all", &list(25));
    dir.untouched(|dir| dir.run("create-delta --format 2008 some delta old").expect(5));
    dir.ok("create-delta --format 2008 -g 6 all delta old");
    let info = dir.ok("delta info delta").text();
    assert!(info.contains("nothing (a whole volume)") && info.contains("25 extents"), "{info}");
    dir.write("image", &noise(8, 100_100));
    dir.ok("apply-delta delta image");
    assert!(dir.read("image") == new);
}

#[test]
fn snapshots_become_deltas_of_2008_and_back() {
    let dir = volume();
    dir.ok("create-delta --format 2008 data.snap 1 2 -o delta");
    dir.ok("delta invert delta monday.img -o back");
    dir.ok("apply-delta --undo undo delta copy.img");
    assert!(dir.read("copy.img") == dir.read("second.img"));
    dir.ok("apply-delta back copy.img");
    assert!(dir.read("copy.img") == dir.read("monday.img"));
    // Into a replica with a store of its own, which keeps the old data itself.
    dir.ok("initialize --size 32m copy.snap copy.img");
    dir.ok("create copy.snap 7");
    dir.run("apply-delta --base monday.img delta copy.snap").expect(2);
    dir.ok("apply-delta delta copy.snap");
    assert!(dir.read("copy.img") == dir.read("second.img"));
    dir.ok("create-delta --format 2008 data.snap 2 -o whole");
    dir.write("new.img", &noise(77, dir.read("data.img").len()));
    dir.ok("apply-delta whole new.img");
    assert!(dir.read("new.img") == dir.read("second.img"));
    dir.run("create-delta --format 2008 data.snap origin 2 -o x")
        .expect(2)
        .says("cannot start from an origin");
}
