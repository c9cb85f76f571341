//! Diffs in the format of Ceph's block devices, both ways.
//!
//! | file | what |
//! |---|---|
//! | `create` | a diff from a source of points |
//! | `transcode` | a diff as a delta of ours, so that it is applied by the same code, with the same care |
//! | `sidecar` | what a diff cannot say itself: its digest, and which points it leads from and to |

mod create;
mod sidecar;
mod transcode;

pub use create::{RbdSummary, create_rbd};
pub use sidecar::{Sidecar, sidecar_path};
pub use transcode::{Diff, transcode};

#[cfg(test)]
mod tests;
