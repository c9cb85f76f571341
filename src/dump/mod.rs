//! The metadata of a store as text, YAML or JSON, and a store from such YAML.
//!
//! A dump never modifies, takes what it finds, decodes as much as it can, and leaves nothing out: both copies of what
//! lies there twice where they differ, and the bytes of what cannot be decoded. It is a stream of bounded parts, so
//! it takes no more memory than the tables of one checkpoint.
//!
//! | file | owns |
//! |---|---|
//! | `node`, `machine` | a tree of named values; YAML and JSON (text is made by `ui`) |
//! | `emit` | bounded parts, damage among them |
//! | `fields` | any structure by its field table |
//! | `physical`, `records` | superblocks, checkpoints, index blocks and records as they lie there |
//! | `state`, `scrub` | what the store amounts to once its log is replayed; pseudonyms instead of names |
//! | `chunk` | every place of one chunk |
//! | `legacy` | a store of 2008 as it lies there |
//! | `document`, `rows`, `restore` | reading a dump in YAML |

mod chunk;
mod document;
mod emit;
mod fields;
mod legacy;

mod machine;
mod node;
mod physical;
mod records;
mod restore;
mod rows;
mod scrub;
mod state;

pub use legacy::{LEGACY_SCHEMA, dump_legacy};
pub use machine::{Json, Render, Yaml};
pub use node::{Field, Node, Part};
pub use restore::{Dumped, read_tables};

use crate::block::ReadAt;
use crate::error::{Error, Kind, Result};
use crate::format::checkpoint::Checkpoint;
use crate::format::superblock::Superblock;
use crate::progress::Progress;
use crate::store::inspect::{Inspector, Recovered};
use emit::Output;
use scrub::Scrub;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Names this form of dump.
pub const SCHEMA: &str = "ddsnap.dump/1";
/// Rows of a table in one part.
const ROWS_MAX: usize = 1000;
/// Rows with long texts in one part.
const LONG_ROWS_MAX: usize = 10;
/// Bytes shown in one part.
const RAW_MAX: usize = 64 << 10;

/// Which records are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogRange {
    /// Those after the checkpoint.
    SinceCheckpoint,
    /// Those with these sequences, wherever they are.
    Sequences(RangeInclusive<u64>),
}

/// What to dump. With no part chosen, everything.
#[derive(Debug, Clone)]
pub struct Options {
    /// The superblocks.
    pub superblock: bool,
    /// The checkpoint as it lies there.
    pub checkpoint: bool,
    /// The snapshots.
    pub snapshots: bool,
    /// Records.
    pub log: Option<LogRange>,
    /// The index.
    pub index: bool,
    /// The segments.
    pub space: bool,
    /// Every place of this chunk.
    pub chunk: Option<u64>,
    /// What lies at this byte address, as a record.
    pub record: Option<u64>,
    /// The bytes beside the values.
    pub hex: bool,
    /// Pseudonyms instead of names, and nothing as it lies there.
    pub anonymous: bool,
}

impl Options {
    /// True if nothing is left out.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let parts = self.superblock || self.checkpoint || self.snapshots || self.index || self.space;
        !parts && self.log.is_none() && self.chunk.is_none() && self.record.is_none()
    }
}

/// How many of each there are in a dump.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub snapshots: u64,
    pub graves: u64,
    pub events: u64,
    pub segments: u64,
    pub exceptions: u64,
    pub overlays: u64,
    pub changes: u64,
}

/// Dumps the store on `device` part by part into `sink`, the last part by the second argument being true. Returns
/// the number of things that were damaged.
///
/// # Errors
/// What `sink` says; `Kind::Interrupted`; `Kind::Unsupported` for a store of a newer format. Damage is dumped.
pub fn dump(
    device: Arc<dyn ReadAt>,
    options: &Options,
    sink: &mut dyn FnMut(&Part, bool) -> Result<()>,
    progress: &dyn Progress,
) -> Result<u64> {
    let inspector = Inspector::open(device);
    for copy in &inspector.superblocks {
        if let Err(error) = copy
            && error.kind() == Kind::Unsupported
        {
            let what = error.to_string();
            return Err(Error::new(Kind::Unsupported, what).hint("use a newer ddsnap for this store"));
        }
    }
    let out = Output::new(inspector.device(), options, sink, progress);
    let complete = options.is_whole();
    let mut dumper = Dumper { inspector: &inspector, out, scrub: None, counts: Counts::default(), complete };
    dumper.run()?;
    Ok(dumper.out.problems)
}

/// A dump under way.
struct Dumper<'a> {
    inspector: &'a Inspector,
    out: Output<'a>,
    scrub: Option<Scrub>,
    counts: Counts,
    /// Everything that `restore` needs is in the dump.
    complete: bool,
}

impl Dumper<'_> {
    fn run(&mut self) -> Result<()> {
        let options = self.out.options;
        let whole = options.is_whole();
        self.out.head(SCHEMA)?;
        if (whole && !options.anonymous) || options.superblock {
            self.superblocks()?;
        }
        if let Some(address) = options.record {
            self.record_at(address)?;
        }
        if whole || options.needs_checkpoint() {
            match self.inspector.find_checkpoint(self.out.progress) {
                Ok((sb, checkpoint)) => self.with_checkpoint(sb, checkpoint)?,
                Err(error) if error.kind() == Kind::Interrupted => return Err(error),
                Err(error) => self.without_checkpoint(&error)?,
            }
        }
        let counts = self.counts;
        let tables = [
            ("snapshots", counts.snapshots),
            ("graves", counts.graves),
            ("events", counts.events),
            ("segments", counts.segments),
            ("exceptions", counts.exceptions),
            ("overlays", counts.overlays),
            ("changes", counts.changes),
        ];
        let mut fields = vec![("complete", Node::Flag(self.complete))];
        if self.out.options.is_whole() {
            fields.extend(tables.map(|(name, count)| (name, Node::Count(count))));
        }
        self.out.end(fields)
    }

    fn with_checkpoint(&mut self, sb: Superblock, checkpoint: Checkpoint) -> Result<()> {
        let options = self.out.options;
        let whole = options.is_whole();
        let physical = whole && !options.anonymous;
        if options.anonymous {
            self.scrub = Some(Scrub::new(&sb));
        }
        if physical || options.checkpoint {
            self.checkpoint(&sb)?;
        }
        let recovered = self.inspector.recover(sb.clone(), checkpoint.clone())?;
        if let Some(error) = &recovered.broken {
            self.complete = false;
            self.out.problem("the log", error, None)?;
        }
        match &options.log {
            None if physical => self.log(&sb, &checkpoint, recovered.tables().log.sequence)?,
            None => {}
            Some(LogRange::SinceCheckpoint) => self.log(&sb, &checkpoint, recovered.tables().log.sequence)?,
            Some(LogRange::Sequences(range)) => self.log_range(&sb, &checkpoint, range)?,
        }
        self.recovered(&recovered)
    }

    fn recovered(&mut self, recovered: &Recovered) -> Result<()> {
        let options = self.out.options;
        let whole = options.is_whole();
        let tables = recovered.tables();
        if whole {
            self.store(recovered, &tables)?;
        }
        if whole || options.snapshots {
            self.snapshots(&tables)?;
        }
        if whole {
            self.graves_and_events(&tables)?;
        }
        if whole || options.space {
            self.segments(recovered.superblock(), &tables)?;
        }
        if let Some(chunk) = options.chunk {
            self.chunk(recovered, chunk)?;
        }
        if whole || options.index {
            self.index(recovered)?;
        }
        Ok(())
    }
}

impl Options {
    fn needs_checkpoint(&self) -> bool {
        let parts = self.checkpoint || self.snapshots || self.index || self.space;
        parts || self.log.is_some() || self.chunk.is_some()
    }
}

#[cfg(test)]
mod tests {
    use crate::format::superblock::Superblock;
    use crate::units::Uuid;

    pub fn superblock() -> Superblock {
        Superblock {
            uuid: Uuid([3; 16]),
            generation: 9,
            salt: 77,
            chunk_bits: 14,
            block_bits: 12,
            segment_bits: 20,
            segments: 64,
            created_secs: 1_700_000_000,
            checkpoint: 4,
            durable: 0,
            uncommitted: false,
            copies: [Vec::new(), Vec::new()],
        }
    }
}
