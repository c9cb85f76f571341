//! What a dump may see of a store of 2008: its structures as they lie there, sound or not.

use super::bits::Bits;
use super::blocks::Blocks;
use super::check::{Tally, look};
use super::recover::{Recovered, commit_at, recover};
use super::space::Bitmap;
use super::store::{Devices, ensure_pair, superblock_of};
use super::walk::{Broken, Care, Root, Walk};
use crate::block::ReadAt;
use crate::error::{Error, Result};
use crate::format::legacy::SECTOR;
use crate::format::legacy::journal::Commit;
use crate::format::legacy::superblock::{self, Candidate, Release, Space, Superblock};
use crate::format::legacy::tree::Exception;
use crate::progress::Progress;
use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::sync::Arc;

/// The superblock of a store, and what it may mean.
pub struct Inspector {
    metadata: Arc<dyn ReadAt>,
    /// The bytes of the superblock.
    pub block: Vec<u8>,
    /// A repair that was cut short has decided what they become.
    is_decided: bool,
    /// Each layout that they can have, the likeliest first.
    pub candidates: Vec<Candidate>,
}

impl Inspector {
    /// Reads the superblock. `release` says which layout it has, if the user knows.
    ///
    /// # Errors
    /// `Kind::Io`; `Kind::Damaged` if there is none.
    pub fn open(devices: &Devices, release: Option<Release>) -> Result<Self> {
        let metadata = Arc::clone(devices.metadata.as_ref().unwrap_or(&devices.store));
        let (block, is_decided) = superblock_of(metadata.as_ref())?;
        let mut candidates = superblock::candidates(&block, metadata.size())?;
        candidates.retain(|candidate| release.is_none_or(|release| candidate.superblock.release == release));
        candidates.sort_by_key(|candidate| !candidate.is_usable());
        Ok(Self { metadata, block, is_decided, candidates })
    }

    /// The device with the metadata.
    #[must_use]
    pub fn device(&self) -> &dyn ReadAt {
        self.metadata.as_ref()
    }

    /// What lies behind the superblock, in the likeliest layout; a journal that counts is laid over it.
    ///
    /// # Errors
    /// `Kind::Damaged` if that is not to be found, `Kind::Mismatch` for devices that do not belong together,
    /// `Kind::Io`, `Kind::Interrupted`.
    pub fn metadata(&self, devices: &Devices, progress: &dyn Progress) -> Result<Metadata> {
        let usable = self.candidates.iter().find(|candidate| candidate.is_usable());
        let sb = usable.ok_or_else(|| Error::damaged("no layout of the superblock makes sense"))?;
        let sb = sb.superblock.clone();
        ensure_pair(&sb, devices)?;
        let mut blocks = Blocks::new(Arc::clone(&self.metadata), &sb);
        let recovered = recover(&sb, &mut blocks)?;
        let root = look(&sb, &blocks, &recovered, Tally::of(&sb, self.is_decided), progress)?.root;
        Ok(Metadata { sb, blocks, root, recovered })
    }
}

/// The metadata behind a superblock.
pub struct Metadata {
    sb: Superblock,
    blocks: Blocks,
    root: Root,
    recovered: Recovered,
}

/// A block of the exception tree, in the order of a walk.
pub enum Seen {
    /// A node.
    Node(Place),
    /// A leaf; several can be for the same chunks.
    Leaf(Place),
    /// A block that was seen before, under other chunks.
    Again(Place),
    /// Something else, and why.
    Broken(Place, Error),
}

/// Where a block of the tree belongs.
#[derive(Debug, Clone)]
pub struct Place {
    /// Sector of its home.
    pub sector: u64,
    /// First chunk that it covers.
    pub low: u64,
    /// One past the last one; `None`: all further ones.
    pub high: Option<u64>,
}

impl Metadata {
    /// The superblock.
    #[must_use]
    pub fn superblock(&self) -> &Superblock {
        &self.sb
    }

    /// Sector of the root and index levels above the leaves, as recovery has them.
    #[must_use]
    pub fn root(&self) -> (u64, u32) {
        (self.root.sector, self.root.levels)
    }

    /// Blocks whose newest version is in the journal.
    #[must_use]
    pub fn in_journal(&self) -> usize {
        self.blocks.moved.len()
    }

    /// Chunks in use though the bitmap does not say so yet.
    #[must_use]
    pub fn deferred(&self) -> &BTreeSet<u64> {
        &self.recovered.deferred
    }

    /// Why the journal does not tell what was done last.
    #[must_use]
    pub fn doubt(&self) -> Option<&str> {
        self.recovered.doubt.as_deref()
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_size(&self) -> u64 {
        self.blocks.size
    }

    /// The newest version of the block whose home is `sector`: its byte address, and its bytes.
    ///
    /// # Errors
    /// `Kind::Damaged` for a place where no block can be; `Kind::Io`.
    pub fn block(&self, sector: u64) -> Result<(u64, Vec<u8>)> {
        let place = self.blocks.moved.get(&sector).copied().unwrap_or(sector);
        Ok((place.saturating_mul(SECTOR), self.blocks.read(sector)?))
    }

    /// Byte address and bytes of block `position` of the journal, and the commit that it is, if it is a sound one.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn journal_block(&self, position: u64) -> Result<(u64, Vec<u8>, Option<Commit>)> {
        let sector = self.sb.journal_base.saturating_add(position.saturating_mul(self.blocks.sectors()));
        let block = self.blocks.read_home(sector)?;
        Ok((sector.saturating_mul(SECTOR), block, commit_at(&self.sb, &self.blocks, position)?))
    }

    /// The runs of chunks of `space` that are in use.
    pub fn used(&self, space: Space) -> impl Iterator<Item = Result<Range<u64>>> {
        let mut bitmap = Bitmap::new(&self.blocks, space, &self.recovered.deferred);
        let mut at = 0;
        let mut find = move || {
            while at < space.chunks && !bitmap.is_used(at)? {
                at += 1;
            }
            let start = at;
            while at < space.chunks && bitmap.is_used(at)? {
                at += 1;
            }
            Ok((start < at).then_some(start..at))
        };
        let mut failed = false;
        std::iter::from_fn(move || {
            let found = if failed { None } else { find().transpose() };
            failed = matches!(found, Some(Err(_)));
            found
        })
    }

    /// Hands over every block of the tree that can be reached, damaged ones too.
    ///
    /// # Errors
    /// `Kind::Io`; what `seen` says.
    pub fn tree(&self, seen: &mut dyn FnMut(Seen) -> Result<()>) -> Result<()> {
        let notes = Notes {
            known: Bits::new(self.blocks.count),
            sectors: self.blocks.sectors(),
            entered: Vec::new(),
            again: Vec::new(),
            broken: Vec::new(),
        };
        let mut walk = Walk::with(&self.blocks, self.root, notes);
        loop {
            let found = walk.next_leaf()?;
            let nodes: HashSet<u64> = walk.take_nodes().into_iter().collect();
            let notes = &mut walk.care;
            let mut broken = std::mem::take(&mut notes.broken);
            for place in std::mem::take(&mut notes.entered) {
                let at = broken.iter().position(|broken| broken.sector == place.sector);
                if let Some(at) = at.filter(|_| !nodes.contains(&place.sector)) {
                    seen(Seen::Broken(place, broken.swap_remove(at).error))?;
                } else if nodes.contains(&place.sector) {
                    seen(Seen::Node(place))?;
                } else {
                    seen(Seen::Leaf(place))?;
                }
            }
            for place in std::mem::take(&mut notes.again) {
                seen(Seen::Again(place))?;
            }
            for Broken { sector, low, high, error, .. } in broken {
                seen(Seen::Broken(Place { sector, low, high }, error))?;
            }
            if found.is_none() {
                return Ok(());
            }
        }
    }

    /// The exceptions of `chunk`, as far as the tree can be followed to it.
    ///
    /// # Errors
    /// `Kind::Io`, `Kind::Damaged`.
    pub fn exceptions(&self, chunk: u64) -> Result<Vec<Exception>> {
        let mut walk = Walk::new(&self.blocks, self.root, chunk)?;
        let Some(found) = walk.next_leaf()? else { return Ok(Vec::new()) };
        let entry = found.leaf.entries.iter().find(|entry| u64::from(entry.chunk) == chunk);
        Ok(entry.map(|entry| found.leaf.of(entry).to_vec()).unwrap_or_default())
    }
}

/// Goes on after damage, once through each block.
struct Notes {
    known: Bits,
    sectors: u64,
    entered: Vec<Place>,
    again: Vec<Place>,
    broken: Vec<Broken>,
}

impl Care for Notes {
    fn enter(&mut self, sector: u64, low: u64, high: Option<u64>) -> Result<bool> {
        let is_place = sector.is_multiple_of(self.sectors);
        if is_place && self.known.has(sector / self.sectors) {
            self.again.push(Place { sector, low, high });
            return Ok(false);
        }
        if is_place {
            self.known.set(sector / self.sectors);
        }
        self.entered.push(Place { sector, low, high });
        Ok(true)
    }

    fn broken(&mut self, broken: Broken) -> Result<bool> {
        self.broken.push(broken);
        Ok(true)
    }
}
