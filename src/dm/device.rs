//! A device over a point of a volume: found again by what is behind it, made where it is not there.

use super::{RUN, loops, mapper, nbd};
use crate::block::file::FileWriter;
use crate::block::mount;
use crate::error::{Error, Kind, Result};
use crate::ublk::device as ublk;
use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A device of the kernel that a server feeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// The NBD device of this number.
    Nbd(u32),
    /// The ublk device of this number.
    Ublk(u32),
    /// The loop device of this number, over a file that a server shows through FUSE.
    Loop(u32),
}

impl Node {
    /// Where it is.
    #[must_use]
    pub fn path(self) -> PathBuf {
        match self {
            Self::Nbd(number) => nbd::path(number),
            Self::Ublk(number) => ublk::path(number),
            Self::Loop(number) => loops::path(number),
        }
    }

    /// Sectors of 512 bytes that it has now.
    ///
    /// # Errors
    /// `Kind::Io`; `Kind::NotFound` if it is gone.
    pub fn sectors(self) -> Result<u64> {
        let path = self.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let sys = PathBuf::from(format!("/sys/block/{name}/size"));
        let text = std::fs::read_to_string(&sys)
            .map_err(|error| Error::io(format!("cannot read its size: {error}"), error).at_path(&sys))?;
        text.trim().parse().map_err(|_| Error::damaged("its size is no number").at_path(&sys))
    }

    /// Takes it away; requests under way fail.
    fn disconnect(self) -> Result<()> {
        match self {
            Self::Nbd(number) => nbd::disconnect(number),
            Self::Ublk(number) => ublk::remove(number),
            Self::Loop(number) => loops::release(number),
        }
    }
}

/// What begins the identity of every device of ours.
const OURS: &str = "DDSNAP-";

/// The point that the live origin is, in an identity.
pub const ORIGIN: &str = "origin";

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
    /// What a server feeds, if it is there.
    pub node: Option<Node>,
    /// The device with the name, if there is one.
    pub mapped: Option<mapper::Mapped>,
}

impl Device {
    /// What users open: the name, or else the device itself.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        let node = || self.node.map(Node::path);
        self.mapped.as_ref().map(mapper::Mapped::path).or_else(node)
    }
}

/// The devices whose identity begins with `begin`, in its order. Of devices of ublk the kernel knows no more than a
/// mark: those without a name are found if they are among the identities `known`.
///
/// # Errors
/// What dmsetup and ublk say.
pub fn all(begin: &str, known: &[String]) -> Result<Vec<Device>> {
    let of_nbd = nbd::devices().into_iter().map(|(number, identity)| (Node::Nbd(number), identity));
    let of_loop = loops::devices().into_iter().map(|(number, identity)| (Node::Loop(number), identity));
    let mut devices: Vec<Device> = of_nbd
        .chain(of_loop)
        .map(|(node, identity)| Device { identity, node: Some(node), mapped: None })
        .collect();
    let marks = ublk::marks()?;
    let find = |identity: &str| {
        let mark = ublk::mark(identity);
        marks.iter().find(|(_, found)| *found == mark).map(|(number, _)| Node::Ublk(*number))
    };
    for identity in known {
        if let Some(node) = find(identity) {
            devices.push(Device { identity: identity.clone(), node: Some(node), mapped: None });
        }
    }
    let names = if mapper::is_available() { mapper::list()? } else { Vec::new() };
    for mapped in names {
        match devices.iter_mut().find(|device| device.identity == mapped.uuid) {
            Some(device) => device.mapped = Some(mapped),
            None => {
                let (identity, node) = (mapped.uuid.clone(), find(&mapped.uuid));
                devices.push(Device { identity, node, mapped: Some(mapped) });
            }
        }
    }
    devices.retain(|device| device.identity.starts_with(OURS) && device.identity.starts_with(begin));
    devices.sort_by(|a, b| a.identity.cmp(&b.identity));
    Ok(devices)
}

/// True if there is a device with `identity`, whether its server runs or not. What only root may ask others are not
/// told: a device of ublk without a name.
///
/// # Errors
/// As [`ublk::marks`].
pub fn is_attached(identity: &str) -> Result<bool> {
    let mark = ublk::mark(identity);
    Ok(mapper::has_uuid(identity)
        || nbd::find(identity).is_some()
        || loops::devices().iter().any(|(_, found)| found == identity)
        || ublk::marks()?.iter().any(|(_, found)| *found == mark))
}

/// Makes what a server feeds, or gives the one that is there already another connection.
pub type Connect<'a> = dyn FnMut(Option<Node>) -> Result<Node> + 'a;

/// Makes a device without a name, or gives the one that is there already another connection.
///
/// # Errors
/// As [`attach`]; `Kind::Exists` if it has a name.
pub fn attach_unnamed(identity: &str, connect: &mut Connect<'_>) -> Result<Node> {
    match all(identity, &[identity.to_owned()])?.into_iter().find(|device| device.identity == identity) {
        Some(Device { mapped: Some(mapped), .. }) => {
            Err(Error::new(Kind::Exists, format!("it is attached already, as {}", mapped.name)))
        }
        Some(Device { node, .. }) => connect(node),
        None => connect(None),
    }
}

/// Makes a device with the name `name`, or gives the one that is there already another connection.
///
/// # Errors
/// `Kind::Exists` if something else has the name; `Kind::NotFound` if the kernel has no such devices;
/// `Kind::Refused` without the right to; `Kind::Io`.
pub fn attach(name: &str, identity: &str, is_read_only: bool, connect: &mut Connect<'_>) -> Result<Device> {
    let known = [identity.to_owned()];
    let found = all(identity, &known)?.into_iter().find(|device| device.identity == identity);
    let (present, mapped) = found.map_or((None, None), |device| (device.node, device.mapped));
    let has_names = mapper::is_available();
    let is_taken = has_names && mapper::find(name)?.is_some_and(|other| other.uuid != identity);
    if mapped.is_none() && is_taken {
        return Err(Error::new(Kind::Exists, "another device has this name").at_path(&mapper::path(name)));
    }
    let node = connect(present)?;
    let mapped = match mapped {
        Some(mapped) => {
            lead(&mapped, node)?;
            Some(mapped)
        }
        None if has_names => {
            let named = name_it(name, node, identity, is_read_only);
            if named.is_err() && present.is_none() {
                // The error tells more than what may follow from it.
                let _ = node.disconnect();
            }
            Some(named?)
        }
        None => None,
    };
    if let (Node::Loop(number), Some(_)) = (node, &mapped) {
        // From now on the name holds it.
        loops::release(number)?;
    }
    Ok(Device { identity: identity.to_owned(), node: Some(node), mapped })
}

/// Makes a name lead to `node`, all of it, unless it does. It may have led to another, that somebody has disconnected
/// or whose server has ended; or `node` has another size now.
fn lead(mapped: &mapper::Mapped, node: Node) -> Result<()> {
    let table = table(node)?;
    if mapper::table(&mapped.name)? == table {
        return Ok(());
    }
    mapper::load(&mapped.name, &table)?;
    mapper::suspend(&mapped.name)?;
    mapper::resume(&mapped.name)
}

/// As device-mapper tells it, too.
fn table(node: Node) -> Result<String> {
    let path = node.path();
    let meta = std::fs::metadata(&path)
        .map_err(|error| Error::io(format!("cannot look at it: {error}"), error).at_path(&path))?;
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    Ok(format!("0 {} linear {major}:{minor} 0", node.sectors()?))
}

fn name_it(name: &str, node: Node, identity: &str, is_read_only: bool) -> Result<mapper::Mapped> {
    mapper::create(name, identity, &table(node)?, is_read_only)?;
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
        if let Some(node) = device.node {
            node.disconnect()?;
        }
        loops::clear(&device.identity);
        clear_journal(&device.identity);
    }
    Ok(())
}

/// Where a server keeps what it was told by the device with `identity`, so that the next one has it.
#[must_use]
pub fn journal(identity: &str) -> PathBuf {
    Path::new(RUN).join(format!("{identity}.journal"))
}

/// Takes away what a server that was killed left of a device that is gone.
fn clear_journal(identity: &str) {
    let path = journal(identity);
    // A server that runs has it locked, and goes on using it.
    if FileWriter::open(&path).is_ok() {
        // The next server would not use it either.
        let _ = std::fs::remove_file(&path);
    }
}

/// Makes requests to the loop devices of a volume wait, whose identities begin with `begin`: for the server that is
/// about to end, and answers those that are under way still.
///
/// # Errors
/// What dmsetup says.
pub fn suspend_loops(begin: &str) -> Result<()> {
    let is_one = |(_, identity): &(u32, String)| identity.starts_with(begin);
    if !loops::devices().iter().any(is_one) {
        return Ok(());
    }
    for device in all(begin, &[])? {
        if let Device { node: Some(Node::Loop(_)), mapped: Some(mapped), .. } = device {
            mapper::suspend(&mapped.name)?;
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
    let Some(node) = device.node else { return Ok(()) };
    let path = node.path();
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
