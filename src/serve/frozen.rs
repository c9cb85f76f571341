//! Exports that stay as they are: what can only be read, and what is chosen once.

use super::export::{Export, Exports};
use crate::error::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Fills a buffer from a byte on.
pub type ReadBytes = dyn Fn(u64, &mut [u8]) -> Result<()> + Send + Sync;

/// Something that can only be read.
pub struct ReadOnly {
    size: u64,
    read: Box<ReadBytes>,
}

impl ReadOnly {
    /// `size` bytes that `read` gives; it is never asked beyond them.
    pub fn new(size: u64, read: impl Fn(u64, &mut [u8]) -> Result<()> + Send + Sync + 'static) -> Self {
        Self { size, read: Box::new(read) }
    }
}

fn refuse<T>() -> Result<T> {
    Err(Error::new(Kind::Refused, "it is for reading only"))
}

impl Export for ReadOnly {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn preferred_size(&self) -> u32 {
        4096
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        match offset.checked_add(buf.len() as u64).is_some_and(|end| end <= self.size) {
            true => (self.read)(offset, buf),
            false => Err(Error::new(Kind::Usage, "this is past the end")),
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Result<()> {
        refuse()
    }

    fn discard(&self, _offset: u64, _length: u64) -> Result<()> {
        refuse()
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

/// Exports by name.
#[derive(Default)]
pub struct Frozen(pub BTreeMap<String, Arc<dyn Export>>);

impl Exports for Frozen {
    fn names(&self) -> Vec<(String, String)> {
        self.0.keys().map(|name| (name.clone(), String::new())).collect()
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Export>> {
        self.0.get(name).cloned().ok_or_else(|| Error::new(Kind::NotFound, format!("there is no '{name}'")))
    }
}
