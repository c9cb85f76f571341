//! Index entries on their way into a run: gathered as they come, put in order once.

use crate::block::WriteAt;
use crate::error::Result;
use crate::format::run::{IndexEntry, Key, PAGE_BITS, Value};
use crate::store::merge;
use crate::store::state::{State, bit};
use std::collections::BTreeMap;

/// Entries collected in memory before they go to a run: some 10 MiB, and the change bits that they prove. Tests write
/// several runs, too.
pub const MEMORY_ENTRIES: usize = if cfg!(test) { 100 } else { 256 << 10 };

/// What was found of the index. Of several values of a key the last one that was added wins; change bits are united,
/// also with what the exceptions prove.
#[derive(Default)]
pub struct Collected {
    entries: Vec<IndexEntry>,
    changes: BTreeMap<Key, u128>,
}

impl Collected {
    /// Adds what is newer than all before it.
    pub fn add(&mut self, (key, value): IndexEntry) {
        match key.class {
            0 | 1 => self.entries.push((key, value)),
            _ => *self.changes.entry(key).or_default() |= value.bits(),
        }
    }

    /// True if it is time to write it out.
    pub fn is_full(&self) -> bool {
        self.entries.len() + self.changes.len() >= MEMORY_ENTRIES
    }

    /// Writes it out as the newest run of `state`, and is empty again. Returns versions that newer ones replaced.
    ///
    /// # Errors
    /// `Kind::NoSpace` if the run does not fit, `Kind::Io`.
    pub fn flush(&mut self, device: &dyn WriteAt, state: &mut State) -> Result<Vec<IndexEntry>> {
        let superseded = self.settle();
        let changes = self.changes.iter().map(|(key, bits)| (*key, Value::from_bits(*bits)));
        let mut all = self.entries.iter().copied().chain(changes).map(Ok);
        merge::write_run(device, state, &mut all)?;
        self.entries.clear();
        self.changes.clear();
        Ok(superseded)
    }

    /// Puts the entries in order, each key once. Returns versions that newer ones replaced.
    fn settle(&mut self) -> Vec<IndexEntry> {
        let mut superseded = Vec::new();
        // Stable: what came later stays behind what it replaces.
        if !self.entries.is_sorted_by_key(|(key, _)| *key) {
            self.entries.sort_by_key(|(key, _)| *key);
        }
        self.entries.dedup_by(|newer, kept| {
            let same = newer.0 == kept.0;
            if same {
                let older = std::mem::replace(kept, *newer);
                if older != *newer {
                    superseded.push(older);
                }
            }
            same
        });
        self.mark_changes();
        superseded
    }

    /// Unites the change bits with those that the exceptions prove.
    fn mark_changes(&mut self) {
        // Neighbours mostly share a page: one look-up for all of them.
        let mut page: Option<(Key, u128)> = None;
        for (key, _) in self.entries.iter().take_while(|(key, _)| key.class == 0) {
            let here = Key::changes(key.b, key.a >> PAGE_BITS);
            match &mut page {
                Some((found, bits)) if *found == here => *bits |= bit(key.a),
                _ => {
                    if let Some((done, bits)) = page.replace((here, bit(key.a))) {
                        *self.changes.entry(done).or_default() |= bits;
                    }
                }
            }
        }
        if let Some((done, bits)) = page {
            *self.changes.entry(done).or_default() |= bits;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::record::Encoding;

    fn value(word: u64) -> Value {
        Value { word, crc: 0, raw_length: 1, stored_length: 1, encoding: Encoding::Raw }
    }

    #[test]
    fn the_last_value_wins_and_change_bits_are_united() {
        let mut collected = Collected::default();
        for word in [1, 2, 2, 3] {
            collected.add((Key::exception(200, 7), value(word)));
            collected.add((Key::overlay(3, word), value(word)));
        }
        collected.add((Key::exception(5, 7), value(4)));
        collected.add((Key::exception(6, 8), value(4)));
        collected.add((Key::exception(7, 7), value(4)));
        collected.add((Key::changes(7, 0), Value::from_bits(1 << 100)));
        let superseded: Vec<u64> = collected.settle().iter().map(|(_, value)| value.word).collect();
        assert_eq!(superseded, [1, 2]);
        let found: Vec<_> = collected.entries.iter().map(|(key, value)| (*key, value.word)).collect();
        let exceptions =
            [(5, 7, 4), (6, 8, 4), (7, 7, 4), (200, 7, 3)].map(|(c, e, w)| (Key::exception(c, e), w));
        assert_eq!(found[..4], exceptions);
        assert_eq!(found[4..], [1, 2, 3].map(|word| (Key::overlay(3, word), word)));
        let changes: Vec<_> = collected.changes.into_iter().collect();
        let page = |epoch, page, bits: u128| (Key::changes(epoch, page), bits);
        assert_eq!(
            changes,
            [page(7, 0, 1 << 5 | 1 << 7 | 1 << 100), page(7, 1, bit(200)), page(8, 0, 1 << 6)]
        );
    }
}
