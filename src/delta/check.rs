//! One extent against the target: is the base right, what is the result, is it there already.

use super::buffer::Buffer;
use super::decode::Decoder;
use super::encode::is_zero;
use super::inspect::wrong_chunk;
use super::load::{chunk_crcs, to_usize};
use super::read::{ReadExtent, span};
use super::target::TargetState;
use crate::error::{Error, Kind, Result};
use crate::format::delta::{ExtentKind, Geometry};

/// What an extent means for the target.
pub(crate) struct Checked {
    /// Byte offset on the volume.
    pub(crate) offset: u64,
    /// Length of the result.
    pub(crate) bytes: u64,
    /// The result; empty if the target is known to hold it without being read.
    pub(crate) data: Buffer,
    /// False if the target holds the result already.
    pub(crate) differs: bool,
    /// True if some chunk holds the result and not the base, as an interrupted apply leaves it.
    pub(crate) resumed: bool,
}

/// Checks extents; each worker has its own.
pub(crate) struct Checker<'a> {
    pub(super) target: &'a dyn TargetState,
    pub(super) geometry: Geometry,
    /// The base needs no proof.
    pub(super) trusted: bool,
    pub(super) decoder: Decoder,
}

/// What is known of the chunks of one extent before it is decoded.
struct Seen {
    current: Buffer,
    /// Bytes of the base, where they are not those of `current`.
    base: Option<Buffer>,
    /// A chunk each: holds what the delta was made from; empty without base CRCs.
    is_base: Vec<bool>,
    /// A chunk each: holds the result, as far as its CRC can tell.
    is_result: Vec<bool>,
}

impl Seen {
    /// The base, as far as it is there: at most `len` bytes.
    fn base(&self, len: usize) -> &[u8] {
        match &self.base {
            Some(base) => base,
            None => self.current.get(..len.min(self.current.len())).unwrap_or(&[]),
        }
    }
}

impl<'a> Checker<'a> {
    pub(crate) fn new(target: &'a dyn TargetState, geometry: Geometry, trusted: bool) -> Result<Self> {
        Ok(Self { target, geometry, trusted, decoder: Decoder::new(geometry)? })
    }

    /// Checks one extent, no longer than the limit for extents with data.
    ///
    /// That a chunk holds the result is taken from the decoded data, byte by byte, wherever it can be decoded:
    /// a chance collision of two CRCs must not make an apply skip a chunk.
    pub(crate) fn check(&mut self, mut extent: ReadExtent) -> Result<Checked> {
        let raw = match extent.head.kind {
            ExtentKind::Raw => std::mem::take(&mut extent.payload),
            _ => Buffer::default(),
        };
        let extent = &extent;
        if let Some(legacy) = &extent.legacy {
            return self.check_legacy(extent, legacy, raw);
        }
        let seen = self.look(extent)?;
        if !self.trusted && self.geometry.source_size.is_some() {
            self.ensure_base(extent, &seen)?;
        }
        let data = self.result(extent, raw, &seen)?;
        let resumed = seen.is_base.iter().zip(&seen.is_result).any(|(base, result)| *result && !*base);
        let offset = self.decoder.offset(extent);
        Ok(Checked { offset, bytes: data.len() as u64, differs: data != seen.current, resumed, data })
    }

    /// As [`Checker::check`], without reading the target where it is known to hold the zeroes that the extent makes.
    pub(crate) fn check_or_skip(&mut self, extent: ReadExtent) -> Result<Checked> {
        let (offset, len) = span(&self.geometry, &extent.head);
        let bytes = len as u64;
        let makes_zeroes = extent.head.kind == ExtentKind::Zero && !extent.head.base_crcs;
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.target.size());
        if makes_zeroes && inside && self.target.is_hole(offset, bytes)? {
            return Ok(Checked { offset, bytes, data: Buffer::default(), differs: false, resumed: false });
        }
        self.check(extent)
    }

    /// The result of an extent that does not refer to the base; the target is not looked at.
    pub(crate) fn decode(&mut self, mut extent: ReadExtent) -> Result<Checked> {
        let raw = match extent.head.kind {
            ExtentKind::Raw => std::mem::take(&mut extent.payload),
            _ => Buffer::default(),
        };
        let data = self.decoder.decode_owned(&extent, raw, &[])?;
        let (offset, bytes) = (self.decoder.offset(&extent), data.len() as u64);
        Ok(Checked { offset, bytes, differs: true, resumed: false, data })
    }

    fn look(&self, extent: &ReadExtent) -> Result<Seen> {
        let (offset, len) = span(&self.geometry, &extent.head);
        let present = |len: usize| len.min(to_usize(self.target.size().saturating_sub(offset)));
        let mut current = Buffer::unwritten(present(len));
        if !current.is_empty() {
            self.target.read(offset, &mut current)?;
        }
        let crcs = chunk_crcs(&self.geometry, extent.head.chunks, &current);
        let base_len = present(self.decoder.base_len(extent));
        let mut seen = Seen { current, base: None, is_base: Vec::new(), is_result: Vec::new() };
        seen.is_result = self.is_result(extent, &seen.current, &crcs);
        if self.target.keeps_base() {
            let mut base = Buffer::unwritten(base_len);
            if !base.is_empty() {
                self.target.read_base(offset, &mut base)?;
            }
            seen.base = Some(base);
        }
        if extent.head.base_crcs {
            let whole = seen.base.is_none() && base_len == seen.current.len();
            seen.is_base = match whole {
                true => {
                    extent.base_crcs.iter().zip(&crcs).map(|(expected, found)| expected == found).collect()
                }
                false => self.decoder.base_matches(extent, seen.base(base_len)),
            };
        }
        Ok(seen)
    }

    fn is_result(&self, extent: &ReadExtent, current: &[u8], crcs: &[u32]) -> Vec<bool> {
        let geometry = &self.geometry;
        let mut pieces = current.chunks(to_usize(geometry.chunk_bytes()));
        (0u64..u64::from(extent.head.chunks))
            .zip(crcs)
            .map(|(index, found)| {
                let piece = pieces.next().unwrap_or(&[]);
                let whole = geometry.result_bytes(extent.head.chunk.saturating_add(index), 1);
                piece.len() as u64 == whole
                    && match extent.head.kind {
                        ExtentKind::Zero => is_zero(piece),
                        _ => extent.result_crcs.get(to_usize(index)) == Some(found),
                    }
            })
            .collect()
    }

    fn ensure_base(&self, extent: &ReadExtent, seen: &Seen) -> Result<()> {
        for (index, is_result) in seen.is_result.iter().enumerate() {
            let chunk = extent.head.chunk.saturating_add(index as u64);
            match seen.is_base.get(index) {
                Some(true) => {}
                _ if *is_result => {}
                Some(false) => {
                    return Err(wrong_chunk(chunk).at_path(self.target.path()).hint(
                        "check that the target is the right base; --force applies the delta regardless",
                    ));
                }
                None => {
                    return Err(Error::new(
                        Kind::Refused,
                        format!("the delta has no checksums of its base, so chunk {chunk} cannot be proven"),
                    )
                    .at_path(self.target.path())
                    .hint("--force applies the delta regardless"));
                }
            }
        }
        Ok(())
    }

    fn result(&mut self, extent: &ReadExtent, raw: Buffer, seen: &Seen) -> Result<Buffer> {
        if extent.head.kind != ExtentKind::ZstdBase {
            return self.decoder.decode_owned(extent, raw, &[]);
        }
        let all_base = seen.is_base.iter().all(|is_base| *is_base);
        let all_result = seen.is_result.iter().all(|is_result| *is_result);
        if all_base {
            let base_len = self.decoder.base_len(extent);
            return self.decoder.decode(extent, seen.base(base_len));
        }
        if all_result {
            return Ok(seen.current.clone());
        }
        Err(Error::new(
            Kind::Mismatch,
            format!("the data for chunk {} refers to old data that is not there any more", extent.head.chunk),
        )
        .at_path(self.target.path())
        .hint("apply the undo delta of the interrupted apply first, then this delta again"))
    }
}
