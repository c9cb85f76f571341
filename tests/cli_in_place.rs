//! `upgrade --in-place`, `--commit` and `--rollback`, as a user meets them.

use crate::harness::{DDSNAP, Dir};
use crate::random::Random;
use ddsnap::format::switch::{Phase, SIZE, Switch};

const TAGS: [&str; 3] = ["3", "7", "4294967294"];
const UPGRADE: &str = "upgrade --in-place --origin old.img old.snap";

/// A store of 2008 with an origin of 40 chunks of 512 bytes, on a device with room behind it.
fn old() -> Dir {
    let dir = Dir::new();
    let seed = include_bytes!("../testdata/corpus/legacy/seed-0");
    dir.write("old.snap", &[&[0; 4096], &seed[1..]].concat());
    dir.write("old.img", &[7; 40 * 512]);
    dir.shell("truncate -s 8M old.snap");
    dir
}

fn images(dir: &Dir) -> Vec<Vec<u8>> {
    TAGS.iter().map(|tag| dir.ok(&format!("read --origin old.img old.snap {tag}")).stdout).collect()
}

/// Everything that commands tell of the old store.
fn told(dir: &Dir) -> Vec<String> {
    let commands = ["list", "status", "fsck -n", "list --json"];
    commands.iter().map(|command| dir.run(&format!("{command} old.snap")).text()).collect()
}

/// Puts the record in another phase, as a crash would have left it.
fn set_phase(dir: &Dir, phase: Phase) {
    let device = dir.read("old.snap");
    let found = Switch::decode(&device, device.len() as u64).unwrap().unwrap();
    dir.patch("old.snap", 0, |bytes| bytes[..SIZE].copy_from_slice(&Switch { phase, ..found }.encode()));
}

#[test]
fn a_store_is_upgraded_where_it_is_and_committed() {
    let dir = old();
    let was = images(&dir);
    dir.untouched(|dir| dir.ok(&format!("{UPGRADE} --dry-run")).says_out("3 snapshots").says_out("are free"));
    dir.ok(UPGRADE).says_out("found whole").says_out("upgrade --commit old.snap");
    let list = dir.ok("list old.snap");
    assert!(list.stderr.contains("not committed"), "{}", list.stderr);
    assert_eq!(dir.ok("list --json old.snap").json()["uncommitted"], true);
    assert_eq!(dir.ok("status --json old.snap").json()["uncommitted"], true);
    assert_eq!(images(&dir), was);
    dir.untouched(|dir| dir.ok("fsck -n --data old.snap").says("not committed"));
    for command in [
        "create old.snap 9",
        "delete old.snap 3",
        "priority old.snap 3 5",
        "usecount old.snap 3 1",
        "hold old.snap 3 somebody",
        "policy old.snap fail",
        "write old.snap --offset 0",
        "revert old.snap 3",
        "resize old.snap -s 4M",
        "server old.snap --socket x.sock",
    ] {
        dir.untouched(|dir| dir.run(command).expect(5).says("upgrade --commit").says("--rollback"));
    }
    for command in
        ["fsck -y old.snap", "fsck -p old.snap", "fsck --rebuild old.snap", "fsck -y --dry-run old.snap"]
    {
        dir.untouched(|dir| dir.run(command).expect(8).says("upgrade --commit"));
    }
    dir.untouched(|dir| dir.run("initialize old.snap old.img").expect(5).says("-y"));
    dir.untouched(|dir| dir.ok(UPGRADE).says_out("upgraded already"));
    dir.ok("upgrade --commit old.snap").says_out("committed");
    dir.untouched(|dir| dir.ok("upgrade --commit old.snap").says_out("nothing to commit"));
    dir.untouched(|dir| dir.run("upgrade --rollback old.snap").expect(5).says("no upgrade in place"));
    assert_eq!(dir.ok("list --json old.snap").json()["uncommitted"], false);
    dir.ok("create old.snap 9");
    dir.ok_with("write old.snap --offset 0", &[9; 40 * 512]);
    assert_eq!(images(&dir), was);
    assert_eq!(dir.ok("read old.snap 9").stdout, [7; 40 * 512]);
    dir.ok("delete --force old.snap 7");
    dir.ok("fsck -n --data old.snap");
}

#[test]
fn an_upgrade_is_taken_back() {
    let dir = old();
    let (was, device, before) = (images(&dir), dir.read("old.snap"), told(&dir));
    dir.ok(UPGRADE);
    dir.ok("upgrade --rollback old.snap").says_out("as it was");
    assert!(dir.read("old.snap")[..1 << 20] == device[..1 << 20]);
    assert_eq!(told(&dir), before);
    assert_eq!(images(&dir), was);
    dir.untouched(|dir| dir.run("upgrade --rollback old.snap").expect(5));
    dir.untouched(|dir| dir.run("upgrade --commit old.snap").expect(5).says("of 2008"));
    // What the first attempt left is no obstacle.
    dir.ok(UPGRADE);
    assert_eq!(images(&dir), was);
}

#[test]
fn what_was_interrupted_says_so_and_how_to_go_on() {
    let dir = old();
    let was = images(&dir);
    dir.ok(UPGRADE);
    for (phase, word, way) in [
        (Phase::Switching, "while it switched", "upgrade --in-place old.snap"),
        (Phase::TakingBack, "while it was taken back", "upgrade --rollback old.snap"),
        (Phase::Committing, "while it was committed", "upgrade --commit old.snap"),
    ] {
        set_phase(&dir, phase);
        for command in [
            "list old.snap",
            "status old.snap",
            "read old.snap 3",
            "read --origin old.img old.snap 3",
            "dump old.snap",
            "create old.snap 9",
            "export old.snap 3 out.img",
            "upgrade --origin old.img --size 8M old.snap new.snap",
        ] {
            dir.untouched(|dir| dir.run(command).expect(5).says(word).says(way));
        }
        // It takes the whole path of its store.
        dir.untouched(|dir| dir.run("server old.snap --socket x.sock").expect(5).says(word));
        for command in ["fsck -n old.snap", "fsck -y old.snap", "fsck --rebuild old.snap"] {
            dir.untouched(|dir| dir.run(command).expect(8).says(word).says(way));
        }
        dir.untouched(|dir| dir.run("initialize old.snap old.img").expect(5).says("a ddsnap store"));
        for other in ["--in-place", "--rollback", "--commit"] {
            let is_way = way.contains(other) || phase == Phase::Switching && other == "--rollback";
            if !is_way {
                dir.untouched(|dir| dir.run(&format!("upgrade {other} old.snap")).expect(5).says(word));
            }
        }
    }
    set_phase(&dir, Phase::Switching);
    dir.untouched(|dir| dir.ok("upgrade --in-place --dry-run old.snap").says_out("would finish"));
    dir.ok("upgrade --in-place old.snap").says_out("finished now");
    assert_eq!(images(&dir), was);
    set_phase(&dir, Phase::TakingBack);
    dir.ok("upgrade --rollback old.snap");
    assert_eq!(images(&dir), was);
    dir.ok(UPGRADE);
    set_phase(&dir, Phase::Committing);
    dir.ok("upgrade --commit old.snap");
    dir.ok("create old.snap 9");
    assert_eq!(images(&dir), was);
}

#[test]
fn too_little_room_is_told_to_the_byte() {
    let dir = old();
    let seed = include_bytes!("../testdata/corpus/legacy/seed-0");
    dir.shell(&format!("truncate -s {} old.snap", 4096 + seed.len() - 1));
    let run = dir.untouched(|dir| dir.run(UPGRADE).expect(5).says("NEWSTORE"));
    dir.untouched(|dir| dir.run(&format!("{UPGRADE} --dry-run")).expect(5).says_out("needs "));
    let number = |before: &str| -> u64 {
        let rest = &run.stderr[run.stderr.find(before).unwrap() + before.len()..];
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    let (needed, grow) = (number("needs up to "), number("larger by "));
    assert!(needed > 0 && grow >= needed, "{}", run.stderr);
    dir.shell(&format!("truncate -s +{} old.snap", grow - (1 << 20)));
    dir.untouched(|dir| dir.run(UPGRADE).expect(5));
    dir.shell("truncate -s +1M old.snap");
    dir.ok(UPGRADE);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let dir = old();
    dir.write("new.snap", &[0; 8 << 20]);
    dir.ok("initialize -y new.snap old.img");
    for (command, code) in [
        ("upgrade --in-place --origin old.img old.snap new.snap", 2),
        ("upgrade --in-place --origin old.img --size 8M old.snap", 2),
        ("upgrade --in-place -y --origin old.img old.snap", 2),
        ("upgrade --in-place old.snap", 2),
        ("upgrade --in-place --commit old.snap", 2),
        ("upgrade --commit --rollback old.snap", 2),
        ("upgrade --commit --origin old.img old.snap", 2),
        ("upgrade --rollback --dry-run old.snap", 2),
        ("upgrade --rollback --meta new.snap old.snap", 2),
        ("upgrade --commit old.snap new.snap", 2),
        ("upgrade --origin old.img old.snap", 2),
        ("upgrade --in-place --origin old.img new.snap", 2),
        ("upgrade --in-place --origin old.snap old.snap", 2),
        ("upgrade --rollback new.snap", 5),
    ] {
        dir.untouched(|dir| dir.run(command).expect(code));
    }
}

/// Neither the tree with a hole in it nor what the device holds beside it is lost by a refusal.
#[test]
fn damage_must_be_accepted_here_too() {
    let dir = old();
    let whole = dir.read("old.snap");
    let leaf = whole.chunks(512).position(|block| block.starts_with(&[0xaf, 0x1e, 0, 0, 2])).unwrap();
    dir.patch("old.snap", leaf * 512, |bytes| bytes[0] ^= 1);
    let before = told(&dir);
    dir.untouched(|dir| dir.run(UPGRADE).expect(5).says("--accept-lost"));
    dir.ok(&format!("{UPGRADE} --accept-lost")).says_out("lost: ");
    dir.run("read old.snap 7").expect(3).says("lost");
    dir.ok("upgrade --rollback old.snap");
    assert_eq!(told(&dir), before);
}

/// Killed at any moment, upgrade, rollback and commit leave a store that reads, or say how to go on.
#[test]
fn killed_at_any_moment_no_snapshot_is_lost() {
    let mut random = Random(9);
    let dir = old();
    let was = images(&dir);
    let mut upgraded = 0;
    for round in 0..24 {
        let command = match (dir.read("old.snap").starts_with(b"ddsnapSW"), round % 2) {
            (false, _) => UPGRADE,
            (true, 0) => "upgrade --rollback old.snap",
            (true, _) => "upgrade --in-place old.snap",
        };
        // A bitmap and a checkpoint take a few milliseconds, the copy as long as the rate says.
        let rate = if command == UPGRADE && round % 3 == 0 { " --rate-limit 100k" } else { "" };
        dir.shell(&format!("timeout -s KILL 0.{:03} {DDSNAP} {command}{rate}", random.below(120)));
        let list = dir.run("list old.snap");
        match list.code {
            Some(0) => upgraded += usize::from(list.stderr.contains("not committed")),
            _ if list.stderr.contains("taken back") => drop(dir.ok("upgrade --rollback old.snap")),
            _ => drop(dir.run("upgrade --in-place old.snap").expect(0)),
        }
        assert_eq!(images(&dir), was, "round {round}");
    }
    assert!(upgraded > 0);
    if !dir.read("old.snap").starts_with(b"ddsnapSW") {
        dir.ok(UPGRADE);
    }
    for delay in [2, 4, 6, 8, 10, 15, 20] {
        dir.shell(&format!("timeout -s KILL 0.{delay:03} {DDSNAP} upgrade --commit old.snap"));
    }
    dir.ok("upgrade --commit old.snap");
    assert_eq!(images(&dir), was);
    dir.ok("create old.snap 9");
    dir.ok("fsck -n --data old.snap");
}

/// The device with the metadata is read and never written, and goes with the old store only.
#[test]
fn separate_metadata_stay_as_they_are() {
    let dir = Dir::new();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/legacy/separate-chunk0");
    for name in ["store.img", "meta.img", "origin.img"] {
        let packed = std::fs::File::open(root.join(format!("{name}.zst"))).unwrap();
        dir.write(name, &zstd::decode_all(packed).unwrap());
    }
    dir.shell("truncate -s +16M store.img");
    let (meta, device) = (dir.read("meta.img"), dir.read("store.img"));
    assert!(device[..512].iter().any(|byte| *byte != 0), "the first chunk holds data");
    let tags = dir.ok("status --list store.img --meta meta.img").text();
    let read = |options: &str| -> Vec<Vec<u8>> {
        tags.split_whitespace()
            .map(|tag| dir.run(&format!("read store.img {tag} {options}")).stdout)
            .collect()
    };
    let was = read("--meta meta.img --origin origin.img");
    assert!(was.iter().any(|image| !image.is_empty()));
    dir.ok("upgrade --in-place --origin origin.img store.img --meta meta.img");
    assert_eq!(read(""), was);
    dir.untouched(|dir| dir.run("list store.img --meta meta.img").expect(3).says("leave out --meta"));
    dir.ok("upgrade --rollback store.img");
    assert!(dir.read("store.img")[..1 << 20] == device[..1 << 20]);
    assert_eq!(read("--meta meta.img --origin origin.img"), was);
    dir.ok("upgrade --in-place --origin origin.img store.img --meta meta.img");
    dir.ok("upgrade --commit store.img");
    assert_eq!(read(""), was);
    dir.untouched(|dir| dir.run("list store.img --meta meta.img").expect(3).says("leave out --meta"));
    assert!(dir.read("meta.img") == meta);
}
