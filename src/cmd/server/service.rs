//! What a server owes its surroundings: the service manager's words and sockets, its process id in a file, memory that
//! is not paged out.

use crate::error::{Error, Kind, Result};
use crate::serve::listen::Listener;
use crate::serve::notify::Manager;
use crate::ui::log::Log;
use listenfd::ListenFd;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, Rlimit, configure_io_flusher_behavior, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities};
use rustix::time::{ClockId, clock_gettime};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where a service manager says that it listens.
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// True if a service manager has started this process.
pub fn is_managed() -> bool {
    std::env::var_os(NOTIFY_SOCKET).is_some()
}

/// The service manager, and when it must hear of this server.
pub struct Service {
    manager: Manager,
    /// How often it must hear that the server is alive.
    watchdog: Option<Watchdog>,
}

struct Watchdog {
    every: Duration,
    last: Instant,
    seen: u64,
}

impl Service {
    /// The service manager of this process's environment, if there is one.
    pub fn of_environment(log: &Log) -> Self {
        let manager = match std::env::var_os(NOTIFY_SOCKET).map(|address| Manager::at(&address)) {
            Some(Ok(manager)) => manager,
            Some(Err(error)) => {
                log.line(&error.to_string());
                Manager::none()
            }
            None => Manager::none(),
        };
        let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let for_this = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let period = number("WATCHDOG_USEC").filter(|period| for_this && *period > 0);
        // Half of what is allowed, as the manual of the protocol wants it.
        let every = period.map(|period| Duration::from_micros(period / 2));
        let watchdog = every.map(|every| Watchdog { every, last: Instant::now(), seen: 0 });
        Self { manager, watchdog }
    }

    /// The server serves.
    pub fn ready(&self, status: &str) {
        self.manager.tell(&format!("READY=1\nSTATUS={status}\nMAINPID={}", std::process::id()));
    }

    /// The server takes up its configuration anew; [`Service::ready`] ends that.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let micros = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1000);
        self.manager.tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    /// The server ends.
    pub fn stopping(&self, status: &str) {
        self.manager.tell(&format!("STOPPING=1\nSTATUS={status}"));
    }

    /// Tells that the server is alive, if it is time to: when it has nothing to do, or has done something since it
    /// was asked last. `done` only grows, with anything that is done at all.
    pub fn beat(&mut self, running: u64, done: u64) {
        let Some(watchdog) = &mut self.watchdog else { return };
        if watchdog.last.elapsed() < watchdog.every {
            return;
        }
        watchdog.last = Instant::now();
        if is_alive(running, done, watchdog.seen) {
            self.manager.tell("WATCHDOG=1");
        }
        watchdog.seen = done;
    }
}

fn is_alive(running: u64, done: u64, seen: u64) -> bool {
    running == 0 || done != seen
}

/// Sockets that a service manager has opened.
#[derive(Default)]
pub struct Inherited {
    /// For clients of NBD.
    pub nbd: Vec<Listener>,
    /// For commands.
    pub control: Option<Listener>,
}

impl Inherited {
    /// Those of this process's environment: named `nbd` or `control`; without names all are for NBD.
    ///
    /// # Errors
    /// `Kind::Usage` for one of another name or kind; `Kind::Io`.
    pub fn of_environment() -> Result<Self> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').filter(|name| !name.is_empty());
        let mut sockets = ListenFd::from_env();
        let mut inherited = Self::default();
        for number in 0..sockets.len() {
            let wrong = |what: String| Error::new(Kind::Usage, format!("inherited socket {number}: {what}"));
            let name = names.next().unwrap_or("nbd");
            match (name, listener(&mut sockets, number).map_err(|error| wrong(error.to_string()))?) {
                ("nbd", Some(listener)) => inherited.nbd.push(listener),
                ("control", Some(listener)) if inherited.control.is_none() => {
                    inherited.control = Some(listener);
                }
                ("control", Some(_)) => return Err(wrong("a second one named 'control'".to_owned())),
                (name, _) => {
                    let what = format!("it is named '{name}', expected 'nbd' or 'control'");
                    return Err(wrong(what).hint("FileDescriptorName= in the unit of the socket names it"));
                }
            }
        }
        Ok(inherited)
    }
}

fn listener(sockets: &mut ListenFd, number: usize) -> Result<Option<Listener>> {
    if let Ok(Some(socket)) = sockets.take_unix_listener(number) {
        return Listener::of_unix(socket).map(Some);
    }
    match sockets.take_tcp_listener(number) {
        Ok(socket) => socket.map(Listener::of_tcp).transpose(),
        Err(error) => Err(Error::new(Kind::Usage, format!("it is no socket to listen on: {error}"))),
    }
}

/// A file with the number of this process, removed with it.
pub struct PidFile(PathBuf);

impl PidFile {
    /// Writes the file at `path`, whole or not at all.
    ///
    /// # Errors
    /// `Kind::Usage` if there is something that is no such file; `Kind::Io`.
    pub fn write(path: &Path) -> Result<Self> {
        if std::fs::symlink_metadata(path).is_ok() && !is_pidfile(path) {
            return Err(
                Error::new(Kind::Usage, "this is no file with a process id: it is left alone").at_path(path)
            );
        }
        let failed = |error: std::io::Error| {
            Error::io(format!("cannot write the process id: {error}"), error).at_path(path)
        };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(folder)
            .map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        file.persist(path).map_err(|error| failed(error.error))?;
        Ok(Self(path.to_path_buf()))
    }
}

/// True for a file with a number, or nothing, in it.
fn is_pidfile(path: &Path) -> bool {
    const LONG: u64 = 32;
    let is_short = std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() <= LONG);
    is_short
        && std::fs::read_to_string(path).is_ok_and(|text| {
            let text = text.trim();
            text.is_empty() || text.parse::<u32>().is_ok()
        })
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Somebody may have removed it.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Prepares for a volume that the machine of the server uses itself: writing out memory to make room must not wait
/// for memory that this process asks for. What is not permitted is said and done without.
pub fn keep_in_memory(log: &Log) {
    let mut without = Vec::new();
    // With a limit, a lock of all memory to come would make some later wish for memory fail.
    let unlimited = getrlimit(Resource::Memlock).current.is_none()
        || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if !unlimited || mlockall(all).is_err() {
        without.push("its memory is not locked");
    }
    if configure_io_flusher_behavior(true).is_err() {
        without.push("it is no IO flusher (prctl)");
    }
    if !without.is_empty() {
        log.note(&format!(
            "{}: no leave (CAP_IPC_LOCK, CAP_SYS_RESOURCE); do not mount the volume on this machine itself",
            without.join(" and ")
        ));
    }
}

/// Takes as many descriptors as it may have: each client needs some, and systems give few at first.
pub fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    // With fewer it serves fewer clients, who are told.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_work_and_does_nothing_is_not_alive() {
        assert!(is_alive(0, 5, 5), "nothing to do");
        assert!(is_alive(3, 6, 5));
        assert!(!is_alive(3, 5, 5));
    }
}
