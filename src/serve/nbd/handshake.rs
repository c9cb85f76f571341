//! Options: which export, which replies.

use super::context::Context;
use super::transmission::Session;
use crate::error::{Error, Kind, Result};
use crate::format::nbd::{
    FIXED_NEWSTYLE, HELLO, NAME_MAX, NO_ZEROES, OPTION_MAX, OPTION_SIZE, PAYLOAD_MAX, decode_info,
    decode_option, decode_queries, info, is_asked_for, meta_context, option, option_reply, reply,
    transmission,
};
use crate::serve::export::{Export, Exports};
use std::io::{Read, Write};
use std::sync::Arc;

/// Options that a client may ask for before it begins.
const OPTIONS_MAX: usize = 256;

/// What a connection must be before its client may choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encryption {
    /// As it is: it is encrypted already, or cannot be.
    Settled,
    /// Encrypted, if the client likes.
    Offered,
    /// Encrypted.
    Required,
}

/// What was agreed on.
pub enum Agreed {
    /// To use an export.
    On(Session),
    /// To end the connection.
    ToEnd,
    /// To encrypt the connection, and to go on with [`negotiate_encrypted`] and this.
    ToEncrypt(u32),
}

/// Agrees with a client on an export.
///
/// # Errors
/// `Kind::Io`; `Kind::Damaged` for what is no NBD.
pub fn negotiate(
    stream: &mut (impl Read + Write),
    exports: &dyn Exports,
    encryption: Encryption,
) -> Result<Agreed> {
    let mut hello = HELLO.to_vec();
    hello.extend_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    send(stream, &hello)?;
    let flags = u32::from_be_bytes(receive(stream)?);
    if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 || flags & u32::from(FIXED_NEWSTYLE) == 0 {
        return Err(Error::damaged(format!("NBD client has flags {flags:#x}")));
    }
    options(stream, exports, flags, encryption)
}

/// As [`negotiate`], once the connection is encrypted: nothing that was agreed on before counts but `flags`.
///
/// # Errors
/// As [`negotiate`].
pub fn negotiate_encrypted(
    stream: &mut (impl Read + Write),
    exports: &dyn Exports,
    flags: u32,
) -> Result<Agreed> {
    options(stream, exports, flags, Encryption::Settled)
}

fn options(
    stream: &mut (impl Read + Write),
    exports: &dyn Exports,
    flags: u32,
    encryption: Encryption,
) -> Result<Agreed> {
    let mut structured = false;
    let mut chosen = Chosen::default();
    for _ in 0..OPTIONS_MAX {
        let (number, length) = decode_option(&receive::<OPTION_SIZE>(stream)?)?;
        if length > OPTION_MAX {
            skip(stream, length)?;
            send(stream, &option_reply(number, reply::TOO_BIG, b"option is too long"))?;
            continue;
        }
        let mut data = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        stream.read_exact(&mut data).map_err(|error| Error::io("the client went away", error))?;
        match number {
            option::STARTTLS if encryption != Encryption::Settled && data.is_empty() => {
                send(stream, &option_reply(number, reply::ACK, &[]))?;
                return Ok(Agreed::ToEncrypt(flags));
            }
            option::EXPORT_NAME if encryption == Encryption::Required => {
                return Err(Error::new(Kind::Refused, "NBD client wants an export without encryption"));
            }
            _ if encryption == Encryption::Required && number != option::ABORT => {
                send(stream, &option_reply(number, reply::TLS_REQUIRED, b"encryption comes first"))?;
            }
            option::EXPORT_NAME => {
                let mut session = export_name(stream, exports, &data, flags, structured)?;
                session.contexts = chosen.of(&data);
                return Ok(Agreed::On(session));
            }
            option::ABORT => {
                // Many clients do not wait for this.
                let _ = send(stream, &option_reply(number, reply::ACK, &[]));
                return Ok(Agreed::ToEnd);
            }
            option::GO | option::INFO => {
                if let Some(export) = tell(stream, exports, number, &data)? {
                    let contexts = decode_info(&data).map(|(name, _)| chosen.of(name)).unwrap_or_default();
                    return Ok(Agreed::On(Session { export, structured, contexts }));
                }
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                structured = true;
                send(stream, &option_reply(number, reply::ACK, &[]))?;
            }
            option::LIST if data.is_empty() => list(stream, exports)?,
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                let is_set = number == option::SET_META_CONTEXT;
                match decode_queries(&data).ok().filter(|_| structured || !is_set) {
                    None => send(stream, &option_reply(number, reply::INVALID, b"option makes no sense"))?,
                    Some((name, queries)) => {
                        let found = contexts(stream, exports, number, name, &queries)?;
                        if is_set {
                            chosen = Chosen { export: name.to_vec(), contexts: found };
                        }
                    }
                }
            }
            option::STRUCTURED_REPLY | option::LIST => {
                send(stream, &option_reply(number, reply::INVALID, b"this option has no data"))?;
            }
            _ => send(stream, &option_reply(number, reply::UNSUPPORTED, b"option is not known"))?,
        }
    }
    Err(Error::damaged("NBD client does not come to an end with its options"))
}

/// The contexts that a client has chosen, which count for the export for which it has.
#[derive(Default)]
struct Chosen {
    export: Vec<u8>,
    contexts: Vec<(u32, Context)>,
}

impl Chosen {
    fn of(&self, export: &[u8]) -> Vec<(u32, Context)> {
        if self.export == export { self.contexts.clone() } else { Vec::new() }
    }
}

/// Answers which contexts there are of those asked for; all, if a list asks for nothing in particular.
fn contexts(
    stream: &mut impl Write,
    exports: &dyn Exports,
    number: u32,
    name: &[u8],
    queries: &[&[u8]],
) -> Result<Vec<(u32, Context)>> {
    let export = match find(exports, name) {
        Ok(export) => export,
        Err(error) => {
            send(stream, &option_reply(number, reply::UNKNOWN, error.to_string().as_bytes()))?;
            return Ok(Vec::new());
        }
    };
    let is_list = number == option::LIST_META_CONTEXT;
    let is_wanted = |context: &Context| {
        let name = context.name();
        let mut queries = queries.iter();
        match is_list {
            true => queries.len() == 0 || queries.any(|query| is_asked_for(query, &name)),
            false => queries.any(|query| *query == name.as_bytes()),
        }
    };
    let found = Context::all(export.as_ref()).into_iter().filter(is_wanted);
    let found: Vec<(u32, Context)> = (1..).zip(found).collect();
    for (id, context) in &found {
        let id = if is_list { 0 } else { *id };
        send(stream, &option_reply(number, reply::META_CONTEXT, &meta_context(id, &context.name())))?;
    }
    send(stream, &option_reply(number, reply::ACK, &[]))?;
    Ok(found)
}

/// What an export can do, as NBD says it.
#[must_use]
pub fn transmission_flags(export: &dyn Export) -> u16 {
    let always = transmission::HAS_FLAGS | transmission::FLUSH | transmission::DF | transmission::MULTI_CONN;
    match export.is_read_only() {
        true => always | transmission::READ_ONLY,
        false => always | transmission::FUA | transmission::TRIM | transmission::WRITE_ZEROES,
    }
}

/// The oldest way to begin: a name that is not there can only be answered by hanging up.
fn export_name(
    stream: &mut (impl Read + Write),
    exports: &dyn Exports,
    name: &[u8],
    flags: u32,
    structured: bool,
) -> Result<Session> {
    let export = find(exports, name)?;
    let mut answer = export.size().to_be_bytes().to_vec();
    answer.extend_from_slice(&transmission_flags(export.as_ref()).to_be_bytes());
    if flags & u32::from(NO_ZEROES) == 0 {
        answer.resize(answer.len() + 124, 0);
    }
    send(stream, &answer)?;
    Ok(Session { export, structured, contexts: Vec::new() })
}

fn find(exports: &dyn Exports, name: &[u8]) -> Result<Arc<dyn Export>> {
    if name.len() > NAME_MAX {
        return Err(Error::new(Kind::NotFound, "the name of the export is too long"));
    }
    let name = std::str::from_utf8(name);
    exports.open(name.map_err(|_| Error::new(Kind::NotFound, "the name of the export is no text"))?)
}

/// Answers `INFO` or `GO`; the export, if the client begins with it.
fn tell(
    stream: &mut (impl Read + Write),
    exports: &dyn Exports,
    number: u32,
    data: &[u8],
) -> Result<Option<Arc<dyn Export>>> {
    let Ok((name, wanted)) = decode_info(data) else {
        send(stream, &option_reply(number, reply::INVALID, b"option makes no sense"))?;
        return Ok(None);
    };
    let export = match find(exports, name) {
        Ok(export) => export,
        Err(error) => {
            send(stream, &option_reply(number, reply::UNKNOWN, error.to_string().as_bytes()))?;
            return Ok(None);
        }
    };
    let fact = |kind: u16, rest: &[u8]| {
        let data = [&kind.to_be_bytes()[..], rest].concat();
        option_reply(number, reply::INFO, &data)
    };
    let mut about = export.size().to_be_bytes().to_vec();
    about.extend_from_slice(&transmission_flags(export.as_ref()).to_be_bytes());
    send(stream, &fact(info::EXPORT, &about))?;
    for kind in wanted {
        match kind {
            info::BLOCK_SIZE => {
                let sizes = [1, export.preferred_size().clamp(4096, PAYLOAD_MAX), PAYLOAD_MAX];
                send(stream, &fact(kind, sizes.map(u32::to_be_bytes).as_flattened()))?;
            }
            info::NAME => send(stream, &fact(kind, name))?,
            info::DESCRIPTION => {
                let names = exports.names();
                let text = names.iter().find(|(known, _)| known.as_bytes() == name);
                if let Some((_, text)) = text {
                    send(stream, &fact(kind, text.as_bytes()))?;
                }
            }
            // Facts that are not known need not be told.
            _ => {}
        }
    }
    send(stream, &option_reply(number, reply::ACK, &[]))?;
    Ok((number == option::GO).then_some(export))
}

fn list(stream: &mut (impl Read + Write), exports: &dyn Exports) -> Result<()> {
    for (name, description) in exports.names() {
        let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
        let data = [&length.to_be_bytes()[..], name.as_bytes(), description.as_bytes()].concat();
        send(stream, &option_reply(option::LIST, reply::SERVER, &data))?;
    }
    send(stream, &option_reply(option::LIST, reply::ACK, &[]))
}

fn send(stream: &mut impl Write, bytes: &[u8]) -> Result<()> {
    let sent = stream.write_all(bytes).and_then(|()| stream.flush());
    sent.map_err(|error| Error::io("cannot answer the client", error))
}

fn receive<const N: usize>(stream: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).map_err(|error| Error::io("the client went away", error))?;
    Ok(bytes)
}

/// Reads past what is not wanted.
fn skip(stream: &mut impl Read, length: u32) -> Result<()> {
    let gone = |error| Error::io("the client went away", error);
    let mut rest = stream.take(u64::from(length));
    let read = std::io::copy(&mut rest, &mut std::io::sink()).map_err(gone)?;
    match read == u64::from(length) {
        true => Ok(()),
        false => Err(gone(std::io::ErrorKind::UnexpectedEof.into())),
    }
}
