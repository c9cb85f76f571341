//! The NBD protocol, fixed newstyle: negotiation, requests, replies. All integers are big endian.
//!
//! Source: the protocol document of the NetworkBlockDevice project.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use crate::error::{Error, Result};

/// What a server says first: magic, and that it negotiates options.
pub const HELLO: [u8; 16] = *b"NBDMAGICIHAVEOPT";
/// Begins an option.
const OPTION_MAGIC: [u8; 8] = *b"IHAVEOPT";
/// Begins the reply to an option.
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags, of server and client: fixed newstyle.
pub const FIXED_NEWSTYLE: u16 = 1;
/// Handshake flags, of server and client: no zeroes after the reply to `EXPORT_NAME`.
pub const NO_ZEROES: u16 = 2;

/// Longest name of an export in bytes.
pub const NAME_MAX: usize = 4096;
/// Longest data of an option that is taken.
pub const OPTION_MAX: u32 = 64 << 10;
/// Longest data of a request or a reply.
pub const PAYLOAD_MAX: u32 = 32 << 20;

/// Numbers of options.
pub mod option {
    /// Choose an export and begin, without a reply that could say no.
    pub const EXPORT_NAME: u32 = 1;
    /// End it.
    pub const ABORT: u32 = 2;
    /// List the exports.
    pub const LIST: u32 = 3;
    /// Begin encryption.
    pub const STARTTLS: u32 = 5;
    /// Tell of an export.
    pub const INFO: u32 = 6;
    /// Choose an export and begin.
    pub const GO: u32 = 7;
    /// Structured replies are understood.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Types of replies to options.
pub mod reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// An export of a list.
    pub const SERVER: u32 = 2;
    /// A fact of an export.
    pub const INFO: u32 = 3;
    /// A metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// Not known.
    pub const UNSUPPORTED: u32 = 1 << 31 | 1;
    /// Makes no sense.
    pub const INVALID: u32 = 1 << 31 | 3;
    /// Only after encryption has begun.
    pub const TLS_REQUIRED: u32 = 1 << 31 | 5;
    /// No such export.
    pub const UNKNOWN: u32 = 1 << 31 | 6;
    /// Too long.
    pub const TOO_BIG: u32 = 1 << 31 | 9;
}

/// Facts of an export.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// Its name.
    pub const NAME: u16 = 1;
    /// What it is, for people.
    pub const DESCRIPTION: u16 = 2;
    /// Smallest, preferred and largest request.
    pub const BLOCK_SIZE: u16 = 3;
}

/// What an export can do.
pub mod transmission {
    /// There are flags.
    pub const HAS_FLAGS: u16 = 1;
    /// It cannot be written.
    pub const READ_ONLY: u16 = 1 << 1;
    /// Flush.
    pub const FLUSH: u16 = 1 << 2;
    /// Writes that are durable when they return.
    pub const FUA: u16 = 1 << 3;
    /// Discard.
    pub const TRIM: u16 = 1 << 5;
    /// Zeroes without their bytes.
    pub const WRITE_ZEROES: u16 = 1 << 6;
    /// Reads in one chunk on demand.
    pub const DF: u16 = 1 << 7;
    /// A flush on one connection is good for all.
    pub const MULTI_CONN: u16 = 1 << 8;
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Read.
    Read,
    /// Write; the data follow.
    Write,
    /// Nothing more will come.
    Disconnect,
    /// Make completed writes durable.
    Flush,
    /// These bytes are not needed.
    Trim,
    /// Zeroes.
    WriteZeroes,
    /// Tell what is where.
    BlockStatus,
    /// Something else.
    Other(u16),
}

/// Flag of a request: durable when it returns.
pub const FUA: u16 = 1;
/// Flag of a request: zeroes must not become a hole.
pub const NO_HOLE: u16 = 1 << 1;
/// Flag of a request: what is read comes in one chunk.
pub const ONE_CHUNK: u16 = 1 << 2;
/// Flag of a request: tell of one extent only, inside of what was asked for.
pub const ONE_EXTENT: u16 = 1 << 3;

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Flags.
    pub flags: u16,
    /// What it asks for.
    pub command: Command,
    /// Names the request in its reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

/// Bytes of a request.
pub const REQUEST_SIZE: usize = 28;

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// `Kind::Damaged` if this is none.
    pub fn decode(bytes: &[u8; REQUEST_SIZE]) -> Result<Self> {
        let [m0, m1, m2, m3, f0, f1, t0, t1, rest @ ..] = *bytes;
        let magic = u32::from_be_bytes([m0, m1, m2, m3]);
        if magic != REQUEST_MAGIC {
            return Err(Error::damaged(format!(
                "NBD request has magic {magic:08x}, expected {REQUEST_MAGIC:08x}"
            )));
        }
        let [c0, c1, c2, c3, c4, c5, c6, c7, o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3] = rest;
        Ok(Self {
            flags: u16::from_be_bytes([f0, f1]),
            command: match u16::from_be_bytes([t0, t1]) {
                0 => Command::Read,
                1 => Command::Write,
                2 => Command::Disconnect,
                3 => Command::Flush,
                4 => Command::Trim,
                6 => Command::WriteZeroes,
                7 => Command::BlockStatus,
                other => Command::Other(other),
            },
            cookie: u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
            offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            length: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }
}

/// Bytes that begin an option.
pub const OPTION_SIZE: usize = 16;

/// Reads the beginning of an option: its number, and the length of its data.
///
/// # Errors
/// `Kind::Damaged` if this is none.
pub fn decode_option(bytes: &[u8; OPTION_SIZE]) -> Result<(u32, u32)> {
    let [magic @ .., n0, n1, n2, n3, l0, l1, l2, l3] = *bytes;
    if magic != OPTION_MAGIC {
        return Err(Error::damaged(format!("NBD option has magic {}", hex::encode(magic))));
    }
    Ok((u32::from_be_bytes([n0, n1, n2, n3]), u32::from_be_bytes([l0, l1, l2, l3])))
}

/// The reply of type `kind` to `option`.
#[must_use]
pub fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let mut reply = REPLY_MAGIC.to_be_bytes().to_vec();
    for word in [option, kind, length] {
        reply.extend_from_slice(&word.to_be_bytes());
    }
    reply.extend_from_slice(data);
    reply
}

/// The data of `INFO` and `GO`: the name of the export, and which facts are wanted beside its size.
///
/// # Errors
/// `Kind::Damaged` if it makes no sense.
pub fn decode_info(data: &[u8]) -> Result<(&[u8], Vec<u16>)> {
    let cut = || Error::damaged("NBD option is cut short");
    let (length, rest) = data.split_first_chunk::<4>().ok_or_else(cut)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| cut())?;
    let (name, rest) = rest.split_at_checked(length).ok_or_else(cut)?;
    let (count, rest) = rest.split_first_chunk::<2>().ok_or_else(cut)?;
    let (words, []) = rest.as_chunks::<2>() else { return Err(cut()) };
    if words.len() != usize::from(u16::from_be_bytes(*count)) {
        return Err(cut());
    }
    Ok((name, words.iter().map(|word| u16::from_be_bytes(*word)).collect()))
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`: the name of the export, and the queries.
///
/// # Errors
/// `Kind::Damaged` if it makes no sense.
pub fn decode_queries(data: &[u8]) -> Result<(&[u8], Vec<&[u8]>)> {
    let cut = || Error::damaged("NBD option is cut short");
    fn text(data: &[u8]) -> Option<(&[u8], &[u8])> {
        let (length, rest) = data.split_first_chunk::<4>()?;
        rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
    }
    let (name, rest) = text(data).ok_or_else(cut)?;
    let (count, mut rest) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
    let mut queries = Vec::new();
    for _ in 0..u32::from_be_bytes(*count) {
        let (query, after) = text(rest).ok_or_else(cut)?;
        queries.push(query);
        rest = after;
    }
    if rest.is_empty() { Ok((name, queries)) } else { Err(cut()) }
}

/// A reply without data to a read that went well, or to anything else.
#[must_use]
pub fn simple_reply(error: u32, cookie: u64) -> [u8; 16] {
    let mut reply = [0; 16];
    let parts = [&SIMPLE_MAGIC.to_be_bytes()[..], &error.to_be_bytes(), &cookie.to_be_bytes()];
    for (to, from) in reply.iter_mut().zip(parts.concat()) {
        *to = from;
    }
    reply
}

/// Types of chunks of a structured reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    /// Nothing more than that it is done.
    None,
    /// Where the bytes are from, and the bytes.
    Data,
    /// A context, and its extents.
    BlockStatus,
    /// What went wrong.
    Error,
}

/// Bytes that begin a chunk of a structured reply.
pub const CHUNK_SIZE: usize = 20;

/// Begins the last chunk of a structured reply (`is_last`) or another one; `length` bytes follow.
#[must_use]
pub fn chunk(kind: Chunk, is_last: bool, cookie: u64, length: u32) -> [u8; CHUNK_SIZE] {
    let kind: u16 = match kind {
        Chunk::None => 0,
        Chunk::Data => 1,
        Chunk::BlockStatus => 5,
        Chunk::Error => 0x8001,
    };
    let mut reply = [0; CHUNK_SIZE];
    let parts = [
        &CHUNK_MAGIC.to_be_bytes()[..],
        &u16::from(is_last).to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &length.to_be_bytes(),
    ];
    for (to, from) in reply.iter_mut().zip(parts.concat()) {
        *to = from;
    }
    reply
}

/// The names of metadata contexts.
pub mod context {
    /// Where something is.
    pub const ALLOCATION: &str = "base:allocation";
    /// What has changed since the point whose name follows.
    pub const CHANGED: &str = "qemu:dirty-bitmap:";
    /// Flag of an extent of `ALLOCATION`: nothing is there, and it reads as zeroes.
    pub const HOLE_OF_ZEROES: u32 = 1 | 2;
    /// Flag of an extent of `CHANGED`: it has.
    pub const DIRTY: u32 = 1;
}

/// True if the context `name` is one that `query` of a list asks for: it itself, or all of its kind.
#[must_use]
pub fn is_asked_for(query: &[u8], name: &str) -> bool {
    let groups: [&[u8]; 3] = [b"base:", b"qemu:", context::CHANGED.as_bytes()];
    query == name.as_bytes() || (groups.contains(&query) && name.as_bytes().starts_with(query))
}

/// The data of a reply that names a metadata context.
#[must_use]
pub fn meta_context(id: u32, name: &str) -> Vec<u8> {
    [&id.to_be_bytes()[..], name.as_bytes()].concat()
}

/// The data of a chunk that tells of context `id`: of extents one after the other, their lengths and flags.
#[must_use]
pub fn block_status(id: u32, extents: &[(u32, u32)]) -> Vec<u8> {
    let mut data = id.to_be_bytes().to_vec();
    for (length, flags) in extents {
        data.extend_from_slice(&length.to_be_bytes());
        data.extend_from_slice(&flags.to_be_bytes());
    }
    data
}

/// Error numbers.
pub mod errno {
    /// Not permitted: the export is read-only.
    pub const PERM: u32 = 1;
    /// The medium failed.
    pub const IO: u32 = 5;
    /// The request makes no sense.
    pub const INVAL: u32 = 22;
    /// No space left.
    pub const NOSPC: u32 = 28;
    /// Longer than is taken.
    pub const OVERFLOW: u32 = 75;
    /// The server goes away.
    pub const SHUTDOWN: u32 = 108;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read() {
        let mut bytes = [0; REQUEST_SIZE];
        bytes[..4].copy_from_slice(&[0x25, 0x60, 0x95, 0x13]);
        bytes[5] = 1;
        bytes[7] = 6;
        bytes[15] = 9;
        bytes[22] = 1;
        bytes[26] = 2;
        let expected =
            Request { flags: FUA, command: Command::WriteZeroes, cookie: 9, offset: 256, length: 512 };
        assert_eq!(Request::decode(&bytes).unwrap(), expected);
        bytes[0] = 0;
        assert!(Request::decode(&bytes).is_err());
    }

    #[test]
    fn options_that_are_cut_are_refused() {
        let go = [0, 0, 0, 3, b'a', b'b', b'c', 0, 2, 0, 1, 0, 3];
        assert_eq!(decode_info(&go).unwrap(), (&b"abc"[..], vec![1, 3]));
        let meta = [0, 0, 0, 1, b'x', 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2, b'q', b'r'];
        assert_eq!(decode_queries(&meta).unwrap(), (&b"x"[..], vec![&b""[..], &b"qr"[..]]));
        for cut in 0..go.len() {
            assert!(decode_info(&go[..cut]).is_err(), "{cut}");
        }
        for cut in 0..meta.len() {
            assert!(decode_queries(&meta[..cut]).is_err(), "{cut}");
        }
        // A count of four thousand million queries ends where the data do.
        assert!(decode_queries(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]).is_err());
    }

    #[test]
    fn queries_ask_for_one_context_or_a_kind() {
        let asked = |query: &str| -> Vec<&str> {
            let names = [context::ALLOCATION, "qemu:dirty-bitmap:1", "qemu:dirty-bitmap:12"];
            names.into_iter().filter(|name| is_asked_for(query.as_bytes(), name)).collect()
        };
        assert_eq!(asked("base:"), ["base:allocation"]);
        assert_eq!(asked("qemu:"), ["qemu:dirty-bitmap:1", "qemu:dirty-bitmap:12"]);
        assert_eq!(asked("qemu:dirty-bitmap:"), ["qemu:dirty-bitmap:1", "qemu:dirty-bitmap:12"]);
        assert_eq!(asked("qemu:dirty-bitmap:1"), ["qemu:dirty-bitmap:1"]);
        assert!(asked("").is_empty() && asked("qemu:dirty").is_empty() && asked("x-y:").is_empty());
        assert_eq!(
            hex::encode(block_status(2, &[(512, 3), (1, 0)])),
            "0000000200000200000000030000000100000000"
        );
    }

    #[test]
    fn replies_are_laid_out_as_the_protocol_says() {
        assert_eq!(hex::encode(simple_reply(5, 0x0102)), "67446698000000050000000000000102");
        assert_eq!(hex::encode(chunk(Chunk::Error, true, 7, 6)), "668e33ef00018001000000000000000700000006");
        assert_eq!(
            hex::encode(option_reply(option::LIST, reply::ACK, b"z")),
            "0003e889045565a90000000300000001000000017a"
        );
    }
}
