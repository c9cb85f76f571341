//! Clients of every kind: right, wrong, hostile.

use super::{Agreed, Encryption, Memory, Session, negotiate, negotiate_encrypted, serve};
use crate::error::{Error, Kind, Result};
use crate::serve::export::{Export, Exports};
use crate::serve::listen::Wire;
use crate::units::index;
use std::io::{Cursor, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

struct Nothing;

impl Exports for Nothing {
    fn names(&self) -> Vec<(String, String)> {
        vec![("a".into(), "the first".into())]
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Export>> {
        Err(Error::new(Kind::NotFound, format!("there is no export '{name}'")))
    }
}

/// A client that says everything before it listens.
struct Client {
    says: Cursor<Vec<u8>>,
    hears: Vec<u8>,
}

impl Read for Client {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.says.read(buf)
    }
}

impl Write for Client {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.hears.write(buf)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn hear(says: &[u8]) -> (Option<Kind>, Vec<u8>) {
    let mut client = Client { says: Cursor::new(says.to_vec()), hears: Vec::new() };
    let outcome = negotiate(&mut client, &Nothing, Encryption::Settled);
    (outcome.err().map(|error| error.kind()), client.hears)
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    [&b"IHAVEOPT"[..], &number.to_be_bytes(), &length.to_be_bytes(), data].concat()
}

#[test]
fn options_are_answered_one_by_one() {
    let flags = 3u32.to_be_bytes();
    let abort = option(2, &[]);
    let (error, hears) = hear(&[&flags[..], &option(99, b"what"), &option(3, &[]), &abort].concat());
    assert_eq!(error, None);
    assert!(hears.starts_with(b"NBDMAGICIHAVEOPT\0\x03"));
    let text = hex::encode(&hears[18..]);
    let unsupported = "0003e889045565a9000000638000000100000013";
    assert!(text.starts_with(unsupported), "{text}");
    // The list has its export, then an end; the last answer is to the abort.
    assert!(text.contains("0003e889045565a90000000300000002"), "{text}");
    assert!(
        text.ends_with("0003e889045565a90000000300000001000000000003e889045565a9000000020000000100000000")
    );
    let (error, hears) = hear(&[&flags[..], &option(7, &[0, 0, 0, 1, b'x', 0, 0]), &abort].concat());
    assert_eq!(error, None);
    assert!(hex::encode(hears).contains("0003e889045565a90000000780000006"), "an unknown export");
}

#[test]
fn encryption_comes_first_where_it_is_required() {
    let ask = |says: &[&[u8]], encryption| {
        let flags = 3u32.to_be_bytes();
        let mut client =
            Client { says: Cursor::new([&flags[..], &says.concat()].concat()), hears: Vec::new() };
        let outcome = negotiate(&mut client, &Nothing, encryption);
        (outcome, hex::encode(client.hears))
    };
    let (begin, list, abort) = (option(5, &[]), option(3, &[]), option(2, &[]));
    for encryption in [Encryption::Offered, Encryption::Required] {
        let (outcome, hears) = ask(&[&begin], encryption);
        assert!(matches!(outcome, Ok(Agreed::ToEncrypt(3))));
        assert!(hears.ends_with("0003e889045565a9000000050000000100000000"), "{hears}");
    }
    let (outcome, hears) = ask(&[&begin, &abort], Encryption::Settled);
    assert!(matches!(outcome, Ok(Agreed::ToEnd)) && hears.contains("0003e889045565a90000000580000001"));
    for other in [&list, &option(7, &[0; 6]), &option(8, &[]), &option(99, b"x"), &option(5, b"x")] {
        let (outcome, hears) = ask(&[other, &abort], Encryption::Required);
        assert!(matches!(outcome, Ok(Agreed::ToEnd)) && hears.contains("80000005"), "{hears}");
    }
    let (outcome, hears) = ask(&[&option(1, b"a")], Encryption::Required);
    assert_eq!(outcome.err().map(|error| error.kind()), Some(Kind::Refused));
    assert_eq!(hears.len(), 2 * 18, "not a byte of an answer");
    // What was said before counts no more, what comes after is not greeted again.
    let mut client = Client { says: Cursor::new(abort), hears: Vec::new() };
    assert!(matches!(negotiate_encrypted(&mut client, &Nothing, 3), Ok(Agreed::ToEnd)));
    assert_eq!(client.hears.len(), 20);
}

#[test]
fn what_is_no_nbd_is_an_error_at_every_byte() {
    let whole = [&3u32.to_be_bytes()[..], &option(3, &[]), &option(8, &[]), &option(2, &[])].concat();
    assert_eq!(hear(&whole).0, None);
    for cut in 0..whole.len() {
        assert_eq!(hear(&whole[..cut]).0, Some(Kind::Io), "{cut}");
    }
    assert_eq!(hear(b"GET / HTTP/1.1\r\n\r\n").0, Some(Kind::Damaged));
    let endless = [&3u32.to_be_bytes()[..], &option(3, &[]).repeat(1000)].concat();
    assert_eq!(hear(&endless).0, Some(Kind::Damaged), "a client that never begins");
    // A length of four gigabytes ends with the connection, without room being made for it.
    let long = [&3u32.to_be_bytes()[..], b"IHAVEOPT", &[0, 0, 0, 7], &[0xff; 4], b"x"].concat();
    assert!(hear(&long).0.is_some());
}

/// Remembers what was written.
#[derive(Default)]
struct Noted(Mutex<Vec<(u64, usize)>>);

impl Export for Noted {
    fn size(&self) -> u64 {
        1 << 30
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn preferred_size(&self) -> u32 {
        4096
    }

    fn read(&self, _offset: u64, _buf: &mut [u8]) -> Result<()> {
        Err(Error::new(Kind::Io, "it is not for reading"))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.0.lock().unwrap().push((offset, data.len()));
        Ok(())
    }

    fn discard(&self, _offset: u64, _length: u64) -> Result<()> {
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

/// Of a connection that nobody ends, and that takes all that is sent.
struct Alone;

impl Wire for Alone {
    fn end(&self) {}

    fn takes_more(&self) -> bool {
        true
    }
}

/// A request to write; its data follow.
fn write(cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let head = [&0x2560_9513_u32.to_be_bytes()[..], &[0, 0, 0, 1], &cookie.to_be_bytes()];
    [&head.concat()[..], &offset.to_be_bytes(), &length.to_be_bytes()].concat()
}

/// What a client that `says` all this hears, what was written, and how it ended.
fn transmit(structured: bool, says: impl Read + Send) -> (Vec<u8>, Vec<(u64, usize)>, Option<Kind>) {
    let (noted, mut hears) = (Arc::new(Noted::default()), Vec::new());
    let session = Session { export: Arc::clone(&noted) as Arc<dyn Export>, structured, contexts: Vec::new() };
    let outcome = serve(&session, &Memory::default(), (says, &mut hears), &Alone);
    let mut written = std::mem::take(&mut *noted.0.lock().unwrap());
    written.sort_unstable();
    (hears, written, outcome.err().map(|error| error.kind()))
}

#[test]
fn a_write_that_is_too_long_is_answered_and_the_next_one_is_done() {
    let long = (32 << 20) + 4096;
    let says = |length: u32| {
        let data = std::io::repeat(7).take(u64::from(length));
        Cursor::new(write(1, 512, length)).chain(data)
    };
    let next = Cursor::new([write(2, 8192, 4), b"data".to_vec()].concat());
    let (hears, written, error) = transmit(false, says(long).chain(next));
    assert_eq!((written, error), (vec![(8192, 4)], None));
    // Answers come in any order: EINVAL to the first, none to the second.
    let answers: Vec<_> = hears.chunks(16).map(hex::encode).collect();
    assert_eq!(answers.len(), 2);
    assert!(answers.contains(&"67446698000000160000000000000001".to_owned()), "{answers:?}");
    assert!(answers.contains(&"67446698000000000000000000000002".to_owned()), "{answers:?}");
    // With the reason, where the client understands structured replies.
    let (hears, written, error) = transmit(true, says(long));
    assert_eq!((written, error), (vec![], None));
    let told = String::from_utf8_lossy(&hears).into_owned();
    assert!(told.contains("a request of 33558528 bytes, at most 33554432 are taken"), "{told}");
    // The longest that is taken is written.
    assert_eq!(transmit(false, says(32 << 20)).1, [(512, 32 << 20)]);
    // One that is cut short is not, nor waited for.
    let cut = Cursor::new(write(1, 0, u32::MAX)).chain(std::io::repeat(7).take(70_000));
    let (hears, written, error) = transmit(false, cut);
    assert_eq!((hears, written, error), (vec![], vec![], Some(Kind::Io)));
}

#[test]
fn a_write_with_flags_that_are_not_known_is_refused_and_not_done() {
    // FUA, no hole, and one chunk are known; fast zeroes were not offered.
    for (flags, is_known) in [(0, true), (1, true), (0b111, true), (1 << 4, false), (1 << 15 | 1, false)] {
        let marked = |length| {
            let mut head = write(1, 512, length);
            head[4..6].copy_from_slice(&u16::to_be_bytes(flags));
            head
        };
        // One that is done at once, and one that is written as it comes.
        for length in [4, 32 << 20] {
            let data = std::io::repeat(7).take(u64::from(length));
            let next = Cursor::new([write(2, 0, 4), b"data".to_vec()].concat());
            let (hears, written, error) =
                transmit(false, Cursor::new(marked(length)).chain(data).chain(next));
            let refused = hears.chunks(16).any(|answer| answer[4..8] == [0, 0, 0, 22]);
            assert_eq!((error, hears.len(), refused), (None, 32, !is_known), "{flags:#x}");
            let expected = [(0, 4), (512, index(u64::from(length)))];
            assert_eq!(written, expected[..1 + usize::from(is_known)], "{flags:#x}");
        }
    }
}

/// Four MiB that can be told apart by their place, and the most memory that was taken when they were used. What begins
/// in the first one can be had at once.
struct Placed {
    bytes: Mutex<Vec<u8>>,
    /// Taken by who has to wait.
    gate: Mutex<()>,
    flushes: AtomicUsize,
    memory: Arc<Memory>,
    peak: AtomicUsize,
}

const PLACED: usize = 4 << 20;
const MIB: usize = 1 << 20;

impl Placed {
    fn new(memory: &Arc<Memory>) -> Arc<Self> {
        let bytes = (0..1u32 << 20).flat_map(u32::to_le_bytes).collect();
        let (peak, flushes) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self {
            bytes: Mutex::new(bytes),
            gate: Mutex::default(),
            flushes,
            memory: Arc::clone(memory),
            peak,
        })
    }

    fn copy(&self, offset: u64, buf: &mut [u8]) {
        self.peak.fetch_max(self.memory.used(), Ordering::Relaxed);
        buf.copy_from_slice(&self.bytes.lock().unwrap()[index(offset)..][..buf.len()]);
    }

    fn put(&self, offset: u64, data: &[u8]) {
        self.peak.fetch_max(self.memory.used(), Ordering::Relaxed);
        self.bytes.lock().unwrap()[index(offset)..][..data.len()].copy_from_slice(data);
    }
}

impl Export for Placed {
    fn size(&self) -> u64 {
        PLACED as u64
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn preferred_size(&self) -> u32 {
        4096
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        drop(self.gate.lock());
        self.copy(offset, buf);
        Ok(())
    }

    fn read_cached(&self, offset: u64, buf: &mut [u8]) -> Result<bool> {
        buf.fill(0xee);
        let is_there = index(offset) < MIB;
        if is_there {
            self.copy(offset, buf);
        }
        Ok(is_there)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        drop(self.gate.lock());
        self.put(offset, data);
        Ok(())
    }

    fn write_at_once(&self, offset: u64, data: &[u8]) -> Result<bool> {
        let is_there = index(offset) < MIB;
        if is_there {
            self.put(offset, data);
        }
        Ok(is_there)
    }

    fn discard(&self, _offset: u64, _length: u64) -> Result<()> {
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A request to read.
fn read(cookie: u64, offset: u64, length: usize) -> Vec<u8> {
    let mut request = write(cookie, offset, u32::try_from(length).unwrap());
    request[7] = 0;
    request
}

/// The bytes that follow a head of `head` bytes, which is no error.
fn hear_bytes(stream: &mut UnixStream, head: usize, length: usize) -> Vec<u8> {
    let mut reply = vec![0; head + length];
    stream.read_exact(&mut reply).unwrap();
    reply.split_off(head)
}

#[test]
fn who_takes_no_replies_keeps_nobody_from_going_on() {
    let memory = Arc::new(Memory::of(2 * MIB));
    let placed = Placed::new(&memory);
    let image = placed.bytes.lock().unwrap().clone();
    let session = |structured| {
        let export = Arc::clone(&placed) as Arc<dyn Export>;
        Session { export, structured, contexts: Vec::new() }
    };
    std::thread::scope(|scope| {
        let start = |structured| {
            let (client, server) = UnixStream::pair().unwrap();
            let (session, memory) = (session(structured), &memory);
            scope.spawn(move || {
                let (sender, ender) = (server.try_clone().unwrap(), server.try_clone().unwrap());
                serve(&session, memory, (server, sender), &ender)
            });
            client
        };
        let mut greedy = start(false);
        (0..4).for_each(|at| greedy.write_all(&read(at, at << 20, MIB)).unwrap());
        let begun = Instant::now();
        while memory.used() < 2 * MIB {
            assert!(begun.elapsed() < Duration::from_secs(60), "it has not taken what it may");
            std::thread::yield_now();
        }
        for (structured, head) in [(false, 16), (true, 28)] {
            let mut other = start(structured);
            other.write_all(&read(9, 0, PLACED)).unwrap();
            assert!(hear_bytes(&mut other, head, PLACED) == image, "{structured}");
            let done = if structured { 20 } else { 16 };
            other.write_all(&write(9, 512, 3 << 20)).unwrap();
            other.write_all(&image[512..][..3 << 20]).unwrap();
            assert_eq!(hear_bytes(&mut other, done, 0), b"");
            // Past its end: all of it is taken from the connection, and nothing is written.
            other.write_all(&write(9, 2 << 20, 3 << 20)).unwrap();
            other.write_all(&vec![7; 3 << 20]).unwrap();
            let answer = hear_bytes(&mut other, 0, if structured { 26 } else { 16 });
            if structured {
                let text = u16::from_be_bytes([answer[24], answer[25]]);
                hear_bytes(&mut other, 0, usize::from(text));
            }
            other.write_all(&read(9, 0, PLACED)).unwrap();
            assert!(hear_bytes(&mut other, head, PLACED) == image, "{structured}");
        }
        let mut heard = vec![Vec::new(); 4];
        for _ in 0..4 {
            let mut head = [0; 16];
            greedy.read_exact(&mut head).unwrap();
            heard[usize::from(head[15])] = hear_bytes(&mut greedy, 0, MIB);
        }
        assert!(heard.concat() == image);
    });
    // Two connections at a time, a slice for each.
    assert!(placed.peak.load(Ordering::Relaxed) <= 4 * MIB);
    assert_eq!(memory.used(), 0);
}

/// What is sent, call by call.
#[derive(Default)]
struct Calls(Vec<Vec<u8>>);

impl Write for Calls {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.push(buf.to_vec());
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn replies_to_what_waits_for_nobody_are_sent_together() {
    let memory = Arc::new(Memory::default());
    for structured in [false, true] {
        let placed = Placed::new(&memory);
        let export = Arc::clone(&placed) as Arc<dyn Export>;
        let session = Session { export, structured, contexts: Vec::new() };
        let mut durable = write(4, 16, 4);
        durable[5] = 1;
        let says = [
            [write(1, 8, 4), b"data".to_vec(), read(2, 4, 12), write(3, 12, 4), b"more".to_vec()].concat(),
            // Neither what has to be durable nor what is elsewhere is done at once.
            [durable, b"kept".to_vec(), read(5, 8, 12), read(6, 2 << 20, 8)].concat(),
        ];
        let mut calls = Calls::default();
        serve(&session, &memory, (Cursor::new(says.concat()), &mut calls), &Alone).unwrap();
        let done = if structured { 20 } else { 16 };
        let data = if structured { 28 } else { 16 };
        let first = &calls.0[0];
        assert_eq!(first.len(), done + data + 12 + done);
        let cookies = [first[15], first[done + 15], first[done + data + 12 + 15]];
        assert_eq!(cookies, [1, 2, 3], "in the order in which they came");
        assert_eq!(first[done + data..][..12], *b"\x01\0\0\0data\x03\0\0\0");
        // The others come in any order, and whole.
        let rest = calls.0[1..].concat();
        assert_eq!(rest.len(), done + 2 * data + 12 + 8);
        assert!(rest.windows(4).any(|bytes| bytes == 0x8_0000_u32.to_le_bytes()));
        assert_eq!(placed.flushes.load(Ordering::Relaxed), 1);
        assert_eq!(placed.bytes.lock().unwrap()[8..20], *b"datamorekept");
    }
}

#[test]
fn who_waits_keeps_nobody_from_what_can_be_had_at_once() {
    let memory = Arc::new(Memory::default());
    let placed = Placed::new(&memory);
    let export = Arc::clone(&placed) as Arc<dyn Export>;
    let session = Session { export, structured: false, contexts: Vec::new() };
    let (mut client, server) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        let sender = server.try_clone().unwrap();
        scope.spawn(|| serve(&session, &memory, (server, sender), &Alone).unwrap());
        let closed = placed.gate.lock().unwrap();
        client.write_all(&[read(1, 2 << 20, 4), write(2, 3 << 20, 4), b"data".to_vec()].concat()).unwrap();
        for round in 0..9 {
            client.write_all(&read(3, round * 4, 4)).unwrap();
            assert_eq!(hear_bytes(&mut client, 16, 4), u32::try_from(round).unwrap().to_le_bytes());
        }
        drop(closed);
        let mut replies = [0; 16 + 4 + 16];
        client.read_exact(&mut replies).unwrap();
        client.shutdown(Shutdown::Both).unwrap();
    });
    assert_eq!(placed.bytes.lock().unwrap()[3 << 20..][..4], *b"data");
}

#[test]
fn who_sends_much_before_it_listens_is_heard_out() {
    const READS: u64 = 420;
    const WRITES: u64 = 60;
    const LENGTH: usize = 512;
    const DATA: usize = 64 << 10;
    let memory = Arc::new(Memory::default());
    let placed = Placed::new(&memory);
    let image = placed.bytes.lock().unwrap().clone();
    let export = Arc::clone(&placed) as Arc<dyn Export>;
    let session = Session { export, structured: false, contexts: Vec::new() };
    let (client, server) = UnixStream::pair().unwrap();
    let (sender, ender) = (server.try_clone().unwrap(), server.try_clone().unwrap());
    // More replies than a socket takes, and then more data than it takes the other way.
    let talk = |mut client: &UnixStream| -> std::io::Result<Vec<(u64, Vec<u8>)>> {
        client.set_write_timeout(Some(Duration::from_secs(60)))?;
        (0..READS).try_for_each(|at| client.write_all(&read(at, at * 8, LENGTH)))?;
        for at in READS..READS + WRITES {
            client.write_all(&write(at, MIB as u64 - 1, u32::try_from(DATA).unwrap()))?;
            client.write_all(&[7; DATA])?;
        }
        let mut heard = Vec::new();
        for _ in 0..READS + WRITES {
            let mut head = [0; 16];
            client.read_exact(&mut head)?;
            let cookie = u64::from_be_bytes(head[8..].try_into().unwrap());
            let mut bytes = vec![0; if cookie < READS { LENGTH } else { 0 }];
            client.read_exact(&mut bytes)?;
            heard.push((cookie, bytes));
        }
        Ok(heard)
    };
    let heard = std::thread::scope(|scope| {
        let served = scope.spawn(|| serve(&session, &memory, (server, sender), &ender));
        let heard = talk(&client);
        client.shutdown(Shutdown::Both).unwrap();
        served.join().unwrap().and(heard.map_err(|error| Error::io("the client waits", error)))
    });
    let mut heard = heard.unwrap();
    heard.sort();
    assert!(heard.iter().map(|(cookie, _)| *cookie).eq(0..READS + WRITES), "each is answered once");
    for (cookie, bytes) in &heard[..index(READS)] {
        assert!(bytes == &image[index(cookie * 8)..][..LENGTH], "{cookie}");
    }
}
