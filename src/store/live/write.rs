//! Writing the origin while snapshots need what it has.

use super::{Live, Shared};
use crate::error::Result;
use crate::store::work::Operation;
use crate::store::writer::Writer;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A write of the origin that takes longer waits for its device: memory is full of what others wrote.
const PATIENCE: Duration = Duration::from_millis(2);
/// After it, so many writes are left to who may wait.
const SLOW_WRITES: u32 = 64;

impl Live {
    /// Writes the origin at byte `offset`. What snapshots need is copied out before, be it after this has returned: all
    /// who read through this see the new bytes at once, and they are durable after [`Live::flush`].
    ///
    /// # Errors
    /// `Kind::Usage` past the end; `Kind::NoSpace` if the store is full, with nothing written from some slice of a MiB
    /// on; `Kind::Io`.
    pub fn write_origin(&self, offset: u64, data: &[u8]) -> Result<()> {
        let _running = self.shared.work.begin(Operation::WriteOrigin(data.len()));
        self.ensure_inside(offset, data.len() as u64)?;
        let mut at = offset;
        for slice in data.chunks(self.shared.slice) {
            self.write_slice(at, slice)?;
            at += slice.len() as u64;
        }
        Ok(())
    }

    fn write_slice(&self, offset: u64, data: &[u8]) -> Result<()> {
        let shared = &self.shared;
        let (first, end) = shared.chunks(offset, data.len());
        let claim = shared.turns.claim(first, end);
        if claim.is_direct() && !shared.must_preserve(first, end)? {
            return shared.origin.write_at(data, offset);
        }
        let _waiting = shared.work.queue();
        claim.hold(offset, data, &|| shared.room())
    }

    /// As [`Live::write_origin`], for a small write and if that waits for nobody: false, and nothing is written, if it
    /// might.
    ///
    /// # Errors
    /// As [`Live::write_origin`].
    pub fn write_origin_at_once(&self, offset: u64, data: &[u8]) -> Result<bool> {
        self.ensure_inside(offset, data.len() as u64)?;
        let shared = &self.shared;
        if data.is_empty() || data.len() > shared.slice {
            return Ok(false);
        }
        let (first, end) = shared.chunks(offset, data.len());
        let Some(claim) = shared.turns.claim_at_once(first, end) else { return Ok(false) };
        let must_preserve = match claim.is_direct() {
            true => shared.must_preserve_at_once(first, end)?,
            false => Some(true),
        };
        let is_written = match must_preserve {
            Some(false) => shared.write_at_once(offset, data)?,
            Some(true) => claim.hold_at_once(offset, data, &|| shared.room())?,
            None => false,
        };
        if is_written {
            drop(shared.work.begin(Operation::WriteOrigin(data.len())));
        }
        Ok(is_written)
    }
}

impl Shared {
    /// The chunks in which bytes lie, of which there are some: the first one, and the one after the last.
    fn chunks(&self, offset: u64, length: usize) -> (u64, u64) {
        (offset >> self.chunk_bits, ((offset + length as u64 - 1) >> self.chunk_bits) + 1)
    }

    /// Writes the origin, unless its device has been slow.
    fn write_at_once(&self, offset: u64, data: &[u8]) -> Result<bool> {
        let less = |left: u32| left.checked_sub(1);
        if self.slow.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok() {
            return Ok(false);
        }
        let begun = Instant::now();
        self.origin.write_at(data, offset)?;
        if begun.elapsed() > PATIENCE {
            self.slow.store(SLOW_WRITES, Ordering::Relaxed);
        }
        Ok(true)
    }

    /// True if a write of chunks from `first` to before `end` must wait for something to be preserved or recorded.
    fn must_preserve(&self, first: u64, end: u64) -> Result<bool> {
        self.core().must_preserve(first, end)
    }

    /// As [`Shared::must_preserve`], unless somebody changes the tables now.
    fn must_preserve_at_once(&self, first: u64, end: u64) -> Result<Option<bool>> {
        self.core.try_read().map_or(Ok(None), |core| core.must_preserve(first, end).map(Some))
    }
}

impl Writer {
    fn must_preserve(&self, first: u64, end: u64) -> Result<bool> {
        self.ensure_sound()?;
        let mut must = !self.origin_touched || self.view.state.durable < self.touched_at;
        for chunk in first..end {
            must = must || self.needs_copy(chunk)?;
        }
        Ok(must)
    }
}
