//! Checkpoints while everything goes on.
//!
//! A checkpoint is made on a copy of the tables: it takes free segments and reads and writes the index there. Meanwhile
//! records go on into segments that were promised before, whose list the checkpoint keeps as it is and only adds to. In
//! the end what was appended since is entered into the copy, which becomes the tables. Only then can anybody use what
//! it freed: both superblocks are durable by then.

use super::Shared;
use crate::error::{Error, Result};
use crate::format::record::Record;
use crate::store::publish::{Plan, publish};
use crate::store::state::State;
use std::sync::{PoisonError, mpsc};

/// Records that may be left to be entered while nobody can append any.
const LAST: usize = 32;
/// Times that what came meanwhile is entered before everybody waits for it.
const ROUNDS: usize = 16;

/// A copy of the tables.
struct Copy {
    state: State,
    /// How many segments the list of promised ones will have lost in front.
    begun: usize,
}

impl Copy {
    fn enter(&mut self, records: Vec<(usize, Record)>) -> Result<()> {
        for (at, record) in records {
            // What was entered while the copy was made may be in it.
            if record.sequence > self.state.chain.position.sequence {
                self.state.apply(at.saturating_sub(self.begun), &record)?;
            }
        }
        Ok(())
    }
}

impl Shared {
    /// Has the checkpointer look whether there is something to do.
    pub fn wake(&self) {
        if let Some(wake) = self.wake.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            // One that was told already, or has ended, need not be told.
            let _ = wake.try_send(());
        }
    }

    /// Makes checkpoints when it is woken, until nobody can wake it any more.
    pub fn checkpoint_when_due(&self, woken: &mpsc::Receiver<()>) {
        while woken.recv().is_ok() {
            let _publishing = self.publishing();
            let due = self.core().due();
            // After an error the tables refuse every commit, which tells of it.
            let _ = due.map(|plan| self.checkpoint_apart(plan));
        }
    }

    /// Makes a checkpoint, unless even the reserve cannot hold one. The caller holds `publishing`.
    pub fn checkpoint_apart(&self, plan: Plan) -> Result<()> {
        let Some(mut copy) = self.copy()? else { return Ok(()) };
        let published = publish(self.store.as_ref(), &self.reader, &mut copy.state, plan);
        let joined = published.and_then(|()| self.join(copy));
        let mut core = self.core_mut();
        core.since = None;
        let joined = core.remember(joined);
        drop(core);
        // Old tables are large.
        joined.map(drop)
    }

    fn copy(&self) -> Result<Option<Copy>> {
        {
            let mut core = self.core_mut();
            core.ensure_sound()?;
            if !core.can_checkpoint() {
                return Ok(None);
            }
            core.since = Some(Vec::new());
        }
        // Copying takes a moment, in which others may read.
        let core = self.core();
        let state = State { keep: core.pins.oldest(), ..core.view.state.clone() };
        Ok(Some(Copy { begun: state.chain.at, state }))
    }

    /// Makes the copy the tables; returns those before.
    fn join(&self, mut copy: Copy) -> Result<State> {
        for _ in 0..ROUNDS {
            let more = self.core_mut().since.replace(Vec::new()).unwrap_or_default();
            let count = more.len();
            copy.enter(more)?;
            if count <= LAST {
                break;
            }
        }
        let _log = self.log();
        let mut core = self.core_mut();
        copy.enter(core.since.take().unwrap_or_default())?;
        let (old, new) = (&core.view.state.chain.position, &copy.state.chain.position);
        if (old.sequence, old.address, old.crc) != (new.sequence, new.address, new.crc) {
            return Err(Error::damaged("a checkpoint lost a record that was appended meanwhile"));
        }
        copy.state.durable = copy.state.durable.max(core.view.state.durable);
        core.published = true;
        Ok(std::mem::replace(&mut core.view.state, copy.state))
    }
}
