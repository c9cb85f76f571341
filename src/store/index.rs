//! Reading the index: runs on the device, newest first, under a memory table of the log since the checkpoint.
//!
//! Every block is checked against the checksum its parent keeps before a single key of it is believed, so
//! "not there" is as carefully proven as "there".

use crate::block::ReadAt;
use crate::error::{Error, Result};
use crate::format::checkpoint::{Piece, Run};
use crate::format::run::{self, BLOCK_SIZE, IndexEntry, Key, Value};
use std::collections::{BTreeMap, HashMap, btree_map};
use std::sync::{Arc, Mutex, PoisonError};

/// The memory table: what the log since the checkpoint adds to the runs.
pub type MemTable = BTreeMap<Key, Value>;

/// Blocks kept in each of the cache's two generations: at most 2 * 2048 decoded blocks, about 24 MiB.
const CACHE_BLOCKS: usize = 2048;

type Directory = Vec<(Key, u32)>;

/// Keyed by (run, position): run numbers are never reused, so a cached block can never be stale.
type CacheKey = (u64, u64);

#[derive(Clone)]
enum Cached {
    Block(Arc<Vec<IndexEntry>>),
    Directory(Arc<Directory>),
}

#[derive(Default)]
struct Cache {
    young: HashMap<CacheKey, Cached>,
    old: HashMap<CacheKey, Cached>,
}

impl Cache {
    fn get(&mut self, key: CacheKey) -> Option<Cached> {
        if let Some(found) = self.young.get(&key) {
            return Some(found.clone());
        }
        let found = self.old.remove(&key)?;
        self.put(key, found.clone());
        Some(found)
    }

    fn put(&mut self, key: CacheKey, value: Cached) {
        if self.young.len() >= CACHE_BLOCKS {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }
}

/// Reads verified index blocks through a small cache.
pub struct BlockReader {
    device: Arc<dyn ReadAt>,
    cache: Mutex<Cache>,
}

impl BlockReader {
    /// A reader of `device` with an empty cache.
    pub fn new(device: Arc<dyn ReadAt>) -> Self {
        Self { device, cache: Mutex::new(Cache::default()) }
    }

    fn cached(&self, key: CacheKey) -> Option<Cached> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(key)
    }

    fn keep(&self, key: CacheKey, value: Cached) {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).put(key, value);
    }

    fn fetch(&self, address: u64, crc: u32, run: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; BLOCK_SIZE];
        self.device.read_at(&mut bytes, address)?;
        let found = crate::format::run::block_crc(&bytes);
        if found != crc {
            return Err(Error::damaged(format!(
                "index block of run {run} has checksum {found:08x}, its parent says {crc:08x}"
            ))
            .at_offset(address)
            .hint("run `ddsnap fsck --rebuild` on the store"));
        }
        Ok(bytes)
    }

    /// The directory of `piece`.
    pub fn directory(&self, run: u64, piece: &Piece) -> Result<Arc<Directory>> {
        let key = (run, piece.position);
        if let Some(Cached::Directory(found)) = self.cached(key) {
            return Ok(found);
        }
        let bytes = self.fetch(piece.address, piece.crc, run)?;
        let directory = Arc::new(run::decode_directory(&bytes, run, piece.position)?);
        if directory.len() as u64 != u64::from(piece.blocks) {
            return Err(Error::damaged(format!(
                "index directory lists {} blocks, its parent says {}",
                directory.len(),
                piece.blocks
            ))
            .at_offset(piece.address));
        }
        self.keep(key, Cached::Directory(Arc::clone(&directory)));
        Ok(directory)
    }

    /// Data block `block` (from 0) of `piece`, which somebody may ask for again.
    pub fn block(&self, run: u64, piece: &Piece, block: usize, crc: u32) -> Result<Arc<Vec<IndexEntry>>> {
        let key = (run, piece.position + block as u64 + 1);
        if let Some(Cached::Block(found)) = self.cached(key) {
            return Ok(found);
        }
        let entries = self.block_once(run, piece, block, crc)?;
        self.keep(key, Cached::Block(Arc::clone(&entries)));
        Ok(entries)
    }

    /// As [`BlockReader::block`], for a walk that comes by once: fresh memory for a whole index costs more than
    /// decoding it.
    pub fn block_once(
        &self,
        run: u64,
        piece: &Piece,
        block: usize,
        crc: u32,
    ) -> Result<Arc<Vec<IndexEntry>>> {
        let number = block as u64 + 1;
        let bytes = self.fetch(piece.address + number * BLOCK_SIZE as u64, crc, run)?;
        Ok(Arc::new(run::decode_block(&bytes, run, piece.position + number)?))
    }
}

/// A run that is not written: entries in order, each key once, and change bits.
pub struct Loose {
    run: Run,
    entries: Arc<Vec<IndexEntry>>,
    /// The change bits.
    pub changes: MemTable,
}

impl Loose {
    /// Run `number`: exceptions and overlays, and change bits.
    pub fn new(number: u64, entries: Vec<IndexEntry>, changes: MemTable) -> Self {
        let run = Run { number, entries: entries.len() as u64, from: Key::MIN, pieces: Vec::new() };
        Self { run, entries: Arc::new(entries), changes }
    }

    /// Its number.
    pub fn number(&self) -> u64 {
        self.run.number
    }

    /// Its exceptions and overlays, in order.
    pub fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// The change bits of `all`, united.
    pub fn all_changes(all: &[Self]) -> MemTable {
        let mut united = MemTable::new();
        for (key, value) in all.iter().flat_map(|loose| &loose.changes) {
            unite(&mut united, *key, value.bits());
        }
        united
    }
}

/// Adds change `bits` to those that `table` keeps under `key`.
pub fn unite(table: &mut MemTable, key: Key, bits: u128) {
    let slot = table.entry(key).or_insert_with(|| Value::from_bits(0));
    *slot = Value::from_bits(slot.bits() | bits);
}

/// One of the ways to read a block.
type Read = fn(&BlockReader, u64, &Piece, usize, u32) -> Result<Arc<Vec<IndexEntry>>>;

/// Walks one run in key order.
pub struct RunCursor<'a> {
    reader: &'a BlockReader,
    run: &'a Run,
    piece: usize,
    directory: Option<Arc<Directory>>,
    block: usize,
    entries: Option<Arc<Vec<IndexEntry>>>,
    at: usize,
}

impl<'a> RunCursor<'a> {
    /// A cursor at the first key of `run` that is not below `key`.
    pub fn seek(reader: &'a BlockReader, run: &'a Run, key: Key) -> Result<Self> {
        let key = key.max(run.from);
        let piece = run.pieces.partition_point(|piece| piece.first <= key).saturating_sub(1);
        let mut cursor = Self { reader, run, piece, directory: None, block: 0, entries: None, at: 0 };
        if let Some(found) = run.pieces.get(piece) {
            let directory = reader.directory(run.number, found)?;
            cursor.block = directory.partition_point(|(first, _)| *first <= key).saturating_sub(1);
            cursor.directory = Some(directory);
            cursor.load(BlockReader::block)?;
            if let Some(entries) = &cursor.entries {
                cursor.at = entries.partition_point(|(found, _)| *found < key);
            }
            cursor.settle()?;
        }
        Ok(cursor)
    }

    /// A cursor at the first entry of `loose`, without its change bits.
    fn loose(reader: &'a BlockReader, loose: &'a Loose) -> Self {
        let entries = Some(Arc::clone(&loose.entries));
        Self { reader, run: &loose.run, piece: 0, directory: None, block: 0, entries, at: 0 }
    }

    /// The entry under the cursor.
    pub fn head(&self) -> Option<&IndexEntry> {
        self.entries.as_ref()?.get(self.at)
    }

    /// Moves on by one entry.
    pub fn advance(&mut self) -> Result<()> {
        self.at += 1;
        self.settle()
    }

    /// Moves past the ends of blocks and pieces until there is an entry or the run ends.
    fn settle(&mut self) -> Result<()> {
        while self.entries.as_ref().is_some_and(|entries| self.at >= entries.len()) {
            self.at = 0;
            self.block += 1;
            if self.directory.as_ref().is_some_and(|directory| self.block >= directory.len()) {
                self.piece += 1;
                self.block = 0;
                self.directory = match self.run.pieces.get(self.piece) {
                    Some(piece) => Some(self.reader.directory(self.run.number, piece)?),
                    None => None,
                };
            }
            self.load(BlockReader::block_once)?;
        }
        Ok(())
    }

    fn load(&mut self, read: Read) -> Result<()> {
        self.entries = None;
        let (Some(piece), Some(directory)) = (self.run.pieces.get(self.piece), &self.directory) else {
            return Ok(());
        };
        if let Some((_, crc)) = directory.get(self.block) {
            self.entries = Some(read(self.reader, self.run.number, piece, self.block, *crc)?);
        }
        Ok(())
    }
}

/// Walks memory table and runs together in key order. Where several hold a key the newest wins; change
/// bits are united.
pub struct Scan<'a> {
    reader: &'a BlockReader,
    memory: std::iter::Peekable<btree_map::Range<'a, Key, Value>>,
    cursors: Vec<RunCursor<'a>>,
    /// Values the last [`Scan::next_entry`] passed over because a newer one won.
    pub superseded: Vec<Value>,
    /// The run that the last entry came from; `None` for the memory table.
    pub source: Option<u64>,
}

impl<'a> Scan<'a> {
    /// A walk over `memory` and `runs` (newest first) from `key` on.
    pub fn new(reader: &'a BlockReader, memory: &'a MemTable, runs: &'a [Run], key: Key) -> Result<Self> {
        let cursors = runs.iter().map(|run| RunCursor::seek(reader, run, key)).collect::<Result<_>>()?;
        let memory = memory.range(key..).peekable();
        Ok(Self { reader, memory, cursors, superseded: Vec::new(), source: None })
    }

    /// The same walk with the exceptions and overlays of `loose` (newest first), which are newer than the runs.
    pub fn under(mut self, loose: &'a [Loose]) -> Self {
        let cursors = loose.iter().map(|loose| RunCursor::loose(self.reader, loose));
        self.cursors.splice(..0, cursors);
        self
    }

    /// The next entry.
    pub fn next_entry(&mut self) -> Result<Option<IndexEntry>> {
        self.superseded.clear();
        self.source = None;
        if let ([cursor], None) = (self.cursors.as_mut_slice(), self.memory.peek()) {
            let Some(entry) = cursor.head().copied() else { return Ok(None) };
            self.source = Some(cursor.run.number);
            cursor.advance()?;
            return Ok(Some(entry));
        }
        let mut least = self.memory.peek().map(|(key, _)| **key);
        for (key, _) in self.cursors.iter().filter_map(RunCursor::head) {
            if least.is_none_or(|least| *key < least) {
                least = Some(*key);
            }
        }
        let Some(key) = least else { return Ok(None) };
        let mut best: Option<Value> = None;
        if self.memory.peek().is_some_and(|(found, _)| **found == key) {
            best = self.memory.next().map(|(_, value)| *value);
        }
        for cursor in &mut self.cursors {
            let Some((found, value)) = cursor.head().copied() else { continue };
            if found != key {
                continue;
            }
            best = Some(match best {
                None => {
                    self.source = Some(cursor.run.number);
                    value
                }
                Some(newer) if key.class == 2 => Value::from_bits(newer.bits() | value.bits()),
                Some(newer) => {
                    self.superseded.push(value);
                    newer
                }
            });
            cursor.advance()?;
        }
        Ok(best.map(|value| (key, value)))
    }
}
