//! What `thin_delta` and `era_invalidate` print: XML that names blocks.

use super::{Input, Tool, cannot_read};
use crate::error::{Error, Result};
use crate::units::Tag;
use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;
use std::io::{self, BufRead, Read};
use std::ops::Range;

/// Bytes between two tags and in one, at most; so that one that never ends does not fill the memory.
const TAG_BYTES_MAX: usize = 64 << 10;
/// Bytes in a sector, in which `thin_delta` gives the block size.
const SECTOR: u64 = 512;

/// Lets no more than [`TAG_BYTES_MAX`] be taken between two calls of `refill`.
struct Limited {
    inner: Input,
    left: usize,
}

impl Read for Limited {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut bytes = self.fill_buf()?;
        let count = bytes.read(buf)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Limited {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 {
            let what = format!("more than {TAG_BYTES_MAX} bytes without the end of a tag");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
        }
        let bytes = self.inner.fill_buf()?;
        Ok(bytes.get(..self.left.min(bytes.len())).unwrap_or(bytes))
    }

    fn consume(&mut self, count: usize) {
        self.left = self.left.saturating_sub(count);
        self.inner.consume(count);
    }
}

/// Where in the document the reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Before,
    Superblock,
    AfterDiff,
    Diff,
    /// Inside an element of verbose output; true if its ranges have changed.
    Group(bool),
    Blocks,
    After,
}

/// The ranges of blocks that have changed.
pub(super) struct Ranges {
    reader: Reader<Limited>,
    buf: Vec<u8>,
    place: Place,
    block_size: Option<u64>,
    tags: (Tag, Tag),
    /// The next range may not begin before this block.
    next: u64,
}

/// What a tag means.
enum Step {
    Go(Place),
    Changed(Range<u64>),
    Same(Range<u64>),
}

impl Ranges {
    /// Reads up to where the ranges begin.
    pub(super) fn open(input: Input, tool: Tool) -> Result<Self> {
        let mut reader = Reader::from_reader(Limited { inner: input, left: TAG_BYTES_MAX });
        reader.config_mut().check_end_names = true;
        let tags = (Tag(0), Tag(1));
        let mut ranges =
            Self { reader, buf: Vec::new(), place: Place::Before, block_size: None, tags, next: 0 };
        while matches!(ranges.place, Place::Before | Place::Superblock) {
            ranges.advance()?;
        }
        if tool == Tool::ThinDelta && ranges.place == Place::After {
            return Err(ranges.damaged("there is no list of differences in it"));
        }
        Ok(ranges)
    }

    /// Bytes in a block, if the list says so.
    pub(super) fn block_size(&self) -> Option<u64> {
        self.block_size
    }

    pub(super) fn tags(&self) -> (Tag, Tag) {
        self.tags
    }

    /// Bytes of input taken.
    pub(super) fn offset(&self) -> u64 {
        self.reader.buffer_position()
    }

    /// The next range of blocks, ascending.
    pub(super) fn next_range(&mut self) -> Result<Option<Range<u64>>> {
        while self.place != Place::After {
            if let Some(range) = self.advance()? {
                return Ok(Some(range));
            }
        }
        Ok(None)
    }

    /// Takes one tag. At the end of the document, the place is [`Place::After`].
    fn advance(&mut self) -> Result<Option<Range<u64>>> {
        self.buf.clear();
        self.reader.get_mut().left = TAG_BYTES_MAX;
        let event = match self.reader.read_event_into(&mut self.buf) {
            Ok(event) => event,
            Err(error) => return Err(syntax(error).at_offset(self.reader.buffer_position())),
        };
        let place = self.place;
        let step = match &event {
            Event::Start(tag) => step(place, tag, false, &mut self.block_size, &mut self.tags),
            Event::Empty(tag) => step(place, tag, true, &mut self.block_size, &mut self.tags),
            Event::End(_) => Ok(Step::Go(leave(place))),
            Event::Text(text) if text.bytes().all(|byte| byte.is_ascii_whitespace()) => Ok(Step::Go(place)),
            Event::Comment(_) | Event::PI(_) => Ok(Step::Go(place)),
            Event::Decl(_) if place == Place::Before => Ok(Step::Go(place)),
            Event::Eof => Err("the list is cut short".to_owned()),
            _ => Err("something other than tags is in the list".to_owned()),
        };
        drop(event);
        match step.map_err(|what| self.damaged(&what))? {
            Step::Go(Place::After) => {
                self.place = Place::After;
                self.ensure_end().map(|()| None)
            }
            Step::Go(place) => {
                self.place = place;
                Ok(None)
            }
            Step::Changed(range) => self.in_order(range).map(Some),
            Step::Same(range) => self.in_order(range).map(|_| None),
        }
    }

    fn in_order(&mut self, range: Range<u64>) -> Result<Range<u64>> {
        if range.start < self.next {
            let what = format!("block {} comes after block {}", range.start, self.next.saturating_sub(1));
            return Err(self.damaged(&what));
        }
        self.next = range.end;
        Ok(range)
    }

    /// After the last tag only blanks and comments may follow.
    fn ensure_end(&mut self) -> Result<()> {
        loop {
            self.buf.clear();
            self.reader.get_mut().left = TAG_BYTES_MAX;
            match self.reader.read_event_into(&mut self.buf) {
                Ok(Event::Eof) => return Ok(()),
                Ok(Event::Text(text)) if text.bytes().all(|byte| byte.is_ascii_whitespace()) => {}
                Ok(Event::Comment(_)) => {}
                Ok(_) => return Err(self.damaged("something follows the end of the list")),
                Err(error) => return Err(syntax(error).at_offset(self.reader.buffer_position())),
            }
        }
    }

    fn damaged(&self, what: &str) -> Error {
        Error::damaged(what).at_offset(self.offset())
    }
}

fn syntax(error: quick_xml::Error) -> Error {
    match error {
        quick_xml::Error::Io(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            Error::damaged(error.to_string())
        }
        quick_xml::Error::Io(error) => cannot_read(io::Error::new(error.kind(), error.to_string())),
        error => Error::damaged(format!("this is no XML: {error}")),
    }
}

/// Where the end of an element leads.
fn leave(place: Place) -> Place {
    match place {
        Place::Group(_) => Place::Diff,
        Place::Diff => Place::AfterDiff,
        Place::Before | Place::Superblock | Place::AfterDiff | Place::Blocks | Place::After => Place::After,
    }
}

/// What a tag at a place means; `empty` if it is its own end.
fn step(
    place: Place,
    tag: &BytesStart<'_>,
    empty: bool,
    block_size: &mut Option<u64>,
    tags: &mut (Tag, Tag),
) -> std::result::Result<Step, String> {
    let name = tag.name();
    let name = name.as_ref();
    match (place, name, empty) {
        (Place::Before, "superblock", false) => {
            let sectors = number(tag, "data_block_size")?;
            let bytes = sectors.checked_mul(SECTOR).ok_or_else(|| format!("blocks of {sectors} sectors"))?;
            *block_size = Some(bytes);
            Ok(Step::Go(Place::Superblock))
        }
        (Place::Before, "blocks", _) => Ok(Step::Go(if empty { Place::After } else { Place::Blocks })),
        (Place::Superblock, "diff", _) => {
            let device = |name| number(tag, name).ok().and_then(|id| u32::try_from(id).ok()).map(Tag);
            *tags = (device("left").unwrap_or(Tag(0)), device("right").unwrap_or(Tag(1)));
            Ok(Step::Go(if empty { Place::AfterDiff } else { Place::Diff }))
        }
        (Place::Superblock, "device" | "def", _) => {
            Err("this lists what is mapped, as thin_dump does, expected the output of thin_delta".to_owned())
        }
        (Place::Diff, "same" | "different" | "left_only" | "right_only", false) => {
            Ok(Step::Go(Place::Group(name != "same")))
        }
        (Place::Diff, "same", true) => blocks(tag).map(Step::Same),
        (Place::Diff, "different" | "left_only" | "right_only", true) => blocks(tag).map(Step::Changed),
        (Place::Group(changed), "range", true) => {
            let range = blocks(tag)?;
            Ok(if changed { Step::Changed(range) } else { Step::Same(range) })
        }
        (Place::Blocks, "block", true) => run(number(tag, "block")?, 1).map(Step::Changed),
        (Place::Blocks, "range", true) => {
            let (begin, end) = (number(tag, "begin")?, number(tag, "end")?);
            let length = end.checked_sub(begin).ok_or_else(|| format!("blocks {begin} to {end}"))?;
            run(begin, length).map(Step::Changed)
        }
        _ => Err(format!("an element <{}> is not expected here", clipped(name))),
    }
}

fn blocks(tag: &BytesStart<'_>) -> std::result::Result<Range<u64>, String> {
    run(number(tag, "begin")?, number(tag, "length")?)
}

fn run(begin: u64, length: u64) -> std::result::Result<Range<u64>, String> {
    match begin.checked_add(length) {
        Some(end) if length > 0 => Ok(begin..end),
        _ => Err(format!("{length} blocks from block {begin}")),
    }
}

/// The value of an attribute that must be there, once.
fn number(tag: &BytesStart<'_>, name: &str) -> std::result::Result<u64, String> {
    for attribute in tag.attributes() {
        let attribute = attribute.map_err(|error| format!("an attribute is damaged: {error}"))?;
        if attribute.key.as_ref() == name {
            let digits = &attribute.value;
            let parsed = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse());
            return parsed
                .and_then(std::result::Result::ok)
                .ok_or_else(|| format!("{name} is '{}', expected a number", clipped(digits)));
        }
    }
    Err(format!("<{}> has no {name}", clipped(tag.name().as_ref())))
}

/// The beginning of a text, for messages.
fn clipped(text: &str) -> String {
    text.chars().take(40).collect()
}
