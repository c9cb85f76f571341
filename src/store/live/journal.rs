//! What writers were told is written and has not landed, once more, in a file in memory that outlives this process.
//!
//! Devices of the kernel go on with the next server where one is killed, and who uses them is never told of it. What
//! the killed one only held would be gone, though no power was: so it is written here before its writer is told, and
//! the next server takes it up. A crash of the machine ends the file, and the devices too.
//!
//! The file is a ring of records behind a header. A record is `number, offset, length, data, number`, written in this
//! order by one call, so that it is whole if it ends as it began. Numbers go up from a random one: nothing that a user
//! wrote passes for a record. The header tells where the oldest record lies that has not landed, and its number.

use crate::block::file::FileWriter;
use crate::block::{ReadAt, WriteAt};
use crate::error::{Error, Kind, Result};
use crate::store::writer::random_u64;
use crate::units::index;
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, FsWord, fallocate, fstatfs};
use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What the file begins with.
const MAGIC: [u8; 8] = *b"ddsnapj1";
/// Bytes before the first record: a page, of which no part is ever written alone.
const START: u64 = 4096;
/// Bytes of a record beside its data.
const AROUND: usize = size_of::<RawRecord>() + size_of::<u64>();
/// `TMPFS_MAGIC` of the kernel.
const TMPFS: FsWord = 0x0102_1994;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    /// Where the oldest record lies, and its number; there is none if that one is not there.
    position: U64,
    number: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRecord {
    number: U64,
    /// Of the origin.
    offset: U64,
    length: U64,
}

/// A record that has not landed.
struct Entry {
    batch: u64,
    position: u64,
    number: u64,
}

/// The journal of one server.
pub struct Journal {
    device: Arc<dyn WriteAt>,
    /// Keeps the file in memory where this process may have its own memory there.
    _pages: Option<MmapRaw>,
    /// Where the next record would lie, and its number.
    position: u64,
    number: u64,
    /// Oldest first.
    entries: VecDeque<Entry>,
    buf: Vec<u8>,
}

impl Journal {
    /// Makes the file, with room for `bytes` of records.
    ///
    /// # Errors
    /// `Kind::Exists`; `Kind::Unsupported` if it would not lie in memory; `Kind::NoSpace`; `Kind::Io`.
    pub fn create(path: &Path, bytes: u64) -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::io(format!("cannot keep there what is held: {error}"), error).at_path(path)
        };
        let made = File::options().read(true).write(true).create_new(true).mode(0o600).open(path);
        let file = made.map_err(failed)?;
        let prepare = || {
            if fstatfs(&file).map_err(|error| failed(error.into()))?.f_type != TMPFS {
                return Err(Error::new(Kind::Unsupported, "this is no tmpfs").at_path(path));
            }
            // All of it now: a write must not find out later that there is no memory.
            fallocate(&file, FallocateFlags::empty(), 0, START + bytes)
                .map_err(|error| failed(error.into()))?;
            let pages = MmapOptions::new().map_raw(&file).map_err(failed)?;
            Self::over(Arc::new(FileWriter::open(path)?))
                .map(|journal| Self { _pages: Some(pages), ..journal })
        };
        prepare().inspect_err(|_| {
            // Nothing is in it.
            let _ = std::fs::remove_file(path);
        })
    }

    /// Begins an empty journal on `device`, whatever it holds.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn over(device: Arc<dyn WriteAt>) -> Result<Self> {
        let number = random_u64()?;
        let journal =
            Self { device, _pages: None, position: START, number, entries: VecDeque::new(), buf: Vec::new() };
        journal.note_oldest()?;
        Ok(journal)
    }

    /// Where a record of `length` bytes would lie; `None` if there is no room until older ones have landed.
    fn place(&self, length: usize) -> Option<u64> {
        let length = (AROUND + length) as u64;
        let fits = |from: u64, to: u64| (from + length <= to).then_some(from);
        match self.entries.front() {
            None => fits(START, self.device.size()),
            // It must not become full: that would look as if it were empty.
            Some(oldest) if self.position < oldest.position => fits(self.position, oldest.position - 1),
            Some(oldest) => {
                fits(self.position, self.device.size()).or_else(|| fits(START, oldest.position - 1))
            }
        }
    }

    /// True if there is room for a write of `length` bytes.
    pub fn has_room(&self, length: usize) -> bool {
        self.place(length).is_some()
    }

    /// Writes down a write of the origin that belongs to `batch`, which is none of those that have landed.
    ///
    /// # Errors
    /// `Kind::NoSpace` without room; `Kind::Io`.
    pub fn append(&mut self, batch: u64, offset: u64, data: &[u8]) -> Result<()> {
        let full =
            || Error::new(Kind::NoSpace, "there is no room for what is held").at_path(self.device.path());
        let position = self.place(data.len()).ok_or_else(full)?;
        let number = self.number;
        self.buf.clear();
        let [number_raw, offset, length] = [number, offset, data.len() as u64].map(U64::new);
        self.buf.extend_from_slice(RawRecord { number: number_raw, offset, length }.as_bytes());
        self.buf.extend_from_slice(data);
        self.buf.extend_from_slice(number_raw.as_bytes());
        self.device.write_at(&self.buf, position)?;
        self.entries.push_back(Entry { batch, position, number });
        self.position = position + self.buf.len() as u64;
        self.number = number.wrapping_add(1);
        Ok(())
    }

    /// The origin has everything up to `batch`.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn landed(&mut self, batch: u64) -> Result<()> {
        let before = self.entries.len();
        while self.entries.front().is_some_and(|entry| entry.batch <= batch) {
            self.entries.pop_front();
        }
        if self.entries.is_empty() {
            self.position = START;
        }
        if self.entries.len() == before { Ok(()) } else { self.note_oldest() }
    }

    fn note_oldest(&self) -> Result<()> {
        let (position, number) =
            self.entries.front().map_or((START, self.number), |entry| (entry.position, entry.number));
        let header = RawHeader { magic: MAGIC, position: U64::new(position), number: U64::new(number) };
        self.device.write_at(header.as_bytes(), 0)
    }

    /// Takes the file away.
    pub fn remove(self) {
        // What stays has nothing in it that has not landed, or is not asked for any more.
        let _ = std::fs::remove_file(self.device.path());
    }
}

/// Calls `each` with every write that has not landed, oldest first: where on the origin, and the bytes. Returns how
/// many bytes there were.
///
/// # Errors
/// `Kind::Damaged` for what is no journal; `Kind::Io`; what `each` says.
pub fn replay(device: &dyn ReadAt, mut each: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<u64> {
    let mut header = RawHeader::new_zeroed();
    if device.size() >= START {
        device.read_at(header.as_mut_bytes(), 0)?;
    }
    // Killed before there was a header, its process has told nobody anything.
    if header.as_bytes() == RawHeader::new_zeroed().as_bytes() {
        return Ok(0);
    }
    if header.magic != MAGIC {
        return Err(Error::damaged("is no journal of a server").at_path(device.path()));
    }
    let (mut position, mut number, mut data, mut total) =
        (header.position.get(), header.number.get(), Vec::new(), 0);
    loop {
        let found = match read(device, position, number, &mut data)? {
            Some(offset) => Some((position, offset)),
            None => read(device, START, number, &mut data)?.map(|offset| (START, offset)),
        };
        let Some((at, offset)) = found else { return Ok(total) };
        each(offset, &data)?;
        total += data.len() as u64;
        position = at + (AROUND + data.len()) as u64;
        number = number.wrapping_add(1);
    }
}

/// Where the record `number` at `position` belongs, with its bytes in `data`; `None` if it is not there.
fn read(device: &dyn ReadAt, position: u64, number: u64, data: &mut Vec<u8>) -> Result<Option<u64>> {
    let room = device.size().checked_sub(position).and_then(|room| room.checked_sub(AROUND as u64));
    let Some(room) = room else { return Ok(None) };
    let mut record = RawRecord::new_zeroed();
    device.read_at(record.as_mut_bytes(), position)?;
    let length = record.length.get();
    if record.number.get() != number || length > room {
        return Ok(None);
    }
    data.resize(index(length), 0);
    let inside = position + size_of::<RawRecord>() as u64;
    device.read_at(data, inside)?;
    let mut end = U64::new(0);
    device.read_at(end.as_mut_bytes(), inside + length)?;
    Ok((end.get() == number).then_some(record.offset.get()))
}
