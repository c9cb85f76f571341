//! Making an empty store: its geometry, its first checkpoint, and nothing left that could be taken for another one.

use super::index::BlockReader;
use super::publish::{self, Plan};
use super::recover::Superblocks;
use super::state::State;
use super::types::{InitOptions, Kept};
use super::writer::{Writer, as_reader, random_u64};
use crate::block::WriteAt;
use crate::error::{Error, Kind, Result};
use crate::format::checkpoint::{Checkpoint, LogPosition, Role};
use crate::format::superblock::{CHUNK_BITS, FIRST_SEGMENT, SEGMENT_BITS, Superblock};
use crate::format::table::Volume;
use crate::units::{Uuid, index};
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

/// Fewest segments a store can have.
pub(super) const SEGMENTS_MIN: u64 = 24;

fn random_uuid() -> Result<Uuid> {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&random_u64()?.to_le_bytes());
    bytes[8..].copy_from_slice(&random_u64()?.to_le_bytes());
    // Version 4, variant 1: a random UUID by RFC 9562.
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(Uuid(bytes))
}

/// log2 of the segment sizes for a store of `size` bytes: the least that works, and the usual one.
#[must_use]
pub fn segment_bits(size: u64, options: &InitOptions) -> RangeInclusive<u32> {
    let (chunk_bits, block_bits) = (options.chunk_size.trailing_zeros(), options.block_size.trailing_zeros());
    let floor = (chunk_bits + 2).max(block_bits + 4).max(*SEGMENT_BITS.start());
    // Few enough segments to keep their table small, many enough to give space back in small steps.
    let wanted = if size < 512 << 20 { size / 128 } else { (size >> 16).max(4 << 20) };
    floor..=wanted.max(1).ilog2().clamp(floor, (*SEGMENT_BITS.end()).max(floor))
}

/// The geometry for a store of `size` bytes.
fn geometry(size: u64, options: &InitOptions, kept: Option<&Kept>) -> Result<Superblock> {
    let (chunk, block) = (options.chunk_size, options.block_size);
    if !chunk.is_power_of_two() || !CHUNK_BITS.contains(&chunk.trailing_zeros()) {
        return Err(Error::new(
            Kind::Usage,
            format!("chunk size is {chunk} bytes, expected a power of two from 4096 to 1048576"),
        ));
    }
    if !block.is_power_of_two() || !(4096..=65536).contains(&block) || block > chunk {
        return Err(Error::new(
            Kind::Usage,
            format!(
                "block size is {block} bytes, expected a power of two from 4096 to 65536, at most a chunk"
            ),
        ));
    }
    let possible = segment_bits(size, options);
    let floor = *possible.start();
    let segment_bits = kept.map_or(*possible.end(), |kept| kept.segment_bits.max(floor));
    let segments = size.saturating_sub(FIRST_SEGMENT) >> segment_bits;
    let usable = segments.saturating_sub(kept.map_or(0, |kept| kept.segments.len() as u64));
    if usable < SEGMENTS_MIN {
        let least = FIRST_SEGMENT + (SEGMENTS_MIN << floor);
        return Err(Error::new(
            Kind::Usage,
            format!("a store of {size} bytes is too small for {chunk} byte chunks, it needs {least}"),
        ));
    }
    Ok(Superblock {
        uuid: random_uuid()?,
        generation: 0,
        salt: random_u64()?,
        chunk_bits: chunk.trailing_zeros(),
        block_bits: block.trailing_zeros(),
        segment_bits,
        segments: u32::try_from(segments).unwrap_or(u32::MAX),
        created_secs: options.now_secs,
        checkpoint: 0,
        durable: 0,
        uncommitted: false,
        copies: [Vec::new(), Vec::new()],
    })
}

/// Makes the checkpoints of a store that is given up unrecognisable, as long as its superblocks say where they are:
/// a rescue that finds no superblock could take them for those of the store that comes after it.
pub(super) fn forget_checkpoints(store: &dyn WriteAt) -> Result<()> {
    let mut found: Vec<Superblock> = Superblocks::read(store).copies.into_iter().flatten().collect();
    found.append(&mut super::unpublished::unfinished(store)?);
    publish::forget(store, &found)
}

impl Writer {
    /// Writes an empty store over the whole of `store`.
    ///
    /// # Errors
    /// `Kind::Usage` if the options make no sense or the store is too small.
    pub fn initialize(store: &Arc<dyn WriteAt>, options: &InitOptions) -> Result<()> {
        Self::initialize_beside(store, options, None)
    }

    /// As [`Writer::initialize`], leaving alone what is to be kept. Every later opening must be told of it too.
    pub(super) fn initialize_beside(
        store: &Arc<dyn WriteAt>,
        options: &InitOptions,
        kept: Option<&Kept>,
    ) -> Result<()> {
        let sb = geometry(store.size(), options, kept).map_err(|error| error.at_path(store.path()))?;
        let kept = kept.map(|kept| Arc::clone(&kept.segments)).unwrap_or_default();
        let first = (0..sb.segments).find(|segment| !kept.contains(segment)).unwrap_or(0);
        let start = sb.segment_address(first);
        let volume = Volume {
            volume: random_uuid()?,
            origin_size: options.origin_size,
            squash_when_full: false,
            unwatched: false,
            generation: 0,
            equals: None,
            path: options.origin_path.as_os_str().as_bytes().to_vec(),
        };
        let log = LogPosition { address: start, sequence: 0, crc: 0, incarnation: random_u64()? };
        let checkpoint = Checkpoint { promised: vec![first], ..Checkpoint::empty(log, volume) };
        let mut state = State::new(sb, checkpoint);
        state.kept = kept;
        state.segments.insert(
            first,
            crate::format::checkpoint::Segment { role: Role::Log, count: 0, live: 0, digest: 0 },
        );
        // Whatever was recognisable here is gone before the store appears.
        forget_checkpoints(store.as_ref())?;
        store.write_at(&vec![0; index(FIRST_SEGMENT)], 0)?;
        store.flush()?;
        let reader = BlockReader::new(as_reader(store));
        publish::publish(store.as_ref(), &reader, &mut state, Plan { sweep: false, extra: 0 })
            .map_err(|error| error.at_path(store.path()))
    }
}
