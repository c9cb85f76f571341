//! Commands to the driver over `io_uring`, and the memory in which it describes requests.
//!
//! Beside `block/shared.rs` this is the one module with `unsafe` code. What it offers is safe: commands of a queue
//! carry no address, and the buffer of a command of the control device lives until the kernel is done with it, or for
//! ever.
#![expect(unsafe_code, reason = "rings and mapped memory; each use says why it is sound")]

use crate::format::ublk::{COMMAND_SIZE, ControlCommand, QueueCommand, Request};
use io_uring::squeue::Entry128;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::c_void;
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Where commands are handed over and completions found.
pub struct Ring(IoUring<Entry128, cqueue::Entry>);

impl Ring {
    /// A ring for so many commands at a time.
    pub fn new(entries: u32) -> Result<Self> {
        IoUring::builder().setup_coop_taskrun().build(entries).map(Self)
    }

    /// Hands over a command of a queue with the next [`Ring::submit`] or [`Ring::wait`]; `token` comes back when it is
    /// done. Only the thread that hands over the first one may do so.
    pub fn queue(&mut self, device: &File, command: QueueCommand, token: u64) -> Result<()> {
        let entry = opcode::UringCmd80::new(Fd(device.as_raw_fd()), command.code()).cmd(command.encode());
        // SAFETY: the command carries no address, so the kernel touches no memory of ours for it.
        unsafe { self.push(&entry.build().user_data(token)) }
    }

    /// Has `token` come back once `fd` can be read.
    pub fn watch(&mut self, fd: &OwnedFd, token: u64) -> Result<()> {
        const READABLE: u32 = 1;
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), READABLE).build().user_data(token);
        // SAFETY: to poll touches no memory of ours.
        unsafe { self.push(&entry.into()) }
    }

    /// Waits for completions, and adds them to `done`: tokens and what the kernel says.
    pub fn wait(&mut self, done: &mut Vec<(u64, i32)>) -> Result<()> {
        match self.0.submit_and_wait(1) {
            Err(error) if !is_passing(&error) => return Err(error),
            // Completions that wait to be taken are why there was no room for more.
            _ => {}
        }
        done.extend(self.0.completion().map(|entry| (entry.user_data(), entry.result())));
        Ok(())
    }

    /// Hands over what there is.
    pub fn submit(&mut self) -> Result<()> {
        loop {
            match self.0.submit() {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                submitted => return submitted.map(|_| ()),
            }
        }
    }

    /// # Safety
    /// Memory that the entry names must stay as it is until its completion has come.
    unsafe fn push(&mut self, entry: &Entry128) -> Result<()> {
        if self.0.submission().is_full() {
            self.submit()?;
        }
        // SAFETY: as promised to this function.
        let pushed = unsafe { self.0.submission().push(entry) };
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
    let mut ring = Ring::new(2)?;
    let mut memory = buf.to_vec();
    let length = u16::try_from(memory.len()).map_err(Error::other)?;
    let address = if memory.is_empty() { 0 } else { memory.as_mut_ptr().expose_provenance() as u64 };
    let command: [u8; COMMAND_SIZE] = ControlCommand { device, length, address, data }.encode();
    let entry = opcode::UringCmd80::new(Fd(control.as_raw_fd()), code).cmd(command).build();
    // SAFETY: the kernel reads and writes at most `length` bytes at `address`, which nobody else touches until it is
    // done; if it is not done in time, the memory is never given back.
    unsafe { ring.push(&entry) }?;
    let begun = Instant::now();
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        let time = Timespec::new().sec(left.as_secs()).nsec(left.subsec_nanos());
        let waited = ring.0.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time));
        if let Some(entry) = ring.0.completion().next() {
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
