//! Index entries on their way into a run: gathered as they come, put in order once, kept in memory while they fit.

use super::workers;
use crate::block::WriteAt;
use crate::error::Result;
use crate::format::run::{IndexEntry, Key, PAGE_BITS};
use crate::store::index::{Loose, MemTable, unite};
use crate::store::merge;
use crate::store::state::{State, bit};

/// Entries collected in memory before they go to a run: some 14 MiB, and the change bits that they prove. Tests write
/// several runs, too.
const MEMORY_ENTRIES: usize = if cfg!(test) { 100 } else { 256 << 10 };

/// What was found of the index. Of several values of a key the last one that was added wins; change bits are united,
/// also with what the exceptions prove.
#[derive(Default)]
pub struct Collected {
    entries: Vec<IndexEntry>,
    changes: MemTable,
    settled: Vec<Loose>,
    superseded: Vec<IndexEntry>,
}

impl Collected {
    /// Adds what is newer than all before it.
    pub fn add(&mut self, (key, value): IndexEntry) {
        match key.class {
            0 | 1 => self.entries.push((key, value)),
            _ => unite(&mut self.changes, key, value.bits()),
        }
    }

    /// Writes all of it out as the newest runs of `state` if it is time to, in the order in which it was settled.
    ///
    /// # Errors
    /// `Kind::NoSpace` if a run does not fit, `Kind::Io`.
    pub fn relieve(&mut self, device: &dyn WriteAt, state: &mut State) -> Result<()> {
        if self.entries.len() + self.changes.len() < MEMORY_ENTRIES {
            return Ok(());
        }
        self.settle(state.take_run_number());
        self.settled.drain(..).rev().try_for_each(|loose| merge::spill(device, state, &loose))
    }

    /// Puts what was added in order, as what would be run `number`: nothing that comes is of it.
    pub fn settle(&mut self, number: u64) {
        // Stable: what came later stays behind what it replaces.
        if !self.entries.is_sorted_by_key(|(key, _)| *key) {
            workers::sort_by_key(&mut self.entries, |(key, _)| *key);
        }
        self.entries.dedup_by(|newer, kept| {
            let same = newer.0 == kept.0;
            if same {
                let older = std::mem::replace(kept, *newer);
                if older != *newer {
                    self.superseded.push(older);
                }
            }
            same
        });
        self.mark_changes();
        let (entries, changes) = (std::mem::take(&mut self.entries), std::mem::take(&mut self.changes));
        self.settled.insert(0, Loose::new(number, entries, changes));
    }

    /// What was settled and is not written out, the newest first.
    pub fn settled(&self) -> &[Loose] {
        &self.settled
    }

    /// Versions that newer ones replaced before they were settled, since the last call.
    pub fn take_superseded(&mut self) -> Vec<IndexEntry> {
        std::mem::take(&mut self.superseded)
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
                        unite(&mut self.changes, done, bits);
                    }
                }
            }
        }
        if let Some((done, bits)) = page {
            unite(&mut self.changes, done, bits);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::record::Encoding;
    use crate::format::run::Value;

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
        collected.settle(1);
        let [loose] = collected.settled() else { panic!("one run") };
        let superseded: Vec<u64> = collected.superseded.iter().map(|(_, value)| value.word).collect();
        assert_eq!(superseded, [1, 2]);
        let found: Vec<_> = loose.entries().iter().map(|(key, value)| (*key, value.word)).collect();
        let exceptions =
            [(5, 7, 4), (6, 8, 4), (7, 7, 4), (200, 7, 3)].map(|(c, e, w)| (Key::exception(c, e), w));
        assert_eq!(found[..4], exceptions);
        assert_eq!(found[4..], [1, 2, 3].map(|word| (Key::overlay(3, word), word)));
        let changes: Vec<_> = loose.changes.iter().map(|(key, value)| (*key, value.bits())).collect();
        let page = |epoch, page, bits: u128| (Key::changes(epoch, page), bits);
        assert_eq!(
            changes,
            [page(7, 0, 1 << 5 | 1 << 7 | 1 << 100), page(7, 1, bit(200)), page(8, 0, 1 << 6)]
        );
    }
}
