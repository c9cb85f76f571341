//! `attach`: points of a served volume as devices of this machine.

use super::common::{SnapName, parse_device_name};
use crate::dm::device::{self, Device, Node};
use crate::dm::insert::{self, Pair};
use crate::dm::{loops, mapper, nbd};
use crate::error::{Error, Kind, Result};
use crate::point::PointId;
use crate::point::volume::{SnapshotInfo, SnapshotState, StoreInfo, Volume};
use crate::serve::control::{self, Client};
use crate::ublk::device as ublk;
use crate::ui::Ui;
use crate::ui::exit::Exit;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "Examples:
  ddsnap attach data.sock --name data
  ddsnap attach data.sock --name data --snap 3";

/// Make devices of the live origin and of snapshots
///
/// The devices are /dev/mapper/VOL for the origin and '/dev/mapper/VOL(TAG)' for a snapshot; where the kernel has no
/// device-mapper, /dev/nbdN. Behind them are devices of ublk, or of NBD where the kernel or the server has no ublk, or
/// the kernel (Linux 6.7 to 6.14) may crash when a server of such devices is killed, or loop devices over files of the
/// server (FUSE) where there is neither.
/// Each line printed is a point and its device. What is attached already gets a new connection if its server was
/// another one: give the command again after the server was started again.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The socket of the server
    #[arg(value_name = "SOCK")]
    socket: PathBuf,
    /// A snapshot that becomes a device too
    #[arg(long, value_name = "SNAP")]
    snap: Vec<SnapName>,
    /// What the device of the origin is called; the name of the socket without its ending if not given
    #[arg(long, value_name = "VOL", value_parser = parse_device_name)]
    name: Option<String>,
    /// Slip the server under this device of device-mapper, which may be mounted and busy; the server must have been
    /// started with --beneath
    #[arg(long, value_name = "DEV", conflicts_with = "name")]
    insert: Option<PathBuf>,
    /// What new devices are made of: the first of these that kernel and server have, if not given; NBD comes first on
    /// Linux 6.7 to 6.14
    #[arg(long, value_name = "WAY", conflicts_with = "insert")]
    by: Option<Way>,
    /// How long requests wait for a server that is gone, in seconds, before they fail: 600 if not given; what one that
    /// was killed had begun waits longer. Devices that are made so are of NBD; those of ublk wait until there is a
    /// server, or until they are detached
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
}

/// What devices can be made of, the best one first where the kernel outlives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// A device of ublk
    Ublk,
    /// An NBD device
    Nbd,
    /// A loop device over a file that the server shows through FUSE
    Fuse,
}

/// What `connect` makes of the first of `ways` that kernel and server have.
fn first_there<T>(ways: &[Way], mut connect: impl FnMut(Way) -> Result<T>) -> Result<T> {
    let mut outcome = Err(Error::new(Kind::NotFound, "there are no devices to be had"));
    for way in ways {
        outcome = connect(*way);
        let is_missing = |error: &Error| matches!(error.kind(), Kind::NotFound | Kind::Refused);
        if !outcome.as_ref().is_err_and(is_missing) {
            break;
        }
    }
    outcome
}

/// Long enough to start a server again by hand, short enough that a machine can still be shut down.
pub(super) const WAIT_SECS: u64 = 600;

/// Runs the command.
///
/// # Errors
/// `Kind::NotFound` if no server listens there, there is no such snapshot, or the kernel has
/// no such devices; `Kind::Refused` without the right to.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let doing = || format!("cannot attach {}", args.socket.display());
    attach(args, ui).map_err(|error| error.doing(doing()))?;
    Ok(Exit::Done)
}

fn attach(args: &Args, ui: &Ui) -> Result<()> {
    if args.wait.is_some() && args.by.is_some_and(|way| way != Way::Nbd) {
        return Err(Error::new(Kind::Usage, "--wait is for NBD devices").hint("--by nbd"));
    }
    let volume = Served { wait_secs: args.wait, by: args.by, ..Served::find(&args.socket)? };
    let wanted: Vec<&SnapshotInfo> =
        args.snap.iter().map(|snap| snap.snapshot(&volume.snapshots)).collect::<Result<_>>()?;
    let present = volume.devices()?;
    let name = match volume.pair(args.insert.as_deref())? {
        Some(pair) => {
            ui.print(&volume.insert(&pair)?)?;
            pair.upper
        }
        None => {
            let name = volume.name(args.name.as_deref(), &present)?;
            ui.print(&volume.attach(None, &name)?)?;
            name
        }
    };
    for snapshot in &volume.snapshots {
        let identity = volume.identity_of(Some(snapshot));
        let is_present = present.iter().any(|device| device.identity == identity);
        if is_present || wanted.iter().any(|wanted| wanted.id == snapshot.id) {
            ui.print(&volume.attach(Some(snapshot), &format!("{name}({})", snapshot.tag))?)?;
        }
    }
    if let Some(what) = volume.short()? {
        ui.warn(&what);
    }
    for device in present.iter().filter(|device| volume.has_lost(device)) {
        let path = device.path().unwrap_or_default();
        ui.warn(&format!("{} was a snapshot that is gone: detach it", path.display()));
    }
    Ok(())
}

/// A volume whose server runs.
pub(super) struct Served {
    socket: PathBuf,
    pub(super) info: StoreInfo,
    pub(super) snapshots: Vec<SnapshotInfo>,
    pid: u32,
    wait_secs: Option<u64>,
    by: Option<Way>,
}

/// Names a point inside of an identity.
fn point_name(snapshot: Option<&SnapshotInfo>) -> String {
    snapshot.map_or_else(|| device::ORIGIN.to_owned(), |snapshot| snapshot.id.to_string())
}

fn point(snapshot: Option<&SnapshotInfo>) -> PointId {
    snapshot.map_or(PointId::Origin, |snapshot| PointId::Snapshot(snapshot.id))
}

impl Served {
    /// Asks the server at `socket`.
    pub(super) fn find(socket: &Path) -> Result<Self> {
        let client = Client::connect(socket)?;
        let mut snapshots = Volume::snapshots(&client);
        snapshots.retain(|snapshot| snapshot.state == SnapshotState::Normal);
        let (socket, info, pid) = (socket.to_path_buf(), Volume::info(&client), client.pid());
        Ok(Self { socket, info, snapshots, pid, wait_secs: None, by: None })
    }

    fn identity(&self, point: &str) -> String {
        device::identity(&self.info.uuid.to_string(), point)
    }

    /// What names a point of it to the kernel.
    pub(super) fn identity_of(&self, snapshot: Option<&SnapshotInfo>) -> String {
        self.identity(&point_name(snapshot))
    }

    /// Its devices.
    pub(super) fn devices(&self) -> Result<Vec<Device>> {
        let points = std::iter::once(None).chain(self.snapshots.iter().map(Some));
        let known: Vec<_> = points.map(|point| self.identity_of(point)).collect();
        device::all(&self.identity(""), &known)
    }

    /// Bytes of a point.
    pub(super) fn size(&self, snapshot: Option<&SnapshotInfo>) -> u64 {
        snapshot.map_or(self.info.origin_size, |snapshot| snapshot.size_bytes)
    }

    /// What the origin's device is called: as wished, or as it is already, or by the socket.
    fn name(&self, wished: Option<&str>, present: &[Device]) -> Result<String> {
        let origin = self.identity_of(None);
        let found = present.iter().find(|device| device.identity == origin);
        let found = found.and_then(|device| device.mapped.as_ref()).map(|mapped| mapped.name.clone());
        match (wished, found) {
            (Some(wished), Some(found)) if wished != found => {
                let what = format!("it is attached already, as {found}");
                Err(Error::new(Kind::Exists, what).hint(format!("'ddsnap detach {found}' takes that away")))
            }
            (Some(name), _) => Ok(name.to_owned()),
            (None, Some(found)) => Ok(found),
            (None, None) => {
                let stem = self.socket.file_stem().and_then(|stem| stem.to_str());
                let name = stem.map(parse_device_name).and_then(std::result::Result::ok);
                name.ok_or_else(|| {
                    Error::new(Kind::Usage, "the socket's name is none for a device").hint("--name VOL")
                })
            }
        }
    }

    /// The device beneath which the server is, if it is beneath one.
    fn pair(&self, wished: Option<&Path>) -> Result<Option<Pair>> {
        let found = insert::beneath(&self.info.origin_path);
        let wished = wished.map(Pair::of).transpose()?;
        match (&found, wished) {
            (None, None) => {}
            (Some(found), None) if found.is_inserted()? => {}
            (Some(found), Some(wished)) if *found == wished => {}
            (Some(found), None) => {
                let what = format!("the server waits to be inserted under {}", found.upper);
                let hint = format!("--insert /dev/mapper/{}", found.upper);
                return Err(Error::new(Kind::Usage, what).hint(hint));
            }
            (_, Some(wished)) => {
                let what = format!("the server is not beneath {}", wished.upper);
                let hint = format!("start it with --beneath /dev/mapper/{}", wished.upper);
                return Err(Error::new(Kind::Usage, what).hint(hint));
            }
        }
        Ok(found)
    }

    /// Connects the device that leads to the server beneath, if there is one: what a server that was killed had not
    /// answered waits for that, and so does whoever changes the pair meanwhile.
    pub(super) fn reconnect(&self, pair: &Pair) -> Result<()> {
        match pair.inserted()? {
            Some(found) if found.identity == self.identity_of(None) => {
                self.connect_nbd(None, Some(Node::Nbd(found.index))).map(|_| ())
            }
            _ => Ok(()),
        }
    }

    /// Slips the server under a device; the line that tells of it.
    fn insert(&self, pair: &Pair) -> Result<String> {
        self.reconnect(pair)?;
        let pair = pair.hold()?;
        let identity = self.identity_of(None);
        let connected = device::attach_unnamed(&identity, &mut |found| self.connect_nbd(None, found))?;
        match connected {
            _ if pair.is_inserted()? => pair.go_on()?,
            Node::Nbd(number) => pair.insert(number, self.info.origin_size / 512)?,
            _ => {}
        }
        Ok(format!("origin {}", mapper::path(&pair.upper).display()))
    }

    /// Makes the device that the server feeds, or gives `found`, which is there already, a connection to it.
    fn connect(&self, snapshot: Option<&SnapshotInfo>, found: Option<Node>) -> Result<Node> {
        first_there(&self.ways(found)?, |way| match way {
            Way::Ublk => self.connect_ublk(snapshot).map(Node::Ublk),
            Way::Nbd => self.connect_nbd(snapshot, found),
            Way::Fuse => self.connect_loop(snapshot, found).map(Node::Loop),
        })
    }

    /// What to try, one after the other.
    fn ways(&self, found: Option<Node>) -> Result<Vec<Way>> {
        // Of ublk and loop devices without a name nobody would find again what they were, once the server is gone.
        match (found, self.by, mapper::is_available()) {
            (Some(Node::Ublk(_)), ..) => Ok(vec![Way::Ublk]),
            (Some(Node::Nbd(_)), ..) => Ok(vec![Way::Nbd]),
            (Some(Node::Loop(_)), ..) => Ok(vec![Way::Fuse]),
            (None, Some(way), is_named) if is_named || way == Way::Nbd => Ok(vec![way]),
            (None, Some(_), _) => Err(Error::new(Kind::NotFound, "there is no device-mapper to name it")),
            (None, None, true) if self.wait_secs.is_none() => Ok(match ublk::outlives_kills() {
                true => vec![Way::Ublk, Way::Nbd, Way::Fuse],
                false => vec![Way::Nbd, Way::Ublk, Way::Fuse],
            }),
            (None, None, _) => Ok(vec![Way::Nbd]),
        }
    }

    /// As a loop device over a file that the server shows; its number.
    fn connect_loop(&self, snapshot: Option<&SnapshotInfo>, found: Option<Node>) -> Result<u32> {
        let identity = self.identity_of(snapshot);
        if let Some(Node::Loop(number)) = found {
            if loops::is_served(&identity) {
                return loops::refresh(number).map(|()| number);
            }
            loops::release(number)?;
        }
        let kind = (device::block_size(&self.info.origin_path), snapshot.is_some());
        loops::connect(&identity, kind, |folder| {
            control::show(&self.socket, point(snapshot), (folder, loops::FILE))
        })
    }

    /// As a device of ublk; its number.
    pub(super) fn connect_ublk(&self, snapshot: Option<&SnapshotInfo>) -> Result<u32> {
        let wish = ublk::Wish {
            identity: &self.identity_of(snapshot),
            size: self.size(snapshot),
            block_size: device::block_size(&self.info.origin_path),
            is_read_only: snapshot.is_some(),
        };
        let serve = |number, depth| control::serve_ublk(&self.socket, point(snapshot), (number, depth));
        ublk::connect(&wish, self.pid, serve)
    }

    fn connect_nbd(&self, snapshot: Option<&SnapshotInfo>, found: Option<Node>) -> Result<Node> {
        let served = control::Served::connect(&self.socket, point(snapshot))?;
        let link = nbd::Link {
            socket: &served.stream,
            size: served.size,
            block_size: device::block_size(&self.info.origin_path),
            flags: served.flags,
            wait_secs: self.wait_secs.unwrap_or(WAIT_SECS),
            identity: &self.identity_of(snapshot),
        };
        match found {
            Some(Node::Nbd(number)) => nbd::reconnect(number, &link).map(|()| Node::Nbd(number)),
            _ => nbd::connect(&link).map(Node::Nbd),
        }
    }

    /// Makes the device of a snapshot or of the origin; the line that tells of it.
    pub(super) fn attach(&self, snapshot: Option<&SnapshotInfo>, name: &str) -> Result<String> {
        let identity = self.identity_of(snapshot);
        let device =
            device::attach(name, &identity, snapshot.is_some(), &mut |found| self.connect(snapshot, found))?;
        let path = device.path().unwrap_or_default();
        let what = snapshot.map_or_else(|| "origin".to_owned(), |snapshot| snapshot.tag.to_string());
        Ok(format!("{what} {}", path.display()))
    }

    /// What to say of a device of the origin that could not follow to its size.
    fn short(&self) -> Result<Option<String>> {
        let (identity, block_size) = (self.identity_of(None), device::block_size(&self.info.origin_path));
        let found = self.devices()?.into_iter().find(|device| device.identity == identity);
        let Some((node, path)) = found.and_then(|device| Some((device.node?, device.path()?))) else {
            return Ok(None);
        };
        let sectors = node.sectors()?;
        let missing = (self.info.origin_size / 512).saturating_sub(sectors);
        // What is no whole block cannot be reached.
        Ok((missing >= u64::from(block_size / 512)).then(|| {
            format!(
                "{} has {} bytes, the origin {}: this kernel cannot make it larger; detach it and attach it again",
                path.display(),
                sectors * 512,
                self.info.origin_size
            )
        }))
    }

    /// True for the device of a snapshot of this volume that is there no longer.
    fn has_lost(&self, device: &Device) -> bool {
        let snapshots = self.snapshots.iter().map(Some);
        !snapshots.chain([None]).any(|point| self.identity_of(point) == device.identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_passed_over_and_nothing_else() {
        let ways = [Way::Ublk, Way::Nbd, Way::Fuse];
        let run = |failures: [Option<Kind>; 3]| {
            let mut tried = Vec::new();
            let outcome = first_there(&ways, |way| {
                tried.push(way);
                match failures[tried.len() - 1] {
                    None => Ok(way),
                    Some(kind) => Err(Error::new(kind, "as wished")),
                }
            });
            (outcome.map_err(|error| error.kind()), tried.len())
        };
        let (missing, refused) = (Some(Kind::NotFound), Some(Kind::Refused));
        assert_eq!(run([None; 3]), (Ok(Way::Ublk), 1));
        assert_eq!(run([refused, None, None]), (Ok(Way::Nbd), 2));
        assert_eq!(run([missing, missing, None]), (Ok(Way::Fuse), 3));
        assert_eq!(run([missing, missing, Some(Kind::Unsupported)]), (Err(Kind::Unsupported), 3));
        assert_eq!(run([missing, Some(Kind::Busy), None]), (Err(Kind::Busy), 2));
    }
}
