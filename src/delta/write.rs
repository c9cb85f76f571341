//! The stream out: counted, digested, and no faster than asked.

use super::buffer::Buffer;
use super::digest::Digest;
use super::encode::Encoded;
use super::load::to_usize;
use super::sound::Sound;
use crate::error::{Error, Kind, Result};
use crate::format::delta::{End, ExtentKind, Header, ResumePoint};
use crate::progress::{Progress, Throttle};
use std::cell::Cell;
use std::io::Write;
use std::rc::Rc;

/// Bytes written at a time.
const PIECE_BYTES: usize = 256 << 10;

/// What a delta came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateSummary {
    /// Number of extents.
    pub extents: u64,
    /// Chunks in all extents.
    pub chunks: u64,
    /// Bytes of the target that the extents cover.
    pub data_bytes: u64,
    /// Of these, bytes in zero extents.
    pub zero_bytes: u64,
    /// Bytes of all payloads.
    pub payload_bytes: u64,
    /// Length of the whole delta.
    pub stream_bytes: u64,
    /// Names the delta.
    pub digest: [u8; 32],
}

/// Writes header, extents and end marker.
pub(crate) struct Output<'a> {
    out: &'a mut dyn Write,
    progress: &'a dyn Progress,
    digest: Digest,
    bytes: u64,
    zero_bytes: u64,
    end: End,
    throttle: Option<Throttle>,
    /// The bytes up to here are not written but compared, and stand for themselves in a preamble.
    left_out: Option<ResumePoint>,
    /// Extents before this chunk are there already.
    first_chunk: u64,
    differs: Rc<Cell<bool>>,
}

impl<'a> Output<'a> {
    /// Writes the header. `rate` is in bytes a second.
    pub(crate) fn begin(
        out: &'a mut dyn Write,
        header: &Header,
        rate: Option<u64>,
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        Self::begin_after(out, header, &ResumePoint::start(), rate, progress)
    }

    /// As [`Output::begin`], for a reader that has the bytes before `point`. Until these have proven to be the
    /// same nothing is written.
    pub(crate) fn begin_after(
        out: &'a mut dyn Write,
        header: &Header,
        point: &ResumePoint,
        rate: Option<u64>,
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        let mut output = Self::new(out, Digest::new(blake3::Hasher::new()), rate, progress);
        output.left_out = (point.bytes > 0).then_some(*point);
        output.put(header.encode()?.into())?;
        Ok(output)
    }

    /// Goes on after what is known to be sound; `hasher` has seen all of that.
    pub(crate) fn continued(
        out: &'a mut dyn Write,
        hasher: blake3::Hasher,
        sound: &Sound,
        rate: Option<u64>,
        progress: &'a dyn Progress,
    ) -> Self {
        let Sound { bytes, next_chunk, counted, .. } = *sound;
        let digest = Digest::new(hasher);
        Self { bytes, end: counted, first_chunk: next_chunk, ..Self::new(out, digest, rate, progress) }
    }

    fn new(out: &'a mut dyn Write, digest: Digest, rate: Option<u64>, progress: &'a dyn Progress) -> Self {
        Self {
            out,
            progress,
            digest,
            bytes: 0,
            zero_bytes: 0,
            end: End::default(),
            throttle: rate.map(Throttle::new),
            left_out: None,
            first_chunk: 0,
            differs: Rc::default(),
        }
    }

    /// Chunks before this need not be made.
    pub(crate) fn first_chunk(&self) -> u64 {
        self.first_chunk
    }

    /// Set when an error says that what is there already is not the beginning of this delta.
    pub(crate) fn differs(&self) -> Rc<Cell<bool>> {
        Rc::clone(&self.differs)
    }

    pub(crate) fn extent(&mut self, extent: Encoded) -> Result<()> {
        if extent.chunk < self.first_chunk {
            let end = extent.chunk.saturating_add(u64::from(extent.chunks));
            return if end <= self.first_chunk { Ok(()) } else { Err(self.not_this_one()) };
        }
        self.put(extent.head)?;
        self.put(extent.payload)?;
        self.end.extents = self.end.extents.saturating_add(1);
        self.end.chunks = self.end.chunks.saturating_add(u64::from(extent.chunks));
        self.end.data_bytes = self.end.data_bytes.saturating_add(extent.data_bytes);
        self.end.payload_bytes = self.end.payload_bytes.saturating_add(extent.payload_bytes);
        if extent.kind == ExtentKind::Zero {
            self.zero_bytes = self.zero_bytes.saturating_add(extent.data_bytes);
        }
        Ok(())
    }

    /// Writes the end marker and flushes.
    pub(crate) fn finish(mut self) -> Result<CreateSummary> {
        let marker = self.end.encode();
        let (covered, _) = marker.split_at(End::COVERED_BYTES);
        self.put(covered.to_vec().into())?;
        self.end.digest = self.digest.so_far()?;
        let digest = self.end.digest;
        self.put(digest.to_vec().into())?;
        if self.left_out.is_some() {
            return Err(self.not_this_one());
        }
        self.out.flush().map_err(cannot_write)?;
        Ok(CreateSummary {
            extents: self.end.extents,
            chunks: self.end.chunks,
            data_bytes: self.end.data_bytes,
            zero_bytes: self.zero_bytes,
            payload_bytes: self.end.payload_bytes,
            stream_bytes: self.bytes,
            digest,
        })
    }

    fn put(&mut self, bytes: Buffer) -> Result<()> {
        let hidden = self.left_out.map_or(0, |point| to_usize(point.bytes.saturating_sub(self.bytes)));
        let (hidden, shown) = bytes.split_at(hidden.min(bytes.len()));
        self.bytes = self.bytes.saturating_add(hidden.len() as u64);
        if let Some(point) = self.left_out.take_if(|point| point.bytes == self.bytes) {
            self.digest.update(hidden.to_vec().into())?;
            if self.digest.so_far()? != point.digest {
                return Err(self.not_this_one());
            }
            self.out.write_all(&point.encode()).map_err(cannot_write)?;
            self.show(shown)?;
            return self.digest.update(shown.to_vec().into());
        }
        self.show(shown)?;
        self.digest.update(bytes)
    }

    fn show(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        // In pieces, so that a low rate is even and an interruption is noticed soon.
        for piece in bytes.chunks(PIECE_BYTES) {
            if let Some(throttle) = &mut self.throttle {
                throttle.wait(piece.len() as u64, self.progress)?;
            }
            self.out.write_all(piece).map_err(cannot_write)?;
        }
        Ok(())
    }

    fn not_this_one(&self) -> Error {
        self.differs.set(true);
        Error::new(Kind::Mismatch, "what is there already is not the beginning of this delta")
    }
}

fn cannot_write(source: std::io::Error) -> Error {
    let what = format!("cannot write the delta: {source}");
    Error::io(what, source)
}
