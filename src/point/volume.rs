//! A volume with its snapshots: what every kind of store tells beside its data.

use super::{ChunkRange, Identity, PointId, PointSource};
use crate::error::Result;
use crate::progress::Progress;
use crate::units::{Epoch, Tag, Uuid};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A store of any kind, opened for reading.
pub trait Volume: PointSource {
    /// Facts of the store as a whole.
    fn info(&self) -> StoreInfo;

    /// All user-visible snapshots, oldest first, squashed ones included.
    fn snapshots(&self) -> Vec<SnapshotInfo>;

    /// Counts sharing for every normal snapshot, oldest first.
    ///
    /// # Errors
    /// `Kind::Io`, `Kind::Damaged`.
    fn sharing(&self) -> Result<Vec<Sharing>>;

    /// Makes sure that `points` stay, as they are, for as long as this is used. Where others write the origin
    /// meanwhile, it stands for what it holds now from here on. To be called before anything is read.
    ///
    /// # Errors
    /// `Kind::NotFound`, `Kind::NoSpace`, `Kind::Io`.
    fn hold(&self, points: &[PointId]) -> Result<()> {
        let _ = points;
        Ok(())
    }
}

/// A volume whose origin and snapshots can be written, and whose origin can be changed as a whole in a long operation:
/// a hidden snapshot keeps what it was until that ends.
pub trait Rewrite: Send {
    /// What can be told of it without reading data.
    fn volume(&self) -> &dyn Volume;

    /// Facts of the store as a whole, as they are now.
    ///
    /// # Errors
    /// `Kind::Io` if it is a server that does not answer.
    fn now(&self) -> Result<StoreInfo>;

    /// Size in bytes and content generation of a point; hidden snapshots are points too.
    ///
    /// # Errors
    /// `Kind::NotFound`.
    fn measure(&self, point: PointId) -> Result<(u64, u64)>;

    /// The first `most` runs of chunks, that end behind chunk `from`, in which `point` and the origin may differ.
    ///
    /// # Errors
    /// As [`PointSource::changed`].
    fn differing(&self, point: PointId, from: u64, most: usize) -> Result<Vec<ChunkRange>>;

    /// Fills `buf` with bytes of `point` from byte `offset`.
    ///
    /// # Errors
    /// As [`PointSource::read`].
    fn read_now(&self, point: PointId, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Writes pieces, each given by its byte offset and its data. What snapshots need is preserved before.
    ///
    /// # Errors
    /// `Kind::Usage` past the end; `Kind::Busy` for a point that others use; `Kind::NoSpace`, `Kind::Io`.
    fn rewrite(&mut self, point: PointId, pieces: &[(u64, &[u8])]) -> Result<()>;

    /// Makes what was written durable.
    ///
    /// # Errors
    /// `Kind::Io`.
    fn flush(&mut self) -> Result<()>;

    /// Makes sure, without giving up any snapshot, that `bytes` of chunks can be preserved.
    ///
    /// # Errors
    /// `Kind::NoSpace`.
    fn ensure_room(&mut self, bytes: u64) -> Result<()>;

    /// Begins a long operation, or goes on with the one that has the same token.
    ///
    /// # Errors
    /// `Kind::Busy` if another one is pending, or others use the origin.
    fn begin(&mut self, operation: &Begin) -> Result<()>;

    /// Gives the origin another size, within a long operation.
    ///
    /// # Errors
    /// As for a resize.
    fn set_origin_size(&mut self, size: u64, progress: &dyn Progress) -> Result<()>;

    /// Ends the long operation; `equals` is what the origin is now known to be.
    ///
    /// # Errors
    /// `Kind::NotFound` if none is pending; `Kind::Io`.
    fn end(&mut self, equals: Option<Identity>) -> Result<()>;
}

/// What a long operation is begun with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Begin {
    /// What it is, for people.
    pub label: String,
    /// Names it, so that a resume can tell it is the same one.
    pub token: [u8; 32],
    /// It was forced onto a base that nothing proved.
    pub forced: bool,
    /// A snapshot that it needs.
    pub pinned: Option<Epoch>,
}

/// A change of the snapshot table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Change {
    /// Makes a snapshot of the origin as it is now.
    Create {
        /// Its number.
        tag: Tag,
        /// Its name.
        name: Option<String>,
    },
    /// Deletes a snapshot that nobody needs.
    Delete(Epoch),
    /// Sets a priority.
    Priority(Epoch, i8),
    /// Adds to a use count.
    UseCount(Epoch, i32),
    /// Holds a snapshot for somebody.
    Hold(Epoch, String),
    /// Lets go of a snapshot that is held for somebody.
    Release(Epoch, String),
    /// Holds what a target needs from here (`None`: from nothing) to there, and lets go of what is older.
    MoveHold {
        /// For whom.
        name: String,
        /// Where it is.
        from: Option<Epoch>,
        /// Where it goes.
        to: Epoch,
    },
    /// Sets what happens when the store is full.
    FullPolicy(FullPolicy),
}

/// What came of a change.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Changed {
    /// It was made.
    Done,
    /// The snapshot that was made.
    Snapshot(SnapshotInfo),
    /// The use count as it is now.
    UseCount(u32),
    /// Whether there was anything to do.
    New(bool),
}

/// A volume whose snapshot table can be changed. A change is durable when its call returns.
pub trait Administer {
    /// Facts of the store as a whole.
    ///
    /// # Errors
    /// `Kind::Io` if it is a server that does not answer.
    fn info(&self) -> Result<StoreInfo>;

    /// All user-visible snapshots, oldest first, squashed ones included.
    ///
    /// # Errors
    /// As [`Administer::info`].
    fn snapshots(&self) -> Result<Vec<SnapshotInfo>>;

    /// Makes a change.
    ///
    /// # Errors
    /// `Kind::NotFound`, `Kind::Exists`, `Kind::Usage`; `Kind::Busy` for a snapshot that is needed;
    /// `Kind::NoSpace`, `Kind::Io`.
    fn change(&mut self, change: &Change) -> Result<Changed>;

    /// Ends it.
    ///
    /// # Errors
    /// `Kind::Io`.
    fn close(self: Box<Self>) -> Result<()>;
}

/// What a store does when it is full and no snapshot can be deleted automatically.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FullPolicy {
    /// Fail the origin write; every snapshot stays whole.
    Fail,
    /// Give up snapshots (squash them) so that the origin write succeeds.
    Squash,
}

/// Whether a snapshot can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotState {
    /// Usable.
    Normal,
    /// Given up when the store ran full: listed, never readable again.
    Squashed,
}

/// One snapshot as the snapshot table records it.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
    /// Who needs it, by name, ascending; while there is a hold it cannot be deleted.
    pub holds: Vec<String>,
}

/// A long operation that was begun and neither ended nor rolled back.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PendingOperation {
    /// The hidden snapshot that keeps the state before it.
    pub before: Epoch,
    /// A snapshot that it needs.
    pub pinned: Option<Epoch>,
    /// What it is, for people ("apply-delta 3 to 4").
    pub label: String,
    /// Digest that names the delta, so that a resume can tell it is the same one.
    pub token: [u8; 32],
    /// It was forced onto a base that nothing proved.
    pub forced: bool,
}

/// Facts of a store as a whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
    /// Where the store itself is.
    pub store_path: PathBuf,
    /// Remembered path of the origin.
    pub origin_path: PathBuf,
    /// Size of the origin in bytes.
    pub origin_size: u64,
    /// Creation time, seconds since 1970 UTC.
    pub created_secs: i64,
    /// What happens when the store is full.
    pub full_policy: FullPolicy,
    /// An upgrade in place made it and nobody has committed it: it can only be read.
    pub uncommitted: bool,
    /// Set while an apply or revert is incomplete.
    pub pending: Option<PendingOperation>,
    /// The origin is known to equal this point (set by an apply, cleared by the first other write).
    pub origin_equals: Option<Identity>,
    /// Automatic deletes and squashes, oldest first: time in seconds since 1970 and text for people.
    pub events: Vec<(i64, String)>,
    /// Set for a store of 2008, which has no uuids and no segments.
    #[serde(skip)]
    pub legacy: Option<Legacy>,
}

/// What only a store of 2008 has.
#[derive(Debug, Clone)]
pub struct Legacy {
    /// Which layout its superblock has: the release of the original program.
    pub release: &'static str,
    /// True if it was shut down cleanly.
    pub is_clean: bool,
    /// Metadata on a device of their own: bytes of a block, blocks, free blocks. `None` if they are in the store,
    /// where nothing but the tree tells them from data: then `metadata_bytes` counts both.
    pub separate: Option<(u64, u64, u64)>,
    /// What could not be made good when it was opened, for people.
    pub notices: Vec<String>,
}

/// Sharing of one snapshot's exceptions.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sharing {
    /// Which snapshot.
    pub id: Epoch,
    /// `shared_by[k]`: number of its exceptions needed by exactly k+1 live snapshots.
    pub shared_by: Vec<u64>,
}
