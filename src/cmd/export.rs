//! `export`: a point as an image that other programs open.

use super::common::{AcceptArgs, RateArgs, SnapName, VolArgs, parse_size};
use super::transfer::Limited;
use super::{open, overlap};
use crate::error::{Error, Kind, Result};
use crate::export::{BlockMap, Overlay, Qcow2Options, RawOptions, export_qcow2, export_raw};
use crate::format::qcow2::{self, Backing, BackingFormat, CLUSTER_BITS_MAX, CLUSTER_BITS_MIN, SECTOR_BYTES};
use crate::point::Point;
use crate::point::volume::Volume;
use crate::ui::exit::Exit;
use crate::ui::output::Output;
use crate::ui::{Ui, size};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

const EXAMPLES: &str = "Examples:
  ddsnap export data.snap 1 monday.img
  ddsnap export data.snap @0 newest.img --bmap newest.bmap
  ddsnap export data.snap 2 second.qcow2 --format qcow2
  ddsnap export data.snap 2 1-2.qcow2 --format qcow2 --from 1 --backing monday.img";

/// Write a snapshot or the origin as an image: raw and sparse, or QCOW2
///
/// The file appears under its name when it is complete and durable, or not at all. With --from and --backing, the
/// image holds only what changed since an older snapshot, and lies over an export of that. To fill a block device,
/// redirect 'ddsnap read' to it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    #[command(flatten)]
    vol: VolArgs,
    /// What to export: a tag, @N counted from the newest, a name, or 'origin'
    #[arg(value_name = "SNAP")]
    snap: SnapName,
    /// The image to make; '-' is standard output (raw, then not sparse)
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Format of the image
    #[arg(long, value_enum, default_value_t = Format::Raw)]
    format: Format,
    /// Write only what changed since this snapshot
    #[arg(long, value_name = "SNAP", requires = "backing")]
    from: Option<SnapName>,
    /// The image below: an older export of the snapshot that --from names, raw or QCOW2
    #[arg(long, value_name = "IMAGE", requires = "from")]
    backing: Option<PathBuf>,
    /// Size of a QCOW2 cluster: a power of two from 4k to 2M
    #[arg(long, value_name = "SIZE", value_parser = parse_cluster)]
    cluster_size: Option<u32>,
    /// Also write a block map of a raw image to PATH, for bmaptool
    #[arg(long, value_name = "PATH")]
    bmap: Option<PathBuf>,
    #[command(flatten)]
    accept: AcceptArgs,
    #[command(flatten)]
    rate: RateArgs,
}

/// What an export can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// The bytes of the volume; zeros are holes
    Raw,
    /// QCOW2, as QEMU and libvirt use it; zeros are not allocated
    Qcow2,
}

/// Clusters as QEMU makes them by default.
const CLUSTER_BITS: u32 = 16;

/// Reads a cluster size as its logarithm.
fn parse_cluster(text: &str) -> std::result::Result<u32, String> {
    let bytes = parse_size(text)?;
    let bits = bytes.trailing_zeros();
    if bytes.is_power_of_two() && (CLUSTER_BITS_MIN..=CLUSTER_BITS_MAX).contains(&bits) {
        return Ok(bits);
    }
    Err(format!("'{text}' is no cluster size: write a power of two from 4k to 2M"))
}

/// Runs the command.
///
/// # Errors
/// `Kind::Refused` for data that cannot be trusted or a block device as FILE; `Kind::Mismatch` for a backing image
/// of another size; what writing says.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let doing = || format!("cannot export {} of {}", args.snap, args.vol.vol.display());
    ensure_sense(args).and_then(|()| export(args, ui)).map_err(|error| error.doing(doing()))?;
    Ok(Exit::Done)
}

/// Options that do not fit the format.
fn ensure_sense(args: &Args) -> Result<()> {
    let wrong = |what: &str| Err(Error::new(Kind::Usage, what));
    match args.format {
        Format::Raw if args.from.is_some() => wrong("--from and --backing need --format qcow2"),
        Format::Raw if args.cluster_size.is_some() => wrong("--cluster-size needs --format qcow2"),
        Format::Qcow2 if args.bmap.is_some() => wrong("--bmap describes raw images only"),
        Format::Qcow2 if args.file.as_os_str() == "-" => {
            wrong("a QCOW2 image cannot be streamed: its header is written last")
        }
        _ => Ok(()),
    }
}

fn export(args: &Args, ui: &Ui) -> Result<()> {
    if std::fs::metadata(&args.file).is_ok_and(|meta| meta.file_type().is_block_device()) {
        return Err(Error::new(Kind::Refused, "it is a block device, whose content would be lost")
            .at_path(&args.file)
            .hint(format!("'ddsnap read VOL SNAP > {}' insists", args.file.display())));
    }
    let view = open::view_with_origin(&args.vol, ui)?;
    let info = view.info();
    let mut inputs = overlap::inputs(&info.store_path, &args.vol.old, open::origin_path(&args.vol, &info));
    inputs.extend(args.backing.clone());
    for output in [Some(&args.file), args.bmap.as_ref()].into_iter().flatten() {
        overlap::ensure_output_elsewhere(output, &inputs)?;
    }
    if args.bmap.as_ref().is_some_and(|map| *map == args.file || overlap::is_same(map, &args.file)) {
        return Err(Error::new(Kind::Usage, "FILE and the block map are the same").at_path(&args.file));
    }
    let point = open::readable_point(view.as_ref(), &args.vol.vol, &args.snap, &args.accept)?;
    view.hold(&[point.id])?;
    match args.format {
        Format::Raw => raw(args, view.as_ref(), &point, ui),
        Format::Qcow2 => overlay_or_image(args, view.as_ref(), &point, ui),
    }
}

fn raw(args: &Args, view: &dyn Volume, point: &Point, ui: &Ui) -> Result<()> {
    let mut map_output = args.bmap.as_deref().map(|path| Output::create_text(path, true)).transpose()?;
    let mut map = map_output.as_ref().map(|_| BlockMap::new());
    let output = Output::create(&args.file)?;
    let sparse = output.is_fresh_file();
    let mut output = Limited::new(output, args.rate.rate_limit, ui.stop_wanted());
    let options = RawOptions { sparse, map: map.as_mut() };
    export_raw(view, point, options, &mut output, ui.progress())
        .map_err(|error| error.at_path(&args.file))?;
    let mut output = output.into_inner();
    if sparse {
        output.set_size(point.size_bytes)?;
    }
    output.commit()?;
    // After the image: a map of an image that never came would describe nothing.
    if let (Some(map), Some(mut output)) = (map, map_output.take()) {
        map.write(point.size_bytes, &mut output)?;
        output.commit()?;
    }
    Ok(())
}

fn overlay_or_image(args: &Args, view: &dyn Volume, point: &Point, ui: &Ui) -> Result<()> {
    let from = args.from.as_ref();
    let from = from.map(|from| open::readable_point(view, &args.vol.vol, from, &args.accept)).transpose()?;
    view.hold(&from.iter().map(|from| from.id).collect::<Vec<_>>())?;
    let overlay = match (&from, &args.backing) {
        (Some(from), Some(path)) => {
            let format = backing_format(path, view, from)?;
            Some(Overlay { from, backing: Backing { name: backing_name(path, &args.file)?, format } })
        }
        _ => None,
    };
    let output = Output::create(&args.file)?;
    if !output.is_fresh_file() {
        let what = "a QCOW2 image needs a regular file: its header is written last";
        return Err(Error::new(Kind::Usage, what).at_path(&args.file));
    }
    let options = Qcow2Options { cluster_bits: args.cluster_size.unwrap_or(CLUSTER_BITS), overlay };
    let mut output = Limited::new(output, args.rate.rate_limit, ui.stop_wanted());
    let summary = export_qcow2(view, point, &options, &mut output, ui.progress())
        .map_err(|error| error.at_path(&args.file))?;
    output.into_inner().commit()?;
    if summary.disk_bytes != point.size_bytes {
        ui.warn(&format!(
            "the disk in {} has {} bytes, {} zeros more than the volume: QCOW2 counts sectors of {SECTOR_BYTES} bytes",
            args.file.display(),
            summary.disk_bytes,
            summary.disk_bytes.saturating_sub(point.size_bytes)
        ));
    }
    ui.explain(&format!(
        "{} clusters of data and {} of zeros in a file of {}",
        summary.data_clusters,
        summary.zero_clusters,
        size::human(summary.file_bytes)
    ));
    Ok(())
}

/// The format of the image below, which must be as large as the point that it is said to hold.
///
/// A guest may have written a QCOW2 header to the beginning of its disk, to make others open what it names. So a file
/// that begins as the disk does is raw, whatever it looks like.
fn backing_format(path: &Path, view: &dyn Volume, from: &Point) -> Result<BackingFormat> {
    let failed = |error| Error::io("cannot read the backing image", error).at_path(path);
    let file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(Error::new(Kind::Usage, "is no regular file").at_path(path));
    }
    let mut head = Vec::new();
    (&file).take(size_of::<qcow2::RawHeader>() as u64).read_to_end(&mut head).map_err(failed)?;
    let mut own = vec![0; head.len().min(usize::try_from(from.size_bytes).unwrap_or(usize::MAX))];
    view.read(from.id, 0, &mut own)?;
    let image = match own == head {
        true => None,
        false => qcow2::decode(&head).map_err(|error| error.at_path(path))?,
    };
    let (format, found) = match image {
        Some(image) => (BackingFormat::Qcow2, image.size_bytes),
        None => (BackingFormat::Raw, file.metadata().map_err(failed)?.len()),
    };
    let sectors = |bytes: u64| bytes.div_ceil(SECTOR_BYTES);
    if sectors(found) == sectors(from.size_bytes) {
        return Ok(format);
    }
    let what = format!("the disk in it has {found} bytes, the snapshot it should hold {}", from.size_bytes);
    Err(Error::new(Kind::Mismatch, what)
        .at_path(path)
        .hint("name an export of the snapshot that --from names"))
}

/// How `output` names the image at `path`: QEMU looks for a relative name beside the overlay.
fn backing_name(path: &Path, output: &Path) -> Result<Vec<u8>> {
    if path.is_absolute() {
        return Ok(path.as_os_str().as_bytes().to_vec());
    }
    let parent = |path: &Path| match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    // Links on the way are resolved, because the kernel resolves them before it goes up by "..".
    let real = |path: &Path| {
        std::fs::canonicalize(path).map_err(|error| Error::io("cannot find the folder", error).at_path(path))
    };
    let (below, above) = (real(&parent(path))?, real(&parent(output))?);
    let name = path.file_name().unwrap_or_default();
    let relative = relative(&below, &above).join(name);
    // A colon before the first slash would read as a protocol.
    let relative = if relative.parent() == Some(Path::new("")) && name.as_bytes().contains(&b':') {
        Path::new(".").join(relative)
    } else {
        relative
    };
    Ok(relative.as_os_str().as_bytes().to_vec())
}

/// The way from folder `from` to folder `to`, both absolute and free of links.
fn relative(to: &Path, from: &Path) -> PathBuf {
    let common = to.components().zip(from.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(common).map(|_| Component::ParentDir.as_os_str());
    let down = to.components().skip(common).map(Component::as_os_str);
    up.chain(down).map(OsStr::to_os_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backing_image_is_named_from_where_the_overlay_lies() {
        let way = |to: &str, from: &str| relative(Path::new(to), Path::new(from)).display().to_string();
        assert_eq!(way("/a/b", "/a/b"), "");
        assert_eq!(way("/a/b/c", "/a/b"), "c");
        assert_eq!(way("/a/x/c", "/a/b/d"), "../../x/c");
        assert_eq!(way("/", "/a"), "..");
    }

    #[test]
    fn names_that_would_read_as_a_protocol_are_disguised() {
        let folder = tempfile::tempdir().unwrap();
        let name = |path: &str| {
            let name = backing_name(Path::new(path), &folder.path().join("over")).unwrap();
            String::from_utf8(name).unwrap()
        };
        assert_eq!(name("/x:y"), "/x:y");
        let inside = std::env::current_dir().unwrap();
        assert_eq!(backing_name(Path::new("a:b"), &inside.join("over")).unwrap(), b"./a:b");
        assert_eq!(backing_name(Path::new("ab"), &inside.join("over")).unwrap(), b"ab");
    }

    #[test]
    fn cluster_sizes_are_powers_of_two_in_bounds() {
        assert_eq!(parse_cluster("64k"), Ok(16));
        assert_eq!(parse_cluster("2M"), Ok(21));
        for text in ["2k", "4M", "5k", "0", "x"] {
            assert!(parse_cluster(text).is_err(), "{text}");
        }
    }
}
