//! The block map beside a raw image, made while the image is written.

use crate::error::{Error, Result};
use crate::format::bmap::{BLOCK_BYTES, Head, TAIL, range};
use sha2::{Digest, Sha256};
use std::io::{self, Read, Seek, SeekFrom, Write};
use tempfile::SpooledTempFile;

/// Up to this much of the map is kept in memory, the rest in an unlinked temporary file.
const SPOOL_MEMORY_BYTES: usize = 8 << 20;

/// Which blocks of an image hold data, with a checksum for each run of them.
pub struct BlockMap {
    ranges: SpooledTempFile,
    mapped_blocks: u64,
    current: Option<Current>,
}

struct Current {
    first: u64,
    /// Byte offset where the run ends so far.
    end: u64,
    hash: Sha256,
}

impl Default for BlockMap {
    fn default() -> Self {
        Self::new()
    }
}

impl BlockMap {
    /// A map of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self { ranges: SpooledTempFile::new(SPOOL_MEMORY_BYTES), mapped_blocks: 0, current: None }
    }

    /// Adds data at byte `offset`, which begins a block and lies after all data before.
    pub(super) fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        if self.current.as_ref().is_none_or(|current| current.end != offset) {
            self.end_run()?;
        }
        let first = offset / BLOCK_BYTES;
        let current = self.current.get_or_insert_with(|| Current { first, end: offset, hash: Sha256::new() });
        current.hash.update(bytes);
        current.end = offset.saturating_add(bytes.len() as u64);
        Ok(())
    }

    fn end_run(&mut self) -> Result<()> {
        let Some(current) = self.current.take() else { return Ok(()) };
        let end = current.end.div_ceil(BLOCK_BYTES);
        self.mapped_blocks = self.mapped_blocks.saturating_add(end.saturating_sub(current.first));
        let line = range(current.first, end, &current.hash.finalize().into());
        self.ranges.write_all(line.as_bytes()).map_err(spooling)
    }

    /// Writes the map of an image of `image_bytes` bytes.
    ///
    /// # Errors
    /// Of `out`, and of the temporary file.
    pub fn write(mut self, image_bytes: u64, out: &mut dyn Write) -> Result<()> {
        self.end_run()?;
        let mut head = Head { image_bytes, mapped_blocks: self.mapped_blocks, checksum: [0; 32] };
        let mut hash = Sha256::new();
        self.copy(&head, &mut |bytes| {
            hash.update(bytes);
            Ok(())
        })?;
        head.checksum = hash.finalize().into();
        self.copy(&head, &mut |bytes| {
            out.write_all(bytes).map_err(|error| Error::io("cannot write the block map", error))
        })
    }

    fn copy(&mut self, head: &Head, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        each(head.encode().as_bytes())?;
        self.ranges.seek(SeekFrom::Start(0)).map_err(spooling)?;
        let mut buf = vec![0; 64 << 10];
        loop {
            let len = self.ranges.read(&mut buf).map_err(spooling)?;
            match buf.get(..len) {
                Some(bytes) if len > 0 => each(bytes)?,
                _ => break,
            }
        }
        each(TAIL.as_bytes())
    }
}

fn spooling(error: io::Error) -> Error {
    Error::io("cannot keep the block map in a temporary file", error)
}
