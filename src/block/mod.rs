//! Devices and files as arrays of bytes: open, lock, size, read, write, flush.
//!
//! Knows no structure. A reader holds a [`ReadAt`], which has no way to write; only code that may change a
//! device ever holds a [`WriteAt`].

use crate::error::Result;
use std::path::Path;

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
