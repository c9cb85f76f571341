//! Upgrading on the device of the old store: into what is free there, compared, then switched.

use super::copy::{CopyOptions, Outcome, Plan, build};
use super::ground::{Fit, Ground, Occupied};
use super::units::{Units, chunk_bits};
use crate::block::WriteAt;
use crate::error::{Error, Kind, Result};
use crate::legacy::{self, Devices, Release, Store};
use crate::point::finding::Finding;
use crate::point::volume::{SnapshotState, Volume};
use crate::point::{PointId, PointSource};
use crate::progress::Progress;
use crate::store::{InitOptions, View, switch};
use crate::units::index;
use std::sync::Arc;

/// Where the new store goes on a device of `size` bytes that `old` lies on.
///
/// # Errors
/// `Kind::Usage` if the options make no sense; `Kind::Io`, `Kind::Damaged`, `Kind::Interrupted`.
pub fn fit(old: &Store, size: u64, init: &InitOptions, plan: &Plan, progress: &dyn Progress) -> Result<Fit> {
    Occupied::of(old, progress)?.fit(size, init, plan.room.bytes(init))
}

/// The device of an old store.
pub struct Site {
    /// What the old store was opened with; its store is `device`.
    pub devices: Devices,
    /// As for [`Store::open`].
    pub release: Option<Release>,
    /// The device of the store.
    pub device: Arc<dyn WriteAt>,
    /// What a check found.
    pub found: Vec<Finding>,
    /// Where on it the new store goes.
    pub ground: Ground,
}

/// Makes a store on the device of `old` that has all snapshots of it, and makes that the store of the device until
/// somebody commits it or takes it back. Until the switch nothing changes that the old store uses.
///
/// # Errors
/// As [`super::copy`]; `Kind::Damaged` if a snapshot does not read from the new store as it does from the old one;
/// `Kind::Refused` if the switch began and was cut short, which [`switch::finish`] and [`switch::rollback`] mend.
pub fn in_place(
    old: &Store,
    site: &Site,
    (init, total): (&InitOptions, u64),
    options: CopyOptions,
    progress: &dyn Progress,
) -> Result<Outcome> {
    let device = Arc::clone(&site.device);
    let (outcome, whole) = build(old, device, (init, total), Some(&site.ground.kept), options, progress)?;
    let Some(whole) = whole else { return Ok(outcome) };
    site.device.flush()?;
    let origin = site.devices.origin.clone();
    if let Some(origin) = origin.filter(|_| options.verify) {
        let is_sound = outcome.losses.is_empty() && old.doubts().next().is_none();
        compare(old, &whole.view(origin)?, is_sound, progress)?;
    }
    // The old store is the way back: it must be what it was.
    let after = legacy::check(&site.devices, site.release, progress)?;
    if format!("{:?}", site.found) != format!("{:?}", after.findings) {
        return Err(Error::damaged(
            "the old store changed while the new one was made beside it; it still counts",
        ));
    }
    switch::begin(site.device.as_ref(), &whole.superblock()?, site.ground.saved)?;
    Ok(Outcome { finished: true, ..outcome })
}

/// Reads whatever the old store preserves from both stores, snapshot by snapshot.
fn compare(old: &Store, new: &View, is_sound: bool, progress: &dyn Progress) -> Result<()> {
    let snapshots: Vec<_> =
        old.snapshots().into_iter().filter(|snapshot| snapshot.state == SnapshotState::Normal).collect();
    let bits = chunk_bits(old.chunk_bits());
    progress.stage("comparing", None);
    let (mut was, mut is) = (Vec::new(), Vec::new());
    let mut last = None;
    for want in Units::new(old)?.filter(|want| !want.pieces.is_empty()) {
        if last.replace(want.chunk) == Some(want.chunk) {
            // All snapshots have been compared.
            continue;
        }
        progress.check()?;
        let start = want.chunk << bits;
        for snapshot in snapshots.iter().filter(|snapshot| snapshot.size_bytes > start) {
            let length = index((snapshot.size_bytes - start).min(1 << bits));
            was.resize(length, 0);
            is.resize(length, 0);
            let point = PointId::Snapshot(snapshot.id);
            let (before, after) = (old.read(point, start, &mut was), new.read(point, start, &mut is));
            let is_same = match (before, after) {
                (Ok(()), Ok(())) => was == is,
                // What was accepted as lost is an error now, even where the old store read something.
                (Ok(()), Err(_)) => !is_sound,
                (Err(error), _) if error.kind() == Kind::Io && is_sound => return Err(error),
                (Err(_), _) => true,
            };
            if !is_same {
                let what = format!("snapshot {} reads otherwise from the new store", snapshot.tag);
                return Err(Error::damaged(what).at_offset(start));
            }
            progress.advance(length as u64);
        }
    }
    Ok(())
}

/// The store on `devices`, and all that a check found.
///
/// # Errors
/// As [`Store::open`] and [`legacy::check`].
pub fn open(
    devices: &Devices,
    release: Option<Release>,
    progress: &dyn Progress,
) -> Result<(Store, Vec<Finding>)> {
    let store = Store::open(devices.clone(), release, progress)?;
    let found = legacy::check(devices, release, progress)?.findings;
    Ok((store, found))
}
