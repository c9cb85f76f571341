//! The data of an extent, never believed before its own sums agree.

use super::buffer::Buffer;
use super::load::{chunk_crcs, to_usize};
use super::read::{ReadExtent, span};
use crate::error::{Error, Result};
use crate::format::delta::{ExtentKind, Geometry};
use zstd::zstd_safe::DCtx;

/// Decodes extents; each worker has its own, for the decompressor's memory.
pub(crate) struct Decoder {
    geometry: Geometry,
    zstd: zstd::bulk::Decompressor<'static>,
}

impl Decoder {
    pub(crate) fn new(geometry: Geometry) -> Result<Self> {
        let zstd = zstd::bulk::Decompressor::new().map_err(|e| Error::io("cannot prepare zstd", e))?;
        Ok(Self { geometry, zstd })
    }

    /// The result of `extent`; `base` are the bytes of the source it may refer to.
    ///
    /// The extent must not be longer than the limit for extents with data.
    pub(crate) fn decode(&mut self, extent: &ReadExtent, base: &[u8]) -> Result<Buffer> {
        let payload = match extent.head.kind {
            ExtentKind::Raw => extent.payload.clone(),
            _ => Buffer::default(),
        };
        self.decode_owned(extent, payload, base)
    }

    /// As [`Decoder::decode`]; `raw` is the payload of a raw extent, which becomes the result without a copy.
    pub(crate) fn decode_owned(&mut self, extent: &ReadExtent, raw: Buffer, base: &[u8]) -> Result<Buffer> {
        let at = |error: Error| error.at_offset(extent.offset_bytes);
        let (_, len) = span(&self.geometry, &extent.head);
        if let Some(legacy) = &extent.legacy {
            return legacy.decode(&extent.payload, raw, base, len).map_err(at);
        }
        let mut data = match extent.head.kind {
            ExtentKind::Zero => return Ok(Buffer::zeroes(len)),
            ExtentKind::Raw => raw,
            _ => Buffer::unwritten(len),
        };
        match extent.head.kind {
            ExtentKind::Zero | ExtentKind::Raw => {}
            ExtentKind::Zstd => {
                let got = self.zstd.decompress_to_buffer(&extent.payload, data.as_mut_slice());
                ensure_len(got.map_err(|e| e.to_string()), len).map_err(at)?;
            }
            ExtentKind::ZstdBase => {
                let got = decompress_with_base(&extent.payload, base, &mut data);
                ensure_len(got, len).map_err(at)?;
            }
        }
        let crcs = chunk_crcs(&self.geometry, extent.head.chunks, &data);
        match extent.result_crcs.iter().zip(&crcs).position(|(expected, found)| expected != found) {
            None if data.len() == len => Ok(data),
            None => Err(at(Error::damaged(format!("extent holds {} bytes, expected {len}", data.len())))),
            Some(index) => Err(at(Error::damaged(format!(
                "chunk {} decodes to CRC {:08x}, expected {:08x}",
                extent.head.chunk.saturating_add(index as u64),
                crcs.get(index).copied().unwrap_or(0),
                extent.result_crcs.get(index).copied().unwrap_or(0)
            )))),
        }
    }

    /// True if `base` is what the extent's base CRCs tell of, chunk by chunk.
    pub(crate) fn base_matches(&self, extent: &ReadExtent, base: &[u8]) -> Vec<bool> {
        let crcs = chunk_crcs(&self.geometry, extent.head.chunks, base);
        extent.base_crcs.iter().zip(crcs).map(|(expected, found)| *expected == found).collect()
    }

    /// Byte offset of the extent on the volume.
    pub(crate) fn offset(&self, extent: &ReadExtent) -> u64 {
        self.geometry.offset(extent.head.chunk)
    }

    /// Bytes of the source that the extent may refer to.
    pub(crate) fn base_len(&self, extent: &ReadExtent) -> usize {
        to_usize(self.geometry.base_bytes(extent.head.chunk, u64::from(extent.head.chunks)))
    }
}

fn ensure_len(got: std::result::Result<usize, String>, expected: usize) -> Result<()> {
    match got {
        Ok(len) if len == expected => Ok(()),
        Ok(len) => Err(Error::damaged(format!("extent decodes to {len} bytes, expected {expected}"))),
        Err(reason) => Err(Error::damaged(format!("extent does not decode: {reason}"))),
    }
}

fn decompress_with_base(payload: &[u8], base: &[u8], data: &mut [u8]) -> std::result::Result<usize, String> {
    let failed = |code: usize| zstd::zstd_safe::get_error_name(code).to_owned();
    let mut context = DCtx::try_create().ok_or_else(|| "out of memory".to_owned())?;
    context.ref_prefix(base).map_err(failed)?;
    context.decompress(data, payload).map_err(failed)
}
