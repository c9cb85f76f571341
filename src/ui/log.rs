//! The log of a program that runs for long: standard error, or a file that takes its place.

use super::{escape, terminal, time};
use crate::error::{Error, Result};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Where lines about what happens go.
pub struct Log {
    path: Option<PathBuf>,
    /// Lines carry the time. A service manager notes it by itself.
    dated: AtomicBool,
    verbose: bool,
}

impl Log {
    /// A log on standard error, until [`Log::switch`] puts the file at `path` in its place. The file is made if it
    /// is not there. With `verbose`, or with a file, it takes notes too.
    ///
    /// # Errors
    /// `Kind::Io` if the file cannot be written.
    pub fn open(path: Option<&Path>, verbose: bool) -> Result<Self> {
        path.map(file).transpose()?;
        let verbose = verbose || path.is_some();
        Ok(Self { path: path.map(Path::to_path_buf), dated: AtomicBool::new(false), verbose })
    }

    /// True if there is a file.
    #[must_use]
    pub fn has_file(&self) -> bool {
        self.path.is_some()
    }

    /// From now on everything for standard error goes to the file, which is opened anew: whoever moved it away gets
    /// a new one. Without a file nothing changes.
    ///
    /// # Errors
    /// `Kind::Io`; lines go where they went before.
    pub fn switch(&self) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let file = file(path)?;
        let replaced = rustix::stdio::dup2_stderr(&file);
        replaced.map_err(|error| Error::io("cannot write the log", error.into()).at_path(path))?;
        self.dated.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Writes one line about what is as it should be.
    pub fn note(&self, text: &str) {
        if self.verbose {
            self.line(text);
        }
    }

    /// Writes one line.
    pub fn line(&self, text: &str) {
        let text = escape::line(text);
        match self.dated.load(Ordering::Relaxed) {
            true => terminal::stderr_line(&format!(
                "{} {text}",
                time::rfc3339(time::now_secs()).unwrap_or_default()
            )),
            false => terminal::stderr_line(&format!("ddsnap: server: {text}")),
        }
    }
}

fn file(path: &Path) -> Result<File> {
    let opened = OpenOptions::new().append(true).create(true).open(path);
    opened.map_err(|error| Error::io(format!("cannot write the log: {error}"), error).at_path(path))
}
