//! A device as it is, as an export: for what still has to be written where no server of its volume runs any more.

use super::export::{Export, ensure_inside};
use crate::block::file::FileWriter;
use crate::block::{ReadAt, WriteAt};
use crate::error::Result;

/// A device, and nothing between it and who uses it.
pub struct Straight(pub FileWriter);

impl Export for Straight {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn preferred_size(&self) -> u32 {
        4096
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_at(buf, offset)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.0.write_at(data, offset)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        ensure_inside(offset, length, self.size())
    }

    fn flush(&self) -> Result<()> {
        self.0.flush()
    }
}
