//! The page map behind [`Memory`](super::memory::Memory) and [`Overlay`](super::overlay::Overlay): only pages
//! that were written exist, and a clone shares them until one side changes them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Bytes in a page. Small, so that crash tests that clone a device and change a few sectors copy little.
pub(super) const PAGE_BYTES: usize = 4096;
const PAGE_BYTES_U64: u64 = PAGE_BYTES as u64;

type Page = Arc<[u8; PAGE_BYTES]>;

/// A sparse map from page number to page.
#[derive(Debug, Clone, Default)]
pub(super) struct Pages {
    map: BTreeMap<u64, Page>,
}

/// The part of a transfer that falls into one page.
struct Piece {
    page: u64,
    in_page: Range<usize>,
    in_buf: Range<usize>,
}

/// Splits `len` bytes at `offset` into pieces that each lie inside one page.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = Piece> {
    let mut done = 0usize;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let start = usize::try_from(at % PAGE_BYTES_U64).expect("less than a page");
        let take = (PAGE_BYTES - start).min(len - done);
        let piece =
            Piece { page: at / PAGE_BYTES_U64, in_page: start..start + take, in_buf: done..done + take };
        done += take;
        Some(piece)
    })
}

impl Pages {
    /// The bytes of the first page that ends after `offset`, from there on.
    pub(super) fn next(&self, offset: u64) -> Option<Range<u64>> {
        let (page, _) = self.map.range(offset / PAGE_BYTES_U64..).next()?;
        let start = page * PAGE_BYTES_U64;
        Some(start.max(offset)..start + PAGE_BYTES_U64)
    }

    /// Fills `buf` from `offset`; where no page exists, `fill(buf, offset)` provides the bytes.
    pub(super) fn read<E>(
        &self,
        buf: &mut [u8],
        offset: u64,
        mut fill: impl FnMut(&mut [u8], u64) -> Result<(), E>,
    ) -> Result<(), E> {
        for piece in pieces(offset, buf.len()) {
            let at = offset + piece.in_buf.start as u64;
            let target = &mut buf[piece.in_buf];
            match self.map.get(&piece.page) {
                Some(page) => target.copy_from_slice(&page[piece.in_page]),
                None => fill(target, at)?,
            }
        }
        Ok(())
    }

    /// Writes `buf` at `offset`; a page that did not exist first takes its old bytes from `fill(page, offset)`.
    pub(super) fn write<E>(
        &mut self,
        buf: &[u8],
        offset: u64,
        mut fill: impl FnMut(&mut [u8], u64) -> Result<(), E>,
    ) -> Result<(), E> {
        for piece in pieces(offset, buf.len()) {
            let source = &buf[piece.in_buf];
            if let Some(page) = self.map.get_mut(&piece.page) {
                Arc::make_mut(page)[piece.in_page].copy_from_slice(source);
                continue;
            }
            let mut page = [0u8; PAGE_BYTES];
            if source.len() < PAGE_BYTES {
                fill(&mut page, piece.page * PAGE_BYTES_U64)?;
            }
            page[piece.in_page].copy_from_slice(source);
            self.map.insert(piece.page, Arc::new(page));
        }
        Ok(())
    }

    /// Forgets everything from byte `size` on, so that growing again shows no old bytes.
    pub(super) fn truncate(&mut self, size: u64) {
        let tail = usize::try_from(size % PAGE_BYTES_U64).expect("less than a page");
        let keep = size / PAGE_BYTES_U64;
        if tail > 0
            && let Some(page) = self.map.get_mut(&keep)
        {
            Arc::make_mut(page)[tail..].fill(0);
        }
        drop(self.map.split_off(&(keep + u64::from(tail > 0))));
    }

    /// Page numbers and pages, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &[u8; PAGE_BYTES])> {
        self.map.iter().map(|(number, page)| (*number, &**page))
    }

    /// The page, if it was ever written.
    pub(super) fn get(&self, page: u64) -> Option<&[u8; PAGE_BYTES]> {
        self.map.get(&page).map(|page| &**page)
    }

    /// Number of pages that exist.
    pub(super) fn count(&self) -> usize {
        self.map.len()
    }
}
