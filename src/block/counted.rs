//! A device that counts what is done with it.

use super::shared::{SharedExtents, Space};
use super::{ReadAt, WriteAt};
use crate::error::Result;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What was done with a device: operations that have ended, well or not, and bytes of those that went well.
#[derive(Debug, Default)]
pub struct Counts {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    flushes: AtomicU64,
    errors: AtomicU64,
}

/// Counts at one moment.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counted {
    /// Reads.
    pub reads: u64,
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes that were written.
    pub written_bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Operations that failed.
    pub errors: u64,
}

impl Counts {
    /// The counts now.
    #[must_use]
    pub fn now(&self) -> Counted {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counted {
            reads: get(&self.reads),
            read_bytes: get(&self.read_bytes),
            writes: get(&self.writes),
            written_bytes: get(&self.written_bytes),
            flushes: get(&self.flushes),
            errors: get(&self.errors),
        }
    }

    fn note<T>(
        &self,
        count: &AtomicU64,
        bytes: Option<(&AtomicU64, usize)>,
        outcome: Result<T>,
    ) -> Result<T> {
        count.fetch_add(1, Ordering::Relaxed);
        if outcome.is_err() {
            self.errors.fetch_add(1, Ordering::Relaxed);
        } else if let Some((bytes, length)) = bytes {
            bytes.fetch_add(length as u64, Ordering::Relaxed);
        }
        outcome
    }
}

/// A device, and who counts.
pub struct Counting<T> {
    device: T,
    counts: Arc<Counts>,
}

impl<T> Counting<T> {
    /// Counts what is done with `device`.
    #[must_use]
    pub fn new(device: T, counts: &Arc<Counts>) -> Self {
        Self { device, counts: Arc::clone(counts) }
    }
}

impl<T: ReadAt> ReadAt for Counting<T> {
    fn size(&self) -> u64 {
        self.device.size()
    }

    fn path(&self) -> &Path {
        self.device.path()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let bytes = (&self.counts.read_bytes, buf.len());
        self.counts.note(&self.counts.reads, Some(bytes), self.device.read_at(buf, offset))
    }

    fn file_stamp(&self) -> Option<(u64, u64, i64)> {
        self.device.file_stamp()
    }

    fn is_direct(&self) -> bool {
        self.device.is_direct()
    }

    fn read_once_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let bytes = (&self.counts.read_bytes, buf.len());
        self.counts.note(&self.counts.reads, Some(bytes), self.device.read_once_at(buf, offset))
    }

    fn read_cached(&self, buf: &mut [u8], offset: u64) -> Result<bool> {
        let length = buf.len();
        let outcome = self.device.read_cached(buf, offset);
        match outcome {
            // It is read again, and counted then.
            Ok(false) => outcome,
            _ => self.counts.note(&self.counts.reads, Some((&self.counts.read_bytes, length)), outcome),
        }
    }

    /// Counts it as read: nobody tells here what becomes of it.
    fn file_with(&self, offset: u64, length: usize) -> Option<Arc<File>> {
        let file = self.device.file_with(offset, length)?;
        let bytes = (&self.counts.read_bytes, length);
        self.counts.note(&self.counts.reads, Some(bytes), Ok(file)).ok()
    }

    fn will_read(&self, ranges: &[Range<u64>]) {
        self.device.will_read(ranges);
    }

    fn next_data(&self, offset: u64) -> Result<Range<u64>> {
        self.device.next_data(offset)
    }

    fn space(&self) -> Option<Space> {
        self.device.space()
    }

    fn shared_extents(&self, offset: u64) -> Option<SharedExtents> {
        self.device.shared_extents(offset)
    }
}

impl<T: WriteAt> WriteAt for Counting<T> {
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let bytes = (&self.counts.written_bytes, buf.len());
        self.counts.note(&self.counts.writes, Some(bytes), self.device.write_at(buf, offset))
    }

    fn flush(&self) -> Result<()> {
        self.counts.note(&self.counts.flushes, None, self.device.flush())
    }

    fn set_size(&self, size_bytes: u64) -> Result<()> {
        self.device.set_size(size_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::memory::Memory;

    #[test]
    fn what_is_done_is_counted() {
        let counts = Arc::new(Counts::default());
        let device = Counting::new(Memory::new(1000), &counts);
        device.write_at(&[1; 100], 0).unwrap();
        device.read_at(&mut [0; 30], 80).unwrap();
        device.flush().unwrap();
        assert!(device.read_at(&mut [0; 30], 990).is_err());
        let expected =
            Counted { reads: 2, read_bytes: 30, writes: 1, written_bytes: 100, flushes: 1, errors: 1 };
        assert_eq!(counts.now(), expected);
    }
}
