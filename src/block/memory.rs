//! A sparse device in memory: what was never written reads as zeros and costs nothing, so a device of
//! 64 TiB is as good as one of 64 KiB.

use super::pages::{PAGE_BYTES, Pages};
use super::{ReadAt, WriteAt, ensure_inside};
use crate::error::Result;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

#[derive(Debug, Clone)]
struct State {
    pages: Pages,
    size: u64,
}

/// A device in memory. Cloning is cheap: the clones share every page until one of them writes to it.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
    state: RwLock<State>,
}

impl Clone for Memory {
    fn clone(&self) -> Self {
        self.snapshot()
    }
}

fn zeros(buf: &mut [u8], _offset: u64) -> std::result::Result<(), Infallible> {
    buf.fill(0);
    Ok(())
}

impl Memory {
    /// A device of `size_bytes` zeros.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        let state = State { pages: Pages::default(), size: size_bytes };
        Self { path: PathBuf::from("(memory)"), state: RwLock::new(state) }
    }

    /// A device that holds exactly `bytes`.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let device = Self::new(bytes.len() as u64);
        let Ok(()) = device.state_mut().pages.write(bytes, 0, zeros);
        device
    }

    /// Gives the device a name for messages.
    #[must_use]
    pub fn named(mut self, name: impl Into<PathBuf>) -> Self {
        self.path = name.into();
        self
    }

    /// A second device with the content of this one as it is now.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        Self { path: self.path.clone(), state: RwLock::new(self.state().clone()) }
    }

    /// The whole content. For small devices.
    ///
    /// # Errors
    /// `Kind::Damaged` if the device does not fit into memory.
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        let state = self.state();
        let len = usize::try_from(state.size).unwrap_or(usize::MAX);
        ensure_inside("read", &self.path, state.size.min(1 << 40), 0, len)?;
        let mut bytes = vec![0; len];
        let Ok(()) = state.pages.read(&mut bytes, 0, zeros);
        Ok(bytes)
    }

    /// True if both devices have the same size and every byte in common. Takes time in proportion to what
    /// was written, not to the size.
    #[must_use]
    pub fn same_content(&self, other: &Self) -> bool {
        // Snapshots, so that comparing a device with itself cannot lock twice.
        let (a, b) = (self.snapshot(), other.snapshot());
        let (a, b) = (a.state(), b.state());
        let zero = [0u8; PAGE_BYTES];
        let covers = |x: &Pages, y: &Pages| x.iter().all(|(n, page)| page == y.get(n).unwrap_or(&zero));
        a.size == b.size && covers(&a.pages, &b.pages) && covers(&b.pages, &a.pages)
    }

    /// Bytes of memory that the content takes.
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        (self.state().pages.count() * PAGE_BYTES) as u64
    }

    // A thread that panicked while it held the lock was a failing test; the content is still well formed.
    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadAt for Memory {
    fn size(&self) -> u64 {
        self.state().size
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let state = self.state();
        ensure_inside("read", &self.path, state.size, offset, buf.len())?;
        let Ok(()) = state.pages.read(buf, offset, zeros);
        Ok(())
    }

    fn read_cached(&self, buf: &mut [u8], offset: u64) -> Result<bool> {
        self.read_at(buf, offset).map(|()| true)
    }
}

impl WriteAt for Memory {
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let mut state = self.state_mut();
        ensure_inside("write", &self.path, state.size, offset, buf.len())?;
        let Ok(()) = state.pages.write(buf, offset, zeros);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn set_size(&self, size_bytes: u64) -> Result<()> {
        let mut state = self.state_mut();
        state.pages.truncate(size_bytes);
        state.size = size_bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_sparse_device_of_64_tib_costs_a_page_a_write() {
        let device = Memory::new(64 << 40);
        device.write_at(b"far out", (63 << 40) + 4093).unwrap();
        let mut buf = [9; 9];
        device.read_at(&mut buf, (63 << 40) + 4092).unwrap();
        assert_eq!(&buf, b"\0far out\0");
        assert_eq!(device.allocated_bytes(), 8192, "the write crosses one page border");
    }

    #[test]
    fn ranges_past_the_end_are_refused_and_change_nothing() {
        let device = Memory::from_bytes(b"0123456789");
        let error = device.write_at(b"abc", 8).unwrap_err();
        assert_eq!(error.kind(), Kind::Damaged);
        assert_eq!(error.to_string(), "(memory): at byte 8: write of 3 bytes at 8 ends past the size 10");
        assert_eq!(device.read_at(&mut [0; 1], u64::MAX).unwrap_err().kind(), Kind::Damaged);
        assert_eq!(device.to_vec().unwrap(), b"0123456789");
        device.read_at(&mut [], 10).unwrap();
    }

    #[test]
    fn a_snapshot_keeps_its_bytes() {
        let device = Memory::from_bytes(&[7; 10_000]);
        let before = device.snapshot();
        device.write_at(&[8; 5000], 100).unwrap();
        assert_eq!(before.to_vec().unwrap(), vec![7; 10_000]);
        assert!(!before.same_content(&device));
        device.write_at(&[7; 5000], 100).unwrap();
        assert!(before.same_content(&device));
    }

    #[test]
    fn a_page_of_zeros_equals_a_page_never_written() {
        let (a, b) = (Memory::new(8192), Memory::new(8192));
        a.write_at(&[0; 10], 0).unwrap();
        assert!(a.same_content(&b) && b.same_content(&a));
        a.write_at(&[1], 5).unwrap();
        assert!(!a.same_content(&b) && !b.same_content(&a));
        assert!(!Memory::new(1).same_content(&Memory::new(2)));
    }

    #[test]
    fn shrinking_forgets_the_tail() {
        for cut in [0u64, 1, 4095, 4096, 4097, 9999] {
            let device = Memory::from_bytes(&[5; 10_000]);
            device.set_size(cut).unwrap();
            assert_eq!(device.size(), cut);
            device.set_size(10_000).unwrap();
            let bytes = device.to_vec().unwrap();
            let cut = usize::try_from(cut).unwrap();
            assert!(bytes[..cut].iter().all(|&b| b == 5), "cut at {cut}");
            assert!(bytes[cut..].iter().all(|&b| b == 0), "cut at {cut}");
        }
    }
}
