//! Findings, gathered by code: however often something is found, it is told once, and counted.

use crate::format::legacy::superblock::{OFFSET, Superblock};
use crate::format::legacy::{SECTOR, repair};
use crate::point::finding::{Affected, Code, Finding};
use crate::units::{Epoch, Tag};
use std::collections::BTreeMap;
use std::ops::Range;

/// What was found so far.
#[derive(Clone)]
pub(in crate::legacy) struct Tally<'a> {
    sb: &'a Superblock,
    found: BTreeMap<Code, Found>,
}

/// The first of its code, and how many there are.
#[derive(Clone)]
struct Found {
    text: String,
    offset: Option<u64>,
    count: u64,
    /// One for each snapshot of the table, or none: no snapshot is concerned.
    affected: Vec<Affected>,
    /// Bits of the snapshots of which nothing tells what is concerned.
    whole: u64,
}

impl<'a> Tally<'a> {
    pub fn new(sb: &'a Superblock) -> Self {
        Self { sb, found: BTreeMap::new() }
    }

    /// Nothing, but that a repair which was cut short has decided what the superblock becomes. Until it is ended the
    /// bitmaps prove nothing.
    pub fn of(sb: &'a Superblock, is_decided: bool) -> Self {
        let mut tally = Self::new(sb);
        if is_decided {
            let text = || "the superblock is to become what a repair decided, which lies behind it".into();
            tally.add(Code::LegacyRepair, Some(OFFSET + repair::OFFSET as u64), text);
        }
        tally
    }

    /// True if something of this code was found.
    pub fn has(&self, code: Code) -> bool {
        self.found.contains_key(&code)
    }

    /// The codes of all that was found.
    pub fn codes(&self) -> impl Iterator<Item = Code> {
        self.found.keys().copied()
    }

    /// Adds something that concerns no snapshot in particular.
    pub fn add(&mut self, code: Code, offset: Option<u64>, text: impl FnOnce() -> String) {
        self.entry(code, offset, text);
    }

    /// As [`Tally::add_whole`], `count` times; the text is of the first.
    pub fn add_many(
        &mut self,
        code: Code,
        offset: Option<u64>,
        (count, mask): (u64, u64),
        text: impl FnOnce() -> String,
    ) {
        if count > 0 {
            self.add_whole(code, offset, mask, text);
            if let Some(found) = self.found.get_mut(&code) {
                found.count += count - 1;
            }
        }
    }

    /// Forgets what is of other codes.
    pub fn keep(&mut self, wanted: impl Fn(Code) -> bool) {
        self.found.retain(|code, _| wanted(*code));
    }

    /// How often something of this code was found.
    pub fn count(&self, code: Code) -> u64 {
        self.found.get(&code).map_or(0, |found| found.count)
    }

    /// Adds something that concerns the snapshots of `mask`, nothing tells where.
    pub fn add_whole(&mut self, code: Code, offset: Option<u64>, mask: u64, text: impl FnOnce() -> String) {
        let sb = self.sb;
        let found = self.entry(code, offset, text);
        found.whole |= mask;
        found.prepare(sb);
    }

    /// Adds something that concerns `chunks` of the snapshots of `mask`.
    pub fn add_chunks(
        &mut self,
        code: Code,
        offset: Option<u64>,
        (mask, chunks): (u64, Range<u64>),
        text: impl FnOnce() -> String,
    ) {
        let sb = self.sb;
        let found = self.entry(code, offset, text);
        found.prepare(sb);
        let size = 1u64 << sb.chunk_bits();
        for (snapshot, affected) in sb.snapshots.iter().zip(&mut found.affected) {
            let end = snapshot.sectors.saturating_mul(SECTOR).min(chunks.end.saturating_mul(size));
            let range = chunks.start.saturating_mul(size)..end;
            if snapshot.mask() & mask != 0 && !range.is_empty() {
                affected.push(range);
            }
        }
    }

    fn entry(&mut self, code: Code, offset: Option<u64>, text: impl FnOnce() -> String) -> &mut Found {
        let found = self.found.entry(code).or_insert_with(|| Found {
            text: text(),
            offset,
            count: 0,
            affected: Vec::new(),
            whole: 0,
        });
        found.count += 1;
        found
    }

    /// All of it, in the order of the codes.
    pub fn into_findings(self) -> Vec<Finding> {
        let sb = self.sb;
        self.found.into_iter().map(|(code, found)| found.into_finding(code, sb)).collect()
    }
}

impl Found {
    fn prepare(&mut self, sb: &Superblock) {
        if self.affected.is_empty() {
            let numbered = (1..).map(Epoch).zip(&sb.snapshots);
            let none = |(id, tag)| Affected { id, tag: Some(Tag(tag)), ranges: Vec::new(), more: 0 };
            self.affected = numbered.map(|(id, snapshot)| none((id, snapshot.tag))).collect();
        }
    }

    fn into_finding(mut self, code: Code, sb: &Superblock) -> Finding {
        let mut affected = Vec::new();
        for (snapshot, mut one) in sb.snapshots.iter().zip(self.affected.drain(..)) {
            one.ranges.sort_unstable_by_key(|range| (range.start, range.end));
            if !one.ranges.is_empty() || snapshot.mask() & self.whole != 0 {
                affected.push(one);
            }
        }
        let text = match self.count {
            1 => self.text,
            count => format!("{}; {} more like this", self.text, count - 1),
        };
        Finding { offset: self.offset, ..Finding::new(code, text).concerning(affected) }
    }
}
