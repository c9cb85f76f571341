//! `upgrade --in-place`, `--commit` and `--rollback`: the new store on the device of the old one.

use super::upgrade::{
    Args, ensure_accepted, options, taken_over, tell_damage, tell_outcome, tell_rest, would_take_over,
};
use super::{open, open_old};
use crate::block::ReadAt;
use crate::block::file::{FileReader, FileWriter};
use crate::error::{Error, Kind, Result};
use crate::format::switch::Phase;
use crate::store::switch;
use crate::ui::{Ui, time};
use crate::upgrade::{self, CopyOptions, Fit, Site, in_place, plan};

/// Runs what the options ask for.
///
/// # Errors
/// As [`super::upgrade::run`]; `Kind::Refused` if the device has not enough room, or is at another step.
pub fn run(args: &Args, ui: &Ui) -> Result<()> {
    if open::is_served(&args.store) {
        let what = "this is the socket of a server, through which this command does not work";
        return Err(Error::new(Kind::Busy, what).at_path(&args.store).hint("name the store itself"));
    }
    open::ensure_not_held(&args.store)?;
    match (args.commit, args.rollback) {
        (true, _) => commit(args, ui),
        (_, true) => rollback(args, ui),
        _ => make(args, ui),
    }
}

fn commit(args: &Args, ui: &Ui) -> Result<()> {
    let (device, store) = (FileWriter::open(&args.store)?, args.store.display());
    if switch::look(&device)?.is_none() {
        open_old::refuse(&device, &args.old)?;
    }
    match switch::commit(&device)? {
        true => ui.print(&format!("{store}: committed; the old store is gone")),
        false => ui.print(&format!("{store}: a store as any other, there is nothing to commit")),
    }
}

fn rollback(args: &Args, ui: &Ui) -> Result<()> {
    switch::rollback(&FileWriter::open(&args.store)?, args.yes)?;
    ui.print(&format!("{}: the store of 2008 as it was", args.store.display()))?;
    ui.explain("it is as right as its origin was left alone since the upgrade");
    Ok(())
}

/// What is to be done about a device that is not simply an old store.
fn make(args: &Args, ui: &Ui) -> Result<()> {
    let store = args.store.display();
    let phase = switch::look(&FileReader::open(&args.store)?)?.map(|found| found.phase);
    match phase {
        None => return build(args, ui),
        Some(Phase::Switched) => ui.print(&format!("{store}: upgraded already"))?,
        Some(Phase::Switching) if args.dry_run => {
            return ui.print(&format!("would finish the switch of {store}, which was interrupted"));
        }
        Some(_) => {
            switch::finish(&FileWriter::open(&args.store)?)?;
            ui.print(&format!("{store}: the switch was interrupted and is finished now"))?;
        }
    }
    tell_way_on(args, ui)
}

fn tell_way_on(args: &Args, ui: &Ui) -> Result<()> {
    let store = args.store.display();
    ui.print(&format!(
        "not committed, so it can only be read: 'ddsnap upgrade --commit {store}' makes it a store as any other, \
         'ddsnap upgrade --rollback {store}' the old one again"
    ))
}

fn build(args: &Args, ui: &Ui) -> Result<()> {
    let origin = args.origin()?;
    open::ensure_not_held(origin)?;
    let none = || Error::new(Kind::Usage, "this is no snapshot store of 2008").at_path(&args.store);
    drop(open_old::devices(&args.store, &args.old, Some(origin))?.ok_or_else(none)?);
    let (devices, device) = open_old::site(&args.store, &args.old, origin, args.dry_run)?;
    // Nobody else can change it any more.
    switch::ensure_settled(device.as_ref())?;
    let (old, found) = upgrade::open(&devices, args.old.layout, ui.progress())?;
    open_old::ensure_origin(&devices, &old)?;
    let options = options(args, &old)?;
    let plan = plan(&old, ui.progress())?;
    let fit = upgrade::fit(&old, device.size(), &options, &plan, ui.progress())?;
    ui.end_progress();
    tell_rest(args, &old, ui);
    tell_damage(&plan.losses, &old, ui)?;
    if args.dry_run {
        ui.print(&would_take_over(&old, &options, &plan))?;
        tell_room(&fit, ui)?;
    }
    ensure_accepted(args, &plan.losses, &old)?;
    ensure_room(args, &fit)?;
    if args.dry_run {
        return Ok(());
    }
    let paced = args.rate.paced(ui);
    let progress = paced.as_deref().unwrap_or_else(|| ui.progress());
    let how =
        CopyOptions { accept_lost: args.accept_lost, verify: !args.no_verify, now_secs: time::now_secs() };
    let site = Site { devices, release: args.old.layout, device, found, ground: fit.ground };
    let outcome = in_place(&old, &site, (&options, plan.bytes), how, progress)?;
    if !tell_outcome(args, &outcome, (&plan, &old), ui)? {
        return Ok(());
    }
    ui.print(&format!("{}: {}", args.store.display(), taken_over(&old, &outcome)))?;
    tell_way_on(args, ui)
}

fn tell_room(fit: &Fit, ui: &Ui) -> Result<()> {
    let (needed, segment) = (fit.needed_bytes, 1u64 << fit.ground.kept.segment_bits);
    ui.print(&format!(
        "needs {needed} bytes in segments of {segment} bytes that the old store does not use; {} are free",
        fit.free_bytes
    ))
}

fn ensure_room(args: &Args, fit: &Fit) -> Result<()> {
    if fit.grow_bytes == 0 {
        return Ok(());
    }
    let (free, grow) = (fit.free_bytes, fit.grow_bytes);
    let what = format!(
        "what the old store preserves needs up to {} bytes of free segments beside it, {free} are free",
        fit.needed_bytes
    );
    Err(Error::new(Kind::Refused, what).at_path(&args.store).hint(format!(
        "make the device larger by {grow} bytes (lvextend, truncate), or name another one as NEWSTORE; nothing was \
         changed"
    )))
}
