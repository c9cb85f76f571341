//! Records of the log as they lie there.

use super::Dumper;
use super::fields::Walker;
use super::node::{Field, Node, Part};
use crate::error::{Error, Kind, Result};
use crate::format::checkpoint::Checkpoint;
use crate::format::field::Table;
use crate::format::record::{Encoding, HEADER_SIZE, RawEntry, RawHeader, Record, RecordKind};
use crate::format::superblock::Superblock;
use crate::format::table::{
    RawDelete, RawFingerprint, RawOpen, RawOperation, RawSnapshot, RawTaint, RawVolume,
};
use crate::units::index;
use std::ops::RangeInclusive;

/// Most bytes shown of what is no record.
const UNKNOWN_MAX: u64 = 4096;

/// What a record does, in a word.
pub fn kind_word(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::CopyOut => "copy-out",
        RecordKind::Create => "create",
        RecordKind::Delete => "delete",
        RecordKind::Attributes => "attributes",
        RecordKind::SnapshotWrite => "snapshot-write",
        RecordKind::Relocation => "relocation",
        RecordKind::Volume => "volume",
        RecordKind::Begin => "begin",
        RecordKind::End => "end",
        RecordKind::Skip => "skip",
        RecordKind::Idle => "idle",
        RecordKind::Open => "open",
        RecordKind::Taint => "taint",
    }
}

/// The structures of a record's body, in order.
fn body_tables(kind: RecordKind) -> Vec<(&'static str, Table)> {
    match kind {
        RecordKind::Create | RecordKind::Attributes => vec![("snapshot", RawSnapshot::TABLE)],
        RecordKind::Delete => vec![("deletion", RawDelete::TABLE)],
        RecordKind::Volume => vec![("volume", RawVolume::TABLE)],
        RecordKind::Begin => vec![("operation", RawOperation::TABLE), ("snapshot", RawSnapshot::TABLE)],
        RecordKind::End => vec![("volume", RawVolume::TABLE), ("deletion", RawDelete::TABLE)],
        RecordKind::Idle => vec![("fingerprint", RawFingerprint::TABLE)],
        RecordKind::Open => vec![("open", RawOpen::TABLE), ("volume", RawVolume::TABLE)],
        RecordKind::Taint => vec![("taint", RawTaint::TABLE)],
        RecordKind::CopyOut | RecordKind::SnapshotWrite | RecordKind::Relocation | RecordKind::Skip => {
            Vec::new()
        }
    }
}

impl Dumper<'_> {
    /// The records after the checkpoint.
    pub(super) fn log(&mut self, sb: &Superblock, checkpoint: &Checkpoint, last: u64) -> Result<()> {
        let inspector = self.inspector;
        let walked = inspector.each_record(sb, checkpoint, last, &mut |record, torn| {
            let note = if torn { ", cut short by a crash: does not count" } else { "" };
            self.record(sb, record, note, false)
        });
        match walked {
            // The recovery has said so already, or the sink has.
            Err(error) if error.kind() == Kind::Damaged => Ok(()),
            walked => walked,
        }
    }

    /// Every record that is left with a sequence in `range`.
    pub(super) fn log_range(
        &mut self,
        sb: &Superblock,
        checkpoint: &Checkpoint,
        range: &RangeInclusive<u64>,
    ) -> Result<()> {
        for (sequence, address) in self.inspector.find_records(sb, checkpoint, self.out.progress)? {
            if range.contains(&sequence) {
                let record = self.inspector.record(sb, address)?;
                self.record(sb, &record, "", false)?;
            }
        }
        Ok(())
    }

    /// What lies at `address`, which may be no record at all.
    pub(super) fn record_at(&mut self, address: u64) -> Result<()> {
        let what = format!("record at byte {address}");
        // Without a geometry nothing can be proven; the bytes can still be shown.
        let known = self.inspector.find_checkpoint(self.out.progress);
        let found = known.and_then(|(sb, _)| Ok((self.inspector.record(&sb, address)?, sb)));
        let error = match found {
            Ok((record, sb)) => return self.record(&sb, &record, "", true),
            Err(error) if error.kind() == Kind::Interrupted => return Err(error),
            Err(error) => error,
        };
        let length = UNKNOWN_MAX.min(self.out.device.size().saturating_sub(address));
        let mut bytes = vec![0; index(length)];
        if self.out.device.read_at(&mut bytes, address).is_ok()
            && let Some(head) =
                Walker::new(&bytes, address, self.out.options.hex).structure(&RawHeader::TABLE)
        {
            let fields = vec![("sound", Node::Flag(false)), ("fields", head)];
            self.out.emit(&Part::new("record", format!("{what}, as it lies there"), fields))?;
        }
        self.out.problem(&what, &error, Some((address, length)))
    }

    fn record(&mut self, sb: &Superblock, record: &Record, note: &str, data: bool) -> Result<()> {
        let mut bytes = vec![0; index(u64::from(record.header_length))];
        self.out.device.read_at(&mut bytes, record.address)?;
        let mut walker = Walker::new(&bytes, record.address, self.out.options.hex);
        let mut fields: Vec<Field> = vec![("kind", Node::Word(kind_word(record.kind)))];
        fields.extend(walker.structure(&RawHeader::TABLE).map(|head| ("fields", head)));
        let mut entries = Vec::new();
        let mut lost = false;
        for (address, entry) in record.located(sb.block_bits) {
            let Some(Node::Map(mut row)) = walker.structure(&RawEntry::TABLE) else { break };
            row.push(("data_at", Node::Bytes(address)));
            if data {
                let holds =
                    entry.encoding != Encoding::Raw || self.holds(address, entry.stored_length, entry.crc);
                lost |= !holds;
                row.push(("data_holds", Node::Flag(holds)));
            }
            entries.push(Node::Map(row));
        }
        if !entries.is_empty() {
            fields.push(("entries", Node::List(entries)));
        }
        let start = record.address.saturating_add((bytes.len() as u64).min(walker.rest().1 - record.address));
        fields.extend(self.body(record, start));
        let (sequence, address) = (record.sequence, record.address);
        let heading = format!("record {sequence} at byte {address}: {}{note}", kind_word(record.kind));
        self.out.emit(&Part::new("record", heading, fields))?;
        match lost {
            true => {
                let error = Error::damaged("data do not hold their checksum");
                self.out.problem(&format!("record {sequence} at byte {address}"), &error, None)
            }
            false => Ok(()),
        }
    }

    fn body(&self, record: &Record, start: u64) -> Vec<Field> {
        let mut walker = Walker::new(&record.body, start, self.out.options.hex);
        let mut fields = Vec::new();
        for (name, table) in body_tables(record.kind) {
            match walker.structure(&table) {
                Some(node) => fields.push((name, node)),
                None => break,
            }
        }
        let (rest, at) = walker.rest();
        match rest.first_chunk() {
            Some(dead) if matches!(record.kind, RecordKind::Delete | RecordKind::End) && rest.len() == 8 => {
                fields.push(("entries_made_dead", Node::Count(u64::from_le_bytes(*dead))));
            }
            _ if !rest.is_empty() => fields.push(("rest", Node::Raw(at, rest.to_vec()))),
            _ => {}
        }
        fields
    }

    fn holds(&self, address: u64, length: u32, crc: u32) -> bool {
        let mut bytes = vec![0; index(u64::from(length))];
        self.out.device.read_at(&mut bytes, address).is_ok() && crc32fast::hash(&bytes) == crc
    }
}

/// Bytes of the fixed part, which every header has.
const _: () = assert!(RawHeader::TABLE.size == HEADER_SIZE);
