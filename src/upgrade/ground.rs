//! What is free on the device of an old store, and how the new one is laid into it.

use crate::error::{Error, Kind, Result};
use crate::format::superblock::FIRST_SEGMENT;
use crate::legacy::Store;
use crate::progress::Progress;
use crate::store::switch::saved_bytes;
use crate::store::{InitOptions, Kept, room_beside, segment_bits};
use crate::units::index;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// Unit in which the use of a device is counted: the least segment.
const UNIT_BITS: u32 = 16;
/// More segments than this would make the tables of the store large.
const SEGMENTS_MAX: u64 = 1 << 16;
/// Bytes of tables that checkpoints can surely hold for each byte of a segment: 64 parts of half a segment, of which
/// half are for other tables.
const TABLE_SEGMENTS: u64 = 16;
/// Bytes of a segment in the tables.
const SEGMENT_ROW: u64 = 36;
/// Finest step in which a device is told to grow.
const GROW_STEP: u64 = 1 << 20;

/// No device grows by more.
const GROW_MAX: u64 = 1 << 54;

/// Which parts of a device a store uses.
pub(super) struct Occupied {
    /// A bit for each unit.
    units: Vec<u64>,
}

/// Where the new store goes.
#[derive(Debug, Clone)]
pub struct Ground {
    /// What it leaves alone: the old store, and the place of `saved`.
    pub kept: Kept,
    /// Byte address where the switch saves what it overwrites.
    pub saved: u64,
    /// Bytes of free segments.
    pub free_bytes: u64,
    /// Bytes of chunks that are sure to fit.
    pub room: u64,
}

/// Whether the new store fits beside the old one.
#[derive(Debug, Clone)]
pub struct Fit {
    /// Where it goes, or would go if the device were larger by `grow_bytes`.
    pub ground: Ground,
    /// Bytes of free segments that the device has now, in segments as in `ground`.
    pub free_bytes: u64,
    /// Bytes of such segments that are sure to be enough.
    pub needed_bytes: u64,
    /// Bytes by which the device is too small; 0 if it is not.
    pub grow_bytes: u64,
}

impl Occupied {
    /// What `old` uses of its device.
    pub fn of(old: &Store, progress: &dyn Progress) -> Result<Self> {
        let mut found = Self { units: Vec::new() };
        old.each_used(progress, &mut |range| found.add(range))?;
        Ok(found)
    }

    fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        for unit in range.start >> UNIT_BITS..=(range.end - 1) >> UNIT_BITS {
            let at = index(unit / 64);
            if at >= self.units.len() {
                self.units.resize(at + 1, 0);
            }
            if let Some(word) = self.units.get_mut(at) {
                *word |= 1 << (unit % 64);
            }
        }
    }

    /// The segments of 2^`bits` bytes, of `count` in all, that hold anything.
    fn segments(&self, bits: u32, count: u32) -> BTreeSet<u32> {
        let mut found = BTreeSet::new();
        for (at, word) in (0u64..).zip(&self.units) {
            for bit in (0..64).filter(|bit| word >> bit & 1 == 1) {
                let byte = (at * 64 + bit) << UNIT_BITS;
                let segment = byte.checked_sub(FIRST_SEGMENT).map(|byte| u32::try_from(byte >> bits));
                found.extend(segment.and_then(|segment| segment.ok()).filter(|segment| *segment < count));
            }
        }
        found
    }

    /// How a new store goes into a device of `size` bytes, with segments of 2^`bits` bytes.
    fn ground(&self, size: u64, bits: u32, options: &InitOptions) -> Result<Option<Ground>> {
        let count = u32::try_from(size.saturating_sub(FIRST_SEGMENT) >> bits).unwrap_or(u32::MAX);
        let mut kept = self.segments(bits, count);
        let free = (u64::from(count) - kept.len() as u64) << bits;
        let Some(last) = (0..count).rev().find(|segment| !kept.contains(segment)) else { return Ok(None) };
        debug_assert!(saved_bytes(options.block_size) <= 1 << bits);
        kept.insert(last);
        let kept = Kept { segment_bits: bits, segments: Arc::new(kept) };
        let Some(room) = room_beside(size, options, &kept)? else { return Ok(None) };
        let saved = FIRST_SEGMENT + (u64::from(last) << bits);
        Ok(Some(Ground { kept, saved, free_bytes: free, room }))
    }

    /// How it goes into a device of `size` bytes best: as a store of its own would, if `wanted` bytes of chunks fit
    /// then, else with the most room.
    fn best(&self, size: u64, options: &InitOptions, wanted: u64) -> Result<Option<Ground>> {
        let mut best: Option<Ground> = None;
        let usual = *segment_bits(size, options).end();
        for bits in segment_bits(size, options).rev() {
            let count = size >> bits;
            let is_many = count > SEGMENTS_MAX || count * SEGMENT_ROW > TABLE_SEGMENTS << bits;
            if is_many && bits != usual {
                break;
            }
            let Some(found) = self.ground(size, bits, options)? else { continue };
            if best.as_ref().is_none_or(|best| found.room > best.room) {
                best = Some(found);
            }
            if best.as_ref().is_some_and(|best| best.room >= wanted) {
                break;
            }
        }
        Ok(best)
    }

    /// Where `wanted` bytes of chunks go on a device of `size` bytes, and by how much that must grow for it.
    pub fn fit(&self, size: u64, options: &InitOptions, wanted: u64) -> Result<Fit> {
        let fits = |size: u64| Ok(self.best(size, options, wanted)?.filter(|found| found.room >= wanted));
        if let Some(ground) = fits(size)? {
            let needed_bytes = needed(options, ground.kept.segment_bits, wanted)?.min(ground.free_bytes);
            return Ok(Fit { free_bytes: ground.free_bytes, ground, needed_bytes, grow_bytes: 0 });
        }
        // Twice as much each time until it is enough, then half the way back.
        let (mut little, mut enough) = (0, GROW_STEP);
        let mut found = loop {
            match fits(size.saturating_add(enough))? {
                Some(found) => break found,
                None if enough > GROW_MAX => {
                    return Err(Error::new(Kind::NoSpace, "no device is large enough"));
                }
                None => (little, enough) = (enough, enough.saturating_mul(2)),
            }
        };
        while enough - little > GROW_STEP {
            let middle = little + (enough - little) / 2 / GROW_STEP * GROW_STEP;
            let middle = middle.max(little + GROW_STEP);
            match fits(size + middle)? {
                Some(ground) => (enough, found) = (middle, ground),
                None => little = middle,
            }
        }
        let bits = found.kept.segment_bits;
        let count = u32::try_from(size.saturating_sub(FIRST_SEGMENT) >> bits).unwrap_or(u32::MAX);
        let free = (u64::from(count) - self.segments(bits, count).len() as u64) << bits;
        let needed_bytes = needed(options, bits, wanted)?.max(free + (1 << bits));
        Ok(Fit { ground: found, free_bytes: free, needed_bytes, grow_bytes: enough })
    }
}

/// Bytes of free segments of 2^`bits` bytes each in which `wanted` bytes of chunks are sure to fit, and what the switch
/// saves: asks an empty store that has just those.
fn needed(options: &InitOptions, bits: u32, wanted: u64) -> Result<u64> {
    let kept = Kept { segment_bits: bits, ..Kept::default() };
    let holds = |segments: u64| {
        let size = FIRST_SEGMENT.saturating_add(segments.saturating_mul(1 << bits));
        Ok(room_beside(size, options, &kept)?.is_some_and(|room| room >= wanted))
    };
    let (mut little, mut enough) = (0, 1);
    while !holds(enough)? {
        (little, enough) = (enough, enough * 2);
    }
    while enough - little > 1 {
        let middle = little + (enough - little) / 2;
        if holds(middle)? { enough = middle } else { little = middle }
    }
    Ok((enough + 1) << bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> InitOptions {
        InitOptions {
            chunk_size: 4096,
            block_size: 4096,
            origin_path: "/origin".into(),
            origin_size: 1 << 20,
            now_secs: 1,
        }
    }

    fn occupied(ranges: &[Range<u64>]) -> Occupied {
        let mut found = Occupied { units: Vec::new() };
        ranges.iter().cloned().for_each(|range| found.add(range));
        found
    }

    #[test]
    fn a_segment_with_one_byte_of_the_old_store_is_kept() {
        let mib = 1u64 << 20;
        let found = occupied(&[0..8192, mib - 1..mib, 2 * mib..2 * mib + 1, 3 * mib - 1..3 * mib + 1, 9..9]);
        assert_eq!(found.segments(16, 1000).into_iter().collect::<Vec<_>>(), [16, 31, 32]);
        assert_eq!(found.segments(20, 1000).into_iter().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(found.segments(20, 2).into_iter().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn small_segments_are_taken_where_the_usual_ones_do_not_fit() {
        let (mib, size) = (1u64 << 20, 256u64 << 20);
        let usual = occupied(&[0..4096, 4096..8192]).fit(size, &options(), 10 * mib).unwrap();
        assert_eq!((usual.grow_bytes, usual.ground.kept.segment_bits), (0, 21));
        // Something in each MiB.
        let ranges: Vec<_> = (0..256).map(|at| at * mib + 5000..at * mib + 5001).collect();
        let small = occupied(&ranges).fit(size, &options(), 100 * mib).unwrap();
        assert_eq!(small.grow_bytes, 0);
        assert!(small.ground.kept.segment_bits < 20 && small.ground.room >= 100 * mib);
        let kept = &small.ground.kept.segments;
        assert!(ranges.iter().filter(|range| range.start >= mib).all(|range| {
            kept.contains(&u32::try_from((range.start - mib) >> small.ground.kept.segment_bits).unwrap())
        }));
    }

    #[test]
    fn a_device_on_which_no_store_is_possible_must_grow_even_for_nothing() {
        let old = occupied(&[0..4096, 4096..8192]);
        let fit = old.fit(2 << 20, &options(), 0).unwrap();
        assert!(fit.grow_bytes > 0);
        assert_eq!(old.fit((2 << 20) + fit.grow_bytes, &options(), 0).unwrap().grow_bytes, 0);
    }

    #[test]
    fn what_a_device_must_grow_is_enough_and_hardly_more() {
        let (mib, size) = (1u64 << 20, 64u64 << 20);
        let full = occupied(&[0..8192, 8192..size]);
        for wanted in [mib, 37 * mib, 400 * mib] {
            let fit = full.fit(size, &options(), wanted).unwrap();
            assert_eq!(fit.free_bytes, 0);
            assert_eq!(full.fit(size + fit.grow_bytes, &options(), wanted).unwrap().grow_bytes, 0);
            let less = full.fit(size + fit.grow_bytes - mib, &options(), wanted).unwrap();
            assert!(less.grow_bytes > 0, "{wanted}");
            assert!(fit.grow_bytes < wanted * 2 + 16 * mib, "{} for {wanted}", fit.grow_bytes);
        }
    }
}
