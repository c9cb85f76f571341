//! Moving data between a point and a stream: in pieces, interruptible, no faster than asked.

use crate::error::{Error, Result};
use crate::point::{Point, PointSource};
use crate::progress::Progress;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The unit of reading and writing.
pub const PIECE_BYTES: usize = 4 << 20;

/// Hands each piece of `start..end` of a point to `each`, in order.
///
/// # Errors
/// What reading says, what `each` says, `Kind::Interrupted`.
pub fn read_pieces(
    source: &dyn PointSource,
    point: &Point,
    (start, end): (u64, u64),
    progress: &dyn Progress,
    mut each: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut buf = vec![0; PIECE_BYTES];
    let mut offset = start;
    while offset < end {
        progress.check()?;
        let len = usize::try_from(end - offset).unwrap_or(usize::MAX).min(PIECE_BYTES);
        let piece = &mut buf[..len];
        source.read(point.id, offset, piece)?;
        each(piece)?;
        let len = len as u64;
        progress.advance(len);
        offset += len;
    }
    Ok(())
}

/// Fills `buf` as far as the input goes; less than all of it means the end.
///
/// # Errors
/// What the input says.
pub fn read_full(input: &mut dyn Read, buf: &mut [u8]) -> Result<usize> {
    let mut len = 0;
    while len < buf.len() {
        match input.read(&mut buf[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("cannot read the input", error)),
        }
    }
    Ok(len)
}

/// A stream that lets no more than so many bytes a second pass, on the average since it was opened, and
/// that breaks off when the user wants to stop.
pub struct Limited<S> {
    stream: S,
    stop_wanted: Arc<AtomicBool>,
    bytes_per_sec: Option<u64>,
    started: Instant,
    passed: u64,
}

impl<S> Limited<S> {
    /// A stream without a limit if `bytes_per_sec` is `None`.
    pub fn new(stream: S, bytes_per_sec: Option<u64>, stop_wanted: Arc<AtomicBool>) -> Self {
        Self { stream, stop_wanted, bytes_per_sec, started: Instant::now(), passed: 0 }
    }

    fn check(&self) -> io::Result<()> {
        // Not ErrorKind::Interrupted: callers retry that one.
        if self.stop_wanted.load(Ordering::Relaxed) { Err(io::Error::other("interrupted")) } else { Ok(()) }
    }

    /// The stream itself again.
    pub fn into_inner(self) -> S {
        self.stream
    }

    /// How many bytes may pass at once, so that no second is much fuller than another.
    fn step(&self, wanted: usize) -> usize {
        let tenth = self.bytes_per_sec.map(|rate| usize::try_from(rate / 10).unwrap_or(usize::MAX).max(1));
        tenth.map_or(wanted, |tenth| wanted.min(tenth))
    }

    fn passed(&mut self, bytes: usize) {
        self.passed += bytes as u64;
        if let Some(rate) = self.bytes_per_sec {
            let due = u128::from(self.passed) * 1_000_000 / u128::from(rate.max(1));
            let due = Duration::from_micros(u64::try_from(due).unwrap_or(u64::MAX));
            std::thread::sleep(due.saturating_sub(self.started.elapsed()));
        }
    }
}

impl<S: Read> Read for Limited<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        let step = self.step(buf.len());
        let len = self.stream.read(&mut buf[..step])?;
        self.passed(len);
        Ok(len)
    }
}

impl<S: Write> Write for Limited<S> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.check()?;
        let len = self.stream.write(&buf[..self.step(buf.len())])?;
        self.passed(len);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<S: Seek> Seek for Limited<S> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.stream.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_takes_the_time_it_must() {
        let started = Instant::now();
        let mut limited = Limited::new(Vec::new(), Some(100_000), Arc::default());
        limited.write_all(&[7; 20_000]).unwrap();
        assert!(started.elapsed() >= Duration::from_millis(200));
        assert_eq!(limited.into_inner(), [7; 20_000]);
    }

    #[test]
    fn a_full_read_ends_early_only_at_the_end() {
        let mut input = Limited::new(&b"abcdef"[..], None, Arc::default());
        let mut buf = [0; 4];
        assert_eq!(read_full(&mut input, &mut buf).unwrap(), 4);
        assert_eq!(read_full(&mut input, &mut buf).unwrap(), 2);
    }
}
