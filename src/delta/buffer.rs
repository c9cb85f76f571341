//! Memory that is used again. Fresh memory costs a page fault every 4 KiB, which takes longer than reading, summing
//! or writing what lies in it.

use std::mem::take;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// Buffers kept, and how large they are: enough for all stages of a pipeline of 16 processors.
const SPARE_MAX: usize = 256;
const SPARE_BYTES: std::ops::RangeInclusive<usize> = 64 << 10..=4 << 20;

static SPARE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Bytes that go back where they came from when nobody needs them any more.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Buffer(Vec<u8>);

impl Buffer {
    /// No bytes, with room for some.
    pub(crate) fn empty() -> Self {
        let mut bytes = SPARE.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        bytes.clear();
        Self(bytes)
    }

    /// `len` bytes that mean nothing yet: whoever takes them writes all of them.
    pub(crate) fn unwritten(len: usize) -> Self {
        let mut bytes = SPARE.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        bytes.resize(len, 0);
        Self(bytes)
    }

    /// The same bytes once more.
    pub(crate) fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Self::empty();
        buffer.extend_from_slice(bytes);
        buffer
    }

    /// `len` zeroes.
    pub(crate) fn zeroes(len: usize) -> Self {
        let mut buffer = Self::empty();
        buffer.resize(len, 0);
        buffer
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if SPARE_BYTES.contains(&self.0.capacity()) {
            let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
            if spare.len() < SPARE_MAX {
                spare.push(take(&mut self.0));
            }
        }
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}
