//! The chain of records: where the next one must be and what makes it the next one.

use super::recover::OPEN_JUMP;
use crate::format::checkpoint::LogPosition;
use crate::format::record::{Record, RecordKind};
use crate::format::superblock::Superblock;
use crate::format::table::{self, RawOpen};

/// A position in the log: after which record, in which of the promised segments.
#[derive(Debug, Clone)]
pub struct Chain {
    /// The position. Its address may be the end of its segment.
    pub position: LogPosition,
    /// Segments the log may use, in order.
    pub promised: Vec<u32>,
    /// Which of them holds the position.
    pub at: usize,
}

impl Chain {
    /// The position a checkpoint stands for: in its first promised segment.
    pub fn new(position: LogPosition, promised: Vec<u32>) -> Self {
        Self { position, promised, at: 0 }
    }

    /// Where the next record must be, and in which promised segment: here if a block fits, else at the start
    /// of the next one.
    pub fn next_place(&self, sb: &Superblock) -> Option<(usize, u64)> {
        let end = segment_end(sb, *self.promised.get(self.at)?);
        if self.position.address + u64::from(sb.block_size()) <= end {
            return Some((self.at, self.position.address));
        }
        let next = self.promised.get(self.at + 1)?;
        Some((self.at + 1, sb.segment_address(*next)))
    }

    /// Bytes left in the segment that holds the position.
    pub fn left_here(&self, sb: &Superblock) -> u64 {
        self.promised
            .get(self.at)
            .map_or(0, |segment| segment_end(sb, *segment).saturating_sub(self.position.address))
    }

    /// Promised segments after the one that holds the position.
    pub fn segments_ahead(&self) -> &[u32] {
        self.promised.get(self.at + 1..).unwrap_or(&[])
    }

    /// True if `record` is the one that comes next.
    pub fn is_followed_by(&self, record: &Record) -> bool {
        let last = &self.position;
        if record.previous_crc != last.crc {
            return false;
        }
        if record.kind != RecordKind::Open {
            return record.incarnation == last.incarnation && record.sequence == last.sequence + 1;
        }
        let said = table::take::<RawOpen>(&mut record.body.as_slice());
        record.sequence == last.sequence + OPEN_JUMP
            && said
                .is_ok_and(|raw| raw.incarnation.get() == last.incarnation && raw.end.get() == last.sequence)
    }

    /// Moves past `record`, which lies in promised segment `at`.
    pub fn advance(&mut self, sb: &Superblock, at: usize, record: &Record) {
        let segment = self.promised.get(at).copied().unwrap_or(0);
        self.at = at;
        self.position = LogPosition {
            address: match record.kind {
                RecordKind::Skip => segment_end(sb, segment),
                _ => record.address + record.length(),
            },
            sequence: record.sequence,
            crc: record.crc,
            incarnation: record.incarnation,
        };
    }

    /// The promised segment that holds the position and all after it.
    pub fn segments_from_here(&self) -> &[u32] {
        self.promised.get(self.at..).unwrap_or(&[])
    }
}

/// First byte after `segment`.
pub fn segment_end(sb: &Superblock, segment: u32) -> u64 {
    sb.segment_address(segment) + u64::from(sb.segment_size())
}
