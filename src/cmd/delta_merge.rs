//! `delta merge`: several deltas into one.

use super::delta::open;
use super::overlap::ensure_output_elsewhere;
use crate::block::ReadAt;
use crate::block::file::FileReader;
use crate::delta::{MergeInput, MergeOptions, merge};
use crate::error::{Error, Kind, Result};
use crate::ui::exit::Exit;
use crate::ui::output::Output;
use crate::ui::{Ui, size};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "Examples:
  ddsnap delta merge 1-2.delta 2-now.delta -o 1-now.delta
  ddsnap delta merge --base monday.img 1-2.delta 2-now.delta | ddsnap delta verify - monday.img";

/// Make one delta of several that follow each other
///
/// What takes a to b and what takes b to c becomes what takes a to c. Each delta must start from the point that
/// the one before makes. A whole volume first, with deltas after it, becomes the whole volume as it was last.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The deltas in their order; '-' is standard input, once
    #[arg(value_name = "DELTA", required = true, num_args = 1..)]
    deltas: Vec<PathBuf>,
    /// Where the merged delta goes; '-' is standard output
    #[arg(short, long, value_name = "DELTA", default_value = "-")]
    output: PathBuf,
    /// A device or file with the state that the first delta applies to, where data of it is needed
    #[arg(long, value_name = "PATH")]
    base: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// `Kind::Mismatch` if a delta does not follow the one before; `Kind::Refused` if the base is needed and was not
/// named; `Kind::Damaged` for a bad delta.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    run_merge(args, ui).map_err(|error| error.doing("cannot merge deltas"))?;
    Ok(Exit::Done)
}

fn run_merge(args: &Args, ui: &Ui) -> Result<()> {
    if args.deltas.len() < 2 {
        return Err(Error::new(Kind::Usage, "one delta is nothing to merge: expected two or more"));
    }
    if args.deltas.iter().filter(|path| path.as_os_str() == "-").count() > 1 {
        return Err(Error::new(Kind::Usage, "standard input can be read once, not as two deltas"));
    }
    let paths: Vec<&Path> = args.deltas.iter().chain(&args.base).map(PathBuf::as_path).collect();
    ensure_output_elsewhere(&args.output, &paths)?;
    let base = args.base.as_deref().map(FileReader::open_origin_read).transpose()?;
    let base = base.as_ref().map(|base| base as &dyn ReadAt);
    let inputs = args.deltas.iter().map(|path| Ok(MergeInput { path: path.clone(), bytes: open(path, ui)? }));
    let inputs = inputs.collect::<Result<Vec<_>>>()?;
    let mut output = Output::create(&args.output)?;
    let summary = merge(inputs, &MergeOptions { base, threads: 0 }, &mut output, ui.progress())?;
    output.commit()?;
    ui.explain(&format!(
        "{} deltas in one of {}, for {} chunks ({})",
        args.deltas.len(),
        size::human(summary.stream_bytes),
        summary.chunks,
        size::human(summary.data_bytes)
    ));
    Ok(())
}
