//! A diff as a delta of ours, so that it is applied by the same code, with the same care.
//!
//! A diff is cut at any byte; a delta knows whole chunks. What a diff leaves of a chunk is filled in from the target.

use super::sidecar::Sidecar;
use crate::delta::create::{CreateOptions, write_delta};
use crate::delta::load::{Loaded, to_usize};
use crate::delta::plan::Run;
use crate::delta::read::fill;
use crate::delta::target::Target;
use crate::error::{Error, Result};
use crate::format::delta::{EXTENT_BYTES_MAX, Encoding, Header, NAME_BYTES_MAX, PointLabel};
use crate::format::rbd::{MAGIC, Order, Record, is_diff};
use crate::progress::Progress;
use crate::units::{Tag, Uuid};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::path::Path;

/// Small, so that little has to be filled in.
const CHUNK_BITS: u32 = 12;
const CHUNK_BYTES: u64 = 1 << CHUNK_BITS;

/// What a diff says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diff {
    /// Name of the snapshot that it must be applied to; `None`: it needs none.
    pub from: Option<String>,
    /// Name of the snapshot that it leads to; `None`: the live image.
    pub to: Option<String>,
    /// Size of the image at the end, in bytes.
    pub size_bytes: u64,
    /// A sidecar lay beside it and agreed with it.
    pub described: bool,
}

/// Reads a whole diff and writes it as a delta for `target`. `path` is where the diff lies, for its sidecar.
///
/// # Errors
/// `Kind::Damaged` for a diff that is cut short, makes no sense or is not what its sidecar describes,
/// `Kind::Unsupported` for another version; of `target` and `out`.
pub fn transcode(
    input: &mut (dyn Read + Send),
    path: Option<&Path>,
    target: &dyn Target,
    out: &mut dyn Write,
    progress: &dyn Progress,
) -> Result<Diff> {
    let sidecar = path.map(Sidecar::beside).transpose()?.flatten();
    let mut reader = Reader { input, hasher: blake3::Hasher::new(), offset: 0, order: Order::default() };
    let (diff, first) = reader.head(sidecar.is_some())?;
    let header = header(&diff, sidecar.as_ref(), target)?;
    let below = header.source.as_ref().map_or(0, |source| source.size_bytes);
    let mut cutter = Cutter {
        reader,
        target: diff.from.as_ref().map(|_| target),
        size: diff.size_bytes,
        below,
        covered: 0,
        part: None,
        buf: Vec::new(),
        start: 0,
        ready: VecDeque::new(),
        ended: false,
    };
    cutter.take(first)?;
    let options =
        CreateOptions { encoding: Encoding::Raw, level: 0, base_crc: false, threads: 0, rate_limit: None };
    progress.stage("read diff", None);
    let mut next = || -> Result<Option<(Run, Vec<u8>)>> {
        let run = cutter.next_run()?;
        if run.is_none() {
            cutter.reader.finish(sidecar.as_ref())?;
        }
        Ok(run)
    };
    let load = |_, _, new: Vec<u8>| Ok(Loaded { new: new.into(), base: None, base_crcs: None });
    write_delta(&header, &mut next, load, &options, out, progress)?;
    Ok(diff)
}

/// What the diff says, and its sidecar if there is one, as the header of a delta.
fn header(diff: &Diff, sidecar: Option<&Sidecar>, target: &dyn Target) -> Result<Header> {
    let named = |name: Option<&String>, size_bytes: u64| {
        let text = name.cloned().unwrap_or_default();
        let tag = text.parse().map_or(Tag::ORIGIN, Tag);
        let fits = |end: &usize| text.is_char_boundary(*end);
        let end = (0..=NAME_BYTES_MAX.min(text.len())).rev().find(fits).unwrap_or(0);
        let name = text.get(..end).filter(|name| !name.is_empty()).map(ToOwned::to_owned);
        PointLabel { volume: Uuid([0; 16]), id: 0, generation: 0, size_bytes, tag, name }
    };
    let (source, target) = match sidecar {
        Some(sidecar) => (sidecar.source.clone(), sidecar.target.clone()),
        None => (
            diff.from.as_ref().map(|from| named(Some(from), target.size())),
            named(diff.to.as_ref(), diff.size_bytes),
        ),
    };
    if source.is_some() != diff.from.is_some() || target.size_bytes != diff.size_bytes {
        return Err(Error::damaged("the diff is not the one that the file beside it describes"));
    }
    Ok(Header { chunk_bits: CHUNK_BITS, encoding: Encoding::Raw, level: 0, undoes: None, source, target })
}

/// The records of a diff.
struct Reader<'a> {
    input: &'a mut (dyn Read + Send),
    hasher: blake3::Hasher,
    offset: u64,
    order: Order,
}

impl Reader<'_> {
    fn bytes(&mut self, buf: &mut [u8], what: &str) -> Result<()> {
        fill(self.input, buf, self.offset, what)?;
        self.hasher.update(buf);
        self.offset = self.offset.saturating_add(buf.len() as u64);
        Ok(())
    }

    fn record(&mut self) -> Result<Record> {
        let at = self.offset;
        let mut tag = [0];
        self.bytes(&mut tag, "the next record or the end marker")?;
        let [tag] = tag;
        let decoded = Record::numbers_bytes(tag).and_then(|len| {
            let mut numbers = vec![0; len];
            self.bytes(&mut numbers, "a record")?;
            Record::decode(tag, &numbers)
        });
        let record = decoded.map_err(|error| error.at_offset(at))?;
        self.order.check(&record).map_err(|error| error.at_offset(at))?;
        Ok(record)
    }

    fn name(&mut self, length: u32) -> Result<String> {
        let mut bytes = vec![0; to_usize(u64::from(length))];
        self.bytes(&mut bytes, "a name")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Everything before the data, and the first record of that.
    fn head(&mut self, described: bool) -> Result<(Diff, Record)> {
        let mut magic = MAGIC;
        self.bytes(&mut magic, "its first line")?;
        if !is_diff(&magic)? {
            return Err(Error::damaged("not an rbd diff"));
        }
        let mut diff = Diff { from: None, to: None, size_bytes: 0, described };
        loop {
            match self.record()? {
                Record::From(length) => diff.from = Some(self.name(length)?),
                Record::To(length) => diff.to = Some(self.name(length)?),
                Record::Size(size) => diff.size_bytes = size,
                first => return Ok((diff, first)),
            }
        }
    }

    /// Nothing may follow, and the digest must be the one that the sidecar tells.
    fn finish(&mut self, sidecar: Option<&Sidecar>) -> Result<()> {
        let more = self.input.read(&mut [0]).map_err(|error| Error::io("cannot read the diff", error))?;
        if more != 0 {
            return Err(Error::damaged("bytes follow the end marker").at_offset(self.offset));
        }
        let digest = *self.hasher.finalize().as_bytes();
        match sidecar {
            Some(sidecar) if sidecar.digest != digest || sidecar.stream_bytes != self.offset => {
                Err(Error::damaged(format!(
                    "the diff has {} bytes and digest {}, the file beside it tells of {} and {}",
                    self.offset,
                    hex::encode(digest),
                    sidecar.stream_bytes,
                    hex::encode(sidecar.digest)
                )))
            }
            _ => Ok(()),
        }
    }
}

/// What is left of a record.
struct Part {
    offset: u64,
    length: u64,
    zero: bool,
}

/// Cuts records into runs of whole chunks.
struct Cutter<'a> {
    reader: Reader<'a>,
    /// What fills the rest of a chunk; `None`: zeros.
    target: Option<&'a dyn Target>,
    size: u64,
    /// Size of the source. From here on what no record names is zero, and is told so.
    below: u64,
    /// Bytes before this are in runs already.
    covered: u64,
    part: Option<Part>,
    /// Bytes from `start`, which begins a chunk.
    buf: Vec<u8>,
    start: u64,
    ready: VecDeque<(Run, Vec<u8>)>,
    ended: bool,
}

impl Cutter<'_> {
    fn next_run(&mut self) -> Result<Option<(Run, Vec<u8>)>> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Ok(Some(ready));
            }
            if let Some(part) = self.part.take() {
                self.part = self.cut(part)?;
            } else if self.ended {
                return Ok(None);
            } else {
                let record = self.reader.record()?;
                self.take(record)?;
            }
        }
    }

    fn take(&mut self, record: Record) -> Result<()> {
        match record {
            Record::Write { offset, length } => self.part = Some(Part { offset, length, zero: false }),
            Record::Zero { offset, length } => self.part = Some(Part { offset, length, zero: true }),
            Record::End => {
                self.flush()?;
                self.ended = true;
                self.gap(self.size)?;
            }
            // The order of records was checked.
            Record::From(_) | Record::To(_) | Record::Size(_) => {}
        }
        Ok(())
    }

    /// Takes as much of a record as fits one run, and returns the rest.
    fn cut(&mut self, mut part: Part) -> Result<Option<Part>> {
        if part.length == 0 {
            return Ok(None);
        }
        let end = self.end();
        // In a chunk of its own, and not right behind what is held.
        if !self.buf.is_empty() && part.offset != end && part.offset >= end.next_multiple_of(CHUNK_BYTES) {
            self.flush()?;
        }
        if part.zero
            && (self.buf.is_empty() || self.end().is_multiple_of(CHUNK_BYTES))
            && part.offset.is_multiple_of(CHUNK_BYTES)
        {
            let whole = match part.offset.saturating_add(part.length) == self.size {
                true => part.length,
                false => part.length / CHUNK_BYTES * CHUNK_BYTES,
            };
            if whole > 0 {
                self.flush()?;
                self.gap(part.offset)?;
                let length = self.hole(part.offset, whole);
                part.offset = part.offset.saturating_add(length);
                part.length = part.length.saturating_sub(length);
                return Ok(Some(part));
            }
        }
        if self.buf.is_empty() {
            self.start = part.offset / CHUNK_BYTES * CHUNK_BYTES;
        }
        self.fill_to(part.offset)?;
        let room = u64::from(EXTENT_BYTES_MAX).saturating_sub(self.buf.len() as u64);
        // Zeros only to the end of the chunk: the rest may be a hole.
        let room =
            if part.zero { room.min(CHUNK_BYTES.saturating_sub(self.end() % CHUNK_BYTES)) } else { room };
        let length = part.length.min(room);
        let at = self.buf.len();
        self.buf.resize(at.saturating_add(to_usize(length)), 0);
        if !part.zero
            && let Some(bytes) = self.buf.get_mut(at..)
        {
            self.reader.bytes(bytes, "data")?;
        }
        if self.buf.len() as u64 >= u64::from(EXTENT_BYTES_MAX) {
            self.flush()?;
        }
        part.offset = part.offset.saturating_add(length);
        part.length = part.length.saturating_sub(length);
        Ok(Some(part))
    }

    /// Where the held bytes end.
    fn end(&self) -> u64 {
        self.start.saturating_add(self.buf.len() as u64)
    }

    /// Appends what the target holds up to byte `offset`, which lies in the same chunk.
    fn fill_to(&mut self, offset: u64) -> Result<()> {
        let (from, at) = (self.end(), self.buf.len());
        self.buf.resize(at.saturating_add(to_usize(offset.saturating_sub(from))), 0);
        let Some(target) = self.target else { return Ok(()) };
        let present = target.size().min(self.below).min(offset).saturating_sub(from);
        match self.buf.get_mut(at..at.saturating_add(to_usize(present))) {
            Some(bytes) if !bytes.is_empty() => target.read_base(from, bytes),
            _ => Ok(()),
        }
    }

    /// Makes a run of what is held, filled up to whole chunks.
    fn flush(&mut self) -> Result<()> {
        if self.buf.is_empty() {
            return Ok(());
        }
        let end = self.end().next_multiple_of(CHUNK_BYTES).min(self.size);
        self.fill_to(end)?;
        self.gap(self.start)?;
        let chunks = (self.buf.len() as u64).div_ceil(CHUNK_BYTES);
        let run =
            Run::Read { start: self.start / CHUNK_BYTES, chunks: u32::try_from(chunks).unwrap_or(u32::MAX) };
        self.covered = end;
        self.ready.push_back((run, std::mem::take(&mut self.buf)));
        Ok(())
    }

    /// Covers what no record names before byte `offset` and past the end of the source.
    fn gap(&mut self, offset: u64) -> Result<()> {
        let edge = self.below / CHUNK_BYTES * CHUNK_BYTES;
        if edge < self.below && self.below < self.size && self.covered <= edge && edge < offset {
            // The source ends inside this chunk.
            let held = (std::mem::take(&mut self.buf), self.start);
            self.start = edge;
            let end = edge.saturating_add(CHUNK_BYTES).min(self.size);
            self.fill_to(end)?;
            let bytes = std::mem::replace(&mut self.buf, held.0);
            self.start = held.1;
            self.ready.push_back((Run::Read { start: edge / CHUNK_BYTES, chunks: 1 }, bytes));
            self.covered = end;
        }
        loop {
            let from = self.covered.max(self.below);
            if self.below >= self.size || from >= offset {
                return Ok(());
            }
            self.hole(from, offset.saturating_sub(from));
        }
    }

    /// Makes one hole of at most so many bytes from `offset`, which begins a chunk; returns how many.
    fn hole(&mut self, offset: u64, length: u64) -> u64 {
        let chunks = u32::try_from(length.div_ceil(CHUNK_BYTES)).unwrap_or(u32::MAX);
        let length = length.min(u64::from(chunks).saturating_mul(CHUNK_BYTES));
        self.covered = offset.saturating_add(length);
        self.ready.push_back((Run::Hole { start: offset / CHUNK_BYTES, chunks }, Vec::new()));
        length
    }
}
