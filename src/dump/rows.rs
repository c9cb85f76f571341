//! What `restore` takes out of the documents of a dump. Names are those that `state` writes; a test holds them
//! against each other by restoring what was dumped.

use crate::error::{Error, Result};
use crate::format::checkpoint::{Grave, Role, Segment};
use crate::format::record::Encoding;
use crate::format::run::{IndexEntry, Key, Value};
use crate::format::table::{HOLD_MAX, HOLDS_MAX, NAME_MAX, Operation, Snapshot, TEXT_MAX, Volume};
use crate::units::Uuid;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

/// `N` bytes as hexadecimal text; dashes are skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hex<const N: usize>(pub [u8; N]);

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        let mut bytes = [0; N];
        let wrong = |_| D::Error::custom(format!("expected {} hexadecimal digits", 2 * N));
        hex::decode_to_slice(digits, &mut bytes).map_err(wrong)?;
        Ok(Self(bytes))
    }
}

impl Hex<4> {
    pub fn number(self) -> u32 {
        u32::from_be_bytes(self.0)
    }
}

impl Hex<8> {
    pub fn number(self) -> u64 {
        u64::from_be_bytes(self.0)
    }
}

#[derive(Debug, Deserialize)]
pub struct HeadDocument {
    pub schema: String,
    pub device_bytes: u64,
    pub anonymous: bool,
    pub whole: bool,
}

#[derive(Debug, Deserialize)]
pub struct StoreDocument {
    pub uuid: Hex<16>,
    pub salt: Hex<8>,
    pub created_secs: i64,
    pub chunk_size: u32,
    pub block_size: u32,
    pub segment_size: u32,
    pub segments: u32,
    pub generation: u64,
    pub checkpoint: u64,
}

#[derive(Debug, Deserialize)]
pub struct LogRow {
    pub address: u64,
    pub sequence: u64,
    pub crc: Hex<4>,
    pub incarnation: Hex<8>,
}

#[derive(Debug, Deserialize)]
pub struct EndRow {
    pub incarnation: Hex<8>,
    pub sequence: u64,
}

#[derive(Debug, Deserialize)]
pub struct EqualsRow {
    volume: Hex<16>,
    id: u64,
    generation: u64,
}

#[derive(Debug, Deserialize)]
pub struct VolumeRow {
    uuid: Hex<16>,
    origin_size: u64,
    squash_when_full: bool,
    generation: u64,
    equals: Option<EqualsRow>,
    /// Told only where it is so.
    #[serde(default)]
    unwatched: bool,
    path: Option<String>,
    path_hex: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct OperationRow {
    before: u64,
    pinned: u64,
    token: Hex<32>,
    forced: bool,
    label: String,
}

#[derive(Debug, Deserialize)]
pub struct StateDocument {
    pub log: LogRow,
    pub epoch: u64,
    pub next_run: u64,
    pub unswept: u64,
    pub promised: Vec<u32>,
    pub volume: VolumeRow,
    pub operation: Option<OperationRow>,
    pub ends: Vec<EndRow>,
}

#[derive(Debug, Deserialize)]
pub struct SnapshotRow {
    id: u64,
    tag: u32,
    name: String,
    created_secs: i64,
    size_bytes: u64,
    priority: i8,
    use_count: u32,
    generation: u64,
    created_at: u64,
    created_sequence: u64,
    squashed: bool,
    tainted: bool,
    hidden: bool,
    holds: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub struct GraveRow {
    id: u64,
    created_at: u64,
    created_sequence: u64,
}

#[derive(Debug, Deserialize)]
pub struct EventRow {
    pub time_secs: i64,
    pub text: String,
}

#[derive(Debug, Deserialize)]
pub struct SegmentRow {
    number: u32,
    role: String,
}

#[derive(Debug, Deserialize)]
pub struct SnapshotsDocument {
    pub snapshots: Vec<SnapshotRow>,
}

#[derive(Debug, Deserialize)]
pub struct GravesDocument {
    pub graves: Vec<GraveRow>,
}

#[derive(Debug, Deserialize)]
pub struct EventsDocument {
    pub events: Vec<EventRow>,
}

#[derive(Debug, Deserialize)]
pub struct SegmentsDocument {
    pub segments: Vec<SegmentRow>,
}

#[derive(Debug, Deserialize)]
struct Place {
    address: u64,
    encoding: String,
    length: u32,
    stored: u32,
    crc: Hex<4>,
}

#[derive(Debug, Deserialize)]
struct ExceptionRow {
    chunk: u64,
    epoch: u64,
    #[serde(flatten)]
    place: Place,
}

#[derive(Debug, Deserialize)]
struct OverlayRow {
    snapshot: u64,
    chunk: u64,
    #[serde(flatten)]
    place: Place,
}

#[derive(Debug, Deserialize)]
struct ChangesRow {
    epoch: u64,
    page: u64,
    bits: Hex<16>,
}

#[derive(Debug, Deserialize)]
pub struct IndexDocument {
    #[serde(default)]
    exceptions: Vec<ExceptionRow>,
    #[serde(default)]
    overlays: Vec<OverlayRow>,
    #[serde(default)]
    changes: Vec<ChangesRow>,
}

#[derive(Debug, Deserialize)]
pub struct EndDocument {
    pub parts: u64,
    pub damaged: u64,
    pub complete: bool,
    pub snapshots: u64,
    pub graves: u64,
    pub events: u64,
    pub segments: u64,
    pub exceptions: u64,
    pub overlays: u64,
    pub changes: u64,
    pub sha256: Hex<32>,
}

/// Refuses text that would be cut when it is written.
fn ensure_fits(what: &str, text: &[u8], most: usize) -> Result<()> {
    match text.len() <= most {
        true => Ok(()),
        false => Err(Error::damaged(format!("{what} has {} bytes, at most {most} fit", text.len()))),
    }
}

impl VolumeRow {
    pub fn into_volume(self) -> Result<Volume> {
        let path = match (self.path, self.path_hex) {
            (Some(path), None) => path.into_bytes(),
            (None, Some(digits)) => hex::decode(digits)
                .map_err(|error| Error::damaged(format!("path_hex is no hexadecimal: {error}")))?,
            _ => return Err(Error::damaged("the volume needs path or path_hex")),
        };
        ensure_fits("the path of the origin", &path, TEXT_MAX)?;
        Ok(Volume {
            volume: Uuid(self.uuid.0),
            origin_size: self.origin_size,
            squash_when_full: self.squash_when_full,
            generation: self.generation,
            equals: self.equals.map(|row| (Uuid(row.volume.0), row.id, row.generation)),
            unwatched: self.unwatched,
            path,
        })
    }
}

impl OperationRow {
    pub fn into_operation(self) -> Result<Operation> {
        ensure_fits("the label of the operation", self.label.as_bytes(), TEXT_MAX)?;
        Ok(Operation {
            before: self.before,
            pinned: self.pinned,
            token: self.token.0,
            forced: self.forced,
            label: self.label,
        })
    }
}

impl SnapshotRow {
    pub fn into_snapshot(self) -> Result<Snapshot> {
        ensure_fits("the name of a snapshot", self.name.as_bytes(), NAME_MAX)?;
        for hold in &self.holds {
            ensure_fits("the name of a hold", hold.as_bytes(), HOLD_MAX)?;
        }
        if self.holds.len() > HOLDS_MAX {
            return Err(Error::damaged(format!(
                "a snapshot has {} holds, at most {HOLDS_MAX}",
                self.holds.len()
            )));
        }
        Ok(Snapshot {
            id: self.id,
            tag: self.tag,
            name: self.name,
            use_count: self.use_count,
            size_bytes: self.size_bytes,
            created_secs: self.created_secs,
            generation: self.generation,
            created_at: self.created_at,
            created_sequence: self.created_sequence,
            priority: self.priority,
            squashed: self.squashed,
            tainted: self.tainted,
            hidden: self.hidden,
            holds: self.holds,
        })
    }
}

impl From<GraveRow> for Grave {
    fn from(row: GraveRow) -> Self {
        Self { id: row.id, created_at: row.created_at, created_sequence: row.created_sequence }
    }
}

impl SegmentRow {
    /// What a segment holds; how much of it is counted anew.
    pub fn into_segment(self) -> Result<(u32, Segment)> {
        let role = match self.role.as_str() {
            "emptied" => Role::Emptied,
            "log" => Role::Log,
            "index" => Role::Index,
            other => {
                return Err(Error::damaged(format!(
                    "a segment is '{other:.20}', expected log, index or emptied"
                )));
            }
        };
        Ok((self.number, Segment { role, count: 0, live: 0, digest: 0 }))
    }
}

impl Place {
    fn value(&self) -> Result<Value> {
        let encoding = match self.encoding.as_str() {
            "raw" => Encoding::Raw,
            "zeroes" => Encoding::Zeroes,
            "lost" => Encoding::Lost,
            other => return Err(Error::damaged(format!("encoding '{other:.20}' is unknown"))),
        };
        Ok(Value {
            word: self.address,
            crc: self.crc.number(),
            raw_length: self.length,
            stored_length: self.stored,
            encoding,
        })
    }
}

impl IndexDocument {
    /// How many exceptions, overlays and pages of change bits.
    pub fn counts(&self) -> [u64; 3] {
        [self.exceptions.len(), self.overlays.len(), self.changes.len()].map(|count| count as u64)
    }

    /// The entries, in the order of their classes.
    pub fn into_entries(self) -> Result<Vec<IndexEntry>> {
        let mut entries =
            Vec::with_capacity(self.exceptions.len() + self.overlays.len() + self.changes.len());
        for row in self.exceptions {
            entries.push((Key::exception(row.chunk, row.epoch), row.place.value()?));
        }
        for row in self.overlays {
            entries.push((Key::overlay(row.snapshot, row.chunk), row.place.value()?));
        }
        for row in self.changes {
            entries
                .push((Key::changes(row.epoch, row.page), Value::from_bits(u128::from_be_bytes(row.bits.0))));
        }
        Ok(entries)
    }
}
