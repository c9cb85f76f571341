//! Looking for damage, and mending it.
//!
//! | file | owns |
//! |---|---|
//! | `gone` | what a finding means for which bytes of which snapshots |
//! | `check` | superblocks, checkpoint, log, tables, origin |
//! | `walk`, `balance`, `data` | the index; exceptions against change bits; every preserved byte |
//! | `beyond` | what the origin has become too small for |
//! | `ground`, `survey`, `salvage`, `segment` | what is left: tables, records, the old index, one segment's bytes |
//! | `collect` | what was found of the index, put in order |
//! | `rebuild`, `without`, `doubt` | the store again, from a checkpoint or without any; what that cannot prove |
//! | `mend` | repairs: which, and restating in the log what its records say no more |
//! | `workers` | several threads over one list |

mod balance;
mod beyond;
mod check;
mod collect;
#[cfg(test)]
mod damage_tests;
mod data;
mod doubt;
mod gone;
pub(super) mod ground;
mod mend;
mod rebuild;
mod salvage;
mod segment;
pub(super) mod survey;
#[cfg(test)]
mod tests;
mod walk;
mod without;
mod workers;

pub use crate::point::finding::{Affected, Code, Finding, Leave, Repair, Severity};
pub use check::{CheckOptions, CheckReport, check, check_origin, look};
pub use ground::OtherStore;
pub use mend::{Repaired, repair};
pub use rebuild::{RebuildOptions, RebuildReport, rebuild};
