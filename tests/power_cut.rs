//! Power cuts: `cargo xtask vmtest` ends its machine while a volume is written, and starts another on the same disks.
//!
//! A round looks whether all that was promised is there, then writes until the power is cut. Promises stand on a disk
//! of their own, which is written in step: for each writer the version of each block that a flush has made durable,
//! and for each snapshot the version of every block.

use crate::harness::Dir;
use crate::random::Random;
use crate::vm_attach::{Server, sh};
use rustix::fs::OFlags;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

pub const BLOCK: usize = 4096;
pub const SECTOR: usize = 512;
const WRITERS: usize = 4;
/// Blocks that each writer has for itself.
const REGION: usize = 1024;
/// Blocks that a writer writes at once.
const MOST: usize = 16;
const SNAPSHOTS: usize = 6;
/// Bytes of one copy of a promise.
const COPY: usize = 4 * WRITERS * REGION + SECTOR;
/// Tags from here on are nobody's promise.
const UNPROMISED: u32 = 1_000_000;

/// Version `version` of sector `sector` of the volume; 0 is what was there in the beginning.
fn pattern(sector: usize, version: u32) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    if version > 0 {
        let mut random = Random(u64::from(version) << 32 | sector as u64);
        bytes.chunks_mut(8).for_each(|word| word.copy_from_slice(&random.next().to_le_bytes()));
        bytes[..4].copy_from_slice(&version.to_le_bytes());
    }
    bytes
}

/// The version of each sector of `block`, whose bytes these are.
pub fn versions(block: usize, bytes: &[u8]) -> Vec<u32> {
    let sectors = bytes.chunks(SECTOR).enumerate().map(|(at, sector)| {
        let number = block * (BLOCK / SECTOR) + at;
        let version = u32::from_le_bytes(sector[..4].try_into().unwrap());
        assert!(sector == pattern(number, version), "sector {number} is none of its versions");
        version
    });
    sectors.collect()
}

/// What was promised: places of a disk, each with two copies that are written in turn.
struct Promises(File);

/// One promise: how often it was renewed, whose it is, and the version of each block.
#[derive(Clone, Default)]
struct Promise {
    renewed: u64,
    tag: u32,
    versions: Vec<u32>,
}

impl Promises {
    fn open() -> Self {
        let flags = (OFlags::DSYNC | OFlags::CLOEXEC).bits().cast_signed();
        Self(File::options().read(true).write(true).custom_flags(flags).open("/dev/vmdisk3").unwrap())
    }

    fn read(&self, place: usize) -> Promise {
        let copies = (0..2).filter_map(|copy| {
            let mut bytes = vec![0; COPY];
            self.0.read_exact_at(&mut bytes, ((2 * place + copy) * COPY) as u64).unwrap();
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let promise = Promise {
                renewed: u64::from_le_bytes(bytes[8..16].try_into().unwrap()),
                tag: word(4),
                versions: (0..word(16) as usize).map_while(|at| Some(word(SECTOR + 4 * at))).collect(),
            };
            (promise.renewed > 0 && word(0) == crc32fast::hash(&bytes[4..])).then_some(promise)
        });
        copies.max_by_key(|promise| promise.renewed).unwrap_or_default()
    }

    fn renew(&self, place: usize, promise: &mut Promise) {
        promise.renewed += 1;
        let mut bytes = vec![0; COPY];
        bytes[4..8].copy_from_slice(&promise.tag.to_le_bytes());
        bytes[8..16].copy_from_slice(&promise.renewed.to_le_bytes());
        bytes[16..20].copy_from_slice(&(promise.versions.len() as u32).to_le_bytes());
        for (at, version) in promise.versions.iter().enumerate() {
            bytes[SECTOR + 4 * at..][..4].copy_from_slice(&version.to_le_bytes());
        }
        let sum = crc32fast::hash(&bytes[4..]);
        bytes[..4].copy_from_slice(&sum.to_le_bytes());
        let copy = 2 * place + (promise.renewed % 2) as usize;
        self.0.write_all_at(&bytes, (copy * COPY) as u64).unwrap();
    }
}

/// Asserts that what was promised is there; returns the newest version of each block.
fn check(dir: &Dir, promises: &Promises) -> Vec<u32> {
    let repaired = dir.run("fsck -p /dev/vmdisk2");
    assert!([Some(0), Some(1)].contains(&repaired.code), "{}", repaired.describe());
    dir.ok("fsck -n --data /dev/vmdisk2");
    let origin = std::fs::read("/dev/vmdisk1").unwrap();
    let mut newest = Vec::new();
    for writer in 0..WRITERS {
        let promised = promises.read(writer).versions;
        for at in 0..REGION {
            let block = writer * REGION + at;
            let found = versions(block, &origin[block * BLOCK..][..BLOCK]);
            let least = promised.get(at).copied().unwrap_or(0);
            assert!(
                found.iter().all(|version| *version >= least),
                "block {block}: {found:?}, {least} was flushed"
            );
            newest.push(found.into_iter().max().unwrap());
        }
    }
    let mut kept = Vec::new();
    for place in 0..SNAPSHOTS {
        let promise = promises.read(WRITERS + place);
        if promise.tag == 0 {
            continue;
        }
        let read = dir.shell(&format!("ddsnap read /dev/vmdisk2 {} >image", promise.tag));
        // What a full store gave up is among its events.
        assert_eq!(read.code, Some(0), "{}\n{}", read.describe(), dir.ok("list /dev/vmdisk2").text());
        let image = dir.read("image");
        for (block, version) in promise.versions.iter().enumerate() {
            let found = versions(block, &image[block * BLOCK..][..BLOCK]);
            assert!(found.iter().all(|found| found == version), "{}, block {block}: {found:?}", promise.tag);
        }
        kept.push(promise.tag);
    }
    let list = dir.ok("list --json /dev/vmdisk2").json();
    for snapshot in list["snapshots"].as_array().unwrap() {
        let tag = snapshot["tag"].as_u64().unwrap() as u32;
        if !kept.contains(&tag) {
            dir.ok(&format!("delete /dev/vmdisk2 {tag}"));
        }
    }
    let flushes: u64 = (0..WRITERS).map(|writer| promises.read(writer).renewed).sum();
    eprintln!("as promised after {flushes} flushes, with {} snapshots", kept.len());
    newest
}

/// Memory as reads and writes past the page cache need it.
fn aligned(buffer: &mut Vec<u8>, length: usize) -> &mut [u8] {
    buffer.resize(length + BLOCK, 0);
    let skip = buffer.as_ptr().align_offset(BLOCK);
    &mut buffer[skip..skip + length]
}

/// Writes past the page cache, and knows the newest version of each block.
pub struct Writer<'a> {
    device: File,
    /// Blocks that it has for itself.
    region: Range<usize>,
    newest: &'a Mutex<Vec<u32>>,
    random: Random,
    buffer: Vec<u8>,
}

impl<'a> Writer<'a> {
    pub fn open(path: &str, region: Range<usize>, newest: &'a Mutex<Vec<u32>>, seed: u64) -> Self {
        let flags = (OFlags::DIRECT | OFlags::CLOEXEC).bits().cast_signed();
        let device = File::options().write(true).custom_flags(flags).open(path).unwrap();
        let random = Random(seed ^ region.start as u64);
        Self { device, region, newest, random, buffer: Vec::new() }
    }

    /// Writes the next version of some blocks; true now and then, when it is time for a flush.
    pub fn write(&mut self) -> bool {
        let latest = || self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let count = 1 + self.random.below(MOST as u64) as usize;
        let first = self.region.start + self.random.below((self.region.len() - count) as u64) as usize;
        let next: Vec<u32> = latest()[first..first + count].iter().map(|version| version + 1).collect();
        let bytes = aligned(&mut self.buffer, count * BLOCK);
        for (at, sector) in bytes.chunks_mut(SECTOR).enumerate() {
            let number = first * (BLOCK / SECTOR) + at;
            sector.copy_from_slice(&pattern(number, next[at / (BLOCK / SECTOR)]));
        }
        self.device.write_all_at(bytes, (first * BLOCK) as u64).unwrap();
        latest()[first..first + count].copy_from_slice(&next);
        self.random.below(16) == 0
    }

    /// Makes all of it durable; the version of each block of the region that is there now.
    pub fn flush(&self) -> Vec<u32> {
        let flushed =
            self.newest.lock().unwrap_or_else(PoisonError::into_inner)[self.region.clone()].to_vec();
        self.device.sync_data().unwrap();
        flushed
    }
}

/// Writes the blocks of region `writer` for ever, and promises what it has flushed.
fn write(writer: usize, all: &RwLock<()>, newest: &Mutex<Vec<u32>>, promises: &Promises, seed: u64) {
    let region = writer * REGION..(writer + 1) * REGION;
    let mut blocks = Writer::open("/dev/mapper/cut", region, newest, seed);
    let mut promise = promises.read(writer);
    loop {
        let _running = all.read().unwrap_or_else(PoisonError::into_inner);
        if blocks.write() {
            promise.versions = blocks.flush();
            promises.renew(writer, &mut promise);
        }
    }
}

/// Makes and deletes snapshots for ever: some while nobody writes, with a promise, some at any moment.
fn snapshots(dir: &Dir, all: &RwLock<()>, newest: &Mutex<Vec<u32>>, promises: &Promises, seed: u64) {
    let mut random = Random(seed ^ 0xface);
    let mut kept: Vec<Promise> = (0..SNAPSHOTS).map(|place| promises.read(WRITERS + place)).collect();
    let mut next = 1 + kept.iter().map(|promise| promise.tag).max().unwrap();
    loop {
        std::thread::sleep(Duration::from_millis(random.below(100)));
        let unpromised = UNPROMISED + next;
        dir.ok(&format!("create vol.sock {unpromised}"));
        let place = random.below(SNAPSHOTS as u64) as usize;
        let promise = &mut kept[place];
        if promise.tag != 0 {
            let tag = std::mem::take(&mut promise.tag);
            promises.renew(WRITERS + place, promise);
            dir.ok(&format!("delete vol.sock {tag}"));
        }
        let paused = all.write().unwrap_or_else(PoisonError::into_inner);
        dir.ok(&format!("create vol.sock {next}"));
        promise.versions = newest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        drop(paused);
        promise.tag = next;
        promises.renew(WRITERS + place, promise);
        next += 1;
        dir.ok(&format!("delete vol.sock {unpromised}"));
    }
}

#[test]
#[ignore = "cuts the power of its machine: cargo xtask vmtest"]
fn power_cut_round() {
    let dir = Dir::new();
    let promises = Promises::open();
    if promises.read(0).renewed == 0 {
        sh(&dir, "ddsnap initialize -y /dev/vmdisk2 /dev/vmdisk1");
        (0..WRITERS).for_each(|writer| promises.renew(writer, &mut Promise::default()));
    }
    let newest = Mutex::new(check(&dir, &promises));
    if std::env::var("DDSNAP_POWER").unwrap() == "stays" {
        // The first promise of a writer is that of an empty volume.
        let renewed = |place: usize, least: u64| promises.read(place).renewed >= least;
        assert!((0..WRITERS).any(|writer| renewed(writer, 2)), "nothing was flushed");
        assert!((WRITERS..WRITERS + SNAPSHOTS).any(|place| renewed(place, 1)), "no snapshot was made");
        return;
    }
    let _server = Server::start(&dir, "/dev/vmdisk2");
    sh(&dir, "ddsnap attach vol.sock --name cut");
    let seed = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let all = RwLock::new(());
    std::thread::scope(|scope| {
        let (all, newest, promises) = (&all, &newest, &promises);
        let mut threads: Vec<_> = (0..WRITERS)
            .map(|writer| scope.spawn(move || write(writer, all, newest, promises, seed)))
            .collect();
        threads.push(scope.spawn(|| snapshots(&dir, all, newest, promises, seed)));
        std::thread::sleep(Duration::from_millis(1000 + Random(seed).below(3000)));
        // A cut must not hide that one of them has failed, which none ends without.
        if threads.iter().any(|thread| thread.is_finished()) {
            std::process::exit(1);
        }
        std::fs::write("/proc/sysrq-trigger", "c").unwrap();
    });
}
