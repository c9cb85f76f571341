//! The whole way: planned, copied, checked, published.

use super::losses::Losses;
use super::units::{Units, Want, chunk_bits};
use super::window::Window;
use crate::block::{ReadAt, WriteAt};
use crate::delta::ordered;
use crate::error::{Error, Kind, Result};
use crate::format::record::EntryClass;
use crate::legacy::Store;
use crate::point::PointSource;
use crate::point::volume::Volume;
use crate::progress::Progress;
use crate::store::fsck::{CheckReport, Code, Severity};
use crate::store::{InitOptions, Intake, Kept, Preserve, Room, Taken, Whole};
use std::path::PathBuf;
use std::sync::Arc;

/// Threads that read: enough to keep a device busy.
const READERS: usize = 4;

/// What an upgrade will do, as far as the metadata tell.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Chunks that are kept for snapshots in a row.
    pub exceptions: u64,
    /// Chunks that only one snapshot has, out of line.
    pub overlays: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// What the new store must hold.
    pub room: Room,
    /// What the metadata have lost.
    pub losses: Losses,
}

/// What was done.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The new store is one; false if something could not be read and that was not accepted.
    pub finished: bool,
    /// Chunks that were taken over.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What could not be read.
    pub losses: Losses,
    /// What the check of the new store found; `None` if it was not wanted.
    pub check: Option<CheckReport>,
}

/// How the new store for `store` is made: its chunk size as near as can be to the old one.
#[must_use]
pub fn store_options(store: &Store, block_size: u32, origin_path: PathBuf) -> InitOptions {
    let info = store.info();
    InitOptions {
        chunk_size: 1 << chunk_bits(store.chunk_bits()),
        block_size,
        origin_path,
        origin_size: info.origin_size,
        now_secs: info.created_secs,
    }
}

/// Looks through the metadata of `store`.
///
/// # Errors
/// `Kind::Interrupted`; `Kind::Damaged` for a snapshot of a size that cannot be. What else is damaged counts as lost.
pub fn plan(store: &Store, progress: &dyn Progress) -> Result<Plan> {
    progress.stage("looking", None);
    let snapshots = store.snapshots();
    // Numbers of chunks had 32 bits: more would be nonsense, and take for ever.
    let most = 1u64.checked_shl(32 + store.chunk_bits()).unwrap_or(u64::MAX);
    if let Some(snapshot) = snapshots.iter().find(|snapshot| snapshot.size_bytes > most) {
        let what = format!("snapshot {} is said to have {} bytes", snapshot.tag, snapshot.size_bytes);
        return Err(Error::damaged(format!("{what}, in 2008 there were at most {most}")));
    }
    let bits = chunk_bits(store.chunk_bits());
    let mut plan = Plan::default();
    for (number, want) in (1u32..).zip(Units::in_ranges(store)?) {
        if number.is_multiple_of(1 << 12) {
            progress.check()?;
        }
        match want.class {
            _ if want.pieces.is_empty() => {
                plan.losses.add(&want, bits, &snapshots);
                plan.room.marks += want.count;
                continue;
            }
            EntryClass::Exception => plan.exceptions += 1,
            EntryClass::Overlay => plan.overlays += 1,
        }
        plan.bytes += u64::from(want.length);
        plan.room.chunks += 1;
    }
    Ok(plan)
}

/// What to do with what cannot be read, and how sure to be.
#[derive(Debug, Clone, Copy)]
pub struct CopyOptions {
    /// Mark it as lost; otherwise nothing comes into being.
    pub accept_lost: bool,
    /// Read the new store back and compare every checksum.
    pub verify: bool,
    /// Time, seconds since 1970 UTC.
    pub now_secs: i64,
}

/// Makes a store on `device` that has all snapshots of `store`; `total` is what [`Plan::bytes`] says. Until the last
/// moment what lies there is no store.
///
/// # Errors
/// `Kind::NotFound` if it was opened without its origin; `Kind::Damaged` if the new store does not read back;
/// `Kind::NoSpace`, `Kind::Io`, `Kind::Interrupted`.
pub fn copy(
    store: &Store,
    device: Arc<dyn WriteAt>,
    (init, total): (&InitOptions, u64),
    options: CopyOptions,
    progress: &dyn Progress,
) -> Result<Outcome> {
    let (mut outcome, whole) = build(store, device, (init, total), None, options, progress)?;
    if let Some(whole) = whole {
        whole.publish()?;
        outcome.finished = true;
    }
    Ok(outcome)
}

/// Makes all of a store, and checks it; none yet. `None` with what was lost if that is not accepted.
pub(super) fn build(
    store: &Store,
    device: Arc<dyn WriteAt>,
    (init, total): (&InitOptions, u64),
    beside: Option<&Kept>,
    options: CopyOptions,
    progress: &dyn Progress,
) -> Result<(Outcome, Option<Whole>)> {
    let origin = store.origin().ok_or_else(|| Error::new(Kind::NotFound, "the origin was not given"))?;
    let (info, snapshots) = (store.info(), store.snapshots());
    let (policy, now_secs) = (info.full_policy, options.now_secs);
    let mut intake = match beside {
        None => Intake::begin(device, init, policy, &snapshots, now_secs)?,
        Some(kept) => Intake::beside(device, init, kept, policy, &snapshots, now_secs)?,
    };
    let mut outcome =
        Outcome { finished: false, chunks: 0, bytes: 0, losses: Losses::default(), check: None };
    progress.stage("copying", Some(total));
    fill(store, origin, &mut intake, &mut outcome, progress)?;
    let sound = outcome.losses.is_empty() && store.doubts().next().is_none();
    if !sound && !options.accept_lost {
        return Ok((outcome, None));
    }
    let release = info.legacy.map_or("2008", |legacy| legacy.release);
    let whole = intake.finish(origin, &format!("upgraded from a store of release {release}"))?;
    if options.verify {
        let report = whole.check(progress)?;
        ensure_sound(&report)?;
        outcome.check = Some(report);
    }
    Ok((outcome, Some(whole)))
}

/// Copies every chunk.
fn fill(
    store: &Store,
    origin: &dyn ReadAt,
    intake: &mut Intake,
    outcome: &mut Outcome,
    progress: &dyn Progress,
) -> Result<()> {
    let snapshots = store.snapshots();
    let bits = chunk_bits(store.chunk_bits());
    let mut units = Units::new(store)?;
    let piece_bits = units.piece_bits();
    ordered(
        READERS,
        || {
            progress.check()?;
            Ok(Window::next(&mut units))
        },
        || Ok(()),
        |(), mut window| {
            window.read(store, origin, piece_bits);
            Ok(window)
        },
        |window| {
            for (want, _) in window.chunks().filter(|(want, _)| want.pieces.is_empty()) {
                outcome.losses.add(want, bits, &snapshots);
            }
            let chunks: Vec<Preserve<'_>> =
                window.chunks().map(|(want, bytes)| preserve(want, bytes)).collect();
            intake.put(&chunks)?;
            outcome.chunks += chunks.len() as u64;
            outcome.bytes += window.len();
            progress.advance(window.len());
            Ok(())
        },
    )
}

fn preserve<'a>(want: &Want, bytes: &'a [u8]) -> Preserve<'a> {
    Preserve {
        chunk: want.chunk,
        owner: want.owner,
        class: want.class,
        data: if want.pieces.is_empty() { Taken::Lost(want.length) } else { Taken::Whole(bytes) },
    }
}

/// Refuses a store that does not read back as it was written.
fn ensure_sound(report: &CheckReport) -> Result<()> {
    let marked = |code: Code| code == Code::ChunkLost;
    let bad = report.findings.iter().find(|found| found.severity() > Severity::Note && !marked(found.code));
    match bad {
        None => Ok(()),
        Some(finding) => Err(Error::damaged(format!(
            "the new store does not read back as it was written: {}",
            finding.text
        ))),
    }
}
