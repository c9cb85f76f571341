//! A delta of 2008 from a source of points.

use crate::delta::buffer::Buffer;
use crate::delta::create::label;
use crate::delta::load::to_usize;
use crate::delta::pipeline::{ordered, workers};
use crate::delta::plan::{Plan, Run};
use crate::error::{Error, Kind, Result};
use crate::format::delta::{CHUNK_BITS_MAX, Geometry, PointLabel};
use crate::format::legacy_delta::{Coding, Extent, Header, sum};
use crate::format::vcdiff;
use crate::point::{Changes, PointId, PointSource};
use crate::progress::Progress;
use crate::units::Tag;
use flate2::{Compress, Compression, FlushCompress, Status};
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use tempfile::SpooledTempFile;

/// How changed data is stored, if its source is there; else as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegacyMode {
    /// As it is.
    Raw,
    /// As a VCDIFF against the source, where that is smaller.
    Xdelta,
    /// As the smaller of both after compression.
    Best,
}

/// How to make a delta of 2008.
#[derive(Debug, Clone, Copy)]
pub struct LegacyOptions {
    /// How changed data is stored.
    pub mode: LegacyMode,
    /// zlib level, 0 (none) to 9.
    pub level: u32,
    /// Threads; 0: as many as the machine has processors. Does not change the result.
    pub threads: usize,
}

/// What a delta of 2008 came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LegacySummary {
    /// Chunks in all extents.
    pub chunks: u64,
    /// Bytes of the target that they cover.
    pub data_bytes: u64,
    /// Length of the delta.
    pub stream_bytes: u64,
}

/// Writes the delta of 2008 that turns `from` (`None`: nothing at all) into `to`.
///
/// Chunks of `changes` become the extents that 2008 made of them, and no others. Without `changes` the source is
/// asked, and what lies past the end of a smaller source is told too. A whole volume is told chunk by chunk. The same
/// inputs give the same bytes.
///
/// # Errors
/// `Kind::NotFound` if the source has no such point; `Kind::Usage` if 2008 had no word for it: from an origin, or
/// chunks above 1 MiB; errors of the source, of `changes` and of `out` as they are; `Kind::Interrupted`.
pub fn create_legacy(
    source: &dyn PointSource,
    from: Option<PointId>,
    to: PointId,
    changes: Option<Changes<'_>>,
    options: &LegacyOptions,
    out: &mut dyn Write,
    progress: &dyn Progress,
) -> Result<LegacySummary> {
    let points = source.points();
    let find = |id: PointId| {
        let found = points.iter().find(|point| point.id == id).map(label);
        found.ok_or_else(|| Error::new(Kind::NotFound, format!("the source has no point {id:?}")))
    };
    let (from_label, to_label) = (from.map(find).transpose()?, find(to)?);
    ensure_told(from_label.as_ref(), source.chunk_bits())?;
    let geometry = Geometry {
        chunk_bits: source.chunk_bits(),
        source_size: from_label.as_ref().map(|label| label.size_bytes),
        target_size: to_label.size_bytes,
    };
    progress.stage("create delta", from.is_none().then_some(geometry.target_size));
    let mut runs = match from {
        None => Runs { next: 0, end: geometry.target_chunks(), listed: None },
        Some(_) => Runs::list(source, (from, to), changes, geometry, progress)?,
    };
    let header = Header {
        chunks: runs.end,
        chunk_bits: geometry.chunk_bits,
        source: from_label.map(|label| label.tag),
        target: to_label.tag,
    };
    let mut summary = LegacySummary { chunks: header.chunks, ..LegacySummary::default() };
    let mut put = |bytes: &[u8]| {
        summary.stream_bytes = summary.stream_bytes.saturating_add(bytes.len() as u64);
        out.write_all(bytes).map_err(cannot_write)
    };
    put(&header.encode())?;
    let encoder = Encoder { source, from, to, geometry, options: *options };
    ordered(
        workers(options.threads),
        || runs.next_run(),
        || Ok(()),
        |(), (start, chunks)| encoder.encode(start, chunks),
        |(extent, payload, bytes)| {
            progress.check()?;
            put(&extent.encode(&header))?;
            put(&payload)?;
            summary.data_bytes = summary.data_bytes.saturating_add(bytes);
            progress.advance(bytes);
            Ok(())
        },
    )?;
    out.flush().map_err(cannot_write)?;
    Ok(summary)
}

fn ensure_told(from: Option<&PointLabel>, chunk_bits: u32) -> Result<()> {
    if from.is_some_and(|label| label.tag == Tag::ORIGIN) {
        let what = "a delta of 2008 cannot start from an origin: its number there means a whole volume";
        return Err(Error::new(Kind::Usage, what).hint("make a snapshot of the origin, and start from that"));
    }
    if chunk_bits > CHUNK_BITS_MAX {
        let what = format!("chunks have 2^{chunk_bits} bytes, a delta of 2008 holds at most 1 MiB");
        return Err(Error::new(Kind::Usage, what));
    }
    Ok(())
}

/// The runs of a delta. Its header tells how many chunks there are, so they are listed before; a whole volume needs
/// no list.
struct Runs {
    next: u64,
    /// Number of chunks in all.
    end: u64,
    listed: Option<BufReader<SpooledTempFile>>,
}

/// A list of this size is kept in memory, the rest in a temporary file.
const LIST_MEMORY_BYTES: usize = 8 << 20;

impl Runs {
    fn list(
        source: &dyn PointSource,
        (from, to): (Option<PointId>, PointId),
        changes: Option<Changes<'_>>,
        mut geometry: Geometry,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let changes = match changes {
            Some(changes) => {
                // The list alone counts, as in 2008: nothing is added past the end of the source.
                geometry.source_size = Some(geometry.target_size);
                changes
            }
            None => source.changed(from, to)?,
        };
        let failed = |error| Error::io("cannot keep the list of changes", error);
        let mut plan = Plan::new(changes, geometry);
        let mut list = BufWriter::new(SpooledTempFile::new(LIST_MEMORY_BYTES));
        let mut end = 0u64;
        while let Some(run) = plan.next_run()? {
            progress.check()?;
            let (Run::Read { start, chunks } | Run::Hole { start, chunks }) = run;
            end = end.saturating_add(u64::from(chunks));
            list.write_all(&start.to_le_bytes()).map_err(failed)?;
            list.write_all(&chunks.to_le_bytes()).map_err(failed)?;
        }
        let mut list = list.into_inner().map_err(|error| failed(error.into_error()))?;
        list.seek(SeekFrom::Start(0)).map_err(failed)?;
        Ok(Self { next: 0, end, listed: Some(BufReader::new(list)) })
    }

    /// First chunk and number of chunks of the next extent.
    fn next_run(&mut self) -> Result<Option<(u64, u32)>> {
        if self.next >= self.end {
            return Ok(None);
        }
        let Some(list) = &mut self.listed else {
            self.next = self.next.saturating_add(1);
            return Ok(Some((self.next.saturating_sub(1), 1)));
        };
        let (mut start, mut chunks) = ([0; 8], [0; 4]);
        list.read_exact(&mut start)
            .and_then(|()| list.read_exact(&mut chunks))
            .map_err(|error| Error::io("cannot read the list of changes again", error))?;
        let chunks = u32::from_le_bytes(chunks);
        self.next = self.next.saturating_add(u64::from(chunks));
        Ok(Some((u64::from_le_bytes(start), chunks)))
    }
}

struct Encoder<'a> {
    source: &'a dyn PointSource,
    from: Option<PointId>,
    to: PointId,
    geometry: Geometry,
    options: LegacyOptions,
}

impl Encoder<'_> {
    /// An extent, its payload, and how many bytes of the volume it tells of.
    fn encode(&self, chunk: u64, chunks: u32) -> Result<(Extent, Buffer, u64)> {
        let (geometry, count) = (&self.geometry, u64::from(chunks));
        let offset = geometry.offset(chunk);
        let mut new = Buffer::unwritten(to_usize(geometry.result_bytes(chunk, count)));
        self.source.read(self.to, offset, &mut new)?;
        let mut base = Buffer::unwritten(to_usize(geometry.base_bytes(chunk, count)));
        if let Some(from) = self.from.filter(|_| !base.is_empty()) {
            self.source.read(from, offset, &mut base)?;
        }
        let (source_sum, target_sum, bytes) = (sum(&base), sum(&new), new.len() as u64);
        let (coding, payload) = self.payload(&base, new)?;
        let payload_bytes = u32::try_from(payload.len())
            .map_err(|_| Error::new(Kind::Usage, "an extent is longer than 4 GiB"))?;
        Ok((Extent { coding, chunk, chunks, payload_bytes, source_sum, target_sum }, payload, bytes))
    }

    /// The payload as 2008 chose it: compressed only if that is smaller, and never larger than the data.
    fn payload(&self, base: &[u8], new: Buffer) -> Result<(Coding, Buffer)> {
        let reaches_beyond = base.len() != new.len();
        let xdelta = match self.options.mode {
            LegacyMode::Xdelta | LegacyMode::Best if !reaches_beyond => xdelta(base, &new),
            _ => None,
        };
        let Some(xdelta) = xdelta else { return self.compressed(false, new) };
        let (coding, small) = self.compressed(true, xdelta)?;
        if self.options.mode == LegacyMode::Xdelta {
            return Ok((coding, small));
        }
        let raw = self.compressed(false, new)?;
        Ok(if small.len() < raw.1.len() { (coding, small) } else { raw })
    }

    fn compressed(&self, xdelta: bool, payload: Buffer) -> Result<(Coding, Buffer)> {
        let small = match self.options.level {
            0 => None,
            level => deflate(&payload, level)?,
        };
        let coding = Coding { xdelta, zlib: small.is_some() };
        Ok((coding, small.unwrap_or(payload)))
    }
}

/// The VCDIFF, if it is smaller than the data and stands for it: what was written is read again before it is believed.
fn xdelta(base: &[u8], new: &[u8]) -> Option<Buffer> {
    let window = vcdiff::encode(base, new);
    let holds =
        window.len() < new.len() && vcdiff::decode(&window, base, new.len()).is_ok_and(|back| back == new);
    holds.then(|| window.into())
}

/// A zlib stream, if it is smaller than what it holds.
fn deflate(payload: &[u8], level: u32) -> Result<Option<Buffer>> {
    let mut zlib = Compress::new(Compression::new(level), true);
    let mut out = Buffer::unwritten(payload.len().saturating_sub(1));
    let status = zlib
        .compress(payload, &mut out, FlushCompress::Finish)
        .map_err(|error| Error::new(Kind::Io, format!("cannot compress: {error}")))?;
    out.truncate(usize::try_from(zlib.total_out()).unwrap_or(usize::MAX));
    Ok((status == Status::StreamEnd).then_some(out))
}

fn cannot_write(source: std::io::Error) -> Error {
    let what = format!("cannot write the delta: {source}");
    Error::io(what, source)
}
