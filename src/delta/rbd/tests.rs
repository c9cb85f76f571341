//! Diffs written, read back, and damaged in every place.

use super::{RbdSummary, Sidecar, create_rbd};
use crate::block::memory::Memory;
use crate::block::{ReadAt, WriteAt};
use crate::delta::{ApplyOptions, FileTarget, Input, apply};
use crate::error::{Error, Kind, Result};
use crate::format::delta::PointLabel;
use crate::format::rbd::{MAGIC, Record};
use crate::point::files::Files;
use crate::progress::Silent;
use crate::units::{Tag, Uuid};
use proptest::prelude::*;
use std::io::Cursor;
use std::sync::Arc;

fn diff(old: Option<&[u8]>, new: &[u8], chunk_bits: u32) -> (Vec<u8>, RbdSummary) {
    let memory = |bytes: &[u8]| -> Arc<dyn ReadAt> { Arc::new(Memory::from_bytes(bytes)) };
    let source = Files::new(old.map(|old| (memory(old), Tag(0))), (memory(new), Tag(1)), chunk_bits).unwrap();
    let mut out = Vec::new();
    let from = old.map(|_| Files::OLD);
    let summary = create_rbd(&source, from, Files::NEW, None, &mut out, &Silent).unwrap();
    assert_eq!(summary.sidecar.digest, *blake3::hash(&out).as_bytes());
    assert_eq!(summary.sidecar.stream_bytes, out.len() as u64);
    (out, summary)
}

fn options(force: bool) -> ApplyOptions {
    ApplyOptions { force, undo: None, dry_run: false, threads: 2 }
}

fn apply_to(target: &Memory, diff: &[u8], force: bool) -> Result<()> {
    let mut input = Input::from_reader(Box::new(Cursor::new(diff.to_vec())));
    apply(&mut input, &FileTarget::new(target), &options(force), &Silent).map(|_| ())
}

fn applied(base: &[u8], diff: &[u8]) -> Vec<u8> {
    let target = Memory::from_bytes(base);
    apply_to(&target, diff, true).unwrap();
    target.to_vec().unwrap()
}

fn records(list: &[(Record, &[u8])]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    for (record, data) in list {
        bytes.extend(record.encode());
        bytes.extend_from_slice(data);
    }
    bytes
}

fn noise(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[1] ^ seed).collect()
}

#[test]
fn the_stream_is_laid_out_as_ceph_does() {
    let old = vec![7; 40_000];
    let mut new = old.clone();
    new[9000] = 8;
    new[16_384..32_768].fill(0);
    let (bytes, summary) = diff(Some(&old), &new, 12);
    let expected = records(&[
        (Record::From(1), b"0"),
        (Record::To(1), b"1"),
        (Record::Size(40_000), b""),
        (Record::Write { offset: 8192, length: 4096 }, &new[8192..12_288]),
        (Record::Zero { offset: 16_384, length: 16_384 }, b""),
        (Record::End, b""),
    ]);
    assert!(bytes == expected);
    assert_eq!((summary.data_bytes, summary.zero_bytes), (4096, 16_384));
}

#[test]
fn records_are_joined_and_bounded() {
    let new = vec![1; 20 << 20];
    let (bytes, _) = diff(None, &new, 14);
    let mut at = MAGIC.len() + 6 + 9;
    for (offset, length) in [(0, 8 << 20), (8 << 20, 8 << 20), (16 << 20, 4 << 20)] {
        let head = Record::Write { offset, length }.encode();
        assert_eq!(bytes[at..at + 17], head);
        at += 17 + usize::try_from(length).unwrap();
    }
    assert_eq!(bytes[at..], *b"e");
    let zeros: Arc<dyn ReadAt> = Arc::new(Memory::new((3 << 30) + 5));
    let source = Files::new(None, (zeros, Tag(1)), 20).unwrap();
    let mut out = Vec::new();
    create_rbd(&source, None, Files::NEW, None, &mut out, &Silent).unwrap();
    assert_eq!(out.len(), MAGIC.len() + 6 + 9 + 4 * 17 + 1, "zeros in records of at most 1 GiB");
}

#[test]
fn a_diff_makes_what_it_was_made_of() {
    let old = noise(1, 100_001);
    for (new_len, chunk_bits) in [(100_001, 12), (100_001, 14), (50_003, 12), (300_000, 16), (0, 12)] {
        let mut new = old.clone();
        new.resize(new_len, 0);
        if new_len > 0 {
            new[20_000..40_000].fill(0);
            new[45_000..45_010].fill(3);
            new[new_len - 1] = 9;
        }
        let (bytes, _) = diff(Some(&old), &new, chunk_bits);
        assert!(applied(&old, &bytes) == new, "{new_len}");
        let (bytes, _) = diff(None, &new, chunk_bits);
        assert!(applied(&noise(5, 70_000), &bytes) == new, "whole, {new_len}");
    }
}

/// Records that begin and end anywhere, several to a chunk, over a target shorter and longer than the image.
#[test]
fn records_may_be_cut_at_any_byte() {
    let data = noise(3, 3 << 20);
    for base_len in [1 << 20, (4 << 20) + 77, (4 << 20) - 1] {
        let base = noise(9, base_len);
        let size = (4u64 << 20) + 77;
        let mut expected = base.clone();
        expected.resize(usize::try_from(size).unwrap(), 0);
        let mut list = vec![(Record::From(1), &b"a"[..]), (Record::Size(size), b"")];
        let mut at = 5u64;
        for (index, length) in [1, 10, 4000, 4096, 100, 50_000, 1, 2_000_003, 7, 8191].into_iter().enumerate()
        {
            let place = usize::try_from(at).unwrap()..usize::try_from(at + length).unwrap();
            if index % 3 == 2 {
                list.push((Record::Zero { offset: at, length }, b""));
                expected[place].fill(0);
            } else {
                let data = &data[..usize::try_from(length).unwrap()];
                list.push((Record::Write { offset: at, length }, data));
                expected[place].copy_from_slice(data);
            }
            list.push((Record::Write { offset: 3, length: 0 }, b""));
            at += length + [0, 3, 5000][index % 3];
        }
        let tail = size - 5000;
        list.push((Record::Zero { offset: tail, length: 5000 }, b""));
        expected[usize::try_from(tail).unwrap()..].fill(0);
        list.push((Record::End, b""));
        assert!(applied(&base, &records(&list)) == expected, "base of {base_len} bytes");
    }
}

#[test]
fn growth_needs_no_records() {
    for (old, new) in [(5000, 5001), (5000, 100_000), (4096, 8192), (4095, 4096), (1, 1 << 20), (8193, 8200)]
    {
        let base = noise(1, old);
        let mut list = vec![(Record::From(1), &b"a"[..]), (Record::Size(new), b"")];
        let mut expected = base.clone();
        expected.resize(usize::try_from(new).unwrap(), 0);
        for last in [false, true] {
            if last {
                list.push((Record::Write { offset: new - 1, length: 1 }, b"x"));
                *expected.last_mut().unwrap() = b'x';
            }
            let mut whole = list.clone();
            whole.push((Record::End, b""));
            assert!(applied(&base, &records(&whole)) == expected, "{old} to {new}, {last}");
        }
    }
}

#[test]
fn without_a_beginning_all_else_is_zero() {
    let list = [
        (Record::Size(1 << 20), &b""[..]),
        (Record::Write { offset: 70_001, length: 3 }, b"abc"),
        (Record::End, b""),
    ];
    let mut expected = vec![0; 1 << 20];
    expected[70_001..70_004].copy_from_slice(b"abc");
    assert!(applied(&noise(1, 90_000), &records(&list)) == expected);
    assert!(applied(b"", &records(&[(Record::Size(0), b""), (Record::End, b"")])).is_empty());
}

#[test]
fn an_unproven_base_needs_force() {
    let old = noise(1, 40_000);
    let mut new = old.clone();
    new[5] ^= 1;
    let target = Memory::from_bytes(&old);
    let (bytes, _) = diff(Some(&old), &new, 12);
    assert_eq!(apply_to(&target, &bytes, false).unwrap_err().kind(), Kind::Refused);
    assert!(target.to_vec().unwrap() == old);
    // What is there already needs no proof.
    apply_to(&target, &bytes, true).unwrap();
    apply_to(&target, &bytes, false).unwrap();
    // Nothing but a shorter image would be a quiet loss.
    let shorter = records(&[(Record::From(1), b"x"), (Record::Size(100), b""), (Record::End, b"")]);
    assert_eq!(apply_to(&target, &shorter, false).unwrap_err().kind(), Kind::Refused);
    assert!(target.to_vec().unwrap() == new);
    apply_to(&target, &shorter, true).unwrap();
    assert!(target.to_vec().unwrap() == new[..100]);
}

fn sample() -> (Vec<u8>, Vec<u8>) {
    let old = noise(1, 9000);
    let mut new = old.clone();
    new[10..20].fill(4);
    new[4096..8192].fill(0);
    (old.clone(), diff(Some(&old), &new, 12).0)
}

fn refused(old: &[u8], diff: &[u8]) -> Result<Error> {
    let target = Memory::from_bytes(old);
    match apply_to(&target, diff, true) {
        Ok(()) => Err(Error::damaged("accepted")),
        Err(error) => {
            assert!(target.to_vec()? == old, "touched after {error}");
            Ok(error)
        }
    }
}

#[test]
fn every_truncation_is_damage_and_touches_nothing() {
    let (old, bytes) = sample();
    for len in 0..bytes.len() {
        assert_eq!(refused(&old, &bytes[..len]).unwrap().kind(), Kind::Damaged, "{len}");
    }
    let longer = [&bytes[..], b"e"].concat();
    assert!(refused(&old, &longer).unwrap().to_string().contains("bytes follow the end marker"));
}

/// The format carries no checksums: a flipped bit is an error that touches nothing, or another sound diff.
#[test]
fn every_flipped_bit_is_refused_or_makes_another_sound_diff() {
    let (old, bytes) = sample();
    let (mut bad, mut other) = (0, 0);
    for at in 0..200 {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            // A size that asks for terabytes is sound, and would be made of zeros for long.
            if (25..33).contains(&at) {
                continue;
            }
            match refused(&old, &flipped) {
                Ok(error) => {
                    assert!(matches!(error.kind(), Kind::Damaged | Kind::Unsupported), "{error}");
                    bad += 1;
                }
                Err(_) => other += 1,
            }
        }
    }
    assert!(bad > 300 && other > 500, "{bad} refused, {other} sound");
}

#[test]
fn other_streams_of_ceph_are_named() {
    for line in [&b"rbd diff v2\nxxxxx"[..], b"rbd image v2\nxxxxx"] {
        let error = refused(&[0; 5000], line).unwrap();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("expected 'rbd diff v1'"), "{error}");
    }
}

#[test]
fn a_sidecar_comes_back_or_is_refused() {
    let point = |id, name: Option<&str>| PointLabel {
        volume: Uuid([7; 16]),
        id,
        generation: 2,
        size_bytes: 1 << 40,
        tag: Tag(3),
        name: name.map(ToOwned::to_owned),
    };
    let sidecar = Sidecar {
        stream_bytes: 99,
        digest: [5; 32],
        source: Some(point(4, Some("mon\"day"))),
        target: point(u64::MAX, None),
    };
    let text = sidecar.encode();
    assert_eq!(Sidecar::decode(text.as_bytes()).unwrap(), sidecar);
    for len in 0..text.len() - 1 {
        assert_eq!(Sidecar::decode(&text.as_bytes()[..len]).unwrap_err().kind(), Kind::Damaged, "{len}");
    }
    let newer = text.replace("sidecar/1", "sidecar/2");
    assert_eq!(Sidecar::decode(newer.as_bytes()).unwrap_err().kind(), Kind::Damaged);
}

proptest! {
    #[test]
    fn hostile_streams_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..120), size in 0u64..100_000) {
        let target = Memory::from_bytes(&[1; 50_000]);
        let mut bytes = records(&[(Record::From(1), b"a"), (Record::Size(size), b"")]);
        for byte in tail {
            // Mostly tags and small numbers, so that records are met.
            bytes.push(if byte < 128 { b"wze\0\0\0\0\0"[usize::from(byte % 8)] } else { byte - 128 });
        }
        let _ = apply_to(&target, &bytes, true);
        prop_assert!(target.size() == 50_000 || target.size() == size);
        target.flush().unwrap();
    }
}
