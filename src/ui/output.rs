//! Where data goes: standard output, a device, or a regular file that appears whole or not at all.

use super::terminal;
use crate::block::part::{create_beside, folder_of, open_part};
use crate::error::{Error, Kind, Result};
use crate::format::{delta, superblock};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// An open destination. Unless [`Output::commit`] is called, a regular file never appears under its name.
pub struct Output {
    inner: Inner,
    path: PathBuf,
}

enum Inner {
    Stdout(File),
    Direct(File),
    Temporary { file: NamedTempFile, destination: PathBuf },
    Part { file: File, part: PathBuf, destination: PathBuf },
}

/// Refuses to replace a snapshot store: a slip in the order of operands would cost every snapshot.
fn ensure_no_store(path: &Path) -> Result<()> {
    let Ok(file) = File::open(path) else { return Ok(()) };
    let is_store = superblock::OFFSETS.iter().any(|offset| {
        let mut magic = [0; 8];
        file.read_exact_at(&mut magic, *offset).is_ok() && magic == superblock::MAGIC
    });
    if is_store {
        return Err(Error::new(Kind::Refused, "it is a snapshot store, which would be replaced")
            .at_path(path)
            .hint("name another file; if the store is of no use any more, remove it first"));
    }
    Ok(())
}

/// Makes a pipe as large as a user may: writer and reader then change places less often.
pub fn widen(pipe: impl AsFd) {
    const PIPE_BYTES: usize = 1 << 20;
    // What is no pipe says so, and a pipe that stays small is only slower.
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, PIPE_BYTES);
}

impl Output {
    /// Opens `path` for binary data; `-` is standard output.
    ///
    /// # Errors
    /// `Kind::Usage` if standard output is a terminal; otherwise what the system says.
    pub fn create(path: &Path) -> Result<Self> {
        let fail = |what: &str, error| Error::io(what, error).at_path(path);
        if path.as_os_str() == "-" {
            if terminal::stdout_is_terminal() {
                return Err(Error::new(Kind::Usage, "refusing to write binary data to a terminal")
                    .hint("redirect standard output, or name a file"));
            }
            return Self::stdout();
        }
        let path_owned = path.to_path_buf();
        if std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device()) {
            return Err(Error::new(Kind::Refused, "it is a block device, whose content would be lost")
                .at_path(path)
                .hint(format!("write to standard output to insist: ... > {}", path.display())));
        }
        if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
            let file = OpenOptions::new()
                .write(true)
                .open(path)
                .map_err(|error| fail("cannot open for writing", error))?;
            return Ok(Self { inner: Inner::Direct(file), path: path_owned });
        }
        ensure_no_store(path)?;
        // A link to a file stays a link: its target is what gets replaced.
        let destination = std::fs::canonicalize(path).unwrap_or_else(|_| path_owned.clone());
        let file = create_beside(&destination).map_err(|error| fail("cannot create", error))?;
        Ok(Self { inner: Inner::Temporary { file, destination }, path: path_owned })
    }

    /// Opens the regular file `path` for data that is kept under the name `path`.part if the command ends early,
    /// for the next one to go on with. What such a file holds already is not touched.
    ///
    /// # Errors
    /// `Kind::Usage` if `path` is something else; `Kind::Busy` if another command is writing it.
    pub fn resumable(path: &Path) -> Result<Self> {
        if path.as_os_str() == "-" || std::fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
            return Err(Error::new(Kind::Usage, "only a regular file can be resumed").at_path(path));
        }
        ensure_no_store(path)?;
        let destination = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let mut part = destination.clone().into_os_string();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = open_part(&part, 0o666)?;
        let mut magic = [0; delta::MAGIC.len()];
        let length =
            file.read_at(&mut magic, 0).map_err(|e| Error::io("cannot read it", e).at_path(&part))?;
        // What a crash left may read as zeroes.
        if magic[..length] != delta::MAGIC[..length] && magic != [0; delta::MAGIC.len()] {
            return Err(Error::new(Kind::Exists, "it is no part of a delta, and would be overwritten")
                .at_path(&part)
                .hint("move it away, or name another file"));
        }
        Ok(Self { inner: Inner::Part { file, part, destination }, path: path.to_path_buf() })
    }

    /// The open file, where it is one.
    pub fn file_mut(&mut self) -> &mut File {
        self.file()
    }

    /// As [`Output::create`]; text may also go to a terminal.
    ///
    /// # Errors
    /// As [`Output::create`].
    pub fn create_text(path: &Path, is_text: bool) -> Result<Self> {
        if is_text && path.as_os_str() == "-" { Self::stdout() } else { Self::create(path) }
    }

    fn stdout() -> Result<Self> {
        let file = rustix::io::dup(rustix::stdio::stdout())
            .map_err(|error| Error::io("cannot use standard output", error.into()))?;
        widen(&file);
        Ok(Self { inner: Inner::Stdout(File::from(file)), path: "standard output".into() })
    }

    /// The name for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True if unwritten parts read back as zeros, so that zeros can be skipped, and what is written can be gone
    /// back to.
    #[must_use]
    pub fn is_fresh_file(&self) -> bool {
        matches!(self.inner, Inner::Temporary { .. })
    }

    fn file(&mut self) -> &mut File {
        match &mut self.inner {
            Inner::Stdout(file) | Inner::Direct(file) | Inner::Part { file, .. } => file,
            Inner::Temporary { file, .. } => file.as_file_mut(),
        }
    }

    /// Sets the size of a fresh file, so that a skipped tail exists.
    ///
    /// # Errors
    /// What the system says.
    pub fn set_size(&mut self, bytes: u64) -> Result<()> {
        let path = self.path.clone();
        self.file().set_len(bytes).map_err(|error| Error::io("cannot set the size", error).at_path(&path))
    }

    /// Makes everything written durable and gives a regular file its name.
    ///
    /// # Errors
    /// What the system says; then the name is untouched.
    pub fn commit(self) -> Result<()> {
        let path = self.path;
        let fail = |what: &str, error| Error::io(what, error).at_path(&path);
        match self.inner {
            Inner::Stdout(_) => Ok(()),
            Inner::Direct(file) => {
                let kind = file.metadata().map_err(|error| fail("cannot stat", error))?.file_type();
                if kind.is_block_device() {
                    file.sync_all().map_err(|error| fail("cannot make durable", error))?;
                }
                Ok(())
            }
            Inner::Temporary { file, destination } => {
                file.as_file().sync_all().map_err(|error| fail("cannot make durable", error))?;
                file.persist(&destination).map_err(|error| fail("cannot rename into place", error.error))?;
                sync_folder(&destination).map_err(|error| fail("cannot make the new name durable", error))
            }
            Inner::Part { file, part, destination } => {
                file.sync_all().map_err(|error| fail("cannot make durable", error))?;
                std::fs::rename(&part, &destination)
                    .map_err(|error| fail("cannot rename into place", error))?;
                sync_folder(&destination).map_err(|error| fail("cannot make the new name durable", error))
            }
        }
    }
}

fn sync_folder(destination: &Path) -> io::Result<()> {
    File::open(folder_of(destination)).and_then(|folder| folder.sync_all())
}

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file().write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file().flush()
    }
}

/// Only useful where [`Output::is_fresh_file`].
impl Seek for Output {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file().seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_only_when_committed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let mut output = Output::create(&path).unwrap();
        output.write_all(b"abc").unwrap();
        assert!(!path.exists());
        output.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"abc");
        let mut output = Output::create(&path).unwrap();
        output.write_all(b"half").unwrap();
        drop(output);
        assert_eq!(std::fs::read(&path).unwrap(), b"abc");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        std::fs::write(&file, b"old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let mut output = Output::create(&link).unwrap();
        output.write_all(b"new").unwrap();
        output.commit().unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
    }
}
