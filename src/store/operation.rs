//! Long operations on the origin: begun, resumed, ended or rolled back, across crashes.

use super::state::encode_deletion;
use super::writer::{Need, Writer};
use crate::error::{Error, Kind, Result};
use crate::format::record::{Record, RecordKind};
use crate::format::table::{Deletion, Operation};
use crate::point::{ChunkRange, Identity, PointId, PointSource};
use crate::units::{Epoch, index};

/// Bytes put back by one commit of a rollback.
const STEP: u64 = 1 << 20;

impl Writer {
    /// Begins a long change of the origin: a hidden snapshot keeps the state before it until
    /// [`Writer::end_operation`] or [`Writer::roll_back`]. `pinned` cannot be deleted meanwhile,
    /// `forced` is remembered for a resume. Beginning
    /// again with the token of the pending operation resumes it.
    ///
    /// # Errors
    /// `Kind::Busy` if another operation is pending.
    pub fn begin_operation(
        &mut self,
        label: &str,
        token: [u8; 32],
        forced: bool,
        pinned: Option<Epoch>,
    ) -> Result<()> {
        if let Some(pending) = &self.view.state.operation {
            if pending.token == token {
                return Ok(());
            }
            return Err(Error::new(
                Kind::Busy,
                format!("another operation is incomplete: {}", pending.label),
            )
            .hint("finish it with the same command, or roll it back with `ddsnap apply-delta --rollback`"));
        }
        let hidden = self.new_snapshot(u32::MAX, "", true);
        let operation = Operation {
            before: hidden.id,
            pinned: pinned.map_or(0, |id| id.0),
            token,
            forced,
            label: label.chars().take(1000).collect(),
        };
        let mut body = Vec::new();
        operation.encode(&mut body);
        hidden.encode(&mut body);
        let length = Record::header_length(0, body.len(), self.view.state.sb.block_bits);
        self.ensure_space(length, Need::Ordinary)?;
        self.begin_epoch(RecordKind::Begin, hidden.id, body)
    }

    /// Ends the pending operation; `equals` records what the origin now is.
    ///
    /// # Errors
    /// `Kind::NotFound` if none is pending.
    pub fn end_operation(&mut self, equals: Option<Identity>) -> Result<()> {
        let before = self.pending()?;
        // The state before is given up only when the state after is durable.
        self.flush_origin()?;
        let mut volume = self.view.state.volume.clone();
        volume.equals = equals.map(|identity| (identity.volume, identity.id, identity.generation));
        let mut body = Vec::new();
        volume.encode(&mut body);
        let dead = self.count_dead(before)?;
        let deletion = Deletion { id: before, automatic: false, squashed: false, reason: String::new() };
        encode_deletion(&deletion, dead, &mut body);
        self.log(RecordKind::End, body)?;
        self.copied.clear();
        // The next write of this session makes the origin something else again.
        self.origin_touched = false;
        self.sweep_if_due()
    }

    /// Puts the origin back to where it was before the pending operation, then ends it. Interruptible and
    /// repeatable. Returns the number of bytes put back.
    ///
    /// # Errors
    /// `Kind::NotFound` if none is pending; `Kind::Io`.
    pub fn roll_back(&mut self) -> Result<u64> {
        let before = PointId::Snapshot(Epoch(self.pending()?));
        let ranges: Vec<ChunkRange> =
            self.view.changed(Some(PointId::Origin), before)?.collect::<Result<_>>()?;
        let size = self.view.size_of(before)?;
        if !ranges.is_empty() {
            // What goes back was copied out already: a full store must not keep the origin half changed.
            self.need_origin()?;
            self.touch_origin(Need::Reserve)?;
        }
        let bits = self.view.state.sb.chunk_bits;
        let mut total = 0;
        for range in ranges {
            let end = (range.end << bits).min(size);
            let mut at = range.start << bits;
            while at < end {
                let mut bytes = vec![0; index(STEP.min(end - at))];
                self.view.read(before, at, &mut bytes)?;
                self.write_origin(at, &bytes)?;
                at += bytes.len() as u64;
                total += bytes.len() as u64;
            }
        }
        self.end_operation(None)?;
        Ok(total)
    }

    fn pending(&self) -> Result<u64> {
        let pending = self.view.state.operation.as_ref().map(|operation| operation.before);
        pending.ok_or_else(|| Error::new(Kind::NotFound, "no operation is incomplete"))
    }
}
