//! The thread that appends what is to be preserved, and makes it durable.

use super::Shared;
use crate::error::{Error, Kind, Result};
use crate::format::record::{Entry, RecordKind, pad};
use crate::store::room::STEPS;
use crate::store::writer::{Draft, Need};
use crate::units::index;
use std::sync::mpsc;

/// Chunks to be preserved, and who waits for that.
pub struct Job {
    pub entries: Vec<Entry>,
    /// Each entry's data, padded to the block size.
    pub data: Vec<u8>,
    pub done: mpsc::SyncSender<Result<()>>,
}

/// Times that room is made for one record before the store counts as full: others may take what was made.
const TRIES: usize = 8;

impl Shared {
    /// Commits jobs until nobody can send any more.
    pub fn commit_jobs(&self, queue: &mpsc::Receiver<Job>) {
        while let Ok(first) = queue.recv() {
            // What gathered during the last flush is made durable by the next.
            let jobs: Vec<Job> = std::iter::once(first).chain(queue.try_iter()).collect();
            let (appended, outcome) = self.append_jobs(&jobs);
            // Also what was appended before an error: it counts, and is not copied out again.
            let committed = self.commit();
            if committed.is_ok() {
                self.work.committed(jobs.iter().take(appended).map(|job| job.entries.len()).sum());
            }
            for (number, job) in jobs.iter().enumerate() {
                let result = match (&committed, &outcome) {
                    (Err(error), _) => Err(again(error)),
                    (Ok(()), Err(error)) if number >= appended => Err(again(error)),
                    _ => {
                        let core = self.core();
                        job.entries.iter().for_each(|entry| core.copied.mark(entry.chunk));
                        Ok(())
                    }
                };
                // Who no longer waits has given up its write.
                let _ = job.done.send(result);
            }
            if self.core().due().is_some() {
                self.wake();
            }
        }
    }

    /// Appends the chunks of all jobs; returns how many jobs were appended whole.
    fn append_jobs(&self, jobs: &[Job]) -> (usize, Result<()>) {
        if let Err(error) = self.touch() {
            return (0, Err(error));
        }
        let bits = self.core().view.state.sb.block_bits;
        let all = jobs.iter().enumerate().flat_map(|(number, job)| {
            let mut at = 0;
            job.entries.iter().map(move |entry| {
                let start = at;
                at += index(pad(u64::from(entry.stored_length), bits));
                (number, entry, job.data.get(start..at).unwrap_or(&[]))
            })
        });
        let mut all = all.peekable();
        while let Some((number, ..)) = all.peek() {
            let number = *number;
            let (room, epoch) = {
                let core = self.core();
                (core.record_chunks(), core.view.state.epoch)
            };
            let mut draft = Draft::plain(RecordKind::CopyOut, epoch, Vec::new());
            for (_, entry, data) in all.by_ref().take(room) {
                draft.entries.push(*entry);
                draft.data.extend_from_slice(data);
            }
            if let Err(error) = self.append(draft) {
                return (number, Err(error));
            }
        }
        (jobs.len(), Ok(()))
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
            self.core_mut().failed = true;
        }
        outcome
    }

    /// Makes every record that was appended before durable.
    fn commit(&self) -> Result<()> {
        let sequence = {
            let core = self.core();
            core.ensure_sound()?;
            core.view.state.chain.position.sequence
        };
        let outcome = self.store.flush();
        let mut core = self.core_mut();
        core.failed |= outcome.is_err();
        outcome?;
        let durable = &mut core.view.state.durable;
        *durable = (*durable).max(sequence);
        Ok(())
    }
}

/// The same error, for one more of those that it concerns.
fn again(error: &Error) -> Error {
    Error::new(error.kind(), error.to_string())
}
