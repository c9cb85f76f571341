//! Bytes only: every on-disk and on-wire structure, both ways. No I/O, no engine types.

pub mod field;

/// Every layout table, in the order of `docs/format.md`, which is generated from them.
#[must_use]
pub fn tables() -> Vec<field::Table> {
    Vec::new()
}
