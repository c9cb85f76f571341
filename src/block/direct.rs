//! Reading and writing past the page cache of the system (`O_DIRECT`), at any offset and length.
//!
//! A device that somebody else reads and writes too, through another name, must be used so: what the cache keeps for
//! this name would be older, and what it has not written yet newer, than what others see.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Offsets, lengths and addresses are multiples of this. A block that is written in part is read and written whole, so
/// two writers of one block must not come at the same time.
#[derive(Debug, Clone, Copy)]
pub struct Alignment(usize);

/// Memory that fits.
struct Aligned {
    bytes: Vec<u8>,
    from: usize,
    length: usize,
}

impl Aligned {
    fn new(alignment: usize, length: usize) -> Self {
        let bytes = vec![0; length + alignment];
        let from = bytes.as_ptr().align_offset(alignment);
        Self { bytes, from, length }
    }

    fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.from..self.from + self.length]
    }
}

impl Alignment {
    /// Blocks of `bytes`, a power of two from 512 on; `None` otherwise.
    #[must_use]
    pub fn new(bytes: usize) -> Option<Self> {
        (bytes.is_power_of_two() && bytes >= 512).then_some(Self(bytes))
    }

    fn fits(self, address: *const u8, length: usize, offset: u64) -> bool {
        address.align_offset(self.0) == 0
            && length.is_multiple_of(self.0)
            && offset.is_multiple_of(self.0 as u64)
    }

    /// The blocks that hold `length` bytes at `offset`: where they begin, how far in the bytes begin, and their length.
    fn around(self, offset: u64, length: usize) -> (u64, usize, usize) {
        let inside = offset % self.0 as u64;
        let begin = offset - inside;
        // Less than a block.
        let inside = usize::try_from(inside).unwrap_or_default();
        (begin, inside, (inside + length).next_multiple_of(self.0))
    }

    /// Fills `buf` from byte `offset`.
    ///
    /// # Errors
    /// What the system says.
    pub fn read(self, file: &File, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        if self.fits(buf.as_ptr(), buf.len(), offset) {
            return file.read_exact_at(buf, offset);
        }
        let (begin, inside, length) = self.around(offset, buf.len());
        let mut blocks = Aligned::new(self.0, length);
        file.read_exact_at(blocks.get(), begin)?;
        buf.copy_from_slice(&blocks.get()[inside..inside + buf.len()]);
        Ok(())
    }

    /// Writes `buf` at byte `offset`.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(self, file: &File, buf: &[u8], offset: u64) -> std::io::Result<()> {
        if self.fits(buf.as_ptr(), buf.len(), offset) {
            return file.write_all_at(buf, offset);
        }
        let (begin, inside, length) = self.around(offset, buf.len());
        let mut blocks = Aligned::new(self.0, length);
        let blocks = blocks.get();
        if inside > 0 {
            file.read_exact_at(&mut blocks[..self.0], begin)?;
        }
        // The last block may be the first, which has been read.
        if inside + buf.len() < length && (length > self.0 || inside == 0) {
            let last = length - self.0;
            file.read_exact_at(&mut blocks[last..], begin + last as u64)?;
        }
        blocks[inside..inside + buf.len()].copy_from_slice(buf);
        file.write_all_at(blocks, begin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_is_read_and_written() {
        let file = tempfile::tempfile().unwrap();
        let mut model: Vec<u8> = (0..8192u32).map(|i| (i % 251) as u8).collect();
        file.write_all_at(&model, 0).unwrap();
        let alignment = Alignment::new(512).unwrap();
        let mut number = 1u64;
        for round in 0..2000u32 {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let offset = ((number >> 33) % 8192) as usize;
            let length = ((number >> 20) % 1500).min(8192 - offset as u64) as usize;
            let (offset, length) =
                if round % 4 == 0 { (offset & !511, length & !511) } else { (offset, length) };
            if round % 2 == 0 {
                let data = vec![u8::try_from(round % 251).unwrap(); length];
                alignment.write(&file, &data, offset as u64).unwrap();
                model[offset..offset + length].copy_from_slice(&data);
            }
            let mut found = vec![0; length];
            alignment.read(&file, &mut found, offset as u64).unwrap();
            assert!(found == model[offset..offset + length], "{length} bytes at {offset}");
        }
        let mut whole = vec![0; 8192];
        file.read_exact_at(&mut whole, 0).unwrap();
        assert!(whole == model);
        assert!(
            Alignment::new(0).is_none() && Alignment::new(513).is_none() && Alignment::new(256).is_none()
        );
    }
}
