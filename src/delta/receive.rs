//! A delta from a stream that may be cut: what arrived is kept in a file, and a later stream goes on from there.
//!
//! Nothing that is left over is believed. The resume point names only what is sound; a continuation must name the
//! digest of what it leaves out; and at the end the digest of the whole delta covers what came in either stream.
//! A part that cannot be continued is dropped, so that the next try starts afresh and no state can block the way.

use super::input::Input;
use super::read::Reader;
use super::sound::{At, hash_start, resume_point};
use crate::block::part::{open_part, open_part_read};
use crate::error::{Error, Kind, Result};
use crate::format::delta::{CONTINUATION_MAGIC, MAGIC, ResumePoint};
use crate::progress::Progress;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The file in which a stream is kept, locked as long as this lives.
pub struct Part {
    file: File,
    path: PathBuf,
}

impl Part {
    /// Opens the part at `path`; empty if there is none.
    ///
    /// # Errors
    /// `Kind::Busy` if another process uses it; `Kind::Refused`, `Kind::Io`.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { file: open_part(path, 0o600)?, path: path.to_path_buf() })
    }

    /// What the part at `path` can be continued from; nothing is changed.
    ///
    /// # Errors
    /// `Kind::Io`, `Kind::Interrupted`.
    pub fn resume_point(path: &Path, progress: &dyn Progress) -> Result<ResumePoint> {
        match open_part_read(path)? {
            Some(file) => resume_point(&file, progress).map_err(|error| error.at_path(path)),
            None => Ok(ResumePoint::start()),
        }
    }

    /// Takes in a whole delta, or the continuation of the part, until all of it is there and sound.
    ///
    /// # Errors
    /// `Kind::Damaged` if the stream ends early; then, and after `Kind::Io`, `Kind::NoSpace` and
    /// `Kind::Interrupted`, the part is kept. `Kind::Mismatch` for a continuation of something else, and whatever
    /// else is wrong with the stream; then the part is dropped.
    pub fn receive(&self, stream: &mut (dyn Read + Send), progress: &dyn Progress) -> Result<Input> {
        let mut arriving = Arriving { part: self, stream, known: 0, at: 0, is_cut: false };
        progress.stage("receive delta", None);
        let result = arriving.begin().and_then(|()| read_all(&mut arriving, progress));
        let is_cut = arriving.is_cut;
        let Err(error) = result else {
            let file = self.file.try_clone().map_err(|error| self.failed("cannot use it", error))?;
            return Ok(Input::from_file(file, &self.path));
        };
        let keeps = match error.kind() {
            Kind::Damaged => is_cut,
            Kind::Io | Kind::NoSpace | Kind::Interrupted => true,
            _ => false,
        };
        let path = self.path.display();
        let arrived = self.file.metadata().map_err(|error| self.failed("cannot stat it", error))?.len();
        if keeps && arrived > 0 {
            return Err(error.hint(format!(
                "what arrived is kept in {path}; make the delta again with --resume-token, which \
                 'apply-delta --resume-token' with the same target prints"
            )));
        }
        std::fs::remove_file(&self.path).map_err(|error| self.failed("cannot remove it", error))?;
        if arrived == 0 {
            return Err(error);
        }
        Err(error.hint("what had arrived was dropped; the next try starts afresh"))
    }

    /// Removes the part, after it was applied or when it is of no use.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(|error| self.failed("cannot remove it", error))
    }

    fn failed(&self, what: &str, error: std::io::Error) -> Error {
        Error::io(format!("{what}: {error}"), error).at_path(&self.path)
    }
}

fn read_all(arriving: &mut Arriving<'_>, progress: &dyn Progress) -> Result<()> {
    let mut reader = Reader::open(BufReader::with_capacity(256 << 10, arriving))?;
    while let Some(extent) = reader.next_extent()? {
        progress.check()?;
        progress.advance(u64::from(extent.head.payload_bytes));
    }
    Ok(())
}

/// The delta from its beginning: what is known already, then what arrives, which is kept.
struct Arriving<'a> {
    part: &'a Part,
    stream: &'a mut (dyn Read + Send),
    /// Bytes of the part that are not sent again.
    known: u64,
    /// Bytes read.
    at: u64,
    /// The stream has ended, so that what is wrong with it is most likely that.
    is_cut: bool,
}

impl Arriving<'_> {
    /// Finds out what the stream is, and where it goes on.
    fn begin(&mut self) -> Result<()> {
        let mut head = [0; ResumePoint::PREAMBLE_BYTES];
        let (magic, rest) = head.split_at_mut(CONTINUATION_MAGIC.len());
        self.fill(magic)?;
        if magic == MAGIC {
            self.part.file.set_len(0).map_err(|error| self.part.failed("cannot empty it", error))?;
            self.keep(magic, 0).map_err(|error| self.part.failed("cannot write it", error))?;
            // What was looked at is read again, from the part.
            self.known = magic.len() as u64;
            return Ok(());
        }
        if magic != CONTINUATION_MAGIC {
            // Nothing came, or what the other side had to say instead of a delta: no reason to lose the part.
            self.is_cut = true;
            return Err(Error::damaged("the stream is neither a delta nor the continuation of one"));
        }
        if self.fill(rest)? < rest.len() {
            return Err(Error::damaged("the continuation ends in its preamble"));
        }
        let point = ResumePoint::decode(&head)?;
        let found = match hash_start(&self.part.file, point.bytes) {
            Ok(hasher) => Some(*hasher.finalize().as_bytes()),
            Err(error) if error.kind() == Kind::Damaged => None,
            Err(error) => return Err(error.at_path(&self.part.path)),
        };
        if found != Some(point.digest) {
            let what = format!("the stream leaves out {} bytes, which are not what is kept", point.bytes);
            return Err(Error::new(Kind::Mismatch, what).at_path(&self.part.path));
        }
        self.part.file.set_len(point.bytes).map_err(|error| self.part.failed("cannot cut it", error))?;
        self.known = point.bytes;
        Ok(())
    }

    /// Reads as much of `buf` as there is; the rest stays as it was.
    fn fill(&mut self, buf: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while let Some(rest) = buf.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.stream.read(rest) {
                Ok(0) => {
                    self.is_cut = true;
                    break;
                }
                Ok(count) => filled = filled.saturating_add(count),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(format!("cannot read the delta: {error}"), error)),
            }
        }
        Ok(filled)
    }

    fn keep(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.part.file.write_all_at(bytes, offset)
    }
}

impl Read for Arriving<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.known.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let count = if left > 0 {
            let len = buf.len().min(left);
            At { file: &self.part.file, offset: self.at }.read(buf.get_mut(..len).unwrap_or(&mut []))?
        } else {
            let count = self.stream.read(buf)?;
            self.is_cut |= count == 0;
            self.keep(buf.get(..count).unwrap_or(&[]), self.at)
                .map_err(|e| std::io::Error::other(self.part.failed("cannot keep what arrives", e)))?;
            count
        };
        self.at = self.at.saturating_add(count as u64);
        Ok(count)
    }
}
