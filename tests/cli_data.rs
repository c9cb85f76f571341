//! Bytes in and bytes out: read, write, export, and everything about deltas.

use crate::harness::{Dir, ORIGIN_BYTES, noise, volume};
use std::os::unix::fs::MetadataExt;

#[test]
fn read_gives_what_the_point_held() {
    let dir = volume();
    assert_eq!(dir.ok("read data.snap 1").stdout, dir.read("monday.img"));
    assert_eq!(dir.ok("read data.snap 2").stdout, dir.read("second.img"));
    assert_eq!(dir.ok("read data.snap origin").stdout, dir.read("data.img"));
    let part = dir.ok("read data.snap 1 --offset 99999 --length 3").stdout;
    assert_eq!(part, dir.read("monday.img")[99_999..100_002]);
    assert_eq!(dir.ok("read data.snap 1 --offset 1M").stdout, b"");
    assert_eq!(dir.ok("read data.snap 1 --length 0").stdout, b"");
    dir.run("read data.snap 1 --offset 1M --length 1").expect(2);
    dir.run("read data.snap 1 --offset 1 --length 1M").expect(2);
    dir.run("read data.snap 1 --offset 17179869183G --length 17179869183G").expect(2);
}

#[test]
fn write_keeps_the_snapshots() {
    let dir = volume();
    let new = dir.read("new.img");
    dir.ok_with("write data.snap", &new);
    assert_eq!(dir.read("data.img"), new);
    assert_eq!(dir.ok("read data.snap 1").stdout, dir.read("monday.img"));
    assert_eq!(dir.ok("read data.snap 2").stdout, dir.read("second.img"));
}

#[test]
fn write_onto_a_snapshot_changes_only_that() {
    let dir = volume();
    let origin = dir.read("data.img");
    dir.ok_with("write data.snap 1 --offset 77", b"hello");
    let mut expected = dir.read("monday.img");
    expected[77..82].copy_from_slice(b"hello");
    assert_eq!(dir.ok("read data.snap 1").stdout, expected);
    assert_eq!(dir.ok("read data.snap 2").stdout, dir.read("second.img"));
    assert_eq!(dir.read("data.img"), origin);
}

#[test]
fn write_stops_at_the_end() {
    let dir = volume();
    let before = dir.hashes();
    // A file's length is known beforehand.
    let run = dir.shell("ddsnap write data.snap --offset 1 < new.img").expect(1);
    assert!(run.stderr.contains("the input is longer than the 1048575 bytes"), "{}", run.describe());
    assert_eq!(dir.hashes(), before);
    // A pipe's is not.
    let run = dir.shell("cat new.img | ddsnap write data.snap --offset 1048570").expect(1);
    assert!(run.stderr.contains("hint: 6 bytes from byte 1048570 on were written"), "{}", run.describe());
    assert_eq!(dir.read("data.img")[1_048_570..], dir.read("new.img")[..6]);
    assert_eq!(dir.ok("read data.snap 2").stdout, dir.read("second.img"));
    dir.untouched(|dir| dir.run_with("write data.snap --offset 2M", b"x")).expect(2);
    dir.untouched(|dir| dir.run_with("write data.snap", b"")).expect(0);
}

#[test]
fn a_dry_write_tells_what_it_would_overwrite() {
    let dir = volume();
    let run = dir.untouched(|dir| dir.ok_with("write --dry-run data.snap --offset 4k", &[1; 5000]));
    assert_eq!(run.text(), "would overwrite bytes 4096 to 9096 of the origin: standard input\n");
    dir.untouched(|dir| dir.run_with("write --dry-run data.snap --offset 1048575", &[1; 2])).expect(1);
}

#[test]
fn export_makes_a_sparse_image_or_nothing() {
    let dir = volume();
    dir.ok("export data.snap 1 out.img");
    assert_eq!(dir.read("out.img"), dir.read("monday.img"));
    let meta = std::fs::metadata(dir.path("out.img")).unwrap();
    assert!(meta.blocks() * 512 <= ORIGIN_BYTES as u64 * 6 / 10, "{} blocks", meta.blocks());
    assert_eq!(dir.ok("export data.snap 2 -").stdout, dir.read("second.img"));
    dir.ok("export data.snap origin out.img");
    assert_eq!(dir.read("out.img"), dir.read("data.img"));
    // A zero tail still counts.
    dir.ok_with("write data.snap --offset 1000k", &[0; 24_576]);
    dir.ok("export data.snap origin tail.img");
    assert_eq!(dir.read("tail.img"), dir.read("data.img"));
    assert_eq!(std::fs::metadata(dir.path("tail.img")).unwrap().len(), ORIGIN_BYTES as u64);
}

#[test]
fn results_never_land_on_their_own_input() {
    let dir = volume();
    for args in [
        "export data.snap 1 data.img",
        "export data.snap 1 data.snap",
        "create-delta data.snap 1 2 -o data.img",
        "create-delta data.snap 1 2 -o data.snap",
        "changelist data.snap data.img 1 2",
        "changelist data.snap data.snap 1 2",
        "create-delta --compare monday.img second.img -o second.img",
    ] {
        dir.untouched(|dir| dir.run(args)).expect(2).says("would overwrite its own input");
    }
}

#[test]
fn an_output_that_fails_leaves_no_file() {
    let dir = volume();
    let names = dir.names();
    let run = dir.shell("ulimit -f 16; trap '' XFSZ; ddsnap export data.snap 1 out.img").expect(1);
    assert!(run.stderr.contains("File too large"), "{}", run.describe());
    assert_eq!(dir.names(), names);
    let run = dir.shell("ulimit -f 16; trap '' XFSZ; ddsnap create-delta data.snap 2 -o out.delta").expect(1);
    assert!(run.stderr.contains("File too large"), "{}", run.describe());
    assert_eq!(dir.names(), names);
    dir.untouched(|dir| dir.shell("ddsnap read data.snap 1 > /dev/full")).expect(1).says("No space left");
    dir.untouched(|dir| dir.shell("ddsnap list data.snap > /dev/full")).expect(1).says("No space left");
    dir.untouched(|dir| dir.shell("ddsnap create-delta data.snap 2 > /dev/full"))
        .expect(1)
        .says("No space left");
}

#[test]
fn a_reader_who_leaves_ends_a_listing_but_breaks_a_stream() {
    let dir = volume();
    let run = dir.shell("ddsnap list --json data.snap | head -c 1").expect(0);
    assert_eq!(run.stderr, "");
    // The reader is gone before the first byte.
    let run = dir.shell("{ sleep 0.2; ddsnap list data.snap; echo \"exit $?\" >&2; } | true");
    assert_eq!(run.stderr, "exit 0\n");
    for command in ["read data.snap 1", "create-delta data.snap 2", "export data.snap 1 -"] {
        let line = format!("{{ sleep 0.2; ddsnap {command}; echo \"exit $?\" >&2; }} | true");
        let run = dir.untouched(|dir| dir.shell(&line));
        assert!(run.stderr.contains("Broken pipe") && run.stderr.ends_with("exit 1\n"), "{}", run.describe());
    }
}

#[test]
fn the_origin_may_have_moved() {
    let dir = volume();
    std::fs::rename(dir.path("data.img"), dir.path("moved.img")).unwrap();
    dir.ok("list data.snap");
    let run = dir.run("read data.snap 2").expect(1);
    assert!(run.stderr.contains("--origin PATH names it elsewhere"), "{}", run.describe());
    assert_eq!(dir.ok("read --origin moved.img data.snap 2").stdout, dir.read("second.img"));
    dir.ok("create data.snap 3 --origin moved.img");
    dir.ok_with("write data.snap --origin moved.img", b"new");
    assert_eq!(dir.read("moved.img")[..3], *b"new");
}

#[test]
fn a_rate_limit_slows_down() {
    let dir = volume();
    let started = std::time::Instant::now();
    dir.ok("read data.snap 1 --rate-limit 1M");
    assert!(started.elapsed().as_millis() >= 900, "{:?}", started.elapsed());
}

#[test]
fn progress_without_a_terminal_is_lines() {
    let dir = volume();
    let run = dir.ok("read data.snap 1 --rate-limit 500k --progress");
    let lines: Vec<&str> = run.stderr.lines().filter(|line| line.starts_with("progress: reading ")).collect();
    assert!(lines.len() >= 3, "{}", run.describe());
    assert!(
        lines.last().unwrap().starts_with("progress: reading 1048576/1048576 bytes, 100%"),
        "{}",
        run.describe()
    );
    assert_eq!(dir.ok("read data.snap 1").stderr, "");
}

#[test]
fn odd_sizes_survive() {
    let dir = Dir::new();
    let image = noise(7, 123_457);
    dir.write("data.img", &image);
    dir.ok("initialize --size 32M data.snap data.img");
    dir.ok("create data.snap 0");
    dir.ok_with("write data.snap --offset 123456", b"z");
    assert_eq!(dir.ok("read data.snap 0").stdout, image);
    assert_eq!(dir.read("data.img").len(), 123_457);
    assert_eq!(dir.read("data.img")[123_456], b'z');
    dir.ok("export data.snap 0 out.img");
    assert_eq!(dir.read("out.img"), image);
}
