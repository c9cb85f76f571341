use super::*;
use crate::block::faulty::{Faulty, Operation};
use crate::block::memory::Memory;
use crate::block::{ReadAt, WriteAt};
use crate::error::Kind;
use crate::format::delta::Encoding;
use crate::point::files::Files;
use crate::progress::Silent;
use crate::units::Tag;
use proptest::prelude::*;
use std::path::PathBuf;
use std::sync::Arc;

pub(super) const ENCODINGS: [Encoding; 4] =
    [Encoding::Raw, Encoding::Zstd, Encoding::ZstdBase, Encoding::Best];

pub(super) fn options(encoding: Encoding, threads: usize) -> CreateOptions {
    CreateOptions { encoding, level: 3, base_crc: true, threads, rate_limit: None }
}

pub(super) fn make(old: Option<&[u8]>, new: &[u8], bits: u32, options: &CreateOptions) -> Vec<u8> {
    let memory = |bytes: &[u8], tag| (Arc::new(Memory::from_bytes(bytes)) as Arc<dyn ReadAt>, Tag(tag));
    let files = Files::new(old.map(|old| memory(old, 1)), memory(new, 2), bits).unwrap();
    let from = old.map(|_| Files::OLD);
    let mut out = Vec::new();
    create(&files, from, Files::NEW, None, options, &mut out, &Silent).unwrap();
    out
}

fn apply_to(
    delta: &[u8],
    target: &dyn WriteAt,
    undo: Option<PathBuf>,
    force: bool,
) -> crate::error::Result<ApplySummary> {
    let mut input = Input::from_reader(Box::new(std::io::Cursor::new(delta.to_vec())));
    let options = ApplyOptions { force, undo, dry_run: false, threads: 2 };
    apply(&mut input, &FileTarget::new(target), &options, &Silent)
}

/// Bytes with zero stretches, repetition and noise.
pub(super) fn volume(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|at| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            match ((at as u64 / 700).wrapping_add(seed)) % 3 {
                0 => 0,
                1 => (at / 64).to_le_bytes()[0],
                _ => state.to_le_bytes()[7],
            }
        })
        .collect()
}

pub(super) fn edited(old: &[u8], len: usize, edits: &[(usize, u8)]) -> Vec<u8> {
    let mut new = old.to_vec();
    let more = volume(len, 99);
    new.truncate(len);
    new.extend_from_slice(&more[new.len()..]);
    for &(at, byte) in edits {
        if !new.is_empty() {
            let at = at % new.len();
            let end = (at + usize::from(byte) * 9).min(new.len());
            new[at..end].fill(byte & 3);
            new[at] ^= 0x80;
        }
    }
    new
}

fn sample() -> (Vec<u8>, Vec<u8>) {
    let old = volume(9000, 4);
    let new = edited(&old, 9300, &[(10, 30), (4000, 4), (7000, 80)]);
    (old, new)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn applying_gives_the_target_and_undoing_the_base(
        old_len in 0usize..40_000, new_len in 0usize..40_000, seed: u64, bits in 9u32..15,
        edits in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..12),
        encoding in 0usize..4, full: bool, base_crc: bool,
    ) {
        let old = volume(old_len, seed);
        let new = edited(&old, new_len, &edits);
        let create = CreateOptions { base_crc, ..options(ENCODINGS[encoding], 2) };
        let delta = make((!full).then_some(&old[..]), &new, bits, &create);
        let found = verify(&mut &delta[..], (!full).then_some(&Memory::from_bytes(&old) as &dyn ReadAt), 2, &Silent);
        let sound = matches!(found.unwrap(), Verdict::Sound { undecoded: 0, .. });
        prop_assert!(sound);
        let target = Memory::from_bytes(&old);
        let dir = tempfile::tempdir().unwrap();
        let undo = dir.path().join("undo");
        apply_to(&delta, &target, Some(undo.clone()), !base_crc).unwrap();
        prop_assert!(target.to_vec().unwrap() == new);
        // Again: all there already.
        let again = apply_to(&delta, &target, Some(undo.clone()), !base_crc).unwrap();
        prop_assert_eq!(again.written_bytes, 0);
        apply_to(&std::fs::read(&undo).unwrap(), &target, None, false).unwrap();
        prop_assert!(target.to_vec().unwrap() == old);
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..500) {
        let (old, new) = sample();
        let good = make(Some(&old), &new, 10, &options(Encoding::Best, 1));
        let mut stream = good[..cut.min(good.len())].to_vec();
        stream.extend_from_slice(&bytes);
        prop_assert!(info(&mut &stream[..], &Silent).is_err());
        let _ = ChangelistReader::open(&bytes[..]).and_then(ChangelistReader::summarize);
    }
}

#[test]
fn the_number_of_threads_does_not_show() {
    let old = volume(6 << 20, 1);
    let new = edited(&old, (6 << 20) + 77, &[(1 << 20, 200), (3 << 20, 100), (5 << 20, 255)]);
    for encoding in ENCODINGS {
        for base in [None, Some(&old[..])] {
            let one = make(base, &new, 12, &options(encoding, 1));
            for threads in [2, 8] {
                assert!(one == make(base, &new, 12, &options(encoding, threads)), "{encoding:?}, {threads}");
            }
        }
    }
}

#[test]
fn a_delta_that_leaves_out_what_it_gained_is_refused() {
    let label = |size_bytes| crate::format::delta::PointLabel {
        volume: crate::units::Uuid([0; 16]),
        id: 0,
        generation: 0,
        size_bytes,
        tag: Tag(1),
        name: None,
    };
    let header = crate::format::delta::Header {
        chunk_bits: 12,
        encoding: Encoding::Raw,
        level: 0,
        undoes: None,
        source: Some(label(10_000)),
        target: label(40_000),
    };
    // From chunk 2, in which the source ends, all must be there.
    for (holes, sound) in [
        (&[(2, 8)][..], true),
        (&[(0, 1), (2, 3), (5, 5)], true),
        (&[(0, 10)], true),
        (&[(3, 7)], false),
        (&[(2, 2), (5, 5)], false),
        (&[(2, 7)], false),
        (&[(0, 1)], false),
        (&[], false),
    ] {
        let mut out = Vec::new();
        let mut output = write::Output::begin(&mut out, &header, None, &Silent).unwrap();
        let encoder = encode::Encoder::new(header.geometry(), Encoding::Raw, 0).unwrap();
        holes.iter().for_each(|(start, chunks)| output.extent(encoder.hole(*start, *chunks)).unwrap());
        output.finish().unwrap();
        let found = info(&mut &out[..], &Silent);
        assert_eq!(found.as_ref().err().map(|e| e.kind()), (!sound).then_some(Kind::Damaged), "{holes:?}");
    }
}

#[test]
fn every_flipped_byte_is_refused_and_changes_nothing() {
    let (old, new) = sample();
    for encoding in [Encoding::Zstd, Encoding::Raw] {
        let delta = make(Some(&old), &new, 10, &options(encoding, 1));
        for at in 0..delta.len() {
            let mut bad = delta.clone();
            bad[at] ^= 1 << (at % 8);
            let target = Memory::from_bytes(&old);
            let error = apply_to(&bad, &target, None, false).unwrap_err();
            assert_eq!(error.kind(), Kind::Damaged, "byte {at}: {error}");
            assert!(target.to_vec().unwrap() == old, "byte {at}");
        }
    }
}

#[test]
fn every_truncation_is_refused_and_changes_nothing() {
    let (old, new) = sample();
    let delta = make(Some(&old), &new, 10, &options(Encoding::Best, 1));
    let dir = tempfile::tempdir().unwrap();
    for len in 0..delta.len() {
        let target = Memory::from_bytes(&old);
        let undo = dir.path().join("undo");
        let error = apply_to(&delta[..len], &target, Some(undo.clone()), false).unwrap_err();
        assert_eq!(error.kind(), Kind::Damaged, "length {len}: {error}");
        assert!(target.to_vec().unwrap() == old && !undo.exists(), "length {len}");
    }
    let mut long = delta.clone();
    long.push(0);
    assert_eq!(info(&mut &long[..], &Silent).unwrap_err().kind(), Kind::Damaged);
}

#[test]
fn a_wrong_base_is_refused() {
    let (old, new) = sample();
    for encoding in [Encoding::Zstd, Encoding::Best] {
        let delta = make(Some(&old), &new, 10, &options(encoding, 1));
        let mut other = old.clone();
        other[20] ^= 1;
        let dir = tempfile::tempdir().unwrap();
        let undo = || Some(dir.path().join("undo"));
        let target = Memory::from_bytes(&other);
        assert_eq!(apply_to(&delta, &target, undo(), false).unwrap_err().kind(), Kind::Mismatch);
        assert!(target.to_vec().unwrap() == other);
        let short = Memory::from_bytes(&old[..8000]);
        assert_eq!(apply_to(&delta, &short, undo(), false).unwrap_err().kind(), Kind::Mismatch);
        let verdict = verify(&mut &delta[..], Some(&target), 1, &Silent).unwrap();
        assert!(matches!(verdict, Verdict::WrongBase(_)));
        if encoding == Encoding::Zstd {
            apply_to(&delta, &target, None, true).unwrap();
        }
    }
}

#[test]
fn old_data_in_place_demands_an_undo_delta() {
    let old = volume(20_000, 2);
    let new = edited(&old, 20_000, &[(1500, 2)]);
    let delta = make(Some(&old), &new, 12, &options(Encoding::ZstdBase, 1));
    let target = Memory::from_bytes(&old);
    assert_eq!(apply_to(&delta, &target, None, false).unwrap_err().kind(), Kind::Refused);
    assert!(target.to_vec().unwrap() == old);
}

#[test]
fn an_interruption_at_every_write_can_be_resumed_or_undone() {
    let old = volume(60_000, 3);
    let edits: Vec<_> = (0..12).map(|n| (n * 5000, 7)).collect();
    for (encoding, len) in [(Encoding::Zstd, 63_000), (Encoding::Best, 60_000), (Encoding::Raw, 55_001)] {
        let new = edited(&old, len, &edits);
        let delta = make(Some(&old), &new, 10, &options(encoding, 1));
        let mut failures = 0;
        for nth in 0..100 {
            for go_back in [false, true] {
                let dir = tempfile::tempdir().unwrap();
                let undo = dir.path().join("undo");
                let target = Faulty::new(Memory::from_bytes(&old));
                target.fail_from(Operation::Write, nth, Kind::Io);
                let first = apply_to(&delta, &target, Some(undo.clone()), false);
                let target = target.inner();
                if let Err(error) = first {
                    failures += 1;
                    assert_eq!(error.kind(), Kind::Io, "{error}");
                    assert!(error.hint_text().is_some());
                    if !go_back {
                        apply_to(&delta, target, Some(undo.clone()), false).unwrap();
                    }
                }
                if go_back {
                    apply_to(&std::fs::read(&undo).unwrap(), target, None, false).unwrap();
                }
                let wanted = if go_back { &old } else { &new };
                assert!(&target.to_vec().unwrap() == wanted, "{encoding:?}, write {nth}, back {go_back}");
            }
        }
        assert!(failures > 10, "{failures}");
    }
}

#[test]
fn a_block_zero_but_for_its_last_byte_is_carried() {
    let old = vec![7; 8192];
    let mut new = vec![0; 8192];
    new[4095] = 1;
    let delta = make(Some(&old), &new, 12, &options(Encoding::Zstd, 1));
    let facts = info(&mut &delta[..], &Silent).unwrap();
    assert_eq!(facts.kinds.map(|(_, count)| count.data_bytes), [4096, 0, 4096, 0]);
    let target = Memory::from_bytes(&old);
    apply_to(&delta, &target, None, false).unwrap();
    assert!(target.to_vec().unwrap() == new);
}

#[test]
fn a_changelist_comes_back_in_runs() {
    use crate::format::changelist::{Ending, Header};
    let header = Header { chunk_bits: 12, source: Tag(1), target: Tag(2) };
    let runs = vec![
        crate::point::ChunkRange { start: 3, end: 2000 },
        crate::point::ChunkRange { start: 2001, end: 2002 },
    ];
    let mut out = Vec::new();
    let summary =
        write_changelist(&header, Box::new(runs.clone().into_iter().map(Ok)), &mut out, &Silent).unwrap();
    assert_eq!((summary.chunks, summary.runs, summary.ending), (1998, 2, Ending::Marked));
    let reader = ChangelistReader::open(&out[..]).unwrap();
    assert_eq!(reader.map(Result::unwrap).collect::<Vec<_>>(), runs);
    let cut = ChangelistReader::open(&out[..out.len() - 8]).unwrap().summarize().unwrap();
    assert_eq!((cut.chunks, cut.ending), (1998, Ending::Unmarked));
    assert_eq!(
        ChangelistReader::open(&out[..out.len() - 3]).unwrap().summarize().unwrap_err().kind(),
        Kind::Damaged
    );
}
