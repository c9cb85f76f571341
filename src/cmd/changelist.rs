//! `changelist`: which chunks differ between two points.

use super::changed_blocks::{self, PageArgs};
use super::common::{AcceptArgs, BlockSizeArgs, OldArgs, VolArgs};
use super::overlap;
use super::source::{COMPARE_CHUNK_BITS, List, Source, snap_name, wrong_operands};
use crate::delta::write_changelist;
use crate::error::{Error, Kind, Result};
use crate::format::changelist::Header;
use crate::ui::Ui;
use crate::ui::exit::Exit;
use crate::ui::output::Output;
use crate::units::Tag;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "Examples:
  ddsnap changelist data.snap 1-2.cl 1 2
  ddsnap changelist --json data.snap monday origin
  ddsnap changelist --json --max-results 100 data.snap 2
  ddsnap changelist --compare monday.img data.img today.cl
  ddsnap changelist --import thin.xml today.cl";

/// List the chunks that differ between two points
///
/// The list names every chunk that differs, and may name some that do not. Making it takes time in
/// proportion to what changed. With --json and only one snapshot, its allocated ranges are listed. With
/// --compare, two plain devices or files are read and compared instead. With --import, the list is what
/// thin_delta, era_invalidate or nbdinfo printed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
#[command(override_usage = "ddsnap changelist [OPTIONS] VOL CHANGELIST SNAP1 SNAP2
       ddsnap changelist [OPTIONS] --compare OLD NEW CHANGELIST
       ddsnap changelist [OPTIONS] --import LIST CHANGELIST
       ddsnap changelist [OPTIONS] --json VOL [SNAP1] SNAP2
       ddsnap changelist [OPTIONS] --json --compare OLD NEW")]
pub struct Args {
    /// See above; '-' as CHANGELIST is standard output, where JSON goes by itself
    #[arg(value_name = "OPERAND", required = true, num_args = 1..=4)]
    operands: Vec<OsString>,
    /// Compare two plain devices or files
    #[arg(long)]
    compare: bool,
    /// Convert what another tool printed; '-' is standard input
    #[arg(long, value_name = "LIST", conflicts_with_all = ["compare", "json", "origin"])]
    import: Option<PathBuf>,
    #[command(flatten)]
    block_size: BlockSizeArgs,
    /// Write JSON (schema ddsnap.changelist/1) instead of the format of 2008
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    page: PageArgs,
    /// Where the origin is now, if not where the store remembers it
    #[arg(long, value_name = "PATH", conflicts_with = "compare")]
    origin: Option<PathBuf>,
    #[command(flatten)]
    old: OldArgs,
    #[command(flatten)]
    accept: AcceptArgs,
}

/// Runs the command.
///
/// # Errors
/// `Kind::NotFound`, `Kind::Refused` for the points; what writing says.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let first = args.operands.first().map(|first| first.display().to_string()).unwrap_or_default();
    let done = match &args.import {
        Some(list) => import(args, list, ui)
            .map_err(|error| error.doing(format!("cannot import changes from {}", list.display()))),
        None => make(args, ui).map_err(|error| error.doing(format!("cannot list changes in {first}"))),
    };
    done.map(|()| Exit::Done)
}

fn make(args: &Args, ui: &Ui) -> Result<()> {
    if args.block_size.block_size.is_some() {
        return Err(Error::new(
            Kind::Usage,
            "--block-size is for lists of other tools: it goes with --import",
        ));
    }
    let (source, path) = source(args, ui)?;
    source.ensure_output_elsewhere(path)?;
    let to = source.point(source.to)?;
    let from = source.from.map(|id| source.point(id)).transpose()?;
    let chunk_bits = source.points().chunk_bits();
    let mut output = Output::create_text(path, args.json)?;
    if args.json {
        let changes = source.points().changed(source.from, source.to)?;
        let points = (from.as_ref(), &to);
        let bytes = changed_blocks::write(points, chunk_bits, changes, &args.page, &mut output, ui)?;
        output.commit()?;
        ui.explain(&format!("{bytes} bytes may differ"));
        return Ok(());
    }
    let changes = source.points().listed(source.from, source.to)?;
    let header = Header { chunk_bits, source: from.map_or(Tag::ORIGIN, |point| point.tag), target: to.tag };
    let chunks = write_changelist(&header, changes, &mut output, ui.progress())?.chunks;
    output.commit()?;
    ui.explain(&format!("{chunks} chunks of {} bytes may differ", 1u64 << chunk_bits));
    Ok(())
}

fn import(args: &Args, list: &Path, ui: &Ui) -> Result<()> {
    let [path] = args.operands.as_slice() else { return Err(wrong_operands("CHANGELIST", &args.operands)) };
    let path = Path::new(path);
    overlap::ensure_output_elsewhere(path, &[list])?;
    let block_size = args.block_size.block_size;
    let list = if list.as_os_str() == "-" {
        List::import(Box::new(ui.data_input()?), Path::new("standard input"), block_size)?
    } else {
        let file = File::open(list).map_err(|error| Error::io("cannot open", error).at_path(list))?;
        List::import(Box::new(file), list, block_size)?
    };
    let header = Header { chunk_bits: list.chunk_bits, source: list.tags.0, target: list.tags.1 };
    let mut output = Output::create(path)?;
    let chunks = write_changelist(&header, list.changes(0)?, &mut output, ui.progress())?.chunks;
    output.commit()?;
    ui.explain(&format!("{chunks} chunks of {} bytes may differ", 1u64 << header.chunk_bits));
    Ok(())
}

fn source<'a>(args: &'a Args, ui: &Ui) -> Result<(Source, &'a Path)> {
    let stdout = Path::new("-");
    if args.compare {
        let (old, new, path) = match args.operands.as_slice() {
            [old, new, path] => (old, new, Path::new(path)),
            [old, new] if args.json => (old, new, stdout),
            found => return Err(wrong_operands("OLD NEW CHANGELIST", found)),
        };
        let (old, new) = ((Path::new(old), Tag(0)), (Path::new(new), Tag(1)));
        return Ok((Source::files(old, new, COMPARE_CHUNK_BITS, false)?, path));
    }
    let (vol, path, from, to) = match args.operands.as_slice() {
        [vol, path, from, to] => (vol, Path::new(path), Some(from), to),
        [vol, from, to] if args.json => (vol, stdout, Some(from), to),
        [vol, to] if args.json => (vol, stdout, None, to),
        found => return Err(wrong_operands("VOL CHANGELIST SNAP1 SNAP2", found)),
    };
    let vol = VolArgs { vol: vol.into(), origin: args.origin.clone(), old: args.old.clone() };
    let (from, to) = (from.map(|from| snap_name(from)).transpose()?, snap_name(to)?);
    // What is allocated can only be told with the origin at hand.
    let with_data = from.is_none();
    Ok((Source::volume(&vol, from.as_ref(), &to, &args.accept, with_data, ui)?, path))
}
