//! A store of 2008 made into one of today, over the same origin.
//!
//! The tree of 2008 says of each preserved chunk which snapshots have it, in any combination; a store of today keeps
//! it for all snapshots from one to another. What does not fit that becomes a chunk of one snapshot alone, as if it
//! had been written there. The old store is only read; the new one is none before all is in it.
//!
//! | file | owns |
//! |---|---|
//! | `chain` | which snapshots share an exception, which get a chunk of their own |
//! | `units` | the tree of 2008 as chunks of the new store, with the places of their bytes |
//! | `window` | reading many chunks at once, in the order of the device |
//! | `losses` | what cannot be read |
//! | `copy` | the whole way |
//! | `ground` | what is free on the device of the old store |
//! | `in_place` | the whole way there |

mod chain;
mod copy;
mod ground;
mod in_place;
#[cfg(test)]
mod in_place_tests;
mod losses;
#[cfg(test)]
mod tests;
mod units;
mod window;

pub use copy::{CopyOptions, Outcome, Plan, copy, plan, store_options};
pub use ground::{Fit, Ground};
pub use in_place::{Site, fit, in_place, open};
pub use losses::{Loss, Losses};
