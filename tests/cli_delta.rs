//! Changelists and deltas, from making them to refusing bad ones.

use crate::cli_errors::seed;
use crate::harness::{Dir, Rng, golden, noise, volume};

fn with_delta() -> Dir {
    let dir = volume();
    dir.ok("create-delta data.snap 1 2 -o 1-2.delta");
    dir
}

#[test]
fn a_delta_turns_one_point_into_another() {
    let dir = with_delta();
    dir.ok("apply-delta 1-2.delta copy.img");
    assert_eq!(dir.read("copy.img"), dir.read("second.img"));
    // Once more changes nothing.
    dir.untouched(|dir| dir.ok("apply-delta 1-2.delta copy.img"));
    // And back.
    dir.ok("create-delta data.snap 2 1 -o 2-1.delta");
    dir.ok("apply-delta 2-1.delta copy.img");
    assert_eq!(dir.read("copy.img"), dir.read("monday.img"));
}

#[test]
fn a_delta_goes_through_a_pipe() {
    let dir = volume();
    dir.shell("ddsnap create-delta data.snap 1 2 - | ddsnap apply-delta - copy.img").expect(0);
    assert_eq!(dir.read("copy.img"), dir.read("second.img"));
    dir.shell("ddsnap create-delta data.snap 2 origin | ddsnap apply-delta - copy.img").expect(0);
    assert_eq!(dir.read("copy.img"), dir.read("data.img"));
}

#[test]
fn a_whole_volume_needs_no_base() {
    let dir = volume();
    dir.write("fresh.img", b"");
    dir.ok("create-delta data.snap 2 -o full.delta");
    dir.ok("apply-delta full.delta fresh.img");
    assert_eq!(dir.read("fresh.img"), dir.read("second.img"));
}

#[test]
fn every_encoding_gives_the_same_result() {
    for options in ["", "-r", "-b", "-g 0", "-g 1", "-g 19", "-b -g 5", "--raw", "--best --level 7"] {
        let dir = volume();
        dir.ok(&format!("create-delta {options} data.snap 1 2 -o x.delta"));
        dir.ok("apply-delta --undo back.delta x.delta copy.img");
        assert_eq!(dir.read("copy.img"), dir.read("second.img"), "{options}");
        dir.ok("apply-delta back.delta copy.img");
        assert_eq!(dir.read("copy.img"), dir.read("monday.img"), "{options}");
    }
    volume().run("create-delta -x data.snap 1 2 -o x.delta").expect(3).says("hint: -b stores");
}

#[test]
fn the_names_and_shapes_of_2008() {
    let dir = volume();
    for command in ["changelist", "create-cl", "delta changelist"] {
        dir.ok(&format!("{command} data.snap changes 1 2"));
        let bytes = dir.read("changes");
        assert_eq!(bytes[..8], *b"rln\0\0\0\0\0");
        assert_eq!(bytes[8..20], [14, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(bytes[bytes.len() - 8..], [0xff; 8]);
        std::fs::rename(dir.path("changes"), dir.path("cl")).unwrap();
    }
    dir.copy("monday.img", "dev(1)");
    dir.copy("second.img", "dev(2)");
    for command in [
        "create-delta cl a.delta monday.img second.img",
        "delta create -r cl a.delta monday.img second.img",
        "delta create -b -g 9 cl a.delta dev",
    ] {
        dir.copy("monday.img", "copy.img");
        dir.ok(command);
        dir.ok("delta apply --undo back.delta a.delta copy.img");
        assert_eq!(dir.read("copy.img"), dir.read("second.img"), "{command}");
        std::fs::remove_file(dir.path("back.delta")).unwrap();
    }
    dir.shell("ddsnap delta create cl - dev | ddsnap delta info - > out").expect(0);
}

#[test]
fn plain_files_are_compared() {
    let dir = volume();
    dir.ok("create-delta --compare monday.img second.img -o x.delta");
    dir.ok("apply-delta x.delta copy.img");
    assert_eq!(dir.read("copy.img"), dir.read("second.img"));
    dir.ok("changelist --compare monday.img second.img cl");
    let count = (dir.read("cl").len() - 28) / 8;
    // 50,000 bytes from 100,000 and 5,000 from 300,000, in chunks of 16 KiB.
    assert_eq!(count, 4 + 1);
    // The last byte of a chunk alone.
    let mut image = dir.read("monday.img");
    image[32_767] ^= 1;
    dir.write("last.img", &image);
    let listed = dir.ok("changelist --json --compare monday.img last.img -").json();
    assert_eq!(listed["block_metadata"], serde_json::json!([{ "byte_offset": 16384, "size_bytes": 16384 }]));
}

#[test]
fn deltas_merge_into_one() {
    let dir = with_delta();
    dir.ok("create-delta data.snap 2 origin -o 2-now.delta");
    dir.ok("create-delta data.snap 2 -o full.delta");
    dir.untouched(|dir| {
        let run =
            dir.shell("ddsnap delta merge 1-2.delta - < 2-now.delta | ddsnap delta verify - monday.img");
        run.expect(0)
    });
    dir.ok("delta merge 1-2.delta 2-now.delta -o 1-now.delta");
    dir.ok("apply-delta 1-now.delta copy.img");
    assert_eq!(dir.read("copy.img"), dir.read("data.img"));
    dir.ok("delta merge full.delta 2-now.delta -o full-now.delta");
    dir.write("fresh.img", b"");
    dir.ok("apply-delta full-now.delta fresh.img");
    assert_eq!(dir.read("fresh.img"), dir.read("data.img"));
    // A merged delta names its ends, so a volume that equals snapshot 1 takes it.
    let ends = dir.ok("delta info --json 1-now.delta").json();
    assert_eq!((&ends["source"]["tag"], &ends["target"]["tag"]), (&1.into(), &serde_json::Value::Null));
}

#[test]
fn deltas_that_do_not_follow_are_not_merged() {
    let dir = with_delta();
    dir.ok("create-delta data.snap 2 origin -o 2-now.delta");
    dir.ok("create-delta data.snap 2 -o full.delta");
    dir.ok("create-delta -b data.snap 1 2 -o b1.delta");
    dir.ok_with("write data.snap --offset 104000", &[7; 3000]);
    dir.ok("create data.snap 3");
    dir.ok("create-delta -b data.snap 2 3 -o b2.delta");
    for (name, args, code) in [
        ("wrong-order", "delta merge 2-now.delta 1-2.delta -o out.delta", 3),
        ("full-in-the-middle", "delta merge 1-2.delta full.delta -o out.delta", 3),
        ("needs-base", "delta merge b1.delta b2.delta -o out.delta", 5),
        ("stdin-twice", "delta merge - - -o out.delta", 2),
        ("base-of-nothing", "delta merge full.delta 2-now.delta --base new.img -o out.delta", 2),
        ("over-an-input", "delta merge 1-2.delta 2-now.delta -o 1-2.delta", 2),
    ] {
        let run = dir.untouched(|dir| dir.run(args)).expect(code);
        golden(&format!("errors/delta-merge-{name}.txt"), &dir.mask_digests(&run.transcript()));
    }
    dir.ok("delta merge b1.delta b2.delta --base monday.img -o out.delta");
    dir.ok("apply-delta --undo back.delta out.delta copy.img");
    assert_eq!(dir.read("copy.img"), dir.ok("read data.snap 3").stdout);
}

#[test]
fn a_delta_is_inverted() {
    for options in ["", "-r", "-b"] {
        let dir = volume();
        dir.ok(&format!("create-delta {options} data.snap 1 2 -o x.delta"));
        dir.ok("delta invert x.delta monday.img -o y.delta");
        dir.copy("second.img", "copy.img");
        dir.ok("apply-delta --undo u.delta y.delta copy.img");
        assert_eq!(dir.read("copy.img"), dir.read("monday.img"), "{options}");
        dir.ok("delta invert y.delta second.img -o z.delta");
        dir.ok("apply-delta --undo v.delta z.delta copy.img");
        assert_eq!(dir.read("copy.img"), dir.read("second.img"), "{options}");
        dir.untouched(|dir| dir.run("delta invert x.delta second.img -o w.delta")).expect(3).says("hint: ");
    }
}

#[test]
fn documents_of_deltas() {
    let dir = with_delta();
    for (name, args) in [
        ("delta-info.json", "delta info --json 1-2.delta"),
        ("delta-verify.json", "delta verify --json 1-2.delta copy.img"),
        ("changelist.json", "changelist --json data.snap - 1 2"),
    ] {
        let run = dir.untouched(|dir| dir.ok(args));
        assert_eq!(run.text().lines().count(), 1);
        golden(name, &dir.mask_digests(&run.pretty()));
    }
    golden("delta-info.txt", &dir.mask_digests(&dir.ok("delta info 1-2.delta").text()));
    assert_eq!(dir.ok("delta verify 1-2.delta").text(), "sound\n");
    assert_eq!(dir.ok("delta verify 1-2.delta copy.img").text(), "sound\n");
    let no = dir.untouched(|dir| dir.run("delta verify 1-2.delta new.img")).expect(3);
    assert!(no.text().starts_with("wrong base: "), "{}", no.describe());
    dir.run("delta verify nowhere").expect(1);
    dir.run("delta verify 1-2.delta nowhere").expect(1);
}

#[test]
fn bad_deltas_and_targets_are_refused_and_nothing_is_touched() {
    type Damage = fn(&Dir);
    let cases: &[(&str, Damage, &str, i32)] = &[
        ("missing", |_| {}, "apply-delta nowhere copy.img", 1),
        ("missing-target", |_| {}, "apply-delta 1-2.delta nowhere", 1),
        ("wrong-base", |_| {}, "apply-delta 1-2.delta new.img", 3),
        (
            "base-differs-in-one-byte",
            |dir| dir.patch("copy.img", 120_000, |b| b[0] ^= 1),
            "apply-delta 1-2.delta copy.img",
            3,
        ),
        (
            "target-too-small",
            |dir| dir.write("copy.img", &dir.read("monday.img")[..1 << 19]),
            "apply-delta 1-2.delta copy.img",
            3,
        ),
        (
            "target-too-large",
            |dir| dir.write("copy.img", &[dir.read("monday.img"), vec![0; 4096]].concat()),
            "apply-delta 1-2.delta copy.img",
            3,
        ),
        ("not-a-delta", |dir| dir.copy("new.img", "1-2.delta"), "apply-delta 1-2.delta copy.img", 3),
        ("empty", |dir| dir.write("1-2.delta", b""), "apply-delta 1-2.delta copy.img", 3),
        (
            "cut-short",
            |dir| dir.write("1-2.delta", &dir.read("1-2.delta")[..5000]),
            "apply-delta 1-2.delta copy.img",
            3,
        ),
        (
            "info-cut-short",
            |dir| dir.write("1-2.delta", &dir.read("1-2.delta")[..5000]),
            "delta info 1-2.delta",
            3,
        ),
        ("other-volume", other_volume, "apply-delta 1-2.delta other.snap", 3),
        ("onto-itself", |_| {}, "apply-delta 1-2.delta 1-2.delta", 2),
        ("target-is-folder", |_| {}, "apply-delta 1-2.delta .", 2),
        ("nothing-to-roll-back", |_| {}, "apply-delta --rollback data.snap", 1),
        (
            "needs-undo",
            |dir| drop(dir.ok("create-delta -b data.snap 1 2 -o 1-2.delta")),
            "apply-delta 1-2.delta copy.img",
            5,
        ),
        (
            "squashed-changelist",
            |dir| dir.write("cl", b"rln\0\0\0\0\0\x0e\0\0"),
            "create-delta cl a.delta monday.img second.img",
            3,
        ),
        (
            "changelist-of-nonsense",
            |dir| dir.write("cl", &[b"rln\0\0\0\0\0", &[0xff; 40][..]].concat()),
            "create-delta cl a.delta monday.img second.img",
            3,
        ),
        ("unordered-changelist", unordered_changelist, "create-delta cl a.delta monday.img second.img", 3),
        ("no-such-snapshot", |_| {}, "create-delta data.snap 1 77 -o a.delta", 1),
        ("changelist-no-such-snapshot", |_| {}, "changelist data.snap cl 77 1", 1),
    ];
    for (name, damage, args, code) in cases {
        let dir = with_delta();
        damage(&dir);
        let run = dir.untouched(|dir| dir.run(args)).expect(*code);
        golden(&format!("errors/delta-{name}.txt"), &dir.mask_digests(&run.transcript()));
    }
}

/// A volume whose origin has other data, so that a delta of the first does not fit.
fn other_volume(dir: &Dir) {
    dir.ok("initialize --size 32M other.snap new.img");
    dir.ok("create other.snap 1");
}

fn unordered_changelist(dir: &Dir) {
    let mut bytes = b"rln\0\0\0\0\0\x0e\0\0\0\x01\0\0\0\x02\0\0\0".to_vec();
    for number in [5u64, 3, u64::MAX] {
        bytes.extend(number.to_le_bytes());
    }
    dir.write("cl", &bytes);
}

#[test]
fn a_damaged_delta_is_never_applied() {
    let dir = with_delta();
    let good = dir.read("1-2.delta");
    let seed = seed();
    let mut rng = Rng(seed);
    let (head, tail) = (0..200.min(good.len()), good.len().saturating_sub(100)..good.len());
    let mut places: Vec<usize> = head.chain(tail).collect();
    places.extend((0..60).map(|_| rng.below(good.len() as u64) as usize));
    for at in places {
        let mut bad = good.clone();
        bad[at] ^= 1 << rng.below(8);
        dir.write("bad.delta", &bad);
        let run = dir.untouched(|dir| dir.run("apply-delta bad.delta copy.img"));
        assert_eq!(run.code, Some(3), "byte {at}, seed {seed}:{}", run.describe());
    }
    for len in [0, 1, 7, 8, 16, 100, 160, 1000, good.len() / 2, good.len() - 72, good.len() - 1] {
        dir.write("bad.delta", &good[..len]);
        for args in ["apply-delta bad.delta copy.img", "delta info bad.delta", "delta verify bad.delta"] {
            let run = dir.untouched(|dir| dir.run(args));
            assert_eq!(run.code, Some(3), "{len} bytes, seed {seed}:{}", run.describe());
        }
        let run = dir.untouched(|dir| dir.run_with("apply-delta - copy.img", &good[..len]));
        assert_eq!(run.code, Some(3), "{len} bytes, seed {seed}:{}", run.describe());
    }
}

#[test]
fn a_dry_run_tells_and_changes_nothing() {
    let dir = with_delta();
    let run = dir.untouched(|dir| dir.ok("apply-delta --dry-run 1-2.delta copy.img"));
    assert!(run.text().starts_with("would write "), "{}", run.describe());
    dir.untouched(|dir| dir.run("apply-delta --dry-run 1-2.delta new.img")).expect(3);
}

#[test]
fn force_applies_to_another_base() {
    let dir = with_delta();
    dir.ok("apply-delta --force 1-2.delta new.img");
    let (new, second) = (dir.read("new.img"), dir.read("second.img"));
    assert_eq!(new[100_000..150_000], second[100_000..150_000]);
}

#[test]
fn a_target_in_use_is_left_alone() {
    let dir = with_delta();
    let target = std::fs::File::open(dir.path("copy.img")).unwrap();
    target.lock().unwrap();
    dir.untouched(|dir| dir.run("apply-delta 1-2.delta copy.img")).expect(4);
}

#[test]
fn a_target_without_room_can_be_resumed() {
    let dir = with_delta();
    // In units of 1 KiB: the end of a chunk of the delta.
    let run = dir.shell("ulimit -f 128; trap '' XFSZ; ddsnap apply-delta 1-2.delta copy.img").expect(1);
    assert!(run.stderr.contains("repeat the same command to go on"), "{}", run.describe());
    dir.ok("apply-delta 1-2.delta copy.img");
    assert_eq!(dir.read("copy.img"), dir.read("second.img"));
}

#[test]
fn a_torn_chunk_is_noticed() {
    let dir = with_delta();
    dir.shell("ulimit -f 120; trap '' XFSZ; ddsnap apply-delta 1-2.delta copy.img").expect(1);
    dir.untouched(|dir| dir.run("apply-delta 1-2.delta copy.img")).expect(3).says("hint: ");
    dir.ok("apply-delta --force 1-2.delta copy.img");
    assert_eq!(dir.read("copy.img"), dir.read("second.img"));
}

/// A replica volume whose origin lies beyond what `ulimit -f` lets be written, and a delta for it.
pub fn replica() -> (Dir, Vec<u8>, Vec<u8>) {
    let dir = Dir::new();
    let old = noise(1, 40 << 20);
    let mut new = old.clone();
    new[1 << 20..(1 << 20) + 70_000].fill(1);
    new[38 << 20..(38 << 20) + 70_000].fill(2);
    dir.write("old.img", &old);
    dir.write("new.img", &new);
    dir.copy("old.img", "replica.img");
    dir.ok("create-delta --compare old.img new.img -o x.delta");
    dir.ok("initialize --size 24M replica.snap replica.img");
    dir.ok("create replica.snap 1");
    (dir, old, new)
}

#[test]
fn a_volume_takes_a_delta_into_its_origin() {
    let (dir, old, new) = replica();
    dir.untouched(|dir| dir.ok("apply-delta --dry-run x.delta replica.snap"));
    dir.ok("apply-delta x.delta replica.snap");
    assert!(dir.read("replica.img") == new, "the origin is not the new state");
    assert!(dir.ok("read replica.snap 1").stdout == old, "the snapshot changed");
    assert_eq!(dir.ok("status -l replica.snap").text(), "1 \n");
    dir.untouched(|dir| dir.run("apply-delta --undo u x.delta replica.snap")).expect(2);
}

/// An apply that stops in the middle for want of room.
fn interrupted() -> (Dir, Vec<u8>, Vec<u8>) {
    let (dir, old, new) = replica();
    let run =
        dir.shell(&format!("ulimit -f {}; trap '' XFSZ; ddsnap apply-delta x.delta replica.snap", 30 << 10));
    let run = run.expect(1);
    assert!(run.stderr.contains("apply-delta --rollback replica.snap"), "{}", run.describe());
    let half = dir.read("replica.img");
    assert!(half != old && half != new, "nothing is half done");
    (dir, old, new)
}

#[test]
fn an_interrupted_apply_is_seen_and_resumed() {
    let (dir, old, new) = interrupted();
    assert!(dir.ok("status --json replica.snap").json()["pending"]["label"].is_string());
    dir.ok("status replica.snap").says("warning: incomplete on the origin");
    for args in [
        "read replica.snap origin --length 1",
        "export replica.snap origin out",
        "create replica.snap 2",
        "create-delta replica.snap 1 origin -o out",
    ] {
        dir.untouched(|dir| dir.run(args)).expect(5).says("hint: ");
    }
    dir.untouched(|dir| dir.run_with("write replica.snap", b"x")).expect(5).says("revert --rollback");
    dir.untouched(|dir| dir.ok("read replica.snap origin --length 1 --accept-incomplete"));
    assert!(dir.ok("read replica.snap 1").stdout == old, "the snapshot changed");
    dir.ok("apply-delta x.delta replica.snap");
    assert!(dir.read("replica.img") == new, "the origin is not the new state");
    assert!(dir.ok("status --json replica.snap").json()["pending"].is_null());
    dir.ok("create replica.snap 2");
}

#[test]
fn an_interrupted_apply_is_rolled_back() {
    let (dir, old, _) = interrupted();
    let run = dir.untouched(|dir| dir.ok("apply-delta --rollback --dry-run replica.snap"));
    assert!(run.text().starts_with("would put back "), "{}", run.describe());
    dir.ok("apply-delta --rollback replica.snap");
    assert!(dir.read("replica.img") == old, "the origin is not the old state");
    assert!(dir.ok("read replica.snap 1").stdout == old, "the snapshot changed");
    assert!(dir.ok("status --json replica.snap").json()["pending"].is_null());
    dir.ok("create replica.snap 2");
}

#[test]
fn a_chain_of_volumes_replicates() {
    let dir = volume();
    dir.ok("initialize --size 32M copy.snap copy.img");
    dir.ok("create copy.snap 1");
    dir.shell("ddsnap create-delta data.snap 1 2 | ddsnap apply-delta - copy.snap").expect(0);
    assert_eq!(dir.read("copy.img"), dir.read("second.img"));
    let equals = dir.ok("status --json copy.snap").json()["origin"]["equals"].clone();
    let source = dir.ok("status --json data.snap").json();
    assert_eq!(equals["volume"], source["volume"]);
    dir.ok("create copy.snap 2");
    dir.shell("ddsnap create-delta data.snap 2 origin | ddsnap apply-delta - copy.snap").expect(0);
    assert_eq!(dir.read("copy.img"), dir.read("data.img"));
    assert_eq!(dir.ok("read copy.snap 1").stdout, dir.read("monday.img"));
    assert_eq!(dir.ok("read copy.snap 2").stdout, dir.read("second.img"));
    // The first other write clears what the origin was known to equal.
    dir.ok_with("write copy.snap", b"x");
    assert!(dir.ok("status --json copy.snap").json()["origin"]["equals"].is_null());
}

#[test]
fn an_rbd_diff_turns_one_point_into_another() {
    let dir = volume();
    dir.ok("create-delta data.snap 1 2 -o 1-2.diff --format rbd");
    assert_eq!(dir.read("1-2.diff")[..24], *b"rbd diff v1\nf\x06\0\0\0mondayt");
    let described: serde_json::Value = serde_json::from_slice(&dir.read("1-2.diff.json")).unwrap();
    assert_eq!(described["blake3"], blake3::hash(&dir.read("1-2.diff")).to_hex().to_string());
    assert_eq!((&described["source"]["name"], &described["target"]["tag"]), (&"monday".into(), &2.into()));
    let refused = dir.untouched(|dir| dir.run("apply-delta 1-2.diff copy.img")).expect(5);
    refused.says("no checksums of its base").says("leads from 'monday' to '2'");
    dir.untouched(|dir| dir.ok("apply-delta --dry-run --force 1-2.diff copy.img"))
        .says_out("rbd diff from 'monday' to '2'");
    dir.ok("apply-delta --force --undo back.delta 1-2.diff copy.img");
    assert_eq!(dir.read("copy.img"), dir.read("second.img"));
    // Once more proves itself: all is there.
    dir.untouched(|dir| dir.ok("apply-delta 1-2.diff copy.img"));
    dir.ok("apply-delta back.delta copy.img");
    assert_eq!(dir.read("copy.img"), dir.read("monday.img"));
    let piped =
        dir.shell("ddsnap create-delta --format rbd data.snap 1 2 - | ddsnap apply-delta --force - copy.img");
    piped.expect(0).says("nothing proves that copy.img was the base of this rbd diff from 'monday' to '2'");
    assert_eq!(dir.read("copy.img"), dir.read("second.img"));
    dir.write("fresh.img", b"");
    dir.shell("ddsnap create-delta --format rbd data.snap origin - | ddsnap apply-delta - fresh.img")
        .expect(0);
    assert_eq!(dir.read("fresh.img"), dir.read("data.img"));
    dir.ok("create-delta --format rbd --compare fresh.img monday.img -o back.diff");
    dir.ok("apply-delta --force back.diff fresh.img");
    assert_eq!(dir.read("fresh.img"), dir.read("monday.img"));
}

#[test]
fn a_volume_takes_an_rbd_diff_and_knows_its_base_by_what_lies_beside_it() {
    let dir = volume();
    dir.ok("initialize --size 32M copy.snap copy.img");
    dir.ok("create copy.snap 1");
    dir.ok("create-delta data.snap 1 -o full.diff --format rbd");
    dir.ok("apply-delta full.diff copy.snap");
    dir.ok("create-delta data.snap 1 2 -o 1-2.diff --format rbd");
    dir.copy("1-2.diff", "alone.diff");
    dir.untouched(|dir| dir.run("apply-delta --dry-run alone.diff copy.snap")).expect(5);
    dir.ok("apply-delta 1-2.diff copy.snap");
    assert_eq!(dir.read("copy.img"), dir.read("second.img"));
    assert_eq!(dir.ok("read copy.snap 1").stdout, dir.read("monday.img"));
}

#[test]
fn bad_rbd_diffs_are_refused_and_nothing_is_touched() {
    let dir = volume();
    dir.ok("create-delta data.snap 1 2 -o good.diff --format rbd");
    let good = dir.read("good.diff");
    dir.write("cut.diff", &good[..good.len() - 1]);
    dir.write("v2.diff", b"rbd diff v2\nf");
    dir.write("export2.diff", b"rbd image v2\nO");
    dir.write("other.diff", &good);
    dir.patch("other.diff", good.len() / 2, |bytes| bytes[0] ^= 1);
    dir.copy("good.diff.json", "other.diff.json");
    dir.write("vague.diff", &good);
    dir.write("vague.diff.json", b"{}");
    for (args, code, word) in [
        ("apply-delta --force cut.diff copy.img", 3, "ends in the next record or the end marker"),
        ("apply-delta --force v2.diff copy.img", 3, "expected 'rbd diff v1'"),
        ("apply-delta --force export2.diff copy.img", 3, "'rbd export-diff' writes version 1"),
        ("apply-delta --force other.diff copy.img", 3, "the file beside it tells of"),
        ("apply-delta --force vague.diff copy.img", 3, "not the description of an rbd diff"),
        ("create-delta --format rbd -b data.snap 1 2 -o x", 2, "leave out -r, -b and -g"),
        ("create-delta --format rbd --resume data.snap 1 2 -o x", 2, "cannot be continued"),
        ("create-delta --format vcdiff data.snap 1 2 -o x", 2, "possible values: delta, rbd"),
    ] {
        dir.untouched(|dir| dir.run(args)).expect(code).says(word);
    }
}

#[test]
fn a_listing_can_be_continued() {
    let dir = volume();
    let whole = dir.ok("changelist --json data.snap 1 2").json();
    assert_eq!(whole["next_starting_offset"], serde_json::Value::Null);
    assert_eq!(whole, dir.ok("changelist --json data.snap - 1 2").json());
    let expected = whole["block_metadata"].as_array().unwrap().clone();
    let (mut found, mut at) = (Vec::new(), Some(0));
    while let Some(offset) = at {
        let page = dir
            .ok(&format!("changelist --json --max-results 1 --starting-offset {offset} data.snap 1 2"))
            .json();
        found.extend(page["block_metadata"].as_array().unwrap().clone());
        at = page["next_starting_offset"].as_u64();
    }
    assert_eq!(found, expected);
    assert!(expected.len() >= 2);
    // A range is cut where the listing begins.
    let start = expected[0]["byte_offset"].as_u64().unwrap() + 5;
    let page = dir.ok(&format!("changelist --json --starting-offset {start} data.snap 1 2")).json();
    assert_eq!(page["block_metadata"][0]["byte_offset"], start);
    let beyond = dir.ok("changelist --json --starting-offset 1T data.snap 1 2").json();
    assert_eq!(beyond["block_metadata"], serde_json::json!([]));
    let allocated = dir.ok("changelist --json data.snap 1").json();
    assert_eq!(allocated["base"], serde_json::Value::Null);
    assert_eq!(allocated["block_metadata"][0]["byte_offset"], 0);
    let compared = dir.ok("changelist --json --compare monday.img second.img").json();
    assert_eq!(compared["block_metadata"], whole["block_metadata"]);
    for args in
        ["changelist --max-results 1 data.snap cl 1 2", "changelist --json --max-results 0 data.snap 1 2"]
    {
        dir.untouched(|dir| dir.run(args)).expect(2);
    }
}
