//! What a check can find: the codes, what each means, and what mends it.

use crate::error::Error;
use crate::units::{Epoch, Tag};
use std::fmt;
use std::ops::Range;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Note,
    /// Wrong, but nothing is lost: a repair restores it from what is sound.
    Repairable,
    /// Data are lost or cannot be proven.
    Loss,
}

impl Severity {
    /// The word in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Repairable => "repairable",
            Self::Loss => "loss",
        }
    }
}

/// What mends a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// Nothing has to be done.
    None,
    /// The tables are written again, in both copies.
    Publish,
    /// The index is rebuilt from the log records and what is left of it.
    Rebuild,
    /// Chunks whose records are gone are written to the log again.
    Relog,
    /// What is gone is marked as lost, so that reading it is an error for good.
    Mark,
    /// Only a person can tell whether what is there may be used.
    Accept,
    /// Only a person can.
    Manual,
}

impl Repair {
    /// The word in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Publish => "publish",
            Self::Rebuild => "rebuild",
            Self::Relog => "relog",
            Self::Mark => "mark",
            Self::Accept => "accept",
            Self::Manual => "manual",
        }
    }

    /// The option that gives leave for it, and what is done.
    #[must_use]
    pub fn explain(self) -> &'static str {
        match self {
            Self::None => "nothing has to be done",
            Self::Publish => "-p writes both copies again",
            Self::Rebuild => {
                "-p rebuilds the index if the records prove that nothing is lost, -y and --rebuild in any case"
            }
            Self::Relog => "-p writes the chunks to the log again, as far as the store has room",
            Self::Mark => "-y marks what is gone: reading it stays an error, the rest is whole",
            Self::Accept => {
                "--accept-taint reads them all the same; `fsck --accept-taint` accepts them for good"
            }
            Self::Manual => "not by this program; the text says how",
        }
    }
}

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
static FACTS: [Facts; 24] = [
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

/// A snapshot that a finding concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Affected {
    /// Its internal id.
    pub id: Epoch,
    /// Its tag; `None` for the hidden snapshot of a long operation.
    pub tag: Option<Tag>,
    /// Byte ranges of it, ascending; empty if nothing tells which.
    pub ranges: Vec<Range<u64>>,
    /// Ranges beyond those listed.
    pub more: u64,
}

/// One thing found.
#[derive(Debug, Clone)]
pub struct Finding {
    /// What it is.
    pub code: Code,
    /// What was found beside what was expected.
    pub text: String,
    /// Byte address in the store, where there is one.
    pub offset: Option<u64>,
    /// The snapshots concerned, oldest first.
    pub affected: Vec<Affected>,
}

impl Finding {
    /// A finding without place or snapshots.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), offset: None, affected: Vec::new() }
    }

    /// Damage that an error tells of.
    pub fn of(code: Code, error: &Error) -> Self {
        Self { offset: error.offset(), ..Self::new(code, error.what()) }
    }

    /// With a byte address in the store.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// With the snapshots concerned.
    #[must_use]
    pub fn concerning(mut self, affected: Vec<Affected>) -> Self {
        self.affected = affected;
        self
    }

    /// How bad it is.
    #[must_use]
    pub fn severity(&self) -> Severity {
        self.code.severity()
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
