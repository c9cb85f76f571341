//! Leaves that nothing leads to.
//!
//! A leaf has no sum, and bytes of a volume can look like one. It is believed if it is in use by the bitmap, keeps
//! every rule, and everything that it leads to is in use and used by nothing else.

use super::super::bits::Bits;
use super::super::check::Tree;
use super::super::space::Bitmap;
use super::salvage::Collect;
use crate::error::{Kind, Result};
use crate::format::legacy::tree::{Leaf, Node};
use std::collections::BTreeSet;

/// Blocks without a meaning that are looked at for nodes; with more of them nothing is proven.
const UNEXPLAINED_MAX: usize = 1 << 16;

/// A leaf that nothing leads to: its sector, its first and its last chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Orphan {
    pub sector: u64,
    pub first: u64,
    pub last: u64,
}

/// All of them, in order of chunks.
pub(super) struct Orphans {
    pub leaves: Vec<Orphan>,
    /// With them, everything in use is explained: there were no others.
    pub is_all: bool,
}

/// A search for orphans.
struct Search<'a> {
    tree: &'a Tree<'a>,
    seen: &'a Bits,
    /// Chunks that reached leaves lead to, then those of orphans too.
    chunks: Bits,
    /// Chunks that two orphans lead to.
    twice: Bits,
    metadata: Bitmap<'a>,
    data: Bitmap<'a>,
    /// A leaf leads to what is said to be free: the bitmap is wrong, or that is no leaf.
    is_contrary: bool,
}

impl Orphans {
    /// Looks through everything that is in use and that `collect` has not reached; or why that proves nothing.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn find(tree: &Tree<'_>, collect: &Collect<'_>) -> Result<std::result::Result<Self, String>> {
        let (sb, blocks) = (tree.sb, tree.blocks);
        let count = sb.data_space().chunks;
        let mut search = Search {
            tree,
            seen: &collect.seen,
            chunks: tree.chunks.clone(),
            twice: Bits::new(count),
            metadata: Bitmap::new(blocks, sb.metadata, tree.deferred),
            data: Bitmap::new(blocks, *sb.data_space(), tree.deferred),
            is_contrary: false,
        };
        let mut found = Vec::new();
        for block in 0..sb.metadata.chunks {
            if search.is_open(block)?
                && let Some(orphan) = search.orphan(block * blocks.sectors())?
            {
                found.push(orphan);
            }
        }
        if search.is_contrary {
            return Ok(Err("a leaf that nothing leads to leads to what the bitmap says is free".into()));
        }
        let leaves = search.without_doubtful(found)?;
        let is_all = search.explains_all(&leaves, &collect.damaged)?;
        Ok(Ok(Self { leaves, is_all }))
    }
}

impl Search<'_> {
    /// True for a block in use that nothing reached explains.
    fn is_open(&mut self, block: u64) -> Result<bool> {
        let is_data = self.tree.sb.data.is_none() && self.tree.chunks.has(block);
        Ok(self.metadata.is_used(block)?
            && !self.seen.has(block)
            && !is_data
            && self.tree.blocks.area(block * self.tree.blocks.sectors()).is_none())
    }

    /// The leaf at `sector`, if one can be there; its chunks are noted.
    fn orphan(&mut self, sector: u64) -> Result<Option<Orphan>> {
        let Some(leaf) = self.leaf(sector)? else { return Ok(None) };
        let (Some(first), Some(last)) = (leaf.entries.first(), leaf.entries.last()) else { return Ok(None) };
        for exception in &leaf.exceptions {
            if !self.chunks.set(exception.physical) {
                self.twice.set(exception.physical);
            }
        }
        Ok(Some(Orphan { sector, first: first.chunk.into(), last: last.chunk.into() }))
    }

    /// What is at `sector`, if it keeps all rules of a leaf.
    fn leaf(&mut self, sector: u64) -> Result<Option<Leaf>> {
        let leaf = match Leaf::decode(&self.tree.blocks.read(sector)?) {
            Ok(leaf) => leaf,
            Err(error) if error.kind() == Kind::Damaged => return Ok(None),
            Err(error) => return Err(error),
        };
        let sb = self.tree.sb;
        for entry in &leaf.entries {
            let mut said = 0;
            for exception in leaf.of(entry) {
                let (share, at) = (exception.share, exception.physical);
                let is_inside = at < sb.data_space().chunks
                    && (sb.data.is_some()
                        || self.tree.blocks.area(at * self.tree.blocks.sectors()).is_none());
                if share == 0 || share & !sb.live() != 0 || share & said != 0 || !is_inside {
                    return Ok(None);
                }
                if !self.data.is_used(at)? {
                    self.is_contrary = true;
                    return Ok(None);
                }
                said |= share;
            }
        }
        Ok(Some(leaf))
    }

    /// Those of `found` whose chunks are theirs alone, and that are for chunks of their own.
    fn without_doubtful(&mut self, found: Vec<Orphan>) -> Result<Vec<Orphan>> {
        let (sb, sectors) = (self.tree.sb, self.tree.blocks.sectors());
        let mut sure = Vec::new();
        for orphan in found {
            // What a leaf leads to is data, whatever it looks like.
            let is_data = sb.data.is_none() && self.chunks.has(orphan.sector / sectors);
            let Some(leaf) = self.leaf(orphan.sector)? else { continue };
            let is_shared = leaf.exceptions.iter().any(|exception| self.twice.has(exception.physical));
            if !is_data && !is_shared {
                sure.push(orphan);
            }
        }
        sure.sort_unstable_by_key(|orphan| (orphan.first, orphan.last));
        let mut doubtful = BTreeSet::new();
        let mut widest: Option<Orphan> = None;
        for orphan in &sure {
            if let Some(before) = widest.filter(|before| before.last >= orphan.first) {
                doubtful.extend([before.sector, orphan.sector]);
            }
            if widest.is_none_or(|before| before.last < orphan.last) {
                widest = Some(*orphan);
            }
        }
        sure.retain(|orphan| !doubtful.contains(&orphan.sector));
        Ok(sure)
    }

    /// True if nothing is in use that is not explained by what was reached, `leaves`, the `damaged` blocks, and nodes
    /// over them.
    fn explains_all(&mut self, leaves: &[Orphan], damaged: &[u64]) -> Result<bool> {
        let (sb, blocks) = (self.tree.sb, self.tree.blocks);
        let mut chunks = self.tree.chunks.clone();
        for orphan in leaves {
            let Some(leaf) = self.leaf(orphan.sector)? else { return Ok(false) };
            leaf.exceptions.iter().for_each(|exception| _ = chunks.set(exception.physical));
        }
        let known: BTreeSet<u64> =
            leaves.iter().map(|orphan| orphan.sector).chain(damaged.iter().copied()).collect();
        let mut open = Vec::new();
        for block in 0..sb.metadata.chunks {
            let sector = block * blocks.sectors();
            let is_data = sb.data.is_none() && chunks.has(block);
            if self.is_open(block)? && !is_data && !known.contains(&sector) {
                if open.len() == UNEXPLAINED_MAX {
                    return Ok(false);
                }
                open.push(sector);
            }
        }
        if let Some(data) = sb.data {
            for chunk in 0..data.chunks {
                if self.data.is_used(chunk)? && !chunks.has(chunk) {
                    return Ok(false);
                }
            }
        }
        self.are_nodes(open, known)
    }

    /// True if all of `open` are nodes over what is `known`, or over one another.
    fn are_nodes(&self, mut open: Vec<u64>, mut known: BTreeSet<u64>) -> Result<bool> {
        let blocks = self.tree.blocks;
        loop {
            let before = open.len();
            let mut rest = Vec::new();
            for sector in open {
                let is_node = Node::decode(&blocks.read(sector)?).is_ok_and(|node| {
                    let is_known = |sector: u64| {
                        known.contains(&sector)
                            || (blocks.is_place(sector) && self.seen.has(sector / blocks.sectors()))
                    };
                    node.is_ascending() && node.children.iter().all(|child| is_known(child.1))
                });
                if is_node {
                    known.insert(sector);
                } else {
                    rest.push(sector);
                }
            }
            if rest.is_empty() || rest.len() == before {
                return Ok(rest.is_empty());
            }
            open = rest;
        }
    }
}
