//! The stream back: structure, sums and digest checked, no length believed before it is bounded.

use super::buffer::Buffer;
use super::inspect::{DeltaInfo, Tally};
use super::legacy::{Legacy, LegacyState};
use super::load::to_usize;
use crate::error::{Error, Kind, Result};
use crate::format::delta::{
    END_MAGIC, EXTENT_MAGIC, End, Extent, ExtentKind, Geometry, Header, PREAMBLE_BYTES, RawEnd, RawExtent,
};
use crate::format::legacy_delta;
use std::io::Read;

/// An extent as it was read: sound in itself, not yet decoded.
#[derive(Debug, Clone)]
pub struct ReadExtent {
    /// Its header.
    pub head: Extent,
    /// Where in the stream it begins.
    pub offset_bytes: u64,
    /// One CRC a chunk of the result; empty for a zero extent.
    pub result_crcs: Vec<u32>,
    /// One CRC a chunk of the base; empty if the delta carries none.
    pub base_crcs: Vec<u32>,
    /// What the result is made of.
    pub payload: Buffer,
    /// What a delta of 2008 says of it instead of CRCs; its kind is then raw, whatever the payload is.
    pub legacy: Option<Legacy>,
}

impl ReadExtent {
    /// True if it cannot be decoded without the base.
    pub(crate) fn needs_base(&self) -> bool {
        match &self.legacy {
            Some(legacy) => legacy.coding.xdelta,
            None => self.head.kind == ExtentKind::ZstdBase,
        }
    }

    /// Bytes of the result, as far as they are known before it is decoded.
    pub(crate) fn data_bytes(&self, geometry: &Geometry) -> u64 {
        match &self.legacy {
            Some(legacy) if legacy.coding.is_plain() => self.payload.len() as u64,
            _ => geometry.result_bytes(self.head.chunk, u64::from(self.head.chunks)),
        }
    }

    /// Name of the way it is stored in, for people and JSON.
    pub(crate) fn kind_name(&self) -> &'static str {
        self.legacy.as_ref().map_or(self.head.kind.name(), |legacy| legacy.coding.name())
    }
}

/// Reads a delta from front to back.
pub struct Reader<R> {
    pub(super) input: R,
    pub(super) header: Header,
    pub(super) geometry: Geometry,
    pub(super) hasher: blake3::Hasher,
    pub(super) offset: u64,
    pub(super) next_chunk: u64,
    pub(super) counted: End,
    pub(super) end: Option<End>,
    /// The digest, if all of this was read and hashed before.
    pub(super) known: Option<[u8; 32]>,
    /// What there is to know beside, if the delta is of 2008.
    pub(super) legacy: Option<LegacyState>,
}

impl<R: Read> Reader<R> {
    /// Reads the header. A delta of 2008 is refused.
    ///
    /// # Errors
    /// `Kind::Damaged`, `Kind::Unsupported`, `Kind::Io`.
    pub fn open(input: R) -> Result<Self> {
        let reader = Self::open_any(input, None)?;
        if !reader.is_legacy() {
            return Ok(reader);
        }
        Err(Error::new(Kind::Unsupported, "this is a delta of 2008, which names no sizes and proves little")
            .hint("apply it to a copy; 'create-delta --compare' makes a delta of both that can do more"))
    }

    /// As [`Reader::open`], of a delta of 2008 too; for such a one, `sizes` are the bytes of its source and its
    /// target, if both are known.
    ///
    /// # Errors
    /// As [`Reader::open`]; `Kind::Mismatch` if it cannot be for these sizes.
    pub(crate) fn open_any(mut input: R, sizes: Option<(u64, u64)>) -> Result<Self> {
        let mut preamble = [0; PREAMBLE_BYTES];
        fill(&mut input, &mut preamble, 0, "its header")?;
        if legacy_delta::is_delta(&preamble) {
            return Self::open_legacy(input, &preamble, sizes);
        }
        let length = Header::length(&preamble).map_err(|error| error.at_offset(0))?;
        let mut bytes = preamble.to_vec();
        bytes.resize(length, 0);
        let (_, rest) = bytes.split_at_mut(PREAMBLE_BYTES);
        fill(&mut input, rest, PREAMBLE_BYTES as u64, "its header")?;
        let header = Header::decode(&bytes).map_err(|error| error.at_offset(0))?;
        Ok(Self::begin(input, header, &bytes))
    }

    /// A reader that has read `bytes`, which are `header`.
    pub(super) fn begin(input: R, header: Header, bytes: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(bytes);
        Self {
            input,
            geometry: header.geometry(),
            header,
            hasher,
            offset: bytes.len() as u64,
            next_chunk: 0,
            counted: End::default(),
            end: None,
            known: None,
            legacy: None,
        }
    }

    /// As [`Reader::open_any`], for an input that was read to its end before and had this digest. The end marker
    /// must tell the same, and every extent is checked against its own sums; only the whole is not hashed again.
    ///
    /// # Errors
    /// As [`Reader::open_any`].
    pub(crate) fn open_known(input: R, sizes: Option<(u64, u64)>, digest: [u8; 32]) -> Result<Self> {
        Ok(Self { known: Some(digest), ..Self::open_any(input, sizes)? })
    }

    /// The digest of what was read.
    pub(super) fn digest(&self) -> [u8; 32] {
        self.known.unwrap_or_else(|| *self.hasher.finalize().as_bytes())
    }

    pub(super) fn hash(&mut self, bytes: &[u8]) {
        if self.known.is_none() {
            self.hasher.update(bytes);
        }
    }

    /// What the delta applies to and what it makes of it.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What the end marker says, once [`Reader::next_extent`] has returned `None`.
    #[must_use]
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Bytes of the stream read so far.
    #[must_use]
    pub fn offset_bytes(&self) -> u64 {
        self.offset
    }

    /// After the header or an extent: bytes read, one past the last chunk, and what an end marker would tell.
    pub(crate) fn so_far(&self) -> (u64, u64, End) {
        (self.offset, self.next_chunk, self.counted)
    }

    /// The next extent; `None` once the end marker was read and everything before it agrees with it.
    ///
    /// # Errors
    /// `Kind::Damaged` with the byte offset, `Kind::Unsupported`, `Kind::Io`.
    pub fn next_extent(&mut self) -> Result<Option<ReadExtent>> {
        if self.end.is_some() {
            return Ok(None);
        }
        if self.is_legacy() {
            return self.next_legacy();
        }
        let at = self.offset;
        let mut magic = [0; 4];
        fill(&mut self.input, &mut magic, at, "the next extent or the end marker")?;
        match u32::from_le_bytes(magic) {
            EXTENT_MAGIC => self.extent(magic).map(Some).map_err(|error| error.at_offset(at)),
            END_MAGIC => self.finish(magic).map(|()| None).map_err(|error| error.at_offset(at)),
            other => {
                let what = format!("neither an extent nor the end marker: magic is {other:08x}");
                Err(Error::damaged(what).at_offset(at))
            }
        }
    }

    fn extent(&mut self, magic: [u8; 4]) -> Result<ReadExtent> {
        let offset_bytes = self.offset;
        let bytes: [u8; size_of::<RawExtent>()] = self.fixed(magic, "an extent header")?;
        self.hash(&bytes);
        let head = Extent::decode(&bytes, &self.geometry, self.next_chunk)?;
        let mut arrays = self.body(head.arrays_bytes())?;
        let mut sum = crc32fast::Hasher::new();
        let payload = self.body(head.payload_len())?;
        if self.known.is_none() {
            sum.update(&arrays);
            sum.update(&payload);
        }
        let found = sum.finalize();
        // Known bytes were checked before; what they decode to has sums of its own.
        if self.known.is_none() && found != head.body_crc {
            let what = format!("extent has CRC {found:08x}, expected {:08x}", head.body_crc);
            return Err(Error::damaged(what));
        }
        let split = head.result_crc_count().saturating_mul(4).min(arrays.len());
        let base_crcs = numbers(&arrays.split_off(split));
        let data = self.geometry.result_bytes(head.chunk, u64::from(head.chunks));
        self.next_chunk = head.chunk.saturating_add(u64::from(head.chunks));
        self.counted.extents = self.counted.extents.saturating_add(1);
        self.counted.chunks = self.counted.chunks.saturating_add(u64::from(head.chunks));
        self.counted.data_bytes = self.counted.data_bytes.saturating_add(data);
        self.counted.payload_bytes = self.counted.payload_bytes.saturating_add(u64::from(head.payload_bytes));
        Ok(ReadExtent { head, offset_bytes, result_crcs: numbers(&arrays), base_crcs, payload, legacy: None })
    }

    pub(super) fn body(&mut self, len: usize) -> Result<Buffer> {
        let mut bytes = Buffer::unwritten(len);
        fill(&mut self.input, &mut bytes, self.offset, "an extent")?;
        self.hash(&bytes);
        self.offset = self.offset.saturating_add(len as u64);
        Ok(bytes)
    }

    fn fixed<const N: usize>(&mut self, magic: [u8; 4], what: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        let (head, rest) = bytes.split_at_mut(magic.len());
        head.copy_from_slice(&magic);
        fill(&mut self.input, rest, self.offset.saturating_add(4), what)?;
        self.offset = self.offset.saturating_add(N as u64);
        Ok(bytes)
    }

    fn finish(&mut self, magic: [u8; 4]) -> Result<()> {
        let bytes: [u8; size_of::<RawEnd>()] = self.fixed(magic, "its end marker")?;
        let end = End::decode(&bytes)?;
        let (covered, _) = bytes.split_at(End::COVERED_BYTES);
        self.hash(covered);
        self.counted.digest = self.digest();
        if end != self.counted {
            return Err(Error::damaged(format!(
                "end marker tells of {} extents, {} bytes and digest {}, the delta has {}, {} and {}",
                end.extents,
                end.data_bytes,
                hex::encode(end.digest),
                self.counted.extents,
                self.counted.data_bytes,
                hex::encode(self.counted.digest)
            )));
        }
        let chunks = self.geometry.target_chunks();
        if self.next_chunk < chunks && self.geometry.covered_from() < chunks {
            let kind = if self.geometry.source_size.is_none() { "full-volume" } else { "growing" };
            return Err(Error::damaged(format!(
                "{kind} delta ends at chunk {} of {chunks}",
                self.next_chunk
            )));
        }
        if self.input.read(&mut [0]).map_err(|e| Error::io("cannot read the delta", e))? != 0 {
            return Err(Error::damaged("bytes follow the end marker").at_offset(self.offset));
        }
        self.end = Some(end);
        Ok(())
    }
}

/// Splits long zero extents, so that nobody downstream meets more than an extent's worth at once.
pub(crate) struct Pieces<R> {
    pub(crate) reader: Reader<R>,
    tally: Tally,
    rest: Option<ReadExtent>,
}

impl<R: Read> Pieces<R> {
    pub(crate) fn new(reader: Reader<R>) -> Self {
        Self { tally: Tally::new(&reader), reader, rest: None }
    }

    pub(crate) fn next_piece(&mut self) -> Result<Option<ReadExtent>> {
        let extent = match self.rest.take() {
            Some(rest) => rest,
            None => match self.reader.next_extent()? {
                Some(extent) => {
                    self.tally.count(&self.reader.geometry, &extent);
                    extent
                }
                None => return Ok(None),
            },
        };
        let max = self.reader.geometry.extent_chunks_max();
        if extent.head.kind != ExtentKind::Zero || extent.head.chunks <= max {
            return Ok(Some(extent));
        }
        let mut piece = extent.clone();
        piece.head.chunks = max;
        let mut rest = extent;
        rest.head.chunk = rest.head.chunk.saturating_add(u64::from(max));
        rest.head.chunks = rest.head.chunks.saturating_sub(max);
        self.rest = Some(rest);
        Ok(Some(piece))
    }

    /// Facts of the delta, once the end was seen.
    pub(crate) fn info(&self) -> Result<DeltaInfo> {
        self.tally.finish(&self.reader)
    }
}

fn numbers(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
}

/// Fills `buf` from a stream that has come to byte `offset`; `what` names what would be cut short.
pub(crate) fn fill(input: &mut (impl Read + ?Sized), buf: &mut [u8], offset: u64, what: &str) -> Result<()> {
    let mut filled = 0;
    while let Some(rest) = buf.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match input.read(rest) {
            Ok(0) => {
                let end = offset.saturating_add(to_u64(filled));
                let what = if end == 0 {
                    "the delta is empty".to_owned()
                } else {
                    format!("the delta ends in {what}")
                };
                return Err(Error::damaged(what).at_offset(end));
            }
            Ok(count) => filled = filled.saturating_add(count),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            // An input that checks itself (a tee, a decoder) reports its own typed error.
            Err(error) => match error.downcast::<Error>() {
                Ok(own) => return Err(own),
                Err(error) => {
                    let what = format!("cannot read the delta: {error}");
                    return Err(match Error::io(what.clone(), error) {
                        error if error.kind() == Kind::Io => error,
                        _ => Error::new(Kind::Io, what),
                    });
                }
            },
        }
    }
    Ok(())
}

fn to_u64(len: usize) -> u64 {
    len as u64
}

/// The range of bytes an extent covers in the target: offset and length.
pub(crate) fn span(geometry: &Geometry, head: &Extent) -> (u64, usize) {
    (geometry.offset(head.chunk), to_usize(geometry.result_bytes(head.chunk, u64::from(head.chunks))))
}
