//! How much of a delta that was cut short is whole.

use super::read::Reader;
use crate::error::{Error, Kind, Result};
use crate::format::delta::{End, Header, ResumePoint};
use crate::progress::Progress;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;

/// The whole extents at the beginning of a delta. Each was checked against its own sums.
pub(crate) struct Sound {
    pub(crate) header: Header,
    /// Length up to the end of the last whole extent.
    pub(crate) bytes: u64,
    /// Length of all of it, if it has its end.
    pub(crate) total: Option<u64>,
    /// One past the last chunk.
    pub(crate) next_chunk: u64,
    /// What an end marker would tell so far.
    pub(crate) counted: End,
}

/// Reads the delta in `file` as far as it is sound; `None` if not even its header is.
pub(crate) fn sound_part(file: &File, progress: &dyn Progress) -> Result<Option<Sound>> {
    let input = BufReader::with_capacity(1 << 20, At { file, offset: 0 });
    let mut reader = match Reader::open(input) {
        Ok(reader) => reader,
        Err(error) => return unless_broken(error).map(|()| None),
    };
    let mut sound = Sound {
        header: reader.header().clone(),
        bytes: 0,
        total: None,
        next_chunk: 0,
        counted: End::default(),
    };
    loop {
        (sound.bytes, sound.next_chunk, sound.counted) = reader.so_far();
        progress.check()?;
        match reader.next_extent() {
            Ok(Some(_)) => {}
            Ok(None) => {
                sound.total = Some(reader.offset_bytes());
                return Ok(Some(sound));
            }
            Err(error) => return unless_broken(error).map(|()| Some(sound)),
        }
    }
}

fn unless_broken(error: Error) -> Result<()> {
    match error.kind() {
        Kind::Damaged | Kind::Unsupported => Ok(()),
        _ => Err(error),
    }
}

/// The hash of the first `bytes` bytes of `file`; `Kind::Damaged` if it is shorter.
pub(crate) fn hash_start(file: &File, bytes: u64) -> Result<blake3::Hasher> {
    let failed = |error| Error::io("cannot read the part", error);
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(At { file, offset: 0 }.take(bytes)).map_err(failed)?;
    match hasher.count() == bytes {
        true => Ok(hasher),
        false => Err(Error::damaged(format!("the part has {} bytes, expected {bytes}", hasher.count()))),
    }
}

/// What a receiver that kept the part in `file` can go on from.
pub(crate) fn resume_point(file: &File, progress: &dyn Progress) -> Result<ResumePoint> {
    let bytes = sound_part(file, progress)?.map_or(0, |sound| sound.total.unwrap_or(sound.bytes));
    Ok(ResumePoint { bytes, digest: *hash_start(file, bytes)?.finalize().as_bytes() })
}

/// Reads a file from an offset of its own, not the one that all users of the file share.
pub(crate) struct At<'a> {
    pub(crate) file: &'a File,
    pub(crate) offset: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read_at(buf, self.offset)?;
        self.offset = self.offset.saturating_add(count as u64);
        Ok(count)
    }
}
