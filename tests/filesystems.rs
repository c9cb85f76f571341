//! Real file systems on a live volume, through FUSE and a loop device: they are worked on while snapshots come and go.
//! Then every snapshot is mounted, compared with what was there when it was made, and checked by the file system's own
//! checker. `soak::live` does the same with more of it.

use crate::cli_mount::{Loop, Point, Server, has_fuse, until};
use crate::harness::{Dir, Ends, Rng, has_program, noise, skip};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const WORKERS: u64 = 2;
/// Files that a worker keeps.
const FILES: usize = 16;
/// Snapshots made at least.
const ROUNDS: u32 = 6;

/// A file system and its tools.
pub struct System {
    pub name: &'static str,
    make: &'static str,
    /// Ends with status 0 for a sound file system that was unmounted.
    check: &'static str,
    /// Options that mount a frozen one and write nothing, and those that mount one as a power cut leaves it.
    frozen: &'static str,
    cut: &'static str,
}

/// Those that are worked on.
pub const SYSTEMS: [System; 3] = [
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

/// What is done to a file system, in the folder `root`, beside files that come and go.
pub struct Load {
    /// Bytes of the origin, and most of the store.
    pub size: u64,
    pub store: u64,
    /// Between two snapshots.
    pub pause: Duration,
    /// Snapshots left.
    pub kept: usize,
    /// Run at the same time.
    pub runs: &'static [fn(&Dir)],
}

/// The origin is larger than xfs wants at least.
const LOAD: Load =
    Load { size: 320 << 20, store: 1 << 30, pause: Duration::from_millis(500), kept: 4, runs: &[verified] };

fn verified(dir: &Dir) {
    if !has_program("fio") {
        return skip("fio is not installed");
    }
    let line = "fio --name=v --directory=root --size=16M --rw=randwrite --bs=4k --fsync=64 --verify=crc32c \
                --verify_fatal=1 --output=fio.txt";
    dir.shell(line).expect(0);
}

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

/// Every file below `root`, by its path, with the hash of its bytes.
type Tree = BTreeMap<PathBuf, blake3::Hash>;

fn tree(root: &Path) -> Tree {
    let (mut files, mut open) = (BTreeMap::new(), vec![root.to_path_buf()]);
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false => {
                    let name = path.strip_prefix(root).unwrap().to_path_buf();
                    files.insert(name, blake3::hash(&std::fs::read(&path).unwrap()));
                }
            }
        }
    }
    files
}

/// What a snapshot must hold.
enum Past {
    /// Exactly this.
    Frozen(Tree),
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
            Self::Frozen(files) => {
                let found = tree(root);
                let paths: BTreeSet<_> = found.keys().chain(files.keys()).collect();
                let differ: Vec<_> =
                    paths.iter().filter(|path| found.get(**path) != files.get(**path)).collect();
                assert!(differ.is_empty(), "{what}: not what was frozen: {differ:?}");
            }
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
fn stress(dir: &Dir, load: &Load) -> BTreeMap<u32, Past> {
    let (root, synced, ended) = (dir.path("root"), Synced::default(), AtomicBool::new(false));
    let mut pasts = BTreeMap::new();
    std::thread::scope(|scope| {
        let _ends = Ends(&ended);
        for worker in 0..WORKERS {
            let (root, synced, ended) = (&root, &synced, &ended);
            scope.spawn(move || work(root, worker, synced, ended));
        }
        let runs: Vec<_> = load.runs.iter().map(|run| scope.spawn(|| run(dir))).collect();
        for tag in 1.. {
            std::thread::sleep(load.pause);
            pasts.insert(tag, Past::make(dir, tag, &synced));
            if pasts.len() > load.kept {
                // Any of them but the newest, so that old ones are left too.
                let victim = *pasts.keys().nth(tag as usize % load.kept).unwrap();
                dir.ok(&format!("delete sock {victim}"));
                pasts.remove(&victim);
            }
            if tag >= ROUNDS && runs.iter().all(|run| run.is_finished()) {
                eprintln!("{tag} snapshots were made");
                break;
            }
        }
        runs.into_iter().for_each(|run| run.join().unwrap());
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

/// Works on a file system of a served volume; then all of it and of its past must be there.
pub fn live_and_past(system: &System, load: &Load) {
    let (name, make) = (system.name, system.make);
    if !has_fuse() {
        return;
    }
    if !has_program(make.split(' ').next().unwrap()) {
        return skip(&format!("no tools for {name}"));
    }
    let dir = Dir::new();
    File::create(dir.path("data.img")).unwrap().set_len(load.size).unwrap();
    dir.ok(&format!("initialize --size {} data.snap data.img", load.store));
    let live = Point::new(&dir, "live");
    let mut server = Server::start(&dir);
    let Some(origin) = Loop::over(&dir, "live/origin", "") else { return };
    dir.shell(&format!("{make} {}", origin.1)).expect(0);
    let root = Point::new(&dir, "root");
    if dir.shell(&format!("mount -o noatime {} root", origin.1)).code != Some(0) {
        return skip(&format!("no leave to mount {name}, or a kernel without it"));
    }
    let pasts = stress(&dir, load);
    assert_eq!(pasts.len(), load.kept);
    let count = |past: &Past| match past {
        Past::Frozen(files) => files.len(),
        Past::Cut(files) => files.len(),
    };
    assert!(pasts.values().all(|past| count(past) > 4), "{name}: hardly anything was written");
    let last = Past::Frozen(tree(&dir.path("root")));
    root.unmount();
    let device = origin.1.clone();
    drop(origin);
    // Who has made a mount namespace meanwhile, in whatever other program, has it mounted still.
    let is_free = || dir.shell(&format!("losetup -n -l -O BACK-FILE {device}")).text().trim().is_empty();
    until("the file system is still mounted", is_free);
    dir.shell(&format!("{} live/origin >&2", system.check)).expect(0);
    let origin = Loop::over(&dir, "live/origin", "-r").unwrap();
    mounted(&dir, &origin, system.frozen, &last, &format!("{name}, in the end")).unmount();
    drop(origin);
    pasts.iter().for_each(|(tag, past)| check_snapshot(&dir, system, *tag, past));
    dir.ok("stop sock");
    assert_eq!(server.0.wait().unwrap().code(), Some(0));
    drop(live);
    dir.ok("fsck -n --data data.snap").says_out("clean");
}

#[test]
fn ext4_lives_on_a_volume_and_its_snapshots_are_sound() {
    live_and_past(&SYSTEMS[0], &LOAD);
}

#[test]
fn xfs_lives_on_a_volume_and_its_snapshots_are_sound() {
    live_and_past(&SYSTEMS[1], &LOAD);
}

#[test]
fn btrfs_lives_on_a_volume_and_its_snapshots_are_sound() {
    live_and_past(&SYSTEMS[2], &LOAD);
}
