//! The thread that lands what is held: it preserves the chunks that snapshots need, makes that durable, and only then
//! writes the origin.

use super::Shared;
use crate::error::{Error, Kind, Result};
use crate::format::record::RecordKind;
use crate::store::origin::Geometry;
use crate::store::room::STEPS;
use crate::store::work::Operation;
use crate::store::writer::{Draft, Need};
use crate::units::index;
use std::sync::atomic::Ordering;

/// Times that room is made for one record before the store counts as full: others may take what was made.
const TRIES: usize = 8;

/// Chunks whose memory is given back together, once the origin has their bytes: at most so many, and so many bytes.
const GROUP: usize = 32;
const GROUP_BYTES: usize = 1 << 20;

impl Shared {
    /// Lands batches until there will be no more.
    pub fn land_batches(&self) {
        let _told = Ended(self);
        while let Some(chunks) = self.turns.next_batch() {
            let running = self.work.begin(Operation::Land);
            let outcome = self.land(&chunks);
            drop(running);
            let (room, due) = {
                let core = self.core();
                (core.room_in_log(), core.due().is_some())
            };
            self.turns.landed(chunks.len(), outcome, room);
            if due {
                self.wake();
            }
        }
    }

    /// Lands a batch. What went well is not done again when it is tried again.
    fn land(&self, chunks: &[u64]) -> Result<()> {
        self.touch()?;
        let (geometry, epoch, needed) = {
            let core = self.core();
            core.ensure_sound()?;
            let (state, mut needed) = (&core.view.state, Vec::new());
            for chunk in chunks {
                if self.is_inside(*chunk) && core.needs_copy(*chunk)? {
                    needed.push(*chunk);
                }
            }
            (Geometry::of(state), state.epoch, needed)
        };
        let mut rest = needed.as_slice();
        while !rest.is_empty() {
            let (now, after) = rest.split_at(self.core().record_chunks().min(rest.len()));
            let (entries, data) = geometry.copy_out(self.origin.as_ref(), now, epoch)?;
            self.append(Draft { kind: RecordKind::CopyOut, epoch, entries, body: Vec::new(), data })?;
            rest = after;
        }
        self.commit()?;
        if !needed.is_empty() {
            self.work.committed(needed.len());
            let core = self.core();
            needed.iter().for_each(|chunk| core.copied.mark(*chunk));
        }
        let group = (GROUP_BYTES >> self.chunk_bits).clamp(1, GROUP);
        chunks.chunks(group).try_for_each(|group| self.write_group(group))
    }

    /// True if `chunk` begins before the end of the origin, which may have become smaller since it was written.
    fn is_inside(&self, chunk: u64) -> bool {
        chunk << self.chunk_bits < self.origin_size.load(Ordering::Acquire)
    }

    /// Writes to the origin what is held of `chunks`.
    fn write_group(&self, chunks: &[u64]) -> Result<()> {
        let size = self.origin_size.load(Ordering::Acquire);
        let mut data = Vec::new();
        let places = self.turns.lift(chunks, &mut data);
        let mut rest = data.as_slice();
        for (offset, length) in places {
            let (bytes, after) = rest.split_at_checked(length).unwrap_or((rest, &[]));
            rest = after;
            let inside = index(size.saturating_sub(offset).min(bytes.len() as u64));
            if inside > 0 {
                self.origin.write_at(&bytes[..inside], offset)?;
            }
        }
        self.turns.release(chunks);
        Ok(())
    }

    /// Records, before the first write of this session, that the origin is no longer what it was.
    fn touch(&self) -> Result<()> {
        if self.core().origin_touched {
            return Ok(());
        }
        let (_log, mut core) = self.ready();
        core.now_secs = (self.clock)();
        // What goes back in a long operation must fit.
        let need = if core.view.state.operation.is_some() { Need::Reserve } else { Need::Ordinary };
        core.touch_origin(need)
    }

    fn append(&self, draft: Draft) -> Result<()> {
        let length = draft.length(self.core().view.state.sb.block_bits);
        let mut made = false;
        for _ in 0..TRIES {
            {
                let _log = self.log();
                let skip = {
                    let core = self.core();
                    let fits = if made {
                        core.fits(length, Need::Ordinary)
                    } else {
                        core.accepts(length, Need::Ordinary)
                    };
                    fits.then(|| core.skip_before(&draft))
                };
                if let Some(skip) = skip {
                    skip.map_or(Ok(()), |skip| self.put(skip))?;
                    return self.put(draft);
                }
            }
            self.make_room(length)?;
            made = true;
        }
        Err(Error::new(Kind::NoSpace, "the snapshot store is full"))
    }

    /// Waits until a record of `length` bytes fits. Nothing is held meanwhile, but at the last, when snapshots may have
    /// to be given up.
    fn make_room(&self, length: u64) -> Result<()> {
        for plan in STEPS {
            let _publishing = self.publishing();
            if self.core().accepts(length, Need::Ordinary) {
                return Ok(());
            }
            self.checkpoint_apart(plan)?;
        }
        let _publishing = self.publishing();
        let _log = self.log();
        let mut core = self.core_mut();
        core.now_secs = (self.clock)();
        core.force_space(length, Need::Ordinary)
    }

    /// Writes a record at the end of the log, which only the holder of `log` moves.
    fn put(&self, draft: Draft) -> Result<()> {
        let write = || {
            let composed = {
                let core = self.core();
                core.ensure_sound()?;
                core.compose(draft)?
            };
            composed.write(self.store.as_ref())?;
            self.core_mut().enter(composed)
        };
        let outcome = write();
        if outcome.is_err() {
            return self.core_mut().remember(outcome);
        }
        outcome
    }

    /// Makes every record that was appended before durable.
    fn commit(&self) -> Result<()> {
        let sequence = {
            let core = self.core();
            core.ensure_sound()?;
            let state = &core.view.state;
            if state.durable >= state.chain.position.sequence {
                return Ok(());
            }
            state.chain.position.sequence
        };
        let outcome = self.store.flush();
        let mut core = self.core_mut();
        core.remember(outcome)?;
        let durable = &mut core.view.state.durable;
        *durable = (*durable).max(sequence);
        Ok(())
    }
}

/// Tells, also after a panic, that nobody lands anything any more.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.turns.ended();
    }
}
