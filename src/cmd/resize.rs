//! `resize`: another size for the origin or the store.

use super::common::{VolArgs, parse_size};
use super::open;
use crate::dm::device;
use crate::error::{Error, Kind, Result};
use crate::point::volume::{StoreInfo, Volume};
use crate::store::{Preserved, StorePlan, Writer};
use crate::ui::Ui;
use crate::ui::exit::Exit;

const EXAMPLES: &str = "Examples:
  ddsnap resize --dry-run data.snap -o 8M
  ddsnap resize -y data.snap -o 8M
  ddsnap resize data.snap -s 64M";

/// Change the size of the origin or of the store
///
/// Files are made longer or cut. A block device must be made larger before this command, or smaller after it.
/// Snapshots keep their own size: what a smaller origin no longer has is preserved in the store first. A store that
/// is made smaller moves what lies beyond its new end; --dry-run says how much that is, and which size is sure to
/// work. Interrupted, the command leaves the old size; run it again.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    vol: VolArgs,
    /// The new size of the origin
    #[arg(short = 'o', long = "origin-size", value_name = "SIZE", value_parser = parse_size)]
    origin_size: Option<u64>,
    /// The new size of the store
    #[arg(short = 's', long = "store-size", value_name = "SIZE", value_parser = parse_size)]
    store_size: Option<u64>,
    /// Means nothing any more: metadata is in the store
    #[arg(short = 'm', value_name = "SIZE", value_parser = parse_size, hide = true)]
    metadata_size: Option<u64>,
    /// Make the origin smaller without asking: what lies beyond its new end is then in snapshots only
    #[arg(short, long)]
    yes: bool,
    /// Only print what would be preserved and moved, and which sizes work; the exit status is as without it
    #[arg(long)]
    dry_run: bool,
}

/// Runs the command.
///
/// # Errors
/// `Kind::Refused` if nobody agreed, or the origin is not what it was; `Kind::NoSpace` if the store cannot have that
/// size, or cannot take in what snapshots need, `Kind::Mismatch` if a device is too small, `Kind::Busy`: nothing has
/// changed then.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    if args.metadata_size.is_some() {
        ui.warn("-m means nothing any more: metadata is in the store");
    }
    resize(args, ui).map_err(|error| error.doing(format!("cannot resize {}", args.vol.vol.display())))?;
    Ok(Exit::Done)
}

fn resize(args: &Args, ui: &Ui) -> Result<()> {
    if args.origin_size.is_none() && args.store_size.is_none() && args.metadata_size.is_none() {
        return Err(Error::new(Kind::Usage, "nothing to do: give -o SIZE or -s SIZE"));
    }
    if args.origin_size == Some(0) {
        return Err(Error::new(Kind::Usage, "an origin of no bytes is none"));
    }
    if open::is_served(&args.vol.vol) {
        return resize_served(args, ui);
    }
    let mut writer = match (args.dry_run, args.origin_size) {
        (true, Some(_)) => open::dry_writer(&args.vol)?,
        (true, None) => open::dry_writer_alone(&args.vol)?,
        (false, Some(_)) => open::writer_with_known_origin(&args.vol)?,
        (false, None) => open::writer(&args.vol.vol, &args.vol.old)?,
    };
    if args.dry_run {
        return tell_plans(args, &mut writer, ui);
    }
    let result = change(args, &mut writer, ui);
    ui.end_progress();
    let closed = writer.close();
    result.and(closed)
}

/// A larger store comes before what it may have to take in, a smaller one after it.
fn change(args: &Args, writer: &mut Writer, ui: &Ui) -> Result<()> {
    let grows = args.store_size.is_some_and(|size| size >= writer.view().info().store_size);
    if let (Some(origin_size), Some(store_size), false) = (args.origin_size, args.store_size, grows) {
        // Both or neither.
        let preserved = writer.plan_origin_size(origin_size, ui.progress())?;
        ensure_possible(store_size, &writer.plan_store_size(store_size, preserved))?;
    }
    if grows {
        change_store(args, writer, ui)?;
    }
    change_origin(args, writer, ui)?;
    if grows { Ok(()) } else { change_store(args, writer, ui) }
}

/// A larger store comes before what it may have to take in, a smaller one after it.
fn resize_served(args: &Args, ui: &Ui) -> Result<()> {
    if args.dry_run {
        let what = "a server makes no plans: --dry-run needs the store itself";
        return Err(open::held_by_server(&args.vol.vol, what));
    }
    let client = open::served(&args.vol)?;
    let info = Volume::info(&client);
    let store = || match args.store_size {
        Some(size) => client.resize_store(size).map(|plan| tell_store(&plan, ui)),
        None => Ok(()),
    };
    let grows = args.store_size.is_some_and(|size| size >= info.store_size);
    if grows {
        store()?;
    }
    if let Some(size) = args.origin_size {
        ensure_agreed(args, &info, size, ui)?;
        tell_origin(info.origin_size, size, client.resize_origin(size, false)?, ui);
        let identity = device::identity(&info.uuid.to_string(), device::ORIGIN);
        // The size is what it is, whether that can be asked or not.
        if size > info.origin_size && device::is_attached(&identity).unwrap_or(false) {
            ui.warn("its device keeps the old size until 'ddsnap attach' is given again");
        }
    }
    if grows { Ok(()) } else { store() }
}

fn change_origin(args: &Args, writer: &mut Writer, ui: &Ui) -> Result<()> {
    let Some(size) = args.origin_size else { return Ok(()) };
    let info = writer.view().info();
    ensure_agreed(args, &info, size, ui)?;
    ui.progress().stage("preserve", Some(info.origin_size.saturating_sub(size)));
    tell_origin(info.origin_size, size, writer.resize_origin(size, ui.progress())?, ui);
    Ok(())
}

/// Asks whether bytes may be cut off.
fn ensure_agreed(args: &Args, info: &StoreInfo, size: u64, ui: &Ui) -> Result<()> {
    let (before, path) = (info.origin_size, open::origin_path(&args.vol, info));
    if size < before && !args.yes {
        let cut = before - size;
        ui.confirm(&format!("the last {cut} bytes of {} would be in snapshots only", path.display()), "-y")?;
    }
    Ok(())
}

fn tell_origin(before: u64, size: u64, preserved: Preserved, ui: &Ui) {
    ui.explain(&format!(
        "the origin has {size} bytes, it had {before}; {} chunks ({} bytes) were preserved for snapshots",
        preserved.chunks, preserved.bytes
    ));
}

fn change_store(args: &Args, writer: &mut Writer, ui: &Ui) -> Result<()> {
    let Some(size) = args.store_size else { return Ok(()) };
    tell_store(&writer.resize_store(size, ui.progress())?, ui);
    Ok(())
}

fn tell_store(plan: &StorePlan, ui: &Ui) {
    ui.explain(&format!(
        "the store uses {} bytes, it used {}; {} bytes were moved",
        plan.size_after, plan.size_before, plan.moved_bytes
    ));
}

fn tell_plans(args: &Args, writer: &mut Writer, ui: &Ui) -> Result<()> {
    let mut plan = Preserved::default();
    if let Some(size) = args.origin_size {
        let before = writer.view().info().origin_size;
        plan = writer.plan_origin_size(size, ui.progress())?;
        ui.end_progress();
        ui.print(&format!("would change the origin from {before} to {size} bytes: -o says so"))?;
        ui.print(&format!(
            "would preserve {} chunks ({} bytes): snapshots need them beyond the new end",
            plan.chunks, plan.bytes
        ))?;
        // Nothing but memory is written: what there is now must do, unless the store grows first.
        if args.store_size.is_none_or(|size| size <= writer.view().info().store_size) {
            writer.ensure_room_for(plan.cost())?;
        }
    }
    if let Some(size) = args.store_size {
        tell_store_plan(size, &writer.plan_store_size(size, plan), ui)?;
    }
    Ok(())
}

fn tell_store_plan(size: u64, plan: &StorePlan, ui: &Ui) -> Result<()> {
    let (before, after) = (plan.size_before, plan.size_after);
    ui.print(&format!("would change the store from {before} to {after} used bytes: -s says so"))?;
    ui.print(&format!("would move {} bytes: they lie beyond the new end", plan.moved_bytes))?;
    ui.print(&format!(
        "sizes from {} to {} bytes are sure to work",
        plan.smallest_bytes, plan.largest_bytes
    ))?;
    ensure_possible(size, plan)
}

fn ensure_possible(size: u64, plan: &StorePlan) -> Result<()> {
    let StorePlan { size_before, size_after, smallest_bytes, largest_bytes, .. } = *plan;
    let what = if size_after < size_before && size < smallest_bytes {
        format!(
            "{size} bytes may be too few: {smallest_bytes} are sure to do, packing things closer may allow less"
        )
    } else if size_after > largest_bytes {
        format!("{size} bytes are too many: its tables can describe {largest_bytes}")
    } else {
        return Ok(());
    };
    Err(Error::new(Kind::NoSpace, what))
}
