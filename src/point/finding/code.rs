//! The codes of findings: what each means, and what mends it.

use super::{Repair, Severity};
use std::fmt;

/// What can be found. The names are stable: scripts may rely on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Code {
    /// One superblock copy is damaged.
    SuperblockCopy,
    /// The superblock copies are of different generations.
    SuperblockDiffers,
    /// No superblock copy is sound.
    SuperblockLost,
    /// The device ends before the store does.
    StoreTruncated,
    /// One copy of the checkpoint is damaged.
    CheckpointCopy,
    /// Neither copy of the checkpoint is sound.
    CheckpointLost,
    /// The log breaks off before its end.
    LogBroken,
    /// A block of the index is damaged.
    IndexDamaged,
    /// Two things claim the same bytes of the store.
    DoubleUse,
    /// The index and the checkpoint count differently.
    SpaceCount,
    /// A preserved chunk is not among the changes of its epoch.
    ChangesIncomplete,
    /// A chunk is among the changes, and the index has no entry for it.
    ChunkMissing,
    /// A preserved chunk does not hold its checksum.
    ChunkDamaged,
    /// The medium does not give a preserved chunk back.
    ChunkUnreadable,
    /// A preserved chunk is marked as lost.
    ChunkLost,
    /// The header of the record that holds a chunk is damaged.
    RecordDamaged,
    /// What a rebuild could not prove whole.
    Uncertain,
    /// Snapshots are tainted.
    SnapshotsTainted,
    /// Two snapshots have the same tag.
    TagTwice,
    /// A snapshot that cannot be: newer than the store, or the pending operation needs it and it is not there.
    SnapshotImpossible,
    /// A long operation is incomplete.
    OperationPending,
    /// The origin is not where the store remembers it.
    OriginMissing,
    /// The origin is smaller than the store says.
    OriginSmall,
    /// The origin changed since the store was closed.
    OriginChanged,
    /// The superblock of a store of 2008 contradicts itself.
    LegacySuperblock,
    /// The snapshot table of a store of 2008 contradicts itself.
    LegacySnapshots,
    /// A field of the superblock of 2008 has a value that nothing writes; reading does not need it.
    LegacyField,
    /// A device is larger than the store of 2008 says.
    LegacyGrown,
    /// The store of 2008 was not shut down: it is recovered in memory.
    LegacyRecovery,
    /// The journal of a store of 2008 that was not shut down does not tell what was done last.
    LegacyUnrecovered,
    /// A store of 2008 that was shut down begins its tree at a block that is not the root.
    LegacyRoot,
    /// The tree of 2008 leads to a place where no block of it can be, or to one twice.
    LegacyTreePlace,
    /// A block of the tree of 2008 is free by the bitmap.
    LegacyTreeFree,
    /// A node of the tree of 2008 is damaged.
    LegacyNode,
    /// A leaf of the tree of 2008 is damaged.
    LegacyLeaf,
    /// A leaf of the tree of 2008 has chunks that do not belong into it.
    LegacyOrder,
    /// A leaf of 2008 is in use, and the tree does not lead to it.
    LegacyOrphan,
    /// Several leaves of the tree of 2008 have the same chunks.
    LegacyOverfull,
    /// Two preserved chunks of 2008 claim to be the same chunk of a snapshot.
    LegacyShareTwice,
    /// A preserved chunk of 2008 belongs to no snapshot that is there.
    LegacyShareNone,
    /// A preserved chunk of 2008 belongs to snapshots that are not there, too.
    LegacyShareStale,
    /// A preserved chunk of 2008 is said to be where none can be.
    LegacyChunkPlace,
    /// A chunk of a store of 2008 is used twice.
    LegacyChunkTwice,
    /// The tree and the bitmap of 2008 contradict each other both ways.
    LegacyContrary,
    /// A preserved chunk of 2008 is free by the bitmap.
    LegacyChunkFree,
    /// The deletion of a snapshot of 2008 was interrupted.
    LegacyDeletion,
    /// A part of the metadata of 2008 is free by the bitmap.
    LegacyAreaFree,
    /// Something is in use by the bitmap of 2008 that nothing uses.
    LegacyLeak,
    /// The bitmap of 2008 offers chunks behind the end of the store.
    LegacyEnd,
    /// The superblock of 2008 counts other free chunks than the bitmap has.
    LegacyFreeCount,
    /// The journal of 2008 does not end where the superblock says.
    LegacyJournal,
    /// A block of 2008 is not what the journal has of it.
    LegacyHome,
    /// A repair of a store of 2008 was cut short.
    LegacyRepair,
    /// A repair of a store of 2008 gave up what was preserved.
    LegacyLost,
    /// A store of 2008 is not repaired.
    LegacyRefused,
    /// A store of 2008 has no data checksums.
    LegacyUnproven,
}

/// What is known of a code.
struct Facts {
    code: Code,
    name: &'static str,
    severity: Severity,
    repair: Repair,
    meaning: &'static str,
}

const fn facts(
    code: Code,
    name: &'static str,
    severity: Severity,
    repair: Repair,
    meaning: &'static str,
) -> Facts {
    Facts { code, name, severity, repair, meaning }
}

/// Every code once, in the order of looking.
static FACTS: [Facts; 56] = [
    facts(
        Code::SuperblockCopy,
        "superblock-copy",
        Severity::Repairable,
        Repair::Publish,
        "one of the two superblocks is damaged; the other says the same",
    ),
    facts(
        Code::SuperblockDiffers,
        "superblock-differs",
        Severity::Note,
        Repair::Publish,
        "a crash between the two superblock writes; the next session mends it by itself",
    ),
    facts(
        Code::SuperblockLost,
        "superblock-lost",
        Severity::Loss,
        Repair::Rebuild,
        "neither superblock is sound: the store cannot be opened until a rebuild has found its checkpoint",
    ),
    facts(
        Code::StoreTruncated,
        "store-truncated",
        Severity::Loss,
        Repair::Manual,
        "the device ends before the store does; what lies beyond may still be there",
    ),
    facts(
        Code::CheckpointCopy,
        "checkpoint-copy",
        Severity::Repairable,
        Repair::Publish,
        "one of the two copies of the tables is damaged; the other is whole",
    ),
    facts(
        Code::CheckpointLost,
        "checkpoint-lost",
        Severity::Loss,
        Repair::Rebuild,
        "both copies of the tables are damaged: what the records say can be brought back, not proven whole",
    ),
    facts(
        Code::LogBroken,
        "log-broken",
        Severity::Loss,
        Repair::Rebuild,
        "records that were durable are damaged; what they preserved cannot be told from their absence",
    ),
    facts(
        Code::IndexDamaged,
        "index-damaged",
        Severity::Repairable,
        Repair::Rebuild,
        "the index is damaged; it is made of the log records and can be made again",
    ),
    facts(
        Code::DoubleUse,
        "double-use",
        Severity::Repairable,
        Repair::Rebuild,
        "two things claim the same bytes; checksums tell which of them is right",
    ),
    facts(
        Code::SpaceCount,
        "space-count",
        Severity::Repairable,
        Repair::Rebuild,
        "a segment's count of what lives in it is not what the index leads to",
    ),
    facts(
        Code::ChangesIncomplete,
        "changes-incomplete",
        Severity::Repairable,
        Repair::Rebuild,
        "a changelist would leave out chunks that did change",
    ),
    facts(
        Code::ChunkMissing,
        "chunk-missing",
        Severity::Loss,
        Repair::Mark,
        "a chunk was preserved and the index does not know where: it would read as newer data",
    ),
    facts(
        Code::ChunkDamaged,
        "chunk-damaged",
        Severity::Loss,
        Repair::Mark,
        "preserved bytes are damaged; reading them is an error",
    ),
    facts(
        Code::ChunkUnreadable,
        "chunk-unreadable",
        Severity::Loss,
        Repair::Manual,
        "the medium does not give preserved bytes back; copy it to a sound one first",
    ),
    facts(
        Code::ChunkLost,
        "chunk-lost",
        Severity::Note,
        Repair::None,
        "an earlier repair found these bytes gone and said so",
    ),
    facts(
        Code::RecordDamaged,
        "record-damaged",
        Severity::Repairable,
        Repair::Relog,
        "chunks are whole, but the record that describes them is not: a rebuild would miss them",
    ),
    facts(
        Code::Uncertain,
        "uncertain",
        Severity::Loss,
        Repair::Accept,
        "something is lost and nothing tells what: the snapshots concerned are read only when insisted on",
    ),
    facts(
        Code::SnapshotsTainted,
        "snapshots-tainted",
        Severity::Note,
        Repair::Accept,
        "snapshots that cannot be proven right are read only when insisted on",
    ),
    facts(
        Code::TagTwice,
        "tag-twice",
        Severity::Repairable,
        Repair::Manual,
        "two snapshots answer to one tag: name them by @N",
    ),
    facts(
        Code::SnapshotImpossible,
        "snapshot-impossible",
        Severity::Repairable,
        Repair::Manual,
        "the snapshot table contradicts itself",
    ),
    facts(
        Code::OperationPending,
        "operation-pending",
        Severity::Note,
        Repair::None,
        "an apply or revert was cut short: run it again, or roll it back",
    ),
    facts(
        Code::OriginMissing,
        "origin-missing",
        Severity::Note,
        Repair::None,
        "the origin is not where it was: snapshots are read with --origin only",
    ),
    facts(
        Code::OriginSmall,
        "origin-small",
        Severity::Loss,
        Repair::Manual,
        "the origin is smaller than the store says: what snapshots share with it is not there",
    ),
    facts(
        Code::OriginChanged,
        "origin-changed",
        Severity::Note,
        Repair::Accept,
        "the origin was written behind the store's back: snapshots may share its newer bytes",
    ),
    facts(
        Code::LegacySuperblock,
        "legacy-superblock",
        Severity::Loss,
        Repair::Manual,
        "the sizes or places in the superblock cannot be right: nothing can be read before they are",
    ),
    facts(
        Code::LegacySnapshots,
        "legacy-snapshots",
        Severity::Loss,
        Repair::Manual,
        "the snapshot table contradicts itself: nothing tells whose the preserved chunks are",
    ),
    facts(
        Code::LegacyField,
        "legacy-field",
        Severity::Repairable,
        Repair::Restore,
        "a field of the superblock that reading does not need has a value that nothing writes",
    ),
    facts(
        Code::LegacyGrown,
        "legacy-grown",
        Severity::Note,
        Repair::None,
        "a device is larger than the store says: what is behind the end is not part of the store",
    ),
    facts(
        Code::LegacyRecovery,
        "legacy-recovery",
        Severity::Note,
        Repair::Restore,
        "the store was not shut down: every command that reads it recovers it in memory and leaves it as it is",
    ),
    facts(
        Code::LegacyUnrecovered,
        "legacy-unrecovered",
        Severity::Loss,
        Repair::Upgrade,
        "the journal is damaged: what was preserved last may read as newer data, and nothing tells what that is",
    ),
    facts(
        Code::LegacyRoot,
        "legacy-root",
        Severity::Loss,
        Repair::Salvage,
        "the superblock names a former root: what was preserved beyond it reads as newer data",
    ),
    facts(
        Code::LegacyTreePlace,
        "legacy-tree-place",
        Severity::Loss,
        Repair::Salvage,
        "the tree leads to where no block of it can be: what was preserved there cannot be told",
    ),
    facts(
        Code::LegacyTreeFree,
        "legacy-tree-free",
        Severity::Repairable,
        Repair::Restore,
        "a block of the tree is said to be free: the original program would overwrite it",
    ),
    facts(
        Code::LegacyNode,
        "legacy-node",
        Severity::Loss,
        Repair::Salvage,
        "a node of the tree is damaged: what was preserved of its chunks cannot be told",
    ),
    facts(
        Code::LegacyLeaf,
        "legacy-leaf",
        Severity::Loss,
        Repair::Salvage,
        "a leaf of the tree is damaged: what was preserved of its chunks cannot be told",
    ),
    facts(
        Code::LegacyOrder,
        "legacy-order",
        Severity::Loss,
        Repair::Upgrade,
        "a leaf has chunks that belong elsewhere: those that it should have cannot be told",
    ),
    facts(
        Code::LegacyOrphan,
        "legacy-orphan",
        Severity::Loss,
        Repair::Salvage,
        "a leaf has dropped out of the tree: what it and those beside it preserve would read as newer data",
    ),
    facts(
        Code::LegacyOverfull,
        "legacy-overfull",
        Severity::Repairable,
        Repair::Upgrade,
        "a leaf was too small for a chunk: the original reads newer data in old snapshots, this program the right ones",
    ),
    facts(
        Code::LegacyShareTwice,
        "legacy-share-twice",
        Severity::Loss,
        Repair::Upgrade,
        "a snapshot has two preserved versions of one chunk, and nothing tells which of them is right",
    ),
    facts(
        Code::LegacyShareNone,
        "legacy-share-none",
        Severity::Loss,
        Repair::Upgrade,
        "chunks are kept for none of the snapshots: whose they were cannot be told",
    ),
    facts(
        Code::LegacyShareStale,
        "legacy-share-stale",
        Severity::Loss,
        Repair::Upgrade,
        "chunks are kept for snapshots that are not there, too: a number is damaged, nothing tells whose they are",
    ),
    facts(
        Code::LegacyChunkPlace,
        "legacy-chunk-place",
        Severity::Loss,
        Repair::Upgrade,
        "preserved chunks are said to be where none can be: what they were is lost",
    ),
    facts(
        Code::LegacyChunkTwice,
        "legacy-chunk-twice",
        Severity::Loss,
        Repair::Upgrade,
        "two things were written to one place, and nothing tells which of them is there",
    ),
    facts(
        Code::LegacyContrary,
        "legacy-contrary",
        Severity::Loss,
        Repair::Upgrade,
        "the tree leads to what is free, and not to what is in use: one of the two is wrong, nothing tells which",
    ),
    facts(
        Code::LegacyChunkFree,
        "legacy-chunk-free",
        Severity::Repairable,
        Repair::Restore,
        "preserved chunks are said to be free: the original program would overwrite them",
    ),
    facts(
        Code::LegacyDeletion,
        "legacy-deletion",
        Severity::Loss,
        Repair::Salvage,
        "a deletion was interrupted: what is left of the snapshot reads partly as newer data",
    ),
    facts(
        Code::LegacyAreaFree,
        "legacy-area-free",
        Severity::Repairable,
        Repair::Restore,
        "the superblock, the bitmaps or the journal are said to be free: the original program would overwrite them",
    ),
    facts(
        Code::LegacyLeak,
        "legacy-leak",
        Severity::Loss,
        Repair::Salvage,
        "nothing leads to what is in use: space is lost, or the tree is partly an older one and newer data are read",
    ),
    facts(
        Code::LegacyEnd,
        "legacy-end",
        Severity::Repairable,
        Repair::Restore,
        "the original program would write behind the end of the store",
    ),
    facts(
        Code::LegacyFreeCount,
        "legacy-free-count",
        Severity::Repairable,
        Repair::Restore,
        "the count of what is free is wrong: the store is fuller or emptier than it says",
    ),
    facts(
        Code::LegacyJournal,
        "legacy-journal",
        Severity::Repairable,
        Repair::Restore,
        "the journal and the superblock do not fit; after a clean shutdown reading needs the superblock only",
    ),
    facts(
        Code::LegacyHome,
        "legacy-home",
        Severity::Repairable,
        Repair::Restore,
        "blocks are damaged or older than their copies in the journal, which fit the rest and are read instead",
    ),
    facts(
        Code::LegacyRepair,
        "legacy-repair",
        Severity::Repairable,
        Repair::Restore,
        "a repair was cut short; what it decided counts already, the rest of it is to be done",
    ),
    facts(
        Code::LegacyLost,
        "legacy-lost",
        Severity::Note,
        Repair::None,
        "a repair found what was preserved here gone and said so: reading it is an error",
    ),
    facts(
        Code::LegacyRefused,
        "legacy-refused",
        Severity::Repairable,
        Repair::Upgrade,
        "a repair could make it worse: nothing was written",
    ),
    facts(
        Code::LegacyUnproven,
        "legacy-unproven",
        Severity::Note,
        Repair::None,
        "stores of 2008 have no checksums of data: nothing tells whether preserved bytes are what was written",
    ),
];

impl Code {
    /// Every code, in the order of looking.
    pub fn all() -> impl Iterator<Item = Self> {
        FACTS.iter().map(|facts| facts.code)
    }

    /// The stable name ("superblock-copy").
    #[must_use]
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// How bad it is.
    #[must_use]
    pub fn severity(self) -> Severity {
        self.facts().severity
    }

    /// What mends it.
    #[must_use]
    pub fn repair(self) -> Repair {
        self.facts().repair
    }

    /// What it means for the data, in a sentence.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        self.facts().meaning
    }

    fn facts(self) -> &'static Facts {
        FACTS.iter().find(|facts| facts.code == self).unwrap_or(&FACTS[0])
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_code_has_a_name_of_its_own_and_a_meaning() {
        let names: HashSet<_> = Code::all().map(Code::name).collect();
        assert_eq!(names.len(), FACTS.len());
        assert!(Code::all().all(|code| code.facts().code == code && code.meaning().len() > 20));
        let mut copied = Code::all().filter(|code| code.repair() == Repair::Publish);
        assert!(copied.all(|code| code.severity() < Severity::Loss), "what is lost has no second copy");
    }
}
