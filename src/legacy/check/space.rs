//! The bitmaps against what is in use.

use super::super::recover::Recovered;
use super::super::space::Bitmap;
use super::tree::Tree;
use crate::error::Result;
use crate::format::legacy::SECTOR;
use crate::format::legacy::superblock::Space;
use crate::point::finding::Code;
use crate::progress::Progress;

/// Blocks looked at between two looks at whether to stop.
const STEP: u64 = 1 << 16;

/// Compares the bitmap of each space with what the tree leads to.
///
/// # Errors
/// `Kind::Io`, `Kind::Interrupted`.
pub(super) fn balance(tree: &mut Tree<'_>, recovered: &Recovered, progress: &dyn Progress) -> Result<()> {
    let sb = tree.sb;
    balance_space(tree, recovered, "metadata", sb.metadata, progress)?;
    match sb.data {
        Some(data) => balance_space(tree, recovered, "data", data, progress),
        None => Ok(()),
    }
}

fn balance_space(
    tree: &mut Tree<'_>,
    recovered: &Recovered,
    name: &str,
    space: Space,
    progress: &dyn Progress,
) -> Result<()> {
    let is_data = name == "data";
    let has_data = is_data || tree.sb.data.is_none();
    let mut bitmap = Bitmap::new(tree.blocks, space, &recovered.deferred);
    let mut free = 0;
    for at in 0..space.chunks {
        if at % STEP == 0 {
            progress.check()?;
        }
        let own = !is_data && tree.own.has(at);
        let chunk = has_data && tree.chunks.has(at);
        let area = if is_data { None } else { tree.area(at) };
        if own && chunk {
            tree.twice.insert(at);
        }
        let is_used = bitmap.is_used(at)?;
        free += u64::from(!is_used);
        let offset = (!is_data || tree.sb.data.is_none()).then(|| at << space.bits);
        match area {
            Some(area) if !is_used => {
                let text = || format!("the bitmap says that {name} block {at}, of the {area}, is free");
                tree.tally.add(Code::LegacyAreaFree, offset, text);
            }
            None if is_used && !own && !chunk && !tree.is_cut => {
                let text =
                    || format!("the bitmap says that {name} chunk {at} is in use, nothing leads to it");
                tree.tally.add(Code::LegacyLeak, offset, text);
            }
            _ => {}
        }
    }
    let clear = bitmap.clear_behind_end()?;
    let offset = Some(space.bitmap_base * SECTOR);
    if clear > 0 {
        let text = || format!("{clear} chunks behind the end of the {name} space are said to be free");
        tree.tally.add(Code::LegacyEnd, offset, text);
    }
    // After a crash they are counted anew.
    if !tree.sb.is_busy() && free != space.free {
        let said = space.free;
        let text = || format!("the superblock counts {said} free {name} chunks, the bitmap has {free}");
        tree.tally.add(Code::LegacyFreeCount, None, text);
    }
    Ok(())
}
