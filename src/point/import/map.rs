//! A dirty bitmap as `nbdinfo --map=qemu:dirty-bitmap:NAME --json` prints it: one array of extents that follow
//! one another from byte 0 without a gap.

use super::{Input, OFFSET_MAX, cannot_read};
use crate::error::{Error, Kind, Result};
use serde::Deserialize;
use std::io::BufRead;
use std::ops::Range;

/// Bytes in one extent of the array, at most; a hundred are usual.
const EXTENT_BYTES_MAX: usize = 4096;

#[derive(Deserialize)]
struct RawExtent {
    offset: u64,
    length: u64,
    #[serde(rename = "type")]
    kind: u64,
    description: Option<String>,
}

/// The ranges of bytes that are dirty.
pub(super) struct Ranges {
    input: Input,
    /// Bytes of input taken.
    offset: u64,
    extents: u64,
    /// Where the next extent must begin.
    next: u64,
    ended: bool,
}

impl Ranges {
    pub(super) fn open(input: Input) -> Result<Self> {
        let mut ranges = Self { input, offset: 0, extents: 0, next: 0, ended: false };
        let first = ranges.next_sign()?;
        let first = if first == Some(0xef) { ranges.after_mark()? } else { first };
        if first != Some(b'[') {
            return Err(ranges.damaged("the map does not begin with an array"));
        }
        Ok(ranges)
    }

    /// Up to which byte the map tells so far.
    pub(super) fn covers_bytes(&self) -> u64 {
        self.next
    }

    pub(super) fn next_range(&mut self) -> Result<Option<Range<u64>>> {
        while !self.ended {
            match (self.next_sign()?, self.extents) {
                (Some(b']'), _) => {
                    self.ended = true;
                    if self.next_sign()?.is_some() {
                        return Err(self.damaged("something follows the end of the map"));
                    }
                    return Ok(None);
                }
                (Some(b'{'), 0) => {}
                (Some(b','), 1..) if self.next_sign()? == Some(b'{') => {}
                (None, _) => return Err(self.damaged("the map is cut short")),
                _ => return Err(self.damaged("expected an extent of the map, or its end")),
            }
            let start = self.offset.saturating_sub(1);
            if let Some(range) = self.extent().map_err(|error| error.at_offset(start))? {
                return Ok(Some(range));
            }
        }
        Ok(None)
    }

    /// Reads one extent, whose brace has been taken. None if it is clean.
    fn extent(&mut self) -> Result<Option<Range<u64>>> {
        let text = self.object()?;
        let extent: RawExtent = serde_json::from_slice(&text)
            .map_err(|error| Error::damaged(format!("this is no extent of a map: {error}")))?;
        self.extents = self.extents.saturating_add(1);
        let dirty = match (extent.kind, extent.description.as_deref()) {
            (0, Some("clean")) => false,
            (1, Some("dirty")) => true,
            (kind, description) => {
                let what = format!(
                    "an extent of type {kind} ({}) is none of a dirty bitmap, expected 0 (clean) or 1 (dirty)",
                    description.unwrap_or("not described")
                );
                return Err(Error::new(Kind::Mismatch, what)
                    .hint("ask for the bitmap: nbdinfo --json --map=qemu:dirty-bitmap:NAME URI"));
            }
        };
        if extent.offset != self.next {
            let what = format!("an extent begins at {}, expected {}", extent.offset, self.next);
            return Err(Error::damaged(what));
        }
        let end = extent.offset.checked_add(extent.length).filter(|end| *end <= OFFSET_MAX);
        let Some(end) = end.filter(|_| extent.length > 0) else {
            let what = format!("an extent at {} has {} bytes", extent.offset, extent.length);
            return Err(Error::damaged(what));
        };
        self.next = end;
        Ok(dirty.then_some(extent.offset..end))
    }

    /// The text of an object without objects in it, from its brace on.
    fn object(&mut self) -> Result<Vec<u8>> {
        let mut text = vec![b'{'];
        let (mut in_string, mut escaped) = (false, false);
        while text.len() < EXTENT_BYTES_MAX {
            let Some(byte) = self.next_byte()? else { return Err(Error::damaged("the map is cut short")) };
            text.push(byte);
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_string => escaped = true,
                b'"' => in_string = !in_string,
                b'}' if !in_string => return Ok(text),
                _ => {}
            }
        }
        Err(Error::damaged(format!("an extent of the map has more than {EXTENT_BYTES_MAX} bytes")))
    }

    fn next_byte(&mut self) -> Result<Option<u8>> {
        loop {
            match self.input.fill_buf() {
                Ok(bytes) => {
                    let Some(byte) = bytes.first().copied() else { return Ok(None) };
                    self.input.consume(1);
                    self.offset = self.offset.saturating_add(1);
                    return Ok(Some(byte));
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(cannot_read(error)),
            }
        }
    }

    fn next_sign(&mut self) -> Result<Option<u8>> {
        loop {
            match self.next_byte()? {
                Some(byte) if byte.is_ascii_whitespace() => {}
                other => return Ok(other),
            }
        }
    }

    /// The first sign after the rest of a byte order mark.
    fn after_mark(&mut self) -> Result<Option<u8>> {
        self.next_byte()?;
        self.next_byte()?;
        self.next_sign()
    }

    fn damaged(&self, what: &str) -> Error {
        Error::damaged(what).at_offset(self.offset)
    }
}
