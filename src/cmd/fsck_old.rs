//! `fsck` of a store of 2008.

use super::common::OldArgs;
use super::fsck_report::{self, Outcome};
use super::open_old;
use crate::block::WriteAt;
use crate::error::Result;
use crate::legacy::{self, Devices};
use crate::progress::Progress;
use crate::store::fsck::{CheckReport, Code, Finding, Leave};
use crate::ui::Ui;
use std::path::Path;
use std::sync::Arc;

/// What the user wants.
pub struct Wish<'a> {
    /// The store.
    pub store: &'a Path,
    /// The options of stores of 2008.
    pub old: &'a OldArgs,
    /// The origin, if it was named.
    pub origin: Option<&'a Path>,
    /// How far a repair may go, if there is leave for any.
    pub leave: Option<Leave>,
    /// Nothing is to be repaired, and nobody asked.
    pub no: bool,
    /// Nothing is to be written.
    pub dry_run: bool,
    /// Data are to be verified, which they cannot be.
    pub data: bool,
    /// Only a document is printed.
    pub json: bool,
}

/// Looks at a store of 2008 that is open for reading, and repairs it as far as there is leave.
///
/// # Errors
/// As [`legacy::check`] and [`legacy::repair`]; what opening says.
pub fn run(wish: &Wish, devices: Devices, ui: &Ui, progress: &dyn Progress) -> Result<Outcome> {
    let (found, device, leave) = look_first(wish, devices, ui, progress)?;
    let mut outcome =
        Outcome { found: found.clone(), left: found, dry_run: wish.dry_run, ..Outcome::default() };
    let (Some((devices, device)), Some(leave)) = (device, leave) else { return Ok(outcome) };
    if outcome.found.findings.iter().any(|finding| leave.mends(finding.code)) {
        let layout = wish.old.layout;
        let repaired = legacy::repair(&devices, device.as_ref(), layout, leave, progress)?;
        outcome.left = look(wish, &devices, progress)?;
        outcome.left.findings.extend(repaired.refused.clone());
        outcome.old = Some(repaired);
    }
    Ok(outcome)
}

/// The devices, and the one among them that repairs write to.
type Open = Option<(Devices, Arc<dyn WriteAt>)>;

/// Opens the store as the user gives leave, and looks at it.
fn look_first(
    wish: &Wish,
    devices: Devices,
    ui: &Ui,
    progress: &dyn Progress,
) -> Result<(CheckReport, Open, Option<Leave>)> {
    let (devices, device) = match wish.leave {
        None => (devices, None),
        Some(_) => {
            // Whoever reads keeps writers out.
            drop(devices);
            let (devices, device) = open_old::repair(wish.store, wish.old, wish.origin, wish.dry_run)?;
            (devices.clone(), Some((devices, device)))
        }
    };
    let found = look(wish, &devices, progress)?;
    if !wish.json {
        fsck_report::print_findings(&found.findings, ui)?;
    }
    let question = format!("{} can be repaired", wish.store.display());
    let is_worth_asking =
        found.is_bad() && found.findings.iter().any(|one| Leave::Everything.mends(one.code));
    if device.is_some() || wish.no || !is_worth_asking || ui.confirm(&question, "-y").is_err() {
        return Ok((found, device, wish.leave));
    }
    drop(devices);
    let open = open_old::repair(wish.store, wish.old, wish.origin, wish.dry_run)?;
    let found = look(wish, &open.0, progress)?;
    Ok((found, Some(open), Some(Leave::Everything)))
}

fn look(wish: &Wish, devices: &Devices, progress: &dyn Progress) -> Result<CheckReport> {
    let checked = legacy::check(devices, wish.old.layout, progress)?;
    let mut found = CheckReport::default();
    (found.findings, found.records, found.entries) = (checked.findings, checked.commits, checked.exceptions);
    if wish.data {
        let text = "nothing was compared: the bytes of snapshots cannot be verified";
        found.findings.push(Finding::new(Code::LegacyUnproven, text));
    }
    Ok(found)
}
