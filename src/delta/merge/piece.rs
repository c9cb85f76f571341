//! Stretches of chunks whose bytes are decoded when somebody asks, and not before.

use super::needs_base;
use crate::block::ReadAt;
use crate::delta::Buffer;
use crate::delta::decode::Decoder;
use crate::delta::inspect::wrong_chunk;
use crate::delta::load::{chunk_crcs, to_usize};
use crate::delta::read::ReadExtent;
use crate::error::{Error, Result};
use crate::format::delta::{ExtentKind, Geometry, crc};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// What is known of one chunk of the state that the chain starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BaseSum {
    /// CRC of the chunk's first `bytes` bytes.
    pub(super) crc: u32,
    pub(super) bytes: u64,
}

/// Some or all of the chunks of one extent.
#[derive(Clone)]
pub(super) struct Piece {
    /// First chunk.
    pub(super) chunk: u64,
    /// Number of chunks, at least 1.
    pub(super) chunks: u32,
    content: Arc<Content>,
    /// One a chunk; `None` if a delta does not carry them.
    base: Option<Vec<BaseSum>>,
}

/// An extent, the delta it is from, and what lies below it.
struct Content {
    extent: ReadExtent,
    geometry: Geometry,
    path: Arc<PathBuf>,
    /// The old data that it refers to, as far as earlier deltas hold it.
    below: Vec<Piece>,
    decoded: Mutex<Option<Arc<Buffer>>>,
}

impl Piece {
    /// A whole extent of a delta of this geometry. `below` are the pieces of earlier deltas for the same chunks.
    pub(super) fn new(
        extent: ReadExtent,
        geometry: Geometry,
        path: Arc<PathBuf>,
        below: Vec<Piece>,
    ) -> Result<Self> {
        let (chunk, chunks) = (extent.head.chunk, extent.head.chunks);
        let base = base_sums(&extent, &geometry, &below)?;
        let below = if extent.head.kind == ExtentKind::ZstdBase { below } else { Vec::new() };
        let content = Content { extent, geometry, path, below, decoded: Mutex::new(None) };
        Ok(Self { chunk, chunks, content: Arc::new(content), base })
    }

    /// One past the last chunk.
    pub(super) fn end(&self) -> u64 {
        self.chunk.saturating_add(u64::from(self.chunks))
    }

    /// The part before chunk `at`, which lies inside the piece, and the rest.
    pub(super) fn split(mut self, at: u64) -> (Self, Self) {
        let first = u32::try_from(at.saturating_sub(self.chunk)).unwrap_or(u32::MAX).min(self.chunks);
        let rest = Self {
            chunk: self.chunk.saturating_add(u64::from(first)),
            chunks: self.chunks.saturating_sub(first),
            content: Arc::clone(&self.content),
            base: self.base.as_mut().map(|sums| sums.split_off(to_usize(u64::from(first)).min(sums.len()))),
        };
        self.chunks = first;
        (self, rest)
    }

    /// The extent that the chunks are from.
    pub(super) fn extent(&self) -> &ReadExtent {
        &self.content.extent
    }

    pub(super) fn base_sums(&self) -> Option<&[BaseSum]> {
        self.base.as_deref()
    }

    /// True if the extent means in a delta of geometry `merged` what it means in its own: all of it is there, its
    /// end is where it was, and the old data it may refer to is the start of the chain.
    pub(super) fn passes(&self, merged: &Geometry) -> bool {
        let Content { extent, geometry, below, .. } = &*self.content;
        let chunks = u64::from(self.chunks);
        let whole = self.chunk == extent.head.chunk && self.chunks == extent.head.chunks;
        let same_end = geometry.result_bytes(self.chunk, chunks) == merged.result_bytes(self.chunk, chunks);
        let same_base = geometry.base_bytes(self.chunk, chunks) == merged.base_bytes(self.chunk, chunks);
        let refers = extent.head.kind == ExtentKind::ZstdBase;
        whole && same_end && (!refers || (below.is_empty() && same_base))
    }

    /// The first bytes of the piece, as many as `buf` takes. `base` is the start of the chain.
    pub(super) fn read(&self, buf: &mut [u8], base: Option<&dyn ReadAt>) -> Result<()> {
        let Content { extent, geometry, .. } = &*self.content;
        if extent.head.kind == ExtentKind::Zero {
            buf.fill(0);
            return Ok(());
        }
        let data = self.content.decoded(base)?;
        let from = to_usize(geometry.offset(self.chunk.saturating_sub(extent.head.chunk)));
        let Some(bytes) = data.get(from..).and_then(|rest| rest.get(..buf.len())) else {
            let what = format!("chunk {} ends inside what a later delta refers to", self.chunk);
            return Err(Error::damaged(what).at_path(&self.content.path));
        };
        buf.copy_from_slice(bytes);
        Ok(())
    }

    /// Length and CRC of the result of `chunk`, which lies inside the piece.
    pub(super) fn result_sum(&self, chunk: u64) -> BaseSum {
        let Content { extent, geometry, .. } = &*self.content;
        let bytes = geometry.result_bytes(chunk, 1);
        let crc = match extent.head.kind {
            ExtentKind::Zero => crc(&vec![0; to_usize(bytes)]),
            _ => {
                let index = to_usize(chunk.saturating_sub(extent.head.chunk));
                extent.result_crcs.get(index).copied().unwrap_or(0)
            }
        };
        BaseSum { crc, bytes }
    }
}

impl Content {
    /// The result of the whole extent, decoded once however many pieces are left of it.
    fn decoded(&self, base: Option<&dyn ReadAt>) -> Result<Arc<Buffer>> {
        let mut slot = self.decoded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(data) = &*slot {
            return Ok(Arc::clone(data));
        }
        let old = match self.extent.head.kind {
            ExtentKind::ZstdBase => self.old_data(base)?,
            _ => Vec::new(),
        };
        let data = Decoder::new(self.geometry)?
            .decode(&self.extent, &old)
            .map(Arc::new)
            .map_err(|error| error.at_path(&self.path))?;
        *slot = Some(Arc::clone(&data));
        Ok(data)
    }

    /// What the extent refers to: pieces of earlier deltas, and the start of the chain in between.
    fn old_data(&self, base: Option<&dyn ReadAt>) -> Result<Vec<u8>> {
        let head = &self.extent.head;
        let mut old = vec![0; to_usize(self.geometry.base_bytes(head.chunk, u64::from(head.chunks)))];
        let (mut rest, mut chunk) = (old.as_mut_slice(), head.chunk);
        let end = head.chunk.saturating_add(u64::from(head.chunks));
        let mut below = self.below.iter().peekable();
        while chunk < end {
            let piece = below.next_if(|piece| piece.chunk <= chunk);
            let next = match piece {
                Some(piece) => piece.end(),
                None => below.peek().map_or(end, |next| next.chunk),
            };
            let len = to_usize(self.geometry.base_bytes(chunk, next.saturating_sub(chunk))).min(rest.len());
            let (part, after) = rest.split_at_mut(len);
            match (piece, base) {
                _ if len == 0 => {}
                (Some(piece), _) => piece.read(part, base)?,
                (None, Some(base)) => base.read_at(part, self.geometry.offset(chunk))?,
                (None, None) => {
                    let path = self.path.display();
                    return Err(needs_base(chunk, &format!("{path} refers to it")));
                }
            }
            (rest, chunk) = (after, next);
        }
        let crcs = chunk_crcs(&self.geometry, head.chunks, &old);
        match self.extent.base_crcs.iter().zip(&crcs).position(|(expected, found)| expected != found) {
            None => Ok(old),
            Some(index) => Err(wrong_chunk(head.chunk.saturating_add(index as u64))
                .at_path(base.map_or(self.path.as_path(), ReadAt::path))),
        }
    }
}

/// For each chunk what the first delta that has it tells of the start of the chain. On the way the extent proves
/// to be made from what lies below it.
fn base_sums(extent: &ReadExtent, geometry: &Geometry, below: &[Piece]) -> Result<Option<Vec<BaseSum>>> {
    let mut own: Option<Vec<BaseSum>> = extent.head.base_crcs.then(|| {
        let chunks = (extent.head.chunk..).zip(&extent.base_crcs);
        chunks.map(|(chunk, crc)| BaseSum { crc: *crc, bytes: geometry.base_bytes(chunk, 1) }).collect()
    });
    let mut covered = 0u64;
    for piece in below {
        covered = covered.saturating_add(u64::from(piece.chunks));
        let first = to_usize(piece.chunk.saturating_sub(extent.head.chunk));
        let len = to_usize(u64::from(piece.chunks));
        let Some(slots) = own.as_mut().and_then(|own| own.get_mut(first..first.saturating_add(len))) else {
            continue;
        };
        for (chunk, slot) in (piece.chunk..).zip(slots.iter()) {
            let made = piece.result_sum(chunk);
            if made.bytes == slot.bytes && made.crc != slot.crc {
                return Err(wrong_chunk(chunk));
            }
        }
        match &piece.base {
            Some(sums) => slots.copy_from_slice(sums),
            None => own = None,
        }
    }
    // Without sums of its own an extent can have those of the chunks below it, if they are all there.
    if !extent.head.base_crcs && covered == u64::from(extent.head.chunks) {
        let parts: Option<Vec<&[BaseSum]>> = below.iter().map(|piece| piece.base.as_deref()).collect();
        return Ok(parts.map(|parts| parts.concat()));
    }
    Ok(own)
}
