//! Bytes into a window that says what of them the source has, and where.

use super::{Cache, HAS_ADLER, HAS_SOURCE, MAGIC, SAME, adler32, put_number};

/// Bytes that are looked up at once. What is shorter costs about as much to name as to store.
const SEED: usize = 8;
/// Every so many bytes of the source can be found.
const STEP: usize = 4;

/// Encodes `target` as one window over `source`. The same bytes give the same window.
#[must_use]
pub fn encode(source: &[u8], target: &[u8]) -> Vec<u8> {
    let index = Index::new(source, target.len());
    let sections = Matcher { source, target, index, sections: Sections::new(source.len()) }.run();
    let Sections { data, code, addresses, .. } = sections;
    let mut window = Vec::new();
    put_number(&mut window, target.len());
    window.push(0);
    for section in [&data, &code, &addresses] {
        put_number(&mut window, section.len());
    }
    window.extend_from_slice(&adler32(target).to_be_bytes());
    for section in [data, code, addresses] {
        window.extend_from_slice(&section);
    }
    let mut out = MAGIC.to_vec();
    out.push(0);
    out.push(HAS_SOURCE | HAS_ADLER);
    put_number(&mut out, source.len());
    put_number(&mut out, 0);
    put_number(&mut out, window.len());
    out.extend_from_slice(&window);
    out
}

/// Where a seed was seen last: addresses in the source, then in the target, plus one.
struct Index {
    slots: Vec<u32>,
    shift: u32,
}

impl Index {
    fn new(source: &[u8], target_len: usize) -> Self {
        let entries = source.len().saturating_add(target_len) / STEP;
        let bits = entries.max(1024).next_power_of_two().ilog2().min(19);
        let mut index = Self { slots: vec![0; 1 << bits], shift: 64u32.saturating_sub(bits) };
        // From the back, so that the first of several places is found: matches go forward.
        for at in (0..source.len()).step_by(STEP).rev() {
            if let Some(seed) = seed(source, at) {
                index.put(seed, at);
            }
        }
        index
    }

    fn slot(&self, seed: u64) -> usize {
        usize::try_from(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift).unwrap_or(0)
    }

    fn put(&mut self, seed: u64, address: usize) {
        let slot = self.slot(seed);
        if let (Some(slot), Ok(address)) = (self.slots.get_mut(slot), u32::try_from(address)) {
            *slot = address.saturating_add(1);
        }
    }

    fn get(&self, seed: u64) -> Option<usize> {
        let found = self.slots.get(self.slot(seed)).copied().unwrap_or(0);
        found.checked_sub(1).and_then(|address| usize::try_from(address).ok())
    }
}

fn seed(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk::<SEED>().map(|seed| u64::from_le_bytes(*seed))
}

/// How many bytes both have in common at their beginning.
fn common(a: &[u8], b: &[u8]) -> usize {
    let words = a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0).take_while(|(a, b)| a == b).count();
    let whole = words.saturating_mul(8);
    let (a, b) = (a.get(whole..).unwrap_or(&[]), b.get(whole..).unwrap_or(&[]));
    whole.saturating_add(a.iter().zip(b).take_while(|(a, b)| a == b).count())
}

struct Matcher<'a> {
    source: &'a [u8],
    target: &'a [u8],
    index: Index,
    sections: Sections,
}

impl Matcher<'_> {
    fn run(mut self) -> Sections {
        let (mut at, mut told, mut shift) = (0usize, 0usize, 0isize);
        while let Some(wanted) = seed(self.target, at) {
            let rest = self.target.get(at..).unwrap_or(&[]);
            let run = if wanted.to_le_bytes() == [rest.first().copied().unwrap_or(0); SEED] {
                rest.iter().take_while(|byte| rest.first() == Some(byte)).count()
            } else {
                0
            };
            let best = self.best(at, wanted, shift);
            if at.is_multiple_of(STEP) {
                self.index.put_absent(wanted, self.source.len().saturating_add(at));
            }
            match best {
                Some((from, length)) if length >= run => {
                    // What lies before may be the same too.
                    let back = self.backward(from, at, told);
                    let (from, begin) = (from.saturating_sub(back), at.saturating_sub(back));
                    self.sections.add(self.target.get(told..begin).unwrap_or(&[]));
                    let end = at.saturating_add(length);
                    self.sections.copy(from, end.saturating_sub(begin), begin);
                    shift = from.cast_signed().wrapping_sub(begin.cast_signed());
                    (at, told) = (end, end);
                }
                _ if run >= SEED => {
                    self.sections.add(self.target.get(told..at).unwrap_or(&[]));
                    self.sections.run(rest.first().copied().unwrap_or(0), run);
                    at = at.saturating_add(run);
                    told = at;
                }
                _ => at = at.saturating_add(1),
            }
        }
        // The rest is too short to be looked up; it may be where it was.
        let rest = self.target.get(at..).unwrap_or(&[]);
        if rest.len() >= 4 && self.source.get(at..at.saturating_add(rest.len())) == Some(rest) {
            self.sections.add(self.target.get(told..at).unwrap_or(&[]));
            self.sections.copy(at, rest.len(), at);
            told = self.target.len();
        }
        self.sections.add(self.target.get(told..).unwrap_or(&[]));
        self.sections
    }

    /// The longest of: the same place of the source, where the last copy would go on, what the index knows.
    fn best(&self, at: usize, wanted: u64, shift: isize) -> Option<(usize, usize)> {
        let places = [Some(at), at.checked_add_signed(shift), self.index.get(wanted)];
        let mut best: Option<(usize, usize)> = None;
        for from in places.into_iter().flatten() {
            let length = self.length(from, at);
            if length >= SEED && best.is_none_or(|(_, longest)| length > longest) {
                best = Some((from, length));
            }
        }
        best
    }

    /// How long the bytes at address `from` are those of the target at `at`.
    fn length(&self, from: usize, at: usize) -> usize {
        let wanted = self.target.get(at..).unwrap_or(&[]);
        match from.checked_sub(self.source.len()) {
            None => common(self.source.get(from..).unwrap_or(&[]), wanted),
            Some(from) if from < at => common(self.target.get(from..).unwrap_or(&[]), wanted),
            Some(_) => 0,
        }
    }

    fn backward(&self, from: usize, at: usize, told: usize) -> usize {
        let before = self.target.get(told..at).unwrap_or(&[]);
        let old = match from.checked_sub(self.source.len()) {
            None => self.source.get(..from),
            Some(from) => self.target.get(..from),
        };
        let old = old.unwrap_or(&[]);
        before.iter().rev().zip(old.iter().rev()).take_while(|(a, b)| a == b).count()
    }
}

impl Index {
    /// As [`Index::put`], for a place that is not worth more than one that is known.
    fn put_absent(&mut self, seed: u64, address: usize) {
        if self.get(seed).is_none() {
            self.put(seed, address);
        }
    }
}

/// The three sections as they grow.
struct Sections {
    source_len: usize,
    data: Vec<u8>,
    code: Vec<u8>,
    addresses: Vec<u8>,
    cache: Cache,
}

impl Sections {
    fn new(source_len: usize) -> Self {
        Self { source_len, data: Vec::new(), code: Vec::new(), addresses: Vec::new(), cache: Cache::new() }
    }

    fn add(&mut self, bytes: &[u8]) {
        match u8::try_from(bytes.len()) {
            Ok(0) => return,
            Ok(size @ 1..=17) => self.code.push(size.saturating_add(1)),
            _ => {
                self.code.push(1);
                put_number(&mut self.code, bytes.len());
            }
        }
        self.data.extend_from_slice(bytes);
    }

    fn run(&mut self, byte: u8, size: usize) {
        self.code.push(0);
        put_number(&mut self.code, size);
        self.data.push(byte);
    }

    /// A copy from address `from` to byte `at` of the target.
    fn copy(&mut self, from: usize, size: usize, at: usize) {
        let here = self.source_len.saturating_add(at);
        let (mode, number) = self.shortest(from, here);
        let code = mode.saturating_mul(16).saturating_add(19);
        match u8::try_from(size) {
            Ok(size @ 4..=18) => self.code.push(code.saturating_add(size).saturating_sub(3)),
            _ => {
                self.code.push(code);
                put_number(&mut self.code, size);
            }
        }
        if mode < 6 {
            put_number(&mut self.addresses, number);
        } else {
            self.addresses.push(u8::try_from(number).unwrap_or(0));
        }
        self.cache.remember(from);
    }

    /// The mode in which the address takes the fewest bytes, and what to write for it.
    fn shortest(&self, from: usize, here: usize) -> (u8, usize) {
        let slot = from % (SAME * 256);
        if self.cache.same.get(slot) == Some(&from) {
            let mode = u8::try_from(slot / 256).unwrap_or(0).saturating_add(6);
            return (mode, slot % 256);
        }
        let near = self.cache.near.iter().map(|near| from.checked_sub(*near));
        let all = [Some(from), here.checked_sub(from)].into_iter().chain(near);
        let numbers = (0u8..).zip(all).filter_map(|(mode, number)| Some((mode, number?)));
        numbers.min_by_key(|(mode, number)| (*number, *mode)).unwrap_or((0, from))
    }
}
