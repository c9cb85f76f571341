//! Deltas: changelist to delta to apply. Staged, parallel, in bounded memory.
//!
//! | file | stage |
//! |---|---|
//! | `changelist` | changelist files of 2008, streamed |
//! | `plan`, `load`, `encode`, `write`, `digest`, `create` | which chunks; their bytes; their encoding; the stream |
//! | `read`, `decode`, `inspect` | the stream back; its data; `info` and `verify` |
//! | `input`, `target`, `check`, `apply`, `undo`, `to_store` | a delta onto a device, a file or a store's origin |
//! | `patched` | what a delta makes, read at any place |
//! | `invert` | the delta that goes back, made beforehand |
//! | `merge` | several deltas into one, without the volume |
//! | `sound`, `resume`, `receive` | a delta that was cut: what is whole of it, and how both sides go on |
//! | `rbd` | diffs of Ceph's block devices: written, and read into a delta |
//! | `legacy` | deltas of 2008: read, applied and written |
//! | `pipeline`, `buffer` | the threads under all of them: many workers, results in order; their memory |
//!
//! Nothing is written to a target before the whole delta and the base have been verified. What makes a delta
//! is a pure function of its inputs: the same points and options give the same bytes with any number of threads.

mod apply;
mod buffer;
mod changelist;
mod check;
mod create;
mod decode;
mod digest;
mod encode;
mod input;
mod inspect;
mod invert;
mod legacy;
mod load;
mod merge;
mod patched;
mod pipeline;
mod plan;
mod rbd;
mod read;
mod receive;
mod resume;
mod sound;
mod target;
mod to_store;
mod undo;
mod write;

pub use apply::{ApplyOptions, ApplySummary, apply};
pub use buffer::Buffer;
pub use changelist::{ChangelistReader, ChangelistSummary, write_changelist};
pub use create::{CreateOptions, create};
pub use input::Input;
pub use inspect::{DeltaInfo, Verdict, info, verify};
pub use invert::invert;
pub use legacy::{BasedTarget, Legacy, LegacyFacts, LegacyMode, LegacyOptions, LegacySummary, create_legacy};
pub use merge::{MERGE_MAX, MergeInput, MergeOptions, merge};
pub use patched::Patched;
pub(crate) use pipeline::{ordered, workers};
pub use rbd::{Diff, RbdSummary, Sidecar, create_rbd, sidecar_path, transcode};
pub use read::{ReadExtent, Reader};
pub use receive::Part;
pub use resume::{resume_file, resume_stream};
pub use target::{FileTarget, Target, TargetState};
pub use to_store::apply_to_store;
pub use write::CreateSummary;

#[cfg(test)]
mod failure_tests;
#[cfg(test)]
mod resume_tests;
#[cfg(test)]
mod store_tests;
#[cfg(test)]
mod tests;
