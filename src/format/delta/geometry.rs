//! Arithmetic on chunks and sizes, safe for every value a decoded header can hold.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::EXTENT_BYTES_MAX;

/// Sizes of both sides in bytes and in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// log2 of the chunk size in bytes, `CHUNK_BITS_MIN..=CHUNK_BITS_MAX`.
    pub chunk_bits: u32,
    /// Size of the source in bytes; `None` for a full-volume delta.
    pub source_size: Option<u64>,
    /// Size of the target in bytes.
    pub target_size: u64,
}

impl Geometry {
    /// Chunk size in bytes.
    #[must_use]
    pub fn chunk_bytes(&self) -> u64 {
        1u64.checked_shl(self.chunk_bits).unwrap_or(u64::MAX)
    }

    /// Chunks of the target, a last partial one included.
    #[must_use]
    pub fn target_chunks(&self) -> u64 {
        self.chunks_of(self.target_size)
    }

    /// Chunks that a volume of `size` bytes has, a last partial one included.
    #[must_use]
    pub fn chunks_of(&self, size: u64) -> u64 {
        size.div_ceil(self.chunk_bytes())
    }

    /// Chunks an extent with data may have.
    #[must_use]
    pub fn extent_chunks_max(&self) -> u32 {
        EXTENT_BYTES_MAX.checked_shr(self.chunk_bits).unwrap_or(0).max(1)
    }

    /// Byte offset of a chunk; saturates where no volume can reach.
    #[must_use]
    pub fn offset(&self, chunk: u64) -> u64 {
        chunk.saturating_mul(self.chunk_bytes())
    }

    /// Bytes of `chunks` chunks from `start` that lie inside the target.
    #[must_use]
    pub fn result_bytes(&self, start: u64, chunks: u64) -> u64 {
        self.inside(self.target_size, start, chunks)
    }

    /// Bytes of `chunks` chunks from `start` that lie inside both source and target; 0 without a source.
    #[must_use]
    pub fn base_bytes(&self, start: u64, chunks: u64) -> u64 {
        self.inside(self.base_size(), start, chunks)
    }

    /// Where the part of the source ends that a delta may refer to.
    #[must_use]
    pub fn base_size(&self) -> u64 {
        self.source_size.unwrap_or(0).min(self.target_size)
    }

    /// The chunk from which on a delta covers every chunk of its target: all of them without a source; with a
    /// smaller source, from the chunk in which that ends.
    #[must_use]
    pub fn covered_from(&self) -> u64 {
        match self.source_size {
            None => 0,
            Some(size) if size < self.target_size => size.checked_shr(self.chunk_bits).unwrap_or(0),
            Some(_) => self.target_chunks(),
        }
    }

    fn inside(&self, limit: u64, start: u64, chunks: u64) -> u64 {
        let first = self.offset(start).min(limit);
        let end = self.offset(start.saturating_add(chunks)).min(limit);
        end.saturating_sub(first)
    }
}
