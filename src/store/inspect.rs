//! What a dump may see of a store beyond what a [`View`] tells: its structures as they lie there, and its tables
//! as they are once the log is replayed. Reads only, and goes on where it can when something is damaged.

use super::chain::Chain;
use super::fsck::ground::{self, Ground};
use super::fsck::survey::survey;
use super::index::{BlockReader, MemTable, Scan};
use super::recover::{self, Superblocks, read_record};
use super::state::{State, keeper};
use super::view::View;
use crate::block::ReadAt;
use crate::error::{Error, Kind, Result};
use crate::format::checkpoint::{Checkpoint, Run};
use crate::format::record::{Encoding, Record};
use crate::format::run::{IndexEntry, Key, Value};
use crate::format::superblock::Superblock;
use crate::format::table::{Fingerprint, Snapshot};
use crate::progress::Progress;
use std::sync::Arc;

/// A store that is looked at, sound or not.
pub struct Inspector {
    device: Arc<dyn ReadAt>,
    /// Both superblocks, or why they do not count.
    pub superblocks: [Result<Superblock>; 2],
}

/// The tables of a store, brought up to date as far as its log is sound.
pub struct Recovered {
    view: View,
    nothing: MemTable,
    /// Where the log breaks off although there was more of it, or why the rest of it makes no sense.
    pub broken: Option<Error>,
}

/// Where entries of the index are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Everywhere: the newest of several with the same key, change bits united.
    All,
    /// What the log since the checkpoint adds.
    Log,
    /// One run, by its place among them, newest first.
    Run(usize),
}

/// Which snapshots read what is preserved of a chunk.
pub struct Readers {
    live: Vec<u64>,
}

impl Inspector {
    /// Looks at the superblocks of `device`.
    #[must_use]
    pub fn open(device: Arc<dyn ReadAt>) -> Self {
        let superblocks = Superblocks::read(device.as_ref()).copies;
        Self { device, superblocks }
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &dyn ReadAt {
        self.device.as_ref()
    }

    /// The sound superblocks, newest first.
    #[must_use]
    pub fn newest_first(&self) -> Vec<Superblock> {
        let mut sound: Vec<Superblock> =
            self.superblocks.iter().filter_map(|copy| copy.as_ref().ok()).cloned().collect();
        sound.sort_by_key(|sb| std::cmp::Reverse(sb.generation));
        sound
    }

    /// One copy of the checkpoint that `sb` publishes.
    ///
    /// # Errors
    /// `Kind::Damaged`, `Kind::Io`.
    pub fn checkpoint(&self, sb: &Superblock, copy: usize) -> Result<Checkpoint> {
        recover::read_checkpoint(self.device(), sb, copy)
    }

    /// The newest whole checkpoint, with the geometry of the store: by the superblocks, else by looking at every
    /// block of the device.
    ///
    /// # Errors
    /// `Kind::Damaged` if there is none, `Kind::Io`, `Kind::Interrupted`.
    pub fn find_checkpoint(&self, progress: &dyn Progress) -> Result<(Superblock, Checkpoint)> {
        match ground::find(self.device(), None, progress)? {
            Ground { sb, checkpoint: Some(checkpoint), .. } => Ok((sb, checkpoint)),
            Ground { checkpoint: None, .. } => {
                Err(Error::damaged("no checkpoint survives: nothing says what the records belong to")
                    .at_path(self.device().path()))
            }
        }
    }

    /// The sound record at byte `address`.
    ///
    /// # Errors
    /// `Kind::Damaged` if there is none, `Kind::Io`.
    pub fn record(&self, sb: &Superblock, address: u64) -> Result<Record> {
        read_record(self.device(), sb, address)
    }

    /// Sequence and address of every sound record that is left, by ascending sequence. Reads the whole store.
    ///
    /// # Errors
    /// `Kind::Io`, `Kind::Interrupted`.
    pub fn find_records(
        &self,
        sb: &Superblock,
        checkpoint: &Checkpoint,
        progress: &dyn Progress,
    ) -> Result<Vec<(u64, u64)>> {
        let found = survey(self.device(), sb, &checkpoint.ends, progress)?.records;
        Ok(found.into_iter().map(|record| (record.sequence, record.address)).collect())
    }

    /// The records after `checkpoint` in the order of the log, up to sequence `last`; then, with true, a record
    /// that comes next but does not count, because it was cut short.
    ///
    /// # Errors
    /// `Kind::Io`, or what `each` says.
    pub fn each_record(
        &self,
        sb: &Superblock,
        checkpoint: &Checkpoint,
        last: u64,
        each: &mut dyn FnMut(&Record, bool) -> Result<()>,
    ) -> Result<()> {
        let mut chain = Chain::new(checkpoint.log, checkpoint.promised.clone());
        while let Some((at, record)) = recover::next_record(self.device(), sb, &chain)? {
            let torn = record.sequence > last;
            each(&record, torn)?;
            if torn {
                break;
            }
            chain.advance(sb, at, &record);
        }
        Ok(())
    }

    /// The tables that `checkpoint` stands for, brought up to date with the log.
    ///
    /// # Errors
    /// `Kind::Interrupted`. What else goes wrong is told in the result.
    pub fn recover(&self, sb: Superblock, checkpoint: Checkpoint) -> Result<Recovered> {
        let mut state = State::new(sb, checkpoint);
        let broken = match recover::replay(self.device(), &mut state) {
            Ok(()) => None,
            Err(error) if error.kind() == Kind::Interrupted => return Err(error),
            Err(error) => Some(error),
        };
        let reader = Arc::new(BlockReader::new(Arc::clone(&self.device)));
        let view = View { device: Arc::clone(&self.device), origin: None, state, reader };
        Ok(Recovered { view, nothing: MemTable::new(), broken })
    }
}

impl Recovered {
    /// The superblock that counts, or as much of it as is known.
    #[must_use]
    pub fn superblock(&self) -> &Superblock {
        &self.view.state.sb
    }

    /// The tables; entries that the log adds to the index are not in its runs.
    #[must_use]
    pub fn tables(&self) -> Checkpoint {
        self.view.state.to_checkpoint()
    }

    /// The snapshots by id, hidden and squashed ones included.
    pub fn snapshots(&self) -> impl Iterator<Item = &Snapshot> {
        self.view.state.snapshots.values()
    }

    /// What the origin looked like at the last close, if that was clean.
    #[must_use]
    pub fn fingerprint(&self) -> Option<&Fingerprint> {
        self.view.state.fingerprint.as_ref()
    }

    /// The runs, newest first.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.view.state.runs
    }

    /// Entries of `source` in key order, from `key` on.
    ///
    /// # Errors
    /// `Kind::Damaged`, `Kind::Io`; each step may say so too.
    pub fn entries(&self, source: Source, key: Key) -> Result<impl Iterator<Item = Result<IndexEntry>> + '_> {
        let state = &self.view.state;
        let (memory, runs) = match source {
            Source::All => (&state.memory, state.runs.as_slice()),
            Source::Log => (&state.memory, &[][..]),
            Source::Run(number) => (&self.nothing, state.runs.get(number..=number).unwrap_or(&[])),
        };
        let mut scan = Scan::new(&self.view.reader, memory, runs, key)?;
        Ok(std::iter::from_fn(move || scan.next_entry().transpose()))
    }

    /// True if the data that `value` leads to hold their checksum.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn holds(&self, value: &Value) -> Result<bool> {
        match self.view.fetch(value) {
            Ok(_) => Ok(value.encoding != Encoding::Lost),
            Err(error) if error.kind() == Kind::Damaged => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Who reads what.
    #[must_use]
    pub fn readers(&self) -> Readers {
        Readers { live: self.view.state.live_ids() }
    }
}

impl Readers {
    /// Ids of the snapshots that read the exception of `epoch`; `previous` is the largest earlier epoch with an
    /// exception of the same chunk, 0 for none.
    #[must_use]
    pub fn of_exception(&self, previous: u64, epoch: u64) -> Vec<u64> {
        if keeper(&self.live, previous, epoch).is_none() {
            return Vec::new();
        }
        self.live.iter().copied().filter(|id| *id > previous && *id <= epoch).collect()
    }
}
