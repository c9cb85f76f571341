//! Everything that prints: progress, tables, JSON, prompts, exit statuses.
//!
//! Standard output carries the result and nothing else; progress, warnings, questions and errors go to
//! standard error. Nothing outside this module prints.

pub mod draw;
pub mod escape;
pub mod exit;
pub mod input;
pub mod log;
pub mod output;
pub mod progress;
pub mod report;
pub mod signals;
pub mod size;
pub mod table;
pub mod terminal;
pub mod time;
pub mod tree;

use crate::error::{Error, Kind, Result};
use crate::progress::Progress;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the user wants to hear.
#[derive(Debug, Clone, Copy)]
pub struct Wishes {
    /// `-q`: errors only.
    pub quiet: bool,
    /// `-v`: explain.
    pub verbose: bool,
    /// `--progress`: show progress even without a terminal.
    pub progress: bool,
}

/// The way to the user.
pub struct Ui {
    wishes: Wishes,
    meter: progress::Meter,
    stop_wanted: Arc<AtomicBool>,
    reader_gone: AtomicBool,
}

impl Ui {
    /// A user with these wishes; `stop_wanted` is set by a signal.
    #[must_use]
    pub fn new(wishes: Wishes, stop_wanted: Arc<AtomicBool>) -> Self {
        let terminal = terminal::stderr_is_terminal();
        let style = match (terminal, wishes.progress, wishes.quiet) {
            (true, _, false) => progress::Style::Bar,
            (false, true, _) => progress::Style::Lines,
            (true, true, true) => progress::Style::Bar,
            _ => progress::Style::Off,
        };
        let meter = progress::Meter::new(style, Arc::clone(&stop_wanted));
        Self { wishes, meter, stop_wanted, reader_gone: AtomicBool::new(false) }
    }

    /// Where engines report progress.
    #[must_use]
    pub fn progress(&self) -> &dyn Progress {
        &self.meter
    }

    /// Ends a progress display, so that text can follow.
    pub fn end_progress(&self) {
        self.meter.finish();
    }

    /// True with `-v`.
    #[must_use]
    pub fn verbose(&self) -> bool {
        self.wishes.verbose
    }

    /// True once the user asked to stop.
    #[must_use]
    pub fn interrupted(&self) -> bool {
        self.stop_wanted.load(Ordering::Relaxed)
    }

    /// Set once the user asked to stop, for code that holds no [`Ui`].
    #[must_use]
    pub fn stop_wanted(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop_wanted)
    }

    /// Standard input for data.
    ///
    /// # Errors
    /// `Kind::Usage` if it is a terminal.
    pub fn data_input(&self) -> Result<input::StandardInput> {
        if terminal::stdin_is_terminal() {
            return Err(Error::new(Kind::Usage, "refusing to read binary data from a terminal")
                .hint("redirect standard input, or name a file"));
        }
        output::widen(rustix::stdio::stdin());
        Ok(input::StandardInput::open(Arc::clone(&self.stop_wanted)))
    }

    /// Prints a line of the result. A reader who has gone away is no error: the rest is dropped.
    ///
    /// # Errors
    /// `Kind::Io`, `Kind::NoSpace` if standard output cannot take it.
    pub fn print(&self, line: &str) -> Result<()> {
        self.print_text(&format!("{line}\n"))
    }

    /// True once whoever read standard output has gone away.
    #[must_use]
    pub fn reader_gone(&self) -> bool {
        self.reader_gone.load(Ordering::Relaxed)
    }

    /// As [`Ui::print`], for text that may be many lines, or none.
    ///
    /// # Errors
    /// As [`Ui::print`].
    pub fn print_text(&self, text: &str) -> Result<()> {
        if text.is_empty() || self.reader_gone() {
            return Ok(());
        }
        self.meter.finish();
        match terminal::stdout_text(text) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                self.reader_gone.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(Error::io("cannot write to standard output", error)),
        }
    }

    /// Prints one JSON document as one line.
    ///
    /// # Errors
    /// As [`Ui::print`].
    pub fn json(&self, document: &serde_json::Value) -> Result<()> {
        self.print(&document.to_string())
    }

    /// Explains something, with `-v` only.
    pub fn explain(&self, text: &str) {
        if self.wishes.verbose && !self.wishes.quiet {
            self.meter.finish();
            terminal::stderr_line(&escape::line(text));
        }
    }

    /// Warns, unless `-q`.
    pub fn warn(&self, text: &str) {
        if !self.wishes.quiet {
            self.meter.finish();
            terminal::stderr_line(&format!("ddsnap: warning: {}", escape::line(text)));
        }
    }

    /// Tells of an error.
    pub fn error(&self, error: &Error) {
        self.meter.finish();
        for line in report::lines(error) {
            terminal::stderr_line(&line);
        }
    }

    /// Asks for leave to do something that loses data.
    ///
    /// # Errors
    /// `Kind::Refused` if the answer is no, or if there is no terminal to ask on; the hint names `insist`.
    pub fn confirm(&self, at_stake: &str, insist: &str) -> Result<()> {
        let refused = || Error::new(Kind::Refused, at_stake).hint(format!("{insist} insists"));
        if !terminal::can_ask() {
            return Err(refused());
        }
        self.meter.finish();
        terminal::stderr_text(&format!("{}. Go on? [y/N] ", escape::line(at_stake)));
        let answer = terminal::stdin_line().map_err(|error| Error::io("cannot read the answer", error))?;
        if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(refused()) }
    }
}
