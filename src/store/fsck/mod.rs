//! Looking for damage, and mending it.

pub mod check;
pub mod rebuild;
mod scan;
