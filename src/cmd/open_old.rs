//! Opening stores of 2008, and refusing to change or overwrite them.

use super::common::OldArgs;
use super::open::{ensure_origin_size, refuse_special};
use super::overlap::is_same;
use crate::block::file::{FileReader, FileWriter};
use crate::block::overlay::Overlay;
use crate::block::{ReadAt, WriteAt};
use crate::error::{Error, Kind, Result};
use crate::format::superblock;
use crate::legacy;
use crate::point::volume::Volume;
use crate::store::switch;
use crate::ui::Ui;
use std::path::Path;
use std::sync::Arc;

/// Opens a store of 2008, with `origin` if that is named, and warns if it is damaged; `None` if the store is not one.
///
/// # Errors
/// As [`super::open::view`]; `Kind::Usage` for what only a store of 2008 has.
pub fn store(vol: &Path, old: &OldArgs, origin: Option<&Path>, ui: &Ui) -> Result<Option<legacy::Store>> {
    let Some(devices) = devices(vol, old, origin)? else { return Ok(None) };
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
/// As [`store`].
pub fn devices(vol: &Path, old: &OldArgs, origin: Option<&Path>) -> Result<Option<legacy::Devices>> {
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
/// As [`devices`], which has been there before; `Kind::Busy` if anyone holds the store.
pub fn site(
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
/// As [`devices`], which has been there before; `Kind::Busy` if anyone holds the store.
pub fn repair(
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

/// Refuses a store of 2008 as something to be changed or overwritten, and one that is just becoming another. With its
/// metadata elsewhere, only the options in `old` tell that it is one.
///
/// # Errors
/// `Kind::Refused`; `Kind::Mismatch` and `Kind::Usage` for what only a store of 2008 has; `Kind::Io`.
pub fn refuse(store: &dyn ReadAt, old: &OldArgs) -> Result<()> {
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
