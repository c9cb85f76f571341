//! `dmsetup` and `agent`: what scripts of 2008 call, on a kernel that knows no target of the name ddsnap.

use super::attach::Served;
use super::overlap;
use crate::dm::{device, mapper};
use crate::error::{Error, Kind, Result};
use crate::point::volume::SnapshotInfo;
use crate::ui::Ui;
use crate::ui::exit::Exit;
use crate::units::Tag;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const EXAMPLES: &str = "Examples:
  echo \"0 2048 ddsnap data.snap data.img data.sock -1\" | ddsnap dmsetup create data
  echo \"0 2048 ddsnap data.snap data.img data.sock 3\" | ddsnap dmsetup create 'data(3)'
  ddsnap dmsetup ls";

/// Do what dmsetup did with a target 'ddsnap', for scripts of 2008
///
/// 'create NAME' with the table '0 SECTORS ddsnap STORE ORIGIN SOCK TAG' makes the device that 'ddsnap attach' makes,
/// under that name; TAG -1 is the origin. 'remove NAME' takes away such a device with what is behind it. Everything
/// else goes to dmsetup as it is.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What dmsetup is given
    #[arg(value_name = "ARGUMENT", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// `Kind::Usage` for a table that makes no sense; `Kind::Mismatch` for one that is of another volume; as `attach`.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let words: Vec<&str> = args.words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["create", name, rest @ ..] => create(name, rest, ui),
        ["remove", name] => remove(name),
        _ => Err(hand_over(&words)),
    }
}

/// Becomes dmsetup; returns only if that fails.
fn hand_over(words: &[&str]) -> Error {
    not_run(&Command::new("dmsetup").args(words).exec())
}

fn not_run(error: &std::io::Error) -> Error {
    Error::new(Kind::NotFound, format!("cannot run dmsetup: {error}"))
}

fn create(name: &str, rest: &[&str], ui: &Ui) -> Result<Exit> {
    let doing = |error: Error| error.doing(format!("cannot create {name}"));
    let read = |error| doing(Error::io("cannot read the table", error));
    let table = match rest {
        ["--table", table] => (*table).to_owned(),
        [] => std::io::read_to_string(std::io::stdin().take(TABLE_MAX)).map_err(read)?,
        [path] if !path.starts_with('-') => std::fs::read_to_string(path).map_err(read)?,
        _ => return Err(hand_over(&[&["create", name], rest].concat())),
    };
    if let Some(line) = Line::parse(&table).map_err(doing)? {
        return line.create(name, ui).map_err(doing).map(|()| Exit::Done);
    }
    if !rest.is_empty() {
        return Err(hand_over(&[&["create", name], rest].concat()));
    }
    let mut child = Command::new("dmsetup");
    let mut child =
        child.args(["create", name]).stdin(Stdio::piped()).spawn().map_err(|error| not_run(&error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // If it does not read it, it says why.
        let _ = stdin.write_all(table.as_bytes());
    }
    let status = child.wait().map_err(|error| not_run(&error))?;
    Ok(if status.success() { Exit::Done } else { Exit::Failed })
}

/// Longest table that is read.
const TABLE_MAX: u64 = 16 << 20;

fn remove(name: &str) -> Result<Exit> {
    let found = device::all("", &[])?;
    let found: Vec<_> = found
        .into_iter()
        .filter(|device| device.mapped.as_ref().is_some_and(|mapped| mapped.name == name))
        .collect();
    if found.is_empty() || !mapper::is_available() {
        return Err(hand_over(&["remove", name]));
    }
    device::detach(&found).map_err(|error| error.doing(format!("cannot remove {name}")))?;
    Ok(Exit::Done)
}

/// A table of 2008.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    sectors: u64,
    store: PathBuf,
    origin: PathBuf,
    socket: PathBuf,
    /// `None` for the origin.
    tag: Option<Tag>,
}

impl Line {
    /// Reads a table; `None` if it is of other targets.
    fn parse(table: &str) -> Result<Option<Self>> {
        let mut lines = table.lines().filter(|line| !line.trim().is_empty());
        let words: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
        if words.get(2) != Some(&"ddsnap") {
            return Ok(None);
        }
        let wrong = || {
            Error::new(Kind::Usage, format!("'{}' is no table of ddsnap", words.join(" ")))
                .hint("write '0 SECTORS ddsnap STORE ORIGIN SOCK TAG', TAG -1 for the origin")
        };
        let ([start, sectors, _, store, origin, socket, tag], None) = (words.as_slice(), lines.next()) else {
            return Err(wrong());
        };
        let tag = match *tag {
            "-1" | "4294967295" => None,
            tag => Some(Tag(tag.parse().map_err(|_| wrong())?)),
        };
        let sectors = sectors.parse().map_err(|_| wrong())?;
        if *start != "0" {
            return Err(wrong());
        }
        let [store, origin, socket] = [store, origin, socket].map(PathBuf::from);
        Ok(Some(Self { sectors, store, origin, socket, tag }))
    }

    fn create(&self, name: &str, ui: &Ui) -> Result<()> {
        // In 2008 the socket was that of an agent, which knew the server; a server is known by its store too.
        let served = match Served::find(&self.socket) {
            Err(error) => Served::find(&self.store).map_err(|_| error)?,
            served => served?,
        };
        let snapshot = self.tag.map(|tag| served.tagged(tag)).transpose()?;
        served.ensure_is(&self.store, &self.origin)?;
        self.ensure_size(served.size(snapshot))?;
        ui.explain(&served.attach(snapshot, name)?);
        Ok(())
    }

    fn ensure_size(&self, bytes: u64) -> Result<()> {
        if self.sectors == bytes / 512 {
            return Ok(());
        }
        let what = format!("the table has {} sectors, the volume {}", self.sectors, bytes / 512);
        Err(Error::new(Kind::Mismatch, what).hint("'ddsnap status --size' tells the sectors"))
    }
}

impl Served {
    fn tagged(&self, tag: Tag) -> Result<&SnapshotInfo> {
        let found = self.snapshots.iter().find(|snapshot| snapshot.tag == tag);
        found.ok_or_else(|| Error::new(Kind::NotFound, format!("there is no snapshot {tag}")))
    }

    fn ensure_is(&self, store: &Path, origin: &Path) -> Result<()> {
        for (named, found) in [(store, &self.info.store_path), (origin, &self.info.origin_path)] {
            if !overlap::is_same(named, found) {
                let what = format!("the server has {} instead", found.display());
                return Err(Error::new(Kind::Mismatch, what).at_path(named));
            }
        }
        Ok(())
    }
}

const AGENT_EXAMPLES: &str = "Examples:
  ddsnap agent data.agent
  ddsnap agent -p data.pid -l data.log data.agent";

/// Do nothing: there is no agent any more
///
/// In 2008 an agent introduced the kernel to the server. Scripts that start one need not be changed: the command takes
/// its options of 2008 and succeeds.
#[derive(Debug, clap::Args)]
#[command(after_help = AGENT_EXAMPLES)]
pub struct AgentArgs {
    /// The socket at which the agent was
    #[arg(value_name = "SOCK")]
    socket: PathBuf,
    /// In the foreground
    #[arg(short, hide = true)]
    foreground: bool,
    /// A log
    #[arg(short, value_name = "FILE", hide = true)]
    logfile: Option<PathBuf>,
    /// A file for the process id
    #[arg(short, value_name = "FILE", hide = true)]
    pidfile: Option<PathBuf>,
}

/// Runs `agent`.
///
/// # Errors
/// None.
pub fn agent(args: &AgentArgs, ui: &Ui) -> Result<Exit> {
    let in_vain = args.foreground || args.logfile.is_some() || args.pidfile.is_some();
    ui.explain(&format!(
        "{}: no agent is needed{}",
        args.socket.display(),
        if in_vain { ", nor its options" } else { "" }
    ));
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_2008_are_read() {
        let line = Line::parse("0 2048 ddsnap /dev/s /dev/o /run/a -1\n").unwrap().unwrap();
        assert_eq!((line.sectors, line.tag), (2048, None));
        assert_eq!(line.socket, Path::new("/run/a"));
        let line = Line::parse(" 0  2048 ddsnap s o a 7").unwrap().unwrap();
        assert_eq!(line.tag, Some(Tag(7)));
        for other in ["", "0 8 linear /dev/x 0", "0 8 zero\n8 8 zero"] {
            assert_eq!(Line::parse(other).unwrap(), None, "{other}");
        }
        let wrong =
            ["0 8 ddsnap s o a", "8 8 ddsnap s o a 1", "0 8 ddsnap s o a 1\n8 8 zero", "0 8 ddsnap s o a x"];
        for wrong in wrong {
            assert_eq!(Line::parse(wrong).unwrap_err().kind(), Kind::Usage, "{wrong}");
        }
    }
}
