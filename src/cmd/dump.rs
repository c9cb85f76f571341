//! `dump`: the metadata of a store, for people, for scripts, and for `restore`.

use super::common::OldArgs;
use super::{open, open_old};
use crate::dump::{self, Json, LogRange, Options, Render, Yaml};
use crate::error::{Error, Kind, Result};
use crate::ui::Ui;
use crate::ui::exit::Exit;
use crate::ui::tree::Text;
use std::path::PathBuf;

const EXAMPLES: &str = "Examples:
  ddsnap dump data.snap | head -40
  ddsnap dump --chunk 6 data.snap
  ddsnap dump --superblock --hex data.snap
  ddsnap dump --format yaml data.snap > data.yaml
  ddsnap dump --anonymous --format yaml data.snap > report.yaml";

/// Show the metadata of a snapshot store, whole or in part, sound or damaged
///
/// Nothing is ever modified. What is damaged is shown with what is wrong and with its bytes, and the exit status is
/// then 3. Without an option that chooses a part, everything is shown. 'ddsnap restore' makes a store of a whole dump
/// in YAML.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The snapshot store: a block device or a file
    #[arg(value_name = "STORE")]
    store: PathBuf,
    #[command(flatten)]
    old: OldArgs,
    /// Text for people, YAML for 'restore', or one JSON document (schema ddsnap.dump/1; of a store of
    /// 2008 ddsnap.dump-2008/1)
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// The superblocks
    #[arg(long, help_heading = "Parts")]
    superblock: bool,
    /// The checkpoint as it lies there
    #[arg(long, help_heading = "Parts")]
    checkpoint: bool,
    /// The snapshots
    #[arg(long, help_heading = "Parts")]
    snapshots: bool,
    /// Records: those after the checkpoint, or all that are left with these sequences
    #[arg(long, value_name = "FROM..TO", value_parser = parse_range, num_args = 0..=1, require_equals = true,
        help_heading = "Parts")]
    log: Option<Option<Range>>,
    /// Every entry of the index
    #[arg(long, help_heading = "Parts")]
    index: bool,
    /// The segments: what they hold, and how much of it is needed
    #[arg(long, help_heading = "Parts")]
    space: bool,
    /// Every place of chunk N: where it lies, whether it holds its checksum, which snapshots read it
    #[arg(long, value_name = "N", help_heading = "Parts")]
    chunk: Option<u64>,
    /// The record at byte ADDR, checked with its data
    #[arg(long, value_name = "ADDR", help_heading = "Parts")]
    record: Option<u64>,
    /// The bytes beside the values
    #[arg(long)]
    hex: bool,
    /// Pseudonyms instead of names, and no data: for a bug report
    #[arg(long, conflicts_with_all = ["superblock", "checkpoint", "snapshots", "log", "index", "space", "chunk",
        "record", "hex"])]
    anonymous: bool,
}

/// How a dump is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people; may change
    Text,
    /// For 'restore': a document a part
    Yaml,
    /// For scripts: one document
    Json,
}

/// Sequences of records, ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range(u64, u64);

/// Reads `FROM..TO`; either may be left out.
fn parse_range(text: &str) -> std::result::Result<Range, String> {
    let wrong = || format!("'{text}' is no range of sequences: write FROM..TO, FROM.. or ..TO");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let number = |text: &str, missing| match text {
        "" => Ok(missing),
        text => text.parse().map_err(|_| wrong()),
    };
    let (from, to) = (number(from, 0)?, number(to, u64::MAX)?);
    if from <= to { Ok(Range(from, to)) } else { Err(wrong()) }
}

/// Runs the command.
///
/// # Errors
/// What opening says. Damage is shown, and is no error but a status.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let doing = || format!("cannot dump {}", args.store.display());
    match dump_store(args, ui) {
        // Nobody reads on, so nobody misses the rest.
        Err(_) if ui.reader_gone() => Ok(Exit::Done),
        result => result.map_err(|error| error.doing(doing())),
    }
}

fn dump_store(args: &Args, ui: &Ui) -> Result<Exit> {
    let old = open_old::devices(&args.store, &args.old, None)?;
    let mut render: Box<dyn Render> = match args.format {
        Format::Text => Box::new(Text::default()),
        Format::Yaml => Box::new(Yaml::default()),
        Format::Json => Box::new(Json::new(if old.is_some() { dump::LEGACY_SCHEMA } else { dump::SCHEMA })),
    };
    let mut has_begun = false;
    let mut sink = |part: &dump::Part, last: bool| {
        // Not before there is something: what is refused as a whole is no document.
        if !std::mem::replace(&mut has_begun, true) {
            ui.print_text(&render.begin())?;
        }
        let text = if last { render.end(part) } else { render.part(part) };
        ui.print_text(&text)?;
        match ui.reader_gone() {
            true => Err(Error::new(Kind::Interrupted, "nobody reads on")),
            false => Ok(()),
        }
    };
    let (options, progress) = (options(args), ui.progress());
    let damaged = match old {
        Some(devices) => dump::dump_legacy(&devices, args.old.layout, &options, &mut sink, progress)?,
        None => dump::dump(open::store_reader(&args.store, &args.old)?, &options, &mut sink, progress)?,
    };
    if damaged == 0 {
        return Ok(Exit::Done);
    }
    ui.warn(&format!("{} is damaged: {damaged} things are marked as such in the dump", args.store.display()));
    Ok(Exit::Damaged)
}

fn options(args: &Args) -> Options {
    Options {
        superblock: args.superblock,
        checkpoint: args.checkpoint,
        snapshots: args.snapshots,
        log: args.log.map(|range| match range {
            None => LogRange::SinceCheckpoint,
            Some(Range(from, to)) => LogRange::Sequences(from..=to),
        }),
        index: args.index,
        space: args.space,
        chunk: args.chunk,
        record: args.record,
        hex: args.hex,
        anonymous: args.anonymous,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_sequences() {
        for (text, range) in [
            ("3..9", Range(3, 9)),
            ("3..", Range(3, u64::MAX)),
            ("..9", Range(0, 9)),
            ("..", Range(0, u64::MAX)),
        ] {
            assert_eq!(parse_range(text), Ok(range), "{text}");
        }
        for text in ["", "3", "9..3", "a..b", "3..-1", "3...9"] {
            assert!(parse_range(text).is_err(), "{text}");
        }
    }
}
