//! Looking for damage, and mending it.

pub mod check;
pub mod rebuild;
pub(super) mod scan;
