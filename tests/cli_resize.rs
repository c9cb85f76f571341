//! Another size of origin and store, back to a snapshot, holds.

use crate::harness::{Dir, noise, volume};

/// The bytes of every snapshot in `tags`.
fn snapshots(dir: &Dir, tags: &[&str]) -> Vec<Vec<u8>> {
    tags.iter().map(|tag| dir.ok(&format!("read data.snap {tag}")).stdout).collect()
}

#[test]
fn an_origin_shrinks_and_grows_and_no_snapshot_changes() {
    let dir = volume();
    let before = snapshots(&dir, &["1", "2"]);
    let size = dir.read("data.img").len();
    dir.run("resize data.snap -o 100000").expect(5).says("-y insists");
    let plan = dir.untouched(|dir| dir.ok("resize --dry-run data.snap -o 100000"));
    assert!(plan.text().contains("would preserve"), "{}", plan.describe());
    dir.ok("resize -y data.snap -o 100000");
    assert_eq!(dir.read("data.img").len(), 100_000);
    assert_eq!(snapshots(&dir, &["1", "2"]), before);
    dir.ok("create data.snap 50");
    let small = dir.read("data.img");
    dir.ok(&format!("resize data.snap -o {}", size + 5000));
    assert_eq!(dir.read("data.img").len(), size + 5000);
    dir.ok_with("write data.snap --offset 90000", &noise(7, 50_000));
    dir.ok("create data.snap 51");
    assert_eq!(snapshots(&dir, &["1", "2", "50"]), [before.clone(), vec![small]].concat());
    // What only the larger one has is in the delta, and it applies.
    dir.ok("export data.snap 50 copy.img");
    dir.ok("create-delta data.snap 50 51 -o grow.delta");
    dir.ok("apply-delta grow.delta copy.img");
    assert_eq!(dir.read("copy.img"), dir.read("data.img"));
    dir.ok("create-delta data.snap 51 50 -o shrink.delta");
    dir.ok("apply-delta shrink.delta copy.img");
    assert_eq!(dir.read("copy.img").len(), 100_000);
    dir.ok("fsck -n --data data.snap");
}

#[test]
fn a_store_grows_and_shrinks_and_says_beforehand_what_works() {
    let dir = volume();
    let before = snapshots(&dir, &["1", "2"]);
    let start = dir.read("data.snap").len();
    dir.ok(&format!("resize data.snap -s {}", start * 4));
    assert_eq!(dir.read("data.snap").len(), start * 4);
    for (round, tag) in (60..66).enumerate() {
        dir.ok_with(&format!("write data.snap --offset {}", round * 20_000), &noise(round as u64, 300_000));
        dir.ok(&format!("create data.snap {tag}"));
    }
    let after = snapshots(&dir, &["60", "63", "65"]);
    let refused = dir.untouched(|dir| dir.run("resize --dry-run data.snap -s 1M").expect(1));
    let text = refused.text();
    let smallest = text.split("sizes from ").nth(1).and_then(|rest| rest.split(' ').next()).expect("told");
    dir.run("resize data.snap -s 1M").expect(1);
    assert_eq!(snapshots(&dir, &["60", "63", "65"]), after);
    dir.ok(&format!("resize data.snap -s {smallest}"));
    assert_eq!(dir.read("data.snap").len().to_string(), smallest);
    assert_eq!(snapshots(&dir, &["1", "2"]), before);
    assert_eq!(snapshots(&dir, &["60", "63", "65"]), after);
    dir.ok("fsck -n --data data.snap");
    dir.run("resize data.snap").expect(2);
    dir.run("resize data.snap -m 4k").expect(0).says("means nothing any more");
}

#[test]
fn an_origin_goes_back_to_a_snapshot() {
    let dir = volume();
    let before = snapshots(&dir, &["1", "2"]);
    let plan = dir.untouched(|dir| dir.ok("revert --dry-run data.snap 1"));
    assert!(plan.text().contains("bytes of the origin: snapshot 1 differs there"), "{}", plan.describe());
    dir.ok("revert data.snap 1");
    assert_eq!(dir.read("data.img"), before[0]);
    assert_eq!(snapshots(&dir, &["1", "2"]), before);
    let again = dir.ok("revert --dry-run data.snap 1");
    assert!(again.text().contains("would change 0 bytes"), "{}", again.describe());
    let equals = &dir.ok("status --json data.snap").json()["origin"]["equals"];
    assert!(equals.is_object(), "{equals}");
    dir.ok("resize -y data.snap -o 70000");
    dir.ok("revert data.snap 2");
    assert_eq!(dir.read("data.img"), before[1]);
    dir.run("revert data.snap origin").expect(2);
    dir.run("revert data.snap 77").expect(1);
    dir.run("revert --rollback data.snap").expect(1).says("no operation is incomplete");
}

#[test]
fn a_snapshot_that_is_held_stays() {
    let dir = volume();
    dir.ok("hold data.snap 1 offsite");
    dir.ok("hold data.snap 1 usb");
    dir.ok("hold data.snap 1 usb");
    dir.run("delete data.snap 1").expect(4).says("held for offsite, usb");
    dir.ok("release data.snap 1 usb");
    dir.run("release data.snap 1 usb").expect(1);
    dir.run("hold data.snap 1 .x").expect(2);
    assert_eq!(
        dir.ok("list --json data.snap").json()["snapshots"][0]["holds"],
        serde_json::json!(["offsite"])
    );
    // The target took 1 to 2, then wants 2 to 3: it has 2 by then.
    dir.ok("create data.snap 3");
    dir.ok("create-delta --hold offsite data.snap 1 2 -o a.delta");
    let holds = |dir: &Dir| {
        let list = dir.ok("list --json data.snap").json();
        list["snapshots"]
            .as_array()
            .expect("rows")
            .iter()
            .map(|row| row["holds"].to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(holds(&dir), ["[\"offsite\"]", "[\"offsite\"]", "[]"]);
    dir.ok("create-delta --hold offsite data.snap 2 3 -o b.delta");
    assert_eq!(holds(&dir), ["[]", "[\"offsite\"]", "[\"offsite\"]"]);
    dir.run("create-delta --hold offsite data.snap 2 origin -o c.delta").expect(2);
    let told = dir.untouched(|dir| dir.ok("delete --dry-run --force data.snap 2"));
    assert!(told.text().contains("overrides that it is held for offsite"), "{}", told.describe());
    dir.ok("delete --force data.snap 2");
}

#[test]
fn what_is_not_the_origin_is_not_cut_or_reverted() {
    let dir = volume();
    dir.write("other.img", &noise(1, dir.read("data.img").len()));
    for args in ["resize -y data.snap -o 100 --origin other.img", "revert data.snap 1 --origin other.img"] {
        dir.untouched(|dir| dir.run(args).expect(5)).says("another one, or changed since");
    }
    for args in ["resize -y data.snap -o 100 --origin data.snap", "write data.snap --origin data.snap"] {
        dir.untouched(|dir| dir.run(args).expect(2)).says("cannot be its own origin");
    }
    // Changed behind the store's back: accepted, it is the origin again.
    dir.patch("data.img", 70_000, |bytes| bytes[0] ^= 1);
    dir.untouched(|dir| dir.run("resize -y data.snap -o 100000").expect(5));
    dir.run("fsck --accept-taint data.snap");
    dir.ok("resize -y data.snap -o 100000");
}

#[test]
fn what_does_not_fit_costs_no_snapshot() {
    let dir = Dir::new();
    dir.write("o.img", &noise(2, 1_076_096));
    dir.ok("initialize --size 3M s.snap o.img");
    dir.ok("create s.snap 2");
    let before = dir.ok("read s.snap 2").stdout;
    let dry = dir.untouched(|dir| dir.run("resize --dry-run s.snap -o 1"));
    let real = dir.run("resize -y s.snap -o 1");
    assert_eq!(dry.code, real.code, "{}{}", dry.describe(), real.describe());
    // As much as fits, then a little more: nothing is given up for it.
    dir.ok("hold s.snap 2 a");
    dir.ok("policy s.snap squash");
    for round in 0..40 {
        let args = format!("write s.snap --offset {}", round * 26_000);
        if dir.run_with(&args, &noise(round, 26_000)).code != Some(0) {
            break;
        }
    }
    assert!(dir.ok("read s.snap 2").stdout == before);
    dir.ok("release s.snap 2 a");
    dir.run("revert s.snap 2");
    assert!(dir.ok("read s.snap 2").stdout == before);
    assert_eq!(dir.ok("list --json s.snap").json()["snapshots"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_store_is_never_replaced_by_an_output() {
    let dir = volume();
    dir.ok("initialize --size 4M other.snap data.img");
    dir.ok("create-delta data.snap 1 2 -o a.delta");
    for args in [
        "create-delta data.snap 1 2 -o other.snap",
        "create-delta --resume data.snap 1 2 -o other.snap",
        "export data.snap 1 other.snap",
        "changelist data.snap other.snap 1 2",
        "delta invert a.delta monday.img -o other.snap",
    ] {
        dir.untouched(|dir| dir.run(args).expect(5)).says("it is a snapshot store");
    }
    dir.write("x.delta.part", b"a diary");
    dir.untouched(|dir| dir.run("create-delta --resume data.snap 1 2 -o x.delta").expect(1))
        .says("no part of a delta");
}

#[test]
fn a_delta_that_was_applied_to_a_store_is_applied() {
    let dir = volume();
    dir.ok("export data.snap 1 copy.img");
    dir.ok("initialize --size 8M copy.snap copy.img");
    dir.ok("create-delta data.snap 1 2 -o x.delta");
    dir.ok("apply-delta x.delta copy.snap");
    let after = dir.read("copy.img");
    // Whoever did it may not know: the status was lost on the way.
    dir.ok("apply-delta x.delta copy.snap");
    assert!(dir.read("copy.img") == after);
    dir.ok("resize -y copy.snap -o 200000");
    dir.run("apply-delta x.delta copy.snap").expect(3).says("ddsnap resize VOL -o");
}
