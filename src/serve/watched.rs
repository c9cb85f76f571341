//! Exports whose failures are told: a client gets a number of an error, and who looks after the server would see
//! nothing.

use super::export::{Differing, Export, Exports};
use crate::error::{Error, Kind, Result};
use crate::units::Tag;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Nothing is told to fail again sooner: a device can fail in one place only, and work in all others.
const PAUSE: Duration = Duration::from_secs(10);

/// What is done with an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    Read,
    Write,
    Flush,
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "reads",
            Self::Write => "writes",
            Self::Flush => "flushes",
        })
    }
}

/// Tells what fails, once until it works again.
pub struct Watch {
    say: Box<dyn Fn(&str) + Send + Sync>,
    told: Mutex<BTreeMap<(String, Act), Told>>,
    /// How many of them fail. As long as none does nothing is looked up.
    failing: AtomicUsize,
}

struct Told {
    at: Instant,
    fails: bool,
}

impl Watch {
    /// Tells by `say`.
    pub fn new(say: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { say: Box::new(say), told: Mutex::default(), failing: AtomicUsize::new(0) }
    }

    /// The same export, watched as `name`.
    pub fn over(self: &Arc<Self>, name: &str, export: Arc<dyn Export>) -> Arc<dyn Export> {
        Arc::new(Watched { export, name: name.to_owned(), watch: Arc::clone(self) })
    }

    fn look<T>(&self, name: &str, act: Act, outcome: Result<T>) -> Result<T> {
        match &outcome {
            // What a client should not have asked for.
            Err(error) if matches!(error.kind(), Kind::Usage | Kind::Refused | Kind::NotFound) => {}
            Err(error) => self.fails(name, act, error),
            Ok(_) if self.failing.load(Ordering::Acquire) > 0 => self.works(name, act),
            Ok(_) => {}
        }
        outcome
    }

    fn fails(&self, name: &str, act: Act, error: &Error) {
        let mut told = self.told();
        let key = (name.to_owned(), act);
        if told.get(&key).is_some_and(|told| told.fails || told.at.elapsed() < PAUSE) {
            return;
        }
        told.insert(key, Told { at: Instant::now(), fails: true });
        self.failing.fetch_add(1, Ordering::AcqRel);
        (self.say)(&format!("{name}: {act} fail: {error}"));
    }

    fn works(&self, name: &str, act: Act) {
        let mut told = self.told();
        if let Some(told) = told.get_mut(&(name.to_owned(), act)).filter(|told| told.fails) {
            told.fails = false;
            self.failing.fetch_sub(1, Ordering::AcqRel);
            (self.say)(&format!("{name}: {act} work again"));
        }
    }

    fn told(&self) -> MutexGuard<'_, BTreeMap<(String, Act), Told>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Watched {
    export: Arc<dyn Export>,
    name: String,
    watch: Arc<Watch>,
}

impl Watched {
    fn look<T>(&self, act: Act, outcome: Result<T>) -> Result<T> {
        self.watch.look(&self.name, act, outcome)
    }

    /// Of something that may not have been done: that does not mean that it works.
    fn look_done(&self, act: Act, outcome: Result<bool>) -> Result<bool> {
        if let Ok(false) = outcome { outcome } else { self.look(act, outcome) }
    }
}

impl Export for Watched {
    fn size(&self) -> u64 {
        self.export.size()
    }

    fn is_read_only(&self) -> bool {
        self.export.is_read_only()
    }

    fn preferred_size(&self) -> u32 {
        self.export.preferred_size()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.look(Act::Read, self.export.read(offset, buf))
    }

    fn read_cached(&self, offset: u64, buf: &mut [u8]) -> Result<bool> {
        self.look_done(Act::Read, self.export.read_cached(offset, buf))
    }

    fn file_with(&self, offset: u64, length: usize) -> Option<Arc<File>> {
        // While something fails all is read here, where it is seen to work again.
        if self.watch.failing.load(Ordering::Acquire) > 0 {
            return None;
        }
        self.export.file_with(offset, length)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.look(Act::Write, self.export.write(offset, data))
    }

    fn write_at_once(&self, offset: u64, data: &[u8]) -> Result<bool> {
        self.look_done(Act::Write, self.export.write_at_once(offset, data))
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        self.look(Act::Write, self.export.write_zeroes(offset, length))
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.look(Act::Write, self.export.discard(offset, length))
    }

    fn bases(&self) -> Vec<Tag> {
        self.export.bases()
    }

    fn differing(&self, base: Option<Tag>, offset: u64, length: u64) -> Result<Differing> {
        self.look(Act::Read, self.export.differing(base, offset, length))
    }

    fn flush(&self) -> Result<()> {
        self.look(Act::Flush, self.export.flush())
    }
}

/// The same exports, watched.
pub struct WatchedExports {
    /// What there is.
    pub exports: Arc<dyn Exports>,
    /// Who tells.
    pub watch: Arc<Watch>,
}

impl Exports for WatchedExports {
    fn names(&self) -> Vec<(String, String)> {
        self.exports.names()
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Export>> {
        // The first one is what a client gets that names none.
        let called = match (name, self.names().into_iter().next()) {
            ("", Some((first, _))) => first,
            _ => name.to_owned(),
        };
        self.exports.open(name).map(|export| self.watch.over(&called, export))
    }

    fn look(&self, name: &str) -> Result<(u64, bool)> {
        self.exports.look(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_once_until_it_works_again() {
        let said = Arc::new(Mutex::new(Vec::new()));
        let watch = {
            let said = Arc::clone(&said);
            Watch::new(move |text| said.lock().unwrap().push(text.to_owned()))
        };
        let failed = || Err::<(), _>(Error::new(Kind::Io, "the medium failed").at_path("/dev/x".as_ref()));
        for (name, act, outcome) in [
            ("origin", Act::Write, Ok(())),
            ("origin", Act::Write, failed()),
            ("origin", Act::Write, failed()),
            ("origin", Act::Write, Err(Error::new(Kind::Usage, "past its end"))),
            ("origin", Act::Flush, failed()),
            ("origin", Act::Read, Ok(())),
            ("snap/1", Act::Write, Ok(())),
            ("origin", Act::Write, Ok(())),
            ("origin", Act::Write, Ok(())),
            // Too soon.
            ("origin", Act::Write, failed()),
        ] {
            let kind = outcome.as_ref().err().map(Error::kind);
            assert_eq!(watch.look(name, act, outcome).err().map(|error| error.kind()), kind);
        }
        let expected = [
            "origin: writes fail: /dev/x: the medium failed",
            "origin: flushes fail: /dev/x: the medium failed",
            "origin: writes work again",
        ];
        assert_eq!(*said.lock().unwrap(), expected);
        watch.told().get_mut(&("origin".to_owned(), Act::Write)).unwrap().at -= PAUSE;
        let _ = watch.look("origin", Act::Write, failed());
        assert_eq!(said.lock().unwrap().len(), 4, "it is told again after a while");
    }

    /// Fails to write; nothing of it can be done at once.
    struct Failing;

    impl Export for Failing {
        fn size(&self) -> u64 {
            4096
        }

        fn is_read_only(&self) -> bool {
            false
        }

        fn preferred_size(&self) -> u32 {
            4096
        }

        fn read(&self, _offset: u64, _buf: &mut [u8]) -> Result<()> {
            Err(Error::new(Kind::Io, "as wished"))
        }

        fn write(&self, _offset: u64, _data: &[u8]) -> Result<()> {
            Err(Error::new(Kind::Io, "as wished"))
        }

        fn discard(&self, _offset: u64, _length: u64) -> Result<()> {
            Ok(())
        }

        fn flush(&self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_not_done_at_once_does_not_work_again() {
        let said = Arc::new(Mutex::new(0));
        let watch = {
            let said = Arc::clone(&said);
            Arc::new(Watch::new(move |_| *said.lock().unwrap() += 1))
        };
        let export = watch.over("origin", Arc::new(Failing));
        for _ in 0..3 {
            assert!(!export.write_at_once(0, &[1]).unwrap() && !export.read_cached(0, &mut [0]).unwrap());
            assert!(export.write(0, &[1]).is_err() && export.read(0, &mut [0]).is_err());
        }
        assert_eq!(*said.lock().unwrap(), 2, "each fails, and is told once");
    }
}
