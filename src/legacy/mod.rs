//! The snapshot store of 2008: recovered in memory, read, checked; written by repairs only.
//!
//! | file | owns |
//! |---|---|
//! | `bits` | one bit for each of many |
//! | `blocks` | metadata blocks, newest version first: from the journal, else from their home |
//! | `recover` | the journal, and which block is the root of the tree |
//! | `walk` | the exception tree in order of chunks |
//! | `space` | allocation bitmaps |
//! | `overfull` | leaves that the original made for chunks that did not fit one |
//! | `lost` | which chunks of which snapshots cannot be believed |
//! | `preserved` | everything that the tree preserves, past what is damaged in it |
//! | `check` | looking for damage: every rule, beyond the first that is broken |
//! | `inspect` | what a dump may see |
//! | `repair` | what the tree proves, or is left of it, written down |
//! | `ring` | what the journal proves of the blocks at home |
//! | `store` | a store as a source of points in time |
//! | `used` | what of its device it uses |

mod bits;
mod blocks;
mod check;
pub mod inspect;
mod lost;
mod overfull;
mod preserved;
mod recover;
mod repair;
mod ring;
mod space;
mod store;
#[cfg(test)]
pub(crate) mod tests;
mod used;
mod walk;

pub use crate::format::legacy::superblock::Release;
pub use check::{Checked, check};
pub use lost::Lost;
pub use preserved::Preserved;
pub use repair::{Repaired, What, Write, repair};
pub use store::{Devices, Store};

use crate::block::ReadAt;
use crate::error::Result;
use crate::format::legacy::superblock::{MAGIC, OFFSET, SIZE};

/// True if a superblock of 2008 is at its place.
///
/// # Errors
/// `Kind::Io`.
pub fn is_store(device: &dyn ReadAt) -> Result<bool> {
    let mut magic = MAGIC;
    magic.fill(0);
    if device.size() < OFFSET + SIZE as u64 {
        return Ok(false);
    }
    device.read_at(&mut magic, OFFSET)?;
    Ok(magic == MAGIC)
}
