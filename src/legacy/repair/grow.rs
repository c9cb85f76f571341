//! A new tree of leaves that are there, in free blocks: nothing of the old one is overwritten.

use super::super::bits::Bits;
use super::super::blocks::Blocks;
use super::super::check::{Tally, Tree};
use super::super::space::Bitmap;
use super::salvage::{Kind, Piece};
use super::{What, Write, block_size};
use crate::error::Result;
use crate::format::legacy::SECTOR;
use crate::format::legacy::tree::{Leaf, Node, has_leaf_magic, lost_leaf};
use crate::point::finding::{Code, Finding};

/// A tree that is not written yet.
pub(super) struct Grown {
    pub writes: Vec<Write>,
    /// Sector and levels of its root.
    pub root: (u64, u32),
    /// Blocks that it consists of, and chunks that it leads to.
    pub own: Bits,
    pub chunks: Bits,
    /// What it does not have any more.
    pub lost: Vec<Finding>,
}

/// Something is missing: nothing can be grown.
type Why = String;

struct Grower<'a> {
    tree: &'a Tree<'a>,
    blocks: &'a Blocks,
    bitmap: Bitmap<'a>,
    /// The next block that may be free.
    next: u64,
    /// The snapshots that stay.
    live: u64,
    children: Vec<(u64, u64)>,
    /// What covers the chunks before the next piece is one that says that they are lost.
    is_lost: bool,
    grown: Grown,
}

/// Grows a tree of `pieces` without the snapshots of the mask `gone`.
///
/// # Errors
/// `Kind::Io`.
pub(super) fn grow(tree: &Tree<'_>, pieces: &[Piece], gone: u64) -> Result<std::result::Result<Grown, Why>> {
    let sb = tree.sb;
    let grown = Grown {
        writes: Vec::new(),
        root: (0, 0),
        own: Bits::new(sb.metadata.chunks),
        chunks: Bits::new(sb.data_space().chunks),
        lost: Vec::new(),
    };
    let mut grower = Grower {
        tree,
        blocks: tree.blocks,
        bitmap: Bitmap::new(tree.blocks, sb.metadata, tree.deferred),
        next: 0,
        live: sb.live() & !gone,
        children: Vec::new(),
        is_lost: false,
        grown,
    };
    let mut told = Tally::new(sb);
    if gone != 0 {
        let text = || "the deletion that was interrupted is ended: the snapshot is no more".into();
        told.add_whole(Code::LegacyDeletion, None, gone, text);
    }
    for (at, piece) in pieces.iter().enumerate() {
        let high = pieces.get(at + 1).map_or(u64::MAX, |next| next.low);
        if piece.kind == Kind::Lost {
            let text = || format!("nothing tells what was preserved of the chunks from {} on", piece.low);
            told.add_chunks(Code::LegacyLost, None, (grower.live, piece.low..high), text);
        }
        if let Err(why) = grower.add(piece)? {
            return Ok(Err(why));
        }
    }
    if let Err(why) = grower.finish()? {
        return Ok(Err(why));
    }
    let mut grown = grower.grown;
    grown.lost = told.into_findings();
    Ok(Ok(grown))
}

impl Grower<'_> {
    fn add(&mut self, piece: &Piece) -> Result<std::result::Result<(), Why>> {
        let size = block_size(self.tree.sb);
        match piece.kind {
            Kind::Leaf(sector) => return self.add_leaf(piece.low, sector),
            Kind::Marked(sector) if !self.blocks.moved.contains_key(&sector) => self.keep(piece.low, sector),
            Kind::Lost | Kind::Marked(_) => {
                if let Err(why) = self.put(piece.low, lost_leaf(size))? {
                    return Ok(Err(why));
                }
            }
        }
        self.is_lost = true;
        Ok(Ok(()))
    }

    fn add_leaf(&mut self, low: u64, sector: u64) -> Result<std::result::Result<(), Why>> {
        let leaf = Leaf::decode(&self.blocks.read(sector)?)?;
        let kept = leaf.only(self.live);
        if kept.entries.is_empty() {
            return self.add_empty(low);
        }
        kept.exceptions.iter().for_each(|exception| _ = self.grown.chunks.set(exception.physical));
        self.is_lost = false;
        if kept == leaf && !self.blocks.moved.contains_key(&sector) {
            self.keep(low, sector);
            return Ok(Ok(()));
        }
        self.put(low, kept.encode(block_size(self.tree.sb)))
    }

    /// The leaf before goes on, unless there is none, or one that says that everything is lost.
    fn add_empty(&mut self, low: u64) -> Result<std::result::Result<(), Why>> {
        if !self.children.is_empty() && !self.is_lost {
            return Ok(Ok(()));
        }
        self.is_lost = false;
        self.put(low, Leaf::default().encode(block_size(self.tree.sb)))
    }

    fn keep(&mut self, low: u64, sector: u64) {
        self.grown.own.set(sector / self.blocks.sectors());
        self.children.push((low, sector));
    }

    /// Puts a block to a free place, as the child for the chunks from `low` on.
    fn put(&mut self, low: u64, block: Option<Vec<u8>>) -> Result<std::result::Result<(), Why>> {
        let Some(block) = block else { return Ok(Err("a part of the new tree does not fit a block".into())) };
        let Some(sector) = self.free(&block)? else {
            return Ok(Err("there are not enough free blocks for a new tree".into()));
        };
        let write = Write::of(self.blocks.device(), What::Tree, sector * SECTOR, block)?;
        // What lies in a free block is nobody's, and of a large tree it is much.
        self.grown.writes.extend(write.map(|write| Write { old: Vec::new(), ..write }));
        self.keep(low, sector);
        Ok(Ok(()))
    }

    /// A block that nothing uses, that the journal does not lie over, and that looks like no leaf: should the bitmap
    /// be wrong, that would be the last copy. What a repair that was cut short wrote is taken again.
    fn free(&mut self, wanted: &[u8]) -> Result<Option<u64>> {
        let tree = self.tree;
        while self.next < self.blocks.count {
            let block = self.next;
            self.next += 1;
            let sector = block * self.blocks.sectors();
            let is_data = tree.sb.data.is_none() && tree.chunks.has(block);
            if !self.bitmap.is_used(block)?
                && !tree.own.has(block)
                && !is_data
                && self.blocks.area(sector).is_none()
                && !self.blocks.moved.contains_key(&sector)
            {
                let there = self.blocks.read_home(sector)?;
                if has_leaf_magic(&there) && there != wanted {
                    continue;
                }
                return Ok(Some(sector));
            }
        }
        Ok(None)
    }

    /// Levels of nodes up to a root.
    fn finish(&mut self) -> Result<std::result::Result<(), Why>> {
        let size = block_size(self.tree.sb);
        let mut levels = 0;
        while levels == 0 || self.children.len() > 1 {
            let below = std::mem::take(&mut self.children);
            for children in below.chunks(Node::capacity(size).max(1)) {
                let low = children.first().map_or(0, |child| child.0);
                let node = Node { children: children.to_vec() };
                if let Err(why) = self.put(low, node.encode(size))? {
                    return Ok(Err(why));
                }
            }
            levels += 1;
        }
        let Some((_, sector)) = self.children.first() else {
            return Ok(Err("nothing is left of the tree".into()));
        };
        self.grown.root = (*sector, levels);
        Ok(Ok(()))
    }
}
