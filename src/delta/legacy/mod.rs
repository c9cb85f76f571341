//! Deltas of 2008: read by the reader of all deltas, checked and applied by the same code; and written.
//!
//! | file | what |
//! |---|---|
//! | `read` | header and extents off the stream |
//! | `decode` | payloads back into data, proven by its sum |
//! | `check` | an extent against the target: is the base right, what is the result |
//! | `base` | a target whose old data lies elsewhere, as the source snapshot of 2008 did |
//! | `create` | a delta of 2008 from a source of points |

mod base;
mod check;
mod create;
mod decode;
mod read;

pub use base::BasedTarget;
pub use create::{LegacyMode, LegacyOptions, LegacySummary, create_legacy};
pub use read::LegacyFacts;

pub(crate) use check::wrong_base;
pub(crate) use read::LegacyState;

use crate::format::legacy_delta::Coding;

/// What a delta of 2008 says of an extent instead of CRCs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Legacy {
    /// What the payload is.
    pub coding: Coding,
    /// Sum of the bytes of the source.
    pub source_sum: u64,
    /// Sum of the bytes of the result.
    pub target_sum: u64,
    /// The source sum of the extent before: what stays in the field where the source has nothing.
    pub(super) stale_sum: u64,
    /// The size of the target is known, and with it the length of the result.
    pub(super) sized: bool,
    /// Bytes of the chunks but the last: the result is longer.
    pub(super) least_bytes: usize,
}

#[cfg(test)]
mod tests;
