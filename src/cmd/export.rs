//! `export`: a point as a sparse raw image.

use super::common::{AcceptArgs, RateArgs, SnapName, VolArgs};
use super::open;
use super::transfer::{Limited, read_pieces};
use crate::error::{Error, Kind, Result};
use crate::point::Point;
use crate::store::View;
use crate::ui::Ui;
use crate::ui::exit::Exit;
use crate::ui::output::Output;
use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

/// Zeros are skipped in units of a file system's blocks.
const HOLE_BYTES: usize = 4096;

const EXAMPLES: &str = "Examples:
  ddsnap export data.snap 1 monday.img
  ddsnap export data.snap @0 newest.img";

/// Write a snapshot or the origin as a sparse raw image
///
/// The file appears under its name when it is complete and durable, or not at all. To fill a block device,
/// redirect 'ddsnap read' to it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    #[command(flatten)]
    vol: VolArgs,
    /// What to export: a tag, @N counted from the newest, a name, or 'origin'
    #[arg(value_name = "SNAP")]
    snap: SnapName,
    /// The image to make; '-' is standard output (then not sparse)
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    accept: AcceptArgs,
    #[command(flatten)]
    rate: RateArgs,
}

/// Runs the command.
///
/// # Errors
/// `Kind::Refused` for data that cannot be trusted or a block device as FILE; what writing says.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let doing = || format!("cannot export {} of {}", args.snap, args.vol.vol.display());
    export(args, ui).map_err(|error| error.doing(doing()))?;
    Ok(Exit::Done)
}

fn export(args: &Args, ui: &Ui) -> Result<()> {
    if std::fs::metadata(&args.file).is_ok_and(|meta| meta.file_type().is_block_device()) {
        return Err(Error::new(Kind::Refused, "it is a block device, whose content would be lost")
            .at_path(&args.file)
            .hint(format!("'ddsnap read VOL SNAP > {}' insists", args.file.display())));
    }
    let view = open::view_with_origin(&args.vol)?;
    let origin = open::origin_path(&args.vol, &view.info());
    open::ensure_output_elsewhere(&args.file, &[&args.vol.vol, &origin])?;
    let point = open::readable_point(&view, &args.vol.vol, &args.snap, &args.accept)?;
    let mut output = Limited::new(Output::create(&args.file)?, args.rate.rate_limit, ui.stop_wanted());
    ui.progress().stage("exporting", Some(point.size_bytes));
    copy(&view, &point, &mut output, ui)?;
    let mut output = output.into_inner();
    if output.is_fresh_file() {
        output.set_size(point.size_bytes)?;
    }
    output.commit()
}

fn copy(view: &View, point: &Point, output: &mut Limited<Output>, ui: &Ui) -> Result<()> {
    let sparse = output.get_mut().is_fresh_file();
    let path = output.get_mut().path().to_path_buf();
    read_pieces(view, point, (0, point.size_bytes), ui.progress(), |piece| {
        let mut rest = piece;
        while !rest.is_empty() {
            let (zeros, len) = run_length(rest, sparse);
            let (now, later) = rest.split_at(len);
            if zeros {
                output.get_mut().skip(len as u64)?;
            } else {
                output.write_all(now).map_err(|error| Error::io("cannot write", error).at_path(&path))?;
            }
            rest = later;
        }
        Ok(())
    })
}

/// How long the bytes go on as they begin: in blocks of zeros, or not.
fn run_length(bytes: &[u8], sparse: bool) -> (bool, usize) {
    let mut blocks = bytes.chunks(HOLE_BYTES).map(|block| (sparse && is_zero(block), block.len()));
    let Some((zeros, first)) = blocks.next() else { return (false, 0) };
    let more: usize = blocks.take_while(|block| block.0 == zeros).map(|block| block.1).sum();
    (zeros, first + more)
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_whose_last_byte_is_set_is_no_hole() {
        let mut bytes = vec![0; 3 * HOLE_BYTES + 10];
        bytes[2 * HOLE_BYTES - 1] = 1;
        assert_eq!(run_length(&bytes, true), (true, HOLE_BYTES));
        assert_eq!(run_length(&bytes[HOLE_BYTES..], true), (false, HOLE_BYTES));
        assert_eq!(run_length(&bytes[2 * HOLE_BYTES..], true), (true, HOLE_BYTES + 10));
        assert_eq!(run_length(&bytes, false), (false, bytes.len()));
    }
}
