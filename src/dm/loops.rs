//! Loop devices over files that a server shows through FUSE, one folder a device: for kernels with neither ublk nor
//! NBD. The folder's name is the identity of the device, so the kernel keeps this list too.
//!
//! Files that are mounted end with their server, and with them what a loop device gives. One below a name is set free
//! as soon as the name holds it: it then goes away with the table that named it.

use super::RUN;
use crate::error::{Error, Kind, Result};
use rustix::mount::{UnmountFlags, unmount};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The file in each of them.
pub const FILE: &str = "volume";

/// Where device number `number` is.
#[must_use]
pub fn path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

/// Where what is behind the device with `identity` is shown.
#[must_use]
pub fn folder(identity: &str) -> PathBuf {
    Path::new(RUN).join(identity)
}

/// The devices there are over such files, with their identities.
#[must_use]
pub fn devices() -> Vec<(u32, String)> {
    let entries = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let mut devices: Vec<_> = entries
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.strip_prefix("loop")?.parse().ok()?;
            let file = std::fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
            Some((number, identity(file.trim_end())?.to_owned()))
        })
        .collect();
    devices.sort();
    devices
}

/// The identity of the device over `file`, if it is such a file.
fn identity(file: &str) -> Option<&str> {
    file.strip_prefix(RUN)?.strip_prefix('/')?.strip_suffix(FILE)?.strip_suffix('/')
}

/// Makes a device for `identity` of what `show` shows in the folder that it is given; returns its number.
///
/// # Errors
/// `Kind::NotFound` if this machine has no loop devices; `Kind::Refused` without the right to; what `show` says.
pub fn connect(
    identity: &str,
    (block_size, is_read_only): (u32, bool),
    show: impl FnOnce(&Path) -> Result<()>,
) -> Result<u32> {
    let folder = folder(identity);
    // What an earlier server has left.
    clear(identity);
    let made = std::fs::create_dir_all(RUN).and_then(|()| DirBuilder::new().mode(0o700).create(&folder));
    made.map_err(|error| refused(error).at_path(&folder))?;
    let set_up = show(&folder).and_then(|()| {
        let (file, size) = (folder.join(FILE), block_size.to_string());
        let access: &[&str] = if is_read_only { &["--read-only"] } else { &[] };
        let words = ["--find", "--show", "--direct-io=on", "--sector-size", &size];
        let told = losetup(&[&words, access].concat(), &file)?;
        let number = told.trim().strip_prefix("/dev/loop").and_then(|number| number.parse().ok());
        number.ok_or_else(|| Error::new(Kind::Io, format!("losetup tells of no device: '{}'", told.trim())))
    });
    if set_up.is_err() {
        clear(identity);
    }
    set_up
}

/// True if what is behind the device with `identity` still is: its server has not ended.
#[must_use]
pub fn is_served(identity: &str) -> bool {
    std::fs::metadata(folder(identity).join(FILE)).is_ok()
}

/// Makes a device as large as what is behind it.
///
/// # Errors
/// `Kind::Io`.
pub fn refresh(number: u32) -> Result<()> {
    losetup(&["--set-capacity"], &path(number)).map(|_| ())
}

/// Takes a device away, at once or when nobody has it open any more. What is gone already is no error.
///
/// # Errors
/// `Kind::Io`.
pub fn release(number: u32) -> Result<()> {
    let is_there = || Path::new(&format!("/sys/block/loop{number}/loop")).exists();
    match is_there() {
        false => Ok(()),
        true => losetup(&["--detach"], &path(number)).map(|_| ()).or_else(|error| match is_there() {
            true => Err(error),
            false => Ok(()),
        }),
    }
}

/// Takes the folder away that was behind the device with `identity`.
pub fn clear(identity: &str) {
    let folder = folder(identity);
    // Nothing may be mounted there, and who still has the file open keeps only that.
    let _ = unmount(&folder, UnmountFlags::DETACH);
    let _ = std::fs::remove_dir(&folder);
}

/// Runs losetup; returns what it prints.
fn losetup(words: &[&str], on: &Path) -> Result<String> {
    let run = |program: &str| Command::new(program).args(words).arg(on).output();
    let output = match run("losetup") {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => run("/usr/sbin/losetup"),
        output => output,
    };
    let output = output.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::new(Kind::NotFound, "losetup is not installed"),
        _ => Error::io(format!("cannot run losetup: {error}"), error),
    })?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(Error::new(Kind::Io, String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

fn refused(error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            Error::new(Kind::Refused, "only root makes devices of the kernel").hint("run it as root")
        }
        _ => Error::io(format!("cannot make the folder: {error}"), error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_tells_whose_device_is_over_it() {
        let file = folder("DDSNAP-0-origin").join(FILE);
        assert_eq!(file.to_str().and_then(identity), Some("DDSNAP-0-origin"));
        for other in ["/run/ddsnap/x/other", "/volume", "/run/ddsnapped/x/volume", "/run/ddsnap/volume"] {
            assert_eq!(identity(other), None, "{other}");
        }
    }
}
