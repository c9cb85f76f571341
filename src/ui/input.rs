//! Data from standard input, readable without being deaf to a signal.

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PIECE_BYTES: usize = 1 << 20;

/// Standard input, read ahead by a thread: a read that waits for data still notices within a tenth of a
/// second that the user wants to stop.
pub struct StandardInput {
    pieces: Receiver<io::Result<Vec<u8>>>,
    piece: Vec<u8>,
    at: usize,
    ended: bool,
    stop_wanted: Arc<AtomicBool>,
}

impl StandardInput {
    /// Starts reading.
    #[must_use]
    pub fn open(stop_wanted: Arc<AtomicBool>) -> Self {
        let (sender, pieces) = bounded(4);
        std::thread::spawn(move || {
            let mut stdin = io::stdin().lock();
            loop {
                let mut piece = vec![0; PIECE_BYTES];
                let result = stdin.read(&mut piece).map(|len| {
                    piece.truncate(len);
                    piece
                });
                let last = !matches!(&result, Ok(piece) if !piece.is_empty());
                if sender.send(result).is_err() || last {
                    return;
                }
            }
        });
        Self { pieces, piece: Vec::new(), at: 0, ended: false, stop_wanted }
    }

    fn next_piece(&mut self) -> io::Result<()> {
        loop {
            // Not ErrorKind::Interrupted: callers retry that one.
            if self.stop_wanted.load(Ordering::Relaxed) {
                return Err(io::Error::other("interrupted"));
            }
            match self.pieces.recv_timeout(Duration::from_millis(100)) {
                Ok(Ok(piece)) => {
                    self.ended = piece.is_empty();
                    self.piece = piece;
                    self.at = 0;
                    return Ok(());
                }
                Ok(Err(error)) => {
                    self.ended = true;
                    return Err(error);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.ended = true;
                    return Ok(());
                }
            }
        }
    }
}

impl Read for StandardInput {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() && !self.ended && !buf.is_empty() {
            self.next_piece()?;
        }
        let rest = &self.piece[self.at..];
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        self.at += len;
        Ok(len)
    }
}
