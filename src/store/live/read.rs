//! Reading snapshots while the origin changes.
//!
//! A reader of a snapshot that finds a chunk nowhere in the store reads the origin and looks again: if the chunk was
//! preserved in the meantime, that counts. What it fetches from the store counts if the index still says so afterwards.

use super::{Live, Shared};
use crate::error::{Error, Kind, Result};
use crate::format::run::Value;
use crate::store::view::fetch;
use crate::store::work::Operation;
use crate::units::{Epoch, index};

/// Bytes that are read at a time: bounds memory.
const SLICE: u64 = 4 << 20;

impl Live {
    /// Reads snapshot `id` from byte `offset`.
    ///
    /// # Errors
    /// `Kind::NotFound` if there is none; `Kind::Usage` past its end; `Kind::Damaged` for what is lost; `Kind::Io`.
    pub fn read_snapshot(&self, id: Epoch, offset: u64, buf: &mut [u8]) -> Result<()> {
        let _running = self.shared.work.begin(Operation::ReadSnapshot(buf.len()));
        let mut at = offset;
        for slice in buf.chunks_mut(index(SLICE)) {
            self.read_slice(id, at, slice)?;
            at += slice.len() as u64;
        }
        Ok(())
    }

    fn read_slice(&self, id: Epoch, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut known = self.shared.places(id, offset, buf.len())?;
        let mut outdated = vec![true; known.len()];
        // A chunk changes its place once for each time that it is preserved or moved, so this ends.
        loop {
            let outcome = self.shared.fetch_places(&known, &outdated, offset, buf);
            let now = self.shared.places(id, offset, buf.len())?;
            for (outdated, (old, new)) in outdated.iter_mut().zip(known.iter().zip(&now)) {
                *outdated = old != new;
            }
            if !outdated.contains(&true) {
                return outcome;
            }
            known = now;
            // After an error nothing says which of the chunks were read.
            if outcome.is_err() {
                outdated.fill(true);
            }
        }
    }

    /// The parts of `ranges` of bytes, of snapshot `id`, that the origin no longer has.
    ///
    /// # Errors
    /// `Kind::NotFound` if the snapshot is gone; `Kind::Io`.
    pub fn preserved(&self, id: Epoch, ranges: &[(u64, u64)]) -> Result<Vec<(u64, u64)>> {
        let core = self.shared.core();
        core.view.endpoint(id)?;
        let bits = core.view.state.sb.chunk_bits;
        let mut found: Vec<(u64, u64)> = Vec::new();
        for (start, end) in ranges.iter().filter(|(start, end)| start < end) {
            for chunk in start >> bits..=(end - 1) >> bits {
                if core.view.find(id.0, chunk)?.is_none() {
                    continue;
                }
                let part = ((chunk << bits).max(*start), ((chunk + 1) << bits).min(*end));
                match found.last_mut() {
                    Some(last) if last.1 == part.0 => last.1 = part.1,
                    _ => found.push(part),
                }
            }
        }
        Ok(found)
    }
}

impl Shared {
    /// Where the chunks of a range of snapshot `id` are preserved; `None` where the origin still has them.
    fn places(&self, id: Epoch, offset: u64, length: usize) -> Result<Vec<Option<Value>>> {
        let core = self.core();
        let size = core.view.endpoint(id)?.size_bytes;
        let end = offset.checked_add(length as u64).filter(|end| *end <= size).ok_or_else(|| {
            Error::new(
                Kind::Usage,
                format!("{length} bytes at {offset} end past the snapshot's {size} bytes"),
            )
        })?;
        let bits = core.view.state.sb.chunk_bits;
        (offset >> bits..end.div_ceil(1 << bits)).map(|chunk| core.view.find(id.0, chunk)).collect()
    }

    /// Fills those chunks of `buf`, which begins at byte `offset`, that are `wanted`.
    fn fetch_places(
        &self,
        places: &[Option<Value>],
        wanted: &[bool],
        offset: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        let (chunk_size, bits) = {
            let core = self.core();
            (core.view.state.sb.chunk_size(), core.view.state.sb.chunk_bits)
        };
        let end = offset + buf.len() as u64;
        let range = |chunk: u64| (chunk << bits).max(offset)..((chunk + 1) << bits).min(end);
        let mut list = (offset >> bits..).zip(places.iter().zip(wanted)).peekable();
        while let Some((chunk, (place, wanted))) = list.next() {
            if !wanted {
                continue;
            }
            let mut bytes = range(chunk);
            let Some(value) = place else {
                // What the origin has is read in one go.
                while let Some((next, _)) = list.next_if(|(_, (place, wanted))| place.is_none() && **wanted) {
                    bytes.end = range(next).end;
                }
                let target = &mut buf[index(bytes.start - offset)..index(bytes.end - offset)];
                self.origin.read_at(target, bytes.start)?;
                continue;
            };
            let found = fetch(self.store.as_ref(), chunk_size, value)?;
            let target = &mut buf[index(bytes.start - offset)..index(bytes.end - offset)];
            let have = found.get(index(bytes.start - (chunk << bits))..).unwrap_or(&[]);
            let length = have.len().min(target.len());
            target[..length].copy_from_slice(&have[..length]);
            target[length..].fill(0);
        }
        Ok(())
    }
}
