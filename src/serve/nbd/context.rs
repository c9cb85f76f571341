//! What an export tells of itself: where something is, and what has changed since a snapshot.

use crate::error::Result;
use crate::format::nbd::context::{ALLOCATION, CHANGED, DIRTY, HOLE_OF_ZEROES};
use crate::serve::export::Export;
use crate::units::Tag;

/// A metadata context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// Where something is.
    Allocation,
    /// What has changed since a snapshot.
    Changed(Tag),
}

impl Context {
    /// All that `export` has.
    pub fn all(export: &dyn Export) -> Vec<Self> {
        std::iter::once(Self::Allocation).chain(export.bases().into_iter().map(Self::Changed)).collect()
    }

    /// Its name.
    pub fn name(self) -> String {
        match self {
            Self::Allocation => ALLOCATION.to_owned(),
            Self::Changed(tag) => format!("{CHANGED}{tag}"),
        }
    }

    /// Lengths and flags of the extents from byte `offset` on: at least one, not all of what was asked for if they
    /// are too many.
    pub fn extents(
        self,
        export: &dyn Export,
        offset: u64,
        length: u32,
        one: bool,
    ) -> Result<Vec<(u32, u32)>> {
        let (base, inside, outside) = match self {
            Self::Allocation => (None, 0, HOLE_OF_ZEROES),
            Self::Changed(tag) => (Some(tag), DIRTY, 0),
        };
        let found = export.differing(base, offset, u64::from(length))?;
        let mut extents = Vec::new();
        let mut at = offset;
        let mut add = |end: u64, flags| {
            // Never longer than what was asked for.
            if let Some(length @ 1..) = end.checked_sub(at).and_then(|length| u32::try_from(length).ok()) {
                extents.push((length, flags));
                at = end;
            }
        };
        for range in found.ranges {
            add(range.start, outside);
            add(range.end, inside);
        }
        add(found.end, outside);
        extents.truncate(if one { 1 } else { usize::MAX });
        Ok(extents)
    }
}
