//! A dump in YAML read back: its tables first, then the entries of its index one document at a time.

use super::SCHEMA;
use super::document::{Document, Documents};
use super::rows::{
    EndDocument, EventsDocument, GravesDocument, HeadDocument, IndexDocument, SegmentsDocument,
    SnapshotsDocument, StateDocument, StoreDocument,
};
use crate::error::{Error, Kind, Result};
use crate::format::checkpoint::{Checkpoint, Grave, LogPosition};
use crate::format::run::IndexEntry;
use crate::format::superblock::Superblock;
use crate::format::table::Volume;
use crate::store::restore::validate;
use crate::units::Uuid;
use std::io::BufRead;

/// Most rows of a table that is kept in memory: as many segments as tables of a store can hold.
const TABLE_MAX: usize = 16 << 20;

/// A whole dump, without its index.
#[derive(Debug, Clone)]
pub struct Dumped {
    /// Pseudonyms stand in it.
    pub anonymous: bool,
    /// Size of the device that was dumped, in bytes.
    pub device_bytes: u64,
    /// Identity and geometry.
    pub superblock: Superblock,
    /// The tables, without runs.
    pub tables: Checkpoint,
    /// Things that were damaged when the dump was made.
    pub damaged: u64,
    /// The log and the index were sound when it was made.
    pub complete: bool,
    counts: [u64; 3],
}

#[derive(Default)]
struct Gathered {
    head: Option<HeadDocument>,
    store: Option<StoreDocument>,
    state: Option<StateDocument>,
    tables: Option<Checkpoint>,
}

/// Reads all of `input` but the entries of its index, and proves that it is whole.
///
/// # Errors
/// `Kind::Damaged` with the document and its line if it is no dump, is cut short or was changed;
/// `Kind::Unsupported` if it is of another version; `Kind::Mismatch` if it holds only parts of a store; `Kind::Io`.
pub fn read_tables(input: impl BufRead) -> Result<Dumped> {
    let mut documents = Documents::new(input);
    let mut gathered = Gathered::default();
    let mut tables = empty_tables();
    while let Some(document) = documents.next_document()? {
        if document.number == 1 && document.name != "dump" {
            return Err(document.wrong("a dump begins with part 'dump'"));
        }
        if document.name == "end" {
            let end: EndDocument = match gathered.head.as_ref().is_some_and(|head| head.whole) {
                true => document.parse()?,
                false => return Err(only_parts()),
            };
            if documents.next_document()?.is_some() {
                return Err(document.wrong("something follows the end"));
            }
            gathered.tables = Some(tables);
            return finish(gathered, &document, &end);
        }
        take(&document, &mut gathered, &mut tables)?;
    }
    Err(Error::damaged("the dump is cut short: it has no end").hint("make it again, or fetch the rest of it"))
}

fn only_parts() -> Error {
    Error::new(Kind::Mismatch, "the dump holds only parts of a store")
        .hint("make it without options for parts")
}

/// Puts what a document says into its place.
fn take(document: &Document, gathered: &mut Gathered, tables: &mut Checkpoint) -> Result<()> {
    let wrong = |error: Error| document.wrong(error);
    match document.name.as_str() {
        "dump" => {
            let head: HeadDocument = document.parse()?;
            if head.schema != SCHEMA {
                let what = format!("the dump is of form '{:.40}', this program knows {SCHEMA}", head.schema);
                return Err(Error::new(Kind::Unsupported, what));
            }
            once(document, &mut gathered.head, head)
        }
        "store" => once(document, &mut gathered.store, document.parse()?),
        "state" => once(document, &mut gathered.state, document.parse()?),
        "snapshots" => {
            for row in document.parse::<SnapshotsDocument>()?.snapshots {
                tables.snapshots.push(row.into_snapshot().map_err(wrong)?);
            }
            ensure_bounded(document, tables.snapshots.len())
        }
        "graves" => {
            tables.graves.extend(document.parse::<GravesDocument>()?.graves.into_iter().map(Grave::from));
            ensure_bounded(document, tables.graves.len())
        }
        "events" => {
            let events = document.parse::<EventsDocument>()?.events;
            tables.events.extend(events.into_iter().map(|row| (row.time_secs, row.text)));
            ensure_bounded(document, tables.events.len())
        }
        "segments" => {
            for row in document.parse::<SegmentsDocument>()?.segments {
                tables.segments.push(row.into_segment().map_err(wrong)?);
            }
            ensure_bounded(document, tables.segments.len())
        }
        // The index comes later; how things lay on the device is made anew.
        _ => Ok(()),
    }
}

fn once<T>(document: &Document, slot: &mut Option<T>, value: T) -> Result<()> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(document.wrong("there are two of it")),
    }
}

fn ensure_bounded(document: &Document, rows: usize) -> Result<()> {
    match rows <= TABLE_MAX {
        true => Ok(()),
        false => Err(document.wrong(format!("more than {TABLE_MAX} rows"))),
    }
}

/// Tables of nothing, to be filled.
fn empty_tables() -> Checkpoint {
    let volume = Volume {
        volume: Uuid([0; 16]),
        origin_size: 0,
        squash_when_full: false,
        unwatched: false,
        generation: 0,
        equals: None,
        path: Vec::new(),
    };
    Checkpoint::empty(LogPosition { address: 0, sequence: 0, crc: 0, incarnation: 0 }, volume)
}

fn finish(gathered: Gathered, document: &Document, end: &EndDocument) -> Result<Dumped> {
    let missing = |name: &str| document.wrong(format!("part '{name}' is missing"));
    let sum = document.sum();
    if end.sha256.0 != sum {
        let what = format!(
            "the SHA-256 of all before its last line is {}, that says {}: the dump was changed or is damaged",
            hex::encode(sum),
            hex::encode(end.sha256.0)
        );
        return Err(document.wrong(what));
    }
    let head = gathered.head.ok_or_else(|| missing("dump"))?;
    let (Some(store), Some(state), Some(mut tables)) = (gathered.store, gathered.state, gathered.tables)
    else {
        return Err(missing("store' or 'state").hint("no checkpoint was found when the dump was made"));
    };
    for (name, told, found) in [
        ("parts", end.parts, document.number - 1),
        ("snapshots", end.snapshots, tables.snapshots.len() as u64),
        ("graves", end.graves, tables.graves.len() as u64),
        ("events", end.events, tables.events.len() as u64),
        ("segments", end.segments, tables.segments.len() as u64),
    ] {
        if told != found {
            return Err(document.wrong(format!("it says {told} {name}, {found} were found")));
        }
    }
    let superblock = superblock(&store).map_err(|error| document.wrong(error))?;
    tables.log = LogPosition {
        address: state.log.address,
        sequence: state.log.sequence,
        crc: state.log.crc.number(),
        incarnation: state.log.incarnation.number(),
    };
    (tables.epoch, tables.next_run, tables.unswept) = (state.epoch, state.next_run, state.unswept);
    tables.ends = state.ends.into_iter().map(|row| (row.incarnation.number(), row.sequence)).collect();
    tables.promised = state.promised;
    tables.volume = state.volume.into_volume()?;
    tables.operation = state.operation.map(|row| row.into_operation()).transpose()?;
    validate(&superblock, &tables)?;
    Ok(Dumped {
        anonymous: head.anonymous,
        device_bytes: head.device_bytes,
        superblock,
        tables,
        damaged: end.damaged,
        complete: end.complete,
        counts: [end.exceptions, end.overlays, end.changes],
    })
}

fn superblock(store: &StoreDocument) -> Result<Superblock> {
    let bits = |name: &str, size: u32| match size.is_power_of_two() {
        true => Ok(size.trailing_zeros()),
        false => Err(Error::damaged(format!("the {name} size is {size}, expected a power of two"))),
    };
    Ok(Superblock {
        uuid: Uuid(store.uuid.0),
        generation: store.generation,
        salt: store.salt.number(),
        chunk_bits: bits("chunk", store.chunk_size)?,
        block_bits: bits("block", store.block_size)?,
        segment_bits: bits("segment", store.segment_size)?,
        segments: store.segments,
        created_secs: store.created_secs,
        checkpoint: store.checkpoint,
        durable: 0,
        uncommitted: false,
        copies: [Vec::new(), Vec::new()],
    })
}

impl Dumped {
    /// The entries of the index out of the same dump, from its beginning. Says in the end whether there were as many
    /// as there must be.
    pub fn entries<'a>(&self, input: impl BufRead + 'a) -> impl Iterator<Item = Result<IndexEntry>> + 'a {
        entries(input, self.counts)
    }
}

/// The entries of the index, and an error after the last one unless there were `expected` of each class.
fn entries<'a>(
    input: impl BufRead + 'a,
    expected: [u64; 3],
) -> impl Iterator<Item = Result<IndexEntry>> + 'a {
    let mut documents = Documents::new(input);
    let mut ready = Vec::new().into_iter();
    let mut found = [0u64; 3];
    let mut ended = false;
    std::iter::from_fn(move || {
        loop {
            if let Some(entry) = ready.next() {
                return Some(Ok(entry));
            }
            if ended {
                return None;
            }
            match next_index(&mut documents, &mut found) {
                Ok(Some(list)) => ready = list.into_iter(),
                Ok(None) => {
                    ended = true;
                    if found != expected {
                        let what =
                            format!("the index has {found:?} entries by class, its end says {expected:?}");
                        return Some(Err(Error::damaged(what)));
                    }
                }
                Err(error) => {
                    ended = true;
                    return Some(Err(error));
                }
            }
        }
    })
}

fn next_index(
    documents: &mut Documents<impl BufRead>,
    found: &mut [u64; 3],
) -> Result<Option<Vec<IndexEntry>>> {
    while let Some(document) = documents.next_document()? {
        if document.name == "index" {
            let index: IndexDocument = document.parse()?;
            for (sum, count) in found.iter_mut().zip(index.counts()) {
                *sum += count;
            }
            return index.into_entries().map(Some).map_err(|error| document.wrong(error));
        }
    }
    Ok(None)
}
