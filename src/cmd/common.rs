//! Operands and options that several commands share, checked as far as they can be without the store.

use crate::error::{Error, Kind, Result};
use crate::format::legacy::superblock::Release;
use crate::format::table::HOLD_MAX;
use crate::progress::{Paced, Progress};
use crate::store::{SnapshotInfo, SnapshotState};
use crate::ui::{Ui, size};
use crate::units::Tag;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The volume a command works on.
#[derive(Debug, clap::Args)]
pub struct VolArgs {
    /// The snapshot store: a block device or a file
    #[arg(value_name = "VOL")]
    pub vol: PathBuf,
    /// Where the origin is now, if not where the store remembers it
    #[arg(long, value_name = "PATH")]
    pub origin: Option<PathBuf>,
    #[command(flatten)]
    pub old: OldArgs,
}

/// What must be said of a store of 2008.
#[derive(Debug, Default, Clone, clap::Args)]
pub struct OldArgs {
    /// The separate metadata device of a store of 2008
    #[arg(long, value_name = "PATH")]
    pub meta: Option<PathBuf>,
    /// The release of the original program that a store of 2008 is of, if it cannot be told
    #[arg(long, value_name = "RELEASE", value_parser = parse_layout)]
    pub layout: Option<Release>,
}

/// Insisting on data that may not be what it seems.
#[derive(Debug, clap::Args)]
pub struct AcceptArgs {
    /// Read the origin although an apply-delta onto it is incomplete
    #[arg(long)]
    pub accept_incomplete: bool,
    /// Read a snapshot although it is tainted: it may not be what it was
    #[arg(long)]
    pub accept_taint: bool,
}

/// How fast data may flow.
#[derive(Debug, clap::Args)]
pub struct RateArgs {
    /// Move at most SIZE bytes a second
    #[arg(long, value_name = "SIZE", value_parser = parse_rate)]
    pub rate_limit: Option<u64>,
}

impl RateArgs {
    /// What holds back whoever advances faster, if a limit was given.
    pub fn paced<'a>(&self, ui: &'a Ui) -> Option<Box<dyn Progress + 'a>> {
        self.rate_limit.map(|rate| Box::new(Paced::new(ui.progress(), rate)) as Box<dyn Progress + 'a>)
    }
}

/// What the lists of some tools do not say.
#[derive(Debug, clap::Args)]
pub struct BlockSizeArgs {
    /// Bytes in a block of a list that does not say so (era_invalidate)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub block_size: Option<u64>,
}

/// A point as the user names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapName {
    /// By tag.
    Tag(Tag),
    /// Counted from the newest, which is 0.
    FromNewest(usize),
    /// By its name.
    Name(String),
    /// The live origin.
    Origin,
}

impl FromStr for SnapName {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' is no snapshot: write a tag (0 to 4294967294), @N counted from the newest, a name, \
                 or 'origin'"
            )
        };
        if matches!(text, "origin" | "-1") {
            return Ok(Self::Origin);
        }
        if let Some(count) = text.strip_prefix('@') {
            return match decimal(count).map(usize::try_from) {
                Some(Ok(count)) => Ok(Self::FromNewest(count)),
                _ => Err(wrong()),
            };
        }
        if let Some(number) = decimal(text) {
            let tag = Tag(u32::try_from(number).map_err(|_| wrong())?);
            return Ok(if tag == Tag::ORIGIN { Self::Origin } else { Self::Tag(tag) });
        }
        parse_name(text).map(Self::Name).map_err(|_| wrong())
    }
}

impl fmt::Display for SnapName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => write!(f, "snapshot {tag}"),
            Self::FromNewest(count) => write!(f, "snapshot @{count}"),
            Self::Name(name) => write!(f, "snapshot '{name}'"),
            Self::Origin => f.write_str("the origin"),
        }
    }
}

impl SnapName {
    /// The snapshot meant, among `snapshots` (oldest first).
    ///
    /// # Errors
    /// `Kind::NotFound` if there is none; `Kind::Usage` if the origin is meant.
    pub fn snapshot<'a>(&self, snapshots: &'a [SnapshotInfo]) -> Result<&'a SnapshotInfo> {
        let found = match self {
            Self::Tag(tag) => snapshots.iter().find(|snapshot| snapshot.tag == *tag),
            Self::Name(name) => snapshots.iter().find(|snapshot| snapshot.name.as_ref() == Some(name)),
            Self::FromNewest(count) => snapshots.iter().rev().nth(*count),
            Self::Origin => return Err(Error::new(Kind::Usage, "the origin is no snapshot")),
        };
        found.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("there is no {self}"))
                .hint("'ddsnap list VOL' shows the snapshots")
        })
    }
}

/// Why a tainted snapshot is not read unless insisted on.
pub const TAINT: &str =
    "is tainted: the origin was changed behind the store's back, or records of the store were lost";

/// How messages name a snapshot: by tag, and by name if it has one.
#[must_use]
pub fn title(snapshot: &SnapshotInfo) -> String {
    match &snapshot.name {
        Some(name) => format!("snapshot {} ({name})", snapshot.tag),
        None => format!("snapshot {}", snapshot.tag),
    }
}

/// The word for a state, in tables and JSON.
#[must_use]
pub fn state_word(state: SnapshotState) -> &'static str {
    match state {
        SnapshotState::Normal => "normal",
        SnapshotState::Squashed => "squashed",
    }
}

/// Reads a tag for a new snapshot.
///
/// # Errors
/// A sentence for the user.
pub fn parse_tag(text: &str) -> std::result::Result<Tag, String> {
    match decimal(text).map(u32::try_from) {
        Some(Ok(number)) if number != Tag::ORIGIN.0 => Ok(Tag(number)),
        _ => Err(format!("'{text}' is no tag: write a number from 0 to 4294967294")),
    }
}

/// Reads a name for a new snapshot: it must not look like a tag, `@N`, `origin` or an option.
///
/// # Errors
/// A sentence for the user.
pub fn parse_name(text: &str) -> std::result::Result<String, String> {
    let sound = text.chars().next().is_some_and(char::is_alphabetic)
        && text.chars().all(|c| c.is_alphanumeric() || "._-:+".contains(c))
        && text.len() <= 255
        && text != "origin";
    if sound {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "'{text}' is no name: write a letter, then letters, digits and . _ - : + (at most 255 bytes), not 'origin'"
        ))
    }
}

/// Reads the name of a hold: written as the name of a snapshot, at most 64 bytes.
///
/// # Errors
/// A sentence for the user.
pub fn parse_hold(text: &str) -> std::result::Result<String, String> {
    parse_name(text).ok().filter(|name| name.len() <= HOLD_MAX).ok_or_else(|| {
        format!("'{text}' is no name of a hold: write a letter, then letters, digits and . _ - : +, at most 64 bytes")
    })
}

/// Reads a size.
///
/// # Errors
/// A sentence for the user.
pub fn parse_size(text: &str) -> std::result::Result<u64, String> {
    size::parse(text)
}

fn parse_layout(text: &str) -> std::result::Result<Release, String> {
    let found = Release::ALL.into_iter().find(|release| release.name() == text);
    found.ok_or_else(|| format!("'{text}' is no layout: write 0.4 or 0.10"))
}

fn parse_rate(text: &str) -> std::result::Result<u64, String> {
    match size::parse(text)? {
        0 => Err("a rate of 0 would never end".to_owned()),
        rate => Ok(rate),
    }
}

/// The name of a device of device-mapper.
pub fn parse_device_name(text: &str) -> std::result::Result<String, String> {
    let fits = !text.is_empty() && text.len() <= 100 && !text.starts_with(['-', '.']);
    match fits && text.chars().all(|c| c.is_ascii_alphanumeric() || "#+-.:=@_()".contains(c)) {
        true => Ok(text.to_owned()),
        false => Err(format!("'{text}' is no name of a device: letters, digits and #+-.:=@_() only")),
    }
}

fn decimal(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // More digits than fit are a number too, only one that nothing has.
    Some(text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_named_in_five_ways() {
        for (text, name) in [
            ("0", SnapName::Tag(Tag(0))),
            ("4294967294", SnapName::Tag(Tag(u32::MAX - 1))),
            ("4294967295", SnapName::Origin),
            ("-1", SnapName::Origin),
            ("origin", SnapName::Origin),
            ("@0", SnapName::FromNewest(0)),
            ("@17", SnapName::FromNewest(17)),
            ("monday", SnapName::Name("monday".into())),
        ] {
            assert_eq!(text.parse(), Ok(name), "{text}");
        }
    }

    #[test]
    fn nonsense_names_nothing() {
        for text in [
            "",
            "-2",
            "12x",
            "4294967296",
            "99999999999999999999999",
            "@",
            "@x",
            "@-1",
            "a/b",
            "a b",
            "+5",
            "a\x1b",
        ] {
            assert!(text.parse::<SnapName>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_tag_for_a_new_snapshot_is_never_the_origin() {
        assert_eq!(parse_tag("4294967294"), Ok(Tag(u32::MAX - 1)));
        for text in ["4294967295", "-1", "x", "", "@0", "1k"] {
            assert!(parse_tag(text).is_err(), "{text}");
        }
    }
}
