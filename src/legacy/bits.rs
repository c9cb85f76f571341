//! One bit for each of many: the memory that a check of a large store takes. What has no bit takes none.

use crate::units::index;

/// Words that are there together, or not at all.
const PAGE: usize = 512;
/// Bits of a page.
const PAGE_BITS: u64 = PAGE as u64 * 64;

/// One bit for each block or chunk of a space.
#[derive(Clone)]
pub(super) struct Bits(Vec<Option<Box<[u64; PAGE]>>>);

impl Bits {
    pub fn new(count: u64) -> Self {
        Self(vec![None; index(count.div_ceil(PAGE_BITS))])
    }

    /// The bits of 64 times `number` and of the 63 after it.
    pub fn word(&self, number: u64) -> u64 {
        let page = self.0.get(index(number / PAGE as u64)).and_then(Option::as_ref);
        page.map_or(0, |page| page[index(number % PAGE as u64)])
    }

    pub fn has(&self, at: u64) -> bool {
        self.word(at / 64) >> (at % 64) & 1 == 1
    }

    /// False if it was set already, or there is no such bit.
    pub fn set(&mut self, at: u64) -> bool {
        let Some(page) = self.0.get_mut(index(at / PAGE_BITS)) else { return false };
        let word = &mut page.get_or_insert_with(|| Box::new([0; PAGE]))[index(at % PAGE_BITS / 64)];
        let bit = 1 << (at % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    pub fn unset(&mut self, at: u64) {
        if let Some(Some(page)) = self.0.get_mut(index(at / PAGE_BITS)) {
            page[index(at % PAGE_BITS / 64)] &= !(1 << (at % 64));
        }
    }

    /// The bits from `first`, a multiple of 64, on.
    pub fn words(&self, first: u64) -> impl Iterator<Item = u64> {
        let end = self.0.len() as u64 * PAGE as u64;
        (first / 64..end).map(|number| self.word(number))
    }

    /// Every bit that is set, ascending.
    pub fn each(&self) -> impl Iterator<Item = u64> {
        let pages = self.0.iter().zip(0u64..).filter_map(|(page, number)| Some((page.as_ref()?, number)));
        pages.flat_map(|(page, number)| {
            let words = page.iter().zip(number * PAGE as u64..).filter(|(word, _)| **word != 0);
            words.flat_map(|(word, number)| {
                (0..64).filter(move |bit| *word >> bit & 1 == 1).map(move |bit| number * 64 + bit)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_is_there_once_it_was_set() {
        let mut bits = Bits::new(1 << 40);
        for at in [0, 63, 64, PAGE_BITS - 1, PAGE_BITS, (1 << 40) - 1] {
            assert!(!bits.has(at) && bits.set(at) && bits.has(at) && !bits.set(at), "{at}");
        }
        bits.unset(64);
        assert_eq!(bits.each().collect::<Vec<_>>(), [0, 63, PAGE_BITS - 1, PAGE_BITS, (1 << 40) - 1]);
        assert_eq!((bits.word(0), bits.word(1), bits.words(0).next()), (1 | 1 << 63, 0, Some(1 | 1 << 63)));
        assert!(!bits.set(1 << 41));
    }
}
