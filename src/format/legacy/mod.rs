//! The snapshot store of 2008 (releases 0.4 to 0.10 of the original program): bytes only.
//!
//! All places of metadata are sectors of [`SECTOR`] bytes on the metadata device, which is the store itself in the
//! combined layout. Only repairs write any of it.

pub mod journal;
pub mod repair;
pub mod superblock;
pub mod tree;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
/// Most live snapshots: their bits are in a mask of 64.
pub const SNAPSHOTS_MAX: usize = 64;
