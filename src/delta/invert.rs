//! The delta that goes back, from the delta and the state that it applies to.
//!
//! The same as what an apply writes as its way back; only that nothing is changed, and that the base must be all
//! there: of a state halfway there is no inverse.

use super::apply::each_piece;
use super::create::CreateOptions;
use super::input::Input;
use super::read::Pieces;
use super::target::Base;
use super::undo::{header, write_inverse};
use super::write::CreateSummary;
use crate::block::ReadAt;
use crate::error::{Error, Kind, Result};
use crate::format::delta::Header;
use crate::progress::Progress;
use std::io::Write;

/// Writes the delta that turns the result of the one in `input` back into `base`, encoded in the same way.
///
/// Base and delta are verified first. A whole-volume delta has an inverse to whatever `base` is. Its header names
/// the digest of the delta that it undoes, so `apply --undo` takes it for the one it would write itself.
///
/// # Errors
/// `Kind::Mismatch` if `base` is not what the delta was made from; `Kind::Refused` if the delta cannot tell;
/// `Kind::Damaged`, `Kind::Unsupported` for a bad delta; of `out` as they are; `Kind::Interrupted`.
pub fn invert(
    input: &mut Input,
    base: &dyn ReadAt,
    threads: usize,
    out: &mut dyn Write,
    progress: &dyn Progress,
) -> Result<CreateSummary> {
    let volume = Base(base);
    input.suit(&volume);
    let info = input.first(|reader| {
        check_size(reader.header(), base)?;
        let mut pieces = Pieces::new(reader);
        progress.stage("verify delta", None);
        each_piece(&mut pieces, &volume, false, threads, |_, checked| {
            progress.check()?;
            progress.advance(checked.bytes);
            if checked.resumed {
                let what = "is partly what the delta makes already";
                return Err(Error::new(Kind::Mismatch, what).at_path(base.path()).at_offset(checked.offset));
            }
            Ok(())
        })?;
        pieces.info()
    });
    let info = info.map_err(|error| match error.kind() {
        Kind::Mismatch => error.hint("name the state that the delta applies to, not the one it makes"),
        Kind::Refused => error.hint("a delta that carries checksums of its base can be inverted"),
        _ => error,
    })?;
    let mut header = header(&info, base.size(), false);
    if info.legacy.is_none() {
        (header.encoding, header.level) = (info.header.encoding, info.header.level);
    }
    let options = CreateOptions {
        encoding: header.encoding,
        level: header.level,
        base_crc: true,
        threads,
        rate_limit: None,
    };
    progress.stage("write the inverse", None);
    write_inverse(input, &volume, &header, &options, out, progress)
}

fn check_size(header: &Header, base: &dyn ReadAt) -> Result<()> {
    match &header.source {
        Some(source) if source.size_bytes != base.size() => {
            let what = format!("has {} bytes, the delta was made from {}", base.size(), source.size_bytes);
            Err(Error::new(Kind::Mismatch, what).at_path(base.path()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::memory::Memory;
    use crate::delta::tests::{ENCODINGS, edited, make, options, volume};
    use crate::delta::{ApplyOptions, FileTarget, apply};
    use crate::progress::Silent;
    use proptest::prelude::*;

    fn input(delta: &[u8]) -> Input {
        Input::from_reader(Box::new(std::io::Cursor::new(delta.to_vec())))
    }

    fn inverse(delta: &[u8], base: &[u8], threads: usize) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        invert(&mut input(delta), &Memory::from_bytes(base), threads, &mut out, &Silent)?;
        Ok(out)
    }

    fn applied(delta: &[u8], to: &[u8]) -> Vec<u8> {
        let target = Memory::from_bytes(to);
        let dir = tempfile::tempdir().unwrap();
        let undo = Some(dir.path().join("undo"));
        let options = ApplyOptions { force: false, undo, dry_run: false, threads: 2 };
        apply(&mut input(delta), &FileTarget::new(&target), &options, &Silent).unwrap();
        target.to_vec().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn there_and_back_again(
            old_len in 0usize..40_000, new_len in 0usize..40_000, same_size: bool, seed: u64, bits in 9u32..15,
            edits in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..12),
            encoding in 0usize..4, full: bool,
        ) {
            let old = volume(old_len, seed);
            let new = edited(&old, if same_size { old_len } else { new_len }, &edits);
            let delta = make((!full).then_some(&old[..]), &new, bits, &options(ENCODINGS[encoding], 2));
            let back = inverse(&delta, &old, 2).unwrap();
            prop_assert!(applied(&delta, &old) == new);
            prop_assert!(applied(&back, &new) == old);
            let again = inverse(&back, &new, 1).unwrap();
            prop_assert!(applied(&again, &old) == new);
        }
    }

    #[test]
    fn threads_do_not_show() {
        let old = volume(3 << 20, 3);
        let new = edited(&old, (3 << 20) + 900, &[(5, 200), (2_000_000, 255)]);
        for encoding in ENCODINGS {
            let delta = make(Some(&old), &new, 12, &options(encoding, 1));
            let one = inverse(&delta, &old, 1).unwrap();
            for threads in [2, 8] {
                assert!(one == inverse(&delta, &old, threads).unwrap(), "{encoding:?}, {threads}");
            }
        }
    }

    #[test]
    fn only_the_base_will_do() {
        let old = volume(40_000, 3);
        let new = edited(&old, 40_000, &[(5, 200), (30_000, 100)]);
        for encoding in ENCODINGS {
            let delta = make(Some(&old), &new, 12, &options(encoding, 1));
            let mut half = old.clone();
            half[..8192].copy_from_slice(&new[..8192]);
            let mut other = old.clone();
            other[7] ^= 1;
            for wrong in [&new, &half, &other, &old[1..].to_vec()] {
                let error = inverse(&delta, wrong, 1).unwrap_err();
                assert_eq!(error.kind(), Kind::Mismatch, "{encoding:?}: {error}");
            }
            for len in [0, 100, delta.len() / 2, delta.len() - 1] {
                assert_eq!(inverse(&delta[..len], &old, 1).unwrap_err().kind(), Kind::Damaged);
            }
        }
    }
}
