//! Points and deltas as files, through FUSE; loop devices over them.

use crate::harness::{DDSNAP, Dir, Rng, noise, skip, volume};
use ddsnap::block::ReadAt;
use ddsnap::block::file::FileReader;
use ddsnap::delta::Patched;
use ddsnap::error::Kind;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// True if files can be mounted here.
pub fn has_fuse() -> bool {
    let root = rustix::process::geteuid().is_root();
    let there = Path::new("/dev/fuse").exists() && (root || crate::harness::has_program("fusermount3"));
    if !there {
        skip("no /dev/fuse, or no leave to mount");
    }
    there
}

/// A folder that something is mounted on, unmounted with the test.
pub struct Point<'a>(&'a Dir, &'static str);

impl<'a> Point<'a> {
    pub fn new(dir: &'a Dir, name: &'static str) -> Self {
        std::fs::create_dir_all(dir.path(name)).unwrap();
        Self(dir, name)
    }

    fn is_mounted(&self) -> bool {
        let path = self.0.path(self.1).canonicalize();
        // What cannot be asked is a mount whose server is gone.
        let Ok(path) = path else { return true };
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        mounts.lines().any(|line| line.split(' ').nth(1) == path.to_str())
    }

    pub fn unmount(&self) {
        self.0.shell(&format!("umount {0} || fusermount3 -u {0}", self.1)).expect(0);
    }
}

impl Drop for Point<'_> {
    fn drop(&mut self) {
        if self.is_mounted() {
            self.0.shell(&format!("umount -l {0} || fusermount3 -uz {0}", self.1));
        }
    }
}

/// Waits until it is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_point_is_a_file_until_it_is_unmounted() {
    if !has_fuse() {
        return;
    }
    let dir = volume();
    let point = Point::new(&dir, "point");
    dir.ok("mount data.snap 1 point");
    assert!(dir.read("point/volume") == dir.read("monday.img"));
    assert_eq!(dir.shell("ls -A point").expect(0).text(), "volume\n");
    let written = std::fs::OpenOptions::new().write(true).open(dir.path("point/volume"));
    assert!(written.is_err(), "it is for reading");
    assert!(std::fs::write(dir.path("point/other"), b"x").is_err());
    assert!(std::fs::read(dir.path("point/other")).is_err());
    // Who reads a store keeps writers away, and nobody else.
    dir.run("create data.snap 9").expect(4);
    dir.ok("list data.snap");
    point.unmount();
    until("the store is still held", || dir.run("create data.snap 9").code == Some(0));
    dir.ok("mount data.snap point");
    assert_eq!(
        dir.shell("cd point && find . -type f | sort").text(),
        "./origin\n./snap/1\n./snap/2\n./snap/9\n"
    );
    for (file, expected) in [("origin", "data.img"), ("snap/1", "monday.img"), ("snap/2", "second.img")] {
        assert!(dir.read(&format!("point/{file}")) == dir.read(expected), "{file}");
    }
    point.unmount();
    dir.run("mount data.snap 77 point").expect(1).says("cannot mount at point");
    dir.run("mount data.snap 1 nowhere").expect(1).says("nowhere");
    dir.run("mount data.snap").expect(2).says("VOL [SNAP] DIR");
    assert!(!point.is_mounted());
}

#[test]
fn what_a_delta_makes_is_a_file() {
    if !has_fuse() {
        return;
    }
    let dir = volume();
    dir.ok("create-delta data.snap 1 2 -o delta");
    dir.ok("create-delta data.snap 2 -o whole");
    let point = Point::new(&dir, "point");
    dir.ok("mount --delta delta --base monday.img point");
    assert!(dir.read("point/volume") == dir.read("second.img"));
    point.unmount();
    dir.ok("mount --delta whole point");
    assert!(dir.read("point/volume") == dir.read("second.img"));
    point.unmount();
    dir.run("mount --delta delta point").expect(2).says("needs its base");
    dir.run("mount --delta delta --base block.bin point").expect(3).says("block.bin");
    dir.run("mount --delta monday.img --base monday.img point").expect(3);
    assert!(!point.is_mounted());
}

fn open(dir: &Dir, delta: &str, base: &str) -> ddsnap::error::Result<Patched> {
    let open = |name: &str| Arc::new(FileReader::open(&dir.path(name)).unwrap()) as Arc<dyn ReadAt>;
    Patched::open(open(delta), Some(open(base)))
}

#[test]
fn a_delta_is_read_at_any_place_and_believes_no_wrong_byte() {
    let dir = Dir::new();
    let mut rng = Rng(7);
    let old = noise(1, 700_000);
    for (round, size) in [700_000, 900_123, 300_001, 1].into_iter().enumerate() {
        let mut new = old.clone();
        new.resize(size, 7);
        for _ in 0..6 {
            let at = rng.pick(size);
            let end = (at + rng.pick(60_000)).min(size);
            match rng.below(2) {
                0 => new[at..end].fill(0),
                _ => new[at..end].copy_from_slice(&noise(rng.below(99), end - at)),
            }
        }
        dir.write("old", &old);
        dir.write("new", &new);
        let _ = std::fs::remove_file(dir.path("delta"));
        dir.ok("create-delta --compare old new -o delta");
        let patched = open(&dir, "delta", "old").unwrap();
        assert_eq!(patched.size(), size as u64);
        for _ in 0..200 {
            let at = rng.pick(size + 1);
            let mut found = vec![1; rng.pick(size - at + 1)];
            patched.read_at(&mut found, at as u64).unwrap();
            assert!(found == new[at..at + found.len()], "round {round}, {} bytes at {at}", found.len());
        }
        assert!(patched.read_at(&mut [0; 2], size as u64 - 1).is_err());
        let whole = dir.read("delta");
        for _ in 0..60 {
            dir.write("cut", &whole[..rng.pick(whole.len())]);
            assert!(open(&dir, "cut", "old").is_err());
            let mut flipped = whole.clone();
            flipped[rng.pick(whole.len())] ^= 1 << rng.below(8);
            dir.write("cut", &flipped);
            assert!(open(&dir, "cut", "old").is_err());
        }
    }
    // Where the delta knows what the base was, another one is an error.
    dir.write("new", &noise(5, 700_000));
    let _ = std::fs::remove_file(dir.path("delta"));
    dir.ok("create-delta --compare old new -o delta");
    dir.write("other", &noise(6, 700_000));
    let error = open(&dir, "delta", "other").unwrap().read_at(&mut [0; 100], 5000).unwrap_err();
    assert_eq!(error.kind(), Kind::Mismatch);
}

/// A server in the folder of a test, killed with it.
pub struct Server(pub Child);

impl Server {
    pub fn start(dir: &Dir) -> Self {
        let mut command = Command::new(DDSNAP);
        command.args(["server", "data.snap", "--socket", "sock", "--fuse", "live"]);
        let server = Self(command.current_dir(dir.path("")).stdin(Stdio::null()).spawn().unwrap());
        until("the server does not come up", || dir.path("live/origin").exists());
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A loop device over a file, detached with the test.
pub struct Loop<'a>(&'a Dir, pub String);

impl<'a> Loop<'a> {
    pub fn over(dir: &'a Dir, file: &str, more: &str) -> Option<Self> {
        let line = format!("losetup {more} --direct-io=on -f --show {file}");
        let made = dir.shell(&line);
        if made.code != Some(0) {
            skip("no leave to make a loop device");
            return None;
        }
        Some(Self(dir, made.text().trim().to_owned()))
    }
}

impl Drop for Loop<'_> {
    fn drop(&mut self) {
        self.0.shell(&format!("losetup -d {}", self.1));
    }
}

#[test]
fn a_file_system_on_a_loop_device_keeps_its_past() {
    if !has_fuse() {
        return;
    }
    let dir = Dir::new();
    dir.write("data.img", &noise(3, 32 << 20));
    dir.ok("initialize --size 128M data.snap data.img");
    dir.ok("create data.snap 1");
    let live = Point::new(&dir, "live");
    let mut server = Server::start(&dir);
    let Some(origin) = Loop::over(&dir, "live/origin", "") else { return };
    let device = &origin.1;
    dir.shell(&format!("mkfs.ext4 -q -F {device}")).expect(0);
    let root = Point::new(&dir, "root");
    if dir.shell(&format!("mount {device} root")).code != Some(0) {
        return skip("no leave to mount a file system");
    }
    dir.write("root/first", &noise(1, 3 << 20));
    dir.shell("sync -f root && fsfreeze -f root").expect(0);
    let created = dir.run("create sock 2");
    dir.shell("fsfreeze -u root").expect(0);
    created.expect(0);
    dir.write("root/first", &noise(2, 3 << 20));
    dir.write("root/second", b"later");
    dir.shell("sync -f root").expect(0);
    let past = Point::new(&dir, "past");
    {
        let Some(snapshot) = Loop::over(&dir, "live/snap/2", "-r") else { return };
        dir.shell(&format!("mount -o ro,noload {} past", snapshot.1)).expect(0);
        assert!(dir.read("past/first") == noise(1, 3 << 20));
        assert!(!dir.path("past/second").exists());
        dir.run("delete sock 2").expect(4).says("is open");
        past.unmount();
    }
    assert!(dir.read("live/snap/1") == noise(3, 32 << 20));
    // Discards need not do anything, zeroes must be zeroes.
    let zeroed = dir.shell("set -e; fstrim root || true; fallocate -l 1M root/zeroes; sync -f root");
    zeroed.expect(0);
    root.unmount();
    dir.shell(&format!("set -e; e2fsck -fn {device} >&2; blkdiscard -z -o 1M -l 1M {device}")).expect(0);
    drop(origin);
    assert!(dir.read("live/origin")[1 << 20..2 << 20].iter().all(|byte| *byte == 0));
    dir.ok("stop sock");
    assert_eq!(server.0.wait().unwrap().code(), Some(0));
    assert!(!live.is_mounted());
    dir.ok("fsck -n --data data.snap").says_out("clean");
    assert!(dir.ok("read data.snap 1").stdout == noise(3, 32 << 20));
}

#[test]
fn a_killed_server_leaves_nothing_that_hangs() {
    if !has_fuse() {
        return;
    }
    let dir = volume();
    let live = Point::new(&dir, "live");
    let server = Server::start(&dir);
    let held = std::fs::File::open(dir.path("live/snap/1")).unwrap();
    drop(server);
    assert!(std::io::Read::read(&mut &held, &mut [0; 10]).is_err());
    assert!(std::fs::read(dir.path("live/origin")).is_err());
    drop(held);
    live.unmount();
    assert!(!live.is_mounted());
    // One that is told to end while somebody has a file open ends too.
    let mut server = Server::start(&dir);
    let held = std::fs::File::open(dir.path("live/snap/1")).unwrap();
    dir.ok("stop sock");
    assert_eq!(server.0.wait().unwrap().code(), Some(0));
    assert!(std::io::Read::read(&mut &held, &mut [0; 10]).is_err());
    assert!(!live.is_mounted());
    dir.ok("fsck -n --data data.snap").says_out("clean");
}
