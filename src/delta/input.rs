//! A delta that can be read twice: a file as it is, a stream after it was spooled.

use super::rbd::{Diff, transcode};
use super::read::Reader;
use super::target::{Target, TargetState};
use crate::error::{Error, Kind, Result};
use crate::format::delta::Header;
use crate::format::rbd;
use crate::progress::Progress;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use tempfile::SpooledTempFile;

/// Up to this much of a stream is kept in memory, the rest in an unlinked temporary file.
const SPOOL_MEMORY_BYTES: usize = 64 << 20;

/// Where a delta to be applied comes from.
pub struct Input {
    path: Option<PathBuf>,
    source: Source,
    /// Size and time of modification of a file when it was read first.
    stamp: Option<(u64, SystemTime)>,
    diff: Option<Diff>,
    /// Bytes of source and target, for a delta that does not tell.
    sizes: Option<(u64, u64)>,
}

enum Source {
    File(File),
    Stream(Box<dyn Read + Send>),
    Spool(SpooledTempFile),
    /// While the stream is being read, and for ever if that failed.
    Gone,
}

impl Input {
    /// Opens the delta at `path`; `-` is standard input.
    ///
    /// # Errors
    /// `Kind::NotFound`, `Kind::Io`.
    pub fn open(path: &Path) -> Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::from_reader(Box::new(std::io::stdin())));
        }
        let failed = |e| Error::io("cannot open the delta", e).at_path(path);
        let file = File::open(path).map_err(failed)?;
        let is_regular = file.metadata().map_err(failed)?.is_file();
        let source = if is_regular { Source::File(file) } else { Source::Stream(Box::new(file)) };
        Ok(Self { path: Some(path.to_path_buf()), source, stamp: None, diff: None, sizes: None })
    }

    /// A delta from a stream that can be read once.
    #[must_use]
    pub fn from_reader(reader: Box<dyn Read + Send>) -> Self {
        Self { path: None, source: Source::Stream(reader), stamp: None, diff: None, sizes: None }
    }

    /// What was read was an rbd diff, once an apply has begun.
    #[must_use]
    pub fn diff(&self) -> Option<&Diff> {
        self.diff.as_ref()
    }

    /// For a delta of 2008, which does not tell: the volume that it applies to.
    pub(crate) fn suit(&mut self, volume: &dyn TargetState) {
        self.sizes = Some((volume.base_size().unwrap_or(volume.size()), volume.size()));
    }

    /// Makes a delta for `target` of what is an rbd diff; all else stays as it is.
    pub(crate) fn prepare(&mut self, target: &dyn Target, progress: &dyn Progress) -> Result<()> {
        self.suit(target);
        let mut head = Vec::new();
        let failed = |e| Error::io("cannot read the delta", e);
        let wanted = rbd::MAGIC.len() as u64;
        let mut input: Box<dyn Read + Send> = match std::mem::replace(&mut self.source, Source::Gone) {
            Source::Stream(mut inner) => {
                inner.by_ref().take(wanted).read_to_end(&mut head).map_err(failed)?;
                Box::new(std::io::Cursor::new(head.clone()).chain(inner))
            }
            Source::File(mut file) => {
                (&file).take(wanted).read_to_end(&mut head).map_err(failed)?;
                file.seek(SeekFrom::Start(0)).map_err(failed)?;
                if !rbd::is_diff(&head)? {
                    self.source = Source::File(file);
                    return Ok(());
                }
                Box::new(BufReader::with_capacity(256 << 10, file))
            }
            other => {
                self.source = other;
                return Ok(());
            }
        };
        if !rbd::is_diff(&head)? {
            self.source = Source::Stream(input);
            return Ok(());
        }
        let mut spool = SpooledTempFile::new(SPOOL_MEMORY_BYTES);
        let diff = transcode(&mut *input, self.path.as_deref(), target, &mut spool, progress);
        let path = self.path.as_deref().unwrap_or(Path::new("standard input"));
        self.diff = Some(diff.map_err(|error| error.at_path(path))?);
        self.source = Source::Spool(spool);
        Ok(())
    }

    /// A delta in an open file; `path` is for messages.
    pub(crate) fn from_file(file: File, path: &Path) -> Self {
        Self {
            path: Some(path.to_path_buf()),
            source: Source::File(file),
            stamp: None,
            diff: None,
            sizes: None,
        }
    }

    /// The header. What of a stream was read for it is read again afterwards.
    pub(crate) fn peek(&mut self) -> Result<Header> {
        if let Source::Stream(_) = &self.source
            && let Source::Stream(inner) = std::mem::replace(&mut self.source, Source::Gone)
        {
            let mut tee = Tee { inner, spool: SpooledTempFile::new(SPOOL_MEMORY_BYTES) };
            let header = Reader::open_any(&mut tee, self.sizes).map(|reader| reader.header().clone())?;
            let Tee { inner, mut spool } = tee;
            spool.seek(SeekFrom::Start(0)).map_err(|e| Error::io("cannot rewind the delta", e))?;
            self.source = Source::Stream(Box::new(spool.chain(inner)));
            return Ok(header);
        }
        self.again(|reader| Ok(reader.header().clone()))
    }

    /// Reads the delta from its beginning with `first`; a stream is spooled on the way, so that
    /// [`Input::again`] works afterwards.
    pub(crate) fn first<T>(
        &mut self,
        first: impl FnOnce(Reader<&mut (dyn Read + Send)>) -> Result<T>,
    ) -> Result<T> {
        let path = self.path.clone();
        let named = |error: Error| match &path {
            Some(path) => error.at_path(path),
            None => error,
        };
        match std::mem::replace(&mut self.source, Source::Gone) {
            Source::Stream(inner) => {
                let mut tee = Tee { inner, spool: SpooledTempFile::new(SPOOL_MEMORY_BYTES) };
                let result = Reader::open_any(&mut tee as &mut (dyn Read + Send), self.sizes).and_then(first);
                self.source = Source::Spool(tee.spool);
                result
            }
            source => {
                self.source = source;
                self.stamp = self.stamp_now();
                self.again(first)
            }
        }
        .map_err(|error| if error.kind() == Kind::Damaged { named(error) } else { error })
    }

    /// As [`Input::again`], after all of it was read and had this digest. As long as nobody wrote to the file
    /// since, it is not hashed again.
    pub(crate) fn again_known<T>(
        &mut self,
        digest: [u8; 32],
        then: impl FnOnce(Reader<&mut (dyn Read + Send)>) -> Result<T>,
    ) -> Result<T> {
        let is_spool = matches!(self.source, Source::Spool(_));
        let is_same = is_spool || (self.stamp.is_some() && self.stamp == self.stamp_now());
        self.read_again(is_same.then_some(digest), then)
    }

    fn stamp_now(&self) -> Option<(u64, SystemTime)> {
        let Source::File(file) = &self.source else { return None };
        let meta = file.metadata().ok()?;
        Some((meta.len(), meta.modified().ok()?))
    }

    /// Reads the delta from its beginning once more.
    pub(crate) fn again<T>(
        &mut self,
        then: impl FnOnce(Reader<&mut (dyn Read + Send)>) -> Result<T>,
    ) -> Result<T> {
        self.read_again(None, then)
    }

    fn read_again<T>(
        &mut self,
        known: Option<[u8; 32]>,
        then: impl FnOnce(Reader<&mut (dyn Read + Send)>) -> Result<T>,
    ) -> Result<T> {
        let sizes = self.sizes;
        let open = |input| match known {
            Some(digest) => Reader::open_known(input, sizes, digest),
            None => Reader::open_any(input, sizes),
        };
        let rewound =
            |result: std::io::Result<u64>| result.map_err(|e| Error::io("cannot rewind the delta", e));
        match &mut self.source {
            Source::File(file) => {
                rewound(file.seek(SeekFrom::Start(0)))?;
                let mut buffered = BufReader::with_capacity(256 << 10, file);
                open(&mut buffered as &mut (dyn Read + Send)).and_then(then)
            }
            Source::Spool(spool) => {
                rewound(spool.seek(SeekFrom::Start(0)))?;
                open(spool as &mut (dyn Read + Send)).and_then(then)
            }
            Source::Stream(_) | Source::Gone => {
                Err(Error::new(Kind::Io, "the delta stream cannot be read twice"))
            }
        }
    }
}

/// Keeps a copy of everything read.
struct Tee {
    inner: Box<dyn Read + Send>,
    spool: SpooledTempFile,
}

impl Read for Tee {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buf)?;
        if let Some(bytes) = buf.get(..count) {
            self.spool.write_all(bytes).map_err(|e| {
                std::io::Error::other(Error::io(
                    format!("cannot spool the delta to a temporary file: {e}"),
                    e,
                ))
            })?;
        }
        Ok(count)
    }
}
