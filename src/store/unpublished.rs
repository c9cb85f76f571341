//! A device on which a store is made that nobody recognises before it is whole.

use super::types::Kept;
use crate::block::{ReadAt, WriteAt};
use crate::error::{Error, Kind, Result};
use crate::format::superblock::{FIRST_SEGMENT, MAGIC, OFFSETS, SIZE, Superblock, UNFINISHED_MAGIC};
use crate::units::index;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The superblocks of a store that was being filled on `device`, as far as they are sound.
///
/// # Errors
/// `Kind::Io`.
pub fn unfinished(device: &dyn ReadAt) -> Result<Vec<Superblock>> {
    let mut found = Vec::new();
    for offset in OFFSETS {
        if offset + SIZE as u64 <= device.size() {
            let mut bytes = vec![0; SIZE];
            device.read_at(&mut bytes, offset)?;
            found.extend(Superblock::decode_unfinished(&bytes));
        }
    }
    Ok(found)
}

/// True if a store was being filled on `device`, as far as its superblocks tell.
///
/// # Errors
/// `Kind::Io`.
pub fn is_marked(device: &dyn ReadAt) -> Result<bool> {
    for offset in OFFSETS {
        let mut magic = [0; MAGIC.len()];
        if offset + SIZE as u64 <= device.size() {
            device.read_at(&mut magic, offset)?;
        }
        if magic == UNFINISHED_MAGIC {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Writes through to a device, except that its superblocks get another magic until [`Unpublished::publish`]. What is
/// read back is what was written. Beside another store nothing before the first segment is written at all.
pub struct Unpublished {
    inner: Arc<dyn WriteAt>,
    /// What lies before the first segment.
    head: Mutex<Vec<u8>>,
    /// What of the device must not be written.
    kept: Option<Kept>,
}

impl Unpublished {
    pub fn new(inner: Arc<dyn WriteAt>) -> Result<Self> {
        let mut head = vec![0; index(FIRST_SEGMENT.min(inner.size()))];
        inner.read_at(&mut head, 0)?;
        Ok(Self { inner, head: Mutex::new(head), kept: None })
    }

    /// Beside another store, which does not change.
    pub fn beside(inner: Arc<dyn WriteAt>, kept: Kept) -> Self {
        let head = vec![0; index(FIRST_SEGMENT.min(inner.size()))];
        Self { inner, head: Mutex::new(head), kept: Some(kept) }
    }

    /// Refuses to write where the other store lies: no mistake anywhere else may cost it a byte.
    fn ensure_free(&self, offset: u64, length: usize) -> Result<()> {
        let Some(kept) = self.kept.as_ref().filter(|_| length > 0) else { return Ok(()) };
        let segment =
            |byte: u64| u32::try_from((byte - FIRST_SEGMENT) >> kept.segment_bits).unwrap_or(u32::MAX);
        let last = offset.saturating_add(length as u64 - 1);
        if kept.segments.range(segment(offset)..=segment(last)).next().is_none() {
            return Ok(());
        }
        let what = "the new store was about to write where the old one lies";
        Err(Error::new(Kind::Refused, what).at_offset(offset))
    }

    /// Turns what was made into a store: everything durable, then the first superblock, then the second.
    pub fn publish(&self) -> Result<()> {
        let head = self.head();
        for offset in OFFSETS {
            self.inner.flush()?;
            let bytes = head.get(index(offset)..).and_then(|rest| rest.get(..SIZE)).unwrap_or(&[]);
            self.inner.write_at(bytes, offset)?;
        }
        self.inner.flush()
    }

    // What a thread that panicked left is still bytes.
    fn head(&self) -> MutexGuard<'_, Vec<u8>> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `buf`, to be written at `offset`, with the superblocks in it marked as those of no store yet.
fn masked(buf: &[u8], offset: u64) -> Vec<u8> {
    let mut masked = buf.to_vec();
    for at in OFFSETS {
        // A superblock is written in one piece, and so is what takes its place.
        let magic =
            at.checked_sub(offset).and_then(|skip| masked.get_mut(index(skip)..)?.get_mut(..MAGIC.len()));
        if let Some(magic) = magic.filter(|magic| **magic == MAGIC || **magic == [0; MAGIC.len()]) {
            magic.copy_from_slice(&UNFINISHED_MAGIC);
        }
    }
    masked
}

impl ReadAt for Unpublished {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.inner.read_at(buf, offset)?;
        if offset < FIRST_SEGMENT {
            let head = self.head();
            for (to, from) in buf.iter_mut().zip(head.iter().skip(index(offset))) {
                *to = *from;
            }
        }
        Ok(())
    }
}

impl WriteAt for Unpublished {
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        if offset >= FIRST_SEGMENT {
            self.ensure_free(offset, buf.len())?;
            return self.inner.write_at(buf, offset);
        }
        if self.kept.is_none() {
            self.inner.write_at(&masked(buf, offset), offset)?;
        }
        let mut head = self.head();
        for (to, from) in head.iter_mut().skip(index(offset)).zip(buf) {
            *to = *from;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }

    fn set_size(&self, size_bytes: u64) -> Result<()> {
        self.inner.set_size(size_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::memory::Memory;

    #[test]
    fn beside_another_store_nothing_of_that_is_written() {
        let inner = Arc::new(Memory::new(4 << 20));
        let kept = Kept { segment_bits: 16, segments: Arc::new([3, 4].into()) };
        let device = Unpublished::beside(Arc::<Memory>::clone(&inner) as _, kept);
        let at = |segment: u64| FIRST_SEGMENT + (segment << 16);
        for (offset, length) in
            [(at(3), 1), (at(5) - 1, 1), (at(3) - 1, 2), (at(2), 4 << 16), (at(4) + 9, 4096)]
        {
            let error = device.write_at(&vec![1; length], offset).unwrap_err();
            assert_eq!(error.kind(), Kind::Refused, "{offset}");
        }
        // Before the first segment it keeps everything to itself.
        device.write_at(&[2; 4096], 64 << 10).unwrap();
        let mut back = [0; 4096];
        device.read_at(&mut back, 64 << 10).unwrap();
        assert_eq!(back, [2; 4096]);
        assert!(inner.to_vec().unwrap().iter().all(|byte| *byte == 0));
        for (offset, length) in [(at(2), 1 << 16), (at(5), 9), (at(4), 0)] {
            device.write_at(&vec![3; length], offset).unwrap();
        }
        assert_eq!(inner.to_vec().unwrap().iter().filter(|byte| **byte == 3).count(), (1 << 16) + 9);
    }
}
