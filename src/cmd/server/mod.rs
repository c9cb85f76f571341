//! `server`: a live volume, offered to whoever connects.

mod journal;
mod plan;
mod service;
mod ublk;

use super::common::{OldArgs, TAINT, VolArgs, parse_size, title};
use super::daemon::{self, Stage};
use super::open;
use crate::block::counted::Counts;
use crate::dm::device;
use crate::dm::insert::Pair;
use crate::error::{Error, Kind, Result};
use crate::serve::control::{Control, store_name};
use crate::serve::export::{Exports, Volume};
use crate::serve::figures::Collector;
use crate::serve::front::{Front, Nbd, Report, Serve};
use crate::serve::fuse::{self, Fuse};
use crate::serve::listen::{Address, Listener, Reach};
use crate::serve::metrics::Metrics;
use crate::serve::nbd;
use crate::serve::tls::Tls;
use crate::serve::watched::{Watch, WatchedExports};
use crate::store::{Live, Writer};
use crate::ui::exit::Exit;
use crate::ui::log::Log;
use crate::ui::{Ui, signals, time};
use plan::Plan;
use service::{Inherited, PidFile, Service};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

const EXAMPLES: &str = "Examples:
  ddsnap server data.snap --socket data.sock --nbd unix:data.nbd
  ddsnap server data.snap --origin data.img --socket data.sock --nbd unix:data.nbd
  ddsnap server data.snap --socket data.sock --daemonize --pidfile data.pid --logfile data.log";

/// Offer the live origin and every snapshot of a store as block devices
///
/// Clients of NBD see 'origin', which can be written while snapshots keep what it was, and 'snap/TAG' for each
/// snapshot. The server runs until it is told to end (SIGTERM, SIGINT, 'ddsnap stop'); it then ends what is under way
/// and closes the store.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(override_usage = "ddsnap server [OPTIONS] STORE --socket SOCK\n       \
                            ddsnap server [OPTIONS] STORE ORIGIN AGENT_SOCK SOCK")]
pub struct Args {
    /// The snapshot store: a block device or a file
    #[arg(value_name = "STORE")]
    store: PathBuf,
    /// As in 2008: the origin, the socket of an agent (the server answers there too) and the socket for commands; the
    /// server then goes to the background unless -f is given
    #[arg(value_name = "ORIGIN AGENT_SOCK SOCK", num_args = 0..=4, hide_possible_values = true)]
    old: Vec<PathBuf>,
    /// The origin, if it is not where the store remembers it
    #[arg(long, value_name = "PATH")]
    origin: Option<PathBuf>,
    /// Serve what is beneath this device of device-mapper, which may be mounted; 'ddsnap attach --insert' slips the
    /// server under it, and until then no snapshot is made
    #[arg(long, value_name = "DEV", conflicts_with_all = ["origin", "old"])]
    beneath: Option<PathBuf>,
    /// Where commands reach the volume: they take this socket as VOL
    #[arg(long, value_name = "SOCK")]
    socket: Option<PathBuf>,
    /// Listen for clients of NBD at unix:PATH or tcp:HOST:PORT
    #[arg(long, value_name = "ADDRESS")]
    nbd: Vec<Address>,
    /// Encrypt NBD with server-cert.pem and server-key.pem of this folder; over TCP clients must then use TLS
    #[arg(long, value_name = "CERTDIR")]
    tls: Option<PathBuf>,
    /// Take only clients of NBD with a certificate of ca-cert.pem in CERTDIR, where TLS is used
    #[arg(long, requires = "tls")]
    tls_verify_peer: bool,
    /// Serve without TLS whoever comes, from other machines too: who connects may read and write everything
    #[arg(long)]
    insecure: bool,
    /// Show 'origin' and 'snap/TAG' as files in this empty folder: loop devices take them (losetup --direct-io=on)
    #[arg(long, value_name = "DIR")]
    fuse: Vec<PathBuf>,
    /// Make a device of the origin at once, /dev/ublkbN, and serve those of ublk that wait for a server of this volume
    #[arg(long, conflicts_with = "beneath")]
    ublk: bool,
    /// Offer figures in the text format of Prometheus, as http://ADDRESS/metrics, at unix:PATH or HOST:PORT of this
    /// machine
    #[arg(long, value_name = "ADDRESS", value_parser = plan::parse_metrics)]
    metrics: Vec<Address>,
    /// Go to the background once everything is up; the exit status tells whether it is
    #[arg(long, conflicts_with = "foreground")]
    daemonize: bool,
    /// Stay in the foreground, which is what happens but for a command line of 2008
    #[arg(short, long)]
    foreground: bool,
    /// Write the process id to FILE while the server is up
    #[arg(short, long, value_name = "FILE")]
    pidfile: Option<PathBuf>,
    /// Append messages to FILE instead of standard error once the server is up; SIGHUP opens it anew
    #[arg(short, long, value_name = "FILE")]
    logfile: Option<PathBuf>,
    /// Size of the block cache; no longer means anything
    #[arg(short = 'k', long, value_name = "SIZE", value_parser = parse_size, hide = true)]
    cachesize: Option<u64>,
    /// Recount free space; no longer means anything
    #[arg(short = 'D', hide = true)]
    recount: bool,
    /// Deferred journal; no longer means anything
    #[arg(short = 'X', hide = true)]
    deferred: bool,
}

impl Args {
    /// SIGHUP opens the log anew, where somebody sends it for that; otherwise a terminal has gone away.
    pub fn hangup(&self) -> signals::Hangup {
        match self.logfile.is_some() || service::is_managed() || Stage::of_this() == Stage::Server {
            true => signals::Hangup::IsHeard,
            false => signals::Hangup::Stops,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// What opening says; `Kind::Io`.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let doing = || format!("cannot serve {}", args.store.display());
    let plan = Plan::of(args).map_err(|error| error.doing(doing()))?;
    match (plan.in_background, Stage::of_this()) {
        (true, Stage::First) => {
            plan.warn(ui);
            daemon::launch()
        }
        (true, Stage::Session) => daemon::lead(),
        (true, Stage::Server) => plan.leave_folder().and_then(|plan| serve(&plan, ui)).inspect_err(|error| {
            daemon::tell_failure(error.kind(), ui);
        }),
        (false, _) => {
            plan.warn(ui);
            serve(&plan, ui)
        }
    }
    .map_err(|error| error.doing(doing()))
}

fn serve(plan: &Plan, ui: &Ui) -> Result<Exit> {
    let pair = plan.beneath.as_deref().map(Pair::of).transpose()?;
    let outcome = serve_volume(plan, pair.as_ref(), ui);
    match pair {
        // Nobody needs it where the server was not inserted, or not any more.
        Some(pair) => outcome.and_then(|exit| pair.tidy().map(|()| exit)),
        None => outcome,
    }
}

fn serve_volume(plan: &Plan, pair: Option<&Pair>, ui: &Ui) -> Result<Exit> {
    let log = Arc::new(Log::open(plan.logfile.as_deref(), ui.verbose() || service::is_managed())?);
    // Before there is any thread that lands writes: they inherit it.
    service::keep_in_memory(&log);
    service::allow_descriptors();
    let inherited = Inherited::of_environment()?;
    if plan.socket.is_none() && inherited.control.is_none() {
        return Err(
            Error::new(Kind::Usage, "commands would not reach it").hint("--socket SOCK names a socket")
        );
    }
    let tls = plan.tls.as_deref().map(|folder| Tls::of_folder(folder, plan.verify_peer)).transpose()?;
    // Before anything begins.
    plan.fuse.iter().try_for_each(|folder| fuse::ensure_empty_folder(folder))?;
    let devices = [Arc::new(Counts::default()), Arc::new(Counts::default())];
    let live = Arc::new(open_live(plan, pair, &devices)?);
    journal::take_up(&live, &log)?;
    let stop = ui.stop_wanted();
    let report: Report = {
        let log = Arc::clone(&log);
        Arc::new(move |error| log.line(&error.to_string()))
    };
    let listener = match (&plan.socket, inherited.control) {
        (Some(path), _) => bind(&Address::Unix(path.clone()), Reach::ThisMachine, &log)?,
        (None, Some(listener)) => listener,
        (None, None) => return Err(Error::new(Kind::Usage, "there is no socket for commands")),
    };
    let figures = Arc::new(Collector::new(&live, &devices[0], &devices[1]));
    let watch = {
        let log = Arc::clone(&log);
        Arc::new(Watch::new(move |text| log.line(text)))
    };
    let control = Control::new(&live, Arc::clone(&figures), Arc::clone(&stop), Arc::clone(&watch));
    let control = match pair.cloned() {
        // Reads go past a server that is inserted: what it tells of must have landed.
        Some(pair) => {
            let identity = device::identity(&live.look(|view| view.info().uuid).to_string(), device::ORIGIN);
            control.guarded(move || ensure_inserted(&pair, &identity))
        }
        None => {
            let log = Arc::clone(&log);
            control.outliving(move |live| journal::begin(live, &log))
        }
    };
    // Who is above uses it, before the server is inserted as well, and while nothing is connected.
    let _above = pair.map(|_| live.open_origin()).transpose()?;
    let mut listeners = vec![listener];
    listeners.extend(listener_of_store(&live)?);
    if let Some(agent) = &plan.agent {
        listeners.push(bind(&Address::Unix(agent.clone()), Reach::ThisMachine, &log)?);
    }
    let controls = listeners.into_iter().map(|listener| -> Box<dyn Serve> {
        Box::new(Front::new(listener, control.clone(), Arc::clone(&report)))
    });
    let controls: Vec<_> = controls.collect();
    let ways = Ways { live: &live, tls, figures: &figures, watch, report, log: &log };
    let fronts = ways.open(plan, inherited.nbd)?;
    let service = Service::of_environment(&log);
    let hangups = match plan.hangup {
        signals::Hangup::IsHeard => signals::hangups(),
        signals::Hangup::Stops => Ok(Arc::default()),
    };
    let hangups = hangups.map_err(|error| Error::io("cannot listen to signals", error))?;
    let mut house = House { service, log, hangups, figures };
    let pidfile = plan.pidfile.as_deref().map(PidFile::write).transpose()?;
    house.open(plan, &live, ui)?;
    let outcome = keep(live, (&controls, &control), fronts, &mut house, &stop);
    drop(pidfile);
    house.log.note("ended");
    outcome.map(|()| Exit::Done)
}

fn bind(address: &Address, reach: Reach, log: &Log) -> Result<Listener> {
    let listener = Listener::bind(address, reach)?;
    log.note(&format!("listening at {}", listener.address()));
    Ok(listener)
}

/// Where the server is found by the path of its store. Who took that name keeps nobody from the socket for commands.
fn listener_of_store(live: &Live) -> Result<Option<Listener>> {
    let name = store_name(live.devices()[0].path());
    let bound = name.and_then(|name| UnixListener::bind_addr(&name).ok());
    bound.map(Listener::of_unix).transpose()
}

/// What front ends are made of.
struct Ways<'a> {
    live: &'a Arc<Live>,
    tls: Option<Tls>,
    figures: &'a Arc<Collector>,
    watch: Arc<Watch>,
    report: Report,
    log: &'a Arc<Log>,
}

impl Ways<'_> {
    /// Makes every front end but that for commands.
    fn open(self, plan: &Plan, inherited: Vec<Listener>) -> Result<Vec<Box<dyn Serve>>> {
        let exports = Arc::new(Volume(Arc::clone(self.live)));
        let exports: Arc<dyn Exports> = Arc::new(WatchedExports { exports, watch: self.watch });
        let mut fronts: Vec<Box<dyn Serve>> = Vec::new();
        let bound = plan.nbd.iter().map(|address| bind(address, Reach::Anywhere, self.log));
        let memory: Arc<nbd::Memory> = Arc::default();
        for listener in bound.collect::<Result<Vec<_>>>()?.into_iter().chain(inherited) {
            plan.ensure_secure(&listener)?;
            let required = matches!(listener.address(), Address::Tcp(_)) && !plan.insecure;
            let tls = self.tls.clone().map(|tls| (tls, required));
            let (exports, memory) = (Arc::clone(&exports), Arc::clone(&memory));
            let service = Nbd { exports, traffic: self.figures.traffic(), memory, tls };
            fronts.push(Box::new(Front::new(listener, service, Arc::clone(&self.report))));
        }
        for folder in &plan.fuse {
            fronts.push(Box::new(Fuse::mount(Arc::clone(&exports), folder, false)?));
            self.log.note(&format!("mounted at {}", folder.display()));
        }
        if plan.ublk {
            let store = self.live.devices()[0].path().to_path_buf();
            fronts.push(Box::new(ublk::Ublk::new(store, Arc::clone(self.log))?));
        }
        for address in &plan.metrics {
            let listener = bind(address, Reach::ThisMachine, self.log)?;
            let metrics = Metrics::new(self.figures);
            fronts.push(Box::new(Front::new(listener, metrics, Arc::clone(&self.report))));
        }
        Ok(fronts)
    }
}

/// A snapshot while writes go past the server would not be one.
fn ensure_inserted(pair: &Pair, identity: &str) -> Result<()> {
    match pair.inserted()? {
        Some(found) if found.identity == identity => Ok(()),
        _ => {
            let what =
                format!("the server is not inserted under {}, and does not see what is written", pair.upper);
            let hint = format!("'ddsnap attach --insert /dev/mapper/{} SOCK' inserts it", pair.upper);
            Err(Error::new(Kind::Refused, what).hint(hint))
        }
    }
}

fn open_writer(plan: &Plan, pair: Option<&Pair>, devices: &[Arc<Counts>; 2]) -> Result<Writer> {
    let vol = plan::existing(&plan.store)?;
    let Some(pair) = pair else {
        let origin = plan.origin.as_deref().map(plan::existing).transpose()?;
        let vol = VolArgs { vol, origin, old: OldArgs::default() };
        return open::counted_writer(&vol, &devices[0], &devices[1]);
    };
    // Until its lower device is held, too.
    let held = pair.hold()?;
    let inserted = held.prepare()?.map(|found| found.identity);
    open::writer_beneath(&vol, (&pair.lower_path(), inserted.as_deref()), devices)
}

/// How long commands that read a store may keep a server from it: clients of the last one are waiting.
const READERS: Duration = Duration::from_secs(5);

/// As [`open_writer`], which may have to wait for commands that read the store.
fn open_writer_in_turn(plan: &Plan, pair: Option<&Pair>, devices: &[Arc<Counts>; 2]) -> Result<Writer> {
    let begun = Instant::now();
    loop {
        match open_writer(plan, pair, devices) {
            Err(error)
                if error.kind() == Kind::Busy
                    && begun.elapsed() < READERS
                    && !open::is_served(&plan.store) =>
            {
                std::thread::sleep(5 * PAUSE);
            }
            opened => return opened,
        }
    }
}

fn open_live(plan: &Plan, pair: Option<&Pair>, devices: &[Arc<Counts>; 2]) -> Result<Live> {
    let writer = open_writer_in_turn(plan, pair, devices)?;
    if let Some(pending) = writer.view().info().pending {
        let store = plan.store.display();
        let vol = match &plan.origin {
            Some(origin) => format!("--origin {} {store}", origin.display()),
            None => store.to_string(),
        };
        return Err(open::incomplete(&pending).hint(open::ways_out(
            &pending,
            &writer.view().snapshots(),
            &vol,
        )));
    }
    let origin = match pair {
        Some(pair) => pair.lower_path(),
        None => plan.origin.clone().unwrap_or_else(|| writer.view().info().origin_path),
    };
    plan.ensure_outputs_elsewhere(&origin)?;
    Live::start(writer, time::now_secs)
}

/// Says that snapshots may not be what they were. Clients of block devices have no other way to know.
fn tell_taint(live: &Live, plan: &Plan, log: &Log) {
    let mut tainted = live.look(|view| view.snapshots());
    tainted.retain(|snapshot| snapshot.tainted);
    let Some(newest) = tainted.last() else { return };
    let others = match tainted.len() - 1 {
        0 => String::new(),
        count => format!(" ({count} older ones are, too)"),
    };
    let vol = plan.socket.as_ref().unwrap_or(&plan.store);
    let accept = open::accept_taint_command(vol, &plan.store);
    log.line(&format!("{} {TAINT}{others}; {accept} accepts that for good", title(newest)));
}

/// How often the end is looked for.
const PAUSE: Duration = Duration::from_millis(20);

/// Serves until `stop` is set, then ends everything.
fn keep(
    mut live: Arc<Live>,
    (controls, control): (&[Box<dyn Serve>], &Control),
    fronts: Vec<Box<dyn Serve>>,
    house: &mut House,
    stop: &AtomicBool,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (commands, started) = start(scope, controls);
        let is_over = || stop.load(Ordering::Relaxed) || commands.iter().any(|thread| thread.is_finished());
        let outcome = started.and_then(|()| run_until(fronts, house, is_over));
        let uuid = live.look(|view| view.info().uuid);
        if let Err(error) = device::suspend_loops(&device::identity(&uuid.to_string(), "")) {
            house.log.line(&error.to_string());
        }
        control.devices().end();
        // Commands that are under way have the store for a moment; new ones are refused.
        let live = loop {
            match Arc::try_unwrap(live) {
                Ok(live) => break live,
                Err(shared) => live = shared,
            }
            house.look_after(PAUSE);
        };
        let closed = house.while_running(|| live.close());
        let closed = closed.unwrap_or_else(|| Err(Error::new(Kind::Io, "closing the store failed")));
        let outcome = outcome.and(closed);
        // Who ended it by a command has waited until now.
        control.ending().is_over(&outcome);
        controls.iter().for_each(|control| control.stop());
        let commands = commands.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())));
        outcome.and(commands)
    })
}

/// Runs front ends until `is_over`, or one of them fails.
fn run_until(fronts: Vec<Box<dyn Serve>>, house: &mut House, is_over: impl Fn() -> bool) -> Result<()> {
    std::thread::scope(|scope| {
        let (running, started) = start(scope, &fronts);
        while started.is_ok() && !is_over() && !running.iter().any(|thread| thread.is_finished()) {
            house.look_after(PAUSE);
        }
        house.service.stopping("ending what is under way");
        house.log.note("ending");
        // A panic in it has been told already.
        let _ = house.while_running(|| fronts.iter().for_each(|front| front.stop()));
        let ended = running.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())));
        started.and(ended)
    })
}

/// Runs each of `fronts` in a thread of its own, as far as there are threads to be had.
fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    fronts: &'scope [Box<dyn Serve>],
) -> (Vec<ScopedJoinHandle<'scope, Result<()>>>, Result<()>) {
    let mut threads = Vec::new();
    for front in fronts {
        match std::thread::Builder::new().spawn_scoped(scope, || front.run()) {
            Ok(thread) => threads.push(thread),
            Err(error) => return (threads, Err(Error::io("cannot start a thread", error))),
        }
    }
    (threads, Ok(()))
}

/// What goes on beside serving.
struct House {
    service: Service,
    log: Arc<Log>,
    hangups: Arc<AtomicBool>,
    figures: Arc<Collector>,
}

impl House {
    /// Everything is up.
    fn open(&self, plan: &Plan, live: &Live, ui: &Ui) -> Result<()> {
        self.log.switch()?;
        tell_taint(live, plan, &self.log);
        if plan.in_background {
            if !self.log.has_file() {
                daemon::silence()?;
            }
            daemon::tell_up(ui)?;
        }
        self.log.note(&format!("serving {}", plan.store.display()));
        self.service.ready("serving");
        Ok(())
    }

    /// Runs `work` in a thread of its own and does meanwhile what comes up; without that, where no thread is to be had.
    /// `None` if it has panicked.
    fn while_running<T: Send>(&mut self, work: impl FnOnce() -> T + Send) -> Option<T> {
        let work = Mutex::new(Some(work));
        let run = || {
            let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
            work.map(|work| work())
        };
        std::thread::scope(|scope| match std::thread::Builder::new().spawn_scoped(scope, run) {
            Ok(thread) => {
                while !thread.is_finished() {
                    self.look_after(PAUSE);
                }
                thread.join().ok().flatten()
            }
            Err(_) => run(),
        })
    }

    /// Waits for `time` and does what has come up.
    fn look_after(&mut self, time: Duration) {
        std::thread::sleep(time);
        if self.hangups.swap(false, Ordering::Relaxed) {
            self.service.reloading();
            match self.log.switch() {
                Ok(()) => self.log.note("the log was opened anew"),
                Err(error) => self.log.line(&error.to_string()),
            }
            self.service.ready("serving");
        }
        let (running, done) = self.figures.pulse();
        self.service.beat(running, done);
    }
}
