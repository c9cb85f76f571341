//! Lists of changes that other tools make, as runs of chunks.
//!
//! | file | what it reads |
//! |---|---|
//! | `xml` | `thin_delta` and `era_invalidate` |
//! | `map` | `nbdinfo --map=qemu:dirty-bitmap:NAME --json` |
//!
//! All is read as a stream, in bounded memory. What is not exactly what these tools write is refused, because a
//! change that is overlooked is a replica that differs.

mod map;
mod xml;

use super::ChunkRange;
use crate::error::{Error, Kind, Result};
use crate::units::Tag;
use std::io::{BufReader, Chain, Cursor, Read};
use std::ops::Range;

/// Who wrote a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// `thin_delta`, with or without `--verbose`.
    ThinDelta,
    /// `era_invalidate`.
    EraInvalidate,
    /// `nbdinfo --map --json`.
    NbdMap,
}

/// What the list itself does not say.
#[derive(Debug, Clone, Copy)]
pub struct ImportOptions {
    /// Bytes in a block of the list. Only `era_invalidate` needs to be told.
    pub block_size: Option<u64>,
    /// log2 of the chunk size where the list counts in bytes.
    pub chunk_bits: u32,
}

/// The head, which has been looked at, and the rest.
type Input = BufReader<Chain<Cursor<Vec<u8>>, Box<dyn Read + Send>>>;

/// Bytes at the beginning of a file by which [`recognise`] knows it.
pub const HEAD_BYTES: usize = 512;

/// Largest chunk that plain files are handled in.
const CHUNK_BITS_MAX: u32 = 20;
/// Where files and devices end at the latest.
const OFFSET_MAX: u64 = i64::MAX.unsigned_abs();

/// Whose list this seems to be, by its first [`HEAD_BYTES`] (or all, if there are fewer).
#[must_use]
pub fn recognise(head: &[u8]) -> Option<Tool> {
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    if text.starts_with(b"[") {
        return Some(Tool::NbdMap);
    }
    // A declaration may come first.
    let root = match text.strip_prefix(b"<?xml") {
        Some(rest) => rest.get(rest.iter().position(|byte| *byte == b'>')?.saturating_add(1)..)?,
        None => text,
    };
    let root = root.trim_ascii_start();
    let named = |name: &[u8]| {
        let after = root.strip_prefix(name).map(|rest| rest.first().copied());
        after.is_some_and(|next| {
            next.is_none_or(|byte| byte.is_ascii_whitespace() || matches!(byte, b'>' | b'/'))
        })
    };
    match () {
        () if named(b"<superblock") => Some(Tool::ThinDelta),
        () if named(b"<blocks") => Some(Tool::EraInvalidate),
        () => None,
    }
}

/// A list of changes, ready to be read: an iterator over ascending, disjoint, non-adjacent runs of chunks.
pub struct Import {
    source: Source,
    chunk_bits: u32,
    covering: u64,
    waiting: Option<ChunkRange>,
    ended: bool,
}

enum Source {
    Xml(xml::Ranges, u64),
    Map(map::Ranges),
}

impl Import {
    /// Reads the beginning of a list.
    ///
    /// # Errors
    /// `Kind::Damaged` if it is none; `Kind::Usage` if the block size is missing, superfluous or impossible;
    /// `Kind::Mismatch` if it is another than the list says; `Kind::Io`.
    pub fn open(mut input: Box<dyn Read + Send>, options: ImportOptions) -> Result<Self> {
        let head = read_head(&mut input)?;
        let tool = recognise(&head);
        let input = BufReader::with_capacity(64 << 10, Cursor::new(head).chain(input));
        let Some(tool) = tool else {
            let known =
                "known are thin_delta, era_invalidate, and nbdinfo --json --map=qemu:dirty-bitmap:NAME";
            return Err(Error::damaged("not a list of changes of a known tool").hint(known));
        };
        let (source, chunk_bits) = match tool {
            Tool::NbdMap if options.block_size.is_some() => {
                return Err(Error::new(Kind::Usage, "this list counts in bytes: it has no block size"));
            }
            Tool::NbdMap => (Source::Map(map::Ranges::open(input)?), options.chunk_bits),
            Tool::ThinDelta | Tool::EraInvalidate => {
                let ranges = xml::Ranges::open(input, tool)?;
                let block_size = block_size(ranges.block_size(), options.block_size)?;
                let bits = block_size.trailing_zeros().min(CHUNK_BITS_MAX);
                (Source::Xml(ranges, block_size), bits)
            }
        };
        Ok(Self { source, chunk_bits, covering: 0, waiting: None, ended: false })
    }

    /// log2 of the chunk size in bytes.
    #[must_use]
    pub fn chunk_bits(&self) -> u32 {
        self.chunk_bits
    }

    /// How the two points are known: by the numbers of the thin devices, else 0 and 1.
    #[must_use]
    pub fn tags(&self) -> (Tag, Tag) {
        match &self.source {
            Source::Xml(ranges, _) => ranges.tags(),
            Source::Map(_) => (Tag(0), Tag(1)),
        }
    }

    /// Demands that a list that tells of what did not change too tells of the first `bytes` bytes at least.
    #[must_use]
    pub fn covering(self, bytes: u64) -> Self {
        Self { covering: bytes, ..self }
    }

    fn next_bytes(&mut self) -> Result<Option<Range<u64>>> {
        match &mut self.source {
            Source::Map(ranges) => ranges.next_range(),
            Source::Xml(ranges, block_size) => {
                let Some(blocks) = ranges.next_range()? else { return Ok(None) };
                let byte = |block: u64| block.checked_mul(*block_size).filter(|byte| *byte <= OFFSET_MAX);
                let (Some(start), Some(end)) = (byte(blocks.start), byte(blocks.end)) else {
                    let what = format!(
                        "blocks {}..{} of {block_size} bytes end past {OFFSET_MAX}",
                        blocks.start, blocks.end
                    );
                    return Err(Error::damaged(what).at_offset(ranges.offset()));
                };
                Ok(Some(start..end))
            }
        }
    }

    fn ensure_covered(&self) -> Result<()> {
        match &self.source {
            Source::Map(ranges) if ranges.covers_bytes() < self.covering => {
                let what = format!(
                    "the map ends at byte {}, the data at byte {}: it is the map of something else",
                    ranges.covers_bytes(),
                    self.covering
                );
                Err(Error::new(Kind::Mismatch, what))
            }
            _ => Ok(()),
        }
    }

    fn next_run(&mut self) -> Result<Option<ChunkRange>> {
        while !self.ended {
            let Some(bytes) = self.next_bytes()? else {
                self.ended = true;
                self.ensure_covered()?;
                break;
            };
            let start = bytes.start >> self.chunk_bits;
            let end = bytes.end.div_ceil(1 << self.chunk_bits);
            match &mut self.waiting {
                Some(run) if start <= run.end => run.end = run.end.max(end),
                waiting => {
                    if let Some(run) = waiting.replace(ChunkRange { start, end }) {
                        return Ok(Some(run));
                    }
                }
            }
        }
        Ok(self.waiting.take())
    }
}

impl Iterator for Import {
    type Item = Result<ChunkRange>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_run();
        if next.is_err() {
            self.ended = true;
            self.waiting = None;
        }
        next.transpose()
    }
}

/// The block size that the list says or that was given.
fn block_size(listed: Option<u64>, given: Option<u64>) -> Result<u64> {
    let size = match (listed, given) {
        (Some(listed), Some(given)) if listed != given => {
            let what = format!("the list counts in blocks of {listed} bytes, not of {given}");
            return Err(Error::new(Kind::Mismatch, what));
        }
        (Some(size), _) | (None, Some(size)) => size,
        (None, None) => {
            return Err(Error::new(Kind::Usage, "the list does not say how large its blocks are")
                .hint("--block-size SIZE says it: the block size that the era device was made with"));
        }
    };
    if size == 0 || size % 512 != 0 {
        let what = format!("blocks of {size} bytes, expected a multiple of 512");
        return Err(Error::new(if listed.is_some() { Kind::Damaged } else { Kind::Usage }, what));
    }
    Ok(size)
}

/// Reads [`HEAD_BYTES`], or all that there is.
fn read_head(input: &mut dyn Read) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    let limit = HEAD_BYTES as u64;
    input.take(limit).read_to_end(&mut head).map_err(cannot_read)?;
    Ok(head)
}

fn cannot_read(error: std::io::Error) -> Error {
    Error::io("cannot read the list of changes", error)
}

#[cfg(test)]
mod tests;
