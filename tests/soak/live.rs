//! Real programs on file systems of a served volume, for minutes, as root: `fsx`, which knows what its file holds, a
//! clone of this repository, and cargo's check of it there, while snapshots are made and deleted each second.
//!
//! What must hold in the end is what [`crate::filesystems`] asks for.

use super::{ROUNDS, asked};
use crate::filesystems::{Load, SYSTEMS, live_and_past};
use crate::harness::Dir;
use std::time::Duration;

/// Operations of `fsx` for each round of the soak.
const OPERATIONS: u64 = 100;

const LOAD: Load = Load {
    size: 3 << 30,
    store: 12 << 30,
    pause: Duration::from_secs(1),
    kept: 8,
    runs: &[exercised, built],
};

/// Reads, writes, maps, cuts and punches one file at random, and compares it with memory.
fn exercised(dir: &Dir) {
    let weights = ["close_open", "invalidate", "mapread", "mapwrite", "read", "write", "truncate"];
    let more = ["fsync", "fdatasync", "punch_hole", "posix_fallocate", "posix_fadvise", "copy_file_range"];
    let lines: String = weights.iter().chain(&more).map(|name| format!("{name} = 1.0\n")).collect();
    dir.write("fsx.toml", format!("flen = 4194304\n[opsize]\nmax = 262144\n[weights]\n{lines}").as_bytes());
    let operations = OPERATIONS * asked("DDSNAP_SOAK", ROUNDS);
    let seed = asked("DDSNAP_SEED", 1);
    dir.shell(&format!("fsx -q -f fsx.toml -P . -N {operations} -S {seed} root/fsx")).expect(0);
    eprintln!("fsx: {operations} operations");
}

/// Clones this repository, has cargo check it, and looks at both again once nothing of them is cached.
fn built(dir: &Dir) {
    let source = env!("CARGO_MANIFEST_DIR");
    dir.shell(&format!("git clone -q 'file://{source}' root/clone && git -C root/clone fsck --full"))
        .expect(0);
    let build = "cd root/clone && CARGO_TARGET_DIR=../target cargo check --lib --locked --offline";
    dir.shell(build).expect(0);
    dir.shell("sync -f root && echo 3 >/proc/sys/vm/drop_caches && git -C root/clone fsck --full").expect(0);
    // What is there still suits its records: nothing is built again.
    dir.shell(&format!("{build} -v 2>&1 | tee fresh.txt && ! grep -E 'Compiling|Checking' fresh.txt"))
        .expect(0);
    eprintln!("cloned and checked: {}", dir.shell("du -sh root | cut -f1").text().trim());
}

#[test]
#[ignore = "takes minutes: cargo xtask soak --live"]
fn ext4_under_real_work() {
    live_and_past(&SYSTEMS[0], &LOAD);
}

#[test]
#[ignore = "takes minutes: cargo xtask soak --live"]
fn xfs_under_real_work() {
    live_and_past(&SYSTEMS[1], &LOAD);
}

#[test]
#[ignore = "takes minutes: cargo xtask soak --live"]
fn btrfs_under_real_work() {
    live_and_past(&SYSTEMS[2], &LOAD);
}
