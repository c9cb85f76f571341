//! Real file systems on a live volume, through FUSE and a loop device: they are worked on while snapshots come and go.
//! Then every snapshot is mounted, compared with what was there when it was made, and checked by the file system's own
//! checker.

use crate::cli_mount::{Loop, Point, Server, has_fuse};
use crate::harness::{Dir, Ends, Rng, has_program, noise, skip};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// More than xfs wants at least.
const SIZE: u64 = 320 << 20;
const WORKERS: u64 = 2;
/// Files that a worker keeps.
const FILES: usize = 16;
const ROUNDS: u32 = 6;

/// A file system and its tools.
struct System {
    name: &'static str,
    make: &'static str,
    /// Ends with status 0 for a sound file system that was unmounted.
    check: &'static str,
    /// Options that mount a frozen one and write nothing, and those that mount one as a power cut leaves it.
    frozen: &'static str,
    cut: &'static str,
}

const SYSTEMS: [System; 3] = [
    System { name: "ext4", make: "mkfs.ext4 -q -F", check: "e2fsck -fn", frozen: "ro,noload", cut: "rw" },
    System {
        name: "xfs",
        make: "mkfs.xfs -q -f",
        check: "xfs_repair -n -f",
        frozen: "ro,norecovery,nouuid",
        cut: "rw,nouuid",
    },
    System {
        name: "btrfs",
        make: "mkfs.btrfs -q -f",
        check: "btrfs check --readonly",
        frozen: "ro,rescue=nologreplay",
        cut: "rw",
    },
];

/// What a file of the workers holds: it follows from its name.
fn content(number: u64) -> Vec<u8> {
    noise(number, 1 + usize::try_from(number.wrapping_mul(0x9e37_79b9) % 150_000).unwrap())
}

/// Files that are durable, and will be until they leave this.
type Synced = Mutex<BTreeSet<(u64, u64)>>;

fn file_path(root: &Path, (worker, number): (u64, u64)) -> PathBuf {
    root.join(format!("{worker}/{number}"))
}

/// Makes, overwrites and removes files until `ended`.
fn work(root: &Path, worker: u64, synced: &Synced, ended: &AtomicBool) {
    let folder = root.join(worker.to_string());
    std::fs::create_dir(&folder).unwrap();
    let database = File::create(folder.join("database")).unwrap();
    let mut kept = Vec::new();
    let mut rng = Rng(worker + 1);
    for number in (worker << 32).. {
        if ended.load(Ordering::Relaxed) {
            return;
        }
        let key = (worker, number);
        let mut file = File::create(file_path(root, key)).unwrap();
        file.write_all(&content(number)).unwrap();
        file.sync_all().unwrap();
        File::open(&folder).unwrap().sync_all().unwrap();
        synced.lock().unwrap().insert(key);
        kept.push(key);
        database.write_all_at(&noise(number, 30_000), rng.below(4 << 20)).unwrap();
        if kept.len() > FILES {
            let key = kept.swap_remove(usize::try_from(rng.below(FILES as u64)).unwrap());
            synced.lock().unwrap().remove(&key);
            std::fs::remove_file(file_path(root, key)).unwrap();
        }
    }
}

/// Every file below `root`, by its path.
fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut files, mut open) = (BTreeMap::new(), vec![root.to_path_buf()]);
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false => {
                    let name = path.strip_prefix(root).unwrap().to_path_buf();
                    files.insert(name, std::fs::read(&path).unwrap());
                }
            }
        }
    }
    files
}

/// What a snapshot must hold.
enum Past {
    /// Exactly this.
    Frozen(BTreeMap<PathBuf, Vec<u8>>),
    /// At least these files.
    Cut(BTreeSet<(u64, u64)>),
}

impl Past {
    /// Makes a snapshot of what `root` is in the middle of.
    fn make(dir: &Dir, tag: u32, synced: &Synced) -> Self {
        let create = || dir.run(&format!("create sock {tag}"));
        if tag.is_multiple_of(2) {
            let before = synced.lock().unwrap().clone();
            create().expect(0);
            return Self::Cut(before.intersection(&synced.lock().unwrap()).copied().collect());
        }
        dir.shell("fsfreeze -f root").expect(0);
        let (files, created) = (tree(&dir.path("root")), create());
        dir.shell("fsfreeze -u root").expect(0);
        created.expect(0);
        Self::Frozen(files)
    }

    fn ensure(&self, root: &Path, what: &str) {
        match self {
            Self::Frozen(files) => assert!(tree(root) == *files, "{what}: not what was frozen"),
            Self::Cut(files) => {
                for key in files {
                    let found = std::fs::read(file_path(root, *key));
                    assert!(found.is_ok_and(|found| found == content(key.1)), "{what}: {key:?}");
                }
            }
        }
    }
}

/// Works on a file system while snapshots are made and deleted; those that are left.
fn stress(dir: &Dir) -> BTreeMap<u32, Past> {
    let (root, synced, ended) = (dir.path("root"), Synced::default(), AtomicBool::new(false));
    let mut pasts = BTreeMap::new();
    std::thread::scope(|scope| {
        let _ends = Ends(&ended);
        for worker in 0..WORKERS {
            let (root, synced, ended) = (&root, &synced, &ended);
            scope.spawn(move || work(root, worker, synced, ended));
        }
        let verified = scope.spawn(|| {
            if !has_program("fio") {
                return skip("fio is not installed");
            }
            let line = "fio --name=v --directory=root --size=16M --rw=randwrite --bs=4k --fsync=64 --verify=crc32c \
                        --verify_fatal=1 --output=fio.txt";
            dir.shell(line).expect(0);
        });
        for tag in 1..=ROUNDS {
            std::thread::sleep(Duration::from_millis(500));
            pasts.insert(tag, Past::make(dir, tag, &synced));
            if tag.is_multiple_of(3) {
                dir.ok(&format!("delete sock {}", tag - 2));
                pasts.remove(&(tag - 2));
            }
        }
        verified.join().unwrap();
    });
    pasts
}

/// Mounts `device` on the folder `past`, and looks at it.
fn mounted<'a>(dir: &'a Dir, device: &Loop<'_>, options: &str, past: &Past, what: &str) -> Point<'a> {
    // To btrfs all that have been mounted are one.
    dir.shell("! command -v btrfs || btrfs device scan --forget || true").expect(0);
    let point = Point::new(dir, "past");
    dir.shell(&format!("mount -o {options} {} past", device.1)).expect(0);
    past.ensure(&dir.path("past"), what);
    point
}

fn check_snapshot(dir: &Dir, system: &System, tag: u32, past: &Past) {
    let what = format!("{}, snapshot {tag}", system.name);
    if matches!(past, Past::Frozen(_)) {
        let device = Loop::over(dir, &format!("live/snap/{tag}"), "-r").unwrap();
        mounted(dir, &device, system.frozen, past, &what).unmount();
    }
    // As after a power cut: the file system brings itself in order, which no snapshot lets it.
    dir.ok(&format!("export sock {tag} image"));
    let device = Loop::over(dir, "image", "").unwrap();
    mounted(dir, &device, system.cut, past, &what).unmount();
    drop(device);
    dir.shell(&format!("{} image >&2", system.check)).expect(0);
}

fn live_and_past(system: &System) {
    let (name, make) = (system.name, system.make);
    if !has_fuse() {
        return;
    }
    if !has_program(make.split(' ').next().unwrap()) {
        return skip(&format!("no tools for {name}"));
    }
    let dir = Dir::new();
    File::create(dir.path("data.img")).unwrap().set_len(SIZE).unwrap();
    dir.ok("initialize --size 1G data.snap data.img");
    let live = Point::new(&dir, "live");
    let mut server = Server::start(&dir);
    let Some(origin) = Loop::over(&dir, "live/origin", "") else { return };
    dir.shell(&format!("{make} {}", origin.1)).expect(0);
    let root = Point::new(&dir, "root");
    if dir.shell(&format!("mount -o noatime {} root", origin.1)).code != Some(0) {
        return skip(&format!("no leave to mount {name}, or a kernel without it"));
    }
    let pasts = stress(&dir);
    assert!(pasts.len() > 3);
    let count = |past: &Past| match past {
        Past::Frozen(files) => files.len(),
        Past::Cut(files) => files.len(),
    };
    assert!(pasts.values().all(|past| count(past) > 4), "{name}: hardly anything was written");
    root.unmount();
    drop(origin);
    dir.shell(&format!("{} live/origin >&2", system.check)).expect(0);
    pasts.iter().for_each(|(tag, past)| check_snapshot(&dir, system, *tag, past));
    dir.ok("stop sock");
    assert_eq!(server.0.wait().unwrap().code(), Some(0));
    drop(live);
    dir.ok("fsck -n --data data.snap").says_out("clean");
}

#[test]
fn ext4_lives_on_a_volume_and_its_snapshots_are_sound() {
    live_and_past(&SYSTEMS[0]);
}

#[test]
fn xfs_lives_on_a_volume_and_its_snapshots_are_sound() {
    live_and_past(&SYSTEMS[1]);
}

#[test]
fn btrfs_lives_on_a_volume_and_its_snapshots_are_sound() {
    live_and_past(&SYSTEMS[2]);
}
