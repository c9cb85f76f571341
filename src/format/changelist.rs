//! The changelist file of 2008: the numbers of the chunks that differ between two points.
//!
//! | part | bytes |
//! |---|---|
//! | header | [`RawChangelist`], 20 bytes |
//! | chunk numbers | u64 each, unaligned; written ascending |
//! | end marker | u64, all ones |
//!
//! A missing end marker is reported, not refused; bytes after it are ignored; a partial number before it is
//! damage. Order is demanded here although the program of 2008 did not: it only ever wrote ascending lists,
//! and an unordered one would make two extents of the same chunk.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use crate::error::{Error, Result};
use crate::format::field::raw_struct;
use crate::units::Tag;
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

raw_struct! {
    /// Header of a changelist file.
    pub struct RawChangelist, "Changelist header", 20 {
        magic: [u8; 8], "bytes", "'rln' padded with zeros";
        chunk_bits: U32, "u32", "log2 of the chunk size, 9 to 24";
        source_tag: U32, "u32", "tag of the source point; all ones for the origin";
        target_tag: U32, "u32", "tag of the target point; all ones for the origin";
    }
}

/// First eight bytes.
pub const MAGIC: [u8; 8] = *b"rln\0\0\0\0\0";
/// The number that ends the list.
pub const END_MARKER: u64 = u64::MAX;
/// Smallest chunk.
pub const CHUNK_BITS_MIN: u32 = 9;
/// Largest chunk. Stores of 2008 knew no bound; 16 MiB is far above all that were made.
pub const CHUNK_BITS_MAX: u32 = 24;

/// The decoded header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// log2 of the chunk size in bytes.
    pub chunk_bits: u32,
    /// Tag of the source point.
    pub source: Tag,
    /// Tag of the target point.
    pub target: Tag,
}

impl Header {
    /// The header as bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; size_of::<RawChangelist>()] {
        let raw = RawChangelist {
            magic: MAGIC,
            chunk_bits: U32::new(self.chunk_bits),
            source_tag: U32::new(self.source.0),
            target_tag: U32::new(self.target.0),
        };
        zerocopy::transmute!(raw)
    }

    /// Decodes and checks the header.
    ///
    /// The magic is compared up to its first zero byte, as the program of 2008 did.
    ///
    /// # Errors
    /// `Kind::Damaged`.
    pub fn decode(bytes: &[u8; size_of::<RawChangelist>()]) -> Result<Self> {
        let raw = RawChangelist::read_from_bytes(bytes.as_slice())
            .map_err(|_| Error::damaged("changelist header is cut short"))?;
        if raw.magic.first_chunk::<4>() != MAGIC.first_chunk::<4>() {
            return Err(Error::damaged(format!(
                "not a changelist: magic is {}, expected {}",
                hex::encode(raw.magic),
                hex::encode(MAGIC)
            )));
        }
        let chunk_bits = raw.chunk_bits.get();
        if !(CHUNK_BITS_MIN..=CHUNK_BITS_MAX).contains(&chunk_bits) {
            return Err(Error::damaged(format!(
                "chunk bits are {chunk_bits}, expected {CHUNK_BITS_MIN} to {CHUNK_BITS_MAX}"
            ))
            .at_offset(8));
        }
        Ok(Self { chunk_bits, source: Tag(raw.source_tag.get()), target: Tag(raw.target_tag.get()) })
    }
}

/// How a changelist ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With its end marker.
    Marked,
    /// Without: it may have been cut short between two numbers.
    Unmarked,
}

/// Decodes the numbers of a changelist from pieces of any length.
#[derive(Debug)]
pub struct Decoder {
    partial: [u8; 8],
    partial_len: usize,
    offset: u64,
    next: u64,
    ended: bool,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder that expects the bytes right after the header.
    #[must_use]
    pub fn new() -> Self {
        Self { partial: [0; 8], partial_len: 0, offset: 20, next: 0, ended: false }
    }

    /// True once the end marker was seen; further bytes are ignored.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Takes bytes and hands every chunk number to `each`.
    ///
    /// # Errors
    /// `Kind::Damaged` if the numbers do not ascend.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(u64)) -> Result<()> {
        for byte in bytes {
            if self.ended {
                return Ok(());
            }
            if let Some(place) = self.partial.get_mut(self.partial_len) {
                *place = *byte;
            }
            self.partial_len = self.partial_len.saturating_add(1);
            if self.partial_len == self.partial.len() {
                self.take(u64::from_le_bytes(self.partial), &mut each)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, number: u64, each: &mut impl FnMut(u64)) -> Result<()> {
        if number == END_MARKER {
            self.ended = true;
        } else if number < self.next {
            return Err(Error::damaged(format!(
                "chunk number {number} comes after {}, expected ascending numbers",
                self.next.saturating_sub(1)
            ))
            .at_offset(self.offset));
        } else {
            self.next = number.saturating_add(1);
            each(number);
        }
        self.partial_len = 0;
        self.offset = self.offset.saturating_add(8);
        Ok(())
    }

    /// Called at the end of the input.
    ///
    /// # Errors
    /// `Kind::Damaged` if it ends inside a number.
    pub fn finish(&self) -> Result<Ending> {
        if self.ended {
            Ok(Ending::Marked)
        } else if self.partial_len == 0 {
            Ok(Ending::Unmarked)
        } else {
            Err(Error::damaged(format!(
                "changelist ends after {} of 8 bytes of a chunk number",
                self.partial_len
            ))
            .at_offset(self.offset))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use proptest::prelude::*;

    fn decode(bytes: &[u8], step: usize) -> Result<(Vec<u64>, Ending)> {
        let mut decoder = Decoder::new();
        let mut numbers = Vec::new();
        for piece in bytes.chunks(step) {
            decoder.feed(piece, |number| numbers.push(number))?;
        }
        Ok((numbers, decoder.finish()?))
    }

    fn encode(numbers: &[u64]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    #[test]
    fn header_is_the_one_of_2008() {
        let header = Header { chunk_bits: 14, source: Tag(0), target: Tag::ORIGIN };
        let bytes = header.encode();
        assert_eq!(hex::encode(bytes), "726c6e00000000000e00000000000000ffffffff");
        assert_eq!(Header::decode(&bytes).unwrap(), header);
    }

    #[test]
    fn bad_headers_are_damage() {
        let good = Header { chunk_bits: 14, source: Tag(0), target: Tag(1) }.encode();
        for (at, byte) in [(0, b'R'), (3, 1), (8, 8), (8, 25), (11, 1)] {
            let mut bad = good;
            bad[at] = byte;
            assert_eq!(Header::decode(&bad).unwrap_err().kind(), Kind::Damaged);
        }
    }

    #[test]
    fn endings_are_told_apart() {
        let marked = encode(&[1, 5, u64::MAX, 3]);
        assert_eq!(decode(&marked, 3).unwrap(), (vec![1, 5], Ending::Marked));
        assert_eq!(decode(&marked[..16], 3).unwrap(), (vec![1, 5], Ending::Unmarked));
        let error = decode(&marked[..13], 3).unwrap_err();
        assert_eq!(error.kind(), Kind::Damaged);
        assert_eq!(error.to_string(), "at byte 28: changelist ends after 5 of 8 bytes of a chunk number");
    }

    #[test]
    fn disorder_is_damage() {
        for bad in [[5, 5], [5, 4]] {
            assert_eq!(decode(&encode(&bad), 8).unwrap_err().kind(), Kind::Damaged);
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), step in 1usize..30) {
            let _ = decode(&bytes, step);
            if let Some(header) = bytes.first_chunk() {
                let _ = Header::decode(header);
            }
        }

        #[test]
        fn sorted_numbers_come_back(set in proptest::collection::btree_set(0u64..u64::MAX, 0..50), step in 1usize..30) {
            let numbers: Vec<u64> = set.into_iter().collect();
            prop_assert_eq!(decode(&encode(&numbers), step).unwrap(), (numbers, Ending::Unmarked));
        }
    }
}
