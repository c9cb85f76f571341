//! `server`: a live volume, offered to whoever connects.

use super::common::{OldArgs, VolArgs};
use super::open;
use crate::error::{Error, Kind, Result};
use crate::serve::export::{Exports, Volume};
use crate::serve::listen::{Address, Front, Listener, Report};
use crate::store::Live;
use crate::ui::exit::Exit;
use crate::ui::{Ui, terminal, time};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const EXAMPLES: &str = "Examples:
  ddsnap server data.snap --nbd unix:data.nbd
  ddsnap server data.snap --origin data.img --nbd tcp:127.0.0.1:10809";

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
    /// Listen for clients of NBD at unix:PATH or tcp:HOST:PORT
    #[arg(long, value_name = "ADDRESS", required = true)]
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
    let vol = VolArgs { vol: args.store.clone(), origin: args.origin.clone(), old: OldArgs::default() };
    let writer = open::writer_with_origin(&vol)?;
    if let Some(pending) = writer.view().info().pending {
        let what = format!("{} is incomplete on the origin", pending.label);
        let hint = format!("finish it or go back first: 'ddsnap status {}' tells", args.store.display());
        return Err(Error::new(Kind::Refused, what).hint(hint));
    }
    let live = Arc::new(Live::start(writer, time::now_secs)?);
    let report: Report = Arc::new(|error| terminal::stderr_line(&format!("ddsnap: server: {error}")));
    let exports: Arc<dyn Exports> = Arc::new(Volume(Arc::clone(&live)));
    let fronts = args
        .nbd
        .iter()
        .map(|address| {
            let listener = Listener::bind(address)?;
            ui.explain(&format!("listening at {}", listener.address()));
            Ok(Front::new(listener, Arc::clone(&exports), Arc::clone(&report)))
        })
        .collect::<Result<Vec<_>>>()?;
    drop(exports);
    let stop = ui.stop_wanted();
    let outcome = std::thread::scope(|scope| {
        let running: Vec<_> = fronts.iter().map(|front| scope.spawn(|| front.run())).collect();
        while !stop.load(Ordering::Relaxed) && !running.iter().any(|thread| thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(50));
        }
        fronts.iter().for_each(Front::stop);
        running.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())))
    });
    drop(fronts);
    let in_use = || Error::new(Kind::Busy, "the store is still in use");
    let closed = Arc::into_inner(live).ok_or_else(in_use)?.close();
    outcome.and(closed).map(|()| Exit::Done)
}
