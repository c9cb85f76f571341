//! `detach`: devices that `attach` has made, taken away, and servers taken out from under devices.

use super::attach::{Served, WAIT_SECS};
use super::open;
use crate::block::file::FileWriter;
use crate::block::lock::Lock;
use crate::dm::device::{self, Device, Node};
use crate::dm::insert::{self, Held, Inserted, Pair};
use crate::dm::{mapper, nbd};
use crate::error::{Error, Kind, Result};
use crate::point::volume::Volume;
use crate::serve::control::Client;
use crate::serve::listen::Wire;
use crate::serve::nbd::{Memory, Session, serve};
use crate::serve::straight::Straight;
use crate::ui::Ui;
use crate::ui::exit::Exit;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const EXAMPLES: &str = "Examples:
  ddsnap detach data
  ddsnap detach 'data(3)'
  ddsnap detach data.sock";

/// Take devices away that attach has made
///
/// Takes all devices of the volume, or none if one of them is in use. The server need not run any more. A server that
/// was slipped under a device (attach --insert) is taken out from under it, mounted or not, and ended.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What attach has called the origin, or a path of its device, or the socket of the server: all devices of the
    /// volume; 'VOL(TAG)': the one of that snapshot
    #[arg(value_name = "VOL|SOCK")]
    what: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// `Kind::Busy` if a device is in use; `Kind::NotFound` if there is none.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let doing = || format!("cannot detach {}", args.what.display());
    take_away(&args.what, ui).map_err(|error| error.doing(doing()))?;
    Ok(Exit::Done)
}

fn take_away(what: &Path, ui: &Ui) -> Result<()> {
    let pair = pair(what)?;
    if let Some(left) = pair.as_ref().filter(|_| !open::is_served(what))
        && left.is_left_over()?
    {
        left.tidy()?;
        ui.explain(&format!("nothing is beneath {} any more", left.upper));
        return Ok(());
    }
    let pair = pair.map_or(Ok(None), inserted)?;
    let mut devices = chosen(what, pair.is_some())?;
    if let Some(pair) = pair {
        devices.retain(|device| !device.identity.ends_with("-origin"));
        take_out(&pair, what, &devices, ui)?;
        ui.explain(&format!("nothing is beneath {} any more", pair.upper));
    } else {
        device::detach(&devices)?;
    }
    for device in devices {
        ui.explain(&format!("{} is gone", device.path().unwrap_or_default().display()));
    }
    Ok(())
}

/// The device under which a server may have been slipped, if that is what `what` means.
fn pair(what: &Path) -> Result<Option<Pair>> {
    if open::is_served(what) {
        return Ok(insert::beneath(&Volume::info(&connect(what)?).origin_path));
    }
    let path = if what.is_absolute() { what.to_path_buf() } else { mapper::path(&what.to_string_lossy()) };
    Ok(Pair::of(&path).ok())
}

/// The same, held, if one is inserted.
fn inserted(pair: Pair) -> Result<Option<Held>> {
    if !pair.is_inserted()? {
        return Ok(None);
    }
    let held = pair.hold()?;
    // Another command may have taken it out meanwhile.
    Ok(if held.is_inserted()? { Some(held) } else { None })
}

/// Takes a server out from under a device, and ends it, if it runs still: from then on nobody sees what is written.
fn take_out(pair: &Held, what: &Path, others: &[Device], ui: &Ui) -> Result<()> {
    let mut stand_in = StandIn { pair, lower: None, is_over: AtomicBool::new(false) };
    let server = match open::is_served(what) {
        true => {
            device::detach(others)?;
            Served::find(what)?.reconnect(pair)?;
            Some(connect(what)?)
        }
        false => {
            // From now on no server can begin to be what this takes out.
            stand_in.lower = Some(stand_in.open().map_err(|error| {
                match error.kind() {
                    Kind::Busy => {
                        Error::new(Kind::Busy, "a server is beneath it, which must be ended with it")
                            .hint("'ddsnap detach SOCK' does both")
                    }
                    _ => error,
                }
            })?);
            None
        }
    };
    let mut failed = None;
    stand_in.during(|stand_in| {
        pair.take_out(|| {
            // All that was under way is done.
            stand_in.is_over.store(true, Ordering::Release);
            match server.as_ref().map_or(Ok(()), Client::stop) {
                // Gone it is.
                Err(error) if stand_in.is_free(true) => failed = Some(error),
                stopped => stopped?,
            }
            Ok(())
        })
    })?;
    if let Some(error) = failed {
        ui.warn(&format!("the server has not ended in good order: {error}"));
    }
    pair.remove_lower()
}

/// How often is looked whether the server is gone, and the kernel is offered a connection, until it has seen that the
/// one it had is dead.
const PAUSE: Duration = Duration::from_millis(200);

/// Answers in place of a server that is gone. Writes that it had not answered wait in the kernel, and the device would
/// wait for them: they are done here, past the store, whose snapshots are not trusted any more for what follows anyway.
struct StandIn<'a> {
    pair: &'a Pair,
    /// From the start, if there is no server.
    lower: Option<FileWriter>,
    is_over: AtomicBool,
}

impl StandIn<'_> {
    /// Runs `take_out`, and meanwhile answers whatever no server does.
    fn during(mut self, take_out: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let (dead, lower) = (Dead::of(self.pair)?, self.lower.take());
        std::thread::scope(|scope| {
            scope.spawn(|| self.answer(&dead, lower));
            let outcome = take_out(&self);
            self.is_over.store(true, Ordering::Release);
            outcome
        })
    }

    fn open(&self) -> Result<FileWriter> {
        FileWriter::open_shared_origin(&self.pair.lower_path())
    }

    /// True if no server has the lower device. Only read, which tells nobody that it changed.
    fn is_free(&self, waits: bool) -> bool {
        let path = self.pair.lower_path();
        File::open(&path).is_ok_and(|lower| Lock::Exclusive.take(&lower, &path, waits).is_ok())
    }

    /// Waits until the server is gone, and answers then, until it is over.
    fn answer(&self, dead: &Dead, mut lower: Option<FileWriter>) {
        while !self.is_over.load(Ordering::Acquire) {
            if lower.is_none() && self.is_free(false) {
                // Whoever holds it for a moment only does not keep it.
                lower = self.open().ok();
            }
            // What could not be answered waits for the next try.
            let _ = lower.take().map(|lower| self.serve(dead, lower));
            std::thread::sleep(PAUSE);
        }
    }

    fn serve(&self, dead: &Dead, lower: FileWriter) -> Result<()> {
        let no_connection = |error| Error::io("cannot make a connection", error);
        let (near, far) = UnixStream::pair().map_err(no_connection)?;
        let (last, sender) =
            (far.try_clone().map_err(no_connection)?, far.try_clone().map_err(no_connection)?);
        let session = Session { export: Arc::new(Straight(lower)), structured: false, contexts: Vec::new() };
        std::thread::scope(|scope| {
            // What it cannot do it has answered with an error.
            let serving = scope.spawn(|| serve(&session, &Memory::default(), (far, sender), &last));
            while !self.is_over.load(Ordering::Acquire) && !serving.is_finished() {
                // It may be gone already, and is not needed then.
                let _ = dead.offer(&near);
                std::thread::sleep(PAUSE);
            }
            near.end();
        });
        Ok(())
    }
}

/// An NBD device whose server is gone.
struct Dead {
    /// The kernel takes no connection for another device, if the number is that of another by now.
    device: Inserted,
    size: u64,
    block_size: u32,
}

impl Dead {
    fn of(pair: &Pair) -> Result<Self> {
        let Some(device) = pair.inserted()? else {
            return Err(Error::new(Kind::NotFound, "nothing of that name is attached"));
        };
        let size = Node::Nbd(device.index).sectors()? * 512;
        let block_size = device::block_size(&nbd::path(device.index));
        Ok(Self { device, size, block_size })
    }

    /// Gives it another connection. Flags that it has stay.
    fn offer(&self, socket: &UnixStream) -> Result<()> {
        let Self { device: Inserted { index, identity }, size, block_size } = self;
        let (size, block_size) = (*size, *block_size);
        let link = nbd::Link { socket, size, block_size, flags: 0, wait_secs: WAIT_SECS, identity };
        nbd::reconnect(*index, &link)
    }
}

fn connect(socket: &Path) -> Result<Client> {
    Client::connect(socket).map_err(hint_at_names)
}

fn hint_at_names(error: Error) -> Error {
    error.hint("without the server, name the volume as attach has called it")
}

/// The devices that `what` means; there may be none if `may_be_none`.
fn chosen(what: &Path, may_be_none: bool) -> Result<Vec<Device>> {
    let found = match open::is_served(what) {
        true => Served::find(what).map_err(hint_at_names)?.devices()?,
        false if may_be_none => Vec::new(),
        false => {
            let all = device::all("", &[])?;
            let Some(one) = all.iter().find(|device| is_called(device, what)) else {
                return Err(nothing(what));
            };
            match device::siblings(&one.identity).filter(|_| one.identity.ends_with("-origin")) {
                Some(begin) => device::all(begin, &[])?,
                None => vec![one.clone()],
            }
        }
    };
    if found.is_empty() && !may_be_none { Err(nothing(what)) } else { Ok(found) }
}

fn is_called(device: &Device, what: &Path) -> bool {
    let name = device.mapped.as_ref().map(|mapped| mapped.name.as_str());
    name == what.to_str()
        || device.path().as_deref() == Some(what)
        || device.node.map(Node::path).as_deref() == Some(what)
}

fn nothing(what: &Path) -> Error {
    let name =
        what.to_str().filter(|name| mapper::is_available() && matches!(mapper::find(name), Ok(Some(_))));
    match name {
        Some(_) => Error::new(Kind::Refused, "this device is not one that attach has made"),
        None => Error::new(Kind::NotFound, "nothing of that name is attached"),
    }
}
