//! Opening files and devices: what is taken for one, for whom it is locked, and in which words it is refused.

use super::direct::Alignment;
use super::lock::Lock;
use super::mount::sys_block;
use crate::error::{Error, Kind, Result};
use rustix::fs::{Mode, OFlags};
use std::fs::{File, FileType};
use std::io::{ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How to open and lock.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// To read, beside whoever writes.
    Read,
    /// As `Read`, past the page cache.
    ReadDirect,
    /// To read what nobody writes meanwhile.
    ReadLocked,
    /// Alone.
    Write,
    /// To write alone past the page cache, while the kernel may have it mapped.
    WriteDirect,
}

impl Access {
    pub fn writes(self) -> bool {
        matches!(self, Self::Write | Self::WriteDirect)
    }

    pub fn lock(self) -> Option<Lock> {
        match self {
            Self::ReadLocked => Some(Lock::Shared),
            Self::Write | Self::WriteDirect => Some(Lock::Exclusive),
            Self::Read | Self::ReadDirect => None,
        }
    }
}

/// An open file or device, its path and what it is.
#[derive(Debug)]
pub(super) struct Handle {
    pub file: Arc<File>,
    pub path: PathBuf,
    pub is_device: bool,
    pub size: u64,
    /// Set if it is used past the page cache.
    pub direct: Option<Alignment>,
    /// The file behind a loop device, locked as the device is: it is the same store by another name.
    pub _backing: Option<File>,
}

/// Refuses what is neither a regular file nor a block device; true for a block device.
fn ensure_usable(path: &Path, file_type: FileType) -> Result<bool> {
    let found = if file_type.is_file() || file_type.is_block_device() {
        return Ok(file_type.is_block_device());
    } else if file_type.is_dir() {
        "a directory"
    } else if file_type.is_fifo() {
        "a named pipe"
    } else if file_type.is_char_device() {
        "a character device"
    } else if file_type.is_socket() {
        "a socket"
    } else {
        "something else"
    };
    let what = format!("is {found}, expected a regular file or a block device");
    Err(Error::new(Kind::Usage, what).at_path(path))
}

/// Opens the file or device at `path`.
///
/// # Errors
/// `Kind::NotFound`; `Kind::Usage` if it is neither; `Kind::Busy` if another process holds it; `Kind::Io`.
pub(super) fn open(path: &Path, access: Access) -> Result<Handle> {
    // Looked at before it is opened, because opening a named pipe would wait for its other end.
    let before = std::fs::metadata(path).map_err(|e| open_error(path, access, e))?;
    let is_device = ensure_usable(path, before.file_type())?;

    let mut flags = OFlags::CLOEXEC | if access.writes() { OFlags::RDWR } else { OFlags::RDONLY };
    let mut direct = None;
    if matches!(access, Access::ReadDirect | Access::WriteDirect) {
        flags |= OFlags::DIRECT;
        direct = Alignment::new(block_size(before.rdev()));
    } else if is_device && access.writes() {
        // On a block device O_EXCL means: refuse if a mount, a mapping or another exclusive opener holds it.
        flags |= OFlags::EXCL;
    }
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| open_error(path, access, e.into()))?;
    let mut file = File::from(fd);
    let meta = file.metadata().map_err(|e| open_error(path, access, e))?;
    let is_device = ensure_usable(path, meta.file_type())?;

    let mut backing = None;
    if let Some(lock) = access.lock() {
        lock.take(&file, path, is_device)?;
        if is_device {
            backing = lock.take_backing(meta.rdev())?;
        }
    }
    // The size counts only once the lock is held: a writer may have been changing it.
    let size = file
        .seek(SeekFrom::End(0))
        .map_err(|e| Error::io(format!("cannot find its size: {e}"), e).at_path(path))?;
    Ok(Handle { file: Arc::new(file), path: path.to_path_buf(), is_device, size, direct, _backing: backing })
}

fn open_error(path: &Path, access: Access, source: std::io::Error) -> Error {
    match source.kind() {
        ErrorKind::NotFound => Error::io("does not exist", source).at_path(path),
        ErrorKind::ReadOnlyFilesystem => {
            Error::io("is read-only (file system or device)", source).at_path(path)
        }
        ErrorKind::PermissionDenied if access.writes() => {
            Error::io("is read-only for this user (permission denied)", source).at_path(path)
        }
        ErrorKind::PermissionDenied => {
            Error::io("may not be read by this user (permission denied)", source).at_path(path)
        }
        ErrorKind::ResourceBusy => Error::io("is in use: mounted, mapped or held by another process", source)
            .at_path(path)
            .hint("unmount it or stop what uses it; lsblk and fuser -v name the holder"),
        _ => Error::io(format!("cannot open: {source}"), source).at_path(path),
    }
}

/// Bytes of the smallest request that device `number` takes, or more.
fn block_size(number: u64) -> usize {
    let sys = sys_block(number);
    let names = ["queue/logical_block_size", "../queue/logical_block_size"];
    let size = names.iter().find_map(|name| std::fs::read_to_string(sys.join(name)).ok());
    size.and_then(|size| size.trim().parse().ok()).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;
    use tempfile::TempDir;

    #[test]
    fn refuses_what_is_not_a_file_or_a_device() {
        let dir = TempDir::new().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let cases: [(&Path, &str); 4] = [
            (dir.path(), "is a directory, expected a regular file or a block device"),
            (&fifo, "is a named pipe"),
            (&socket, "is a socket"),
            (Path::new("/dev/null"), "is a character device"),
        ];
        for (path, expected) in cases {
            for error in [Access::ReadLocked, Access::Write].map(|access| open(path, access).unwrap_err()) {
                assert_eq!(error.kind(), Kind::Usage);
                assert!(error.to_string().contains(expected), "{error}");
            }
        }
    }

    #[test]
    fn a_missing_file_is_not_found_and_named() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("nothing");
        let error = open(&path, Access::ReadLocked).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert_eq!(error.to_string(), format!("{}: does not exist", path.display()));
    }

    #[test]
    fn words_for_what_the_system_refuses() {
        let path = Path::new("disk");
        let text = |errno: Errno, access| {
            let error = open_error(path, access, errno.into());
            (error.kind(), error.to_string())
        };
        assert_eq!(
            text(Errno::ROFS, Access::Write),
            (Kind::Io, "disk: is read-only (file system or device)".into())
        );
        assert_eq!(
            text(Errno::ACCESS, Access::Write),
            (Kind::Io, "disk: is read-only for this user (permission denied)".into())
        );
        assert_eq!(
            text(Errno::ACCESS, Access::Read),
            (Kind::Io, "disk: may not be read by this user (permission denied)".into())
        );
        let busy = open_error(path, Access::Write, Errno::BUSY.into());
        assert_eq!(busy.kind(), Kind::Busy);
        assert!(busy.hint_text().is_some_and(|hint| hint.contains("unmount")));
    }
}
