//! A server in the background.
//!
//! The program is started twice more: once to lead a session of its own, which ends at once, and once as the server,
//! which belongs to that session without leading it and so never gets a terminal. A copy of a process that may have
//! threads is never made. The first process waits for a word from the server, through what the server has as standard
//! output, and ends with its status.

use crate::error::{Error, Kind, Result};
use crate::ui::Ui;
use crate::ui::exit::Exit;
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Tells a started process what it is.
const STAGE: &str = "DDSNAP_DAEMON";
/// The server's word that it serves.
const UP: &str = "up";

/// What a process is, on the way to the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// What the user has started.
    First,
    /// It leads the session.
    Session,
    /// The server.
    Server,
}

impl Stage {
    /// What this process is.
    pub fn of_this() -> Self {
        match std::env::var_os(STAGE).as_deref().and_then(OsStr::to_str) {
            Some("session") => Self::Session,
            Some("server") => Self::Server,
            _ => Self::First,
        }
    }
}

fn again(stage: &str) -> Command {
    let mut args = std::env::args_os();
    // The file itself, even if another has its name by now.
    let mut command = Command::new("/proc/self/exe");
    command.arg0(args.next().unwrap_or_else(|| "ddsnap".into()));
    command.args(args).env(STAGE, stage).stdin(Stdio::null());
    command
}

fn start(command: &mut Command) -> Result<std::process::Child> {
    command.spawn().map_err(|error| Error::io(format!("cannot start the server: {error}"), error))
}

/// Starts the server and waits until it is up, or has told why not.
///
/// # Errors
/// `Kind::Io`; `Kind::Interrupted` if it was killed before it was up.
pub fn launch() -> Result<Exit> {
    let mut child = start(again("session").stdout(Stdio::piped()))?;
    let mut word = String::new();
    if let Some(stdout) = child.stdout.take() {
        // It ends when the server has let go of it.
        let read = stdout.take(64).read_to_string(&mut word);
        read.map_err(|error| Error::io("cannot hear from the server", error))?;
    }
    child.wait().map_err(|error| Error::io("cannot wait for the server", error))?;
    if word.trim() == UP {
        return Ok(Exit::Done);
    }
    let possible = [Exit::Usage, Exit::Damaged, Exit::Busy, Exit::Refused, Exit::Interrupted, Exit::Failed];
    let told = possible.into_iter().find(|exit| word.trim() == exit.code().to_string());
    told.ok_or_else(|| Error::new(Kind::Io, "the server has ended before it was up"))
}

/// What the leader of the session does.
///
/// # Errors
/// `Kind::Io`.
pub fn lead() -> Result<Exit> {
    let failed = |error: rustix::io::Errno| Error::io("cannot begin a session", error.into());
    rustix::process::setsid().map_err(failed)?;
    start(&mut again("server"))?;
    Ok(Exit::Done)
}

/// Tells the first process that the server is up, and lets go of what it was started with. Standard error stays.
///
/// # Errors
/// `Kind::Io`.
pub fn tell_up(ui: &Ui) -> Result<()> {
    ui.print(UP)?;
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null");
    let null = null.map_err(|error| Error::io("cannot open /dev/null", error))?;
    rustix::stdio::dup2_stdout(&null).map_err(|error| Error::io("cannot end standard output", error.into()))
}

/// Lets go of standard error, where there is no log to take its place.
///
/// # Errors
/// `Kind::Io`.
pub fn silence() -> Result<()> {
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null");
    let null = null.map_err(|error| Error::io("cannot open /dev/null", error))?;
    rustix::stdio::dup2_stderr(&null).map_err(|error| Error::io("cannot end standard error", error.into()))
}

/// Tells the first process that the server is not coming up.
pub fn tell_failure(kind: Kind, ui: &Ui) {
    // Who no longer listens needs no word.
    let _ = ui.print(&Exit::of_kind(kind).code().to_string());
}
