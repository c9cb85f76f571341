//! The one error type of the library: a kind that decides the exit status, and the context a person needs.

use std::fmt;
use std::path::{Path, PathBuf};

/// Shorthand for results of this library.
pub type Result<T> = std::result::Result<T, Error>;

/// What class of failure an [`Error`] is. Each kind maps to one exit status (`ui::exit`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Kind {
    /// The operating system refused an operation or the medium failed.
    Io,
    /// The request itself makes no sense (bad operand, out of range).
    Usage,
    /// The named thing (snapshot, path) does not exist.
    NotFound,
    /// The thing to be made exists already.
    Exists,
    /// Bytes are damaged, truncated, or not what they claim to be.
    Damaged,
    /// The bytes are sound but of a version or feature this program does not know.
    Unsupported,
    /// The input is sound but belongs to something else (wrong base, wrong volume, wrong size).
    Mismatch,
    /// Another process or a mount holds the device.
    Busy,
    /// Doing it would lose data; the hint names the option that insists.
    Refused,
    /// No space left in the store or on the target.
    NoSpace,
    /// The user interrupted the command.
    Interrupted,
}

/// An error: what was being done to which path, what went wrong, and what to do next.
#[derive(Debug)]
pub struct Error(Box<Inner>);

/// Boxed, so that a `Result` stays as small as its value.
#[derive(Debug)]
struct Inner {
    kind: Kind,
    what: String,
    doing: Option<String>,
    path: Option<PathBuf>,
    offset_bytes: Option<u64>,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A new error of `kind`; `what` says what was found beside what was expected.
    #[must_use]
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            what: what.into(),
            doing: None,
            path: None,
            offset_bytes: None,
            hint: None,
            source: None,
        }))
    }

    /// Wraps an operating-system error; "no space" and "interrupted" keep their own kinds.
    #[must_use]
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        let kind = match source.kind() {
            std::io::ErrorKind::StorageFull
            | std::io::ErrorKind::QuotaExceeded
            | std::io::ErrorKind::FileTooLarge => Kind::NoSpace,
            std::io::ErrorKind::NotFound => Kind::NotFound,
            std::io::ErrorKind::AlreadyExists => Kind::Exists,
            std::io::ErrorKind::ResourceBusy => Kind::Busy,
            _ => Kind::Io,
        };
        let mut error = Self::new(kind, what);
        error.0.source = Some(Box::new(source));
        error
    }

    /// Shorthand for [`Kind::Damaged`].
    #[must_use]
    pub fn damaged(what: impl Into<String>) -> Self {
        Self::new(Kind::Damaged, what)
    }

    /// Says what was being done ("cannot list snapshots"). The outermost caller wins.
    #[must_use]
    pub fn doing(mut self, doing: impl Into<String>) -> Self {
        self.0.doing = Some(doing.into());
        self
    }

    /// Names the path concerned, unless an inner layer named one already.
    #[must_use]
    pub fn at_path(mut self, path: &Path) -> Self {
        if self.0.path.is_none() {
            self.0.path = Some(path.to_path_buf());
        }
        self
    }

    /// Names the byte offset concerned, unless an inner layer named one already.
    #[must_use]
    pub fn at_offset(mut self, offset_bytes: u64) -> Self {
        if self.0.offset_bytes.is_none() {
            self.0.offset_bytes = Some(offset_bytes);
        }
        self
    }

    /// Adds the next command or option to try.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// The class of failure.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// What was found, without where and without what was being done.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.0.what
    }

    /// The byte offset concerned, where there is one.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.0.offset_bytes
    }

    /// What to try next, if anything is known.
    #[must_use]
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

/// [`Kind::Damaged`], saying `what`, unless it `holds`.
pub(crate) fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::damaged(what())) }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(doing) = &self.0.doing {
            write!(f, "{doing}: ")?;
        }
        if let Some(path) = &self.0.path {
            // "cannot list snapshots of x.img" has named it already.
            let path = path.display().to_string();
            if !self.0.doing.as_ref().is_some_and(|doing| doing.ends_with(&path)) {
                write!(f, "{path}: ")?;
            }
        }
        if let Some(offset) = self.0.offset_bytes {
            write!(f, "at byte {offset}: ")?;
        }
        f.write_str(&self.0.what)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn std::error::Error + 'static))
    }
}
