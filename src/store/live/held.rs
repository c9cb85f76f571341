//! Bytes of the origin that their writers were told are written, and that lie in memory until they land.
//!
//! They lie in batches, by chunk: in one batch a later write of a chunk goes over what an earlier one left there. Only
//! the newest batch grows; once sealed it stays as it is until it has landed. Batches land in their order, so no write
//! overtakes an older one of its chunk, and whoever reads takes what the newest batch has of a byte. All memory for
//! bytes is taken at the start.
//!
//! With a [`Journal`] all that was acknowledged is there too. What it holds of a batch counts until the whole batch has
//! landed, and would go over what was written since: until then its chunks are held, though their bytes lie on the
//! origin already.

use super::journal::Journal;
use crate::error::{Error, Kind, Result};
use crate::units::index;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

/// Separate parts of one chunk that a batch holds, at most.
const PARTS_MAX: usize = 8;

/// Which bytes of a chunk are held: ascending, with gaps between them.
#[derive(Debug, Clone, Copy, Default)]
struct Parts {
    list: [(usize, usize); PARTS_MAX],
    count: usize,
}

impl Parts {
    fn get(&self) -> &[(usize, usize)] {
        self.list.get(..self.count).unwrap_or(&[])
    }

    /// These and `added`; `None` if that makes too many.
    fn with(&self, added: &Range<usize>) -> Option<Self> {
        let (mut start, mut end) = (added.start, added.end);
        let mut parts = Self::default();
        let mut later = self.get().iter().copied().peekable();
        while let Some(part) = later.next_if(|part| part.1 < start) {
            parts.push(part)?;
        }
        while let Some(part) = later.next_if(|part| part.0 <= end) {
            (start, end) = (start.min(part.0), end.max(part.1));
        }
        parts.push((start, end))?;
        later.try_for_each(|part| parts.push(part))?;
        Some(parts)
    }

    fn push(&mut self, part: (usize, usize)) -> Option<()> {
        *self.list.get_mut(self.count)? = part;
        self.count += 1;
        Some(())
    }
}

/// What is held of a chunk.
struct Piece {
    slot: usize,
    parts: Parts,
}

struct Batch {
    number: u64,
    pieces: BTreeMap<u64, Piece>,
    /// The write in it was not acknowledged: who made it waits.
    awaited: bool,
}

impl Batch {
    fn new(number: u64) -> Self {
        Self { number, pieces: BTreeMap::new(), awaited: false }
    }
}

/// What is held of a volume.
pub struct Held {
    chunk_bits: u32,
    memory: Vec<u8>,
    free: Vec<usize>,
    /// Oldest first.
    sealed: VecDeque<Batch>,
    newest: Batch,
    journal: Option<Journal>,
    /// Chunks of the oldest batch that have landed, while the journal has the batch.
    journaled: BTreeSet<u64>,
}

/// A part of a write that lies in one chunk.
struct Span {
    chunk: u64,
    /// In the chunk.
    inside: Range<usize>,
    /// In the write.
    at: Range<usize>,
}

impl Held {
    /// Memory for `bytes`, in chunks of 2^`chunk_bits` bytes.
    pub fn new(chunk_bits: u32, bytes: usize) -> Self {
        let slots = bytes >> chunk_bits;
        // The system gives zeroes when they are first touched: what nobody needs costs nothing.
        let memory = vec![0; slots << chunk_bits];
        let (sealed, newest) = (VecDeque::new(), Batch::new(1));
        let free = (0..slots).rev().collect();
        Self { chunk_bits, memory, free, sealed, newest, journal: None, journaled: BTreeSet::new() }
    }

    /// Has the journal that `make` makes from now on what is held, unless there is one.
    ///
    /// # Errors
    /// What `make` says; as [`Journal::append`].
    pub fn journal(&mut self, make: impl FnOnce() -> Result<Journal>) -> Result<()> {
        if self.journal.is_some() {
            return Ok(());
        }
        let mut journal = make()?;
        let acknowledged = self.batches().filter(|batch| !batch.awaited);
        let outcome = acknowledged
            .flat_map(|batch| batch.pieces.iter().map(|(chunk, piece)| (batch.number, *chunk, piece)))
            .flat_map(|(number, chunk, piece)| self.parts(chunk, piece).map(move |part| (number, part)))
            .try_for_each(|(number, (bytes, (start, _)))| journal.append(number, start, bytes));
        if outcome.is_err() {
            journal.remove();
            return outcome;
        }
        self.journal = Some(journal);
        Ok(())
    }

    /// True if a journal has what is held.
    pub fn is_journaled(&self) -> bool {
        self.journal.is_some()
    }

    /// Ends the journal: nothing is held.
    pub fn end_journal(&mut self) {
        if let Some(journal) = self.journal.take() {
            journal.remove();
        }
    }

    /// Bytes that there is memory for.
    pub fn bytes(&self) -> usize {
        self.memory.len()
    }

    /// Chunks that there is memory for.
    pub fn capacity(&self) -> usize {
        self.memory.len() >> self.chunk_bits
    }

    /// Chunks that are held; one that two batches hold counts twice.
    pub fn count(&self) -> usize {
        self.capacity() - self.free.len()
    }

    /// True if a write of a chunk from `first` to before `end` has to be held, for something of it is.
    pub fn touches(&self, first: u64, end: u64) -> bool {
        self.batches().any(|batch| batch.pieces.range(first..end).next().is_some())
            || self.journaled.range(first..end).next().is_some()
    }

    /// Oldest first.
    fn batches(&self) -> impl Iterator<Item = &Batch> {
        self.sealed.iter().chain([&self.newest])
    }

    fn spans(&self, offset: u64, length: usize) -> impl Iterator<Item = Span> + use<> {
        let (bits, end) = (self.chunk_bits, offset + length as u64);
        let chunks = if length == 0 { 0..0 } else { offset >> bits..((end - 1) >> bits) + 1 };
        chunks.map(move |chunk| {
            let start = chunk << bits;
            let (from, to) = (offset.max(start), end.min(start + (1 << bits)));
            Span {
                chunk,
                inside: index(from - start)..index(to - start),
                at: index(from - offset)..index(to - offset),
            }
        })
    }

    /// How many more chunks of memory a write takes; `None` if it would leave a chunk in too many parts: then it must
    /// wait for a batch of its own.
    pub fn cost(&self, offset: u64, length: usize) -> Option<usize> {
        let mut cost = 0;
        for span in self.spans(offset, length) {
            match self.newest.pieces.get(&span.chunk) {
                None => cost += 1,
                Some(piece) => drop(piece.parts.with(&span.inside)?),
            }
        }
        Some(cost)
    }

    /// True if the journal, should there be one, has room for a write of `length` bytes. If nothing is held it has.
    pub fn has_room(&self, length: usize) -> bool {
        self.journal.as_ref().is_none_or(|journal| journal.has_room(length))
    }

    /// Holds a write whose [`Held::cost`] there is memory for, and for which [`Held::has_room`].
    ///
    /// # Errors
    /// `Kind::NoSpace` if there is none, with nothing held of some chunks; `Kind::Io`.
    pub fn put(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        if let Some(journal) = &mut self.journal {
            journal.append(self.newest.number, offset, data)?;
        }
        self.put_in_memory(offset, data)
    }

    /// As [`Held::put`], for a write that will not be acknowledged before it has landed: it is a batch of its own.
    ///
    /// # Errors
    /// As [`Held::put`].
    pub fn put_awaited(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.seal();
        self.put_in_memory(offset, data)?;
        self.newest.awaited = true;
        self.seal();
        Ok(())
    }

    fn put_in_memory(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let full = || Error::new(Kind::NoSpace, "there is no memory for what is written");
        for span in self.spans(offset, data.len()) {
            let slot = match self.newest.pieces.get_mut(&span.chunk) {
                Some(piece) => {
                    piece.parts = piece.parts.with(&span.inside).ok_or_else(full)?;
                    piece.slot
                }
                None => {
                    let slot = self.free.pop().ok_or_else(full)?;
                    let parts = Parts::default().with(&span.inside).ok_or_else(full)?;
                    self.newest.pieces.insert(span.chunk, Piece { slot, parts });
                    slot
                }
            };
            let start = slot << self.chunk_bits;
            self.memory[start + span.inside.start..start + span.inside.end].copy_from_slice(&data[span.at]);
        }
        Ok(())
    }

    /// Copies what is held into `buf`, which stands for the bytes from `offset` on, and returns which parts of it lie
    /// nowhere but on the origin, ascending.
    pub fn fill(&self, offset: u64, buf: &mut [u8]) -> Vec<Range<usize>> {
        let (first, end) =
            (offset >> self.chunk_bits, (offset + buf.len() as u64).div_ceil(1 << self.chunk_bits));
        let mut filled = Vec::new();
        for (chunk, piece) in self.batches().flat_map(|batch| batch.pieces.range(first..end)) {
            for (bytes, part) in self.parts(*chunk, piece) {
                let (from, to) = (part.0.max(offset), part.1.min(offset + buf.len() as u64));
                if from < to {
                    let at = index(from - offset)..index(to - offset);
                    buf[at.clone()].copy_from_slice(&bytes[index(from - part.0)..index(to - part.0)]);
                    filled.push(at);
                }
            }
        }
        filled.sort_unstable_by_key(|range| range.start);
        let (mut at, mut rest) = (0, Vec::new());
        for range in filled {
            if at < range.start {
                rest.push(at..range.start);
            }
            at = at.max(range.end);
        }
        if at < buf.len() {
            rest.push(at..buf.len());
        }
        rest
    }

    /// The parts of a piece: their bytes, and from where to where they lie on the origin.
    fn parts<'a>(
        &'a self,
        chunk: u64,
        piece: &'a Piece,
    ) -> impl Iterator<Item = (&'a [u8], (u64, u64))> + 'a {
        let (memory, origin) = (piece.slot << self.chunk_bits, chunk << self.chunk_bits);
        piece.parts.get().iter().map(move |(start, end)| {
            let bytes = self.memory.get(memory + start..memory + end).unwrap_or(&[]);
            (bytes, (origin + *start as u64, origin + *end as u64))
        })
    }

    /// Chunks of the newest batch.
    pub fn newest_count(&self) -> usize {
        self.newest.pieces.len()
    }

    /// Lets the newest batch grow no more. Returns how many batches wait.
    pub fn seal(&mut self) -> usize {
        if !self.newest.pieces.is_empty() {
            let next = Batch::new(self.newest.number + 1);
            self.sealed.push_back(std::mem::replace(&mut self.newest, next));
        }
        self.sealed.len()
    }

    /// True if nothing was sealed that has not landed.
    pub fn none_sealed(&self) -> bool {
        self.sealed.is_empty()
    }

    /// The chunks of the oldest batch, if it is sealed.
    pub fn oldest(&self) -> Option<Vec<u64>> {
        self.sealed.front().map(|batch| batch.pieces.keys().copied().collect())
    }

    /// True if somebody waits for the oldest batch who was not told that it is written.
    pub fn oldest_is_awaited(&self) -> bool {
        self.sealed.front().is_some_and(|batch| batch.awaited)
    }

    /// Appends to `data` what the oldest batch holds of `chunks`, and returns where on the origin it belongs: offsets
    /// and lengths, in the order of the data.
    pub fn lift(&self, chunks: &[u64], data: &mut Vec<u8>) -> Vec<(u64, usize)> {
        let mut places: Vec<(u64, usize)> = Vec::new();
        let Some(batch) = self.sealed.front() else { return places };
        let pieces = chunks.iter().filter_map(|chunk| batch.pieces.get(chunk).map(|piece| (*chunk, piece)));
        for (bytes, (start, _)) in pieces.flat_map(|(chunk, piece)| self.parts(chunk, piece)) {
            data.extend_from_slice(bytes);
            match places.last_mut() {
                Some(last) if last.0 + last.1 as u64 == start => last.1 += bytes.len(),
                _ => places.push((start, bytes.len())),
            }
        }
        places
    }

    /// Forgets what the oldest batch holds of `chunks`.
    pub fn release(&mut self, chunks: &[u64]) {
        let Some(batch) = self.sealed.front_mut() else { return };
        if self.journal.is_some() {
            self.journaled.extend(chunks);
        }
        self.free
            .extend(chunks.iter().filter_map(|chunk| batch.pieces.remove(chunk)).map(|piece| piece.slot));
    }

    /// Forgets the oldest batch.
    pub fn retire(&mut self) {
        let Some(batch) = self.sealed.pop_front() else { return };
        self.free.extend(batch.pieces.into_values().map(|piece| piece.slot));
        self.journaled.clear();
        // One that cannot be written any more would have the next server write what is old.
        if self.journal.as_mut().is_some_and(|journal| journal.landed(batch.number).is_err()) {
            self.end_journal();
        }
    }

    /// The number of the newest batch with anything in it.
    pub fn last(&self) -> u64 {
        self.newest.number - u64::from(self.newest.pieces.is_empty())
    }

    /// The number of the last batch that has landed, and all before it.
    pub fn landed(&self) -> u64 {
        self.sealed.front().map_or(self.newest.number, |batch| batch.number) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::super::journal;
    use super::*;
    use crate::block::WriteAt;
    use crate::block::memory::Memory;
    use std::sync::Arc;

    /// The bytes from 0 to 64 as they are read: 0 where they lie on the origin only.
    fn image(held: &Held) -> Vec<u8> {
        let mut buf = vec![0; 64];
        let rest = held.fill(0, &mut buf);
        assert!(rest.iter().all(|range| buf[range.clone()].iter().all(|byte| *byte == 0)));
        buf
    }

    #[test]
    fn parts_merge_and_are_bounded() {
        let mut parts = Parts::default();
        for (start, end) in [(10, 12), (20, 30), (14, 16), (12, 14), (0, 1), (29, 31)] {
            parts = parts.with(&(start..end)).unwrap();
        }
        assert_eq!(parts.get(), [(0, 1), (10, 16), (20, 31)]);
        assert_eq!(parts.with(&(1..20)).unwrap().get(), [(0, 31)]);
        for number in 0..5 {
            parts = parts.with(&(100 + 10 * number..101 + 10 * number)).unwrap();
        }
        assert!(parts.with(&(90..91)).is_none());
        assert_eq!(parts.with(&(31..100)).unwrap().get().len(), 7);
    }

    #[test]
    fn the_newest_byte_is_read_and_the_oldest_batch_lands_first() {
        let mut held = Held::new(4, 64);
        held.put(4, &[1; 20]).unwrap();
        held.put(6, &[2; 2]).unwrap();
        assert_eq!((held.count(), held.seal(), held.last(), held.landed()), (2, 1, 1, 0));
        assert_eq!(held.cost(20, 3), Some(1));
        held.put(20, &[3; 3]).unwrap();
        let expected = |range: Range<usize>| image(&held)[range].to_vec();
        assert_eq!(expected(0..9), [0, 0, 0, 0, 1, 1, 2, 2, 1]);
        assert_eq!(expected(18..26), [1, 1, 3, 3, 3, 1, 0, 0]);
        assert_eq!(held.fill(2, &mut [0; 30]), [0..2, 22..30]);
        let mut data = Vec::new();
        assert_eq!(held.oldest(), Some(vec![0, 1]));
        assert_eq!(held.lift(&[0, 1], &mut data), [(4, 20)]);
        assert_eq!(data, [&[1, 1, 2, 2][..], &[1; 16]].concat());
        held.release(&[0]);
        assert!(held.touches(1, 2) && !held.touches(0, 1) && !held.touches(2, 9));
        held.retire();
        assert_eq!((held.count(), held.last(), held.landed()), (1, 2, 1));
        assert_eq!(image(&held)[18..26], [0, 0, 3, 3, 3, 0, 0, 0]);
    }

    #[test]
    fn memory_and_parts_are_bounded() {
        let mut held = Held::new(5, 64);
        assert_eq!(held.capacity(), 2);
        for at in 0..8 {
            held.put(at * 4, &[9]).unwrap();
        }
        assert_eq!((held.cost(30, 1), held.cost(28, 1), held.cost(31, 40)), (None, Some(0), None));
        held.seal();
        assert_eq!(held.cost(30, 1), Some(1));
        held.put(30, &[8]).unwrap();
        assert_eq!(held.put(64, &[1]).unwrap_err().kind(), Kind::NoSpace);
        held.retire();
        held.put(64, &[1]).unwrap();
        assert_eq!(image(&held)[..32].iter().map(|byte| u32::from(*byte)).sum::<u32>(), 8);
    }

    #[test]
    fn what_the_journal_has_is_held_until_its_batch_has_landed() {
        for journaled in [false, true] {
            let mut held = Held::new(4, 64);
            held.put(0, &[1; 10]).unwrap();
            let file: Arc<dyn WriteAt> = Arc::new(Memory::new(8192));
            if journaled {
                held.journal(|| Journal::over(Arc::clone(&file))).unwrap();
            }
            held.put(16, &[2; 16]).unwrap();
            held.seal();
            held.put(40, &[3; 4]).unwrap();
            held.release(&[0]);
            assert_eq!(held.touches(0, 1), journaled, "it would be written again by the next process");
            let left = |file: &Arc<dyn WriteAt>| {
                let mut left = Vec::new();
                let each = |offset: u64, data: &[u8]| {
                    left.push((offset, data.to_vec()));
                    Ok(())
                };
                journal::replay(file.as_ref(), each).map(|bytes| (bytes, left)).unwrap()
            };
            let all = (30, vec![(0, vec![1; 10]), (16, vec![2; 16]), (40, vec![3; 4])]);
            assert_eq!(left(&file), if journaled { all } else { (0, vec![]) });
            held.retire();
            assert!(!held.touches(0, 2));
            assert_eq!(left(&file), if journaled { (4, vec![(40, vec![3; 4])]) } else { (0, vec![]) });
        }
    }

    #[test]
    fn a_journal_that_was_never_begun_has_nothing() {
        let replay = |device: &Memory| journal::replay(device, |_, _| panic!("there is nothing"));
        for size in [0, 100, 8192] {
            assert_eq!(replay(&Memory::new(size)).unwrap(), 0);
        }
        assert_eq!(replay(&Memory::from_bytes(&[1; 8192])).unwrap_err().kind(), Kind::Damaged);
    }
}
