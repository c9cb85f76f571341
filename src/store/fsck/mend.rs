//! Repairs: what a check found, mended as far as leave is given.
//!
//! Tables are written again from their second copies; what records say no more, or what is no more, is restated in
//! the log; the rest is rebuilt. Each of these can be cut short at any write.

use super::check::CheckReport;
use super::gone::Gone;
use super::rebuild::{RebuildOptions, RebuildReport, rebuild};
use crate::block::WriteAt;
use crate::error::{Kind, Result};
use crate::format::record::{Encoding, Entry, EntryClass, Record, RecordKind};
use crate::format::run::{IndexEntry, Key, Value};
use crate::point::finding::{Leave, Repair};
use crate::progress::Progress;
use crate::store::publish::padded;
use crate::store::relocate::batch_bytes;
use crate::store::room::PLAIN;
use crate::store::state::State;
use crate::store::writer::{Draft, Need, Writer};
use std::sync::Arc;

/// Marks in one record.
const MARKS: usize = 512;

/// What a repair did.
#[derive(Debug, Clone, Default)]
pub struct Repaired {
    /// Superblocks and tables were written anew.
    pub republished: bool,
    /// Chunks marked as lost.
    pub marked: u64,
    /// Chunks written to the log again.
    pub relogged: u64,
    /// The rebuild, if there was one.
    pub rebuilt: Option<RebuildReport>,
}

/// Mends what a check `found` on `device`, which nobody has changed since.
///
/// # Errors
/// As [`rebuild`] and [`Writer::open`]; the store is then as it was, or partly mended.
pub fn repair(
    device: &Arc<dyn WriteAt>,
    found: &CheckReport,
    leave: Leave,
    options: &RebuildOptions,
    progress: &dyn Progress,
) -> Result<Repaired> {
    let wanted = |repair: Repair| {
        found.findings.iter().any(|finding| finding.code.repair() == repair && leave.mends(finding.code))
    };
    let mut repaired = Repaired::default();
    if wanted(Repair::Rebuild) {
        let options = RebuildOptions { give_up: leave == Leave::Everything, ..options.clone() };
        repaired.rebuilt = Some(rebuild(device, &options, progress)?);
        return Ok(repaired);
    }
    if !found.opens() {
        return Ok(repaired);
    }
    let mut writer = Writer::open(Arc::clone(device), None, options.now_secs)?;
    if wanted(Repair::Publish) {
        writer.checkpoint(PLAIN)?;
        repaired.republished = true;
    }
    let gone = if leave == Leave::Everything { found.gone.as_slice() } else { &[] };
    repaired.relogged = writer.restate(gone, &found.unlogged)?;
    repaired.marked = gone.len() as u64;
    writer.close()?;
    Ok(repaired)
}

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
