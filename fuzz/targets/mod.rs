//! What every fuzz target does with its bytes. The tests run the same over the corpus, on any toolchain.
//!
//! A target asserts what must hold whatever the bytes are: no panic, no hang, no unbounded memory, and what is
//! accepted can be encoded and decoded again, or reads as what it must be.

pub mod formats;
pub mod old;
pub mod serve;
pub mod store;

use ddsnap::format::superblock::Superblock;
use ddsnap::units::Uuid;

/// The store that record targets decode for.
pub const STORE: Superblock = Superblock {
    uuid: Uuid([7; 16]),
    generation: 1,
    salt: 0x5a17,
    chunk_bits: 14,
    block_bits: 12,
    segment_bits: 20,
    segments: 64,
    created_secs: 0,
    checkpoint: 1,
    durable: 0,
    uncommitted: false,
    copies: [Vec::new(), Vec::new()],
};

/// A target and its name.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("superblock", formats::superblock),
    ("switch", formats::switch),
    ("record", formats::record),
    ("checkpoint", formats::checkpoint),
    ("part", formats::part),
    ("index", formats::index),
    ("tables", formats::tables),
    ("changelist", formats::changelist),
    ("delta", formats::delta),
    ("legacy_delta", old::legacy_delta),
    ("vcdiff", formats::vcdiff),
    ("continuation", formats::continuation),
    ("qcow2", formats::qcow2),
    ("rbd", formats::rbd),
    ("store", store::store),
    ("yaml", store::yaml),
    ("import", formats::import),
    ("legacy", old::legacy),
    ("http", formats::http),
    ("nbd", serve::nbd),
    ("netlink", formats::netlink),
    ("ublk", formats::ublk),
    ("control", serve::control),
];
