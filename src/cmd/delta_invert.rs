//! `delta invert`: the delta that goes back.

use super::overlap::ensure_output_elsewhere;
use crate::block::file::FileReader;
use crate::delta::{Input, invert};
use crate::error::Result;
use crate::ui::exit::Exit;
use crate::ui::output::Output;
use crate::ui::{Ui, size};
use std::path::PathBuf;

const EXAMPLES: &str = "Examples:
  ddsnap delta invert 1-2.delta monday.img -o 2-1.delta
  ddsnap delta invert 1-2.delta monday.img | ddsnap apply-delta - second.img";

/// Make the delta that goes back
///
/// What takes a to b becomes what takes b to a. BASE is a: the state that the delta applies to, which is read for
/// what the delta overwrites or cuts off. Nothing of it is changed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The delta; '-' is standard input
    #[arg(value_name = "DELTA")]
    delta: PathBuf,
    /// The device or file that the delta applies to, before it is applied
    #[arg(value_name = "BASE")]
    base: PathBuf,
    /// Where the inverse goes; '-' is standard output
    #[arg(short, long, value_name = "DELTA", default_value = "-")]
    output: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// `Kind::Mismatch` if BASE is not what the delta was made from; `Kind::Damaged` for a bad delta.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let doing = || format!("cannot invert delta {}", args.delta.display());
    run_invert(args, ui).map_err(|error| error.doing(doing()))?;
    Ok(Exit::Done)
}

fn run_invert(args: &Args, ui: &Ui) -> Result<()> {
    ensure_output_elsewhere(&args.output, &[&args.delta, &args.base])?;
    let mut input = match args.delta.as_os_str() == "-" {
        true => Input::from_reader(Box::new(ui.data_input()?)),
        false => Input::open(&args.delta)?,
    };
    let base = FileReader::open_origin_read(&args.base)?;
    let mut output = Output::create(&args.output)?;
    let summary = invert(&mut input, &base, 0, &mut output, ui.progress())?;
    output.commit()?;
    ui.explain(&format!(
        "{} chunks ({}) in a delta of {}",
        summary.chunks,
        size::human(summary.data_bytes),
        size::human(summary.stream_bytes)
    ));
    Ok(())
}
