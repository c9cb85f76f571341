//! The diff stream of Ceph's block devices, version 1: what `rbd export-diff` writes and `rbd import-diff` reads.
//!
//! The line [`MAGIC`], then records of one tag byte and little-endian numbers:
//!
//! | tag | then | meaning |
//! |---|---|---|
//! | `f` | u32 length, bytes | name of the snapshot to start from; without it, the diff starts from nothing |
//! | `t` | u32 length, bytes | name of the snapshot it leads to; without it, to the live image |
//! | `s` | u64 | size of the image at the end |
//! | `w` | u64 offset, u64 length, bytes | data |
//! | `z` | u64 offset, u64 length | zeros |
//! | `e` | | the end |
//!
//! `f`, `t` and `s` come first, each at most once; `s` is never missing. Written here: f, t, s, then `w` and `z`
//! ascending, disjoint, never empty. The same is demanded of what is read, but for empty records. There is no
//! checksum anywhere.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use crate::error::{Error, Kind, Result};

/// First line of the stream that is read and written.
pub const MAGIC: [u8; 12] = *b"rbd diff v1\n";
/// How streams of other versions and kinds begin.
const OTHERS: [&[u8]; 2] = [b"rbd diff v", b"rbd image v"];
/// Longest name of a snapshot in bytes.
pub const NAME_BYTES_MAX: u32 = 4096;
/// Most data in one record that is written.
pub const WRITE_BYTES_MAX: u64 = 8 << 20;
/// Most zeros in one record that is written: Ceph's library refuses 2 GiB and more at once.
pub const ZERO_BYTES_MAX: u64 = 1 << 30;
/// Largest image: offsets stay positive as signed numbers.
pub const IMAGE_BYTES_MAX: u64 = i64::MAX as u64;

/// One record, without the bytes that may follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// A name of so many bytes follows: the snapshot to start from.
    From(u32),
    /// A name of so many bytes follows: the snapshot at the end.
    To(u32),
    /// Size of the image in bytes.
    Size(u64),
    /// So many bytes of data follow.
    Write {
        /// Byte offset in the image.
        offset: u64,
        /// Length in bytes.
        length: u64,
    },
    /// Zeros.
    Zero {
        /// Byte offset in the image.
        offset: u64,
        /// Length in bytes.
        length: u64,
    },
    /// Nothing follows.
    End,
}

impl Record {
    /// How many bytes of numbers follow a tag.
    ///
    /// # Errors
    /// `Kind::Damaged` for a tag that this version does not have.
    pub fn numbers_bytes(tag: u8) -> Result<usize> {
        match tag {
            b'f' | b't' => Ok(4),
            b's' => Ok(8),
            b'w' | b'z' => Ok(16),
            b'e' => Ok(0),
            _ => Err(Error::damaged(format!("record has tag {tag:#04x}, expected f, t, s, w, z or e"))),
        }
    }

    /// Decodes a tag and its numbers.
    ///
    /// # Errors
    /// `Kind::Damaged` for an unknown tag, too few bytes, or a name out of bounds.
    pub fn decode(tag: u8, numbers: &[u8]) -> Result<Self> {
        let cut = || Error::damaged("record is cut short");
        let long = |bytes: &[u8]| bytes.first_chunk().copied().map(u64::from_le_bytes).ok_or_else(cut);
        let name = || -> Result<u32> {
            let length = numbers.first_chunk().copied().map(u32::from_le_bytes).ok_or_else(cut)?;
            if length > NAME_BYTES_MAX {
                let what = format!("name has {length} bytes, expected at most {NAME_BYTES_MAX}");
                return Err(Error::damaged(what));
            }
            Ok(length)
        };
        let range = || Ok::<_, Error>((long(numbers)?, long(numbers.get(8..).unwrap_or(&[]))?));
        match tag {
            b'f' => Ok(Self::From(name()?)),
            b't' => Ok(Self::To(name()?)),
            b's' => Ok(Self::Size(long(numbers)?)),
            b'w' => range().map(|(offset, length)| Self::Write { offset, length }),
            b'z' => range().map(|(offset, length)| Self::Zero { offset, length }),
            b'e' => Ok(Self::End),
            _ => Err(Self::numbers_bytes(tag).err().unwrap_or_else(cut)),
        }
    }

    /// Tag and numbers as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let range = |tag: u8, offset: u64, length: u64| {
            [&[tag][..], &offset.to_le_bytes(), &length.to_le_bytes()].concat()
        };
        match *self {
            Self::From(length) => [&b"f"[..], &length.to_le_bytes()].concat(),
            Self::To(length) => [&b"t"[..], &length.to_le_bytes()].concat(),
            Self::Size(size) => [&b"s"[..], &size.to_le_bytes()].concat(),
            Self::Write { offset, length } => range(b'w', offset, length),
            Self::Zero { offset, length } => range(b'z', offset, length),
            Self::End => b"e".to_vec(),
        }
    }
}

/// True if a stream that begins so is a diff of version 1.
///
/// # Errors
/// `Kind::Unsupported` if it is another stream of Ceph's.
pub fn is_diff(head: &[u8]) -> Result<bool> {
    if head.starts_with(&MAGIC) {
        return Ok(true);
    }
    // Cut short, it is neither.
    if !MAGIC.starts_with(head) && OTHERS.iter().any(|other| head.starts_with(other)) {
        let line =
            String::from_utf8_lossy(head.split(|byte| *byte == b'\n').next().unwrap_or(head)).into_owned();
        return Err(Error::new(
            Kind::Unsupported,
            format!("this is a stream '{line}', expected 'rbd diff v1'"),
        )
        .hint("'rbd export-diff' writes version 1"));
    }
    Ok(false)
}

/// What may come next, and whether it makes sense.
#[derive(Debug, Clone, Default)]
pub struct Order {
    has_from: bool,
    has_to: bool,
    size: Option<u64>,
    has_data: bool,
    next: u64,
}

impl Order {
    /// Takes note of a record.
    ///
    /// # Errors
    /// `Kind::Damaged` if it is out of place or outside the image.
    pub fn check(&mut self, record: &Record) -> Result<()> {
        let fail = |what: String| Err(Error::damaged(what));
        let seen = match record {
            Record::From(_) => std::mem::replace(&mut self.has_from, true),
            Record::To(_) => std::mem::replace(&mut self.has_to, true),
            Record::Size(size) if *size > IMAGE_BYTES_MAX => {
                return fail(format!("size is {size} bytes, expected at most {IMAGE_BYTES_MAX}"));
            }
            Record::Size(size) => self.size.replace(*size).is_some(),
            Record::Write { offset, length } | Record::Zero { offset, length } => {
                return self.extent(*offset, *length);
            }
            Record::End => {
                return match self.size {
                    Some(_) => Ok(()),
                    None => fail("diff ends without the size of the image".to_owned()),
                };
            }
        };
        if seen || self.has_data {
            return fail("names and sizes come once and first".to_owned());
        }
        Ok(())
    }

    fn extent(&mut self, offset: u64, length: u64) -> Result<()> {
        let Some(size) = self.size else {
            return Err(Error::damaged("data comes before the size of the image"));
        };
        self.has_data = true;
        if length > 0 && offset < self.next {
            let what =
                format!("data for byte {offset} comes after that for byte {}, expected ascending", self.next);
            return Err(Error::damaged(what));
        }
        match offset.checked_add(length) {
            Some(end) if end <= size => {
                self.next = self.next.max(end);
                Ok(())
            }
            _ => {
                let what = format!("{length} bytes at {offset} end past the size of the image, {size}");
                Err(Error::damaged(what))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RECORDS: [Record; 6] = [
        Record::From(3),
        Record::To(4096),
        Record::Size(1 << 40),
        Record::Write { offset: 1, length: 2 },
        Record::Zero { offset: u64::MAX, length: 0 },
        Record::End,
    ];

    #[test]
    fn records_come_back() {
        for record in RECORDS {
            let bytes = record.encode();
            assert_eq!(Record::numbers_bytes(bytes[0]).unwrap(), bytes.len() - 1);
            assert_eq!(Record::decode(bytes[0], &bytes[1..]).unwrap(), record);
            for len in 1..bytes.len() {
                assert_eq!(Record::decode(bytes[0], &bytes[1..len]).unwrap_err().kind(), Kind::Damaged);
            }
        }
        assert!(Record::decode(b'f', &4097u32.to_le_bytes()).is_err());
        assert!(Record::decode(b'p', &[0; 16]).is_err());
        assert_eq!(
            hex::encode(Record::Write { offset: 1, length: 2 }.encode()),
            "7701000000000000000200000000000000"
        );
    }

    #[test]
    fn streams_of_other_versions_are_told_from_noise() {
        assert!(is_diff(b"rbd diff v1\nf").unwrap());
        assert!(!is_diff(b"rbd").unwrap());
        assert!(!is_diff(b"\x89ddelta\n").unwrap());
        for other in [&b"rbd diff v2\n"[..], b"rbd image v2\nxx", b"rbd image v1\n"] {
            assert_eq!(is_diff(other).unwrap_err().kind(), Kind::Unsupported);
        }
    }

    #[test]
    fn disorder_is_damage() {
        use Record::{End, From, Size, To, Write, Zero};
        let run = |records: &[Record]| {
            let mut order = Order::default();
            records.iter().try_for_each(|record| order.check(record))
        };
        let data = |offset, length| Write { offset, length };
        run(&[Size(0), End]).unwrap();
        run(&[To(1), Size(10), From(1), data(0, 4), data(4, 0), Zero { offset: 4, length: 6 }, End]).unwrap();
        for bad in [
            &[End][..],
            &[data(0, 0)],
            &[Size(1), Size(1)],
            &[From(1), From(1)],
            &[To(1), To(1)],
            &[Size(10), data(0, 1), To(1)],
            &[Size(10), data(0, 11)],
            &[Size(10), data(10, 1)],
            &[Size(10), data(2, u64::MAX)],
            &[Size(10), data(5, 1), data(4, 1)],
            &[Size(10), data(5, 1), data(5, 1)],
            &[Size(u64::MAX)],
        ] {
            assert_eq!(run(bad).unwrap_err().kind(), Kind::Damaged, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(tag in any::<u8>(), bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            let _ = is_diff(&bytes);
            if let Ok(record) = Record::decode(tag, &bytes) {
                let mut order = Order::default();
                let _ = order.check(&Record::Size(1 << 30));
                let _ = order.check(&record);
            }
        }
    }
}
