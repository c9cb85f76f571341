//! The snapshot store engine: the log is the truth, the index is disposable.
//!
//! [`View`] reads a store and cannot write, by type. [`Writer`] owns it exclusively and changes it.

use crate::block::{ReadAt, WriteAt};
use crate::error::{Error, Kind, Result};
use crate::point::{Changes, Identity, Point, PointId, PointSource};
use crate::units::{Epoch, Tag, Uuid};
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

/// What a store does when it is full and no snapshot can be deleted automatically.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FullPolicy {
    /// Fail the origin write; every snapshot stays whole.
    Fail,
    /// Give up snapshots (squash them) so that the origin write succeeds.
    Squash,
}

/// Whether a snapshot can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotState {
    /// Usable.
    Normal,
    /// Given up when the store ran full: listed, never readable again.
    Squashed,
}

/// One snapshot as the snapshot table records it.
#[derive(Debug, Clone)]
pub struct SnapshotInfo {
    /// Internal id.
    pub id: Epoch,
    /// The user's tag.
    pub tag: Tag,
    /// The user's name, if given.
    pub name: Option<String>,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Creation time, seconds since 1970 UTC.
    pub created_secs: i64,
    /// -128 to 127; higher survives longer when the store is full.
    pub priority: i8,
    /// Users that need it; above zero it cannot be deleted.
    pub use_count: u32,
    /// Content generation: how often it began to be written after being handed out.
    pub generation: u64,
    /// Normal or squashed.
    pub state: SnapshotState,
    /// True when the origin was changed behind the store's back after this snapshot was made.
    pub tainted: bool,
}

/// A long operation that was begun and neither ended nor rolled back.
#[derive(Debug, Clone)]
pub struct PendingOperation {
    /// The hidden snapshot that keeps the state before it.
    pub before: Epoch,
    /// What it is, for people ("apply-delta 3 to 4").
    pub label: String,
    /// Digest that names the delta, so that a resume can tell it is the same one.
    pub token: [u8; 32],
}

/// Facts of a store as a whole.
#[derive(Debug, Clone)]
pub struct StoreInfo {
    /// Identifies this store.
    pub uuid: Uuid,
    /// Identifies the volume it protects.
    pub volume: Uuid,
    /// Chunk size in bytes.
    pub chunk_size: u32,
    /// Metadata block size in bytes.
    pub block_size: u32,
    /// Segment size in bytes.
    pub segment_size: u32,
    /// Size of the store in bytes.
    pub store_size: u64,
    /// Bytes in segments that hold nothing.
    pub free_bytes: u64,
    /// Bytes of preserved data that some snapshot needs (or that are not swept yet).
    pub data_bytes: u64,
    /// Bytes of index and checkpoints.
    pub metadata_bytes: u64,
    /// Remembered path of the origin.
    pub origin_path: PathBuf,
    /// Size of the origin in bytes.
    pub origin_size: u64,
    /// Creation time, seconds since 1970 UTC.
    pub created_secs: i64,
    /// What happens when the store is full.
    pub full_policy: FullPolicy,
    /// Set while an apply or revert is incomplete.
    pub pending: Option<PendingOperation>,
    /// The origin is known to equal this point (set by an apply, cleared by the first other write).
    pub origin_equals: Option<Identity>,
    /// Automatic deletes and squashes, oldest first: time in seconds since 1970 and text for people.
    pub events: Vec<(i64, String)>,
}

/// Sharing of one snapshot's exceptions.
#[derive(Debug, Clone)]
pub struct Sharing {
    /// Which snapshot.
    pub id: Epoch,
    /// `shared_by[k]`: number of its exceptions needed by exactly k+1 live snapshots.
    pub shared_by: Vec<u64>,
}

/// A store opened for reading.
pub struct View {
    _private: (),
}

impl View {
    /// Opens a store for reading; replays its log in memory. `origin` is needed to read data only.
    ///
    /// # Errors
    /// `Kind::Damaged` if `store` is not a sound store, `Kind::Unsupported` if it is of a newer version.
    pub fn open(store: Arc<dyn ReadAt>, origin: Option<Arc<dyn ReadAt>>) -> Result<Self> {
        let _ = (store, origin);
        Err(stub())
    }

    /// Facts of the store as a whole.
    #[must_use]
    pub fn info(&self) -> StoreInfo {
        unreachable!()
    }

    /// All user-visible snapshots, oldest first, squashed ones included.
    #[must_use]
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        unreachable!()
    }

    /// Counts sharing for every normal snapshot, oldest first. Reads the whole index once.
    ///
    /// # Errors
    /// `Kind::Io`, `Kind::Damaged`.
    pub fn sharing(&self) -> Result<Vec<Sharing>> {
        Err(stub())
    }
}

fn stub() -> Error {
    Error::new(Kind::Unsupported, "not here yet")
}

impl PointSource for View {
    fn chunk_bits(&self) -> u32 {
        unreachable!()
    }
    fn points(&self) -> Vec<Point> {
        unreachable!()
    }
    fn changed(&self, _from: Option<PointId>, _to: PointId) -> Result<Changes<'_>> {
        Err(stub())
    }
    fn read(&self, _point: PointId, _offset: u64, _buf: &mut [u8]) -> Result<()> {
        Err(stub())
    }
    fn known_crc(&self, _point: PointId, _chunk: u64) -> Result<Option<u32>> {
        Err(stub())
    }
}

/// A store opened for writing, exclusively. Dropping it without [`Writer::close`] is a crash: safe, but
/// the next open replays the log.
pub struct Writer {
    _private: (),
}

impl Writer {
    /// Writes an empty store over the whole of `store`.
    ///
    /// # Errors
    /// `Kind::Usage` if the options make no sense or the store is too small.
    pub fn initialize(store: &dyn WriteAt, options: &InitOptions) -> Result<()> {
        let _ = (store, options);
        Err(stub())
    }

    /// Opens a store for writing: recovers, and starts a new incarnation. `origin` is needed by operations
    /// that touch it. `now_secs` stamps records and events.
    ///
    /// # Errors
    /// As [`View::open`].
    pub fn open(store: Arc<dyn WriteAt>, origin: Option<Arc<dyn WriteAt>>, now_secs: i64) -> Result<Self> {
        let _ = (store, origin, now_secs);
        Err(stub())
    }

    /// What can be read of it now, uncommitted changes included.
    #[must_use]
    pub fn view(&self) -> &View {
        unreachable!()
    }

    /// Makes a snapshot of the origin as it is now; durable when this returns.
    ///
    /// # Errors
    /// `Kind::Exists` if the tag or name is taken, `Kind::NoSpace`.
    pub fn create_snapshot(&mut self, tag: Tag, name: Option<&str>) -> Result<SnapshotInfo> {
        let _ = (tag, name);
        Err(stub())
    }

    /// Deletes a snapshot; durable when this returns.
    ///
    /// # Errors
    /// `Kind::NotFound`; `Kind::Busy` if its use count is not zero or it is pinned.
    pub fn delete_snapshot(&mut self, id: Epoch) -> Result<()> {
        let _ = id;
        Err(stub())
    }

    /// Sets a priority. Durable when this returns.
    ///
    /// # Errors
    /// `Kind::NotFound`.
    pub fn set_priority(&mut self, id: Epoch, priority: i8) -> Result<()> {
        let _ = (id, priority);
        Err(stub())
    }

    /// Adds `diff` to a use count and returns the new one. Durable when this returns.
    ///
    /// # Errors
    /// `Kind::NotFound`; `Kind::Usage` if it would leave 0..=65535.
    pub fn add_use_count(&mut self, id: Epoch, diff: i32) -> Result<u32> {
        let _ = (id, diff);
        Err(stub())
    }

    /// Sets what happens when the store is full.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn set_full_policy(&mut self, policy: FullPolicy) -> Result<()> {
        let _ = policy;
        Err(stub())
    }

    /// Accepts that the origin was changed behind the store's back: clears every taint.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn accept_taint(&mut self) -> Result<()> {
        Err(stub())
    }

    /// Writes `data` at byte `offset` of the origin, copying out first what snapshots need. Any length and
    /// alignment inside the origin; pass large pieces (1 MiB and more): each call is at least one commit.
    ///
    /// # Errors
    /// `Kind::NoSpace` (the origin is unchanged by the failing commit), `Kind::Io`.
    pub fn write_origin(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let _ = (offset, data);
        Err(stub())
    }

    /// Writes `data` at byte `offset` of a snapshot.
    ///
    /// # Errors
    /// `Kind::NotFound`, `Kind::NoSpace`, `Kind::Io`.
    pub fn write_snapshot(&mut self, id: Epoch, offset: u64, data: &[u8]) -> Result<()> {
        let _ = (id, offset, data);
        Err(stub())
    }

    /// Begins a long change of the origin: a hidden snapshot keeps the state before it until
    /// [`Writer::end_operation`] or [`Writer::roll_back`]. `pinned` cannot be deleted meanwhile. Beginning
    /// again with the token of the pending operation resumes it.
    ///
    /// # Errors
    /// `Kind::Busy` if another operation is pending.
    pub fn begin_operation(&mut self, label: &str, token: [u8; 32], pinned: Option<Epoch>) -> Result<()> {
        let _ = (label, token, pinned);
        Err(stub())
    }

    /// Ends the pending operation; `equals` records what the origin now is.
    ///
    /// # Errors
    /// `Kind::NotFound` if none is pending.
    pub fn end_operation(&mut self, equals: Option<Identity>) -> Result<()> {
        let _ = equals;
        Err(stub())
    }

    /// Puts the origin back to where it was before the pending operation, then ends it. Interruptible and
    /// repeatable. Returns the number of bytes put back.
    ///
    /// # Errors
    /// `Kind::NotFound` if none is pending; `Kind::Io`.
    pub fn roll_back(&mut self) -> Result<u64> {
        Err(stub())
    }

    /// Flushes everything, marks the store cleanly closed.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn close(self) -> Result<()> {
        Err(stub())
    }
}
