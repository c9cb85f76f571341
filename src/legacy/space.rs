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

    /// Hands `found` each run of 64 chunks of which some are in use: the first one / 64, and a bit for each.
    ///
    /// # Errors
    /// As [`Bitmap::is_used`].
    pub fn each_used(&mut self, mut found: impl FnMut(u64, u64)) -> Result<()> {
        let chunks = self.space.chunks;
        let words_per_block = self.blocks.size / 8;
        for number in 0..self.space.bitmap_blocks {
            let words = self.block(number)?.as_chunks::<8>().0.iter();
            for (at, word) in (number * words_per_block..).zip(words) {
                let inside = chunks.saturating_sub(at * 64).min(64);
                let bits = u64::from_le_bytes(*word)
                    & u64::MAX.checked_shr(64 - u32::try_from(inside).unwrap_or(64)).unwrap_or(0);
                if bits != 0 {
                    found(at, bits);
                }
            }
        }
        self.deferred.range(..chunks).for_each(|chunk| found(chunk / 64, 1 << (chunk % 64)));
        Ok(())
    }

    /// How many chunks are free.
    ///
    /// # Errors
    /// As [`Bitmap::is_used`].
    pub fn count_free(&mut self) -> Result<u64> {
        let mut free = 0;
        for number in 0..self.space.bitmap_blocks {
            let begin = number * self.blocks.size * 8;
            let bits = self.space.chunks.saturating_sub(begin).min(self.blocks.size * 8);
            let block = self.block(number)?;
            // As in 2008 whole bytes count; what lies past the end is marked as used.
            let bytes = &block[..index(bits.div_ceil(8))];
            free += bytes.iter().map(|byte| u64::from(byte.count_zeros())).sum::<u64>();
        }
        let mut deferred = 0;
        for chunk in self.deferred.range(..self.space.chunks) {
            deferred += u64::from(!self.is_marked(*chunk)?);
        }
        Ok(free.saturating_sub(deferred))
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
