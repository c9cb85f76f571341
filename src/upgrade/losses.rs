//! What cannot be read.

use super::units::Want;
use crate::point::finding::Affected;
use crate::point::volume::SnapshotInfo;
use crate::units::Epoch;
use std::collections::BTreeMap;

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
            let last = (want.chunk + want.count - 1) << bits;
            let end = (last + u64::from(want.length)).min(snapshot.size_bytes);
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
