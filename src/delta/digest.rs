//! The digest of a stream, made on a thread of its own while the next bytes are written.

use super::buffer::Buffer;
use crate::error::{Error, Kind, Result};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::thread;

/// Buffers that may wait to be hashed.
const WAITING_MAX: usize = 8;

enum Task {
    Update(Buffer),
    Tell(Sender<[u8; 32]>),
}

/// Hashes what it is given, in that order.
pub(crate) struct Digest {
    tasks: Sender<Task>,
}

impl Digest {
    /// Goes on with `hasher`.
    pub(crate) fn new(hasher: blake3::Hasher) -> Self {
        let (tasks, queue) = bounded(WAITING_MAX);
        thread::spawn(move || serve(hasher, &queue));
        Self { tasks }
    }

    /// Hashes `bytes` some time soon.
    pub(crate) fn update(&self, bytes: Buffer) -> Result<()> {
        self.tasks.send(Task::Update(bytes)).map_err(|_| ended_early())
    }

    /// The digest of everything so far.
    pub(crate) fn so_far(&self) -> Result<[u8; 32]> {
        let (answer_in, answer_out) = bounded(1);
        self.tasks.send(Task::Tell(answer_in)).map_err(|_| ended_early())?;
        answer_out.recv().map_err(|_| ended_early())
    }
}

fn serve(mut hasher: blake3::Hasher, queue: &Receiver<Task>) {
    for task in queue {
        match task {
            Task::Update(bytes) => {
                hasher.update(&bytes);
            }
            // Who does not wait for the answer any more does not need it.
            Task::Tell(answer) => drop(answer.send(*hasher.finalize().as_bytes())),
        }
    }
}

fn ended_early() -> Error {
    Error::new(Kind::Io, "the thread that hashes ended early")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_bytes_counts() {
        let digest = Digest::new(blake3::Hasher::new());
        for number in 0..100u8 {
            digest.update(vec![number; 1000].into()).unwrap();
            if number == 50 {
                let all: Vec<u8> = (0..=50).flat_map(|number| vec![number; 1000]).collect();
                assert_eq!(digest.so_far().unwrap(), *blake3::hash(&all).as_bytes());
            }
        }
        let all: Vec<u8> = (0..100).flat_map(|number| vec![number; 1000]).collect();
        assert_eq!(digest.so_far().unwrap(), *blake3::hash(&all).as_bytes());
    }
}
