//! Changelist files, streamed in runs.

use crate::error::{Error, Result};
use crate::format::changelist::{Decoder, END_MARKER, Ending, Header, RawChangelist};
use crate::point::{Changes, ChunkRange};
use crate::progress::Progress;
use std::collections::VecDeque;
use std::io::{BufWriter, Read, Write};

/// What a changelist holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangelistSummary {
    /// Chunk size and tags.
    pub header: Header,
    /// Number of chunks.
    pub chunks: u64,
    /// Number of runs of adjacent chunks.
    pub runs: u64,
    /// Whether the end marker was there; without it the list may be cut short, which deserves a warning.
    pub ending: Ending,
}

/// Reads a changelist in bounded memory, as runs of adjacent chunks.
pub struct ChangelistReader<R> {
    input: R,
    header: Header,
    decoder: Decoder,
    runs: VecDeque<ChunkRange>,
    ending: Option<Ending>,
    failed: bool,
}

impl<R: Read> ChangelistReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// `Kind::Damaged`, `Kind::Io`.
    pub fn open(mut input: R) -> Result<Self> {
        let mut bytes = [0; size_of::<RawChangelist>()];
        input.read_exact(&mut bytes).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::damaged("not a changelist: shorter than its header"),
            _ => cannot_read(error),
        })?;
        Ok(Self {
            input,
            header: Header::decode(&bytes)?,
            decoder: Decoder::new(),
            runs: VecDeque::new(),
            ending: None,
            failed: false,
        })
    }

    /// Chunk size and tags.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Reads to the end and counts.
    ///
    /// # Errors
    /// `Kind::Damaged`, `Kind::Io`.
    pub fn summarize(mut self) -> Result<ChangelistSummary> {
        let (mut chunks, mut runs) = (0u64, 0u64);
        while let Some(run) = self.next_run()? {
            runs = runs.saturating_add(1);
            chunks = chunks.saturating_add(run.end.saturating_sub(run.start));
        }
        Ok(ChangelistSummary {
            header: self.header,
            chunks,
            runs,
            ending: self.ending.unwrap_or(Ending::Unmarked),
        })
    }

    fn next_run(&mut self) -> Result<Option<ChunkRange>> {
        let mut piece = [0; 4096];
        // The last run may go on in the next piece.
        while self.runs.len() < 2 && self.ending.is_none() {
            let count = match self.input.read(&mut piece) {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(cannot_read(error)),
            };
            let runs = &mut self.runs;
            self.decoder.feed(piece.get(..count).unwrap_or(&[]), |number| match runs.back_mut() {
                Some(last) if last.end == number => last.end = number.saturating_add(1),
                _ => runs.push_back(ChunkRange { start: number, end: number.saturating_add(1) }),
            })?;
            if count == 0 || self.decoder.has_ended() {
                self.ending = Some(self.decoder.finish()?);
            }
        }
        Ok(self.runs.pop_front())
    }
}

impl<R: Read> Iterator for ChangelistReader<R> {
    type Item = Result<ChunkRange>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.next_run();
        self.failed = next.is_err();
        next.transpose()
    }
}

/// Writes a changelist file, end marker included.
///
/// # Errors
/// Of `changes` and `out`; `Kind::Interrupted`.
pub fn write_changelist(
    header: &Header,
    changes: Changes<'_>,
    out: &mut dyn Write,
    progress: &dyn Progress,
) -> Result<ChangelistSummary> {
    let cannot_write = |e| Error::io("cannot write the changelist", e);
    let mut out = BufWriter::with_capacity(64 << 10, out);
    out.write_all(&header.encode()).map_err(cannot_write)?;
    let (mut chunks, mut runs) = (0u64, 0u64);
    progress.stage("write changelist", None);
    for run in changes {
        let run = run?;
        for number in run.start..run.end {
            if number & 0xffff == 0 || number == run.start {
                progress.check()?;
            }
            out.write_all(&number.to_le_bytes()).map_err(cannot_write)?;
        }
        runs = runs.saturating_add(1);
        chunks = chunks.saturating_add(run.end.saturating_sub(run.start));
    }
    out.write_all(&END_MARKER.to_le_bytes()).and_then(|()| out.flush()).map_err(cannot_write)?;
    Ok(ChangelistSummary { header: *header, chunks, runs, ending: Ending::Marked })
}

fn cannot_read(error: std::io::Error) -> Error {
    Error::io("cannot read the changelist", error)
}
