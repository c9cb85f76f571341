//! Every place of one chunk: who preserved it, where, and who reads it there.

use super::Dumper;
use super::node::{Field, Node, Part};
use super::records::kind_word;
use super::state::entry_row;
use crate::error::{Error, Kind, Result};
use crate::format::run::{IndexEntry, Key, PAGE_BITS, Value};
use crate::format::superblock::Superblock;
use crate::store::inspect::{Recovered, Source};

impl Dumper<'_> {
    pub(super) fn chunk(&mut self, recovered: &Recovered, chunk: u64) -> Result<()> {
        let sb = recovered.superblock();
        let start = chunk.checked_mul(u64::from(sb.chunk_size()));
        let fields = vec![
            ("chunk", Node::Count(chunk)),
            ("offset", Node::option(start, Node::Bytes)),
            ("length", Node::Bytes(u64::from(sb.chunk_size()))),
            ("origin_size", Node::Bytes(recovered.tables().volume.origin_size)),
        ];
        self.out.emit(&Part::new("chunk", format!("chunk {chunk} of the volume"), fields))?;
        let sources = (0..recovered.runs().len()).map(Source::Run);
        let mut places = Vec::new();
        for source in std::iter::once(Source::Log).chain(sources) {
            match self.places(recovered, source, chunk) {
                Ok(found) => places.extend(found),
                Err(error) if error.kind() == Kind::Interrupted => return Err(error),
                Err(error) => self.out.problem(&source_name(recovered, source), &error, None)?,
            }
        }
        places.sort_by_key(|(_, (key, _))| *key);
        let readers = recovered.readers();
        let (mut previous, mut newest) = (0, None);
        for (source, entry) in places {
            let (key, value) = &entry;
            let name = source_name(recovered, source);
            if key.class > 1 {
                let changed = value.bits() >> (chunk & ((1 << PAGE_BITS) - 1)) & 1 == 1;
                let fields = vec![
                    ("found_in", Node::Text(name)),
                    ("epoch", Node::Count(key.a)),
                    ("page", Node::Count(key.b)),
                    ("changed", Node::Flag(changed)),
                ];
                let heading = format!("chunk {chunk}: change bit of epoch {}", key.a);
                self.out.emit(&Part::new("chunk_change", heading, fields))?;
                continue;
            }
            // Of several with the same key the first, from the newest source, counts.
            let superseded = newest.replace(*key) == Some(*key);
            let ids = match (superseded, key.class) {
                (true, _) => Vec::new(),
                (_, 0) => {
                    let readers = readers.of_exception(previous, key.b);
                    readers.into_iter().filter(|id| !written(recovered, *id, chunk)).collect()
                }
                _ => vec![key.a],
            };
            if key.class == 0 {
                previous = key.b;
            }
            self.place(recovered, &name, &entry, superseded, &ids)?;
        }
        Ok(())
    }

    /// All entries of `source` that concern `chunk`.
    fn places(&self, recovered: &Recovered, source: Source, chunk: u64) -> Result<Vec<(Source, IndexEntry)>> {
        let mut found = Vec::new();
        for entry in recovered.entries(source, Key::exception(chunk, 0))? {
            let (key, value) = entry?;
            if key.class != 0 || key.a != chunk {
                break;
            }
            found.push((source, (key, value)));
        }
        for snapshot in recovered.snapshots() {
            let key = Key::overlay(snapshot.id, chunk);
            if let Some(entry) = recovered.entries(source, key)?.next().transpose()?
                && entry.0 == key
            {
                found.push((source, entry));
            }
        }
        // From epoch to epoch, to the page of the chunk in each.
        let page = chunk >> PAGE_BITS;
        let mut next = Some(Key::changes(0, page));
        while let Some(key) = next.take() {
            self.out.progress.check()?;
            let Some((at, value)) = recovered.entries(source, key)?.next().transpose()? else { break };
            if at.b == page {
                found.push((source, (at, value)));
            }
            next = match at.b < page {
                true => Some(Key::changes(at.a, page)),
                false => at.a.checked_add(1).map(|epoch| Key::changes(epoch, page)),
            };
        }
        Ok(found)
    }

    fn place(
        &mut self,
        recovered: &Recovered,
        source: &str,
        entry: &IndexEntry,
        superseded: bool,
        readers: &[u64],
    ) -> Result<()> {
        let (key, value) = entry;
        let holds = recovered.holds(value)?;
        let what = match key.class {
            0 => format!("chunk {}: preserved in epoch {}", key.a, key.b),
            _ => format!("chunk {}: written on snapshot {}", key.b, key.a),
        };
        let mut fields: Vec<Field> = vec![("found_in", Node::Text(source.to_owned()))];
        if let Node::Map(row) = entry_row(entry, None) {
            fields.extend(row);
        }
        fields.push(("data_holds", Node::Flag(holds)));
        fields.push(("superseded", Node::Flag(superseded)));
        let tags = recovered.snapshots().filter(|snapshot| readers.contains(&snapshot.id));
        let tags = tags.map(|snapshot| Node::Text(format!("{} (id {})", snapshot.tag, snapshot.id)));
        fields.push(("read_by_snapshots", Node::List(tags.collect())));
        fields.push(("record", self.record_around(recovered.superblock(), value)?));
        self.out.emit(&Part::new("chunk_place", what.clone(), fields))?;
        match holds {
            true => Ok(()),
            false => self.out.problem(&what, &Error::damaged("the data do not hold their checksum"), None),
        }
    }

    /// The record that the data lie in: from the beginning of its segment, records follow one another.
    fn record_around(&self, sb: &Superblock, value: &Value) -> Result<Node> {
        let Some(segment) = sb.segment_of(value.word) else { return Ok(Node::None) };
        let mut at = sb.segment_address(segment);
        while at <= value.word {
            self.out.progress.check()?;
            let record = match self.inspector.record(sb, at) {
                Ok(record) => record,
                Err(error) if error.kind() == Kind::Damaged => return Ok(Node::None),
                Err(error) => return Err(error),
            };
            let end = at.saturating_add(record.length());
            if value.word < end {
                return Ok(Node::Map(vec![
                    ("address", Node::Bytes(at)),
                    ("sequence", Node::Count(record.sequence)),
                    ("kind", Node::Word(kind_word(record.kind))),
                ]));
            }
            at = end;
        }
        Ok(Node::None)
    }
}

fn source_name(recovered: &Recovered, source: Source) -> String {
    match source {
        Source::All => "the index".to_owned(),
        Source::Log => "the log".to_owned(),
        Source::Run(number) => {
            recovered.runs().get(number).map_or_else(String::new, |run| format!("run {}", run.number))
        }
    }
}

/// True if snapshot `id` has a chunk of its own instead.
fn written(recovered: &Recovered, id: u64, chunk: u64) -> bool {
    let key = Key::overlay(id, chunk);
    let found = recovered.entries(Source::All, key).ok().and_then(|mut entries| entries.next());
    found.is_some_and(|entry| entry.is_ok_and(|(found, _)| found == key))
}
