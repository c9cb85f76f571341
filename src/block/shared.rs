//! Which bytes of a file lie on blocks that other files share, as the file system tells without reading them.
//!
//! Only xfs and btrfs are asked. There a block that is shared is never changed in place, so two files that have
//! the same shared block at the same offset have the same bytes there. What is known of a block and not proven
//! to be plain, such as a compressed extent (whose address says nothing of which part of it is meant), counts as
//! not shared.
//!
//! This is the one module with `unsafe` code: three ioctls that no crate here wraps.
#![expect(unsafe_code, reason = "ioctls; each use says why it is sound")]

use rustix::ioctl::{Getter, Opcode, Updater, ioctl, opcode};
use std::fs::File;
use std::os::unix::fs::MetadataExt;

/// Where addresses count: two files with the same space have their blocks in the same file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space(u64, u64);

#[cfg(test)]
impl Space {
    /// A made-up space.
    pub(crate) fn for_test(number: u64) -> Self {
        Self(number, 0)
    }
}

/// Bytes of a file on shared blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedExtent {
    /// First byte in the file.
    pub start: u64,
    /// One past the last byte in the file.
    pub end: u64,
    /// Address of the first byte in the [`Space`].
    pub address: u64,
}

/// What is known of a stretch of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedExtents {
    /// Ascending and disjoint.
    pub extents: Vec<SharedExtent>,
    /// Nothing is said of what lies from this byte on.
    pub until: u64,
}

/// Extents asked for at a time.
const EXTENTS_MAX: usize = 512;

const XFS_MAGIC: u32 = 0x5846_5342;
const BTRFS_MAGIC: u32 = 0x9123_683e;

/// `FIEMAP_FLAG_SYNC`: write out first what has no place yet.
const SYNC: u32 = 1;
const LAST: u32 = 1;
const MERGED: u32 = 0x1000;
const SHARED: u32 = 0x2000;

/// `FS_XFLAG_REALTIME`: the file lies on another device than the other files of its xfs.
const REALTIME: u32 = 1;

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap` without its extents.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawHeader {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
}

/// `struct fiemap` with room for extents.
#[repr(C)]
struct RawMap {
    header: RawHeader,
    extents: [RawExtent; EXTENTS_MAX],
}

const _: () = assert!(size_of::<RawExtent>() == 56 && size_of::<RawHeader>() == 32);
const _: () = assert!(std::mem::offset_of!(RawMap, extents) == 32);

const FS_IOC_FIEMAP: Opcode = opcode::read_write::<RawHeader>(b'f', 11);
const FS_IOC_FSGETXATTR: Opcode = opcode::read::<[u32; 7]>(b'X', 31);
const BTRFS_IOC_FS_INFO: Opcode = opcode::read::<[u64; 128]>(0x94, 31);

/// The space of a regular file; `None` if its file system is not known to share blocks.
pub(super) fn space(file: &File) -> Option<Space> {
    let magic = u32::try_from(rustix::fs::fstatfs(file).ok()?.f_type).ok()?;
    match magic {
        XFS_MAGIC => {
            // SAFETY: the kernel writes a `struct fsxattr`, 28 bytes of plain integers, which the type holds.
            let attributes = unsafe { ioctl(file, Getter::<FS_IOC_FSGETXATTR, [u32; 7]>::new()) }.ok()?;
            (attributes[0] & REALTIME == 0).then_some(())?;
            Some(Space(u64::from(XFS_MAGIC), file.metadata().ok()?.dev()))
        }
        BTRFS_MAGIC => {
            // Every subvolume has a device number of its own; the identity of the file system is the same.
            // SAFETY: the kernel writes a `struct btrfs_ioctl_fs_info_args`, 1024 bytes of plain integers.
            let info = unsafe { ioctl(file, Getter::<BTRFS_IOC_FS_INFO, [u64; 128]>::new()) }.ok()?;
            Some(Space(info[2], info[3]))
        }
        _ => None,
    }
}

/// Which bytes from `offset` on lie on shared blocks. What is not on disk yet is written out first.
pub(super) fn shared_extents(file: &File, offset: u64) -> Option<SharedExtents> {
    let count = u32::try_from(EXTENTS_MAX).ok()?;
    let length = u64::MAX.checked_sub(offset)?;
    let header =
        RawHeader { start: offset, length, flags: SYNC, extent_count: count, ..RawHeader::default() };
    let mut map = Box::new(RawMap { header, extents: [RawExtent::default(); EXTENTS_MAX] });
    // SAFETY: the kernel reads the header and writes at most `extent_count` extents of plain integers after it,
    // for which the map has room; the map lives and is borrowed alone for the whole call.
    unsafe { ioctl(file, Updater::<FS_IOC_FIEMAP, RawMap>::new(&mut map)) }.ok()?;
    let mapped = usize::try_from(map.header.mapped_extents).ok()?;
    interpret(offset, map.extents.get(..mapped)?)
}

/// What a full or the last answer of the kernel says.
fn interpret(offset: u64, raw: &[RawExtent]) -> Option<SharedExtents> {
    let mut extents = Vec::new();
    let mut next = 0;
    for extent in raw {
        let end = extent.logical.checked_add(extent.length)?;
        if extent.logical < next || extent.length == 0 {
            return None;
        }
        next = end;
        // Any other flag says that the bytes are not, or not yet, or not plainly at that address.
        let plain = extent.flags & !(LAST | MERGED) == SHARED;
        if plain && extent.physical.checked_add(extent.length).is_some() {
            extents.push(SharedExtent { start: extent.logical, end, address: extent.physical });
        }
    }
    let is_last = raw.len() < EXTENTS_MAX || raw.last().is_none_or(|extent| extent.flags & LAST != 0);
    let until = if is_last { u64::MAX } else { next };
    (until > offset).then_some(SharedExtents { extents, until })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(logical: u64, physical: u64, length: u64, flags: u32) -> RawExtent {
        RawExtent { logical, physical, length, flags, ..RawExtent::default() }
    }

    #[test]
    fn only_plain_shared_extents_count() {
        // Unknown, delayed, encoded, encrypted, unaligned, inline, tail-packed, unwritten.
        for bad in [2, 4, 8, 0x80, 0x100, 0x200, 0x400, 0x800, 0x4000] {
            let found = interpret(0, &[raw(0, 4096, 4096, SHARED | bad)]).unwrap();
            assert_eq!(found.extents, [], "{bad:#x}");
        }
        let found = interpret(0, &[raw(0, 0, 8, 0), raw(8, 4096, 8, SHARED | MERGED | LAST)]).unwrap();
        assert_eq!(found.extents, [SharedExtent { start: 8, end: 16, address: 4096 }]);
        assert_eq!(found.until, u64::MAX);
    }

    #[test]
    fn a_full_answer_goes_as_far_as_its_last_extent() {
        let many: Vec<RawExtent> =
            (0..EXTENTS_MAX as u64).map(|i| raw(i * 8192, i * 8192, 4096, SHARED)).collect();
        let end = (EXTENTS_MAX as u64 - 1) * 8192 + 4096;
        assert_eq!(interpret(0, &many).unwrap().until, end);
        assert_eq!(interpret(end, &many), None, "an answer that leads nowhere");
    }

    #[test]
    fn nonsense_is_no_answer() {
        assert_eq!(interpret(0, &[raw(8192, 0, 4096, SHARED), raw(4096, 0, 4096, SHARED)]), None);
        assert_eq!(interpret(0, &[raw(u64::MAX, 0, 4096, SHARED)]), None);
        assert_eq!(interpret(0, &[raw(0, 0, 0, SHARED)]), None);
        assert_eq!(interpret(0, &[raw(0, u64::MAX, 4096, SHARED)]).unwrap().extents, []);
    }
}
