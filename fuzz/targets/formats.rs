//! Bytes of one format, on their own.

use super::STORE;
use super::old::LEGACY_BASE;
use ddsnap::block::memory::Memory;
use ddsnap::delta::{ChangelistReader, FileTarget, Part as DeltaPart, info, transcode, verify};
use ddsnap::format::checkpoint::{Checkpoint, decode_part};
use ddsnap::format::delta::ResumePoint;
use ddsnap::format::qcow2;
use ddsnap::format::record::Record;
use ddsnap::format::run::{decode_block, decode_directory, encode_block};
use ddsnap::format::superblock::Superblock;
use ddsnap::format::switch::Switch;
use ddsnap::format::table::{Deletion, Operation, Snapshot, Volume, decode_fingerprint};
use ddsnap::format::vcdiff;
use ddsnap::point::import::{Import, ImportOptions};
use ddsnap::progress::Silent;
use std::io::Cursor;

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

/// What a kernel's ublk driver tells: a device reads back, and a request ends where numbers do.
pub fn ublk(data: &[u8]) {
    use ddsnap::format::ublk::{DeviceInfo, Operation, Request};
    if let Some(bytes) = data.first_chunk()
        && let Ok(info) = DeviceInfo::decode(bytes)
    {
        assert_eq!(DeviceInfo::decode(&info.encode()).unwrap(), info);
    }
    for bytes in data.chunks_exact(Request::SIZE) {
        let Ok(request) = Request::decode(bytes.first_chunk().unwrap()) else { continue };
        assert!(request.offset.checked_add(u64::from(request.length)).is_some());
        assert!(request.operation != Operation::Flush || request.length == 0);
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
