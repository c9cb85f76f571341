//! Checkpoints: everything the log up to a position amounts to, so that the log before it need not be read.
//!
//! A checkpoint is a byte stream cut into parts, each with a head of its own, written twice far apart. It
//! names the log position it stands for, not its own place.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

mod part;

use crate::error::{Error, Result};
use crate::format::field::raw_struct;
use crate::format::run::Key;
use crate::format::table::{Operation, Snapshot, TEXT_MAX, Volume, clip, put, take, take_bytes};
use zerocopy::FromZeros;
use zerocopy::little_endian::{I64, U32, U64};

pub use part::{MAGIC, PART_HEADER_SIZE, Part, RawPart, decode_part, encode_part, peek_part};

raw_struct! {
    /// Fixed head of the payload; the tables follow in the order of their counts.
    pub struct RawCheckpoint, "Checkpoint payload", 128 {
        log_address: U64, "u64 bytes", "where the next record goes: the position this stands for";
        log_sequence: U64, "u64", "sequence of the record before that position";
        log_crc: U32, "crc32", "checksum of that record, the next one's back link";
        flags: U32, "u32 bits", "1: a long operation is pending";
        incarnation: U64, "u64", "incarnation of that record";
        epoch: U64, "u64", "current epoch";
        next_run: U64, "u64", "next run number";
        unswept: U64, "u64", "index entries known dead and not dropped yet";
        low_segment: U32, "u32", "segment open for index pieces; all ones for none";
        low_offset: U32, "u32 bytes", "bytes used in it";
        high_segment: U32, "u32", "segment open for second copies; all ones for none";
        high_offset: U32, "u32 bytes", "bytes used in it";
        ends: U32, "u32", "ended incarnations (16 bytes each: incarnation, last sequence)";
        promised: U32, "u32", "segments the log may use, in order (4 bytes each)";
        snapshots: U32, "u32", "snapshots";
        graves: U32, "u32", "deleted snapshots whose entries are not swept yet";
        segments: U32, "u32", "segments in use";
        runs: U32, "u32", "index runs, newest first, each followed by its pieces";
        events: U32, "u32", "events";
        reserved: [u8; 28], "bytes", "zero";
    }
}

raw_struct! {
    /// A deleted snapshot whose entries may still be in the index.
    pub struct RawGrave, "Grave", 32 {
        id: U64, "u64", "id of the deleted snapshot";
        created_at: U64, "u64 bytes", "address of the record that made it; 0 once that is overwritten";
        created_sequence: U64, "u64", "sequence of that record";
        reserved: U64, "u64", "zero";
    }
}

raw_struct! {
    /// A segment in use.
    pub struct RawSegment, "Segment", 32 {
        number: U32, "u32", "which segment";
        role: U32, "u32", "0 emptied, reusable after the next checkpoint; 1 log; 2 index";
        count: U64, "u64", "index entries that lead into it, or pieces in it: what must exist";
        live: U64, "u64 bytes", "bytes they need";
        digest: U64, "u64", "wrapping sum of their entry digests";
    }
}

raw_struct! {
    /// An index run.
    pub struct RawRun, "Run", 48 {
        number: U64, "u64", "never reused";
        entries: U64, "u64", "entries in it";
        class: U64, "u64", "keys before this one (class, a, b) are not part of the run any more";
        a: U64, "u64", "of that key";
        b: U64, "u64", "of that key";
        pieces: U32, "u32", "pieces that follow";
        reserved: U32, "u32", "zero";
    }
}

raw_struct! {
    /// A piece of an index run.
    pub struct RawPiece, "Piece", 48 {
        address: U64, "u64 bytes", "byte address of its directory block; data blocks follow";
        position: U64, "u64", "block number of the directory in the run";
        a: U64, "u64", "first key";
        b: U64, "u64", "first key";
        class: U32, "u32", "first key";
        blocks: U32, "u32", "data blocks, up to 127";
        entries: U32, "u32", "entries";
        crc: U32, "crc32", "CRC-32 of the directory block";
    }
}

raw_struct! {
    /// An event. Followed by its text.
    pub struct RawEvent, "Event", 16 {
        time: I64, "i64 seconds", "when, since 1970 UTC";
        length: U32, "u32 bytes", "length of the text that follows, up to 4096";
        reserved: U32, "u32", "zero";
    }
}

/// What a segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Nothing any more; reusable once a later checkpoint is durable.
    Emptied,
    /// Records.
    Log,
    /// Index pieces and checkpoints.
    Index,
}

/// What is known of a segment in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// What it holds.
    pub role: Role,
    /// Index entries that lead into it (log) or pieces in it (index).
    pub count: u64,
    /// Bytes they need.
    pub live: u64,
    /// Wrapping sum of the digests of those entries.
    pub digest: u64,
}

/// A piece of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Byte address of its directory block.
    pub address: u64,
    /// Block number of the directory in the run.
    pub position: u64,
    /// First key.
    pub first: Key,
    /// Data blocks after the directory.
    pub blocks: u32,
    /// Entries.
    pub entries: u32,
    /// CRC-32 of the directory block.
    pub crc: u32,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Its number.
    pub number: u64,
    /// Entries in it.
    pub entries: u64,
    /// Keys before this one are not part of it any more.
    pub from: Key,
    /// Its pieces, by first key.
    pub pieces: Vec<Piece>,
}

/// A deleted snapshot whose entries may still be in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grave {
    /// Its id.
    pub id: u64,
    /// Address of the record that made it; 0 once that is overwritten or unknown.
    pub created_at: u64,
    /// Sequence of that record.
    pub created_sequence: u64,
}

/// The log position a checkpoint stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPosition {
    /// Where the next record goes.
    pub address: u64,
    /// Sequence of the record before.
    pub sequence: u64,
    /// Its checksum.
    pub crc: u32,
    /// Its incarnation.
    pub incarnation: u64,
}

/// Part of a segment that is open for appending: segment number and bytes used.
pub type OpenSegment = Option<(u32, u32)>;

/// A checkpoint, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The position it stands for.
    pub log: LogPosition,
    /// Current epoch.
    pub epoch: u64,
    /// Next run number.
    pub next_run: u64,
    /// Index entries known dead and not dropped yet.
    pub unswept: u64,
    /// Segment open for index pieces and first copies.
    pub low: OpenSegment,
    /// Segment open for second copies.
    pub high: OpenSegment,
    /// Ended incarnations and their last sequences.
    pub ends: Vec<(u64, u64)>,
    /// Segments the log may use, in order; the first holds the log position.
    pub promised: Vec<u32>,
    /// The snapshot table, by id.
    pub snapshots: Vec<Snapshot>,
    /// Deleted snapshots not swept yet, by id.
    pub graves: Vec<Grave>,
    /// Segments in use, by number.
    pub segments: Vec<(u32, Segment)>,
    /// Index runs, newest first.
    pub runs: Vec<Run>,
    /// Events, oldest first.
    pub events: Vec<(i64, String)>,
    /// The volume.
    pub volume: Volume,
    /// The pending long operation.
    pub operation: Option<Operation>,
}

fn count<T>(items: &[T]) -> U32 {
    U32::new(u32::try_from(items.len()).unwrap_or(u32::MAX))
}

fn open_segment(open: OpenSegment) -> (U32, U32) {
    let (segment, offset) = open.unwrap_or((u32::MAX, 0));
    (U32::new(segment), U32::new(offset))
}

impl Checkpoint {
    /// Tables of a store in which nothing happened yet: the log begins at `log`.
    #[must_use]
    pub fn empty(log: LogPosition, volume: Volume) -> Self {
        Self {
            log,
            epoch: 0,
            next_run: 1,
            unswept: 0,
            low: None,
            high: None,
            ends: Vec::new(),
            promised: Vec::new(),
            snapshots: Vec::new(),
            graves: Vec::new(),
            segments: Vec::new(),
            runs: Vec::new(),
            events: Vec::new(),
            volume,
            operation: None,
        }
    }

    /// The payload.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut raw = RawCheckpoint::new_zeroed();
        raw.log_address = U64::new(self.log.address);
        raw.log_sequence = U64::new(self.log.sequence);
        raw.log_crc = U32::new(self.log.crc);
        raw.flags = U32::new(u32::from(self.operation.is_some()));
        raw.incarnation = U64::new(self.log.incarnation);
        raw.epoch = U64::new(self.epoch);
        raw.next_run = U64::new(self.next_run);
        raw.unswept = U64::new(self.unswept);
        (raw.low_segment, raw.low_offset) = open_segment(self.low);
        (raw.high_segment, raw.high_offset) = open_segment(self.high);
        raw.ends = count(&self.ends);
        raw.promised = count(&self.promised);
        raw.snapshots = count(&self.snapshots);
        raw.graves = count(&self.graves);
        raw.segments = count(&self.segments);
        raw.runs = count(&self.runs);
        raw.events = count(&self.events);
        put(&mut out, &raw);
        for (incarnation, end) in &self.ends {
            put(&mut out, &U64::new(*incarnation));
            put(&mut out, &U64::new(*end));
        }
        for segment in &self.promised {
            put(&mut out, &U32::new(*segment));
        }
        for snapshot in &self.snapshots {
            snapshot.encode(&mut out);
        }
        for grave in &self.graves {
            put(
                &mut out,
                &RawGrave {
                    id: U64::new(grave.id),
                    created_at: U64::new(grave.created_at),
                    created_sequence: U64::new(grave.created_sequence),
                    reserved: U64::new(0),
                },
            );
        }
        self.encode_segments(&mut out);
        self.encode_runs(&mut out);
        for (time, text) in &self.events {
            let text = clip(text, TEXT_MAX);
            put(&mut out, &RawEvent { time: I64::new(*time), length: count(text), reserved: U32::new(0) });
            out.extend_from_slice(text);
        }
        self.volume.encode(&mut out);
        if let Some(operation) = &self.operation {
            operation.encode(&mut out);
        }
        out
    }

    fn encode_segments(&self, out: &mut Vec<u8>) {
        for (number, segment) in &self.segments {
            let role = match segment.role {
                Role::Emptied => 0,
                Role::Log => 1,
                Role::Index => 2,
            };
            put(
                out,
                &RawSegment {
                    number: U32::new(*number),
                    role: U32::new(role),
                    count: U64::new(segment.count),
                    live: U64::new(segment.live),
                    digest: U64::new(segment.digest),
                },
            );
        }
    }

    fn encode_runs(&self, out: &mut Vec<u8>) {
        for run in &self.runs {
            put(
                out,
                &RawRun {
                    number: U64::new(run.number),
                    entries: U64::new(run.entries),
                    class: U64::new(u64::from(run.from.class)),
                    a: U64::new(run.from.a),
                    b: U64::new(run.from.b),
                    pieces: count(&run.pieces),
                    reserved: U32::new(0),
                },
            );
            for piece in &run.pieces {
                put(
                    out,
                    &RawPiece {
                        address: U64::new(piece.address),
                        position: U64::new(piece.position),
                        a: U64::new(piece.first.a),
                        b: U64::new(piece.first.b),
                        class: U32::new(u32::from(piece.first.class)),
                        blocks: U32::new(piece.blocks),
                        entries: U32::new(piece.entries),
                        crc: U32::new(piece.crc),
                    },
                );
            }
        }
    }

    /// Decodes a payload whose checksums the caller has verified.
    ///
    /// # Errors
    /// `Kind::Damaged` if it is cut short or inconsistent.
    pub fn decode(mut bytes: &[u8]) -> Result<Self> {
        let bytes = &mut bytes;
        let raw: RawCheckpoint = take(bytes)?;
        let ends = many(bytes, raw.ends, |bytes| Ok((take::<U64>(bytes)?.get(), take::<U64>(bytes)?.get())))?;
        let promised = many(bytes, raw.promised, |bytes| Ok(take::<U32>(bytes)?.get()))?;
        let snapshots = many(bytes, raw.snapshots, Snapshot::decode)?;
        let graves = many(bytes, raw.graves, |bytes| {
            let raw: RawGrave = take(bytes)?;
            Ok(Grave {
                id: raw.id.get(),
                created_at: raw.created_at.get(),
                created_sequence: raw.created_sequence.get(),
            })
        })?;
        let segments = many(bytes, raw.segments, decode_segment)?;
        let runs = many(bytes, raw.runs, decode_run)?;
        let events = many(bytes, raw.events, |bytes| {
            let raw: RawEvent = take(bytes)?;
            let length = usize::try_from(raw.length.get()).unwrap_or(usize::MAX);
            let text = take_bytes(bytes, length, TEXT_MAX)?;
            Ok((raw.time.get(), String::from_utf8_lossy(text).into_owned()))
        })?;
        let volume = Volume::decode(bytes)?;
        let operation = if raw.flags.get() & 1 != 0 { Some(Operation::decode(bytes)?) } else { None };
        let open =
            |segment: U32, offset: U32| (segment.get() != u32::MAX).then(|| (segment.get(), offset.get()));
        Ok(Self {
            log: LogPosition {
                address: raw.log_address.get(),
                sequence: raw.log_sequence.get(),
                crc: raw.log_crc.get(),
                incarnation: raw.incarnation.get(),
            },
            epoch: raw.epoch.get(),
            next_run: raw.next_run.get(),
            unswept: raw.unswept.get(),
            low: open(raw.low_segment, raw.low_offset),
            high: open(raw.high_segment, raw.high_offset),
            ends,
            promised,
            snapshots,
            graves,
            segments,
            runs,
            events,
            volume,
            operation,
        })
    }
}

/// Decodes `count` items; grows as bytes allow, so a lying count cannot allocate.
fn many<T>(bytes: &mut &[u8], count: U32, one: impl Fn(&mut &[u8]) -> Result<T>) -> Result<Vec<T>> {
    (0..count.get()).map(|_| one(bytes)).collect()
}

fn decode_segment(bytes: &mut &[u8]) -> Result<(u32, Segment)> {
    let raw: RawSegment = take(bytes)?;
    let role = match raw.role.get() {
        0 => Role::Emptied,
        1 => Role::Log,
        2 => Role::Index,
        other => return Err(Error::damaged(format!("segment role {other} is unknown"))),
    };
    let segment = Segment { role, count: raw.count.get(), live: raw.live.get(), digest: raw.digest.get() };
    Ok((raw.number.get(), segment))
}

fn key(class: u64, a: U64, b: U64) -> Result<Key> {
    let class = u8::try_from(class).map_err(|_| Error::damaged(format!("index class {class} is unknown")))?;
    Ok(Key { class, a: a.get(), b: b.get() })
}

fn decode_run(bytes: &mut &[u8]) -> Result<Run> {
    let raw: RawRun = take(bytes)?;
    let pieces = many(bytes, raw.pieces, |bytes| {
        let raw: RawPiece = take(bytes)?;
        Ok(Piece {
            address: raw.address.get(),
            position: raw.position.get(),
            first: key(u64::from(raw.class.get()), raw.a, raw.b)?,
            blocks: raw.blocks.get(),
            entries: raw.entries.get(),
            crc: raw.crc.get(),
        })
    })?;
    let from = key(raw.class.get(), raw.a, raw.b)?;
    Ok(Run { number: raw.number.get(), entries: raw.entries.get(), from, pieces })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Uuid;
    use proptest::prelude::{any, proptest};

    fn sample() -> Checkpoint {
        let first = Key { class: 2, a: 5, b: 6 };
        Checkpoint {
            log: LogPosition { address: 1 << 20, sequence: 4, crc: 5, incarnation: 6 },
            epoch: 7,
            next_run: 8,
            unswept: 9,
            low: Some((3, 4096)),
            high: None,
            ends: vec![(1, 2)],
            promised: vec![0, 4, 5],
            snapshots: vec![Snapshot {
                id: 7,
                tag: 70,
                name: "before upgrade".into(),
                use_count: 1,
                size_bytes: 1 << 30,
                created_secs: 1_700_000_000,
                generation: 2,
                created_at: 1 << 20,
                created_sequence: 3,
                priority: -5,
                squashed: false,
                tainted: true,
                hidden: false,
                holds: vec!["offsite".into(), "usb".into()],
            }],
            graves: vec![Grave { id: 6, created_at: 0, created_sequence: 1 }],
            segments: vec![(3, Segment { role: Role::Index, count: 1, live: 4096, digest: 0 })],
            runs: vec![Run {
                number: 2,
                entries: 10,
                from: Key::MIN,
                pieces: vec![Piece { address: 4 << 20, position: 0, first, blocks: 1, entries: 10, crc: 3 }],
            }],
            events: vec![(1_700_000_001, "snapshot 5 deleted: store full".into())],
            volume: Volume {
                volume: Uuid([1; 16]),
                origin_size: 1 << 30,
                squash_when_full: true,
                unwatched: true,
                generation: 3,
                equals: Some((Uuid([2; 16]), 4, 0)),
                path: b"/dev/vg/lv".to_vec(),
            },
            operation: Some(Operation {
                before: 7,
                pinned: 0,
                token: [5; 32],
                forced: true,
                label: "apply".into(),
            }),
        }
    }

    #[test]
    fn round_trips() {
        let checkpoint = sample();
        assert_eq!(Checkpoint::decode(&checkpoint.encode()).unwrap(), checkpoint);
    }

    #[test]
    fn truncation_is_seen_at_every_length() {
        let bytes = sample().encode();
        for length in 0..bytes.len() {
            assert!(Checkpoint::decode(&bytes[..length]).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let _ = Checkpoint::decode(&bytes);
            assert!(decode_part(&bytes, 0).is_err());
        }
    }
}
