//! Devices of this machine's kernel over a served volume: NBD devices, asked for by netlink, loop devices by `losetup`,
//! and their names, given by device-mapper through `dmsetup`.
//!
//! | module | owns |
//! |---|---|
//! | [`nbd`] | NBD devices of the kernel |
//! | [`loops`] | loop devices over files that a server shows |
//! | [`mapper`] | devices of device-mapper, and what dmsetup says |
//! | [`insert`] | a server slipped under a device that is in use |
//! | [`device`] | a device over a point of a volume, whichever way |

/// Where what devices need of this program lies while the machine runs.
pub const RUN: &str = "/run/ddsnap";

pub mod device;
pub mod insert;
pub mod loops;
pub mod mapper;
pub mod nbd;
