//! Bytes only: every on-disk and on-wire structure, both ways. No I/O, no engine types.

pub mod changelist;
pub mod delta;
pub mod field;
