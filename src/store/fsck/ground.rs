//! What a rebuild stands on: the newest whole checkpoint, or at least the store's geometry.

use crate::block::ReadAt;
use crate::error::{Error, Kind, Result};
use crate::format::checkpoint::{self, Checkpoint, Part};
use crate::format::salt::{self, Testimony};
use crate::format::superblock::{FIRST_SEGMENT, Superblock};
use crate::progress::Progress;
use crate::store::recover::{Superblocks, read_checkpoint};
use crate::units::{Uuid, index};
use std::collections::{BTreeMap, HashMap};

const WINDOW: u64 = 4 << 20;
const STEP: u64 = 4096;
/// Records heard as witnesses when nothing else says what the store is.
const WITNESSES: usize = 1 << 14;

/// What is known before any record is read.
pub struct Ground {
    /// Identity, salt and geometry; generation and number of the checkpoint above all that were seen.
    pub sb: Superblock,
    /// The newest whole checkpoint.
    pub checkpoint: Option<Checkpoint>,
    /// True if a superblock survives, which says how far the log goes at least.
    pub sealed: bool,
    /// Without a superblock: what else lies here, the most records first.
    pub others: Vec<OtherStore>,
}

/// Remains of a store that was not chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherStore {
    /// Its identity.
    pub uuid: Uuid,
    /// Records that speak of it, of those that were looked at.
    pub records: usize,
    /// The time of the newest of them, in seconds since 1970 UTC.
    pub written_secs: Option<i64>,
    /// The newest checkpoint of which a part is left.
    pub checkpoint: Option<u64>,
}

/// Stores named beside the one that is chosen.
const OTHERS: usize = 4;

/// Finds it: by the superblocks, else by looking at every block of the device. Nothing but the store `wanted`
/// counts, if one is named.
///
/// # Errors
/// `Kind::Damaged` if nothing of a store is left, `Kind::Unsupported`, `Kind::Io`, `Kind::Interrupted`.
pub fn find(device: &dyn ReadAt, wanted: Option<Uuid>, progress: &dyn Progress) -> Result<Ground> {
    let mut superblocks = match Superblocks::read(device).newest_first() {
        Ok(list) => list,
        Err(error) if error.kind() == Kind::Damaged => Vec::new(),
        Err(error) => return Err(error.at_path(device.path())),
    };
    let generation = superblocks.iter().map(|sb| sb.generation).max().unwrap_or(0);
    superblocks.retain(|sb| wanted.is_none_or(|wanted| wanted == sb.uuid));
    for sb in &superblocks {
        for copy in 0..2 {
            match read_checkpoint(device, sb, copy) {
                Ok(checkpoint) => {
                    // The newest one may have lost its checkpoint, and still says how far the log went.
                    let same = || superblocks.iter().filter(|other| other.uuid == sb.uuid);
                    let durable = same().map(|other| other.durable).max().unwrap_or(0);
                    let number = same().map(|other| other.checkpoint).max().unwrap_or(0);
                    let sb = Superblock { generation, durable, checkpoint: number, ..sb.clone() };
                    let (checkpoint, others) = (Some(checkpoint), Vec::new());
                    return Ok(Ground { sb, checkpoint, sealed: true, others });
                }
                Err(error) if matches!(error.kind(), Kind::Damaged | Kind::Io) => {}
                Err(error) => return Err(error),
            }
        }
    }
    let mut look = Look { known: superblocks.first(), wanted, ..Look::new(device) };
    look.at_every_block(progress)?;
    look.conclude(generation)
}

/// Finds that of the store `sb` by looking at every block, whatever its superblocks say.
///
/// # Errors
/// As [`find`].
pub fn look(device: &dyn ReadAt, sb: &Superblock, progress: &dyn Progress) -> Result<Ground> {
    let mut look = Look { known: Some(sb), ..Look::new(device) };
    look.at_every_block(progress)?;
    look.conclude(sb.generation)
}

struct Look<'a> {
    device: &'a dyn ReadAt,
    /// A sound superblock whose checkpoint is lost.
    known: Option<&'a Superblock>,
    /// The only store that counts.
    wanted: Option<Uuid>,
    /// By publication: attempts that were cut short leave theirs behind, and so does a store that was here before.
    parts: HashMap<(u64, u64, [u8; 16]), HashMap<u32, Part>>,
    /// For each store that records speak of, the time of the newest and how many there are.
    votes: HashMap<Testimony, (i64, usize)>,
    witnesses: usize,
    /// Bytes of would-be parts that may still be read: bytes that only look like parts must not cost for ever.
    budget: u64,
}

impl<'a> Look<'a> {
    fn new(device: &'a dyn ReadAt) -> Self {
        let budget = device.size().saturating_mul(2);
        let (parts, votes) = (HashMap::new(), HashMap::new());
        Self { device, known: None, wanted: None, parts, votes, witnesses: 0, budget }
    }

    fn at_every_block(&mut self, progress: &dyn Progress) -> Result<()> {
        let size = self.device.size();
        progress.stage("looking for checkpoints", Some(size));
        let mut window = vec![0; index(WINDOW)];
        let mut at = 0;
        while at < size {
            progress.check()?;
            // Holes hold nothing.
            let data = self.device.next_data(at).map_or(at, |data| data.start) / STEP * STEP;
            if data > at {
                progress.advance(data - at);
                at = data;
                continue;
            }
            let length = WINDOW.min(size - at);
            let bytes = window.get_mut(..index(length)).unwrap_or(&mut []);
            match self.device.read_once_at(bytes, at) {
                Ok(()) => {}
                // What the medium does not give back is as good as overwritten.
                Err(error) if error.kind() == Kind::Io => bytes.fill(0),
                Err(error) => return Err(error),
            }
            for offset in (0..length).step_by(index(STEP)) {
                let block = window.get(index(offset)..index(length)).unwrap_or(&[]);
                self.at_block(block, at + offset)?;
            }
            progress.advance(length);
            at += length;
        }
        Ok(())
    }

    fn at_block(&mut self, bytes: &[u8], address: u64) -> Result<()> {
        if let Some(length) = checkpoint::peek_part(bytes, address) {
            return self.at_part(address, length as u64);
        }
        if self.witnesses < WITNESSES
            && let Some((testimony, time_secs)) = salt::testify(bytes, address)
        {
            self.witnesses += 1;
            let vote = self.votes.entry(testimony).or_insert((i64::MIN, 0));
            *vote = (vote.0.max(time_secs), vote.1 + 1);
        }
        Ok(())
    }

    fn at_part(&mut self, address: u64, length: u64) -> Result<()> {
        let fits = address.checked_add(length).is_some_and(|end| end <= self.device.size());
        if !fits || length > self.budget {
            return Ok(());
        }
        self.budget -= length;
        let mut whole = vec![0; index(length)];
        match self.device.read_at(&mut whole, address) {
            Ok(()) => {}
            Err(error) if error.kind() == Kind::Io => return Ok(()),
            Err(error) => return Err(error),
        }
        if let Ok(part) = checkpoint::decode_part(&whole, address)
            && self.known.is_none_or(|sb| sb.uuid == part.geometry.uuid)
        {
            let key = (part.publication, part.number, part.geometry.uuid.0);
            self.parts.entry(key).or_default().insert(part.part, part);
        }
        Ok(())
    }

    fn conclude(self, generation: u64) -> Result<Ground> {
        let mut ground = self.choose(generation)?;
        if !ground.sealed {
            ground.others = self.stores();
            ground.others.retain(|store| store.uuid != ground.sb.uuid);
            ground.others.truncate(OTHERS);
        }
        Ok(ground)
    }

    /// Every store of which something was found, the most records first.
    fn stores(&self) -> Vec<OtherStore> {
        let mut found: BTreeMap<Uuid, OtherStore> = BTreeMap::new();
        let none = |uuid| OtherStore { uuid, records: 0, written_secs: None, checkpoint: None };
        for (said, (time_secs, records)) in &self.votes {
            let store = found.entry(said.uuid).or_insert(none(said.uuid));
            store.records += records;
            store.written_secs = store.written_secs.max(Some(*time_secs));
        }
        for part in self.parts.values().flat_map(HashMap::values) {
            let store = found.entry(part.geometry.uuid).or_insert(none(part.geometry.uuid));
            store.checkpoint = store.checkpoint.max(Some(part.number));
        }
        let mut found: Vec<OtherStore> = found.into_values().collect();
        found.sort_by_key(|store| std::cmp::Reverse((store.records, store.checkpoint)));
        found
    }

    fn choose(&self, generation: u64) -> Result<Ground> {
        let counts = |uuid: Uuid| self.wanted.is_none_or(|wanted| wanted == uuid);
        let sealed = self.known.is_some();
        let number = self.parts.values().flat_map(HashMap::values).map(|part| part.number).max().unwrap_or(0);
        let known = self.known.map_or((0, 0), |sb| (sb.checkpoint, sb.durable));
        let above = |sb: Superblock| Superblock {
            generation,
            checkpoint: number.max(sb.checkpoint).max(known.0),
            durable: sb.durable.max(known.1),
            copies: [Vec::new(), Vec::new()],
            ..sb
        };
        // Of several stores the one that was written last counts, not one of which nothing but this is left. Numbers
        // say nothing across stores, and are used again after an attempt that was cut short.
        let written = |uuid: Uuid| {
            let votes = self.votes.iter().filter(|(said, _)| said.uuid == uuid);
            votes.map(|(_, (time_secs, _))| *time_secs).max()
        };
        let whole = self.parts.values().filter_map(assemble).filter(|(sb, _)| counts(sb.uuid));
        let newest = whole.max_by_key(|(sb, checkpoint)| {
            (written(sb.uuid), sb.created_secs, checkpoint.log.sequence, sb.checkpoint)
        });
        if let Some((sb, checkpoint)) = newest {
            return Ok(Ground { sb: above(sb), checkpoint: Some(checkpoint), sealed, others: Vec::new() });
        }
        let parts = self.parts.values().flat_map(HashMap::values).map(|part| &part.geometry);
        let newest = parts.filter(|sb| counts(sb.uuid)).max_by_key(|sb| (sb.created_secs, sb.checkpoint));
        if let Some(sb) = self.known.or(newest) {
            return Ok(Ground { sb: above(sb.clone()), checkpoint: None, sealed, others: Vec::new() });
        }
        // A store made later on the same device has the newer records, though maybe fewer.
        let votes = self.votes.iter().filter(|(said, _)| counts(said.uuid));
        let newest = votes.max_by_key(|(testimony, votes)| (**votes, testimony.uuid.0));
        let Some((said, _)) = newest else {
            let what = match self.wanted {
                Some(uuid) => format!("nothing of the snapshot store {uuid} is left here"),
                None => "nothing of a snapshot store is left here".to_owned(),
            };
            return Err(Error::damaged(what).at_path(self.device.path()));
        };
        let sb = Superblock {
            uuid: said.uuid,
            generation,
            salt: said.salt,
            chunk_bits: said.chunk_bits,
            block_bits: said.block_bits,
            segment_bits: said.segment_bits,
            segments: u32::try_from(self.device.size().saturating_sub(FIRST_SEGMENT) >> said.segment_bits)
                .unwrap_or(u32::MAX),
            created_secs: 0,
            checkpoint: 0,
            durable: 0,
            uncommitted: false,
            copies: [Vec::new(), Vec::new()],
        };
        Ok(Ground { sb: above(sb), checkpoint: None, sealed, others: Vec::new() })
    }
}

fn assemble(found: &HashMap<u32, Part>) -> Option<(Superblock, Checkpoint)> {
    let any = found.values().next()?;
    let mut payload = Vec::new();
    for number in 0..any.parts {
        payload.extend_from_slice(&found.get(&number)?.payload);
    }
    let checkpoint = Checkpoint::decode(&payload).ok()?;
    crate::store::recover::validate(&any.geometry, &checkpoint).ok()?;
    Some((any.geometry.clone(), checkpoint))
}
