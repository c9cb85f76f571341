//! Whole stores: damaged, dumped, restored.

use ddsnap::block::memory::Memory;
use ddsnap::block::{ReadAt, WriteAt};
use ddsnap::dump::{Options, Part, dump, read_tables};
use ddsnap::error::Kind;
use ddsnap::point::PointId;
use ddsnap::point::PointSource as _;
use ddsnap::progress::Silent;
use ddsnap::store::fsck::{CheckOptions, Leave, RebuildOptions, check, rebuild, repair};
use ddsnap::store::restore::{Target as Place, restore};
use ddsnap::store::{InitOptions, View, Writer};
use ddsnap::units::{self, Tag};
use sha2::Digest as _;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// A small store with history: its device now and at earlier times, its origin, and what its snapshots read as.
pub struct Sample {
    pub store: Memory,
    pub older: Vec<Memory>,
    pub origin: Arc<Memory>,
    pub images: BTreeMap<u32, Vec<u8>>,
}

const ORIGIN: u64 = 200_001;

/// Written, overlaid, deleted and swept history, in many sessions.
fn build() -> ddsnap::error::Result<Sample> {
    let store = Arc::new(Memory::new(4 << 20));
    let origin = Arc::new(Memory::new(ORIGIN));
    let device: Arc<dyn WriteAt> = Arc::<Memory>::clone(&store);
    let options = InitOptions {
        chunk_size: 4096,
        block_size: 4096,
        origin_path: PathBuf::from("/origin"),
        origin_size: ORIGIN,
        now_secs: 1,
    };
    Writer::initialize(&device, &options)?;
    let (mut images, mut ids, mut older) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for round in 0..9u8 {
        let mut writer = Writer::open(Arc::clone(&device), Some(Arc::<Memory>::clone(&origin)), 2)?;
        let tag = u32::from(round);
        ids.insert(tag, writer.create_snapshot(Tag(tag), None)?.id);
        images.insert(tag, origin.to_vec()?);
        for step in 0..4u64 {
            let at = (u64::from(round) * 31_013 + step * 47_111) % (ORIGIN - 9000);
            writer.write_origin(at, &[round * 4 + 1; 9000])?;
        }
        if let Some(id) = ids.get(&(tag / 2)).filter(|_| round % 3 == 1) {
            writer.write_snapshot(*id, 5000, &[0xee; 9000])?;
            images.entry(tag / 2).or_default()[5000..14_000].fill(0xee);
        }
        if round == 4 || round == 6 {
            let gone = if round == 4 { 1 } else { 3 };
            let Some(id) = ids.remove(&gone) else { continue };
            writer.delete_snapshot(id)?;
            images.remove(&gone);
        }
        writer.close()?;
        older.push(store.snapshot());
    }
    // Damage to the very last records cannot be told from a torn tail. A checkpoint leaves no data there.
    rebuild(
        &device,
        &RebuildOptions { now_secs: 3, give_up: true, shorter: true, origin: None, uuid: None },
        &Silent,
    )?;
    Ok(Sample { store: store.snapshot(), older, origin, images })
}

pub fn sample() -> &'static Sample {
    static SAMPLE: OnceLock<Option<Sample>> = OnceLock::new();
    let Some(sample) = SAMPLE.get_or_init(|| build().ok()) else { panic!("the sample store cannot be made") };
    sample
}

/// Whatever lies there is dumped to its end, and says whether all was sound.
fn dump_all(device: &Arc<dyn ReadAt>) {
    for (hex, chunk) in [(false, None), (true, None), (true, Some(3))] {
        let options = Options {
            superblock: false,
            checkpoint: false,
            snapshots: false,
            log: None,
            index: false,
            space: false,
            chunk,
            record: chunk.map(|_| 1 << 20),
            hex,
            anonymous: false,
        };
        let (mut damaged, mut ended) = (0, false);
        let mut sink = |part: &Part, last: bool| {
            damaged += u64::from(part.name == "damage");
            ended = last;
            Ok(())
        };
        match dump(Arc::clone(device), &options, &mut sink, &Silent) {
            Ok(told) => assert!(ended && told == damaged),
            Err(error) => assert_eq!(error.kind(), Kind::Unsupported),
        }
    }
}

/// A dump in YAML; its last line is made to fit, so that what it says is reached. What is restored can be opened.
pub fn yaml(data: &[u8]) {
    let _ = read_tables(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    let end = text.trim_end_matches('\n').rfind('\n').map_or(0, |end| end + 1);
    let text = text.get(..end).unwrap_or_default();
    let text = format!("{text}sha256: \"{}\"\n", hex::encode(sha2::Sha256::digest(text)));
    let Ok(dumped) = read_tables(text.as_bytes()) else { return };
    let device = Arc::new(Memory::new(dumped.superblock.end().min(64 << 20)));
    let Ok(target) = Place::look(device.as_ref(), &dumped.superblock, &dumped.tables, &Silent) else {
        return;
    };
    let writer: Arc<dyn WriteAt> = Arc::<Memory>::clone(&device);
    let (sb, tables) = (dumped.superblock.clone(), dumped.tables.clone());
    let mut entries = dumped.entries(text.as_bytes());
    if restore(&writer, sb, tables, &target, &mut entries, None).is_ok() {
        let reader: Arc<dyn ReadAt> = device;
        assert!(View::open(Arc::clone(&reader), None).is_ok());
        let _ = check(&reader, None, CheckOptions { data: true }, &Silent);
        dump_all(&reader);
    }
}

/// Bytes of one [`damage`].
pub const DAMAGE_BYTES: usize = 12;
const BLOCK: u64 = 4096;

/// Does one thing to a store: a kind, a number of blocks, a place, and a second number, in twelve bytes.
fn damage(store: &Memory, older: &[Memory], edit: &[u8; DAMAGE_BYTES]) -> ddsnap::error::Result<()> {
    let [kind, choice, low, high, at @ ..] = *edit;
    let (at, other) = at.split_at(4);
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    let (at, other, blocks) = (number(at), number(other), 1 + u64::from(low % 8));
    let size = store.size();
    if size < 2 * BLOCK * 8 {
        return Ok(());
    }
    let place = |number: u64| number % (size / BLOCK - 8) * BLOCK;
    let mut one = vec![0; units::index(blocks * BLOCK)];
    let mut two = one.clone();
    store.read_at(&mut one, place(at))?;
    store.read_at(&mut two, place(other))?;
    match kind % 8 {
        0 => {
            let mut byte = [0];
            store.read_at(&mut byte, at % size)?;
            store.write_at(&[byte[0] ^ high.max(1)], at % size)
        }
        1 => store.write_at(&vec![0; one.len()], place(at)),
        2 => {
            let noise =
                one.iter().zip(0u64..).map(|(byte, i)| byte ^ ((i * (other | 1)) >> 7).to_le_bytes()[0]);
            store.write_at(&noise.collect::<Vec<u8>>(), place(at))
        }
        3 => store.write_at(&two, place(at)),
        4 => {
            store.write_at(&two, place(at))?;
            store.write_at(&one, place(other))
        }
        5 => {
            let Some(older) = older.get(usize::from(choice) % older.len().max(1)) else { return Ok(()) };
            older.read_at(&mut one, place(at))?;
            store.write_at(&one, place(at))
        }
        6 => store.set_size(size - (at % (size / 2)) / 512 * 512),
        _ => store.write_at(&other.to_le_bytes()[..4], at % (size - 4)),
    }
}

/// Asserts that everything that can be read without insisting is what it was.
fn assert_honest(view: &View, sample: &Sample, what: &str) {
    let mut whole = Vec::new();
    for snapshot in view.snapshots().into_iter().filter(|snapshot| !snapshot.tainted) {
        let Some(image) = sample.images.get(&snapshot.tag.0) else {
            panic!("{what}: snapshot {} comes from nowhere", snapshot.tag);
        };
        let point = PointId::Snapshot(snapshot.id);
        let mut bytes = vec![0; units::index(snapshot.size_bytes.min(1 << 20))];
        if view.read(point, 0, &mut bytes).is_ok() {
            assert!(bytes == *image, "{what}: snapshot {} reads as something it never was", snapshot.tag);
            whole.push((point, image));
        }
    }
    let origin = sample.origin.to_vec().unwrap_or_default();
    whole.push((PointId::Origin, &origin));
    for pair in whole.windows(2) {
        let ((a, old), (b, new)) = (pair[0], pair[1]);
        let Ok(changes) = view.changed(Some(a), b) else { continue };
        let Ok(ranges) = changes.collect::<Result<Vec<_>, _>>() else { continue };
        for (number, (old, new)) in (0u64..).zip(old.chunks(4096).zip(new.chunks(4096))) {
            let listed = ranges.iter().any(|range| (range.start..range.end).contains(&number));
            assert!(old == new || listed, "{what}: changes from {a:?} to {b:?} miss chunk {number}");
        }
    }
    let _ = view.sharing();
}

/// Damages a sound store, in as many ways as `data` holds times [`DAMAGE_BYTES`]. What can still be read must read
/// as it was, as it is and after every repair; what a repair is not sure of it must mark.
pub fn store(data: &[u8]) {
    let sample = sample();
    let damaged = sample.store.snapshot();
    for edit in data.as_chunks::<DAMAGE_BYTES>().0 {
        let _ = damage(&damaged, &sample.older, edit);
    }
    let open = |device: &Arc<Memory>| {
        let origin: Arc<dyn ReadAt> = Arc::<Memory>::clone(&sample.origin);
        View::open(Arc::<Memory>::clone(device), Some(origin))
    };
    let device = Arc::new(damaged.snapshot());
    let reader: Arc<dyn ReadAt> = Arc::<Memory>::clone(&device);
    let report = check(&reader, None, CheckOptions { data: true }, &Silent);
    dump_all(&reader);
    if let Ok(view) = open(&device) {
        assert_honest(&view, sample, "as it is");
    }
    for leave in [Leave::Safe, Leave::Everything] {
        let device = Arc::new(damaged.snapshot());
        let writable: Arc<dyn WriteAt> = Arc::<Memory>::clone(&device);
        let options = RebuildOptions { now_secs: 4, ..RebuildOptions::default() };
        let Ok(report) = &report else { continue };
        // What failed may have mended a part.
        let _ = repair(&writable, report, leave, &options, &Silent);
        if let Ok(view) = open(&device) {
            assert_honest(&view, sample, "mended");
        }
    }
    for give_up in [false, true] {
        let device = Arc::new(damaged.snapshot());
        let writable: Arc<dyn WriteAt> = Arc::<Memory>::clone(&device);
        let options = RebuildOptions { now_secs: 5, give_up, shorter: true, origin: None, uuid: None };
        match rebuild(&writable, &options, &Silent) {
            Ok(report) if report.published => match open(&device) {
                Ok(view) => assert_honest(&view, sample, "rebuilt"),
                // Of an origin that is forgotten, nothing can be read.
                Err(error) => {
                    assert_eq!(error.kind(), Kind::Mismatch, "rebuilt, and not to be opened: {error}")
                }
            },
            _ => {}
        }
    }
}
