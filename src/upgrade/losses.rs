//! What cannot be read, and what can be read but not believed.

use super::units::Want;
use crate::point::finding::{Affected, Code, Finding};
use crate::point::volume::SnapshotInfo;
use crate::units::Epoch;
use std::collections::BTreeMap;
use std::ops::Range;

/// What is lost of one snapshot.
#[derive(Debug, Clone)]
pub struct Loss {
    /// Which snapshot, and which bytes of it.
    pub affected: Affected,
    /// Bytes in all.
    pub bytes: u64,
}

/// What is lost of the snapshots.
#[derive(Debug, Clone, Default)]
pub struct Losses {
    snapshots: BTreeMap<Epoch, Loss>,
}

impl Losses {
    /// True if nothing is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.snapshots.is_empty()
    }

    /// The losses, the oldest snapshot first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Loss> {
        self.snapshots.values()
    }

    /// Notes that `want` is lost, in a store with chunks of 2^`bits` bytes.
    pub(super) fn add(&mut self, want: &Want, bits: u32, snapshots: &[SnapshotInfo]) {
        let start = want.chunk << bits;
        for (at, snapshot) in snapshots.iter().enumerate() {
            let end = (start + u64::from(want.length)).min(snapshot.size_bytes);
            if want.readers >> at & 1 == 0 || end <= start {
                continue;
            }
            let loss = self.snapshots.entry(snapshot.id).or_insert_with(|| {
                let affected =
                    Affected { id: snapshot.id, tag: Some(snapshot.tag), ranges: Vec::new(), more: 0 };
                Loss { affected, bytes: 0 }
            });
            loss.bytes += end - start;
            loss.affected.push(start..end);
        }
    }
}

/// What a check of the old store found that reading it does not show: it would give bytes that may be wrong.
#[derive(Debug, Clone, Default)]
pub struct Doubts {
    findings: Vec<Finding>,
}

impl Doubts {
    /// The doubts in `findings`. An interrupted deletion is none: its snapshot is tainted anyway.
    #[must_use]
    pub fn of(findings: &[Finding]) -> Self {
        let doubtful =
            [Code::LegacyUnrecovered, Code::LegacyRoot, Code::LegacyShareTwice, Code::LegacyChunkTwice];
        let found = findings.iter().filter(|finding| doubtful.contains(&finding.code));
        Self { findings: found.cloned().collect() }
    }

    /// What was found.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    fn affected(&self, id: Epoch) -> impl Iterator<Item = &Affected> {
        self.findings.iter().flat_map(|finding| &finding.affected).filter(move |affected| affected.id == id)
    }

    /// True if one of these bytes of snapshot `id` may be wrong.
    pub(super) fn concern(&self, id: Epoch, bytes: &Range<u64>) -> bool {
        let overlaps = |range: &Range<u64>| range.start < bytes.end && bytes.start < range.end;
        self.affected(id).any(|affected| affected.ranges.iter().any(overlaps))
    }

    /// True if anything of snapshot `id` may be wrong, and nothing tells what.
    pub(super) fn taint(&self, id: Epoch) -> bool {
        self.affected(id).any(|affected| affected.ranges.is_empty() || affected.more > 0)
    }
}
