//! Which paths lead to the same bytes, and refusing to write a result over what it comes from.

use super::common::OldArgs;
use crate::block::ReadAt;
use crate::block::file::FileReader;
use crate::block::mount;
use crate::error::{Error, Kind, Result};
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Everything that a command which reads a volume reads, and its result must not overwrite.
#[must_use]
pub fn inputs(store: &Path, old: &OldArgs, origin: PathBuf) -> Vec<PathBuf> {
    [store.to_path_buf(), origin].into_iter().chain(old.meta.clone()).collect()
}

/// True if both paths are one file or one device.
#[must_use]
pub fn is_same(a: &Path, b: &Path) -> bool {
    match (lowest(a), lowest(b)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

/// What the bytes of `path` lie in: a loop device has those of a file.
fn lowest(path: &Path) -> Option<(u64, u64)> {
    // Loop devices over one another: more than the kernel lets there be.
    const DEPTH_MAX: usize = 16;
    let mut meta = std::fs::metadata(path).ok()?;
    for _ in 0..DEPTH_MAX {
        let behind = match meta.file_type().is_block_device() {
            true => mount::backing_file(meta.rdev()).and_then(|path| std::fs::metadata(path).ok()),
            false => None,
        };
        match behind {
            Some(behind) => meta = behind,
            None => break,
        }
    }
    Some(key(&meta))
}

fn key(meta: &Metadata) -> (u64, u64) {
    if meta.file_type().is_block_device() { (0, meta.rdev()) } else { (meta.dev() + 1, meta.ino()) }
}

/// Refuses to write a result over the volume it comes from.
///
/// # Errors
/// `Kind::Usage`.
pub fn ensure_output_elsewhere(output: &Path, inputs: &[impl AsRef<Path>]) -> Result<()> {
    match inputs.iter().find(|input| is_same(output, input.as_ref())) {
        None => Ok(()),
        Some(input) => Err(Error::new(
            Kind::Usage,
            format!("the output would overwrite its own input {}", input.as_ref().display()),
        )
        .at_path(output)),
    }
}

/// Refuses to replace what may be the origin of a store of 2008, which does not remember it: a file that does not begin
/// as `made` does, which is to be written there.
///
/// # Errors
/// `Kind::Refused`; `Kind::Io`.
pub fn ensure_not_unknown(output: &Path, made: &[u8]) -> Result<()> {
    const HEAD: usize = 16;
    if output.as_os_str() == "-" || !std::fs::metadata(output).is_ok_and(|meta| meta.is_file()) {
        return Ok(());
    }
    let there = FileReader::open_origin_read(output)?;
    let length = usize::try_from(there.size()).unwrap_or(HEAD).min(HEAD);
    let mut head = vec![0; length];
    there.read_at(&mut head, 0)?;
    if head == made.get(..length).unwrap_or_default() {
        return Ok(());
    }
    let what = "it is there already, and a store of 2008 does not tell whether it is its origin";
    Err(Error::new(Kind::Refused, what).at_path(output).hint("name another file, or remove it first"))
}
