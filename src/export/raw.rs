//! The bytes of a point, zeros left out where the output lets them be skipped.

use super::bmap::BlockMap;
use super::read::each_span;
use super::spans::Spans;
use crate::error::{Error, Result};
use crate::point::{Point, PointSource};
use crate::progress::Progress;
use std::io::{Seek, SeekFrom, Write};

/// Zeros are skipped in units of a file system's blocks.
pub(super) const HOLE_BYTES: usize = 4096;

/// How to write a raw image.
pub struct RawOptions<'a> {
    /// The output is empty, can seek, and what is skipped reads as zeros.
    pub sparse: bool,
    /// Filled with the blocks that are not zero.
    pub map: Option<&'a mut BlockMap>,
}

/// Writes the bytes of `point`. A sparse output may end before the end of the point: the caller sets its size.
///
/// # Errors
/// Of the source, of `out`, `Kind::Interrupted`.
pub fn export_raw<W: Write + Seek>(
    source: &dyn PointSource,
    point: &Point,
    mut options: RawOptions<'_>,
    out: &mut W,
    progress: &dyn Progress,
) -> Result<()> {
    let size = point.size_bytes;
    let changes = source.changed(None, point.id)?;
    let spans = Spans::new(changes, source.chunk_bits(), HOLE_BYTES as u64, size, size);
    progress.stage("exporting", Some(size));
    let mut written = 0;
    each_span(source, point.id, spans, progress, |offset, bytes| {
        fill_gap(out, offset.saturating_sub(written), options.sparse, progress)?;
        written = offset.saturating_add(bytes.len() as u64);
        let mut at = offset;
        write_runs(out, bytes, options.sparse, |run| {
            if let (Some(map), Some(data)) = (&mut options.map, run.data) {
                map.data(at, data)?;
            }
            at = at.saturating_add(run.len as u64);
            Ok(())
        })
    })?;
    fill_gap(out, size.saturating_sub(written), options.sparse, progress)
}

/// A stretch of zeros or of data.
pub(super) struct Run<'a> {
    len: usize,
    /// `None` for zeros.
    data: Option<&'a [u8]>,
}

/// Writes `bytes`, skipping blocks of zeros if `sparse`, and tells `each` of every run.
pub(super) fn write_runs<W: Write + Seek>(
    out: &mut W,
    bytes: &[u8],
    sparse: bool,
    mut each: impl FnMut(Run<'_>) -> Result<()>,
) -> Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let (zeros, len) = run_length(rest);
        let (now, later) = rest.split_at(len);
        if zeros && sparse {
            skip(out, len as u64)?;
        } else {
            out.write_all(now).map_err(cannot_write)?;
        }
        each(Run { len, data: (!zeros).then_some(now) })?;
        rest = later;
    }
    Ok(())
}

fn fill_gap<W: Write + Seek>(
    out: &mut W,
    mut bytes: u64,
    sparse: bool,
    progress: &dyn Progress,
) -> Result<()> {
    if sparse {
        return skip(out, bytes);
    }
    let zeros = vec![0; 64 << 10];
    while bytes > 0 {
        progress.check()?;
        let len = usize::try_from(bytes).unwrap_or(usize::MAX).min(zeros.len());
        out.write_all(zeros.get(..len).unwrap_or(&zeros)).map_err(cannot_write)?;
        bytes = bytes.saturating_sub(len as u64);
    }
    Ok(())
}

fn skip<W: Seek>(out: &mut W, bytes: u64) -> Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    let by = i64::try_from(bytes).unwrap_or(i64::MAX);
    out.seek(SeekFrom::Current(by)).map(|_| ()).map_err(|error| Error::io("cannot seek", error))
}

pub(super) fn cannot_write(error: std::io::Error) -> Error {
    Error::io("cannot write", error)
}

/// How long the bytes go on as they begin: in blocks of zeros, or not.
fn run_length(bytes: &[u8]) -> (bool, usize) {
    let mut blocks = bytes.chunks(HOLE_BYTES).map(|block| (is_zero(block), block.len()));
    let Some((zeros, first)) = blocks.next() else { return (false, 0) };
    let more: usize = blocks.take_while(|block| block.0 == zeros).map(|block| block.1).sum();
    (zeros, first.saturating_add(more))
}

/// True if every byte is zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];
    bytes.chunks(HOLE_BYTES).all(|piece| ZEROS.starts_with(piece))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_whose_last_byte_is_set_is_no_hole() {
        let mut bytes = vec![0; 3 * HOLE_BYTES + 10];
        bytes[2 * HOLE_BYTES - 1] = 1;
        assert_eq!(run_length(&bytes), (true, HOLE_BYTES));
        assert_eq!(run_length(&bytes[HOLE_BYTES..]), (false, HOLE_BYTES));
        assert_eq!(run_length(&bytes[2 * HOLE_BYTES..]), (true, HOLE_BYTES + 10));
    }
}
