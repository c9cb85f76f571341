//! Another size for the origin. Snapshots keep their own.
//!
//! What a snapshot has beyond the origin's end can only come from the store, so before the origin shrinks
//! everything beyond its new end is preserved, durably. The volume record that tells the new size comes when
//! the device can hold it: after a file was grown, before it is cut. A crash between the two leaves a file that
//! is longer than the volume, which costs nothing.

use super::writer::Writer;
use crate::error::{Kind, Result};
use crate::progress::Progress;
use crate::units::index;

/// Bytes of the origin looked at between two commits.
const WINDOW: u64 = 64 << 20;
/// What an entry costs in a record's header and in the index, with room to spare.
const ENTRY_BYTES: u64 = 192;

/// What another size of the origin costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Preserved {
    /// Chunks beyond the new end that snapshots still have from the origin.
    pub chunks: u64,
    /// Bytes of them that are not zero, padded: what the store must take in.
    pub bytes: u64,
}

impl Preserved {
    /// Bytes it takes in the store, headers and index included.
    #[must_use]
    pub fn cost(self) -> u64 {
        self.bytes.saturating_add(self.chunks.saturating_mul(ENTRY_BYTES))
    }
}

impl Writer {
    /// What giving the origin `size` bytes would have to preserve first. Reads that part of the origin.
    ///
    /// # Errors
    /// `Kind::NotFound` without the origin, `Kind::Io`, `Kind::Interrupted`.
    pub fn plan_origin_size(&mut self, size: u64, progress: &dyn Progress) -> Result<Preserved> {
        let mut plan = Preserved::default();
        for window in self.tail_windows(size) {
            progress.check()?;
            self.plan_window(window, &mut plan)?;
        }
        Ok(plan)
    }

    /// Adds to `plan` what a window of bytes of the origin would cost.
    pub(super) fn plan_window(&self, (start, end): (u64, u64), plan: &mut Preserved) -> Result<()> {
        let chunk_size = u64::from(self.view.state.sb.chunk_size());
        let origin_size = self.view.state.volume.origin_size;
        for chunk in start / chunk_size..end.div_ceil(chunk_size) {
            if !self.needs_copy(chunk)? {
                continue;
            }
            let at = chunk * chunk_size;
            let mut bytes = vec![0; index(chunk_size.min(origin_size.saturating_sub(at)))];
            self.need_origin()?.read_at(&mut bytes, at)?;
            plan.chunks += 1;
            if !super::origin::is_zero(&bytes) {
                plan.bytes += super::publish::padded(&self.view.state, bytes.len()) as u64;
            }
        }
        Ok(())
    }

    /// Gives the origin `size` bytes. What it gains reads as its device has it: a file that is made longer
    /// reads as zeroes there. A device keeps its own size, and must have `size` bytes at least. Snapshots are
    /// neither changed nor given up. Durable when this returns.
    ///
    /// # Errors
    /// `Kind::Busy` while a long operation is pending; `Kind::NoSpace` if what snapshots need does not fit into
    /// the store, `Kind::Mismatch` if the device is too small: nothing has changed then.
    pub fn resize_origin(&mut self, size: u64, progress: &dyn Progress) -> Result<Preserved> {
        self.ensure_idle()?;
        let plan = self.plan_origin_size(size, progress)?;
        self.ensure_room_for(plan.cost())?;
        self.sparing(|writer| writer.change_origin_size(size, progress)).map(|()| plan)
    }

    /// As [`Writer::resize_origin`], within a long operation too.
    pub(super) fn change_origin_size(&mut self, size: u64, progress: &dyn Progress) -> Result<()> {
        self.ensure_sound()?;
        let origin = self.need_origin()?;
        if origin.size() < size {
            // From here on the origin is not what it was when the store was closed.
            self.begin_session()?;
            let origin = self.need_origin()?;
            origin.set_size(size).map_err(|error| match error.kind() {
                Kind::Mismatch => error.hint("make the device larger first"),
                _ => error,
            })?;
            origin.flush()?;
        }
        if size != self.view.state.volume.origin_size {
            for window in self.tail_windows(size) {
                progress.check()?;
                self.copy_out(&[window])?;
                progress.advance(window.1 - window.0);
            }
            let mut volume = self.view.state.volume.clone();
            volume.origin_size = size;
            volume.generation += 1;
            volume.equals = None;
            // Makes the copies durable too.
            self.log_volume(&volume)?;
            self.origin_touched = true;
        }
        let origin = self.need_origin()?;
        if origin.size() > size {
            match origin.set_size(size) {
                // A device is cut by its owner, if at all.
                Err(error) if error.kind() == Kind::Mismatch => {}
                other => other?,
            }
            self.origin_dirty = true;
            self.flush_origin()?;
        }
        Ok(())
    }

    /// The part of the origin beyond `size` that snapshots may need, in windows of whole chunks.
    pub(super) fn tail_windows(&self, size: u64) -> impl Iterator<Item = (u64, u64)> + use<> {
        let state = &self.view.state;
        let end = state.volume.origin_size;
        // The newest snapshot ends before: every older one that does not was made before the origin last
        // shrank, and has had its tail in the store since then.
        let newest = state.newest_live().and_then(|id| state.snapshots.get(&id));
        let needed = newest.is_some_and(|snapshot| snapshot.size_bytes > size) && size < end;
        let first = if needed { size >> state.sb.chunk_bits << state.sb.chunk_bits } else { end };
        (first..end).step_by(index(WINDOW)).map(move |start| (start, (start + WINDOW).min(end)))
    }
}
