//! Files that are not whole yet: one that is kept when the process that writes it ends early, so that the next one
//! can go on, and one that gets its name when it is whole. Their names end in `.part`, so that what a crash leaves
//! behind is seen for what it is.

use crate::error::{Error, Kind, Result};
use rustix::fs::{Mode, OFlags};
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use tempfile::NamedTempFile;

/// Creates a file beside `destination` that can be given its name; dropped, it is gone. Its own name is
/// `.NAME.RANDOM.part`.
///
/// # Errors
/// What the system says.
pub fn create_beside(destination: &Path) -> std::io::Result<NamedTempFile> {
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(destination.file_name().unwrap_or_default());
    prefix.push(".");
    tempfile::Builder::new().prefix(&prefix).suffix(".part").make_in(folder_of(destination), |path| {
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o666).open(path)
    })
}

/// The folder that holds `path`.
#[must_use]
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Opens the part at `path`, made with `mode` if it is not there, and locked for as long as it is open. A
/// link is not followed and a file of somebody else is not believed: the folder may be open to all.
///
/// # Errors
/// `Kind::Busy` if another process has it; `Kind::Refused` for what is not a file of this user; `Kind::Io`.
pub fn open_part(path: &Path, mode: u32) -> Result<File> {
    let failed = |error| Error::io(format!("cannot open it: {error}"), error).at_path(path);
    loop {
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::from_raw_mode(mode)).map_err(|e| failed(e.into()))?;
        let file = File::from(fd);
        lock(&file, path)?;
        let (meta, named) = (file.metadata().map_err(failed)?, std::fs::symlink_metadata(path));
        // Whoever held the lock before may have finished, and given the file its name or removed it.
        if !named.is_ok_and(|named| (named.dev(), named.ino()) == (meta.dev(), meta.ino())) {
            continue;
        }
        if meta.is_file() && meta.nlink() == 1 && meta.uid() == rustix::process::geteuid().as_raw() {
            return Ok(file);
        }
        let what = "is not a plain file of this user, so nothing can be kept there";
        return Err(Error::new(Kind::Refused, what).at_path(path).hint("remove it, or name another place"));
    }
}

/// Opens the part at `path` for reading only; `None` if there is none. Not locked: who waits for data to write to it
/// has it open already when the other end of the pipe asks how far it is.
///
/// # Errors
/// `Kind::Io`.
pub fn open_part_read(path: &Path) -> Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(File::from(fd))),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(Error::io(format!("cannot open it: {error}"), error.into()).at_path(path)),
    }
}

fn lock(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(Error::new(Kind::Busy, "another process is writing it")
            .at_path(path)
            .hint("wait for that process to end, or stop it; fuser -v names it")),
        Err(TryLockError::Error(e)) => Err(Error::io(format!("cannot lock: {e}"), e).at_path(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time_and_no_links() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("part");
        assert!(open_part_read(&path).unwrap().is_none());
        let first = open_part(&path, 0o600).unwrap();
        assert_eq!(open_part(&path, 0o600).unwrap_err().kind(), Kind::Busy);
        assert!(open_part_read(&path).unwrap().is_some());
        drop(first);
        assert!(open_part_read(&path).unwrap().is_some());
        std::fs::hard_link(&path, dir.path().join("other")).unwrap();
        assert_eq!(open_part(&path, 0o600).unwrap_err().kind(), Kind::Refused);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &link).unwrap();
        assert_eq!(open_part(&link, 0o600).unwrap_err().kind(), Kind::Io);
        assert!(!dir.path().join("nowhere").exists());
    }
}
