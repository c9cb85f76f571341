//! Clients of every kind: right, wrong, hostile.

use super::{Agreed, Encryption, negotiate, negotiate_encrypted};
use crate::error::{Error, Kind, Result};
use crate::serve::export::{Export, Exports};
use std::io::{Cursor, Read, Write};
use std::sync::Arc;

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
