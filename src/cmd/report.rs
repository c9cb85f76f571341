//! `report`: everything there is to say of a store, as one page of HTML.

use super::common::state_word;
use super::open;
use crate::block::ReadAt;
use crate::error::{Error, Kind, Result};
use crate::format::superblock::{self, Superblock};
use crate::map::history;
use crate::store::fsck::{CheckOptions, Severity, check};
use crate::store::{FullPolicy, SnapshotInfo, SnapshotState, StoreInfo, View};
use crate::ui::draw::report::{Finding, Report, Snapshot, Space};
use crate::ui::draw::{heat, report};
use crate::ui::exit::Exit;
use crate::ui::output::Output;
use crate::ui::{Ui, size, time};
use crate::units::Tag;
use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

const EXAMPLES: &str = "Examples:
  ddsnap report data.snap -o report.html
  ddsnap report data.snap -o - | gzip > report.html.gz";

/// Write a report on a store and its snapshots, as one page of HTML
///
/// The page needs nothing beside it and no network: how full the store is, what changed when and where, what
/// the snapshots share and what deleting them would free, and what a check of the metadata found. The exit
/// status is 3 if something is wrong with the store; the page then tells what could be read.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The snapshot store: a block device or a file
    #[arg(value_name = "VOL")]
    vol: PathBuf,
    /// Where the page goes; '-' is standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// What opening the store says, if there is nothing of a store; what writing says.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let doing = || format!("cannot report on {}", args.vol.display());
    write(args, ui).map_err(|error| error.doing(doing()))
}

fn write(args: &Args, ui: &Ui) -> Result<Exit> {
    let store = open::store_reader(&args.vol)?;
    let mut found = Report {
        store: args.vol.display().to_string(),
        made_secs: time::made_secs()?,
        notices: Vec::new(),
        findings: Vec::new(),
        looked_at: String::new(),
        space: None,
        snapshots: Vec::new(),
        map: None,
        events: None,
        facts: vec![("Size of the device or file".to_owned(), bytes(store.size()))],
        is_unreadable: false,
    };
    health(&store, &mut found, ui)?;
    let mut inputs = vec![args.vol.clone()];
    match View::open(Arc::clone(&store), None) {
        Ok(view) => {
            inputs.push(view.info().origin_path);
            describe(&view, &mut found, ui)?;
        }
        Err(error) if error.kind() == Kind::Damaged && open::has_superblock(&store)? => {
            found.notices.push(format!("The store cannot be opened: {error}"));
            found.is_unreadable = true;
            superblocks(store.as_ref(), &mut found.facts);
        }
        Err(error) => return Err(error.at_path(&args.vol)),
    }
    open::ensure_output_elsewhere(&args.output, &inputs)?;
    let mut output = Output::create_text(&args.output, true)?;
    let page = report::html(&found);
    output
        .write_all(page.as_bytes())
        .map_err(|error| Error::io("cannot write it", error).at_path(&args.output))?;
    output.commit()?;
    if !found.is_damaged() {
        return Ok(Exit::Done);
    }
    ui.warn(&format!("something is wrong with {}; the report says what", args.vol.display()));
    Ok(Exit::Damaged)
}

/// What a check of the metadata finds.
fn health(store: &Arc<dyn ReadAt>, report: &mut Report, ui: &Ui) -> Result<()> {
    let checked = check(store, None, CheckOptions { data: false }, ui.progress())?;
    report.looked_at = format!(
        "{} log records and {} index entries, not at the data itself",
        size::grouped(checked.records),
        size::grouped(checked.entries)
    );
    for finding in checked.findings {
        let at = finding.offset.map(|offset| format!(" (at byte {offset})")).unwrap_or_default();
        let snapshot = |tag: Option<Tag>| match tag {
            Some(tag) => tag.to_string(),
            None => "the state before the pending operation".to_owned(),
        };
        let snapshots: Vec<String> = finding.affected.iter().map(|affected| snapshot(affected.tag)).collect();
        report.findings.push(Finding {
            severity: finding.severity().name(),
            is_bad: finding.severity() > Severity::Note,
            code: finding.code.name(),
            words: format!("{}{at}", finding.text),
            meaning: finding.code.meaning(),
            repair: finding.code.repair().explain(),
            snapshots: snapshots.join(", "),
        });
    }
    Ok(())
}

/// Everything that an open store tells. What is damaged is left out, and said.
fn describe(view: &View, report: &mut Report, ui: &Ui) -> Result<()> {
    let info = view.info();
    facts(&info, &mut report.facts);
    report.space = Some(Space {
        total_bytes: info.store_size,
        data_bytes: info.data_bytes,
        metadata_bytes: info.metadata_bytes,
        free_bytes: info.free_bytes,
    });
    if let Some(pending) = &info.pending {
        report.notices.push(format!("Incomplete on the origin: {}", pending.label));
    }
    let mut or_notice = |what: &str, error: Error| match error.kind() {
        Kind::Damaged => {
            report.notices.push(format!("{what} cannot be told: {error}"));
            report.is_unreadable = true;
            Ok(())
        }
        _ => Err(error),
    };
    let mut shared = HashMap::new();
    match view.sharing() {
        Ok(sharing) => shared.extend(sharing.into_iter().map(|sharing| (sharing.id, sharing.shared_by))),
        Err(error) => or_notice("What snapshots share", error)?,
    }
    match history(view, heat::COLUMNS, ui.progress()) {
        Ok(map) => report.map = Some(map),
        Err(error) => or_notice("What changed", error)?,
    }
    for snapshot in view.snapshots() {
        let chunk = u64::from(info.chunk_size);
        let bytes =
            |chunks: Vec<u64>| chunks.into_iter().map(|chunks| chunks.saturating_mul(chunk)).collect();
        report.snapshots.push(Snapshot {
            tag: snapshot.tag.to_string(),
            state: state(&snapshot),
            created_secs: snapshot.created_secs,
            size_bytes: snapshot.size_bytes,
            shared_by: shared.remove(&snapshot.id).map(bytes),
            name: snapshot.name.unwrap_or_default(),
        });
    }
    report.events = Some(info.events);
    Ok(())
}

fn state(snapshot: &SnapshotInfo) -> String {
    let mut words = Vec::new();
    if snapshot.state != SnapshotState::Normal {
        words.push(state_word(snapshot.state).to_owned());
    }
    if snapshot.tainted {
        words.push("tainted".to_owned());
    }
    if !snapshot.holds.is_empty() {
        words.push(format!("held for {}", snapshot.holds.join(", ")));
    }
    if snapshot.use_count > 0 {
        words.push(format!("use count {}", snapshot.use_count));
    }
    if snapshot.priority != 0 {
        words.push(format!("priority {}", snapshot.priority));
    }
    words.join(", ")
}

fn facts(info: &StoreInfo, facts: &mut Vec<(String, String)>) {
    let policy = match info.full_policy {
        FullPolicy::Fail => "the write fails",
        FullPolicy::Squash => "snapshots are given up",
    };
    let list = [
        ("Store", info.uuid.to_string()),
        ("Volume", info.volume.to_string()),
        ("Created", time::utc(info.created_secs)),
        ("Size of the store", bytes(info.store_size)),
        ("Chunk", bytes(u64::from(info.chunk_size))),
        ("Metadata block", bytes(u64::from(info.block_size))),
        ("Segment", bytes(u64::from(info.segment_size))),
        ("Origin", info.origin_path.display().to_string()),
        ("Size of the origin", bytes(info.origin_size)),
        ("When the store is full", policy.to_owned()),
    ];
    facts.extend(list.map(|(name, value)| (name.to_owned(), value)));
}

/// What the superblocks of a store that cannot be opened say.
fn superblocks(store: &dyn ReadAt, facts: &mut Vec<(String, String)>) {
    for (offset, name) in superblock::OFFSETS.into_iter().zip(["First superblock", "Second superblock"]) {
        let mut block = vec![0; superblock::SIZE];
        let decoded = store.read_at(&mut block, offset).and_then(|()| Superblock::decode(&block));
        let words = match decoded {
            Ok(sb) => format!(
                "store {}, created {}, chunks of {}, {} segments of {}, publication {}",
                sb.uuid,
                time::utc(sb.created_secs),
                size::human(u64::from(sb.chunk_size())),
                sb.segments,
                size::human(u64::from(sb.segment_size())),
                sb.generation
            ),
            Err(error) => error.to_string(),
        };
        facts.push((format!("{name}, at byte {offset}"), words));
    }
}

fn bytes(bytes: u64) -> String {
    format!("{} ({} bytes)", size::human(bytes), size::grouped(bytes))
}
