//! Nodes and leaves of the exception tree of 2008.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use crate::error::{Error, Result};
use crate::format::field::raw_struct;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// First two bytes of a leaf.
pub const LEAF_MAGIC: u16 = 0x1eaf;
/// Version of a leaf that says that what was preserved of its chunks is lost. Only repairs write it; the original knew
/// version 0 only, and so does every reader: reading what such a leaf covers is an error.
const LOST: u16 = 0xffff;

raw_struct! {
    /// Begins a node; its children follow.
    pub struct RawNode, "Store of 2008: node", 8 {
        count: U32, "u32", "children, 1 to (block size - 8) / 16";
        unused: U32, "u32", "0";
    }
}

raw_struct! {
    /// A child of a node.
    pub struct RawChild, "Store of 2008: child of a node", 16 {
        key: U64, "u64 chunk", "first chunk of the child; without meaning for the first child";
        sector: U64, "u64 sectors", "where the child is";
    }
}

raw_struct! {
    /// Begins a leaf; the map follows.
    pub struct RawLeaf, "Store of 2008: leaf", 24 {
        magic: U16, "u16", "0x1eaf";
        version: U16, "u16", "0";
        count: U32, "u32", "chunks in the leaf";
        base_chunk: U64, "u64", "always 0";
        using_mask: U64, "u64", "always 0";
    }
}

raw_struct! {
    /// An entry of the map of a leaf; one more than there are chunks, whose offset is the block size.
    pub struct RawMapEntry, "Store of 2008: map entry of a leaf", 8 {
        offset: U32, "u32 bytes", "where in the block the exceptions of the chunk begin";
        chunk: U32, "u32 chunk", "the chunk";
    }
}

raw_struct! {
    /// One preserved chunk.
    pub struct RawException, "Store of 2008: exception", 16 {
        share: U64, "u64 mask", "bit b: it belongs to the snapshot with bit b";
        chunk: U64, "u64 chunk", "where it lies in the data space";
    }
}

/// A node, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// First chunk (0 for the first child, whose key says nothing) and sector of each child, at least one.
    pub children: Vec<(u64, u64)>,
}

impl Node {
    /// Reads a node that fills `block`.
    ///
    /// # Errors
    /// `Kind::Damaged` for a count that cannot be.
    pub fn decode(block: &[u8]) -> Result<Self> {
        let cut = || Error::damaged("tree node is cut short");
        let (head, rest) = RawNode::ref_from_prefix(block).map_err(|_| cut())?;
        let count = usize::try_from(head.count.get()).map_err(|_| cut())?;
        let capacity = rest.chunks_exact(size_of::<RawChild>()).len();
        if count == 0 || count > capacity {
            return Err(Error::damaged(format!("tree node has {count} children, not 1 to {capacity}")));
        }
        let (children, _) = <[RawChild]>::ref_from_prefix_with_elems(rest, count).map_err(|_| cut())?;
        let mut children: Vec<_> =
            children.iter().map(|child| (child.key.get(), child.sector.get())).collect();
        if let Some(first) = children.first_mut() {
            first.0 = 0;
        }
        Ok(Self { children })
    }

    /// The children that fit a node of `block_size` bytes.
    #[must_use]
    pub fn capacity(block_size: usize) -> usize {
        block_size.saturating_sub(size_of::<RawNode>()).checked_div(size_of::<RawChild>()).unwrap_or(0)
    }

    /// The node as a block of `block_size` bytes; `None` if it has no children, or more than fit.
    #[must_use]
    pub fn encode(&self, block_size: usize) -> Option<Vec<u8>> {
        if self.children.is_empty() || self.children.len() > Self::capacity(block_size) {
            return None;
        }
        let count = u32::try_from(self.children.len()).ok()?;
        let mut block = RawNode { count: count.into(), unused: 0.into() }.as_bytes().to_vec();
        for &(key, sector) in &self.children {
            block.extend_from_slice(RawChild { key: key.into(), sector: sector.into() }.as_bytes());
        }
        block.resize(block_size, 0);
        Some(block)
    }

    /// True if every key is above the one before.
    #[must_use]
    pub fn is_ascending(&self) -> bool {
        let keys = self.children.iter().skip(1).map(|child| child.0);
        keys.clone().zip(keys.skip(1)).all(|(key, next)| key < next)
    }
}

/// An exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// The bits of the snapshots that it belongs to.
    pub share: u64,
    /// Chunk of the data space.
    pub physical: u64,
}

/// A chunk of a leaf with its exceptions, the newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Logical chunk.
    pub chunk: u32,
    /// Where its exceptions are in [`Leaf::exceptions`].
    pub range: std::ops::Range<usize>,
}

/// A leaf, decoded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leaf {
    /// Chunks, strictly ascending.
    pub entries: Vec<Entry>,
    /// The exceptions of all of them.
    pub exceptions: Vec<Exception>,
}

/// True if `block` begins as a leaf does.
#[must_use]
pub fn has_leaf_magic(block: &[u8]) -> bool {
    block.starts_with(&LEAF_MAGIC.to_le_bytes())
}

/// True if `block` is a leaf that says that what was preserved of its chunks is lost.
#[must_use]
pub fn is_lost(block: &[u8]) -> bool {
    RawLeaf::ref_from_prefix(block)
        .is_ok_and(|(head, _)| head.magic.get() == LEAF_MAGIC && head.version.get() == LOST)
}

/// A leaf that says so, of `block_size` bytes.
#[must_use]
pub fn lost_leaf(block_size: usize) -> Option<Vec<u8>> {
    let mut block = Leaf::default().encode(block_size)?;
    RawLeaf::mut_from_prefix(&mut block).ok()?.0.version.set(LOST);
    Some(block)
}

impl Leaf {
    /// The leaf as a block of `block_size` bytes; `None` if it does not fit.
    #[must_use]
    pub fn encode(&self, block_size: usize) -> Option<Vec<u8>> {
        let count = u32::try_from(self.entries.len()).ok()?;
        let mut head = RawLeaf::new_zeroed();
        head.magic.set(LEAF_MAGIC);
        head.count.set(count);
        let mut block = head.as_bytes().to_vec();
        let lists: usize = self.exceptions.len().checked_mul(size_of::<RawException>())?;
        let mut next = block_size.checked_sub(lists)?;
        for entry in &self.entries {
            let offset = u32::try_from(next).ok()?;
            let raw = RawMapEntry { offset: offset.into(), chunk: entry.chunk.into() };
            block.extend_from_slice(raw.as_bytes());
            next = next.checked_add(self.of(entry).len().checked_mul(size_of::<RawException>())?)?;
        }
        let end = RawMapEntry { offset: u32::try_from(next).ok()?.into(), chunk: 0.into() };
        block.extend_from_slice(end.as_bytes());
        let room = block_size.checked_sub(lists)?.checked_sub(block.len())?;
        block.resize(block.len().checked_add(room)?, 0);
        for exception in self.entries.iter().flat_map(|entry| self.of(entry)) {
            let raw = RawException { share: exception.share.into(), chunk: exception.physical.into() };
            block.extend_from_slice(raw.as_bytes());
        }
        (block.len() == block_size).then_some(block)
    }

    /// The same without what belongs to none of the snapshots of `live`.
    #[must_use]
    pub fn only(&self, live: u64) -> Self {
        let mut kept = Self::default();
        for entry in &self.entries {
            let start = kept.exceptions.len();
            let list = self.of(entry).iter();
            let list = list.map(|exception| Exception { share: exception.share & live, ..*exception });
            kept.exceptions.extend(list.filter(|exception| exception.share != 0));
            let range = start..kept.exceptions.len();
            if !range.is_empty() {
                kept.entries.push(Entry { chunk: entry.chunk, range });
            }
        }
        kept
    }

    /// Reads a leaf that fills `block`.
    ///
    /// # Errors
    /// `Kind::Damaged` if it breaks a rule that a leaf alone can keep.
    pub fn decode(block: &[u8]) -> Result<Self> {
        let cut = || Error::damaged("tree leaf is cut short");
        let (head, rest) = RawLeaf::ref_from_prefix(block).map_err(|_| cut())?;
        if is_lost(block) {
            return Err(Error::damaged(
                "what was preserved here is lost: a repair found it gone and said so",
            ));
        }
        if head.magic.get() != LEAF_MAGIC || head.version.get() != 0 {
            let what = format!("{:#06x} version {}", head.magic.get(), head.version.get());
            return Err(Error::damaged(format!(
                "tree leaf has magic {what}, expected {LEAF_MAGIC:#06x} version 0"
            )));
        }
        if head.base_chunk.get() != 0 {
            return Err(Error::damaged(format!("tree leaf has base chunk {}, not 0", head.base_chunk.get())));
        }
        let count = usize::try_from(head.count.get()).map_err(|_| cut())?;
        let slots = count.checked_add(1).ok_or_else(cut)?;
        let too_many = || Error::damaged(format!("tree leaf cannot hold {count} chunks"));
        let (map, free) = <[RawMapEntry]>::ref_from_prefix_with_elems(rest, slots).map_err(|_| too_many())?;
        let map_end = block.len().saturating_sub(free.len());
        let mut leaf = Self::default();
        for pair in map.windows(2) {
            let [entry, next] = pair else { continue };
            leaf.push(block, entry.chunk.get(), (entry.offset.get(), next.offset.get()), map_end)?;
        }
        let sentinel = map.last().map_or(0, |entry| entry.offset.get());
        if usize::try_from(sentinel).ok() != Some(block.len()) {
            return Err(Error::damaged(format!("tree leaf ends at byte {sentinel} of {}", block.len())));
        }
        Ok(leaf)
    }

    fn push(&mut self, block: &[u8], chunk: u32, (from, to): (u32, u32), map_end: usize) -> Result<()> {
        let wrong = |what: &str| Error::damaged(format!("tree leaf, chunk {chunk}: {what}"));
        if self.entries.last().is_some_and(|last| last.chunk >= chunk) {
            return Err(wrong("it does not come after the one before"));
        }
        let (from, to) =
            (usize::try_from(from).unwrap_or(usize::MAX), usize::try_from(to).unwrap_or(usize::MAX));
        let bytes = block.get(from..to).filter(|bytes| !bytes.is_empty() && from >= map_end);
        let bytes = bytes.ok_or_else(|| wrong("its exceptions are not inside the leaf"))?;
        let list = <[RawException]>::ref_from_bytes(bytes)
            .map_err(|_| wrong("its exceptions are no whole number"))?;
        let start = self.exceptions.len();
        let list = list.iter();
        self.exceptions
            .extend(list.map(|raw| Exception { share: raw.share.get(), physical: raw.chunk.get() }));
        self.entries.push(Entry { chunk, range: start..self.exceptions.len() });
        Ok(())
    }

    /// The exceptions of an entry of this leaf.
    #[must_use]
    pub fn of(&self, entry: &Entry) -> &[Exception] {
        self.exceptions.get(entry.range.clone()).unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Leaf {
        let exception = |share, physical| Exception { share, physical };
        Leaf {
            entries: vec![Entry { chunk: 3, range: 0..2 }, Entry { chunk: 9, range: 2..3 }],
            exceptions: vec![exception(1, 70), exception(6, 71), exception(4, 72)],
        }
    }

    #[test]
    fn leaves_and_nodes_are_read_as_they_were_written() {
        let leaf = sample();
        assert_eq!(Leaf::decode(&leaf.encode(512).unwrap()).unwrap(), leaf);
        assert_eq!(leaf.encode(24 + 3 * 8 + 3 * 16).map(|block| block.len()), Some(96));
        assert_eq!(leaf.encode(95), None);
        let node = Node { children: vec![(0, 8), (5, 16), (70, 24)] };
        assert_eq!(Node::decode(&node.encode(512).unwrap()).unwrap(), node);
        assert_eq!(node.encode(8 + 2 * 16), None);
        assert_eq!(Node { children: Vec::new() }.encode(512), None);
        assert_eq!((Node::capacity(512), Node::capacity(4096)), (31, 255));
    }

    #[test]
    fn what_belongs_to_nobody_is_left_out() {
        let kept = sample().only(0b110);
        assert_eq!(kept.entries.len(), 2);
        assert_eq!(kept.exceptions.iter().map(|exception| exception.share).collect::<Vec<_>>(), [6, 4]);
        let kept = sample().only(1);
        assert_eq!((kept.entries.len(), kept.exceptions.len()), (1, 1));
        assert_eq!(sample().only(8), Leaf::default());
    }

    #[test]
    fn a_lost_leaf_is_an_error_to_read_and_known_as_such() {
        let block = lost_leaf(512).unwrap();
        assert!(is_lost(&block) && has_leaf_magic(&block));
        assert!(Leaf::decode(&block).unwrap_err().what().contains("lost"));
        assert!(!is_lost(&sample().encode(512).unwrap()));
    }
}
