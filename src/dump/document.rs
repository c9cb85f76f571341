//! Reading a dump: a stream of YAML documents, one at a time, each bounded, the last one with the sum of all.

use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::io::{BufRead, Read};

/// Longest document in bytes.
const DOCUMENT_MAX: usize = 4 << 20;
/// What begins a document.
const BEGIN: &[u8] = b"---\n";

/// One part of a dump as text.
#[derive(Debug, Clone)]
pub struct Document {
    /// Its number, from 1.
    pub number: u64,
    /// The number of its first line in the whole dump, from 1.
    pub line: u64,
    /// What it holds.
    pub name: String,
    /// The text, without the line that begins a document.
    pub text: String,
    /// Of all documents before it.
    hash: Sha256,
}

impl Document {
    /// An error in this document.
    pub fn wrong(&self, what: impl std::fmt::Display) -> Error {
        Error::damaged(format!("document {} (line {}, part '{}'): {what}", self.number, self.line, self.name))
    }

    /// SHA-256 of all that comes before its last line.
    pub fn sum(&self) -> [u8; 32] {
        let end = self.text.trim_end_matches('\n').rfind('\n').map_or(0, |end| end + 1);
        let mut hash = self.hash.clone();
        hash.update(BEGIN);
        hash.update(self.text.get(..end).unwrap_or_default());
        hash.finalize().into()
    }

    /// Its content.
    ///
    /// # Errors
    /// `Kind::Damaged`, with the line.
    pub fn parse<'de, T: serde::Deserialize<'de>>(&'de self) -> Result<T> {
        serde_yaml::from_str(&self.text).map_err(|error| {
            let text = error.to_string();
            let what = text.split(" at line ").next().unwrap_or_default();
            let line =
                error.location().map_or(self.line, |place| self.line.saturating_add(place.line() as u64));
            Error::damaged(format!("document {}, line {line}, part '{}': {what}", self.number, self.name))
        })
    }
}

/// Refuses what a dump never has and what takes a parser of YAML more than time in proportion to the bytes: names for
/// values and what stands for them, tags, deep nesting.
fn ensure_plain(bytes: &[u8]) -> std::result::Result<(), &'static str> {
    const DEPTH_MAX: usize = 8;
    // Brackets that are open; what begins a line: blanks and the dashes of lists.
    let (mut depth, mut margin, mut leading) = (0usize, 0usize, true);
    let (mut quote, mut escaped) = (None, false);
    for byte in bytes.iter().copied() {
        leading = byte == b'\n' || (leading && matches!(byte, b' ' | b'-'));
        margin = if leading && byte != b'\n' { margin + 1 } else { 0 };
        match (quote, byte) {
            (Some(_), _) if escaped => escaped = false,
            (Some(b'"'), b'\\') => escaped = true,
            (Some(open), _) if byte == open => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'&' | b'*' | b'!' | b'?' | b'|' | b'>' | b'%') => {
                return Err("only plain values, lists and maps have a place in a dump");
            }
            (None, b'[' | b'{') => depth += 1,
            (None, b']' | b'}') => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX || margin > 2 * DEPTH_MAX {
            return Err("it is nested deeper than a dump is");
        }
    }
    Ok(())
}

/// The documents of a dump, in order.
pub struct Documents<R> {
    input: R,
    /// Lines taken so far.
    lines: u64,
    number: u64,
    hash: Sha256,
    begun: bool,
}

impl<R: BufRead> Documents<R> {
    /// Reads `input`.
    pub fn new(input: R) -> Self {
        Self { input, lines: 0, number: 0, hash: Sha256::new(), begun: false }
    }

    /// The next line, at most as long as a document; empty at the end.
    fn line(&mut self) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        let most = DOCUMENT_MAX as u64 + 1;
        let read = (&mut self.input).take(most).read_until(b'\n', &mut line);
        read.map_err(|error| Error::io("cannot read the dump", error))?;
        self.lines += u64::from(!line.is_empty());
        Ok(line)
    }

    /// The next document; `None` at the end.
    ///
    /// # Errors
    /// `Kind::Damaged` if this is no dump or a document is too long; `Kind::Io`.
    pub fn next_document(&mut self) -> Result<Option<Document>> {
        if !self.begun {
            let first = self.line()?;
            if first != BEGIN {
                return Err(Error::damaged("it is no dump in YAML: it does not begin with '---'")
                    .hint("make one with 'ddsnap dump --format yaml STORE'"));
            }
            self.begun = true;
            self.number = 0;
        } else if self.number > 0
            && self.input.fill_buf().map_err(|e| Error::io("cannot read the dump", e))?.is_empty()
        {
            return Ok(None);
        }
        self.number += 1;
        let hash = self.hash.clone();
        self.hash.update(BEGIN);
        let first = self.lines;
        let mut bytes = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() || line == BEGIN {
                break;
            }
            bytes.extend_from_slice(&line);
            if bytes.len() > DOCUMENT_MAX {
                let what =
                    format!("document {} (line {first}) is longer than {DOCUMENT_MAX} bytes", self.number);
                return Err(Error::damaged(what));
            }
        }
        self.hash.update(&bytes);
        ensure_plain(&bytes)
            .map_err(|what| Error::damaged(format!("document {} (line {first}): {what}", self.number)))?;
        let text = String::from_utf8(bytes).map_err(|_| {
            Error::damaged(format!("document {} (line {first}) is no text in UTF-8", self.number))
        })?;
        let name = text.lines().next().and_then(|line| line.strip_prefix("part: "));
        let name = name.ok_or_else(|| {
            let what = format!("document {} (line {first}) does not begin with 'part: '", self.number);
            Error::damaged(what)
        })?;
        let name = name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(40).collect();
        Ok(Some(Document { number: self.number, line: first, name, text, hash }))
    }
}
