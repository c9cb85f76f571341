//! One run of the machine: it sees the host's files, writes go to memory, and what it prints is here at once.

use super::kernel::Kernel;
use crate::shell::has;
use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What is run, and in which machine.
pub struct Guest {
    /// What boots.
    pub kernel: Kernel,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Files that are `/dev/vmdisk1` and so on.
    pub disks: Vec<PathBuf>,
    /// MiB.
    pub memory: u32,
    /// After so long it is ended.
    pub limit: Duration,
    /// The command is to cut the power; otherwise it is told not to, by DDSNAP_POWER.
    pub is_cut: bool,
}

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The command's exit status.
    Status(i32),
    /// The machine is gone: a power cut, or a panic of its kernel.
    Died,
    /// It took too long.
    Late,
}

/// What may not be missing on the host.
pub const PROGRAMS: [(&str, &str); 3] =
    [("unshare", "util-linux"), ("setpriv", "util-linux"), ("modprobe", "kmod")];

/// Variables that the guest gets as they are here.
const PASSED: [&str; 4] = ["CARGO", "RUST", "DDSNAP", "UPDATE_GOLDEN"];

impl Guest {
    /// Runs it.
    pub fn run(&self) -> Result<End> {
        for (program, package) in PROGRAMS {
            if !has(program) {
                bail!("{program} is not installed (package {package})");
            }
        }
        // Not in /dev/shm: the guest's own is over it.
        let share = tempfile::Builder::new().prefix("ddsnap-vm-").tempdir_in(shares())?;
        self.write_scripts(share.path())?;
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        let mut machine = Machine(self.start(share.path())?);
        let end = self.watch(&mut machine, &share, &stop)?;
        if end == End::Status(0) {
            // What the tests would have written here, had they run here.
            take_over(&share.path().join("files"), &crate::shell::root())?;
            let skipped = fs::read_to_string(share.path().join("skipped")).unwrap_or_default();
            crate::test::note_skipped(&skipped)?;
        }
        if end == End::Late || end == End::Died && !self.is_cut {
            let console = fs::read_to_string(share.path().join("console")).unwrap_or_default();
            let from = console.char_indices().rev().nth(4000).map_or(0, |(at, _)| at);
            eprintln!("--- console\n{}", &console[from..]);
        }
        Ok(end)
    }

    fn watch(&self, machine: &mut Machine, share: &TempDir, stop: &AtomicBool) -> Result<End> {
        let begun = Instant::now();
        let mut out = Relay::new(share.path().join("out"))?;
        let mut err = Relay::new(share.path().join("err"))?;
        loop {
            std::thread::sleep(Duration::from_millis(20));
            let has_ended = machine.0.try_wait()?.is_some();
            out.pump(&mut std::io::stdout())?;
            err.pump(&mut std::io::stderr())?;
            if let Ok(status) = fs::read_to_string(share.path().join("status")) {
                out.pump(&mut std::io::stdout())?;
                err.pump(&mut std::io::stderr())?;
                return Ok(End::Status(status.trim().parse().context("no exit status")?));
            }
            if stop.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            if has_ended {
                return Ok(End::Died);
            }
            if begun.elapsed() > self.limit {
                return Ok(End::Late);
            }
        }
    }

    fn start(&self, share: &Path) -> Result<Child> {
        let console = File::options().append(true).create(true).open(share.join("console"))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare"]).args(super::namespaces());
        // Not as the first process itself, which takes no notice of the signals by which the kernel ends.
        command.args(["--", "sh", "-c", "\"$@\"; exit $?", "machine"]).arg(&self.kernel.image);
        command.arg(format!("mem={}M", self.memory));
        command.args(["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet", "panic=-1"]);
        command.args(["con=null", "con0=null,fd:1", "seccomp=auto"]);
        command.arg(format!("init={}/init.sh", share.display())).arg(format!("uml_dir={}/", share.display()));
        for (number, disk) in self.disks.iter().enumerate() {
            command.arg(format!("ubd{number}={}", disk.display()));
        }
        command.stdin(Stdio::null()).stderr(console.try_clone()?).stdout(console);
        command.spawn().context("cannot start the machine")
    }

    fn write_scripts(&self, share: &Path) -> Result<()> {
        let place = share.to_str().context("the folder for temporary files is no text")?;
        let disk = |number: usize| {
            let letter = ('a'..='p').nth(number).unwrap_or('p');
            format!("ln -s /dev/ubd{letter} /dev/vmdisk{}\n", number + 1)
        };
        let fill = |text: &str| {
            text.replace("@MODPROBE@", &self.kernel.modprobe())
                .replace("@DISKS@", &(0..self.disks.len()).map(disk).collect::<String>())
                .replace("@ENVIRONMENT@", &self.environment())
                .replace("@FOLDER@", &quoted(&std::env::current_dir().unwrap_or_default().to_string_lossy()))
                .replace(
                    "@COMMAND@",
                    &self.command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
                )
                .replace("@SHARE@", place)
        };
        let scripts = [("init.sh", include_str!("init.sh")), ("command.sh", include_str!("command.sh"))];
        for (name, text) in scripts {
            let mut file = File::create(share.join(name))?;
            file.write_all(fill(text).as_bytes())?;
            file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        }
        for name in ["out", "err"] {
            File::create(share.join(name))?;
        }
        Ok(())
    }

    fn environment(&self) -> String {
        let mut lines = String::new();
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        // Without udev, dmsetup makes the nodes of its devices itself.
        let own = [
            ("PATH", path.as_str()),
            ("DM_DISABLE_UDEV", "1"),
            ("TMPDIR", "/run"),
            ("LC_ALL", "C.UTF-8"),
            ("DDSNAP_VM_OUT", "@SHARE@/files"),
            ("DDSNAP_SKIPPED", "@SHARE@/skipped"),
            ("DDSNAP_POWER", if self.is_cut { "is cut" } else { "stays" }),
        ];
        for (name, value) in own {
            lines += &format!("export {name}={}\n", quoted(value));
        }
        for (name, value) in std::env::vars().filter(|(name, _)| own.iter().all(|own| own.0 != name)) {
            if PASSED.iter().any(|begin| name.starts_with(begin)) && !name.ends_with("_RUNNER") {
                lines += &format!("export {name}={}\n", quoted(&value));
            }
        }
        lines
    }
}

/// Copies the files of `from` to the same places in `to`.
fn take_over(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => take_over(&entry.path(), &target)?,
            false => {
                fs::copy(entry.path(), target)?;
            }
        }
    }
    Ok(())
}

/// In memory where that is possible: the guest writes what it prints in step.
fn shares() -> PathBuf {
    let run = Path::new("/run");
    match rustix::fs::access(run, rustix::fs::Access::WRITE_OK) {
        Ok(()) => run.to_path_buf(),
        Err(_) => std::env::temp_dir(),
    }
}

/// A word as the shell reads it back.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Ended with whoever runs it.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Copies what is appended to a file.
struct Relay(File);

impl Relay {
    fn new(path: PathBuf) -> Result<Self> {
        Ok(Self(File::open(path)?))
    }

    fn pump(&mut self, to: &mut impl Write) -> Result<()> {
        let mut bytes = Vec::new();
        self.0.read_to_end(&mut bytes)?;
        to.write_all(&bytes)?;
        to.flush()?;
        Ok(())
    }
}
