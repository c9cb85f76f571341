//! A delta onto a target: everything is verified before the first byte is written.
//!
//! Pass one reads the whole delta (spooling it, if it is a stream) and proves structure, digest, every sum and
//! the base. Pass two writes. Between the two, if asked, an undo delta is written and made durable.
//!
//! An interrupted apply is resumed by repeating it: a chunk may hold the base or the result. Only data that
//! refers to the old data of its own chunk cannot be decoded again once that chunk was torn; so on a plain
//! target such deltas demand an undo delta, which can put the chunk back.

use super::buffer::Buffer;
use super::check::{Checked, Checker};
use super::input::Input;
use super::inspect::DeltaInfo;
use super::pipeline::{ordered, workers};
use super::read::Pieces;
use super::target::{Target, TargetState};
use super::undo;
use crate::error::{Error, Kind, Result};
use crate::format::delta::Header;
use crate::progress::Progress;
use std::io::Read;
use std::path::PathBuf;

/// How to apply a delta.
#[derive(Debug, Clone)]
pub struct ApplyOptions {
    /// Apply even if the target is not the base that the delta was made from.
    pub force: bool,
    /// Write the delta that takes the target back to this path first. It appears whole or not at all.
    pub undo: Option<PathBuf>,
    /// Verify only.
    pub dry_run: bool,
    /// Threads; 0: as many as the machine has processors.
    pub threads: usize,
}

/// What an apply did.
#[derive(Debug, Clone)]
pub struct ApplySummary {
    /// Facts of the delta.
    pub info: DeltaInfo,
    /// Bytes written to the target.
    pub written_bytes: u64,
    /// Bytes of the delta's result that the target held already.
    pub unchanged_bytes: u64,
    /// True if an earlier, interrupted apply was continued.
    pub resumed: bool,
    /// Size of the target before.
    pub size_before: u64,
    /// Size of the target now.
    pub size_after: u64,
}

/// What pass one found.
pub(crate) struct Verified {
    pub(crate) info: DeltaInfo,
    pub(crate) resumed: bool,
    /// Bytes that pass two will write.
    pub(crate) pending_bytes: u64,
    /// Which pieces, counted from 0, the target does not hold yet.
    pub(crate) pending: Pieceset,
}

/// A set of pieces of a delta: a bit each, 128 KiB for a TiB of data.
#[derive(Default)]
pub(crate) struct Pieceset(Vec<u64>);

impl Pieceset {
    fn insert(&mut self, piece: usize) {
        let word = piece >> 6;
        if self.0.len() <= word {
            self.0.resize(word.saturating_add(1), 0);
        }
        if let Some(word) = self.0.get_mut(word) {
            *word |= 1 << (piece & 63);
        }
    }

    fn contains(&self, piece: usize) -> bool {
        self.0.get(piece >> 6).is_some_and(|word| word >> (piece & 63) & 1 == 1)
    }
}

/// How far a target must prove to be the base.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trust {
    /// The user insists.
    pub(crate) force: bool,
    /// The base is proven by other means.
    pub(crate) proven: bool,
}

/// Applies the delta to a plain device or file (see [`super::FileTarget`]).
///
/// Without `force` the target must have the size of the delta's source and, chunk by chunk, its data (or the
/// result already). A file gets the size of the delta's target; a block device must have it.
///
/// # Errors
/// `Kind::Damaged`, `Kind::Unsupported` for a bad delta; `Kind::Mismatch` for a wrong base; `Kind::Refused` if
/// the base cannot be proven or an undo delta is required; `Kind::Exists` if the undo path holds something else.
/// After any of these the target is as it was. `Kind::Io`, `Kind::NoSpace` or `Kind::Interrupted` may come
/// later; then the same command resumes.
pub fn apply(
    input: &mut Input,
    target: &dyn Target,
    options: &ApplyOptions,
    progress: &dyn Progress,
) -> Result<ApplySummary> {
    let size_before = target.size();
    input.prepare(target, progress)?;
    ensure_sure_of_size(input, target, options)?;
    let trust = Trust { force: options.force, proven: false };
    let verified = verify_for(input, target, trust, options, progress)?;
    let wanted = verified.info.header.target.size_bytes;
    let mut summary = ApplySummary {
        written_bytes: verified.pending_bytes,
        unchanged_bytes: verified.info.data_bytes.saturating_sub(verified.pending_bytes),
        resumed: verified.resumed,
        size_before,
        size_after: if target.can_resize() { wanted } else { size_before },
        info: verified.info.clone(),
    };
    if options.dry_run {
        return Ok(summary);
    }
    if let Some(path) = &options.undo {
        undo::prepare(path, input, target, &verified, options, progress)?;
    }
    let resume = |error: Error| match error.hint_text() {
        None => error.hint("the target is partly changed; repeat the same command to go on"),
        Some(_) => error,
    };
    if target.can_resize() && size_before < wanted {
        target.set_size(wanted).and_then(|()| target.flush()).map_err(resume)?;
    }
    summary.written_bytes =
        write_all(input, &verified, target, trust, options.threads, progress).map_err(resume)?;
    summary.unchanged_bytes = verified.info.data_bytes.saturating_sub(summary.written_bytes);
    target.flush().map_err(resume)?;
    // Last, and after everything else is durable: what lies beyond is part of the proof that a resume needs.
    if target.can_resize() && target.size() > wanted {
        target.set_size(wanted).and_then(|()| target.flush()).map_err(resume)?;
    }
    summary.size_after = target.size();
    Ok(summary)
}

/// A diff that says nothing of its base must not cut a target short, or lengthen it, unasked.
fn ensure_sure_of_size(input: &Input, target: &dyn Target, options: &ApplyOptions) -> Result<()> {
    let Some(diff) = input.diff().filter(|diff| diff.from.is_some() && !diff.described) else {
        return Ok(());
    };
    if options.force || diff.size_bytes == target.size() {
        return Ok(());
    }
    let what = format!(
        "the target has {} bytes, the diff makes {}, and nothing proves that it belongs to this target",
        target.size(),
        diff.size_bytes
    );
    Err(Error::new(Kind::Refused, what).at_path(target.path()).hint("--force applies it regardless"))
}

/// Pass one.
pub(crate) fn verify_for(
    input: &mut Input,
    target: &dyn Target,
    trust: Trust,
    options: &ApplyOptions,
    progress: &dyn Progress,
) -> Result<Verified> {
    input.first(|reader| {
        let header = reader.header().clone();
        if target.base_size().is_some() && !reader.is_legacy() {
            return Err(Error::new(Kind::Usage, "this delta proves its base on the target itself")
                .hint("leave out --base, which is for deltas of 2008"));
        }
        check_size(&header, target, trust.force)?;
        let (mut resumed, mut pending_bytes, mut pending) = (false, 0u64, Pieceset::default());
        let mut piece = 0usize;
        let hint = match reader.is_legacy() {
            true => "add --undo FILE, or name the old data with --base PATH: an apply may be interrupted",
            false => "add --undo FILE, so that an interrupted apply cannot strand the target",
        };
        let needs_undo = options.undo.is_none() && !target.keeps_base();
        let mut pieces = Pieces::new(reader);
        progress.stage("verify delta", None);
        let trusted = trust.force || trust.proven;
        each_piece(&mut pieces, target, trusted, options.threads, |needs_base, checked| {
            progress.check()?;
            if needs_undo && needs_base {
                return Err(Error::new(Kind::Refused, "the delta refers to old data of the target in place")
                    .at_path(target.path())
                    .hint(hint));
            }
            resumed |= checked.resumed;
            if checked.differs {
                pending_bytes = pending_bytes.saturating_add(checked.bytes);
                pending.insert(piece);
            }
            piece = piece.saturating_add(1);
            progress.advance(checked.bytes);
            Ok(())
        })?;
        Ok(Verified { info: pieces.info()?, resumed, pending_bytes, pending })
    })
}

/// Pass two: returns the bytes written. Extents are checked again on the way, for the delta's file may have changed
/// since it had this digest.
pub(crate) fn write_all(
    input: &mut Input,
    verified: &Verified,
    target: &dyn Target,
    trust: Trust,
    threads: usize,
    progress: &dyn Progress,
) -> Result<u64> {
    let trusted = trust.force || trust.proven;
    input.again_known(verified.info.digest, |reader| {
        let mut pieces = Pieces::new(reader);
        progress.stage("apply delta", None);
        if target.takes_any_order() {
            return write_at_once(&mut pieces, &verified.pending, target, trusted, (threads, progress));
        }
        let mut out = Coalesce { target, pieces: Vec::new(), held: 0, written: 0 };
        each_piece(&mut pieces, target, trusted, threads, |_, checked| {
            progress.check()?;
            progress.advance(checked.bytes);
            if checked.differs { out.put(checked.offset, checked.data) } else { Ok(()) }
        })?;
        out.flush()?;
        Ok(out.written)
    })
}

/// Every thread writes. Nobody else has the target, so what pass one found to be there is not looked at again; only
/// data that refers to the base needs that.
fn write_at_once<R: Read + Send>(
    pieces: &mut Pieces<R>,
    pending: &Pieceset,
    target: &dyn Target,
    trusted: bool,
    (threads, progress): (usize, &dyn Progress),
) -> Result<u64> {
    let geometry = pieces.reader.header().geometry();
    let (mut written, mut piece) = (0u64, 0usize);
    ordered(
        workers(threads),
        || {
            let next = pieces.next_piece()?.map(|extent| (extent, pending.contains(piece)));
            piece = piece.saturating_add(1);
            Ok(next)
        },
        || Checker::new(target, geometry, trusted),
        |checker, (extent, is_pending)| {
            if !is_pending {
                return Ok((geometry.result_bytes(extent.head.chunk, u64::from(extent.head.chunks)), false));
            }
            let checked = match extent.needs_base() {
                true => checker.check(extent)?,
                false => checker.decode(extent)?,
            };
            target.write(checked.offset, &checked.data)?;
            Ok((checked.bytes, true))
        },
        |(bytes, differs)| {
            progress.check()?;
            progress.advance(bytes);
            written = written.saturating_add(if differs { bytes } else { 0 });
            Ok(())
        },
    )?;
    Ok(written)
}

/// Checks every piece against the volume, whose base needs no proof if `trusted`. `each` is told whether the piece
/// refers to the base, and what it means.
pub(crate) fn each_piece<R: Read + Send>(
    pieces: &mut Pieces<R>,
    volume: &dyn TargetState,
    trusted: bool,
    threads: usize,
    mut each: impl FnMut(bool, Checked) -> Result<()>,
) -> Result<()> {
    let geometry = pieces.reader.header().geometry();
    ordered(
        workers(threads),
        || pieces.next_piece(),
        || Checker::new(volume, geometry, trusted),
        |checker, extent| Ok((extent.needs_base(), checker.check_or_skip(extent)?)),
        |(needs_base, checked)| each(needs_base, checked),
    )
}

fn check_size(header: &Header, target: &dyn Target, force: bool) -> Result<()> {
    let (size, wanted) = (target.size(), header.target.size_bytes);
    let fits = size == wanted
        || if target.can_resize() {
            force || header.source.as_ref().is_none_or(|source| source.size_bytes == size)
        } else {
            force && size > wanted
        };
    if fits {
        return Ok(());
    }
    let what = match &header.source {
        Some(source) if target.can_resize() => {
            format!("the target has {size} bytes, the delta turns {} bytes into {wanted}", source.size_bytes)
        }
        _ => format!("the target has {size} bytes, the delta makes {wanted}"),
    };
    Err(Error::new(Kind::Mismatch, what).at_path(target.path()))
}

/// Joins adjacent pieces and hands over many at once, for each write to a store is a commit.
struct Coalesce<'a> {
    target: &'a dyn Target,
    pieces: Vec<(u64, Buffer)>,
    /// Bytes in all pieces.
    held: usize,
    written: u64,
}

const COALESCE_BYTES: usize = 4 << 20;

impl Coalesce<'_> {
    fn put(&mut self, offset: u64, data: Buffer) -> Result<()> {
        self.held = self.held.saturating_add(data.len());
        match self.pieces.last_mut() {
            Some((start, last)) if start.saturating_add(last.len() as u64) == offset => {
                last.extend_from_slice(&data);
            }
            _ => self.pieces.push((offset, data)),
        }
        if self.held >= COALESCE_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        if !self.pieces.is_empty() {
            let pieces: Vec<_> =
                self.pieces.iter().map(|(offset, data)| (*offset, data.as_slice())).collect();
            self.target.write_many(&pieces)?;
            self.written = self.written.saturating_add(self.held as u64);
            self.pieces.clear();
            self.held = 0;
        }
        Ok(())
    }
}
