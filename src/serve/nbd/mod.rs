//! NBD over a connection: negotiation, then requests by several threads.
//!
//! The protocol is strict about what it takes and forgiving about what it does not know: an option or a request that
//! makes no sense gets an error and the connection stays; only bytes out of step end it. Every length is checked
//! before anything of that length is kept.

mod context;
mod handshake;
mod memory;
mod replies;
mod transmission;

pub use handshake::{Agreed, Encryption, negotiate, negotiate_encrypted, transmission_flags};
pub use memory::Memory;
pub use transmission::{Session, serve};

#[cfg(test)]
mod tests;
