//! `read`: bytes of a point to standard output.

use super::common::{AcceptArgs, RateArgs, SnapName, VolArgs, parse_size};
use super::open;
use super::transfer::{Limited, read_pieces};
use crate::error::{Error, Kind, Result};
use crate::point::PointId;
use crate::ui::Ui;
use crate::ui::exit::Exit;
use crate::ui::output::Output;
use std::io::Write;
use std::path::Path;

const EXAMPLES: &str = "Examples:
  ddsnap read data.snap 1 > monday.img
  ddsnap read data.snap 2 --offset 64k --length 4k | od -c
  ddsnap read data.snap origin | cmp - data.img";

/// Write bytes of a snapshot or the origin to standard output
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    #[command(flatten)]
    vol: VolArgs,
    /// What to read: a tag, @N counted from the newest, a name, or 'origin'
    #[arg(value_name = "SNAP")]
    snap: SnapName,
    /// Byte to begin with
    #[arg(long, value_name = "N", value_parser = parse_size, default_value = "0")]
    offset: u64,
    /// How many bytes; all up to the end by default
    #[arg(long, value_name = "N", value_parser = parse_size)]
    length: Option<u64>,
    #[command(flatten)]
    accept: AcceptArgs,
    #[command(flatten)]
    rate: RateArgs,
}

/// Runs the command.
///
/// # Errors
/// `Kind::Usage` for a range outside the point; `Kind::Refused` for data that cannot be trusted.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let doing = || format!("cannot read {} of {}", args.snap, args.vol.vol.display());
    read(args, ui).map_err(|error| error.doing(doing()))?;
    Ok(Exit::Done)
}

fn read(args: &Args, ui: &Ui) -> Result<()> {
    let view = open::view_with_origin(&args.vol, ui)?;
    let point = open::readable_point(view.as_ref(), &args.vol.vol, &args.snap, &args.accept)?;
    // The origin is read as it is, which is what a pipe of bytes from a device is.
    if point.id != PointId::Origin {
        view.hold(&[point.id])?;
    }
    let end = match args.length {
        None => Some(point.size_bytes),
        Some(length) => args.offset.checked_add(length),
    };
    let Some(end) = end.filter(|end| args.offset <= *end && *end <= point.size_bytes) else {
        let what = format!("the range asked for ends past the size, {} bytes", point.size_bytes);
        return Err(Error::new(Kind::Usage, what));
    };
    let mut output = Limited::new(Output::create(Path::new("-"))?, args.rate.rate_limit, ui.stop_wanted());
    ui.progress().stage("reading", Some(end - args.offset));
    read_pieces(view.as_ref(), &point, (args.offset, end), ui.progress(), |piece| {
        output.write_all(piece).map_err(|error| Error::io("cannot write to standard output", error))
    })?;
    output.into_inner().commit()
}
