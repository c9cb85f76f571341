//! What a rebuild cannot prove: why something may be lost that nothing tells of, and which snapshots may need it.

use super::rebuild::Rebuild;
use super::salvage::Blank;
use crate::format::checkpoint::Segment;
use crate::format::run::{IndexEntry, Key, Value};
use crate::point::finding::{Affected, Code, Finding};
use crate::store::state::{State, digest};
use crate::units::{Epoch, Tag};
use std::collections::BTreeMap;

/// Reasons for doubt that are told one by one.
const DOUBTS_TOLD: usize = 8;

impl Rebuild<'_> {
    pub(super) fn note_revived(&mut self, state: &State, key: Key, value: &Value) {
        if let Some(segment) = state.sb.segment_of(value.word) {
            let epoch = self.revived.entry(segment).or_default();
            *epoch = key.b.max(*epoch);
        }
    }

    /// Exceptions that nothing proves to be the oldest ones of snapshots which read them.
    pub(super) fn doubt_revived(&mut self, lacking: &BTreeMap<u32, u64>) {
        let revived = std::mem::take(&mut self.revived);
        let epochs =
            revived.iter().filter(|(segment, _)| lacking.contains_key(segment)).map(|(_, epoch)| *epoch);
        if let Some(epoch) = epochs.max() {
            self.doubt(epoch, "what was found of deleted snapshots may stand for older chunks that were not");
        }
    }

    /// Something that snapshots up to `epoch` may need is lost.
    pub(super) fn doubt(&mut self, epoch: u64, why: &str) {
        self.doubts.push(why.to_string());
        self.doubtful = self.doubtful.max(epoch);
    }

    /// What the lost parts of the old index may have held, and no other witness told of.
    pub(super) fn doubt_blanks(&mut self, state: &State, blanks: &[Blank], lacking: u64) {
        if lacking == 0 {
            return;
        }
        let before = (self.doubtful, self.doubtful_overlays.len());
        for (from, to) in blanks {
            let overlaps =
                |class: u8| from.class <= class && to.is_none_or(|to| to > Key { class, a: 0, b: 0 });
            if overlaps(1) {
                let (first, last) = (
                    if from.class == 1 { from.a } else { 0 },
                    to.filter(|to| to.class == 1).map_or(u64::MAX, |to| to.a),
                );
                let written = state.snapshots.range(first..=last).filter(|(_, row)| row.generation > 0);
                self.doubtful_overlays.extend(written.map(|(id, _)| *id));
            }
            if overlaps(2) {
                let last = to.map_or(u64::MAX, |to| to.a);
                self.doubtful = self.doubtful.max(last.min(state.epoch));
            }
        }
        if before != (self.doubtful, self.doubtful_overlays.len()) {
            self.doubts.push(format!(
                "{lacking} chunks that must exist were not found, and parts of the index are lost"
            ));
        }
    }

    /// Marks the snapshots in doubt; a finding if there are any.
    pub(super) fn taint(&self, state: &mut State, now_secs: i64) -> Option<Finding> {
        if self.doubts.is_empty() {
            return None;
        }
        let mut affected = Vec::new();
        for snapshot in state.snapshots.values_mut() {
            if snapshot.id <= self.doubtful || self.doubtful_overlays.contains(&snapshot.id) {
                snapshot.tainted = true;
                let tag = (!snapshot.hidden).then_some(Tag(snapshot.tag));
                affected.push(Affected { id: Epoch(snapshot.id), tag, ranges: Vec::new(), more: 0 });
            }
        }
        let mut text = self.doubts.get(..DOUBTS_TOLD).unwrap_or(&self.doubts).join("; ");
        if let Some(more) = self.doubts.len().checked_sub(DOUBTS_TOLD).filter(|more| *more > 0) {
            text += &format!("; and {more} more of the kind");
        }
        let event = format!("rebuilt, snapshots uncertain: {text}");
        state.events.push((now_secs, event.chars().take(1000).collect()));
        Some(Finding::new(Code::Uncertain, text).concerning(affected))
    }
}

/// How many entries that must exist were not found, by segment: what was found in each against what must be there.
/// At least one where they differ: what was found too much can hide what was not.
pub(super) fn lacking(
    state: &State,
    expected: &BTreeMap<u32, Segment>,
    superseded: &[IndexEntry],
) -> BTreeMap<u32, u64> {
    // A version that a newer one replaced may or may not have been merged away when the checkpoint was made.
    let mut older: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
    for (key, value) in superseded {
        if let Some(segment) = state.sb.segment_of(value.word) {
            let slot = older.entry(segment).or_default();
            slot.0 += 1;
            slot.1 = slot.1.wrapping_add(digest(*key, value));
        }
    }
    let mut lacking = BTreeMap::new();
    for (number, must) in expected {
        let has = state.segments.get(number).map_or((0, 0), |segment| (segment.count, segment.digest));
        let (count, sum) = older.get(number).copied().unwrap_or((0, 0));
        let with_older = (has.0 + count, has.1.wrapping_add(sum));
        let want = (must.count, must.digest);
        if has != want && with_older != want {
            lacking.insert(*number, must.count.saturating_sub(has.0).max(1));
        }
    }
    lacking
}
