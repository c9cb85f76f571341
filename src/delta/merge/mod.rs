//! Several deltas into one: a..b and b..c give a..c.
//!
//! Each delta lies as a layer over the merge of all before it. A layer takes pieces from below and lays its own
//! extents over them: what it covers is split off and dropped, what it does not cover passes through. Nothing is
//! decoded on the way ([`piece`]); only where a part of an extent survives, or where an extent refers to old data
//! that an earlier delta holds, the last stage decodes and encodes anew. Memory is bounded by the number of deltas
//! times the size of an extent, whatever the size of the volume.
//!
//! Of each chunk the last delta that has it tells the result, and the first that has it the base.

mod layer;
mod piece;
#[cfg(test)]
mod tests;

use super::create::write_extents;
use super::encode::{Encoded, Encoder, assemble};
use super::load::{Loaded, to_usize};
use super::read::Reader;
use super::write::{CreateSummary, Output};
use crate::block::ReadAt;
use crate::delta::Buffer;
use crate::error::{Error, Kind, Result};
use crate::format::delta::{Encoding, ExtentKind, Geometry, Header, PointLabel, crc};
use crate::progress::Progress;
use layer::{First, Layer, Stream};
use piece::Piece;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Deltas that can be merged at once, at most: each takes an open file and a little stack.
pub const MERGE_MAX: usize = 256;

/// A delta to be merged: its name for messages, and its bytes.
pub struct MergeInput {
    /// For messages.
    pub path: PathBuf,
    /// The stream, read once from front to back.
    pub bytes: Box<dyn Read + Send>,
}

/// How to merge.
pub struct MergeOptions<'a> {
    /// What the first delta applies to, where data of it is needed; checked as far as it is read.
    pub base: Option<&'a dyn ReadAt>,
    /// Threads; 0: as many as the machine has processors. Does not change the result.
    pub threads: usize,
}

/// Writes the delta that does what `inputs`, in this order, do one after the other.
///
/// The inputs must have one chunk size, and each must start from the point that the one before makes: by size
/// and, where they are known, by identity and by the checksums of every chunk that both hold. All are verified to
/// their ends. The same inputs give the same bytes.
///
/// # Errors
/// `Kind::Usage` for fewer than one or more than [`MERGE_MAX`] inputs; `Kind::Mismatch` if one does not continue
/// the one before; `Kind::Refused` if data is needed that no delta holds and no base is given; `Kind::Damaged`,
/// `Kind::Unsupported` for a bad input; of `out` as they are; `Kind::Interrupted`. After an error what `out` holds
/// has no end marker.
pub fn merge(
    inputs: Vec<MergeInput>,
    options: &MergeOptions<'_>,
    out: &mut dyn Write,
    progress: &dyn Progress,
) -> Result<CreateSummary> {
    if inputs.len() > MERGE_MAX {
        let what = format!("{} deltas, at most {MERGE_MAX} can be merged at once", inputs.len());
        return Err(Error::new(Kind::Usage, what).hint("merge some of them first, then the results"));
    }
    let mut deltas = Vec::new();
    for MergeInput { path, bytes } in inputs {
        let reader = Reader::open(bytes).map_err(|error| error.at_path(&path))?;
        deltas.push((path, reader));
    }
    for pair in deltas.windows(2) {
        if let [(before_path, before), (path, after)] = pair {
            check_link(before_path, before.header(), after.header()).map_err(|error| error.at_path(path))?;
        }
    }
    let headers: Vec<&Header> = deltas.iter().map(|(_, reader)| reader.header()).collect();
    let header = merged_header(&headers)?;
    let geometry = header.geometry();
    check_base(options.base, &geometry)?;
    let mut stream: Option<Box<dyn Stream>> = None;
    for (path, reader) in deltas {
        stream = Some(match stream {
            None => Box::new(First::new(path, reader)),
            Some(below) => Box::new(Layer::new(below, path, reader)),
        });
    }
    let Some(mut stream) = stream else { return Err(Error::new(Kind::Usage, "no delta to merge")) };
    let last = Last { geometry, base: options.base };
    progress.stage("merge deltas", None);
    write_extents(
        Output::begin(out, &header, None, progress)?,
        options.threads,
        || stream.next_piece(),
        || Encoder::new(geometry, header.encoding, header.level),
        |encoder, piece| last.encode(encoder, &piece),
        progress,
    )
}

/// Refuses a delta that does not start where the one before ends.
fn check_link(before_path: &Path, before: &Header, after: &Header) -> Result<()> {
    let mismatch = |what: String| Err(Error::new(Kind::Mismatch, what));
    let (end, before_path) = (&before.target, before_path.display());
    let Some(start) = &after.source else {
        return mismatch(format!("holds a whole volume, so it cannot follow {before_path}"));
    };
    if before.chunk_bits != after.chunk_bits {
        return mismatch(format!(
            "has chunks of {} bytes, {before_path} has {}: only deltas of one chunk size can be merged",
            1u64 << after.chunk_bits,
            1u64 << before.chunk_bits
        ));
    }
    let known = start.is_known() && end.is_known();
    if known && (start.volume, start.id, start.generation) != (end.volume, end.id, end.generation) {
        return mismatch(format!("starts from {}, but {before_path} ends at {}", name(start), name(end)));
    }
    if start.size_bytes != end.size_bytes {
        return mismatch(format!(
            "starts from {} bytes, but {before_path} makes {}",
            start.size_bytes, end.size_bytes
        ));
    }
    Ok(())
}

fn name(point: &PointLabel) -> String {
    let PointLabel { volume, id, generation, tag, .. } = point;
    if *id == u64::MAX {
        return format!("the origin of volume {volume} (generation {generation})");
    }
    format!("snapshot {tag} (id {id}, generation {generation}) of volume {volume}")
}

/// The first one's source, the last one's target. What must be encoded anew is encoded as the last delta was that
/// compresses at all.
fn merged_header(headers: &[&Header]) -> Result<Header> {
    let (Some(first), Some(last)) = (headers.first(), headers.last()) else {
        return Err(Error::new(Kind::Usage, "no delta to merge"));
    };
    let coded = headers.iter().rev().find(|header| header.encoding != Encoding::Raw).unwrap_or(last);
    let one = headers.iter().all(|header| header.encoding == coded.encoding);
    Ok(Header {
        chunk_bits: last.chunk_bits,
        encoding: if one { coded.encoding } else { Encoding::Best },
        level: coded.level,
        undoes: None,
        source: first.source.clone(),
        target: last.target.clone(),
    })
}

fn check_base(base: Option<&dyn ReadAt>, geometry: &Geometry) -> Result<()> {
    match (base, geometry.source_size) {
        (Some(base), Some(size)) if base.size() != size => {
            let what = format!("the base has {} bytes, the first delta was made from {size}", base.size());
            Err(Error::new(Kind::Mismatch, what).at_path(base.path()))
        }
        (Some(base), None) => {
            let what = "the first delta holds a whole volume and has no base";
            Err(Error::new(Kind::Usage, what).at_path(base.path()))
        }
        _ => Ok(()),
    }
}

/// The last stage: pieces of the merge as extents.
struct Last<'a> {
    geometry: Geometry,
    base: Option<&'a dyn ReadAt>,
}

impl Last<'_> {
    fn encode(&self, encoder: &mut Encoder, piece: &Piece) -> Result<(u64, Vec<Encoded>)> {
        let data = self.geometry.result_bytes(piece.chunk, u64::from(piece.chunks));
        let base_crcs = self.base_crcs(piece)?;
        let extent = piece.extent();
        let whole = |kind, result_crcs: &[u32], payload: Buffer| {
            assemble(kind, piece.chunk, piece.chunks, data, result_crcs, base_crcs.as_deref(), payload)
        };
        if extent.head.kind == ExtentKind::Zero {
            return Ok((data, vec![whole(ExtentKind::Zero, &[], Buffer::default())]));
        }
        if piece.passes(&self.geometry) {
            return Ok((data, vec![whole(extent.head.kind, &extent.result_crcs, extent.payload.clone())]));
        }
        let mut new = Buffer::unwritten(to_usize(data));
        piece.read(&mut new, self.base)?;
        let loaded = Loaded { new, base: None, base_crcs };
        Ok((data, encoder.run(piece.chunk, piece.chunks, loaded)?))
    }

    /// The CRCs of what the whole chain starts from; `None` if the deltas carry none.
    fn base_crcs(&self, piece: &Piece) -> Result<Option<Vec<u32>>> {
        let (Some(sums), Some(_)) = (piece.base_sums(), self.geometry.source_size) else { return Ok(None) };
        let chunks = (piece.chunk..).zip(sums);
        let crcs = chunks.map(|(chunk, sum)| {
            let bytes = self.geometry.base_bytes(chunk, 1);
            match self.base {
                _ if bytes == 0 => Ok(0),
                _ if sum.bytes == bytes => Ok(sum.crc),
                Some(base) => {
                    let mut old = vec![0; to_usize(bytes)];
                    base.read_at(&mut old, self.geometry.offset(chunk))?;
                    Ok(crc(&old))
                }
                None => Err(needs_base(chunk, "a size in between hides what it was")),
            }
        });
        crcs.collect::<Result<Vec<u32>>>().map(Some)
    }
}

fn needs_base(chunk: u64, why: &str) -> Error {
    let what = format!("no delta holds what chunk {chunk} was at the start: {why}");
    Error::new(Kind::Refused, what)
        .hint("--base PATH names a device or file with the state that the first delta applies to")
}
