//! Holes of a file, and reading it without displacing what the system has cached.

use rustix::fs::SeekFrom;
use rustix::io::{Errno, ReadWriteFlags};
use std::fs::File;
use std::io::{Error, ErrorKind, IoSliceMut, Result};
use std::ops::Range;

/// `RWF_DONTCACHE` of Linux 6.14: pages that this read brings in are dropped again, pages that were there stay.
const DONT_CACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// Fills `buf` from `offset` without leaving it cached. False, and nothing read, if the kernel or the file
/// system does not know how.
///
/// # Errors
/// What reading says; `UnexpectedEof` at the end of the file.
pub(super) fn read_uncached(file: &File, buf: &mut [u8], offset: u64) -> Result<bool> {
    let mut done = 0usize;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let at = offset.saturating_add(done as u64);
        match rustix::io::preadv2(file, &mut [IoSliceMut::new(rest)], at, DONT_CACHE) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => done = done.saturating_add(count),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) if done == 0 => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// The first range of data at or after `offset` in a file of `size` bytes; empty, at `size`, if there is none.
/// A file system that knows no holes has data everywhere.
///
/// # Errors
/// `UnexpectedEof` if the file has become smaller than `size`: what is no longer there is not zeros.
pub(super) fn next_data(file: &File, size: u64, offset: u64) -> Result<Range<u64>> {
    if offset >= size {
        return Ok(size..size);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(start) => start.max(offset),
        Err(Errno::NXIO) => size,
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(offset..size),
        Err(error) => return Err(error.into()),
    };
    if start >= size {
        let now = file.metadata()?;
        return if now.is_file() && now.len() < size { Err(short()) } else { Ok(size..size) };
    }
    match rustix::fs::seek(file, SeekFrom::Hole(start)) {
        Ok(end) if end > start => Ok(start..end.min(size)),
        // Somebody punches holes at this moment. Reading tells.
        Ok(_) => Ok(start..size),
        Err(Errno::NXIO) => Err(short()),
        Err(error) => Err(error.into()),
    }
}

fn short() -> Error {
    ErrorKind::UnexpectedEof.into()
}

#[cfg(test)]
mod tests {
    use crate::block::ReadAt;
    use crate::block::file::FileReader;
    use crate::error::Kind;
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use tempfile::TempDir;

    #[test]
    fn holes_are_found_and_the_end_is_no_hole() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("sparse");
        let file = File::create(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[1; 4096], 32 << 20).unwrap();
        let reader = FileReader::open_origin_read(&path).unwrap();
        let found = reader.next_data(0).unwrap();
        // A file system without holes says that all is data, which is right as well.
        assert!(found.start <= 32 << 20 && found.end >= (32 << 20) + 4096, "{found:?}");
        assert_eq!(reader.next_data(64 << 20).unwrap(), 64 << 20..64 << 20);
        if found.start > 0 {
            assert_eq!(reader.next_data(found.end).unwrap(), 64 << 20..64 << 20);
        }
        file.set_len(48 << 20).unwrap();
        let mut offset = 0;
        let error = loop {
            match reader.next_data(offset) {
                Ok(found) => offset = found.end,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), Kind::Damaged);
    }

    #[test]
    fn reading_once_gives_the_same_bytes() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("image");
        let bytes: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        std::fs::write(&path, &bytes).unwrap();
        let reader = FileReader::open_origin_read(&path).unwrap();
        let mut buf = vec![0; 300_001];
        reader.read_once_at(&mut buf, 77_777).unwrap();
        assert_eq!(buf, bytes[77_777..77_777 + 300_001]);
        assert_eq!(reader.read_once_at(&mut buf, 100_001).unwrap_err().kind(), Kind::Damaged);
        std::fs::write(&path, b"short").unwrap();
        assert_eq!(reader.read_once_at(&mut buf, 0).unwrap_err().kind(), Kind::Damaged);
    }
}
