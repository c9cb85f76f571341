//! Long operations on the origin: begun, resumed and ended, across crashes. `revert` rolls them back.

use super::state::encode_deletion;
use super::view::View;
use super::writer::{Need, Writer};
use crate::error::{Error, Kind, Result};
use crate::format::record::{Record, RecordKind};
use crate::format::table::{Deletion, Operation};
use crate::point::volume::{Begin, Rewrite, StoreInfo, Volume};
use crate::point::{ChunkRange, Identity, PointId, PointSource};
use crate::progress::Progress;
use crate::units::Epoch;

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
            self.ensure_idle()?;
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
        self.sparing(|writer| {
            writer.ensure_space(length, Need::Ordinary)?;
            writer.begin_epoch(RecordKind::Begin, hidden.id, body)
        })
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
        let dead = self.view.count_dead(before)?;
        let deletion = Deletion { id: before, automatic: false, squashed: false, reason: String::new() };
        encode_deletion(&deletion, dead, &mut body);
        self.log(RecordKind::End, body)?;
        self.copied.clear();
        // The next write of this session makes the origin something else again.
        self.origin_touched = false;
        self.sweep_if_due()
    }

    /// The hidden snapshot of the pending operation.
    pub(super) fn pending(&self) -> Result<u64> {
        let pending = self.view.state.operation.as_ref().map(|operation| operation.before);
        pending.ok_or_else(|| Error::new(Kind::NotFound, "no operation is incomplete"))
    }

    /// Refuses while a long operation is pending.
    pub(super) fn ensure_idle(&self) -> Result<()> {
        match &self.view.state.operation {
            None => Ok(()),
            Some(pending) => Err(incomplete(&pending.label)),
        }
    }
}

/// Says that the operation `label` is incomplete.
pub(super) fn incomplete(label: &str) -> Error {
    Error::new(Kind::Busy, format!("'{label}' is incomplete"))
        .hint("finish it with the same command, or undo it with `ddsnap revert --rollback`")
}

impl View {
    /// Size in bytes and content generation of a point; hidden snapshots are points too.
    ///
    /// # Errors
    /// `Kind::NotFound`.
    pub fn measure(&self, point: PointId) -> Result<(u64, u64)> {
        match point {
            PointId::Origin => Ok((self.state.volume.origin_size, self.state.volume.generation)),
            PointId::Snapshot(id) => {
                self.endpoint(id).map(|snapshot| (snapshot.size_bytes, snapshot.generation))
            }
        }
    }

    /// As [`Rewrite::differing`].
    ///
    /// # Errors
    /// As [`Rewrite::differing`].
    pub fn differing(&self, point: PointId, from: u64, most: usize) -> Result<Vec<ChunkRange>> {
        let changes = self.changed(Some(PointId::Origin), point)?;
        let rest = changes.skip_while(|range| range.as_ref().is_ok_and(|range| range.end <= from));
        rest.take(most).collect()
    }
}

impl Rewrite for Writer {
    fn volume(&self) -> &dyn Volume {
        &self.view
    }

    fn now(&self) -> Result<StoreInfo> {
        Ok(self.view.info())
    }

    fn measure(&self, point: PointId) -> Result<(u64, u64)> {
        self.view.measure(point)
    }

    fn differing(&self, point: PointId, from: u64, most: usize) -> Result<Vec<ChunkRange>> {
        self.view.differing(point, from, most)
    }

    fn read_now(&self, point: PointId, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.view.read(point, offset, buf)
    }

    fn rewrite(&mut self, point: PointId, pieces: &[(u64, &[u8])]) -> Result<()> {
        match point {
            PointId::Snapshot(id) => {
                pieces.iter().try_for_each(|(offset, data)| self.write_snapshot(id, *offset, data))
            }
            PointId::Origin if self.view.state.operation.is_some() => self.sparing(|writer| {
                // Also to put back what was there before, when the store is full.
                writer.touch_origin(Need::Reserve)?;
                writer.write_origin_many(pieces)
            }),
            PointId::Origin => self.write_origin_many(pieces),
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.flush_origin()
    }

    fn ensure_room(&mut self, bytes: u64) -> Result<()> {
        self.ensure_room_for(bytes)
    }

    fn begin(&mut self, operation: &Begin) -> Result<()> {
        self.begin_operation(&operation.label, operation.token, operation.forced, operation.pinned)
    }

    fn set_origin_size(&mut self, size: u64, progress: &dyn Progress) -> Result<()> {
        self.sparing(|writer| writer.change_origin_size(size, progress))
    }

    fn end(&mut self, equals: Option<Identity>) -> Result<()> {
        self.end_operation(equals)
    }
}
