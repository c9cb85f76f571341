//! What a damaged index still tells: every block of it proves itself by its own checksum, number and position.

use super::workers;
use crate::block::ReadAt;
use crate::error::{Kind, Result};
use crate::format::checkpoint::{Piece, Run};
use crate::format::run::{BLOCK_SIZE, IndexEntry, Key, decode_directory, decode_orphan, run_of};
use crate::units::index;
use std::borrow::Cow;

/// A range of keys about which a run tells nothing: from the first, up to but without the last (`None`: to the end).
pub type Blank = (Key, Option<Key>);

/// Pieces in memory at a time: 6 MiB of entries.
const PIECES_AT_ONCE: usize = 8;

/// What is left of a piece.
#[derive(Default)]
struct Left {
    entries: Vec<IndexEntry>,
    blanks: Vec<Blank>,
}

/// Calls `each` with the entries of every sound block of `run`, in order; returns the ranges of keys whose blocks
/// are lost.
///
/// # Errors
/// `Kind::Interrupted` and the like; what `each` says. Damage and unreadable blocks are the answer, not an error.
pub fn salvage(
    device: &dyn ReadAt,
    run: &Run,
    each: &mut dyn FnMut(&[IndexEntry]) -> Result<()>,
) -> Result<Vec<Blank>> {
    let mut blanks = Vec::new();
    let ends = run.pieces.iter().skip(1).map(|piece| Some(piece.first)).chain([None]);
    let pieces: Vec<_> = run.pieces.iter().zip(ends).collect();
    for batch in pieces.chunks(PIECES_AT_ONCE) {
        for left in workers::map(batch, |(piece, end)| salvage_piece(device, run, piece, *end))? {
            each(&left.entries)?;
            blanks.extend(left.blanks);
        }
    }
    Ok(blanks)
}

fn salvage_piece(device: &dyn ReadAt, run: &Run, piece: &Piece, end: Option<Key>) -> Result<Left> {
    let mut left = Left::default();
    let blocks = u64::from(piece.blocks);
    let whole = read(device, piece.address, index(blocks + 1) * BLOCK_SIZE)?;
    // What cannot be read in one go is read block by block.
    let block = |number: u64| match &whole {
        Some(bytes) => Ok(bytes.chunks_exact(BLOCK_SIZE).nth(index(number)).map(Cow::Borrowed)),
        None => Ok(read(device, piece.address + number * BLOCK_SIZE as u64, BLOCK_SIZE)?.map(Cow::Owned)),
    };
    // Where the directory is lost the blocks still say what they are, but not where a lost one began.
    let directory = block(0)?
        .filter(|bytes| run_of(bytes) == Some(run.number))
        .and_then(|bytes| decode_directory(&bytes, run.number, piece.position).ok());
    let mut from = piece.first;
    let mut lost = false;
    for number in 1..=blocks {
        let first = directory.as_ref().and_then(|blocks| blocks.get(index(number - 1)));
        let entries =
            block(number)?.and_then(|bytes| decode_orphan(&bytes, run.number, piece.position + number).ok());
        let Some(entries) = entries else {
            if let (Some((key, _)), false) = (first, lost) {
                from = *key;
            }
            lost = true;
            continue;
        };
        if let (Some((key, _)), true) = (entries.first(), lost) {
            left.blanks.push((from, Some(*key)));
        }
        lost = false;
        if let Some((key, _)) = entries.last() {
            from = *key;
        }
        let skipped = entries.partition_point(|(key, _)| *key < run.from);
        left.entries.extend_from_slice(entries.get(skipped..).unwrap_or(&[]));
    }
    if lost {
        left.blanks.push((from, end));
    }
    Ok(left)
}

/// The `length` bytes at byte `address`, if the device has them and gives them back.
fn read(device: &dyn ReadAt, address: u64, length: usize) -> Result<Option<Vec<u8>>> {
    if address.checked_add(length as u64).is_none_or(|end| end > device.size()) {
        return Ok(None);
    }
    let mut bytes = vec![0; length];
    match device.read_at(&mut bytes, address) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == Kind::Io => Ok(None),
        Err(error) => Err(error),
    }
}
