//! The exception tree in order of chunks.
//!
//! The original could not hold more exceptions of one chunk than fit a leaf: it then made a second leaf for the same
//! chunks, with a key that is out of order, and forgot the first. Leaves whose keys are out of order are read
//! together with the one before them, whose exceptions are older and say exactly whose they are.

use super::blocks::Blocks;
use crate::error::{Error, Result};
use crate::format::legacy::SECTOR;
use crate::format::legacy::tree::{Entry, Exception, Leaf, Node};

/// Where the tree begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Root {
    /// Sector of the root node.
    pub sector: u64,
    /// Index levels above the leaves.
    pub levels: u32,
}

/// Children that cover the same chunks: one, or several whose keys are out of order.
struct Group {
    /// First chunk, and one past the last (`None`: all further ones).
    low: u64,
    high: Option<u64>,
    sectors: Vec<u64>,
}

/// A leaf, with the chunks that it may have.
pub(super) struct Found {
    /// Sectors of the block, or of several that are read together.
    pub sectors: Vec<u64>,
    /// What they hold.
    pub leaf: Leaf,
}

/// Walks along the leaves of a tree.
pub(super) struct Walk<'a> {
    blocks: &'a Blocks,
    levels: u32,
    /// For each level the groups still to visit, the next one last.
    stack: Vec<Vec<Group>>,
    /// Blocks that may still be visited before the tree must have a loop.
    left: u64,
    /// Sectors of the nodes visited since [`Walk::take_nodes`].
    nodes: Vec<u64>,
}

impl<'a> Walk<'a> {
    /// Begins with the leaf that chunk `from` belongs to.
    ///
    /// # Errors
    /// `Kind::Io`, `Kind::Damaged`.
    pub fn new(blocks: &'a Blocks, root: Root, from: u64) -> Result<Self> {
        // Leaves of a group can be shared with no other, so no sound tree visits a block twice.
        let left = blocks.count.saturating_add(1);
        let mut walk = Self { blocks, levels: root.levels, stack: Vec::new(), left, nodes: Vec::new() };
        walk.stack.push(vec![Group { low: 0, high: None, sectors: vec![root.sector] }]);
        walk.descend(from)?;
        Ok(walk)
    }

    /// The nodes visited since the last call.
    pub fn take_nodes(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.nodes)
    }

    /// The next leaf; `None` after the last.
    ///
    /// # Errors
    /// `Kind::Io`; `Kind::Damaged` for a block that breaks a rule, or a tree that never ends.
    pub fn next_leaf(&mut self) -> Result<Option<Found>> {
        self.descend(0)?;
        let Some(group) = self.stack.last_mut().and_then(Vec::pop) else { return Ok(None) };
        let mut parts = Vec::with_capacity(1);
        for &sector in &group.sectors {
            self.count_block(sector)?;
            let leaf = Leaf::decode(&self.blocks.read(sector)?).map_err(|error| self.at(error, sector))?;
            let outside = leaf.entries.iter().find(|entry| {
                u64::from(entry.chunk) < group.low
                    || group.high.is_some_and(|high| u64::from(entry.chunk) >= high)
            });
            if let Some(entry) = outside {
                let what = format!("tree leaf has chunk {}, which does not belong into it", entry.chunk);
                return Err(self.at(Error::damaged(what), sector));
            }
            parts.push(leaf);
        }
        let leaf = match parts.len() {
            1 => parts.pop().unwrap_or_default(),
            _ => together(&parts),
        };
        Ok(Some(Found { sectors: group.sectors, leaf }))
    }

    /// Goes down until the groups on top of the stack are leaves, leaving out what ends before chunk `from`.
    fn descend(&mut self, from: u64) -> Result<()> {
        loop {
            let depth = self.stack.len();
            let Some(top) = self.stack.last_mut() else { return Ok(()) };
            while top.last().is_some_and(|group| group.high.is_some_and(|high| high <= from)) {
                top.pop();
            }
            if top.is_empty() {
                if depth == 1 {
                    return Ok(());
                }
                self.stack.pop();
                continue;
            }
            if depth > usize::try_from(self.levels).unwrap_or(usize::MAX) {
                return Ok(());
            }
            let Some(group) = top.pop() else { continue };
            let &[sector] = group.sectors.as_slice() else {
                let what = "tree node has a key that is not above the one before";
                return Err(Error::damaged(what).at_path(self.blocks.device().path()));
            };
            self.count_block(sector)?;
            let node = Node::decode(&self.blocks.read(sector)?).map_err(|error| self.at(error, sector))?;
            self.nodes.push(sector);
            let mut groups = groups(&node, &group).map_err(|error| self.at(error, sector))?;
            groups.reverse();
            self.stack.push(groups);
        }
    }

    fn count_block(&mut self, sector: u64) -> Result<()> {
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => {
                return Err(
                    self.at(Error::damaged("the tree has more blocks than the device: it loops"), sector)
                );
            }
        }
        Ok(())
    }

    fn at(&self, error: Error, sector: u64) -> Error {
        error.at_path(self.blocks.device().path()).at_offset(sector.saturating_mul(SECTOR))
    }
}

/// The children of `node`, which covers what `outer` covers, those out of order together with the one before.
fn groups(node: &Node, outer: &Group) -> Result<Vec<Group>> {
    let mut groups: Vec<Group> = Vec::with_capacity(node.children.len());
    for (at, &(key, sector)) in node.children.iter().enumerate() {
        if at == 0 {
            groups.push(Group { low: outer.low, high: outer.high, sectors: vec![sector] });
            continue;
        }
        if outer.high.is_some_and(|high| key >= high) {
            return Err(Error::damaged(format!("tree node has key {key}, which does not belong into it")));
        }
        let Some(last) = groups.last_mut() else { continue };
        if key <= last.low {
            last.sectors.push(sector);
        } else {
            last.high = Some(key);
            groups.push(Group { low: key, high: outer.high, sectors: vec![sector] });
        }
    }
    Ok(groups)
}

/// One leaf of several for the same chunks: what an earlier one says of a snapshot counts.
fn together(parts: &[Leaf]) -> Leaf {
    let mut chunks: std::collections::BTreeMap<u32, Vec<Exception>> = std::collections::BTreeMap::new();
    for part in parts {
        for entry in &part.entries {
            let list = chunks.entry(entry.chunk).or_default();
            let said = list.iter().fold(0, |mask, exception| mask | exception.share);
            let new = part
                .of(entry)
                .iter()
                .map(|exception| Exception { share: exception.share & !said, ..*exception });
            list.extend(new.filter(|exception| exception.share != 0));
        }
    }
    let mut leaf = Leaf::default();
    for (chunk, exceptions) in chunks {
        let start = leaf.exceptions.len();
        leaf.exceptions.extend(exceptions);
        leaf.entries.push(Entry { chunk, range: start..leaf.exceptions.len() });
    }
    leaf
}
