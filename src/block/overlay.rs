//! Writes kept in memory over a device that is only read: what `--dry-run` runs against, so that it takes the
//! same path through the code as the real thing and still cannot change one byte.

use super::pages::{PAGE_BYTES, Pages};
use super::{ReadAt, WriteAt, ensure_inside};
use crate::error::Result;
use std::ops::Range;
use std::path::Path;
use std::sync::{PoisonError, RwLock};

#[derive(Debug)]
struct State {
    pages: Pages,
    size: u64,
    /// Bytes of the base that still show: shrinking hides the rest for good, as it would on the device.
    base_visible: u64,
}

/// A writable view of `base` that never writes to it.
#[derive(Debug)]
pub struct Overlay<R> {
    base: R,
    state: RwLock<State>,
}

impl<R: ReadAt> Overlay<R> {
    /// A view that begins as `base` is now. The base must not change while the view is used.
    pub fn new(base: R) -> Self {
        let size = base.size();
        Self { base, state: RwLock::new(State { pages: Pages::default(), size, base_visible: size }) }
    }

    /// Bytes that would have been written, rounded up to pages.
    pub fn changed_bytes(&self) -> u64 {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        (state.pages.count() * PAGE_BYTES) as u64
    }

    /// Reads `buf` at `offset` from the base, zeros where the base does not show.
    fn read_base(&self, base_visible: u64, buf: &mut [u8], offset: u64) -> Result<()> {
        let visible = base_visible.saturating_sub(offset).min(buf.len() as u64);
        let (shown, hidden) = buf.split_at_mut(usize::try_from(visible).unwrap_or(usize::MAX));
        hidden.fill(0);
        if shown.is_empty() { Ok(()) } else { self.base.read_at(shown, offset) }
    }
}

impl<R: ReadAt> ReadAt for Overlay<R> {
    fn size(&self) -> u64 {
        self.state.read().unwrap_or_else(PoisonError::into_inner).size
    }

    fn path(&self) -> &Path {
        self.base.path()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        ensure_inside("read", self.path(), state.size, offset, buf.len())?;
        state.pages.read(buf, offset, |part, at| self.read_base(state.base_visible, part, at))
    }

    fn file_stamp(&self) -> Option<(u64, u64, i64)> {
        self.base.file_stamp()
    }

    fn next_data(&self, offset: u64) -> Result<Range<u64>> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let end = state.base_visible;
        let shown = match offset < end {
            true => Some(self.base.next_data(offset)?).filter(|data| data.start < end),
            false => None,
        };
        let first = shown.into_iter().chain(state.pages.next(offset)).min_by_key(|data| data.start);
        // A page may reach past the end.
        let inside = first.filter(|data| data.start < state.size);
        Ok(inside.map_or(state.size..state.size, |data| data.start..data.end.min(state.size)))
    }
}

impl<R: ReadAt> WriteAt for Overlay<R> {
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        ensure_inside("write", self.path(), state.size, offset, buf.len())?;
        let base_visible = state.base_visible;
        state.pages.write(buf, offset, |page, at| self.read_base(base_visible, page, at))
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn set_size(&self, size_bytes: u64) -> Result<()> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.pages.truncate(size_bytes);
        state.base_visible = state.base_visible.min(size_bytes);
        state.size = size_bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::memory::Memory;
    use crate::error::Kind;
    use std::sync::Arc;

    #[test]
    fn writes_show_in_the_overlay_and_never_in_the_base() {
        let base = Arc::new(Memory::from_bytes(&[1; 10_000]));
        let view = Overlay::new(Arc::clone(&base));
        view.write_at(&[2; 5000], 3000).unwrap();
        view.flush().unwrap();
        let mut got = vec![0; 10_000];
        view.read_at(&mut got, 0).unwrap();
        let mut expected = vec![1; 10_000];
        expected[3000..8000].fill(2);
        assert_eq!(got, expected);
        assert_eq!(base.to_vec().unwrap(), vec![1; 10_000]);
        assert_eq!(view.changed_bytes(), 8192);
    }

    #[test]
    fn holes_are_where_neither_the_base_nor_a_write_has_bytes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 30).unwrap();
        let base = crate::block::file::FileReader::open(file.path()).unwrap();
        let view = Overlay::new(base);
        view.write_at(&[1; 100], (1 << 20) + 4000).unwrap();
        let (mut at, mut ranges) = (0, Vec::new());
        while let Some(data) = Some(view.next_data(at).unwrap()).filter(|data| !data.is_empty()) {
            at = data.end;
            ranges.push(data);
        }
        assert_eq!(ranges, [1 << 20..(1 << 20) + 4096, (1 << 20) + 4096..(1 << 20) + 8192]);
        assert_eq!(view.next_data((1 << 20) + 5000).unwrap(), (1 << 20) + 5000..(1 << 20) + 8192);
        view.set_size((1 << 20) + 4097).unwrap();
        view.set_size(2 << 20).unwrap();
        assert_eq!(view.next_data(at).unwrap(), 2 << 20..2 << 20);
        assert_eq!(view.next_data(3 << 20).unwrap(), 2 << 20..2 << 20);
    }

    #[test]
    fn the_last_partial_page_can_be_written() {
        let view = Overlay::new(Memory::from_bytes(&[1; 5000]));
        view.write_at(&[2], 4999).unwrap();
        let mut got = [0; 2];
        view.read_at(&mut got, 4998).unwrap();
        assert_eq!(got, [1, 2]);
        assert_eq!(view.write_at(&[2, 2], 4999).unwrap_err().kind(), Kind::Damaged);
    }

    #[test]
    fn bytes_cut_off_do_not_come_back() {
        let view = Overlay::new(Memory::from_bytes(&[1; 10_000]));
        view.write_at(&[2; 100], 6000).unwrap();
        view.set_size(5000).unwrap();
        view.set_size(20_000).unwrap();
        let mut got = vec![9; 20_000];
        view.read_at(&mut got, 0).unwrap();
        assert!(got[..5000].iter().all(|&b| b == 1));
        assert!(got[5000..].iter().all(|&b| b == 0));
        view.write_at(&[3], 5500).unwrap();
        view.read_at(&mut got, 0).unwrap();
        assert_eq!((got[4999], got[5000], got[5500], got[5501]), (1, 0, 3, 0));
    }
}
