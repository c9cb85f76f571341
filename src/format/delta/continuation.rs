//! How a stream that was cut goes on: where, after what, and how people and scripts say so.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::{CONTINUATION_MAGIC, VERSION, crc};
use crate::error::{Error, Kind, Result, ensure};
use crate::format::field::raw_struct;
use std::fmt;
use std::str::FromStr;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

raw_struct! {
    /// What comes before the rest of a delta whose first part is known to the receiver.
    pub struct RawContinuation, "Delta continuation", 60 {
        magic: [u8; 8], "bytes", "89 'ddcont' 0a";
        version: U32, "u32", "1, the version of the delta format";
        reserved: U32, "u32", "0";
        bytes: U64, "u64 bytes", "length of the part that is left out";
        digest: [u8; 32], "blake3", "of that part";
        crc: U32, "crc32", "of the 56 bytes before";
    }
}

/// The first so many bytes of a delta, by which the rest is asked for and recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumePoint {
    /// How many bytes.
    pub bytes: u64,
    /// BLAKE3 of them.
    pub digest: [u8; 32],
}

impl ResumePoint {
    /// Length of the preamble that stands for the part left out.
    pub const PREAMBLE_BYTES: usize = size_of::<RawContinuation>();

    /// Nothing at all, from which every delta goes on.
    #[must_use]
    pub fn start() -> Self {
        Self { bytes: 0, digest: *blake3::hash(b"").as_bytes() }
    }

    /// The preamble as bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; size_of::<RawContinuation>()] {
        let mut raw = RawContinuation {
            magic: CONTINUATION_MAGIC,
            version: U32::new(VERSION),
            reserved: U32::new(0),
            bytes: U64::new(self.bytes),
            digest: self.digest,
            crc: U32::new(0),
        };
        raw.crc = U32::new(sum(&raw));
        zerocopy::transmute!(raw)
    }

    /// Decodes a preamble.
    ///
    /// # Errors
    /// `Kind::Damaged`; `Kind::Unsupported` for a sound preamble of another version.
    pub fn decode(bytes: &[u8; size_of::<RawContinuation>()]) -> Result<Self> {
        let raw = RawContinuation::read_from_bytes(bytes.as_slice())
            .map_err(|_| Error::damaged("continuation is cut short"))?;
        ensure(raw.magic == CONTINUATION_MAGIC, || "not the continuation of a delta".to_owned())?;
        let (expected, found) = (raw.crc.get(), sum(&raw));
        ensure(expected == found, || format!("continuation has CRC {found:08x}, expected {expected:08x}"))?;
        if raw.version.get() != VERSION || raw.reserved.get() != 0 {
            let what = format!("continuation is of version {}, this program knows {VERSION}", raw.version);
            return Err(Error::new(Kind::Unsupported, what));
        }
        Ok(Self { bytes: raw.bytes.get(), digest: raw.digest })
    }
}

fn sum(raw: &RawContinuation) -> u32 {
    let bytes = raw.as_bytes();
    crc(bytes.split_at_checked(56).map_or(bytes, |(before, _)| before))
}

/// The token: the length in decimal, a colon, the digest in hexadecimal.
impl fmt::Display for ResumePoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.bytes, hex::encode(self.digest))
    }
}

impl FromStr for ResumePoint {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong =
            || format!("'{text}' is no token: expected what 'ddsnap apply-delta --resume-token' prints");
        let (bytes, digest) = text.trim().split_once(':').ok_or_else(wrong)?;
        if !bytes.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let mut point = Self { bytes: bytes.parse().map_err(|_| wrong())?, digest: [0; 32] };
        hex::decode_to_slice(digest, &mut point.digest).map_err(|_| wrong())?;
        Ok(point)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_come_back() {
        for point in [ResumePoint::start(), ResumePoint { bytes: u64::MAX, digest: [0xab; 32] }] {
            assert_eq!(ResumePoint::decode(&point.encode()).unwrap(), point);
            assert_eq!(point.to_string().parse(), Ok(point));
        }
        for text in ["", ":", "1", "1:", "-1:00", "+1:00", "1:zz", "99999999999999999999:00", "x:y:z"] {
            assert!(text.parse::<ResumePoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let bytes = ResumePoint { bytes: 1000, digest: [7; 32] }.encode();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(ResumePoint::decode(&bad).unwrap_err().kind(), Kind::Damaged, "bit {bit}");
        }
        let newer = ResumePoint { bytes: 1000, digest: [7; 32] };
        let mut raw = RawContinuation::read_from_bytes(newer.encode().as_slice()).unwrap();
        raw.version = U32::new(2);
        raw.crc = U32::new(sum(&raw));
        let newer: [u8; 60] = zerocopy::transmute!(raw);
        assert_eq!(ResumePoint::decode(&newer).unwrap_err().kind(), Kind::Unsupported);
    }
}
