//! `list`: the snapshots of a volume.

use super::common::{OldArgs, TAINT, state_word, title};
use super::{documents, open};
use crate::error::Result;
use crate::store::{SnapshotInfo, StoreInfo};
use crate::ui::exit::Exit;
use crate::ui::{Ui, escape, size, table, time};
use serde_json::json;
use std::path::PathBuf;

const EXAMPLES: &str = "Examples:
  ddsnap list data.snap
  ddsnap list --last --json data.snap";

/// List the snapshots of a volume, oldest first
///
/// Below the table stand the snapshots that were deleted or given up automatically because the store was
/// full.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The snapshot store: a block device or a file
    #[arg(value_name = "VOL")]
    vol: PathBuf,
    #[command(flatten)]
    old: OldArgs,
    /// Only the newest snapshot
    #[arg(long)]
    last: bool,
    /// Print one JSON document (schema ddsnap.list/1)
    #[arg(long, conflicts_with = "legacy")]
    json: bool,
    /// Print in the layout of 2008
    #[arg(long)]
    legacy: bool,
}

/// Runs the command.
///
/// # Errors
/// What opening the store says.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let doing = || format!("cannot list snapshots of {}", args.vol.display());
    let view = open::view(&args.vol, &args.old, ui).map_err(|error| error.doing(doing()))?;
    let (info, mut snapshots) = (view.info(), view.snapshots());
    if args.last {
        snapshots.drain(..snapshots.len().saturating_sub(1));
    }
    if args.json {
        ui.json(&document(&info, &snapshots))?;
    } else if args.legacy {
        print_legacy(&snapshots, ui)?;
    } else {
        print_table(&snapshots, ui)?;
        if !info.events.is_empty() && !args.last {
            ui.print("")?;
            for (secs, text) in &info.events {
                ui.print(&format!("{}  {}", time::short(*secs), escape::line(text)))?;
            }
        }
    }
    for notice in info.legacy.iter().flat_map(|legacy| &legacy.notices) {
        ui.warn(notice);
    }
    if info.uncommitted {
        documents::warn_uncommitted(&args.vol, ui);
    }
    if let Some(pending) = &info.pending {
        ui.warn(&format!("incomplete on the origin: {}", pending.label));
    }
    for snapshot in snapshots.iter().filter(|snapshot| snapshot.tainted) {
        ui.warn(&format!("{} {TAINT}", title(snapshot)));
    }
    Ok(Exit::Done)
}

fn document(info: &StoreInfo, snapshots: &[SnapshotInfo]) -> serde_json::Value {
    let snapshots: Vec<_> = snapshots.iter().map(documents::snapshot).collect();
    json!({ "schema": "ddsnap.list/1", "snapshots": snapshots, "events": documents::events(&info.events),
        "uncommitted": info.uncommitted })
}

fn print_legacy(snapshots: &[SnapshotInfo], ui: &Ui) -> Result<()> {
    ui.print("Snapshot list:")?;
    for (index, snapshot) in snapshots.iter().enumerate() {
        ui.print(&format!("Snapshot {index}:"))?;
        ui.print(&format!(
            "\ttag= {} \tpriority= {} \tuse count= {} \tcreation time= {}",
            snapshot.tag,
            snapshot.priority,
            snapshot.use_count,
            time::ctime(snapshot.created_secs)
        ))?;
    }
    Ok(())
}

fn print_table(snapshots: &[SnapshotInfo], ui: &Ui) -> Result<()> {
    let columns = [
        ("Tag", true),
        ("Name", false),
        ("Created", false),
        ("Size", true),
        ("Prio", true),
        ("Use", true),
        ("Held for", false),
        ("State", false),
    ];
    let rows: Vec<Vec<String>> = snapshots
        .iter()
        .map(|snapshot| {
            let state = state_word(snapshot.state);
            vec![
                snapshot.tag.to_string(),
                snapshot.name.clone().unwrap_or_default(),
                time::short(snapshot.created_secs),
                size::human(snapshot.size_bytes),
                snapshot.priority.to_string(),
                snapshot.use_count.to_string(),
                escape::line(&snapshot.holds.join(", ")),
                if snapshot.tainted { format!("{state}, tainted") } else { state.to_owned() },
            ]
        })
        .collect();
    table::lines(&columns, &rows).iter().try_for_each(|line| ui.print(line))
}
