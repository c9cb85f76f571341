//! Finds the chunks in which two devices or files differ, by reading as little as possible.
//!
//! What is a hole in both, or lies on blocks that both share, is equal and never read. The rest is cut into
//! pieces that a few threads read and compare; memory is a few pieces, however long the files are.

use super::ChunkRange;
use super::same_blocks::SameBlocks;
use crate::block::ReadAt;
use crate::error::{Error, Kind, Result};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// Bytes that one thread compares at a time; the size of its two buffers.
const PIECE_BYTES: u64 = 1 << 20;
const PIECE_LEN: usize = crate::units::index(PIECE_BYTES);
/// Bits for the smallest chunks of a piece.
const FOUND_WORDS: usize = PIECE_LEN >> 9 >> 6;
/// As many threads as there are processors, but at least these many: a medium works best when asked ahead.
const THREADS: Range<usize> = 4..17;

/// The two sides.
#[derive(Clone)]
pub(super) struct Pair {
    pub(super) old: Arc<dyn ReadAt>,
    pub(super) new: Arc<dyn ReadAt>,
    pub(super) chunk_bits: u32,
    /// Nobody will read the bytes again soon, so they need not be cached.
    pub(super) once: bool,
}

/// Iterator over the runs of chunks that differ.
pub(super) struct Compare {
    planner: Planner,
    pool: Pool,
    runs: VecDeque<ChunkRange>,
    /// Chunks that only one side has all of; they differ whatever they hold.
    tail: Option<ChunkRange>,
    chunk_bits: u32,
    failed: bool,
}

impl Compare {
    /// Starts the threads.
    ///
    /// # Errors
    /// `Kind::Io` if the system gives none.
    pub(super) fn start(pair: &Pair) -> Result<Self> {
        let (old, new) = (pair.old.size(), pair.new.size());
        let whole = |bytes: u64| bytes >> pair.chunk_bits << pair.chunk_bits;
        let end = if old == new { new } else { whole(old.min(new)) };
        let tail =
            ChunkRange { start: end.div_ceil(1 << pair.chunk_bits), end: new.div_ceil(1 << pair.chunk_bits) };
        Ok(Self {
            planner: Planner::new(pair, end),
            pool: Pool::start(pair, end.div_ceil(PIECE_BYTES))?,
            runs: VecDeque::new(),
            tail: (tail.start < tail.end).then_some(tail),
            chunk_bits: pair.chunk_bits,
            failed: false,
        })
    }

    fn next_run(&mut self) -> Result<Option<ChunkRange>> {
        // The last run may go on in the next pieces.
        while self.runs.len() < 2 {
            while self.pool.has_room() {
                let Some(piece) = self.planner.next_piece()? else { break };
                self.pool.submit(piece)?;
            }
            match self.pool.next_found()? {
                Some(found) => found.chunks(self.chunk_bits).for_each(|chunk| self.add(chunk, chunk + 1)),
                None => match self.tail.take() {
                    Some(tail) => self.add(tail.start, tail.end),
                    None => break,
                },
            }
        }
        Ok(self.runs.pop_front())
    }

    /// Chunks come in ascending order, and one that lies in two pieces may come twice.
    fn add(&mut self, start: u64, end: u64) {
        match self.runs.back_mut() {
            Some(last) if start <= last.end => last.end = last.end.max(end),
            _ => self.runs.push_back(ChunkRange { start, end }),
        }
    }
}

impl Iterator for Compare {
    type Item = Result<ChunkRange>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.next_run();
        self.failed = next.is_err();
        next.transpose()
    }
}

/// Bytes to compare, inside one aligned stretch of [`PIECE_BYTES`], and what is known of data in them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    start: u64,
    end: u64,
    /// The first data of each side at or after `start`, or before it and reaching beyond.
    old_data: Range<u64>,
    new_data: Range<u64>,
}

/// Decides what has to be read.
struct Planner {
    old: Arc<dyn ReadAt>,
    new: Arc<dyn ReadAt>,
    next: u64,
    end: u64,
    old_data: Range<u64>,
    new_data: Range<u64>,
    same: SameBlocks,
}

impl Planner {
    fn new(pair: &Pair, end: u64) -> Self {
        let (old, new) = (Arc::clone(&pair.old), Arc::clone(&pair.new));
        let same = SameBlocks::new(Arc::clone(&old), Arc::clone(&new));
        Self { old, new, next: 0, end, old_data: 0..0, new_data: 0..0, same }
    }

    fn next_piece(&mut self) -> Result<Option<Piece>> {
        while self.next < self.end {
            let at = self.next;
            refresh(&*self.old, &mut self.old_data, at)?;
            refresh(&*self.new, &mut self.new_data, at)?;
            let same = self.same.at(at);
            let equal_end = same.start.max(self.old_data.start.min(self.new_data.start));
            if equal_end > at {
                self.next = equal_end;
                continue;
            }
            let window = (at | (PIECE_BYTES - 1)).saturating_add(1);
            // Where both sides end their data, both may be holes.
            let data_end = self.old_data.end.max(self.new_data.end);
            let end = self.end.min(window).min(data_end).min(same.end);
            self.next = end;
            let (old_data, new_data) = (self.old_data.clone(), self.new_data.clone());
            return Ok(Some(Piece { start: at, end, old_data, new_data }));
        }
        Ok(None)
    }
}

/// Makes `data` the first data of `side` that ends after `at`; at the end of the side it stays as it is.
fn refresh(side: &dyn ReadAt, data: &mut Range<u64>, at: u64) -> Result<()> {
    if data.end <= at && data.start < side.size() {
        *data = side.next_data(at)?;
    }
    Ok(())
}

/// The chunks of a piece that differ.
struct Found {
    first: u64,
    bits: [u64; FOUND_WORDS],
}

impl Found {
    fn chunks(&self, chunk_bits: u32) -> impl Iterator<Item = u64> + '_ {
        let first = self.first >> chunk_bits;
        self.bits.iter().zip(0u64..).flat_map(move |(word, index)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| first + index * 64 + bit)
        })
    }
}

/// Compares one piece. Buffers are of [`PIECE_BYTES`].
fn compare(pair: &Pair, piece: &Piece, old: &mut [u8], new: &mut [u8]) -> Result<Found> {
    let len = crate::units::index(piece.end.saturating_sub(piece.start));
    let cut_short = || Error::new(Kind::Io, "a piece to compare is larger than its buffer");
    let old = old.get_mut(..len).ok_or_else(cut_short)?;
    let new = new.get_mut(..len).ok_or_else(cut_short)?;
    fill(&*pair.old, old, piece.start, piece.old_data.clone(), pair.once)?;
    fill(&*pair.new, new, piece.start, piece.new_data.clone(), pair.once)?;
    let mut found = Found { first: piece.start, bits: [0; FOUND_WORDS] };
    if old == new {
        return Ok(found);
    }
    let chunk = 1usize << pair.chunk_bits;
    // The first chunk may have begun in an earlier piece.
    let mut range = 0..(chunk - crate::units::index(piece.start) % chunk).min(len);
    for index in 0.. {
        if range.is_empty() {
            break;
        }
        if old.get(range.clone()) != new.get(range.clone())
            && let Some(word) = found.bits.get_mut(index / 64)
        {
            *word |= 1 << (index % 64);
        }
        range = range.end..range.end.saturating_add(chunk).min(len);
    }
    Ok(found)
}

/// Fills `buf` from `offset`, reading only data. `data` is the first data that ends after `offset`.
fn fill(side: &dyn ReadAt, buf: &mut [u8], offset: u64, mut data: Range<u64>, once: bool) -> Result<()> {
    let end = offset.saturating_add(buf.len() as u64);
    let mut at = offset;
    while at < end {
        refresh(side, &mut data, at)?;
        let index = |byte: u64| crate::units::index(byte.saturating_sub(offset));
        let zeros_end = data.start.clamp(at, end);
        buf.get_mut(index(at)..index(zeros_end)).unwrap_or_default().fill(0);
        let data_end = if data.is_empty() { end } else { data.end.clamp(zeros_end, end) };
        let part = buf.get_mut(index(zeros_end)..index(data_end)).unwrap_or_default();
        if !part.is_empty() {
            if once { side.read_once_at(part, zeros_end)? } else { side.read_at(part, zeros_end)? }
        }
        at = data_end;
    }
    Ok(())
}

type Numbered = (u64, Result<Found>);

/// Threads that compare pieces, and their answers in order.
struct Pool {
    jobs: Option<Sender<(u64, Piece)>>,
    answers: Receiver<Numbered>,
    threads: Vec<JoinHandle<()>>,
    /// Answers that came before their turn, by how far ahead they are; none for those still awaited.
    waiting: VecDeque<Option<Result<Found>>>,
    /// Number of the piece whose answer is next.
    next: u64,
    room: usize,
}

/// Sends the answer when it goes out of scope, so that a thread that ends early still answers.
struct Answer<'a> {
    number: u64,
    result: Option<Result<Found>>,
    out: &'a Sender<Numbered>,
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        let early = || Err(Error::new(Kind::Io, "a worker thread ended early"));
        // Who is gone does not want the answer.
        let _ = self.out.send((self.number, self.result.take().unwrap_or_else(early)));
    }
}

impl Pool {
    /// As many threads as are useful for so many pieces.
    fn start(pair: &Pair, pieces: u64) -> Result<Self> {
        let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = threads.clamp(THREADS.start, THREADS.end - 1).min(crate::units::index(pieces));
        let room = threads.saturating_mul(2);
        let (jobs, work) = bounded::<(u64, Piece)>(room);
        let (out, answers) = bounded(room);
        let mut pool = Self {
            jobs: Some(jobs),
            answers,
            threads: Vec::new(),
            waiting: VecDeque::with_capacity(room),
            next: 0,
            room,
        };
        for _ in 0..threads {
            let (pair, work, out) = (pair.clone(), work.clone(), out.clone());
            let spawned = thread::Builder::new().name("compare".into()).spawn(move || {
                let (mut old, mut new) = (vec![0; PIECE_LEN], vec![0; PIECE_LEN]);
                for (number, piece) in work {
                    let mut answer = Answer { number, result: None, out: &out };
                    answer.result = Some(compare(&pair, &piece, &mut old, &mut new));
                }
            });
            match spawned {
                Ok(thread) => pool.threads.push(thread),
                Err(error) if pool.threads.is_empty() => {
                    return Err(Error::io("cannot start a thread", error));
                }
                Err(_) => break,
            }
        }
        Ok(pool)
    }

    fn has_room(&self) -> bool {
        self.waiting.len() < self.room
    }

    fn submit(&mut self, piece: Piece) -> Result<()> {
        let number = self.next.saturating_add(self.waiting.len() as u64);
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send((number, piece)).is_ok());
        if !sent {
            return Err(Error::new(Kind::Io, "the worker threads ended early"));
        }
        self.waiting.push_back(None);
        Ok(())
    }

    /// The answer for the oldest piece that has none yet; `None` if all pieces are answered.
    fn next_found(&mut self) -> Result<Option<Found>> {
        while matches!(self.waiting.front(), Some(None)) {
            let Ok((number, result)) = self.answers.recv() else {
                return Err(Error::new(Kind::Io, "the worker threads ended early"));
            };
            let ahead = crate::units::index(number.saturating_sub(self.next));
            if let Some(place) = self.waiting.get_mut(ahead) {
                *place = Some(result);
            }
        }
        match self.waiting.pop_front().flatten() {
            Some(result) => {
                self.next = self.next.saturating_add(1);
                result.map(Some)
            }
            None => Ok(None),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // One that ended early has said so by its answer.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::shared::{SharedExtent, SharedExtents, Space};
    use crate::error::Result;
    use crate::units::index;
    use std::path::Path;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// A file in memory that tells of its holes and shared blocks, and counts what is read.
    #[derive(Default)]
    struct Fake {
        bytes: Vec<u8>,
        data: Vec<Range<u64>>,
        shared: Vec<SharedExtent>,
        space: Option<Space>,
        step: u64,
        read: AtomicU64,
        fails_at: Option<u64>,
    }

    impl ReadAt for Fake {
        fn size(&self) -> u64 {
            self.bytes.len() as u64
        }
        fn path(&self) -> &Path {
            Path::new("fake")
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
            let end = offset + buf.len() as u64;
            if self.fails_at.is_some_and(|at| (offset..end).contains(&at)) {
                return Err(Error::new(Kind::Io, "the medium failed").at_offset(offset));
            }
            self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
            buf.copy_from_slice(&self.bytes[index(offset)..index(end)]);
            Ok(())
        }
        fn next_data(&self, offset: u64) -> Result<Range<u64>> {
            let next = self.data.iter().find(|data| data.end > offset);
            Ok(next.map_or(self.size()..self.size(), |data| data.start.max(offset)..data.end))
        }
        fn space(&self) -> Option<Space> {
            self.space
        }
        fn shared_extents(&self, offset: u64) -> Option<SharedExtents> {
            let extents = self.shared.iter().filter(|extent| extent.end > offset).copied().collect();
            Some(SharedExtents { extents, until: (offset / self.step + 1) * self.step })
        }
    }

    fn one(range: Range<u64>) -> Vec<Range<u64>> {
        std::iter::once(range).collect()
    }

    fn pair(old: Fake, new: Fake, chunk_bits: u32) -> (Pair, Arc<Fake>, Arc<Fake>) {
        let (old, new) = (Arc::new(old), Arc::new(new));
        let pair =
            Pair { old: Arc::<Fake>::clone(&old), new: Arc::<Fake>::clone(&new), chunk_bits, once: false };
        (pair, old, new)
    }

    fn differing(pair: &Pair) -> Vec<u64> {
        let runs: Vec<ChunkRange> = Compare::start(pair).unwrap().map(|run| run.unwrap()).collect();
        for two in runs.windows(2) {
            assert!(two[0].end < two[1].start, "adjacent or unordered: {two:?}");
        }
        runs.iter().flat_map(|run| run.start..run.end).collect()
    }

    fn expected(old: &[u8], new: &[u8], chunk_bits: u32) -> Vec<u64> {
        let chunks = |bytes: &[u8]| bytes.chunks(1 << chunk_bits).map(<[u8]>::to_vec).collect::<Vec<_>>();
        let (old, new) = (chunks(old), chunks(new));
        (0..new.len()).filter(|&i| old.get(i) != new.get(i)).map(|i| i as u64).collect()
    }

    struct Dice(u64);

    impl Dice {
        fn byte(&mut self) -> u8 {
            self.below(256).to_le_bytes()[0]
        }

        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % limit
        }
    }

    /// Stretches of data and holes, and for the new side of the same, changed or shared bytes.
    fn random_sides(dice: &mut Dice) -> (Fake, Fake) {
        let size = 1 + dice.below(3 << 20);
        let mut sides = [Fake::default(), Fake::default()];
        for side in &mut sides {
            side.bytes = vec![0; index(size)];
            side.space = Some(Space::for_test(7));
            side.step = 1 + dice.below(size + 1);
        }
        let mut at = 0;
        while at < size {
            let longest = 1 << (4 + dice.below(17));
            let end = size.min(at + 1 + dice.below(longest));
            let (value, what) = (dice.byte(), dice.below(6));
            for (number, side) in sides.iter_mut().enumerate() {
                if what == number as u64 || what == 2 {
                    continue;
                }
                side.bytes[index(at)..index(end)].fill(value);
                match side.data.last_mut() {
                    Some(last) if last.end == at => last.end = end,
                    _ => side.data.push(at..end),
                }
                if what == 3 {
                    side.shared.push(SharedExtent { start: at, end, address: at + 77 });
                }
            }
            if what == 4 {
                sides[1].bytes[index(end) - 1] ^= 1;
            }
            at = end;
        }
        let [mut old, mut new] = sides;
        let cut = |side: &mut Fake, size: u64| {
            side.bytes.truncate(index(size));
            side.data.retain(|data| data.start < size);
            side.data.iter_mut().for_each(|data| data.end = data.end.min(size));
            side.shared.retain(|extent| extent.end <= size);
        };
        match dice.below(3) {
            0 => cut(&mut old, 1 + dice.below(size)),
            1 => cut(&mut new, 1 + dice.below(size)),
            _ => {}
        }
        (old, new)
    }

    #[test]
    fn the_result_is_that_of_comparing_every_byte() {
        let mut dice = Dice(11);
        for round in 0..300 {
            let (old, new) = random_sides(&mut dice);
            let chunk_bits = 9 + u32::try_from(dice.below(12)).unwrap();
            let (pair, old, new) = pair(old, new, chunk_bits);
            let expected = expected(&old.bytes, &new.bytes, chunk_bits);
            assert!(differing(&pair) == expected, "round {round}, chunks of 2^{chunk_bits}");
        }
    }

    #[test]
    fn holes_and_shared_blocks_are_not_read() {
        const M: u64 = 1 << 20;
        let side = |address| Fake {
            bytes: vec![0; 40 << 20],
            data: one(8 * M..24 * M),
            shared: vec![SharedExtent { start: 8 * M, end: 20 * M, address }],
            space: Some(Space::for_test(1)),
            step: 9 * M,
            ..Fake::default()
        };
        let (same, old, new) = pair(side(5), side(5), 14);
        assert!(differing(&same).is_empty());
        assert_eq!([&old, &new].map(|side| side.read.load(Ordering::Relaxed)), [4 * M; 2]);
        let (other, old, _) = pair(side(5), side(6), 14);
        assert!(differing(&other).is_empty());
        assert_eq!(old.read.load(Ordering::Relaxed), 16 * M);
        // The same addresses, but of another file system.
        let (other, old, _) = pair(side(5), Fake { space: Some(Space::for_test(2)), ..side(5) }, 14);
        assert!(differing(&other).is_empty());
        assert_eq!(old.read.load(Ordering::Relaxed), 16 * M);
        // A hole against data: one side is read.
        let (halves, old, new) = pair(side(5), Fake { data: Vec::new(), shared: Vec::new(), ..side(5) }, 14);
        assert!(differing(&halves).is_empty());
        assert_eq!([&old, &new].map(|side| side.read.load(Ordering::Relaxed)), [16 * M, 0]);
    }

    #[test]
    fn a_failing_read_ends_the_list_with_its_error() {
        let side = || Fake { bytes: vec![0; 9 << 20], data: one(0..9 << 20), ..Fake::default() };
        let mut old = side();
        old.bytes[5] = 1;
        let (pair, ..) = pair(old, Fake { fails_at: Some(6 << 20), ..side() }, 14);
        let mut runs = Compare::start(&pair).unwrap();
        let error = runs.by_ref().find_map(std::result::Result::err).unwrap();
        assert!(error.to_string().contains("the medium failed"), "{error}");
        assert!(runs.next().is_none(), "nothing comes after an error");
    }

    #[test]
    fn an_iterator_dropped_early_ends_its_threads() {
        let side = || Fake { bytes: vec![0; 64 << 20], data: one(0..64 << 20), ..Fake::default() };
        let mut new = side();
        new.bytes[0] = 1;
        let (pair, old, _) = pair(side(), new, 14);
        let mut runs = Compare::start(&pair).unwrap();
        drop(pair);
        let _ = runs.next();
        drop(runs);
        assert_eq!(Arc::strong_count(&old), 1);
    }
}
