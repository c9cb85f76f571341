//! The delta that takes a target back, complete and durable before the target is touched.
//!
//! It is an ordinary delta from the result to what the target holds now: written under a temporary name, made
//! durable, then given its name. A file of that name is therefore always whole, and a crash at any later time
//! leaves everything that is needed to go back. Its header names the delta that it undoes, so that a repeated
//! apply finds and keeps it: an undo made from a half-changed target would be worth nothing.

use super::apply::{ApplyOptions, Verified};
use super::buffer::Buffer;
use super::check::Checker;
use super::create::{CreateOptions, write_delta};
use super::input::Input;
use super::inspect::{DeltaInfo, info};
use super::load::{Loaded, chunk_crcs, to_usize};
use super::plan::{Plan, Run};
use super::read::{Pieces, ReadExtent};
use super::target::{Target, TargetState};
use super::write::CreateSummary;
use crate::block::part::{create_beside, folder_of};
use crate::error::{Error, Kind, Result};
use crate::format::delta::{Encoding, Geometry, Header, PointLabel};
use crate::progress::Progress;
use crate::units::{Tag, Uuid};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

/// Makes the undo delta at `path`, or keeps the one that an interrupted apply of the same delta left there.
pub(crate) fn prepare(
    path: &Path,
    input: &mut Input,
    target: &dyn Target,
    verified: &Verified,
    options: &ApplyOptions,
    progress: &dyn Progress,
) -> Result<()> {
    match File::open(path) {
        Ok(file) => return ensure_ours(path, file, verified, progress),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("cannot open the undo delta", error).at_path(path)),
    }
    let failed = |e| Error::io("cannot write the undo delta", e).at_path(path);
    let temporary = create_beside(path).map_err(failed)?;
    let mut out = BufWriter::with_capacity(256 << 10, temporary);
    let header = header(&verified.info, target.size(), verified.resumed);
    let create = CreateOptions {
        encoding: header.encoding,
        level: header.level,
        base_crc: true,
        threads: options.threads,
        rate_limit: None,
    };
    progress.stage("write undo delta", None);
    write_inverse(input, target, &header, &create, &mut out, progress)
        .map_err(|error| error.at_path(path))?;
    let temporary = out.into_inner().map_err(|e| failed(e.into_error()))?;
    temporary.as_file().sync_all().map_err(failed)?;
    temporary.persist_noclobber(path).map_err(|e| failed(e.error))?;
    File::open(folder_of(path)).and_then(|folder| folder.sync_all()).map_err(failed)
}

fn ensure_ours(path: &Path, file: File, verified: &Verified, progress: &dyn Progress) -> Result<()> {
    let other = |what: String| {
        Error::new(Kind::Exists, what)
            .at_path(path)
            .hint("remove it, or name another file for the undo delta")
    };
    let found = info(&mut BufReader::new(file), progress)
        .map_err(|error| other(format!("exists and is no undo delta: {error}")))?;
    if found.header.undoes == Some(verified.info.digest) {
        Ok(())
    } else {
        Err(other("exists and undoes another delta".to_owned()))
    }
}

/// Writes the delta from the result of the one in `input` to what `volume` holds now, under this header.
pub(crate) fn write_inverse(
    input: &mut Input,
    volume: &dyn TargetState,
    header: &Header,
    options: &CreateOptions,
    out: &mut dyn Write,
    progress: &dyn Progress,
) -> Result<CreateSummary> {
    let geometry = header.geometry();
    input.again(|reader| {
        let delta = reader.header().geometry();
        let mut runs = Runs::new(Pieces::new(reader), geometry);
        let load = |start, chunks, extent: Option<ReadExtent>| {
            let offset = geometry.offset(start);
            let mut new = Buffer::unwritten(to_usize(geometry.result_bytes(start, u64::from(chunks))));
            volume.read(offset, &mut new)?;
            let mut base = match extent {
                Some(extent) => Checker::new(volume, delta, true)?.check(extent)?.data,
                None => new.clone(),
            };
            base.truncate(to_usize(geometry.base_bytes(start, u64::from(chunks))));
            let base_crcs = Some(chunk_crcs(&geometry, chunks, &base));
            Ok(Loaded { new, base: Some(base), base_crcs })
        };
        write_delta(header, || runs.next(), load, options, out, progress)
    })
}

/// The points of a delta swapped. What the volume of `size_now` bytes holds is only called the base if all of it
/// is proven to be, and nothing of the result is there yet (`resumed`).
pub(crate) fn header(delta: &DeltaInfo, size_now: u64, resumed: bool) -> Header {
    let unknown = PointLabel {
        volume: Uuid([0; 16]),
        id: 0,
        generation: 0,
        size_bytes: size_now,
        tag: Tag::ORIGIN,
        name: None,
    };
    let base = delta.header.source.clone().filter(|_| !resumed && delta.has_base_crcs);
    Header {
        chunk_bits: delta.header.chunk_bits,
        encoding: Encoding::Zstd,
        level: 1,
        undoes: Some(delta.digest),
        source: Some(delta.header.target.clone()),
        target: base.filter(|base| base.size_bytes == size_now).unwrap_or(unknown),
    }
}

/// The delta's extents as far as the target reaches now, then what the delta cuts off the target.
struct Runs<R> {
    pieces: Pieces<R>,
    geometry: Geometry,
    next: u64,
    tail: Option<Plan<'static>>,
}

impl<R: Read> Runs<R> {
    fn new(pieces: Pieces<R>, geometry: Geometry) -> Self {
        Self { pieces, geometry, next: 0, tail: None }
    }

    fn next(&mut self) -> Result<Option<(Run, Option<ReadExtent>)>> {
        let limit = self.geometry.target_chunks();
        while self.tail.is_none() {
            let Some(extent) = self.pieces.next_piece()? else {
                self.tail = Some(Plan::new(Box::new(std::iter::empty()), self.geometry));
                break;
            };
            let start = extent.head.chunk;
            let chunks = limit.saturating_sub(start).min(u64::from(extent.head.chunks));
            self.next = start.saturating_add(u64::from(extent.head.chunks));
            if chunks > 0 {
                let chunks = u32::try_from(chunks).unwrap_or(u32::MAX);
                return Ok(Some((Run::Read { start, chunks }, Some(extent))));
            }
        }
        let Some(tail) = &mut self.tail else { return Ok(None) };
        while let Some(run) = tail.next_run()? {
            let Run::Read { start, chunks } = run else { continue };
            // The delta's last extent may have covered the chunk in which the new size lies.
            let skip = u32::try_from(self.next.saturating_sub(start)).unwrap_or(u32::MAX).min(chunks);
            if skip < chunks {
                let start = start.saturating_add(u64::from(skip));
                return Ok(Some((Run::Read { start, chunks: chunks.saturating_sub(skip) }, None)));
            }
        }
        Ok(None)
    }
}
