//! Whatever comes from a socket is an answer or an error.

use super::{DOCUMENT_MAX, Request, receive};
use crate::error::Kind;

#[test]
fn what_is_no_request_is_an_error() {
    let receive = |bytes: &[u8]| receive::<Request>(&mut &bytes[..]);
    assert!(receive(b"").unwrap().is_none());
    assert!(receive(b"\0\0").unwrap().is_none());
    let document = |text: &[u8]| [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text].concat();
    assert!(matches!(receive(&document(b"\"Describe\"")).unwrap(), Some(Request::Describe)));
    for text in [&b""[..], b"\"Destroy\"", b"{\"Read\":{}}", b"\xff\xff", &[b'['; 10_000]] {
        assert_eq!(receive(&document(text)).unwrap_err().kind(), Kind::Damaged);
    }
    // A length that is never met takes no room.
    assert!(receive(&DOCUMENT_MAX.to_be_bytes()).is_err());
    assert!(receive(&[0xff; 8]).is_err());
}
