//! The tables of a live store as they were at a moment, for whoever reads at leisure, also in another process.
//!
//! As bytes: the superblock and the tables as a checkpoint has them, each after its length (u32, little endian), then
//! what the log since the checkpoint adds to the index, as blocks of a run.

use super::index::BlockReader;
use super::pins::Pin;
use super::recover::validate;
use super::state::State;
use super::view::View;
use crate::block::ReadAt;
use crate::error::{Error, Result};
use crate::format::checkpoint::Checkpoint;
use crate::format::run::{BLOCK_SIZE, ENTRIES_PER_BLOCK, IndexEntry, decode_orphan, encode_block};
use crate::format::superblock::Superblock;
use crate::units::index;
use std::sync::Arc;

/// The number of the run that the memory table is sent as.
const MEMORY_RUN: u64 = 0;

/// The tables of a live store as they were at a moment. What they name lies where it is meanwhile; only a full store
/// takes it back.
pub struct Picture {
    /// The tables.
    pub view: View,
    /// Keeps what they name.
    pub pin: Pin,
}

impl Picture {
    /// Its tables as bytes.
    ///
    /// # Errors
    /// `Kind::Damaged` if they are too long.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let state = &self.view.state;
        let mut bytes = Vec::new();
        for part in [state.sb.encode(), state.to_checkpoint().encode()] {
            let length = u32::try_from(part.len()).map_err(|_| Error::damaged("the tables are too long"))?;
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(&part);
        }
        let entries: Vec<IndexEntry> = state.memory.iter().map(|(key, value)| (*key, *value)).collect();
        for (position, block) in entries.chunks(ENTRIES_PER_BLOCK).enumerate() {
            bytes.extend_from_slice(&encode_block(MEMORY_RUN, position as u64, block));
        }
        Ok(bytes)
    }
}

impl View {
    /// The tables that a picture was encoded from, to be read on the same store and origin.
    ///
    /// # Errors
    /// `Kind::Damaged`, `Kind::Unsupported`.
    pub fn from_picture(bytes: &[u8], device: Arc<dyn ReadAt>, origin: Arc<dyn ReadAt>) -> Result<Self> {
        let mut rest = bytes;
        let sb = Superblock::decode(part(&mut rest)?)?;
        let checkpoint = Checkpoint::decode(part(&mut rest)?)?;
        validate(&sb, &checkpoint)?;
        let mut state = State::new(sb, checkpoint);
        for (position, block) in rest.chunks(BLOCK_SIZE).enumerate() {
            state.memory.extend(decode_orphan(block, MEMORY_RUN, position as u64)?);
        }
        let reader = Arc::new(BlockReader::new(Arc::clone(&device)));
        Ok(Self { device, origin: Some(origin), state, reader })
    }
}

/// The next part of the bytes of a picture.
fn part<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8]> {
    let short = || Error::damaged("the tables of a live store are cut short");
    let (length, after) = rest.split_first_chunk().ok_or_else(short)?;
    let length = index(u64::from(u32::from_le_bytes(*length)));
    let (part, after) = after.split_at_checked(length).ok_or_else(short)?;
    *rest = after;
    Ok(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::memory::Memory;
    use crate::error::Kind;
    use crate::point::{PointId, PointSource};
    use crate::store::pins::Pins;
    use crate::store::{InitOptions, Writer};
    use crate::units::Tag;

    #[test]
    fn a_picture_tells_the_same_elsewhere_and_what_is_none_is_refused() {
        let device: Arc<dyn crate::block::WriteAt> = Arc::new(Memory::new(4 << 20));
        let origin_size = 1 << 20;
        let options = InitOptions {
            chunk_size: 4096,
            block_size: 4096,
            origin_path: "/origin".into(),
            origin_size,
            now_secs: 1,
        };
        Writer::initialize(&device, &options).unwrap();
        let origin: Arc<dyn crate::block::WriteAt> =
            Arc::new(Memory::from_bytes(&vec![1; index(origin_size)]));
        let mut writer = Writer::open(Arc::clone(&device), Some(Arc::clone(&origin)), 1).unwrap();
        let id = writer.create_snapshot(Tag(1), Some("one")).unwrap().id;
        (0..60).for_each(|number| writer.write_origin(number * 8192, &[2; 4096]).unwrap());
        let picture = Picture { view: writer.view().fork(), pin: Pins::default().add(1) };
        let bytes = picture.encode().unwrap();
        let reader = || -> Arc<dyn ReadAt> { Arc::<dyn crate::block::WriteAt>::clone(&device) };
        let read = |bytes: &[u8]| {
            View::from_picture(bytes, reader(), Arc::<dyn crate::block::WriteAt>::clone(&origin))
        };
        let view = read(&bytes).unwrap();
        let mut data = vec![0; index(origin_size)];
        view.read(PointId::Snapshot(id), 0, &mut data).unwrap();
        assert!(data.iter().all(|byte| *byte == 1));
        let changed = |view: &View| -> Vec<_> {
            let changes = view.changed(Some(PointId::Snapshot(id)), PointId::Origin).unwrap();
            changes.map(std::result::Result::unwrap).collect()
        };
        assert_eq!(changed(&view), changed(writer.view()));
        assert_eq!(changed(&view).len(), 60);
        let steps = (0..bytes.len()).step_by(if bytes.len() > 4096 { 37 } else { 1 });
        for length in steps {
            // What ends between two blocks of the index is whole in itself; its length is told apart.
            match read(&bytes[..length]) {
                Err(error) => assert!(matches!(error.kind(), Kind::Damaged | Kind::Unsupported)),
                Ok(_) => assert_eq!((bytes.len() - length) % BLOCK_SIZE, 0),
            }
            let mut flipped = bytes.clone();
            flipped[length] ^= 1 << (length % 8);
            // An error or other tables, but no panic.
            let _ = read(&flipped);
        }
    }
}
