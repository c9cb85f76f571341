//! What a delta can be applied to.

use crate::block::{ReadAt, WriteAt};
use crate::error::Result;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// The state of what a delta is applied to or checked against, read by many threads.
pub trait TargetState: Sync {
    /// For messages.
    fn path(&self) -> &Path;

    /// Size in bytes now.
    fn size(&self) -> u64;

    /// True if [`TargetState::read_base`] gives the state before the apply even after parts were written.
    fn keeps_base(&self) -> bool {
        false
    }

    /// Size in bytes of the old data, if that lies elsewhere.
    fn base_size(&self) -> Option<u64> {
        None
    }

    /// Bytes as they are now.
    ///
    /// # Errors
    /// Of the medium.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// True if `len` bytes at `offset`, inside the size, are known to be zeroes without reading them.
    ///
    /// # Errors
    /// Of the medium.
    fn is_hole(&self, _offset: u64, _len: u64) -> Result<bool> {
        Ok(false)
    }

    /// Bytes as they were before the apply, if the volume keeps them; else as they are now.
    ///
    /// # Errors
    /// Of the medium.
    fn read_base(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read(offset, buf)
    }
}

/// A volume that a delta changes.
pub trait Target: TargetState {
    /// True if many threads may write at once, in any order. If not, one thread writes, in ascending order.
    fn takes_any_order(&self) -> bool {
        false
    }

    /// True if [`Target::set_size`] can change the size.
    fn can_resize(&self) -> bool;

    /// Writes inside the size.
    ///
    /// # Errors
    /// Of the medium.
    fn write(&self, offset: u64, data: &[u8]) -> Result<()>;

    /// Writes several pieces, each given by its byte offset and its data. A target for which each write has a
    /// price of its own pays it once.
    ///
    /// # Errors
    /// Of the medium.
    fn write_many(&self, pieces: &[(u64, &[u8])]) -> Result<()> {
        pieces.iter().try_for_each(|(offset, data)| self.write(*offset, data))
    }

    /// Changes the size; what is gained reads as zeros.
    ///
    /// # Errors
    /// Of the medium; `Kind::Mismatch` if it cannot.
    fn set_size(&self, size_bytes: u64) -> Result<()>;

    /// Makes everything written durable.
    ///
    /// # Errors
    /// Of the medium.
    fn flush(&self) -> Result<()>;
}

/// A plain device or file that is only read.
pub(crate) struct Base<'a>(pub(crate) &'a dyn ReadAt);

impl TargetState for Base<'_> {
    fn path(&self) -> &Path {
        self.0.path()
    }

    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_at(buf, offset)
    }
}

/// A plain device or file as a target.
pub struct FileTarget<'a> {
    file: &'a dyn WriteAt,
    is_device: bool,
}

impl<'a> FileTarget<'a> {
    /// `file` as a target. A block device keeps its size.
    #[must_use]
    pub fn new(file: &'a dyn WriteAt) -> Self {
        let is_device = std::fs::metadata(file.path()).is_ok_and(|meta| meta.file_type().is_block_device());
        Self { file, is_device }
    }
}

impl TargetState for FileTarget<'_> {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn size(&self) -> u64 {
        self.file.size()
    }

    fn is_hole(&self, offset: u64, len: u64) -> Result<bool> {
        Ok(self.file.next_data(offset)?.start >= offset.saturating_add(len))
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.file.read_at(buf, offset)
    }
}

impl Target for FileTarget<'_> {
    fn takes_any_order(&self) -> bool {
        true
    }

    fn can_resize(&self) -> bool {
        !self.is_device
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.file.write_at(data, offset)
    }

    fn set_size(&self, size_bytes: u64) -> Result<()> {
        self.file.set_size(size_bytes)
    }

    fn flush(&self) -> Result<()> {
        self.file.flush()
    }
}
