use super::tests::{make, options, volume};
use super::*;
use crate::block::faulty::{Faulty, Operation};
use crate::block::memory::Memory;
use crate::block::{ReadAt, WriteAt};
use crate::error::{Kind, Result};
use crate::format::delta::Encoding;
use crate::point::files::Files;
use crate::point::{ChunkRange, PointId, PointSource};
use crate::progress::Silent;
use crate::units::Tag;
use std::io::Write;
use std::sync::Arc;

const CHUNK: usize = 4096;

fn files(old: Arc<dyn ReadAt>, new: Arc<dyn ReadAt>) -> Files {
    Files::new(Some((old, Tag(1))), (new, Tag(2)), 12).unwrap()
}

fn pair() -> (Vec<u8>, Vec<u8>) {
    let old = volume(3 << 20, 5);
    let new =
        old.iter().enumerate().map(|(at, byte)| if at % 5000 == 0 { byte ^ 1 } else { *byte }).collect();
    (old, new)
}

fn apply_to(delta: &[u8], target: &dyn WriteAt, force: bool) -> Result<ApplySummary> {
    let mut input = Input::from_reader(Box::new(std::io::Cursor::new(delta.to_vec())));
    let options = ApplyOptions { force, undo: None, dry_run: false, threads: 2 };
    apply(&mut input, &FileTarget::new(target), &options, &Silent)
}

/// A pipe whose reader goes away.
struct Closing {
    left: usize,
}

impl Write for Closing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        let count = bytes.len().min(self.left);
        self.left -= count;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// That these return at all proves that every thread ended: they are scoped.
#[test]
fn create_ends_when_its_reader_goes_or_its_source_fails() {
    let (old, new) = pair();
    let (old, new) = (Memory::from_bytes(&old), Memory::from_bytes(&new));
    for threads in [1, 4] {
        let source = files(Arc::new(old.snapshot()), Arc::new(new.snapshot()));
        for left in [0, 10, 5000, 200_000] {
            let mut out = Closing { left };
            let made = create(
                &source,
                Some(Files::OLD),
                Files::NEW,
                None,
                &options(Encoding::Raw, threads),
                &mut out,
                &Silent,
            );
            assert_eq!(made.unwrap_err().kind(), Kind::Io, "{left} bytes, {threads} threads");
        }
        for nth in [1, 2, 3, 5] {
            let bad = Arc::new(Faulty::new(new.snapshot()));
            bad.fail_from(Operation::Read, nth, Kind::Io);
            let source = files(Arc::new(old.snapshot()), bad);
            let mut out = Vec::new();
            let made = create(
                &source,
                Some(Files::OLD),
                Files::NEW,
                None,
                &options(Encoding::Zstd, threads),
                &mut out,
                &Silent,
            );
            assert_eq!(made.unwrap_err().kind(), Kind::Io, "read {nth}, {threads} threads");
            assert_eq!(info(&mut &out[..], &Silent).unwrap_err().kind(), Kind::Damaged);
        }
    }
}

/// Knows the sums of its old point and refuses to read it.
struct Known(Files, Vec<u8>);

impl PointSource for Known {
    fn chunk_bits(&self) -> u32 {
        self.0.chunk_bits()
    }

    fn points(&self) -> Vec<crate::point::Point> {
        self.0.points()
    }

    fn changed(&self, from: Option<PointId>, to: PointId) -> Result<crate::point::Changes<'_>> {
        self.0.changed(from, to)
    }

    fn read(&self, point: PointId, offset: u64, buf: &mut [u8]) -> Result<()> {
        assert_eq!(point, Files::NEW, "the base was read although its sums are known");
        self.0.read(point, offset, buf)
    }

    fn known_crc(&self, point: PointId, chunk: u64) -> Result<Option<u32>> {
        assert_eq!(point, Files::OLD);
        Ok(self.1.chunks(CHUNK).nth(usize::try_from(chunk).unwrap()).map(crc32fast::hash))
    }
}

#[test]
fn known_sums_spare_reading_the_base() {
    let (old, new) = pair();
    let files = files(Arc::new(Memory::from_bytes(&old)), Arc::new(Memory::from_bytes(&new)));
    let mut out = Vec::new();
    let known = Known(files, old.clone());
    create(&known, Some(Files::OLD), Files::NEW, None, &options(Encoding::Zstd, 2), &mut out, &Silent)
        .unwrap();
    assert!(info(&mut &out[..], &Silent).unwrap().has_base_crcs);
    let target = Memory::from_bytes(&old);
    apply_to(&out, &target, false).unwrap();
    assert!(target.to_vec().unwrap() == new);
    let mut other = old;
    other[0] ^= 2;
    assert_eq!(apply_to(&out, &Memory::from_bytes(&other), false).unwrap_err().kind(), Kind::Mismatch);
}

#[test]
fn a_changelist_says_which_chunks_go_into_a_delta() {
    let (old, mut new) = (volume(40 * CHUNK, 1), volume(40 * CHUNK, 1));
    for chunk in [3, 20] {
        new[chunk * CHUNK] ^= 1;
    }
    let source = files(Arc::new(Memory::from_bytes(&old)), Arc::new(Memory::from_bytes(&new)));
    let only = [ChunkRange { start: 2, end: 5 }].into_iter().map(Ok);
    let mut out = Vec::new();
    let encoding = options(Encoding::Zstd, 1);
    create(&source, Some(Files::OLD), Files::NEW, Some(Box::new(only)), &encoding, &mut out, &Silent)
        .unwrap();
    let target = Memory::from_bytes(&old);
    apply_to(&out, &target, false).unwrap();
    let mut wanted = old;
    wanted[3 * CHUNK] ^= 1;
    assert!(target.to_vec().unwrap() == wanted);
}

#[test]
fn a_torn_chunk_is_refused_and_can_be_forced() {
    let (old, new) = pair();
    let delta = make(Some(&old), &new, 12, &options(Encoding::Zstd, 2));
    // Neither base nor result: the write of a chunk that stopped in its middle.
    let mut torn = old;
    torn[0] ^= 0x40;
    let target = Memory::from_bytes(&torn);
    assert_eq!(apply_to(&delta, &target, false).unwrap_err().kind(), Kind::Mismatch);
    assert!(target.to_vec().unwrap() == torn);
    apply_to(&delta, &target, true).unwrap();
    assert!(target.to_vec().unwrap() == new);
}

#[test]
fn a_failed_flush_or_resize_is_told_and_resumed() {
    let old = volume(50_000, 1);
    for len in [45_000, 50_000, 60_000] {
        let new = volume(len, 2);
        let delta = make(Some(&old), &new, 12, &options(Encoding::Zstd, 2));
        for operation in [Operation::Flush, Operation::SetSize] {
            for nth in 1..4 {
                let target = Faulty::new(Memory::from_bytes(&old));
                target.fail_nth(operation, nth, Kind::Io);
                let failed = apply_to(&delta, &target, false);
                assert_eq!(failed.is_err(), target.count(operation) >= nth, "{len} {operation:?} {nth}");
                if let Err(error) = failed {
                    assert_eq!(error.kind(), Kind::Io);
                    assert!(error.hint_text().is_some());
                    apply_to(&delta, target.inner(), false).unwrap();
                }
                assert!(target.inner().to_vec().unwrap() == new, "{len} {operation:?} {nth}");
            }
        }
    }
}
