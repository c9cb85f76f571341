//! How a server has ended, for those who have asked for its end.

use super::Reply;
use crate::error::Result;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What becomes of the end of a server, and who wants to know.
#[derive(Default)]
pub struct Ending {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// As clients hear it; `None` while it is not over.
    outcome: Option<Arc<Reply>>,
    /// How many are waiting for it, or being told.
    listeners: usize,
}

impl Ending {
    /// Waits for the end, and has `tell` tell somebody how it went.
    ///
    /// # Errors
    /// What `tell` says.
    pub(super) fn tell(&self, tell: impl FnOnce(&Reply) -> Result<()>) -> Result<()> {
        let mut state = self.state();
        state.listeners += 1;
        let outcome = loop {
            match &state.outcome {
                Some(outcome) => break Arc::clone(outcome),
                None => state = self.wait(state),
            }
        };
        drop(state);
        let told = tell(&outcome);
        self.state().listeners -= 1;
        self.changed.notify_all();
        told
    }

    /// It is over: whoever has asked for it knows how it went when this returns.
    pub fn is_over(&self, outcome: &Result<()>) {
        let reply = outcome.as_ref().err().map_or(Reply::Done, Reply::from);
        let mut state = self.state();
        state.outcome = Some(Arc::new(reply));
        self.changed.notify_all();
        while state.listeners > 0 {
            state = self.wait(state);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}
