//! Segments: which are free, what lives in those in use, where index pieces go.

use super::state::{State, digest};
use crate::error::{Error, Kind, Result};
use crate::format::checkpoint::{Role, Segment};
use crate::format::record::Encoding;
use crate::format::run::{Key, Value};

/// Which end of the store a metadata stream takes its segments from: the two copies of a checkpoint must
/// not lie near each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Index pieces and first copies.
    Low,
    /// Second copies.
    High,
}

impl State {
    /// Segments that hold nothing and can be used now.
    pub fn free_segments(&self) -> u64 {
        let taken = self.segments.range(..self.limit).count() + self.kept.range(..self.limit).count();
        u64::from(self.limit).saturating_sub(taken as u64)
    }

    /// Bytes of index pieces and checkpoints.
    pub fn metadata_bytes(&self) -> u64 {
        let index = self.segments.values().filter(|segment| segment.role == Role::Index);
        index.map(|segment| segment.live).sum()
    }

    /// Free segments that copy-outs leave alone: both copies of a checkpoint, a flush of the memory table, a
    /// merge of the whole index, two segments for relocation.
    pub fn reserve(&self) -> u64 {
        6 + 2 * self.metadata_bytes().div_ceil(u64::from(self.sb.segment_size()))
    }

    /// Takes a free segment.
    pub fn take_segment(&mut self, role: Role, stream: Stream) -> Result<u32> {
        let used = self.segments.range(..self.limit).map(|(number, _)| *number);
        let kept = self.kept.range(..self.limit).copied();
        let found = match stream {
            Stream::Low => lowest_gap(merged(used, kept, |a, b| a < b), self.limit),
            Stream::High => highest_gap(merged(used.rev(), kept.rev(), |a, b| a > b), self.limit),
        };
        let number = found.ok_or_else(|| Error::new(Kind::NoSpace, "the store has no free segment left"))?;
        self.segments.insert(number, Segment { role, count: 0, live: 0, digest: 0 });
        Ok(number)
    }

    /// Reserves `length` bytes of metadata and returns their address.
    pub fn allocate(&mut self, stream: Stream, length: u64) -> Result<u64> {
        let size = self.sb.segment_size();
        let length32 = u32::try_from(length).ok().filter(|length| *length <= size);
        let length = length32.ok_or_else(|| Error::new(Kind::NoSpace, "metadata piece exceeds a segment"))?;
        let open = match stream {
            Stream::Low => self.low,
            Stream::High => self.high,
        };
        let (segment, offset) = match open {
            Some((segment, offset)) if offset + length <= size && segment < self.limit => (segment, offset),
            _ => (self.take_segment(Role::Index, stream)?, 0),
        };
        let open = Some((segment, offset + length));
        match stream {
            Stream::Low => self.low = open,
            Stream::High => self.high = open,
        }
        if let Some(info) = self.segments.get_mut(&segment) {
            info.count += 1;
            info.live += u64::from(length);
        }
        Ok(self.sb.segment_address(segment) + u64::from(offset))
    }

    /// Gives back `length` bytes of metadata at `address`.
    pub fn release(&mut self, address: u64, length: u64) {
        if let Some(info) = self.sb.segment_of(address).and_then(|segment| self.segments.get_mut(&segment)) {
            info.count = info.count.saturating_sub(1);
            info.live = info.live.saturating_sub(length);
        }
    }

    /// Counts an entry that enters the runs in the segment that holds its data.
    pub fn count_entry(&mut self, key: Key, value: &Value) {
        let cost = self.cost(value);
        if let Some(info) = self.segment_of_value(key, value) {
            info.count += 1;
            info.live += cost;
            info.digest = info.digest.wrapping_add(digest(key, value));
        }
    }

    /// Discounts an entry that leaves the runs: the one place where space is freed.
    pub fn drop_entry(&mut self, key: Key, value: &Value) {
        let cost = self.cost(value);
        if let Some(info) = self.segment_of_value(key, value) {
            info.count = info.count.saturating_sub(1);
            info.live = info.live.saturating_sub(cost);
            info.digest = info.digest.wrapping_sub(digest(key, value));
        }
    }

    fn segment_of_value(&mut self, key: Key, value: &Value) -> Option<&mut Segment> {
        if key.class == 2 {
            return None;
        }
        debug_assert!(value.encoding != Encoding::Raw || value.stored_length > 0);
        let segment = self.sb.segment_of(value.word)?;
        self.segments.get_mut(&segment)
    }

    /// Marks what is empty now: it can be used once the checkpoint that says so is durable and the next begins.
    ///
    /// A segment waits that long because its records may be the only contradiction of the checkpoint
    /// before: that one is overwritten first.
    pub fn collect_empty(&mut self) {
        let promised: std::collections::HashSet<u32> =
            self.chain.segments_from_here().iter().copied().collect();
        let open = [self.low, self.high].map(|open| open.map(|(segment, _)| segment));
        for (number, segment) in &mut self.segments {
            if segment.count == 0 && !promised.contains(number) && !open.contains(&Some(*number)) {
                *segment = Segment { role: Role::Emptied, count: 0, live: 0, digest: 0 };
                self.emptied.entry(*number).or_insert(self.sb.checkpoint.saturating_add(1));
            }
        }
    }

    /// Emptied segments that nobody reads who has tables of checkpoint `keep`.
    pub fn releasable(&self, keep: Option<u64>) -> impl Iterator<Item = u32> {
        let emptied = self.segments.iter().filter(|(_, segment)| segment.role == Role::Emptied);
        let since = |number: &u32| self.emptied.get(number).copied().unwrap_or(0);
        emptied.map(|(number, _)| *number).filter(move |number| keep.is_none_or(|keep| since(number) <= keep))
    }

    /// Makes segments that were emptied with the last checkpoint, or before, free.
    pub fn release_emptied(&mut self) {
        let gone: Vec<u32> = self.releasable(self.keep).collect();
        for number in gone {
            self.segments.remove(&number);
            self.emptied.remove(&number);
        }
    }

    /// Takes back what is promised to the log beyond the limit and not begun yet.
    pub fn renounce(&mut self) {
        let limit = self.limit;
        let at = self.chain.at + 1;
        let (begun, mut ahead) = (self.chain.promised.clone(), Vec::new());
        let (begun, later) = begun.split_at_checked(at).unwrap_or((&begun, &[]));
        ahead.extend(later.iter().filter(|segment| **segment < limit));
        self.chain.promised = [begun, &ahead].concat();
    }

    /// Promises more free segments to the log, `extra` of them even out of the reserve.
    pub fn promise(&mut self, extra: u64) -> Result<()> {
        const INTERVAL_BYTES: u64 = 256 << 20;
        let size = u64::from(self.sb.segment_size());
        let here = self.chain.segments_from_here().to_vec();
        let free = self.free_segments();
        let wanted = (free / 8).clamp(2, (INTERVAL_BYTES / size).max(2));
        let spare = free.saturating_sub(self.reserve());
        let ahead = here.len() as u64 - 1;
        let more = wanted.saturating_sub(ahead).min(spare).max(extra.saturating_sub(ahead).min(free));
        let mut promised = here;
        for _ in 0..more {
            promised.push(self.take_segment(Role::Log, Stream::Low)?);
        }
        self.chain.promised = promised;
        self.chain.at = 0;
        Ok(())
    }
}

/// Two lists in one order, in that order.
fn merged(
    a: impl Iterator<Item = u32>,
    b: impl Iterator<Item = u32>,
    comes_first: fn(u32, u32) -> bool,
) -> impl Iterator<Item = u32> {
    let (mut a, mut b) = (a.peekable(), b.peekable());
    std::iter::from_fn(move || match (a.peek(), b.peek()) {
        (Some(first), Some(second)) if comes_first(*second, *first) => b.next(),
        (Some(_), _) => a.next(),
        (None, _) => b.next(),
    })
}

fn lowest_gap(used: impl Iterator<Item = u32>, total: u32) -> Option<u32> {
    let mut next = 0;
    for number in used {
        if number > next {
            break;
        }
        next = number + 1;
    }
    (next < total).then_some(next)
}

fn highest_gap(used: impl Iterator<Item = u32>, total: u32) -> Option<u32> {
    let mut next = total.checked_sub(1)?;
    for number in used {
        if number < next {
            break;
        }
        next = number.checked_sub(1)?;
    }
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_found_from_both_ends() {
        assert_eq!(lowest_gap([0, 1, 3].into_iter(), 5), Some(2));
        assert_eq!(lowest_gap([0, 1].into_iter(), 2), None);
        assert_eq!(lowest_gap([].into_iter(), 2), Some(0));
        assert_eq!(highest_gap([4, 3, 1].into_iter(), 5), Some(2));
        assert_eq!(highest_gap([1, 0].into_iter(), 2), None);
        assert_eq!(highest_gap([].into_iter(), 2), Some(1));
    }

    #[test]
    fn two_lists_become_one() {
        let both = |a: &[u32], b: &[u32]| -> Vec<u32> {
            merged(a.iter().copied(), b.iter().copied(), |a, b| a < b).collect()
        };
        assert_eq!(both(&[0, 3, 4], &[1, 2, 9]), [0, 1, 2, 3, 4, 9]);
        assert_eq!((both(&[], &[5]), both(&[5], &[])), (vec![5], vec![5]));
        assert_eq!(lowest_gap(both(&[0, 3], &[1, 2]).into_iter(), 5), Some(4));
    }
}
