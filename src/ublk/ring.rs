//! Commands to the driver over `io_uring`, and the memory in which it describes requests.
//!
//! Beside `block/shared.rs` this is the one module with `unsafe` code. What it offers is safe: commands of a queue
//! carry no address; memory that the kernel is told of lives until it is done with it, or for ever.
#![expect(unsafe_code, reason = "rings and mapped memory; each use says why it is sound")]

use crate::format::ublk::{COMMAND_SIZE, ControlCommand, QueueCommand, Request};
use io_uring::squeue::{Entry128, Flags};
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::c_void;
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where commands are handed over and completions found.
pub struct Ring {
    io: IoUring<Entry128, cqueue::Entry>,
    /// By token of [`Ring::relay`].
    slots: Vec<Slot>,
}

/// What one relay needs. Kept for ever if it is dropped while the kernel has it.
#[derive(Default)]
struct Slot {
    /// While it is lent only the kernel looks at it.
    memory: Vec<u8>,
    /// Open for as long as the kernel may look for them.
    files: Option<[Arc<File>; 2]>,
    /// The kernel has it.
    is_lent: bool,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.is_lent {
            std::mem::forget((std::mem::take(&mut self.memory), self.files.take()));
        }
    }
}

/// What has come back.
pub struct Done {
    /// Whose.
    pub token: u32,
    /// What the kernel says.
    pub result: i32,
    /// What it was.
    pub what: What,
}

/// What can come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// A command, or what was watched for.
    Command,
    /// A relay of which nothing was written: the read has failed or ended early.
    Broken,
    /// Bytes that were written by a relay, or were fetched; the result is how many.
    Bytes,
}

/// Bytes that go from one file to another.
pub struct Relay<'a> {
    /// Where they lie, and from which byte on.
    pub from: (&'a Arc<File>, u64),
    /// Where they are written.
    pub to: (&'a Arc<File>, u64),
    /// How many.
    pub length: u32,
}

/// What a completion belongs to, beside its token.
const COMMAND: u64 = 0;
const STEP: u64 = 1 << 32;
const BYTES: u64 = 2 << 32;

impl Ring {
    /// A ring for so many commands at a time, and so many tokens from 0 on to relay with.
    pub fn new(entries: u32, relays: u16) -> Result<Self> {
        let io = IoUring::builder().setup_coop_taskrun().build(entries)?;
        Ok(Self { io, slots: (0..relays).map(|_| Slot::default()).collect() })
    }

    /// Hands over a command of a queue with the next [`Ring::submit`] or [`Ring::wait`]; `token` comes back when it is
    /// done. Only the thread that hands over the first one may do so.
    pub fn queue(&mut self, device: &File, command: QueueCommand, token: u32) -> Result<()> {
        let entry = opcode::UringCmd80::new(Fd(device.as_raw_fd()), command.code()).cmd(command.encode());
        // SAFETY: the command carries no address, so the kernel touches no memory of ours for it.
        unsafe { self.push(&[entry.build().user_data(COMMAND | u64::from(token))]) }
    }

    /// Has bytes of one file be written to another; `token` comes back once they are, or something of it has failed or
    /// ended early. It must have come back before the next one with it.
    pub fn relay(&mut self, relay: &Relay<'_>, token: u16) -> Result<()> {
        let (from, to, length) = (relay.from, relay.to, relay.length);
        let (start, token) = (self.lend(token, length, [from.0, to.0])?, u64::from(token));
        // If it goes well only what follows it is heard of.
        let read = opcode::Read::new(Fd(from.0.as_raw_fd()), start, length).offset(from.1).build();
        let read = read.flags(Flags::IO_LINK | Flags::SKIP_SUCCESS).user_data(STEP | token);
        let write = opcode::Write::new(Fd(to.0.as_raw_fd()), start, length).offset(to.1).build();
        // SAFETY: `start` begins `length` bytes or more that belong to a slot which is lent until a completion comes:
        // of the second entry, which begins when the first is done, or of the first, which has failed, and then the
        // second does not begin.
        unsafe { self.push(&[read.into(), write.user_data(BYTES | token).into()]) }
    }

    /// Has `token` come back once `fd` can be read.
    pub fn watch(&mut self, fd: &OwnedFd, token: u32) -> Result<()> {
        const READABLE: u32 = 1;
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), READABLE).build();
        // SAFETY: to poll touches no memory of ours.
        unsafe { self.push(&[entry.user_data(COMMAND | u64::from(token)).into()]) }
    }

    /// Has `length` bytes of `from` from a byte on be where [`Ring::bytes`] finds them once `token` comes back. It is
    /// one of those that [`Ring::relay`] takes, and only for one of both at a time.
    pub fn fetch(&mut self, from: (&Arc<File>, u64), length: u32, token: u16) -> Result<()> {
        let start = self.lend(token, length, [from.0, from.0])?;
        let read = opcode::Read::new(Fd(from.0.as_raw_fd()), start, length).offset(from.1).build();
        // SAFETY: `start` begins `length` bytes or more that belong to a slot which is lent until the completion comes.
        unsafe { self.push(&[read.user_data(BYTES | u64::from(token)).into()]) }
    }

    /// What was fetched last with `token`, and perhaps more behind it; nothing while it is being fetched.
    pub fn bytes(&self, token: u16) -> &[u8] {
        let slot = self.slots.get(usize::from(token)).filter(|slot| !slot.is_lent);
        slot.map_or(&[], |slot| &slot.memory)
    }

    /// Lends memory to the kernel, `length` bytes or more that nobody else touches or frees, until something comes back
    /// with `token` that says that it is over.
    fn lend(&mut self, token: u16, length: u32, files: [&Arc<File>; 2]) -> Result<*mut u8> {
        let slot = self.slots.get_mut(usize::from(token)).filter(|slot| !slot.is_lent);
        let slot = slot.ok_or_else(|| Error::other("the token is not free"))?;
        let wanted = usize::try_from(length).map_err(Error::other)?;
        if slot.memory.len() < wanted {
            slot.memory = vec![0; wanted];
        }
        slot.files = Some(files.map(Arc::clone));
        slot.is_lent = true;
        Ok(slot.memory.as_mut_ptr())
    }

    /// Waits for completions, and adds them to `done`.
    pub fn wait(&mut self, done: &mut Vec<Done>) -> Result<()> {
        match self.io.submit_and_wait(1) {
            Err(error) if !is_passing(&error) => return Err(error),
            // Completions that wait to be taken are why there was no room for more.
            Err(_) => {}
            Ok(_) => self.ensure_all_taken()?,
        }
        for entry in self.io.completion() {
            let (kind, token) =
                (entry.user_data() & !u64::from(u32::MAX), entry.user_data() & u64::from(u32::MAX));
            let token = u32::try_from(token).map_err(Error::other)?;
            if kind != COMMAND {
                let slot = usize::try_from(token).ok().and_then(|token| self.slots.get_mut(token));
                slot.into_iter().for_each(|slot| slot.is_lent = false);
            }
            let what = match kind {
                STEP => What::Broken,
                BYTES => What::Bytes,
                _ => What::Command,
            };
            done.push(Done { token, result: entry.result(), what });
        }
        Ok(())
    }

    /// Hands over what there is.
    pub fn submit(&mut self) -> Result<()> {
        loop {
            match self.io.submit() {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                submitted => return submitted.and_then(|_| self.ensure_all_taken()),
            }
        }
    }

    /// The kernel takes all or nothing, unless it has no memory at all: then the write of a relay would begin without
    /// the read.
    fn ensure_all_taken(&mut self) -> Result<()> {
        match self.io.submission().is_empty() {
            true => Ok(()),
            false => Err(Error::other("the kernel took only a part of what it was handed over")),
        }
    }

    /// Adds entries that belong together.
    ///
    /// # Safety
    /// Memory that they name must stay as it is until they are over.
    unsafe fn push(&mut self, entries: &[Entry128]) -> Result<()> {
        let queue = self.io.submission();
        let has_room = queue.capacity() - queue.len() >= entries.len();
        drop(queue);
        if !has_room {
            self.submit()?;
        }
        // SAFETY: as promised to this function.
        let pushed = unsafe { self.io.submission().push_multiple(entries) };
        pushed.map_err(|_| Error::new(ErrorKind::WouldBlock, "the ring is full"))
    }
}

fn is_passing(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ResourceBusy | ErrorKind::WouldBlock)
}

/// Gives the control device a command with `target`: the device that is meant, and data; and waits until it is done,
/// but no longer than `limit`. What the kernel answers is in `buf`.
pub fn ask(
    control: &File,
    code: u32,
    (device, data): (u32, u64),
    buf: &mut [u8],
    limit: Duration,
) -> Result<()> {
    let mut ring = Ring::new(2, 0)?;
    let mut memory = buf.to_vec();
    let length = u16::try_from(memory.len()).map_err(Error::other)?;
    let address = if memory.is_empty() { 0 } else { memory.as_mut_ptr().expose_provenance() as u64 };
    let command: [u8; COMMAND_SIZE] = ControlCommand { device, length, address, data }.encode();
    let entry = opcode::UringCmd80::new(Fd(control.as_raw_fd()), code).cmd(command).build();
    // SAFETY: the kernel reads and writes at most `length` bytes at `address`, which nobody else touches until it is
    // done; if it is not done in time, the memory is never given back.
    unsafe { ring.push(&[entry]) }?;
    let begun = Instant::now();
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        let time = Timespec::new().sec(left.as_secs()).nsec(left.subsec_nanos());
        let waited = ring.io.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time));
        if let Some(entry) = ring.io.completion().next() {
            buf.copy_from_slice(&memory);
            return match entry.result() {
                done if done >= 0 => Ok(()),
                failed => Err(Error::from_raw_os_error(failed.saturating_neg())),
            };
        }
        let failed = match waited {
            Ok(_) => None,
            Err(error) => Some(error).filter(|error| !is_passing(error)),
        };
        if failed.is_some() || begun.elapsed() >= limit {
            std::mem::forget(memory);
            return Err(failed.unwrap_or_else(|| Error::from(ErrorKind::TimedOut)));
        }
    }
}

/// Memory of the kernel that describes the requests of a queue.
pub struct Descriptors {
    start: *mut c_void,
    bytes: usize,
    depth: u16,
}

impl Descriptors {
    /// Maps it. The device must be made for `depth` requests at a time.
    pub fn map(device: &File, depth: u16) -> Result<Self> {
        let bytes = (usize::from(depth) * Request::SIZE).next_multiple_of(rustix::param::page_size());
        // SAFETY: the address is the kernel's choice, so nothing else is there.
        let start =
            unsafe { mmap(std::ptr::null_mut(), bytes, ProtFlags::READ, MapFlags::SHARED, device, 0) }?;
        Ok(Self { start, bytes, depth })
    }

    /// What describes the request with `tag`; `None` if there is no such place.
    pub fn get(&self, tag: u16) -> Option<[u8; Request::SIZE]> {
        if tag >= self.depth {
            return None;
        }
        let place = self.start.cast::<[u8; Request::SIZE]>().wrapping_add(usize::from(tag));
        // SAFETY: the place lies within the mapped bytes, and any bytes are such an array. The kernel writes there only
        // before it tells of the request and after that is done; a volatile read of what it writes meanwhile would give
        // some bytes, which are checked like any others.
        Some(unsafe { place.read_volatile() })
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: these are the mapped bytes, and nothing refers to them any more.
        // That it fails would be told by nothing else either.
        let _ = unsafe { munmap(self.start, self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    /// A ring, where this system lets anybody have one.
    fn ring() -> Option<Ring> {
        match Ring::new(8, 2) {
            Ok(ring) => Some(ring),
            Err(error) => {
                eprintln!("skipped: {error}");
                None
            }
        }
    }

    fn file_of(bytes: &[u8]) -> Arc<File> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        Arc::new(file)
    }

    fn bytes_of(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// The next `count` that come back: tokens, results and what they are.
    fn come_back(ring: &mut Ring, count: usize) -> Vec<(u32, i32, What)> {
        let mut done = Vec::new();
        while done.len() < count {
            ring.wait(&mut done).unwrap();
        }
        done.iter().map(|done| (done.token, done.result, done.what)).collect()
    }

    #[test]
    fn bytes_are_relayed() {
        let Some(mut ring) = ring() else { return };
        let (from, to) = (file_of(b"0123456789"), file_of(b"........"));
        ring.relay(&Relay { from: (&from, 2), to: (&to, 1), length: 4 }, 0).unwrap();
        ring.relay(&Relay { from: (&from, 9), to: (&to, 7), length: 1 }, 1).unwrap();
        let again = Relay { from: (&from, 0), to: (&to, 0), length: 4 };
        assert!(ring.relay(&again, 1).is_err(), "the kernel has its memory");
        let mut back = come_back(&mut ring, 2);
        back.sort_unstable();
        assert_eq!(back, [(0, 4, What::Bytes), (1, 1, What::Bytes)], "only their ends are heard of");
        assert_eq!(bytes_of(&to), b".2345..9");
    }

    #[test]
    fn what_cannot_be_read_whole_is_not_written() {
        let Some(mut ring) = ring() else { return };
        let (from, to) = (file_of(b"0123456789"), file_of(b"........"));
        let unwritable = Arc::new(File::open("/proc/self/status").unwrap());
        for (start, to, told) in [
            (8, &to, (1, 2, What::Broken)),
            (20, &to, (1, 0, What::Broken)),
            (0, &unwritable, (1, -9, What::Bytes)),
        ] {
            ring.relay(&Relay { from: (&from, start), to: (to, 0), length: 4 }, 1).unwrap();
            assert_eq!(come_back(&mut ring, 1), [told]);
        }
        assert_eq!(bytes_of(&to), b"........");
        ring.relay(&Relay { from: (&from, 0), to: (&to, 0), length: 2 }, 1).unwrap();
        assert_eq!(
            (come_back(&mut ring, 1), bytes_of(&to)),
            (vec![(1, 2, What::Bytes)], b"01......".to_vec())
        );
    }

    #[test]
    fn bytes_are_fetched_and_found() {
        let Some(mut ring) = ring() else { return };
        let from = file_of(b"0123456789");
        ring.fetch((&from, 3), 4, 1).unwrap();
        assert_eq!(ring.bytes(1), b"", "not there yet");
        assert!(ring.fetch((&from, 0), 4, 1).is_err(), "the kernel has its memory");
        assert_eq!(come_back(&mut ring, 1), [(1, 4, What::Bytes)]);
        assert_eq!((ring.bytes(1), ring.bytes(0), ring.bytes(9)), (&b"3456"[..], &b""[..], &b""[..]));
        ring.fetch((&from, 8), 4, 1).unwrap();
        assert_eq!(come_back(&mut ring, 1), [(1, 2, What::Bytes)], "fewer than were wanted");
    }

    #[test]
    fn a_ring_that_ends_earlier_leaves_what_the_kernel_has() {
        let Some(mut ring) = ring() else { return };
        let (reader, writer) = std::io::pipe().unwrap();
        let from = Arc::new(File::from(OwnedFd::from(reader)));
        ring.fetch((&from, 0), 4, 0).unwrap();
        ring.submit().unwrap();
        drop(ring);
        assert_eq!(Arc::strong_count(&from), 2 + 1, "kept for ever");
        drop(writer);
    }
}
