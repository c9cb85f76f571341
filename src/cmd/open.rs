//! Opening stores and origins, and refusing what must not be opened.

use super::common::{AcceptArgs, OldArgs, SnapName, TAINT, VolArgs};
use super::{open_old, overlap};
use crate::block::counted::{Counting, Counts};
use crate::block::file::{FileReader, FileWriter};
use crate::block::mount;
use crate::block::overlay::Overlay;
use crate::block::{ReadAt, WriteAt};
use crate::dm::device;
use crate::error::{Error, Kind, Result};
use crate::format::superblock;
use crate::point::volume::{Administer, Rewrite, Volume};
use crate::point::{Point, PointId};
use crate::serve::control::Client;
use crate::store::{PendingOperation, SnapshotInfo, SnapshotState, StoreInfo, View, Writer, switch};
use crate::ui::{Ui, time};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Opens a store of any kind for reading its tables, without its origin, or the volume of a server.
///
/// # Errors
/// `Kind::Busy` if a writer holds it; `Kind::NotFound` if the server has ended.
pub fn view(vol: &Path, old: &OldArgs, ui: &Ui) -> Result<Box<dyn Volume>> {
    if is_served(vol) {
        return Ok(Box::new(server(vol, old, None)?));
    }
    match open_old::store(vol, old, None, ui)? {
        Some(store) => Ok(Box::new(store)),
        None => Ok(Box::new(current_view(vol, old)?)),
    }
}

/// As [`view`], of a store that commands can change.
///
/// # Errors
/// As [`view`]; `Kind::Refused` for a store of 2008.
pub fn current_view(vol: &Path, old: &OldArgs) -> Result<View> {
    View::open(store_reader(vol, old)?, None).map_err(|error| error.at_path(vol))
}

/// As [`current_view`], or the volume of a server.
///
/// # Errors
/// As [`current_view`].
pub fn changer_view(args: &VolArgs) -> Result<Box<dyn Volume>> {
    match is_served(&args.vol) {
        true => Ok(Box::new(Client::connect(&args.vol)?)),
        false => Ok(Box::new(current_view(&args.vol, &args.old)?)),
    }
}

/// Opens a store of any kind for reading data, with its origin.
///
/// # Errors
/// As [`view`]; `Kind::NotFound` if the origin is not where it is remembered.
pub fn view_with_origin(args: &VolArgs, ui: &Ui) -> Result<Box<dyn Volume>> {
    if is_served(&args.vol) {
        return Ok(Box::new(server(&args.vol, &args.old, args.origin.as_deref())?));
    }
    // An origin is needed only where snapshots share with it, and a store of 2008 does not know where it is.
    match open_old::store(&args.vol, &args.old, args.origin.as_deref(), ui)? {
        Some(store) => Ok(Box::new(store)),
        None => Ok(Box::new(current_view_with_origin(args)?)),
    }
}

/// As [`view_with_origin`], of a store that commands can change.
///
/// # Errors
/// As [`view_with_origin`]; `Kind::Refused` for a store of 2008.
pub fn current_view_with_origin(args: &VolArgs) -> Result<View> {
    let view = current_view(&args.vol, &args.old)?;
    let info = view.info();
    let path = origin_path(args, &info);
    ensure_not_the_store(&args.vol, &path)?;
    let origin = FileReader::open_origin_read(&path).map_err(|error| origin_hint(args, error))?;
    ensure_origin_size(&origin, &info)?;
    view.with_origin(Arc::new(origin)).map_err(|error| error.at_path(&args.vol))
}

/// Opens a store for changing its tables, without its origin.
///
/// # Errors
/// As [`view`]; `Kind::Busy` if anyone holds it.
pub fn writer(vol: &Path, old: &OldArgs) -> Result<Writer> {
    let store = store_writer(vol, old)?;
    Writer::open(Arc::new(store), None, time::now_secs()).map_err(|error| error.at_path(vol))
}

/// Opens a store and its origin for changing both.
///
/// # Errors
/// As [`writer`]; `Kind::Busy` if the origin is mounted or in use; `Kind::NotFound` if it is not where it is
/// remembered.
pub fn writer_with_origin(args: &VolArgs) -> Result<Writer> {
    writer_over(args, |store| Arc::new(store), |origin| Arc::new(origin), ensure_not_attached)
}

/// As [`writer_with_origin`], counting what is done with both.
///
/// # Errors
/// As [`writer_with_origin`].
pub fn counted_writer(args: &VolArgs, store: &Arc<Counts>, origin: &Arc<Counts>) -> Result<Writer> {
    writer_over(
        args,
        |device| Arc::new(Counting::new(device, store)),
        |device| Arc::new(Counting::new(device, origin)),
        // It is this server for which they wait.
        |_| Ok(()),
    )
}

/// As [`writer_with_origin`], on what is made of both devices, if `ensure` has nothing against it.
fn writer_over(
    args: &VolArgs,
    over_store: impl FnOnce(FileWriter) -> Arc<dyn WriteAt>,
    over_origin: impl FnOnce(FileWriter) -> Arc<dyn WriteAt>,
    ensure: impl FnOnce(&StoreInfo) -> Result<()>,
) -> Result<Writer> {
    let store = over_store(store_writer(&args.vol, &args.old)?);
    writer_on(args, store, |path, info| {
        ensure_not_held(path)?;
        ensure(info)?;
        Ok(over_origin(FileWriter::open(path)?))
    })
}

/// The writer of the store on `store`, with the origin that `open_origin` gives.
fn writer_on(
    args: &VolArgs,
    store: Arc<dyn WriteAt>,
    open_origin: impl FnOnce(&Path, &StoreInfo) -> Result<Arc<dyn WriteAt>>,
) -> Result<Writer> {
    let writer = Writer::open(store, None, time::now_secs()).map_err(|error| error.at_path(&args.vol))?;
    let info = writer.view().info();
    let path = origin_path(args, &info);
    ensure_not_the_store(&args.vol, &path)?;
    let origin = open_origin(&path, &info).map_err(|error| origin_hint(args, error))?;
    ensure_origin_size(origin.as_ref(), &info)?;
    writer.with_origin(origin).map_err(|error| error.at_path(&args.vol))
}

/// As [`counted_writer`], with an origin that was made for this and that others read meanwhile. Beneath them is the
/// device with the identity `inserted`, which leads to a server, or none.
///
/// # Errors
/// As [`writer_with_origin`].
pub fn writer_beneath(
    vol: &Path,
    (origin, inserted): (&Path, Option<&str>),
    [of_store, of_origin]: &[Arc<Counts>; 2],
) -> Result<Writer> {
    let store = Arc::new(Counting::new(store_writer(vol, &OldArgs::default())?, of_store));
    let writer = Writer::open(store, None, time::now_secs()).map_err(|error| error.at_path(vol))?;
    let origin = FileWriter::open_shared_origin(origin)?;
    // Not that of another store.
    let is_inserted =
        inserted == Some(&device::identity(&writer.view().info().uuid.to_string(), device::ORIGIN));
    ensure_origin_size(&origin, &writer.view().info())?;
    let origin = Arc::new(Counting::new(origin, of_origin));
    writer.with_origin_beneath(origin, is_inserted).map_err(|error| error.at_path(vol))
}

/// Opens a volume for changing its snapshot table: a store without its origin, or a server.
///
/// # Errors
/// As [`writer`]; `Kind::NotFound` if the server has ended.
pub fn changer(args: &VolArgs) -> Result<Box<dyn Administer>> {
    match is_served(&args.vol) {
        true => Ok(Box::new(Client::connect(&args.vol)?)),
        false => Ok(Box::new(writer(&args.vol, &args.old)?)),
    }
}

/// As [`changer`], a store with its origin.
///
/// # Errors
/// As [`writer_with_origin`]; `Kind::NotFound` if the server has ended.
pub fn changer_with_origin(args: &VolArgs) -> Result<Box<dyn Administer>> {
    match is_served(&args.vol) {
        true => Ok(Box::new(server(&args.vol, &args.old, args.origin.as_deref())?)),
        false => Ok(Box::new(writer_with_origin(args)?)),
    }
}

/// A volume whose bytes can be changed, and closed after it.
pub enum Rewriter {
    /// A store that is open here.
    Store(Box<Writer>),
    /// A server, which closes it in its own time.
    Server(Box<Client>),
}

impl Rewriter {
    /// The volume.
    pub fn volume(&mut self) -> &mut dyn Rewrite {
        match self {
            Self::Store(writer) => writer.as_mut(),
            Self::Server(client) => client.as_mut(),
        }
    }

    /// Ends it: all is durable then.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn close(self) -> Result<()> {
        match self {
            Self::Store(writer) => writer.close(),
            Self::Server(mut client) => client.flush(),
        }
    }
}

/// Opens a volume for changing its origin or a snapshot: a store with its origin, in memory only if `dry`, or a server,
/// which refuses to change anything if `dry`.
///
/// # Errors
/// As [`writer_with_origin`] and [`dry_writer`]; `Kind::NotFound` if the server has ended.
pub fn rewriter(args: &VolArgs, dry: bool) -> Result<Rewriter> {
    if is_served(&args.vol) {
        return Ok(Rewriter::Server(Box::new(served(args)?.kept_dry(dry))));
    }
    let writer = if dry { dry_writer(args)? } else { writer_with_origin(args)? };
    Ok(Rewriter::Store(Box::new(writer)))
}

/// As [`writer_with_origin`], for a command that would make the loss final if the origin is another one, or was
/// changed behind the store's back.
///
/// # Errors
/// As [`writer_with_origin`]; `Kind::Refused` if the origin is not what it was when the store was closed.
pub fn writer_with_known_origin(args: &VolArgs) -> Result<Writer> {
    let tainted = |view: &View| view.snapshots().iter().filter(|snapshot| snapshot.tainted).count();
    if tainted(&current_view_with_origin(args)?) > tainted(&current_view(&args.vol, &args.old)?) {
        let what = "the origin is not what it was when the store was closed: another one, or changed since";
        return Err(Error::new(Kind::Refused, what).hint(format!(
            "name the right one with --origin; if this is it, 'ddsnap fsck --accept-taint {}' accepts it",
            args.vol.display()
        )));
    }
    writer_with_origin(args)
}

/// A writer whose every write ends in memory: for `--dry-run`, so that it runs the same code.
///
/// # Errors
/// As [`view_with_origin`].
pub fn dry_writer(args: &VolArgs) -> Result<Writer> {
    let store = Arc::new(Overlay::new(store_reader(&args.vol, &args.old)?));
    writer_on(args, store, |path, _| Ok(Arc::new(Overlay::new(FileReader::open_origin_read(path)?))))
}

/// As [`dry_writer`], without the origin.
///
/// # Errors
/// As [`view`].
pub fn dry_writer_alone(args: &VolArgs) -> Result<Writer> {
    let store = Arc::new(Overlay::new(store_reader(&args.vol, &args.old)?));
    Writer::open(store, None, time::now_secs()).map_err(|error| error.at_path(&args.vol))
}

/// Opens the device of a store for reading, locked against writers.
///
/// # Errors
/// As [`view`], without looking inside.
pub fn store_reader(vol: &Path, old: &OldArgs) -> Result<Arc<dyn ReadAt>> {
    refuse_special(vol)?;
    let store = FileReader::open(vol)?;
    open_old::refuse(&store, old)?;
    Ok(Arc::new(store))
}

/// Opens the device of a store for writing, locked against everybody.
///
/// # Errors
/// As [`writer`], without looking inside.
pub fn store_writer(vol: &Path, old: &OldArgs) -> Result<FileWriter> {
    refuse_special(vol)?;
    let store = FileWriter::open(vol)?;
    open_old::refuse(&store, old)?;
    switch::ensure_settled(&store)?;
    Ok(store)
}

/// True if this is the socket of a server, or a store that one has open.
#[must_use]
pub fn is_served(vol: &Path) -> bool {
    std::fs::metadata(vol).is_ok_and(|meta| meta.file_type().is_socket()) || Client::serves(vol)
}

/// The volume of a server.
///
/// # Errors
/// `Kind::Usage` with options for what it has open; `Kind::NotFound` if it has ended.
pub fn served(args: &VolArgs) -> Result<Client> {
    server(&args.vol, &args.old, args.origin.as_deref())
}

/// The volume of a server, which has its devices open and takes no others.
fn server(vol: &Path, old: &OldArgs, origin: Option<&Path>) -> Result<Client> {
    if origin.is_some() || old.meta.is_some() || old.layout.is_some() {
        let what = "a server knows its devices: leave out --origin, --meta and --layout";
        return Err(Error::new(Kind::Usage, what).at_path(vol));
    }
    Client::connect(vol)
}

/// Refuses the volume of a server, for what only a store itself can do.
///
/// # Errors
/// `Kind::Busy`.
pub fn refuse_special(vol: &Path) -> Result<()> {
    match is_served(vol) {
        true => Err(held_by_server(vol, "a server has it open, and this command needs it for itself")),
        false => Ok(()),
    }
}

/// What only the store itself can do is refused, as `what` says, for its server has it.
#[must_use]
pub fn held_by_server(vol: &Path, what: &str) -> Error {
    // One that is about to end may not answer any more.
    let store = Client::connect(vol).map_or_else(|_| vol.to_path_buf(), |client| client.store_path());
    let hint = format!("{} ends the server; then name {} itself", stop_command(vol), store.display());
    Error::new(Kind::Busy, what).at_path(vol).hint(hint)
}

/// What ends the server of `vol`, as users type it.
fn stop_command(vol: &Path) -> String {
    format!("'ddsnap stop {}'", vol.display())
}

/// What accepts the tainted snapshots of `vol`, whose store is at `store`, as users type it.
#[must_use]
pub fn accept_taint_command(vol: &Path, store: &Path) -> String {
    let accept = format!("'ddsnap fsck --accept-taint {}'", store.display());
    match is_served(vol) {
        true => format!("{}, then {accept}", stop_command(vol)),
        false => accept,
    }
}

/// True if either copy of the superblock of a snapshot store is at its place in the file or device at `path`, or will
/// be once an upgrade that was interrupted goes on.
///
/// # Errors
/// What opening says.
pub fn is_store(path: &Path) -> Result<bool> {
    has_superblock(&FileReader::open_origin_read(path)?)
}

/// As [`is_store`], of something open.
///
/// # Errors
/// `Kind::Io`.
pub fn has_superblock(device: &dyn ReadAt) -> Result<bool> {
    for offset in superblock::OFFSETS {
        let mut magic = superblock::MAGIC;
        magic.fill(0);
        if device.size() < offset + superblock::SIZE as u64 {
            continue;
        }
        device.read_at(&mut magic, offset)?;
        if magic == superblock::MAGIC {
            return Ok(true);
        }
    }
    // A record that is damaged is one, too.
    Ok(!matches!(switch::look(device), Ok(None)))
}

/// Where the origin is: as the user says, else as the store remembers.
#[must_use]
pub fn origin_path(args: &VolArgs, info: &StoreInfo) -> PathBuf {
    args.origin.clone().unwrap_or_else(|| info.origin_path.clone())
}

fn origin_hint(args: &VolArgs, error: Error) -> Error {
    if error.kind() == Kind::NotFound && args.origin.is_none() {
        error.hint("the store remembers this origin; --origin PATH names it elsewhere")
    } else {
        error
    }
}

fn ensure_not_the_store(vol: &Path, origin: &Path) -> Result<()> {
    if overlap::is_same(vol, origin) {
        return Err(Error::new(Kind::Usage, "this is the store, it cannot be its own origin").at_path(origin));
    }
    Ok(())
}

/// Refuses an origin that is smaller than its store says.
///
/// # Errors
/// `Kind::Mismatch`.
pub fn ensure_origin_size(origin: &dyn ReadAt, info: &StoreInfo) -> Result<()> {
    let found = origin.size();
    if found >= info.origin_size {
        return Ok(());
    }
    let what = format!("the origin has {found} bytes, the store expects {}", info.origin_size);
    Err(Error::new(Kind::Mismatch, what).at_path(origin.path()))
}

/// Refuses a device or file that is mounted or otherwise in use.
///
/// # Errors
/// `Kind::Busy`, and its hint.
pub fn ensure_not_held(path: &Path) -> Result<()> {
    match mount::held_by(path)? {
        None => Ok(()),
        Some(holder) => Err(Error::new(Kind::Busy, format!("it is {holder}"))
            .at_path(path)
            .hint("unmount it first: what is in memory only would be missed or overwritten")),
    }
}

/// Refuses a volume that `attach` has made a device of, which waits for its server: who uses it would have the origin
/// changed beneath.
fn ensure_not_attached(info: &StoreInfo) -> Result<()> {
    match device::is_attached(&device::identity(&info.uuid.to_string(), device::ORIGIN))? {
        false => Ok(()),
        true => Err(Error::new(Kind::Busy, "it is attached, and waits for its server")
            .hint("start the server again, or take the device away with 'ddsnap detach' first")),
    }
}

/// Refuses while an operation on the origin is incomplete, unless the user insists.
///
/// # Errors
/// `Kind::Refused`.
pub fn ensure_complete(info: &StoreInfo, snapshots: &[SnapshotInfo], vol: &Path, accept: bool) -> Result<()> {
    match &info.pending {
        Some(pending) if !accept => {
            let ways = ways_out(pending, snapshots, &vol.display().to_string());
            Err(incomplete(pending).hint(format!("{ways}; --accept-incomplete reads the origin as it is")))
        }
        _ => Ok(()),
    }
}

/// Says that the origin is what nobody wants it to be.
#[must_use]
pub fn incomplete(pending: &PendingOperation) -> Error {
    let what = format!("the origin is between two states: '{}' was begun and not ended", pending.label);
    Error::new(Kind::Refused, what)
}

/// The commands that finish what is pending, or go back to before it, as users type them; `vol` names the volume.
#[must_use]
pub fn ways_out(pending: &PendingOperation, snapshots: &[SnapshotInfo], vol: &str) -> String {
    // Only a revert needs a snapshot: the one that it goes to.
    let target = snapshots.iter().find(|snapshot| Some(snapshot.id) == pending.pinned);
    let finish = match target {
        Some(snapshot) => format!("'ddsnap revert {vol} {}'", snapshot.tag),
        None => format!("'ddsnap apply-delta DELTA {vol}' with the same delta"),
    };
    format!("{finish} finishes it, 'ddsnap revert --rollback {vol}' goes back")
}

/// The point that `name` means, refused if it cannot be trusted and the user does not insist.
///
/// # Errors
/// `Kind::NotFound`, `Kind::Refused`.
pub fn readable_point(view: &dyn Volume, vol: &Path, name: &SnapName, accept: &AcceptArgs) -> Result<Point> {
    let id = if *name == SnapName::Origin {
        ensure_complete(&view.info(), &view.snapshots(), vol, accept.accept_incomplete)?;
        PointId::Origin
    } else {
        let snapshots = view.snapshots();
        let snapshot = name.snapshot(&snapshots)?;
        if snapshot.state == SnapshotState::Squashed {
            return Err(Error::new(
                Kind::Refused,
                format!("{name} was given up when the store was full; its data is gone"),
            ));
        }
        if snapshot.tainted && !accept.accept_taint {
            return Err(Error::new(Kind::Refused, format!("{name} {TAINT}")).hint(format!(
                "--accept-taint reads it all the same; {} accepts it for good",
                accept_taint_command(vol, &view.info().store_path)
            )));
        }
        PointId::Snapshot(snapshot.id)
    };
    view.points()
        .into_iter()
        .find(|point| point.id == id)
        .ok_or_else(|| Error::new(Kind::NotFound, format!("{name} cannot be read")))
}
