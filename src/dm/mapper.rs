//! Device-mapper, through `dmsetup`: it knows udev, escapes names as everybody else does, and is there where
//! device-mapper is.

use crate::error::{Error, Kind, Result};
use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    /// Its name, as people write it.
    pub name: String,
    /// What made it gave it that, if anything.
    pub uuid: String,
    /// How many have it open: mounts, other devices, programs.
    pub open_count: u32,
    /// Its minor number: it is `/dev/dm-N` too.
    pub minor: u32,
}

impl Mapped {
    /// Its node.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        path(&self.name)
    }
}

/// Where the device `name` is.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    Path::new("/dev/mapper").join(name)
}

/// True if there are names to be had.
#[must_use]
pub fn is_available() -> bool {
    ask(["version"]).is_ok()
}

/// All devices.
///
/// # Errors
/// What dmsetup says.
pub fn list() -> Result<Vec<Mapped>> {
    let text = ask(["info", "-c", "--noheadings", "--separator", "\t", "-o", "uuid,open,minor,name"])?;
    Ok(text.lines().filter_map(parse).collect())
}

fn parse(line: &str) -> Option<Mapped> {
    // "No devices found" is no line of four.
    let mut words = line.splitn(4, '\t');
    let uuid = words.next()?.to_owned();
    let (open_count, minor) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(Mapped { uuid, open_count, minor, name: words.next()?.to_owned() })
}

/// True if there is a device that was given `uuid`. Anybody may ask, and dmsetup is not needed.
#[must_use]
pub fn has_uuid(uuid: &str) -> bool {
    let entries = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let mut found = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("dm/uuid")).ok());
    found.any(|found| found.trim_end() == uuid)
}

/// The device `name`.
///
/// # Errors
/// What dmsetup says.
pub fn find(name: &str) -> Result<Option<Mapped>> {
    Ok(list()?.into_iter().find(|mapped| mapped.name == name))
}

/// Makes the device `name` of `table`.
///
/// # Errors
/// `Kind::Exists` for a name that is taken; what dmsetup says.
pub fn create(name: &str, uuid: &str, table: &str, is_read_only: bool) -> Result<()> {
    if find(name)?.is_some() {
        return Err(Error::new(Kind::Exists, "there is a device of this name").at_path(&path(name)));
    }
    let mut words = vec!["create", name, "--uuid", uuid];
    words.extend(is_read_only.then_some("--readonly"));
    feed(&words, table)?;
    let made = find(name)?.ok_or_else(|| Error::new(Kind::Io, format!("dmsetup has not made {name}")))?;
    ensure_node(&made)
}

/// udev puts an underscore where it does not like a letter, a parenthesis for example.
fn ensure_node(mapped: &Mapped) -> Result<()> {
    let path = mapped.path();
    if path.exists() {
        return Ok(());
    }
    std::os::unix::fs::symlink(format!("../dm-{}", mapped.minor), &path)
        .map_err(|error| Error::io(format!("cannot make the node: {error}"), error).at_path(&path))
}

/// Takes the device `name` away.
///
/// # Errors
/// `Kind::Busy` if somebody has it open; what dmsetup says.
pub fn remove(name: &str) -> Result<()> {
    if let Some(found) = find(name)?
        && found.open_count > 0
    {
        return Err(busy(&found));
    }
    if let Err(error) = ask(["remove", "--retry", name]) {
        // Somebody else may have wanted the same.
        return if find(name)?.is_none() { Ok(()) } else { Err(error) };
    }
    let path = path(name);
    if path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_symlink()) && !path.exists() {
        // What `ensure_node` has made; who was faster has done the same.
        let _ = std::fs::remove_file(&path);
    }
    Ok(())
}

/// Says that a device is in use.
#[must_use]
pub fn busy(mapped: &Mapped) -> Error {
    let path = mapped.path();
    let holder = crate::block::mount::held_by(&path).ok().flatten();
    let what = holder.map_or_else(|| "it is in use".to_owned(), |holder| format!("it is {holder}"));
    Error::new(Kind::Busy, what)
        .at_path(&path)
        .hint("unmount it first; 'lsblk' and 'fuser -v' name who uses it")
}

/// Gives a device another table, from its next [`resume`] on.
///
/// # Errors
/// What dmsetup says.
pub fn load(name: &str, table: &str) -> Result<()> {
    feed(&["load", name], table).map(|_| ())
}

/// Makes requests wait, once those under way are done. A file system on it is not frozen: to write all that it has in
/// memory may take minutes, in which its users would wait, and could not be broken off. Whoever does this at the same
/// time is waited for, be it a dmsetup that has outlived the command that ran it: none comes after this.
///
/// # Errors
/// What dmsetup says.
pub fn suspend(name: &str) -> Result<()> {
    let is_suspended = || ask(["info", "-c", "--noheadings", "-o", "suspended", name]);
    match ask(["suspend", "--noflush", "--nolockfs", name]) {
        // The one that was waited for has done it.
        Err(_) if is_suspended()?.trim() == "Suspended" => Ok(()),
        done => done.map(|_| ()),
    }
}

/// Lets requests through, by the table that was loaded last.
///
/// # Errors
/// What dmsetup says.
pub fn resume(name: &str) -> Result<()> {
    ask(["resume", name]).map(|_| ())
}

/// Forgets the table that was loaded and is not in force yet.
///
/// # Errors
/// What dmsetup says.
pub fn clear(name: &str) -> Result<()> {
    ask(["clear", name]).map(|_| ())
}

/// True if there are devices of kind `target`.
///
/// # Errors
/// What dmsetup says.
pub fn has_target(target: &str) -> Result<bool> {
    let is_there = || {
        ask(["targets"]).map(|text| text.lines().any(|line| line.split_whitespace().next() == Some(target)))
    };
    if is_there()? {
        return Ok(true);
    }
    // Whether that helped shows next.
    let _ = Command::new("modprobe").arg(format!("dm-{target}")).stderr(Stdio::null()).status();
    is_there()
}

/// The table of a device.
///
/// # Errors
/// What dmsetup says.
pub fn table(name: &str) -> Result<String> {
    Ok(ask(["table", "--showkeys", name])?.trim_end().to_owned())
}

/// The name of the device at `path`, if it is one of device-mapper.
#[must_use]
pub fn name_of(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path).ok().filter(|meta| meta.file_type().is_block_device())?;
    let minor = rustix::fs::minor(meta.rdev());
    let sys = format!("/sys/dev/block/{}:{minor}/dm", rustix::fs::major(meta.rdev()));
    Path::new(&sys).exists().then_some(())?;
    list().ok()?.into_iter().find(|mapped| mapped.minor == minor).map(|mapped| mapped.name)
}

/// Starts dmsetup; users without root rarely search the folder where it is.
fn dmsetup(words: &[&str]) -> Result<Child> {
    let start = |program: &str| {
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    };
    match start("dmsetup") {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => start("/usr/sbin/dmsetup"),
        started => started,
    }
    .map_err(not_run)
}

fn not_run(error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => Error::new(Kind::NotFound, "dmsetup is not installed"),
        _ => Error::io(format!("cannot run dmsetup: {error}"), error),
    }
}

fn outcome(output: &std::process::Output, doing: &str) -> Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<&str> = said.lines().map(str::trim).filter(|line| *line != "Command failed.").collect();
    let kind = if said.iter().any(|line| line.contains("busy")) { Kind::Busy } else { Kind::Io };
    Err(Error::new(kind, format!("dmsetup {doing}: {}", said.join("; "))))
}

fn ask<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<String> {
    feed(&words.into_iter().collect::<Vec<_>>(), "")
}

/// Runs dmsetup with a table on its standard input.
fn feed(words: &[&str], table: &str) -> Result<String> {
    let mut child = dmsetup(words)?;
    if let Some(mut stdin) = child.stdin.take() {
        // If it does not read it, it says why.
        let _ = stdin.write_all(table.as_bytes());
    }
    let output = child.wait_with_output().map_err(not_run)?;
    outcome(&output, words.first().copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_dmsetup_are_read() {
        let line = "DDSNAP-x-origin\t1\t3\tvol(0)";
        let expected =
            Mapped { name: "vol(0)".into(), uuid: "DDSNAP-x-origin".into(), open_count: 1, minor: 3 };
        assert_eq!(parse(line), Some(expected));
        assert_eq!(parse("\t0\t0\tlv").map(|mapped| mapped.uuid), Some(String::new()));
        assert_eq!(parse("No devices found"), None);
        assert_eq!(parse(""), None);
    }
}
