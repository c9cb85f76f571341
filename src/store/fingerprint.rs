//! What the origin looked like when the store was closed, so that a change behind its back is noticed.

use crate::block::ReadAt;
use crate::error::Result;
use crate::format::table::Fingerprint;
use crate::units::index;

/// Sampled from both ends: boot sectors, superblocks of ext, xfs and btrfs, allocation group headers.
const HEAD: u64 = 1 << 20;
const TAIL: u64 = 64 << 10;

/// Takes the fingerprint of the first `size_bytes` of `origin`.
pub fn take(origin: &dyn ReadAt, size_bytes: u64) -> Result<Fingerprint> {
    let mut hasher = blake3::Hasher::new();
    let head = HEAD.min(size_bytes);
    let tail = size_bytes.saturating_sub(TAIL).max(head);
    for (start, end) in [(0, head), (tail, size_bytes)] {
        let mut bytes = vec![0; index(end - start)];
        origin.read_at(&mut bytes, start)?;
        hasher.update(&bytes);
    }
    Ok(Fingerprint { content: *hasher.finalize().as_bytes(), file: origin.file_stamp() })
}

/// True if `now` shows that the origin was written since `then`.
///
/// A file's modification time counts only while it is the same file: a copy keeps its content but neither
/// inode nor time.
pub fn differs(then: &Fingerprint, now: &Fingerprint) -> bool {
    let touched = match (then.file, now.file) {
        (Some(then), Some(now)) => (then.0, then.1) == (now.0, now.1) && then.2 != now.2,
        _ => false,
    };
    touched || then.content != now.content
}
