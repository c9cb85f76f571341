//! The head of an HTTP request, as much of it as somebody needs who serves one document.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use crate::error::{Error, Result};

/// Longest head that is taken, in bytes.
pub const HEAD_MAX: usize = 8 << 10;

/// What a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The document.
    Get,
    /// All but the document.
    Head,
    /// Something else.
    Other,
}

/// The first line of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// What is wanted.
    pub method: Method,
    /// Of what, without what follows a question mark.
    pub path: &'a str,
}

/// True if `bytes` hold a whole head: an empty line is in it.
#[must_use]
pub fn is_whole(bytes: &[u8]) -> bool {
    bytes.windows(4).any(|window| window == b"\r\n\r\n") || bytes.windows(2).any(|window| window == b"\n\n")
}

impl<'a> Request<'a> {
    /// Reads a head. Header fields do not matter.
    ///
    /// # Errors
    /// `Kind::Damaged` if this is no request of HTTP/1.
    pub fn decode(head: &'a [u8]) -> Result<Self> {
        let wrong = || Error::damaged("this is no request of HTTP/1");
        let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line)).map_err(|_| wrong())?;
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        let [method, target, "HTTP/1.0" | "HTTP/1.1"] = *words.as_slice() else { return Err(wrong()) };
        if method.is_empty()
            || !method.bytes().all(|byte| byte.is_ascii_alphabetic())
            || !target.starts_with('/')
        {
            return Err(wrong());
        }
        let method = match method {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            _ => Method::Other,
        };
        Ok(Self { method, path: target.split('?').next().unwrap_or(target) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_from_everything_else() {
        let whole = b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n";
        assert!(is_whole(whole) && is_whole(b"GET / HTTP/1.0\n\n"));
        assert_eq!(Request::decode(whole).unwrap(), Request { method: Method::Get, path: "/metrics" });
        assert_eq!(Request::decode(b"HEAD / HTTP/1.0\n\n").unwrap().method, Method::Head);
        assert_eq!(Request::decode(b"DELETE / HTTP/1.1\r\n\r\n").unwrap().method, Method::Other);
        let wrong: [&[u8]; 9] = [
            b"",
            b"\r\n\r\n",
            b"GET",
            b"GET  HTTP/1.1",
            b"GET metrics HTTP/1.1",
            b"GET / HTTP/2",
            b"GET / HTTP/1.1 more",
            b"G\xffT / HTTP/1.1",
            b"NBDMAGICIHAVEOPT",
        ];
        for head in wrong {
            assert!(Request::decode(head).is_err(), "{head:?}");
        }
        for cut in 0..whole.len() {
            assert!(!is_whole(&whole[..cut]), "{cut}");
            // Whatever it says, it says it without a panic.
            let _ = Request::decode(&whole[..cut]);
            let mut flipped = whole.to_vec();
            flipped[cut] ^= 0x80;
            let _ = Request::decode(&flipped);
        }
    }
}
