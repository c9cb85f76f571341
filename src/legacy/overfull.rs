//! Leaves that the original made when a chunk had more exceptions than fit one.
//!
//! It left the old ones alone in their leaf and put the new one, for all snapshots, into a second leaf with a key that
//! is out of order; what came later went into the second one, too. What else has such keys is damaged.

use crate::format::legacy::tree::{Entry, Exception, Leaf};
use std::collections::BTreeMap;

/// True if `parts`, all leaves for the same chunks, are what the original made.
pub(super) fn is(parts: &[Leaf]) -> bool {
    parts.windows(2).all(|pair| {
        let [old, new] = pair else { return false };
        // Nothing but the chunk was in a leaf that had no room for it.
        let ([only], Some(first)) = (old.entries.as_slice(), new.entries.first()) else { return false };
        let shares = |list: &[Exception]| list.iter().fold(0, |mask, exception| mask | exception.share);
        let (before, after) = (old.of(only), new.of(first));
        // The same place in both would be a copy of the leaf.
        let is_copy = after.iter().any(|new| before.iter().any(|old| old.physical == new.physical));
        first.chunk == only.chunk && !is_copy && shares(before) & !shares(after) == 0
    })
}

/// One leaf of several for the same chunks: what an earlier one says of a snapshot counts.
pub(super) fn together(parts: &[Leaf]) -> Leaf {
    let mut chunks: BTreeMap<u32, Vec<Exception>> = BTreeMap::new();
    for part in parts {
        for entry in &part.entries {
            let list = chunks.entry(entry.chunk).or_default();
            let said = list.iter().fold(0, |mask, exception| mask | exception.share);
            let new = part
                .of(entry)
                .iter()
                .map(|exception| Exception { share: exception.share & !said, ..*exception });
            list.extend(new.filter(|exception| exception.share != 0));
        }
    }
    let mut leaf = Leaf::default();
    for (chunk, exceptions) in chunks {
        let start = leaf.exceptions.len();
        leaf.exceptions.extend(exceptions);
        leaf.entries.push(Entry { chunk, range: start..leaf.exceptions.len() });
    }
    leaf
}
