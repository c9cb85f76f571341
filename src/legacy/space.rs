//! Allocation bitmaps of 2008, read through the journal.

use super::blocks::Blocks;
use crate::error::Result;
use crate::format::legacy::superblock::Space;
use crate::units::index;
use std::collections::BTreeSet;

/// The bitmap of a space, with the chunks that are in use though it does not say so yet.
pub(super) struct Bitmap<'a> {
    blocks: &'a Blocks,
    space: Space,
    deferred: &'a BTreeSet<u64>,
    /// The block read last, and its number in the bitmap.
    last: Option<(u64, Vec<u8>)>,
}

impl<'a> Bitmap<'a> {
    pub fn new(blocks: &'a Blocks, space: Space, deferred: &'a BTreeSet<u64>) -> Self {
        Self { blocks, space, deferred, last: None }
    }

    /// True if `chunk` is in use. What lies outside the space is not.
    ///
    /// # Errors
    /// `Kind::Io`, `Kind::Damaged`.
    pub fn is_used(&mut self, chunk: u64) -> Result<bool> {
        if chunk >= self.space.chunks {
            return Ok(false);
        }
        Ok(self.deferred.contains(&chunk) || self.is_marked(chunk)?)
    }

    /// How many bits behind the end are clear, in the byte that the end is in: the original took them for free chunks.
    ///
    /// # Errors
    /// As [`Bitmap::is_used`].
    pub fn clear_behind_end(&mut self) -> Result<u64> {
        let mut clear = 0;
        for chunk in self.space.chunks..self.space.chunks.next_multiple_of(8) {
            clear += u64::from(!self.is_marked(chunk)?);
        }
        Ok(clear)
    }

    fn is_marked(&mut self, chunk: u64) -> Result<bool> {
        let per_block = self.blocks.size * 8;
        let bit = chunk % per_block;
        let block = self.block(chunk / per_block)?;
        Ok(block[index(bit / 8)] >> (bit % 8) & 1 == 1)
    }

    /// The bits of 64 times `number` and of the 63 after it, one for each that is in use.
    ///
    /// # Errors
    /// As [`Bitmap::is_used`].
    pub fn word(&mut self, number: u64) -> Result<u64> {
        let first = number * 64;
        let inside = self.space.chunks.saturating_sub(first).min(64);
        let at = index(number % (self.blocks.size / 8));
        let word = self.block(number / (self.blocks.size / 8))?.as_chunks::<8>().0[at];
        let mut bits = u64::from_le_bytes(word);
        for chunk in self.deferred.range(first..first.saturating_add(64)) {
            bits |= 1 << (chunk - first);
        }
        Ok(bits & u64::MAX.checked_shr(64 - u32::try_from(inside).unwrap_or(64)).unwrap_or(0))
    }

    fn block(&mut self, number: u64) -> Result<&[u8]> {
        let held = self.last.as_ref().is_some_and(|(held, _)| *held == number);
        let (_, block) = match self.last.take() {
            Some(last) if held => self.last.insert(last),
            _ => {
                let sector = self.space.bitmap_base + number * self.blocks.sectors();
                self.last.insert((number, self.blocks.read(sector)?))
            }
        };
        Ok(block)
    }
}
