//! Devices of ublk. The kernel keeps the list: what serves a device may end, and the next server takes it up again.

use super::ring;
use crate::error::{Error, Kind, Result};
use crate::format::ublk::{ANY, DeviceInfo, Params, State, control, feature};
use rustix::io::Errno;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Requests that are under way, at most.
const DEPTH: u16 = 128;
/// Bytes of one request, at most.
const REQUEST_MAX: u32 = 1 << 20;
/// What a device must be able to do.
const FEATURES: u64 =
    feature::CMD_IOCTL_ENCODE | feature::USER_COPY | feature::USER_RECOVERY | feature::USER_RECOVERY_REISSUE;
/// How long the kernel may take: it waits for whoever serves the device.
const LIMIT: Duration = Duration::from_secs(30);
/// How long the end of a killed server may take.
const END_LIMIT: Duration = Duration::from_secs(20);
/// How often it is asked.
const PAUSE: Duration = Duration::from_millis(20);

const CONTROL: &str = "/dev/ublk-control";
const CLASS: &str = "/sys/class/ublk-char";

/// Where the disk number `number` is.
#[must_use]
pub fn path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{number}"))
}

/// What device `identity` is marked with. Two that are not the same have the same mark once in 2^64.
#[must_use]
pub fn mark(identity: &str) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *blake3::hash(identity.as_bytes()).as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// True if this kernel surely goes on when a server of such devices is killed while they are in use. Linux 6.7 to 6.14
/// may end a command twice then, and die of it (CVE-2025-37906).
#[must_use]
pub fn outlives_kills() -> bool {
    let system = rustix::system::uname();
    is_mended(&system.release().to_string_lossy())
}

fn is_mended(release: &str) -> bool {
    let mut numbers = release.split(|sign: char| !sign.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else { return false };
    !((6, 7)..(6, 15)).contains(&(major, minor))
}

/// A device that is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// Names what is behind it.
    pub identity: &'a str,
    /// Bytes; what follows the last whole sector cannot be reached.
    pub size: u64,
    /// Bytes of the smallest request.
    pub block_size: u32,
    /// It cannot be written.
    pub is_read_only: bool,
}

/// Makes sure that this machine has such devices and lets this process make them.
///
/// # Errors
/// `Kind::NotFound` if the kernel has none; `Kind::Refused` without the right to; `Kind::Io`.
pub fn ensure_available() -> Result<()> {
    Control::open().map(|_| ())
}

/// Marks of all devices that are a disk, by number; those of others too. Where this process may not ask, there are
/// none.
///
/// # Errors
/// `Kind::Io`.
pub fn marks() -> Result<Vec<(u32, u64)>> {
    if numbers().is_empty() {
        return Ok(Vec::new());
    }
    let control = match Control::open() {
        Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Refused) => return Ok(Vec::new()),
        control => control?,
    };
    let disks = control.all()?.into_iter().filter(|info| info.state != State::Dead);
    Ok(disks.map(|info| (info.number, info.mark)).collect())
}

/// Makes the device that is wanted, or gives the one that is there and waits another server; returns its number.
/// `serve` makes process `pid` serve device `number`, which takes `depth` requests at a time.
///
/// # Errors
/// As [`ensure_available`]; `Kind::Busy` if a server that is gone still holds it; what `serve` says.
pub fn connect(wish: &Wish<'_>, pid: u32, mut serve: impl FnMut(u32, u16) -> Result<()>) -> Result<u32> {
    let control = Control::open()?;
    let mark = mark(wish.identity);
    let found = control.all()?.into_iter().find(|info| info.mark == mark);
    match found {
        Some(info) if info.state != State::Dead => {
            let is_served = info.state == State::Live && u32::try_from(info.pid) == Ok(pid);
            if !is_served {
                control.take_up(info, pid, &mut serve)?;
            }
            control.fit(info.number, wish.size);
            Ok(info.number)
        }
        found => {
            if let Some(info) = found {
                control.remove(info.number)?;
            }
            control.make(wish, pid, &mut serve)
        }
    }
}

/// True if a device with this number waits for a server.
///
/// # Errors
/// As [`ensure_available`].
pub fn waits(number: u32) -> Result<bool> {
    Ok(Control::open()?.info(number)?.is_some_and(|info| info.state == State::Waits))
}

/// Takes a device away; requests under way fail. What is gone already is no error.
///
/// # Errors
/// As [`ensure_available`]; `Kind::Busy` if its server does not let it go.
pub fn remove(number: u32) -> Result<()> {
    Control::open()?.remove(number)
}

/// The numbers of all devices.
fn numbers() -> Vec<u32> {
    let entries = std::fs::read_dir(CLASS).into_iter().flatten().flatten();
    let mut numbers: Vec<u32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("ublkc")?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

/// The driver, and what it can do.
struct Control(File, u64);

impl Control {
    fn open() -> Result<Self> {
        if !Path::new(CONTROL).exists() {
            // Whether that helped shows next.
            let _ =
                Command::new("modprobe").arg("ublk_drv").stdin(Stdio::null()).stderr(Stdio::null()).status();
        }
        let file =
            File::options().read(true).write(true).open(CONTROL).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => missing("this kernel has no ublk devices"),
                std::io::ErrorKind::PermissionDenied => not_root(),
                _ => Error::io(format!("cannot ask for ublk devices: {error}"), error)
                    .at_path(Path::new(CONTROL)),
            })?;
        let mut control = Self(file, 0);
        let mut features = [0; 8];
        match control.ask(control::GET_FEATURES, (ANY, 0), &mut features) {
            Ok(()) => {}
            Err(error) => {
                return Err(match Errno::from_io_error(&error) {
                    Some(Errno::OPNOTSUPP | Errno::INVAL) => missing("this kernel's ublk is too old"),
                    Some(Errno::NOSYS) => no_ring(),
                    // A ring is what a system forbids, and the driver what is root's.
                    Some(Errno::PERM | Errno::ACCESS) if rustix::process::geteuid().is_root() => no_ring(),
                    _ => refused(error),
                });
            }
        }
        // The byte order of the machine, as everything the driver says.
        control.1 = zerocopy::transmute!(features);
        match has_all(control.1) {
            true => Ok(control),
            false => Err(missing("this kernel's ublk is too old")),
        }
    }

    fn ask(&self, code: u32, target: (u32, u64), buf: &mut [u8]) -> std::io::Result<()> {
        ring::ask(&self.0, code, target, buf, LIMIT)
    }

    fn command(&self, code: u32, target: (u32, u64), buf: &mut [u8]) -> Result<()> {
        self.ask(code, target, buf).map_err(refused)
    }

    /// What is known of a device; `None` if there is none.
    fn info(&self, number: u32) -> Result<Option<DeviceInfo>> {
        let mut bytes = [0; DeviceInfo::SIZE];
        match self.ask(control::GET_DEVICE_INFO, (number, 0), &mut bytes) {
            Ok(()) => DeviceInfo::decode(&bytes).map(Some),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => Ok(None),
            Err(error) => Err(refused(error)),
        }
    }

    fn all(&self) -> Result<Vec<DeviceInfo>> {
        let mut known = Vec::new();
        for number in numbers() {
            match self.info(number) {
                // None of ours.
                Err(error) if error.kind() == Kind::Unsupported => {}
                info => known.extend(info?),
            }
        }
        Ok(known)
    }

    /// Makes a device and starts it.
    fn make(&self, wish: &Wish<'_>, pid: u32, serve: &mut dyn FnMut(u32, u16) -> Result<()>) -> Result<u32> {
        if !matches!(wish.block_size, 512 | 1024 | 2048 | 4096) {
            let what = format!("ublk has no devices with blocks of {} bytes", wish.block_size);
            return Err(Error::new(Kind::NotFound, what));
        }
        let info = DeviceInfo {
            queues: 1,
            depth: DEPTH,
            state: State::Dead,
            request_bytes_max: REQUEST_MAX,
            number: ANY,
            pid: -1,
            features: FEATURES,
            mark: mark(wish.identity),
        };
        let mut bytes = info.encode();
        self.command(control::ADD_DEVICE, (ANY, 0), &mut bytes)?;
        let made = DeviceInfo::decode(&bytes)?;
        let started = self.start(&made, wish, pid, serve);
        if started.is_err() {
            // The error tells more than what may follow from it.
            let _ = self.remove(made.number);
        }
        started.map(|()| made.number)
    }

    fn start(
        &self,
        made: &DeviceInfo,
        wish: &Wish<'_>,
        pid: u32,
        serve: &mut dyn FnMut(u32, u16) -> Result<()>,
    ) -> Result<()> {
        if made.features & FEATURES != FEATURES || made.queues != 1 {
            return Err(missing("this kernel's ublk is too old"));
        }
        let params = Params {
            size: wish.size,
            block_size: wish.block_size,
            request_bytes_max: made.request_bytes_max,
            is_read_only: wish.is_read_only,
        };
        self.command(control::SET_PARAMS, (made.number, 0), &mut params.encode())?;
        serve(made.number, made.depth)?;
        self.command(control::START_DEVICE, (made.number, u64::from(pid)), &mut [])
    }

    /// Gives a device whose server is gone, or is about to be, to process `pid`.
    fn take_up(
        &self,
        info: DeviceInfo,
        pid: u32,
        serve: &mut dyn FnMut(u32, u16) -> Result<()>,
    ) -> Result<()> {
        let begun = Instant::now();
        loop {
            match self.ask(control::START_USER_RECOVERY, (info.number, 0), &mut []) {
                Ok(()) => break,
                Err(error) => match Errno::from_io_error(&error) {
                    // Its server is not quite gone.
                    Some(Errno::BUSY) if begun.elapsed() < END_LIMIT => std::thread::sleep(PAUSE),
                    // Somebody has begun with it, and no server came.
                    Some(Errno::INVAL) if info.state == State::Waits => break,
                    _ => return Err(refused(error).at_path(&path(info.number))),
                },
            }
        }
        serve(info.number, info.depth)?;
        self.command(control::END_USER_RECOVERY, (info.number, u64::from(pid)), &mut [])
    }

    /// Gives a disk its size, where the kernel can.
    fn fit(&self, number: u32, size: u64) {
        if self.1 & feature::UPDATE_SIZE != 0 {
            // It keeps the size that it has, which whoever uses it sees.
            let _ = self.command(control::UPDATE_SIZE, (number, size / 512), &mut []);
        }
    }

    fn remove(&self, number: u32) -> Result<()> {
        for code in [control::STOP_DEVICE, control::DELETE_DEVICE] {
            match self.ask(code, (number, 0), &mut []) {
                Ok(()) => {}
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => return Ok(()),
                Err(error) => return Err(refused(error).at_path(&path(number))),
            }
        }
        Ok(())
    }
}

/// `found` is what the driver says of itself.
const fn has_all(found: u64) -> bool {
    found & FEATURES == FEATURES
}

fn missing(what: &str) -> Error {
    Error::new(Kind::NotFound, what)
        .hint("Linux has what is needed from 6.5 on; 'modprobe ublk_drv' loads it where it is a module")
}

fn not_root() -> Error {
    Error::new(Kind::Refused, "only root makes devices of the kernel").hint("run it as root")
}

fn no_ring() -> Error {
    Error::new(Kind::Refused, "ublk devices need io_uring, which this system does not allow")
        .hint("'sysctl kernel.io_uring_disabled' tells; containers forbid it too")
}

fn refused(error: std::io::Error) -> Error {
    match (Errno::from_io_error(&error), error.kind()) {
        (Some(Errno::PERM | Errno::ACCESS), _) => not_root(),
        (_, std::io::ErrorKind::TimedOut) => {
            Error::new(Kind::Busy, "the kernel waits for whoever serves the device, and nobody does")
                .hint("end the server if it hangs")
        }
        (_, std::io::ErrorKind::Unsupported) => Error::new(Kind::NotFound, error.to_string()),
        _ => Error::io(format!("the kernel refuses: {error}"), error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_a_killed_server_may_take_along_are_known() {
        for release in ["6.5.0", "6.6.99-generic", "6.15.0-rc1", "6.16", "7.1.2", "10.0.1"] {
            assert!(is_mended(release), "{release}");
        }
        for release in ["6.7.0", "6.12.107", "6.12.9+deb13-amd64", "6.14-rc3", "", "6", "six.twelve"] {
            assert!(!is_mended(release), "{release}");
        }
    }

    #[test]
    fn marks_differ() {
        let one = mark("DDSNAP-0-origin");
        assert_eq!(one, mark("DDSNAP-0-origin"));
        assert_ne!(one, mark("DDSNAP-0-1"));
    }

    #[test]
    fn what_the_kernel_says_has_a_kind() {
        let kind = |number: Errno| refused(std::io::Error::from(number)).kind();
        assert_eq!(kind(Errno::PERM), Kind::Refused);
        assert_eq!(kind(Errno::BUSY), Kind::Busy);
        assert_eq!(kind(Errno::INVAL), Kind::Io);
        assert_eq!(refused(std::io::ErrorKind::TimedOut.into()).kind(), Kind::Busy);
        assert_eq!(refused(std::io::ErrorKind::Unsupported.into()).kind(), Kind::NotFound);
    }
}
