//! What every fuzz target does with its bytes. The tests run the same over the corpus, on any toolchain.
//!
//! A target asserts what must hold whatever the bytes are: no panic, no hang, no unbounded memory, and what is
//! accepted can be encoded and decoded again, or reads as what it must be.

use ddsnap::block::memory::Memory;
use ddsnap::block::{ReadAt, WriteAt};
use ddsnap::delta::{
    ApplyOptions, BasedTarget, ChangelistReader, FileTarget, Input, Part as DeltaPart, Verdict, apply, info,
    transcode, verify,
};
use ddsnap::dump::{Options, Part, dump, read_tables};
use ddsnap::error::Kind;
use ddsnap::format::checkpoint::{Checkpoint, decode_part};
use ddsnap::format::delta::ResumePoint;
use ddsnap::format::qcow2;
use ddsnap::format::record::Record;
use ddsnap::format::run::{decode_block, decode_directory, encode_block};
use ddsnap::format::superblock::Superblock;
use ddsnap::format::switch::Switch;
use ddsnap::format::table::{Deletion, Operation, Snapshot, Volume, decode_fingerprint};
use ddsnap::format::vcdiff;
use ddsnap::legacy;
use ddsnap::point::import::{Import, ImportOptions};
use ddsnap::point::volume::{SnapshotState, Volume as _};
use ddsnap::point::{Point, PointId, PointSource};
use ddsnap::progress::Silent;
use ddsnap::serve::control::Control;
use ddsnap::serve::export::Volume as Exported;
use ddsnap::serve::figures::Collector;
use ddsnap::serve::front::Service;
use ddsnap::serve::listen::Stream;
use ddsnap::serve::nbd as protocol;
use ddsnap::store::fsck::{CheckOptions, Leave, RebuildOptions, check, rebuild, repair};
use ddsnap::store::restore::{Target as Place, restore};
use ddsnap::store::{InitOptions, Live, View, Writer};
use ddsnap::units::{self, Tag, Uuid};
use sha2::Digest;
use std::collections::BTreeMap;
use std::io::{Cursor, Read, Write};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

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
    durable: 0,
    uncommitted: false,
    copies: [Vec::new(), Vec::new()],
};

/// A target and its name.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("superblock", superblock),
    ("switch", switch),
    ("record", record),
    ("checkpoint", checkpoint),
    ("part", part),
    ("index", index),
    ("tables", tables),
    ("changelist", changelist),
    ("delta", delta),
    ("legacy_delta", legacy_delta),
    ("vcdiff", vcdiff),
    ("continuation", continuation),
    ("qcow2", qcow2),
    ("rbd", rbd),
    ("store", store),
    ("yaml", yaml),
    ("import", import),
    ("legacy", legacy),
    ("http", http),
    ("nbd", nbd),
    ("netlink", netlink),
    ("control", control),
];

pub fn http(data: &[u8]) {
    if let Ok(request) = ddsnap::format::http::Request::decode(data) {
        assert!(request.path.starts_with('/') && !request.path.contains(['?', ' ', '\n']));
    }
    let _ = ddsnap::format::http::is_whole(data);
}

/// What a kernel answers: an end is found, and nothing outside of what it is in.
pub fn netlink(data: &[u8]) {
    use ddsnap::format::netlink::{Message, find, messages, number};
    for (_, message) in messages(data).unwrap_or_default() {
        let Message::Answer(attributes) = message else { continue };
        for kind in 0..16 {
            let found = find(attributes, kind).ok().flatten();
            assert!(found.is_none_or(|found| found.len() + 4 <= attributes.len()));
            let _ = found.map(number);
        }
    }
}

pub fn superblock(data: &[u8]) {
    if let Ok(sb) = Superblock::decode(data) {
        assert_eq!(Superblock::decode(&sb.encode()).ok(), Some(sb));
    }
}

pub fn switch(data: &[u8]) {
    if let Ok(Some(found)) = Switch::decode(data, 1 << 30) {
        assert!(found.saved + found.saved_bytes() <= 1 << 30);
        assert_eq!(Switch::decode(&found.encode(), 1 << 30).ok(), Some(Some(found)));
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

/// A delta of 2008, without and with a base; then onto a copy of that, which is changed as a whole or not at all.
pub fn legacy_delta(data: &[u8]) {
    let _ = info(&mut &*data, &Silent);
    let base = Memory::from_bytes(&LEGACY_BASE);
    let sound = matches!(verify(&mut &*data, Some(&base), 1, &Silent), Ok(Verdict::Sound { .. }));
    let target = Memory::from_bytes(&LEGACY_BASE);
    let options = ApplyOptions { force: false, undo: None, dry_run: false, threads: 1 };
    let mut input = Input::from_reader(Box::new(Cursor::new(data.to_vec())));
    let plain = FileTarget::new(&target);
    let applied = apply(&mut input, &BasedTarget::new(&plain, &base), &options, &Silent).is_ok();
    let is_legacy = ddsnap::format::legacy_delta::is_delta(data);
    assert!(!is_legacy || applied == sound, "what is sound is applied, and nothing else");
    assert!(
        applied || target.to_vec().is_ok_and(|now| now == LEGACY_BASE),
        "refused, but something was written"
    );
}

/// What deltas of 2008 are tried on: 40 chunks of 512 bytes and a half.
pub static LEGACY_BASE: [u8; 20736] = {
    let mut bytes = [0; 20736];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = ((at * at) >> 7) as u8;
        at += 1;
    }
    bytes
};

/// The first byte says how long the target is, in steps of 64; the source is the same every time.
pub fn vcdiff(data: &[u8]) {
    let Some((steps, payload)) = data.split_first() else { return };
    let length = usize::from(*steps) * 64;
    if let Ok(target) = vcdiff::decode(payload, &LEGACY_BASE, length) {
        assert_eq!(target.len(), length);
        let again = vcdiff::encode(&LEGACY_BASE, &target);
        assert!(vcdiff::decode(&again, &LEGACY_BASE, length).is_ok_and(|back| back == target));
    }
    let encoded = vcdiff::encode(&LEGACY_BASE, payload);
    assert!(vcdiff::decode(&encoded, &LEGACY_BASE, payload.len()).is_ok_and(|back| back == payload));
}

pub fn qcow2(data: &[u8]) {
    if let Ok(Some(image)) = qcow2::decode(data) {
        assert!(data.len() >= size_of::<qcow2::RawHeader>() && (9..=21).contains(&image.cluster_bits));
    }
}

/// A store of 2008: how to open it (bit 0: with a metadata device; bits 1 and 2: the layout), then the device with its
/// metadata, from the superblock on.
pub fn legacy(data: &[u8]) {
    let Some((way, rest)) = data.split_first() else { return };
    let metadata = Arc::new(Memory::new(4096 + rest.len() as u64));
    if metadata.write_at(rest, 4096).is_err() {
        return;
    }
    let release = match way >> 1 & 3 {
        1 => Some(legacy::Release::R04),
        2 => Some(legacy::Release::R10),
        _ => None,
    };
    legacy_repair(*way, &metadata, release);
    let Ok(store) = legacy::Store::open(legacy_devices(*way, &metadata), release, &Silent) else { return };
    let _ = (store.info(), store.snapshots(), store.sharing());
    let points = store.points();
    for point in points.iter().take(4) {
        let mut bytes = vec![0; units::index(point.size_bytes.min(1 << 15))];
        let _ = store.read(point.id, 0, &mut bytes);
        for from in [None, points.first().map(|first| first.id), Some(PointId::Origin)] {
            let Ok(changes) = store.changed(from, point.id) else { continue };
            let mut last = 0;
            for range in changes {
                let Ok(range) = range else { break };
                assert!(range.start >= last && range.end > range.start);
                last = range.end;
            }
        }
    }
}

fn legacy_devices(way: u8, metadata: &Arc<Memory>) -> legacy::Devices {
    let metadata: Arc<dyn ReadAt> = Arc::<Memory>::clone(metadata);
    let origin: Option<Arc<dyn ReadAt>> = Some(Arc::new(Memory::from_bytes(&[1; 1 << 15])));
    if way & 1 == 1 {
        let store = Arc::new(Memory::from_bytes(&[2; 1 << 15]));
        return legacy::Devices { store, metadata: Some(metadata), origin };
    }
    legacy::Devices { store: metadata, metadata: None, origin }
}

/// Repairs a store of 2008 both ways. What a repair that gives nothing up leaves reads as before, and needs no other.
fn legacy_repair(way: u8, metadata: &Arc<Memory>, release: Option<legacy::Release>) {
    let read = |metadata: &Arc<Memory>| {
        let store = legacy::Store::open(legacy_devices(way, metadata), release, &Silent).ok()?;
        let sectors = |point: &Point| (0..point.size_bytes.min(1 << 14) / 512).map(|at| at * 512).collect();
        let read = |point: &Point| {
            let sectors: Vec<u64> = sectors(point);
            sectors
                .into_iter()
                .map(|at| {
                    let mut bytes = [0; 512];
                    store.read(point.id, at, &mut bytes).ok().map(|()| bytes)
                })
                .collect::<Vec<_>>()
        };
        Some(store.points().iter().take(4).map(read).collect::<Vec<_>>())
    };
    let Some(before) = read(metadata) else { return };
    let _ = legacy::check(&legacy_devices(way, metadata), release, &Silent);
    for leave in [Leave::Safe, Leave::Everything] {
        let device = Arc::new(metadata.snapshot());
        let repair =
            || legacy::repair(&legacy_devices(way, &device), device.as_ref(), release, leave, &Silent);
        let Ok(repaired) = repair() else { continue };
        assert!(leave == Leave::Everything || repaired.lost.is_empty());
        let after = read(&device).unwrap_or_default();
        if leave == Leave::Safe {
            for (old, new) in before.iter().flatten().zip(after.iter().flatten()) {
                assert!(old.is_none() || old == new, "a snapshot reads otherwise after a repair");
            }
            let again = repair().unwrap_or_default();
            assert!(again.writes.is_empty(), "a repair left something: {:?}", again.writes);
        }
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

/// A small store with history: its device now and at earlier times, its origin, and what its snapshots read as.
struct Sample {
    store: Memory,
    older: Vec<Memory>,
    origin: Arc<Memory>,
    images: BTreeMap<u32, Vec<u8>>,
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
    rebuild(&device, &RebuildOptions { now_secs: 3, give_up: true, shorter: true, origin: None }, &Silent)?;
    Ok(Sample { store: store.snapshot(), older, origin, images })
}

fn sample() -> &'static Sample {
    static SAMPLE: OnceLock<Option<Sample>> = OnceLock::new();
    let Some(sample) = SAMPLE.get_or_init(|| build().ok()) else { panic!("the sample store cannot be made") };
    sample
}

/// A client of a server, which says everything before it listens; one connection, however often it is cloned.
#[derive(Clone)]
struct Client {
    says: Arc<Mutex<Cursor<Vec<u8>>>>,
    hears: Arc<Mutex<Vec<u8>>>,
}

impl Client {
    fn new(says: &[u8]) -> Self {
        Self { says: Arc::new(Mutex::new(Cursor::new(says.to_vec()))), hears: Arc::default() }
    }

    /// What it heard since it was last asked.
    fn take_heard(&self) -> Vec<u8> {
        std::mem::take(&mut *self.hears.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Read for Client {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.says.lock().unwrap_or_else(PoisonError::into_inner).read(buf)
    }
}

impl Write for Client {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.hears.lock().unwrap_or_else(PoisonError::into_inner).write(buf)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Stream for Client {
    fn again(&self) -> std::io::Result<Self> {
        Ok(self.clone())
    }

    fn set_limit(&self, _limit: Option<Duration>) -> std::io::Result<()> {
        Ok(())
    }

    fn end(&self) {}

    fn ensure_own_user(&self) -> ddsnap::error::Result<()> {
        Ok(())
    }
}

/// Lets `client` talk to a server of the sample store. Whatever it says, snapshots that are left read as before.
fn serve(client: impl FnOnce(&Arc<Live>)) {
    let sample = sample();
    let (store, origin) = (Arc::new(sample.store.snapshot()), Arc::new(sample.origin.snapshot()));
    let view = || View::open(Arc::<Memory>::clone(&store), Some(Arc::<Memory>::clone(&origin)));
    let before = view().map(|view| view.snapshots()).unwrap_or_default();
    assert_eq!(before.len(), sample.images.len());
    let writer = Writer::open(Arc::<Memory>::clone(&store), Some(Arc::<Memory>::clone(&origin)), 6);
    let Ok(live) = writer.and_then(|writer| Live::start(writer, || 7)) else { panic!("no server begins") };
    let live = Arc::new(live);
    client(&live);
    let Some(live) = Arc::into_inner(live) else { panic!("a connection outlives its end") };
    if let Err(error) = live.close() {
        panic!("the server does not close its store: {error}");
    }
    let view = match view() {
        Ok(view) => view,
        Err(error) => panic!("the store cannot be opened any more: {error}"),
    };
    for snapshot in view.snapshots().iter().filter(|snapshot| snapshot.state == SnapshotState::Normal) {
        let Some(image) =
            before.iter().find(|old| old.id == snapshot.id).and_then(|old| sample.images.get(&old.tag.0))
        else {
            continue;
        };
        let mut bytes = vec![0; image.len()];
        let read = view.read(PointId::Snapshot(snapshot.id), 0, &mut bytes);
        assert!(read.is_ok() && bytes == *image, "snapshot {} reads otherwise", snapshot.tag);
    }
}

/// An NBD client from its flags on. Replies that say their own length follow one another to the end.
pub fn nbd(data: &[u8]) {
    serve(|live| {
        let mut client = Client::new(data);
        let exports = Exported(Arc::clone(live));
        let plain = protocol::Encryption::Settled;
        let Ok(protocol::Agreed::On(session)) = protocol::negotiate(&mut client, &exports, plain) else {
            return;
        };
        let _ = client.take_heard();
        let _ = protocol::serve(&session, client.clone(), client.clone(), || client.end());
        let heard = client.take_heard();
        let mut rest = heard.as_slice();
        while session.structured && !rest.is_empty() {
            let Some((head, after)) = rest.split_first_chunk::<20>() else { panic!("a reply is cut short") };
            assert_eq!(head[..4], [0x66, 0x8e, 0x33, 0xef]);
            let length = u32::from_be_bytes([head[16], head[17], head[18], head[19]]);
            let Some(after) = after.get(length as usize..) else { panic!("a reply is cut short") };
            rest = after;
        }
    });
}

/// A client of the control socket: documents, each after its length. Each is answered by a document, until bytes come.
pub fn control(data: &[u8]) {
    serve(|live| {
        let client = Client::new(data);
        let figures = Arc::new(Collector::new(live, &Arc::default(), &Arc::default()));
        let _ = Control::new(live, figures, Arc::new(AtomicBool::new(false))).serve(client.clone());
        let heard = client.take_heard();
        let mut rest = heard.as_slice();
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let document = after.split_at_checked(u32::from_be_bytes(*length) as usize);
            let Some((document, after)) = document else { panic!("an answer is cut short") };
            assert!(matches!(document, [b'{', .., b'}'] | [b'"', .., b'"']));
            // How many bytes were asked for stands in the request.
            let bytes_follow = [&b"\"Data\""[..], b"{\"Attached\"", b"{\"Device\""]
                .iter()
                .any(|begin| document.starts_with(begin));
            rest = if bytes_follow { &[] } else { after };
        }
        assert!(rest.is_empty(), "an answer is cut short");
    });
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
        let options = RebuildOptions { now_secs: 5, give_up, shorter: true, origin: None };
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
