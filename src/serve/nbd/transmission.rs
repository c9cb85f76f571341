//! Requests and replies. Several threads take turns at reading requests. Whoever reads does at once, and reads on, what
//! waits for nobody: to hand the turn to another thread costs more than a small read or write of what is in memory. Any
//! other request it does when the next one reads, and they take turns at replying.

use super::context::Context;
use super::memory::{Account, Memory, Share};
use super::replies::Replies;
use crate::error::{Error, Kind, Result};
use crate::format::nbd::block_status;
use crate::format::nbd::{
    Chunk, Command, FUA, NO_HOLE, ONE_CHUNK, ONE_EXTENT, PAYLOAD_MAX, REQUEST_SIZE, Request, chunk, errno,
    simple_reply,
};
use crate::serve::export::Export;
use crate::serve::listen::Wire;
use crate::units::index;
use std::io::{BufReader, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Threads of one connection, at most: as many requests are done at a time.
const THREADS_MAX: usize = 128;
/// Bytes that a thread keeps for its next request: nobody counts them.
const KEPT_MAX: usize = 64 << 10;
/// Bytes that telling what is where takes.
const STATUS_BYTES: usize = 512 << 10;
/// Bytes of a read or write that may be done at once: copying more costs more than another thread does.
const SMALL: u32 = 64 << 10;
/// Bytes of requests that are read ahead.
const AHEAD: usize = 64 << 10;
/// A thread waits for memory with a stack that holds no more than calls.
const STACK_BYTES: usize = 256 << 10;

/// What a client has chosen.
pub struct Session {
    /// What it uses.
    pub export: Arc<dyn Export>,
    /// It understands structured replies.
    pub structured: bool,
    /// What it wants to be told of, by number.
    pub contexts: Vec<(u32, Context)>,
}

/// Serves requests until the client disconnects or goes away, with some of `memory`. `receiver` and `sender` are the
/// two directions of one connection, which is `wire`.
///
/// # Errors
/// `Kind::Damaged` for what is no request; `Kind::Io`.
pub fn serve<R: Read + Send, W: Write + Send>(
    session: &Session,
    memory: &Memory,
    (receiver, sender): (R, W),
    wire: &dyn Wire,
) -> Result<()> {
    let connection = Connection {
        session,
        receiver: Mutex::new(BufReader::with_capacity(AHEAD, receiver)),
        replies: Replies::new(sender, wire),
        waiting: AtomicUsize::new(0),
        threads: AtomicUsize::new(1),
        ended: AtomicBool::new(false),
        memory: Account::new(memory),
        failure: Mutex::new(None),
        wire,
    };
    std::thread::scope(|scope| connection.work(scope));
    let failure = connection.failure.into_inner().unwrap_or_else(PoisonError::into_inner);
    failure.map_or(Ok(()), Err)
}

/// A request, with the memory for it.
struct Received<'a> {
    request: Request,
    share: Share<'a>,
    /// What became of it, where its data had to be written as they came.
    written: Option<Result<()>>,
}

/// What is to be done by the thread that has read requests, when another one reads.
enum Next<'a> {
    Answer(Received<'a>),
    /// To send what was gathered.
    Send,
    End,
}

struct Connection<'a, R, W> {
    session: &'a Session,
    receiver: Mutex<BufReader<R>>,
    replies: Replies<'a, W>,
    /// Threads that wait for a request.
    waiting: AtomicUsize,
    threads: AtomicUsize,
    ended: AtomicBool,
    memory: Account<'a>,
    failure: Mutex<Option<Error>>,
    wire: &'a dyn Wire,
}

impl<R: Read + Send, W: Write + Send> Connection<'_, R, W> {
    /// What each thread does.
    fn work<'scope>(&'scope self, scope: &'scope std::thread::Scope<'scope, '_>) {
        let mut buf = Vec::new();
        while !self.ended.load(Ordering::Acquire) {
            self.waiting.fetch_add(1, Ordering::AcqRel);
            let next = {
                let mut receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
                let next = self.lead(&mut receiver, &mut buf);
                // Before the next thread reads: it must not begin with what comes after the end.
                if matches!(next, Ok(Next::End) | Err(_)) {
                    self.ended.store(true, Ordering::Release);
                }
                next
            };
            let left = self.waiting.fetch_sub(1, Ordering::AcqRel) - 1;
            let goes_on = !self.ended.load(Ordering::Acquire);
            if goes_on && left == 0 && self.threads.load(Ordering::Acquire) < THREADS_MAX {
                self.threads.fetch_add(1, Ordering::AcqRel);
                let more = std::thread::Builder::new().name("nbd".into()).stack_size(STACK_BYTES);
                // Without another thread this one does all the work.
                if more.spawn_scoped(scope, || self.work(scope)).is_err() {
                    self.threads.fetch_sub(1, Ordering::AcqRel);
                }
            }
            let done = match next {
                Ok(Next::Answer(received)) => self.answer(received, &mut buf),
                Ok(Next::Send | Next::End) => self.replies.send_gathered(),
                // What came before is answered, if the client takes it.
                Err(error) => self.replies.try_send_gathered().and(Err(error)),
            };
            if let Err(error) = done {
                return self.fail(error);
            }
            if buf.capacity() > KEPT_MAX {
                buf = Vec::new();
            }
        }
    }

    /// Does requests at once, up to one that must be done in another way, whose data are in `buf` then.
    fn lead(&self, receiver: &mut BufReader<R>, buf: &mut Vec<u8>) -> Result<Next<'_>> {
        loop {
            // Who sent them may wait for their replies.
            if receiver.buffer().len() < REQUEST_SIZE && !self.replies.try_send_gathered()? {
                return Ok(Next::Send);
            }
            match self.receive(receiver, buf)? {
                None => return Ok(Next::End),
                Some(received) if self.answer_at_once(&received, buf) => {}
                Some(received) => {
                    // If that has to wait, the next thread that reads has it sent.
                    self.replies.try_send_gathered()?;
                    return Ok(Next::Answer(received));
                }
            }
        }
    }

    /// Does a small request if that waits for nobody, and gathers the reply; false if it has to be done in another way.
    fn answer_at_once(&self, received: &Received<'_>, data: &[u8]) -> bool {
        let Received { request, written, .. } = received;
        let is_plain = request.flags & FUA == 0 && ensure_understood(*request).is_ok();
        if request.length > SMALL || !is_plain || written.is_some() {
            return false;
        }
        // An error is met again, and told, in the ordinary way.
        let (export, offset) = (self.session.export.as_ref(), request.offset);
        match request.command {
            // Not while what is gathered is locked: the device may be slow for once.
            Command::Write if self.replies.has_room() => {
                let is_done = matches!(export.write_at_once(offset, data), Ok(true));
                if is_done {
                    self.replies.gather(|reply| {
                        self.tell_done(*request, reply);
                        true
                    });
                }
                is_done
            }
            Command::Read if self.replies.has_room() => self.replies.gather(|reply| {
                let bytes = self.begin_data(*request, index(u64::from(request.length)), reply);
                matches!(export.read_cached(offset, bytes), Ok(true))
            }),
            _ => false,
        }
    }

    /// Appends the reply to what went well.
    fn tell_done(&self, request: Request, reply: &mut Vec<u8>) {
        match self.session.structured {
            true => reply.extend_from_slice(&chunk(Chunk::None, true, request.cookie, 0)),
            false => reply.extend_from_slice(&simple_reply(0, request.cookie)),
        }
    }

    /// Appends the reply to a read, with zeroes for its first `length` bytes, which are what this returns.
    fn begin_data<'b>(&self, request: Request, length: usize, reply: &'b mut Vec<u8>) -> &'b mut [u8] {
        match self.session.structured {
            true => {
                let length = request.length.saturating_add(8);
                reply.extend_from_slice(&chunk(Chunk::Data, true, request.cookie, length));
                reply.extend_from_slice(&request.offset.to_be_bytes());
            }
            false => reply.extend_from_slice(&simple_reply(0, request.cookie)),
        }
        let begin = reply.len();
        reply.resize(begin + length, 0);
        &mut reply[begin..]
    }

    /// The next request, with its data in `buf`; `None` if no more will come.
    fn receive(&self, receiver: &mut BufReader<R>, buf: &mut Vec<u8>) -> Result<Option<Received<'_>>> {
        if self.ended.load(Ordering::Acquire) {
            return Ok(None);
        }
        let mut bytes = [0; REQUEST_SIZE];
        match receiver.read_exact(&mut bytes) {
            // A client that goes away without a word has still ended it.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(Error::io("cannot read a request", error)),
            Ok(()) => {}
        }
        let request = Request::decode(&bytes)?;
        let length = match request.command {
            Command::Disconnect => return Ok(None),
            // There is no way past its data but to read them; it is answered by an error.
            Command::Write if request.length > PAYLOAD_MAX => {
                skip(receiver, u64::from(request.length))?;
                0
            }
            Command::Read | Command::Write => index(u64::from(request.length.min(PAYLOAD_MAX))),
            Command::BlockStatus => STATUS_BYTES,
            _ => 0,
        };
        let share = self.memory.take(length);
        let mut written = None;
        if request.command == Command::Write && share.bytes < length {
            written = Some(self.write_slices(request, receiver, buf, share.bytes)?);
        } else if request.command == Command::Write {
            buf.resize(length, 0);
            if receiver.buffer().len() < length {
                // Whoever sends much takes a while.
                self.replies.try_send_gathered()?;
            }
            receiver.read_exact(buf).map_err(cut_short)?;
        }
        Ok(Some(Received { request, share, written }))
    }

    /// Writes data as they come, at most `slice` bytes at a time. An error of the export is what this returns inside.
    fn write_slices(
        &self,
        request: Request,
        receiver: &mut BufReader<R>,
        buf: &mut Vec<u8>,
        slice: usize,
    ) -> Result<Result<()>> {
        let export = self.session.export.as_ref();
        let length = u64::from(request.length);
        let is_inside = request.offset.checked_add(length).is_some_and(|end| end <= export.size());
        let mut outcome = match is_inside {
            true => ensure_understood(request),
            false => Err(Error::new(Kind::Usage, "it ends past the end")),
        };
        let mut at = 0;
        while at < length {
            buf.resize(index((length - at).min(slice as u64)), 0);
            receiver.read_exact(buf).map_err(cut_short)?;
            outcome = outcome.and_then(|()| export.write(request.offset + at, buf));
            at += buf.len() as u64;
        }
        Ok(outcome)
    }

    /// Does what `request` asks for, and replies. An error of the export is an answer.
    fn answer(&self, received: Received<'_>, buf: &mut Vec<u8>) -> Result<()> {
        let Received { request, share, written } = received;
        if let Err(error) = ensure_understood(request) {
            return self.refuse(request, &error);
        }
        match request.command {
            Command::Read => return self.read(request, buf, share.bytes),
            Command::BlockStatus => return self.tell_status(request),
            _ => {}
        }
        let export = self.session.export.as_ref();
        let (offset, length) = (request.offset, u64::from(request.length));
        let durable = |done: Result<()>| match request.flags & FUA {
            0 => done,
            _ => done.and_then(|()| export.flush()),
        };
        let outcome = match request.command {
            Command::Write if request.length > PAYLOAD_MAX => Err(too_long(request)),
            Command::Write => durable(written.unwrap_or_else(|| export.write(offset, buf))),
            Command::WriteZeroes => durable(export.write_zeroes(offset, length)),
            Command::Trim => durable(export.discard(offset, length)),
            Command::Flush => export.flush(),
            _ => Err(Error::new(Kind::Usage, "this request is not known")),
        };
        match outcome {
            Err(error) => self.refuse(request, &error),
            Ok(()) => {
                buf.clear();
                self.tell_done(request, buf);
                self.replies.send(buf)
            }
        }
    }

    /// Answers a read, with at most `slice` bytes of it in memory at a time.
    fn read(&self, request: Request, buf: &mut Vec<u8>, slice: usize) -> Result<()> {
        if request.length > PAYLOAD_MAX {
            return self.refuse(request, &too_long(request));
        }
        let export = self.session.export.as_ref();
        let length = index(u64::from(request.length));
        // A reply that is whole is one write: what begins it lies before the bytes.
        buf.clear();
        let bytes = self.begin_data(request, length.min(slice), buf);
        let mut at = bytes.len();
        if let Err(error) = export.read(request.offset, bytes) {
            return self.refuse(request, &error);
        }
        self.replies.send_by(|sender| {
            sender.send(buf)?;
            // What was promised must come: from here on an error ends the connection.
            while at < length {
                buf.clear();
                buf.resize(slice.min(length - at), 0);
                export.read(request.offset + at as u64, buf)?;
                sender.send(buf)?;
                at += buf.len();
            }
            Ok(())
        })
    }

    /// Tells what is where, in each of the contexts that were chosen.
    fn tell_status(&self, request: Request) -> Result<()> {
        let contexts = &self.session.contexts;
        if contexts.is_empty() || request.length == 0 {
            return self.refuse(request, &Error::new(Kind::Usage, "no context was chosen, or no byte"));
        }
        let one = request.flags & ONE_EXTENT != 0;
        let mut told = Vec::new();
        for (number, context) in contexts {
            match context.extents(self.session.export.as_ref(), request.offset, request.length, one) {
                Ok(extents) => told.push(block_status(*number, &extents)),
                Err(error) => return self.refuse(request, &error),
            }
        }
        let last = told.len().saturating_sub(1);
        let reply = told.iter().enumerate().flat_map(|(at, data)| {
            let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
            [&chunk(Chunk::BlockStatus, at == last, request.cookie, length)[..], data].concat()
        });
        self.replies.send(&reply.collect::<Vec<u8>>())
    }

    fn refuse(&self, request: Request, error: &Error) -> Result<()> {
        let number = error_number(error.kind());
        if !self.session.structured {
            return self.replies.send(&simple_reply(number, request.cookie));
        }
        let text: String = error.to_string().chars().take(1000).collect();
        let text = text.as_bytes();
        let length = u16::try_from(text.len()).unwrap_or(0);
        let mut reply =
            chunk(Chunk::Error, true, request.cookie, u32::from(length).saturating_add(6)).to_vec();
        reply.extend_from_slice(&number.to_be_bytes());
        reply.extend_from_slice(&length.to_be_bytes());
        reply.extend_from_slice(text);
        self.replies.send(&reply)
    }

    fn fail(&self, error: Error) {
        self.ended.store(true, Ordering::Release);
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.wire.end();
    }
}

/// Reads `length` bytes that nobody wants, without room for them.
fn skip(receiver: &mut impl Read, length: u64) -> Result<()> {
    let skipped = std::io::copy(&mut receiver.take(length), &mut std::io::sink()).map_err(cut_short)?;
    match skipped == length {
        true => Ok(()),
        false => Err(cut_short(std::io::ErrorKind::UnexpectedEof.into())),
    }
}

fn cut_short(error: std::io::Error) -> Error {
    Error::io("a write was cut short", error)
}

/// Fails for a request that means more than is known here.
fn ensure_understood(request: Request) -> Result<()> {
    match request.flags & !(FUA | NO_HOLE | ONE_CHUNK | ONE_EXTENT) {
        0 => Ok(()),
        flags => Err(Error::new(Kind::Usage, format!("flags {flags:#x} of this request are not known"))),
    }
}

fn too_long(request: Request) -> Error {
    let what = format!("a request of {} bytes, at most {PAYLOAD_MAX} are taken", request.length);
    Error::new(Kind::Usage, what)
}

fn error_number(kind: Kind) -> u32 {
    match kind {
        Kind::Usage => errno::INVAL,
        Kind::NoSpace => errno::NOSPC,
        Kind::Refused => errno::PERM,
        _ => errno::IO,
    }
}
