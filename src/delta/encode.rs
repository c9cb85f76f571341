//! A loaded run as extents: pure, so that the result does not depend on who runs it when.

use super::buffer::Buffer;
use super::load::{Loaded, chunk_crcs, to_usize};
use crate::error::{Error, Kind, Result};
use crate::format::delta::{Encoding, Extent, ExtentKind, Geometry};
use zstd::zstd_safe::{CCtx, CParameter};

/// An extent ready to be written.
pub(crate) struct Encoded {
    /// Header and CRCs.
    pub(crate) head: Buffer,
    /// What comes after them.
    pub(crate) payload: Buffer,
    pub(crate) kind: ExtentKind,
    pub(crate) chunk: u64,
    pub(crate) chunks: u32,
    pub(crate) data_bytes: u64,
    pub(crate) payload_bytes: u64,
}

/// Encodes runs; each worker has its own, for the compressor's memory.
pub(crate) struct Encoder {
    geometry: Geometry,
    encoding: Encoding,
    level: i32,
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

/// Data that shrinks more than this with its base at hand is not tried without: what is left to win is small, and
/// looking for it costs most of the time.
const SETTLED_RATIO: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Same bytes on both sides: left out.
    Same,
    Zero,
    Data,
}

impl Encoder {
    pub(crate) fn new(geometry: Geometry, encoding: Encoding, level: i32) -> Result<Self> {
        let zstd = match encoding {
            Encoding::Raw => None,
            _ => Some(zstd::bulk::Compressor::new(level).map_err(|e| Error::io("cannot prepare zstd", e))?),
        };
        Ok(Self { geometry, encoding, level, zstd })
    }

    /// A run of zeros whose base does not matter.
    pub(crate) fn hole(&self, start: u64, chunks: u32) -> Encoded {
        let data_bytes = self.geometry.result_bytes(start, u64::from(chunks));
        assemble(ExtentKind::Zero, start, chunks, data_bytes, &[], None, Buffer::default())
    }

    /// Splits a run into stretches of one class and encodes each.
    pub(crate) fn run(&mut self, start: u64, chunks: u32, mut loaded: Loaded) -> Result<Vec<Encoded>> {
        let classes: Vec<Class> = (0..chunks).map(|index| self.class(index, &loaded)).collect();
        let mut out = Vec::new();
        let mut first = 0;
        for stretch in classes.chunk_by(|a, b| a == b) {
            let count = u32::try_from(stretch.len()).unwrap_or(u32::MAX);
            match stretch.first() {
                Some(Class::Zero) => out.push(self.zero(start, first, count, &loaded)),
                Some(Class::Data) => out.push(self.data(start, first, count, &mut loaded)?),
                _ => {}
            }
            first = first.saturating_add(count);
        }
        Ok(out)
    }

    fn class(&self, index: u32, loaded: &Loaded) -> Class {
        let new = self.slice(&loaded.new, index, 1);
        if loaded.base.as_ref().is_some_and(|base| self.slice(base, index, 1) == new) {
            Class::Same
        } else if is_zero(new) {
            Class::Zero
        } else {
            Class::Data
        }
    }

    fn zero(&self, start: u64, first: u32, chunks: u32, loaded: &Loaded) -> Encoded {
        let data = self.slice(&loaded.new, first, chunks);
        let base_crcs = part(loaded.base_crcs.as_deref(), first, chunks);
        assemble(
            ExtentKind::Zero,
            chunk(start, first),
            chunks,
            data.len() as u64,
            &[],
            base_crcs,
            Buffer::default(),
        )
    }

    fn data(&mut self, start: u64, first: u32, chunks: u32, loaded: &mut Loaded) -> Result<Encoded> {
        let geometry = self.geometry;
        let data = slice(&geometry, &loaded.new, first, chunks);
        let base = loaded.base.as_deref().map_or(&[][..], |base| slice(&geometry, base, first, chunks));
        let base_crcs = part(loaded.base_crcs.as_deref(), first, chunks);
        let refers = !base.is_empty() && base_crcs.is_some();
        let (plain, with_base) = match self.encoding {
            Encoding::Raw => (false, false),
            Encoding::Zstd => (true, false),
            Encoding::ZstdBase => (!refers, refers),
            Encoding::Best => (true, refers),
        };
        let mut best: (ExtentKind, Option<Vec<u8>>) = (ExtentKind::Raw, None);
        let mut offer = |kind, bytes: Vec<u8>| {
            if bytes.len() < best.1.as_ref().map_or(data.len(), Vec::len) {
                best = (kind, Some(bytes));
            }
        };
        let mut settled = false;
        if with_base {
            let bytes = compress_with_base(data, base, self.level)?;
            settled = bytes.len() < data.len() / SETTLED_RATIO;
            offer(ExtentKind::ZstdBase, bytes);
        }
        if plain
            && !settled
            && let Some(zstd) = &mut self.zstd
        {
            offer(ExtentKind::Zstd, zstd.compress(data).map_err(|e| Error::io("cannot compress", e))?);
        }
        let crcs = chunk_crcs(&geometry, chunks, data);
        let data_bytes = data.len();
        let (kind, payload) = best;
        let payload = match payload {
            Some(payload) => Buffer::from(payload),
            // All of a run goes as it is, without a copy; nothing else of it is looked at any more.
            None if data_bytes == loaded.new.len() => std::mem::take(&mut loaded.new),
            None => Buffer::copy_of(data),
        };
        Ok(assemble(kind, chunk(start, first), chunks, data_bytes as u64, &crcs, base_crcs, payload))
    }

    fn slice<'b>(&self, bytes: &'b [u8], first: u32, chunks: u32) -> &'b [u8] {
        slice(&self.geometry, bytes, first, chunks)
    }
}

fn chunk(start: u64, first: u32) -> u64 {
    start.saturating_add(u64::from(first))
}

/// The part of `bytes` that chunks `first..first + chunks` of a run cover, as far as there are bytes.
fn slice<'b>(geometry: &Geometry, bytes: &'b [u8], first: u32, chunks: u32) -> &'b [u8] {
    let end = geometry.offset(u64::from(first).saturating_add(u64::from(chunks)));
    let end = to_usize(end).min(bytes.len());
    let from = to_usize(geometry.offset(u64::from(first))).min(end);
    bytes.get(from..end).unwrap_or(&[])
}

fn part(crcs: Option<&[u32]>, first: u32, chunks: u32) -> Option<&[u32]> {
    let first = to_usize(u64::from(first));
    crcs.and_then(|crcs| crcs.get(first..first.saturating_add(to_usize(u64::from(chunks)))))
}

/// An extent from its parts. `base_crcs` and `payload` must be what the kind demands.
pub(crate) fn assemble(
    kind: ExtentKind,
    start: u64,
    chunks: u32,
    data_bytes: u64,
    result_crcs: &[u32],
    base_crcs: Option<&[u32]>,
    payload: Buffer,
) -> Encoded {
    let crcs = result_crcs.iter().chain(base_crcs.unwrap_or(&[]));
    let arrays: Vec<u8> = crcs.flat_map(|sum| sum.to_le_bytes()).collect();
    let mut body_crc = crc32fast::Hasher::new();
    body_crc.update(&arrays);
    body_crc.update(&payload);
    let extent = Extent {
        kind,
        chunk: start,
        chunks,
        base_crcs: base_crcs.is_some(),
        payload_bytes: u32::try_from(payload.len()).unwrap_or(u32::MAX),
        body_crc: body_crc.finalize(),
    };
    let head = Buffer::from([&extent.encode()[..], &arrays].concat());
    Encoded { head, kind, chunk: start, chunks, data_bytes, payload_bytes: payload.len() as u64, payload }
}

/// zstd with `base` as prefix. The window is set to hold both, for at low levels it would lose the prefix.
fn compress_with_base(data: &[u8], base: &[u8], level: i32) -> Result<Vec<u8>> {
    let failed = |code: usize| {
        Error::new(Kind::Io, format!("cannot compress: {}", zstd::zstd_safe::get_error_name(code)))
    };
    let span = data.len().saturating_add(base.len()).max(1 << 10);
    let mut context =
        CCtx::try_create().ok_or_else(|| Error::new(Kind::Io, "cannot prepare zstd: out of memory"))?;
    context.set_parameter(CParameter::CompressionLevel(level)).map_err(failed)?;
    let window_log = span.next_power_of_two().ilog2();
    context.set_parameter(CParameter::WindowLog(window_log)).map_err(failed)?;
    if level < 3 {
        // The small tables of low levels would forget most of the prefix before the data begins.
        context.set_parameter(CParameter::HashLog(window_log)).map_err(failed)?;
    }
    context.ref_prefix(base).map_err(failed)?;
    let mut out = Vec::with_capacity(zstd::zstd_safe::compress_bound(data.len()));
    context.compress2(&mut out, data).map_err(failed)?;
    Ok(out)
}

/// True if every byte is zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|piece| ZEROS.starts_with(piece))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_zeros_are_zero() {
        for len in [1, 511, 4096, 4097, 16384] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in [0, len / 2, len - 1] {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{at} of {len}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn a_base_at_full_extent_size_is_used_at_every_level() {
        let mut state = 1u64;
        let base: Vec<u8> = (0..1 << 20)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                state.to_le_bytes()[7]
            })
            .collect();
        let mut data = base.clone();
        data[700_000] ^= 1;
        for level in [1, 3, 9] {
            assert!(compress_with_base(&data, &base, level).unwrap().len() < 10_000, "level {level}");
        }
    }
}
