//! The way back of a connection. Replies to what was done at once are gathered, and sent together; whoever reads
//! requests must not wait for a client that takes no replies, for it may be one that sends all before it listens.

use crate::error::{Error, Result};
use crate::serve::listen::Wire;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// Bytes of replies that are sent together, about.
const GATHERED: usize = 64 << 10;

pub(super) struct Replies<'a, W> {
    /// Locked after `sender`, and never while anything is sent.
    gathered: Mutex<Vec<u8>>,
    sender: Mutex<Sender<W>>,
    wire: &'a dyn Wire,
}

/// Who has this is the only one to send.
pub(super) struct Sender<W> {
    stream: W,
    /// The other one of two buffers that are gathered in.
    spare: Vec<u8>,
}

impl<W: Write> Sender<W> {
    pub fn send(&mut self, reply: &[u8]) -> Result<()> {
        let sent = self.stream.write_all(reply).and_then(|()| self.stream.flush());
        sent.map_err(|error| Error::io("cannot answer the client", error))
    }
}

impl<'a, W: Write> Replies<'a, W> {
    pub fn new(stream: W, wire: &'a dyn Wire) -> Self {
        let sender = Mutex::new(Sender { stream, spare: Vec::new() });
        Self { gathered: Mutex::default(), sender, wire }
    }

    /// True unless there are too many gathered already.
    pub fn has_room(&self) -> bool {
        self.gathered().len() < GATHERED
    }

    /// Has `add` append a reply to those that are sent together, if it can; false if it cannot.
    pub fn gather(&self, add: impl FnOnce(&mut Vec<u8>) -> bool) -> bool {
        let mut gathered = self.gathered();
        let before = gathered.len();
        let is_added = add(&mut gathered);
        if !is_added {
            gathered.truncate(before);
        }
        is_added
    }

    /// Sends what was gathered, if that waits for nobody; false if it might. What somebody else is about to send counts
    /// as sent.
    pub fn try_send_gathered(&self) -> Result<bool> {
        while !self.gathered().is_empty() {
            let mut sender = match self.sender.try_lock() {
                Ok(sender) => sender,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                // Whoever has it looks again when he is done.
                Err(TryLockError::WouldBlock) => return Ok(true),
            };
            if !self.wire.takes_more() {
                return Ok(false);
            }
            self.flush(&mut sender)?;
        }
        Ok(true)
    }

    /// Sends what was gathered.
    pub fn send_gathered(&self) -> Result<()> {
        self.send_by(|_| Ok(()))
    }

    /// Sends a reply.
    pub fn send(&self, reply: &[u8]) -> Result<()> {
        self.send_by(|sender| sender.send(reply))
    }

    /// Has `send` send one reply, in as many parts as it likes.
    pub fn send_by(&self, send: impl FnOnce(&mut Sender<W>) -> Result<()>) -> Result<()> {
        let mut sender = self.sender();
        self.flush(&mut sender)?;
        send(&mut sender)?;
        drop(sender);
        // What was gathered meanwhile was left to this thread.
        while !self.gathered().is_empty() {
            self.flush(&mut self.sender())?;
        }
        Ok(())
    }

    fn flush(&self, sender: &mut Sender<W>) -> Result<()> {
        let mut replies = std::mem::take(&mut sender.spare);
        std::mem::swap(&mut *self.gathered(), &mut replies);
        let sent = if replies.is_empty() { Ok(()) } else { sender.send(&replies) };
        replies.clear();
        sender.spare = replies;
        sent
    }

    fn gathered(&self) -> MutexGuard<'_, Vec<u8>> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sender(&self) -> MutexGuard<'_, Sender<W>> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
