//! The origin back to what a snapshot holds, and back from a long operation that is given up.

use super::writer::{Need, Writer};
use crate::error::Result;
use crate::point::{ChunkRange, Identity, PointId, PointSource};
use crate::progress::Progress;
use crate::units::{Epoch, index};

/// Bytes compared at a time and put back by one commit.
const STEP: u64 = 4 << 20;
/// Changed ranges held in memory at a time: 16 MiB.
const RANGES_MAX: usize = 1 << 20;

/// What a revert changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reverted {
    /// Bytes of the origin, in whole chunks, that differ from the snapshot.
    pub changed_bytes: u64,
    /// Size of the origin before, in bytes.
    pub size_before: u64,
    /// Size of the snapshot, which the origin takes on.
    pub size_after: u64,
    /// True if an earlier revert that was interrupted is gone on with.
    pub resumed: bool,
}

impl Reverted {
    /// Bytes of the origin that the store must take in first: what changes, and what is cut off.
    #[must_use]
    pub fn preserved_bytes(&self) -> u64 {
        self.changed_bytes.saturating_add(self.size_before.saturating_sub(self.size_after))
    }
}

impl Writer {
    /// What reverting to snapshot `to` would change. Reads what may differ on both sides.
    ///
    /// # Errors
    /// `Kind::NotFound`, `Kind::Busy` if another operation is pending, `Kind::Io`, `Kind::Damaged`,
    /// `Kind::Interrupted`.
    pub fn plan_revert(&self, to: Epoch, progress: &dyn Progress) -> Result<Reverted> {
        let identity = self.identity(to)?;
        let pending = self.view.state.operation.as_ref();
        if pending.is_some_and(|pending| pending.token != token(&identity)) {
            self.ensure_idle()?;
        }
        let resumed = pending.is_some();
        let (size_before, size_after) =
            (self.view.state.volume.origin_size, self.view.endpoint(to)?.size_bytes);
        let mut changed_bytes = size_after.saturating_sub(size_before);
        let point = PointId::Snapshot(to);
        let shared = size_before.min(size_after);
        progress.stage("compare", None);
        for range in self.view.changed(Some(PointId::Origin), point)? {
            for (start, end) in steps(&[range?], self.view.state.sb.chunk_bits, shared) {
                progress.check()?;
                let pieces = self.differences(point, start, end)?;
                changed_bytes += pieces.iter().map(|(_, data)| data.len() as u64).sum::<u64>();
                progress.advance(end - start);
            }
        }
        Ok(Reverted { changed_bytes, size_before, size_after, resumed })
    }

    /// Makes the origin what snapshot `to` holds, its size included. All snapshots keep what they hold; none is
    /// given up. An interrupted revert is resumed by the same call, or undone by [`Writer::roll_back`]. Durable
    /// when this returns; the store then knows that the origin equals the snapshot.
    ///
    /// # Errors
    /// `Kind::NotFound`; `Kind::Busy` if another operation is pending; `Kind::NoSpace` if the store cannot
    /// preserve what the snapshots need of the origin, `Kind::Mismatch` if the origin's device is too small:
    /// nothing has changed then. `Kind::Io`, `Kind::Damaged`, `Kind::Interrupted` leave it resumable.
    pub fn revert(&mut self, to: Epoch, progress: &dyn Progress) -> Result<Reverted> {
        let plan = self.plan_revert(to, progress)?;
        let identity = self.identity(to)?;
        self.need_origin()?;
        if !plan.resumed {
            self.ensure_room_for(plan.preserved_bytes())?;
            let label = format!("revert to snapshot {}", self.view.endpoint(to)?.tag);
            self.begin_operation(&label, token(&identity), false, Some(to))?;
        }
        progress.stage("revert", Some(plan.changed_bytes));
        self.sparing(|writer| writer.restore(PointId::Snapshot(to), Need::Ordinary, progress))?;
        self.end_operation(Some(identity))?;
        Ok(plan)
    }

    /// Puts the origin back to where it was before the pending operation, then ends it. Interruptible and
    /// repeatable; needs no room in the store. Returns the number of bytes put back.
    ///
    /// # Errors
    /// `Kind::NotFound` if none is pending; `Kind::Io`, `Kind::Damaged`, `Kind::Interrupted`.
    pub fn roll_back(&mut self, progress: &dyn Progress) -> Result<u64> {
        let before = Epoch(self.pending()?);
        progress.stage("roll back", None);
        // What goes back was copied out already: a full store must not keep the origin half changed.
        let point = PointId::Snapshot(before);
        let total = self.sparing(|writer| writer.restore(point, Need::Reserve, progress))?;
        self.end_operation(None)?;
        Ok(total)
    }

    /// Makes the origin what `point` holds, within a long operation. Returns the bytes written.
    fn restore(&mut self, point: PointId, need: Need, progress: &dyn Progress) -> Result<u64> {
        let size = self.view.size_of(point)?;
        if size > self.view.state.volume.origin_size {
            self.change_origin_size(size, progress)?;
        }
        let (mut total, mut from) = (0, 0);
        // What a larger point has beyond the origin's old end was preserved when the origin was made smaller, and
        // is listed as changed since then.
        while let Some(ranges) = self.ranges_from(point, from)? {
            from = ranges.last().map_or(u64::MAX, |range| range.end);
            for (start, end) in steps(&ranges, self.view.state.sb.chunk_bits, size) {
                progress.check()?;
                let pieces = self.differences(point, start, end)?;
                if pieces.is_empty() {
                    continue;
                }
                self.touch_origin(need)?;
                let pieces: Vec<_> = pieces.iter().map(|(at, data)| (*at, data.as_slice())).collect();
                self.write_origin_many(&pieces)?;
                let bytes = pieces.iter().map(|(_, data)| data.len() as u64).sum();
                total += bytes;
                progress.advance(bytes);
            }
        }
        if size < self.view.state.volume.origin_size {
            self.change_origin_size(size, progress)?;
        }
        Ok(total)
    }

    /// The next changed ranges of `point` against the origin from chunk `from` on, as many as may be held in
    /// memory; `None` at the end.
    fn ranges_from(&self, point: PointId, from: u64) -> Result<Option<Vec<ChunkRange>>> {
        let changes = self.view.changed(Some(PointId::Origin), point)?;
        let rest = changes.skip_while(|range| range.as_ref().is_ok_and(|range| range.end <= from));
        let ranges: Vec<ChunkRange> = rest.take(RANGES_MAX).collect::<Result<_>>()?;
        Ok((!ranges.is_empty()).then_some(ranges))
    }

    /// The chunks of `start..end` (bytes) that `point` and the origin do not hold alike, as the point has them.
    fn differences(&self, point: PointId, start: u64, end: u64) -> Result<Vec<(u64, Vec<u8>)>> {
        let mut wanted = vec![0; index(end - start)];
        self.view.read(point, start, &mut wanted)?;
        let mut found = vec![0; wanted.len()];
        self.view.read(PointId::Origin, start, &mut found)?;
        let chunk = self.view.state.sb.chunk_size() as usize;
        let mut pieces: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut at = start;
        for (wanted, found) in wanted.chunks(chunk).zip(found.chunks(chunk)) {
            if wanted != found {
                match pieces.last_mut() {
                    Some((offset, data)) if *offset + data.len() as u64 == at => {
                        data.extend_from_slice(wanted)
                    }
                    _ => pieces.push((at, wanted.to_vec())),
                }
            }
            at += wanted.len() as u64;
        }
        Ok(pieces)
    }

    fn identity(&self, snapshot: Epoch) -> Result<Identity> {
        let generation = self.view.endpoint(snapshot)?.generation;
        Ok(Identity { volume: self.view.state.volume.volume, id: snapshot.0, generation })
    }
}

/// Cuts `ranges` of chunks into pieces of bytes, none longer than a step or beyond `size`.
fn steps(ranges: &[ChunkRange], chunk_bits: u32, size: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
    ranges.iter().flat_map(move |range| {
        let end = (range.end << chunk_bits).min(size);
        (range.start << chunk_bits..end)
            .step_by(index(STEP))
            .map(move |start| (start, (start + STEP).min(end)))
    })
}

/// Names the revert to a point, so that a resume is recognised.
fn token(to: &Identity) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"revert");
    hasher.update(&to.volume.0);
    hasher.update(&to.id.to_le_bytes());
    hasher.update(&to.generation.to_le_bytes());
    *hasher.finalize().as_bytes()
}
