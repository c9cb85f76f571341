//! `report`: everything there is to say of a store, as one page of HTML.

use super::common::{OldArgs, state_word};
use super::{open, open_old, overlap};
use crate::block::ReadAt;
use crate::error::{Error, Kind, Result};
use crate::format::superblock::{self, Superblock};
use crate::legacy;
use crate::map::history;
use crate::point::finding::{self, Severity};
use crate::point::volume::{FullPolicy, Sharing, SnapshotInfo, SnapshotState, StoreInfo, Volume};
use crate::store::View;
use crate::store::fsck::{CheckOptions, check};
use crate::ui::draw::report::{Finding, Report, Snapshot, Space};
use crate::ui::draw::{heat, report};
use crate::ui::exit::Exit;
use crate::ui::output::Output;
use crate::ui::{Ui, size, time};
use crate::units::Tag;
use std::collections::{BTreeMap, HashMap};
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
    #[command(flatten)]
    old: OldArgs,
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
        facts: Vec::new(),
        is_unreadable: false,
    };
    let devices = open_old::devices(&args.vol, &args.old, None)?;
    let is_old = devices.is_some();
    let origin = match devices {
        Some(devices) => look_at_old(args, &devices, &mut found, ui)?,
        None => look_at(args, &mut found, ui)?,
    };
    let inputs = overlap::inputs(&args.vol, &args.old, origin);
    overlap::ensure_output_elsewhere(&args.output, &inputs)?;
    let page = report::html(&found);
    if is_old {
        overlap::ensure_not_unknown(&args.output, page.as_bytes())?;
    }
    let mut output = Output::create_text(&args.output, true)?;
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

/// What a store and a check of it tell. Returns where its origin is.
fn look_at(args: &Args, report: &mut Report, ui: &Ui) -> Result<PathBuf> {
    let store = open::store_reader(&args.vol, &args.old)?;
    report.facts.push(("Size of the device or file".to_owned(), bytes(store.size())));
    let checked = check(&store, None, CheckOptions { data: false }, ui.progress())?;
    report.looked_at = format!(
        "{} log records and {} index entries, not at the data itself",
        size::grouped(checked.records),
        size::grouped(checked.entries)
    );
    health(checked.findings, report);
    match View::open(Arc::clone(&store), None) {
        Ok(view) => {
            describe(&view, report, ui)?;
            Ok(view.info().origin_path)
        }
        Err(error) if error.kind() == Kind::Damaged && open::has_superblock(&store)? => {
            unreadable(&error, report);
            superblocks(store.as_ref(), &mut report.facts);
            Ok(PathBuf::new())
        }
        Err(error) => Err(error.at_path(&args.vol)),
    }
}

/// As [`look_at`], of a store of 2008, which does not remember its origin.
fn look_at_old(args: &Args, devices: &legacy::Devices, report: &mut Report, ui: &Ui) -> Result<PathBuf> {
    report.facts.push(("Size of the device or file".to_owned(), bytes(devices.store.size())));
    let checked = legacy::check(devices, args.old.layout, ui.progress())?;
    report.looked_at = format!(
        "{} commits of the journal and {} exceptions, not at the data itself",
        size::grouped(checked.commits),
        size::grouped(checked.exceptions)
    );
    health(checked.findings, report);
    match legacy::Store::open(devices.clone(), args.old.layout, ui.progress()) {
        Ok(store) => describe(&store, report, ui)?,
        Err(error) if error.kind() == Kind::Damaged => unreadable(&error, report),
        Err(error) => return Err(error),
    }
    Ok(PathBuf::new())
}

fn unreadable(error: &Error, report: &mut Report) {
    report.notices.push(format!("The store cannot be opened: {error}"));
    report.is_unreadable = true;
}

/// What a check of the metadata found.
fn health(findings: Vec<finding::Finding>, report: &mut Report) {
    for finding in findings {
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
}

/// Everything that an open store tells. What is damaged is left out, and said.
fn describe(view: &dyn Volume, report: &mut Report, ui: &Ui) -> Result<()> {
    let info = view.info();
    facts(&info, &mut report.facts);
    report.space = Some(Space {
        total_bytes: info.store_size,
        data_bytes: info.data_bytes,
        metadata_bytes: info.metadata_bytes,
        free_bytes: info.free_bytes,
    });
    for notice in info.legacy.iter().flat_map(|legacy| &legacy.notices) {
        report.notices.push(format!("After the crash: {notice}"));
    }
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
        Ok(sharing) => {
            if let Some(space) = report.space.as_mut().filter(|_| is_mixed(&info)) {
                space.data_bytes = preserved_bytes(&sharing, info.chunk_size).min(space.metadata_bytes);
                space.metadata_bytes -= space.data_bytes;
            }
            shared.extend(sharing.into_iter().map(|sharing| (sharing.id, sharing.shared_by)));
        }
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
    report.events = info.legacy.is_none().then_some(info.events);
    Ok(())
}

/// True if nothing but the tree tells data from metadata.
fn is_mixed(info: &StoreInfo) -> bool {
    info.legacy.as_ref().is_some_and(|old| old.separate.is_none())
}

/// What all snapshots together need: each chunk counts once.
fn preserved_bytes(sharing: &[Sharing], chunk_size: u32) -> u64 {
    let counts = sharing.iter().flat_map(|sharing| (1..).zip(&sharing.shared_by));
    let mut by_sharers = BTreeMap::<u64, u64>::new();
    for (sharers, count) in counts {
        *by_sharers.entry(sharers).or_default() += count;
    }
    let chunks: u64 = by_sharers.iter().map(|(sharers, count)| count / sharers).sum();
    chunks.saturating_mul(u64::from(chunk_size))
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
    let mut add = |name: &str, value: String| facts.push((name.to_owned(), value));
    match &info.legacy {
        Some(old) => {
            let closed = if old.is_clean { "shut down cleanly" } else { "not shut down" };
            add("Store", format!("of release {} of the original program, {closed}", old.release));
        }
        None => {
            add("Store", info.uuid.to_string());
            add("Volume", info.volume.to_string());
        }
    }
    add("Created", time::utc(info.created_secs));
    add("Size of the store", bytes(info.store_size));
    add("Chunk", bytes(u64::from(info.chunk_size)));
    add("Metadata block", bytes(u64::from(info.block_size)));
    if info.legacy.is_none() {
        add("Segment", bytes(u64::from(info.segment_size)));
        add("Origin", info.origin_path.display().to_string());
    }
    add("Size of the origin", bytes(info.origin_size));
    add("When the store is full", policy.to_owned());
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
