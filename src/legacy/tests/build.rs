//! Makes stores of 2008 from models, and the states that crashes of the original left.

use super::model::{Model, Random, content, image};
use crate::block::memory::Memory;
use crate::format::legacy::journal::{MAGIC as COMMIT_MAGIC, RawCommit};
use crate::format::legacy::superblock::{
    BUSY, MAGIC, RawSnapshot, RawSnapshot04, RawSpace, RawSuperblock, RawSuperblock04, Release,
};
use crate::format::legacy::tree::{LEAF_MAGIC, RawChild, RawException, RawLeaf, RawMapEntry, RawNode};
use crate::legacy::{Devices, Store};
use crate::progress::Silent;
use std::collections::BTreeMap;
use std::sync::Arc;
use zerocopy::{FromZeros, IntoBytes};

/// How a store is laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub block_bits: u32,
    pub chunk_bits: u32,
    pub separate: bool,
    pub release: Release,
    pub journal: u32,
    /// Most chunks in a leaf, and children of a node.
    pub leaf_max: usize,
    pub node_max: usize,
    /// Where blocks go: 0 in order, else anywhere.
    pub seed: u64,
}

impl Shape {
    pub const COMBINED: Self = Self {
        block_bits: 9,
        chunk_bits: 9,
        separate: false,
        release: Release::R10,
        journal: 20,
        leaf_max: 4,
        node_max: 31,
        seed: 1,
    };
    pub const SEPARATE: Self =
        Self { block_bits: 12, chunk_bits: 10, separate: true, seed: 0, ..Self::COMBINED };
}

/// One transaction in a journal.
#[derive(Clone, Default)]
pub(crate) struct Transaction {
    /// Home sector and content of each block.
    pub blocks: Vec<(u64, Vec<u8>)>,
    pub deferred: (u64, u32),
    pub is_barrier: bool,
}

/// A child of a node, or the root: first chunk, sector.
type Child = (u64, u64);

/// A store as bytes, with what was put where.
#[derive(Clone)]
pub(crate) struct Built {
    pub shape: Shape,
    pub origin: Vec<u8>,
    /// The data device; empty in the combined layout.
    pub data: Vec<u8>,
    pub metadata: Vec<u8>,
    pub sb: RawSuperblock,
    /// Sectors of the leaves, then of each level of nodes upwards; the root is the last.
    pub levels: Vec<Vec<u64>>,
    /// Sectors that nothing uses.
    pub spare: Vec<u64>,
    /// Physical chunk of each version of each logical chunk.
    pub places: BTreeMap<(u64, u64), u64>,
}

/// Leaves as they will be: chunk and its exceptions (mask, physical chunk).
type Entries = Vec<(u32, Vec<(u64, u64)>)>;

impl Built {
    pub fn new(shape: Shape, model: &Model) -> Self {
        Self::with_leaves(shape, model, |entries| pack(shape, entries))
    }

    /// As `new`, with leaves cut by `cut`: first chunk (a key) and entries of each.
    pub fn with_leaves(shape: Shape, model: &Model, cut: impl Fn(Entries) -> Vec<(u64, Entries)>) -> Self {
        let chunk_size = 1usize << shape.chunk_bits;
        let lists: Vec<_> = (0..model.origin.len()).map(|chunk| model.exceptions(chunk)).collect();
        let exceptions = lists.iter().map(Vec::len).sum::<usize>() as u64;
        let mut built = Self::empty(shape, model, exceptions);
        let mut data_next = 0;
        let mut entries = Entries::new();
        for (chunk, list) in (0u32..).zip(lists) {
            let mut placed = Vec::new();
            for (mask, version) in list {
                let at = if shape.separate {
                    data_next += 1;
                    data_next - 1
                } else {
                    built.take() / built.sectors()
                };
                built.places.insert((chunk.into(), version), at);
                let device = if shape.separate { &mut built.data } else { &mut built.metadata };
                let begin = usize::try_from(at).unwrap() * chunk_size;
                device[begin..begin + chunk_size].copy_from_slice(&content(version, chunk_size));
                placed.push((mask, at));
            }
            if !placed.is_empty() {
                entries.push((chunk, placed));
            }
        }
        let mut children = Vec::new();
        for (key, leaf) in cut(entries) {
            let sector = built.take();
            built.put(sector, &leaf_block(shape.block_bits, &leaf));
            children.push((key, sector));
        }
        built.levels.push(children.iter().map(|child| child.1).collect());
        built.grow_tree(children);
        built.finish();
        built
    }

    /// The areas, no tree and no data.
    fn empty(shape: Shape, model: &Model, exceptions: u64) -> Self {
        let block = 1u64 << shape.block_bits;
        let head = (16 * 512u64).div_ceil(block);
        let room = 40 + exceptions * if shape.separate { 1 } else { 2 };
        let data_chunks = if shape.separate { exceptions + 3 } else { 0 };
        let data_bitmap = data_chunks.div_ceil(8 * block);
        let base = head + data_bitmap + u64::from(shape.journal) + room;
        let bitmap = (base + 8).div_ceil(8 * block);
        let blocks = base + bitmap;
        let sectors = block / 512;
        let space = |first: u64, chunks: u64, bitmap: u64, bits: u32| RawSpace {
            bitmap_base: (first * sectors).into(),
            chunks: chunks.into(),
            bitmap_blocks: bitmap.into(),
            bits: bits.into(),
            ..RawSpace::new_zeroed()
        };
        let mut sb = RawSuperblock::new_zeroed();
        sb.magic = MAGIC;
        sb.created.set(1_200_000_000);
        sb.origin_sectors.set((model.origin.len() as u64) << shape.chunk_bits >> 9);
        sb.snapshots.set(u32::try_from(model.snapshots.len()).unwrap());
        for (raw, held) in sb.table.iter_mut().zip(&model.snapshots) {
            raw.created.set(1_200_000_000 + held.tag % 1000);
            raw.tag.set(held.tag);
            raw.use_count.set(3);
            raw.bit = held.bit;
            raw.priority = -5;
            raw.sectors.set(held.chunks << shape.chunk_bits >> 9);
        }
        let journal = head + bitmap + data_bitmap;
        sb.journal_base.set(u32::try_from(journal * sectors).unwrap());
        sb.journal_size.set(shape.journal);
        sb.sequence.set(shape.journal);
        sb.metadata = space(head, blocks, bitmap, shape.block_bits);
        sb.data = space(head + bitmap, data_chunks, data_bitmap, shape.chunk_bits);
        if !shape.separate {
            sb.data = RawSpace { bits: shape.block_bits.into(), ..RawSpace::new_zeroed() };
        }
        let first = journal + u64::from(shape.journal);
        let mut spare: Vec<u64> = (first..blocks).map(|number| number * sectors).collect();
        let mut random = Random(shape.seed);
        for at in (1..spare.len()).rev().filter(|_| shape.seed != 0) {
            spare.swap(at, random.below(at + 1));
        }
        spare.reverse();
        let bytes = |chunks: u64, bits: u32| vec![0xa5; usize::try_from(chunks << bits).unwrap()];
        Self {
            shape,
            origin: image(&model.origin, 1 << shape.chunk_bits),
            data: bytes(data_chunks, shape.chunk_bits),
            metadata: bytes(blocks, shape.block_bits),
            sb,
            levels: Vec::new(),
            spare,
            places: BTreeMap::new(),
        }
    }

    pub fn sectors(&self) -> u64 {
        1 << (self.shape.block_bits - 9)
    }

    pub fn root(&self) -> u64 {
        self.levels.last().unwrap()[0]
    }

    /// A block that nothing used.
    pub fn take(&mut self) -> u64 {
        self.spare.pop().unwrap()
    }

    pub fn put(&mut self, sector: u64, bytes: &[u8]) {
        let at = usize::try_from(sector).unwrap() * 512;
        self.metadata[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn get(&self, sector: u64) -> Vec<u8> {
        let at = usize::try_from(sector).unwrap() * 512;
        self.metadata[at..at + (1 << self.shape.block_bits)].to_vec()
    }

    /// Levels of nodes over `children` up to a root.
    fn grow_tree(&mut self, mut children: Vec<Child>) {
        while self.levels.len() < 2 || children.len() > 1 {
            let mut above = Vec::new();
            for part in children.chunks(self.shape.node_max) {
                let sector = self.take();
                self.put(sector, &node_block(self.shape.block_bits, part));
                above.push((part[0].0, sector));
            }
            self.levels.push(above.iter().map(|child| child.1).collect());
            children = above;
        }
    }

    /// Writes bitmaps, an untouched journal and the superblock.
    pub fn finish(&mut self) {
        self.sb.root.set(self.root());
        self.sb.levels.set(u32::try_from(self.levels.len() - 1).unwrap());
        let spare: std::collections::BTreeSet<u64> =
            self.spare.iter().map(|sector| sector / self.sectors()).collect();
        let (metadata, data) = (self.sb.metadata, self.sb.data);
        let free = self.put_bitmap(metadata, |block| !spare.contains(&block));
        self.sb.metadata.free.set(free);
        let used: std::collections::BTreeSet<u64> = self.places.values().copied().collect();
        if self.shape.separate {
            let free = self.put_bitmap(data, |chunk| used.contains(&chunk));
            self.sb.data.free.set(free);
        }
        self.journal(0, self.shape.journal, &[]);
        self.seal();
    }

    /// Writes a bitmap; returns how many are free.
    fn put_bitmap(&mut self, space: RawSpace, is_used: impl Fn(u64) -> bool) -> u64 {
        let mut bytes =
            vec![0u8; usize::try_from(space.bitmap_blocks.get() << self.shape.block_bits).unwrap()];
        let chunks = space.chunks.get();
        for chunk in (0..chunks.next_multiple_of(8)).filter(|chunk| *chunk >= chunks || is_used(*chunk)) {
            bytes[usize::try_from(chunk / 8).unwrap()] |= 1 << (chunk % 8);
        }
        self.put(space.bitmap_base.get(), &bytes);
        (0..chunks).filter(|chunk| !is_used(*chunk)).count() as u64
    }

    /// Marks the block at `sector` as free or in use.
    pub fn mark(&mut self, sector: u64, used: bool) {
        let block = usize::try_from(sector / self.sectors()).unwrap();
        let at = usize::try_from(self.sb.metadata.bitmap_base.get()).unwrap() * 512 + block / 8;
        self.metadata[at] &= !(1 << (block % 8));
        self.metadata[at] |= u8::from(used) << (block % 8);
    }

    /// Fills the ring with empty commits that end before `sequence`, then puts `transactions` at `position` on.
    pub fn journal(&mut self, position: u32, sequence: u32, transactions: &[Transaction]) {
        let size = self.shape.journal;
        let place = |at: u32| u64::from(at % size) * self.sectors() + u64::from(self.sb.journal_base.get());
        let mut writes = Vec::new();
        for back in 1..=size {
            let commit =
                commit_block(self.shape.block_bits, sequence.wrapping_sub(back), &Transaction::default());
            writes.push((place(position + size - back % size), commit));
        }
        let mut at = position;
        for (number, transaction) in (0u32..).zip(transactions) {
            for (_, block) in &transaction.blocks {
                writes.push((place(at), block.clone()));
                at += 1;
            }
            let commit = commit_block(self.shape.block_bits, sequence.wrapping_add(number), transaction);
            writes.push((place(at), commit));
            at += 1;
        }
        for (sector, block) in writes {
            self.put(sector, &block);
        }
    }

    /// The blocks at `sectors`, as a transaction; what is at home becomes junk.
    pub fn lose(&mut self, sectors: &[u64]) -> Transaction {
        let blocks: Vec<_> = sectors.iter().map(|sector| (*sector, self.get(*sector))).collect();
        for sector in sectors {
            let junk = vec![0xdb; 1 << self.shape.block_bits];
            self.put(*sector, &junk);
        }
        Transaction { blocks, ..Transaction::default() }
    }

    /// Every block of the tree and of the bitmaps.
    pub fn metadata_sectors(&self) -> Vec<u64> {
        let bitmap = |space: RawSpace| {
            (0..space.bitmap_blocks.get()).map(move |at| space.bitmap_base.get() + at * self.sectors())
        };
        let tree = self.levels.iter().flatten().copied();
        bitmap(self.sb.metadata).chain(bitmap(self.sb.data)).chain(tree).collect()
    }

    /// Says that the store was not shut down cleanly.
    pub fn crash(&mut self) {
        self.sb.flags.set(BUSY);
        self.seal();
    }

    /// Writes the superblock.
    pub fn seal(&mut self) {
        let mut bytes = vec![0; 4096];
        match self.shape.release {
            Release::R10 => bytes[..1712].copy_from_slice(self.sb.as_bytes()),
            Release::R04 => bytes[..1200].copy_from_slice(narrow(&self.sb).as_bytes()),
        }
        self.put(8, &bytes);
    }

    pub fn devices(&self) -> Devices {
        let memory = |bytes: &[u8], name: &str| Arc::new(Memory::from_bytes(bytes).named(name));
        let metadata = memory(&self.metadata, "metadata");
        let origin = memory(&self.origin, "origin");
        if self.shape.separate {
            let store = memory(&self.data, "store");
            return Devices { store, metadata: Some(metadata), origin: Some(origin) };
        }
        Devices { store: metadata, metadata: None, origin: Some(origin) }
    }

    pub fn open(&self) -> crate::error::Result<Store> {
        Store::open(self.devices(), None, &Silent)
    }
}

/// The superblock as release 0.4 had it.
fn narrow(sb: &RawSuperblock) -> RawSuperblock04 {
    let mut old = RawSuperblock04::new_zeroed();
    (old.magic, old.created, old.root) = (sb.magic, sb.created, sb.root);
    (old.origin_sectors, old.flags, old.snapshots) = (sb.origin_sectors, sb.flags, sb.snapshots);
    (old.levels, old.journal_base, old.journal_next) = (sb.levels, sb.journal_base, sb.journal_next);
    (old.journal_size, old.sequence) = (sb.journal_size, sb.sequence);
    (old.metadata, old.data) = (sb.metadata, sb.data);
    for (old, new) in old.table.iter_mut().zip(sb.table) {
        let RawSnapshot { created, tag, use_count, bit, priority, .. } = new;
        *old = RawSnapshot04 { created, tag, use_count, bit, priority, padding: 0.into() };
    }
    old
}

/// Distributes entries over leaves, as many as the shape allows.
fn pack(shape: Shape, entries: Entries) -> Vec<(u64, Entries)> {
    let room = (1usize << shape.block_bits) - 32;
    let mut leaves = vec![(0, Entries::new())];
    let mut taken = 0;
    for entry in entries {
        let size = 8 + 16 * entry.1.len();
        let last = leaves.last_mut().unwrap();
        if taken + size > room || last.1.len() == shape.leaf_max {
            leaves.push((entry.0.into(), Entries::new()));
            taken = 0;
        }
        taken += size;
        leaves.last_mut().unwrap().1.push(entry);
    }
    leaves
}

pub(crate) fn leaf_block(bits: u32, entries: &[(u32, Vec<(u64, u64)>)]) -> Vec<u8> {
    let mut block = vec![0x5a; 1 << bits];
    let head = RawLeaf {
        magic: LEAF_MAGIC.into(),
        version: 0.into(),
        count: u32::try_from(entries.len()).unwrap().into(),
        base_chunk: 0.into(),
        using_mask: 0.into(),
    };
    block[..24].copy_from_slice(head.as_bytes());
    let total: usize = entries.iter().map(|entry| entry.1.len()).sum();
    let mut at = block.len() - 16 * total;
    let mut map = 24;
    for (chunk, list) in entries {
        let entry = RawMapEntry { offset: u32::try_from(at).unwrap().into(), chunk: (*chunk).into() };
        block[map..map + 8].copy_from_slice(entry.as_bytes());
        map += 8;
        for (share, physical) in list {
            let exception = RawException { share: (*share).into(), chunk: (*physical).into() };
            block[at..at + 16].copy_from_slice(exception.as_bytes());
            at += 16;
        }
    }
    let sentinel = RawMapEntry { offset: u32::try_from(at).unwrap().into(), chunk: 0.into() };
    block[map..map + 8].copy_from_slice(sentinel.as_bytes());
    block
}

pub(crate) fn node_block(bits: u32, children: &[Child]) -> Vec<u8> {
    let mut block = vec![0; 1 << bits];
    let head = RawNode { count: u32::try_from(children.len()).unwrap().into(), unused: 0.into() };
    block[..8].copy_from_slice(head.as_bytes());
    for (number, (key, sector)) in children.iter().enumerate() {
        let child = RawChild { key: (*key).into(), sector: (*sector).into() };
        block[8 + 16 * number..24 + 16 * number].copy_from_slice(child.as_bytes());
    }
    block
}

/// A commit block, with the sum that the original computed over its first words.
fn commit_block(bits: u32, sequence: u32, transaction: &Transaction) -> Vec<u8> {
    let mut raw = RawCommit::new_zeroed();
    raw.magic = COMMIT_MAGIC;
    raw.sequence.set(sequence);
    raw.entries.set(u32::try_from(transaction.blocks.len()).unwrap());
    let mut sum = 0x6963_7070u32;
    if bits >= 16 {
        sum = sum.wrapping_sub(sequence);
    }
    raw.checksum.set(sum);
    raw.deferred.set(transaction.deferred.0);
    raw.range.set(transaction.deferred.1 << 1 | u32::from(transaction.is_barrier));
    let mut block = vec![0; 1 << bits];
    block[..52].copy_from_slice(raw.as_bytes());
    for (number, (home, _)) in transaction.blocks.iter().enumerate() {
        block[52 + 8 * number..60 + 8 * number].copy_from_slice(&home.to_le_bytes());
    }
    block
}
