//! Generic netlink: messages of a length, then attributes of a length, all padded to four bytes, all in the byte
//! order of the machine, which is the only one that ever sees them.
//!
//! | offset | width | field |
//! |---|---|---|
//! | 0 | 4 | length of the message, with this header |
//! | 4 | 2 | type: 2 = error or acknowledgement, 3 = done, else the number of a family |
//! | 6 | 2 | flags: 1 = request, 4 = acknowledge |
//! | 8 | 4 | sequence |
//! | 12 | 4 | port |
//! | 16 | 1 | command of the family, 17: its version, 18: 2 of nothing; or (4) a negative error number |
//! | 20 | | attributes: length with this (2), type (2), data |
//!
//! Source: the kernel's documentation of its userspace interfaces.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]
#![expect(clippy::host_endian_bytes, reason = "netlink does not leave the machine and has its byte order")]

use crate::error::{Error, Result};

/// The family that tells the numbers of the others.
pub const CONTROL_FAMILY: u16 = 16;
const HEADER: usize = 16;
const COMMAND: usize = 4;
const TYPE_ERROR: u16 = 2;
const REQUEST_ACKNOWLEDGED: u16 = 1 | 4;
/// A flag of an attribute's type: there are attributes in it.
const NESTED: u16 = 1 << 15;
/// Flags of an attribute's type.
const TYPE_MASK: u16 = (1 << 14) - 1;

/// A message of `family`, to be acknowledged.
#[must_use]
pub fn request(family: u16, command: u8, sequence: u32, attributes: &[u8]) -> Vec<u8> {
    let length = attributes.len().saturating_add(HEADER + COMMAND);
    let mut bytes = u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes().to_vec();
    bytes.extend_from_slice(&family.to_ne_bytes());
    bytes.extend_from_slice(&REQUEST_ACKNOWLEDGED.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&[command, 1, 0, 0]);
    bytes.extend_from_slice(attributes);
    bytes
}

/// An attribute.
#[must_use]
pub fn attribute(kind: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len().saturating_add(4)).unwrap_or(u16::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An attribute that is a number of 32 bits.
#[must_use]
pub fn attribute_u32(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_ne_bytes())
}

/// An attribute that is a number of 64 bits.
#[must_use]
pub fn attribute_u64(kind: u16, value: u64) -> Vec<u8> {
    attribute(kind, &value.to_ne_bytes())
}

/// An attribute that is a text.
#[must_use]
pub fn attribute_text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

/// An attribute with attributes in it.
#[must_use]
pub fn nest(kind: u16, attributes: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, attributes)
}

/// What the kernel says.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// The error number of what was asked for; 0 if it was done.
    Outcome(i32),
    /// Attributes of an answer.
    Answer(&'a [u8]),
}

/// The messages in `bytes`, which one read brought, each with its sequence number.
///
/// # Errors
/// `Kind::Damaged` if these are none.
pub fn messages(mut bytes: &[u8]) -> Result<Vec<(u32, Message<'_>)>> {
    let cut = || Error::damaged("netlink message is cut short");
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let length = u32::from_ne_bytes(*bytes.first_chunk().ok_or_else(cut)?);
        let length = usize::try_from(length).map_err(|_| cut())?;
        let message = bytes.get(..length).ok_or_else(cut)?;
        let (head, body) = message.split_first_chunk::<HEADER>().ok_or_else(cut)?;
        let [_, _, _, _, t0, t1, _, _, s0, s1, s2, s3, ..] = *head;
        let (number, rest) = body.split_first_chunk::<COMMAND>().ok_or_else(cut)?;
        let message = match u16::from_ne_bytes([t0, t1]) {
            TYPE_ERROR => Message::Outcome(i32::from_ne_bytes(*number).saturating_neg()),
            _ => Message::Answer(rest),
        };
        messages.push((u32::from_ne_bytes([s0, s1, s2, s3]), message));
        // The last one need not be padded.
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(messages)
}

/// The data of the first attribute of type `kind`.
///
/// # Errors
/// `Kind::Damaged` if these are no attributes.
pub fn find(mut attributes: &[u8], kind: u16) -> Result<Option<&[u8]>> {
    let cut = || Error::damaged("netlink attribute is cut short");
    while let Some(([l0, l1, k0, k1], _)) = attributes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([*l0, *l1]));
        let data = attributes.get(4..length).ok_or_else(cut)?;
        if u16::from_ne_bytes([*k0, *k1]) & TYPE_MASK == kind {
            return Ok(Some(data));
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    if attributes.is_empty() { Ok(None) } else { Err(cut()) }
}

/// The number in an attribute of 16 or 32 bits.
#[must_use]
pub fn number(data: &[u8]) -> Option<u32> {
    match data {
        [a, b] => Some(u32::from(u16::from_ne_bytes([*a, *b]))),
        [a, b, c, d] => Some(u32::from_ne_bytes([*a, *b, *c, *d])),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let attributes = [
            attribute_u32(1, 7),
            attribute_text(10, "abcde"),
            nest(7, &nest(1, &attribute_u32(1, 5))),
            attribute(3, &[1, 2]),
        ]
        .concat();
        let bytes = request(20, 3, 9, &attributes);
        assert_eq!(bytes.len() % 4, 0);
        let found = messages(&bytes).unwrap();
        assert_eq!(found, [(9, Message::Answer(&attributes))]);
        assert_eq!(find(&attributes, 1).unwrap().and_then(number), Some(7));
        assert_eq!(find(&attributes, 10).unwrap(), Some(&b"abcde\0"[..]));
        let inner = find(find(&attributes, 7).unwrap().unwrap(), 1).unwrap().unwrap();
        assert_eq!(find(inner, 1).unwrap().and_then(number), Some(5));
        assert_eq!(
            find(&attributes, 3).unwrap().and_then(number),
            Some(513).filter(|_| cfg!(target_endian = "little"))
        );
        assert_eq!(find(&attributes, 99).unwrap(), None);
    }

    #[test]
    fn an_error_is_its_number() {
        let mut bytes = request(TYPE_ERROR, 0, 4, &[0; 16]);
        bytes[16..20].copy_from_slice(&(-16i32).to_ne_bytes());
        assert_eq!(messages(&bytes).unwrap(), [(4, Message::Outcome(16))]);
    }

    #[test]
    fn what_is_cut_is_refused_or_less() {
        let attributes = [attribute_u32(1, 7), attribute_text(10, "abcde")].concat();
        let bytes = request(20, 3, 9, &attributes);
        for cut in 1..bytes.len() {
            assert!(messages(&bytes[..cut]).is_err(), "{cut}");
        }
        for cut in 0..attributes.len() {
            // The padding may be missing, nothing else.
            let found = find(&attributes[..cut], 99);
            assert!(
                matches!(found, Ok(None) if cut == 0 || cut == 8 || cut >= 18) || found.is_err(),
                "{cut}"
            );
        }
        // Lengths that lead nowhere end, in an error.
        for length in 0..20u32 {
            assert!(messages(&length.to_ne_bytes().repeat(8)).is_err(), "{length}");
        }
        assert!(find(&[0; 8], 1).is_err());
    }
}
