//! `check` sees damage, `rebuild` brings the index back from the records alone.

use ddsnap::block::faulty::{Faulty, Operation};
use ddsnap::block::memory::Memory;
use ddsnap::block::{ReadAt, WriteAt};
use ddsnap::error::Kind;
use ddsnap::format::checkpoint::{decode_part, encode_part, peek_part};
use ddsnap::format::superblock::{Extent, OFFSETS, Superblock};
use ddsnap::point::{PointId, PointSource};
use ddsnap::progress::Silent;
use ddsnap::store::fsck::{CheckOptions, RebuildOptions, RebuildReport, Severity, check, rebuild};
use ddsnap::store::{InitOptions, View, Writer};
use ddsnap::units::{Epoch, Tag, Uuid};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

const ORIGIN: u64 = 1_000_000;
const CHUNK: u32 = 4096;

struct Volume {
    store: Arc<Memory>,
    origin: Arc<Memory>,
    /// What every snapshot must read as.
    images: BTreeMap<Epoch, Vec<u8>>,
    /// The superblocks, checkpoints and marks of the log's end that there were after each session.
    past: Vec<Vec<(u64, Vec<u8>)>>,
    /// The store after each session.
    then: Vec<Memory>,
}

fn options() -> InitOptions {
    InitOptions {
        chunk_size: CHUNK,
        block_size: 4096,
        origin_path: PathBuf::from("/origin"),
        origin_size: ORIGIN,
        now_secs: 1,
    }
}

/// An empty store and its origin.
fn empty() -> (Arc<Memory>, Arc<Memory>) {
    let (store, origin) = (Arc::new(Memory::new(16 << 20)), Arc::new(Memory::new(ORIGIN)));
    let device: Arc<dyn WriteAt> = store.clone();
    Writer::initialize(&device, &options()).unwrap();
    (store, origin)
}

/// A volume with written, deleted, swept and overlaid history, some of it after the last checkpoint.
fn volume() -> Volume {
    let (store, origin) = empty();
    let device: Arc<dyn WriteAt> = store.clone();
    let mut images = BTreeMap::new();
    let (mut ids, mut past, mut then) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..18u32 {
        let origin_device: Arc<dyn WriteAt> = origin.clone();
        let mut writer = Writer::open(Arc::clone(&device), Some(origin_device), 2).unwrap();
        let made = writer.create_snapshot(Tag(round), None).unwrap();
        images.insert(made.id, origin.to_vec().unwrap());
        ids.push(made.id);
        for step in 0..9u64 {
            let at = (u64::from(round) * 77_777 + step * 101_111) % (ORIGIN - 20_000);
            let byte = u8::try_from(round * 9 + 1).unwrap() + u8::try_from(step).unwrap();
            writer.write_origin(at, &vec![byte; 15_000]).unwrap();
        }
        if round % 3 == 2 {
            let victim = ids.remove(ids.len() - 2);
            writer.delete_snapshot(victim).unwrap();
            images.remove(&victim);
        }
        if round % 4 == 1 {
            let id = ids[0];
            writer.write_snapshot(id, 5000, &[0xee; 9000]).unwrap();
            images.get_mut(&id).unwrap()[5000..14_000].fill(0xee);
        }
        writer.close().unwrap();
        past.push(blocks_of(&store, &[b"ddsnapSB", b"ddsnapCK", b"ddsnapED"]));
        then.push(store.snapshot());
    }
    Volume { store, origin, images, past, then }
}

/// A volume whose log only grows, beyond what its first checkpoints promised to it.
fn growing() -> Volume {
    let (store, origin) = empty();
    let device: Arc<dyn WriteAt> = store.clone();
    let (mut images, mut then) = (BTreeMap::new(), Vec::new());
    for round in 0..8u8 {
        let mut writer = Writer::open(Arc::clone(&device), Some(origin.clone()), 2).unwrap();
        let made = writer.create_snapshot(Tag(round.into()), None).unwrap();
        images.insert(made.id, origin.to_vec().unwrap());
        for step in 0..40u64 {
            writer.write_origin(step * 15_000, &[round * 9 + 1; 15_000]).unwrap();
        }
        writer.close().unwrap();
        then.push(store.snapshot());
    }
    Volume { store, origin, images, past: Vec::new(), then }
}

fn assert_reads(store: &Arc<Memory>, origin: &Arc<Memory>, images: &BTreeMap<Epoch, Vec<u8>>) {
    let view = View::open(store.clone(), Some(origin.clone())).unwrap();
    assert_eq!(view.snapshots().len(), images.len());
    for (id, image) in images {
        let mut bytes = vec![0; image.len()];
        view.read(PointId::Snapshot(*id), 0, &mut bytes).unwrap();
        assert!(bytes == *image, "snapshot {id} reads wrongly");
    }
}

fn findings(store: &Arc<Memory>) -> Vec<(&'static str, Severity)> {
    let device: Arc<dyn ReadAt> = store.clone();
    let report = check(&device, None, CheckOptions { data: true }, &Silent).unwrap();
    report.findings.iter().map(|finding| (finding.code.name(), finding.severity())).collect()
}

/// Rebuilds, whatever is lost.
fn mended(device: &Arc<dyn WriteAt>) -> RebuildReport {
    let options = RebuildOptions { now_secs: 3, give_up: true, shorter: true, origin: None, uuid: None };
    rebuild(device, &options, &Silent).unwrap()
}

/// Every snapshot reads as it must, or not at all, or says that it may not be what it was. Returns how many could
/// be read whole and are not tainted.
fn assert_honest(
    store: &Arc<Memory>,
    origin: &Arc<Memory>,
    images: &BTreeMap<Epoch, Vec<u8>>,
    what: &str,
) -> usize {
    let view = View::open(store.clone(), Some(origin.clone())).expect(what);
    let mut whole = 0;
    for snapshot in view.snapshots().iter().filter(|snapshot| !snapshot.tainted) {
        let image = images.get(&snapshot.id).unwrap_or_else(|| panic!("{what}: a snapshot that never was"));
        let mut good = true;
        for (number, expected) in image.chunks(CHUNK as usize).enumerate() {
            let mut bytes = vec![0; expected.len()];
            match view.read(PointId::Snapshot(snapshot.id), number as u64 * u64::from(CHUNK), &mut bytes) {
                Ok(()) => assert!(bytes == expected, "{what}: snapshot {} chunk {number}", snapshot.id),
                Err(_) => good = false,
            }
        }
        whole += usize::from(good);
    }
    whole
}

#[test]
fn a_sound_store_has_no_findings_and_a_check_writes_nothing() {
    let Volume { store, origin, images, .. } = volume();
    let before = store.snapshot();
    assert_eq!(findings(&store), []);
    assert!(store.same_content(&before));
    assert_reads(&store, &origin, &images);
}

#[test]
fn a_rebuild_of_a_sound_store_changes_no_answer_and_doubts_nothing() {
    let Volume { store, origin, images, .. } = volume();
    let device: Arc<dyn WriteAt> = store.clone();
    for _ in 0..2 {
        let report = mended(&device);
        assert_eq!(report.findings.len(), 0, "{:?}", report.findings);
        assert_eq!(findings(&store), []);
        assert_reads(&store, &origin, &images);
    }
}

#[test]
fn rebuilding_again_and_again_takes_no_room() {
    let Volume { store, origin, images, .. } = volume();
    let device: Arc<dyn WriteAt> = store.clone();
    let free = || View::open(store.clone(), None).unwrap().info().free_bytes;
    mended(&device);
    let first = free();
    for _ in 0..4 {
        mended(&device);
        assert_eq!(free(), first);
    }
    assert_reads(&store, &origin, &images);
}

#[test]
fn one_superblock_is_enough_and_none_is_enough_for_a_rebuild() {
    for lost in [&OFFSETS[..1], &OFFSETS[1..], &OFFSETS[..]] {
        let Volume { store, origin, images, .. } = volume();
        for offset in lost {
            store.write_at(&[0xff; 4096], *offset).unwrap();
        }
        assert!(!findings(&store).is_empty());
        if lost.len() == 1 {
            assert_reads(&store, &origin, &images);
        } else {
            assert!(View::open(store.clone(), None).is_err());
        }
        let device: Arc<dyn WriteAt> = store.clone();
        let report = mended(&device);
        assert_eq!(report.findings.len(), 0, "{:?}", report.findings);
        assert_eq!(findings(&store), []);
        assert_reads(&store, &origin, &images);
    }
}

#[test]
fn without_a_superblock_only_the_last_mark_of_a_close_proves_where_the_log_ended() {
    let Volume { store, origin, images, past, .. } = volume();
    // Kind 11 at byte 76 of a record: a session was closed. Its sequence lies at byte 32.
    let sequence = |block: &[u8]| u64::from_le_bytes(block[32..40].try_into().unwrap());
    let bytes = store.to_vec().unwrap();
    let blocks: Vec<(u64, &[u8])> = (0..).step_by(4096).zip(bytes.chunks(4096)).collect();
    let records = blocks.iter().filter(|(_, block)| block.starts_with(b"ddsnapRC"));
    let closes = records.clone().filter(|(_, block)| block[76] == 11);
    let (mut doubted, mut rolled_back) = (0, 0);
    for (address, close) in closes {
        let damaged = Arc::new(store.snapshot());
        OFFSETS.iter().for_each(|offset| damaged.write_at(&[0; 4096], *offset).unwrap());
        let later = records.clone().filter(|(_, block)| sequence(block) > sequence(close));
        let ends = blocks.iter().filter(|(_, block)| block.starts_with(b"ddsnapED"));
        let lost: Vec<u64> = later.map(|(address, _)| *address).collect();
        if !lost.is_empty() {
            lost.iter()
                .chain(ends.map(|(address, _)| address))
                .for_each(|address| damaged.write_at(&[0; 4096], *address).unwrap());
        }
        // The mark that was there then, and the last one: as if what came between had never reached the device.
        let then =
            past.iter().flatten().find(|(at, block)| *at == address + 4096 && block.starts_with(b"ddsnapED"));
        if let Some((at, mark)) = then.filter(|_| !lost.is_empty()) {
            let (last, newest) =
                past.last().unwrap().iter().find(|(_, block)| block.starts_with(b"ddsnapED")).unwrap();
            damaged.write_at(newest, *last).unwrap();
            damaged.write_at(mark, *at).unwrap();
            rolled_back += 1;
        }
        let device: Arc<dyn WriteAt> = damaged.clone();
        let report = mended(&device);
        assert_eq!(report.findings.is_empty(), lost.is_empty(), "{report:?}");
        let whole = assert_honest(&damaged, &origin, &images, "an older close");
        assert_eq!(whole, if lost.is_empty() { images.len() } else { 0 });
        doubted += usize::from(!lost.is_empty());
    }
    assert!(doubted > 3 && rolled_back > 3, "{doubted} and {rolled_back} older marks were tried");
}

/// Blocks that begin with one of `magics`, with their addresses.
fn blocks_of(store: &Memory, magics: &[&[u8]]) -> Vec<(u64, Vec<u8>)> {
    let bytes = store.to_vec().unwrap();
    let blocks = (0..).step_by(4096).zip(bytes.chunks(4096));
    let found = blocks.filter(|(_, block)| magics.iter().any(|magic| block.starts_with(magic)));
    found.map(|(address, block)| (address, block.to_vec())).collect()
}

fn checkpoints(store: &Memory) -> Vec<(u64, Vec<u8>)> {
    blocks_of(store, &[b"ddsnapCK"])
}

#[test]
fn an_older_checkpoint_that_was_left_behind_hides_nothing() {
    let Volume { store, origin, images, past, .. } = volume();
    let mut outdated = 0;
    for (round, older) in past.iter().enumerate() {
        let damaged = Arc::new(store.snapshot());
        for offset in OFFSETS.into_iter().chain(checkpoints(&store).into_iter().map(|part| part.0)) {
            damaged.write_at(&[0; 4096], offset).unwrap();
        }
        // Where nothing lies by now, or a part of the index.
        let is_free = |address: u64| {
            let mut block = vec![0; 4096];
            damaged.read_at(&mut block, address).unwrap();
            block.starts_with(b"ddIX") || block.iter().all(|byte| *byte == 0)
        };
        let parts = older.iter().filter(|(_, block)| block.starts_with(b"ddsnapCK"));
        for (address, block) in parts.filter(|part| is_free(part.0)) {
            damaged.write_at(block, *address).unwrap();
        }
        let device: Arc<dyn WriteAt> = damaged.clone();
        let report = mended(&device);
        let what = format!("checkpoint of round {round}: {:?}", report.findings);
        outdated += usize::from(report.findings.iter().any(|finding| finding.text.contains("an older one")));
        let view = View::open(damaged, Some(origin.clone())).unwrap();
        let found: Vec<Epoch> = view.snapshots().iter().map(|snapshot| snapshot.id).collect();
        assert_eq!(found, images.keys().copied().collect::<Vec<_>>(), "{what}");
        for (id, image) in &images {
            let mut read = vec![0; image.len()];
            view.read(PointId::Snapshot(*id), 0, &mut read).unwrap();
            assert!(read == *image, "{what}: snapshot {id}");
        }
    }
    assert!(outdated > 3, "{outdated} checkpoints were outdated");
}

#[test]
fn an_older_superblock_is_no_way_back_when_the_newer_one_is_sound() {
    let Volume { store, origin, images, past, .. } = volume();
    let mut refused = 0;
    for then in &past {
        let damaged = Arc::new(store.snapshot());
        for (address, _) in checkpoints(&store) {
            damaged.write_at(&[0; 4096], address).unwrap();
        }
        let newest = checkpoints(&store);
        let older = then.iter().filter(|(_, block)| block.starts_with(b"ddsnapCK"));
        let free: Vec<_> = older.filter(|part| newest.iter().all(|new| new.0 != part.0)).collect();
        let sb = then.iter().find(|(address, _)| *address == OFFSETS[1]).unwrap();
        if free.is_empty() {
            continue;
        }
        free.into_iter().chain([sb]).for_each(|(address, block)| damaged.write_at(block, *address).unwrap());
        assert_eq!(View::open(damaged.clone(), None).err().map(|error| error.kind()), Some(Kind::Damaged));
        let device: Arc<dyn WriteAt> = damaged.clone();
        mended(&device);
        assert_honest(&damaged, &origin, &images, "an older superblock");
        refused += 1;
    }
    assert!(refused > 3, "{refused} older superblocks");
}

#[test]
fn a_superblock_whose_checkpoint_a_newer_one_lies_over_is_an_old_one() {
    let Volume { store, origin, images, .. } = volume();
    let parts = checkpoints(&store);
    let [(first, head), (second, _)] = parts.as_slice() else { panic!("two copies") };
    let mut bytes = vec![0; peek_part(head, *first).unwrap()];
    store.read_at(&mut bytes, *first).unwrap();
    let part = decode_part(&bytes, *first).unwrap();
    // As if the superblocks of the last publications had never reached the device.
    let newer = encode_part(&part.geometry, part.number + 5, *second, (0, 1), 7, &part.payload);
    store.write_at(&newer, *second).unwrap();
    assert_eq!(findings(&store), [("checkpoint-lost", Severity::Loss)]);
    let device: Arc<dyn WriteAt> = store.clone();
    let report = mended(&device);
    assert_eq!(report.findings.len(), 0, "{report:?}");
    assert_eq!(findings(&store), []);
    assert_reads(&store, &origin, &images);
}

/// Lays back what the superblocks of `then` say, and what they lead to; what the newest ones led to is gone, unless
/// `kept`. `None` if that is what they say now.
fn with_old_tables(store: &Memory, then: &Memory, kept: bool) -> Option<Memory> {
    let extents = |device: &Memory| -> (u64, Vec<Extent>) {
        let mut bytes = vec![0; 4096];
        device.read_at(&mut bytes, OFFSETS[0]).unwrap();
        let sb = Superblock::decode(&bytes).unwrap();
        (sb.checkpoint, sb.copies.concat())
    };
    let ((newest, lost), (older, old)) = (extents(store), extents(then));
    if newest == older {
        return None;
    }
    let damaged = store.snapshot();
    let lost = lost.iter().filter(|_| !kept);
    lost.for_each(|extent| damaged.write_at(&[0; 4096], extent.address).unwrap());
    let blocks = OFFSETS.map(|offset| (offset, 4096));
    for (address, length) in old.iter().map(|it| (it.address, it.length)).chain(blocks) {
        let mut bytes = vec![0; length as usize];
        then.read_at(&mut bytes, address).unwrap();
        damaged.write_at(&bytes, address).unwrap();
    }
    Some(damaged)
}

#[test]
fn old_superblocks_and_their_checkpoint_open_no_store_of_once_while_newer_records_lie_there() {
    let noticed: Vec<usize> = [volume(), growing()].iter().map(notice_old_tables).collect();
    // In the first one, segments of the log were used again, which the log itself tells.
    assert!(noticed[1] > 1, "{noticed:?} were noticed by newer records");
}

/// How many states of old tables were noticed by records that lie where those promise no log.
fn notice_old_tables(volume: &Volume) -> usize {
    let Volume { store, origin, images, then, .. } = volume;
    let mut noticed = 0;
    for (round, kept) in (0..then.len()).flat_map(|round| [(round, false), (round, true)]) {
        let Some(damaged) = with_old_tables(store, &then[round], kept).map(Arc::new) else { continue };
        let what = format!("tables of round {round}, kept {kept}");
        let device: Arc<dyn WriteAt> = damaged.clone();
        if View::open(damaged.clone(), None).is_ok() {
            // All of the log since then lies where it was to go on, and tells everything.
            assert_eq!(findings(&damaged), [], "{what}");
            assert_reads(&damaged, origin, images);
            continue;
        }
        let writer = Writer::open(Arc::clone(&device), Some(origin.clone()), 4);
        assert_eq!(writer.err().map(|error| error.kind()), Some(Kind::Damaged), "{what}");
        let reader: Arc<dyn ReadAt> = damaged.clone();
        let report = check(&reader, None, CheckOptions::default(), &Silent).unwrap();
        noticed += usize::from(report.findings.iter().any(|it| it.text.contains("it promises no log")));
        assert!(!report.opens(), "{what}: {:?}", report.findings);
        let careful = RebuildOptions { now_secs: 3, ..RebuildOptions::default() };
        if rebuild(&device, &careful, &Silent).unwrap().published {
            assert_reads(&damaged, origin, images);
            continue;
        }
        assert!(View::open(damaged.clone(), None).is_err(), "{what}");
        mended(&device);
        assert_honest(&damaged, origin, images, &what);
        let left = findings(&damaged);
        assert!(left.iter().all(|(_, severity)| *severity == Severity::Note), "{what}: {left:?}");
    }
    noticed
}

#[test]
fn every_index_block_can_be_lost() {
    let Volume { store, origin, images, .. } = volume();
    let bytes = store.to_vec().unwrap();
    let mut lost = 0;
    for (number, block) in bytes.chunks(4096).enumerate() {
        if block.starts_with(b"ddIX") {
            store.write_at(&[0; 4096], number as u64 * 4096).unwrap();
            lost += 1;
        }
    }
    assert!(lost > 1);
    assert!(findings(&store).iter().any(|(code, _)| *code == "index-damaged"));
    let device: Arc<dyn WriteAt> = store.clone();
    let report = mended(&device);
    assert_eq!(report.findings.len(), 0, "{:?}", report.findings);
    assert_reads(&store, &origin, &images);
}

#[test]
fn chunks_whose_record_is_lost_are_found_by_the_old_index_and_logged_again() {
    let Volume { store, origin, images, .. } = volume();
    let bytes = store.to_vec().unwrap();
    let (mut relogged, mut doubted) = (0, 0);
    for (number, block) in bytes.chunks(4096).enumerate() {
        // Kind 1 at byte 76 of a record: chunks copied out.
        if !block.starts_with(b"ddsnapRC") || block[76] != 1 {
            continue;
        }
        let damaged = Arc::new(store.snapshot());
        damaged.write_at(&[0; 4096], number as u64 * 4096).unwrap();
        let device: Arc<dyn WriteAt> = damaged.clone();
        let report = mended(&device);
        relogged += report.relogged;
        let what = format!("block {number}");
        assert_honest(&damaged, &origin, &images, &what);
        if report.findings.is_empty() {
            assert_reads(&damaged, &origin, &images);
            // The next rebuild finds records for everything.
            let again = mended(&device);
            assert_eq!((again.relogged, again.findings.len()), (0, 0), "{what}");
        } else {
            // Records after the checkpoint are in no index yet.
            doubted += 1;
        }
    }
    assert!(relogged > 20 && doubted > 0, "{relogged} chunks logged again, {doubted} in doubt");
}

#[test]
fn a_snapshot_whose_own_record_is_lost_comes_back_under_another_name() {
    let (store, origin) = empty();
    let device: Arc<dyn WriteAt> = store.clone();
    let mut writer = Writer::open(Arc::clone(&device), Some(origin.clone()), 2).unwrap();
    writer.create_snapshot(Tag(5), None).unwrap();
    writer.write_origin(0, &[7; 50_000]).unwrap();
    writer.close().unwrap();
    let bytes = store.to_vec().unwrap();
    // Kind 2 at byte 76 of a record: a snapshot is made.
    let made = bytes.chunks(4096).position(|block| block.starts_with(b"ddsnapRC") && block[76] == 2);
    store.write_at(&[0; 4096], made.unwrap() as u64 * 4096).unwrap();
    let report = mended(&device);
    assert!(!report.findings.is_empty());
    let view = View::open(store, Some(origin)).unwrap();
    let found = view.snapshots();
    assert_eq!(found.len(), 1);
    assert!(found[0].tainted && found[0].name.as_deref() == Some("recovered-1"));
    let mut bytes = vec![1; 1 << 16];
    view.read(PointId::Snapshot(found[0].id), 0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0), "the origin was all zeroes when it was made");
}

#[test]
fn a_whole_record_whose_neighbours_are_lost_counts_when_everything_is_in_doubt() {
    let Volume { store, origin, images, .. } = volume();
    let number = |block: &[u8], at: usize| u64::from_le_bytes(block[at..at + 8].try_into().unwrap());
    let mut records = blocks_of(&store, &[b"ddsnapRC"]);
    // By sequence, at byte 32 of a record; its kind lies at byte 76: 12 opens a session, 1 copies chunks out.
    records.sort_by_key(|(_, block)| number(block, 32));
    let opened = records.iter().rposition(|(_, block)| block[76] == 12).unwrap();
    let is_copy = |at: usize| records[at].1[76] == 1;
    let chosen = (opened..records.len()).find(|at| is_copy(*at) && is_copy(*at - 1)).unwrap();
    let lost = records[chosen + 1..].iter().chain([&records[chosen - 1]]).map(|(address, _)| *address);
    let marks = blocks_of(&store, &[b"ddsnapED"]).into_iter().map(|(address, _)| address);
    lost.chain(marks).chain(OFFSETS).for_each(|address| store.write_at(&[0; 4096], address).unwrap());
    let device: Arc<dyn WriteAt> = store.clone();
    let report = mended(&device);
    assert!(report.findings.iter().any(|finding| finding.text.contains("are lost")), "{report:?}");
    assert_honest(&store, &origin, &images, "neighbours");
    // What it preserved, and the origin has no more.
    let (id, image) = images.last_key_value().unwrap();
    let view = View::open(store, Some(origin.clone())).unwrap();
    let (record, now) = (&records[chosen].1, origin.to_vec().unwrap());
    let chunks =
        (0..usize::from(record[80])).map(|entry| number(record, 128 + 40 * entry) * u64::from(CHUNK));
    let mut preserved = 0;
    for start in chunks {
        let mut bytes = vec![0; CHUNK as usize];
        view.read(PointId::Snapshot(*id), start, &mut bytes).unwrap();
        let here = usize::try_from(start).unwrap()..usize::try_from(start).unwrap() + bytes.len();
        assert!(bytes == image[here.clone()], "byte {start}");
        preserved += usize::from(bytes != now[here]);
    }
    assert!(preserved > 0);
}

#[test]
fn a_store_made_over_another_is_the_one_that_is_rebuilt() {
    let Volume { store, origin, .. } = volume();
    let device: Arc<dyn WriteAt> = store.clone();
    let old = View::open(store.clone(), None).unwrap().info();
    Writer::initialize(&device, &options()).unwrap();
    let mut writer = Writer::open(Arc::clone(&device), Some(origin.clone()), 2).unwrap();
    let made = writer.create_snapshot(Tag(77), None).unwrap();
    let image = origin.to_vec().unwrap();
    writer.write_origin(5000, &[3; 70_000]).unwrap();
    writer.close().unwrap();
    for offset in OFFSETS {
        store.write_at(&[0xff; 4096], offset).unwrap();
    }
    let chosen = Arc::new(store.snapshot());
    let report =
        rebuild(&device, &RebuildOptions { now_secs: 3, ..RebuildOptions::default() }, &Silent).unwrap();
    let others: Vec<_> = report.others.iter().map(|other| (other.uuid, other.records > 9)).collect();
    assert_eq!(others, [(old.uuid, true)], "{report:?}");
    let view = View::open(store.clone(), None).unwrap();
    assert!(view.info().uuid != old.uuid && view.snapshots()[0].tag == Tag(77));
    // The other one, by its name.
    let device: Arc<dyn WriteAt> = chosen.clone();
    let options = RebuildOptions { give_up: true, uuid: Some(old.uuid), ..RebuildOptions::default() };
    let report = rebuild(&device, &options, &Silent).unwrap();
    assert_eq!((report.uuid, report.others[0].uuid), (old.uuid, view.info().uuid));
    let other = View::open(chosen, None).unwrap();
    assert!(other.info().uuid == old.uuid && other.snapshots().iter().all(|snapshot| snapshot.tainted));
    let nobody = RebuildOptions { uuid: Some(Uuid([7; 16])), ..options };
    let error = rebuild(&device, &nobody, &Silent).unwrap_err();
    assert!(error.kind() == Kind::Damaged && error.to_string().contains("07070707-"), "{error}");
    assert_reads(&store, &origin, &BTreeMap::from([(made.id, image)]));
}

#[test]
fn what_a_smaller_origin_no_longer_has_is_gone_for_good() {
    [false, true].into_iter().for_each(shrink_and_lose);
}

fn shrink_and_lose(has_checkpoint: bool) {
    let (store, origin) = empty();
    let device: Arc<dyn WriteAt> = store.clone();
    origin.write_at(&[7; 1_000_000], 0).unwrap();
    let open = || Writer::open(Arc::clone(&device), Some(origin.clone()), 2).unwrap();
    let mut writer = open();
    let made = writer.create_snapshot(Tag(1), None).unwrap().id;
    // Chunks 219 to 224: the snapshot has them of itself.
    writer.write_snapshot(made, 900_000, &[9; 20_480]).unwrap();
    writer.close().unwrap();
    let before = store.to_vec().unwrap();
    let mut writer = open();
    writer.resize_origin(500_000, &Silent).unwrap();
    writer.close().unwrap();
    assert_eq!(findings(&store), []);
    // What was preserved then is lost, and all that tells of it but the new size.
    for (number, block) in store.to_vec().unwrap().chunks(4096).enumerate() {
        let is_new = block != &before[number * 4096..][..block.len()];
        let is_copy = block.starts_with(b"ddsnapRC") && block[76] == 1;
        let is_table = block.starts_with(b"ddIX") || block.starts_with(b"ddsnapCK");
        if is_copy && is_new || is_table && !has_checkpoint {
            store.write_at(&[0; 4096], number as u64 * 4096).unwrap();
        }
    }
    let report = mended(&device);
    assert!(report.marked > 100, "{report:?}");
    assert_eq!(findings(&store).iter().filter(|(code, _)| *code == "chunk-missing").count(), 0);
    let mut writer = open();
    writer.accept_taint().unwrap();
    writer.resize_origin(1_000_000, &Silent).unwrap();
    writer.close().unwrap();
    let view = View::open(store, Some(origin)).unwrap();
    let read = |offset: u64| {
        let mut bytes = [0; 4096];
        view.read(PointId::Snapshot(made), offset, &mut bytes)
            .map(|()| bytes[0])
            .map_err(|error| error.kind())
    };
    assert_eq!(read(0), Ok(7));
    for chunk in 500_000 / 4096..1_000_000 / 4096 {
        let wanted = match chunk {
            219 => Ok(7),
            220..=224 => Ok(9),
            _ => Err(Kind::Damaged),
        };
        assert_eq!(read(chunk * 4096), wanted, "chunk {chunk}");
    }
}

#[test]
fn a_store_is_not_given_up_for_the_remains_of_one_that_nobody_used() {
    let Volume { store, origin, images, .. } = volume();
    let unused = Arc::new(Memory::new(16 << 20));
    let device: Arc<dyn WriteAt> = unused.clone();
    Writer::initialize(&device, &InitOptions { now_secs: 99, ..options() }).unwrap();
    let mut kept = 0;
    for (address, block) in checkpoints(&unused) {
        let mut there = vec![0; 4096];
        store.read_at(&mut there, address).unwrap();
        if there.iter().all(|byte| *byte == 0) {
            store.write_at(&block, address).unwrap();
            kept += 1;
        }
    }
    assert!(kept > 0);
    OFFSETS.iter().for_each(|offset| store.write_at(&[0; 4096], *offset).unwrap());
    let device: Arc<dyn WriteAt> = store.clone();
    assert_eq!(mended(&device).findings.len(), 0);
    assert_reads(&store, &origin, &images);
}

#[test]
fn what_one_rebuild_left_out_the_next_one_does_not_take_in() {
    let Volume { store, origin, mut images, .. } = volume();
    let device: Arc<dyn WriteAt> = store.clone();
    let copies = |store: &Memory| -> BTreeMap<u64, u64> {
        let bytes = store.to_vec().unwrap();
        let blocks = bytes.chunks(4096).enumerate();
        // Kind 1 at byte 76 of a record: chunks copied out. Its sequence lies at byte 32.
        let copies = blocks.filter(|(_, block)| block.starts_with(b"ddsnapRC") && block[76] == 1);
        let sequence = |block: &[u8]| u64::from_le_bytes(block[32..40].try_into().unwrap());
        copies.map(|(number, block)| (sequence(block), number as u64 * 4096)).collect()
    };
    let before = *copies(&store).last_key_value().unwrap().0;
    // Copied out, and killed before the origin was written: several records are torn.
    let faulty = Arc::new(Faulty::new(origin.snapshot()));
    faulty.fail_nth(Operation::Write, 1, Kind::Io);
    let mut writer = Writer::open(Arc::clone(&device), Some(faulty), 2).unwrap();
    writer.create_snapshot(Tag(99), None).unwrap();
    images.insert(writer.view().snapshots().last().unwrap().id, origin.to_vec().unwrap());
    writer.write_origin(0, &vec![9; 300_000]).unwrap_err();
    drop(writer);
    let left: Vec<u64> = copies(&store).range(before + 1..).map(|(_, address)| *address).collect();
    assert!(left.len() > 1);
    left.iter().for_each(|address| store.write_at(&[0xfe; 4096], address + 4096).unwrap());
    for _ in 0..3 {
        let report =
            rebuild(&device, &RebuildOptions { now_secs: 3, ..RebuildOptions::default() }, &Silent).unwrap();
        assert!(report.published && report.findings.is_empty() && report.marked == 0, "{report:?}");
        assert_reads(&store, &origin, &images);
    }
}
