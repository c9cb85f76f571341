//! What the store amounts to once its log is replayed: all that `restore` needs.

use super::node::{Node, Part};
use super::scrub::Scrub;
use super::{Dumper, LONG_ROWS_MAX, ROWS_MAX};
use crate::error::{Kind, Result};
use crate::format::checkpoint::{Checkpoint, Grave, LogPosition, Role, Segment};
use crate::format::record::Encoding;
use crate::format::run::{IndexEntry, Key, Value};
use crate::format::superblock::Superblock;
use crate::format::table::{Fingerprint, HOLD_MAX, NAME_MAX, Operation, Snapshot, TEXT_MAX, Volume};
use crate::store::inspect::{Recovered, Source};

/// The word for how a chunk is stored.
pub fn encoding_word(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Raw => "raw",
        Encoding::Zeroes => "zeroes",
        Encoding::Lost => "lost",
    }
}

/// The word for what a segment holds.
pub fn role_word(role: Role) -> &'static str {
    match role {
        Role::Emptied => "emptied",
        Role::Log => "log",
        Role::Index => "index",
    }
}

impl Dumper<'_> {
    /// `text` as it is, or a pseudonym that begins with `prefix`.
    fn text(&self, prefix: &str, text: &str, max: usize) -> Node {
        match &self.scrub {
            Some(scrub) => Node::Text(scrub.text(prefix, text.as_bytes(), max)),
            None => Node::Text(text.to_owned()),
        }
    }

    fn uuid(&self, uuid: crate::units::Uuid) -> Node {
        Node::uuid(self.scrub.as_ref().map_or(uuid, |scrub| scrub.uuid(uuid)))
    }

    fn word(&self, word: u64) -> Node {
        Node::mask(self.scrub.as_ref().map_or(word, |scrub| scrub.word(word)))
    }

    pub(super) fn store(&mut self, recovered: &Recovered, tables: &Checkpoint) -> Result<()> {
        let sb = recovered.superblock();
        let fields = vec![
            ("uuid", self.uuid(sb.uuid)),
            ("salt", self.word(sb.salt)),
            ("created_secs", Node::Time(sb.created_secs)),
            ("chunk_size", Node::Bytes(u64::from(sb.chunk_size()))),
            ("block_size", Node::Bytes(u64::from(sb.block_size()))),
            ("segment_size", Node::Bytes(u64::from(sb.segment_size()))),
            ("segments", Node::Count(u64::from(sb.segments))),
            ("generation", Node::Count(sb.generation)),
            ("checkpoint", Node::Count(sb.checkpoint)),
        ];
        self.out.emit(&Part::new("store", "the store", fields))?;
        let open = |open: Option<(u32, u32)>| {
            Node::option(open, |(segment, offset)| {
                Node::Map(vec![
                    ("segment", Node::Count(u64::from(segment))),
                    ("used", Node::Bytes(u64::from(offset))),
                ])
            })
        };
        let ends = tables.ends.iter().map(|(incarnation, sequence)| {
            Node::Map(vec![("incarnation", self.word(*incarnation)), ("sequence", Node::Count(*sequence))])
        });
        let ends = Node::List(ends.collect());
        let promised = tables.promised.iter().map(|segment| Node::Count(u64::from(*segment)));
        let fields = vec![
            ("log", self.position(&tables.log)),
            ("epoch", Node::Count(tables.epoch)),
            ("next_run", Node::Count(tables.next_run)),
            ("unswept", Node::Count(tables.unswept)),
            ("low", open(tables.low)),
            ("high", open(tables.high)),
            ("promised", Node::List(promised.collect())),
            ("volume", self.volume(&tables.volume)),
            ("operation", Node::option(tables.operation.as_ref(), |operation| self.operation(operation))),
            ("fingerprint", Node::option(recovered.fingerprint(), |print| self.fingerprint(print))),
            ("ends", ends),
        ];
        self.out.emit(&Part::new("state", "state of the store, its log replayed", fields))
    }

    fn position(&self, log: &LogPosition) -> Node {
        let crc = match &self.scrub {
            Some(scrub) => scrub.word(u64::from(log.crc)) >> 32,
            None => u64::from(log.crc),
        };
        Node::Map(vec![
            ("address", Node::Bytes(log.address)),
            ("sequence", Node::Count(log.sequence)),
            ("crc", Node::Hex(format!("{crc:08x}"))),
            ("incarnation", self.word(log.incarnation)),
        ])
    }

    fn volume(&self, volume: &Volume) -> Node {
        let path = match (&self.scrub, std::str::from_utf8(&volume.path)) {
            (Some(scrub), _) => ("path", Node::Text(scrub.text("/", &volume.path, TEXT_MAX))),
            (None, Ok(path)) => ("path", Node::Text(path.to_owned())),
            (None, Err(_)) => ("path_hex", Node::Hex(hex::encode(&volume.path))),
        };
        let equals = Node::option(volume.equals, |(volume, id, generation)| {
            Node::Map(vec![
                ("volume", self.uuid(volume)),
                ("id", Node::Count(id)),
                ("generation", Node::Count(generation)),
            ])
        });
        let mut fields = vec![
            ("uuid", self.uuid(volume.volume)),
            ("origin_size", Node::Bytes(volume.origin_size)),
            ("squash_when_full", Node::Flag(volume.squash_when_full)),
            ("generation", Node::Count(volume.generation)),
            ("equals", equals),
        ];
        fields.extend(volume.unwatched.then_some(("unwatched", Node::Flag(true))));
        fields.push(path);
        Node::Map(fields)
    }

    fn operation(&self, operation: &Operation) -> Node {
        // The first word says what it is, which is no secret and which messages need.
        let (kind, rest) = operation.label.split_once(' ').unwrap_or((operation.label.as_str(), ""));
        let label = match &self.scrub {
            Some(scrub) if matches!(kind, "apply-delta" | "revert") => {
                format!("{kind} {}", scrub.text("x", rest.as_bytes(), TEXT_MAX - 16))
            }
            Some(scrub) => scrub.text("x", operation.label.as_bytes(), TEXT_MAX),
            None => operation.label.clone(),
        };
        let token = self.scrub.as_ref().map_or(operation.token, |scrub| scrub.digest(operation.token));
        Node::Map(vec![
            ("before", Node::Count(operation.before)),
            ("pinned", Node::Count(operation.pinned)),
            ("token", Node::Hex(hex::encode(token))),
            ("forced", Node::Flag(operation.forced)),
            ("label", Node::Text(label)),
        ])
    }

    /// Tells of the origin's content and of the machine: left out where names are.
    fn fingerprint(&self, print: &Fingerprint) -> Node {
        if self.scrub.is_some() {
            return Node::None;
        }
        let (device, inode, modified) = print.file.unwrap_or((0, 0, 0));
        Node::Map(vec![
            ("content", Node::Hex(hex::encode(print.content))),
            ("device", Node::Count(device)),
            ("inode", Node::Count(inode)),
            ("modified", Node::Signed(modified)),
        ])
    }

    pub(super) fn snapshots(&mut self, tables: &Checkpoint) -> Result<()> {
        let rows: Vec<Node> = tables.snapshots.iter().map(|snapshot| self.snapshot(snapshot)).collect();
        let heading = format!("snapshots: {}", rows.len());
        let count =
            self.out.rows("snapshots", "snapshots", &heading, LONG_ROWS_MAX, &mut rows.into_iter())?;
        self.counts.snapshots = count;
        Ok(())
    }

    fn snapshot(&self, snapshot: &Snapshot) -> Node {
        let holds = snapshot.holds.iter().map(|hold| self.text("h", hold, HOLD_MAX));
        Node::Map(vec![
            ("id", Node::Count(snapshot.id)),
            ("tag", Node::Count(u64::from(snapshot.tag))),
            ("name", self.text("s", &snapshot.name, NAME_MAX)),
            ("created_secs", Node::Time(snapshot.created_secs)),
            ("size_bytes", Node::Bytes(snapshot.size_bytes)),
            ("priority", Node::Signed(i64::from(snapshot.priority))),
            ("use_count", Node::Count(u64::from(snapshot.use_count))),
            ("generation", Node::Count(snapshot.generation)),
            ("created_at", Node::Bytes(snapshot.created_at)),
            ("created_sequence", Node::Count(snapshot.created_sequence)),
            ("squashed", Node::Flag(snapshot.squashed)),
            ("tainted", Node::Flag(snapshot.tainted)),
            ("hidden", Node::Flag(snapshot.hidden)),
            ("holds", Node::List(holds.collect())),
        ])
    }

    pub(super) fn graves_and_events(&mut self, tables: &Checkpoint) -> Result<()> {
        let grave = |grave: &Grave| {
            Node::Map(vec![
                ("id", Node::Count(grave.id)),
                ("created_at", Node::Bytes(grave.created_at)),
                ("created_sequence", Node::Count(grave.created_sequence)),
            ])
        };
        let heading = format!("deleted snapshots that are not swept yet: {}", tables.graves.len());
        self.counts.graves =
            self.out.rows("graves", "graves", &heading, ROWS_MAX, &mut tables.graves.iter().map(grave))?;
        let events = tables.events.iter();
        let events: Vec<Node> = events
            .map(|(secs, text)| {
                Node::Map(vec![("time_secs", Node::Time(*secs)), ("text", self.text("e", text, TEXT_MAX))])
            })
            .collect();
        self.counts.events =
            self.out.rows("events", "events", "events", LONG_ROWS_MAX, &mut events.into_iter())?;
        Ok(())
    }

    pub(super) fn segments(&mut self, sb: &Superblock, tables: &Checkpoint) -> Result<()> {
        // A digest is made of checksums of data, which tell what they are of.
        let secret = self.scrub.is_some();
        let row = |(number, segment): &(u32, Segment)| {
            Node::Map(vec![
                ("number", Node::Count(u64::from(*number))),
                ("address", Node::Bytes(sb.segment_address(*number))),
                ("role", Node::Word(role_word(segment.role))),
                ("count", Node::Count(segment.count)),
                ("live_bytes", Node::Bytes(segment.live)),
                ("digest", if secret { Node::None } else { Node::mask(segment.digest) }),
            ])
        };
        let used = tables.segments.len() as u64;
        let free = u64::from(sb.segments).saturating_sub(used);
        let heading = format!("segments in use: {used}; free: {free}, {} bytes each", sb.segment_size());
        let rows = &mut tables.segments.iter().map(row);
        self.counts.segments = self.out.rows("segments", "segments", &heading, ROWS_MAX, rows)?;
        Ok(())
    }

    /// Runs and pieces, then every entry; where a block is damaged, what is left, block by block.
    pub(super) fn index(&mut self, recovered: &Recovered) -> Result<()> {
        if !self.out.options.anonymous {
            self.runs(recovered.runs())?;
        }
        self.out.progress.stage("index", None);
        if self.out.options.hex {
            self.index_blocks(recovered.runs())?;
        }
        match self.entries(recovered) {
            Err(error) if matches!(error.kind(), Kind::Damaged | Kind::Io) => {
                self.complete = false;
                self.out.problem("the index", &error, None)?;
                match self.out.options.hex || self.out.options.anonymous {
                    true => Ok(()),
                    false => self.index_blocks(recovered.runs()),
                }
            }
            done => done,
        }
    }

    fn entries(&mut self, recovered: &Recovered) -> Result<()> {
        let mut class = 0;
        let mut rows = Vec::new();
        for entry in recovered.entries(Source::All, Key::MIN)? {
            let (key, value) = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.entry_rows(class, &mut rows)?;
                    return Err(error);
                }
            };
            if key.class != class || rows.len() == ROWS_MAX {
                self.entry_rows(class, &mut rows)?;
                class = key.class;
            }
            rows.push(entry_row(&(key, value), self.scrub.as_ref()));
        }
        self.entry_rows(class, &mut rows)
    }

    fn entry_rows(&mut self, class: u8, rows: &mut Vec<Node>) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let (key, what, count) = match class {
            0 => ("exceptions", "preserved chunks", &mut self.counts.exceptions),
            1 => ("overlays", "chunks written on snapshots", &mut self.counts.overlays),
            _ => ("changes", "changed chunks, by epoch and pages of 128", &mut self.counts.changes),
        };
        let first = *count + 1;
        *count += rows.len() as u64;
        let heading = format!("index: {what}, from {first}");
        self.out.emit(&Part::new("index", heading, vec![(key, Node::List(std::mem::take(rows)))]))
    }
}

/// An entry of the index as a row.
pub fn entry_row((key, value): &IndexEntry, scrub: Option<&Scrub>) -> Node {
    if key.class > 1 {
        return Node::Map(vec![
            ("epoch", Node::Count(key.a)),
            ("page", Node::Count(key.b)),
            ("bits", Node::Hex(format!("{:032x}", value.bits()))),
        ]);
    }
    let mut fields = match key.class {
        0 => vec![("chunk", Node::Count(key.a)), ("epoch", Node::Count(key.b))],
        _ => vec![("snapshot", Node::Count(key.a)), ("chunk", Node::Count(key.b))],
    };
    fields.extend([
        ("address", Node::Bytes(value.word)),
        ("encoding", Node::Word(encoding_word(value.encoding))),
        ("length", Node::Bytes(u64::from(value.raw_length))),
        ("stored", Node::Bytes(u64::from(value.stored_length))),
        ("crc", Node::crc(shown_crc(*key, value, scrub))),
    ]);
    Node::Map(fields)
}

/// The checksum of zeros tells nothing that the encoding does not.
fn shown_crc(key: Key, value: &Value, scrub: Option<&Scrub>) -> u32 {
    match scrub {
        Some(scrub) if value.encoding != Encoding::Zeroes => scrub.data_crc(key, value),
        _ => value.crc,
    }
}
