//! A device that fails on demand, for tests: the n-th read, write or flush, everything from a moment on, or
//! single bits of what it returns.

use super::{ReadAt, WriteAt};
use crate::error::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// An operation that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// `read_at`.
    Read,
    /// `write_at`.
    Write,
    /// `flush`.
    Flush,
    /// `set_size`.
    SetSize,
}

#[derive(Debug, Clone, Copy)]
struct Failure {
    operation: Operation,
    /// Counted from 1 over the life of the device.
    first: u64,
    last: u64,
    kind: Kind,
}

#[derive(Debug, Default)]
struct State {
    counts: BTreeMap<Operation, u64>,
    failures: Vec<Failure>,
    flips: BTreeMap<u64, u8>,
    frozen: bool,
    freeze_after: Option<u64>,
    flush_failed: bool,
}

/// Passes everything to `inner` except what it was told to fail. A failed operation does not reach `inner`.
#[derive(Debug)]
pub struct Faulty<D> {
    inner: D,
    state: Mutex<State>,
}

impl<D> Faulty<D> {
    /// A device without faults yet.
    pub fn new(inner: D) -> Self {
        Self { inner, state: Mutex::new(State::default()) }
    }

    /// What lies below.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// Fails only the `nth` operation of that sort, counted from 1 since the device was made.
    pub fn fail_nth(&self, operation: Operation, nth: u64, kind: Kind) {
        self.state().failures.push(Failure { operation, first: nth, last: nth, kind });
    }

    /// Fails the `nth` operation of that sort and every later one.
    pub fn fail_from(&self, operation: Operation, nth: u64, kind: Kind) {
        self.state().failures.push(Failure { operation, first: nth, last: u64::MAX, kind });
    }

    /// Fails everything from now on, as if the device had been pulled out.
    pub fn freeze(&self) {
        self.state().frozen = true;
    }

    /// Freezes once `count` writes, flushes and size changes have been let through, counted since the device
    /// was made.
    pub fn freeze_after(&self, count: u64) {
        self.state().freeze_after = Some(count);
    }

    /// Ends a freeze and forgets every planned failure and flipped bit. A failed flush stays failed.
    pub fn thaw(&self) {
        let mut state = self.state();
        state.frozen = false;
        state.freeze_after = None;
        state.failures.clear();
        state.flips.clear();
    }

    /// Inverts the bits of `mask` in the byte at `offset` on every read; the medium itself is not touched.
    pub fn flip_on_read(&self, offset: u64, mask: u8) {
        *self.state().flips.entry(offset).or_default() ^= mask;
    }

    /// How often that operation was asked for, failures included.
    pub fn count(&self, operation: Operation) -> u64 {
        self.state().counts.get(&operation).copied().unwrap_or(0)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn changes_so_far(&self) -> u64 {
        [Operation::Write, Operation::Flush, Operation::SetSize]
            .iter()
            .map(|operation| self.counts.get(operation).copied().unwrap_or(0))
            .sum()
    }

    /// Counts the operation and decides its fate.
    fn admit(&mut self, operation: Operation) -> Result<()> {
        if self.freeze_after.is_some_and(|limit| self.changes_so_far() >= limit) {
            self.frozen = true;
        }
        let count = self.counts.entry(operation).or_default();
        *count += 1;
        let nth = *count;
        if self.frozen {
            return Err(Error::new(Kind::Io, format!("{operation:?} {nth}: the device is frozen")));
        }
        let planned = self
            .failures
            .iter()
            .find(|failure| failure.operation == operation && (failure.first..=failure.last).contains(&nth));
        match planned {
            Some(failure) => Err(Error::new(failure.kind, format!("{operation:?} {nth}: planned failure"))),
            None => Ok(()),
        }
    }
}

impl<D: ReadAt> ReadAt for Faulty<D> {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.state().admit(Operation::Read).map_err(|e| e.at_path(self.path()).at_offset(offset))?;
        self.inner.read_at(buf, offset)?;
        for (at, mask) in self.state().flips.range(offset..offset.saturating_add(buf.len() as u64)) {
            let index = usize::try_from(at - offset).expect("inside the buffer");
            buf[index] ^= mask;
        }
        Ok(())
    }

    fn file_stamp(&self) -> Option<(u64, u64, i64)> {
        self.inner.file_stamp()
    }
}

impl<D: WriteAt> WriteAt for Faulty<D> {
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.state().admit(Operation::Write).map_err(|e| e.at_path(self.path()).at_offset(offset))?;
        self.inner.write_at(buf, offset)
    }

    fn flush(&self) -> Result<()> {
        let mut state = self.state();
        let mut admitted = state.admit(Operation::Flush);
        if state.flush_failed && admitted.is_ok() {
            admitted = Err(Error::new(Kind::Io, "an earlier flush failed"));
        }
        state.flush_failed |= admitted.is_err();
        drop(state);
        admitted.map_err(|e| e.at_path(self.path()))?;
        self.inner.flush()
    }

    fn set_size(&self, size_bytes: u64) -> Result<()> {
        self.state().admit(Operation::SetSize).map_err(|e| e.at_path(self.path()))?;
        self.inner.set_size(size_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::memory::Memory;

    fn device() -> Faulty<Memory> {
        Faulty::new(Memory::from_bytes(&[0; 100]))
    }

    #[test]
    fn only_the_nth_write_fails_and_does_not_reach_the_device() {
        let device = device();
        device.fail_nth(Operation::Write, 2, Kind::NoSpace);
        device.write_at(&[1], 0).unwrap();
        let error = device.write_at(&[2], 1).unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace);
        assert_eq!(error.to_string(), "(memory): at byte 1: Write 2: planned failure");
        device.write_at(&[3], 2).unwrap();
        assert_eq!(device.inner().to_vec().unwrap()[..4], [1, 0, 3, 0]);
        assert_eq!(device.count(Operation::Write), 3);
        assert_eq!(device.count(Operation::Read), 0);
    }

    #[test]
    fn from_the_nth_read_on_everything_fails() {
        let device = device();
        device.fail_from(Operation::Read, 2, Kind::Io);
        device.read_at(&mut [0], 0).unwrap();
        assert_eq!(device.read_at(&mut [0], 0).unwrap_err().kind(), Kind::Io);
        assert_eq!(device.read_at(&mut [0], 0).unwrap_err().kind(), Kind::Io);
        device.thaw();
        device.read_at(&mut [0], 0).unwrap();
    }

    #[test]
    fn a_failed_flush_stays_failed_even_when_thawed() {
        let device = device();
        device.fail_nth(Operation::Flush, 1, Kind::Io);
        assert!(device.flush().is_err());
        device.thaw();
        assert!(device.flush().is_err());
    }

    #[test]
    fn frozen_means_nothing_works() {
        let device = device();
        device.freeze_after(2);
        device.write_at(&[1], 0).unwrap();
        device.read_at(&mut [0], 0).unwrap();
        device.flush().unwrap();
        assert!(device.write_at(&[2], 0).is_err());
        assert!(device.read_at(&mut [0], 0).is_err());
        assert!(device.flush().is_err());
        assert!(device.set_size(1).is_err());
        assert_eq!(device.inner().to_vec().unwrap(), [&[1u8][..], &[0; 99]].concat());
        assert_eq!(device.size(), 100);
    }

    #[test]
    fn flipped_bits_show_on_reads_only() {
        let device = device();
        device.flip_on_read(10, 0x81);
        let mut buf = [0; 4];
        device.read_at(&mut buf, 8).unwrap();
        assert_eq!(buf, [0, 0, 0x81, 0]);
        device.read_at(&mut buf, 11).unwrap();
        assert_eq!(buf, [0; 4]);
        assert_eq!(device.inner().to_vec().unwrap(), [0; 100]);
    }
}
