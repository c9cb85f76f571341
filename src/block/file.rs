//! Regular files and block devices.
//!
//! A [`FileReader`] is opened read-only and has no way to write. Stores are locked, plain devices and files are not.

use super::lock::Lock;
use super::mount::sys_block;
use super::open::{Access, Handle, open};
use super::shared::{self, SharedExtents, Space};
use super::{ReadAt, WriteAt, ensure_inside, sparse};
use crate::error::{Error, Kind, Result};
use rustix::fs::Advice;
use rustix::io::{ReadWriteFlags, preadv2};
use std::fs::File;
use std::io::{ErrorKind, IoSliceMut};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// A file or block device that can only be read.
#[derive(Debug)]
pub struct FileReader {
    handle: Handle,
    /// Set once the system refused to read without caching.
    caches_always: AtomicBool,
}

/// A file or block device that can be read and written.
#[derive(Debug)]
pub struct FileWriter {
    handle: Handle,
    size: AtomicU64,
    /// Flushes take turns: the kernel tells of a failure once, and everybody must hear of it.
    flush_failed: Mutex<bool>,
    /// File systems let one thread at a time write a file through the page cache. Waiting for that here costs no
    /// spinning in the kernel, which takes a third of the speed when many threads come.
    writing: Mutex<()>,
}

impl FileReader {
    /// Opens a store for reading, with a shared lock: other readers may come, a writer may not.
    ///
    /// # Errors
    /// `Kind::NotFound`; `Kind::Busy` if a writer holds it; `Kind::Usage` if it is neither a regular file nor a
    /// block device; `Kind::Io`.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self::from_handle(open(path, Access::ReadLocked)?))
    }

    /// Opens an origin (or any plain device) for reading, without a lock: it may be in use by anyone.
    ///
    /// # Errors
    /// As [`FileReader::open`], without `Kind::Busy`.
    pub fn open_origin_read(path: &Path) -> Result<Self> {
        Ok(Self::from_handle(open(path, Access::Read)?))
    }

    /// As [`FileReader::open_origin_read`], of a block device that somebody uses past the page cache.
    ///
    /// # Errors
    /// As [`FileReader::open_origin_read`].
    pub fn open_direct(path: &Path) -> Result<Self> {
        Ok(Self::from_handle(open(path, Access::ReadDirect)?))
    }

    /// True for a block device, false for a regular file.
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.handle.is_device
    }

    fn from_handle(handle: Handle) -> Self {
        Self { handle, caches_always: AtomicBool::new(false) }
    }
}

impl FileWriter {
    /// Opens a store or an origin for reading and writing, with an exclusive lock: nobody else may write it, and what
    /// takes no lock may read it. A block device is opened exclusively, so that a mounted or mapped one is refused.
    ///
    /// # Errors
    /// `Kind::NotFound`; `Kind::Busy` if another process, a mount or a mapping holds it; `Kind::Usage` if it is
    /// neither a regular file nor a block device; `Kind::Io` if it is read-only or the system refuses.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self::from_handle(open(path, Access::Write)?))
    }

    /// As [`FileWriter::open`], an origin that others read through other names meanwhile: past the
    /// page cache, and although a mapping holds it.
    ///
    /// # Errors
    /// As [`FileWriter::open`].
    pub fn open_shared_origin(path: &Path) -> Result<Self> {
        Ok(Self::from_handle(open(path, Access::WriteDirect)?))
    }

    /// Makes a new regular file of `size_bytes` zeros (sparse) and locks it exclusively.
    ///
    /// # Errors
    /// `Kind::Exists` if there is something already; `Kind::NoSpace`, `Kind::Io`.
    pub fn create(path: &Path, size_bytes: u64) -> Result<Self> {
        let made = File::options().read(true).write(true).create_new(true).open(path);
        let file = made.map_err(|e| Error::io(format!("cannot make it: {e}"), e).at_path(path))?;
        Lock::Exclusive.take(&file, path, false)?;
        let handle = Handle {
            file: Arc::new(file),
            path: path.to_path_buf(),
            is_device: false,
            size: 0,
            direct: None,
            _backing: None,
        };
        let writer = Self::from_handle(handle);
        writer.set_size(size_bytes)?;
        // The name is only durable once the folder is.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|e| Error::io(format!("cannot make its name durable: {e}"), e).at_path(path))?;
        Ok(writer)
    }

    /// True for a block device, false for a regular file.
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.handle.is_device
    }

    fn from_handle(handle: Handle) -> Self {
        let size = AtomicU64::new(handle.size);
        Self { handle, size, flush_failed: Mutex::new(false), writing: Mutex::new(()) }
    }

    /// Runs a sync once; after one failure the kernel may have dropped the dirty pages and would report success
    /// for the next one, so from then on every flush fails.
    fn sync_with(&self, sync: impl FnOnce(&File) -> std::io::Result<()>) -> Result<()> {
        let path = &self.handle.path;
        let mut failed = self.flush_failed.lock().unwrap_or_else(PoisonError::into_inner);
        if *failed {
            let what = "an earlier flush failed, so what was written may be lost";
            return Err(Error::new(Kind::Io, what).at_path(path));
        }
        sync(&self.handle.file).map_err(|e| {
            *failed = true;
            Error::io(format!("flush failed: {e}"), e).at_path(path)
        })
    }
}

fn device_stamp(number: u64) -> Option<(u64, u64, i64)> {
    let sys = sys_block(number);
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let boot = u64::from_str_radix(boot.get(..8)?, 16).ok()?;
    // A number that the kernel gives out anew for every disk or loop attachment; partitions have their disk's.
    let disk = ["diskseq", "../diskseq"].iter().find_map(|name| std::fs::read_to_string(sys.join(name)).ok());
    let disk: u64 = disk.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let stat = std::fs::read_to_string(sys.join("stat")).ok()?;
    let fields: Vec<i64> = stat.split_whitespace().map_while(|field| field.parse().ok()).collect();
    let written = fields.get(6)?.checked_add(fields.get(13).copied().unwrap_or(0))?;
    Some((number, (boot << 32 | disk << 1) | 1, written))
}

impl Handle {
    /// `read_exact_at` loops over short reads and EINTR.
    fn read_at(&self, size: u64, buf: &mut [u8], offset: u64) -> Result<()> {
        ensure_inside("read", &self.path, size, offset, buf.len())?;
        let read = match self.direct {
            Some(alignment) => alignment.read(&self.file, buf, offset),
            None => self.file.read_exact_at(buf, offset),
        };
        read.map_err(|e| self.read_error(size, buf.len(), offset, e))
    }

    fn read_error(&self, size: u64, len: usize, offset: u64, e: std::io::Error) -> Error {
        let error = if e.kind() == ErrorKind::UnexpectedEof {
            Error::damaged(format!("read of {len} bytes ends early: the file shrank below {size}"))
        } else {
            Error::io(format!("read of {len} bytes failed: {e}"), e)
        };
        error.at_path(&self.path).at_offset(offset)
    }

    /// Without a cache there is nowhere to fetch to.
    fn will_read(&self, ranges: &[Range<u64>]) {
        for range in ranges.iter().filter(|_| self.direct.is_none()) {
            // A length of zero would mean all the rest.
            if let Some(length) = NonZeroU64::new(range.end.saturating_sub(range.start)) {
                // Where this is not taken, reading only takes longer.
                let _ = rustix::fs::fadvise(&self.file, range.start, Some(length), Advice::WillNeed);
            }
        }
    }

    /// What changes when somebody else writes this. A file: device, inode with time of birth (an inode is reused
    /// soon after a file is removed), and time of modification. A device: its number, this boot, and the sectors
    /// written and discarded since.
    fn stamp(&self) -> Option<(u64, u64, i64)> {
        let meta = self.file.metadata().ok()?;
        if self.is_device {
            return device_stamp(meta.rdev());
        }
        let born = meta.created().ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        let born = born.and_then(|time| u64::try_from(time.as_nanos()).ok()).unwrap_or(0);
        let modified = meta.mtime().checked_mul(1_000_000_000)?.checked_add(meta.mtime_nsec())?;
        Some((meta.dev(), meta.ino() ^ born.rotate_left(8) | 1, modified))
    }
}

impl ReadAt for FileReader {
    fn size(&self) -> u64 {
        self.handle.size
    }

    fn path(&self) -> &Path {
        &self.handle.path
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.handle.read_at(self.handle.size, buf, offset)
    }

    fn file_stamp(&self) -> Option<(u64, u64, i64)> {
        self.handle.stamp()
    }

    fn is_direct(&self) -> bool {
        self.handle.direct.is_some()
    }

    fn read_once_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let (handle, size) = (&self.handle, self.handle.size);
        ensure_inside("read", &handle.path, size, offset, buf.len())?;
        if handle.direct.is_some() || self.caches_always.load(Ordering::Relaxed) {
            return handle.read_at(size, buf, offset);
        }
        match sparse::read_uncached(&handle.file, buf, offset) {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.caches_always.store(true, Ordering::Relaxed);
                handle.read_at(size, buf, offset)
            }
            Err(e) => Err(handle.read_error(size, buf.len(), offset, e)),
        }
    }

    fn will_read(&self, ranges: &[Range<u64>]) {
        self.handle.will_read(ranges);
    }

    fn next_data(&self, offset: u64) -> Result<Range<u64>> {
        let (handle, size) = (&self.handle, self.handle.size);
        sparse::next_data(&handle.file, size, offset).map_err(|e| handle.read_error(size, 0, offset, e))
    }

    fn space(&self) -> Option<Space> {
        if self.handle.is_device { None } else { shared::space(&self.handle.file) }
    }

    fn shared_extents(&self, offset: u64) -> Option<SharedExtents> {
        shared::shared_extents(&self.handle.file, offset)
    }
}

impl ReadAt for FileWriter {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn path(&self) -> &Path {
        &self.handle.path
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.handle.read_at(self.size(), buf, offset)
    }

    fn read_cached(&self, buf: &mut [u8], offset: u64) -> Result<bool> {
        let handle = &self.handle;
        ensure_inside("read", &handle.path, self.size(), offset, buf.len())?;
        if handle.direct.is_some() {
            return Ok(false);
        }
        let wanted = buf.len();
        let read = preadv2(&handle.file, &mut [IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT);
        // Whatever else it is, reading it in the ordinary way tells.
        Ok(read == Ok(wanted))
    }

    fn file_with(&self, offset: u64, length: usize) -> Option<Arc<File>> {
        let handle = &self.handle;
        ensure_inside("read", &handle.path, self.size(), offset, length).ok()?;
        handle.direct.is_none().then(|| Arc::clone(&handle.file))
    }

    fn will_read(&self, ranges: &[Range<u64>]) {
        self.handle.will_read(ranges);
    }

    fn next_data(&self, offset: u64) -> Result<Range<u64>> {
        let (handle, size) = (&self.handle, self.size());
        sparse::next_data(&handle.file, size, offset).map_err(|e| handle.read_error(size, 0, offset, e))
    }

    fn file_stamp(&self) -> Option<(u64, u64, i64)> {
        self.handle.stamp()
    }

    fn is_direct(&self) -> bool {
        self.handle.direct.is_some()
    }
}

impl WriteAt for FileWriter {
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        ensure_inside("write", &self.handle.path, self.size(), offset, buf.len())?;
        // `write_all_at` loops over short writes and EINTR.
        let written = match self.handle.direct {
            Some(alignment) => alignment.write(&self.handle.file, buf, offset),
            None if self.handle.is_device => self.handle.file.write_all_at(buf, offset),
            None => {
                let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
                self.handle.file.write_all_at(buf, offset)
            }
        };
        written.map_err(|e| {
            Error::io(format!("write of {} bytes failed: {e}", buf.len()), e)
                .at_path(&self.handle.path)
                .at_offset(offset)
        })
    }

    fn flush(&self) -> Result<()> {
        self.sync_with(File::sync_data)
    }

    fn set_size(&self, size_bytes: u64) -> Result<()> {
        let path = &self.handle.path;
        if self.handle.is_device {
            let size = self.size();
            if size == size_bytes {
                return Ok(());
            }
            let what = format!("the device has {size} bytes and cannot be made {size_bytes}");
            return Err(Error::new(Kind::Mismatch, what).at_path(path));
        }
        let doing = |e: std::io::Error| {
            Error::io(format!("cannot set its size to {size_bytes} bytes: {e}"), e).at_path(path)
        };
        self.handle.file.set_len(size_bytes).map_err(doing)?;
        self.size.store(size_bytes, Ordering::Release);
        self.sync_with(File::sync_all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;
    use std::path::PathBuf;
    use std::time::Duration;
    use tempfile::TempDir;

    fn file_of(bytes: &[u8]) -> (TempDir, PathBuf) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    #[test]
    fn reads_what_was_written() {
        let (_dir, path) = file_of(&[0; 5000]);
        let writer = FileWriter::open(&path).unwrap();
        writer.write_at(b"hello", 4990).unwrap();
        writer.flush().unwrap();
        let mut buf = [1; 7];
        writer.read_at(&mut buf, 4989).unwrap();
        assert_eq!(&buf, b"\0hello\0");
        drop(writer);
        let reader = FileReader::open(&path).unwrap();
        assert_eq!((reader.size(), reader.is_device()), (5000, false));
        reader.read_at(&mut buf, 4989).unwrap();
        assert_eq!(&buf, b"\0hello\0");
    }

    #[test]
    fn what_is_cached_is_what_is_there() {
        let (_dir, path) = file_of(&[7; 9000]);
        let writer = FileWriter::open(&path).unwrap();
        writer.write_at(&[8; 100], 4000).unwrap();
        let (mut cached, mut read) = ([1; 5000], [2; 5000]);
        writer.read_at(&mut read, 3000).unwrap();
        // It was just read; but not every file system tells.
        if writer.read_cached(&mut cached, 3000).unwrap() {
            assert_eq!(cached, read);
        }
        assert_eq!(writer.read_cached(&mut cached, 4001).unwrap_err().kind(), Kind::Damaged);
    }

    #[test]
    fn ranges_past_the_end_are_damage_and_never_grow_the_file() {
        let (_dir, path) = file_of(b"0123456789");
        let writer = FileWriter::open(&path).unwrap();
        let error = writer.read_at(&mut [0; 4], 7).unwrap_err();
        assert_eq!(error.kind(), Kind::Damaged);
        let text = error.to_string();
        assert!(text.ends_with("at byte 7: read of 4 bytes at 7 ends past the size 10"), "{text}");
        assert!(text.starts_with(&path.display().to_string()), "{text}");
        assert_eq!(writer.write_at(&[0; 4], 7).unwrap_err().kind(), Kind::Damaged);
        assert_eq!(writer.write_at(&[0; 4], u64::MAX - 1).unwrap_err().kind(), Kind::Damaged);
        assert_eq!(std::fs::read(&path).unwrap(), b"0123456789");
    }

    #[test]
    fn a_file_that_shrank_behind_our_back_is_damage() {
        let (_dir, path) = file_of(b"0123456789");
        let reader = FileReader::open_origin_read(&path).unwrap();
        std::fs::write(&path, b"01").unwrap();
        assert_eq!(reader.read_at(&mut [0; 4], 0).unwrap_err().kind(), Kind::Damaged);
    }

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let (_dir, path) = file_of(b"x");
        let first = FileReader::open(&path).unwrap();
        let second = FileReader::open(&path).unwrap();
        let error = FileWriter::open(&path).unwrap_err();
        assert_eq!(error.kind(), Kind::Busy);
        assert!(error.to_string().contains("another process holds it"), "{error}");
        assert!(error.hint_text().is_some());
        drop(first);
        assert_eq!(FileWriter::open(&path).unwrap_err().kind(), Kind::Busy);
        drop(second);
        let writer = FileWriter::open(&path).unwrap();
        assert_eq!(FileReader::open(&path).unwrap_err().kind(), Kind::Busy);
        assert_eq!(FileWriter::open(&path).unwrap_err().kind(), Kind::Busy);
        FileReader::open_origin_read(&path).unwrap();
        drop(writer);
        FileReader::open(&path).unwrap();
    }

    #[test]
    fn grows_and_shrinks_files() {
        let (_dir, path) = file_of(b"0123456789");
        let writer = FileWriter::open(&path).unwrap();
        writer.set_size(20).unwrap();
        assert_eq!(writer.size(), 20);
        writer.write_at(b"!", 19).unwrap();
        writer.flush().unwrap();
        writer.set_size(3).unwrap();
        assert_eq!(writer.size(), 3);
        assert_eq!(writer.read_at(&mut [0], 3).unwrap_err().kind(), Kind::Damaged);
        assert_eq!(std::fs::read(&path).unwrap(), b"012");
    }

    #[test]
    fn creates_only_what_is_not_there() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("new");
        let writer = FileWriter::create(&path, 1 << 20).unwrap();
        assert_eq!(writer.size(), 1 << 20);
        assert_eq!(FileReader::open(&path).unwrap_err().kind(), Kind::Busy);
        assert_eq!(FileWriter::create(&path, 1).unwrap_err().kind(), Kind::Exists);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
    }

    #[test]
    fn a_stamp_tells_files_and_times_apart() {
        let (_dir, path) = file_of(b"0123456789");
        let reader = FileReader::open_origin_read(&path).unwrap();
        let (device, inode, before) = reader.file_stamp().unwrap();
        let later = std::time::SystemTime::now() + Duration::from_secs(5);
        File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        let wrapped = std::sync::Arc::new(reader);
        let (same_device, same_inode, after) = ReadAt::file_stamp(&wrapped).unwrap();
        assert_eq!((device, inode), (same_device, same_inode));
        assert!(after > before, "{after} {before}");
        let (_other_dir, other) = file_of(b"x");
        assert_ne!(FileReader::open(&other).unwrap().file_stamp().unwrap().1, inode);
    }

    #[test]
    fn the_file_is_told_only_for_what_lies_in_it() {
        let (_dir, path) = file_of(&[7; 4096]);
        let writer = FileWriter::open(&path).unwrap();
        let mut buf = [0; 96];
        writer.file_with(4000, 96).unwrap().read_exact_at(&mut buf, 4000).unwrap();
        assert_eq!(buf, [7; 96]);
        assert!(writer.file_with(4000, 97).is_none() && writer.file_with(u64::MAX, 1).is_none());
    }

    #[test]
    fn a_failed_flush_is_never_retried_as_success() {
        let (_dir, path) = file_of(b"x");
        let writer = FileWriter::open(&path).unwrap();
        writer.flush().unwrap();
        let failure = || std::io::Error::from_raw_os_error(Errno::IO.raw_os_error());
        assert_eq!(writer.sync_with(|_| Err(failure())).unwrap_err().kind(), Kind::Io);
        for _ in 0..2 {
            let error = writer.flush().unwrap_err();
            assert_eq!(error.kind(), Kind::Io);
            assert!(error.to_string().contains("an earlier flush failed"), "{error}");
        }
    }

    #[test]
    fn a_full_disk_is_no_space() {
        // /dev/full answers every write with ENOSPC; it is a character device, so the handle is made by hand.
        let file = File::options().read(true).write(true).open("/dev/full").unwrap();
        let handle = Handle {
            file: Arc::new(file),
            path: PathBuf::from("/dev/full"),
            is_device: false,
            size: 4096,
            direct: None,
            _backing: None,
        };
        let error = FileWriter::from_handle(handle).write_at(&[1; 10], 100).unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace);
        assert!(error.to_string().starts_with("/dev/full: at byte 100: write of 10 bytes failed"), "{error}");
    }
}
