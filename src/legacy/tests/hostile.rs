//! Bytes that nobody should have written: an error or a reading, never a panic, soon, and in little memory.

use super::build::{Built, Shape, Transaction, leaf_block, node_block};
use super::model::Random;
use super::sample;
use crate::block::ReadAt;
use crate::block::memory::Memory;
use crate::error::{Kind, Result};
use crate::legacy::{Devices, Store};
use crate::point::volume::Volume;
use crate::point::{PointId, PointSource};
use crate::progress::Silent;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the bytes that are read.
struct Counted {
    device: Memory,
    bytes: AtomicU64,
}

impl ReadAt for Counted {
    fn size(&self) -> u64 {
        self.device.size()
    }
    fn path(&self) -> &Path {
        self.device.path()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.device.read_at(buf, offset)
    }
}

/// Does everything that can be done with a store of 2008. True if all of it went well.
fn use_all(store: &Store) -> bool {
    let _ = store.info();
    let _ = store.snapshots();
    let mut is_well = store.sharing().is_ok();
    let points = store.points();
    let first = points.first().map(|point| point.id);
    for point in points.iter().take(4) {
        let mut bytes = vec![0; usize::try_from(point.size_bytes.min(1 << 16)).unwrap()];
        is_well &= store.read(point.id, 0, &mut bytes).is_ok();
        let past = store.read(point.id, point.size_bytes.saturating_sub(1), &mut [0, 0]);
        assert_eq!(past.unwrap_err().kind(), Kind::Usage);
        for changes in [store.changed(first, point.id), store.listed(Some(PointId::Origin), point.id)] {
            let Ok(changes) = changes else {
                is_well = false;
                continue;
            };
            let mut last = 0;
            // One error ends a listing for whoever asked.
            for range in changes.take(10_000) {
                let Ok(range) = range else {
                    is_well = false;
                    break;
                };
                assert!(range.start >= last && range.end > range.start);
                last = range.end;
            }
        }
    }
    is_well
}

/// Opens and uses `built`; `None` if it was refused. Asserts that little was read, for its size.
fn survives(built: &Built) -> Option<bool> {
    let device = Arc::new(Counted { device: Memory::from_bytes(&built.metadata), bytes: AtomicU64::new(0) });
    let metadata: Arc<dyn ReadAt> = Arc::<Counted>::clone(&device);
    let origin: Option<Arc<dyn ReadAt>> = Some(Arc::new(Memory::from_bytes(&built.origin)));
    let devices = if built.shape.separate {
        Devices { store: Arc::new(Memory::from_bytes(&built.data)), metadata: Some(metadata), origin }
    } else {
        Devices { store: metadata, metadata: None, origin }
    };
    let found = Store::open(devices, None, &Silent).ok().map(|store| use_all(&store));
    let read = device.bytes.load(Ordering::Relaxed);
    assert!(
        read <= 200 * device.size() + (1 << 20),
        "{read} bytes were read of a device of {}",
        device.size()
    );
    found
}

/// A store that was not shut down, with blocks in its journal only, in `shape`.
fn crashed(shape: Shape) -> Built {
    let mut built = Built::new(shape, &sample());
    let sectors: Vec<u64> = built.levels[0].iter().copied().take(2).collect();
    let transaction = built.lose(&sectors);
    built.journal(0, 50, &[transaction]);
    built.crash();
    built
}

/// Puts other bytes in every place of `range` of the metadata, one at a time. Returns how many of those stores were
/// refused, found damaged, and read.
fn damage_each(built: &Built, range: std::ops::Range<usize>) -> [usize; 3] {
    let (mut random, mut counts) = (Random(range.start as u64), [0; 3]);
    let mut damaged = built.clone();
    for at in range {
        let byte = built.metadata[at];
        let noise = u8::try_from(random.below(256)).unwrap();
        for other in [0, 0xff, byte ^ 1 << random.below(8), noise] {
            damaged.metadata[at] = other;
            let way = survives(&damaged).map_or(0, |is_well| 1 + usize::from(is_well));
            counts[way] += 1;
        }
        damaged.metadata[at] = byte;
    }
    counts
}

fn block_at(sector: u64) -> std::ops::Range<usize> {
    let at = usize::try_from(sector * 512).unwrap();
    at..at + 512
}

#[test]
fn every_byte_of_a_superblock_can_be_wrong() {
    for shape in [Shape::COMBINED, Shape { block_bits: 9, ..Shape::SEPARATE }] {
        let built = crashed(Shape { leaf_max: 3, ..shape });
        let [refused, damaged, read] = damage_each(&built, 4096..4096 + 56 + 4 * 24);
        assert!(refused > 0 && damaged > 0 && read > 0, "{refused} {damaged} {read}");
        let [refused, damaged, read] = damage_each(&built, 4096 + 1592..4096 + 1720);
        assert!(refused > 0 && damaged > 0 && read > 0, "{refused} {damaged} {read}");
    }
}

#[test]
fn every_byte_of_the_tree_and_the_journal_can_be_wrong() {
    let mut built = crashed(Shape { leaf_max: 2, ..Shape::COMBINED });
    let commit = u64::from(built.sb.journal_base.get()) + 2;
    let (root, leaf) = (built.root(), built.levels[0][2]);
    for is_clean in [false, true] {
        if is_clean {
            built = Built::new(built.shape, &sample());
        }
        for sector in [root, leaf, commit] {
            let [refused, damaged, read] = damage_each(&built, block_at(sector));
            assert_eq!(refused, 0, "a superblock that is sound is enough to list the snapshots");
            assert!(read > 0 && (damaged > 0 || is_clean && sector == commit), "{sector}: {damaged} {read}");
        }
    }
}

#[test]
fn a_device_that_was_cut_anywhere_is_refused() {
    for shape in [Shape::COMBINED, Shape::SEPARATE] {
        let built = crashed(shape);
        for length in (0..built.metadata.len()).rev().step_by(61) {
            let mut cut = built.clone();
            cut.metadata.truncate(length);
            assert_eq!(survives(&cut), None, "{length} bytes");
        }
        assert!(survives(&built).is_some());
    }
}

#[test]
fn a_tree_that_loops_ends() {
    let shape = Shape { leaf_max: 1, node_max: 3, ..Shape::COMBINED };
    for is_busy in [false, true] {
        for levels in [1, 2, 3, 33] {
            let mut built = Built::new(shape, &sample());
            let (root, below, leaf) = (built.root(), built.levels[1][0], built.levels[0][0]);
            let all = |sector: u64| (0..31).map(|key| (key, sector)).collect::<Vec<_>>();
            built.sb.levels.set(levels);
            for (at, children) in [
                (root, all(root)),
                (root, all(below)),
                (below, all(root)),
                (below, all(below)),
                (below, all(leaf)),
            ] {
                built.put(at, &node_block(9, &children));
                if is_busy {
                    built.crash();
                }
                built.seal();
                assert_ne!(survives(&built), None);
            }
        }
    }
}

/// The first child of every block in use is every other's: parents without end.
#[test]
fn roots_above_roots_end() {
    let mut built = Built::new(Shape { leaf_max: 3, ..Shape::COMBINED }, &sample());
    let (mut below, leaf) = (built.root(), built.levels[0][1]);
    for _ in 0..20 {
        let above = built.take();
        built.put(above, &node_block(9, &[(0, below), (30, leaf)]));
        built.mark(above, true);
        below = above;
    }
    let first = built.root();
    built.put(first, &node_block(9, &[(0, below), (30, leaf)]));
    built.crash();
    assert_eq!(survives(&built), Some(false));
}

#[test]
fn counts_and_offsets_that_lie_are_found() {
    let built = Built::new(Shape { leaf_max: 3, ..Shape::COMBINED }, &sample());
    let (root, leaf) = (built.root(), built.levels[0][0]);
    let (node, block) = (built.get(root), built.get(leaf));
    let set = |bytes: &[u8], at: usize, value: u32| {
        let mut bytes = bytes.to_vec();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    for value in [0, 32, 33, 1 << 28, u32::MAX / 16, u32::MAX] {
        let mut wrong = built.clone();
        wrong.put(root, &set(&node, 0, value));
        assert_eq!(survives(&wrong), Some(false), "{value} children");
    }
    for (at, name) in [(4, "count"), (24, "first offset"), (32, "second offset"), (48, "sentinel")] {
        for value in [1, 2, 7, 20, 500, 513, 1 << 28, u32::MAX - 15, u32::MAX] {
            let mut wrong = built.clone();
            wrong.put(leaf, &set(&block, at, value));
            assert_eq!(survives(&wrong), Some(false), "{name} {value}");
        }
    }
}

#[test]
fn areas_that_do_not_fit_are_refused() {
    type Edit = fn(&mut Built);
    let edits: [(&str, Edit); 11] = [
        ("journal", |built| built.sb.journal_size.set(u32::MAX)),
        ("journal base", |built| built.sb.journal_base.set(u32::MAX - 1)),
        ("bitmap", |built| built.sb.metadata.bitmap_blocks.set(1 << 40)),
        ("chunks", |built| built.sb.metadata.chunks.set(u64::MAX)),
        ("both", |built| {
            built.sb.metadata.chunks.set(1 << 52);
            built.sb.metadata.bitmap_blocks.set(1 << 40);
        }),
        ("bits", |built| built.sb.metadata.bits.set(31)),
        ("more bits", |built| built.sb.metadata.bits.set(64)),
        ("root", |built| built.sb.root.set(u64::MAX)),
        ("levels", |built| built.sb.levels.set(34)),
        ("no levels", |built| built.sb.levels.set(0)),
        ("snapshots", |built| built.sb.snapshots.set(u32::MAX)),
    ];
    for (name, edit) in edits {
        for shape in [Shape::COMBINED, Shape::SEPARATE] {
            let mut built = crashed(shape);
            edit(&mut built);
            built.seal();
            assert_eq!(survives(&built), None, "{name}");
        }
    }
    let mut built = crashed(Shape::SEPARATE);
    built.sb.data.chunks.set(1 << 52);
    built.sb.data.bitmap_blocks.set(1 << 52 >> 15);
    built.seal();
    assert_eq!(survives(&built), None, "data chunks");
}

/// A free count that cannot be is told, and not believed.
#[test]
fn more_free_chunks_than_there_are_count_as_all() {
    let mut built = Built::new(Shape::COMBINED, &sample());
    built.sb.metadata.free.set(u64::MAX);
    built.seal();
    let info = built.open().unwrap().info();
    assert_eq!(info.free_bytes, built.metadata.len() as u64);
    assert_eq!(info.legacy.unwrap().notices.len(), 1);
}

#[test]
fn commits_that_lie_end_the_run() {
    let homes = |homes: &[u64]| homes.iter().map(|home| (*home, leaf_block(9, &[]))).collect();
    for blocks in [homes(&[8]), homes(&[u64::MAX, 0, 3]), homes(&[1 << 60; 19]), homes(&[5; 57])] {
        for deferred in [(0, 0), (u64::MAX, 2), (0, u32::MAX >> 1), (1 << 40, 1)] {
            let mut built = Built::new(Shape::COMBINED, &sample());
            let lies = Transaction { blocks: Vec::clone(&blocks), deferred, is_barrier: false };
            built.journal(9, u32::MAX, &[lies.clone(), lies]);
            built.crash();
            assert_ne!(survives(&built), None);
        }
    }
}

/// Nearly everything of it is a hole: what is there is found without taking memory for what is not.
#[test]
fn a_device_that_only_claims_to_be_large_opens() {
    let built = crashed(Shape::COMBINED);
    let blocks = 1u64 << 25;
    let device = Memory::new(blocks * 512);
    let mut sb = built.sb;
    let (bitmap, journal) = (16, 16 + blocks / 4096);
    sb.metadata.chunks.set(blocks);
    sb.metadata.bitmap_blocks.set(blocks / 4096);
    sb.journal_base.set(u32::try_from(journal).unwrap());
    sb.root.set(blocks - 1);
    let mut large = Built { metadata: vec![0; 1 << 14], sb, ..built };
    assert_eq!(sb.metadata.bitmap_base.get(), bitmap);
    large.seal();
    crate::block::WriteAt::write_at(&device, &large.metadata, 0).unwrap();
    let store = Store::open(Devices { store: Arc::new(device), metadata: None, origin: None }, None, &Silent)
        .unwrap();
    assert!(!use_all(&store));
}
