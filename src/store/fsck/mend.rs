//! Restating in the log what its records say no more, or what is no more.

use super::check::CheckReport;
use super::gone::Gone;
use crate::error::{Kind, Result};
use crate::format::record::{Encoding, Entry, EntryClass, Record, RecordKind};
use crate::format::run::{IndexEntry, Key, Value};
use crate::store::publish::padded;
use crate::store::relocate::batch_bytes;
use crate::store::state::State;
use crate::store::writer::{Draft, Need, Writer};

/// Marks in one record.
const MARKS: usize = 512;

/// What the index keeps of a chunk that is gone until the record that says so is in the log. It counts in the
/// segment where the log goes on.
pub(super) fn lost_value(state: &State, gone: &Gone) -> Value {
    let segment = state.chain.promised.get(state.chain.at).copied().unwrap_or(0);
    Value {
        word: state.sb.segment_address(segment),
        crc: gone.crc,
        raw_length: gone.raw_length,
        stored_length: 0,
        encoding: Encoding::Lost,
    }
}

fn entry(key: Key, value: &Value) -> Entry {
    let (chunk, owner, class) = match key.class {
        0 => (key.a, key.b, EntryClass::Exception),
        _ => (key.b, key.a, EntryClass::Overlay),
    };
    Entry {
        chunk,
        owner,
        sequence: 0,
        crc: value.crc,
        raw_length: value.raw_length,
        stored_length: value.stored_length,
        encoding: value.encoding,
        class,
    }
}

impl Writer {
    /// Mends what a check found and records can mend: marks what is gone (if `mark` says so), and writes to the log
    /// again what no record describes. Returns the chunks marked and those written.
    ///
    /// # Errors
    /// `Kind::Io`; `Kind::NoSpace` if not even the marks fit.
    pub fn mend(&mut self, report: &CheckReport, mark: bool) -> Result<(u64, u64)> {
        let gone = if mark { report.gone.as_slice() } else { &[] };
        let relogged = self.restate(gone, &report.unlogged)?;
        Ok((gone.len() as u64, relogged))
    }

    /// Makes checkpoints until both copies of superblock and tables have been written anew.
    ///
    /// # Errors
    /// `Kind::Io`, `Kind::NoSpace`.
    pub fn republish(&mut self) -> Result<()> {
        self.checkpoint(crate::store::room::PLAIN)
    }

    /// Writes to the log which chunks are `gone`, and the `unlogged` ones again. Returns how many of the latter
    /// fitted: the others stay readable where they are.
    pub(super) fn restate(&mut self, gone: &[Gone], unlogged: &[IndexEntry]) -> Result<u64> {
        let bits = self.view.state.sb.block_bits;
        for batch in gone.chunks(MARKS) {
            let mark = |gone: &Gone| entry(gone.key, &lost_value(&self.view.state, gone));
            let entries: Vec<Entry> = batch.iter().map(mark).collect();
            let length = Record::header_length(entries.len(), 0, bits);
            self.sparing(|writer| writer.ensure_space(length, Need::Reserve))?;
            self.relocation(entries, Vec::new())?;
        }
        let done = self.relog(unlogged)?;
        if !gone.is_empty() || done > 0 {
            self.commit()?;
        }
        Ok(done)
    }

    fn relog(&mut self, unlogged: &[IndexEntry]) -> Result<u64> {
        let bits = self.view.state.sb.block_bits;
        let mut done = 0;
        let mut rest = unlogged;
        while !rest.is_empty() {
            let (mut entries, mut data) = (Vec::new(), Vec::new());
            let limit = batch_bytes(self);
            let mut taken = 0;
            for (key, value) in rest {
                let stored = padded(&self.view.state, value.stored_length as usize);
                if !entries.is_empty() && data.len() + stored > limit || entries.len() >= MARKS {
                    break;
                }
                taken += 1;
                // Verified, as always: what went bad meanwhile stays where its checksum gives it away.
                let bytes = match self.view.fetch(value) {
                    Ok(bytes) => bytes,
                    Err(error) if error.kind() == Kind::Damaged => continue,
                    Err(error) => return Err(error),
                };
                if value.encoding == Encoding::Raw {
                    data.extend_from_slice(&bytes);
                    data.resize(padded(&self.view.state, data.len()), 0);
                }
                entries.push(entry(*key, value));
            }
            rest = rest.get(taken..).unwrap_or(&[]);
            let length = Record::header_length(entries.len(), 0, bits) + data.len() as u64;
            match self.sparing(|writer| writer.ensure_space(length, Need::Ordinary)) {
                Err(error) if error.kind() == Kind::NoSpace => break,
                other => other?,
            }
            done += entries.len() as u64;
            self.relocation(entries, data)?;
        }
        Ok(done)
    }

    fn relocation(&mut self, entries: Vec<Entry>, data: Vec<u8>) -> Result<()> {
        let epoch = self.view.state.epoch;
        self.append(Draft { kind: RecordKind::Relocation, epoch, entries, body: Vec::new(), data })
    }
}
