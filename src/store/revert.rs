//! The origin back to what a snapshot holds, and back from a long operation that is given up.

use super::operation::incomplete;
use super::writer::Writer;
use crate::error::{Error, Kind, Result};
use crate::point::volume::{Begin, PendingOperation, Rewrite};
use crate::point::{ChunkRange, Identity, PointId};
use crate::progress::Progress;
use crate::units::{Epoch, Tag, index};

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
    /// As [`plan_revert`].
    ///
    /// # Errors
    /// As [`plan_revert`].
    pub fn plan_revert(&self, to: Epoch, progress: &dyn Progress) -> Result<Reverted> {
        plan_revert(self, to, progress)
    }

    /// As [`revert`].
    ///
    /// # Errors
    /// As [`revert`].
    pub fn revert(&mut self, to: Epoch, progress: &dyn Progress) -> Result<Reverted> {
        revert(self, to, progress)
    }

    /// As [`roll_back`].
    ///
    /// # Errors
    /// As [`roll_back`].
    pub fn roll_back(&mut self, progress: &dyn Progress) -> Result<u64> {
        roll_back(self, progress)
    }
}

/// What reverting to snapshot `to` would change. Reads what may differ on both sides.
///
/// # Errors
/// `Kind::NotFound`, `Kind::Busy` if another operation is pending, `Kind::Io`, `Kind::Damaged`,
/// `Kind::Interrupted`.
pub fn plan_revert(volume: &dyn Rewrite, to: Epoch, progress: &dyn Progress) -> Result<Reverted> {
    let info = volume.now()?;
    let point = PointId::Snapshot(to);
    let (size_after, generation) = volume.measure(point)?;
    let identity = Identity { volume: info.volume, id: to.0, generation };
    if let Some(pending) = info.pending.as_ref().filter(|pending| pending.token != token(&identity)) {
        return Err(incomplete(&pending.label));
    }
    let (resumed, size_before) = (info.pending.is_some(), info.origin_size);
    progress.stage("compare", None);
    let shared = size_before.min(size_after);
    let changed_bytes = differing_bytes(volume, point, shared, progress)?;
    let changed_bytes = changed_bytes.saturating_add(size_after.saturating_sub(size_before));
    Ok(Reverted { changed_bytes, size_before, size_after, resumed })
}

/// Bytes, in whole chunks, of the first `size` ones of `point` that the origin has not alike.
///
/// # Errors
/// `Kind::Io`, `Kind::Damaged`, `Kind::Interrupted`.
pub fn differing_bytes(
    volume: &dyn Rewrite,
    point: PointId,
    size: u64,
    progress: &dyn Progress,
) -> Result<u64> {
    let chunk_bits = volume.volume().chunk_bits();
    let (mut total, mut from) = (0, 0);
    loop {
        let ranges = volume.differing(point, from, RANGES_MAX)?;
        let Some(last) = ranges.last() else { return Ok(total) };
        from = last.end;
        for (start, end) in steps(&ranges, chunk_bits, size) {
            progress.check()?;
            let pieces = differences(volume, point, start, end)?;
            total += pieces.iter().map(|(_, data)| data.len() as u64).sum::<u64>();
            progress.advance(end - start);
        }
    }
}

/// Makes the origin what snapshot `to` holds, its size included. All snapshots keep what they hold; none is
/// given up. An interrupted revert is resumed by the same call, or undone by [`roll_back`]. Durable
/// when this returns; the store then knows that the origin equals the snapshot.
///
/// # Errors
/// `Kind::NotFound`; `Kind::Busy` if another operation is pending; `Kind::NoSpace` if the store cannot
/// preserve what the snapshots need of the origin, `Kind::Mismatch` if the origin's device is too small:
/// nothing has changed then. `Kind::Io`, `Kind::Damaged`, `Kind::Interrupted` leave it resumable.
pub fn revert(volume: &mut dyn Rewrite, to: Epoch, progress: &dyn Progress) -> Result<Reverted> {
    let plan = plan_revert(volume, to, progress)?;
    let point = PointId::Snapshot(to);
    let generation = volume.measure(point)?.1;
    let identity = Identity { volume: volume.now()?.volume, id: to.0, generation };
    if !plan.resumed {
        volume.ensure_room(plan.preserved_bytes())?;
    }
    let snapshots = volume.volume().snapshots();
    let tag = snapshots.iter().find(|snapshot| snapshot.id == to).map_or(Tag(0), |snapshot| snapshot.tag);
    let label = format!("revert to snapshot {tag}");
    volume.begin(&Begin { label, token: token(&identity), forced: false, pinned: Some(to) })?;
    progress.stage("revert", Some(plan.changed_bytes));
    restore(volume, point, progress)?;
    volume.end(Some(identity))?;
    Ok(plan)
}

/// Puts the origin back to where it was before the pending operation, then ends it. Interruptible and
/// repeatable; needs no room in the store. Returns the number of bytes put back.
///
/// # Errors
/// `Kind::NotFound` if none is pending; `Kind::Io`, `Kind::Damaged`, `Kind::Interrupted`.
pub fn roll_back(volume: &mut dyn Rewrite, progress: &dyn Progress) -> Result<u64> {
    let pending = volume.now()?.pending;
    let pending = pending.ok_or_else(|| Error::new(Kind::NotFound, "no operation is incomplete"))?;
    // From here on it is this one's, whoever began it.
    let PendingOperation { before, pinned, label, token, forced } = pending;
    volume.begin(&Begin { label, token, forced, pinned })?;
    progress.stage("roll back", None);
    // What goes back was copied out already: a full store must not keep the origin half changed.
    let total = restore(volume, PointId::Snapshot(before), progress)?;
    volume.end(None)?;
    Ok(total)
}

/// Makes the origin what `point` holds, within a long operation. Returns the bytes written.
fn restore(volume: &mut dyn Rewrite, point: PointId, progress: &dyn Progress) -> Result<u64> {
    let chunk_bits = volume.volume().chunk_bits();
    let size = volume.measure(point)?.0;
    if size > volume.now()?.origin_size {
        volume.set_origin_size(size, progress)?;
    }
    let (mut total, mut from) = (0, 0);
    // What a larger point has beyond the origin's old end was preserved when the origin was made smaller, and
    // is listed as changed since then.
    loop {
        let ranges = volume.differing(point, from, RANGES_MAX)?;
        let Some(last) = ranges.last() else { break };
        from = last.end;
        for (start, end) in steps(&ranges, chunk_bits, size) {
            progress.check()?;
            let pieces = differences(volume, point, start, end)?;
            if pieces.is_empty() {
                continue;
            }
            let pieces: Vec<_> = pieces.iter().map(|(at, data)| (*at, data.as_slice())).collect();
            volume.rewrite(PointId::Origin, &pieces)?;
            let bytes = pieces.iter().map(|(_, data)| data.len() as u64).sum();
            total += bytes;
            progress.advance(bytes);
        }
    }
    if size < volume.now()?.origin_size {
        volume.set_origin_size(size, progress)?;
    }
    Ok(total)
}

/// The chunks of `start..end` (bytes) that `point` and the origin do not hold alike, as the point has them.
fn differences(volume: &dyn Rewrite, point: PointId, start: u64, end: u64) -> Result<Vec<(u64, Vec<u8>)>> {
    let mut wanted = vec![0; index(end - start)];
    volume.read_now(point, start, &mut wanted)?;
    let mut found = vec![0; wanted.len()];
    volume.read_now(PointId::Origin, start, &mut found)?;
    let chunk = 1 << volume.volume().chunk_bits();
    let mut pieces: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut at = start;
    for (wanted, found) in wanted.chunks(chunk).zip(found.chunks(chunk)) {
        if wanted != found {
            match pieces.last_mut() {
                Some((offset, data)) if *offset + data.len() as u64 == at => data.extend_from_slice(wanted),
                _ => pieces.push((at, wanted.to_vec())),
            }
        }
        at += wanted.len() as u64;
    }
    Ok(pieces)
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
