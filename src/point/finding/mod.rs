//! What a check of any store can find, how bad it is, and which bytes of which snapshots it concerns.

use crate::error::Error;
use crate::units::{Epoch, Tag};
use std::ops::Range;

mod code;

pub use code::Code;

/// Ranges listed for one snapshot; those beyond are counted.
const RANGES_MAX: usize = 4096;

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
    /// What the tree of a store of 2008 proves is written down.
    Restore,
    /// The tree of a store of 2008 is made anew of what is left of it.
    Salvage,
    /// A new store is made of what can be read.
    Upgrade,
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
            Self::Restore => "restore",
            Self::Salvage => "salvage",
            Self::Upgrade => "upgrade",
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
            Self::Restore => "-p writes down what the tree proves, if the whole tree is sound",
            Self::Salvage => {
                "-y makes the tree anew of the leaves that are left, marks what cannot be told as lost, and ends a \
                 deletion that was interrupted"
            }
            Self::Upgrade => "'ddsnap upgrade' makes a new store of what can be read; nothing mends this one",
            Self::Manual => {
                "no program can tell what is right: a copy from before, or the right device, brings it back"
            }
        }
    }
}

/// How far a repair may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// What gives nothing up.
    Safe,
    /// Marking what is gone, too.
    Everything,
}

impl Leave {
    /// True if this is enough for what mends `code`.
    #[must_use]
    pub fn mends(self, code: Code) -> bool {
        match code.repair() {
            Repair::None | Repair::Accept | Repair::Upgrade | Repair::Manual => false,
            Repair::Publish | Repair::Rebuild | Repair::Relog | Repair::Restore => true,
            Repair::Mark | Repair::Salvage => self == Self::Everything,
        }
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

impl Affected {
    /// Adds a byte range; ascending ones that touch become one.
    pub fn push(&mut self, range: Range<u64>) {
        let full = self.ranges.len() >= RANGES_MAX;
        match self.ranges.last_mut() {
            Some(last) if last.start <= range.start && last.end >= range.start => {
                last.end = last.end.max(range.end);
            }
            _ if full => self.more += 1,
            _ => self.ranges.push(range),
        }
    }
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
