//! Exit statuses: the one list of them, and which error ends in which.

use crate::error::Kind;

/// How a command ended. The statuses are a promise to scripts: none is ever renumbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The command did what was asked (`fsck`: the store is clean; `status --state`: the snapshot is usable).
    Done,
    /// It could not be done: an I/O error, no space, something absent or already there.
    Failed,
    /// The command line makes no sense.
    Usage,
    /// The input is damaged, not what it claims to be, or of a version this program does not know; the
    /// answer "no" of a command that compares.
    Damaged,
    /// Another process, a mount or a use count holds it.
    Busy,
    /// It would lose data; the message names the option that insists.
    Refused,
    /// SIGINT or SIGTERM; the store is as before or the step was finished.
    Interrupted,
    /// `fsck`: errors were found and repaired.
    FsckRepaired,
    /// `fsck`: errors were found and left.
    FsckLeft,
    /// `fsck`: the check itself failed.
    FsckError,
    /// `fsck`: the command line makes no sense.
    FsckUsage,
    /// `status --state`: there is no such snapshot.
    StateAbsent,
    /// `status --state`: the snapshot was given up when the store was full.
    StateSquashed,
    /// `status --state`: the state could not be told.
    StateUnknown,
}

/// One row of a table of statuses: code, name, meaning.
pub type Status = (u8, &'static str, &'static str);

impl Exit {
    const GENERAL: [Self; 7] =
        [Self::Done, Self::Failed, Self::Usage, Self::Damaged, Self::Busy, Self::Refused, Self::Interrupted];
    const FSCK: [Self; 6] =
        [Self::Done, Self::FsckRepaired, Self::FsckLeft, Self::FsckError, Self::FsckUsage, Self::Interrupted];
    const STATE: [Self; 3] = [Self::StateAbsent, Self::StateSquashed, Self::StateUnknown];

    /// The status that an error of `kind` ends in, for every command but `fsck`.
    #[must_use]
    pub fn of_kind(kind: Kind) -> Self {
        match kind {
            Kind::Io | Kind::NotFound | Kind::Exists | Kind::NoSpace => Self::Failed,
            Kind::Usage => Self::Usage,
            Kind::Damaged | Kind::Unsupported | Kind::Mismatch => Self::Damaged,
            Kind::Busy => Self::Busy,
            Kind::Refused => Self::Refused,
            Kind::Interrupted => Self::Interrupted,
        }
    }

    /// The number the process exits with.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed | Self::FsckRepaired | Self::StateAbsent => 1,
            Self::Usage | Self::StateSquashed => 2,
            Self::Damaged => 3,
            Self::Busy | Self::FsckLeft => 4,
            Self::Refused => 5,
            Self::FsckError => 8,
            Self::StateUnknown => 9,
            Self::FsckUsage => 16,
            Self::Interrupted => 130,
        }
    }

    /// A short name for tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Usage | Self::FsckUsage => "usage",
            Self::Damaged => "damaged",
            Self::Busy => "busy",
            Self::Refused => "refused",
            Self::Interrupted => "interrupted",
            Self::FsckRepaired => "repaired",
            Self::FsckLeft => "left",
            Self::FsckError => "error",
            Self::StateAbsent => "absent",
            Self::StateSquashed => "squashed",
            Self::StateUnknown => "unknown",
        }
    }

    /// What it means, as the manual says it.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => {
                "failed: an I/O error, no space left, or a thing that is absent or exists already"
            }
            Self::Usage | Self::FsckUsage => "the command line makes no sense",
            Self::Damaged => {
                "the input is damaged, is not what it claims to be, belongs to something else, or is of an \
                 unknown version; for a comparison, the answer \"no\""
            }
            Self::Busy => "busy: another process, a mount or a use count holds it",
            Self::Refused => "refused, since it would lose data; the message names the option that insists",
            Self::Interrupted => "interrupted by SIGINT or SIGTERM",
            Self::FsckRepaired => "errors were found and repaired",
            Self::FsckLeft => "errors were found and left uncorrected",
            Self::FsckError => "operational error: the check could not be made",
            Self::StateAbsent => "with --state: there is no such snapshot",
            Self::StateSquashed => "with --state: the snapshot was squashed",
            Self::StateUnknown => "with --state: the state could not be told",
        }
    }

    /// Every status of the ordinary commands.
    #[must_use]
    pub fn all() -> Vec<Status> {
        Self::rows(&Self::GENERAL)
    }

    /// Every status of one command, by its modern name (`fsck`, `status`, `delta verify`, ...).
    #[must_use]
    pub fn of_command(command: &str) -> Vec<Status> {
        match command {
            "fsck" => Self::rows(&Self::FSCK),
            "status" => [Self::rows(&Self::GENERAL), Self::rows(&Self::STATE)].concat(),
            _ => Self::all(),
        }
    }

    /// What `--dry-run` ends with, for the command of that modern name.
    #[must_use]
    pub fn of_dry_run(command: &str) -> &'static str {
        match command {
            "fsck" => {
                "With --dry-run nothing is repaired, so the status is that of -n: 4 if something is wrong, even if \
                 all of it could be repaired."
            }
            _ => {
                "With --dry-run the status is the one that the command itself would end with; a question that it would \
                 ask (-y) counts as answered with yes."
            }
        }
    }

    fn rows(list: &[Self]) -> Vec<Status> {
        list.iter().map(|exit| (exit.code(), exit.name(), exit.meaning())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_promised_ones() {
        let codes: Vec<u8> = Exit::all().iter().map(|row| row.0).collect();
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 130]);
        let codes: Vec<u8> = Exit::of_command("fsck").iter().map(|row| row.0).collect();
        assert_eq!(codes, [0, 1, 4, 8, 16, 130]);
    }

    #[test]
    fn within_a_command_no_code_of_the_general_list_appears_twice() {
        for command in ["list", "fsck"] {
            let mut codes: Vec<u8> = Exit::of_command(command).iter().map(|row| row.0).collect();
            codes.dedup();
            assert_eq!(codes.len(), Exit::of_command(command).len());
        }
    }
}
