//! What a repair decides about a superblock of 2008, beside it until the superblock says the same.
//!
//! The superblock is larger than a sector, so a crash can leave half of it. A repair therefore writes first what the
//! superblock becomes into bytes of the same block that the original left zero and kept, and then the superblock. From
//! the first of these writes on its decision counts, as long as nobody else has changed the superblock.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::superblock::{RawSuperblock, RawSuperblock04, Release};
use crate::format::field::raw_struct;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Where the decision lies, in bytes from the superblock on.
pub const OFFSET: usize = 2048;
/// Bytes of the decision.
pub const SIZE: usize = 2048;
/// First eight bytes.
const MAGIC: [u8; 8] = *b"ddsnapfx";
/// Bytes of a superblock that carry meaning.
const IMAGE: usize = 1712;
/// The parts of it that lie in one sector each: begin, end.
const PARTS: [(usize, usize); 4] = [(0, 512), (512, 1024), (1024, 1536), (1536, IMAGE)];

raw_struct! {
    /// What a repair makes of the superblock, 2048 bytes behind its begin.
    pub struct RawDecision, "Store of 2008: what a repair decided", 2048 {
        magic: [u8; 8], "bytes", "`ddsnapfx`";
        crc: U32, "crc32", "of the 2048 bytes, this field as 0";
        before: [U32; 4], "crc32", "of each sector of the superblock before the repair, the last one up to byte 1712";
        after: [u8; 1712], "bytes", "the superblock after it";
        unused: [u8; 308], "bytes", "zero";
    }
}

/// What a repair changes in a superblock. Everything else stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// Sector of the root.
    pub root: u64,
    /// Index levels above the leaves.
    pub levels: u32,
    /// Number of the next commit.
    pub sequence: u32,
    /// Journal block that is written next.
    pub journal_next: u32,
    /// Free metadata blocks.
    pub metadata_free: u64,
    /// Free data chunks of a separate store, else 0.
    pub data_free: u64,
    /// Place in the table of a snapshot that is no more.
    pub gone: Option<usize>,
}

/// Sets fields that both layouts have; a cursor behind the end of its space goes back to its begin.
macro_rules! set_fields {
    ($raw:expr, $to:expr) => {{
        let (raw, to) = ($raw, $to);
        raw.root.set(to.root);
        raw.levels.set(to.levels);
        raw.sequence.set(to.sequence);
        raw.journal_next.set(to.journal_next);
        raw.flags.set(0);
        raw.origin_offset.set(0);
        raw.metadata.free.set(to.metadata_free);
        raw.data.free.set(to.data_free);
        for space in [&mut raw.metadata, &mut raw.data] {
            if space.last_alloc.get() >= space.chunks.get() {
                space.last_alloc.set(0);
            }
        }
        let count = usize::try_from(raw.snapshots.get()).unwrap_or(usize::MAX);
        let later = to.gone.and_then(|gone| raw.table.get_mut(gone..count)).filter(|later| !later.is_empty());
        if let Some(later) = later {
            later.rotate_left(1);
            raw.snapshots.set(raw.snapshots.get().saturating_sub(1));
        }
    }};
}

/// Changes the superblock in `block`, which has the layout of `release`, as a store that was shut down cleanly has it.
pub fn settle(block: &mut [u8], release: Release, to: &Settled) {
    match release {
        Release::R10 => {
            if let Ok((raw, _)) = RawSuperblock::mut_from_prefix(block) {
                set_fields!(raw, to);
            }
        }
        Release::R04 => {
            if let Ok((raw, _)) = RawSuperblock04::mut_from_prefix(block) {
                set_fields!(raw, to);
            }
        }
    }
}

fn part(block: &[u8], (begin, end): (usize, usize)) -> &[u8] {
    block.get(begin..end).unwrap_or(&[])
}

/// The decision that the superblock in `before` becomes the one in `after`, as it is written.
#[must_use]
pub fn decide(before: &[u8], after: &[u8]) -> Vec<u8> {
    let mut raw = RawDecision::new_zeroed();
    raw.magic = MAGIC;
    for (crc, place) in raw.before.iter_mut().zip(PARTS) {
        crc.set(crc32fast::hash(part(before, place)));
    }
    for (to, from) in raw.after.iter_mut().zip(after) {
        *to = *from;
    }
    raw.crc.set(crc32fast::hash(raw.as_bytes()));
    raw.as_bytes().to_vec()
}

/// The superblock that was decided on, if `block`, read at its place, has a decision that counts: one that is whole,
/// beside a superblock whose every sector is as it was before the decision or as it is after it.
#[must_use]
pub fn decided(block: &[u8]) -> Option<Vec<u8>> {
    let mut raw = RawDecision::read_from_prefix(block.get(OFFSET..)?).ok()?.0;
    let crc = raw.crc.get();
    raw.crc.set(0);
    if raw.magic != MAGIC || crc32fast::hash(raw.as_bytes()) != crc {
        return None;
    }
    let counts = PARTS.into_iter().zip(raw.before).all(|(place, before)| {
        let now = part(block, place);
        now == part(&raw.after, place) || crc32fast::hash(now) == before.get()
    });
    let mut after = block.to_vec();
    after.get_mut(..IMAGE)?.copy_from_slice(&raw.after);
    counts.then_some(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A superblock with something in each sector, and the same after a repair.
    fn sample() -> (Vec<u8>, Vec<u8>) {
        let mut before: Vec<u8> = (0..4096u32).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
        before[OFFSET..].fill(0);
        RawSuperblock::mut_from_prefix(&mut before).unwrap().0.snapshots.set(3);
        let mut after = before.clone();
        let to = Settled {
            root: 1,
            levels: 2,
            sequence: 3,
            journal_next: 4,
            metadata_free: 5,
            data_free: 6,
            gone: Some(1),
        };
        settle(&mut after, Release::R10, &to);
        (before, after)
    }

    #[test]
    fn a_decision_counts_beside_every_mixture_of_old_and_new_sectors() {
        let (before, after) = sample();
        let decision = decide(&before, &after);
        for mixture in 0..16 {
            let mut block = before.clone();
            block[OFFSET..].copy_from_slice(&decision);
            for (bit, (begin, end)) in PARTS.into_iter().enumerate() {
                if mixture >> bit & 1 == 1 {
                    block[begin..end].copy_from_slice(&after[begin..end]);
                }
            }
            assert_eq!(decided(&block).unwrap()[..IMAGE], after[..IMAGE]);
            block[700] ^= 1;
            assert_eq!(decided(&block), None, "somebody else changed the superblock");
        }
    }

    #[test]
    fn a_decision_with_any_wrong_byte_is_none() {
        let (before, after) = sample();
        let mut block = before.clone();
        block[OFFSET..].copy_from_slice(&decide(&before, &after));
        for at in OFFSET..4096 {
            block[at] ^= 0x10;
            assert_eq!(decided(&block), None, "byte {at}");
            block[at] ^= 0x10;
        }
        assert!((0..4096).all(|size| decided(&block[..size]).is_none()));
        assert!(decided(&block).is_some() && decided(&before).is_none());
    }

    #[test]
    fn a_snapshot_that_is_gone_is_taken_out_of_the_table() {
        let (before, after) = sample();
        let (before, after) = (
            RawSuperblock::read_from_prefix(&before).unwrap().0,
            RawSuperblock::read_from_prefix(&after).unwrap().0,
        );
        assert_eq!((before.snapshots.get(), after.snapshots.get()), (3, 2));
        assert_eq!(after.table[0].tag, before.table[0].tag);
        assert_eq!(after.table[1].tag, before.table[2].tag);
        assert_eq!((after.flags.get(), after.root.get(), after.metadata.free.get()), (0, 1, 5));
    }
}
