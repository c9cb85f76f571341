//! The exception tree in order of chunks.
//!
//! The original could not hold more exceptions of one chunk than fit a leaf: it then made a second leaf for the same
//! chunks, with a key that is out of order, and forgot the first. Leaves whose keys are out of order are read
//! together with the one before them, whose exceptions are older and say exactly whose they are.

use super::blocks::Blocks;
use super::overfull;
use crate::error::{Error, Kind, Result};
use crate::format::legacy::SECTOR;
use crate::format::legacy::tree::{Leaf, Node, is_lost};

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
    /// First chunk that belongs into it, and one past the last (`None`: all further ones).
    pub low: u64,
    pub high: Option<u64>,
    /// Sectors of the block, or of several that are read together.
    pub sectors: Vec<u64>,
    /// What they hold.
    pub leaf: Leaf,
    /// All of it belongs there.
    pub is_sound: bool,
}

/// Which rule a tree breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// Blocks are inside the metadata space.
    Place,
    /// What a node is.
    Node,
    /// What a leaf is.
    Leaf,
    /// Which chunks belong into a leaf.
    Order,
    /// A repair found what was preserved gone, and said so.
    Lost,
}

/// A block that cannot be used.
pub(super) struct Broken {
    pub rule: Rule,
    pub error: Error,
    pub sector: u64,
    /// First chunk that it covers, and one past the last (`None`: all further ones).
    pub low: u64,
    pub high: Option<u64>,
}

/// What a walk does about a tree that breaks its rules.
pub(super) trait Care {
    /// True if the block at `sector` is to be read, as one that covers the chunks from `low` to before `high`.
    ///
    /// # Errors
    /// What ends the walk.
    fn enter(&mut self, sector: u64, low: u64, high: Option<u64>) -> Result<bool>;

    /// The walk goes on without the block, and what it leads to, if this does not fail. True if a leaf with chunks
    /// that belong elsewhere is wanted all the same.
    ///
    /// # Errors
    /// What ends the walk.
    fn broken(&mut self, broken: Broken) -> Result<bool>;
}

/// Ends the walk at the first broken rule: what is read must be right.
pub(super) struct Strict {
    /// Blocks that may still be visited before the tree must have a loop.
    left: u64,
}

impl Care for Strict {
    fn enter(&mut self, _sector: u64, _low: u64, _high: Option<u64>) -> Result<bool> {
        let left = self.left.checked_sub(1);
        self.left =
            left.ok_or_else(|| Error::damaged("the tree has more blocks than the device: it loops"))?;
        Ok(true)
    }

    fn broken(&mut self, broken: Broken) -> Result<bool> {
        Err(broken.error)
    }
}

/// Passes over what is damaged: whoever uses it knows from a check which chunks that concerns.
pub(super) struct Past {
    /// Blocks that may still be visited before the tree must have a loop.
    left: u64,
}

impl Care for Past {
    fn enter(&mut self, _sector: u64, _low: u64, _high: Option<u64>) -> Result<bool> {
        self.left = self.left.saturating_sub(1);
        Ok(self.left > 0)
    }

    fn broken(&mut self, _broken: Broken) -> Result<bool> {
        Ok(false)
    }
}

/// Walks along the leaves of a tree.
pub(super) struct Walk<'a, C = Strict> {
    blocks: &'a Blocks,
    levels: u32,
    /// For each level the groups still to visit, the next one last.
    stack: Vec<Vec<Group>>,
    pub care: C,
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
        let mut walk = Self::with(blocks, root, Strict { left: blocks.count.saturating_add(1) });
        walk.descend(from)?;
        Ok(walk)
    }
}

impl<'a> Walk<'a, Past> {
    /// As [`Walk::new`], past what is damaged.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn past(blocks: &'a Blocks, root: Root, from: u64) -> Result<Self> {
        let mut walk = Self::with(blocks, root, Past { left: blocks.count.saturating_add(2) });
        walk.descend(from)?;
        Ok(walk)
    }
}

impl<'a, C: Care> Walk<'a, C> {
    /// Begins before the first leaf.
    pub fn with(blocks: &'a Blocks, root: Root, care: C) -> Self {
        let stack = vec![vec![Group { low: 0, high: None, sectors: vec![root.sector] }]];
        Self { blocks, levels: root.levels, stack, care, nodes: Vec::new() }
    }

    /// The nodes visited since the last call.
    pub fn take_nodes(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.nodes)
    }

    /// The next leaf; `None` after the last.
    ///
    /// # Errors
    /// `Kind::Io`; what [`Care`] says of a block that breaks a rule, or of a tree that never ends.
    pub fn next_leaf(&mut self) -> Result<Option<Found>> {
        loop {
            self.descend(0)?;
            let Some(group) = self.stack.last_mut().and_then(Vec::pop) else { return Ok(None) };
            let (mut sectors, mut parts) = (Vec::with_capacity(1), Vec::with_capacity(1));
            let mut is_sound = true;
            for &sector in &group.sectors {
                let Some(leaf) = self.load(sector, &group, Rule::Leaf, Leaf::decode)? else {
                    is_sound = false;
                    continue;
                };
                let outside = leaf.entries.iter().find(|entry| {
                    u64::from(entry.chunk) < group.low
                        || group.high.is_some_and(|high| u64::from(entry.chunk) >= high)
                });
                if let Some(entry) = outside {
                    is_sound = false;
                    let what = format!("tree leaf has chunk {}, which does not belong into it", entry.chunk);
                    if !self.broken(Rule::Order, Error::damaged(what), sector, &group)? {
                        continue;
                    }
                }
                sectors.push(sector);
                parts.push(leaf);
            }
            if is_sound && parts.len() > 1 && !overfull::is(&parts) {
                is_sound = false;
                let what = format!("the leaves at sectors {sectors:?} are for the same chunks");
                if !self.broken(Rule::Order, Error::damaged(what), sectors[0], &group)? {
                    continue;
                }
            }
            let leaf = match parts.len() {
                0 => continue,
                1 => parts.pop().unwrap_or_default(),
                _ => overfull::together(&parts),
            };
            return Ok(Some(Found { low: group.low, high: group.high, sectors, leaf, is_sound }));
        }
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
                let sector = group.sectors.first().copied().unwrap_or_default();
                self.broken(Rule::Node, Error::damaged(what), sector, &group)?;
                continue;
            };
            let Some(node) = self.load(sector, &group, Rule::Node, Node::decode)? else { continue };
            self.nodes.push(sector);
            match groups(&node, &group) {
                Ok(mut groups) => {
                    groups.reverse();
                    self.stack.push(groups);
                }
                Err(error) => _ = self.broken(Rule::Node, error, sector, &group)?,
            }
        }
    }

    /// A block of `group`, unless it is not to be used.
    fn load<T>(
        &mut self,
        sector: u64,
        group: &Group,
        rule: Rule,
        decode: impl Fn(&[u8]) -> Result<T>,
    ) -> Result<Option<T>> {
        if !self.care.enter(sector, group.low, group.high).map_err(|error| self.at(error, sector))? {
            return Ok(None);
        }
        let (rule, error) = match self.blocks.read_tree(sector) {
            Ok(block) => match decode(&block) {
                Ok(found) => return Ok(Some(found)),
                Err(error) if is_lost(&block) => (Rule::Lost, error),
                Err(error) => (rule, error),
            },
            Err(error) if error.kind() == Kind::Damaged => (Rule::Place, error),
            // A medium that fails in one place costs what is there.
            Err(error) if error.kind() == Kind::Io => (rule, error),
            Err(error) => return Err(error),
        };
        self.broken(rule, error, sector, group)?;
        Ok(None)
    }

    fn broken(&mut self, rule: Rule, error: Error, sector: u64, group: &Group) -> Result<bool> {
        let error = self.at(error, sector);
        self.care.broken(Broken { rule, error, sector, low: group.low, high: group.high })
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
