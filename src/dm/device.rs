//! A device over a point of a volume: found again by what is behind it, made where it is not there.

use super::nbd::Link;
use super::{mapper, nbd};
use crate::block::mount;
use crate::error::{Error, Kind, Result};
use rustix::fd::AsFd;
use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How a point becomes a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// An NBD device of the kernel.
    KernelNbd,
}

impl Way {
    /// The best one that this machine has.
    #[must_use]
    pub const fn best() -> Self {
        Self::KernelNbd
    }
}

/// What begins the identity of every device of ours.
const OURS: &str = "DDSNAP-";

/// Names what is behind a device, for the kernel and for us: it stays when the server is another one.
///
/// `volume` begins the identities of all devices of a volume; `point` names one of it.
#[must_use]
pub fn identity(volume: &str, point: &str) -> String {
    format!("{OURS}{volume}-{point}")
}

/// What begins the identities of all devices of the volume to which the device with `identity` belongs.
#[must_use]
pub fn siblings(identity: &str) -> Option<&str> {
    identity.starts_with(OURS).then(|| identity.rfind('-'))?.and_then(|at| identity.get(..=at))
}

/// A device of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// What is behind it.
    pub identity: String,
    /// The NBD device, if it is connected.
    pub nbd: Option<u32>,
    /// The device with the name, if there is one.
    pub mapped: Option<mapper::Mapped>,
}

impl Device {
    /// What users open: the name, or else the device itself.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        let node = || self.nbd.map(nbd::path);
        self.mapped.as_ref().map(mapper::Mapped::path).or_else(node)
    }
}

/// The devices whose identity begins with `begin`, in its order.
///
/// # Errors
/// What dmsetup says.
pub fn all(begin: &str) -> Result<Vec<Device>> {
    let mut devices: Vec<Device> = nbd::devices()
        .into_iter()
        .map(|(index, identity)| Device { identity, nbd: Some(index), mapped: None })
        .collect();
    let names = if mapper::is_available() { mapper::list()? } else { Vec::new() };
    for mapped in names {
        match devices.iter_mut().find(|device| device.identity == mapped.uuid) {
            Some(device) => device.mapped = Some(mapped),
            None => devices.push(Device { identity: mapped.uuid.clone(), nbd: None, mapped: Some(mapped) }),
        }
    }
    devices.retain(|device| device.identity.starts_with(OURS) && device.identity.starts_with(begin));
    devices.sort_by(|a, b| a.identity.cmp(&b.identity));
    Ok(devices)
}

/// Makes a device without a name, or gives the one that is there already another connection; returns its number.
///
/// # Errors
/// As [`attach`]; `Kind::Exists` if it has a name.
pub fn attach_unnamed<Fd: AsFd>(link: &Link<'_, Fd>) -> Result<u32> {
    match all(link.identity)?.into_iter().find(|device| device.identity == link.identity) {
        Some(Device { mapped: Some(mapped), .. }) => {
            Err(Error::new(Kind::Exists, format!("it is attached already, as {}", mapped.name)))
        }
        Some(Device { nbd: Some(index), .. }) => nbd::reconnect(index, link).map(|()| index),
        _ => nbd::connect(link),
    }
}

/// Makes a device with the name `name`, or gives the one that is there already another connection.
///
/// # Errors
/// `Kind::Exists` if something else has the name; `Kind::NotFound` if the kernel has no such devices;
/// `Kind::Refused` without the right to; `Kind::Io`.
pub fn attach<Fd: AsFd>(name: &str, link: &Link<'_, Fd>, is_read_only: bool) -> Result<Device> {
    let found = all(link.identity)?.into_iter().find(|device| device.identity == link.identity);
    if let Some(Device { nbd: Some(index), mapped, .. }) = found {
        nbd::reconnect(index, link)?;
        let mapped = match mapped {
            None if mapper::is_available() => Some(name_it(name, index, link, is_read_only)?),
            mapped => mapped,
        };
        return Ok(Device { identity: link.identity.to_owned(), nbd: Some(index), mapped });
    }
    let taken =
        mapper::is_available() && mapper::find(name)?.is_some_and(|other| other.uuid != link.identity);
    if taken {
        return Err(Error::new(Kind::Exists, "another device has this name").at_path(&mapper::path(name)));
    }
    let index = nbd::connect(link)?;
    let mapped = match found.and_then(|device| device.mapped) {
        // Somebody has disconnected what was below the name.
        Some(mapped) => {
            mapper::load(&mapped.name, &table(index, link))?;
            mapper::suspend(&mapped.name, false)?;
            mapper::resume(&mapped.name)?;
            Some(mapped)
        }
        None if mapper::is_available() => {
            let named = name_it(name, index, link, is_read_only);
            if named.is_err() {
                // The error tells more than what may follow from it.
                let _ = nbd::disconnect(index);
            }
            Some(named?)
        }
        None => None,
    };
    Ok(Device { identity: link.identity.to_owned(), nbd: Some(index), mapped })
}

fn table<Fd: AsFd>(index: u32, link: &Link<'_, Fd>) -> String {
    format!("0 {} linear {} 0", link.size / 512, nbd::path(index).display())
}

fn name_it<Fd: AsFd>(
    name: &str,
    index: u32,
    link: &Link<'_, Fd>,
    is_read_only: bool,
) -> Result<mapper::Mapped> {
    mapper::create(name, link.identity, &table(index, link), is_read_only)?;
    mapper::find(name)?.ok_or_else(|| Error::new(Kind::Io, format!("{name} is gone at once")))
}

/// Takes devices away: all of them, or, if one is in use, none.
///
/// # Errors
/// `Kind::Busy` if one is in use; `Kind::Io`.
pub fn detach(devices: &[Device]) -> Result<()> {
    for device in devices {
        ensure_unused(device)?;
    }
    for device in devices {
        if let Some(mapped) = &device.mapped {
            mapper::remove(&mapped.name)?;
        }
        if let Some(index) = device.nbd {
            nbd::disconnect(index)?;
        }
    }
    Ok(())
}

fn ensure_unused(device: &Device) -> Result<()> {
    if let Some(mapped) = &device.mapped {
        return match mapped.open_count {
            0 => Ok(()),
            _ => Err(mapper::busy(mapped)),
        };
    }
    let Some(path) = device.nbd.map(nbd::path) else { return Ok(()) };
    if let Some(holder) = mount::held_by(&path)? {
        return Err(Error::new(Kind::Busy, format!("it is {holder}"))
            .at_path(&path)
            .hint("unmount it first"));
    }
    // Refused if a mount, another device or another exclusive opener holds it.
    let exclusive = i32::try_from(rustix::fs::OFlags::EXCL.bits()).unwrap_or_default();
    match File::options().read(true).custom_flags(exclusive).open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
            Err(Error::io("it is in use", error).at_path(&path))
        }
        _ => Ok(()),
    }
}

/// Bytes of the smallest request that what lies below `path` takes; 512 for a file.
#[must_use]
pub fn block_size(path: &Path) -> u32 {
    let meta = std::fs::metadata(path).ok().filter(|meta| meta.file_type().is_block_device());
    let size = meta.and_then(|meta| {
        let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        let sys = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        // A partition has its disk's.
        let names = ["queue/logical_block_size", "../queue/logical_block_size"];
        names.iter().find_map(|name| std::fs::read_to_string(sys.join(name)).ok())
    });
    size.and_then(|size| size.trim().parse().ok()).unwrap_or(512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_tell_the_volume() {
        let one = identity("0-1-2", "origin");
        assert_eq!(one, "DDSNAP-0-1-2-origin");
        assert_eq!(siblings(&one), Some("DDSNAP-0-1-2-"));
        assert_eq!(siblings("LVM-0-1-2"), None);
        assert_eq!(siblings(""), None);
    }

    #[test]
    fn a_file_takes_any_sector() {
        assert_eq!(block_size(Path::new("/no/such/file")), 512);
        assert_eq!(block_size(Path::new("/dev/null")), 512);
    }
}
