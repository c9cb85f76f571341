//! Chunks that are gone, and the snapshots that needed them.

use crate::error::Result;
use crate::format::run::{Key, Value};
use crate::point::finding::Affected;
use crate::store::state::keeper;
use crate::store::view::View;
use crate::units::{Epoch, Tag};

/// A preserved chunk whose bytes are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone {
    /// Which: an exception or an overlay.
    pub key: Key,
    /// Its bytes after decoding.
    pub raw_length: u32,
    /// What their checksum would be; 0 if nothing tells.
    pub crc: u32,
}

impl Gone {
    /// What an index entry led to.
    pub fn of(key: Key, value: &Value) -> Self {
        Self { key, raw_length: value.raw_length, crc: value.crc }
    }

    fn chunk(&self) -> u64 {
        if self.key.class == 0 { self.key.a } else { self.key.b }
    }
}

/// The snapshots that read one of `gone`, with the byte ranges of each. Sorts `gone` by chunk.
///
/// # Errors
/// `Kind::Io`, `Kind::Damaged` if the index cannot be read.
pub fn affected(view: &View, gone: &mut [Gone]) -> Result<Vec<Affected>> {
    gone.sort_unstable_by_key(|gone| (gone.chunk(), gone.key));
    let snapshots = view.state.snapshots.values().filter(|snapshot| !snapshot.squashed);
    let mut found: Vec<(Affected, u64)> = snapshots
        .map(|snapshot| {
            let tag = (!snapshot.hidden).then_some(Tag(snapshot.tag));
            let none = Affected { id: Epoch(snapshot.id), tag, ranges: Vec::new(), more: 0 };
            (none, snapshot.size_bytes)
        })
        .collect();
    let bits = view.state.sb.chunk_bits;
    for one in gone.iter() {
        let chunk = one.chunk();
        let readers = match one.key.class {
            0 => before(view, one.key)?..one.key.b,
            _ => one.key.a - 1..one.key.a,
        };
        let first = found.partition_point(|(affected, _)| affected.id.0 <= readers.start);
        for (affected, size) in found.iter_mut().skip(first) {
            if affected.id.0 > readers.end {
                break;
            }
            let range = chunk << bits..((chunk + 1) << bits).min(*size);
            let own = one.key.class == 0 && has_overlay(view, affected.id.0, chunk)?;
            if !own && !range.is_empty() {
                affected.push(range);
            }
        }
    }
    found.retain(|(affected, _)| !affected.ranges.is_empty());
    Ok(found.into_iter().map(|(affected, _)| affected).collect())
}

/// Leaves in `gone`, which the index of `view` says is lost, what some snapshot needs; the index forgets the rest.
///
/// # Errors
/// As [`affected`].
pub fn keep_needed(view: &mut View, gone: &mut Vec<Gone>) -> Result<()> {
    let live = view.state.live_ids();
    let mut needed = Vec::with_capacity(gone.len());
    for one in gone.iter() {
        needed.push(match one.key.class {
            0 => keeper(&live, before(view, one.key)?, one.key.b).is_some(),
            _ => live.binary_search(&one.key.a).is_ok(),
        });
    }
    let mut needed = needed.into_iter();
    gone.retain(|one| {
        let keep = needed.next().unwrap_or(true);
        if !keep {
            view.state.memory.remove(&one.key);
        }
        keep
    });
    Ok(())
}

/// The largest epoch before that of `key` with an exception of the same chunk; 0 if there is none.
fn before(view: &View, key: Key) -> Result<u64> {
    let mut last = 0;
    let mut scan = view.index().scan(Key::exception(key.a, 0))?;
    while let Some((found, _)) = scan.next_entry()?.filter(|(found, _)| *found < key) {
        last = found.b;
    }
    Ok(last)
}

/// True if something was written at `chunk` of snapshot `id`.
///
/// # Errors
/// As [`affected`].
pub fn has_overlay(view: &View, id: u64, chunk: u64) -> Result<bool> {
    if view.state.snapshots.get(&id).is_none_or(|snapshot| snapshot.generation == 0) {
        return Ok(false);
    }
    let key = Key::overlay(id, chunk);
    Ok(view.index().scan(key)?.next_entry()?.is_some_and(|(found, _)| found == key))
}
