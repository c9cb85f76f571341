//! The online server: block devices over a live store.
//!
//! Protocols work on anything that reads and writes; sockets, threads and signals are kept apart from them.
//!
//! | module | owns |
//! |---|---|
//! | [`export`] | what front ends offer: the live origin and the snapshots |
//! | [`nbd`] | NBD over a connection |
//! | [`control`] | commands of a running server |
//! | [`figures`] | what a server tells of itself |
//! | [`metrics`] | figures for monitoring, over HTTP |
//! | [`listen`] | sockets, addresses, streams |
//! | [`fuse`] | exports as files |
//! | [`ublk`] | an export as a device of the kernel's ublk |
//! | [`frozen`] | exports that stay as they are |
//! | [`straight`] | a device as it is |
//! | [`front`] | a listener and its connections |
//! | [`tls`] | NBD encrypted |
//! | [`notify`] | what a service manager is told |

pub mod control;
pub mod export;
pub mod figures;
pub mod front;
pub mod frozen;
pub mod fuse;
pub mod listen;
pub mod metrics;
pub mod nbd;
pub mod notify;
pub mod straight;
pub mod tls;
pub mod ublk;
pub mod watched;
