//! What the kernel's ublk driver is told and tells: commands of its control device and of its queues, what describes a
//! device, and requests. All in the byte order of the machine, which is the only one that ever sees them.
//!
//! Source: the kernel's `include/uapi/linux/ublk_cmd.h` and its documentation of ublk.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]
#![expect(clippy::host_endian_bytes, reason = "the driver does not leave the machine and has its byte order")]

use crate::error::{Error, Kind, Result};

/// What the driver can do, and what a device is to do.
pub mod feature {
    /// A device stays when its server is gone, and what comes meanwhile waits.
    pub const USER_RECOVERY: u64 = 1 << 3;
    /// What was under way then is given to the next server.
    pub const USER_RECOVERY_REISSUE: u64 = 1 << 4;
    /// Commands have the numbers that they have here.
    pub const CMD_IOCTL_ENCODE: u64 = 1 << 6;
    /// Data is read from and written to the queue's device, instead of lying in memory of the server.
    pub const USER_COPY: u64 = 1 << 7;
    /// A disk can be given another size (Linux 6.16).
    pub const UPDATE_SIZE: u64 = 1 << 10;
}

/// Commands of the control device.
pub mod control {
    use super::{READ, READ_WRITE, code};

    /// Tells a [`super::DeviceInfo`].
    pub const GET_DEVICE_INFO: u32 = code(READ, 0x02, super::CONTROL_SIZE);
    /// Makes a device of a [`super::DeviceInfo`], and tells it as it became.
    pub const ADD_DEVICE: u32 = code(READ_WRITE, 0x04, super::CONTROL_SIZE);
    /// Takes a device away, and waits until its server has let it go.
    pub const DELETE_DEVICE: u32 = code(READ_WRITE, 0x05, super::CONTROL_SIZE);
    /// Makes the disk, once all of its server's commands are there; the data is the server's process.
    pub const START_DEVICE: u32 = code(READ_WRITE, 0x06, super::CONTROL_SIZE);
    /// Takes the disk away.
    pub const STOP_DEVICE: u32 = code(READ_WRITE, 0x07, super::CONTROL_SIZE);
    /// Takes [`super::Params`].
    pub const SET_PARAMS: u32 = code(READ_WRITE, 0x08, super::CONTROL_SIZE);
    /// Makes a device whose server is gone ready for another one.
    pub const START_USER_RECOVERY: u32 = code(READ_WRITE, 0x10, super::CONTROL_SIZE);
    /// Goes on, once all of the new server's commands are there; the data is its process.
    pub const END_USER_RECOVERY: u32 = code(READ_WRITE, 0x11, super::CONTROL_SIZE);
    /// Tells eight bytes of [`super::feature`].
    pub const GET_FEATURES: u32 = code(READ, 0x13, super::CONTROL_SIZE);
    /// Gives a disk another size; the data is its sectors of 512 bytes.
    pub const UPDATE_SIZE: u32 = code(READ_WRITE, 0x15, super::CONTROL_SIZE);
}

const READ: u32 = 2;
const READ_WRITE: u32 = 3;
const CONTROL_SIZE: u32 = 32;
const QUEUE_SIZE: u32 = 16;

/// The number of a command, as the kernel makes numbers of device commands.
const fn code(direction: u32, number: u32, size: u32) -> u32 {
    // 'u' is 0x75.
    direction << 30 | size << 16 | 0x75 << 8 | number
}

/// Bytes that go with a command of a ring with long entries.
pub const COMMAND_SIZE: usize = 80;
/// Any device, or no queue.
pub const ANY: u32 = u32::MAX;

/// A command of the control device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlCommand {
    /// The device, or [`ANY`] for a new one.
    pub device: u32,
    /// Bytes of the buffer that goes with it.
    pub length: u16,
    /// Where that is.
    pub address: u64,
    /// What some commands take.
    pub data: u64,
}

impl ControlCommand {
    /// As the kernel takes it.
    #[must_use]
    pub fn encode(&self) -> [u8; COMMAND_SIZE] {
        fill([
            &self.device.to_ne_bytes(),
            &u16::MAX.to_ne_bytes(),
            &self.length.to_ne_bytes(),
            &self.address.to_ne_bytes(),
            &self.data.to_ne_bytes(),
        ])
    }
}

/// A command of a queue. None carries an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueCommand {
    /// The first request with this tag is wanted.
    Fetch {
        /// Which place of the queue.
        tag: u16,
    },
    /// A request is done, and the next one with this tag is wanted.
    Commit {
        /// Which place of the queue.
        tag: u16,
        /// Bytes that were read or written, or a negative error number.
        result: i32,
    },
}

impl QueueCommand {
    /// Its number.
    #[must_use]
    pub const fn code(&self) -> u32 {
        match self {
            Self::Fetch { .. } => code(READ_WRITE, 0x20, QUEUE_SIZE),
            Self::Commit { .. } => code(READ_WRITE, 0x21, QUEUE_SIZE),
        }
    }

    /// As the kernel takes it, for queue 0.
    #[must_use]
    pub fn encode(&self) -> [u8; COMMAND_SIZE] {
        let (tag, result) = match *self {
            Self::Fetch { tag } => (tag, 0),
            Self::Commit { tag, result } => (tag, result),
        };
        fill([&[0; 2], &tag.to_ne_bytes(), &result.to_ne_bytes(), &[], &[]])
    }
}

/// Puts pieces behind one another, and zeroes behind them.
fn fill<const N: usize, const PIECES: usize>(pieces: [&[u8]; PIECES]) -> [u8; N] {
    let mut bytes = [0; N];
    for (to, from) in bytes.iter_mut().zip(pieces.into_iter().flatten()) {
        *to = *from;
    }
    bytes
}

/// Where the data of the request with `tag` is, in the device of queue 0.
#[must_use]
pub const fn data_position(tag: u16) -> u64 {
    const BASE: u64 = 0x8000_0000;
    // Lossless: a shift of 16 bits by 25 in 64.
    #[expect(clippy::arithmetic_side_effects, reason = "16 bits shifted by 25, and a base of 32 bits")]
    let position = BASE + ((tag as u64) << 25);
    position
}

/// What becomes of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// There is no disk.
    Dead,
    /// It is served.
    Live,
    /// Its server is gone, and requests wait.
    Waits,
}

/// What the driver knows of a device.
///
/// | offset | width | field |
/// |---|---|---|
/// | 0 | 2 | queues |
/// | 2 | 2 | requests of each |
/// | 4 | 2 | state |
/// | 8 | 4 | bytes of a request, at most |
/// | 12 | 4 | number of the device |
/// | 16 | 4 | process of its server |
/// | 24 | 8 | features |
/// | 32 | 8 | what the server likes to note |
/// | 40 | 24 | owner; nothing |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Queues.
    pub queues: u16,
    /// Requests of each queue that are under way, at most.
    pub depth: u16,
    /// What has become of it.
    pub state: State,
    /// Bytes of a request, at most.
    pub request_bytes_max: u32,
    /// Its number, or [`ANY`] for a new one.
    pub number: u32,
    /// The process that serves it or has served it last; -1 if there is none.
    pub pid: i32,
    /// What it is to do, of [`feature`].
    pub features: u64,
    /// What whoever made it has noted.
    pub mark: u64,
}

impl DeviceInfo {
    /// Bytes.
    pub const SIZE: usize = 64;

    /// As the kernel takes it.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let state: u16 = match self.state {
            State::Dead => 0,
            State::Live => 1,
            State::Waits => 2,
        };
        fill([
            &self.queues.to_ne_bytes(),
            &self.depth.to_ne_bytes(),
            &state.to_ne_bytes(),
            &[0; 2],
            &self.request_bytes_max.to_ne_bytes(),
            &self.number.to_ne_bytes(),
            &self.pid.to_ne_bytes(),
            &[0; 4],
            &self.features.to_ne_bytes(),
            &self.mark.to_ne_bytes(),
        ])
    }

    /// Reads what the kernel says.
    ///
    /// # Errors
    /// `Kind::Unsupported` for a state that is not known.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self> {
        let [q0, q1, d0, d1, s0, s1, _, _, r0, r1, r2, r3, n0, n1, n2, n3, rest @ ..] = *bytes;
        let [p0, p1, p2, p3, _, _, _, _, rest @ ..] = rest;
        let [f0, f1, f2, f3, f4, f5, f6, f7, m0, m1, m2, m3, m4, m5, m6, m7, ..] = rest;
        let state = match u16::from_ne_bytes([s0, s1]) {
            0 => State::Dead,
            1 => State::Live,
            // Requests fail instead of waiting in the last one, which no device of ours is made for.
            2 | 3 => State::Waits,
            other => {
                let what = format!("a ublk device is in state {other}, which is not known");
                return Err(Error::new(Kind::Unsupported, what));
            }
        };
        Ok(Self {
            queues: u16::from_ne_bytes([q0, q1]),
            depth: u16::from_ne_bytes([d0, d1]),
            state,
            request_bytes_max: u32::from_ne_bytes([r0, r1, r2, r3]),
            number: u32::from_ne_bytes([n0, n1, n2, n3]),
            pid: i32::from_ne_bytes([p0, p1, p2, p3]),
            features: u64::from_ne_bytes([f0, f1, f2, f3, f4, f5, f6, f7]),
            mark: u64::from_ne_bytes([m0, m1, m2, m3, m4, m5, m6, m7]),
        })
    }
}

/// What a disk looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Params {
    /// Bytes; what follows the last whole sector cannot be reached.
    pub size: u64,
    /// Bytes of the smallest request: a power of two from 512 to 4096.
    pub block_size: u32,
    /// Bytes of the largest request with data.
    pub request_bytes_max: u32,
    /// It cannot be written.
    pub is_read_only: bool,
}

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Most bytes of a discard or of zeroes at a time: neither carries data.
const RANGE_MAX: u32 = 32 << 20;

impl Params {
    /// Bytes of the encoded form.
    pub const SIZE: usize = 64;

    /// As the kernel takes it: what every disk has, and what it does about discards and zeroes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        const READ_ONLY: u32 = 1;
        const VOLATILE_CACHE: u32 = 1 << 2;
        const FUA: u32 = 1 << 3;
        const BASIC: u32 = 1;
        const DISCARD: u32 = 1 << 1;
        let length = u32::try_from(Self::SIZE).unwrap_or_default();
        let block_bits = u8::try_from(self.block_size.trailing_zeros()).unwrap_or(9);
        // What the system caches pages of is what it best writes.
        let page_bits = block_bits.max(12);
        let (kinds, range) = match self.is_read_only {
            true => (BASIC, 0),
            false => (BASIC | DISCARD, RANGE_MAX >> 9),
        };
        let attributes = VOLATILE_CACHE | FUA | if self.is_read_only { READ_ONLY } else { 0 };
        let segments: u16 = if self.is_read_only { 0 } else { 1 };
        fill([
            &length.to_ne_bytes(),
            &kinds.to_ne_bytes(),
            &attributes.to_ne_bytes(),
            &[block_bits, page_bits, page_bits, page_bits],
            &(self.request_bytes_max >> 9).to_ne_bytes(),
            &[0; 4],
            &(self.size >> 9).to_ne_bytes(),
            &[0; 8],
            // Alignment and granularity of discards.
            &[0; 4],
            &self.block_size.to_ne_bytes(),
            &range.to_ne_bytes(),
            &range.to_ne_bytes(),
            &segments.to_ne_bytes(),
        ])
    }
}

/// What a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Bytes are wanted.
    Read,
    /// Bytes are given.
    Write,
    /// What was written is to be durable.
    Flush,
    /// Nobody needs these bytes.
    Discard,
    /// These bytes are to be zeroes.
    WriteZeroes,
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What is wanted.
    pub operation: Operation,
    /// Bytes; 0 for a flush.
    pub offset: u64,
    /// Bytes; 0 for a flush.
    pub length: u32,
    /// It is to be durable when it is done.
    pub is_durable: bool,
}

impl Request {
    /// Bytes that describe it.
    pub const SIZE: usize = 24;

    /// Reads what the kernel says: operation and flags (4), sectors (4), first sector (8), and an address that means
    /// nothing here.
    ///
    /// # Errors
    /// `Kind::Unsupported` for an operation that is not known; `Kind::Damaged` for bytes that no device has.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self> {
        const FUA: u32 = 1 << 13;
        let [f0, f1, f2, f3, n0, n1, n2, n3, s0, s1, s2, s3, s4, s5, s6, s7, ..] = *bytes;
        let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
        let operation = match flags & 0xff {
            0 => Operation::Read,
            1 => Operation::Write,
            // The other fields mean nothing then.
            2 => {
                return Ok(Self { operation: Operation::Flush, offset: 0, length: 0, is_durable: false });
            }
            3 => Operation::Discard,
            5 => Operation::WriteZeroes,
            other => {
                let what = format!("a ublk request asks for operation {other}, which is not known");
                return Err(Error::new(Kind::Unsupported, what));
            }
        };
        let sectors = u32::from_ne_bytes([n0, n1, n2, n3]);
        let start = u64::from_ne_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let length = sectors.checked_mul(512);
        let offset = start.checked_mul(SECTOR);
        let end = offset.zip(length).and_then(|(offset, length)| offset.checked_add(u64::from(length)));
        match (offset, length, end) {
            (Some(offset), Some(length), Some(_)) => {
                Ok(Self { operation, offset, length, is_durable: flags & FUA != 0 })
            }
            _ => Err(Error::damaged(format!("a ublk request is of {sectors} sectors from {start}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_numbers_of_the_kernel() {
        // As `_IOR('u', …)` and `_IOWR('u', …)` expand for structures of 32 and of 16 bytes.
        assert_eq!(control::GET_DEVICE_INFO, 0x8020_7502);
        assert_eq!(control::ADD_DEVICE, 0xc020_7504);
        assert_eq!(control::END_USER_RECOVERY, 0xc020_7511);
        assert_eq!(control::GET_FEATURES, 0x8020_7513);
        assert_eq!(QueueCommand::Fetch { tag: 0 }.code(), 0xc010_7520);
        assert_eq!(QueueCommand::Commit { tag: 0, result: 0 }.code(), 0xc010_7521);
    }

    #[test]
    fn commands_lie_where_the_kernel_looks() {
        let command = ControlCommand { device: 7, length: 64, address: 0x1234, data: 99 }.encode();
        assert_eq!(command[..4], 7u32.to_ne_bytes());
        assert_eq!(command[4..6], [0xff; 2]);
        assert_eq!(command[6..8], 64u16.to_ne_bytes());
        assert_eq!(command[8..16], 0x1234u64.to_ne_bytes());
        assert_eq!(command[16..24], 99u64.to_ne_bytes());
        assert_eq!(command[24..], [0; 56]);
        let command = QueueCommand::Commit { tag: 5, result: -28 }.encode();
        assert_eq!(command[2..4], 5u16.to_ne_bytes());
        assert_eq!(command[4..8], (-28i32).to_ne_bytes());
        assert_eq!(command[8..], [0; 72], "no address");
        assert_eq!(data_position(0), 0x8000_0000);
        assert_eq!(data_position(3), 0x8000_0000 + (3 << 25));
    }

    #[test]
    fn a_device_reads_back() {
        for state in [State::Dead, State::Live, State::Waits] {
            let info = DeviceInfo {
                queues: 1,
                depth: 128,
                state,
                request_bytes_max: 1 << 20,
                number: 3,
                pid: -1,
                features: feature::USER_COPY,
                mark: u64::MAX - 1,
            };
            assert_eq!(DeviceInfo::decode(&info.encode()).unwrap(), info);
        }
        let mut bytes = [0; DeviceInfo::SIZE];
        bytes[4..6].copy_from_slice(&9u16.to_ne_bytes());
        assert_eq!(DeviceInfo::decode(&bytes).unwrap_err().kind(), Kind::Unsupported);
    }

    #[test]
    fn a_disk_is_what_it_was_asked_to_be() {
        let params = Params {
            size: (1 << 30) + 700,
            block_size: 512,
            request_bytes_max: 1 << 20,
            is_read_only: false,
        };
        let bytes = params.encode();
        assert_eq!(bytes[..8], [64u32.to_ne_bytes(), 3u32.to_ne_bytes()].concat());
        assert_eq!(bytes[8..12], 12u32.to_ne_bytes(), "a cache, and FUA");
        assert_eq!(bytes[12..16], [9, 12, 12, 12]);
        assert_eq!(bytes[16..20], 2048u32.to_ne_bytes());
        assert_eq!(bytes[24..32], ((1u64 << 21) + 1).to_ne_bytes());
        assert_eq!(bytes[44..48], 512u32.to_ne_bytes());
        assert_eq!(bytes[48..56], [65536u32.to_ne_bytes(), 65536u32.to_ne_bytes()].concat());
        assert_eq!(bytes[56..58], 1u16.to_ne_bytes());
        let bytes = Params { is_read_only: true, ..params }.encode();
        assert_eq!(bytes[4..12], [1u32.to_ne_bytes(), 13u32.to_ne_bytes()].concat(), "no discards");
        assert_eq!(bytes[48..], [0; 16]);
    }

    fn described(flags: u32, sectors: u32, start: u64) -> [u8; Request::SIZE] {
        fill([&flags.to_ne_bytes(), &sectors.to_ne_bytes(), &start.to_ne_bytes()])
    }

    #[test]
    fn requests_are_read() {
        let request = Request::decode(&described(1 | 1 << 13, 8, 16)).unwrap();
        let wanted = Request { operation: Operation::Write, offset: 8192, length: 4096, is_durable: true };
        assert_eq!(request, wanted);
        let kinds = [(0, Operation::Read), (3, Operation::Discard), (5, Operation::WriteZeroes)];
        for (number, operation) in kinds {
            let request = Request::decode(&described(number, 1, 0)).unwrap();
            assert_eq!((request.operation, request.is_durable), (operation, false));
        }
        // Sectors of a flush are whatever was there before.
        let flush = Request::decode(&described(2, u32::MAX, u64::MAX)).unwrap();
        assert_eq!((flush.operation, flush.offset, flush.length), (Operation::Flush, 0, 0));
    }

    #[test]
    fn nonsense_is_an_error() {
        for number in (0..=255).filter(|number| ![0, 1, 2, 3, 5].contains(number)) {
            let error = Request::decode(&described(number, 1, 0)).unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported, "{number}");
        }
        for (sectors, start) in [(u32::MAX, 0), (1 << 23, 0), (1, u64::MAX), (1, (u64::MAX >> 9))] {
            let error = Request::decode(&described(0, sectors, start)).unwrap_err();
            assert_eq!(error.kind(), Kind::Damaged, "{sectors} {start}");
        }
    }
}
