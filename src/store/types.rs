//! What the engine takes.

use std::path::PathBuf;

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
