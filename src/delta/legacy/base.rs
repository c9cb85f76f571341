//! A target whose old data lies elsewhere, as the source snapshot of 2008 did.

use crate::block::ReadAt;
use crate::delta::target::{Target, TargetState};
use crate::error::Result;
use std::path::Path;

/// A target, and a device or file with the state that a delta applies to.
pub struct BasedTarget<'a> {
    target: &'a dyn Target,
    base: &'a dyn ReadAt,
}

impl<'a> BasedTarget<'a> {
    /// `target` with its old data in `base`, which nobody may change meanwhile.
    #[must_use]
    pub fn new(target: &'a dyn Target, base: &'a dyn ReadAt) -> Self {
        Self { target, base }
    }
}

impl TargetState for BasedTarget<'_> {
    fn path(&self) -> &Path {
        self.target.path()
    }

    fn size(&self) -> u64 {
        self.target.size()
    }

    fn keeps_base(&self) -> bool {
        true
    }

    fn base_size(&self) -> Option<u64> {
        Some(self.base.size())
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.target.read(offset, buf)
    }

    fn is_hole(&self, offset: u64, len: u64) -> Result<bool> {
        self.target.is_hole(offset, len)
    }

    fn read_base(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.base.read_at(buf, offset)
    }
}

impl Target for BasedTarget<'_> {
    fn takes_any_order(&self) -> bool {
        self.target.takes_any_order()
    }

    fn can_resize(&self) -> bool {
        self.target.can_resize()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.target.write(offset, data)
    }

    fn write_many(&self, pieces: &[(u64, &[u8])]) -> Result<()> {
        self.target.write_many(pieces)
    }

    fn set_size(&self, size_bytes: u64) -> Result<()> {
        self.target.set_size(size_bytes)
    }

    fn flush(&self) -> Result<()> {
        self.target.flush()
    }
}
