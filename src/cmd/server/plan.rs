//! What a command line asks for, of today or of 2008.

use super::Args;
use crate::cmd::overlap;
use crate::error::{Error, Kind, Result};
use crate::serve::listen::{Address, Listener};
use crate::ui::{Ui, signals};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// What to serve, and how.
pub struct Plan {
    /// The store.
    pub store: PathBuf,
    /// The origin, if it is not where the store remembers it.
    pub origin: Option<PathBuf>,
    /// The device beneath which to serve, in place of an origin.
    pub beneath: Option<PathBuf>,
    /// Where in 2008 an agent was: commands are answered there too.
    pub agent: Option<PathBuf>,
    /// The socket for commands, unless one is inherited.
    pub socket: Option<PathBuf>,
    /// Where to listen for clients of NBD.
    pub nbd: Vec<Address>,
    /// Where the certificates for TLS are.
    pub tls: Option<PathBuf>,
    /// Clients need a certificate.
    pub verify_peer: bool,
    /// Whoever reaches it may use it.
    pub insecure: bool,
    /// Where to show files.
    pub fuse: Vec<PathBuf>,
    /// The origin is a device of ublk at once.
    pub ublk: bool,
    /// Where to offer figures.
    pub metrics: Vec<Address>,
    /// Where the process id goes.
    pub pidfile: Option<PathBuf>,
    /// Where messages go.
    pub logfile: Option<PathBuf>,
    /// Not in the foreground.
    pub in_background: bool,
    /// What SIGHUP means.
    pub hangup: signals::Hangup,
    /// What was asked for and means nothing any more.
    ignored: Vec<&'static str>,
}

impl Plan {
    /// Reads the command line.
    ///
    /// # Errors
    /// `Kind::Usage`.
    pub fn of(args: &Args) -> Result<Self> {
        let mut plan = Self {
            store: args.store.clone(),
            origin: args.origin.clone(),
            beneath: args.beneath.clone(),
            agent: None,
            socket: args.socket.clone(),
            nbd: args.nbd.clone(),
            tls: args.tls.clone(),
            verify_peer: args.tls_verify_peer,
            insecure: args.insecure,
            fuse: args.fuse.clone(),
            ublk: args.ublk,
            metrics: args.metrics.clone(),
            pidfile: args.pidfile.clone(),
            logfile: args.logfile.clone(),
            in_background: args.daemonize,
            hangup: args.hangup(),
            ignored: Vec::new(),
        };
        plan.take_old(args)?;
        let given = [(args.cachesize.is_some(), "-k"), (args.recount, "-D"), (args.deferred, "-X")];
        plan.ignored.extend(given.into_iter().filter(|(given, _)| *given).map(|(_, name)| name));
        Ok(plan)
    }

    /// Takes the operands of 2008.
    fn take_old(&mut self, args: &Args) -> Result<()> {
        let wrong = |what: &str| {
            let hint = "'ddsnap server STORE --socket SOCK', or as in 2008: STORE ORIGIN AGENT_SOCK SOCK";
            Err(Error::new(Kind::Usage, what).hint(hint))
        };
        match args.old.as_slice() {
            [] => Ok(()),
            _ if args.origin.is_some() || args.socket.is_some() => {
                wrong("ORIGIN and SOCK are given twice, as operands and as options")
            }
            [origin, agent, socket] => {
                self.origin = Some(origin.clone());
                self.socket = Some(socket.clone());
                self.in_background = !args.foreground;
                self.agent = Some(agent.clone());
                Ok(())
            }
            [_, meta, _, _] => {
                let what =
                    format!("{} is one operand too many: a store has its metadata itself", meta.display());
                Err(Error::new(Kind::Usage, what)
                    .hint("leave META out; 'ddsnap upgrade' makes a store of today of one of 2008"))
            }
            _ => wrong("some operands are missing"),
        }
    }

    /// Warns of what means nothing any more.
    pub fn warn(&self, ui: &Ui) {
        if !self.ignored.is_empty() {
            ui.warn(&format!("ignored, for it no longer means anything: {}", self.ignored.join(", ")));
        }
    }

    /// Refuses a socket that strangers reach, if they could use it.
    ///
    /// # Errors
    /// `Kind::Refused`.
    pub fn ensure_secure(&self, listener: &Listener) -> Result<()> {
        if listener.is_local() || self.tls.is_some() || self.insecure {
            return Ok(());
        }
        let what = format!("other machines can reach {}, and read and write everything", listener.address());
        Err(Error::new(Kind::Refused, what)
            .hint("--tls CERTDIR encrypts and can tell clients apart; --insecure insists"))
    }

    /// Refuses to write messages or the process id over the store, its `origin`, a socket, or each other, and two
    /// sockets in one place.
    ///
    /// # Errors
    /// `Kind::Usage`.
    pub fn ensure_outputs_elsewhere(&self, origin: &Path) -> Result<()> {
        let outputs = [&self.logfile, &self.pidfile].into_iter().flatten().map(PathBuf::as_path);
        let mut places = HashSet::new();
        if let Some(twice) = self.sockets().chain(outputs.clone()).find(|place| !places.insert(*place)) {
            return Err(Error::new(Kind::Usage, "it is given for two things").at_path(twice));
        }
        let mut taken = vec![self.store.as_path(), origin];
        for output in outputs {
            overlap::ensure_output_elsewhere(output, &taken)?;
            taken.push(output);
        }
        Ok(())
    }

    /// The paths of all sockets that are made.
    fn sockets(&self) -> impl Iterator<Item = &Path> {
        let addresses = self.nbd.iter().chain(&self.metrics).filter_map(|address| match address {
            Address::Unix(path) => Some(path),
            Address::Tcp(_) => None,
        });
        self.socket.iter().chain(&self.agent).chain(addresses).map(PathBuf::as_path)
    }

    /// Makes all paths absolute and goes to the root, so that no file system is kept from being unmounted.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn leave_folder(mut self) -> Result<Self> {
        let failed = |error| Error::io("cannot leave the current folder", error);
        let absolute = |path: &mut PathBuf| {
            *path = std::path::absolute(&path).map_err(failed)?;
            Ok::<(), Error>(())
        };
        absolute(&mut self.store)?;
        let others = [
            &mut self.origin,
            &mut self.beneath,
            &mut self.agent,
            &mut self.socket,
            &mut self.pidfile,
            &mut self.logfile,
            &mut self.tls,
        ];
        others.into_iter().flatten().try_for_each(absolute)?;
        self.fuse.iter_mut().try_for_each(absolute)?;
        for address in self.nbd.iter_mut().chain(&mut self.metrics) {
            if let Address::Unix(path) = address {
                absolute(path)?;
            }
        }
        std::env::set_current_dir("/").map_err(failed)?;
        Ok(self)
    }
}

/// An address for figures: that of a client of NBD, or `HOST:PORT`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_metrics(text: &str) -> std::result::Result<Address, String> {
    let is_short = text.split_once(':').is_some_and(|(scheme, _)| !matches!(scheme, "unix" | "tcp"));
    let address = if is_short { format!("tcp:{text}").parse() } else { text.parse() };
    address.map_err(|_: String| format!("'{text}' is no address: write unix:PATH or HOST:PORT"))
}

/// Commands that are given elsewhere must know which devices are meant, lest a result overwrites one.
///
/// # Errors
/// `Kind::NotFound`, `Kind::Io`.
pub fn existing(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path)
        .map_err(|error| Error::io(format!("cannot find it: {error}"), error).at_path(path))
}
