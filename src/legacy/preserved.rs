//! Everything that the tree preserves, in order of chunks, past what is damaged in it.

use super::blocks::Blocks;
use super::walk::{Root, Walk};
use crate::error::Error;
use crate::format::legacy::tree::Leaf;
use std::ops::Range;

/// A part of the tree.
pub enum Step {
    /// A leaf: chunks with their exceptions.
    Leaf(Leaf),
    /// Of these chunks nothing is known.
    Lost {
        /// First chunk and one past the last; `u64::MAX` if all further ones are concerned.
        chunks: Range<u64>,
        /// Why: the first damage.
        why: Error,
    },
}

/// Walks along the tree and passes over what is damaged.
///
/// Damage may be in a key as well as in what the key leads to. So of nothing between the last chunk before it and the
/// first one behind it is it known that it is not preserved.
pub struct Preserved<'a> {
    /// The walk; the error that kept it from beginning; `None` after the end.
    walk: Option<Result<Walk<'a>, Error>>,
    /// One past the last chunk found.
    known: u64,
    /// The leaf behind the damage.
    ready: Option<Leaf>,
}

impl<'a> Preserved<'a> {
    pub(super) fn new(blocks: &'a Blocks, root: Root) -> Self {
        Self { walk: Some(Walk::new(blocks, root, 0)), known: 0, ready: None }
    }

    /// The next leaf that holds anything, with the first error before it.
    fn next_leaf(&mut self) -> (Option<Leaf>, Option<Error>) {
        let mut walk = match self.walk.take() {
            None => return (None, None),
            Some(Err(why)) => return (None, Some(why)),
            Some(Ok(walk)) => walk,
        };
        let mut first = None;
        let leaf = loop {
            match walk.next_leaf() {
                Ok(Some(found)) if found.leaf.entries.is_empty() => {}
                Ok(found) => break found.map(|found| found.leaf),
                Err(why) => {
                    first.get_or_insert(why);
                }
            }
        };
        self.walk = leaf.is_some().then_some(Ok(walk));
        (leaf, first)
    }
}

impl Iterator for Preserved<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let (leaf, why) = match self.ready.take() {
            Some(leaf) => (Some(leaf), None),
            None => self.next_leaf(),
        };
        let first = leaf.as_ref().and_then(|leaf| leaf.entries.first());
        let end = first.map_or(u64::MAX, |entry| entry.chunk.into());
        if let Some(why) = why {
            self.ready = leaf;
            return Some(Step::Lost { chunks: self.known..end, why });
        }
        let leaf = leaf?;
        self.known = leaf.entries.last().map_or(self.known, |entry| u64::from(entry.chunk) + 1);
        Some(Step::Leaf(leaf))
    }
}
