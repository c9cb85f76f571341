//! The superblock of 2008, in the layout of the last release and in that of release 0.4.
//!
//! Both layouts have the same magic and no version: which one it is shows only in which of the two makes sense.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::{SECTOR, SNAPSHOTS_MAX};
use crate::error::{Error, Result};
use crate::format::field::raw_struct;
use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32, U64};

/// Where the superblock lies on the metadata device, whatever the block size.
pub const OFFSET: u64 = 4096;
/// Bytes read; the later ones carry no meaning.
pub const SIZE: usize = 4096;
/// First eight bytes.
pub const MAGIC: [u8; 8] = [0x74, 0x65, 0x73, 0x74, 0xdd, 0x07, 0x06, 0x04];
/// The bit of a snapshot that was squashed: it has no data left.
pub const SQUASHED: u8 = 64;
/// The flag of a store that was not shut down cleanly.
pub const BUSY: u64 = 2;
/// log2 of block and chunk sizes.
const SIZE_BITS: std::ops::RangeInclusive<u32> = 9..=31;
/// The same of metadata blocks, which are held in memory: above 256 KiB the journals of the original overran.
const BLOCK_BITS: std::ops::RangeInclusive<u32> = 9..=24;
/// More index levels than this no tree of 2^32 chunks can have.
pub const LEVELS_MAX: u32 = 33;

raw_struct! {
    /// A space of blocks or chunks that a bitmap accounts for.
    pub struct RawSpace, "Store of 2008: allocation space", 48 {
        bitmap_base: U64, "u64 sectors", "where its bitmap begins on the metadata device";
        chunks: U64, "u64", "size of the space in blocks or chunks";
        free: U64, "u64", "how many are free, as of the last save of the superblock";
        last_alloc: U64, "u64", "the last one handed out";
        bitmap_blocks: U64, "u64", "length of the bitmap in metadata blocks";
        bits: U32, "u32", "log2 of the block or chunk size";
        padding: U32, "u32", "ignored";
    }
}

raw_struct! {
    /// An entry of the snapshot table.
    pub struct RawSnapshot, "Store of 2008: snapshot", 24 {
        created: U32, "u32 seconds", "creation time, low 32 bits";
        tag: U32, "u32", "the user's number";
        use_count: U16, "u16", "persistent use count";
        bit: u8, "u8", "its bit in share masks, 0 to 63; 64 if squashed";
        priority: i8, "i8", "-128 to 127";
        padding: U32, "u32", "ignored";
        sectors: U64, "u64 sectors", "size when it was created";
    }
}

raw_struct! {
    /// The superblock of the last release, as far as it carries meaning.
    pub struct RawSuperblock, "Store of 2008: superblock", 1712 {
        magic: [u8; 8], "bytes", "`74 65 73 74 dd 07 06 04`";
        created: U64, "u64 seconds", "time of initialize";
        root: U64, "u64 sectors", "the root node of the exception tree";
        origin_offset: U64, "u64", "always 0";
        origin_sectors: U64, "u64 sectors", "size of the origin";
        flags: U64, "u64 bits", "2: not shut down cleanly; others 0";
        deleting: U64, "u64", "always 0";
        table: [RawSnapshot; 64], "64 snapshots", "in order of creation";
        snapshots: U32, "u32", "entries of the table in use";
        levels: U32, "u32", "index levels above the leaves, 1 or more";
        journal_base: U32, "u32 sectors", "where the journal begins";
        journal_next: U32, "u32", "journal block that is written next";
        journal_size: U32, "u32 blocks", "length of the journal";
        sequence: U32, "u32", "number of the next commit";
        metadata: RawSpace, "space", "metadata blocks; data chunks too in the combined layout";
        data: RawSpace, "space", "data chunks of a separate store; no chunks in the combined layout";
    }
}

raw_struct! {
    /// An entry of the snapshot table of release 0.4.
    pub struct RawSnapshot04, "Store of release 0.4: snapshot", 16 {
        created: U32, "u32 seconds", "creation time, low 32 bits";
        tag: U32, "u32", "the user's number";
        use_count: U16, "u16", "persistent use count";
        bit: u8, "u8", "its bit in share masks";
        priority: i8, "i8", "-128 to 127";
        padding: U32, "u32", "ignored";
    }
}

raw_struct! {
    /// The superblock of release 0.4: snapshots have no size of their own.
    pub struct RawSuperblock04, "Store of release 0.4: superblock", 1200 {
        magic: [u8; 8], "bytes", "`74 65 73 74 dd 07 06 04`";
        created: U64, "u64 seconds", "time of initialize";
        root: U64, "u64 sectors", "the root node of the exception tree";
        origin_offset: U64, "u64", "always 0";
        origin_sectors: U64, "u64 sectors", "size of the origin";
        flags: U64, "u64 bits", "2: not shut down cleanly; others 0";
        deleting: U64, "u64", "always 0";
        table: [RawSnapshot04; 64], "64 snapshots", "in order of creation";
        snapshots: U32, "u32", "entries of the table in use";
        levels: U32, "u32", "index levels above the leaves, 1 or more";
        journal_base: U32, "u32 sectors", "where the journal begins";
        journal_next: U32, "u32", "journal block that is written next";
        journal_size: U32, "u32 blocks", "length of the journal";
        sequence: U32, "u32", "number of the next commit";
        metadata: RawSpace, "space", "metadata blocks; data chunks too in the combined layout";
        data: RawSpace, "space", "data chunks of a separate store; no chunks in the combined layout";
    }
}

/// Which layout the superblock has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Release 0.4: snapshots without sizes.
    R04,
    /// Releases 0.5 to 0.10.
    R10,
}

impl Release {
    /// Both, the newer one first.
    pub const ALL: [Self; 2] = [Self::R10, Self::R04];

    /// How users name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::R04 => "0.4",
            Self::R10 => "0.10",
        }
    }
}

/// A space that a bitmap accounts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Sector of its bitmap.
    pub bitmap_base: u64,
    /// Its size in blocks or chunks.
    pub chunks: u64,
    /// How many were free when the superblock was saved.
    pub free: u64,
    /// Length of the bitmap in metadata blocks.
    pub bitmap_blocks: u64,
    /// log2 of the block or chunk size in bytes, 9 to 31.
    pub bits: u32,
}

/// One snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Creation time, seconds since 1970.
    pub created_secs: u32,
    /// The user's number.
    pub tag: u32,
    /// Persistent use count.
    pub use_count: u16,
    /// Bit in share masks, or [`SQUASHED`].
    pub bit: u8,
    /// Priority.
    pub priority: i8,
    /// Size in sectors.
    pub sectors: u64,
}

impl Snapshot {
    /// Its bit as a mask; no bit if it was squashed.
    #[must_use]
    pub fn mask(&self) -> u64 {
        1u64.checked_shl(u32::from(self.bit)).unwrap_or(0)
    }
}

/// The superblock, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Which layout it has.
    pub release: Release,
    /// Time of initialize, seconds since 1970.
    pub created_secs: u64,
    /// Sector of the root node.
    pub root: u64,
    /// Where the origin begins on its device; nothing ever wrote another value than 0.
    pub origin_offset: u64,
    /// Size of the origin in sectors.
    pub origin_sectors: u64,
    /// The flags.
    pub flags: u64,
    /// In order of creation.
    pub snapshots: Vec<Snapshot>,
    /// Index levels above the leaves.
    pub levels: u32,
    /// Sector of the journal.
    pub journal_base: u64,
    /// Journal block that is written next.
    pub journal_next: u32,
    /// Length of the journal in blocks.
    pub journal_size: u32,
    /// Number of the next commit.
    pub sequence: u32,
    /// Metadata blocks.
    pub metadata: Space,
    /// Data chunks of a separate store.
    pub data: Option<Space>,
}

/// What a fault of a superblock is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Sizes, levels, and where things are: nothing can be read without them.
    Layout,
    /// The snapshot table: nothing tells whose exceptions are.
    Snapshots,
    /// Counts of free chunks; they can be counted.
    Free,
    /// Where the journal goes on; only the original program needs it.
    Journal,
    /// Fields that always have the same value.
    Constant,
}

/// Something about a superblock that cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong, for people.
    pub text: String,
    /// What it is about.
    pub rule: Rule,
}

impl Fault {
    /// True if nothing can be read with it.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self.rule, Rule::Layout | Rule::Snapshots)
    }
}

/// A layout that the bytes may have, and what speaks against it.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The superblock in that layout.
    pub superblock: Superblock,
    /// What speaks against it; nothing for a sound superblock.
    pub faults: Vec<Fault>,
}

impl Candidate {
    /// True if the store can be read in this layout.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.faults.iter().all(|fault| !fault.is_fatal())
    }

    fn weight(&self) -> (usize, usize) {
        (self.faults.iter().filter(|fault| fault.is_fatal()).count(), self.faults.len())
    }
}

/// Reads `block`, the [`SIZE`] bytes at [`OFFSET`] of a metadata device of `device_size` bytes, in each layout; the one
/// that least speaks against comes first.
///
/// # Errors
/// `Kind::Damaged` if the magic is not there.
pub fn candidates(block: &[u8], device_size: u64) -> Result<Vec<Candidate>> {
    let cut = || Error::damaged("superblock of 2008 is cut short").at_offset(OFFSET);
    if !block.starts_with(&MAGIC) {
        return Err(
            Error::damaged("bad magic: this is no superblock of a snapshot store of 2008").at_offset(OFFSET)
        );
    }
    let mut found = Vec::new();
    for release in Release::ALL {
        let (superblock, table) = match release {
            Release::R10 => from_r10(&RawSuperblock::read_from_prefix(block).map_err(|_| cut())?.0),
            Release::R04 => from_r04(&RawSuperblock04::read_from_prefix(block).map_err(|_| cut())?.0),
        };
        let faults = superblock.faults(table, device_size);
        found.push(Candidate { superblock, faults });
    }
    found.sort_by_key(Candidate::weight);
    Ok(found)
}

/// The superblock in the layout `wanted`, or in the one that least speaks against.
///
/// # Errors
/// `Kind::Damaged` with all that speaks against each layout, if none can be read.
pub fn choose(block: &[u8], device_size: u64, wanted: Option<Release>) -> Result<Candidate> {
    let mut found = candidates(block, device_size)?;
    found.retain(|candidate| wanted.is_none_or(|release| candidate.superblock.release == release));
    if let Some(at) = found.iter().position(Candidate::is_usable) {
        return Ok(found.swap_remove(at));
    }
    let reasons = |candidate: &Candidate| {
        let texts: Vec<&str> = candidate.faults.iter().map(|fault| fault.text.as_str()).collect();
        format!("as release {}: {}", candidate.superblock.release.name(), texts.join(", "))
    };
    let reasons: Vec<String> = found.iter().map(reasons).collect();
    Err(Error::damaged(format!("superblock of 2008 makes no sense; {}", reasons.join("; ")))
        .at_offset(OFFSET))
}

/// The superblock in `$raw`, whatever its layout, and how many snapshots it counts; `$sectors` is the size of each.
macro_rules! decode {
    ($raw:expr, $release:expr, $sectors:expr) => {{
        let raw = $raw;
        let snapshots = raw.table.iter().take(used(raw.snapshots)).map(|entry| Snapshot {
            created_secs: entry.created.get(),
            tag: entry.tag.get(),
            use_count: entry.use_count.get(),
            bit: entry.bit,
            priority: entry.priority,
            sectors: $sectors(entry),
        });
        let superblock = Superblock {
            release: $release,
            created_secs: raw.created.get(),
            root: raw.root.get(),
            origin_offset: raw.origin_offset.get(),
            origin_sectors: raw.origin_sectors.get(),
            flags: raw.flags.get(),
            snapshots: snapshots.collect(),
            levels: raw.levels.get(),
            journal_base: raw.journal_base.get().into(),
            journal_next: raw.journal_next.get(),
            journal_size: raw.journal_size.get(),
            sequence: raw.sequence.get(),
            metadata: space(&raw.metadata),
            data: data_space(&raw.data),
        };
        (superblock, raw.snapshots.get())
    }};
}

fn from_r10(raw: &RawSuperblock) -> (Superblock, u32) {
    decode!(raw, Release::R10, |entry: &RawSnapshot| entry.sectors.get())
}

fn from_r04(raw: &RawSuperblock04) -> (Superblock, u32) {
    decode!(raw, Release::R04, |_: &RawSnapshot04| raw.origin_sectors.get())
}

fn used(count: U32) -> usize {
    usize::try_from(count.get()).unwrap_or(usize::MAX).min(SNAPSHOTS_MAX)
}

fn space(raw: &RawSpace) -> Space {
    Space {
        bitmap_base: raw.bitmap_base.get(),
        chunks: raw.chunks.get(),
        free: raw.free.get(),
        bitmap_blocks: raw.bitmap_blocks.get(),
        bits: raw.bits.get(),
    }
}

fn data_space(raw: &RawSpace) -> Option<Space> {
    (raw.chunks.get() != 0).then(|| space(raw))
}

impl Superblock {
    /// True if the store was not shut down cleanly.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.flags & BUSY != 0
    }

    /// Bytes of a metadata block.
    #[must_use]
    pub fn block_size(&self) -> u64 {
        1u64.checked_shl(self.metadata.bits).unwrap_or(0)
    }

    /// log2 of the chunk size in bytes.
    #[must_use]
    pub fn chunk_bits(&self) -> u32 {
        self.data.as_ref().map_or(self.metadata.bits, |data| data.bits)
    }

    /// The space that data chunks are in.
    #[must_use]
    pub fn data_space(&self) -> &Space {
        self.data.as_ref().unwrap_or(&self.metadata)
    }

    /// Sectors of a metadata block.
    #[must_use]
    pub fn block_sectors(&self) -> u64 {
        self.block_size() / SECTOR
    }

    /// The bits of all live snapshots.
    #[must_use]
    pub fn live(&self) -> u64 {
        self.snapshots.iter().fold(0, |mask, snapshot| mask | snapshot.mask())
    }

    /// The areas of the metadata device, in sectors, that are neither tree nor data: name, begin, end.
    #[must_use]
    pub fn areas(&self) -> Vec<(&'static str, u64, u64)> {
        let block = self.block_sectors();
        let end = |base: u64, blocks: u64| base.saturating_add(blocks.saturating_mul(block));
        let head = 16u64.next_multiple_of(block.max(1));
        let mut areas = vec![
            ("superblock", 0, head),
            (
                "bitmap",
                self.metadata.bitmap_base,
                end(self.metadata.bitmap_base, self.metadata.bitmap_blocks),
            ),
            ("journal", self.journal_base, end(self.journal_base, self.journal_size.into())),
        ];
        if let Some(data) = &self.data {
            areas.push(("data bitmap", data.bitmap_base, end(data.bitmap_base, data.bitmap_blocks)));
        }
        areas
    }

    /// What cannot be; `table` is how many snapshots the superblock counts.
    fn faults(&self, table: u32, device_size: u64) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut fault = |rule: Rule, text: String| faults.push(Fault { text, rule });
        let spaces = [Some(("metadata", &self.metadata)), self.data.as_ref().map(|data| ("data", data))];
        for ((name, space), sizes) in spaces.into_iter().flatten().zip([BLOCK_BITS, SIZE_BITS]) {
            if !sizes.contains(&space.bits) {
                let (bits, most) = (space.bits, sizes.end());
                fault(Rule::Layout, format!("log2 of the {name} block size is {bits}, not 9 to {most}"));
            }
        }
        if !BLOCK_BITS.contains(&self.metadata.bits) {
            // Everything else is counted in blocks.
            return faults;
        }
        if usize::try_from(table).is_ok_and(|table| table > SNAPSHOTS_MAX) {
            fault(Rule::Snapshots, format!("it counts {table} snapshots, at most 64 can be"));
        }
        if self.levels == 0 || self.levels > LEVELS_MAX {
            fault(Rule::Layout, format!("the tree has {} levels, not 1 to {LEVELS_MAX}", self.levels));
        }
        self.place_faults(device_size, &mut fault);
        self.table_faults(&mut fault);
        if self.flags & !BUSY != 0 {
            fault(Rule::Constant, format!("unknown flags {:#x}", self.flags));
        }
        if self.origin_offset != 0 {
            fault(Rule::Constant, format!("the origin is said to begin at {}, not 0", self.origin_offset));
        }
        faults
    }

    fn place_faults(&self, device_size: u64, fault: &mut impl FnMut(Rule, String)) {
        let block = self.block_sectors().max(1);
        let sectors = device_size / SECTOR;
        let spaces = [Some(("metadata", &self.metadata)), self.data.as_ref().map(|data| ("data", data))];
        for (name, space) in spaces.into_iter().flatten() {
            let per_block = self.block_size().saturating_mul(8).max(1);
            if space.bitmap_blocks != space.chunks.div_ceil(per_block) {
                fault(
                    Rule::Layout,
                    format!("{} blocks of {name} bitmap for {} chunks", space.bitmap_blocks, space.chunks),
                );
            }
            if space.free > space.chunks {
                fault(
                    Rule::Free,
                    format!("{} of {} {name} chunks are said to be free", space.free, space.chunks),
                );
            }
        }
        let end = self.metadata.chunks.saturating_mul(block);
        if end > sectors {
            fault(
                Rule::Layout,
                format!("the metadata end at sector {end}, the device at {sectors}: it has become smaller"),
            );
        }
        let areas = self.areas();
        for (at, (name, begin, stop)) in areas.iter().enumerate() {
            if !begin.is_multiple_of(block) || *stop > end || begin > stop {
                fault(
                    Rule::Layout,
                    format!("the {name} is said to be at sectors {begin} to {stop} of {end}"),
                );
            }
            for (other, from, to) in areas.iter().skip(at.saturating_add(1)) {
                if begin < to && from < stop {
                    fault(Rule::Layout, format!("{name} and {other} overlap"));
                }
            }
        }
        if !self.root.is_multiple_of(block) || self.root >= end {
            fault(Rule::Layout, format!("the root is said to be at sector {} of {end}", self.root));
        }
        if self.journal_next >= self.journal_size.max(1) {
            fault(
                Rule::Journal,
                format!("the next of {} journal blocks is {}", self.journal_size, self.journal_next),
            );
        }
    }

    fn table_faults(&self, fault: &mut impl FnMut(Rule, String)) {
        let (mut tags, mut bits) = (std::collections::BTreeSet::new(), 0u64);
        for snapshot in &self.snapshots {
            if !tags.insert(snapshot.tag) {
                fault(Rule::Snapshots, format!("two snapshots have tag {}", snapshot.tag));
            }
            if snapshot.bit > SQUASHED {
                fault(Rule::Snapshots, format!("snapshot {} has bit {}", snapshot.tag, snapshot.bit));
            }
            if bits & snapshot.mask() != 0 {
                fault(Rule::Snapshots, format!("bit {} belongs to two snapshots", snapshot.bit));
            }
            bits |= snapshot.mask();
            if snapshot.sectors.checked_mul(SECTOR).is_none() {
                fault(Rule::Snapshots, format!("snapshot {} has {} sectors", snapshot.tag, snapshot.sectors));
            }
        }
        if self.origin_sectors.checked_mul(SECTOR).is_none() {
            fault(Rule::Layout, format!("the origin has {} sectors", self.origin_sectors));
        }
    }
}
