//! What every dump is made of: bounded parts in order, damage among them, and a last one that sums up.

use super::node::{Field, Node, Part};
use super::{Options, RAW_MAX};
use crate::block::ReadAt;
use crate::error::{Error, Result};
use crate::progress::Progress;

/// A dump under way, as far as it was written.
pub struct Output<'a> {
    /// Where the bytes of damaged things are.
    pub device: &'a dyn ReadAt,
    pub options: &'a Options,
    pub sink: &'a mut dyn FnMut(&Part, bool) -> Result<()>,
    pub progress: &'a dyn Progress,
    parts: u64,
    /// Things that were damaged.
    pub problems: u64,
}

impl<'a> Output<'a> {
    pub fn new(
        device: &'a dyn ReadAt,
        options: &'a Options,
        sink: &'a mut dyn FnMut(&Part, bool) -> Result<()>,
        progress: &'a dyn Progress,
    ) -> Self {
        Self { device, options, sink, progress, parts: 0, problems: 0 }
    }

    /// A part that is whole.
    pub fn emit(&mut self, part: &Part) -> Result<()> {
        self.progress.check()?;
        self.parts += 1;
        (self.sink)(part, false)
    }

    /// Something is damaged: what, and its bytes as far as they can be read.
    pub fn problem(&mut self, what: &str, error: &Error, raw: Option<(u64, u64)>) -> Result<()> {
        self.problems += 1;
        let text = Node::Text(error.to_string());
        let part = Part::new(
            "damage",
            format!("DAMAGED: {what}"),
            vec![("what", Node::Text(what.into())), ("why", text)],
        );
        self.emit(&part)?;
        if self.options.anonymous {
            return Ok(());
        }
        let Some((start, length)) = raw else { return Ok(()) };
        let end = start.saturating_add(length).min(self.device.size());
        let mut at = start;
        while at < end {
            let mut bytes = vec![0; RAW_MAX.min(crate::units::index(end - at))];
            if self.device.read_at(&mut bytes, at).is_err() {
                return Ok(());
            }
            let next = at + bytes.len() as u64;
            let heading = format!("bytes {at} to {} of {what}", next - 1);
            self.emit(&Part::new(
                "bytes",
                heading,
                vec![("at", Node::Bytes(at)), ("raw", Node::Raw(at, bytes))],
            ))?;
            at = next;
        }
        Ok(())
    }

    /// Rows in parts of at most `most`.
    pub fn rows(
        &mut self,
        name: &'static str,
        key: &'static str,
        heading: &str,
        most: usize,
        rows: &mut dyn Iterator<Item = Node>,
    ) -> Result<u64> {
        let mut count = 0;
        let mut list = Vec::new();
        let mut rows = rows.peekable();
        while let Some(row) = rows.next() {
            list.push(row);
            if list.len() == most || rows.peek().is_none() {
                let before = count;
                count += list.len() as u64;
                let heading =
                    if before > 0 { format!("{heading}, from {}", before + 1) } else { heading.to_owned() };
                self.emit(&Part::new(name, heading, vec![(key, Node::List(std::mem::take(&mut list)))]))?;
            }
        }
        Ok(count)
    }

    /// The first part; `schema` says what can be in the others.
    pub fn head(&mut self, schema: &'static str) -> Result<()> {
        let path = if self.options.anonymous {
            Node::None
        } else {
            Node::Text(self.device.path().display().to_string())
        };
        let fields = vec![
            ("schema", Node::Word(schema)),
            ("ddsnap", Node::Word(env!("CARGO_PKG_VERSION"))),
            ("path", path),
            ("device_bytes", Node::Bytes(self.device.size())),
            ("anonymous", Node::Flag(self.options.anonymous)),
            ("whole", Node::Flag(self.options.is_whole())),
        ];
        self.emit(&Part::new("dump", "dump", fields))
    }

    /// The last part; `fields` come after the number of parts and of what was damaged.
    pub fn end(&mut self, fields: Vec<Field>) -> Result<()> {
        let mut all = vec![("parts", Node::Count(self.parts)), ("damaged", Node::Count(self.problems))];
        all.extend(fields);
        (self.sink)(&Part::new("end", "end of the dump", all), true)
    }
}
