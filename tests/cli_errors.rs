//! Every bad input a user can bring: the exact text, the status, and that nothing was changed.

use crate::harness::{Dir, golden, has_program, skip, volume};
use std::os::fd::AsRawFd;

/// One bad input: what is done to a good volume, the command, and the promised status.
struct Case {
    name: &'static str,
    damage: fn(&Dir),
    args: &'static str,
    code: i32,
}

const CASES: &[Case] = &[
    Case { name: "missing-store", damage: |_| {}, args: "list nowhere", code: 1 },
    Case { name: "store-is-folder", damage: |_| {}, args: "list .", code: 2 },
    Case { name: "empty-store", damage: |dir| dir.write("data.snap", b""), args: "list data.snap", code: 3 },
    Case {
        name: "not-a-store",
        damage: |dir| dir.copy("new.img", "data.snap"),
        args: "list data.snap",
        code: 3,
    },
    Case { name: "origin-as-store", damage: |_| {}, args: "create data.img 5", code: 3 },
    Case {
        name: "store-of-2008",
        damage: |dir| dir.patch("data.snap", 4096, |b| b[..8].copy_from_slice(b"test\xdd\x07\x06\x04")),
        args: "list data.snap",
        code: 3,
    },
    Case { name: "newer-version", damage: |dir| make_newer(dir, 8, 2), args: "list data.snap", code: 3 },
    Case {
        name: "newer-version-write",
        damage: |dir| make_newer(dir, 8, 2),
        args: "create data.snap 5",
        code: 3,
    },
    Case { name: "unknown-feature", damage: |dir| make_newer(dir, 12, 4), args: "list data.snap", code: 3 },
    Case {
        name: "both-superblocks",
        damage: |dir| wipe_superblocks(dir, true, true),
        args: "list data.snap",
        code: 3,
    },
    Case {
        name: "both-superblocks-write",
        damage: |dir| wipe_superblocks(dir, true, true),
        args: "create data.snap 5",
        code: 3,
    },
    Case {
        name: "truncated-store",
        damage: |dir| truncate(dir, "data.snap", 1 << 20),
        args: "list data.snap",
        code: 3,
    },
    Case {
        name: "missing-origin-read",
        damage: |dir| remove(dir, "data.img"),
        args: "read data.snap 1",
        code: 1,
    },
    Case {
        name: "missing-origin-create",
        damage: |dir| remove(dir, "data.img"),
        args: "create data.snap 5",
        code: 1,
    },
    Case {
        name: "missing-origin-initialize",
        damage: |_| {},
        args: "initialize -y data.snap nowhere",
        code: 1,
    },
    Case { name: "missing-store-initialize", damage: |_| {}, args: "initialize nowhere data.img", code: 1 },
    Case {
        name: "origin-too-small",
        damage: |dir| truncate(dir, "data.img", 1000),
        args: "read data.snap 1",
        code: 3,
    },
    Case {
        name: "origin-too-small-write",
        damage: |dir| truncate(dir, "data.img", 1000),
        args: "write data.snap",
        code: 3,
    },
    Case {
        name: "origin-empty",
        damage: |dir| dir.write("empty", b""),
        args: "initialize -y data.snap empty",
        code: 2,
    },
    Case { name: "origin-is-store", damage: |_| {}, args: "initialize -y data.snap data.snap", code: 2 },
    Case {
        name: "origin-is-linked-store",
        damage: link_store,
        args: "initialize -y data.snap link",
        code: 2,
    },
    Case { name: "meta-operand", damage: |_| {}, args: "initialize -y data.snap data.img meta", code: 2 },
    Case { name: "chunk-size", damage: |_| {}, args: "initialize -y -c 3k data.snap data.img", code: 2 },
    Case { name: "chunk-size-huge", damage: |_| {}, args: "initialize -y -c 8G data.snap data.img", code: 2 },
    Case { name: "block-size", damage: |_| {}, args: "initialize -y -b 512 data.snap data.img", code: 2 },
    Case {
        name: "store-too-small",
        damage: |dir| dir.write("tiny", &[0; 8192]),
        args: "initialize tiny data.img",
        code: 2,
    },
    Case { name: "size-exists", damage: |_| {}, args: "initialize --size 64M data.snap data.img", code: 1 },
    Case { name: "overwrite-store", damage: |_| {}, args: "initialize data.snap data.img", code: 5 },
    Case { name: "overwrite-file-system", damage: make_ext4, args: "initialize fs.img data.img", code: 5 },
    Case { name: "no-such-snapshot", damage: |_| {}, args: "read data.snap 77", code: 1 },
    Case { name: "no-such-name", damage: |_| {}, args: "delete data.snap tuesday", code: 1 },
    Case { name: "no-such-count", damage: |_| {}, args: "priority data.snap @9 0", code: 1 },
    Case { name: "tag-taken", damage: |_| {}, args: "create data.snap 1", code: 1 },
    Case { name: "name-taken", damage: |_| {}, args: "create data.snap 5 --name monday", code: 1 },
    Case { name: "socket", damage: make_socket, args: "list socket", code: 1 },
    Case { name: "export-folder-missing", damage: |_| {}, args: "export data.snap 1 no/where.img", code: 1 },
    Case {
        name: "export-onto-folder",
        damage: |dir| std::fs::create_dir(dir.path("sub")).unwrap(),
        args: "export data.snap 1 sub",
        code: 1,
    },
];

#[test]
fn bad_input_is_refused_with_a_clear_word_and_touches_nothing() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut failures = String::new();
    for case in CASES {
        let dir = volume();
        (case.damage)(&dir);
        let run = dir.untouched(|dir| dir.run(case.args));
        if run.code != Some(case.code) {
            failures += &format!("{}: expected exit status {}{}", case.name, case.code, run.describe());
            continue;
        }
        let transcript = dir.mask(&run.transcript());
        if update {
            golden(&format!("errors/{}.txt", case.name), &transcript);
        } else if let Err(panic) =
            std::panic::catch_unwind(|| golden(&format!("errors/{}.txt", case.name), &transcript))
        {
            failures += panic.downcast_ref::<String>().map_or("?", String::as_str);
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn every_golden_error_belongs_to_a_case() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/golden/cli/errors");
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let known = CASES.iter().any(|case| format!("{}.txt", case.name) == name)
            || crate::cli_import::CASES.iter().any(|case| format!("import-{}.txt", case.0) == name);
        assert!(known || name.starts_with("delta-"), "{name} is left over");
    }
}

fn wipe_superblocks(dir: &Dir, first: bool, second: bool) {
    for (offset, wipe) in ddsnap::format::superblock::OFFSETS.into_iter().zip([first, second]) {
        if wipe {
            dir.patch("data.snap", usize::try_from(offset).unwrap(), |b| b[..4096].fill(0xff));
        }
    }
}

/// Sets a field of both superblock copies and makes their checksums hold again: what a newer program writes.
fn make_newer(dir: &Dir, field: usize, value: u8) {
    for offset in ddsnap::format::superblock::OFFSETS {
        dir.patch("data.snap", usize::try_from(offset).unwrap(), |bytes| {
            bytes[field] = value;
            bytes[20..24].fill(0);
            let crc = crc32fast::hash(&bytes[..4096]);
            bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        });
    }
}

#[test]
fn one_superblock_copy_is_enough() {
    for (first, second) in [(true, false), (false, true)] {
        let dir = volume();
        wipe_superblocks(&dir, first, second);
        let run = dir.untouched(|dir| dir.ok("status -l data.snap"));
        assert_eq!(run.text(), "1 2 \n");
        assert_eq!(dir.ok("read data.snap 1").stdout, dir.read("monday.img"));
        assert_eq!(dir.ok("read data.snap 2").stdout, dir.read("second.img"));
        dir.ok("create data.snap 3");
        assert_eq!(dir.ok("status -l data.snap").text(), "1 2 3 \n");
    }
}

#[test]
fn a_store_in_use_is_left_alone() {
    let dir = volume();
    let store = std::fs::OpenOptions::new().read(true).write(true).open(dir.path("data.snap")).unwrap();
    store.lock().unwrap();
    for args in [
        "list data.snap",
        "create data.snap 5",
        "delete data.snap 1",
        "read data.snap 1",
        "initialize -y data.snap data.img",
    ] {
        let run = dir.untouched(|dir| dir.run(args)).expect(4);
        assert!(run.stderr.contains("data.snap"), "{}", run.describe());
    }
    store.unlock().unwrap();
    // Readers do not keep each other out, but they keep writers out.
    store.lock_shared().unwrap();
    dir.ok("list data.snap");
    dir.untouched(|dir| dir.run("create data.snap 5")).expect(4);
    assert!(store.as_raw_fd() >= 0);
}

/// An origin of 24 MiB, one snapshot of it, and a store that cannot hold all of it.
fn small_store() -> (Dir, Vec<u8>) {
    let dir = Dir::new();
    let image = crate::harness::noise(9, 24 << 20);
    dir.write("data.img", &image);
    dir.write("ones", &vec![1; 24 << 20]);
    dir.ok("initialize --size 16M data.snap data.img");
    dir.ok("create data.snap 1");
    (dir, image)
}

#[test]
fn a_full_store_fails_the_write_and_keeps_every_held_snapshot() {
    let (dir, image) = small_store();
    dir.ok("usecount data.snap 1 1");
    let run = dir.shell("ddsnap write data.snap < ones").expect(1);
    assert!(run.stderr.contains("hint: "), "{}", run.describe());
    assert!(dir.ok("read data.snap 1").stdout == image, "snapshot 1 changed");
    // It can still be emptied, and used again.
    dir.ok("delete --force data.snap 1");
    dir.ok("create data.snap 2");
    let before = dir.read("data.img");
    dir.ok_with("write data.snap", &[2; 1 << 20]);
    assert!(dir.ok("read data.snap 2").stdout == before, "snapshot 2 changed");
}

#[test]
fn a_full_store_deletes_snapshots_that_nobody_holds_and_says_so() {
    let (dir, _) = small_store();
    let run = dir.shell("ddsnap write data.snap < ones").expect(0);
    assert!(run.stderr.contains("snapshot 1 deleted: the store was full"), "{}", run.describe());
    assert_eq!(dir.read("data.img"), dir.read("ones"));
    dir.run("status -S data.snap 1").expect(1);
    let events = dir.ok("list --json data.snap").json()["events"].clone();
    assert_eq!(events.as_array().unwrap().len(), 1, "{events}");
    assert!(dir.ok("list data.snap").text().contains("snapshot 1"), "the list does not tell");
}

#[test]
fn with_the_policy_squash_a_full_store_gives_up_what_is_held_and_says_so() {
    let (dir, image) = small_store();
    assert_eq!(dir.untouched(|dir| dir.run("policy data.snap")).expect(0).text(), "fail\n");
    assert_eq!(dir.ok("policy data.snap squash").text(), "squash\n");
    dir.ok("usecount data.snap 1 1");
    dir.shell("ddsnap write data.snap < ones").expect(0);
    assert_eq!(dir.read("data.img"), dir.read("ones"));
    dir.run("status -S data.snap 1").expect(2);
    assert!(dir.ok("list data.snap").text().contains("squashed"), "the list does not tell");
    let read = dir.untouched(|dir| dir.run("read data.snap 1"));
    assert!(read.code != Some(0) && read.stdout != image, "{}", read.describe());
}

#[test]
fn a_store_that_lost_its_superblocks_is_not_taken_for_an_empty_device() {
    let dir = volume();
    for at in [64 << 10, 512 << 10] {
        dir.patch("data.snap", at, |bytes| bytes[..4096].fill(0));
    }
    let run = dir.untouched(|dir| dir.run("initialize data.snap data.img"));
    assert!(run.code != Some(0) && run.stderr.contains("remains of a ddsnap store"), "{}", run.describe());
    dir.run("fsck -y data.snap").expect(1);
    dir.ok("read data.snap 1");
}

#[test]
fn a_changelist_cut_short_makes_no_delta() {
    let dir = volume();
    dir.ok("export data.snap 1 one.img");
    dir.ok("export data.snap 2 two.img");
    dir.ok("changelist data.snap whole 1 2");
    let whole = dir.read("whole");
    for length in (20..whole.len()).step_by(8) {
        dir.write("cut", &whole[..length]);
        dir.untouched(|dir| dir.run("create-delta cut cut.delta one.img two.img"))
            .expect(3)
            .says("no end marker");
    }
}

#[test]
fn a_block_device_is_no_output_file() {
    let dir = volume();
    if !has_program("losetup") {
        return skip("no 'losetup' to make a device");
    }
    dir.write("disk", &[7; 1 << 20]);
    let run = dir.shell("losetup --find --show disk");
    if run.code != Some(0) {
        return skip("no leave to make a loop device");
    }
    let device = run.text().trim().to_owned();
    let delta = dir.run(&format!("create-delta data.snap 1 2 -o {device}"));
    let list = dir.run(&format!("changelist data.snap {device} 1 2"));
    // The same store by two names: held through one, it is busy through the other.
    let lock = std::fs::File::open(dir.path("disk")).unwrap();
    lock.lock().unwrap();
    let busy = dir.run(&format!("create {device} 9"));
    dir.shell(&format!("losetup --detach {device}")).expect(0);
    delta.expect(5).says("it is a block device");
    list.expect(5);
    busy.expect(4);
}

#[test]
fn a_read_only_store_can_be_read() {
    let dir = volume();
    if !has_program("losetup") {
        return skip("no 'losetup' to make a read-only device");
    }
    let run = dir.shell("losetup --read-only --find --show data.snap");
    if run.code != Some(0) {
        return skip("no leave to make a loop device");
    }
    let device = run.text().trim().to_owned();
    let list = dir.run(&format!("status -l {device}"));
    let create = dir.run(&format!("create {device} 5"));
    dir.shell(&format!("losetup --detach {device}")).expect(0);
    assert_eq!(list.expect(0).text(), "1 2 \n");
    create.expect(1);
}

/// Damage anywhere may lose a snapshot, but must neither crash the program nor change a byte.
#[test]
fn flipped_bytes_in_a_store_never_crash_and_never_lie() {
    let dir = volume();
    let good = dir.read("data.snap");
    let used = good.len() - good.iter().rev().take_while(|byte| **byte == 0).count();
    let seed = seed();
    let mut rng = crate::harness::Rng(seed);
    for _ in 0..40 {
        // Everywhere, but more often where the bytes are.
        let at = usize::try_from(rng.below(used as u64)).unwrap();
        let mut bad = good.clone();
        bad[at] ^= 1 << rng.below(8);
        dir.write("data.snap", &bad);
        for (tag, image) in [("1", "monday.img"), ("2", "second.img")] {
            let run = dir.untouched(|dir| dir.run(&format!("read data.snap {tag}")));
            match run.code {
                Some(0) => assert!(run.stdout == dir.read(image), "byte {at}, seed {seed}: wrong data"),
                Some(3) => {}
                _ => panic!("byte {at}, seed {seed}: {}", run.describe()),
            }
        }
    }
}

/// The seed of random tests: `DDSNAP_SEED`, or one that differs from run to run and is printed.
pub fn seed() -> u64 {
    let seed = match std::env::var("DDSNAP_SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => {
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
        }
    };
    eprintln!("DDSNAP_SEED={seed}");
    seed
}

fn truncate(dir: &Dir, name: &str, len: u64) {
    std::fs::OpenOptions::new().write(true).open(dir.path(name)).unwrap().set_len(len).unwrap();
}

fn remove(dir: &Dir, name: &str) {
    std::fs::remove_file(dir.path(name)).unwrap();
}

fn link_store(dir: &Dir) {
    std::os::unix::fs::symlink("data.snap", dir.path("link")).unwrap();
}

fn make_socket(dir: &Dir) {
    drop(std::os::unix::net::UnixListener::bind(dir.path("socket")).unwrap());
}

/// As much of an ext4 file system as tells that it is one: the magic, and a feature of ext4 alone.
fn make_ext4(dir: &Dir) {
    let mut image = vec![0; 32 << 20];
    image[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
    image[1024 + 0x5c] = 4;
    image[1024 + 0x60] = 0x40;
    dir.write("fs.img", &image);
}
