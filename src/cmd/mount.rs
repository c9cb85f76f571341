//! `mount`: points of a volume, or what a delta makes, as files.

use super::common::{AcceptArgs, OldArgs, SnapName, VolArgs};
use super::daemon::{self, Stage};
use super::open;
use crate::block::ReadAt;
use crate::block::file::FileReader;
use crate::delta::Patched;
use crate::error::{Error, Kind, Result};
use crate::point::volume::{SnapshotState, Volume};
use crate::point::{Point, PointSource};
use crate::serve::front::Serve;
use crate::serve::frozen::{Frozen, ReadOnly};
use crate::serve::fuse::Fuse;
use crate::ui::Ui;
use crate::ui::exit::Exit;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const EXAMPLES: &str = "Examples:
  ddsnap mount data.snap 1 point
  ddsnap mount --delta 1-2.delta --base monday.img point";

/// Show points of a volume, or what a delta makes of its base, as files that can only be read
///
/// With SNAP, DIR holds the one file 'volume', else 'origin' and 'snap/TAG' for each snapshot there is. A file system
/// in such a file can be mounted: 'mount -o ro,loop DIR/volume /mnt'. The command returns once the files are there;
/// 'fusermount3 -u DIR' (or 'umount DIR') ends it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
#[command(override_usage = "ddsnap mount [OPTIONS] VOL [SNAP] DIR\n       \
                            ddsnap mount [OPTIONS] --delta DELTA [--base DEV] DIR")]
pub struct Args {
    /// The volume, a point of it (all, if left out), and an empty folder
    #[arg(value_name = "VOL SNAP DIR", num_args = 1..=3, required = true)]
    operands: Vec<PathBuf>,
    /// Where the origin is now, if not where the store remembers it
    #[arg(long, value_name = "PATH")]
    origin: Option<PathBuf>,
    #[command(flatten)]
    old: OldArgs,
    #[command(flatten)]
    accept: AcceptArgs,
    /// Show what this delta makes, in the file 'volume'
    #[arg(long, value_name = "DELTA", conflicts_with_all = ["origin", "meta", "layout"])]
    delta: Option<PathBuf>,
    /// What the delta was made from: a device, or a file
    #[arg(long, value_name = "DEV", requires = "delta")]
    base: Option<PathBuf>,
    /// Stay in the foreground until it is unmounted, or interrupted
    #[arg(short, long)]
    foreground: bool,
}

/// Runs the command.
///
/// # Errors
/// What opening says; `Kind::Unsupported` where FUSE is not to be had.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let doing = || {
        let folder = args.operands.last().map(|folder| folder.display().to_string());
        format!("cannot mount at {}", folder.unwrap_or_default())
    };
    match (args.foreground, Stage::of_this()) {
        (false, Stage::First) => daemon::launch(),
        (false, Stage::Session) => daemon::lead(),
        (false, Stage::Server) => serve(args, ui).inspect_err(|error| daemon::tell_failure(error.kind(), ui)),
        (true, _) => serve(args, ui),
    }
    .map_err(|error| error.doing(doing()))
}

/// How often it is looked whether somebody has ended it.
const PAUSE: Duration = Duration::from_millis(50);

fn serve(args: &Args, ui: &Ui) -> Result<Exit> {
    let (exports, folder) = exports(args, ui)?;
    let mounted = Fuse::mount(Arc::new(exports), folder, true)?;
    if !args.foreground {
        let failed = |error| Error::io("cannot leave the current folder", error);
        std::env::set_current_dir("/").map_err(failed)?;
        daemon::silence()?;
        daemon::tell_up(ui)?;
    }
    while !mounted.is_over() && !ui.interrupted() {
        std::thread::sleep(PAUSE);
    }
    mounted.stop();
    Ok(Exit::Done)
}

/// What is to be shown, and where.
fn exports<'a>(args: &'a Args, ui: &Ui) -> Result<(Frozen, &'a Path)> {
    let wrong = |what: &str| Err(Error::new(Kind::Usage, what));
    let mut frozen = Frozen::default();
    match (&args.delta, args.operands.as_slice()) {
        (Some(delta), [folder]) => {
            let open = |path: &Path| Ok(Arc::new(FileReader::open_origin_read(path)?) as Arc<dyn ReadAt>);
            let base = args.base.as_deref().map(open).transpose()?;
            let patched = Patched::open(open(delta)?, base)?;
            let export = ReadOnly::new(patched.size(), move |offset, buf| patched.read_at(buf, offset));
            frozen.0.insert("volume".to_owned(), Arc::new(export));
            Ok((frozen, folder))
        }
        (None, [vol, folder]) => {
            let view = open_volume(args, vol, ui)?;
            let points = points(view.as_ref(), vol, args)?;
            view.hold(&points.iter().map(|point| point.1.id).collect::<Vec<_>>())?;
            for point in points {
                frozen.0.insert(point.0, point_export(&view, &point.1));
            }
            Ok((frozen, folder))
        }
        (None, [vol, snap, folder]) => {
            let name = snap.to_str().ok_or_else(|| Error::new(Kind::Usage, "SNAP is no text"))?;
            let name: SnapName = name.parse().map_err(|what: String| Error::new(Kind::Usage, what))?;
            let view = open_volume(args, vol, ui)?;
            let point = open::readable_point(view.as_ref(), vol, &name, &args.accept)?;
            view.hold(&[point.id])?;
            frozen.0.insert("volume".to_owned(), point_export(&view, &point));
            Ok((frozen, folder))
        }
        (Some(_), _) => wrong("with --delta, DIR is the only operand"),
        (None, _) => wrong("name the volume and the folder: VOL [SNAP] DIR"),
    }
}

fn open_volume(args: &Args, vol: &Path, ui: &Ui) -> Result<Arc<dyn Volume>> {
    let old = args.old.clone();
    let args = VolArgs { vol: vol.to_path_buf(), origin: args.origin.clone(), old };
    open::view_with_origin(&args, ui).map(Arc::from)
}

/// Every point that may be read, by the name that the server has for it.
fn points(view: &dyn Volume, vol: &Path, args: &Args) -> Result<Vec<(String, Point)>> {
    let mut points = Vec::new();
    for snapshot in view.snapshots() {
        if snapshot.state == SnapshotState::Normal && (!snapshot.tainted || args.accept.accept_taint) {
            let name = SnapName::Tag(snapshot.tag);
            let point = open::readable_point(view, vol, &name, &args.accept)?;
            points.push((format!("snap/{}", snapshot.tag), point));
        }
    }
    if let Ok(point) = open::readable_point(view, vol, &SnapName::Origin, &args.accept) {
        points.push(("origin".to_owned(), point));
    }
    Ok(points)
}

fn point_export(view: &Arc<dyn Volume>, point: &Point) -> Arc<ReadOnly> {
    let (view, id) = (Arc::clone(view), point.id);
    Arc::new(ReadOnly::new(point.size_bytes, move |offset, buf| {
        PointSource::read(view.as_ref(), id, offset, buf)
    }))
}
