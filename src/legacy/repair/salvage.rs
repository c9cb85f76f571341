//! Which leaves are left of a tree that is broken, and what cannot be told any more.
//!
//! Where nodes are whole they say which chunks a lost block covered. Into that gap go leaves that nothing leads to.
//! They prove that nothing else is missing if with them everything that the bitmaps say is in use is explained;
//! otherwise whatever lies between them cannot be told.

use super::super::bits::Bits;
use super::super::blocks::Blocks;
use super::super::check::Tree;
use super::super::walk::{Broken, Care, Rule, Walk};
use super::orphans::{Orphan, Orphans};
use crate::error::Result;
use crate::format::legacy::superblock::Superblock;
use crate::format::legacy::tree::Leaf;
use crate::point::finding::Code;

/// What covers the chunks from `low` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// First chunk that it covers; it goes as far as the next piece begins.
    pub low: u64,
    pub kind: Kind,
}

/// What a piece is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A leaf, at this sector.
    Leaf(u64),
    /// Nothing tells what was preserved here.
    Lost,
    /// A leaf that says so already, at this sector.
    Marked(u64),
}

/// A part of the tree as a walk finds it.
struct Part {
    low: u64,
    high: Option<u64>,
    kind: Option<Kind>,
    /// First and last chunk of a leaf.
    first: u64,
    last: u64,
}

impl Part {
    fn new((low, high): (u64, Option<u64>), kind: Option<Kind>) -> Self {
        Self { low, high, kind, first: low, last: low }
    }
}

/// A walk that notes where the tree is broken.
pub(super) struct Collect<'a> {
    blocks: &'a Blocks,
    /// Blocks that the walk has seen.
    pub seen: Bits,
    /// Blocks of the tree that are damaged.
    pub damaged: Vec<u64>,
    parts: Vec<Part>,
}

impl Care for &mut Collect<'_> {
    fn enter(&mut self, sector: u64, low: u64, high: Option<u64>) -> Result<bool> {
        if !self.blocks.is_place(sector) {
            return Ok(true);
        }
        if self.blocks.area(sector).is_some() {
            // Reading it says so.
            return Ok(true);
        }
        let is_new = self.seen.set(sector / self.blocks.sectors());
        if !is_new {
            self.parts.push(Part::new((low, high), None));
        }
        Ok(is_new)
    }

    fn broken(&mut self, broken: Broken) -> Result<bool> {
        let Broken { rule, sector, low, high, .. } = broken;
        let kind = match rule {
            // It is found as a leaf as well.
            Rule::Order => return Ok(true),
            Rule::Lost => Some(Kind::Marked(sector)),
            Rule::Place => None,
            // With a wrong count of levels it is what it is all the same, and is found among what nothing leads to.
            Rule::Node if Leaf::decode(&self.blocks.read(sector)?).is_ok() => {
                self.seen.unset(sector / self.blocks.sectors());
                None
            }
            Rule::Node | Rule::Leaf => {
                self.damaged.push(sector);
                None
            }
        };
        self.parts.push(Part::new((low, high), kind));
        Ok(true)
    }
}

/// What a new tree is made of, in order of chunks; or why none can be made.
///
/// # Errors
/// `Kind::Io`.
pub(super) fn pieces(tree: &Tree<'_>) -> Result<std::result::Result<Vec<Piece>, String>> {
    let (sb, blocks) = (tree.sb, tree.blocks);
    let seen = Bits::new(sb.metadata.chunks);
    let mut collect = Collect { blocks, seen, damaged: Vec::new(), parts: Vec::new() };
    let mut walk = Walk::with(blocks, tree.root, &mut collect);
    while let Some(found) = walk.next_leaf()? {
        walk.take_nodes();
        let &[sector] = found.sectors.as_slice() else {
            return Ok(Err("leaves that have the same chunks cannot be put into a new tree".into()));
        };
        let mut part = Part::new((found.low, None), Some(Kind::Leaf(sector)));
        if let (Some(first), Some(last)) = (found.leaf.entries.first(), found.leaf.entries.last()) {
            (part.first, part.last) = (first.chunk.into(), last.chunk.into());
        }
        walk.care.parts.push(part);
    }
    if collect.parts.windows(2).any(|pair| pair[0].low >= pair[1].low) {
        return Ok(Err("parts of the tree that have the same chunks cannot be put into a new one".into()));
    }
    widen(&mut collect.parts);
    let is_broken = collect.parts.iter().any(|part| part.kind.is_none());
    if !is_broken && !tree.tally.has(Code::LegacyOrphan) {
        let whole = collect.parts.iter().filter_map(|part| Some(Piece { low: part.low, kind: part.kind? }));
        return Ok(Ok(whole.collect()));
    }
    let orphans = match Orphans::find(tree, &collect)? {
        Ok(orphans) => orphans,
        Err(why) => return Ok(Err(why)),
    };
    let is_inside = |orphan: &Orphan| {
        let at = collect.parts.partition_point(|part| part.low <= orphan.first);
        let part = at.checked_sub(1).and_then(|at| collect.parts.get(at));
        let Some(part) = part else { return false };
        part.kind.is_none() && part.high.is_none_or(|high| orphan.last < high)
    };
    // Leaves that belong into no gap: the tree has lost its root, and nothing tells which gaps there are.
    let end = end_of(sb);
    if !orphans.leaves.iter().all(is_inside) {
        return Ok(from_scratch(&collect, &orphans, end));
    }
    let mut pieces = Vec::new();
    for part in &collect.parts {
        match part.kind {
            Some(kind) => pieces.push(Piece { low: part.low, kind }),
            None => {
                let inside = |orphan: &&Orphan| {
                    orphan.first >= part.low && part.high.is_none_or(|high| orphan.last < high)
                };
                let leaves: Vec<Orphan> = orphans.leaves.iter().filter(inside).copied().collect();
                fill(
                    (part.low, part.high.unwrap_or(u64::MAX).min(end)),
                    &leaves,
                    orphans.is_all,
                    &mut pieces,
                );
            }
        }
    }
    Ok(Ok(pieces))
}

/// A key may be damaged with what it leads to, so a broken part begins behind the last chunk before it and goes as far
/// as the first one behind it.
fn widen(parts: &mut [Part]) {
    for at in 0..parts.len() {
        let before = at.checked_sub(1).and_then(|before| parts.get(before));
        let known = match before.map(|before| (before.kind, before.last)) {
            None => 0,
            Some((Some(Kind::Leaf(_)), last)) => last.saturating_add(1),
            Some(_) => u64::MAX,
        };
        let [part, rest @ ..] = &mut parts[at..] else { break };
        if part.kind.is_some() {
            continue;
        }
        part.low = part.low.min(known);
        if let Some(next) = rest.first_mut() {
            next.low = next.low.max(next.first);
            part.high = Some(next.low);
        }
    }
}

/// One past the last chunk that a snapshot has.
fn end_of(sb: &Superblock) -> u64 {
    let sizes = sb.snapshots.iter().map(|snapshot| snapshot.sectors.saturating_mul(512));
    sizes.max().unwrap_or(0).div_ceil(1 << sb.chunk_bits())
}

/// Every leaf there is, whatever nodes say; only if there can be no others.
fn from_scratch(
    collect: &Collect<'_>,
    orphans: &Orphans,
    end: u64,
) -> std::result::Result<Vec<Piece>, String> {
    if !orphans.is_all {
        return Err("there are leaves outside the tree, and more is in use than they explain".into());
    }
    let mut leaves = orphans.leaves.clone();
    for part in &collect.parts {
        match part.kind {
            Some(Kind::Leaf(sector)) => leaves.push(Orphan { sector, first: part.low, last: part.last }),
            Some(_) => return Err("what an earlier repair marked as lost has no place in a new tree".into()),
            None => {}
        }
    }
    if leaves.is_empty() {
        return Err("there are no leaves".into());
    }
    leaves.sort_unstable_by_key(|leaf| leaf.first);
    if leaves.windows(2).any(|pair| pair[0].last >= pair[1].first) {
        return Err("leaves that have the same chunks cannot be put into a new tree".into());
    }
    let mut pieces = Vec::new();
    fill((0, end), &leaves, true, &mut pieces);
    Ok(pieces)
}

/// Fills the gap from `low` to before `high` with `leaves`; between them nothing was, if they are all there is.
fn fill((low, high): (u64, u64), leaves: &[Orphan], is_all: bool, pieces: &mut Vec<Piece>) {
    let mut next = low;
    for leaf in leaves {
        // A leaf goes as far as the next piece begins.
        let begin = if is_all && next == low { low } else { leaf.first };
        if !is_all && next < leaf.first {
            pieces.push(Piece { low: next, kind: Kind::Lost });
        }
        pieces.push(Piece { low: begin, kind: Kind::Leaf(leaf.sector) });
        next = leaf.last.saturating_add(1);
    }
    // A block that is damaged was there for something.
    if (!is_all || leaves.is_empty()) && next < high {
        pieces.push(Piece { low: next, kind: Kind::Lost });
    }
}
