//! Where changes come from: plain files compared, on file systems that share blocks.

use crate::harness::{Dir, Rng, has_program, noise, skip};
use ddsnap::block::ReadAt;
use ddsnap::block::file::FileReader;
use std::fs::File;
use std::os::unix::fs::FileExt;

const CHUNK: usize = 16 << 10;

/// The chunks of `new` that differ from `old`, by looking at every byte.
fn expected(old: &[u8], new: &[u8]) -> Vec<u64> {
    let (old, new): (Vec<_>, Vec<_>) = (old.chunks(CHUNK).collect(), new.chunks(CHUNK).collect());
    (0..new.len()).filter(|&i| old.get(i) != new.get(i)).map(|i| i as u64).collect()
}

/// The chunks that a changelist file names.
pub fn listed(bytes: &[u8]) -> Vec<u64> {
    let numbers: Vec<u64> =
        bytes[20..].chunks_exact(8).map(|n| u64::from_le_bytes(n.try_into().unwrap())).collect();
    assert_eq!(numbers.last(), Some(&u64::MAX));
    numbers[..numbers.len() - 1].to_vec()
}

fn compares(dir: &Dir, old: &str, new: &str) {
    dir.ok(&format!("changelist --compare {old} {new} list"));
    let expected = expected(&dir.read(old), &dir.read(new));
    assert_eq!(listed(&dir.read("list")), expected, "{old} and {new}");
    dir.ok(&format!("create-delta --compare {old} {new} -o x.delta"));
    dir.copy(old, "target");
    dir.ok("apply-delta x.delta target");
    assert!(dir.read("target") == dir.read(new), "{old} and {new}: the delta gives something else");
}

#[test]
fn sizes_holes_and_last_bytes() {
    let dir = Dir::new();
    let sparse = |name: &str, size: u64, data: &[(u64, usize)]| {
        let file = File::create(dir.path(name)).unwrap();
        file.set_len(size).unwrap();
        for (offset, len) in data {
            file.write_all_at(&noise(*offset, *len), *offset).unwrap();
        }
    };
    const M: u64 = 1 << 20;
    sparse("holes", 9 * M + 5, &[]);
    sparse("less-holes", 8 * M, &[]);
    sparse("data", 9 * M + 5, &[(0, 5000), (3 * M - 7, 14), (9 * M, 5)]);
    sparse("last-byte", 9 * M + 5, &[(0, 5000), (3 * M - 7, 14), (9 * M, 4)]);
    sparse("shorter", 9 * M + 4, &[(0, 5000), (3 * M - 7, 14), (9 * M, 4)]);
    sparse("longer", 12 * M, &[(0, 5000), (3 * M - 7, 14), (9 * M, 5), (11 * M, 100)]);
    sparse("zeros", 9 * M + 5, &[]);
    File::options().write(true).open(dir.path("zeros")).unwrap().write_all_at(&[0; 4 << 20], M).unwrap();
    dir.write("empty", b"");
    let names = ["holes", "less-holes", "data", "last-byte", "shorter", "longer", "zeros", "empty"];
    for old in names {
        for new in names {
            compares(&dir, old, new);
        }
    }
}

/// A huge file of holes is no work.
#[test]
fn a_hole_is_never_read() {
    let dir = Dir::new();
    for name in ["old", "new"] {
        File::create(dir.path(name)).unwrap().set_len(8 << 40).unwrap();
    }
    dir.ok("changelist --compare old new list");
    assert!(listed(&dir.read("list")).is_empty());
    File::options().write(true).open(dir.path("new")).unwrap().write_all_at(b"x", 5 << 40).unwrap();
    dir.ok("changelist --compare old new list");
    assert_eq!(listed(&dir.read("list")), [(5 << 40) / CHUNK as u64]);
}

/// A file system in a file, mounted as `name` for as long as this lives.
struct Mounted<'a> {
    dir: &'a Dir,
}

impl<'a> Mounted<'a> {
    fn new(dir: &'a Dir, make: &str, options: &str) -> Option<Self> {
        let program = make.split(' ').next().unwrap();
        if !has_program(program) {
            skip(&format!("no '{program}'"));
            return None;
        }
        dir.shell(&format!("truncate -s 320M image && {make} image >&2 && mkdir fs")).expect(0);
        let run = dir.shell(&format!("mount -o loop{options} image fs"));
        if run.code != Some(0) {
            skip("no leave to mount a file system, or none such in this kernel");
            return None;
        }
        Some(Self { dir })
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        self.dir.shell("umount fs");
    }
}

fn shared_bytes(dir: &Dir, name: &str) -> u64 {
    let file = FileReader::open_origin_read(&dir.path(name)).unwrap();
    assert!(file.space().is_some(), "{name}: no space for shared blocks");
    let (mut bytes, mut at) = (0, 0);
    while at < file.size() {
        let found = file.shared_extents(at).unwrap();
        bytes += found.extents.iter().map(|e| e.end.min(file.size()) - e.start.max(at)).sum::<u64>();
        at = found.until;
    }
    bytes
}

/// Changes `name` in all the ways there are, most of them not on disk yet when this returns.
fn change(dir: &Dir, name: &str, rng: &mut Rng) {
    let file = File::options().read(true).write(true).open(dir.path(name)).unwrap();
    let size = file.metadata().unwrap().len();
    for step in 0..60 {
        let longest = 2 << rng.below(16);
        let len = 1 + rng.below(longest);
        let at = rng.below(size - len);
        let mut bytes = vec![0; len as usize];
        match step % 6 {
            0 => bytes = rng.bytes(len as usize),
            // The same bytes once more, on blocks of their own.
            1 => file.read_exact_at(&mut bytes, at).unwrap(),
            2 => {
                file.read_exact_at(&mut bytes, at).unwrap();
                bytes[len as usize - 1] ^= 1;
            }
            3 => drop(dir.shell(&format!("fallocate -p -o {at} -l {len} {name}")).expect(0)),
            4 => drop(dir.shell(&format!("fallocate -z -o {at} -l {len} {name}")).expect(0)),
            // Zeros as data.
            _ => {}
        }
        if !matches!(step % 6, 3 | 4) {
            file.write_all_at(&bytes, at).unwrap();
        }
        if step == 30 {
            file.sync_all().unwrap();
        }
    }
    // The same blocks at another offset are not the same bytes there.
    if has_program("xfs_io") {
        let range = "65536 1048576 262144";
        dir.shell(&format!("xfs_io -c 'reflink fs/old {range}' {name}")).expect(0);
    }
}

fn shared_blocks_on(make: &str, options: &str, compressed: bool) {
    let dir = Dir::new();
    let Some(_mounted) = Mounted::new(&dir, make, options) else { return };
    // Half noise, half text that compresses.
    let mut image = noise(1, 12 << 20);
    for (index, line) in image[..6 << 20].chunks_mut(16).enumerate() {
        line.copy_from_slice(format!("{index:15}\n").as_bytes());
    }
    dir.write("fs/old", &image);
    dir.shell("sync -f fs; cp --reflink=always fs/old fs/same").expect(0);
    let shared = shared_bytes(&dir, "fs/same");
    // What is compressed does not count as shared; noise is stored as it is.
    let least = if compressed { 0 } else { 12 << 20 };
    assert!((least..=12 << 20).contains(&shared), "{make}{options}: {shared} bytes are shared");
    assert!(!compressed || shared <= 6 << 20, "compressed blocks count as shared");
    compares(&dir, "fs/old", "fs/same");
    let mut rng = Rng(crate::cli_errors::seed());
    for round in 0..6 {
        let name = format!("fs/new{round}");
        dir.shell(&format!("cp --reflink=always fs/old {name}")).expect(0);
        change(&dir, &name, &mut rng);
        // At once, while much of it has no place on disk, and once more.
        compares(&dir, "fs/old", &name);
        compares(&dir, &name, "fs/old");
        if round > 0 {
            compares(&dir, &format!("fs/new{}", round - 1), &name);
        }
        assert!(compressed || shared_bytes(&dir, &name) > 1 << 20, "nothing is shared any more");
    }
    // Other sizes, one of them inside a block.
    dir.shell("cp --reflink=always fs/old fs/cut; truncate -s 9000001 fs/cut").expect(0);
    compares(&dir, "fs/old", "fs/cut");
    compares(&dir, "fs/cut", "fs/old");
}

#[test]
fn blocks_shared_on_xfs() {
    shared_blocks_on("mkfs.xfs -q -m reflink=1", "", false);
}

#[test]
fn blocks_shared_on_btrfs() {
    shared_blocks_on("mkfs.btrfs -q", "", false);
}

#[test]
fn blocks_shared_on_compressed_btrfs() {
    shared_blocks_on("mkfs.btrfs -q", ",compress-force=zstd", true);
}

#[test]
fn a_subvolume_shares_with_its_snapshot_and_with_no_other_file_system() {
    let (dir, other) = (Dir::new(), Dir::new());
    let Some(_mounted) = Mounted::new(&dir, "mkfs.btrfs -q", "") else { return };
    dir.shell("btrfs subvolume create fs/v >&2").expect(0);
    dir.write("fs/v/image", &noise(1, 4 << 20));
    dir.shell("btrfs filesystem sync fs; btrfs subvolume snapshot fs/v fs/s >&2").expect(0);
    let space = |dir: &Dir, name: &str| FileReader::open_origin_read(&dir.path(name)).unwrap().space();
    assert_eq!(space(&dir, "fs/v/image"), space(&dir, "fs/s/image"));
    assert_eq!(shared_bytes(&dir, "fs/s/image"), 4 << 20);
    let file = File::options().write(true).open(dir.path("fs/s/image")).unwrap();
    file.write_all_at(b"changed", 1 << 20).unwrap();
    compares(&dir, "fs/v/image", "fs/s/image");
    let Some(_other_mounted) = Mounted::new(&other, "mkfs.btrfs -q", "") else { return };
    other.write("fs/image", &noise(1, 1 << 20));
    assert_ne!(space(&dir, "fs/v/image"), space(&other, "fs/image"));
}
