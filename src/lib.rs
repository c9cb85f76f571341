//! Block-level snapshots and replication for any Linux block device or image file.
//!
//! | module | owns |
//! |---|---|
//! | [`cmd`] | one file a subcommand: arguments to engine to report; the only code that knows clap |
//! | [`ui`] | everything that prints: progress, tables, JSON, prompts, exit statuses |
//! | [`delta`] | changelist to delta to apply: staged, parallel, bounded memory |
//! | [`serve`] | the online server: a live volume over NBD, commands through its socket |
//! | [`dm`] | devices of the kernel over a served volume |
//! | [`mod@ublk`] | the kernel's ublk driver: devices, and their requests |
//! | [`dump`] | metadata as text, YAML or JSON; a store from such YAML |
//! | [`export`] | a point as an image that other programs open: raw, QCOW2 |
//! | [`upgrade`] | a store of 2008 made into one of today |
//! | [`legacy`] | the snapshot store of 2008: recovered in memory, read, checked, repaired |
//! | [`map`] | where a volume changed, counted in cells |
//! | [`store`] | the snapshot store engine: log, index, allocation, recovery, checks |
//! | [`point`] | a point-in-time source: geometry, points, what changed, how to read it |
//! | [`block`] | devices and files: open, lock, size, read, write, flush |
//! | [`mod@format`] | bytes only: every on-disk structure both ways, no I/O |
//! | [`units`], [`error`], [`progress`] | the words everything shares |
//!
//! Imports run one way: `cmd -> {export, upgrade} -> delta -> {store, legacy, point} -> {block, format}`,
//! `map -> point`, `serve -> {store, ublk}`, `dm -> ublk -> format`, `cmd -> {serve, dm, ui}`.

pub mod block;
pub mod cmd;
pub mod delta;
pub mod dm;
pub mod dump;
pub mod error;
pub mod export;
pub mod format;
pub mod legacy;
pub mod map;
pub mod point;
pub mod progress;
pub mod serve;
pub mod store;
pub mod ublk;
pub mod ui;
pub mod units;
pub mod upgrade;
