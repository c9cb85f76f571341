//! The bytes of one segment, and the records found in them.

use crate::block::ReadAt;
use crate::error::{Kind, Result};
use crate::format::checkpoint;
use crate::format::record::Record;
use crate::format::superblock::Superblock;
use crate::store::origin::is_zero;
use crate::units::index;
use std::ops::Range;

/// Bytes read at a time.
const PIECE: usize = 1 << 20;

/// A segment in memory.
#[derive(Default)]
pub struct Segment {
    base: u64,
    bytes: Vec<u8>,
    /// Byte ranges of the store that the medium does not give back; zeroes here.
    pub unreadable: Vec<Range<u64>>,
}

impl Segment {
    /// Reads segment `number`, as much of it as the device has, over whatever was here.
    ///
    /// # Errors
    /// What is not the medium's fault: `Kind::Interrupted` and the like.
    pub fn load(&mut self, device: &dyn ReadAt, sb: &Superblock, number: u32) -> Result<()> {
        self.base = sb.segment_address(number);
        self.unreadable.clear();
        let end = (self.base + u64::from(sb.segment_size())).min(device.size());
        self.bytes.resize(index(end.saturating_sub(self.base)), 0);
        let (base, block) = (self.base, index(u64::from(sb.block_size())));
        for (number, piece) in self.bytes.chunks_mut(PIECE).enumerate() {
            let at = base + (number * PIECE) as u64;
            if read(device, piece, at)? {
                continue;
            }
            // Some block of it cannot be read: the others can.
            for (number, part) in piece.chunks_mut(block).enumerate() {
                let at = at + (number * block) as u64;
                if !read(device, part, at)? {
                    part.fill(0);
                    self.unreadable.push(at..at + part.len() as u64);
                }
            }
        }
        Ok(())
    }

    /// True if nothing but zeroes was ever written here.
    pub fn is_blank(&self) -> bool {
        is_zero(&self.bytes)
    }

    /// What lies here, cut into pieces of `length` bytes.
    pub fn blocks(&self, length: usize) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks_exact(length)
    }

    /// Numbers of the checkpoints of the store `sb` that have a sound part here.
    pub fn checkpoints(&self, sb: &Superblock) -> impl Iterator<Item = u64> {
        let block = index(u64::from(sb.block_size()));
        let parts = (0..self.bytes.len()).step_by(block).filter_map(move |offset| {
            let (bytes, address) = (self.bytes.get(offset..)?, self.base + offset as u64);
            checkpoint::peek_part(bytes, address)?;
            checkpoint::decode_part(bytes, address).ok()
        });
        parts.filter(|part| part.geometry.uuid == sb.uuid).map(|part| part.number)
    }

    /// `length` bytes at byte `address` of the store, if they lie here.
    pub fn get(&self, address: u64, length: u64) -> Option<&[u8]> {
        let start = usize::try_from(address.checked_sub(self.base)?).ok()?;
        self.bytes.get(start..start.checked_add(usize::try_from(length).ok()?)?)
    }

    /// True if the medium does not give all of these bytes back.
    pub fn is_unreadable(&self, address: u64, length: u64) -> bool {
        self.unreadable.iter().any(|range| range.start < address + length && address < range.end)
    }

    /// Every sound record that begins here and ends here, by address. What lies inside another may be older.
    pub fn records(&self, sb: &Superblock) -> Vec<Record> {
        let block = index(u64::from(sb.block_size()));
        let mut found = Vec::new();
        for offset in (0..self.bytes.len()).step_by(block) {
            let address = self.base + offset as u64;
            let bytes = self.bytes.get(offset..).unwrap_or(&[]);
            if Record::peek(bytes, address, sb.uuid).is_none() {
                continue;
            }
            if let Ok(record) = Record::decode(bytes, address, sb)
                && record.length() <= bytes.len() as u64
            {
                found.push(record);
            }
        }
        found
    }

    /// True if the data at byte `address` hold their checksum.
    pub fn holds(&self, address: u64, stored_length: u32, crc: u32) -> bool {
        self.get(address, u64::from(stored_length)).is_some_and(|bytes| crc32fast::hash(bytes) == crc)
    }
}

/// False if the medium does not give the bytes back.
fn read(device: &dyn ReadAt, bytes: &mut [u8], at: u64) -> Result<bool> {
    match device.read_once_at(bytes, at) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == Kind::Io => Ok(false),
        Err(error) => Err(error),
    }
}
