//! `changelist`: which chunks differ between two points.

use super::common::{AcceptArgs, BlockSizeArgs, VolArgs};
use super::open;
use super::source::{COMPARE_CHUNK_BITS, List, Source, snap_name, wrong_operands};
use crate::delta::write_changelist;
use crate::error::{Error, Kind, Result};
use crate::format::changelist::Header;
use crate::point::Changes;
use crate::ui::Ui;
use crate::ui::exit::Exit;
use crate::ui::output::Output;
use crate::units::Tag;
use serde_json::json;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "Examples:
  ddsnap changelist data.snap 1-2.cl 1 2
  ddsnap changelist --json data.snap - monday origin
  ddsnap changelist --compare monday.img data.img today.cl
  ddsnap changelist --import thin.xml today.cl";

/// List the chunks that differ between two points
///
/// The list names every chunk that differs, and may name some that do not. Making it takes time in
/// proportion to what changed. With --compare, two plain devices or files are read and compared instead. With
/// --import, the list is what thin_delta, era_invalidate or nbdinfo printed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
#[command(override_usage = "ddsnap changelist [OPTIONS] VOL CHANGELIST SNAP1 SNAP2
       ddsnap changelist [OPTIONS] --compare OLD NEW CHANGELIST
       ddsnap changelist [OPTIONS] --import LIST CHANGELIST")]
pub struct Args {
    /// VOL CHANGELIST SNAP1 SNAP2, or OLD NEW CHANGELIST, or CHANGELIST; '-' as CHANGELIST is standard output
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
    /// Where the origin is now, if not where the store remembers it
    #[arg(long, value_name = "PATH", conflicts_with = "compare")]
    origin: Option<PathBuf>,
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
    let (source, path) = source(args)?;
    source.ensure_output_elsewhere(path)?;
    let changes = source.points().changed(source.from, source.to)?;
    let to = source.point(source.to)?;
    let from_tag = source.from.map(|id| source.point(id)).transpose()?.map_or(Tag::ORIGIN, |point| point.tag);
    let header = Header { chunk_bits: source.points().chunk_bits(), source: from_tag, target: to.tag };
    let mut output = Output::create_text(path, args.json)?;
    let chunks = if args.json {
        write_json(&header, to.size_bytes, changes, &mut output, ui)?
    } else {
        write_changelist(&header, changes, &mut output, ui.progress())?.chunks
    };
    output.commit()?;
    ui.explain(&format!("{chunks} chunks of {} bytes may differ", 1u64 << header.chunk_bits));
    Ok(())
}

fn import(args: &Args, list: &Path, ui: &Ui) -> Result<()> {
    let [path] = args.operands.as_slice() else { return Err(wrong_operands("CHANGELIST", &args.operands)) };
    let path = Path::new(path);
    open::ensure_output_elsewhere(path, &[list])?;
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

fn source(args: &Args) -> Result<(Source, &Path)> {
    match (args.compare, args.operands.as_slice()) {
        (true, [old, new, path]) => {
            let (old, new) = ((Path::new(old), Tag(0)), (Path::new(new), Tag(1)));
            Ok((Source::files(old, new, COMPARE_CHUNK_BITS, false)?, Path::new(path)))
        }
        (false, [vol, path, from, to]) => {
            let vol = VolArgs { vol: vol.into(), origin: args.origin.clone() };
            let (from, to) = (snap_name(from)?, snap_name(to)?);
            Ok((Source::volume(&vol, Some(&from), &to, &args.accept, false)?, Path::new(path)))
        }
        (true, found) => Err(wrong_operands("OLD NEW CHANGELIST", found)),
        (false, found) => Err(wrong_operands("VOL CHANGELIST SNAP1 SNAP2", found)),
    }
}

/// One document in the words of the changed-block API of Kubernetes, written as it is found: nothing is held
/// in memory but one range.
fn write_json(header: &Header, size: u64, changes: Changes<'_>, output: &mut Output, ui: &Ui) -> Result<u64> {
    let fail = |error| Error::io("cannot write the list", error);
    let mut output = BufWriter::new(output);
    let name = |tag: Tag| if tag == Tag::ORIGIN { json!("origin") } else { json!(tag.0) };
    let head = json!({
        "schema": "ddsnap.changelist/1",
        "base": name(header.source),
        "target": name(header.target),
        "chunk_size": 1u64 << header.chunk_bits,
        "volume_capacity_bytes": size,
        "block_metadata_type": "VARIABLE_LENGTH",
    })
    .to_string();
    let head = head.strip_suffix('}').unwrap_or(&head);
    write!(output, "{head},\"block_metadata\":[").map_err(fail)?;
    let mut chunks = 0;
    for (index, range) in changes.enumerate() {
        ui.progress().check()?;
        let range = range?;
        let start = range.start << header.chunk_bits;
        let end = (range.end << header.chunk_bits).min(size);
        let comma = if index == 0 { "" } else { "," };
        let block = json!({ "byte_offset": start, "size_bytes": end.saturating_sub(start) });
        write!(output, "{comma}{block}").map_err(fail)?;
        chunks += range.end - range.start;
    }
    writeln!(output, "]}}").and_then(|()| output.flush()).map_err(fail)?;
    Ok(chunks)
}
