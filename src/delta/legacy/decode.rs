//! Payloads back into data, proven by its sum.

use super::Legacy;
use super::read::sized_hint;
use crate::delta::buffer::Buffer;
use crate::error::{Error, Kind, Result};
use crate::format::legacy_delta::sum;
use crate::format::vcdiff;
use flate2::{Decompress, FlushDecompress, Status};

impl Legacy {
    /// The data of an extent of `len` bytes; `raw` is its payload if that may become the data without a copy.
    /// `base` are the bytes of the source in the same place, as far as it has them.
    pub(crate) fn decode(&self, payload: &[u8], raw: Buffer, base: &[u8], len: usize) -> Result<Buffer> {
        let payload = if raw.is_empty() { payload } else { raw.as_slice() };
        let data = match (self.coding.zlib, self.coding.xdelta) {
            (false, false) if raw.is_empty() => Buffer::copy_of(payload),
            (false, false) => raw,
            (false, true) => self.window(payload, base, len)?,
            (true, false) => inflate(payload, len)?,
            (true, true) => self.window(&inflate(payload, len)?, base, len)?,
        };
        self.ensure_len(data.len(), len)?;
        let found = sum(&data);
        if found != self.target_sum {
            let expected = self.target_sum;
            return Err(Error::damaged(format!("extent decodes to byte sum {found}, expected {expected}")));
        }
        Ok(data)
    }

    fn window(&self, payload: &[u8], base: &[u8], len: usize) -> Result<Buffer> {
        if base.len() != len {
            let what = format!("the source has {} of the {len} bytes that an extent refers to", base.len());
            return Err(sized_hint(Error::new(Kind::Mismatch, what)));
        }
        vcdiff::decode(payload, base, len).map(Buffer::from)
    }

    /// A payload that is right for another size of the target is no damage.
    fn ensure_len(&self, found: usize, len: usize) -> Result<()> {
        let fits = if self.sized { found == len } else { found <= len && found > self.least_bytes };
        if fits {
            return Ok(());
        }
        let what = format!("extent holds {found} bytes, expected {len}");
        match found > self.least_bytes {
            true if self.sized => Err(sized_hint(Error::new(Kind::Mismatch, what))),
            _ => Err(Error::damaged(what)),
        }
    }
}

/// What lies in a zlib stream, with its Adler-32 checked: at most `max` bytes.
fn inflate(payload: &[u8], max: usize) -> Result<Buffer> {
    let mut zlib = Decompress::new(true);
    // One more, so that a stream that holds too much is told from one that is full.
    let mut out = Buffer::unwritten(max.saturating_add(1));
    let status = zlib
        .decompress(payload, &mut out, FlushDecompress::Finish)
        .map_err(|error| Error::damaged(format!("payload is no zlib stream: {error}")))?;
    let made = usize::try_from(zlib.total_out()).unwrap_or(usize::MAX);
    let used = usize::try_from(zlib.total_in()).unwrap_or(usize::MAX);
    if status != Status::StreamEnd || made > max || used != payload.len() {
        let what =
            format!("zlib stream of {} bytes ends early, or holds more than {max} bytes", payload.len());
        return Err(Error::damaged(what));
    }
    out.truncate(made);
    Ok(out)
}
