//! Stores and their snapshots: every command that works on them, and the words of 2008.

use crate::harness::{DDSNAP, Dir, STORE_BYTES, golden, has_program, skip, volume};

/// Runs several commands and compares what all of them said with one golden file.
fn session(dir: &Dir, name: &str, commands: &[(&str, i32)]) {
    let mut text = String::new();
    for (args, code) in commands {
        let run = dir.run(args).expect(*code);
        text.push_str(&dir.mask(&run.transcript()));
        text.push('\n');
    }
    golden(name, &text);
}

#[test]
fn the_words_of_2008() {
    let dir = volume();
    dir.ok("create-snap data.snap 9");
    session(
        &dir,
        "words-of-2008.txt",
        &[
            ("status -l data.snap", 0),
            ("status --list data.snap", 0),
            ("status --last data.snap", 0),
            ("status -s data.snap", 0),
            ("status -s data.snap 9", 0),
            ("status data.snap 9 --size", 0),
            ("status -s data.snap 77", 0),
            ("status -S data.snap 9", 0),
            ("status -S data.snap 77", 1),
            ("status -S data.snap", 9),
            ("status -S nowhere 9", 9),
            ("status -l -s data.snap", 2),
            ("priority data.snap 9 -5", 0),
            ("priority data.snap 9 127", 0),
            ("priority data.snap 77 1", 1),
            ("usecount data.snap 9", 0),
            ("usecount data.snap 9 3", 0),
            ("usecount data.snap 9 -1", 0),
            ("usecount data.snap 9 -9", 2),
            ("usecount data.snap 77 1", 1),
            ("create data.snap 9", 1),
            ("create data.snap 4294967294", 0),
            ("delete data.snap 9", 4),
            ("delete data.snap 77", 1),
            ("usecount data.snap 9 -2", 0),
            ("delete data.snap 9", 0),
            ("list --legacy data.snap", 0),
            ("status data.snap", 0),
            ("status data.snap 2", 0),
            ("status data.snap 77", 0),
            ("-v status data.snap", 0),
        ],
    );
}

#[test]
fn json_documents() {
    let dir = volume();
    dir.ok("priority data.snap 1 -7");
    dir.ok("usecount data.snap 2 3");
    for (name, args) in [
        ("list.json", "list --json data.snap"),
        ("list-last.json", "list --json --last data.snap"),
        ("status.json", "status --json data.snap"),
        ("status-one.json", "status --json data.snap monday"),
    ] {
        let run = dir.untouched(|dir| dir.ok(args));
        assert_eq!(run.text().lines().count(), 1, "{}", run.describe());
        golden(name, &dir.mask(&run.pretty()));
    }
}

#[test]
fn the_table_of_list() {
    let dir = volume();
    dir.ok("usecount data.snap 2 1");
    session(&dir, "list.txt", &[("list data.snap", 0), ("list --last data.snap", 0)]);
}

#[test]
fn a_new_store_is_empty_and_remembers_its_origin() {
    let dir = Dir::new();
    dir.write("data.img", &[7; 100_000]);
    let run = dir.ok(&format!("initialize --size {STORE_BYTES} -c 64k -b 4k data.snap data.img"));
    assert!(run.stdout.is_empty() && run.stderr.is_empty(), "{}", run.describe());
    assert_eq!(dir.read("data.img"), [7; 100_000]);
    assert_eq!(std::fs::metadata(dir.path("data.snap")).unwrap().len(), STORE_BYTES);
    let status = dir.ok("status --json data.snap").json();
    assert_eq!(status["store"]["chunk_size"], 65536);
    assert_eq!(status["store"]["block_size"], 4096);
    assert_eq!(status["origin"]["size_bytes"], 100_000);
    assert_eq!(status["origin"]["path"], dir.path("data.img").canonicalize().unwrap().to_str().unwrap());
    assert_eq!(status["snapshots"], serde_json::json!([]));
    assert_eq!(dir.ok("status -l data.snap").text(), "\n");
}

#[test]
fn a_store_without_size_is_the_existing_file() {
    let dir = Dir::new();
    dir.write("data.img", &[7; 100_000]);
    std::fs::File::create(dir.path("data.snap")).unwrap().set_len(STORE_BYTES).unwrap();
    let run = dir.ok("initialize -j 4k data.snap data.img");
    assert!(run.stderr.contains("warning: -j is ignored"), "{}", run.describe());
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.describe());
    dir.ok("list data.snap");
    let quiet = dir.ok("-q initialize -y -j 4k data.snap data.img");
    assert_eq!(quiet.stderr, "");
}

#[test]
fn initialize_overwrites_only_when_told() {
    let dir = volume();
    let run = dir.untouched(|dir| dir.run("initialize data.snap data.img")).expect(5);
    assert!(run.stderr.contains("hint: -y insists"), "{}", run.describe());
    dir.untouched(|dir| dir.run("initialize --dry-run data.snap data.img")).expect(0);
    dir.untouched(|dir| dir.run("initialize --dry-run -y data.snap data.img")).expect(0);
    dir.ok("initialize -y data.snap data.img");
    assert_eq!(dir.ok("status -l data.snap").text(), "\n");
}

#[test]
fn snapshots_are_named_in_every_way() {
    let dir = volume();
    let tag_of =
        |name: &str| dir.ok(&format!("status --json data.snap {name}")).json()["snapshots"][0]["tag"].clone();
    assert_eq!(tag_of("1"), 1);
    assert_eq!(tag_of("monday"), 1);
    assert_eq!(tag_of("@1"), 1);
    assert_eq!(tag_of("@0"), 2);
    dir.run("read data.snap @2").expect(1);
    dir.run("create data.snap 3 --name monday").expect(1);
    dir.ok("create data.snap 3 --name Dienstag-früh");
    assert_eq!(tag_of("Dienstag-früh"), 3);
    for origin in ["origin", "-1", "4294967295"] {
        assert_eq!(dir.ok(&format!("read data.snap {origin}")).stdout, dir.read("data.img"), "{origin}");
        dir.untouched(|dir| dir.run(&format!("delete data.snap {origin}"))).expect(2);
    }
}

#[test]
fn delete_takes_several_or_none() {
    let dir = volume();
    dir.ok("create data.snap 3");
    dir.untouched(|dir| dir.run("delete data.snap 1 77")).expect(1);
    let run = dir.untouched(|dir| dir.ok("delete --dry-run data.snap 1 monday @0"));
    assert_eq!(
        run.text(),
        "would delete snapshot 1 (monday): named on the command line\n\
         would delete snapshot 3: named on the command line\n"
    );
    dir.ok("usecount data.snap 3 2");
    let run = dir.untouched(|dir| dir.run("delete data.snap 1 3")).expect(4);
    assert!(run.stderr.contains("its use count is 2"), "{}", run.describe());
    dir.ok("delete data.snap 1 1 3 --force");
    assert_eq!(dir.ok("status -l data.snap").text(), "2 \n");
    assert_eq!(dir.ok("read data.snap 2").stdout, dir.read("second.img"));
}

#[test]
fn create_prints_nothing_unless_asked_to_explain() {
    let dir = volume();
    let run = dir.ok("create data.snap 5");
    assert!(run.stdout.is_empty() && run.stderr.is_empty(), "{}", run.describe());
    let run = dir.ok("create -v data.snap 6 --name six");
    assert!(run.stdout.is_empty(), "{}", run.describe());
    assert!(run.stderr.contains("created snapshot 6 (six) of 1048576 bytes"), "{}", run.describe());
}

#[test]
fn reading_commands_change_nothing() {
    let dir = volume();
    dir.ok("create-delta data.snap 1 2 -o 1-2.delta");
    dir.untouched(|dir| {
        for args in [
            "list data.snap",
            "list --json data.snap",
            "list --legacy data.snap",
            "status data.snap",
            "status --json data.snap",
            "status -S data.snap 1",
            "usecount data.snap 1",
            "map data.snap",
            "map --json data.snap 1 2",
            "report data.snap -o -",
            "read data.snap 1",
            "read data.snap origin",
            "changelist data.snap - 1 2",
            "create-delta data.snap 1 2",
            "create-delta data.snap 2",
            "fsck -n data.snap",
            "delta info 1-2.delta",
            "delta verify 1-2.delta copy.img",
            "delete --dry-run data.snap 1",
            "initialize --dry-run data.snap data.img",
        ] {
            dir.ok(args);
        }
        dir.ok_with("write --dry-run data.snap", &[1; 70_000]);
        dir.ok_with("write --dry-run data.snap 1", &[1; 70_000])
    });
}

#[test]
fn on_a_terminal_initialize_asks() {
    if !has_program("script") {
        return skip("no 'script' to make a terminal");
    }
    let dir = volume();
    let ask = |answer: &str| {
        let command = format!("{DDSNAP} initialize data.snap data.img");
        dir.shell(&format!("{{ sleep 0.3; echo {answer}; sleep 0.3; }} | script -qec '{command}' /dev/null"))
    };
    let before = dir.hashes();
    let run = ask("n").expect(5);
    assert!(
        run.text().contains("data.snap holds a ddsnap store, which would be lost. Go on? [y/N]"),
        "{}",
        run.describe()
    );
    assert_eq!(dir.hashes(), before);
    ask("y").expect(0);
    assert_eq!(dir.ok("status -l data.snap").text(), "\n");
}

#[test]
fn a_mounted_origin_is_left_alone() {
    let dir = Dir::new();
    dir.write("data.img", &vec![0; 16 << 20]);
    let made = dir.shell("mkfs.ext4 -q data.img && mkdir mnt && mount -o loop data.img mnt");
    if made.code != Some(0) {
        return skip("no leave to mount a file system");
    }
    let initialized = dir.run("initialize --size 32M data.snap data.img");
    let (create, write) = (dir.run("create data.snap 1"), dir.run_with("write data.snap", b"x"));
    let apply =
        dir.shell("ddsnap create-delta --compare data.snap data.img | ddsnap apply-delta --force - data.img");
    dir.shell("umount mnt").expect(0);
    initialized.expect(0);
    for run in [create, write, apply] {
        run.expect(4).says("hint: unmount it first");
    }
    // The loop device may be let go of a moment after the mount.
    dir.shell("for i in 1 2 3 4 5 6 7 8 9; do losetup -j data.img | grep -q . || break; sleep 0.2; done");
    dir.ok("create data.snap 1");
}
