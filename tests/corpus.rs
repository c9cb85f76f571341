//! The fuzz targets over their corpus: every file, cut short at several places, and with bits flipped.
//!
//! `UPDATE_CORPUS=1` writes the seeds afresh. Inputs that fuzzing found are kept beside them under other names.

#[path = "../fuzz/targets/mod.rs"]
mod targets;

use crate::harness::{Rng, noise};
use ddsnap::format::checkpoint::{Checkpoint, LogPosition, encode_part};
use ddsnap::format::delta::ResumePoint;
use ddsnap::format::qcow2::{Backing, BackingFormat, Geometry};
use ddsnap::format::record::{Encoding, Entry, EntryClass, Record, RecordKind};
use ddsnap::format::run::{Key, Value, encode_block, encode_directory};
use ddsnap::format::superblock::{Extent, Superblock};
use ddsnap::format::switch::{Phase, Switch};
use ddsnap::format::table::{Deletion, Operation, Snapshot, Volume};
use ddsnap::format::vcdiff::encode;
use ddsnap::units::Uuid;
use std::path::{Path, PathBuf};
use targets::old::LEGACY_BASE;
use targets::{STORE, TARGETS};

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/corpus").join(target)
}

fn superblock() -> Superblock {
    let extent = Extent { address: 1 << 20, length: 4096, crc: 1 };
    Superblock {
        uuid: STORE.uuid,
        generation: 3,
        salt: STORE.salt,
        chunk_bits: 14,
        block_bits: 12,
        segment_bits: 20,
        segments: 100,
        created_secs: 1_700_000_000,
        checkpoint: 2,
        durable: 0,
        uncommitted: false,
        copies: [vec![extent], vec![extent]],
    }
}

fn switch_seeds() -> Vec<Vec<u8>> {
    let phases = [Phase::Switching, Phase::Switched, Phase::TakingBack, Phase::Committing];
    let sample =
        |phase| Switch { phase, uuid: STORE.uuid, saved: 5 << 20, block_bits: 12, old_crc: 1, new_crc: 2 };
    phases.into_iter().map(|phase| sample(phase).encode()).collect()
}

fn record() -> Record {
    let entry = |chunk: u64, encoding| Entry {
        chunk,
        owner: 1,
        sequence: 5,
        crc: 9,
        raw_length: 16384,
        stored_length: if encoding == Encoding::Raw { 16384 } else { 0 },
        encoding,
        class: EntryClass::Exception,
    };
    Record {
        address: 1 << 20,
        sequence: 5,
        incarnation: 6,
        durable: 4,
        epoch: 1,
        time_secs: 1_700_000_000,
        previous_crc: 7,
        kind: RecordKind::CopyOut,
        entries: vec![entry(3, Encoding::Raw), entry(4, Encoding::Zeroes)],
        body: Vec::new(),
        header_length: 0,
        data_length: 0,
        crc: 0,
    }
}

fn snapshot() -> Snapshot {
    Snapshot {
        id: 1,
        tag: 5,
        name: "monday".into(),
        use_count: 1,
        size_bytes: 1 << 30,
        created_secs: 1_700_000_000,
        generation: 0,
        created_at: 1 << 20,
        created_sequence: 2,
        priority: -3,
        squashed: false,
        tainted: false,
        hidden: false,
        holds: vec!["offsite".into(), "usb".into()],
    }
}

fn volume() -> Volume {
    Volume {
        volume: Uuid([2; 16]),
        origin_size: 1 << 30,
        squash_when_full: false,
        unwatched: false,
        generation: 1,
        equals: Some((Uuid([3; 16]), 4, 0)),
        path: b"/dev/vg/lv".to_vec(),
    }
}

fn checkpoint() -> Checkpoint {
    Checkpoint {
        log: LogPosition { address: 1 << 20, sequence: 4, crc: 5, incarnation: 6 },
        epoch: 1,
        next_run: 2,
        unswept: 0,
        low: Some((1, 4096)),
        high: Some((99, 4096)),
        ends: vec![(1, 2)],
        promised: vec![0, 2],
        snapshots: vec![snapshot()],
        graves: Vec::new(),
        segments: Vec::new(),
        runs: Vec::new(),
        events: vec![(1, "snapshot 3 deleted: the store was full".into())],
        volume: volume(),
        operation: None,
    }
}

fn tables() -> Vec<Vec<u8>> {
    let mut list = vec![Vec::new(); 4];
    snapshot().encode(&mut list[0]);
    volume().encode(&mut list[1]);
    Operation { before: 2, pinned: 1, token: [8; 32], forced: false, label: "apply-delta 1 to 2".into() }
        .encode(&mut list[2]);
    Deletion { id: 1, automatic: true, squashed: false, reason: "full".into() }.encode(&mut list[3]);
    list
}

fn index_seeds() -> Vec<Vec<u8>> {
    let entries: Vec<_> = (0..5).map(|i| (Key::exception(i, 1), Value::from_bits(u128::from(i)))).collect();
    vec![encode_block(1, 1, &entries), encode_directory(1, 0, &[(Key::MIN, 5)])]
}

fn changelist_seed() -> Vec<u8> {
    let mut bytes = b"rln\0\0\0\0\0".to_vec();
    for word in [14u32, 0, 1] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    for chunk in [1u64, 2, 9, u64::MAX] {
        bytes.extend_from_slice(&chunk.to_le_bytes());
    }
    bytes
}

/// What the real tools printed.
fn import_seeds() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/import");
    let names = ["thin_delta.xml", "thin_delta-verbose.xml", "era_invalidate.xml", "nbdinfo.json"];
    names.map(|name| std::fs::read(folder.join(name)).unwrap()).to_vec()
}

fn delta_seeds() -> Vec<Vec<u8>> {
    let dir = crate::harness::Dir::new();
    let old = vec![0; 1 << 16];
    let mut new = old.clone();
    new[5000..9000].copy_from_slice(&crate::harness::noise(1, 4000));
    new[40_000..50_000].fill(b'x');
    dir.write("old", &old);
    dir.write("new", &new);
    let ways = ["-r", "-b", "-g1"];
    ways.map(|way| dir.ok(&format!("create-delta {way} --compare old new -o -")).stdout).to_vec()
}

/// Deltas of 2008 that apply to what the target applies them to, in every way.
fn legacy_seeds() -> Vec<Vec<u8>> {
    let dir = crate::harness::Dir::new();
    let mut new = LEGACY_BASE.to_vec();
    new[700..720].copy_from_slice(b"twenty bytes of text");
    new[9000..12_000].fill(0);
    new[20_700] ^= 1;
    dir.write("old", &LEGACY_BASE);
    dir.write("new", &new);
    let list = [1u64, 17, 18, 19, 20, 21, 22, 23, 40, u64::MAX].map(u64::to_le_bytes).concat();
    dir.write("list", &[&b"rln\0\0\0\0\0\x09\0\0\0\x01\0\0\0\x02\0\0\0"[..], &list].concat());
    ["-r", "-x", "-r -g6", "-b"]
        .map(|way| {
            dir.ok(&format!("create-delta {way} --format 2008 list delta old new"));
            dir.read("delta")
        })
        .to_vec()
}

fn vcdiff_seeds() -> Vec<Vec<u8>> {
    let mut edited = LEGACY_BASE[..6400].to_vec();
    edited.rotate_left(1000);
    edited[50..90].fill(b'-');
    let window = |target: &[u8]| {
        [&[u8::try_from(target.len() / 64).unwrap()][..], &encode(&LEGACY_BASE, target)].concat()
    };
    vec![window(&edited), window(&[7; 640]), window(&noise(9, 64))]
}

fn qcow2_seed() -> Vec<u8> {
    let geometry = Geometry::new(12, 1 << 20).unwrap();
    let backing = Backing { name: b"monday.img".to_vec(), format: BackingFormat::Raw };
    let mut bytes = geometry.header(4096, &geometry.refcounts(5).unwrap(), Some(&backing)).unwrap();
    bytes.truncate(160);
    bytes
}

fn continuation_seeds() -> Vec<Vec<u8>> {
    let point = ResumePoint { bytes: 100, digest: [7; 32] };
    let delta = delta_seeds().swap_remove(2);
    let known = delta.len() / 2;
    let point_of = ResumePoint { bytes: known as u64, digest: *blake3::hash(&delta[..known]).as_bytes() };
    let rest = [&point_of.encode()[..], &delta[known..]].concat();
    vec![point.encode().to_vec(), point.to_string().into_bytes(), rest, delta]
}

fn rbd_seeds() -> Vec<Vec<u8>> {
    let dir = crate::harness::Dir::new();
    dir.write("old", &[1; 40_000]);
    let mut new = vec![1; 50_000];
    new[5000..5010].fill(2);
    new[8192..20_000].fill(0);
    dir.write("new", &new);
    let mut unaligned = b"rbd diff v1\n".to_vec();
    unaligned.extend(b"s\x50\xc3\0\0\0\0\0\0");
    unaligned.extend(b"w\x05\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0abc");
    unaligned.extend(b"z\x09\0\0\0\0\0\0\0\0\x50\0\0\0\0\0\0e");
    vec![dir.ok("create-delta --format rbd --compare old new -").stdout, unaligned]
}

/// Dumps of a volume, as it is and anonymous.
fn yaml_seeds() -> Vec<Vec<u8>> {
    let dir = crate::harness::volume();
    ["", "--anonymous"].map(|way| dir.ok(&format!("dump --format yaml {way} data.snap")).stdout).to_vec()
}

/// Clients that choose in different ways, and use what they chose.
fn nbd_seeds() -> Vec<Vec<u8>> {
    let option = |number: u32, data: &[u8]| {
        let length = u32::try_from(data.len()).unwrap();
        [&b"IHAVEOPT"[..], &number.to_be_bytes(), &length.to_be_bytes(), data].concat()
    };
    let go = |name: &str| {
        let length = u32::try_from(name.len()).unwrap();
        option(7, &[&length.to_be_bytes()[..], name.as_bytes(), &[0, 2, 0, 1, 0, 3]].concat())
    };
    // Flags, command, offset, length, data.
    let request = |flags: u16, command: u16, offset: u64, length: u32, data: &[u8]| {
        let cookie = u64::from(command) << 32 | offset;
        let head = [&0x2560_9513u32.to_be_bytes()[..], &flags.to_be_bytes(), &command.to_be_bytes()];
        let rest = [&cookie.to_be_bytes()[..], &offset.to_be_bytes(), &length.to_be_bytes(), data];
        [head.concat(), rest.concat()].concat()
    };
    let uses = [
        request(0, 0, 5000, 100, &[]),
        request(1, 1, 70_000, 16, b"sixteen letters."),
        request(0, 6, 9000, 8192, &[]),
        request(0, 4, 4096, 4096, &[]),
        request(0, 3, 0, 0, &[]),
        request(0, 0, u64::MAX, 2, &[]),
        request(0, 9, 0, 0, &[]),
        request(0, 2, 0, 0, &[]),
    ]
    .concat();
    let queries = option(9, &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, b'q']);
    let name = |name: &str| [&u32::try_from(name.len()).unwrap().to_be_bytes()[..], name.as_bytes()].concat();
    let names =
        [name("origin"), vec![0, 0, 0, 2], name("base:allocation"), name("qemu:dirty-bitmap:1")].concat();
    let status = [request(0, 7, 0, 100_000, &[]), request(8, 7, 4096, 1, &[])].concat();
    let contexts = [option(8, &[]), option(9, &names), option(10, &names), go("origin"), status].concat();
    let (fixed, zeroes) = (3u32.to_be_bytes(), 1u32.to_be_bytes());
    vec![
        [&fixed[..], &contexts].concat(),
        [&fixed[..], &option(8, &[]), &option(3, &[]), &queries, &go("origin"), &uses].concat(),
        [&fixed[..], &go("none"), &go("snap/5"), &uses].concat(),
        [&zeroes[..], &option(1, b""), &uses].concat(),
        [&fixed[..], &option(99, b"what"), &option(2, &[])].concat(),
    ]
}

/// Everything that a command can ask of a server.
fn control_seeds() -> Vec<Vec<u8>> {
    let say = |documents: &[&str]| -> Vec<u8> {
        let frame =
            |text: &&str| [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat();
        documents.iter().flat_map(frame).collect()
    };
    vec![
        say(&[
            "\"Describe\"",
            "\"Figures\"",
            "{\"Hold\":3}",
            "\"Freeze\"",
            "{\"Measure\":{\"Snapshot\":3}}",
            "{\"Preserved\":{\"id\":3,\"ranges\":[[0,100000]]}}",
            "\"Release\"",
            "\"Attach\"",
            "{\"Read\":{\"point\":{\"Snapshot\":3},\"offset\":100,\"length\":5000}}",
        ]),
        say(&[
            "{\"Change\":{\"Create\":{\"tag\":77,\"name\":\"noon\"}}}",
            "{\"Change\":{\"Delete\":1}}",
            "{\"Change\":{\"Priority\":[3,-5]}}",
            "{\"Change\":{\"UseCount\":[3,1]}}",
            "{\"Change\":{\"Hold\":[3,\"offsite\"]}}",
            "{\"Change\":{\"MoveHold\":{\"name\":\"offsite\",\"from\":3,\"to\":5}}}",
            "{\"Change\":{\"Release\":[5,\"offsite\"]}}",
            "{\"Change\":{\"FullPolicy\":\"Squash\"}}",
            "{\"Room\":1000}",
            "{\"OriginSize\":{\"size\":100000,\"within\":false}}",
            "{\"StoreSize\":3000000}",
            "{\"Write\":{\"point\":\"Origin\",\"pieces\":[[10,0],[20,0]]}}",
            "\"Flush\"",
            "{\"End\":null}",
            "\"Describe\"",
            "\"Stop\"",
        ]),
        say(&["\"Destroy\"", "{\"Read\":{}}"]),
        [
            say(&["\"Freeze\"", "{\"Serve\":{\"Snapshot\":3}}"]),
            // From then on requests of NBD: it reads 512 bytes, and says good-bye.
            nbd_request(0, 512),
            nbd_request(2, 0),
        ]
        .concat(),
    ]
}

fn nbd_request(command: u16, length: u32) -> Vec<u8> {
    let parts = [&0x2560_9513_u32.to_be_bytes()[..], &[0; 2], &command.to_be_bytes(), &[7; 8], &[0; 8]];
    [&parts.concat()[..], &length.to_be_bytes()].concat()
}

fn netlink_seed() -> Vec<u8> {
    use ddsnap::format::netlink::{attribute_text, attribute_u32, nest, request};
    let inner = nest(1, &attribute_u32(1, 5));
    let attributes = [attribute_u32(1, 7), attribute_text(10, "backend"), nest(7, &inner)].concat();
    [request(20, 3, 9, &attributes), request(2, 0, 9, &[0; 16])].concat()
}

/// A device, whose bytes are requests too, and a request of each sort.
fn ublk_seed() -> Vec<u8> {
    use ddsnap::format::ublk::{DeviceInfo, State, feature};
    let info = DeviceInfo {
        queues: 1,
        depth: 128,
        state: State::Live,
        request_bytes_max: 1 << 20,
        number: 3,
        pid: 77,
        features: feature::USER_COPY,
        mark: 0x1234_5678_9abc_def0,
    };
    let mut seed = info.encode().to_vec();
    // Requests begin at every 24th byte.
    seed.resize(72, 0);
    for operation in [0u64, 1 | 1 << 13, 2, 3, 5, 9] {
        seed.extend((operation | 8 << 32).to_le_bytes());
        seed.extend([4096u64.to_le_bytes(), [0; 8]].concat());
    }
    seed
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "superblock" => {
            vec![superblock().encode(), Superblock { uncommitted: true, ..superblock() }.encode()]
        }
        "switch" => switch_seeds(),
        "record" => vec![record().encode(&STORE)],
        "checkpoint" => vec![checkpoint().encode()],
        "part" => vec![encode_part(&superblock(), 2, 1 << 20, (0, 1), 7, &checkpoint().encode())],
        "index" => index_seeds(),
        "tables" => tables(),
        "changelist" => vec![changelist_seed()],
        "import" => import_seeds(),
        "delta" => delta_seeds(),
        "legacy_delta" => legacy_seeds(),
        "vcdiff" => vcdiff_seeds(),
        "continuation" => continuation_seeds(),
        "rbd" => rbd_seeds(),
        "qcow2" => vec![qcow2_seed()],
        "yaml" => yaml_seeds(),
        "http" => vec![b"GET /metrics?a=b HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n".to_vec()],
        "nbd" => nbd_seeds(),
        "netlink" => vec![netlink_seed()],
        "ublk" => vec![ublk_seed()],
        "control" => control_seeds(),
        // Written by the tests of the reader, which make such stores.
        "legacy" => Vec::new(),
        _ => vec![vec![0; 12], [&0x0001_0000u32.to_le_bytes()[..], &[9; 8]].concat()],
    }
}

#[test]
fn every_target_survives_its_corpus() {
    let mut files = 0;
    for (target, run) in TARGETS {
        let folder = folder(target);
        if std::env::var_os("UPDATE_CORPUS").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            for (number, seed) in seeds(target).iter().enumerate() {
                std::fs::write(folder.join(format!("seed-{number}")), seed).unwrap();
            }
        }
        let mut rng = Rng(1);
        for file in std::fs::read_dir(&folder).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            files += 1;
            run(&bytes);
            for _ in 0..40 {
                run(&bytes[..rng.below(bytes.len() as u64 + 1) as usize]);
                let mut flipped = bytes.clone();
                let at = rng.below(bytes.len() as u64) as usize;
                flipped[at] ^= 1 << rng.below(8);
                run(&flipped);
            }
        }
    }
    assert!(files >= 16, "only {files} files in the corpus");
}

/// Damages of every sort at random places of the sample store, several at once.
#[test]
fn a_damaged_store_never_reads_as_something_it_was_not() {
    for seed in crate::random::seeds(16) {
        let mut rng = Rng(seed);
        for round in 0..4 {
            let edits = 1 + rng.pick(1 << (1 + round));
            let bytes = rng.bytes(edits * targets::store::DAMAGE_BYTES);
            eprintln!("seed {seed}, round {round}: {}", hex::encode(&bytes));
            targets::store::store(&bytes);
        }
    }
}
