//! `map`: a picture of where a volume changed.

use super::common::{AcceptArgs, OldArgs, SnapName, TAINT, title};
use super::{open, overlap};
use crate::error::{Error, Result};
use crate::map::{Map, Row, difference, history};
use crate::point::volume::Volume;
use crate::point::{Point, PointId};
use crate::ui::draw::{heat, percent, tag, text};
use crate::ui::exit::Exit;
use crate::ui::output::Output;
use crate::ui::{Ui, escape, size, terminal, time};
use crate::units::Tag;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "Examples:
  ddsnap map data.snap
  ddsnap map data.snap 1 2
  ddsnap map --svg map.svg data.snap monday origin
  ddsnap map --json --width 64 data.snap";

/// Intervals that have a row of their own, unless --all.
const ROWS: usize = 50;

/// Draw where a volume changed
///
/// Without snapshots, every interval between two neighbouring snapshots is a row, the oldest first, and the
/// volume lies from left to right; the last row is their average. With two snapshots, what differs
/// between them is drawn line after line from the beginning of the volume. Chunks that may differ count as
/// changed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    /// The snapshot store: a block device or a file
    #[arg(value_name = "VOL")]
    vol: PathBuf,
    #[command(flatten)]
    old: OldArgs,
    /// The older point: a tag, @N counted from the newest, a name, or 'origin'
    #[arg(value_name = "SNAP1", requires = "to")]
    from: Option<SnapName>,
    /// The newer point
    #[arg(value_name = "SNAP2")]
    to: Option<SnapName>,
    /// Columns of the picture: as wide as the terminal, else 80; with --svg or --json, cells in a row, else 128
    #[arg(long, value_name = "COLUMNS", value_parser = clap::value_parser!(u16).range(40..=1000))]
    width: Option<u16>,
    /// Draw every interval, not only the newest 50
    #[arg(long, conflicts_with = "to")]
    all: bool,
    /// Write the picture as SVG; '-' is standard output
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    svg: Option<PathBuf>,
    /// Print one JSON document (schema ddsnap.map/1)
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// What opening the store says; `Kind::NotFound`, `Kind::Refused` for the points; what writing says.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let doing = || format!("cannot draw a map of {}", args.vol.display());
    draw(args, ui).map_err(|error| error.doing(doing()))?;
    Ok(Exit::Done)
}

fn draw(args: &Args, ui: &Ui) -> Result<()> {
    let view = open::view(&args.vol, &args.old, ui)?;
    let wide = u64::from(args.width.unwrap_or(0));
    let wide = if wide == 0 { heat::COLUMNS } else { wide };
    match &args.svg {
        Some(path) => {
            overlap::ensure_output_elsewhere(
                path,
                &overlap::inputs(&view.info().store_path, &args.old, view.info().origin_path),
            )?;
            let made = make(args, view.as_ref(), (wide, heat::difference_cells(wide)), ui)?;
            let head = head(args, &made);
            let (svg, height) = if made.is_history {
                heat::history(&made.map, &head)
            } else {
                heat::difference(&made.map, wide, &head)
            };
            let file = svg.file(height);
            if view.info().legacy.is_some() {
                overlap::ensure_not_unknown(path, file.as_bytes())?;
            }
            write_out(path, &file)?;
        }
        None if args.json => {
            let made = make(args, view.as_ref(), (wide, heat::difference_cells(wide)), ui)?;
            ui.json(&document(&made))?;
        }
        None => {
            let columns = args.width.map(usize::from).or_else(terminal::stdout_columns).unwrap_or(80);
            let look = text::Look { columns, color: terminal::stdout_takes_color() };
            let cells = (text::history_cells(&view.points(), look), text::difference_cells(look));
            let made = make(args, view.as_ref(), cells, ui)?;
            ui.print(&escape::line(&head(args, &made)))?;
            ui.print("")?;
            let lines = if made.is_history {
                text::history(&made.map, look)
            } else {
                text::difference(&made.map, look)
            };
            lines.iter().try_for_each(|line| ui.print(line))?;
        }
    }
    for snapshot in view.snapshots().iter().filter(|snapshot| snapshot.tainted) {
        ui.warn(&format!("{} {TAINT}", title(snapshot)));
    }
    Ok(())
}

struct Made {
    map: Map,
    is_history: bool,
}

/// Counts in as many cells as given for a row of a history, or for a map of two points.
fn make(
    args: &Args,
    view: &dyn Volume,
    (history_cells, difference_cells): (u64, u64),
    ui: &Ui,
) -> Result<Made> {
    let (Some(from), Some(to)) = (&args.from, &args.to) else {
        let rows = if args.all { usize::MAX } else { ROWS };
        let map = history(view, history_cells, ui.progress())?.newest(rows);
        return Ok(Made { map, is_history: true });
    };
    // A picture of a snapshot that is not what it was misleads nobody who is told so.
    let accept = AcceptArgs { accept_incomplete: true, accept_taint: true };
    let point =
        |name: &SnapName| Ok::<PointId, Error>(open::readable_point(view, &args.vol, name, &accept)?.id);
    let map = difference(view, (point(from)?, point(to)?), difference_cells, ui.progress())?;
    Ok(Made { map, is_history: false })
}

/// What the picture is of, in a line.
fn head(args: &Args, made: &Made) -> String {
    let (path, whole) = (args.vol.display(), made.map.scale.size_bytes());
    match made.map.rows.as_slice() {
        [] => format!("{path}: {} and no snapshot, so no interval to draw", size::human(whole)),
        [row] if !made.is_history => {
            let changed = row.changed_bytes();
            let share = percent(changed, u128::from(whole));
            let (from, to) = (tag(&row.from), tag(&row.to));
            format!(
                "{path}, {from} → {to}: {} of {} may differ ({share})",
                size::human(changed),
                size::human(whole)
            )
        }
        [first, ..] => {
            let since = time::short(first.from.created_secs);
            let intervals = made.map.intervals();
            let noun = if intervals == 1 { "interval" } else { "intervals" };
            format!("{path}: {}, {intervals} {noun}, drawn since {since}", size::human(whole))
        }
    }
}

fn write_out(path: &Path, text: &str) -> Result<()> {
    let mut output = Output::create_text(path, true)?;
    output.write_all(text.as_bytes()).map_err(|error| Error::io("cannot write it", error).at_path(path))?;
    output.commit()
}

fn document(made: &Made) -> Value {
    let map = &made.map;
    let name = |point: &Point| if point.tag == Tag::ORIGIN { json!("origin") } else { json!(point.tag.0) };
    let row = |row: &Row| {
        json!({
            "from": name(&row.from),
            "to": name(&row.to),
            "from_created_secs": row.from.created_secs,
            "to_created_secs": (row.to.tag != Tag::ORIGIN).then_some(row.to.created_secs),
            "changed_bytes": row.changed_bytes(),
            "cells": row.cells,
        })
    };
    json!({
        "schema": "ddsnap.map/1",
        "kind": if made.is_history { "history" } else { "difference" },
        "volume_size_bytes": map.scale.size_bytes(),
        "chunk_size": map.scale.chunk_bytes(),
        "cell_size": map.scale.cell_bytes(),
        "intervals": map.intervals(),
        "older_intervals": map.left_out,
        "rows": map.rows.iter().map(row).collect::<Vec<_>>(),
        "churn": map.churn,
    })
}
