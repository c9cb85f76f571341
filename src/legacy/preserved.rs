//! Everything that the tree preserves, in order of chunks, past what is damaged in it.

use super::walk::{Past, Walk};
use crate::error::Result;
use crate::format::legacy::tree::Leaf;

/// The leaves of a tree that hold anything. What lies between them is shared with the origin, or lost: that a check
/// knows ([`super::Lost`]).
pub struct Preserved<'a>(Option<Walk<'a, Past>>);

impl<'a> Preserved<'a> {
    pub(super) fn new(walk: Walk<'a, Past>) -> Self {
        Self(Some(walk))
    }
}

impl Iterator for Preserved<'_> {
    type Item = Result<Leaf>;

    fn next(&mut self) -> Option<Result<Leaf>> {
        let walk = self.0.as_mut()?;
        let found = loop {
            match walk.next_leaf() {
                Ok(Some(found)) if found.leaf.entries.is_empty() => {}
                found => break found,
            }
        };
        if !matches!(found, Ok(Some(_))) {
            self.0 = None;
        }
        found.map(|found| found.map(|found| found.leaf)).transpose()
    }
}
