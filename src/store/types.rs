//! What the engine takes.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// How to make a new store.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// Chunk size in bytes: a power of two, 4 KiB to 1 MiB.
    pub chunk_size: u32,
    /// Unit of all metadata in bytes: a power of two, 4 KiB to 64 KiB.
    pub block_size: u32,
    /// Where the origin is (absolute path), remembered in the store.
    pub origin_path: PathBuf,
    /// Size of the origin in bytes.
    pub origin_size: u64,
    /// Time of creation, seconds since 1970 UTC.
    pub now_secs: i64,
}

/// What a new store must leave alone until it is committed: another store lies on the same device.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// log2 of the segment size that it is to have.
    pub segment_bits: u32,
    /// Segments that hold anything of the other store.
    pub segments: Arc<BTreeSet<u32>>,
}
