use super::*;
use crate::block::memory::Memory;
use crate::delta::tests::{ENCODINGS, make, options, volume};
use crate::delta::{ApplyOptions, FileTarget, Input, Verdict, apply, info, verify};
use crate::progress::Silent;
use proptest::prelude::*;

fn inputs(deltas: &[Vec<u8>]) -> Vec<MergeInput> {
    let input = |(index, bytes): (usize, &Vec<u8>)| MergeInput {
        path: PathBuf::from(format!("{index}.delta")),
        bytes: Box::new(std::io::Cursor::new(bytes.clone())),
    };
    deltas.iter().enumerate().map(input).collect()
}

fn merged(deltas: &[Vec<u8>], base: Option<&[u8]>, threads: usize) -> Result<Vec<u8>> {
    let base = base.map(Memory::from_bytes);
    let base = base.as_ref().map(|base| base as &dyn ReadAt);
    let mut out = Vec::new();
    merge(inputs(deltas), &MergeOptions { base, threads }, &mut out, &Silent)?;
    Ok(out)
}

fn applied(delta: &[u8], to: &[u8]) -> Vec<u8> {
    let target = Memory::from_bytes(to);
    let mut input = Input::from_reader(Box::new(std::io::Cursor::new(delta.to_vec())));
    let dir = tempfile::tempdir().unwrap();
    let undo = Some(dir.path().join("undo"));
    let options = ApplyOptions { force: false, undo, dry_run: false, threads: 2 };
    apply(&mut input, &FileTarget::new(&target), &options, &Silent).unwrap();
    target.to_vec().unwrap()
}

/// A state and the way to the next one: its size, edits (where, how long, with what), the encoding of the delta.
type Step = (usize, Vec<(usize, usize, u8)>, usize);

fn step() -> impl Strategy<Value = Step> {
    let edit = (any::<usize>(), 0usize..6000, any::<u8>());
    (0usize..50_000, proptest::collection::vec(edit, 0..5), 0usize..4)
}

fn next_state(old: &[u8], (size, edits, _): &Step, seed: u64) -> Vec<u8> {
    // Mostly the size stays, for else hardly any data would live through a chain.
    let size = if size % 3 == 0 { *size } else { old.len() };
    let mut new = old.to_vec();
    new.truncate(size);
    let more = volume(size, seed);
    new.extend_from_slice(&more[new.len()..]);
    for (at, len, byte) in edits {
        if size > 0 {
            let at = at % size;
            let end = at.saturating_add(*len).min(size);
            match byte % 3 {
                0 => new[at..end].fill(0),
                1 => new[at..end].fill(*byte),
                _ => new[at..end].copy_from_slice(&volume(end - at, u64::from(*byte))),
            }
        }
    }
    new
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn a_merge_does_what_its_deltas_do_in_turn(
        first_len in 0usize..50_000, seed: u64, bits in 9u32..14, full in 0u8..4, threads in 1usize..4,
        steps in proptest::collection::vec(step(), 2..6),
    ) {
        let mut states = vec![volume(first_len, seed)];
        let mut deltas = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            let old = states.last().unwrap().clone();
            let new = next_state(&old, step, seed ^ index as u64);
            let source = (index > 0 || full > 0).then_some(&old[..]);
            deltas.push(make(source, &new, bits, &options(ENCODINGS[step.2], 1)));
            states.push(new);
        }
        let (first, last) = (&states[0], &states[states.len() - 1]);
        let base = (full > 0).then_some(&first[..]);
        let result = merged(&deltas, None, threads);
        let delta = match result {
            Ok(delta) => delta,
            Err(error) => {
                // Only for want of the base, and then the base must help.
                prop_assert_eq!(error.kind(), Kind::Refused, "{}", error);
                prop_assert!(base.is_some());
                merged(&deltas, base, threads).unwrap()
            }
        };
        prop_assert!(applied(&delta, first) == *last);
        let memory = Memory::from_bytes(first);
        let verdict = verify(&mut &delta[..], base.map(|_| &memory as &dyn ReadAt), 1, &Silent).unwrap();
        prop_assert!(matches!(verdict, Verdict::Sound { undecoded: 0, .. }), "{:?}", verdict);
        prop_assert_eq!(info(&mut &delta[..], &Silent).unwrap().has_base_crcs, full > 0);
        if let Some(base) = base {
            // With the base at hand every chain merges, to something that does the same.
            prop_assert!(applied(&merged(&deltas, Some(base), 1).unwrap(), first) == *last);
            // A target that is not the base is refused.
            let mut wrong = base.to_vec();
            let extent = Reader::open(&delta[..]).unwrap().next_extent().unwrap();
            let at = extent.map_or(usize::MAX, |extent| to_usize(extent.head.chunk << bits));
            if at < wrong.len().min(last.len()) {
                wrong[at] ^= 1;
                let wrong = Memory::from_bytes(&wrong);
                let verdict = verify(&mut &delta[..], Some(&wrong), 1, &Silent).unwrap();
                prop_assert!(matches!(verdict, Verdict::WrongBase(_)), "{:?}", verdict);
            }
        }
    }
}

const CHUNK: usize = 4096;

/// States of 64 chunks of noise; each sets the chunks of one list to noise of its own.
fn chain(changes: &[&[usize]], encoding: Encoding) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let mut states = vec![crate::delta::tests::volume(64 * CHUNK, 5)];
    let mut deltas = Vec::new();
    for (round, chunks) in changes.iter().enumerate() {
        let old = states[round].clone();
        let mut new = old.clone();
        for chunk in *chunks {
            new[chunk * CHUNK + 100..][..50].fill(round.to_le_bytes()[0] ^ 0x5a);
        }
        deltas.push(make(Some(&old), &new, 12, &options(encoding, 1)));
        states.push(new);
    }
    (states, deltas)
}

#[test]
fn what_nothing_overlaps_passes_unchanged() {
    for encoding in ENCODINGS {
        let (states, deltas) = chain(&[&[1, 2, 3], &[10, 11], &[40]], encoding);
        let all = merged(&deltas, None, 1).unwrap();
        assert!(all == make(Some(&states[0]), &states[3], 12, &options(encoding, 1)), "{encoding:?}");
    }
}

#[test]
fn old_data_is_taken_from_an_earlier_delta_or_asked_for() {
    // All of the second extent's base lies in the first delta, encoded without reference to a base.
    let (states, mut deltas) = chain(&[&[4, 5, 6], &[4, 5, 6]], Encoding::ZstdBase);
    deltas[0] = make(Some(&states[0]), &states[1], 12, &options(Encoding::Zstd, 1));
    assert!(applied(&merged(&deltas, None, 1).unwrap(), &states[0]) == states[2]);
    // Only a part of it.
    let (states, deltas) = chain(&[&[5], &[4, 5, 6]], Encoding::ZstdBase);
    let error = merged(&deltas, None, 1).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    assert!(error.hint_text().unwrap().contains("--base"), "{error}");
    assert!(applied(&merged(&deltas, Some(&states[0]), 1).unwrap(), &states[0]) == states[2]);
    let mut wrong = states[0].clone();
    wrong[4 * CHUNK] ^= 1;
    assert_eq!(merged(&deltas, Some(&wrong), 1).unwrap_err().kind(), Kind::Mismatch);
    assert_eq!(merged(&deltas, Some(&wrong[1..]), 1).unwrap_err().kind(), Kind::Mismatch);
}

#[test]
fn threads_do_not_show() {
    for encoding in ENCODINGS {
        let (states, deltas) = chain(&[&[1, 2, 3, 9, 10], &[2, 10, 11, 30], &[3, 31]], encoding);
        let one = merged(&deltas, Some(&states[0]), 1).unwrap();
        for threads in [2, 8] {
            assert!(one == merged(&deltas, Some(&states[0]), threads).unwrap(), "{encoding:?}, {threads}");
        }
    }
}

#[test]
fn a_broken_chain_is_refused() {
    let (states, deltas) = chain(&[&[1], &[2], &[1]], Encoding::Zstd);
    // The middle is missing, and nothing but the data can tell.
    let gap = [deltas[1].clone(), deltas[0].clone(), deltas[0].clone()];
    let error = merged(&gap, None, 1).unwrap_err();
    assert_eq!((error.kind(), error.to_string().contains("chunk 1 ")), (Kind::Mismatch, true), "{error}");
    let other_size = make(Some(&states[3][CHUNK..]), &states[3], 12, &options(Encoding::Zstd, 1));
    let other_chunks = make(Some(&states[3]), &states[0], 13, &options(Encoding::Zstd, 1));
    let whole = make(None, &states[0], 12, &options(Encoding::Zstd, 1));
    for (next, words) in
        [(other_size, "starts from"), (other_chunks, "one chunk size"), (whole, "whole volume")]
    {
        let error = merged(&[deltas[0].clone(), next], None, 1).unwrap_err();
        assert_eq!(error.kind(), Kind::Mismatch);
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn every_input_is_read_to_its_end() {
    let (_, deltas) = chain(&[&[1, 60], &[1]], Encoding::Zstd);
    for index in 0..2 {
        for (at, flip) in [(200, 0), (200, 1), (deltas[index].len() - 1, 0), (deltas[index].len() - 1, 1)] {
            let mut bad = deltas.clone();
            if flip == 0 {
                bad[index].truncate(at);
            } else {
                bad[index][at] ^= 1;
            }
            let error = merged(&bad, None, 2).unwrap_err();
            assert_eq!(error.kind(), Kind::Damaged, "{error}");
            assert!(error.to_string().starts_with(&format!("{index}.delta")), "{error}");
        }
    }
}

#[test]
fn as_many_as_may_be_merge_and_no_more() {
    let changes: Vec<&[usize]> = (0..MERGE_MAX).map(|_| &[3usize, 4][..]).collect();
    let (states, mut deltas) = chain(&changes, Encoding::Zstd);
    let all = merged(&deltas, None, 2).unwrap();
    assert!(applied(&all, &states[0]) == *states.last().unwrap());
    deltas.push(deltas[0].clone());
    assert_eq!(merged(&deltas, None, 2).unwrap_err().kind(), Kind::Usage);
    assert_eq!(merged(&[], None, 2).unwrap_err().kind(), Kind::Usage);
}

#[test]
fn a_hole_without_end_takes_no_memory() {
    let size = 1u64 << 60;
    let label = |id| PointLabel {
        volume: crate::units::Uuid([1; 16]),
        id,
        generation: 0,
        size_bytes: size,
        tag: crate::units::Tag(1),
        name: None,
    };
    let header = |source, target| Header {
        chunk_bits: 20,
        encoding: Encoding::Raw,
        level: 0,
        undoes: None,
        source,
        target,
    };
    let write = |header: &Header, runs: &[(u64, u32)]| {
        let mut out = Vec::new();
        let mut output = Output::begin(&mut out, header, None, &Silent).unwrap();
        let encoder = Encoder::new(header.geometry(), Encoding::Raw, 0).unwrap();
        for (start, chunks) in runs {
            output.extent(encoder.hole(*start, *chunks)).unwrap();
        }
        output.finish().unwrap();
        out
    };
    let runs: Vec<(u64, u32)> = (0..257).map(|i| (i * 0xffff_ffff, u32::MAX)).collect();
    let mut runs: Vec<(u64, u32)> = runs.into_iter().filter(|(start, _)| *start < 1 << 40).collect();
    let last = runs.last_mut().unwrap();
    last.1 = u32::try_from((1u64 << 40) - last.0).unwrap();
    let whole = write(&header(None, label(1)), &runs);
    let small = write(&header(Some(label(1)), label(2)), &[(1 << 33, 1)]);
    let both = merged(&[whole, small], None, 1).unwrap();
    let facts = info(&mut &both[..], &Silent).unwrap();
    assert_eq!((facts.data_bytes, facts.extents), (size, runs.len() as u64 + 2));
}
