//! Reading many chunks at once, in the order of the device.

use super::units::{Place, Units, Want};
use crate::block::ReadAt;
use crate::error::Result;
use crate::legacy::Store;
use crate::units::index;
use std::ops::Range;

/// Bytes of chunks in a window; a single chunk is never more.
const WINDOW_BYTES: usize = 4 << 20;
/// Chunks in a window, however little of them there is.
const WINDOW_WANTS: usize = 8 << 10;
/// Longest read.
const RUN_BYTES: usize = 1 << 20;

/// Chunks, and later their bytes.
pub(super) struct Window {
    pub wants: Vec<Want>,
    bytes: Vec<u8>,
    /// Where in `bytes` each chunk is; empty if it could not be read.
    spots: Vec<Range<usize>>,
}

/// A part of a chunk on a device.
struct Piece {
    place: Place,
    /// Which chunk of the window.
    want: usize,
    /// Where it belongs in the window.
    spot: Range<usize>,
}

impl Window {
    /// The next chunks of `units`; `None` after the last.
    pub fn next(units: &mut Units<'_>) -> Option<Self> {
        let (mut wants, mut spots, mut end) = (Vec::new(), Vec::new(), 0);
        while end < WINDOW_BYTES && wants.len() < WINDOW_WANTS {
            let Some(want) = units.next() else { break };
            let begin = end;
            if !want.pieces.is_empty() {
                end += index(u64::from(want.length));
            }
            spots.push(begin..end);
            wants.push(want);
        }
        (!wants.is_empty()).then_some(Self { wants, bytes: Vec::new(), spots })
    }

    /// Bytes of its chunks.
    pub fn len(&self) -> u64 {
        self.spots.iter().map(|spot| spot.len() as u64).sum()
    }

    /// Each chunk with its bytes; none if it is lost.
    pub fn chunks(&self) -> impl Iterator<Item = (&Want, &[u8])> {
        self.wants
            .iter()
            .zip(&self.spots)
            .map(|(want, spot)| (want, self.bytes.get(spot.clone()).unwrap_or(&[])))
    }

    /// Reads all chunks, whose pieces have 2^`piece_bits` bytes. What cannot be read is lost.
    pub fn read(&mut self, store: &Store, origin: &dyn ReadAt, piece_bits: u32) {
        self.bytes = vec![0; self.spots.last().map_or(0, |spot| spot.end)];
        let mut pieces = self.pieces(1 << piece_bits);
        pieces.sort_unstable_by_key(|piece| piece.place);
        for run in pieces.chunk_by(follows) {
            let mut rest = run;
            while !rest.is_empty() {
                let count = (RUN_BYTES >> piece_bits).clamp(1, rest.len());
                let (now, after) = rest.split_at(count);
                rest = after;
                if self.read_run(store, origin, now).is_err() {
                    // One bad place must not cost its neighbours.
                    for piece in now {
                        if self.read_run(store, origin, std::slice::from_ref(piece)).is_err() {
                            self.spots[piece.want] = 0..0;
                        }
                    }
                }
            }
        }
        for (want, spot) in self.wants.iter_mut().zip(&self.spots) {
            if spot.is_empty() {
                want.pieces.clear();
            }
        }
    }

    fn pieces(&self, size: usize) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for (number, (want, whole)) in self.wants.iter().zip(&self.spots).enumerate() {
            for (at, place) in want.pieces.iter().enumerate() {
                let start = whole.start + at * size;
                let spot = start..(start + size).min(whole.end);
                if matches!(place, Place::Data(_) | Place::Origin(_)) {
                    pieces.push(Piece { place: *place, want: number, spot });
                }
            }
        }
        pieces
    }

    /// Reads pieces that lie one after the other.
    fn read_run(&mut self, store: &Store, origin: &dyn ReadAt, run: &[Piece]) -> Result<()> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(()) };
        let (device, offset) = match first.place {
            Place::Data(offset) => (store.data(), offset),
            Place::Origin(offset) => (origin, offset),
            _ => return Ok(()),
        };
        let length: usize = run.iter().map(|piece| piece.spot.len()).sum();
        if last.spot.end.checked_sub(first.spot.start) == Some(length)
            && run.windows(2).all(|pair| pair[0].spot.end == pair[1].spot.start)
        {
            return device.read_at(&mut self.bytes[first.spot.start..last.spot.end], offset);
        }
        let mut bytes = vec![0; length];
        device.read_at(&mut bytes, offset)?;
        let mut rest = bytes.as_slice();
        for piece in run {
            let (now, after) = rest.split_at(piece.spot.len());
            self.bytes[piece.spot.clone()].copy_from_slice(now);
            rest = after;
        }
        Ok(())
    }
}

/// True if `b` lies right after `a` on the same device.
fn follows(a: &Piece, b: &Piece) -> bool {
    let length = a.spot.len() as u64;
    match (a.place, b.place) {
        (Place::Data(a), Place::Data(b)) | (Place::Origin(a), Place::Origin(b)) => a + length == b,
        _ => false,
    }
}
