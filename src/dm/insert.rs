//! A server slipped under a device of device-mapper that is in use, and taken out again.
//!
//! The `upper` device is the one that is mounted. Beneath it comes a second one, the `lower`, with the same table: the
//! server's origin. Then the upper gets a table whose reads go to the lower device and whose writes go to the server:
//!
//! ```text
//! before:  upper -> disks
//! while:   upper -> reads: lower -> disks
//!                -> writes: nbd -> server -> lower -> disks
//! ```
//!
//! Whatever step fails, the upper device has either table, both lead to the same bytes, and giving the command again
//! goes on. What must not happen is a snapshot while writes go past the server: none is made before the pair is
//! [inserted](Pair::inserted), and a server that starts without being inserted distrusts its origin.
//!
//! Whoever changes a pair [holds](Pair::hold) it: of two commands in the middle of their steps, one would end what the
//! other just led the users to.

use super::{mapper, nbd};
use crate::block::lock::Lock;
use crate::block::mount;
use crate::error::{Error, Kind, Result};
use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What begins the UUID of a lower device.
const BENEATH: &str = "DDSNAP-beneath-";
/// What ends the name of a lower device.
const LOWER: &str = "-ddsnap";

/// An upper device and its lower one, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The one that is in use.
    pub upper: String,
}

impl Pair {
    /// The pair of the device at `path`.
    ///
    /// # Errors
    /// `Kind::NotFound`; `Kind::Usage` if device-mapper does not know it.
    pub fn of(path: &Path) -> Result<Self> {
        std::fs::metadata(path)
            .map_err(|error| Error::io(format!("cannot find it: {error}"), error).at_path(path))?;
        let upper = mapper::name_of(path).ok_or_else(|| {
            Error::new(Kind::Usage, "this is no device of device-mapper, whose table could be exchanged")
                .at_path(path)
        })?;
        Ok(Self { upper })
    }

    /// The name of the lower device.
    #[must_use]
    pub fn lower(&self) -> String {
        format!("{}{LOWER}", self.upper)
    }

    /// Where the lower device is.
    #[must_use]
    pub fn lower_path(&self) -> PathBuf {
        mapper::path(&self.lower())
    }

    fn uuid(&self) -> String {
        format!("{BENEATH}{}", self.upper)
    }

    /// The lower device, if it is there.
    fn find_lower(&self) -> Result<Option<mapper::Mapped>> {
        match mapper::find(&self.lower())? {
            Some(found) if found.uuid != self.uuid() => {
                Err(Error::new(Kind::Exists, "another device has this name").at_path(&self.lower_path()))
            }
            found => Ok(found),
        }
    }

    /// True if the upper device leads to a server.
    ///
    /// # Errors
    /// What dmsetup says.
    pub fn is_inserted(&self) -> Result<bool> {
        Ok(self.inserted()?.is_some())
    }

    /// The device to which the upper one leads, if that is one of a server, which may have ended.
    ///
    /// # Errors
    /// What dmsetup says.
    pub fn inserted(&self) -> Result<Option<Inserted>> {
        let Some(index) = self.nbd()? else { return Ok(None) };
        if self.find_lower()?.is_none() {
            return Ok(None);
        }
        let named = nbd::devices().into_iter().find(|(found, _)| *found == index);
        let identity = named.map(|(_, identity)| identity).unwrap_or_default();
        Ok(Some(Inserted { index, identity }))
    }

    /// The NBD device to which the upper one leads.
    fn nbd(&self) -> Result<Option<u32>> {
        let table = mapper::table(&self.upper)?;
        Ok(table.split_whitespace().find_map(|word| word.strip_prefix(NBD_MAJOR)?.parse().ok()))
    }

    /// Keeps other commands from changing the pair, until what is returned is dropped or the process ends.
    ///
    /// # Errors
    /// `Kind::Busy` if another command holds it, and does so for more than a moment.
    pub fn hold(&self) -> Result<Held> {
        self.lock(true)
    }

    fn lock(&self, waits: bool) -> Result<Held> {
        let path = mapper::path(&self.upper);
        let file = File::open(&path)
            .map_err(|error| Error::io(format!("cannot open it: {error}"), error).at_path(&path))?;
        Lock::Exclusive.take(&file, &path, waits)?;
        Ok(Held { pair: self.clone(), _lock: file })
    }

    /// True if the lower device is left of commands that were killed: nothing leads through it, and no server has it.
    ///
    /// # Errors
    /// What dmsetup says.
    pub fn is_left_over(&self) -> Result<bool> {
        Ok(!self.is_inserted()? && self.find_lower()?.is_some_and(|lower| lower.open_count == 0))
    }

    /// Takes the lower device away, if it is not needed any more.
    ///
    /// # Errors
    /// As [`Pair::is_inserted`], [`mapper::remove`].
    pub fn tidy(&self) -> Result<()> {
        if self.is_inserted()? || self.find_lower()?.is_none() {
            return Ok(());
        }
        match self.lock(false) {
            // It may have changed meanwhile.
            Ok(held) if !held.is_inserted()? && held.find_lower()?.is_some() => mapper::remove(&held.lower()),
            // Whoever is at work on the pair needs it, or takes it away.
            Err(error) if error.kind() != Kind::Busy => Err(error),
            _ => Ok(()),
        }
    }

    /// True if a server has the lower device open.
    fn is_served(&self) -> Result<bool> {
        let lower = self.find_lower()?;
        // The upper device has it open for its reads.
        let split = u32::from(mapper::table(&self.upper)?.contains(" delay "));
        Ok(lower.is_some_and(|lower| lower.open_count > split))
    }
}

/// The NBD device of an inserted server.
pub struct Inserted {
    /// Its number.
    pub index: u32,
    /// Which point of which volume the kernel was told that it is; empty if the kernel does not say.
    pub identity: String,
}

/// A pair that nobody else changes.
pub struct Held {
    pair: Pair,
    _lock: File,
}

impl Deref for Held {
    type Target = Pair;

    fn deref(&self) -> &Pair {
        &self.pair
    }
}

impl Held {
    /// Makes the lower device, for a server; one that is there and inserted stays as it is. What [`Pair::inserted`]
    /// says.
    ///
    /// # Errors
    /// `Kind::Busy` if a server has it already; `Kind::Refused` for a table that must not be there twice.
    pub fn prepare(&self) -> Result<Option<Inserted>> {
        let found = self.find_lower()?;
        if let Some(found) = found {
            let inserted = self.inserted()?;
            if inserted.is_some() {
                return Ok(inserted);
            }
            if found.open_count > 0 {
                return Err(Error::new(Kind::Busy, "a server has it open already").at_path(&found.path()));
            }
            // What is left of an attempt; the upper device may have another table by now.
            mapper::remove(&found.name)?;
        }
        let table = mapper::table(&self.upper)?;
        ensure_stateless(&table)?;
        ensure_not_root(&mapper::path(&self.upper))?;
        mapper::create(&self.lower(), &self.uuid(), &table, false)?;
        Ok(None)
    }

    /// Leads the upper device to NBD device `index`, `sectors` long.
    ///
    /// # Errors
    /// What dmsetup says; the upper device has its old table then.
    pub fn insert(&self, index: u32, sectors: u64) -> Result<()> {
        let (lower, server) = (self.lower_path(), nbd::path(index));
        let (lower, server) = (lower.display(), server.display());
        // Without a delay, `delay` sends reads and writes to different devices, at once.
        let table = match mapper::has_target("delay")? {
            true => format!("0 {sectors} delay {lower} 0 0 {server} 0 0 {server} 0 0"),
            false => format!("0 {sectors} linear {server} 0"),
        };
        self.exchange(&table, || Ok(()))
    }

    /// Ends what somebody began with the upper device who was killed over it: it keeps its table, and nobody waits.
    ///
    /// # Errors
    /// What dmsetup says.
    pub fn go_on(&self) -> Result<()> {
        mapper::clear(&self.upper)?;
        // Users would wait for ever if a dmsetup that was left had them wait after this.
        mapper::suspend(&self.upper)?;
        mapper::resume(&self.upper)
    }

    /// Leads the upper device past the server again, which `end` ends meanwhile: nobody writes between the last
    /// write that it sees and its end. Somebody must answer what is under way. The lower device is left to
    /// [`Held::remove_lower`].
    ///
    /// # Errors
    /// What dmsetup or `end` says; the upper device leads to the server then.
    pub fn take_out(&self, end: impl FnOnce() -> Result<()>) -> Result<()> {
        let index = self.nbd()?;
        if self.find_lower()?.is_none() {
            return Err(
                Error::new(Kind::NotFound, "nothing is beneath it").at_path(&mapper::path(&self.upper))
            );
        }
        self.exchange(&mapper::table(&self.lower())?, end)?;
        index.map_or(Ok(()), nbd::disconnect)
    }

    /// Takes the lower device away, which nothing leads through any more.
    ///
    /// # Errors
    /// What dmsetup says: somebody has it open.
    pub fn remove_lower(&self) -> Result<()> {
        // A server that has ended takes a moment to be gone.
        let begun = Instant::now();
        while self.is_served()? && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(50));
        }
        mapper::remove(&self.lower())
    }

    /// Gives the upper device another table; `between` runs while its users wait.
    fn exchange(&self, table: &str, between: impl FnOnce() -> Result<()>) -> Result<()> {
        mapper::load(&self.upper, table)?;
        let outcome = mapper::suspend(&self.upper).and_then(|()| between());
        if outcome.is_err() {
            // What was loaded must not come into force later, by somebody else's resume. The first error tells more.
            let _ = mapper::clear(&self.upper);
        }
        let resumed = mapper::resume(&self.upper);
        outcome.and(resumed)
    }
}

/// The pair whose lower device is at `path`, if that is one.
#[must_use]
pub fn beneath(path: &Path) -> Option<Pair> {
    let name = mapper::name_of(path)?;
    let pair = Pair { upper: name.strip_suffix(LOWER)?.to_owned() };
    pair.find_lower().ok().flatten().map(|_| pair)
}

/// NBD devices in tables of device-mapper, before their minor number.
const NBD_MAJOR: &str = "43:";

/// Two devices of one table must not each remember something of their own about the same bytes.
fn ensure_stateless(table: &str) -> Result<()> {
    let mut kinds = table.lines().filter_map(|line| line.split_whitespace().nth(2));
    match kinds.find(|kind| !matches!(*kind, "linear" | "striped")) {
        None => Ok(()),
        Some(kind) => {
            let what =
                format!("it is of kind '{kind}', which must not be there twice; 'linear' and 'striped' may");
            Err(Error::new(Kind::Refused, what))
        }
    }
}

/// While users of the root file system wait, no program can be started, not even the one that ends it.
fn ensure_not_root(path: &Path) -> Result<()> {
    match mount::held_by(path)? {
        Some(holder) if holder == "mounted on /" => {
            Err(Error::new(Kind::Refused, "it is the root file system, on which the server itself lives")
                .at_path(path))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tables_without_memory_are_doubled() {
        ensure_stateless("0 8 linear 8:0 0\n8 16 striped 2 128 8:0 8 8:16 8").unwrap();
        for kind in ["snapshot", "thin", "crypt", "cache"] {
            let table = format!("0 8 linear 8:0 0\n8 8 {kind} 8:0 8");
            assert_eq!(ensure_stateless(&table).unwrap_err().kind(), Kind::Refused, "{kind}");
        }
    }
}
