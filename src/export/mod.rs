//! A point as an image that other programs open: raw, or QCOW2, whole or as an overlay over an older export.
//!
//! | file | what |
//! |---|---|
//! | `spans` | which parts of a point to read, cut to units and pieces |
//! | `read` | those parts, read by many threads and handed over in order |
//! | `raw` | the bytes of the point, zeros left out |
//! | `bmap` | the block map beside a raw image |
//! | `qcow2` | clusters and tables of a QCOW2 image |
//!
//! Reads in parallel, writes in order, in memory that does not grow with the volume. Only the name of the result
//! is left to the caller, who sees to it that it appears whole or not at all.

mod bmap;
mod qcow2;
mod raw;
mod read;
mod spans;

pub use bmap::BlockMap;
pub use qcow2::{Overlay, Qcow2Options, Qcow2Summary, export_qcow2};
pub use raw::{RawOptions, export_raw};

#[cfg(test)]
mod tests;
