use super::tests::{ENCODINGS, edited, make, options, volume};
use super::*;
use crate::block::memory::Memory;
use crate::error::{Error, Kind, Result};
use crate::format::delta::{Encoding, ResumePoint};
use crate::point::files::Files;
use crate::progress::Silent;
use crate::units::Tag;
use proptest::prelude::*;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::sync::Arc;

const BITS: u32 = 10;

struct Volumes {
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Volumes {
    fn new() -> Self {
        let old = volume(40_000, 7);
        let new = edited(&old, 41_000, &[(10, 200), (9000, 40), (20_000, 100), (39_000, 2)]);
        Self { old, new }
    }

    fn source(&self) -> Files {
        let memory = |bytes: &[u8], tag| (Arc::new(Memory::from_bytes(bytes)) as Arc<_>, Tag(tag));
        Files::new(Some(memory(&self.old, 1)), memory(&self.new, 2), BITS).unwrap()
    }

    fn whole(&self, encoding: Encoding) -> Vec<u8> {
        make(Some(&self.old), &self.new, BITS, &options(encoding, 1))
    }

    /// What a sender sends to a receiver that has `point`, and whether it is only the rest.
    fn send(&self, encoding: Encoding, point: &ResumePoint) -> (Vec<u8>, bool) {
        let (source, points) = (self.source(), (Some(Files::OLD), Files::NEW));
        let mut out = Vec::new();
        let sent = resume_stream(&source, points, None, &options(encoding, 2), point, &mut out, &Silent);
        match sent.unwrap() {
            Some(_) => (out, point.bytes > 0),
            None => {
                assert!(out.is_empty(), "something was sent before the beginning was proven");
                (self.whole(encoding), false)
            }
        }
    }
}

fn receive(path: &Path, stream: &[u8]) -> Result<Vec<u8>> {
    let part = Part::open(path)?;
    part.receive(&mut &*stream, &Silent)?;
    Ok(std::fs::read(path).unwrap())
}

fn point(path: &Path) -> ResumePoint {
    Part::resume_point(path, &Silent).unwrap()
}

#[test]
fn a_stream_cut_anywhere_goes_on() {
    let volumes = Volumes::new();
    let dir = tempfile::tempdir().unwrap();
    for encoding in ENCODINGS {
        let whole = volumes.whole(encoding);
        for cut in (0..whole.len()).step_by(37).chain(whole.len() - 80..whole.len()) {
            let path = dir.path().join("part");
            let error = receive(&path, &whole[..cut]).unwrap_err();
            assert_eq!(error.kind(), Kind::Damaged, "{cut}: {error}");
            let (rest, is_rest) = volumes.send(encoding, &point(&path));
            assert!(rest.len() + cut < whole.len() + 15_000 || !is_rest, "{cut}: {} sent again", rest.len());
            // Cut once more, in the middle of the rest.
            receive(&path, &rest[..rest.len() / 2]).unwrap_err();
            let (rest, _) = volumes.send(encoding, &point(&path));
            assert!(receive(&path, &rest).unwrap() == whole, "{cut}");
            // Complete, but not applied: nothing is left to send.
            let (rest, is_rest) = volumes.send(encoding, &point(&path));
            assert!(is_rest && rest.len() == ResumePoint::PREAMBLE_BYTES);
            assert!(receive(&path, &rest).unwrap() == whole, "{cut}");
            std::fs::remove_file(&path).unwrap();
        }
    }
}

#[test]
fn a_part_that_was_damaged_never_gets_into_the_result() {
    let volumes = Volumes::new();
    let whole = volumes.whole(Encoding::Zstd);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("part");
    let kept = whole.len() * 3 / 4;
    for at in (0..kept).step_by(11) {
        let mut bad = whole[..kept].to_vec();
        bad[at] ^= 1 << (at % 8);
        std::fs::write(&path, &bad).unwrap();
        // The token was asked for before the damage: the rest does not fit, and the part goes.
        if at % 3 == 0 {
            std::fs::write(&path, &whole[..kept]).unwrap();
            let before = point(&path);
            std::fs::write(&path, &bad).unwrap();
            let (rest, is_rest) = volumes.send(Encoding::Zstd, &before);
            assert!(is_rest);
            match receive(&path, &rest) {
                Ok(found) => assert!(found == whole, "byte {at}"),
                Err(error) => assert!(error.kind() == Kind::Mismatch && !path.exists(), "byte {at}: {error}"),
            }
        }
        let (rest, _) = volumes.send(Encoding::Zstd, &point(&path));
        assert!(receive(&path, &rest).unwrap() == whole, "byte {at}");
    }
}

#[test]
fn what_does_not_fit_is_dropped_and_what_is_no_delta_is_not_kept() {
    let volumes = Volumes::new();
    let (whole, other) = (volumes.whole(Encoding::Zstd), volumes.whole(Encoding::Raw));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("part");
    // Of another delta: the sender sends everything.
    receive(&path, &other[..other.len() / 2]).unwrap_err();
    let (all, is_rest) = volumes.send(Encoding::Zstd, &point(&path));
    assert!(!is_rest && all == whole);
    // A rest that belongs to something else.
    std::fs::write(dir.path().join("other"), &whole[..whole.len() / 2]).unwrap();
    let (rest, _) = volumes.send(Encoding::Zstd, &point(&dir.path().join("other")));
    let error = receive(&path, &rest).unwrap_err();
    assert_eq!(error.kind(), Kind::Mismatch);
    assert!(!path.exists() && point(&path) == ResumePoint::start());
    // Nothing, or the words of a shell, cost the part nothing.
    receive(&path, &whole[..whole.len() / 2]).unwrap_err();
    let before = point(&path);
    for noise in [&b""[..], b"x", b"bash: ddsnap: command not found"] {
        assert_eq!(receive(&path, noise).unwrap_err().kind(), Kind::Damaged);
        assert_eq!(point(&path), before);
    }
    // A delta that is wrong in the middle is dropped.
    let mut bad = whole.clone();
    bad[whole.len() / 2] ^= 1;
    assert_eq!(receive(&path, &bad).unwrap_err().kind(), Kind::Damaged);
    assert!(!path.exists());
    // Every other reader says what a continuation is.
    let text = info(&mut &rest[..], &Silent).unwrap_err().to_string();
    assert!(text.contains("apply-delta --resume"), "{text}");
}

fn resume(volumes: &Volumes, encoding: Encoding, file: &mut File) -> Option<Vec<u8>> {
    let (source, points) = (volumes.source(), (Some(Files::OLD), Files::NEW));
    let resumed = resume_file(&source, points, &options(encoding, 2), file, &Silent).unwrap();
    resumed.ok().map(|_| {
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
    file
}

#[test]
fn a_file_cut_anywhere_ends_as_if_it_had_not_been() {
    let volumes = Volumes::new();
    for encoding in ENCODINGS {
        let whole = volumes.whole(encoding);
        let header = 200;
        for cut in (0..=whole.len()).step_by(29).chain(whole.len() - 80..=whole.len()) {
            let found = resume(&volumes, encoding, &mut file_of(&whole[..cut]));
            assert!(found.as_ref().is_none_or(|found| *found == whole), "{encoding:?}, {cut}");
            assert!(found.is_some() || cut < header, "{encoding:?}, {cut}");
            // Zeros where the file grew and the data was lost.
            let torn = [&whole[..cut], &[0; 5000]].concat();
            let found = resume(&volumes, encoding, &mut file_of(&torn));
            assert!(found.is_none_or(|found| found == whole), "{encoding:?}, {cut}");
        }
        assert!(
            resume(&volumes, encoding, &mut file_of(&make(None, &volumes.new, BITS, &options(encoding, 1))))
                .is_none()
        );
    }
}

#[test]
fn errors_on_the_way_keep_what_arrived() {
    struct Failing<'a>(&'a [u8]);
    impl Read for Failing<'_> {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            match self.0.read(buf)? {
                0 => Err(std::io::ErrorKind::ConnectionReset.into()),
                count => Ok(count),
            }
        }
    }
    let volumes = Volumes::new();
    let whole = volumes.whole(Encoding::Zstd);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("part");
    let part = Part::open(&path).unwrap();
    assert_eq!(Part::open(&path).err().map(|error: Error| error.kind()), Some(Kind::Busy));
    let error = part.receive(&mut Failing(&whole[..whole.len() / 2]), &Silent).err().unwrap();
    assert_eq!(error.kind(), Kind::Io);
    drop(part);
    assert!(point(&path).bytes > 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_lies_there_a_whole_stream_goes_through(
        junk in proptest::collection::vec(any::<u8>(), 0..400), magic in 0u8..3, keep in 0usize..300,
    ) {
        let volumes = Volumes::new();
        let whole = volumes.whole(Encoding::Raw);
        let start: &[u8] = match magic { 0 => b"", 1 => &whole[..keep], _ => b"\x89ddcont\n" };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("part");
        std::fs::write(&path, [start, &junk].concat()).unwrap();
        let (rest, _) = volumes.send(Encoding::Raw, &point(&path));
        prop_assert!(receive(&path, &rest).unwrap() == whole);
        // And whatever arrives, the next try goes through.
        let _ = receive(&path, &[start, &junk].concat());
        let (rest, _) = volumes.send(Encoding::Raw, &point(&path));
        prop_assert!(receive(&path, &rest).unwrap() == whole);
    }
}
