//! The bytes of one segment, a window at a time, and the records found in them.

use crate::block::ReadAt;
use crate::error::{Kind, Result};
use crate::format::checkpoint::{self, Part};
use crate::format::record::Record;
use crate::format::superblock::Superblock;
use crate::units::index;
use std::ops::Range;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes read at a time: few enough to be in the processor's cache still when they are summed, and to cost little to
/// get from the system. Segments of tests take several, too.
const PIECE: u64 = if cfg!(test) { 8 << 10 } else { 512 << 10 };

const PAGE: usize = 4096;

/// Where the system puts bytes fastest.
#[derive(Clone, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// The part of a segment that is in memory.
#[derive(Default)]
pub struct Window {
    pages: Vec<Page>,
    /// Its addresses.
    here: Range<u64>,
    /// Where the segment ends, or the device.
    end: u64,
    /// Byte ranges of the segment, as far as it was read, that the medium does not give back; zeroes in memory.
    pub unreadable: Vec<Range<u64>>,
}

/// More bytes are needed than there are in memory.
pub struct More;

/// What can be told as soon as enough is in memory.
type Told<T> = std::result::Result<T, More>;

impl Window {
    /// Reads segment `number`, as much of it as the device has, from front to back. `each` sees what is in memory and
    /// from which address on that is new; it says from which address on it needs all that once more.
    ///
    /// # Errors
    /// What is not the medium's fault: `Kind::Interrupted` and the like.
    pub fn walk(
        &mut self,
        device: &dyn ReadAt,
        sb: &Superblock,
        number: u32,
        each: &mut dyn FnMut(&Self, u64) -> u64,
    ) -> Result<()> {
        let base = sb.segment_address(number);
        self.end = (base + u64::from(sb.segment_size())).min(device.size());
        self.here = base..base;
        self.unreadable.clear();
        while self.here.end < self.end {
            let fresh = self.here.end;
            self.read_on(device, u64::from(sb.block_size()))?;
            let needed = each(self, fresh);
            self.forget(needed);
        }
        Ok(())
    }

    fn read_on(&mut self, device: &dyn ReadAt, block: u64) -> Result<()> {
        let fresh = self.here.end;
        self.here.end = self.end.min(fresh + PIECE);
        let kept = index(fresh - self.here.start);
        let length = index(self.here.end - self.here.start);
        if self.pages.len() < length.div_ceil(PAGE) {
            self.pages.resize(length.div_ceil(PAGE), Page([0; PAGE]));
        }
        let piece = self.pages.as_mut_bytes().get_mut(kept..length).unwrap_or(&mut []);
        if read(device, piece, fresh)? {
            return Ok(());
        }
        // Some block of it cannot be read: the others can.
        for (number, part) in piece.chunks_mut(index(block)).enumerate() {
            let at = fresh + number as u64 * block;
            if !read(device, part, at)? {
                part.fill(0);
                self.unreadable.push(at..at + part.len() as u64);
            }
        }
        Ok(())
    }

    /// Moves what lies from `needed` on to the front.
    fn forget(&mut self, needed: u64) {
        let away = index(needed.clamp(self.here.start, self.here.end) - self.here.start) / PAGE * PAGE;
        let length = index(self.here.end - self.here.start);
        self.pages.as_mut_bytes().copy_within(away..length, 0);
        self.here.start += away as u64;
    }

    /// True if nothing of the segment follows.
    pub fn is_last(&self) -> bool {
        self.here.end == self.end
    }

    /// What is in memory from byte `address` of the store on.
    pub fn from(&self, address: u64) -> &[u8] {
        let start = address.checked_sub(self.here.start).and_then(|start| usize::try_from(start).ok());
        let range = start.map(|start| start..index(self.here.end - self.here.start));
        range.and_then(|range| self.pages.as_bytes().get(range)).unwrap_or(&[])
    }

    /// True if `length` bytes at byte `address` are in memory, or never will be.
    pub fn has(&self, address: u64, length: u64) -> bool {
        self.is_last() || address.saturating_add(length) <= self.here.end
    }

    /// True if the data at byte `address` hold their checksum.
    pub fn holds(&self, address: u64, stored_length: u32, crc: u32) -> bool {
        let bytes = usize::try_from(stored_length).ok().and_then(|length| self.from(address).get(..length));
        bytes.is_some_and(|bytes| crc32fast::hash(bytes) == crc)
    }

    /// True if the medium does not give all of these bytes back.
    pub fn is_unreadable(&self, address: u64, length: u64) -> bool {
        self.unreadable.iter().any(|range| range.start < address + length && address < range.end)
    }

    /// Shows the blocks from `next` on, each with all that is in memory behind it, and moves `next` on. A block for
    /// which `each` needs more comes again when there is more.
    pub fn blocks(&self, next: &mut u64, block: u64, each: &mut dyn FnMut(u64, &[u8]) -> Told<()>) {
        loop {
            let bytes = self.from(*next);
            if bytes.is_empty() || each(*next, bytes).is_err() && !self.is_last() {
                break;
            }
            *next += block;
        }
    }

    /// The sound part of a checkpoint, of whatever store, that begins at `address`, where `bytes` are, and ends in
    /// this segment.
    ///
    /// # Errors
    /// [`More`] if it is not wholly in memory.
    pub fn checkpoint(&self, address: u64, bytes: &[u8]) -> Told<Option<Part>> {
        match checkpoint::peek_part(bytes, address) {
            Some(length) if length > bytes.len() => match address + length as u64 <= self.end {
                true => Err(More),
                false => Ok(None),
            },
            Some(_) => Ok(checkpoint::decode_part(bytes, address).ok()),
            None => Ok(None),
        }
    }

    /// The sound record that begins at `address`, where `bytes` are, and ends in this segment. What lies inside
    /// another may be older.
    ///
    /// # Errors
    /// [`More`] if its header is not wholly in memory.
    pub fn record(&self, address: u64, bytes: &[u8], sb: &Superblock) -> Told<Option<Record>> {
        match Record::peek(bytes, address, sb.uuid) {
            Some(length) if length > bytes.len() && !self.is_last() => Err(More),
            Some(_) => {
                let record = Record::decode(bytes, address, sb).ok();
                Ok(record.filter(|record| record.length() <= self.end - address))
            }
            None => Ok(None),
        }
    }
}

/// Every sound record that begins and ends in segment `number`, by address.
#[cfg(test)]
pub fn records(device: &dyn ReadAt, sb: &Superblock, number: u32) -> Vec<Record> {
    let (mut found, mut next) = (Vec::new(), sb.segment_address(number));
    let each = &mut |window: &Window, _: u64| {
        window.blocks(&mut next, u64::from(sb.block_size()), &mut |address, bytes| {
            window.record(address, bytes, sb).map(|record| found.extend(record))
        });
        next
    };
    Window::default().walk(device, sb, number, each).unwrap();
    found
}

/// False if the medium does not give the bytes back.
fn read(device: &dyn ReadAt, bytes: &mut [u8], at: u64) -> Result<bool> {
    match device.read_once_at(bytes, at) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == Kind::Io => Ok(false),
        Err(error) => Err(error),
    }
}
