//! A delta onto the origin of a store: inside a begin/end pair, so that it can be resumed or rolled back.

use super::apply::{ApplyOptions, ApplySummary, Trust, verify_for, write_all};
use super::input::Input;
use super::inspect::DeltaInfo;
use super::read::Pieces;
use super::target::{Target, TargetState};
use crate::error::{Error, Kind, Result};
use crate::format::delta::{Header, PointLabel};
use crate::point::volume::{Begin, PendingOperation, Rewrite, StoreInfo};
use crate::point::{Identity, PointId};
use crate::progress::Progress;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Applies the delta to the origin of a volume.
///
/// Verification comes first and changes nothing. Then an operation named by the delta's digest is begun; an
/// error in the middle leaves it pending, and the same call resumes it. At the end the store remembers which
/// point its origin now equals.
///
/// # Errors
/// As [`super::apply`]; `Kind::Busy` if another operation is pending; `Kind::Usage` with an undo path, which a
/// store does not need.
pub fn apply_to_store(
    writer: &mut dyn Rewrite,
    input: &mut Input,
    options: &ApplyOptions,
    progress: &dyn Progress,
) -> Result<ApplySummary> {
    if options.undo.is_some() {
        return Err(Error::new(Kind::Usage, "a store keeps the state before an apply itself")
            .hint("leave out --undo; make a snapshot first to be able to go back later"));
    }
    let info = writer.now()?;
    let before = info.pending.as_ref().map(|pending| PointId::Snapshot(pending.before));
    input.prepare(&StoreTarget::new(writer, &info, before.unwrap_or(PointId::Origin)), progress)?;
    let header = input.peek()?;
    match &info.pending {
        // Which delta it is comes before what it says: the wrong one must not be measured against this base.
        Some(pending) => ensure_token(pending, input, &info, progress)?,
        None if is_applied(&header, &info) => {}
        None => check_identity(&header, &info, options.force)?,
    }
    ensure_size(&header, &info)?;
    let known = is_proven(&header, &info) || is_applied(&header, &info);
    // The pending operation began with a base that was proven or insisted on.
    let trust = Trust { force: options.force, proven: known || info.pending.is_some() };
    let target = StoreTarget::new(writer, &info, before.unwrap_or(PointId::Origin));
    let verified = verify_for(input, &target, trust, options, progress)?;
    let forced = match &info.pending {
        Some(pending) => pending.forced,
        None => options.force && !known && header.source.is_some(),
    };
    let mut summary = ApplySummary {
        written_bytes: verified.pending_bytes,
        unchanged_bytes: verified.info.data_bytes.saturating_sub(verified.pending_bytes),
        resumed: info.pending.is_some(),
        size_before: info.origin_size,
        size_after: info.origin_size,
        info: verified.info.clone(),
    };
    if is_applied(&header, &info) && summary.written_bytes == 0 {
        return Ok(summary);
    }
    if info.pending.is_none() {
        writer.ensure_room(copied_bytes(&verified.info, verified.pending_bytes, info.chunk_size))?;
    }
    if options.dry_run {
        return Ok(summary);
    }
    let pending = |error: Error| match error.hint_text() {
        None => error
            .hint("repeat the same command to resume, or put the origin back with apply-delta --rollback"),
        Some(_) => error,
    };
    writer.begin(&Begin { label: label(&header), token: verified.info.digest, forced, pinned: None })?;
    let target = StoreTarget::new(writer, &info, before.unwrap_or(PointId::Origin));
    summary.written_bytes =
        write_all(input, &verified, &target, trust, options.threads, progress).map_err(pending)?;
    summary.unchanged_bytes = verified.info.data_bytes.saturating_sub(summary.written_bytes);
    // What a delta makes of a base that nobody proved equals nothing that has a name.
    let equals = Some(&header.target).filter(|target| target.is_known() && !forced).map(identity);
    writer.end(equals).map_err(pending)?;
    Ok(summary)
}

/// Bytes that preserving what a delta overwrites takes at most: chunks of the store may be larger than the
/// delta's, and both ends of an extent may lie inside one.
fn copied_bytes(delta: &DeltaInfo, written: u64, chunk_size: u32) -> u64 {
    let ends = match delta.header.chunk_bits >= chunk_size.trailing_zeros() {
        true => 0,
        false => delta.extents.saturating_mul(2 * u64::from(chunk_size)),
    };
    written.saturating_add(ends)
}

fn label(header: &Header) -> String {
    let to = header.target.tag;
    match &header.source {
        Some(source) => format!("apply-delta {} to {to}", source.tag),
        None => format!("apply-delta full volume to {to}"),
    }
}

/// Only the delta that the pending operation is about may resume it.
fn ensure_token(
    pending: &PendingOperation,
    input: &mut Input,
    info: &StoreInfo,
    progress: &dyn Progress,
) -> Result<()> {
    let digest = input.first(|reader| {
        let mut pieces = Pieces::new(reader);
        progress.stage("read delta", None);
        while pieces.next_piece()?.is_some() {
            progress.check()?;
        }
        Ok(pieces.info()?.digest)
    })?;
    if digest == pending.token {
        return Ok(());
    }
    Err(Error::new(Kind::Busy, format!("another operation is pending: {}", pending.label))
        .at_path(&info.origin_path)
        .hint("resume it by repeating its command, or put the origin back with apply-delta --rollback"))
}

fn identity(label: &PointLabel) -> Identity {
    Identity { volume: label.volume, id: label.id, generation: label.generation }
}

fn is_proven(header: &Header, info: &StoreInfo) -> bool {
    let source = header.source.as_ref().filter(|source| source.is_known());
    info.pending.is_none() && source.is_some_and(|source| info.origin_equals == Some(identity(source)))
}

/// True if the origin is known to be what the delta makes: it was applied before, and who did so may not know.
fn is_applied(header: &Header, info: &StoreInfo) -> bool {
    info.pending.is_none() && header.target.is_known() && info.origin_equals == Some(identity(&header.target))
}

/// The size of an origin is changed by itself, for its file system must be told.
fn ensure_size(header: &Header, info: &StoreInfo) -> Result<()> {
    let (has, wanted) = (info.origin_size, header.target.size_bytes);
    if has == wanted {
        return Ok(());
    }
    Err(Error::new(Kind::Mismatch, format!("the origin has {has} bytes, the delta makes {wanted}"))
        .at_path(&info.origin_path)
        .hint(format!("give it that size first: 'ddsnap resize VOL -o {wanted}'")))
}

/// A store that knows what its origin equals can refuse a wrong delta by name, before any data is compared.
fn check_identity(header: &Header, info: &StoreInfo, force: bool) -> Result<()> {
    let source = header.source.as_ref().filter(|source| source.is_known()).map(identity);
    match (info.origin_equals, source) {
        (Some(equals), Some(source)) if equals != source && !force && info.pending.is_none() => {
            Err(Error::new(
                Kind::Mismatch,
                format!(
                    "the origin equals snapshot {} (generation {}) of volume {}, \
                 the delta starts from {} (generation {}) of {}",
                    equals.id, equals.generation, equals.volume, source.id, source.generation, source.volume
                ),
            )
            .at_path(&info.origin_path)
            .hint("--force applies the delta regardless"))
        }
        _ => Ok(()),
    }
}

/// The origin of a store. Reads take turns with writes, for the store has one owner.
struct StoreTarget<'a> {
    writer: Mutex<&'a mut dyn Rewrite>,
    path: PathBuf,
    size: u64,
    base: PointId,
}

impl<'a> StoreTarget<'a> {
    fn new(writer: &'a mut dyn Rewrite, info: &StoreInfo, base: PointId) -> Self {
        Self { writer: Mutex::new(writer), path: info.origin_path.clone(), size: info.origin_size, base }
    }

    fn lock(&self) -> MutexGuard<'_, &'a mut dyn Rewrite> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TargetState for StoreTarget<'_> {
    fn path(&self) -> &Path {
        &self.path
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn keeps_base(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.lock().read_now(PointId::Origin, offset, buf)
    }

    fn read_base(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.lock().read_now(self.base, offset, buf)
    }
}

impl Target for StoreTarget<'_> {
    fn can_resize(&self) -> bool {
        false
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.lock().rewrite(PointId::Origin, &[(offset, data)])
    }

    fn write_many(&self, pieces: &[(u64, &[u8])]) -> Result<()> {
        self.lock().rewrite(PointId::Origin, pieces)
    }

    fn set_size(&self, size_bytes: u64) -> Result<()> {
        Err(Error::new(
            Kind::Mismatch,
            format!("the origin has {} bytes, the delta makes {size_bytes}", self.size),
        )
        .at_path(&self.path)
        .hint("resize the volume first"))
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}
