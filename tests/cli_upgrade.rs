//! `upgrade`, as a user meets it.

use crate::harness::{DDSNAP, Dir};
use crate::random::Random;
use std::path::Path;

/// A store of 2008 with an origin of 40 chunks of 512 bytes, and one that never was.
fn old() -> Dir {
    let dir = Dir::new();
    // Its metadata device from the superblock on, after a byte that says how it is opened.
    let seed = include_bytes!("../testdata/corpus/legacy/seed-0");
    dir.write("old.snap", &[&[0; 4096], &seed[1..]].concat());
    dir.write("old.img", &[7; 40 * 512]);
    dir
}

const UPGRADE: &str = "upgrade --origin old.img old.snap new.snap";

#[test]
fn a_store_of_2008_becomes_one_of_today() {
    let dir = old();
    let hashes = dir.hashes();
    dir.ok(&format!("{UPGRADE} --size 8M")).says_out("3 snapshots").says_out("found whole");
    for tag in ["3", "7", "4294967294"] {
        let was = dir.ok(&format!("read --origin old.img old.snap {tag}")).stdout;
        assert!(was.len() == 40 * 512 && dir.ok(&format!("read new.snap {tag}")).stdout == was);
    }
    dir.ok("list new.snap").says_out("4294967294");
    dir.ok("list new.snap").says_out("upgraded from a store of release 0.10");
    // It is a store as any other.
    dir.ok("create new.snap 5");
    dir.ok_with("write new.snap --offset 100", b"something");
    assert_eq!(dir.ok("read new.snap 5").stdout, [7; 40 * 512]);
    dir.ok("fsck -n --data new.snap");
    let after = dir.hashes();
    assert_eq!(after["old.snap"], hashes["old.snap"]);
}

#[test]
fn a_dry_run_tells_and_touches_nothing() {
    let dir = old();
    dir.write("new.snap", &[0; 100_000]);
    dir.untouched(|dir| {
        // The status is that of the command itself.
        let run = dir.run(&format!("{UPGRADE} --dry-run")).expect(2).says("needs up to");
        run.says_out("3 snapshots").says_out("needs a device or file of up to")
    });
    dir.untouched(|dir| {
        dir.ok("upgrade --dry-run --size 8M --origin old.img old.snap x").says_out("would create")
    });
}

#[test]
fn nothing_of_value_is_overwritten_unasked() {
    let dir = old();
    dir.write("other.img", &[1; 1 << 20]);
    dir.ok("initialize --size 8M new.snap other.img");
    dir.untouched(|dir| dir.run(UPGRADE).expect(5).says("a ddsnap store").says("-y insists"));
    dir.untouched(|dir| dir.run(&format!("{UPGRADE} --size 8M")).expect(1).says("without --size"));
    dir.untouched(|dir| dir.run("upgrade --origin old.img old.snap old.img -y").expect(2));
    dir.untouched(|dir| dir.run("upgrade --origin old.img old.snap old.snap -y").expect(2));
    dir.untouched(|dir| {
        dir.run("upgrade --origin old.img new.snap x.snap --size 8M").expect(2).says("of 2008")
    });
    dir.untouched(|dir| dir.run("upgrade old.snap new.snap -y").expect(2).says("--origin"));
    dir.write("small.snap", &[0; 1 << 20]);
    dir.untouched(|dir| {
        dir.run("upgrade --origin old.img old.snap small.snap").expect(2).says("needs up to")
    });
    dir.ok(&format!("{UPGRADE} -y"));
    dir.ok("read new.snap 3");
}

/// Every command that changes a store, without the store: the options go before `OLD`. Whether it has a dry run.
const CHANGING: [(&str, bool); 15] = [
    ("create OLD 9", false),
    ("delete OLD 3", true),
    ("write OLD --origin old.img", true),
    ("write OLD 3 --origin old.img", true),
    ("revert OLD 3 --origin old.img", true),
    ("revert --rollback OLD --origin old.img", true),
    ("resize -s 16M OLD", true),
    ("resize -o 1M OLD --origin old.img", true),
    ("apply-delta delta OLD --origin old.img", true),
    ("apply-delta --rollback OLD --origin old.img", true),
    ("priority OLD 3 5", false),
    ("usecount OLD 3 1", false),
    ("hold OLD 3 usb", false),
    ("release OLD 3 usb", false),
    ("policy OLD squash", false),
];

#[test]
fn commands_that_change_a_store_name_the_way() {
    let dir = old();
    dir.ok("create-delta --origin old.img old.snap 3 7 -o delta");
    let separate = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/legacy/separate-chunk0");
    for name in ["store", "meta"] {
        let packed = std::fs::File::open(separate.join(format!("{name}.img.zst"))).unwrap();
        dir.write(&format!("apart.{name}"), &zstd::decode_all(packed).unwrap());
    }
    let tag = dir.ok("list --json apart.store --meta apart.meta").json()["snapshots"][0]["tag"].to_string();
    for (line, has_dry_run) in CHANGING {
        for (store, snapshot) in [("old.snap", "3"), ("apart.store --meta apart.meta", tag.as_str())] {
            let line = line.replace("OLD 3", &format!("OLD {snapshot}")).replace("OLD", store);
            let dry = has_dry_run.then(|| format!("{line} --dry-run"));
            for line in [Some(line), dry].into_iter().flatten() {
                let run = dir.untouched(|dir| dir.run(&line).expect(5).says("'ddsnap upgrade'"));
                assert!(run.stderr.contains("of 2008"), "{}", run.stderr);
                assert!(!run.stderr.contains("--rebuild") && run.stdout.is_empty(), "{}", run.text());
            }
        }
    }
    // Nor is it overwritten by what another one was.
    dir.write("new.img", &[7; 40 * 512]);
    dir.untouched(|dir| dir.run("initialize old.snap new.img").expect(5).says("'ddsnap upgrade'"));
    dir.ok("initialize --size 8M new.snap new.img");
    dir.shell("ddsnap dump --format yaml new.snap > new.dump").expect(0);
    for line in ["restore new.dump old.snap", "restore --dry-run new.dump old.snap"] {
        dir.untouched(|dir| dir.run(line).expect(5).says("'ddsnap upgrade'"));
    }
    dir.untouched(|dir| {
        dir.run("server --origin old.img --socket s old.snap").expect(5).says("'ddsnap upgrade'")
    });
    dir.untouched(|dir| {
        let line = "create-delta --hold usb --origin old.img old.snap 3 7 -o d";
        dir.run(line).expect(5).says("'ddsnap upgrade'")
    });
    // What is only read is read, wherever the options stand.
    dir.ok("create-delta old.snap --origin old.img 3 --layout 0.10 7 -o again");
    assert!(dir.read("again") == dir.read("delta"));
    dir.untouched(|dir| dir.ok("policy apart.store --meta apart.meta").says_out("squash"));
    // What only a store of 2008 has is none of one of today.
    dir.untouched(|dir| dir.run("create new.snap 1 --meta apart.meta").expect(3).says("leave out --meta"));
    dir.untouched(|dir| dir.run("create new.snap 1 --layout 0.10").expect(2).says("--layout"));
}

/// A tree with a hole in it is refused, and carried over as what it is.
#[test]
fn damage_is_told_and_must_be_accepted() {
    let dir = old();
    let whole = dir.read("old.snap");
    let leaf = whole.chunks(512).position(|block| block.starts_with(&[0xaf, 0x1e, 0, 0, 2])).unwrap();
    dir.patch("old.snap", leaf * 512, |bytes| bytes[0] ^= 1);
    let run = dir.untouched(|dir| dir.run(&format!("{UPGRADE} --size 8M")).expect(5).says("--accept-lost"));
    assert!(run.text().contains("lost: "), "{}", run.text());
    dir.ok(&format!("{UPGRADE} --size 8M --accept-lost")).says_out("lost: ");
    dir.run("read new.snap 7").expect(3).says("lost");
    dir.run("fsck -n --data new.snap").says_out("chunk-lost");
}

/// Killed at any moment, it leaves no store, and can be run again without being asked.
#[test]
fn a_killed_upgrade_begins_again() {
    let mut random = Random(5);
    let dir = old();
    for _ in 0..12 {
        dir.write("new.snap", &[]);
        dir.shell("truncate -s 8M new.snap");
        let delay = random.below(60);
        dir.shell(&format!("timeout -s KILL 0.{delay:03} {DDSNAP} {UPGRADE} --rate-limit 20k"));
        let before = dir.run("list new.snap");
        assert!(matches!(before.code, Some(0 | 3)), "{}", before.stderr);
        if before.code == Some(3) {
            let begun = dir.read("new.snap")[65536..65544] == *b"ddsnapUP";
            assert_eq!(before.stderr.contains("was not finished"), begun, "{}", before.stderr);
            dir.ok(UPGRADE);
        }
        dir.ok("read new.snap 3");
    }
}
