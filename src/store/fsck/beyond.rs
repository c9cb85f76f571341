//! Chunks of snapshots that lie where the origin ends by now: without an exception they are gone for certain.

use super::gone::{Gone, has_overlay};
use crate::error::Result;
use crate::format::run::Key;
use crate::progress::Progress;
use crate::store::view::View;
use std::ops::Range;

/// As many are told at once: a large volume whose size is all that is wrong must not take all memory.
const MOST: usize = 1 << 20;

/// Adds the chunks that no exception preserved to what is `missing`, as the exceptions they must have been; the first
/// [`MOST`].
///
/// # Errors
/// `Kind::Io`, `Kind::Damaged` if the index cannot be read, `Kind::Interrupted`.
pub fn add_beyond(view: &View, missing: &mut Vec<Gone>, progress: &dyn Progress) -> Result<()> {
    missing.extend(beyond(view, progress)?);
    missing.sort_unstable_by_key(|gone| gone.key);
    missing.dedup_by_key(|gone| gone.key);
    Ok(())
}

fn beyond(view: &View, progress: &dyn Progress) -> Result<Vec<Gone>> {
    let (bits, origin) = (view.state.sb.chunk_bits, view.state.volume.origin_size);
    let snapshots = view.state.snapshots.values().filter(|snapshot| !snapshot.squashed);
    let larger = snapshots.filter(|snapshot| snapshot.size_bytes > origin);
    // Each with its end, in chunks, the newest first.
    let mut larger: Vec<(u64, u64)> =
        larger.map(|snapshot| (snapshot.id, snapshot.size_bytes.div_ceil(1 << bits))).collect();
    larger.reverse();
    let end = larger.iter().map(|(_, end)| *end).max().unwrap_or(0);
    let mut gone = Vec::new();
    let mut next = origin >> bits;
    let mut scan = view.index().scan(Key::exception(next, 0))?;
    // The newest exception of the chunk that the scan is at.
    let mut at: Option<(u64, u64)> = None;
    while gone.len() < MOST && next < end {
        let entry = scan.next_entry()?.filter(|(key, _)| key.class == 0).map(|(key, _)| (key.a, key.b));
        match (at, entry) {
            (Some((chunk, _)), Some((same, epoch))) if chunk == same => at = Some((chunk, epoch)),
            _ => {
                if let Some((chunk, newest)) = at {
                    next = chunk + 1;
                    unpreserved(view, &larger, chunk..next, newest, &mut gone)?;
                }
                let until = entry.map_or(end, |(chunk, _)| chunk.min(end));
                unpreserved(view, &larger, next..until, 0, &mut gone)?;
                next = next.max(until);
                at = entry;
                progress.check()?;
            }
        }
        if at.is_none() {
            break;
        }
    }
    Ok(gone)
}

/// Adds those of `chunks` that some snapshot has after epoch `newest`, up to which they are preserved.
fn unpreserved(
    view: &View,
    larger: &[(u64, u64)],
    chunks: Range<u64>,
    newest: u64,
    gone: &mut Vec<Gone>,
) -> Result<()> {
    for chunk in chunks {
        if gone.len() == MOST {
            break;
        }
        for (id, _) in larger.iter().filter(|(id, end)| *id > newest && *end > chunk) {
            // What was written there is all that it has; an older one may still need the chunk.
            if !has_overlay(view, *id, chunk)? {
                let key = Key::exception(chunk, *id);
                gone.push(Gone { key, raw_length: view.state.sb.chunk_size(), crc: 0 });
                break;
            }
        }
    }
    Ok(())
}
