//! One bit for each of many: the memory that a check of a large store takes.

use crate::units::index;

/// One bit for each block or chunk of a space.
#[derive(Clone)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    pub fn new(count: u64) -> Self {
        Self(vec![0; index(count.div_ceil(64))])
    }

    pub fn has(&self, at: u64) -> bool {
        self.0.get(index(at / 64)).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }

    /// False if it was set already, or there is no such bit.
    pub fn set(&mut self, at: u64) -> bool {
        let Some(word) = self.0.get_mut(index(at / 64)) else { return false };
        let bit = 1 << (at % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    pub fn clear(&mut self) {
        self.0.fill(0);
    }

    /// The bits from `first`, a multiple of 64, on.
    pub fn words(&self, first: u64) -> impl Iterator<Item = u64> {
        self.0.iter().skip(index(first / 64)).copied()
    }
}
