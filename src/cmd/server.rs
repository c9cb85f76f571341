//! `server`: a live volume, offered to whoever connects.

use super::common::{OldArgs, VolArgs};
use super::open;
use crate::error::{Error, Kind, Result};
use crate::serve::control::Control;
use crate::serve::export::{Exports, Volume};
use crate::serve::listen::{Address, Front, Listener, Nbd, Report};
use crate::store::Live;
use crate::ui::exit::Exit;
use crate::ui::{Ui, terminal, time};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const EXAMPLES: &str = "Examples:
  ddsnap server data.snap --socket data.sock --nbd unix:data.nbd
  ddsnap server data.snap --origin data.img --socket data.sock --nbd unix:data.nbd";

/// Offer the live origin and every snapshot of a store as block devices
///
/// Clients of NBD see 'origin', which can be written while snapshots keep what it was, and 'snap/TAG' for each
/// snapshot. The server runs until it is told to end (SIGTERM, SIGINT); it then ends what is under way and closes the
/// store.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The snapshot store: a block device or a file
    #[arg(value_name = "STORE")]
    store: PathBuf,
    /// The origin, if it is not where the store remembers it
    #[arg(long, value_name = "PATH")]
    origin: Option<PathBuf>,
    /// Where commands reach the volume: they take this socket as VOL
    #[arg(long, value_name = "SOCK")]
    socket: PathBuf,
    /// Listen for clients of NBD at unix:PATH or tcp:HOST:PORT
    #[arg(long, value_name = "ADDRESS")]
    nbd: Vec<Address>,
}

/// Runs the command.
///
/// # Errors
/// What opening says; `Kind::Io`.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let doing = || format!("cannot serve {}", args.store.display());
    serve(args, ui).map_err(|error| error.doing(doing()))
}

fn serve(args: &Args, ui: &Ui) -> Result<Exit> {
    let origin = args.origin.as_deref().map(absolute).transpose()?;
    let vol = VolArgs { vol: absolute(&args.store)?, origin, old: OldArgs::default() };
    let writer = open::writer_with_origin(&vol)?;
    if let Some(pending) = writer.view().info().pending {
        let what = format!("{} is incomplete on the origin", pending.label);
        let hint = format!("finish it or go back first: 'ddsnap status {}' tells", args.store.display());
        return Err(Error::new(Kind::Refused, what).hint(hint));
    }
    let mut live = Arc::new(Live::start(writer, time::now_secs)?);
    let stop = ui.stop_wanted();
    let report: Report = Arc::new(|error| terminal::stderr_line(&format!("ddsnap: server: {error}")));
    let control = Control::new(&live, Arc::clone(&stop));
    let control = Front::new(bind(&Address::Unix(args.socket.clone()), ui)?, control, Arc::clone(&report));
    let exports: Arc<dyn Exports> = Arc::new(Volume(Arc::clone(&live)));
    let front = |address| Ok(Front::new(bind(address, ui)?, Nbd(Arc::clone(&exports)), Arc::clone(&report)));
    let fronts = args.nbd.iter().map(front).collect::<Result<Vec<_>>>()?;
    drop(exports);
    std::thread::scope(|scope| {
        let commands = scope.spawn(|| control.run());
        let outcome = run_until(&fronts, || stop.load(Ordering::Relaxed) || commands.is_finished());
        drop(fronts);
        // Commands that are under way have the store for a moment; new ones are refused.
        let closed = loop {
            match Arc::try_unwrap(live) {
                Ok(live) => break live.close(),
                Err(shared) => live = shared,
            }
            std::thread::sleep(PAUSE);
        };
        // Who ended it by a command has waited until now.
        control.stop();
        outcome.and(commands.join().unwrap_or(Ok(()))).and(closed).map(|()| Exit::Done)
    })
}

/// Commands that are given elsewhere must know which devices are meant, lest a result overwrites one.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path)
        .map_err(|error| Error::io(format!("cannot find it: {error}"), error).at_path(path))
}

/// How often the end is looked for.
const PAUSE: Duration = Duration::from_millis(20);

fn bind(address: &Address, ui: &Ui) -> Result<Listener> {
    let listener = Listener::bind(address)?;
    ui.explain(&format!("listening at {}", listener.address()));
    Ok(listener)
}

/// Runs front ends until `is_over`, or one of them fails.
fn run_until(fronts: &[Front<Nbd>], is_over: impl Fn() -> bool) -> Result<()> {
    std::thread::scope(|scope| {
        let running: Vec<_> = fronts.iter().map(|front| scope.spawn(|| front.run())).collect();
        while !is_over() && !running.iter().any(|thread| thread.is_finished()) {
            std::thread::sleep(PAUSE);
        }
        fronts.iter().for_each(Front::stop);
        running.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())))
    })
}
