//! Devices and files as arrays of bytes: open, lock, size, read, write, flush.
//!
//! Knows no structure. A reader holds a [`ReadAt`], which has no way to write; only code that may change a
//! device ever holds a [`WriteAt`].
//!
//! | module | what |
//! |---|---|
//! | [`file`] | regular files and block devices |
//! | `open` | what is taken for one of them, and for whom it is locked |
//! | [`lock`] | locks that end with the process |
//! | [`sparse`] | holes of a file, and reading it without displacing what the system has cached |
//! | [`shared`] | which bytes of a file lie on blocks that other files share |
//! | [`direct`] | reading and writing past the page cache |
//! | [`memory`] | a sparse device in memory |
//! | [`overlay`] | writes kept in memory over something that is only read (`--dry-run`) |
//! | [`record`] | logs every write and flush, and builds what a crash may leave behind (tests) |
//! | [`counted`] | counts what is done with a device |
//! | [`faulty`] | fails, freezes or flips bits on demand (tests) |
//! | [`part`] | files that are kept for whoever goes on with them |
//! | [`mount`] | who holds a device or file already |
//! | [`signature`] | which known content lies on a device, so that nobody overwrites it unasked |

use crate::error::{Error, Kind, Result};
use shared::{SharedExtents, Space};
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

pub mod counted;
pub mod direct;
pub mod faulty;
pub mod file;
pub mod lock;
pub mod memory;
pub mod mount;
mod open;
pub mod overlay;
mod pages;
pub mod part;
pub mod record;
pub mod shared;
pub mod signature;
pub mod sparse;

/// Something that can be read at any byte offset, by many threads at once.
pub trait ReadAt: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// The path, for messages.
    fn path(&self) -> &Path;

    /// Fills `buf` from byte `offset`.
    ///
    /// # Errors
    /// `Kind::Io` if the medium fails; `Kind::Damaged` if the range ends past [`ReadAt::size`].
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Device number, inode and modification time (nanoseconds since 1970) if this is a regular file.
    fn file_stamp(&self) -> Option<(u64, u64, i64)> {
        None
    }

    /// True if it is used past the cache of the system, as whoever else uses it under this name must, too.
    fn is_direct(&self) -> bool {
        false
    }

    /// As [`ReadAt::read_at`], for bytes that nobody is expected to read again soon: where the system can, they
    /// do not displace what it has cached.
    ///
    /// # Errors
    /// As [`ReadAt::read_at`].
    fn read_once_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read_at(buf, offset)
    }

    /// As [`ReadAt::read_at`], if the bytes are at hand: false, with anything in `buf`, if a device must be waited for
    /// or nobody knows.
    ///
    /// # Errors
    /// As [`ReadAt::read_at`].
    fn read_cached(&self, buf: &mut [u8], offset: u64) -> Result<bool> {
        let (_, _) = (buf, offset);
        Ok(false)
    }

    /// The open file in which these bytes lie at the same offset, for whoever reads them there himself at once; `None`
    /// if there is none, if they are not all inside, or if [`ReadAt::read_at`] does more than to read them.
    fn file_with(&self, offset: u64, length: usize) -> Option<Arc<File>> {
        let (_, _) = (offset, length);
        None
    }

    /// Tells that these bytes are read soon, one range after the other: a device that can, fetches them together.
    fn will_read(&self, ranges: &[Range<u64>]) {
        let _ = ranges;
    }

    /// The first range of bytes at or after `offset` that may be other than zero, as far as that is known
    /// without reading: what lies between `offset` and its start is zeros. Empty, at the size, if only zeros
    /// follow. Never empty otherwise.
    ///
    /// # Errors
    /// `Kind::Io`; `Kind::Damaged` if a file has become smaller since it was opened.
    fn next_data(&self, offset: u64) -> Result<Range<u64>> {
        Ok(offset.min(self.size())..self.size())
    }

    /// Where the addresses of [`ReadAt::shared_extents`] count, if this is a file that can share its blocks with
    /// others.
    fn space(&self) -> Option<Space> {
        None
    }

    /// Which bytes from `offset` on lie on blocks that are shared. None if that cannot be told.
    fn shared_extents(&self, offset: u64) -> Option<SharedExtents> {
        let _ = offset;
        None
    }
}

/// Something that can also be written. Writes are volatile until [`WriteAt::flush`] returns.
pub trait WriteAt: ReadAt {
    /// Writes all of `buf` at byte `offset`, inside the current size.
    ///
    /// # Errors
    /// `Kind::Io`, `Kind::NoSpace`, or `Kind::Damaged` if the range ends past the size.
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()>;

    /// Makes every completed write durable. A flush that failed is never retried as success: after an
    /// error every later flush of the same object fails too.
    ///
    /// # Errors
    /// `Kind::Io`.
    fn flush(&self) -> Result<()>;

    /// Changes the size of a regular file; a block device only accepts its own size.
    ///
    /// # Errors
    /// `Kind::Io`, `Kind::NoSpace`; `Kind::Mismatch` for a block device of another size.
    fn set_size(&self, size_bytes: u64) -> Result<()>;
}

impl<T: ReadAt + ?Sized> ReadAt for Arc<T> {
    fn size(&self) -> u64 {
        (**self).size()
    }
    fn path(&self) -> &Path {
        (**self).path()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        (**self).read_at(buf, offset)
    }
    fn file_stamp(&self) -> Option<(u64, u64, i64)> {
        (**self).file_stamp()
    }
    fn is_direct(&self) -> bool {
        (**self).is_direct()
    }
    fn read_once_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        (**self).read_once_at(buf, offset)
    }
    fn read_cached(&self, buf: &mut [u8], offset: u64) -> Result<bool> {
        (**self).read_cached(buf, offset)
    }
    fn file_with(&self, offset: u64, length: usize) -> Option<Arc<File>> {
        (**self).file_with(offset, length)
    }
    fn will_read(&self, ranges: &[Range<u64>]) {
        (**self).will_read(ranges);
    }
    fn next_data(&self, offset: u64) -> Result<Range<u64>> {
        (**self).next_data(offset)
    }
    fn space(&self) -> Option<Space> {
        (**self).space()
    }
    fn shared_extents(&self, offset: u64) -> Option<SharedExtents> {
        (**self).shared_extents(offset)
    }
}

impl<T: WriteAt + ?Sized> WriteAt for Arc<T> {
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        (**self).write_at(buf, offset)
    }
    fn flush(&self) -> Result<()> {
        (**self).flush()
    }
    fn set_size(&self, size_bytes: u64) -> Result<()> {
        (**self).set_size(size_bytes)
    }
}

/// Refuses a range of `len` bytes at `offset` that does not lie inside `size` bytes. `op` is "read" or "write".
fn ensure_inside(op: &str, path: &Path, size: u64, offset: u64, len: usize) -> Result<()> {
    let end = u64::try_from(len).ok().and_then(|len| offset.checked_add(len));
    if end.is_some_and(|end| end <= size) {
        return Ok(());
    }
    let what = format!("{op} of {len} bytes at {offset} ends past the size {size}");
    Err(Error::new(Kind::Damaged, what).at_path(path).at_offset(offset))
}
