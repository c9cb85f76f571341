//! A delta from a source of points.

use super::encode::{Encoded, Encoder};
use super::load::{Loaded, Loader};
use super::pipeline::{ordered, workers};
use super::plan::{Plan, Run};
use super::write::{CreateSummary, Output};
use crate::error::{Error, Kind, Result};
use crate::format::delta::{Encoding, Geometry, Header, PointLabel};
use crate::point::{Changes, Point, PointId, PointSource};
use crate::progress::Progress;
use std::io::Write;

/// How to make a delta.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// What to do with changed data. Zeros are never stored, and nothing is stored larger than it is.
    pub encoding: Encoding,
    /// zstd level.
    pub level: i32,
    /// Carry a CRC of the old data of each chunk, by which a target proves to be the right base. Encodings that
    /// refer to the old data carry it always.
    pub base_crc: bool,
    /// Threads; 0: as many as the machine has processors. Does not change the result.
    pub threads: usize,
    /// Bytes a second on the output, at most.
    pub rate_limit: Option<u64>,
}

/// Writes the delta that turns `from` (`None`: nothing at all) into `to`.
///
/// `changes` are the chunks that may differ; `None` asks the source. Chunks found equal are left out where the
/// old data is read anyway. The same inputs give the same bytes.
///
/// # Errors
/// `Kind::NotFound` if the source has no such point, `Kind::Usage` if it does not fit the format; errors of the
/// source, of `changes` and of `out` as they are; `Kind::Interrupted`. After an error what `out` holds has no
/// end marker and is refused by every reader.
pub fn create(
    source: &dyn PointSource,
    from: Option<PointId>,
    to: PointId,
    changes: Option<Changes<'_>>,
    options: &CreateOptions,
    out: &mut dyn Write,
    progress: &dyn Progress,
) -> Result<CreateSummary> {
    let made = Made::new(source, from, to, options)?;
    let output = Output::begin(out, &made.header, options.rate_limit, progress)?;
    make(&made, changes, options, output, progress)
}

/// Between which points a delta is made, and the header that it has.
pub(crate) struct Made<'a> {
    source: &'a dyn PointSource,
    from: Option<PointId>,
    to: PointId,
    pub(crate) header: Header,
}

impl<'a> Made<'a> {
    /// Looks up both points.
    pub(crate) fn new(
        source: &'a dyn PointSource,
        from: Option<PointId>,
        to: PointId,
        options: &CreateOptions,
    ) -> Result<Self> {
        let points = source.points();
        let find = |id: PointId| {
            points
                .iter()
                .find(|point| point.id == id)
                .map(label)
                .ok_or_else(|| Error::new(Kind::NotFound, format!("the source has no point {id:?}")))
        };
        let header = Header {
            chunk_bits: source.chunk_bits(),
            encoding: options.encoding,
            level: if options.encoding == Encoding::Raw { 0 } else { options.level },
            undoes: None,
            source: from.map(find).transpose()?,
            target: find(to)?,
        };
        Ok(Self { source, from, to, header })
    }
}

/// The extents and the end of a delta whose output has begun.
pub(crate) fn make(
    made: &Made<'_>,
    changes: Option<Changes<'_>>,
    options: &CreateOptions,
    output: Output<'_>,
    progress: &dyn Progress,
) -> Result<CreateSummary> {
    let Made { source, from, to, ref header } = *made;
    let geometry = header.geometry();
    let base_data = matches!(options.encoding, Encoding::ZstdBase | Encoding::Best) && from.is_some();
    let loader = Loader { source, from, to, geometry, base_crc: options.base_crc, base_data };
    let changes = match changes {
        Some(changes) if from.is_some() => changes,
        _ => source.changed(from, to)?,
    };
    let mut plan = Plan::new(changes, geometry);
    progress.stage("create delta", from.is_none().then_some(geometry.target_size));
    let first_chunk = output.first_chunk();
    let produce = || {
        while let Some(run) = plan.next_run()? {
            if run.end() > first_chunk {
                return Ok(Some(run));
            }
        }
        Ok(None)
    };
    let encode = |encoder: &mut Encoder, run| {
        encode_run(encoder, &geometry, run, |start, chunks| loader.load(start, chunks))
    };
    let encoder = || Encoder::new(geometry, options.encoding, options.level);
    write_extents(output, options.threads, produce, encoder, encode, progress)
}

/// Header, extents, end marker, from any producer of runs and any way to load one.
pub(crate) fn write_delta<X: Send>(
    header: &Header,
    produce: impl FnMut() -> Result<Option<(Run, X)>> + Send,
    load: impl Fn(u64, u32, X) -> Result<Loaded> + Sync,
    options: &CreateOptions,
    out: &mut dyn Write,
    progress: &dyn Progress,
) -> Result<CreateSummary> {
    let geometry = header.geometry();
    let output = Output::begin(out, header, options.rate_limit, progress)?;
    let encode = |encoder: &mut Encoder, (run, extra)| {
        encode_run(encoder, &geometry, run, |start, chunks| load(start, chunks, extra))
    };
    let encoder = || Encoder::new(geometry, options.encoding, options.level);
    write_extents(output, options.threads, produce, encoder, encode, progress)
}

/// The extents of everything that is produced, in order, and the end marker. `encode` tells how many bytes of
/// the volume it has seen to.
pub(crate) fn write_extents<I: Send, S>(
    mut output: Output<'_>,
    threads: usize,
    produce: impl FnMut() -> Result<Option<I>> + Send,
    state: impl Fn() -> Result<S> + Sync,
    encode: impl Fn(&mut S, I) -> Result<(u64, Vec<Encoded>)> + Sync,
    progress: &dyn Progress,
) -> Result<CreateSummary> {
    ordered(workers(threads), produce, state, encode, |(bytes, extents)| {
        progress.check()?;
        extents.into_iter().try_for_each(|extent| output.extent(extent))?;
        progress.advance(bytes);
        Ok(())
    })?;
    output.finish()
}

fn encode_run(
    encoder: &mut Encoder,
    geometry: &Geometry,
    run: Run,
    load: impl FnOnce(u64, u32) -> Result<Loaded>,
) -> Result<(u64, Vec<Encoded>)> {
    match run {
        Run::Hole { start, chunks } => {
            Ok((geometry.result_bytes(start, u64::from(chunks)), vec![encoder.hole(start, chunks)]))
        }
        Run::Read { start, chunks } => {
            let loaded = load(start, chunks)?;
            let bytes = loaded.new.len() as u64;
            Ok((bytes, encoder.run(start, chunks, loaded)?))
        }
    }
}

pub(crate) fn label(point: &Point) -> PointLabel {
    PointLabel {
        volume: point.identity.volume,
        id: point.identity.id,
        generation: point.identity.generation,
        size_bytes: point.size_bytes,
        tag: point.tag,
        name: point.name.clone(),
    }
}
