//! What every fuzz target does with its bytes. The tests run the same over the corpus, on any toolchain.
//!
//! A target asserts what must hold whatever the bytes are: no panic, no hang, no unbounded memory, and what is
//! accepted can be encoded and decoded again, or reads as what it must be.

use ddsnap::block::memory::Memory;
use ddsnap::block::{ReadAt, WriteAt};
use ddsnap::delta::{ChangelistReader, FileTarget, Part as DeltaPart, info, transcode, verify};
use ddsnap::dump::{Options, Part, dump, read_tables};
use ddsnap::error::Kind;
use ddsnap::format::checkpoint::{Checkpoint, decode_part};
use ddsnap::format::delta::ResumePoint;
use ddsnap::format::qcow2;
use ddsnap::format::record::Record;
use ddsnap::format::run::{decode_block, decode_directory, encode_block};
use ddsnap::format::superblock::Superblock;
use ddsnap::format::table::{Deletion, Operation, Snapshot, Volume, decode_fingerprint};
use ddsnap::point::import::{Import, ImportOptions};
use ddsnap::point::{PointId, PointSource};
use ddsnap::progress::Silent;
use ddsnap::store::fsck::{CheckOptions, RebuildOptions, check, rebuild};
use ddsnap::store::restore::{Target as Place, restore};
use ddsnap::store::{InitOptions, View, Writer};
use ddsnap::units::{Tag, Uuid};
use sha2::Digest;
use std::io::Cursor;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// The store that record targets decode for.
pub const STORE: Superblock = Superblock {
    uuid: Uuid([7; 16]),
    generation: 1,
    salt: 0x5a17,
    chunk_bits: 14,
    block_bits: 12,
    segment_bits: 20,
    segments: 64,
    created_secs: 0,
    checkpoint: 1,
    copies: [Vec::new(), Vec::new()],
};

/// A target and its name.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 14] = [
    ("superblock", superblock),
    ("record", record),
    ("checkpoint", checkpoint),
    ("part", part),
    ("index", index),
    ("tables", tables),
    ("changelist", changelist),
    ("delta", delta),
    ("continuation", continuation),
    ("qcow2", qcow2),
    ("rbd", rbd),
    ("store", store),
    ("yaml", yaml),
    ("import", import),
];

pub fn superblock(data: &[u8]) {
    if let Ok(sb) = Superblock::decode(data) {
        assert_eq!(Superblock::decode(&sb.encode()).ok(), Some(sb));
    }
}

pub fn record(data: &[u8]) {
    let _ = Record::peek(data, 1 << 20, STORE.uuid);
    if let Ok(mut record) = Record::decode(data, 1 << 20, &STORE) {
        let bytes = record.encode(&STORE);
        assert_eq!(Record::decode(&bytes, 1 << 20, &STORE).ok(), Some(record));
    }
}

pub fn checkpoint(data: &[u8]) {
    if let Ok(checkpoint) = Checkpoint::decode(data) {
        // Names that are no text come back as text, which is not the same bytes.
        assert!(Checkpoint::decode(&checkpoint.encode()).is_ok());
    }
}

pub fn part(data: &[u8]) {
    if let Ok(part) = decode_part(data, 1 << 20) {
        assert!(part.payload.len() <= data.len());
    }
}

pub fn index(data: &[u8]) {
    let _ = decode_directory(data, 1, 0);
    if let Ok(entries) = decode_block(data, 1, 1) {
        assert_eq!(decode_block(&encode_block(1, 1, &entries), 1, 1).ok(), Some(entries));
    }
}

pub fn tables(data: &[u8]) {
    let _ = decode_fingerprint(data);
    if let Ok(value) = Snapshot::decode(&mut &*data) {
        let mut bytes = Vec::new();
        value.encode(&mut bytes);
        assert!(Snapshot::decode(&mut bytes.as_slice()).is_ok());
    }
    if let Ok(value) = Volume::decode(&mut &*data) {
        let mut bytes = Vec::new();
        value.encode(&mut bytes);
        assert_eq!(Volume::decode(&mut bytes.as_slice()).ok(), Some(value));
    }
    if let Ok(value) = Operation::decode(&mut &*data) {
        let mut bytes = Vec::new();
        value.encode(&mut bytes);
        assert!(Operation::decode(&mut bytes.as_slice()).is_ok());
    }
    if let Ok(value) = Deletion::decode(&mut &*data) {
        let mut bytes = Vec::new();
        value.encode(&mut bytes);
        assert!(Deletion::decode(&mut bytes.as_slice()).is_ok());
    }
}

pub fn changelist(data: &[u8]) {
    let Ok(reader) = ChangelistReader::open(data) else { return };
    let mut last = 0;
    for range in reader {
        let Ok(range) = range else { return };
        assert!(range.start >= last && range.end > range.start);
        last = range.end;
    }
}

pub fn import(data: &[u8]) {
    for block_size in [None, Some(65536)] {
        let input = Box::new(Cursor::new(data.to_vec()));
        let Ok(import) = Import::open(input, ImportOptions { block_size, chunk_bits: 14 }) else { continue };
        let mut last = None;
        for range in import {
            let Ok(range) = range else { break };
            assert!(range.end > range.start && last.is_none_or(|last| range.start > last));
            last = Some(range.end);
        }
    }
}

pub fn delta(data: &[u8]) {
    let _ = info(&mut &*data, &Silent);
    let base = Memory::from_bytes(&[0; 1 << 16]);
    let _ = verify(&mut &*data, Some(&base), 1, &Silent);
}

pub fn qcow2(data: &[u8]) {
    if let Ok(Some(image)) = qcow2::decode(data) {
        assert!(data.len() >= size_of::<qcow2::RawHeader>() && (9..=21).contains(&image.cluster_bits));
    }
}

/// A continuation, or a token as text; then the same as what a receiver gets that has kept some of these bytes.
pub fn continuation(data: &[u8]) {
    if let Some(point) = data.first_chunk().and_then(|bytes| ResumePoint::decode(bytes).ok()) {
        assert_eq!(data.get(..ResumePoint::PREAMBLE_BYTES), Some(&point.encode()[..]));
    }
    if let Some(point) = std::str::from_utf8(data).ok().and_then(|text| text.parse::<ResumePoint>().ok()) {
        assert_eq!(point.to_string().parse(), Ok(point));
    }
    let Ok(dir) = tempfile::tempdir() else { return };
    let path = dir.path().join("part");
    let kept = data.get(data.len() / 2..).unwrap_or(&[]);
    if std::fs::write(&path, kept).is_err() {
        return;
    }
    let Ok(part) = DeltaPart::open(&path) else { return };
    if part.receive(&mut &*data, &Silent).is_ok() {
        // What was taken in is a whole delta, digest and all.
        let bytes = std::fs::read(&path).unwrap_or_default();
        assert!(info(&mut &bytes[..], &Silent).is_ok());
    }
}

/// What is accepted as a diff is a sound delta for the target.
pub fn rbd(data: &[u8]) {
    let target = Memory::from_bytes(&[1; 50_000]);
    let mut delta = Vec::new();
    if let Ok(diff) = transcode(&mut &*data, None, &FileTarget::new(&target), &mut delta, &Silent) {
        match info(&mut delta.as_slice(), &Silent) {
            Ok(info) => assert_eq!(info.header.target.size_bytes, diff.size_bytes),
            Err(error) => panic!("the delta of a diff is refused: {error}"),
        }
    }
}

/// A small store with history: its device, its origin, and what every snapshot reads as.
struct Sample {
    store: Memory,
    origin: Arc<Memory>,
    images: Vec<Vec<u8>>,
}

const ORIGIN: u64 = 200_001;

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
    let mut images = Vec::new();
    for round in 0..6u8 {
        let mut writer = Writer::open(Arc::clone(&device), Some(Arc::<Memory>::clone(&origin)), 2)?;
        writer.create_snapshot(Tag(u32::from(round)), None)?;
        images.push(origin.to_vec()?);
        for step in 0..4u64 {
            let at = (u64::from(round) * 31_013 + step * 47_111) % (ORIGIN - 9000);
            writer.write_origin(at, &[round * 4 + 1; 9000])?;
        }
        writer.close()?;
    }
    // Damage to the very last records cannot be told from a torn tail. A checkpoint leaves no data there.
    rebuild(&device, &RebuildOptions { now_secs: 3, give_up: true, origin: None }, &Silent)?;
    Ok(Sample { store: store.snapshot(), origin, images })
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

/// Overwrites bytes of a sound store: each 12 bytes of `data` are an offset and eight bytes to put there. What
/// can still be read must read as it was.
pub fn store(data: &[u8]) {
    static SAMPLE: OnceLock<Option<Sample>> = OnceLock::new();
    let Some(sample) = SAMPLE.get_or_init(|| build().ok()) else { panic!("the sample store cannot be made") };
    let damaged = Arc::new(sample.store.snapshot());
    for edit in data.chunks_exact(12) {
        let (Some((at, bytes)), size) = (edit.split_first_chunk::<4>(), damaged.size()) else { continue };
        let at = u64::from(u32::from_le_bytes(*at)) % (size - 8);
        let _ = damaged.write_at(bytes, at);
    }
    let device: Arc<dyn ReadAt> = Arc::<Memory>::clone(&damaged);
    let _ = check(&device, None, CheckOptions { data: true }, &Silent);
    dump_all(&device);
    let Ok(view) = View::open(device, Some(Arc::<Memory>::clone(&sample.origin))) else { return };
    for snapshot in view.snapshots() {
        let Some(image) = sample.images.get(snapshot.tag.0 as usize) else { continue };
        let mut bytes = vec![0; image.len()];
        if view.read(PointId::Snapshot(snapshot.id), 0, &mut bytes).is_ok() {
            assert!(bytes == *image, "snapshot {} reads as something it never was", snapshot.tag);
        }
    }
}
