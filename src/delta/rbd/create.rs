//! A diff from a source of points.

use super::sidecar::Sidecar;
use crate::delta::create::label;
use crate::delta::encode::is_zero;
use crate::delta::load::to_usize;
use crate::delta::pipeline::{ordered, workers};
use crate::delta::plan::{Plan, Run};
use crate::error::{Error, Kind, Result};
use crate::format::delta::{Geometry, PointLabel};
use crate::format::rbd::{MAGIC, NAME_BYTES_MAX, Record, WRITE_BYTES_MAX, ZERO_BYTES_MAX};
use crate::point::{Changes, PointId, PointSource};
use crate::progress::Progress;
use std::io::Write;

/// What a diff came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RbdSummary {
    /// Bytes of data.
    pub data_bytes: u64,
    /// Bytes of zeros.
    pub zero_bytes: u64,
    /// What belongs beside it.
    pub sidecar: Sidecar,
}

/// Writes the diff that turns `from` (`None`: nothing at all) into `to`.
///
/// The names in it are those of the snapshots, or their tags; a diff to the origin names no end. A whole volume has
/// its zeros told too, so that an image that was not empty becomes right all the same.
///
/// # Errors
/// As [`super::super::create`].
pub fn create_rbd(
    source: &dyn PointSource,
    from: Option<PointId>,
    to: PointId,
    changes: Option<Changes<'_>>,
    out: &mut dyn Write,
    progress: &dyn Progress,
) -> Result<RbdSummary> {
    let points = source.points();
    let find = |id: PointId| {
        let found = points.iter().find(|point| point.id == id).map(label);
        found.ok_or_else(|| Error::new(Kind::NotFound, format!("the source has no point {id:?}")))
    };
    let (source_label, target_label) = (from.map(find).transpose()?, find(to)?);
    let geometry = Geometry {
        chunk_bits: source.chunk_bits(),
        source_size: source_label.as_ref().map(|label| label.size_bytes),
        target_size: target_label.size_bytes,
    };
    let changes = match changes {
        Some(changes) if from.is_some() => changes,
        _ => source.changed(from, to)?,
    };
    let mut plan = Plan::new(changes, geometry);
    progress.stage("create diff", from.is_none().then_some(geometry.target_size));
    let mut output = Output::new(out);
    output.put(&MAGIC)?;
    if let Some(label) = &source_label {
        output.name(Record::From, &name(label))?;
    }
    if to != PointId::Origin {
        output.name(Record::To, &name(&target_label))?;
    }
    output.put(&Record::Size(geometry.target_size).encode())?;
    ordered(
        workers(0),
        || plan.next_run(),
        || Ok(()),
        |(), run| stretches(source, to, &geometry, run),
        |stretches| {
            progress.check()?;
            for stretch in stretches {
                progress.advance(stretch.length);
                output.stretch(stretch)?;
            }
            Ok(())
        },
    )?;
    output.finish(source_label, target_label)
}

fn name(label: &PointLabel) -> String {
    label.name.clone().unwrap_or_else(|| label.tag.to_string())
}

/// Bytes of one kind that follow each other.
struct Stretch {
    offset: u64,
    length: u64,
    /// Empty for zeros.
    data: Vec<u8>,
}

fn stretches(source: &dyn PointSource, to: PointId, geometry: &Geometry, run: Run) -> Result<Vec<Stretch>> {
    let (start, chunks) = match run {
        Run::Hole { start, chunks } => {
            let length = geometry.result_bytes(start, u64::from(chunks));
            return Ok(vec![Stretch { offset: geometry.offset(start), length, data: Vec::new() }]);
        }
        Run::Read { start, chunks } => (start, chunks),
    };
    let mut bytes = vec![0; to_usize(geometry.result_bytes(start, u64::from(chunks)))];
    source.read(to, geometry.offset(start), &mut bytes)?;
    let pieces: Vec<&[u8]> = bytes.chunks(to_usize(geometry.chunk_bytes())).collect();
    let mut offset = geometry.offset(start);
    let mut out = Vec::new();
    for same in pieces.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
        let length = same.iter().map(|piece| piece.len() as u64).sum();
        let zero = same.first().is_none_or(|piece| is_zero(piece));
        out.push(Stretch { offset, length, data: if zero { Vec::new() } else { same.concat() } });
        offset = offset.saturating_add(length);
    }
    Ok(out)
}

/// The stream out: digested, neighbours joined as far as a record may go.
struct Output<'a> {
    out: &'a mut dyn Write,
    hasher: blake3::Hasher,
    stream_bytes: u64,
    pending: Option<Stretch>,
    data_bytes: u64,
    zero_bytes: u64,
}

impl<'a> Output<'a> {
    fn new(out: &'a mut dyn Write) -> Self {
        Self {
            out,
            hasher: blake3::Hasher::new(),
            stream_bytes: 0,
            pending: None,
            data_bytes: 0,
            zero_bytes: 0,
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.stream_bytes = self.stream_bytes.saturating_add(bytes.len() as u64);
        self.out.write_all(bytes).map_err(cannot_write)
    }

    fn name(&mut self, record: impl Fn(u32) -> Record, name: &str) -> Result<()> {
        match u32::try_from(name.len()) {
            Ok(length) if length <= NAME_BYTES_MAX => {
                self.put(&record(length).encode())?;
                self.put(name.as_bytes())
            }
            _ => {
                let what = format!("the name has {} bytes, a diff holds {NAME_BYTES_MAX}", name.len());
                Err(Error::new(Kind::Usage, what))
            }
        }
    }

    /// Takes a stretch that lies after all before.
    fn stretch(&mut self, mut stretch: Stretch) -> Result<()> {
        if let Some(pending) = &mut self.pending {
            let joins = pending.offset.saturating_add(pending.length) == stretch.offset
                && pending.data.is_empty() == stretch.data.is_empty()
                && pending.length.saturating_add(stretch.length) <= max(pending);
            if joins {
                pending.length = pending.length.saturating_add(stretch.length);
                pending.data.append(&mut stretch.data);
                return Ok(());
            }
        }
        self.end_stretch()?;
        self.pending = Some(stretch);
        Ok(())
    }

    fn end_stretch(&mut self) -> Result<()> {
        let Some(stretch) = self.pending.take() else { return Ok(()) };
        let Stretch { mut offset, mut length, data } = stretch;
        if !data.is_empty() {
            self.data_bytes = self.data_bytes.saturating_add(length);
            self.put(&Record::Write { offset, length }.encode())?;
            return self.put(&data);
        }
        self.zero_bytes = self.zero_bytes.saturating_add(length);
        while length > 0 {
            let now = length.min(ZERO_BYTES_MAX);
            self.put(&Record::Zero { offset, length: now }.encode())?;
            offset = offset.saturating_add(now);
            length = length.saturating_sub(now);
        }
        Ok(())
    }

    fn finish(mut self, source: Option<PointLabel>, target: PointLabel) -> Result<RbdSummary> {
        self.end_stretch()?;
        self.put(&Record::End.encode())?;
        self.out.flush().map_err(cannot_write)?;
        let digest = *self.hasher.finalize().as_bytes();
        let sidecar = Sidecar { stream_bytes: self.stream_bytes, digest, source, target };
        Ok(RbdSummary { data_bytes: self.data_bytes, zero_bytes: self.zero_bytes, sidecar })
    }
}

fn max(stretch: &Stretch) -> u64 {
    if stretch.data.is_empty() { ZERO_BYTES_MAX } else { WRITE_BYTES_MAX }
}

fn cannot_write(source: std::io::Error) -> Error {
    let what = format!("cannot write the diff: {source}");
    Error::io(what, source)
}
