//! Through memory: what the command line cannot show, and every damage.
#![allow(clippy::cast_possible_truncation, reason = "the numbers of these tests are small")]

use super::{BasedTarget, LegacyMode, LegacyOptions, create_legacy};
use crate::block::memory::Memory;
use crate::delta::{ApplyOptions, FileTarget, Input, Verdict, apply, info, verify};
use crate::error::{Kind, Result};
use crate::format::legacy_delta::{CODINGS, Coding, EXTENT_HEADER_BYTES, Extent, HEADER_BYTES, Header, sum};
use crate::point::files::Files;
use crate::point::{ChunkRange, PointId};
use crate::progress::Silent;
use crate::units::Tag;
use std::io::Cursor;
use std::sync::Arc;

const CHUNK: usize = 512;
const RAW: LegacyOptions = LegacyOptions { mode: LegacyMode::Raw, level: 0, threads: 1 };

/// Two volumes: text of which some was edited, some moved, some made zero; the last chunk is partial.
fn volumes() -> (Vec<u8>, Vec<u8>) {
    let old: Vec<u8> =
        (0..20 * CHUNK as u32 + 100).map(|n| (n.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect();
    let mut new = old.clone();
    new[600..620].copy_from_slice(b"twenty bytes of text");
    let (a, b) = (old[3000..3050].to_vec(), old[3100..3150].to_vec());
    new[3000..3050].copy_from_slice(&b);
    new[3100..3150].copy_from_slice(&a);
    new[3200] ^= 2;
    new[8 * CHUNK..10 * CHUNK].fill(0);
    new[20 * CHUNK + 90] = 0xff;
    (old, new)
}

fn make_with(old: Option<&[u8]>, new: &[u8], options: LegacyOptions) -> Result<Vec<u8>> {
    let memory = |bytes: &[u8], tag| (Arc::new(Memory::from_bytes(bytes)) as Arc<_>, Tag(tag));
    let files = Files::new(old.map(|old| memory(old, 3)), memory(new, 4), CHUNK.trailing_zeros())?;
    let mut out = Vec::new();
    let from = old.map(|_| Files::OLD);
    create_legacy(&files, from, Files::NEW, None, &options, &mut out, &Silent)?;
    Ok(out)
}

fn make(old: &[u8], new: &[u8], options: LegacyOptions) -> Vec<u8> {
    make_with(Some(old), new, options).unwrap()
}

fn every_way() -> impl Iterator<Item = LegacyOptions> {
    [LegacyMode::Raw, LegacyMode::Xdelta, LegacyMode::Best]
        .into_iter()
        .flat_map(|mode| [0, 1, 9].map(|level| LegacyOptions { mode, level, threads: 2 }))
}

fn input(delta: &[u8]) -> Input {
    Input::from_reader(Box::new(Cursor::new(delta.to_vec())))
}

/// Applies to a copy of `to` and returns what it then holds.
fn onto(delta: &[u8], to: &[u8], base: Option<&[u8]>, force: bool) -> Result<Vec<u8>> {
    let target = Memory::from_bytes(to);
    let options = ApplyOptions { force, undo: None, dry_run: false, threads: 2 };
    let plain = FileTarget::new(&target);
    let result = match base {
        None => apply(&mut input(delta), &plain, &options, &Silent),
        Some(base) => {
            let base = Memory::from_bytes(base);
            apply(&mut input(delta), &BasedTarget::new(&plain, &base), &options, &Silent)
        }
    };
    let now = target.to_vec().unwrap();
    if let Err(error) = result {
        assert!(now == to, "{error}, and the target has changed");
        return Err(error);
    }
    Ok(now)
}

fn kind(result: Result<Vec<u8>>) -> Kind {
    result.unwrap_err().kind()
}

fn header(chunks: u64, source: Option<u32>) -> Header {
    Header { chunks, chunk_bits: CHUNK.trailing_zeros(), source: source.map(Tag), target: Tag(4) }
}

/// A delta by hand: of each extent the chunk, the sum of the source, and the data.
fn by_hand(header: &Header, extents: &[(u64, u64, &[u8])]) -> Vec<u8> {
    let mut out = header.encode().to_vec();
    for &(chunk, source_sum, data) in extents {
        let chunks = data.len().div_ceil(CHUNK) as u32;
        let payload_bytes = data.len() as u32;
        let extent =
            Extent { coding: CODINGS[0], chunk, chunks, payload_bytes, source_sum, target_sum: sum(data) };
        out.extend(extent.encode(header));
        out.extend(data);
    }
    out
}

#[test]
fn every_way_leads_to_the_target_and_none_is_larger_than_raw() {
    let (old, new) = volumes();
    let raw = make(&old, &new, RAW);
    for options in every_way() {
        let delta = make(&old, &new, options);
        assert!(delta.len() <= raw.len(), "{options:?}");
        assert_eq!(make(&old, &new, LegacyOptions { threads: 7, ..options }), delta, "{options:?}");
        assert!(onto(&delta, &old, Some(&old), false).unwrap() == new, "{options:?}");
        assert!(onto(&delta, &new, Some(&old), false).unwrap() == new, "{options:?}");
    }
    let whole = make_with(None, &new, RAW).unwrap();
    assert!(onto(&whole, &vec![7; new.len()], None, false).unwrap() == new);
    assert_eq!(kind(onto(&whole, &vec![7; new.len() + CHUNK], None, false)), Kind::Mismatch);
    assert_eq!(kind(onto(&whole, &vec![7; new.len() - 1], None, false)), Kind::Mismatch);
    let same = make(&old, &old, RAW);
    assert_eq!(same.len(), HEADER_BYTES);
    assert!(onto(&same, &old, None, false).unwrap() == old);
}

#[test]
fn sizes_may_differ() {
    let (old, new) = volumes();
    for (from, to) in [(700, old.len()), (old.len(), 5 * CHUNK + 1), (4 * CHUNK, 9 * CHUNK), (0, 3000)] {
        for options in every_way() {
            let (old, new) = (&old[..from], &new[..to]);
            let delta = make(old, new, options);
            let mut ready = old.to_vec();
            ready.resize(to, 0);
            assert!(onto(&delta, &ready, Some(old), false).unwrap() == new, "{from} {to} {options:?}");
            if options.mode == LegacyMode::Raw {
                assert!(onto(&delta, &ready, None, false).unwrap() == new, "{from} {to} {options:?}");
            }
        }
    }
    let grown = make(&old[..700], &old, RAW);
    assert_eq!(kind(onto(&grown, &old[..700], None, false)), Kind::Mismatch);
}

#[test]
fn the_sum_of_what_the_source_has_not_means_nothing() {
    let header = header(2, Some(3));
    let base = [[5; CHUNK], [0; CHUNK]].concat();
    let data = [9; CHUNK];
    let source_sum = 5 * CHUNK as u64;
    // The field of the second extent: as it was for the first, zero, or anything else.
    for (stale, expected) in [(source_sum, true), (0, true), (7, false)] {
        let delta = by_hand(&header, &[(0, source_sum, &data), (1, stale, &data)]);
        assert_eq!(onto(&delta, &base, None, false).is_ok(), expected, "{stale}");
        assert!(onto(&delta, &base, Some(&base[..CHUNK]), false).unwrap() == [9; 2 * CHUNK], "{stale}");
        assert!(onto(&delta, &base, None, true).unwrap() == [9; 2 * CHUNK], "{stale}");
    }
}

#[test]
fn a_wrong_base_is_refused() {
    let (old, new) = volumes();
    let mut other = old.clone();
    other[650] ^= 1;
    for options in every_way() {
        let delta = make(&old, &new, options);
        assert_eq!(kind(onto(&delta, &other, Some(&other), false)), Kind::Mismatch, "{options:?}");
        assert_eq!(kind(onto(&delta, &other, Some(&old), false)), Kind::Mismatch, "{options:?}");
        assert!(onto(&delta, &other, Some(&old), true).unwrap() == new, "{options:?}");
        let verdict = verify(&mut delta.as_slice(), Some(&Memory::from_bytes(&other)), 1, &Silent).unwrap();
        assert!(matches!(verdict, Verdict::WrongBase(_)), "{options:?}: {verdict:?}");
        let verdict = verify(&mut delta.as_slice(), Some(&Memory::from_bytes(&old)), 1, &Silent).unwrap();
        assert!(matches!(verdict, Verdict::Sound { undecoded: 0, .. }), "{options:?}: {verdict:?}");
    }
}

#[test]
fn what_refers_to_old_data_wants_it_safe_and_told_apart() {
    let (old, mut new) = volumes();
    let options = LegacyOptions { mode: LegacyMode::Xdelta, ..RAW };
    let delta = make(&old, &new, options);
    assert_eq!(kind(onto(&delta, &old, None, false)), Kind::Refused);
    // Only bytes that changed places: a second apply would take the result for the base.
    new = old.clone();
    new[..400].rotate_left(100);
    let dir = tempfile::tempdir().unwrap();
    let delta = make(&old, &new, options);
    let with_undo = |force| {
        let target = Memory::from_bytes(&old);
        let undo = Some(dir.path().join(format!("undo-{force}")));
        let options = ApplyOptions { force, undo, dry_run: false, threads: 1 };
        apply(&mut input(&delta), &FileTarget::new(&target), &options, &Silent)
            .map(|_| target.to_vec().unwrap())
    };
    assert_eq!(kind(with_undo(false)), Kind::Refused);
    assert!(with_undo(true).unwrap() == new);
    assert!(onto(&delta, &new, Some(&old), false).unwrap() == new);
}

#[test]
fn an_interrupted_apply_is_resumed() {
    let (old, new) = volumes();
    for options in every_way() {
        let delta = make(&old, &new, options);
        // Extents are whole chunks: with the base elsewhere any of them may be there already.
        for from in (0..old.len()).step_by(CHUNK) {
            let torn = [&new[..from], &old[from..]].concat();
            assert!(onto(&delta, &torn, Some(&old), false).unwrap() == new, "{options:?} {from}");
        }
    }
    let delta = make(&old, &new, RAW);
    let applied = [&new[..4000], &old[4000..]].concat();
    assert!(onto(&delta, &applied, None, false).unwrap() == new);
    let torn = [&new[..9 * CHUNK], &old[9 * CHUNK..]].concat();
    let error = onto(&delta, &torn, None, false).unwrap_err();
    assert_eq!(error.kind(), Kind::Mismatch);
    assert!(error.hint_text().unwrap().contains("--force"));
    assert!(onto(&delta, &torn, None, true).unwrap() == new);
}

#[test]
fn lies_are_found() {
    let data = [9; CHUNK];
    let source = 5 * CHUNK as u64;
    let base = [5; 4 * CHUNK];
    let expect = |delta: &[u8], expected: Kind| {
        assert_eq!(kind(onto(delta, &base, None, true)), expected);
    };
    expect(&by_hand(&header(3, Some(3)), &[(0, source, &data)]), Kind::Damaged);
    expect(&by_hand(&header(1, Some(3)), &[(0, 2 * source, &[9; 2 * CHUNK])]), Kind::Damaged);
    expect(&by_hand(&header(u64::MAX >> 20, Some(3)), &[(0, source, &data)]), Kind::Damaged);
    expect(&by_hand(&header(2, Some(3)), &[(1, source, &data), (0, source, &data)]), Kind::Unsupported);
    expect(&by_hand(&header(2, Some(3)), &[(1, source, &data), (1, source, &data)]), Kind::Unsupported);
    expect(&by_hand(&header(1, Some(3)), &[(4, source, &data)]), Kind::Mismatch);
    expect(&by_hand(&header(1, Some(3)), &[(1 << 40, source, &data)]), Kind::Mismatch);
    expect(&by_hand(&header(4, None), &[(1, 0, &data), (2, 0, &[9; 3 * CHUNK])]), Kind::Damaged);
    let mut more = by_hand(&header(1, Some(3)), &[(0, source, &data)]);
    more.push(0);
    expect(&more, Kind::Damaged);
    // A payload that inflates to far more than its extent.
    let coding = Coding { xdelta: false, zlib: true };
    let mut bomb = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut bomb, &vec![0; 300 * CHUNK]).unwrap();
    let bomb = bomb.finish().unwrap();
    let head = header(2, Some(3));
    let payload_bytes = bomb.len() as u32;
    let extent = Extent { coding, chunk: 0, chunks: 2, payload_bytes, source_sum: 2 * source, target_sum: 0 };
    expect(&[&head.encode()[..], &extent.encode(&head), &bomb].concat(), Kind::Damaged);
}

#[test]
fn every_cut_and_every_flip_leaves_the_target_alone_or_right() {
    let (old, new) = volumes();
    for options in every_way() {
        let delta = make(&old, &new, options);
        // Headers byte by byte, long data in steps.
        let stride = if delta.len() > 4000 { 13 } else { 1 };
        for end in (0..200).chain((200..delta.len()).step_by(stride)) {
            let cut = &delta[..end];
            assert_eq!(kind(onto(cut, &old, Some(&old), false)), Kind::Damaged, "{options:?}, cut at {end}");
            assert!(info(&mut &*cut, &Silent).is_err());
        }
        for at in (0..200).chain((200..delta.len()).step_by(stride)) {
            let mut bad = delta.clone();
            bad[at] ^= 1 << (at % 8);
            if let Ok(now) = onto(&bad, &old, Some(&old), false) {
                assert!(now == new, "{options:?}, flip at {at}");
            }
            let _ = verify(&mut bad.as_slice(), None, 1, &Silent);
        }
    }
}

#[test]
fn a_list_alone_counts() {
    let (old, new) = volumes();
    let memory = |bytes: &[u8], tag| (Arc::new(Memory::from_bytes(bytes)) as Arc<_>, Tag(tag));
    let files = Files::new(Some(memory(&old[..700], 3)), memory(&new, 4), CHUNK.trailing_zeros()).unwrap();
    let list = [(1, 3), (8, 9), (20, 90)].map(|(start, end)| Ok(ChunkRange { start, end }));
    let mut out = Vec::new();
    let (from, to) = (Some(Files::OLD), Files::NEW);
    let made = create_legacy(&files, from, to, Some(Box::new(list.into_iter())), &RAW, &mut out, &Silent);
    assert_eq!(made.unwrap().chunks, 4);
    assert_eq!(out.len(), HEADER_BYTES + 3 * EXTENT_HEADER_BYTES + 3 * CHUNK + 100);
    assert!(Header::decode(out.first_chunk().unwrap()).unwrap().chunks == 4);
}

#[test]
fn what_2008_had_no_word_for_is_refused() {
    let (old, new) = volumes();
    let memory = |bytes: &[u8], tag| (Arc::new(Memory::from_bytes(bytes)) as Arc<_>, tag);
    let refused = |old_tag, bits, from: Option<PointId>| {
        let files = Files::new(Some(memory(&old, old_tag)), memory(&new, Tag(4)), bits).unwrap();
        let made = create_legacy(&files, from, Files::NEW, None, &RAW, &mut Vec::new(), &Silent);
        made.map(|_| ()).unwrap_err().kind()
    };
    assert_eq!(refused(Tag::ORIGIN, 12, Some(Files::OLD)), Kind::Usage);
    assert_eq!(refused(Tag(3), 12, Some(PointId::Snapshot(crate::units::Epoch(9)))), Kind::NotFound);
}
