//! The snapshot store engine: the log is the truth, the index is disposable.
//!
//! [`View`] reads a store and cannot write, by type. [`Writer`] owns it exclusively and changes it.
//!
//! | file | owns |
//! |---|---|
//! | `types` | what the engine takes |
//! | `recover`, `chain` | superblocks, checkpoints, the walk along the log |
//! | `outdated` | noticing that the newest tables are lost |
//! | `state` | what every record means; liveness |
//! | `index`, `changes` | look-ups and unions over memory table and runs |
//! | `view` | reading points |
//! | `initialize` | an empty store |
//! | `writer`, `origin`, `snapshots` | commits: the log's end, copy-out, the snapshot table |
//! | `operation`, `revert`, `origin_size` | long operations, back to a snapshot, another size of the origin |
//! | `users`, `pins`, `picture` | who has a snapshot open; who reads tables as they were; these, for another process |
//! | `live/`, `copied` | many writers at once over one log: the running server |
//! | `space`, `publish`, `merge`, `relocate` | segments, checkpoints, index merges, emptying segments |
//! | `room`, `resize` | the full store, a larger or smaller store |
//! | `inspect`, `restore` | what a dump may see; a store from what a dump says |
//! | `intake`, `unpublished` | a store filled with what another one preserved, which is none before it is finished |
//! | `switch` | from the store of 2008 on a device to the one that was made beside it, and back |
//! | `fsck/` | looking for damage, mending it; the index from the records alone |
//! | `fingerprint` | noticing changes of the origin behind the store's back |

mod chain;
mod changes;
mod copied;
mod fingerprint;
pub mod fsck;
mod index;
mod initialize;
pub mod inspect;
mod intake;
mod live;
mod merge;
mod operation;
mod origin;
mod origin_size;
mod outdated;
mod picture;
mod pins;
mod publish;
mod recover;
mod relocate;
mod resize;
pub mod restore;
mod revert;
mod room;
mod snapshots;
mod space;
mod state;
pub mod switch;
mod types;
mod unpublished;
mod users;
mod view;
mod work;
mod writer;

pub use crate::point::volume::{
    FullPolicy, PendingOperation, Sharing, SnapshotInfo, SnapshotState, StoreInfo,
};
pub use initialize::segment_bits;
pub use intake::{Intake, Preserve, Room, Taken, Whole, is_unfinished, room_beside, size_for};
pub use live::{Journal, Live};
pub use origin_size::Preserved;
pub use picture::Picture;
pub use pins::Pin;
pub use resize::StorePlan;
pub use revert::{Reverted, differing_bytes, plan_revert, revert, roll_back};
pub use types::{InitOptions, Kept};
pub use users::User;
pub use view::View;
pub use work::Figures;
pub use writer::Writer;
