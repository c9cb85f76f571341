//! Random damage over whole stores: what survives is brought back, what does not is never read as something else.

use super::{CheckOptions, Code, Leave, RebuildOptions, RebuildReport, check, rebuild, repair};
use crate::block::memory::Memory;
use crate::block::{ReadAt, WriteAt};
use crate::format::record::{Encoding, Record};
use crate::format::run::{IndexEntry, Key};
use crate::format::superblock::{OFFSETS, Superblock};
use crate::point::{PointId, PointSource};
use crate::progress::Silent;
use crate::store::fsck::segment::records;
use crate::store::room::{PLAIN, SWEEP};
use crate::store::state::{data_address, keeper, key_of};
use crate::store::{InitOptions, View, Writer};
use crate::units::{Epoch, Tag, index};
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

const ORIGIN: u64 = 3_000_000;
pub(super) const CHUNK: u32 = 4096;
pub(super) const BLOCK: u64 = 4096;

/// A small generator of its own: the same numbers everywhere.
pub(super) struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mixed = (self.0 >> 33) ^ self.0;
        mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) % bound
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| u8::try_from(self.below(256)).unwrap()).collect()
    }
}

pub(super) struct Sample {
    pub store: Arc<Memory>,
    pub origin: Arc<Memory>,
    pub images: BTreeMap<Epoch, Vec<u8>>,
}

/// A store with a random past: snapshots made, deleted and written, sessions closed and not.
pub(super) fn sample(seed: u64) -> Sample {
    let mut random = Random(seed);
    let (store, origin) = (Arc::new(Memory::new(24 << 20)), Arc::new(Memory::new(ORIGIN)));
    let options = InitOptions {
        chunk_size: CHUNK,
        block_size: 4096,
        origin_path: PathBuf::from("/origin"),
        origin_size: ORIGIN,
        now_secs: 1,
    };
    let device: Arc<dyn WriteAt> = store.clone();
    Writer::initialize(&device, &options).unwrap();
    let mut images = BTreeMap::new();
    for round in 0..20u32 {
        let mut writer = Writer::open(Arc::clone(&device), Some(origin.clone()), 2).unwrap();
        let made = writer.create_snapshot(Tag(round), None).unwrap();
        images.insert(made.id, origin.to_vec().unwrap());
        for _ in 0..random.below(12) {
            let at = random.below(ORIGIN - 40_000);
            let length = index(random.below(30_000) + 1);
            let bytes = if random.below(5) == 0 { vec![0; length] } else { random.bytes(length) };
            writer.write_origin(at, &bytes).unwrap();
        }
        if images.len() > 3 && random.below(3) == 0 {
            let nth = index(random.below(images.len() as u64));
            let victim = *images.keys().nth(nth).unwrap();
            writer.delete_snapshot(victim).unwrap();
            images.remove(&victim);
        }
        if random.below(4) == 0 {
            let nth = index(random.below(images.len() as u64));
            let id = *images.keys().nth(nth).unwrap();
            let (at, bytes) = (random.below(ORIGIN - 10_000), random.bytes(9000));
            writer.write_snapshot(id, at, &bytes).unwrap();
            images.get_mut(&id).unwrap()[index(at)..index(at) + 9000].copy_from_slice(&bytes);
        }
        if random.below(3) == 0 {
            writer.checkpoint(PLAIN).unwrap();
        }
        if random.below(4) > 0 {
            writer.close().unwrap();
        }
    }
    Sample { store, origin, images }
}

/// Every entry that a snapshot needs, and of which a record that lies wholly in undamaged blocks tells.
pub(super) fn surviving(view: &View, damaged: &HashSet<u64>) -> Vec<IndexEntry> {
    let sb = &view.state.sb;
    let touched = |start: u64, length: u64| {
        (start / BLOCK..(start + length.max(1)).div_ceil(BLOCK)).any(|block| damaged.contains(&block))
    };
    let mut told = HashSet::new();
    for number in 0..sb.segments {
        for record in records(view.device.as_ref(), sb, number) {
            if touched(record.address, u64::from(record.header_length)) {
                continue;
            }
            for (address, entry) in record.located(sb.block_bits) {
                let raw = entry.encoding == Encoding::Raw;
                if !raw || !touched(address, u64::from(entry.stored_length)) {
                    told.insert((key_of(entry), data_address(&record, address, entry)));
                }
            }
        }
    }
    let live = view.state.live_ids();
    let mut found = Vec::new();
    let mut previous = (u64::MAX, 0);
    let mut scan = view.index().scan(Key::MIN).unwrap();
    while let Some((key, value)) = scan.next_entry().unwrap().filter(|(key, _)| key.class < 2) {
        let before = if previous.0 == key.a && key.class == 0 { previous.1 } else { 0 };
        previous = (key.a, key.b);
        let alive =
            if key.class == 0 { keeper(&live, before, key.b).is_some() } else { live.contains(&key.a) };
        if alive && told.contains(&(key, value.word)) {
            found.push((key, value));
        }
    }
    found
}

pub(super) fn rebuilt(store: &Arc<Memory>) -> RebuildReport {
    let device: Arc<dyn WriteAt> = store.clone();
    rebuild(
        &device,
        &RebuildOptions { now_secs: 3, give_up: true, shorter: true, origin: None, uuid: None },
        &Silent,
    )
    .unwrap()
}

/// Every entry must lead to the bytes it led to, and every snapshot that is not tainted must read as it was, or
/// not at all.
pub(super) fn assert_rescued(sample: &Sample, store: &Arc<Memory>, survivors: &[IndexEntry], what: &str) {
    let view = View::open(store.clone(), Some(sample.origin.clone())).expect(what);
    for (key, value) in survivors {
        let (found, now) = view.index().scan(*key).unwrap().next_entry().unwrap().expect(what);
        assert_eq!((found, now.crc), (*key, value.crc), "{what}");
        view.fetch(&now).unwrap_or_else(|error| panic!("{what}: {key:?}: {error}"));
    }
    for snapshot in view.snapshots().iter().filter(|snapshot| !snapshot.tainted) {
        let image =
            sample.images.get(&snapshot.id).unwrap_or_else(|| panic!("{what}: {} never was", snapshot.id));
        for (number, expected) in image.chunks(CHUNK as usize).enumerate() {
            let mut bytes = vec![0; expected.len()];
            let at = number as u64 * u64::from(CHUNK);
            if view.read(PointId::Snapshot(snapshot.id), at, &mut bytes).is_ok() {
                assert!(bytes == expected, "{what}: snapshot {} reads wrongly at {at}", snapshot.id);
            }
        }
    }
}

/// Nothing bad is found in it any more, and its second rebuild finds as much as the first.
pub(super) fn assert_clean(store: &Arc<Memory>, what: &str) {
    let device: Arc<dyn ReadAt> = store.clone();
    let report = check(&device, None, CheckOptions { data: true }, &Silent).unwrap();
    assert!(!report.is_bad(), "{what}: {:?}", report.findings);
}

fn overwrite(store: &Memory, blocks: &HashSet<u64>, random: &mut Random) {
    for block in blocks {
        let garbage = if random.below(2) == 0 { vec![0; 4096] } else { random.bytes(4096) };
        store.write_at(&garbage, block * BLOCK).unwrap();
    }
}

pub(super) fn seeds(count: u64) -> std::ops::Range<u64> {
    let depth = std::env::var("DDSNAP_DEPTH").ok().and_then(|depth| depth.parse().ok()).unwrap_or(6u64);
    0..(count * depth).div_ceil(6)
}

#[test]
fn any_tenth_of_all_blocks_can_be_lost() {
    for seed in seeds(24) {
        let sample = sample(seed);
        let mut random = Random(seed + 1000);
        let size = sample.store.size() / BLOCK;
        let before = View::open(sample.store.clone(), None).unwrap();
        let last = last_blocks(&before);
        let damaged: HashSet<u64> =
            (0..size).filter(|block| random.below(10) == 0 && !last.contains(block)).collect();
        let survivors = surviving(&before, &damaged);
        let store = Arc::new(sample.store.snapshot());
        overwrite(&store, &damaged, &mut random);
        let what = format!("seed {seed}");
        let report = rebuilt(&store);
        assert!(survivors.len() > 100, "{what}: {}", survivors.len());
        assert_rescued(&sample, &store, &survivors, &what);
        assert_clean(&store, &what);
        let again = rebuilt(&store);
        assert!(
            again.relogged == 0,
            "{what}: {} chunks were without a record after {:?}",
            again.relogged,
            report
        );
        assert_rescued(&sample, &store, &survivors, &what);
    }
}

/// Overwrites both superblocks, and every block that begins with `magics`.
fn lose(store: &Memory, magics: &[&[u8]], random: &mut Random) -> HashSet<u64> {
    let bytes = store.to_vec().unwrap();
    let blocks = bytes.chunks(4096).enumerate();
    let hit = blocks.filter(|(_, block)| magics.iter().any(|magic| block.starts_with(magic)));
    let lost: HashSet<u64> =
        hit.map(|(number, _)| number as u64).chain(OFFSETS.map(|at| at / BLOCK)).collect();
    overwrite(store, &lost, random);
    lost
}

#[test]
fn without_superblocks_and_index_everything_comes_back() {
    for seed in seeds(12) {
        let sample = sample(seed);
        let before = View::open(sample.store.clone(), None).unwrap();
        let survivors = surviving(&before, &HashSet::new());
        lose(&sample.store, &[b"ddIX"], &mut Random(seed));
        let report = rebuilt(&sample.store);
        let what = format!("seed {seed}");
        // Only the mark of a close shows that no record followed it.
        let is_closed = before.state.fingerprint.is_some();
        let uncertain = report.findings.iter().filter(|finding| finding.code == Code::Uncertain).count();
        assert_eq!(report.findings.len(), uncertain, "{what}: {:?}", report.findings);
        assert_eq!(uncertain, usize::from(!is_closed), "{what}");
        assert_rescued(&sample, &sample.store, &survivors, &what);
        assert_clean(&sample.store, &what);
        let view = View::open(sample.store.clone(), None).unwrap();
        assert!(view.snapshots().iter().all(|snapshot| snapshot.tainted != is_closed));
        assert_eq!(view.snapshots().len(), sample.images.len(), "{what}");
    }
}

#[test]
fn the_records_alone_bring_every_chunk_back_under_doubt() {
    for seed in seeds(12) {
        let sample = sample(seed);
        let before = View::open(sample.store.clone(), None).unwrap();
        let survivors = surviving(&before, &HashSet::new());
        lose(&sample.store, &[b"ddIX", b"ddsnapCK"], &mut Random(seed));
        let report = rebuilt(&sample.store);
        let what = format!("seed {seed}");
        assert!(report.findings.iter().any(|finding| finding.code == Code::Uncertain), "{what}");
        let view = View::open(sample.store.clone(), Some(sample.origin.clone())).unwrap();
        let found = view.snapshots();
        assert!(found.iter().all(|snapshot| snapshot.tainted), "{what}");
        assert_eq!(view.info().origin_path, PathBuf::from("/origin"), "{what}");
        assert_eq!(view.info().origin_size, ORIGIN, "{what}");
        for id in sample.images.keys() {
            let row =
                found.iter().find(|row| row.id == *id).unwrap_or_else(|| panic!("{what}: {id} is gone"));
            let mut bytes = vec![0; index(ORIGIN)];
            view.read(PointId::Snapshot(row.id), 0, &mut bytes).unwrap();
            assert!(bytes == sample.images[id], "{what}: snapshot {id}, insisted on");
        }
        assert_rescued(&sample, &sample.store, &survivors, &what);
        assert_clean(&sample.store, &what);
    }
}

/// The blocks of one block of the index and of the headers of all records that say the same: what nothing but the
/// change bits tells of any more.
fn witnesses_of_a_block(view: &View) -> HashSet<u64> {
    let run = view.state.runs.last().unwrap();
    let piece = &run.pieces[0];
    let directory = view.reader.directory(run.number, piece).unwrap();
    let entries = view.reader.block(run.number, piece, 0, directory[0].1).unwrap();
    let keys: HashSet<Key> = entries.iter().map(|(key, _)| *key).collect();
    let mut blocks = HashSet::from([piece.address / BLOCK, piece.address / BLOCK + 1]);
    for number in 0..view.state.sb.segments {
        let told = |record: &Record| record.entries.iter().any(|entry| keys.contains(&key_of(entry)));
        blocks.extend(
            records(view.device.as_ref(), &view.state.sb, number)
                .iter()
                .filter(|record| told(record))
                .map(|r| r.address / BLOCK),
        );
    }
    blocks
}

/// A superblock may know of a log that went further than any record that is left.
#[test]
fn what_comes_after_a_rebuild_is_newer_than_all_that_was() {
    let sample = sample(8);
    let bytes = sample.store.to_vec().unwrap();
    let sequence = |block: &[u8]| u64::from_le_bytes(block[32..40].try_into().unwrap());
    let records = || bytes.chunks(4096).enumerate().filter(|(_, block)| block.starts_with(b"ddsnapRC"));
    let mut sequences: Vec<u64> = records().map(|(_, block)| sequence(block)).collect();
    sequences.sort_unstable();
    // More sessions than the next one's jump would pass over.
    let from = sequences[sequences.len() / 2];
    let late = records().filter(|(_, block)| sequence(block) >= from);
    let tables = bytes.chunks(4096).enumerate().filter(|(_, block)| block.starts_with(b"ddsnapCK"));
    for (number, _) in late.chain(tables) {
        sample.store.write_at(&[0; 4096], number as u64 * BLOCK).unwrap();
    }
    rebuilt(&sample.store);
    let view = View::open(sample.store.clone(), None).unwrap();
    assert!(view.state.sb.durable > from && view.state.chain.position.sequence > view.state.sb.durable);
    assert_clean(&sample.store, "rebuilt");
}

/// A repair may be cut short at any write, and again, and then run to its end.
#[test]
fn a_rebuild_can_be_cut_short_at_every_write() {
    use crate::block::faulty::{Faulty, Operation};
    use crate::error::Kind;
    let sample = sample(5);
    let mut writer = Writer::open(sample.store.clone(), None, 4).unwrap();
    // All in one run, its keys of each kind together.
    writer.checkpoint(SWEEP).unwrap();
    writer.close().unwrap();
    let before = View::open(sample.store.clone(), None).unwrap();
    let damaged = witnesses_of_a_block(&before);
    let survivors = surviving(&before, &damaged);
    overwrite(&sample.store, &damaged, &mut Random(77));
    let options = RebuildOptions { now_secs: 3, give_up: true, shorter: true, origin: None, uuid: None };
    let mut marked = 0;
    for nth in 1.. {
        let faulty = Arc::new(Faulty::new(sample.store.snapshot()));
        faulty.fail_from(Operation::Write, nth, Kind::Io);
        let device: Arc<dyn WriteAt> = faulty.clone();
        if rebuild(&device, &options, &Silent).is_ok() {
            break;
        }
        let store = Arc::new(faulty.inner().snapshot());
        let what = format!("cut at write {nth}");
        // Half mended it may refuse to be read; it never lies.
        assert_rescued(&sample, &store, &[], &what);
        let report = rebuilt(&store);
        let codes: Vec<Code> = report.findings.iter().map(|finding| finding.code).collect();
        assert!(!codes.contains(&Code::Uncertain), "{what}: everything that is gone is known by name");
        assert_rescued(&sample, &store, &survivors, &what);
        marked = marked.max(report.marked);
    }
    assert!(marked > 10, "only {marked} chunks were lost");
}

#[test]
fn a_store_cut_short_keeps_what_it_still_has() {
    for seed in seeds(6) {
        let sample = sample(seed);
        let before = View::open(sample.store.clone(), None).unwrap();
        let sb: Superblock = before.state.sb.clone();
        let end = sb.segment_address(sb.segments / 3);
        let damaged: HashSet<u64> = (end / BLOCK..sample.store.size() / BLOCK).collect();
        let survivors = surviving(&before, &damaged);
        let store = Arc::new(sample.store.snapshot());
        store.set_size(end).unwrap();
        let device: Arc<dyn ReadAt> = store.clone();
        let report = check(&device, None, CheckOptions::default(), &Silent).unwrap();
        assert!(report.findings.iter().any(|finding| finding.code == Code::StoreTruncated));
        // Without being told that it is for good nothing is given up, with or without a superblock that says so.
        let device: Arc<dyn WriteAt> = store.clone();
        let options = RebuildOptions { give_up: true, ..RebuildOptions::default() };
        assert!(rebuild(&device, &options, &Silent).is_err());
        rebuilt(&store);
        let what = format!("seed {seed}");
        assert_rescued(&sample, &store, &survivors, &what);
        assert_clean(&store, &what);
    }
}

#[test]
fn what_a_rebuild_gives_up_is_told_by_range_and_read_as_an_error() {
    let sample = sample(3);
    let view = View::open(sample.store.clone(), None).unwrap();
    let survivors = surviving(&view, &HashSet::new());
    let (key, value) = survivors.iter().find(|(_, value)| value.encoding == Encoding::Raw).unwrap();
    let mut bytes = vec![0; 16];
    sample.store.read_at(&mut bytes, value.word).unwrap();
    bytes[3] ^= 1;
    sample.store.write_at(&bytes, value.word).unwrap();
    let device: Arc<dyn ReadAt> = sample.store.clone();
    let report = check(&device, None, CheckOptions { data: true }, &Silent).unwrap();
    let [finding] = &report.findings[..] else { panic!("{:?}", report.findings) };
    assert_eq!((finding.code, finding.offset), (Code::ChunkDamaged, Some(value.word)));
    let readers: Vec<Epoch> = (view.snapshots().iter())
        .filter(|row| view.find(row.id.0, key.a).unwrap().is_some_and(|found| found.word == value.word))
        .map(|row| row.id)
        .collect();
    assert_eq!(finding.affected.iter().map(|affected| affected.id).collect::<Vec<_>>(), readers);
    let start = key.a * u64::from(CHUNK);
    let end = start + u64::from(value.raw_length);
    assert!(finding.affected.iter().all(|one| one.ranges.len() == 1 && one.ranges[0] == (start..end)));
    let device: Arc<dyn WriteAt> = sample.store.clone();
    let repaired = repair(&device, &report, Leave::Everything, &RebuildOptions::default(), &Silent).unwrap();
    assert_eq!((repaired.marked, repaired.relogged), (1, 0));
    assert_clean(&sample.store, "marked");
    let view = View::open(sample.store.clone(), Some(sample.origin.clone())).unwrap();
    for id in readers {
        let mut bytes = vec![0; 10];
        let error = view.read(PointId::Snapshot(id), start, &mut bytes).unwrap_err();
        assert!(error.to_string().contains("lost"), "{error}");
    }
    // A rebuild keeps the mark.
    rebuilt(&sample.store);
    assert_clean(&sample.store, "rebuilt");
}

/// Headers that only look like records cost nothing and prove nothing.
#[test]
fn what_only_looks_like_a_record_is_not_believed() {
    let sample = sample(1);
    let before = View::open(sample.store.clone(), None).unwrap();
    let mut fake = Record {
        address: 0,
        sequence: u64::MAX >> 1,
        incarnation: 1,
        durable: u64::MAX >> 2,
        epoch: 1,
        time_secs: 0,
        previous_crc: 0,
        kind: crate::format::record::RecordKind::CopyOut,
        entries: Vec::new(),
        body: Vec::new(),
        header_length: 0,
        data_length: 0,
        crc: 0,
    };
    let wrong = Superblock { salt: before.state.sb.salt ^ 7, ..before.state.sb.clone() };
    let free: Vec<u32> =
        (0..before.state.sb.segments).filter(|number| !before.state.segments.contains_key(number)).collect();
    for number in free.iter().take(3) {
        fake.address = before.state.sb.segment_address(*number);
        sample.store.write_at(&fake.encode(&wrong), fake.address).unwrap();
    }
    let survivors = surviving(&before, &HashSet::new());
    let report = rebuilt(&sample.store);
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert_rescued(&sample, &sample.store, &survivors, "fakes");
}

/// Blocks of the last records of the log: nothing else tells that they were there.
fn last_blocks(view: &View) -> HashSet<u64> {
    let sb = &view.state.sb;
    let mut found = Vec::new();
    for number in 0..sb.segments {
        let all = records(view.device.as_ref(), sb, number);
        found.extend(all.iter().map(|record| (record.sequence, record.address, record.length())));
    }
    found.sort_unstable();
    let last = found.iter().filter(|(sequence, ..)| *sequence <= view.state.chain.position.sequence);
    let blocks = |(_, at, length): &(u64, u64, u64)| at / BLOCK..(at + length).div_ceil(BLOCK);
    last.rev().take(3).flat_map(blocks).collect()
}

/// From a few blocks to half of the store, the tables at particular risk; mended in one go, as a user would.
#[test]
fn whatever_is_damaged_is_mended_in_one_go_and_reads_as_nothing_else() {
    for seed in seeds(60) {
        let sample = sample(seed);
        let mut random = Random(seed + 5000);
        let before = View::open(sample.store.clone(), None).unwrap();
        let one_in = [2, 3, 5, 10, 30, 100, 1000, 100_000][index(random.below(8))];
        let mut damaged: HashSet<u64> =
            (0..sample.store.size() / BLOCK).filter(|_| random.below(one_in) == 0).collect();
        let superblocks = OFFSETS.map(|at| at / BLOCK);
        let copies = before.state.sb.copies.iter().flatten().map(|extent| extent.address / BLOCK);
        let index = before.state.runs.iter().flat_map(|run| &run.pieces);
        let index =
            index.flat_map(|piece| (0..=u64::from(piece.blocks)).map(|nr| piece.address / BLOCK + nr));
        let most = random.below(5);
        damaged.extend(superblocks.into_iter().chain(copies).chain(index).filter(|_| random.below(4) < most));
        let last = last_blocks(&before);
        damaged.retain(|block| !last.contains(block));
        let store = Arc::new(sample.store.snapshot());
        overwrite(&store, &damaged, &mut random);
        let device: Arc<dyn WriteAt> = store.clone();
        let reader: Arc<dyn ReadAt> = store.clone();
        let options = RebuildOptions { now_secs: 3, give_up: true, shorter: false, origin: None, uuid: None };
        let what = format!("seed {seed}");
        if random.below(2) == 0 {
            rebuild(&device, &options, &Silent).expect(&what);
        } else {
            let data = random.below(2) == 0;
            let report = check(&reader, None, CheckOptions { data }, &Silent).unwrap();
            repair(&device, &report, Leave::Everything, &options, &Silent).expect(&what);
        }
        assert_rescued(&sample, &store, &[], &what);
    }
}
