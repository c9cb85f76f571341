//! The tree of 2008 as chunks of the new store, with the places of their bytes.
//!
//! A chunk of 2008 had 512 bytes or more, a chunk of today has 4 KiB to 1 MiB. A larger one is cut; several
//! smaller ones become one, and what only some of them preserve is completed from the origin.

use super::chain::{Has, links};
use crate::block::ReadAt;
use crate::error::Result;
use crate::format::legacy::tree::Leaf;
use crate::format::record::EntryClass;
use crate::format::superblock::CHUNK_BITS;
use crate::legacy::{Preserved, Store};
use crate::point::PointSource;
use crate::point::volume::{SnapshotInfo, Volume};
use crate::units::{Epoch, index};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// Where a piece of a chunk comes from, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// Wherever the origin has it: not preserved.
    Shared,
    /// The device with the preserved chunks.
    Data(u64),
    /// The origin, to be preserved.
    Origin(u64),
    /// Nobody has it: its snapshot ends before.
    Beyond,
    /// It is lost.
    Lost,
}

/// A chunk that the new store is to keep.
#[derive(Debug, Clone)]
pub(super) struct Want {
    /// Chunk number in the new store.
    pub chunk: u64,
    /// So many chunks from there on of which the same is to be said: 1, unless ranges were asked for.
    pub count: u64,
    /// Its epoch, or the snapshot that it belongs to.
    pub owner: Epoch,
    /// Which of the two.
    pub class: EntryClass,
    /// Its bytes.
    pub length: u32,
    /// One bit for each snapshot (by place in the table) that reads it.
    pub readers: u64,
    /// Its pieces in order, `piece` bytes each but the last; none if it is lost.
    pub pieces: Vec<Place>,
}

/// log2 of the chunk size that the new store has for one of `bits`.
pub(super) fn chunk_bits(bits: u32) -> u32 {
    bits.clamp(*CHUNK_BITS.start(), *CHUNK_BITS.end())
}

/// What is known of some chunks of 2008.
struct Region {
    /// First byte, and one past the last.
    start: u64,
    end: u64,
    /// The leaf and the number of the chunk in it; `None` if the medium failed: all is lost.
    entry: Option<(Arc<Leaf>, usize)>,
}

/// All chunks that the new store is to keep, ascending by chunk.
pub(super) struct Units<'a> {
    store: &'a Store,
    steps: Preserved<'a>,
    ended: bool,
    regions: VecDeque<Region>,
    snapshots: Vec<SnapshotInfo>,
    masks: Vec<u64>,
    /// The origin as the old store has it, and all there is of it.
    origin_size: u64,
    origin_end: u64,
    /// The largest snapshot ends here.
    limit: u64,
    /// log2 of a chunk of 2008, of one of today, and of a piece.
    bits: u32,
    new: u32,
    piece: u32,
    /// Chunks that are lost in the same way are one.
    in_ranges: bool,
    /// The chunk to go on with, at least.
    next: u64,
    ready: VecDeque<Want>,
    /// Place of each piece, snapshot by snapshot.
    places: Vec<Place>,
}

impl<'a> Units<'a> {
    /// # Errors
    /// `Kind::Io`.
    pub fn new(store: &'a Store) -> Result<Self> {
        let snapshots = store.snapshots();
        let masks = store.masks();
        let live = snapshots.iter().zip(&masks).filter(|(_, mask)| **mask != 0);
        let limit = live.map(|(snapshot, _)| snapshot.size_bytes).max().unwrap_or(0);
        let bits = store.chunk_bits();
        let new = chunk_bits(bits);
        Ok(Self {
            store,
            steps: store.preserved()?,
            ended: false,
            regions: VecDeque::new(),
            snapshots,
            masks,
            origin_size: store.info().origin_size,
            origin_end: store.origin().map_or(u64::MAX, ReadAt::size),
            limit,
            bits,
            new,
            piece: bits.min(new),
            in_ranges: false,
            next: 0,
            ready: VecDeque::new(),
            places: Vec::new(),
        })
    }

    /// As [`Units::new`], but what is lost comes in ranges: however much the snapshots are said to have, there are not
    /// many more of these than the tree has chunks.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn in_ranges(store: &'a Store) -> Result<Self> {
        Ok(Self { in_ranges: true, ..Self::new(store)? })
    }

    /// log2 of the bytes of a piece.
    pub fn piece_bits(&self) -> u32 {
        self.piece
    }

    fn chunk(&self, byte: u64) -> u64 {
        byte >> self.new
    }

    /// Loads regions until one begins at or beyond byte `end`.
    fn load(&mut self, end: u64) {
        while !self.ended && self.regions.back().is_none_or(|last| last.start < end) {
            match self.steps.next() {
                None => self.ended = true,
                Some(Err(_)) => {
                    let start = self.regions.back().map_or(self.next << self.new, |last| last.end);
                    self.regions.push_back(Region { start, end: u64::MAX, entry: None });
                }
                Some(Ok(leaf)) => {
                    let leaf = Arc::new(leaf);
                    for (number, entry) in leaf.entries.iter().enumerate() {
                        let start = u64::from(entry.chunk) << self.bits;
                        let entry = Some((Arc::clone(&leaf), number));
                        self.regions.push_back(Region { start, end: start + (1 << self.bits), entry });
                    }
                }
            }
        }
    }

    /// The next chunk of which the tree says anything, or which the origin does not have any more.
    fn next_chunk(&mut self) -> Option<u64> {
        let start = self.next << self.new;
        loop {
            while self.regions.front().is_some_and(|region| region.end <= start) {
                self.regions.pop_front();
            }
            if self.ended || !self.regions.is_empty() {
                break;
            }
            self.load(start + 1);
        }
        let known = self.regions.front().map(|region| self.chunk(region.start).max(self.next));
        // Writes beyond the end of the origin are no business of the new store: it must have the tail.
        let tail = self.chunk(self.origin_size).max(self.next);
        let lost = self.store.lost().next(start >> self.bits);
        let lost = lost.map(|lost| self.chunk(lost.saturating_mul(1 << self.bits)).max(self.next));
        let chunk = [known, lost].into_iter().flatten().fold(tail, u64::min);
        (chunk << self.new < self.limit).then_some(chunk)
    }

    /// Finds the place of each piece of `chunk` for each snapshot. Returns the number of pieces.
    fn locate(&mut self, chunk: u64) -> usize {
        let start = chunk << self.new;
        let end = (start + (1 << self.new)).min(self.limit);
        self.load(end);
        let count = index((end - start).div_ceil(1 << self.piece));
        self.places.clear();
        self.places.resize(count * self.snapshots.len(), Place::Shared);
        for region in self.regions.iter().take_while(|region| region.start < end) {
            for piece in 0..count {
                let begin = start + ((piece as u64) << self.piece);
                if begin < region.start || begin >= region.end {
                    continue;
                }
                for (at, mask) in self.masks.iter().enumerate() {
                    if let Some(place) = place_in(self.store, region, *mask, begin) {
                        self.places[at * count + piece] = place;
                    }
                }
            }
        }
        let old = start >> self.bits..end.div_ceil(1 << self.bits);
        let snapshots = self.snapshots.iter().zip(&self.masks);
        for ((snapshot, mask), places) in snapshots.zip(self.places.chunks_mut(count.max(1))) {
            if self.store.lost().first(*mask, &old).is_some() {
                places.fill(Place::Lost);
            }
            let range = Range { start, end: snapshot.size_bytes };
            complete(places, range, self.piece, (self.origin_size, self.origin_end));
        }
        count
    }

    /// How many chunks from `chunk` on have nothing that tells them from it: no region, no end of anything.
    fn alike(&self, chunk: u64) -> u64 {
        let (start, end) = (chunk << self.new, (chunk + 1) << self.new);
        let is_inside =
            |region: &Region| region.start < end && (region.entry.is_some() || region.start > start);
        if self.regions.front().is_some_and(is_inside) {
            return 1;
        }
        let old = start >> self.bits;
        let lost = self.store.lost().edge(old).map(|edge| edge.saturating_mul(1 << self.bits));
        let sizes = self.snapshots.iter().map(|snapshot| snapshot.size_bytes);
        let edges = sizes.chain([self.origin_size, self.origin_end, self.limit]).chain(lost);
        let edges = edges.chain(self.regions.front().map(|region| region.start));
        // The chunk that an edge lies in is one of its own.
        let next = edges.filter(|edge| *edge > start).map(|edge| self.chunk(edge)).min();
        next.map_or(1, |next| next.saturating_sub(chunk).max(1))
    }

    fn push_wants(&mut self, chunk: u64) {
        let count = self.locate(chunk);
        let many = if self.in_ranges { self.alike(chunk) } else { 1 };
        let start = chunk << self.new;
        let has: Vec<Has<&[Place]>> = self
            .places
            .chunks(count.max(1))
            .zip(self.snapshots.iter().zip(&self.masks))
            .map(|(places, (snapshot, mask))| match places {
                _ if *mask == 0 || snapshot.size_bytes <= start => Has::Nothing,
                _ if places.iter().all(|place| matches!(place, Place::Shared | Place::Beyond)) => Has::Shared,
                _ => Has::Own(places),
            })
            .collect();
        let length = (self.limit - start).min(1 << self.new);
        for link in links(&has) {
            let Some((has, snapshot)) = has.get(link.at).zip(self.snapshots.get(link.at)) else { continue };
            let pieces: Vec<Place> = match has {
                Has::Own(places) if places.contains(&Place::Lost) => Vec::new(),
                Has::Own(places) => places.to_vec(),
                // What the origin has is preserved only here: newer snapshots have something else.
                _ => (0..count).map(|piece| Place::Origin(start + ((piece as u64) << self.piece))).collect(),
            };
            self.ready.push_back(Want {
                chunk,
                count: 1,
                owner: snapshot.id,
                class: link.class,
                length: u32::try_from(length).unwrap_or(u32::MAX),
                readers: link.readers,
                pieces,
            });
        }
        // Bytes are read chunk by chunk.
        let many = if self.ready.iter().all(|want| want.pieces.is_empty()) { many } else { 1 };
        self.ready.iter_mut().for_each(|want| want.count = many);
        self.next = chunk + many;
    }
}

/// Where the snapshot with the bit `mask` has what lies at byte `begin` of it, as far as `region` knows.
fn place_in(store: &Store, region: &Region, mask: u64, begin: u64) -> Option<Place> {
    let Some((leaf, number)) = &region.entry else { return (mask != 0).then_some(Place::Lost) };
    let entry = leaf.entries.get(*number)?;
    let exception = leaf.of(entry).iter().find(|exception| exception.share & mask != 0)?;
    // What leads out of the store leads nowhere.
    let place = store.place(exception.physical).map(|place| Place::Data(place + (begin - region.start)));
    Some(place.unwrap_or(Place::Lost))
}

/// Says where the pieces come from that the tree does not know, if any piece of the chunk must be preserved. `range`
/// is from the chunk to the end of the snapshot; of the origin the new store knows the first of two sizes, and all
/// there is of it is the second.
fn complete(places: &mut [Place], range: Range<u64>, piece: u32, (origin_size, origin_end): (u64, u64)) {
    let begin = |number: usize| range.start + ((number as u64) << piece);
    for (number, place) in places.iter_mut().enumerate() {
        let end = (begin(number) + (1 << piece)).min(range.end);
        if begin(number) >= range.end {
            *place = Place::Beyond;
        } else if *place == Place::Shared && begin(number) >= origin_size {
            *place = if end > origin_end { Place::Lost } else { Place::Origin(begin(number)) };
        }
    }
    if places.contains(&Place::Lost) {
        places.fill(Place::Lost);
    } else if places.iter().any(|place| matches!(place, Place::Data(_) | Place::Origin(_))) {
        for (number, place) in places.iter_mut().enumerate().filter(|(_, place)| **place == Place::Shared) {
            *place = Place::Origin(begin(number));
        }
    }
}

impl Iterator for Units<'_> {
    type Item = Want;

    fn next(&mut self) -> Option<Want> {
        while self.ready.is_empty() {
            let chunk = self.next_chunk()?;
            self.push_wants(chunk);
        }
        self.ready.pop_front()
    }
}
