//! The stream out: counted, digested, and no faster than asked.

use super::encode::Encoded;
use crate::error::{Error, Result};
use crate::format::delta::{End, ExtentKind, Header};
use crate::progress::Progress;
use std::io::Write;
use std::time::{Duration, Instant};

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
    hasher: blake3::Hasher,
    bytes: u64,
    zero_bytes: u64,
    end: End,
    throttle: Option<Throttle>,
}

impl<'a> Output<'a> {
    /// Writes the header. `rate` is in bytes a second.
    pub(crate) fn begin(
        out: &'a mut dyn Write,
        header: &Header,
        rate: Option<u64>,
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        let mut output = Self {
            out,
            progress,
            hasher: blake3::Hasher::new(),
            bytes: 0,
            zero_bytes: 0,
            end: End::default(),
            throttle: rate.map(Throttle::new),
        };
        output.put(&header.encode()?)?;
        Ok(output)
    }

    pub(crate) fn extent(&mut self, extent: &Encoded) -> Result<()> {
        self.put(&extent.bytes)?;
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
        self.hasher.update(covered);
        self.end.digest = *self.hasher.finalize().as_bytes();
        let marker = self.end.encode();
        self.out.write_all(&marker).and_then(|()| self.out.flush()).map_err(cannot_write)?;
        Ok(CreateSummary {
            extents: self.end.extents,
            chunks: self.end.chunks,
            data_bytes: self.end.data_bytes,
            zero_bytes: self.zero_bytes,
            payload_bytes: self.end.payload_bytes,
            stream_bytes: self.bytes.saturating_add(marker.len() as u64),
            digest: self.end.digest,
        })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        // In pieces, so that a low rate is even and an interruption is noticed soon.
        for piece in bytes.chunks(64 << 10) {
            if let Some(throttle) = &mut self.throttle {
                throttle.wait(piece.len() as u64, self.progress)?;
            }
            self.out.write_all(piece).map_err(cannot_write)?;
        }
        Ok(())
    }
}

fn cannot_write(source: std::io::Error) -> Error {
    let what = format!("cannot write the delta: {source}");
    Error::io(what, source)
}

/// A token bucket that holds at most a quarter of a second.
struct Throttle {
    rate: u64,
    tokens: f64,
    last: Instant,
}

impl Throttle {
    fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), tokens: 0.0, last: Instant::now() }
    }

    #[expect(clippy::cast_precision_loss, reason = "a rate need not be exact to the byte")]
    fn wait(&mut self, bytes: u64, progress: &dyn Progress) -> Result<()> {
        let rate = self.rate as f64;
        loop {
            let now = Instant::now();
            self.tokens += now.duration_since(self.last).as_secs_f64() * rate;
            self.tokens = self.tokens.min((rate / 4.0).max(bytes as f64));
            self.last = now;
            if self.tokens >= bytes as f64 {
                self.tokens -= bytes as f64;
                return Ok(());
            }
            progress.check()?;
            let missing = (bytes as f64 - self.tokens) / rate;
            std::thread::sleep(Duration::from_secs_f64(missing.clamp(0.001, 0.2)));
        }
    }
}
