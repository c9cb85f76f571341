//! A store of 2008 as it lies there: superblock, snapshots, spaces, journal, exception tree.

use super::emit::Output;
use super::fields::Walker;
use super::node::{Field, Node, Part};
use super::{LogRange, Options, ROWS_MAX};
use crate::error::{Error, Kind, Result};
use crate::format::field::Table;
use crate::format::legacy::SECTOR;
use crate::format::legacy::journal::{Commit, RawCommit};
use crate::format::legacy::superblock::{
    Candidate, OFFSET, RawSuperblock, RawSuperblock04, SIZE, SQUASHED, Space, Superblock,
};
use crate::format::legacy::tree::{Leaf, Node as TreeNode, RawChild, RawLeaf, RawNode, has_leaf_magic};
use crate::legacy::inspect::{Inspector, Metadata, Place, Seen};
use crate::legacy::{Devices, Release};
use crate::progress::Progress;
use crate::units::index;

/// Names this form of dump.
pub const LEGACY_SCHEMA: &str = "ddsnap.dump-2008/1";

/// Dumps a store of 2008 as [`super::dump`] does one of ours. `release` as for [`crate::legacy::Store::open`].
///
/// # Errors
/// As [`super::dump`]; `Kind::Usage` for a part that stores of 2008 do not have.
pub fn dump_legacy(
    devices: &Devices,
    release: Option<Release>,
    options: &Options,
    sink: &mut dyn FnMut(&Part, bool) -> Result<()>,
    progress: &dyn Progress,
) -> Result<u64> {
    if options.checkpoint {
        return Err(Error::new(Kind::Usage, "a store of 2008 has no checkpoints")
            .hint("'ddsnap dump --log' shows its journal"));
    }
    let inspector = Inspector::open(devices, release)?;
    let out = Output::new(inspector.device(), options, sink, progress);
    let mut dumper = Dumper { inspector: &inspector, out, snapshots: 0, exceptions: 0 };
    dumper.run(devices)?;
    Ok(dumper.out.problems)
}

/// A dump under way.
struct Dumper<'a> {
    inspector: &'a Inspector,
    out: Output<'a>,
    snapshots: u64,
    exceptions: u64,
}

impl Dumper<'_> {
    fn run(&mut self, devices: &Devices) -> Result<()> {
        let options = self.out.options;
        let whole = options.is_whole();
        self.out.head(LEGACY_SCHEMA)?;
        if whole || options.superblock {
            self.superblock()?;
        }
        match self.inspector.metadata(devices, self.out.progress) {
            Ok(metadata) => self.metadata(&metadata)?,
            Err(error) if matches!(error.kind(), Kind::Damaged | Kind::Mismatch) => {
                self.out.problem("the metadata", &error, None)?;
            }
            Err(error) => return Err(error),
        }
        let counts = [("snapshots", self.snapshots), ("exceptions", self.exceptions)];
        let counts = counts.map(|(name, count)| (name, Node::Count(count)));
        self.out.end(if whole { counts.to_vec() } else { Vec::new() })
    }

    fn metadata(&mut self, metadata: &Metadata) -> Result<()> {
        let options = self.out.options;
        let whole = options.is_whole();
        if let Some(address) = options.record {
            self.block_at(metadata, address)?;
        }
        if whole {
            self.state(metadata)?;
        }
        if whole || options.snapshots {
            self.snapshots(metadata.superblock())?;
        }
        if whole || options.space {
            self.spaces(metadata)?;
        }
        match &options.log {
            None if whole => self.journal(metadata, 0..=u64::MAX)?,
            None => {}
            Some(LogRange::SinceCheckpoint) => self.journal(metadata, 0..=u64::MAX)?,
            Some(LogRange::Sequences(range)) => self.journal(metadata, range.clone())?,
        }
        if let Some(chunk) = options.chunk {
            self.chunk(metadata, chunk)?;
        }
        if whole || options.index {
            metadata.tree(&mut |seen| self.block_of_tree(metadata, seen))?;
        }
        Ok(())
    }

    /// The bytes by their table, with the bytes beside the values if asked for.
    fn structure(&self, table: &Table, bytes: &[u8], address: u64) -> Node {
        let node = Walker::new(bytes, address, self.out.options.hex).structure(table);
        node.unwrap_or_else(|| Node::Raw(address, bytes.to_vec()))
    }

    /// The superblock in the layout that counts; in each one, if none does.
    fn superblock(&mut self) -> Result<()> {
        let inspector = self.inspector;
        let shown =
            if inspector.candidates.first().is_some_and(Candidate::is_usable) { 1 } else { usize::MAX };
        for Candidate { superblock, faults } in inspector.candidates.iter().take(shown) {
            let (release, table) = match superblock.release {
                Release::R04 => ("0.4", &RawSuperblock04::TABLE),
                Release::R10 => ("0.10", &RawSuperblock::TABLE),
            };
            let heading = format!("superblock, at byte {OFFSET}, in the layout of release {release}");
            let fields = vec![
                ("release", Node::Word(release)),
                ("sound", Node::Flag(faults.is_empty())),
                ("fields", self.structure(table, &inspector.block, OFFSET)),
            ];
            self.out.emit(&Part::new("superblock", heading, fields))?;
            for fault in faults {
                let what = format!("superblock in the layout of release {release}");
                self.out.problem(&what, &Error::damaged(fault.text.as_str()), None)?;
            }
        }
        let is_bad = |candidate: &Candidate| !candidate.faults.is_empty();
        if inspector.candidates.iter().take(shown).any(is_bad) && !self.out.options.anonymous {
            let raw = vec![("at", Node::Bytes(OFFSET)), ("raw", Node::Raw(OFFSET, inspector.block.clone()))];
            self.out.emit(&Part::new("bytes", "bytes of the superblock", raw))?;
        }
        Ok(())
    }

    fn state(&mut self, metadata: &Metadata) -> Result<()> {
        let sb = metadata.superblock();
        let (root, levels) = metadata.root();
        let deferred = metadata.deferred().iter().take(ROWS_MAX).map(|chunk| Node::Count(*chunk));
        let areas = sb.areas().into_iter().map(|(name, begin, end)| {
            Node::Map(vec![
                ("area", Node::Word(name)),
                ("at", Node::Bytes(begin.saturating_mul(SECTOR))),
                ("end", Node::Bytes(end.saturating_mul(SECTOR))),
            ])
        });
        let fields = vec![
            ("created_secs", Node::Time(sb.created_secs.cast_signed())),
            ("block_size", Node::Bytes(sb.block_size())),
            ("chunk_size", Node::Bytes(1 << sb.chunk_bits())),
            ("origin_size", Node::Bytes(sb.origin_sectors.saturating_mul(SECTOR))),
            ("closed", Node::Flag(!sb.is_busy())),
            ("root_sector", Node::Count(root)),
            ("index_levels", Node::Count(levels.into())),
            ("blocks_in_journal", Node::Count(metadata.in_journal() as u64)),
            ("deferred_chunks", Node::List(deferred.collect())),
            ("areas", Node::List(areas.collect())),
        ];
        self.out.emit(&Part::new("state", "state of the store, its journal replayed", fields))?;
        if let Some(doubt) = metadata.doubt() {
            self.out.problem("what a crash left", &Error::damaged(doubt), None)?;
        }
        Ok(())
    }

    fn snapshots(&mut self, sb: &Superblock) -> Result<()> {
        let mut rows = sb.snapshots.iter().map(|snapshot| {
            Node::Map(vec![
                ("tag", Node::Count(snapshot.tag.into())),
                ("created_secs", Node::Time(snapshot.created_secs.into())),
                ("size", Node::Bytes(snapshot.sectors.saturating_mul(SECTOR))),
                ("priority", Node::Signed(snapshot.priority.into())),
                ("use_count", Node::Count(snapshot.use_count.into())),
                ("bit", Node::Count(snapshot.bit.into())),
                ("squashed", Node::Flag(snapshot.bit == SQUASHED)),
            ])
        });
        let heading = format!("snapshots: {}", sb.snapshots.len());
        self.snapshots = self.out.rows("snapshots", "snapshots", &heading, ROWS_MAX, &mut rows)?;
        Ok(())
    }

    fn spaces(&mut self, metadata: &Metadata) -> Result<()> {
        let sb = metadata.superblock();
        let spaces = [Some(("metadata", sb.metadata)), sb.data.map(|space| ("data", space))];
        for (name, space) in spaces.into_iter().flatten() {
            self.space(metadata, name, space)?;
        }
        Ok(())
    }

    fn space(&mut self, metadata: &Metadata, name: &'static str, space: Space) -> Result<()> {
        let fields = vec![
            ("space", Node::Word(name)),
            ("chunk_size", Node::Bytes(1 << space.bits)),
            ("chunks", Node::Count(space.chunks)),
            ("free_says_superblock", Node::Count(space.free)),
            ("bitmap_at", Node::Bytes(space.bitmap_base.saturating_mul(SECTOR))),
            ("bitmap_blocks", Node::Count(space.bitmap_blocks)),
        ];
        self.out.emit(&Part::new("space", format!("{name} space"), fields))?;
        let mut failed = None;
        let mut rows = metadata.used(space).map_while(|run| match run {
            Ok(run) => {
                Some(Node::Map(vec![("from", Node::Count(run.start)), ("to", Node::Count(run.end - 1))]))
            }
            Err(error) => {
                failed = Some(error);
                None
            }
        });
        let heading = format!("{name} space: chunks in use");
        self.out.rows("used", "used", &heading, ROWS_MAX, &mut rows)?;
        drop(rows);
        failed.map_or(Ok(()), |error| self.out.problem(&format!("bitmap of the {name} space"), &error, None))
    }

    fn journal(&mut self, metadata: &Metadata, wanted: std::ops::RangeInclusive<u64>) -> Result<()> {
        for position in 0..u64::from(metadata.superblock().journal_size) {
            let (address, block, commit) = metadata.journal_block(position)?;
            if let Some(commit) = commit.filter(|commit| wanted.contains(&commit.sequence.into())) {
                let heading = format!(
                    "commit {} in block {position} of the journal, at byte {address}",
                    commit.sequence
                );
                self.commit(&heading, &block, address, &commit)?;
            }
        }
        Ok(())
    }

    fn commit(&mut self, heading: &str, block: &[u8], address: u64, commit: &Commit) -> Result<()> {
        let homes = commit.homes.iter().map(|home| Node::Count(*home));
        let fields = vec![
            ("at", Node::Bytes(address)),
            ("barrier", Node::Flag(commit.is_barrier)),
            ("fields", self.structure(&RawCommit::TABLE, block, address)),
            ("homes", Node::List(homes.collect())),
        ];
        self.out.emit(&Part::new("commit", heading, fields))
    }

    fn block_of_tree(&mut self, metadata: &Metadata, seen: Seen) -> Result<()> {
        match seen {
            Seen::Node(place) => {
                let (address, block) = metadata.block(place.sector)?;
                self.node(&block, address, Some(&place))
            }
            Seen::Leaf(place) => {
                let (address, block) = metadata.block(place.sector)?;
                self.leaf(metadata, &block, address, Some(&place))
            }
            Seen::Again(place) => {
                let what = format!("block of the tree at sector {}, {}", place.sector, covers(&place));
                self.out.problem(&what, &Error::damaged("the tree leads to this block twice"), None)
            }
            Seen::Broken(place, error) => {
                let raw =
                    metadata.block(place.sector).ok().map(|(address, _)| (address, metadata.block_size()));
                let what = format!("block of the tree at sector {}, {}", place.sector, covers(&place));
                self.out.problem(&what, &error, raw)
            }
        }
    }

    fn node(&mut self, block: &[u8], address: u64, place: Option<&Place>) -> Result<()> {
        let node = TreeNode::decode(block)?;
        let mut walker = Walker::new(block, address, false);
        walker.structure(&RawNode::TABLE);
        let mut rows = (0..node.children.len()).map_while(|_| walker.structure(&RawChild::TABLE));
        let head = self.structure(&RawNode::TABLE, block, address);
        self.begin_block("node", address, place, head)?;
        let heading = format!("children of the node at byte {address}");
        self.out.rows("children", "children", &heading, ROWS_MAX, &mut rows)?;
        Ok(())
    }

    fn leaf(&mut self, metadata: &Metadata, block: &[u8], address: u64, place: Option<&Place>) -> Result<()> {
        let leaf = Leaf::decode(block)?;
        let bits = metadata.superblock().chunk_bits();
        let head = self.structure(&RawLeaf::TABLE, block, address);
        self.begin_block("leaf", address, place, head)?;
        let mut rows = leaf.entries.iter().flat_map(|entry| {
            leaf.of(entry).iter().map(|exception| {
                let bytes = exception.physical.checked_mul(1 << bits);
                Node::Map(vec![
                    ("chunk", Node::Count(entry.chunk.into())),
                    ("share", Node::mask(exception.share)),
                    ("lies_in_chunk", Node::Count(exception.physical)),
                    ("at", Node::option(bytes, Node::Bytes)),
                ])
            })
        });
        let heading = format!("exceptions of the leaf at byte {address}");
        let count = self.out.rows("exceptions", "exceptions", &heading, ROWS_MAX, &mut rows)?;
        if place.is_some() {
            self.exceptions += count;
        }
        Ok(())
    }

    fn begin_block(
        &mut self,
        name: &'static str,
        address: u64,
        place: Option<&Place>,
        head: Node,
    ) -> Result<()> {
        let mut heading = format!("{name} at byte {address}");
        let mut fields: Vec<Field> = vec![("at", Node::Bytes(address))];
        if let Some(place) = place {
            heading += &format!(", {}", covers(place));
            let is_home = place.sector.saturating_mul(SECTOR) == address;
            fields.push(("home_sector", Node::Count(place.sector)));
            fields.push(("read_from", Node::Word(if is_home { "home" } else { "journal" })));
            fields.push(("first_chunk", Node::Count(place.low)));
            fields.push(("end_chunk", Node::option(place.high, Node::Count)));
        }
        fields.push(("fields", head));
        self.out.emit(&Part::new(name, heading, fields))
    }

    /// Every exception of one chunk, and who reads it.
    fn chunk(&mut self, metadata: &Metadata, chunk: u64) -> Result<()> {
        let sb = metadata.superblock();
        let bits = sb.chunk_bits();
        let fields = vec![
            ("chunk", Node::Count(chunk)),
            ("offset", Node::option(chunk.checked_mul(1 << bits), Node::Bytes)),
            ("length", Node::Bytes(1 << bits)),
            ("origin_size", Node::Bytes(sb.origin_sectors.saturating_mul(SECTOR))),
        ];
        self.out.emit(&Part::new("chunk", format!("chunk {chunk} of the volume"), fields))?;
        let exceptions = match metadata.exceptions(chunk) {
            Ok(exceptions) => exceptions,
            Err(error) if error.kind() == Kind::Damaged => {
                return self.out.problem(&format!("the tree above chunk {chunk}"), &error, None);
            }
            Err(error) => return Err(error),
        };
        let mut rows = exceptions.iter().map(|exception| {
            let readers = sb.snapshots.iter().filter(|snapshot| snapshot.mask() & exception.share != 0);
            Node::Map(vec![
                ("share", Node::mask(exception.share)),
                ("lies_in_chunk", Node::Count(exception.physical)),
                ("at", Node::option(exception.physical.checked_mul(1 << bits), Node::Bytes)),
                ("read_by_snapshots", Node::List(readers.map(|one| Node::Count(one.tag.into())).collect())),
            ])
        });
        let heading = format!("chunk {chunk}: preserved versions");
        self.out.rows("chunk_places", "places", &heading, ROWS_MAX, &mut rows)?;
        Ok(())
    }

    /// What lies at byte `address`, as whatever it looks like.
    fn block_at(&mut self, metadata: &Metadata, address: u64) -> Result<()> {
        let length = metadata.block_size().min(self.out.device.size().saturating_sub(address));
        let mut block = vec![0; index(length)];
        self.out.device.read_at(&mut block, address)?;
        if address == OFFSET && block.len() >= SIZE {
            return self.superblock();
        }
        if let Some(commit) = Commit::decode(&block, metadata.superblock().metadata.bits) {
            let heading = format!("commit {} at byte {address}", commit.sequence);
            return self.commit(&heading, &block, address, &commit);
        }
        let what = format!("block at byte {address}");
        let shown = match has_leaf_magic(&block) {
            true => Leaf::decode(&block).map(|_| true),
            false => TreeNode::decode(&block).map(|_| false),
        };
        match shown {
            Ok(true) => self.leaf(metadata, &block, address, None),
            Ok(false) => self.node(&block, address, None),
            Err(error) => self.out.problem(&what, &error, Some((address, length))),
        }
    }
}

fn covers(place: &Place) -> String {
    match place.high {
        Some(high) => format!("for chunks {} to {}", place.low, high.saturating_sub(1)),
        None => format!("for chunks from {}", place.low),
    }
}
