//! Superblocks, checkpoints and index blocks as they lie there.

use super::fields::Walker;
use super::node::{Field, Node, Part};
use super::{Dumper, ROWS_MAX};
use crate::error::{Error, Result};
use crate::format::checkpoint::{
    MAGIC as CHECKPOINT_MAGIC, Piece, RawCheckpoint, RawEvent, RawGrave, RawPart, RawPiece, RawRun,
    RawSegment, Run, decode_part,
};
use crate::format::field::Table;
use crate::format::record::{MAGIC as RECORD_MAGIC, RawHeader};
use crate::format::run::{
    BLOCK_SIZE, Key, RawBlockHeader, RawDirectoryEntry, RawIndexEntry, block_crc, decode_block,
    decode_directory,
};
use crate::format::superblock::{Extent, FIRST_SEGMENT, OFFSETS, RawSuperblock, SIZE, Superblock};
use crate::format::table::{RawOperation, RawSnapshot, RawVolume};
use crate::units::index;

const COPIES: [&str; 2] = ["first", "second"];

impl Dumper<'_> {
    fn bytes_at(&self, address: u64, length: u64) -> Result<Vec<u8>> {
        if address.checked_add(length).is_none_or(|end| end > self.out.device.size()) {
            return Err(Error::damaged(format!(
                "{length} bytes at {address} lie beyond the end of the device"
            )));
        }
        let mut bytes = vec![0; index(length)];
        self.out.device.read_at(&mut bytes, address)?;
        Ok(bytes)
    }

    /// The superblocks: one part if both are sound and the same.
    pub(super) fn superblocks(&mut self) -> Result<()> {
        let found = OFFSETS.map(|offset| self.bytes_at(offset, SIZE as u64));
        let same = matches!(&found, [Ok(a), Ok(b)] if a == b);
        for (number, bytes) in found.iter().enumerate() {
            let (Some(offset), Some(copy)) = (OFFSETS.get(number), self.inspector.superblocks.get(number))
            else {
                continue;
            };
            let name = COPIES.get(number).copied().unwrap_or_default();
            let what = match same && copy.is_ok() {
                true => "superblock, both copies".to_owned(),
                false => format!("{name} superblock"),
            };
            if let Ok(bytes) = bytes {
                let sound = Node::Flag(copy.is_ok());
                let fields = self.structure(&RawSuperblock::TABLE, bytes, *offset);
                let place = if same && copy.is_ok() { Node::Word("both") } else { Node::Word(name) };
                let fields = vec![("copy", place), ("sound", sound), ("fields", fields)];
                self.out.emit(&Part::new("superblock", format!("{what}, at byte {offset}"), fields))?;
            }
            if let Err(error) = bytes.as_ref().err().map_or(copy.as_ref().map(|_| ()), Err) {
                self.out.problem(&what, error, Some((*offset, SIZE as u64)))?;
            } else if same {
                break;
            }
        }
        if let [Ok(a), Ok(b)] = &self.inspector.superblocks
            && a != b
        {
            let what =
                format!("generations {} and {}: a publication was cut short", a.generation, b.generation);
            self.out.problem("the superblocks", &Error::damaged(what), None)?;
        }
        Ok(())
    }

    /// One structure by its table; what is cut short is told as it is.
    fn structure(&self, table: &Table, bytes: &[u8], address: u64) -> Node {
        let node = Walker::new(bytes, address, self.out.options.hex).structure(table);
        node.unwrap_or_else(|| Node::Raw(address, bytes.to_vec()))
    }

    /// Both copies of the checkpoint: heads of all parts, and the payload, twice if the copies differ.
    pub(super) fn checkpoint(&mut self, sb: &Superblock) -> Result<()> {
        let mut payloads = Vec::new();
        for (copy, extents) in sb.copies.iter().enumerate() {
            let mut payload = Vec::new();
            for (number, extent) in extents.iter().enumerate() {
                payload.extend(self.checkpoint_part(copy, number, extent)?);
            }
            payloads.push(payload);
        }
        let same = matches!(payloads.as_slice(), [a, b] if a == b);
        for (copy, payload) in payloads.iter().enumerate() {
            let name = if same { "both copies" } else { COPIES.get(copy).copied().unwrap_or_default() };
            let place = sb.copies.get(copy).and_then(|extents| extents.first());
            let start = place.map_or(0, |extent| extent.address.saturating_add(RawPart::TABLE.size as u64));
            if !payload.is_empty() {
                self.payload(name, payload, start)?;
            }
            if same {
                break;
            }
        }
        Ok(())
    }

    /// Shows the head of one part; returns its payload, sound or not.
    fn checkpoint_part(&mut self, copy: usize, number: usize, extent: &Extent) -> Result<Vec<u8>> {
        let copy = COPIES.get(copy).copied().unwrap_or_default();
        let what = format!("checkpoint, {copy} copy, part {number}");
        let bytes = match self.bytes_at(extent.address, u64::from(extent.length)) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.out.problem(&what, &error, None)?;
                return Ok(Vec::new());
            }
        };
        let crc = crc32fast::hash(&bytes);
        let sound = match decode_part(&bytes, extent.address) {
            Err(error) => Err(error),
            Ok(_) if crc != extent.crc => Err(Error::damaged(format!(
                "its checksum is {crc:08x}, the superblock says {:08x}",
                extent.crc
            ))),
            Ok(_) => Ok(()),
        };
        let head = self.structure(&RawPart::TABLE, &bytes, extent.address);
        let fields = vec![("copy", Node::Word(copy)), ("sound", Node::Flag(sound.is_ok())), ("fields", head)];
        self.out.emit(&Part::new(
            "checkpoint_part",
            format!("{what}, at byte {}", extent.address),
            fields,
        ))?;
        if let Err(error) = &sound {
            self.out.problem(&what, error, Some((extent.address, u64::from(extent.length))))?;
        }
        let length = decode_part(&bytes, extent.address)
            .map_or(bytes.len(), |part| RawPart::TABLE.size.saturating_add(part.payload.len()));
        Ok(bytes.get(RawPart::TABLE.size..length).unwrap_or(&[]).to_vec())
    }

    /// The tables of a checkpoint, as far as the bytes reach.
    fn payload(&mut self, copy: &str, payload: &[u8], start: u64) -> Result<()> {
        let mut walker = Walker::new(payload, start, self.out.options.hex);
        let mut plain = Walker::new(payload, start, false);
        let (Some(head), Some(Node::Map(counts))) =
            (walker.structure(&RawCheckpoint::TABLE), plain.structure(&RawCheckpoint::TABLE))
        else {
            return self.out.problem(
                &format!("checkpoint, {copy}"),
                &Error::damaged("it is cut short"),
                None,
            );
        };
        let fields = vec![("copy", Node::Text(copy.to_owned())), ("fields", head)];
        self.out.emit(&Part::new("checkpoint", format!("checkpoint, {copy}"), fields))?;
        let count = |name: &str| match counts.iter().find(|field| field.0 == name) {
            Some((_, Node::Count(count))) => *count,
            _ => 0,
        };
        let pending = counts.iter().any(|field| *field == ("flags", Node::Hex("1".into())));
        let mut cut = false;
        for (name, count, one) in TABLES.map(|(name, one)| (name, count(name), one)) {
            let mut rows = std::iter::repeat_with(|| one(&mut walker)).take(index(count)).map_while(|row| {
                cut |= row.is_none();
                row
            });
            self.out.rows(
                "checkpoint_table",
                name,
                &format!("checkpoint, {copy}: {name}, {count}"),
                ROWS_MAX,
                &mut rows,
            )?;
        }
        let mut last = vec![("volume", walker.structure(&RawVolume::TABLE))];
        if pending {
            last.push(("operation", walker.structure(&RawOperation::TABLE)));
        }
        for (name, node) in last {
            cut |= node.is_none();
            let fields: Vec<Field> = node.into_iter().map(|node| (name, node)).collect();
            self.out.emit(&Part::new("checkpoint_table", format!("checkpoint, {copy}: {name}"), fields))?;
        }
        match cut {
            true => self.out.problem(
                &format!("checkpoint, {copy}"),
                &Error::damaged("a table is cut short"),
                None,
            ),
            false => Ok(()),
        }
    }

    /// Runs and their pieces, as the tables list them.
    pub(super) fn runs(&mut self, runs: &[Run]) -> Result<()> {
        let row = |run: &Run| {
            Node::Map(vec![
                ("number", Node::Count(run.number)),
                ("entries", Node::Count(run.entries)),
                ("pieces", Node::Count(run.pieces.len() as u64)),
                ("from", key_node(run.from)),
            ])
        };
        let heading = format!("runs of the index, newest first: {}", runs.len());
        self.out.rows("runs", "runs", &heading, ROWS_MAX, &mut runs.iter().map(row))?;
        for run in runs {
            let row = |piece: &Piece| {
                Node::Map(vec![
                    ("address", Node::Bytes(piece.address)),
                    ("position", Node::Count(piece.position)),
                    ("first", key_node(piece.first)),
                    ("blocks", Node::Count(u64::from(piece.blocks))),
                    ("entries", Node::Count(u64::from(piece.entries))),
                    ("crc", Node::crc(piece.crc)),
                ])
            };
            let heading = format!("pieces of run {}: {}", run.number, run.pieces.len());
            self.out.rows("pieces", "pieces", &heading, ROWS_MAX, &mut run.pieces.iter().map(row))?;
        }
        Ok(())
    }

    /// Every block of every run by itself, so that one that is damaged costs no other.
    pub(super) fn index_blocks(&mut self, runs: &[Run]) -> Result<()> {
        for run in runs {
            for piece in &run.pieces {
                let what = format!("directory of run {} at byte {}", run.number, piece.address);
                let bytes = self.index_block(&what, piece.address, piece.crc, &RawDirectoryEntry::TABLE)?;
                let directory = bytes
                    .ok_or(())
                    .and_then(|bytes| decode_directory(&bytes, run.number, piece.position).map_err(|_| ()));
                // Without its directory nothing proves a block: it is shown, and counts as damaged with it.
                let list = directory.unwrap_or_default();
                for block in 1..=u64::from(piece.blocks) {
                    let address = piece.address.saturating_add(block.saturating_mul(BLOCK_SIZE as u64));
                    let crc = list.get(index(block - 1)).map(|entry| entry.1);
                    self.data_block(run.number, piece.position.saturating_add(block), address, crc)?;
                }
            }
        }
        Ok(())
    }

    fn data_block(&mut self, run: u64, position: u64, address: u64, crc: Option<u32>) -> Result<()> {
        let what = format!("index block of run {run} at byte {address}");
        let crc = match (crc, self.bytes_at(address, BLOCK_SIZE as u64)) {
            (Some(crc), _) => crc,
            // What it says of itself is all there is.
            (None, Ok(bytes)) if decode_block(&bytes, run, position).is_ok() => block_crc(&bytes),
            (None, _) => 0,
        };
        self.index_block(&what, address, crc, &RawIndexEntry::TABLE).map(|_| ())
    }

    /// Shows an index block whose checksum is `crc`; returns its bytes if it has that.
    fn index_block(&mut self, what: &str, address: u64, crc: u32, entry: &Table) -> Result<Option<Vec<u8>>> {
        let bytes = match self.bytes_at(address, BLOCK_SIZE as u64) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.out.problem(what, &error, None)?;
                return Ok(None);
            }
        };
        let found = block_crc(&bytes);
        if found != crc {
            let error = Error::damaged(format!("its checksum is {found:08x}, its parent says {crc:08x}"));
            self.out.problem(what, &error, Some((address, BLOCK_SIZE as u64)))?;
            return Ok(None);
        }
        let mut walker = Walker::new(&bytes, address, self.out.options.hex);
        let mut fields = Vec::new();
        let entries =
            bytes.get(24..26).map_or(0, |count| usize::from(u16::from_le_bytes([count[0], count[1]])));
        if let Some(head) = walker.structure(&RawBlockHeader::TABLE) {
            fields.push(("fields", head));
        }
        let rows = std::iter::repeat_with(|| walker.structure(entry)).take(entries).map_while(|row| row);
        fields.push(("entries", Node::List(rows.collect())));
        self.out.emit(&Part::new("index_block", what, fields))?;
        Ok(Some(bytes))
    }

    /// Nothing says what the store is: shows what looks like a piece of one.
    pub(super) fn without_checkpoint(&mut self, error: &Error) -> Result<()> {
        self.complete = false;
        self.out.problem("the checkpoint", error, None)?;
        if self.out.options.anonymous {
            return Ok(());
        }
        self.out.progress.stage("looking for remains", Some(self.out.device.size()));
        for (name, magic, table) in [
            ("looks_like_records", RECORD_MAGIC, RawHeader::TABLE),
            ("looks_like_checkpoints", CHECKPOINT_MAGIC, RawPart::TABLE),
        ] {
            self.lookalikes(name, magic, &table)?;
        }
        Ok(())
    }

    /// Every block that begins with `magic`, as a structure of `table`.
    fn lookalikes(&mut self, name: &'static str, magic: [u8; 8], table: &Table) -> Result<()> {
        let heading = format!("{}, unproven", name.replace('_', " "));
        let size = self.out.device.size();
        let mut at = FIRST_SEGMENT;
        let mut rows = Vec::new();
        while at < size {
            self.out.progress.check()?;
            // Holes hold nothing.
            let data = self.out.device.next_data(at).map_or(at, |data| data.start) / 4096 * 4096;
            if data > at {
                at = data;
                continue;
            }
            let length = (1 << 20).min(size - at);
            // What cannot be read shows nothing; the rest may.
            let bytes = self.bytes_at(at, length).unwrap_or_default();
            for (number, block) in
                bytes.chunks(4096).enumerate().filter(|(_, block)| block.starts_with(&magic))
            {
                let address = at + 4096 * number as u64;
                let mut fields = vec![("at", Node::Bytes(address))];
                if let Some(Node::Map(list)) = Walker::new(block, address, false).structure(table) {
                    fields.extend(list.into_iter().filter(|field| !matches!(field.0, "magic" | "reserved")));
                }
                rows.push(Node::Map(fields));
            }
            at += length;
            if rows.len() >= ROWS_MAX {
                let list = std::mem::take(&mut rows);
                self.out.rows(name, "found", &heading, ROWS_MAX, &mut list.into_iter())?;
            }
        }
        self.out.rows(name, "found", &heading, ROWS_MAX, &mut rows.into_iter())?;
        Ok(())
    }
}

/// A table of a checkpoint: the field that counts its rows, and how one is taken.
type Rows = (&'static str, fn(&mut Walker<'_>) -> Option<Node>);

/// In the order in which they lie there.
const TABLES: [Rows; 7] = [
    ("ends", |walker| {
        let (incarnation, sequence) = (number(walker, 8)?, number(walker, 8)?);
        Some(Node::Map(vec![("incarnation", Node::mask(incarnation)), ("sequence", Node::Count(sequence))]))
    }),
    ("promised", |walker| Some(Node::Map(vec![("segment", Node::Count(number(walker, 4)?))]))),
    ("snapshots", |walker| walker.structure(&RawSnapshot::TABLE)),
    ("graves", |walker| walker.structure(&RawGrave::TABLE)),
    ("segments", |walker| walker.structure(&RawSegment::TABLE)),
    ("runs", |walker| {
        let (bytes, _) = walker.rest();
        let pieces = bytes
            .get(40..44)
            .map_or(0, |count| count.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)));
        let run = walker.structure(&RawRun::TABLE)?;
        let pieces = (0..pieces).map_while(|_| walker.structure(&RawPiece::TABLE)).collect();
        Some(Node::Map(vec![("run", run), ("pieces", Node::List(pieces))]))
    }),
    ("events", |walker| walker.structure(&RawEvent::TABLE)),
];

/// A little-endian number of `length` bytes.
fn number(walker: &mut Walker<'_>, length: usize) -> Option<u64> {
    Some(walker.take(length)?.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

/// A key of the index.
fn key_node(key: Key) -> Node {
    Node::Text(match key.class {
        0 => format!("chunk {} epoch {}", key.a, key.b),
        1 => format!("snapshot {} chunk {}", key.a, key.b),
        _ => format!("epoch {} page {}", key.a, key.b),
    })
}
