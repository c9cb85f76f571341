#![allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::*;
use proptest::prelude::*;

fn back(source: &[u8], target: &[u8]) -> Vec<u8> {
    let delta = encode(source, target);
    assert_eq!(decode(&delta, source, target.len()).unwrap(), target);
    delta
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn the_code_table_is_that_of_the_standard() {
    let half = |action, size| Half { action, size };
    let copy = |mode, size| half(Action::Copy { mode }, size);
    for (code, expected) in [
        (0, (half(Action::Run, 0), None)),
        (1, (half(Action::Add, 0), None)),
        (18, (half(Action::Add, 17), None)),
        (19, (copy(0, 0), None)),
        (20, (copy(0, 4), None)),
        (34, (copy(0, 18), None)),
        (35, (copy(1, 0), None)),
        (162, (copy(8, 18), None)),
        (163, (half(Action::Add, 1), Some(copy(0, 4)))),
        (174, (half(Action::Add, 4), Some(copy(0, 6)))),
        (175, (half(Action::Add, 1), Some(copy(1, 4)))),
        (234, (half(Action::Add, 4), Some(copy(5, 6)))),
        (235, (half(Action::Add, 1), Some(copy(6, 4)))),
        (246, (half(Action::Add, 4), Some(copy(8, 4)))),
        (247, (copy(0, 4), Some(half(Action::Add, 1)))),
        (255, (copy(8, 4), Some(half(Action::Add, 1)))),
    ] {
        assert_eq!(meaning(code), expected, "{code}");
    }
}

#[test]
fn numbers_are_those_of_the_standard() {
    let mut out = Vec::new();
    put_number(&mut out, 123_456_789);
    assert_eq!(out, [0xba, 0xef, 0x9a, 0x15]);
    for number in [0, 1, 127, 128, 16383, 16384] {
        out.clear();
        put_number(&mut out, number);
        assert_eq!(
            out.len(),
            if number < 128 {
                1
            } else if number < 16384 {
                2
            } else {
                3
            }
        );
    }
    assert_eq!(adler32(b"Wikipedia"), 0x11e6_0398);
}

#[test]
fn what_moved_is_found() {
    let source = noise(1, 100_000);
    assert!(back(&source, &source).len() < 60);
    assert!(back(&source, &[&source[777..60_000], &source[70_000..]].concat()).len() < 80);
    let mut edited = source.clone();
    for at in (0..edited.len()).step_by(5000) {
        edited[at] ^= 1;
    }
    assert!(back(&source, &edited).len() < 300);
    assert!(back(&[], &[7; 100_000]).len() < 40);
    assert!(back(&[], &[&source[..500], &source[..500]].concat()).len() < 560);
    let other = noise(2, 4096);
    assert!(back(&source, &other).len() < 4096 + 40);
    back(&[], &[]);
    back(&source, &[]);
}

#[test]
fn a_window_may_say_what_this_encoder_never_does() {
    // An application header; an addition and a copy in one; a copy across the end of the source; addresses counted
    // from the start, from here, from one that was near and by the same one.
    let code = [1 + 2, 163, 20, 35 + 1, 51 + 1, 115 + 1];
    let addresses = [0, 3, 6, 1, 3];
    let data = *b"xyz";
    let mut window = vec![31, 0, 3, 6, 5];
    window.extend(data.iter().chain(&code).chain(&addresses));
    let mut delta =
        vec![0xd6, 0xc3, 0xc4, 0, 4, 3, b'a', b'b', b'c', 1, 5, 0, u8::try_from(window.len()).unwrap()];
    delta.extend(&window);
    let error = decode(&delta, b"01234", 31).unwrap_err().to_string();
    assert_eq!(error, "VCDIFF window makes 23 bytes of 31, 0 bytes of it left over");
    let at = delta.len() - window.len();
    delta[at] = 23;
    // 2 added; 1 added and 4 from 0; 4 from 3, the last two of them just made; 4 from 6 before here, from 0 + 1, and
    // from the 3 of before.
    assert_eq!(decode(&delta, b"01234", 23).unwrap(), b"xyz012334xy2334123434xy");
}

#[test]
fn every_cut_and_every_flip_is_an_error_or_the_same_length() {
    let source = noise(3, 3000);
    let mut target = source.clone();
    target.splice(100..120, *b"something else");
    target.extend([9; 300]);
    let delta = encode(&source, &target);
    for end in 0..delta.len() {
        assert!(decode(&delta[..end], &source, target.len()).is_err(), "cut at {end}");
    }
    for at in 0..delta.len() {
        for bit in 0..8 {
            let mut bad = delta.clone();
            bad[at] ^= 1 << bit;
            if let Ok(out) = decode(&bad, &source, target.len()) {
                assert_eq!(out, target, "flip at {at}: the sum did not show it");
            }
        }
    }
    let mut more = delta.clone();
    more.push(0);
    assert!(decode(&more, &source, target.len()).is_err());
    assert!(decode(&delta, &source, target.len() + 1).is_err());
}

fn splitmix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Lines of words, as the data was made of from which the payload below comes.
fn text(lines: std::ops::Range<u64>) -> Vec<u8> {
    const WORDS: [&str; 8] =
        ["alpha ", "bravo ", "charlie ", "delta ", "echo ", "foxtrot ", "golf\n", "hotel "];
    lines
        .flat_map(|line| {
            let (mut rest, mut out) = (splitmix((1 << 32) + line), String::new());
            while out.len() < 64 {
                out.push_str(WORDS[usize::try_from(rest % 8).unwrap()]);
                rest /= 8;
            }
            out.truncate(64);
            out.into_bytes()
        })
        .collect()
}

#[test]
fn what_the_encoder_of_2008_wrote_is_read() {
    let payload = "d6c3c4000001a000004aa0000011250e3a3039633a2e303264656661303132333413870802000eb9b1023002231f02\
                   231f02231e03231f02231f02231f02231f02231b13964c0001012020202020202020208934";
    let source = text(64..128);
    let mut target = source.clone();
    let slots: String = (150..200).map(|slot| format!("00000002:{slot:016x}:......")).collect();
    // The edit of 300 bytes lies at byte 5000 of its volume, this extent at 4096.
    target[904..1204].copy_from_slice(&slots.as_bytes()[5000 - 150 * 32..][..300]);
    assert_eq!(decode(&hex::decode(payload).unwrap(), &source, 4096).unwrap(), target);
}

proptest! {
    #[test]
    fn what_is_encoded_comes_back(
        source in proptest::collection::vec(0u8..4, 0..600),
        target in proptest::collection::vec(0u8..4, 0..600),
    ) {
        back(&source, &target);
    }

    #[test]
    fn edits_come_back(seed in 1u64.., at in 0usize..5000, len in 0usize..300, insert in 0usize..300) {
        let source = noise(seed, 5000);
        let mut target = source.clone();
        target.splice(at..(at + len).min(5000), noise(seed ^ 5, insert));
        back(&source, &target);
    }
}
