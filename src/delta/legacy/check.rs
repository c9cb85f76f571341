//! An extent against the target: is the base right, what is the result, is it there already.
//!
//! Extents have one sum for all their chunks, and bytes that changed places have the same one. So an extent that was
//! applied in part is neither base nor result; and one that refers to its base while both sums are the same is only
//! applied where the base cannot be mistaken for the result.

use super::Legacy;
use crate::delta::buffer::Buffer;
use crate::delta::check::{Checked, Checker};
use crate::delta::load::to_usize;
use crate::delta::read::{ReadExtent, span};
use crate::error::{Error, Kind, Result};
use crate::format::legacy_delta::sum;

impl Legacy {
    /// True if `base` may be the bytes of the source: none at all, or of that sum, or none but zeros where the field
    /// kept what it held for the extent before, as it did past the end of the source.
    pub(crate) fn proves(&self, base: &[u8]) -> bool {
        let found = sum(base);
        let unset = self.source_sum == self.stale_sum && !self.coding.xdelta;
        base.is_empty() || found == self.source_sum || (found == 0 && unset)
    }
}

impl Checker<'_> {
    pub(in crate::delta) fn check_legacy(
        &mut self,
        extent: &ReadExtent,
        legacy: &Legacy,
        raw: Buffer,
    ) -> Result<Checked> {
        let (offset, len) = span(&self.geometry, &extent.head);
        let present = |len: usize| len.min(to_usize(self.target.size().saturating_sub(offset)));
        let mut current = Buffer::unwritten(present(len));
        if !current.is_empty() {
            self.target.read(offset, &mut current)?;
        }
        let mut base = current.clone();
        base.truncate(self.decoder.base_len(extent));
        if self.target.keeps_base() {
            base = Buffer::unwritten(present(self.decoder.base_len(extent)));
            if !base.is_empty() {
                self.target.read_base(offset, &mut base)?;
            }
        }
        let is_base = legacy.proves(&base);
        let wrong = || {
            wrong_base(offset)
                .at_path(self.target.path())
                .hint("if an apply was interrupted here, apply its undo delta first, or insist with --force")
        };
        let there = |data: Buffer, resumed: bool| {
            Ok(Checked { offset, bytes: data.len() as u64, differs: false, resumed, data })
        };
        if legacy.coding.xdelta && !is_base {
            if sum(&current) == legacy.target_sum {
                return there(current, true);
            }
            if !self.trusted {
                return Err(wrong());
            }
        }
        let data = match self.decoder.decode_owned(extent, raw, &base) {
            Err(error) if legacy.coding.xdelta && !is_base && error.kind() == Kind::Damaged => {
                return Err(wrong());
            }
            data => data?,
        };
        if data == current {
            return there(data, !is_base);
        }
        if !self.trusted {
            if !is_base {
                return Err(wrong());
            }
            self.ensure_told_apart(extent, legacy, offset)?;
            self.ensure_is_between(offset, &current, &base, &data)?;
        }
        Ok(Checked { offset, bytes: data.len() as u64, differs: true, resumed: false, data })
    }

    /// Refuses what might be applied a second time to its own result.
    fn ensure_told_apart(&self, extent: &ReadExtent, legacy: &Legacy, offset: u64) -> Result<()> {
        let is_elsewhere = self.target.base_size().is_some();
        if !extent.needs_base() || is_elsewhere || legacy.source_sum != legacy.target_sum {
            return Ok(());
        }
        let what = format!("old and new data of the extent at byte {offset} have the same sum");
        Err(Error::new(Kind::Refused, what)
            .at_path(self.target.path())
            .hint("name the old data with --base PATH; if the delta was never applied here, --force will do"))
    }

    /// With the base elsewhere, the target itself must hold, chunk by chunk, the base or the result.
    fn ensure_is_between(&self, offset: u64, current: &[u8], base: &[u8], data: &[u8]) -> Result<()> {
        if self.target.base_size().is_none() {
            return Ok(());
        }
        let size = to_usize(self.geometry.chunk_bytes());
        let mut bases = base.chunks(size);
        for (index, (now, new)) in current.chunks(size).zip(data.chunks(size)).enumerate() {
            let old = bases.next().unwrap_or(&[]);
            if now != new && now.get(..old.len()) != Some(old) {
                let at = offset.saturating_add(index.saturating_mul(size) as u64);
                let what = format!("what lies at byte {at} is neither the base nor the result");
                return Err(Error::new(Kind::Mismatch, what).at_path(self.target.path()).hint(
                    "check that target and base belong together; --force applies the delta regardless",
                ));
            }
        }
        Ok(())
    }
}

pub(crate) fn wrong_base(offset: u64) -> Error {
    let what = format!("what lies at byte {offset} is not what the delta was made from");
    Error::new(Kind::Mismatch, what)
}
