//! Header and extents off the stream.

use super::Legacy;
use crate::delta::load::to_usize;
use crate::delta::read::{ReadExtent, Reader, fill};
use crate::error::{Error, Kind, Result};
use crate::format::delta::{
    Encoding, Extent, ExtentKind, Header, PREAMBLE_BYTES, PointLabel, VOLUME_BYTES_MAX,
};
use crate::format::legacy_delta as format;
use crate::units::{Tag, Uuid};
use std::io::Read;

/// Where the reading of a delta of 2008 has come to.
pub(crate) struct LegacyState {
    header: format::Header,
    /// Chunks that are still to come.
    left: u64,
    /// Source sum of the extent before.
    stale_sum: u64,
    /// The sizes of source and target are known.
    sized: bool,
}

/// What there is to know of a delta of 2008 beside what all deltas tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LegacyFacts {
    /// The sizes in the header are those of the volume that it was read for. If not, they mean nothing.
    pub sized: bool,
    /// One past the last byte that it tells of; it may be less if the last extent is encoded.
    pub end_bytes: u64,
}

impl<R: Read> Reader<R> {
    /// True if the delta is one of 2008.
    pub(crate) fn is_legacy(&self) -> bool {
        self.legacy.is_some()
    }

    pub(crate) fn legacy_facts(&self, end_bytes: u64) -> Option<LegacyFacts> {
        self.legacy.as_ref().map(|state| LegacyFacts { sized: state.sized, end_bytes })
    }

    /// Goes on after the first bytes of the header.
    pub(crate) fn open_legacy(
        mut input: R,
        preamble: &[u8; PREAMBLE_BYTES],
        sizes: Option<(u64, u64)>,
    ) -> Result<Self> {
        let mut bytes = [0; format::HEADER_BYTES];
        let (begin, rest) = bytes.split_at_mut(PREAMBLE_BYTES);
        begin.copy_from_slice(preamble);
        fill(&mut input, rest, PREAMBLE_BYTES as u64, "its header")?;
        let header = format::Header::decode(&bytes).map_err(|error| error.at_offset(0))?;
        let (source_size, target_size) = sizes.unwrap_or((VOLUME_BYTES_MAX, VOLUME_BYTES_MAX));
        let label = |tag: Tag, size_bytes: u64| PointLabel {
            volume: Uuid([0; 16]),
            id: 0,
            generation: 0,
            size_bytes,
            tag,
            name: None,
        };
        let own = Header {
            chunk_bits: header.chunk_bits,
            encoding: Encoding::Raw,
            level: 0,
            undoes: None,
            source: header.source.map(|tag| label(tag, source_size)),
            target: label(header.target, target_size),
        };
        let has = own.geometry().target_chunks();
        if sizes.is_some() && header.source.is_none() && has != header.chunks {
            let (chunks, size) = (header.chunks, 1u64 << header.chunk_bits);
            let what = format!(
                "the target has {target_size} bytes, the delta of 2008 makes {chunks} chunks of {size} bytes"
            );
            return Err(sized_hint(Error::new(Kind::Mismatch, what)));
        }
        let state = LegacyState { header, left: header.chunks, stale_sum: 0, sized: sizes.is_some() };
        let mut reader = Self::begin(input, own, &bytes);
        reader.legacy = Some(state);
        Ok(reader)
    }

    /// The next extent; `None` once all chunks were told and the delta ends there.
    pub(crate) fn next_legacy(&mut self) -> Result<Option<ReadExtent>> {
        let at = self.offset;
        let Some(state) = self.legacy.as_ref().filter(|state| state.left > 0) else {
            return self.finish_legacy().map(|()| None).map_err(|error| error.at_offset(at));
        };
        let (header, left, stale_sum, sized) = (state.header, state.left, state.stale_sum, state.sized);
        let head = self.body(format::EXTENT_HEADER_BYTES)?;
        let head = head.first_chunk().ok_or_else(|| Error::damaged("the delta ends in an extent"))?;
        let extent = format::Extent::decode(head, &header).map_err(|error| error.at_offset(at))?;
        self.check_place(&extent, left).map_err(|error| error.at_offset(at))?;
        let payload = self.body(to_usize(u64::from(extent.payload_bytes)))?;
        let chunks = u64::from(extent.chunks);
        self.legacy = Some(LegacyState {
            header,
            left: left.saturating_sub(chunks),
            stale_sum: extent.source_sum,
            sized,
        });
        let head = Extent {
            kind: ExtentKind::Raw,
            chunk: extent.chunk,
            chunks: extent.chunks,
            base_crcs: false,
            payload_bytes: extent.payload_bytes,
            body_crc: 0,
        };
        let (coding, source_sum, target_sum) = (extent.coding, extent.source_sum, extent.target_sum);
        let least_bytes = to_usize(chunks.saturating_sub(1) << header.chunk_bits);
        let legacy = Legacy { coding, source_sum, target_sum, stale_sum, sized, least_bytes };
        let (result_crcs, base_crcs) = (Vec::new(), Vec::new());
        let read =
            ReadExtent { head, offset_bytes: at, result_crcs, base_crcs, payload, legacy: Some(legacy) };
        self.next_chunk = extent.chunk.saturating_add(chunks);
        self.counted.extents = self.counted.extents.saturating_add(1);
        self.counted.chunks = self.counted.chunks.saturating_add(chunks);
        self.counted.data_bytes = self.counted.data_bytes.saturating_add(read.data_bytes(&self.geometry));
        self.counted.payload_bytes =
            self.counted.payload_bytes.saturating_add(u64::from(extent.payload_bytes));
        Ok(Some(read))
    }

    fn check_place(&self, extent: &format::Extent, left: u64) -> Result<()> {
        let (chunk, chunks) = (extent.chunk, u64::from(extent.chunks));
        if chunks > left {
            return Err(Error::damaged(format!("extent has {chunks} chunks where {left} are left")));
        }
        if chunk < self.next_chunk {
            let what = format!("extent begins at chunk {chunk}, expected {} or later", self.next_chunk);
            return Err(Error::new(Kind::Unsupported, what)
                .hint("deltas of 2008 whose extents overlap or are out of order are not applied"));
        }
        if self.header.source.is_none() && (chunk != self.next_chunk || extent.coding.xdelta) {
            return Err(Error::damaged("the delta of a whole volume skips a chunk, or refers to a source"));
        }
        let has = self.geometry.target_chunks();
        if chunk.saturating_add(chunks) > has {
            let what = format!(
                "the target has {} bytes, the delta of 2008 tells of byte {} and later",
                self.geometry.target_size,
                self.geometry.offset(has.max(chunk))
            );
            return Err(sized_hint(Error::new(Kind::Mismatch, what)));
        }
        Ok(())
    }

    fn finish_legacy(&mut self) -> Result<()> {
        if self.input.read(&mut [0]).map_err(|e| Error::io("cannot read the delta", e))? != 0 {
            return Err(Error::damaged("bytes follow the last extent"));
        }
        self.counted.digest = self.digest();
        self.end = Some(self.counted);
        Ok(())
    }
}

/// A delta of 2008 does not tell its size, so the target must have it.
pub(super) fn sized_hint(error: Error) -> Error {
    error.hint("a delta of 2008 does not tell the size of the volume: give the target its final size first")
}
