//! Recognises known content by its signature, so that nothing overwrites a file system or a store unasked.
//!
//! A match is no proof and no match is no permission: it decides whether to ask, nothing else. Offsets and
//! bytes are those that `blkid` and the kernel look for.

use super::ReadAt;
use crate::error::Result;

/// Bytes that are always at the same place.
struct Signature {
    name: &'static str,
    offset: u64,
    bytes: &'static [u8],
}

const fn signature(name: &'static str, offset: u64, bytes: &'static [u8]) -> Signature {
    Signature { name, offset, bytes }
}

/// More telling ones first: a partition table may stand beside any of them.
const SIGNATURES: &[Signature] = &[
    signature("a ddsnap store", 64 << 10, b"ddsnapSB"),
    signature("a ddsnap store", 512 << 10, b"ddsnapSB"),
    signature("a ddsnap store, upgraded in place", 0, b"ddsnapSW"),
    signature("a ddsnap store of 2008", 4096, &[0x74, 0x65, 0x73, 0x74, 0xdd, 0x07, 0x06, 0x04]),
    signature("LUKS encrypted data", 0, b"LUKS\xba\xbe"),
    signature("an XFS file system", 0, b"XFSB"),
    signature("a Btrfs file system", 0x1_0040, b"_BHRfS_M"),
    signature("an F2FS file system", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    signature("an EROFS file system", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    signature("a SquashFS file system", 0, b"hsqs"),
    signature("a bcache device", 4096 + 24, &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca]),
    signature("a bcachefs file system", 4096 + 24, &[0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9]),
    signature("a Linux RAID member", 4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
    signature("a Linux RAID member", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    signature("dm-thin metadata", 32, &[0x12, 0x99, 0x9c, 0x01]),
    signature("a qcow2 image", 0, b"QFI\xfb"),
    signature("an NTFS file system", 3, b"NTFS    "),
    signature("an exFAT file system", 3, b"EXFAT   "),
    signature("a FAT file system", 54, b"FAT12   "),
    signature("a FAT file system", 54, b"FAT16   "),
    signature("a FAT file system", 82, b"FAT32   "),
    signature("an ISO 9660 file system", 32_769, b"CD001"),
    signature("swap space", 4086, b"SWAPSPACE2"),
    signature("swap space", 4086, b"SWAP-SPACE"),
    signature("swap space", 16_374, b"SWAPSPACE2"),
    signature("swap space", 65_526, b"SWAPSPACE2"),
    signature("a GPT partition table", 512, b"EFI PART"),
    signature("a GPT partition table", 4096, b"EFI PART"),
];

/// Names the known content at the start of `device`, or `None`. Looks at the first MiB only.
///
/// # Errors
/// `Kind::Io`: what cannot be read is not known to be empty.
pub fn probe_signature(device: &dyn ReadAt) -> Result<Option<&'static str>> {
    for candidate in SIGNATURES {
        if read(device, candidate.offset, candidate.bytes.len())?.as_deref() == Some(candidate.bytes) {
            return Ok(Some(candidate.name));
        }
    }
    for probe in [probe_ext, probe_lvm, probe_zfs, probe_mbr] {
        if let Some(name) = probe(device)? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// The bytes at `offset`, or `None` where the device is too small to have them.
fn read(device: &dyn ReadAt, offset: u64, len: usize) -> Result<Option<Vec<u8>>> {
    if offset.checked_add(len as u64).is_none_or(|end| end > device.size()) {
        return Ok(None);
    }
    let mut bytes = vec![0; len];
    device.read_at(&mut bytes, offset)?;
    Ok(Some(bytes))
}

/// ext2, 3 and 4 share a magic; features tell them apart as blkid does.
fn probe_ext(device: &dyn ReadAt) -> Result<Option<&'static str>> {
    const JOURNAL: u8 = 0x04; // s_feature_compat has_journal
    const EXT4_LOW: u8 = 0xc0; // s_feature_incompat: extents, 64bit
    const EXT4_HIGH: u8 = 0x02; // s_feature_incompat: flex_bg
    let Some(sb) = read(device, 1024, 104)? else { return Ok(None) };
    if sb[56..58] != [0x53, 0xef] {
        return Ok(None);
    }
    let name = if sb[96] & EXT4_LOW != 0 || sb[97] & EXT4_HIGH != 0 {
        "an ext4 file system"
    } else if sb[92] & JOURNAL != 0 {
        "an ext3 file system"
    } else {
        "an ext2 file system"
    };
    Ok(Some(name))
}

/// The label lies in one of the first four sectors.
fn probe_lvm(device: &dyn ReadAt) -> Result<Option<&'static str>> {
    for sector in 0..4u64 {
        if let Some(label) = read(device, sector * 512, 32)?
            && label.starts_with(b"LABELONE")
            && label.ends_with(b"LVM2 001")
        {
            return Ok(Some("an LVM2 physical volume"));
        }
    }
    Ok(None)
}

/// The first label's ring of uberblocks: 128 KiB at 128 KiB, one a KiB at the densest, in either byte order.
fn probe_zfs(device: &dyn ReadAt) -> Result<Option<&'static str>> {
    const MAGIC: u64 = 0x00ba_b10c;
    let Some(ring) = read(device, 128 << 10, 128 << 10)? else { return Ok(None) };
    let found = ring
        .chunks_exact(1024)
        .any(|block| block.starts_with(&MAGIC.to_le_bytes()) || block.starts_with(&MAGIC.to_be_bytes()));
    Ok(found.then_some("a ZFS pool member"))
}

/// The two bytes 55 aa alone stand on many boot sectors; a table has at least one entry and only sane ones.
fn probe_mbr(device: &dyn ReadAt) -> Result<Option<&'static str>> {
    let Some(sector) = read(device, 0, 512)? else { return Ok(None) };
    if sector[510..] != [0x55, 0xaa] {
        return Ok(None);
    }
    let entries = || sector[446..510].chunks_exact(16);
    let sane = entries().all(|entry| matches!(entry[0], 0x00 | 0x80));
    let used = entries().any(|entry| entry[4] != 0 && entry[12..16] != [0; 4]);
    Ok((sane && used).then_some("an MBR partition table"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::WriteAt;
    use crate::block::faulty::{Faulty, Operation};
    use crate::block::file::FileReader;
    use crate::block::memory::Memory;
    use crate::error::Kind;
    use std::process::Command;

    fn device(parts: &[(u64, &[u8])]) -> Memory {
        let device = Memory::new(1 << 20);
        for (offset, bytes) in parts {
            device.write_at(bytes, *offset).unwrap();
        }
        device
    }

    #[test]
    fn every_fixed_signature_is_found_at_its_place_and_nowhere_else() {
        for s in SIGNATURES {
            assert_eq!(probe_signature(&device(&[(s.offset, s.bytes)])).unwrap(), Some(s.name));
            let moved = device(&[(s.offset + 1, s.bytes)]);
            assert_eq!(probe_signature(&moved).unwrap(), None, "{} one byte further", s.name);
        }
    }

    #[test]
    fn nothing_is_found_on_empty_and_tiny_devices() {
        assert_eq!(probe_signature(&Memory::new(1 << 20)).unwrap(), None);
        for size in [0, 1, 511, 4095] {
            assert_eq!(probe_signature(&Memory::new(size)).unwrap(), None);
        }
        assert_eq!(probe_signature(&device(&[(0, &[0xff; 4096])])).unwrap(), None);
    }

    #[test]
    fn ext_generations_are_told_apart() {
        let magic: (u64, &[u8]) = (1080, &[0x53, 0xef]);
        let with = |more: &[(u64, &[u8])]| probe_signature(&device(&[&[magic], more].concat())).unwrap();
        assert_eq!(with(&[]), Some("an ext2 file system"));
        assert_eq!(with(&[(1024 + 92, &[0x3c])]), Some("an ext3 file system"));
        assert_eq!(with(&[(1024 + 92, &[0x3c]), (1024 + 96, &[0xc2])]), Some("an ext4 file system"));
        assert_eq!(with(&[(1024 + 97, &[0x02])]), Some("an ext4 file system"));
    }

    #[test]
    fn tables_and_labels_that_need_more_than_one_look() {
        let lvm = |sector: u64, kind: &[u8]| {
            probe_signature(&device(&[(sector * 512, b"LABELONE"), (sector * 512 + 24, kind)])).unwrap()
        };
        assert_eq!(lvm(1, b"LVM2 001"), Some("an LVM2 physical volume"));
        assert_eq!(lvm(3, b"LVM2 001"), Some("an LVM2 physical volume"));
        assert_eq!(lvm(4, b"LVM2 001"), None);
        assert_eq!(lvm(1, b"LVM1 001"), None);

        let zfs = 0x00ba_b10c_u64;
        for bytes in [zfs.to_le_bytes(), zfs.to_be_bytes()] {
            let found = probe_signature(&device(&[((128 << 10) + 37 * 1024, &bytes)])).unwrap();
            assert_eq!(found, Some("a ZFS pool member"));
        }

        let boot: (u64, &[u8]) = (510, &[0x55, 0xaa]);
        assert_eq!(probe_signature(&device(&[boot])).unwrap(), None, "no entry");
        let entry = [0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0];
        assert_eq!(probe_signature(&device(&[boot, (446, &entry)])).unwrap(), Some("an MBR partition table"));
        assert_eq!(probe_signature(&device(&[(446, &entry)])).unwrap(), None, "no mark");
    }

    #[test]
    fn what_cannot_be_read_is_not_called_empty() {
        let device = Faulty::new(Memory::new(1 << 20));
        device.fail_from(Operation::Read, 1, Kind::Io);
        assert_eq!(probe_signature(&device).unwrap_err().kind(), Kind::Io);
    }

    /// The real programs' images. Without a program its case is skipped with a note; under CI it must be there.
    #[test]
    fn images_of_the_real_programs() {
        let cases: [(&str, &[&str], &str); 6] = [
            ("mkfs.ext4", &["-q", "-F"], "an ext4 file system"),
            ("mkfs.ext3", &["-q", "-F"], "an ext3 file system"),
            ("mkfs.ext2", &["-q", "-F"], "an ext2 file system"),
            ("mkfs.xfs", &["-q", "-f"], "an XFS file system"),
            ("mkswap", &["-q"], "swap space"),
            ("sfdisk", &["-q", "--wipe", "never"], "an MBR partition table"),
        ];
        let dir = tempfile::TempDir::new().unwrap();
        for (program, args, expected) in cases {
            let path = dir.path().join(program);
            std::fs::File::create(&path).unwrap().set_len(320 << 20).unwrap();
            let script = dir.path().join("script");
            std::fs::write(&script, "label: dos\n,,\n").unwrap();
            let script = std::fs::File::open(&script).unwrap();
            match Command::new(program).args(args).arg(&path).stdin(script).output() {
                Ok(output) => assert!(output.status.success(), "{program}: {output:?}"),
                Err(e) if std::env::var_os("CI").is_none() => {
                    println!("skipped {program}: {e}");
                    continue;
                }
                Err(e) => panic!("{program}: {e}; it must be installed under CI"),
            }
            let reader = FileReader::open(&path).unwrap();
            assert_eq!(probe_signature(&reader).unwrap(), Some(expected), "{program}");
        }
    }
}
