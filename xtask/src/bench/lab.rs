//! The scratch folder, running and timing programs, alternating repetitions. Everything made here is gone when
//! the lab is, also after an interrupt.

use anyhow::{Context, Result, bail, ensure};
use std::cell::RefCell;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tempfile::TempDir;

/// What a row needs and this machine does not have.
#[derive(Debug)]
pub struct Missing(pub String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl std::error::Error for Missing {}

/// The medians of two sides, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Duel {
    pub ours: f64,
    pub theirs: f64,
}

impl Duel {
    /// How many times as fast we are.
    pub fn speed(&self) -> f64 {
        self.theirs / self.ours
    }
}

/// What one run of a program took.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Seconds of processor time, user and system, of all threads.
    pub cpu: f64,
    /// Peak of resident memory in KiB.
    pub memory_kib: u64,
}

/// Where and how to measure.
pub struct Lab {
    binary: PathBuf,
    folder: TempDir,
    size: u64,
    runs: usize,
    stop: Arc<AtomicBool>,
    mounts: RefCell<Vec<PathBuf>>,
}

type Act<'a> = &'a dyn Fn(usize) -> Result<()>;

impl Lab {
    /// A lab in a new folder below `parent`, for volumes of `size` bytes.
    pub fn new(binary: PathBuf, parent: Option<&Path>, size: u64, runs: usize) -> Result<Self> {
        let parent = parent.map_or_else(|| crate::shell::root().join("target"), Path::to_path_buf);
        let folder = tempfile::Builder::new()
            .prefix("ddsnap-bench-")
            .tempdir_in(&parent)
            .with_context(|| format!("cannot make a folder in {}", parent.display()))?;
        // Programs that run meanwhile die of the signal themselves, which ends the row with an error.
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&stop)).context("cannot catch signals")?;
        }
        Ok(Self { binary, folder, size, runs, stop, mounts: RefCell::default() })
    }

    /// Our program.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Bytes of the volume.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Repetitions of each side.
    pub fn runs(&self) -> usize {
        self.runs
    }

    /// A lab for the same measurement in memory instead of on a disk; `None` without room for `bytes` there.
    pub fn in_memory(&self, bytes: u64) -> Result<Option<Self>> {
        let parent = Path::new("/dev/shm");
        if !parent.is_dir() {
            return Ok(None);
        }
        let lab = Self::new(self.binary.clone(), Some(parent), self.size, self.runs)?;
        Ok((lab.free_bytes()? > bytes + (1 << 30)).then_some(lab))
    }

    /// Bytes free in the scratch folder.
    pub fn free_bytes(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(self.folder.path())?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// The path of scratch file `name`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// True once the user asked to stop.
    pub fn stop_wanted(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Removes everything a row made.
    pub fn clear(&self) -> Result<()> {
        for mount in self.mounts.borrow_mut().drain(..).rev() {
            finish(Command::new("umount").arg(&mount))?;
        }
        for entry in fs::read_dir(self.folder.path())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Our program, in the scratch folder.
    pub fn ddsnap(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args).current_dir(self.folder.path());
        command
    }

    /// Another program, in the scratch folder.
    pub fn program(&self, name: &str, args: &[&str]) -> Command {
        let mut command = Command::new(name);
        command.args(args).current_dir(self.folder.path());
        command
    }

    /// Runs our program.
    pub fn run(&self, args: &[&str]) -> Result<()> {
        finish(&mut self.ddsnap(args)).map(drop)
    }

    /// Runs a command under time(1), its input from `input`, and says what it took.
    pub fn cost(&self, command: &Command, input: Stdio) -> Result<Cost> {
        need("time")?;
        let report = self.path("time.txt");
        let mut timed = Command::new("time");
        timed.args(["-f", "%U %S %M", "-o"]).arg(&report).arg(command.get_program()).args(command.get_args());
        let output = timed.current_dir(self.folder.path()).stdin(input).output()?;
        // For fsck(8), 1 means that it repaired what it was asked to.
        let repaired =
            command.get_args().next().is_some_and(|word| word == "fsck") && output.status.code() == Some(1);
        ensure!(
            output.status.success() || repaired,
            "{}: {}\n{}",
            crate::shell::words(command),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        // A status other than 0 is told in a line before the figures.
        let text = fs::read_to_string(&report)?;
        fs::remove_file(&report)?;
        let fields: Vec<&str> = text.lines().last().unwrap_or_default().split_whitespace().collect();
        let [user, system, memory] = fields.as_slice() else { bail!("time wrote {text:?}") };
        let cpu = user.parse::<f64>()? + system.parse::<f64>()?;
        Ok(Cost { cpu, memory_kib: memory.parse()? })
    }

    /// Mounts `image` on new folder `name` through a loop device, until the row ends.
    pub fn mount(&self, image: &str, name: &str) -> Result<()> {
        let folder = self.path(name);
        fs::create_dir(&folder)?;
        let output =
            Command::new("mount").args(["-o", "loop"]).arg(self.path(image)).arg(&folder).output()?;
        if !output.status.success() {
            bail!(Missing(format!("mounting failed: {}", String::from_utf8_lossy(&output.stderr).trim())));
        }
        self.mounts.borrow_mut().push(folder);
        Ok(())
    }

    /// The medians of both sides, run in turns so that whatever else the machine does hits both. `before` runs
    /// untimed before each of them. Every act is told the number of its repetition.
    pub fn duel(&self, before: Act<'_>, ours: Act<'_>, theirs: Act<'_>) -> Result<Duel> {
        self.duel_of(self.runs, before, ours, theirs)
    }

    /// As [`Lab::duel`], of acts so short that many of them cost nothing.
    pub fn quick_duel(&self, before: Act<'_>, ours: Act<'_>, theirs: Act<'_>) -> Result<Duel> {
        self.duel_of(self.runs * 5, before, ours, theirs)
    }

    fn duel_of(&self, runs: usize, before: Act<'_>, ours: Act<'_>, theirs: Act<'_>) -> Result<Duel> {
        let (mut us, mut them) = (Vec::new(), Vec::new());
        for number in 0..runs {
            for (times, act) in [(&mut us, ours), (&mut them, theirs)] {
                ensure!(!self.stop_wanted(), "interrupted");
                before(number)?;
                let start = Instant::now();
                act(number)?;
                times.push(start.elapsed().as_secs_f64());
            }
        }
        Ok(Duel { ours: median(us), theirs: median(them) })
    }

    /// The median of `act`, run alone; it returns its own time.
    pub fn alone(&self, act: &dyn Fn(usize) -> Result<f64>) -> Result<f64> {
        let mut times = Vec::new();
        for number in 0..self.runs {
            ensure!(!self.stop_wanted(), "interrupted");
            times.push(act(number)?);
        }
        Ok(median(times))
    }

    /// Writes out what earlier acts left in memory, so that nobody pays for another's work.
    pub fn settle(&self) -> Result<()> {
        rustix::fs::syncfs(File::open(self.folder.path())?)?;
        Ok(())
    }

    /// Fails unless both files hold the same bytes.
    pub fn same(&self, a: &str, b: &str) -> Result<()> {
        let (mut left, mut right) = (File::open(self.path(a))?, File::open(self.path(b))?);
        ensure!(left.metadata()?.len() == right.metadata()?.len(), "{a} and {b} have different sizes");
        let (mut one, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        let mut at = 0;
        loop {
            let len = left.read(&mut one)?;
            if len == 0 {
                return Ok(());
            }
            right.read_exact(&mut other[..len])?;
            ensure!(one[..len] == other[..len], "{a} and {b} differ after byte {at}");
            at += len;
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The folder goes with its `TempDir`; what is mounted in it must go first.
        if let Err(error) = self.clear() {
            eprintln!("xtask: {error:#}");
        }
    }
}

/// Fails as [`Missing`] if `program` is not installed.
pub fn need(program: &str) -> Result<()> {
    if crate::shell::has(program) { Ok(()) } else { bail!(Missing(format!("{program} is not installed"))) }
}

/// Runs a command to its end, and fails if it fails.
pub fn finish(command: &mut Command) -> Result<Output> {
    finish_with(command, Stdio::null())
}

/// As [`finish`], with an input.
pub fn finish_with(command: &mut Command, input: Stdio) -> Result<Output> {
    let text = crate::shell::words(command);
    let output = command.stdin(input).output().with_context(|| format!("cannot run {text}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{text}: {}\n{said}", output.status);
    Ok(output)
}

/// Runs a command and reads what it writes into a pipe, as ssh would. Returns the number of bytes.
pub fn drain(command: &mut Command) -> Result<u64> {
    let text = crate::shell::words(command);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut output = child.stdout.take().context("no pipe")?;
    let mut buf = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match output.read(&mut buf)? {
            0 => break,
            len => bytes += len as u64,
        }
    }
    let status = child.wait()?;
    ensure!(status.success(), "{text}: {status} after {bytes} bytes");
    Ok(bytes)
}

/// Runs two commands with a pipe between them.
pub fn pipe(first: &mut Command, second: &mut Command) -> Result<()> {
    let mut producer = first.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let output = producer.stdout.take().context("no pipe")?;
    let consumed = finish_with(second, output.into());
    let status = producer.wait()?;
    consumed?;
    ensure!(status.success(), "{}: {status}", crate::shell::words(first));
    Ok(())
}

/// The middle one.
pub fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]).to_bits(), 2f64.to_bits());
        assert!(median(Vec::new()).is_nan());
    }
}
