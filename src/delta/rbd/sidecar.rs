//! The file beside a diff that says what the diff cannot: its digest, and which points it leads from and to.

use crate::error::{Error, Result};
use crate::format::delta::PointLabel;
use crate::units::{Tag, Uuid};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

const SCHEMA: &str = "ddsnap.rbd-sidecar/1";
/// Far more than any sidecar has.
const BYTES_MAX: u64 = 64 << 10;

/// What a sidecar says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sidecar {
    /// Length of the diff in bytes.
    pub stream_bytes: u64,
    /// BLAKE3 of the whole diff.
    pub digest: [u8; 32],
    /// The point it leads from; `None` for a whole volume.
    pub source: Option<PointLabel>,
    /// The point it leads to.
    pub target: PointLabel,
}

#[derive(Serialize, Deserialize)]
struct Document {
    schema: String,
    stream_bytes: u64,
    blake3: String,
    source: Option<PointDocument>,
    target: PointDocument,
}

#[derive(Serialize, Deserialize)]
struct PointDocument {
    tag: u32,
    name: Option<String>,
    size_bytes: u64,
    volume: String,
    /// `None` for the origin, whose number not every JSON reader can hold.
    id: Option<u64>,
    generation: u64,
}

/// Where the sidecar of the diff at `path` lies.
#[must_use]
pub fn sidecar_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(".json");
    name.into()
}

impl Sidecar {
    /// The sidecar as one line of JSON.
    #[must_use]
    pub fn encode(&self) -> String {
        let document = Document {
            schema: SCHEMA.to_owned(),
            stream_bytes: self.stream_bytes,
            blake3: hex::encode(self.digest),
            source: self.source.as_ref().map(document),
            target: document(&self.target),
        };
        serde_json::to_string(&document).unwrap_or_default() + "\n"
    }

    /// Decodes a sidecar.
    ///
    /// # Errors
    /// `Kind::Damaged`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let wrong = |what: String| {
            Error::damaged(format!("not the description of an rbd diff: {what}"))
                .hint("a file of this name beside a diff describes it; remove it if it does not")
        };
        let document: Document = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        if document.schema != SCHEMA {
            return Err(wrong(format!("schema is '{}', expected '{SCHEMA}'", document.schema)));
        }
        let mut digest = [0; 32];
        hex::decode_to_slice(&document.blake3, &mut digest)
            .map_err(|error| wrong(format!("blake3: {error}")))?;
        let label = |document: &PointDocument| label(document).map_err(wrong);
        Ok(Self {
            stream_bytes: document.stream_bytes,
            digest,
            source: document.source.as_ref().map(label).transpose()?,
            target: label(&document.target)?,
        })
    }

    /// Reads the sidecar of the diff at `path`, if there is one.
    ///
    /// # Errors
    /// `Kind::Damaged`, `Kind::Io`.
    pub(super) fn beside(path: &Path) -> Result<Option<Self>> {
        let path = sidecar_path(path);
        let failed = |error| Error::io("cannot read the description of the diff", error).at_path(&path);
        let file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed)?,
        };
        let mut bytes = Vec::new();
        file.take(BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
        Self::decode(&bytes).map(Some).map_err(|error| error.at_path(&path))
    }
}

fn document(label: &PointLabel) -> PointDocument {
    PointDocument {
        tag: label.tag.0,
        name: label.name.clone(),
        size_bytes: label.size_bytes,
        volume: hex::encode(label.volume.0),
        id: (label.id != u64::MAX).then_some(label.id),
        generation: label.generation,
    }
}

fn label(document: &PointDocument) -> std::result::Result<PointLabel, String> {
    let mut volume = Uuid([0; 16]);
    hex::decode_to_slice(&document.volume, &mut volume.0).map_err(|error| format!("volume: {error}"))?;
    Ok(PointLabel {
        volume,
        id: document.id.unwrap_or(u64::MAX),
        generation: document.generation,
        size_bytes: document.size_bytes,
        tag: Tag(document.tag),
        name: document.name.clone(),
    })
}
