//! What a delta is, and whether it is sound.

use super::decode::Decoder;
use super::legacy::{self, LegacyFacts};
use super::pipeline::{ordered, workers};
use super::read::{ReadExtent, Reader};
use crate::block::ReadAt;
use crate::error::{Error, Kind, Result};
use crate::format::delta::{ExtentKind, Geometry, Header};
use crate::format::legacy_delta::{CODINGS, Coding};
use crate::progress::Progress;
use std::io::Read;

/// Number and size of the extents of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KindCount {
    /// Number of extents.
    pub extents: u64,
    /// Their chunks.
    pub chunks: u64,
    /// Bytes of the target that they cover.
    pub data_bytes: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// Bytes of the target that the largest of them covers.
    pub largest_bytes: u64,
    /// How many of them carry CRCs of their base.
    pub with_base_crcs: u64,
}

/// Facts of a delta.
#[derive(Debug, Clone)]
pub struct DeltaInfo {
    /// Points, sizes, chunk size, encoding.
    pub header: Header,
    /// Counts by the name of the kind: zero, raw, zstd, zstd-base; of 2008: raw, raw-zlib, xdelta, xdelta-zlib.
    pub kinds: [(&'static str, KindCount); 4],
    /// The delta is one of 2008: instead of CRCs it has sums of bytes, and sizes only as far as they were known.
    pub legacy: Option<LegacyFacts>,
    /// Number of extents.
    pub extents: u64,
    /// Chunks in all extents.
    pub chunks: u64,
    /// Bytes of the target that the extents cover.
    pub data_bytes: u64,
    /// Bytes of all payloads.
    pub payload_bytes: u64,
    /// Length of the delta.
    pub stream_bytes: u64,
    /// True if every extent can prove its base.
    pub has_base_crcs: bool,
    /// Names the delta.
    pub digest: [u8; 32],
}

/// Counts while a delta is read.
pub(crate) struct Tally {
    kinds: [(&'static str, KindCount); 4],
    has_base_crcs: bool,
    end: u64,
}

impl Tally {
    pub(crate) fn new<R: Read>(reader: &Reader<R>) -> Self {
        let kinds = match reader.is_legacy() {
            true => CODINGS.map(Coding::name),
            false => [ExtentKind::Zero, ExtentKind::Raw, ExtentKind::Zstd, ExtentKind::ZstdBase]
                .map(ExtentKind::name),
        };
        let has_base_crcs = reader.header().source.is_some();
        Self { kinds: kinds.map(|kind| (kind, KindCount::default())), has_base_crcs, end: 0 }
    }

    pub(crate) fn count(&mut self, geometry: &Geometry, extent: &ReadExtent) {
        let head = &extent.head;
        self.has_base_crcs &= head.base_crcs;
        let data = extent.data_bytes(geometry);
        self.end = geometry.offset(head.chunk).saturating_add(data);
        let name = extent.kind_name();
        if let Some((_, count)) = self.kinds.iter_mut().find(|(kind, _)| *kind == name) {
            count.extents = count.extents.saturating_add(1);
            count.chunks = count.chunks.saturating_add(u64::from(head.chunks));
            count.largest_bytes = count.largest_bytes.max(data);
            count.with_base_crcs = count.with_base_crcs.saturating_add(u64::from(head.base_crcs));
            count.data_bytes = count.data_bytes.saturating_add(data);
            count.payload_bytes = count.payload_bytes.saturating_add(u64::from(head.payload_bytes));
        }
    }

    /// The facts, once `reader` has seen the end.
    pub(crate) fn finish<R: Read>(&self, reader: &Reader<R>) -> Result<DeltaInfo> {
        let end = reader.end().ok_or_else(|| Error::damaged("the delta was not read to its end"))?;
        Ok(DeltaInfo {
            header: reader.header().clone(),
            kinds: self.kinds,
            legacy: reader.legacy_facts(self.end),
            extents: end.extents,
            chunks: end.chunks,
            data_bytes: end.data_bytes,
            payload_bytes: end.payload_bytes,
            stream_bytes: reader.offset_bytes(),
            has_base_crcs: self.has_base_crcs,
            digest: end.digest,
        })
    }
}

/// Reads a delta and tells what it is. Structure, sums and digest are checked; data is not decoded.
///
/// # Errors
/// `Kind::Damaged`, `Kind::Unsupported`, `Kind::Io`, `Kind::Interrupted`.
pub fn info(reader: &mut dyn Read, progress: &dyn Progress) -> Result<DeltaInfo> {
    let mut reader = Reader::open_any(reader, None)?;
    let geometry = reader.header().geometry();
    let mut tally = Tally::new(&reader);
    progress.stage("read delta", None);
    while let Some(extent) = reader.next_extent()? {
        progress.check()?;
        progress.advance(u64::from(extent.head.payload_bytes));
        tally.count(&geometry, &extent);
    }
    tally.finish(&reader)
}

/// The answer of [`verify`].
#[derive(Debug)]
pub enum Verdict {
    /// Yes: the delta is sound, and the base, if one was given, is the right one.
    Sound {
        /// Facts of the delta.
        info: Box<DeltaInfo>,
        /// Extents that could not be decoded because they refer to a base and none was given.
        undecoded: u64,
    },
    /// No: the delta is damaged or not a delta.
    Damaged(Error),
    /// No: the delta is sound as far as it was read, but the base is not the one it was made from.
    WrongBase(Error),
}

/// Checks every sum, decodes every extent, and compares with `base` if one is given.
///
/// # Errors
/// Only what leaves the question open: `Kind::Io`, `Kind::Unsupported`, `Kind::Interrupted`, …
pub fn verify(
    reader: &mut (dyn Read + Send),
    base: Option<&dyn ReadAt>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Verdict> {
    match verify_inner(reader, base, threads, progress) {
        Ok((info, undecoded)) => Ok(Verdict::Sound { info: Box::new(info), undecoded }),
        Err(error) => match error.kind() {
            Kind::Damaged => Ok(Verdict::Damaged(error)),
            Kind::Mismatch => Ok(Verdict::WrongBase(error)),
            _ => Err(error),
        },
    }
}

fn verify_inner(
    reader: &mut (dyn Read + Send),
    base: Option<&dyn ReadAt>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<(DeltaInfo, u64)> {
    let mut reader = Reader::open_any(reader, base.map(|base| (base.size(), base.size())))?;
    let header = reader.header().clone();
    let geometry = header.geometry();
    if let Some(base) = base {
        ensure_base_size(&header, base)?;
    }
    let mut tally = Tally::new(&reader);
    let mut undecoded = 0u64;
    progress.stage("verify delta", None);
    ordered(
        workers(threads),
        // Whole extents: a long zero extent has nothing to decode and carries no base sums.
        || reader.next_extent(),
        || Decoder::new(geometry),
        |decoder, extent| {
            let decoded = verify_extent(decoder, &extent, base)?;
            Ok((extent, decoded))
        },
        |(extent, decoded)| {
            progress.check()?;
            progress.advance(u64::from(extent.head.payload_bytes));
            tally.count(&geometry, &extent);
            undecoded = undecoded.saturating_add(u64::from(!decoded));
            Ok(())
        },
    )?;
    Ok((tally.finish(&reader)?, undecoded))
}

fn ensure_base_size(header: &Header, base: &dyn ReadAt) -> Result<()> {
    match &header.source {
        Some(source) if source.size_bytes != base.size() => Err(Error::new(
            Kind::Mismatch,
            format!("the base has {} bytes, the delta was made from {}", base.size(), source.size_bytes),
        )
        .at_path(base.path())),
        _ => Ok(()),
    }
}

/// Returns false if the extent could not be decoded for want of a base.
fn verify_extent(decoder: &mut Decoder, extent: &ReadExtent, base: Option<&dyn ReadAt>) -> Result<bool> {
    let needs_base = extent.needs_base();
    let mut bytes = Vec::new();
    if let (Some(base), Some(legacy)) = (base, &extent.legacy) {
        bytes.resize(decoder.base_len(extent), 0);
        if !bytes.is_empty() {
            base.read_at(&mut bytes, decoder.offset(extent)).map_err(as_io)?;
        }
        if !legacy.proves(&bytes) {
            return Err(legacy::wrong_base(decoder.offset(extent)).at_path(base.path()));
        }
    } else if let Some(base) = base
        && extent.head.base_crcs
    {
        bytes.resize(decoder.base_len(extent), 0);
        if !bytes.is_empty() {
            base.read_at(&mut bytes, decoder.offset(extent)).map_err(as_io)?;
        }
        if let Some(index) = decoder.base_matches(extent, &bytes).iter().position(|matches| !matches) {
            let chunk = extent.head.chunk.saturating_add(index as u64);
            return Err(wrong_chunk(chunk).at_path(base.path()));
        }
    } else if needs_base {
        return Ok(false);
    }
    if extent.head.kind != ExtentKind::Zero {
        decoder.decode(extent, &bytes)?;
    }
    Ok(true)
}

/// A base that cannot be read leaves the question open, even when its own layer calls it damaged.
fn as_io(error: Error) -> Error {
    if matches!(error.kind(), Kind::Damaged | Kind::Mismatch) {
        Error::new(Kind::Io, format!("cannot read the base: {error}"))
    } else {
        error
    }
}

pub(crate) fn wrong_chunk(chunk: u64) -> Error {
    Error::new(Kind::Mismatch, format!("chunk {chunk} is not what the delta was made from"))
}
