//! Metadata blocks in their newest version: from the journal where it has one that counts, else from their home.

use crate::block::ReadAt;
use crate::error::{Error, Result};
use crate::format::legacy::SECTOR;
use crate::format::legacy::superblock::Superblock;
use crate::units::index;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The metadata device, with what the journal lays over it.
pub(super) struct Blocks {
    device: Arc<dyn ReadAt>,
    /// Bytes of a block.
    pub size: u64,
    /// Blocks of the metadata space.
    pub count: u64,
    /// Home sector to the sector in the journal that has the newest version.
    pub moved: BTreeMap<u64, u64>,
}

impl Blocks {
    pub fn new(device: Arc<dyn ReadAt>, sb: &Superblock) -> Self {
        Self { device, size: sb.block_size(), count: sb.metadata.chunks, moved: BTreeMap::new() }
    }

    /// Sectors of a block.
    pub fn sectors(&self) -> u64 {
        self.size / SECTOR
    }

    pub fn device(&self) -> &dyn ReadAt {
        self.device.as_ref()
    }

    /// True if a block can begin at `sector`.
    pub fn is_place(&self, sector: u64) -> bool {
        sector.is_multiple_of(self.sectors()) && sector / self.sectors() < self.count
    }

    /// The newest version of the block at `sector`.
    ///
    /// # Errors
    /// `Kind::Damaged` for a place where no block can be; `Kind::Io`.
    pub fn read(&self, sector: u64) -> Result<Vec<u8>> {
        if !self.is_place(sector) {
            let what = format!(
                "sector {sector} is named as a block; the metadata have {} blocks of {} bytes",
                self.count, self.size
            );
            return Err(Error::damaged(what).at_path(self.device.path()));
        }
        self.read_home(self.moved.get(&sector).copied().unwrap_or(sector))
    }

    /// What is on the device at `sector`, whatever the journal says.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn read_home(&self, sector: u64) -> Result<Vec<u8>> {
        let mut block = vec![0; index(self.size)];
        self.device.read_at(&mut block, sector.saturating_mul(SECTOR))?;
        Ok(block)
    }

    /// Where the first child is of the block on the device at `sector`, if that is a node.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn first_child(&self, sector: u64) -> Result<u64> {
        let mut child = [0; 8];
        self.device.read_at(&mut child, sector.saturating_mul(SECTOR).saturating_add(16))?;
        Ok(u64::from_le_bytes(child))
    }
}
