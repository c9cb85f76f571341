//! The header of a delta: which points, which sizes, which chunks.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::{
    CHUNK_BITS_MAX, CHUNK_BITS_MIN, CONTINUATION_MAGIC, Geometry, HEADER_BYTES_MAX, MAGIC, NAME_BYTES_MAX,
    PREAMBLE_BYTES, VERSION, VOLUME_BYTES_MAX, crc,
};
use crate::error::{Error, Kind, Result, ensure};
use crate::format::field::raw_struct;
use crate::units::{Tag, Uuid};
use zerocopy::little_endian::{I32, U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

raw_struct! {
    /// One end of a delta, as it lies in the header.
    pub struct RawPoint, "Delta point", 48 {
        volume: [u8; 16], "uuid", "volume; all zero when unknown (plain devices)";
        id: U64, "u64", "internal id of the snapshot; all ones for the origin; 0 when the volume is unknown";
        generation: U64, "u64", "content generation";
        size_bytes: U64, "u64 bytes", "size, at most 2^63-1";
        tag: U32, "u32", "the user's tag; all ones for the origin";
        name_bytes: U16, "u16 bytes", "length of the name, 0 (none) to 1024";
        reserved: U16, "u16", "0";
    }
}

raw_struct! {
    /// Fixed part of the header. The names (source, target) and a CRC-32 of everything before it follow.
    pub struct RawHeader, "Delta header", 160 {
        magic: [u8; 8], "bytes", "89 'ddelta' 0a";
        version: U32, "u32", "1";
        header_bytes: U32, "u32 bytes", "length of the header, names and CRC included, at most 65536";
        flags: U32, "u32", "bit 0: incremental (there is a source); others 0";
        chunk_bits: U32, "u32", "log2 of the chunk size, 9 to 20";
        encoding: U32, "u32", "what the writer was asked for: 0 raw, 1 zstd, 2 zstd-base, 3 best";
        level: I32, "i32", "zstd level the writer used; 0 for raw";
        undoes: [u8; 32], "blake3", "digest of the delta that this one undoes; all zero if none";
        source: RawPoint, "point", "what the delta applies to; all zero in a full-volume delta";
        target: RawPoint, "point", "what it makes of it";
    }
}

const FLAG_INCREMENTAL: u32 = 1;
const CRC_BYTES: usize = 4;

/// What a writer of deltas was asked to do with changed data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Store it as it is.
    Raw,
    /// zstd.
    Zstd,
    /// zstd with the old data as prefix; plain zstd where there is none.
    ZstdBase,
    /// The smallest of all.
    Best,
}

impl Encoding {
    /// Name for people and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Zstd => "zstd",
            Self::ZstdBase => "zstd-base",
            Self::Best => "best",
        }
    }

    fn number(self) -> u32 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
            Self::ZstdBase => 2,
            Self::Best => 3,
        }
    }

    fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            2 => Some(Self::ZstdBase),
            3 => Some(Self::Best),
            _ => None,
        }
    }
}

/// Names one end of a delta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointLabel {
    /// The volume; all zero when unknown.
    pub volume: Uuid,
    /// Internal id of the snapshot; `u64::MAX` for the origin.
    pub id: u64,
    /// Content generation.
    pub generation: u64,
    /// Size in bytes.
    pub size_bytes: u64,
    /// The user's tag.
    pub tag: Tag,
    /// The user's name for it.
    pub name: Option<String>,
}

impl PointLabel {
    /// True if the identity says something, that is, unless the point is a plain device's.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.volume != Uuid([0; 16])
    }

    fn encode(&self) -> Result<RawPoint> {
        let name = self.name.as_deref().unwrap_or("");
        let usage = |what: String| Error::new(Kind::Usage, what);
        if name.len() > NAME_BYTES_MAX {
            return Err(usage(format!(
                "the name of a point has {} bytes, a delta holds {NAME_BYTES_MAX}",
                name.len()
            )));
        }
        if self.size_bytes > VOLUME_BYTES_MAX {
            return Err(usage(format!("a volume of {} bytes is too large for a delta", self.size_bytes)));
        }
        Ok(RawPoint {
            volume: self.volume.0,
            id: U64::new(self.id),
            generation: U64::new(self.generation),
            size_bytes: U64::new(self.size_bytes),
            tag: U32::new(self.tag.0),
            name_bytes: U16::new(u16::try_from(name.len()).unwrap_or(u16::MAX)),
            reserved: U16::new(0),
        })
    }

    fn decode(raw: &RawPoint, name: &[u8]) -> Result<Self> {
        let size_bytes = raw.size_bytes.get();
        ensure(size_bytes <= VOLUME_BYTES_MAX, || {
            format!("volume size is {size_bytes}, expected at most {VOLUME_BYTES_MAX}")
        })?;
        ensure(raw.reserved.get() == 0, || {
            format!("reserved field of a point is {}, expected 0", raw.reserved)
        })?;
        let name = std::str::from_utf8(name).map_err(|_| Error::damaged("name of a point is not UTF-8"))?;
        Ok(Self {
            volume: Uuid(raw.volume),
            id: raw.id.get(),
            generation: raw.generation.get(),
            size_bytes,
            tag: Tag(raw.tag.get()),
            name: (!name.is_empty()).then(|| name.to_owned()),
        })
    }
}

/// A decoded header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// log2 of the chunk size in bytes.
    pub chunk_bits: u32,
    /// What the writer was asked for.
    pub encoding: Encoding,
    /// zstd level the writer used.
    pub level: i32,
    /// Digest of the delta that this one undoes.
    pub undoes: Option<[u8; 32]>,
    /// What the delta applies to; `None` for a full volume.
    pub source: Option<PointLabel>,
    /// What it makes of it.
    pub target: PointLabel,
}

impl Header {
    /// Sizes and chunks of both sides.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        Geometry {
            chunk_bits: self.chunk_bits,
            source_size: self.source.as_ref().map(|source| source.size_bytes),
            target_size: self.target.size_bytes,
        }
    }

    /// The header as bytes.
    ///
    /// # Errors
    /// `Kind::Usage` if a name, a size or the chunk size does not fit the format.
    pub fn encode(&self) -> Result<Vec<u8>> {
        if !(CHUNK_BITS_MIN..=CHUNK_BITS_MAX).contains(&self.chunk_bits) {
            return Err(Error::new(
                Kind::Usage,
                format!(
                    "chunks of 2^{} bytes do not fit a delta, expected 2^{CHUNK_BITS_MIN} to 2^{CHUNK_BITS_MAX}",
                    self.chunk_bits
                ),
            ));
        }
        let source = self.source.as_ref().map(PointLabel::encode).transpose()?;
        let target = self.target.encode()?;
        let mut names = String::new();
        names.push_str(self.source.as_ref().and_then(|point| point.name.as_deref()).unwrap_or(""));
        names.push_str(self.target.name.as_deref().unwrap_or(""));
        let bytes = size_of::<RawHeader>().saturating_add(names.len()).saturating_add(CRC_BYTES);
        let raw = RawHeader {
            magic: MAGIC,
            version: U32::new(VERSION),
            header_bytes: U32::new(u32::try_from(bytes).unwrap_or(u32::MAX)),
            flags: U32::new(if source.is_some() { FLAG_INCREMENTAL } else { 0 }),
            chunk_bits: U32::new(self.chunk_bits),
            encoding: U32::new(self.encoding.number()),
            level: I32::new(self.level),
            undoes: self.undoes.unwrap_or([0; 32]),
            source: source.unwrap_or(RawPoint::new_zeroed()),
            target,
        };
        let mut out = Vec::with_capacity(bytes);
        out.extend_from_slice(raw.as_bytes());
        out.extend_from_slice(names.as_bytes());
        let sum = crc(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        Ok(out)
    }

    /// Length of the whole header, from its first [`PREAMBLE_BYTES`].
    ///
    /// # Errors
    /// `Kind::Damaged` if the magic is not that of a delta or the length is out of bounds.
    pub fn length(preamble: &[u8; PREAMBLE_BYTES]) -> Result<usize> {
        let (magic, rest) = preamble.split_at(MAGIC.len());
        ensure(magic != CONTINUATION_MAGIC.as_slice(), || {
            "this is the continuation of a stream that was cut; only apply-delta --resume can use it"
                .to_owned()
        })?;
        ensure(magic == MAGIC.as_slice(), || {
            format!("not a delta: magic is {}, expected {}", hex::encode(magic), hex::encode(MAGIC))
        })?;
        let bytes = rest.last_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let min = PREAMBLE_BYTES.saturating_add(CRC_BYTES);
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        ensure(length >= min && bytes <= HEADER_BYTES_MAX, || {
            format!("delta header claims {bytes} bytes, expected {min} to {HEADER_BYTES_MAX}")
        })?;
        Ok(length)
    }

    /// Decodes a whole header, as long as [`Header::length`] says.
    ///
    /// # Errors
    /// `Kind::Damaged`; `Kind::Unsupported` for a sound header of a newer version or with unknown features.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (body, sum) = bytes
            .split_last_chunk::<CRC_BYTES>()
            .ok_or_else(|| Error::damaged(format!("delta header has {} bytes", bytes.len())))?;
        let (expected, found) = (u32::from_le_bytes(*sum), crc(body));
        ensure(expected == found, || format!("delta header has CRC {found:08x}, expected {expected:08x}"))?;
        let version =
            body.get(8..12).and_then(|bytes| bytes.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b));
        if version != VERSION {
            return Err(Error::new(
                Kind::Unsupported,
                format!("delta is of version {version}, this program knows version {VERSION}"),
            ));
        }
        let (raw, names) = RawHeader::read_from_prefix(body)
            .map_err(|_| Error::damaged(format!("delta header has only {} bytes", bytes.len())))?;
        Self::from_raw(&raw, names)
    }

    fn from_raw(raw: &RawHeader, names: &[u8]) -> Result<Self> {
        let unsupported = |what: String| Error::new(Kind::Unsupported, what);
        let flags = raw.flags.get();
        if flags & !FLAG_INCREMENTAL != 0 {
            return Err(unsupported(format!("delta uses unknown features (flags {flags:#x})")));
        }
        let encoding = Encoding::from_number(raw.encoding.get())
            .ok_or_else(|| unsupported(format!("delta uses unknown encoding {}", raw.encoding)))?;
        let chunk_bits = raw.chunk_bits.get();
        ensure((CHUNK_BITS_MIN..=CHUNK_BITS_MAX).contains(&chunk_bits), || {
            format!("chunk bits are {chunk_bits}, expected {CHUNK_BITS_MIN} to {CHUNK_BITS_MAX}")
        })?;
        let (source_len, target_len) =
            (usize::from(raw.source.name_bytes.get()), usize::from(raw.target.name_bytes.get()));
        ensure(
            source_len <= NAME_BYTES_MAX
                && target_len <= NAME_BYTES_MAX
                && source_len.checked_add(target_len) == Some(names.len()),
            || format!("names have {source_len} and {target_len} bytes, the header holds {}", names.len()),
        )?;
        let (source_name, target_name) = names.split_at(source_len.min(names.len()));
        let source = if flags & FLAG_INCREMENTAL != 0 {
            Some(PointLabel::decode(&raw.source, source_name)?)
        } else {
            ensure(raw.source.as_bytes().iter().all(|byte| *byte == 0), || {
                "full-volume delta names a source".to_owned()
            })?;
            None
        };
        Ok(Self {
            chunk_bits,
            encoding,
            level: raw.level.get(),
            undoes: (raw.undoes != [0; 32]).then_some(raw.undoes),
            source,
            target: PointLabel::decode(&raw.target, target_name)?,
        })
    }
}
