//! Volumes, their changes, and stores made by the engine itself where commands would take hours.

use super::lab::Lab;
use crate::demo::{letter, noise};
use anyhow::{Context, Result, ensure};
use ddsnap::block::file::FileWriter;
use ddsnap::block::{ReadAt, WriteAt};
use ddsnap::format::superblock::FIRST_SEGMENT;
use ddsnap::store::{InitOptions, Writer};
use rustix::fs::SeekFrom;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

/// Bytes of a chunk in every store made here.
pub const CHUNK: u64 = 16 << 10;
/// The unit in which volumes are filled, and runs of changes are long.
pub const MIB: u64 = 1 << 20;
/// Different MiB before the pattern repeats: beyond the window of any compressor used here.
const PATTERN_MIB: u64 = 64;

/// Contents for a volume: every MiB is half words, half noise. Differs for every `seed`.
pub struct Pattern(Vec<u8>);

impl Pattern {
    pub fn new(seed: u64) -> Self {
        let mut bytes = Vec::new();
        for i in 0..PATTERN_MIB {
            let mut text = Vec::new();
            while text.len() < 512 << 10 {
                text.extend(letter((seed << 32) + (i << 24) + text.len() as u64));
            }
            text.truncate(512 << 10);
            bytes.append(&mut text);
            bytes.extend(noise((seed << 32) + i, 512 << 10));
        }
        Self(bytes)
    }

    /// The contents of MiB `number`.
    pub fn mib(&self, number: u64) -> &[u8] {
        let start = usize::try_from(number % PATTERN_MIB * MIB).unwrap_or(0);
        &self.0[start..start + (1 << 20)]
    }

    /// The contents of chunk `number`.
    pub fn chunk(&self, number: u64) -> &[u8] {
        let start = usize::try_from(number % (PATTERN_MIB * MIB / CHUNK) * CHUNK).unwrap_or(0);
        &self.0[start..start + (16 << 10)]
    }

    /// `length` bytes from byte `offset` on, none behind the end of their MiB.
    pub fn part(&self, offset: u64, length: usize) -> &[u8] {
        let start = usize::try_from(offset % MIB).unwrap_or(0);
        let mib = self.mib(offset / MIB);
        &mib[start..(start + length).min(mib.len())]
    }

    /// Writes a file of `size` bytes.
    pub fn fill(&self, path: &Path, size: u64) -> Result<()> {
        let mut file = File::create(path)?;
        (0..size / MIB).try_for_each(|number| file.write_all(self.mib(number)))?;
        Ok(())
    }
}

/// Every fourth MiB of a volume: what the stream rows change.
pub fn changed_mib(size: u64) -> impl Iterator<Item = u64> {
    (0..size / MIB).step_by(4)
}

/// Makes a sparse file.
pub fn sparse(path: &Path, size: u64) -> Result<()> {
    File::create(path)?.set_len(size).with_context(|| format!("cannot make {}", path.display()))
}

/// Overwrites the range at `offset` of a file.
pub fn patch(path: &Path, offset: u64, bytes: &[u8]) -> Result<()> {
    File::options().write(true).open(path)?.write_all_at(bytes, offset)?;
    Ok(())
}

/// A device that reads as zeros and forgets what is written: an origin of any size that costs nothing, where
/// only what the store does with it counts.
pub struct Void(pub u64);

impl ReadAt for Void {
    fn size(&self) -> u64 {
        self.0
    }
    fn path(&self) -> &Path {
        Path::new("(void)")
    }
    fn read_at(&self, buf: &mut [u8], _offset: u64) -> ddsnap::error::Result<()> {
        buf.fill(0);
        Ok(())
    }
}

impl WriteAt for Void {
    fn write_at(&self, _buf: &[u8], _offset: u64) -> ddsnap::error::Result<()> {
        Ok(())
    }
    fn flush(&self) -> ddsnap::error::Result<()> {
        Ok(())
    }
    fn set_size(&self, _size_bytes: u64) -> ddsnap::error::Result<()> {
        Ok(())
    }
}

/// A new store of `store_size` bytes (sparse) in file `name`, for an origin of `origin_size` bytes that the
/// commands will look for in file `origin_name`, open for writing with `origin` in its place.
pub fn store(
    lab: &Lab,
    name: &str,
    store_size: u64,
    origin_name: &str,
    origin: Arc<dyn WriteAt>,
) -> Result<Writer> {
    let device: Arc<dyn WriteAt> = Arc::new(FileWriter::create(&lab.path(name), store_size)?);
    let options = InitOptions {
        chunk_size: u32::try_from(CHUNK)?,
        block_size: 4096,
        origin_path: lab.path(origin_name),
        origin_size: origin.size(),
        now_secs: 1,
    };
    Writer::initialize(&device, &options)?;
    Ok(Writer::open(device, Some(origin), 1)?)
}

/// As [`store`], of a sparse volume that is zeros and stays so.
pub fn void_store(lab: &Lab, name: &str, store_size: u64, volume: u64) -> Result<Writer> {
    let origin_name = origin_of(name);
    sparse(&lab.path(&origin_name), volume)?;
    store(lab, name, store_size, &origin_name, Arc::new(Void(volume)))
}

/// The file that is the origin of store `name`.
pub fn origin_of(name: &str) -> String {
    format!("{name}.img")
}

/// Opens a scratch file as a real origin.
pub fn origin(lab: &Lab, name: &str) -> Result<Arc<dyn WriteAt>> {
    Ok(Arc::new(FileWriter::open(&lab.path(name))?))
}

/// Changes one byte in each of `chunks`, some thousands at a time: each of them is copied out.
pub fn touch(lab: &Lab, writer: &mut Writer, chunks: impl Iterator<Item = u64>) -> Result<()> {
    let mut chunks = chunks.peekable();
    while chunks.peek().is_some() {
        ensure!(!lab.stop_wanted(), "interrupted");
        let pieces: Vec<(u64, &[u8])> =
            chunks.by_ref().take(4096).map(|chunk| (chunk * CHUNK, &b"\0"[..])).collect();
        writer.write_origin_many(&pieces)?;
    }
    Ok(())
}

/// Bytes that a sparse file really takes.
pub fn allocated(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path)?.blocks() * 512)
}

/// Bytes of the segments of store `name` that hold anything, their unused ends included, and of its head.
pub fn occupied(lab: &Lab, name: &str, segment_size: u64) -> Result<u64> {
    let file = File::open(lab.path(name))?;
    let mut taken = FIRST_SEGMENT;
    let mut at = FIRST_SEGMENT;
    while at < file.metadata()?.len() {
        match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(data) => {
                let segment = (data - FIRST_SEGMENT) / segment_size;
                taken += segment_size;
                at = FIRST_SEGMENT + (segment + 1) * segment_size;
            }
            // Only a hole is left.
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(taken)
}
