//! Making a delta again from where an earlier try ended.
//!
//! Into a file that keeps the whole extents of the earlier try: they are checked and counted, not made again. That
//! is only right where the points cannot have changed, which the caller must know. Into a stream whose receiver
//! kept a part: everything is made again, what the receiver has is only compared with its digest, and then the rest
//! is sent. That is right for any source, and saves the line.

use super::create::{CreateOptions, Made, make};
use super::sound::{hash_start, sound_part};
use super::write::{CreateSummary, Output};
use crate::error::{Error, Kind, Result};
use crate::format::delta::ResumePoint;
use crate::point::{Changes, PointId, PointSource};
use crate::progress::Progress;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

/// Continues the delta in `file`, or says why that is not possible; then `file` holds nothing of use.
///
/// # Errors
/// As [`super::create`].
pub fn resume_file(
    source: &dyn PointSource,
    (from, to): (Option<PointId>, PointId),
    options: &CreateOptions,
    file: &mut File,
    progress: &dyn Progress,
) -> Result<std::result::Result<CreateSummary, &'static str>> {
    let made = Made::new(source, from, to, options)?;
    progress.stage("check what is there", None);
    let Some(sound) = sound_part(file, progress)? else { return Ok(Err("it does not begin as a delta")) };
    if sound.header != made.header {
        return Ok(Err("it is of another delta"));
    }
    let hasher = hash_start(file, sound.bytes)?;
    let cannot = |error| Error::io("cannot continue it", error);
    file.set_len(sound.bytes).map_err(cannot)?;
    file.seek(SeekFrom::Start(sound.bytes)).map_err(cannot)?;
    let output = Output::continued(file, hasher, &sound, options.rate_limit, progress);
    let differs = output.differs();
    match make(&made, None, options, output, progress) {
        Err(_) if differs.get() => Ok(Err("its extents end elsewhere")),
        result => result.map(Ok),
    }
}

/// Sends the rest of a delta to a receiver that has the first bytes of it; `None`, with nothing sent, if what it
/// has is not the beginning of this delta.
///
/// # Errors
/// As [`super::create`].
pub fn resume_stream(
    source: &dyn PointSource,
    (from, to): (Option<PointId>, PointId),
    changes: Option<Changes<'_>>,
    options: &CreateOptions,
    point: &ResumePoint,
    out: &mut dyn Write,
    progress: &dyn Progress,
) -> Result<Option<CreateSummary>> {
    let made = Made::new(source, from, to, options)?;
    let output = match Output::begin_after(out, &made.header, point, options.rate_limit, progress) {
        // The receiver has the header of another delta, and no more.
        Err(error) if error.kind() == Kind::Mismatch => return Ok(None),
        begun => begun?,
    };
    let differs = output.differs();
    match make(&made, changes, options, output, progress) {
        Err(_) if differs.get() => Ok(None),
        result => result.map(Some),
    }
}
