//! Opening stores and origins, and refusing what must not be opened.

use super::common::{AcceptArgs, OldArgs, SnapName, TAINT, VolArgs};
use crate::block::counted::{Counting, Counts};
use crate::block::file::{FileReader, FileWriter};
use crate::block::mount;
use crate::block::overlay::Overlay;
use crate::block::{ReadAt, WriteAt};
use crate::error::{Error, Kind, Result};
use crate::format::superblock;
use crate::legacy;
use crate::point::volume::{Administer, Rewrite, Volume};
use crate::point::{Point, PointId};
use crate::serve::control::Client;
use crate::store::{SnapshotState, StoreInfo, View, Writer, switch};
use crate::ui::{Ui, time};
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
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
    match old_store(vol, old, None, ui)? {
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
    match old_store(&args.vol, &args.old, args.origin.as_deref(), ui)? {
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

/// Opens a store of 2008, with `origin` if that is named, and warns if it is damaged; `None` if the store is not one.
///
/// # Errors
/// As [`view`]; `Kind::Usage` for what only a store of 2008 has.
pub fn old_store(vol: &Path, old: &OldArgs, origin: Option<&Path>, ui: &Ui) -> Result<Option<legacy::Store>> {
    let Some(devices) = old_devices(vol, old, origin)? else { return Ok(None) };
    let store = legacy::Store::open(devices, old.layout, ui.progress())?;
    if let Some(first) = store.damage().next() {
        ui.warn(&format!(
            "this store of 2008 is damaged ({}): what cannot be told is an error to read; 'ddsnap fsck -n' tells more",
            first.code
        ));
    }
    if let Some(origin) = store.origin() {
        ensure_origin_size(origin, &store.info())?;
    }
    Ok(Some(store))
}

/// What a store of 2008 lies on, without looking inside; `None` if the store is not one.
///
/// # Errors
/// As [`old_store`].
pub fn old_devices(vol: &Path, old: &OldArgs, origin: Option<&Path>) -> Result<Option<legacy::Devices>> {
    refuse_special(vol)?;
    let store = FileReader::open(vol)?;
    switch::ensure_whole(&store)?;
    if old.meta.is_some() {
        ensure_not_upgraded(&store)?;
    }
    if old.meta.is_none() && !legacy::is_store(&store)? {
        return match old.layout {
            Some(_) => Err(no_layout(vol)),
            None => Ok(None),
        };
    }
    for other in [old.meta.as_deref(), origin].into_iter().flatten() {
        if is_same(vol, other) {
            return Err(Error::new(Kind::Usage, "this is the store itself").at_path(other));
        }
    }
    let metadata = old.meta.as_deref().map(FileReader::open).transpose()?;
    let origin = origin.map(FileReader::open_origin_read).transpose()?;
    Ok(Some(legacy::Devices {
        store: Arc::new(store),
        metadata: metadata.map(|device| Arc::new(device) as Arc<dyn ReadAt>),
        origin: origin.map(|device| Arc::new(device) as Arc<dyn ReadAt>),
    }))
}

fn no_layout(vol: &Path) -> Error {
    Error::new(Kind::Usage, "--layout is for stores of 2008, which this is none").at_path(vol)
}

/// Refuses a store that has become one of today, for which metadata are named.
fn ensure_not_upgraded(store: &dyn ReadAt) -> Result<()> {
    let superblocks = superblock::OFFSETS.map(|offset| {
        let mut bytes = vec![0; superblock::SIZE];
        let fits = offset + superblock::SIZE as u64 <= store.size();
        fits && store.read_at(&mut bytes, offset).is_ok() && superblock::Superblock::decode(&bytes).is_ok()
    });
    if switch::look(store)?.is_none() && superblocks != [true, true] {
        return Ok(());
    }
    let what = "this is a store of today: the metadata device belongs to what it was before";
    Err(Error::new(Kind::Mismatch, what).at_path(store.path()).hint("leave out --meta"))
}

/// The devices of a store of 2008 for an upgrade in place, and the one among them that is written: that of the store,
/// locked against everybody, or a picture of it in memory.
///
/// # Errors
/// As [`old_devices`], which has been there before; `Kind::Busy` if anyone holds the store.
pub fn old_site(
    vol: &Path,
    old: &OldArgs,
    origin: &Path,
    dry_run: bool,
) -> Result<(legacy::Devices, Arc<dyn WriteAt>)> {
    let device: Arc<dyn WriteAt> = match dry_run {
        true => Arc::new(Overlay::new(FileReader::open(vol)?)),
        false => Arc::new(FileWriter::open(vol)?),
    };
    let store: Arc<dyn ReadAt> = Arc::<dyn WriteAt>::clone(&device);
    let metadata = old.meta.as_deref().map(FileReader::open).transpose()?;
    let metadata = metadata.map(|device| Arc::new(device) as Arc<dyn ReadAt>);
    let origin: Arc<dyn ReadAt> = Arc::new(FileReader::open_origin_read(origin)?);
    Ok((legacy::Devices { store, metadata, origin: Some(origin) }, device))
}

/// Refuses an origin that is smaller than the store of 2008 on `devices` says.
///
/// # Errors
/// `Kind::Mismatch`.
pub fn ensure_origin(devices: &legacy::Devices, store: &legacy::Store) -> Result<()> {
    devices.origin.iter().try_for_each(|origin| ensure_origin_size(origin, &store.info()))
}

/// The devices of a store of 2008 for a repair, which is written to the last one: the device with the metadata, locked
/// against everybody, or a picture of it in memory.
///
/// # Errors
/// As [`old_devices`], which has been there before; `Kind::Busy` if anyone holds the store.
pub fn old_repair(
    vol: &Path,
    old: &OldArgs,
    origin: Option<&Path>,
    dry_run: bool,
) -> Result<(legacy::Devices, Arc<dyn WriteAt>)> {
    let path = old.meta.as_deref().unwrap_or(vol);
    let device: Arc<dyn WriteAt> = match dry_run {
        true => Arc::new(Overlay::new(FileReader::open(path)?)),
        false => Arc::new(FileWriter::open(path)?),
    };
    let metadata: Arc<dyn ReadAt> = Arc::<dyn WriteAt>::clone(&device);
    let origin = origin.map(FileReader::open_origin_read).transpose()?;
    let origin = origin.map(|device| Arc::new(device) as Arc<dyn ReadAt>);
    let devices = match old.meta {
        None => legacy::Devices { store: metadata, metadata: None, origin },
        Some(_) => {
            let store = Arc::new(FileReader::open(vol)?);
            legacy::Devices { store, metadata: Some(metadata), origin }
        }
    };
    Ok((devices, device))
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
    writer_over(args, |store| Arc::new(store), |origin| Arc::new(origin))
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
    )
}

/// As [`writer_with_origin`], on what is made of both devices.
fn writer_over(
    args: &VolArgs,
    over_store: impl FnOnce(FileWriter) -> Arc<dyn WriteAt>,
    over_origin: impl FnOnce(FileWriter) -> Arc<dyn WriteAt>,
) -> Result<Writer> {
    let store = over_store(store_writer(&args.vol, &args.old)?);
    let writer = Writer::open(store, None, time::now_secs()).map_err(|error| error.at_path(&args.vol))?;
    let info = writer.view().info();
    let path = origin_path(args, &info);
    ensure_not_the_store(&args.vol, &path)?;
    ensure_not_held(&path).map_err(|error| origin_hint(args, error))?;
    let origin = FileWriter::open_origin_write(&path).map_err(|error| origin_hint(args, error))?;
    ensure_origin_size(&origin, &info)?;
    writer.with_origin(over_origin(origin)).map_err(|error| error.at_path(&args.vol))
}

/// As [`counted_writer`], with an origin that was made for this and that others read meanwhile.
///
/// # Errors
/// As [`writer_with_origin`].
pub fn writer_beneath(
    vol: &Path,
    origin: &Path,
    of_store: &Arc<Counts>,
    of_origin: &Arc<Counts>,
) -> Result<Writer> {
    let store = Arc::new(Counting::new(store_writer(vol, &OldArgs::default())?, of_store));
    let writer = Writer::open(store, None, time::now_secs()).map_err(|error| error.at_path(vol))?;
    let origin = FileWriter::open_shared_origin(origin)?;
    ensure_origin_size(&origin, &writer.view().info())?;
    let origin = Arc::new(Counting::new(origin, of_origin));
    writer.with_origin(origin).map_err(|error| error.at_path(vol))
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

/// Opens a volume for changing its origin or a snapshot: a store with its origin, in memory only if `dry`, or a server.
///
/// # Errors
/// As [`writer_with_origin`] and [`dry_writer`]; `Kind::NotFound` if the server has ended.
pub fn rewriter(args: &VolArgs, dry: bool) -> Result<Rewriter> {
    if is_served(&args.vol) {
        return Ok(Rewriter::Server(Box::new(served(args)?)));
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
    let writer = Writer::open(store, None, time::now_secs()).map_err(|error| error.at_path(&args.vol))?;
    let info = writer.view().info();
    let path = origin_path(args, &info);
    ensure_not_the_store(&args.vol, &path)?;
    let origin = FileReader::open_origin_read(&path).map_err(|error| origin_hint(args, error))?;
    ensure_origin_size(&origin, &info)?;
    writer.with_origin(Arc::new(Overlay::new(origin))).map_err(|error| error.at_path(&args.vol))
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
    refuse_old(&store, old)?;
    Ok(Arc::new(store))
}

/// Opens the device of a store for writing, locked against everybody.
///
/// # Errors
/// As [`writer`], without looking inside.
pub fn store_writer(vol: &Path, old: &OldArgs) -> Result<FileWriter> {
    refuse_special(vol)?;
    let store = FileWriter::open(vol)?;
    refuse_old(&store, old)?;
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

/// Refuses the socket of a server, for what only a store itself can do.
fn refuse_special(vol: &Path) -> Result<()> {
    if !is_served(vol) {
        return Ok(());
    }
    let hint =
        format!("'ddsnap stop {}' ends the server; then name the snapshot store itself", vol.display());
    Err(Error::new(Kind::Busy, "a server has it open, and this command needs it for itself")
        .at_path(vol)
        .hint(hint))
}

/// Refuses a store of 2008 as something to be changed or overwritten, and one that is just becoming another. With its
/// metadata elsewhere, only the options in `old` tell that it is one.
///
/// # Errors
/// `Kind::Refused`; `Kind::Mismatch` and `Kind::Usage` for what only a store of 2008 has; `Kind::Io`.
pub fn refuse_old(store: &dyn ReadAt, old: &OldArgs) -> Result<()> {
    switch::ensure_whole(store)?;
    if old.meta.is_some() {
        ensure_not_upgraded(store)?;
    } else if !legacy::is_store(store)? {
        return match old.layout {
            Some(_) => Err(no_layout(store.path())),
            None => Ok(()),
        };
    }
    let what = "this is a snapshot store of 2008: it can be read, and only fsck changes it";
    Err(Error::new(Kind::Refused, what)
        .at_path(store.path())
        .hint("'ddsnap upgrade' makes a store of today of it, with all its snapshots"))
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

/// Everything that a command which reads a volume reads, and its result must not overwrite.
#[must_use]
pub fn inputs(store: &Path, old: &OldArgs, origin: PathBuf) -> Vec<PathBuf> {
    [store.to_path_buf(), origin].into_iter().chain(old.meta.clone()).collect()
}

fn origin_hint(args: &VolArgs, error: Error) -> Error {
    if error.kind() == Kind::NotFound && args.origin.is_none() {
        error.hint("the store remembers this origin; --origin PATH names it elsewhere")
    } else {
        error
    }
}

fn ensure_not_the_store(vol: &Path, origin: &Path) -> Result<()> {
    if is_same(vol, origin) {
        return Err(Error::new(Kind::Usage, "this is the store, it cannot be its own origin").at_path(origin));
    }
    Ok(())
}

fn ensure_origin_size(origin: &dyn ReadAt, info: &StoreInfo) -> Result<()> {
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

/// True if both paths are one file or one device.
#[must_use]
pub fn is_same(a: &Path, b: &Path) -> bool {
    match (lowest(a), lowest(b)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

/// What the bytes of `path` lie in: a loop device has those of a file.
fn lowest(path: &Path) -> Option<(u64, u64)> {
    // Loop devices over one another: more than the kernel lets there be.
    const DEPTH_MAX: usize = 16;
    let mut meta = std::fs::metadata(path).ok()?;
    for _ in 0..DEPTH_MAX {
        let behind = match meta.file_type().is_block_device() {
            true => mount::backing_file(meta.rdev()).and_then(|path| std::fs::metadata(path).ok()),
            false => None,
        };
        match behind {
            Some(behind) => meta = behind,
            None => break,
        }
    }
    Some(key(&meta))
}

fn key(meta: &Metadata) -> (u64, u64) {
    if meta.file_type().is_block_device() { (0, meta.rdev()) } else { (meta.dev() + 1, meta.ino()) }
}

/// Refuses to write a result over the volume it comes from.
///
/// # Errors
/// `Kind::Usage`.
pub fn ensure_output_elsewhere(output: &Path, inputs: &[impl AsRef<Path>]) -> Result<()> {
    match inputs.iter().find(|input| is_same(output, input.as_ref())) {
        None => Ok(()),
        Some(input) => Err(Error::new(
            Kind::Usage,
            format!("the output would overwrite its own input {}", input.as_ref().display()),
        )
        .at_path(output)),
    }
}

/// Refuses to replace what may be the origin of a store of 2008, which does not remember it: a file that does not begin
/// as `made` does, which is to be written there.
///
/// # Errors
/// `Kind::Refused`; `Kind::Io`.
pub fn ensure_not_unknown(output: &Path, made: &[u8]) -> Result<()> {
    const HEAD: usize = 16;
    if output.as_os_str() == "-" || !std::fs::metadata(output).is_ok_and(|meta| meta.is_file()) {
        return Ok(());
    }
    let there = FileReader::open_origin_read(output)?;
    let length = usize::try_from(there.size()).unwrap_or(HEAD).min(HEAD);
    let mut head = vec![0; length];
    there.read_at(&mut head, 0)?;
    if head == made.get(..length).unwrap_or_default() {
        return Ok(());
    }
    let what = "it is there already, and a store of 2008 does not tell whether it is its origin";
    Err(Error::new(Kind::Refused, what).at_path(output).hint("name another file, or remove it first"))
}

/// Refuses while an operation on the origin is incomplete, unless the user insists.
///
/// # Errors
/// `Kind::Refused`.
pub fn ensure_complete(info: &StoreInfo, vol: &Path, accept: bool) -> Result<()> {
    match &info.pending {
        Some(pending) if !accept => {
            let what =
                format!("the origin is between two states: '{}' was begun and not ended", pending.label);
            Err(Error::new(Kind::Refused, what).hint(format!(
                "run the same {} again to resume it, or 'ddsnap revert --rollback {}'; \
                 --accept-incomplete reads the origin as it is",
                pending.label.split(' ').next().unwrap_or_default(),
                vol.display()
            )))
        }
        _ => Ok(()),
    }
}

/// The point that `name` means, refused if it cannot be trusted and the user does not insist.
///
/// # Errors
/// `Kind::NotFound`, `Kind::Refused`.
pub fn readable_point(view: &dyn Volume, vol: &Path, name: &SnapName, accept: &AcceptArgs) -> Result<Point> {
    let id = if *name == SnapName::Origin {
        ensure_complete(&view.info(), vol, accept.accept_incomplete)?;
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
                "--accept-taint reads it all the same; 'ddsnap fsck --accept-taint {}' accepts it for good",
                vol.display()
            )));
        }
        PointId::Snapshot(snapshot.id)
    };
    view.points()
        .into_iter()
        .find(|point| point.id == id)
        .ok_or_else(|| Error::new(Kind::NotFound, format!("{name} cannot be read")))
}
