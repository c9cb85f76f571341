//! Metadata blocks in their newest version: from the journal where it has one that counts, else from their home.

use crate::block::ReadAt;
use crate::error::{Error, Result};
use crate::format::legacy::SECTOR;
use crate::format::legacy::superblock::Superblock;
use crate::format::legacy::tree::has_leaf_magic;
use crate::units::index;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// The metadata device, with what the journal lays over it.
pub(super) struct Blocks {
    device: Arc<dyn ReadAt>,
    /// Bytes of a block.
    pub size: u64,
    /// Blocks of the metadata space.
    pub count: u64,
    /// Areas of the metadata, in sectors, that hold neither tree nor data.
    areas: Vec<(&'static str, u64, u64)>,
    /// Home sector to the sector in the journal that has the newest version.
    pub moved: BTreeMap<u64, u64>,
}

/// What is known of the holes of a device, for whoever goes along it.
#[derive(Default)]
pub(super) struct Holes {
    from: u64,
    data: Range<u64>,
}

impl Blocks {
    pub fn new(device: Arc<dyn ReadAt>, sb: &Superblock) -> Self {
        let (size, count, areas) = (sb.block_size(), sb.metadata.chunks, sb.areas());
        Self { device, size, count, areas, moved: BTreeMap::new() }
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

    /// True if the journal can have a block for `sector`: one of the tree or of a bitmap.
    pub fn is_home(&self, sector: u64) -> bool {
        let is_journaled = self.area(sector).is_none_or(|area| matches!(area, "bitmap" | "data bitmap"));
        self.is_place(sector) && is_journaled
    }

    /// The area of the metadata that the block at `sector` belongs to: no block of the tree, and no data.
    pub fn area(&self, sector: u64) -> Option<&'static str> {
        self.areas.iter().find(|(_, begin, end)| (*begin..*end).contains(&sector)).map(|(name, ..)| *name)
    }

    /// The newest version of the block of the tree at `sector`.
    ///
    /// # Errors
    /// `Kind::Damaged` for a place where none can be; `Kind::Io`.
    pub fn read_tree(&self, sector: u64) -> Result<Vec<u8>> {
        match self.area(sector).filter(|_| self.is_place(sector)) {
            None => self.read(sector),
            Some(area) => {
                let what = format!("the tree leads to sector {sector}, where the {area} is");
                Err(Error::damaged(what).at_path(self.device.path()))
            }
        }
    }

    /// How many blocks from `sector` on are known to be zeros without reading them.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn holes(&self, known: &mut Holes, sector: u64) -> Result<u64> {
        let begin = sector.saturating_mul(SECTOR);
        if begin < known.from || begin >= known.data.end {
            *known = Holes { from: begin, data: self.device.next_data(begin)? };
        }
        Ok(known.data.start.saturating_sub(begin) / self.size)
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

    /// True if the block on the device at `sector` begins as a leaf does.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn begins_as_leaf(&self, sector: u64) -> Result<bool> {
        let mut head = [0; 8];
        self.device.read_at(&mut head, sector.saturating_mul(SECTOR))?;
        Ok(has_leaf_magic(&head))
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
