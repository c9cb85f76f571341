//! What a damaged index still tells: every block of it proves itself by its own checksum, number and position.

use crate::block::ReadAt;
use crate::error::{Kind, Result};
use crate::format::checkpoint::{Piece, Run};
use crate::format::run::{BLOCK_SIZE, IndexEntry, Key, decode_directory, decode_orphan, run_of};
use crate::units::index;

/// A range of keys about which a run tells nothing: from the first, up to but without the last (`None`: to the end).
pub type Blank = (Key, Option<Key>);

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
    for (number, piece) in run.pieces.iter().enumerate() {
        let end = run.pieces.get(number + 1).map(|piece| piece.first);
        salvage_piece(device, run, piece, end, each, &mut blanks)?;
    }
    Ok(blanks)
}

fn salvage_piece(
    device: &dyn ReadAt,
    run: &Run,
    piece: &Piece,
    end: Option<Key>,
    each: &mut dyn FnMut(&[IndexEntry]) -> Result<()>,
    blanks: &mut Vec<Blank>,
) -> Result<()> {
    // Where the directory is lost the blocks still say what they are, but not where a lost one began.
    let directory = read_block(device, piece.address)?
        .filter(|bytes| run_of(bytes) == Some(run.number))
        .and_then(|bytes| decode_directory(&bytes, run.number, piece.position).ok());
    let mut from = piece.first;
    let mut lost = false;
    for number in 1..=u64::from(piece.blocks) {
        let first = directory.as_ref().and_then(|blocks| blocks.get(index(number - 1)));
        let bytes = read_block(device, piece.address + number * BLOCK_SIZE as u64)?;
        let entries = bytes.and_then(|bytes| decode_orphan(&bytes, run.number, piece.position + number).ok());
        let Some(entries) = entries else {
            if let (Some((key, _)), false) = (first, lost) {
                from = *key;
            }
            lost = true;
            continue;
        };
        if let (Some((key, _)), true) = (entries.first(), lost) {
            blanks.push((from, Some(*key)));
        }
        lost = false;
        if let Some((key, _)) = entries.last() {
            from = *key;
        }
        let skipped = entries.partition_point(|(key, _)| *key < run.from);
        each(entries.get(skipped..).unwrap_or(&[]))?;
    }
    if lost {
        blanks.push((from, end));
    }
    Ok(())
}

/// The block at byte `address`, if the device has it and gives it back.
fn read_block(device: &dyn ReadAt, address: u64) -> Result<Option<Vec<u8>>> {
    if address.checked_add(BLOCK_SIZE as u64).is_none_or(|end| end > device.size()) {
        return Ok(None);
    }
    let mut bytes = vec![0; BLOCK_SIZE];
    match device.read_at(&mut bytes, address) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == Kind::Io => Ok(None),
        Err(error) => Err(error),
    }
}
