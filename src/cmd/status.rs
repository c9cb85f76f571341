//! `status`: the state of a volume, in the words of 2008.

use super::common::{OldArgs, SnapName, TAINT, title};
use super::{documents, open};
use crate::error::{Kind, Result};
use crate::point::volume::{Sharing, SnapshotInfo, SnapshotState, StoreInfo, Volume};
use crate::serve::control::Client;
use crate::serve::figures::ServerFigures;
use crate::ui::exit::Exit;
use crate::ui::{Ui, size, terminal, time};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const EXAMPLES: &str = "Examples:
  ddsnap status data.snap
  ddsnap status --state data.snap 2
  ddsnap status --json data.snap
  ddsnap status --watch=1 data.snap | head -n 3";

/// Show how full a store is, what its snapshots share, and what a server is doing
///
/// The columns count chunks: all that a snapshot needs, those no other snapshot needs (Unshared), and those
/// it shares. With -v, column KX counts the chunks shared with exactly K others.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
#[command(group = clap::ArgGroup::new("answer").args(["size", "state", "list", "last", "json"]))]
pub struct Args {
    /// The snapshot store: a block device or a file
    #[arg(value_name = "VOL")]
    vol: PathBuf,
    #[command(flatten)]
    old: OldArgs,
    /// Only this snapshot: a tag, @N counted from the newest, a name, or 'origin'
    #[arg(value_name = "SNAP")]
    snap: Option<SnapName>,
    /// Print the size of the origin, or of SNAP, in sectors of 512 bytes; 0 if there is no such snapshot
    #[arg(short, long)]
    size: bool,
    /// Print nothing and exit with 0 if SNAP is usable, 1 if absent, 2 if squashed, else 9
    #[arg(short = 'S', long)]
    state: bool,
    /// Print the tags of all snapshots on one line
    #[arg(short, long)]
    list: bool,
    /// Print the tag of the newest snapshot
    #[arg(long)]
    last: bool,
    /// Print one JSON document (schema ddsnap.status/1)
    #[arg(long)]
    json: bool,
    /// Print it again every SECONDS [default: 2], until interrupted
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2",
          conflicts_with_all = ["size", "state", "list", "last"], value_parser = clap::value_parser!(u32).range(1..))]
    watch: Option<u32>,
}

impl Args {
    /// True if the exit status is the answer.
    pub fn asks_state(&self) -> bool {
        self.state
    }
}

/// Runs the command.
///
/// # Errors
/// What opening the store says.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let doing = || format!("cannot tell the status of {}", args.vol.display());
    match args.watch {
        None => answer(args, None, ui).map(|(exit, _)| exit),
        Some(seconds) => watch(args, seconds.into(), ui),
    }
    .map_err(|error| error.doing(doing()))
}

/// Answers again and again.
fn watch(args: &Args, seconds: u64, ui: &Ui) -> Result<Exit> {
    let mut before = None;
    while !ui.interrupted() && !ui.reader_gone() {
        if terminal::stdout_is_terminal() && !args.json {
            // From the upper left corner, on an empty screen.
            ui.print_text("\x1b[H\x1b[2J")?;
        }
        before = answer(args, before.as_ref(), ui)?.1;
        if !args.json && !ui.verbose() {
            ui.print("")?;
        }
        let until = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < until && !ui.interrupted() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(if ui.interrupted() { Exit::Interrupted } else { Exit::Done })
}

/// Answers; with the figures of the server, if it is one. `before` are those of the last answer.
fn answer(args: &Args, before: Option<&ServerFigures>, ui: &Ui) -> Result<(Exit, Option<ServerFigures>)> {
    let view = open::view(&args.vol, &args.old, ui)?;
    let snapshots = view.snapshots();
    let mut figures = None;
    if args.state {
        return state(args, &snapshots).map(|exit| (exit, None));
    }
    if args.list || args.last {
        let skip = if args.last { snapshots.len().saturating_sub(1) } else { 0 };
        let tags: String = snapshots.iter().skip(skip).map(|snapshot| format!("{} ", snapshot.tag)).collect();
        ui.print(&tags)?;
    } else if args.size {
        ui.print(&(size_bytes(args, &view.info(), &snapshots, ui)? / 512).to_string())?;
    } else {
        // The columns are those of 2008 where only they are asked for.
        if open::is_served(&args.vol) && (args.snap.is_none() || args.json) {
            figures = Some(Client::connect(&args.vol)?.figures()?);
        }
        whole(args, view.as_ref(), snapshots, figures.as_ref(), ui)?;
        if let Some(figures) = figures.as_ref().filter(|_| !args.json) {
            ui.print_text(&server_text(figures, before))?;
        }
    }
    Ok((Exit::Done, figures))
}

/// What a server is doing.
fn server_text(now: &ServerFigures, before: Option<&ServerFigures>) -> String {
    let seconds = before.map(|before| now.uptime_secs.saturating_sub(before.uptime_secs).max(1));
    let rate = |of: fn(&ServerFigures) -> u64| match (before, seconds) {
        (Some(before), Some(seconds)) => {
            format!(
                "{} ({}/s)",
                size::grouped(of(now)),
                size::grouped(of(now).saturating_sub(of(before)) / seconds)
            )
        }
        _ => size::grouped(of(now)),
    };
    let count = size::grouped;
    let lines = [
        format!(
            "Server: up {} s, {} connections ({} ever), {} exports open, {} operations running",
            count(now.uptime_secs),
            count(now.connections),
            count(now.connections_total),
            count(now.exports_open),
            count(now.volume.running)
        ),
        format!(
            "Origin: {} reads of {} bytes, {} writes of {} bytes, {} flushes",
            rate(|now| now.volume.origin_reads),
            rate(|now| now.volume.origin_read_bytes),
            rate(|now| now.volume.origin_writes),
            rate(|now| now.volume.origin_written_bytes),
            rate(|now| now.volume.flushes)
        ),
        format!(
            "Snapshots: {} reads of {} bytes, {} changes of the table",
            rate(|now| now.volume.snapshot_reads),
            rate(|now| now.volume.snapshot_read_bytes),
            rate(|now| now.volume.changes)
        ),
        format!(
            "Copied out: {} chunks in {} commits, {} writers waiting",
            rate(|now| now.volume.copied_chunks),
            rate(|now| now.volume.commits),
            count(now.volume.queued)
        ),
        format!(
            "Log since the last checkpoint: {} records, {} bytes",
            count(now.log_records),
            count(now.log_bytes)
        ),
    ];
    lines.map(|line| line + "\n").concat()
}

fn state(args: &Args, snapshots: &[SnapshotInfo]) -> Result<Exit> {
    let name = args.snap.as_ref().ok_or_else(|| {
        crate::error::Error::new(Kind::Usage, "--state needs SNAP, the snapshot to ask for")
    })?;
    match name.snapshot(snapshots) {
        Ok(snapshot) if snapshot.state == SnapshotState::Normal => Ok(Exit::Done),
        Ok(_) => Ok(Exit::StateSquashed),
        Err(error) if error.kind() == Kind::NotFound => Ok(Exit::StateAbsent),
        Err(error) => Err(error),
    }
}

/// As in 2008, a snapshot that is not there has size 0 and is no failure.
fn size_bytes(args: &Args, info: &StoreInfo, snapshots: &[SnapshotInfo], ui: &Ui) -> Result<u64> {
    match &args.snap {
        None | Some(SnapName::Origin) => Ok(info.origin_size),
        Some(name) => match name.snapshot(snapshots) {
            Ok(snapshot) => Ok(snapshot.size_bytes),
            Err(error) if error.kind() == Kind::NotFound => {
                ui.warn(&error.to_string());
                Ok(0)
            }
            Err(error) => Err(error),
        },
    }
}

/// One row: the snapshot, and its counts unless it was squashed.
struct Row {
    snapshot: SnapshotInfo,
    shared_by: Vec<u64>,
}

impl Row {
    fn chunks(&self) -> u64 {
        self.shared_by.iter().sum()
    }

    fn unshared(&self) -> u64 {
        self.shared_by.first().copied().unwrap_or(0)
    }
}

fn whole(
    args: &Args,
    view: &dyn Volume,
    snapshots: Vec<SnapshotInfo>,
    figures: Option<&ServerFigures>,
    ui: &Ui,
) -> Result<()> {
    let info = view.info();
    let rows = rows(snapshots, &view.sharing()?);
    let shown: Vec<&Row> = match &args.snap {
        // As in 2008, one that is not there makes an empty table.
        Some(name) => {
            let snapshots: Vec<SnapshotInfo> = rows.iter().map(|row| row.snapshot.clone()).collect();
            let id = name.snapshot(&snapshots).map(|snapshot| snapshot.id).ok();
            rows.iter().filter(|row| Some(row.snapshot.id) == id).collect()
        }
        None => rows.iter().collect(),
    };
    if args.json {
        let mut document = document(&info, &rows, &shown);
        document["server"] = json!(figures);
        return ui.json(&document);
    }
    for line in lines(&info, &rows, &shown, args.snap.is_none(), ui.verbose()) {
        ui.print(&line)?;
    }
    warnings(&info, &shown, ui);
    Ok(())
}

fn rows(snapshots: Vec<SnapshotInfo>, sharing: &[Sharing]) -> Vec<Row> {
    let counts = |snapshot: &SnapshotInfo| {
        sharing.iter().find(|sharing| sharing.id == snapshot.id).map(|sharing| sharing.shared_by.clone())
    };
    snapshots
        .into_iter()
        .map(|snapshot| Row { shared_by: counts(&snapshot).unwrap_or_default(), snapshot })
        .collect()
}

/// Chunks that exactly k+1 snapshots share, each counted once.
fn totals(rows: &[Row]) -> Vec<u64> {
    let columns = rows.iter().map(|row| row.shared_by.len()).max().unwrap_or(0);
    let column = |k: usize| rows.iter().filter_map(|row| row.shared_by.get(k)).sum::<u64>();
    (0..columns).zip(1u64..).map(|(k, degree)| column(k) / degree).collect()
}

/// The numbers of a row: all, unshared, then shared at once or by degree.
fn numbers(counts: &[u64], degrees: usize, verbose: bool) -> Vec<u64> {
    let unshared = counts.first().copied().unwrap_or(0);
    let total: u64 = counts.iter().sum();
    let mut numbers = vec![total, unshared];
    if verbose {
        numbers.extend((1..degrees).map(|k| counts.get(k).copied().unwrap_or(0)));
    } else {
        numbers.push(total.saturating_sub(unshared));
    }
    numbers
}

fn space_lines(info: &StoreInfo) -> Vec<String> {
    let line = |words: &str, unit: u64, free: u64, total: u64| {
        let (free, total) = (size::grouped(free), size::grouped(total));
        format!("Snapshot {words} size = {unit}; {free} of {total} chunks free")
    };
    let chunk = u64::from(info.chunk_size).max(1);
    let data = |words| line(words, chunk, info.free_bytes / chunk, info.store_size / chunk);
    match info.legacy.as_ref().and_then(|legacy| legacy.separate) {
        Some((block, blocks, free)) => {
            vec![line("metadata block", block, free, blocks), data("data store chunk")]
        }
        None => vec![data("store block")],
    }
}

/// Bytes of metadata, without the `exceptions` where the store counts both together.
fn metadata_bytes(info: &StoreInfo, exceptions: u64) -> u64 {
    let mixed = info.legacy.as_ref().is_some_and(|legacy| legacy.separate.is_none());
    let data = if mixed { exceptions.saturating_mul(info.chunk_size.into()) } else { 0 };
    info.metadata_bytes.saturating_sub(data)
}

fn lines(info: &StoreInfo, rows: &[Row], shown: &[&Row], with_totals: bool, verbose: bool) -> Vec<String> {
    let degrees = rows.len();
    let mut heading = format!(
        "{:>6} {:>24} {:>6} {:>4} {:>8} {:>8}",
        "Snap", "Creation time", "Usecnt", "Prio", "Chunks", "Unshared"
    );
    if verbose {
        heading.extend((1..degrees).map(|k| format!(" {:>8}", format!("{k}X"))));
    } else {
        heading.push_str(&format!(" {:>8}", "Shared"));
    }
    let mut lines = space_lines(info);
    lines.extend([
        format!("Origin size: {} bytes", size::grouped(info.origin_size)),
        "Write density: 0".to_owned(),
        format!("Creation time: {}", time::ctime(info.created_secs)),
        heading,
    ]);
    for row in shown {
        let snapshot = &row.snapshot;
        let mut line = format!(
            "{:>6} {:>24} {:>6} {:>4}",
            snapshot.tag.0,
            time::ctime(snapshot.created_secs),
            snapshot.use_count,
            snapshot.priority
        );
        if snapshot.state == SnapshotState::Squashed {
            line.extend(std::iter::repeat_n(format!(" {:>8}", "!"), 3));
        } else {
            let numbers = numbers(&row.shared_by, degrees, verbose);
            line.extend(numbers.iter().map(|number| format!(" {number:>8}")));
        }
        lines.push(line);
    }
    if with_totals {
        let totals = totals(rows);
        let numbers = numbers(&totals, degrees, verbose);
        let numbers: String = numbers.iter().map(|number| format!(" {number:>8}")).collect();
        lines.push(format!("{:<43}{numbers}", "totals"));
        lines.push(format!(
            "Metadata usage: {} bytes",
            size::grouped(metadata_bytes(info, totals.iter().sum()))
        ));
    }
    lines
}

/// What 2008 had no words for goes to standard error, so that what reads the table still can.
fn warnings(info: &StoreInfo, shown: &[&Row], ui: &Ui) {
    for notice in info.legacy.iter().flat_map(|legacy| &legacy.notices) {
        ui.warn(notice);
    }
    if info.uncommitted {
        documents::warn_uncommitted(&info.store_path, ui);
    }
    if let Some(pending) = &info.pending {
        ui.warn(&format!("incomplete on the origin: {}", pending.label));
    }
    for row in shown.iter().filter(|row| row.snapshot.tainted) {
        ui.warn(&format!("{} {TAINT}", title(&row.snapshot)));
    }
}

fn document(info: &StoreInfo, rows: &[Row], shown: &[&Row]) -> Value {
    let snapshots: Vec<Value> = shown
        .iter()
        .map(|row| {
            let mut value = documents::snapshot(&row.snapshot);
            value["chunks"] = json!(row.chunks());
            value["unshared"] = json!(row.unshared());
            value["shared_by"] = json!(row.shared_by);
            value
        })
        .collect();
    json!({
        "schema": "ddsnap.status/1",
        "store": {
            "uuid": info.legacy.is_none().then(|| info.uuid.to_string()),
            "chunk_size": info.chunk_size,
            "block_size": info.block_size,
            "segment_size": info.legacy.is_none().then_some(info.segment_size),
            "size_bytes": info.store_size,
            "free_bytes": info.free_bytes,
            "data_bytes": info.data_bytes,
            "metadata_bytes": metadata_bytes(info, totals(rows).iter().sum()),
            "created_secs": info.created_secs,
            "created": time::rfc3339(info.created_secs),
            "full_policy": match info.full_policy {
                crate::store::FullPolicy::Fail => "fail",
                crate::store::FullPolicy::Squash => "squash",
            },
        },
        "legacy": info.legacy.as_ref().map(documents::legacy),
        "volume": info.legacy.is_none().then(|| info.volume.to_string()),
        "origin": {
            "path": documents::path(&info.origin_path),
            "size_bytes": info.origin_size,
            "equals": info.origin_equals.as_ref().map(documents::identity),
        },
        "uncommitted": info.uncommitted,
        "pending": info.pending.as_ref().map(documents::pending),
        "snapshots": snapshots,
        "totals_by_degree": totals(rows),
        "events": documents::events(&info.events),
    })
}
