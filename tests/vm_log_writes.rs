//! Every state that a disk goes through: a target of device-mapper writes down each write and each flush that reaches
//! the store and the origin, which lie on one disk. The log is then played again into files, and at flushes and between
//! them everything must be there that had been promised by then. Promises stand in the log too, as marks.

use crate::cli_errors::seed;
use crate::harness::{Dir, Ends, Rng};
use crate::power_cut::{BLOCK, SECTOR, Writer, versions};
use crate::vm_attach::{Server, sh};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::Duration;

const WRITERS: usize = 3;
/// Blocks that each writer has for itself.
const REGION: usize = 256;
/// Snapshots made; of these, how many are kept at a time.
const SNAPSHOTS: u32 = 8;
const KEPT: usize = 3;
const PAUSE: Duration = Duration::from_millis(150);
/// Bytes of the origin, where the store begins, and of the store.
const ORIGIN: u64 = (WRITERS * REGION * BLOCK) as u64;
const STORE: u64 = 32 << 20;
/// States that are looked at, about half of them right after a flush.
const STATES: usize = 24;

/// Versions of blocks.
type Versions = Vec<u32>;

/// What holds from some moment on.
enum Promise {
    /// The store is there.
    Made,
    /// The blocks of this writer are as new as this, or newer.
    Flushed(usize, Versions),
    Snapshot(u32, Versions),
    /// This snapshot may be gone.
    Deleted(u32),
}

/// Promises given; the log has the number of each.
struct Promises<'a>(&'a Dir, Mutex<Vec<Promise>>);

impl Promises<'_> {
    fn give(&self, promise: Promise) {
        let mut promises = self.1.lock().unwrap();
        sh(self.0, &format!("dmsetup message logged 0 mark {}", promises.len()));
        promises.push(promise);
    }
}

/// Writes, flushes, and makes and deletes snapshots.
fn work(dir: &Dir, promises: &Promises, seed: u64) {
    let (all, ended) = (RwLock::new(()), AtomicBool::new(false));
    let newest = Mutex::new(vec![0; WRITERS * REGION]);
    std::thread::scope(|scope| {
        let _ends = Ends(&ended);
        for writer in 0..WRITERS {
            let (all, newest, ended) = (&all, &newest, &ended);
            scope.spawn(move || {
                let region = writer * REGION..(writer + 1) * REGION;
                let mut blocks = Writer::open("/dev/mapper/volume", region, newest, seed);
                while !ended.load(Ordering::Relaxed) {
                    let _running = all.read().unwrap();
                    if blocks.write() {
                        promises.give(Promise::Flushed(writer, blocks.flush()));
                    }
                }
            });
        }
        for tag in 1..=SNAPSHOTS {
            std::thread::sleep(PAUSE);
            let paused = all.write().unwrap();
            dir.ok(&format!("create vol.sock {tag}"));
            let versions = newest.lock().unwrap().clone();
            promises.give(Promise::Snapshot(tag, versions));
            drop(paused);
            if let Some(old) = tag.checked_sub(KEPT as u32).filter(|old| *old > 0) {
                promises.give(Promise::Deleted(old));
                dir.ok(&format!("delete vol.sock {old}"));
            }
        }
    });
}

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

/// One entry of the log, in bytes of the disk that was written.
struct Entry {
    offset: u64,
    flags: u64,
    data: Vec<u8>,
}

/// Reads the log: a superblock, then for each entry a sector with its header, and the mark's text or, in the sectors
/// after it, the bytes that were written.
fn entries(log: &File) -> Vec<Entry> {
    let read = |at: u64, length: u64| {
        let mut bytes = vec![0; length as usize];
        log.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[8 * at..][..8].try_into().unwrap());
    let head = read(0, SECTOR as u64);
    assert_eq!((word(&head, 0), word(&head, 1)), (MAGIC, 1), "no log");
    let sector = word(&head, 3) & u64::from(u32::MAX);
    let mut at = sector;
    let next = |_| {
        let header = read(at, sector);
        let [place, count, flags, text] = [0, 1, 2, 3].map(|field| word(&header, field));
        at += sector;
        let data = match flags {
            flags if flags & MARK != 0 => header[32..][..text as usize].to_vec(),
            flags if flags & DISCARD != 0 => vec![0; (count * sector) as usize],
            _ => {
                at += count * sector;
                read(at - count * sector, count * sector)
            }
        };
        Entry { offset: place * sector, flags, data }
    };
    (0..word(&head, 2)).map(next).collect()
}

/// What was promised up to some moment, and the disk as it was then, in two files.
struct Past<'a> {
    dir: &'a Dir,
    origin: File,
    store: File,
    is_made: bool,
    least: Versions,
    snapshots: BTreeMap<u32, &'a Versions>,
}

impl<'a> Past<'a> {
    /// Of disks that hold zeroes.
    fn new(dir: &'a Dir) -> Self {
        let zeroes = |name: &str, size| {
            let file = File::create(dir.path(name)).unwrap();
            file.set_len(size).unwrap();
            file
        };
        let (origin, store) = (zeroes("origin", ORIGIN), zeroes("store", STORE));
        Self {
            dir,
            origin,
            store,
            is_made: false,
            least: vec![0; WRITERS * REGION],
            snapshots: BTreeMap::new(),
        }
    }

    fn play(&mut self, entry: &Entry, promises: &'a [Promise]) {
        if entry.flags & MARK == 0 {
            let (file, offset) = match entry.offset.checked_sub(ORIGIN) {
                Some(offset) => (&self.store, offset),
                None => (&self.origin, entry.offset),
            };
            return file.write_all_at(&entry.data, offset).unwrap();
        }
        let text = std::str::from_utf8(&entry.data).unwrap().trim_end_matches('\0');
        // The target has a mark of its own for the end.
        let Ok(number) = text.parse::<usize>() else { return };
        match &promises[number] {
            Promise::Made => self.is_made = true,
            Promise::Flushed(writer, versions) => {
                self.least[writer * REGION..][..REGION].copy_from_slice(versions);
            }
            Promise::Snapshot(tag, versions) => {
                self.snapshots.insert(*tag, versions);
            }
            Promise::Deleted(tag) => {
                self.snapshots.remove(tag);
            }
        }
    }

    fn check(&self, what: &str) {
        let checked = self.dir.run("fsck -n --data store");
        assert_eq!(checked.code, Some(0), "{what}: {}", checked.describe());
        let origin = self.dir.read("origin");
        for (block, least) in self.least.iter().enumerate() {
            let found = versions(block, &origin[block * BLOCK..][..BLOCK]);
            assert!(
                found.iter().all(|version| version >= least),
                "{what}, block {block}: {found:?}, {least} was flushed"
            );
        }
        for (tag, promised) in &self.snapshots {
            let image = self.dir.ok(&format!("read --origin origin store {tag}")).stdout;
            for (block, version) in promised.iter().enumerate() {
                let found = versions(block, &image[block * BLOCK..][..BLOCK]);
                assert!(
                    found.iter().all(|found| found == version),
                    "{what}, {tag}, block {block}: {found:?}"
                );
            }
        }
    }
}

/// Both devices on the first disk, all zeroes, and the second for the log.
fn logged(dir: &Dir) {
    let (origin, store) = (ORIGIN / SECTOR as u64, STORE / SECTOR as u64);
    sh(dir, &format!("dd if=/dev/zero of=/dev/vmdisk1 bs=1M count={} oflag=direct", (ORIGIN + STORE) >> 20));
    let both = origin + store;
    sh(dir, &format!("dmsetup create logged --table '0 {both} log-writes /dev/vmdisk1 /dev/vmdisk2'"));
    sh(dir, &format!("dmsetup create origin --table '0 {origin} linear /dev/mapper/logged 0'"));
    sh(dir, &format!("dmsetup create store --table '0 {store} linear /dev/mapper/logged {origin}'"));
}

#[test]
#[ignore = "needs devices of a kernel: cargo xtask vmtest"]
fn vm_log_writes_every_state_of_the_disk_has_what_was_promised() {
    let (dir, seed) = (Dir::new(), seed());
    logged(&dir);
    let promises = Promises(&dir, Mutex::default());
    sh(&dir, "ddsnap initialize -y /dev/mapper/store /dev/mapper/origin");
    promises.give(Promise::Made);
    let server = Server::start(&dir, "/dev/mapper/store");
    sh(&dir, "ddsnap attach vol.sock --name volume");
    work(&dir, &promises, seed);
    sh(&dir, "ddsnap detach volume && ddsnap stop vol.sock");
    drop(server);
    sh(&dir, "dmsetup remove origin store && dmsetup remove logged");

    let entries = entries(&File::open("/dev/vmdisk2").unwrap());
    let promises = promises.1.into_inner().unwrap();
    let is_flush = |entry: &Entry| entry.flags & (FLUSH | FUA) != 0;
    let flushes = entries.iter().filter(|entry| is_flush(entry)).count();
    let mut past = Past::new(&dir);
    let (mut random, mut states, mut after_flush) = (Rng(seed), 0, 0);
    for (number, entry) in entries.iter().enumerate() {
        past.play(entry, &promises);
        let one_of = |count: usize| (count * 2).div_ceil(STATES) as u64;
        let chance = if is_flush(entry) { one_of(flushes) } else { one_of(entries.len() - flushes) };
        let is_last = number + 1 == entries.len();
        if past.is_made && (is_last || random.below(chance) == 0) {
            past.check(&format!("after entry {number} of {}", entries.len()));
            states += 1;
            after_flush += u32::from(is_flush(entry));
        }
    }
    eprintln!(
        "{} entries, {flushes} flushes, {} promises; looked at {states} states, {after_flush} after a flush",
        entries.len(),
        promises.len()
    );
    assert!(states > 1 && past.snapshots.len() == KEPT && past.least.iter().any(|version| *version > 0));
}
