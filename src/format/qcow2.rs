//! QCOW2 images, version 3, as far as an export needs them: one header, tables of two levels, refcounts of one.
//!
//! All integers are big endian, everything is aligned to clusters. The virtual disk is mapped in two steps: an L1
//! entry names the L2 table of `cluster_bytes / 8` guest clusters, an L2 entry names the host cluster of one. An
//! entry of 0 is not allocated: it reads as the backing image, and as zeros where that has none. Every host
//! cluster in use, tables and header included, has a refcount of 1 here.
//!
//! | part | where |
//! |---|---|
//! | [`RawHeader`], backing format extension, end of extensions, backing name | cluster 0 |
//! | data clusters, and the L2 table of each region after its data | from cluster 1 on, in guest order |
//! | L1 table, refcount blocks, refcount table | at the end |
//!
//! Sources: the image format's specification in QEMU's documentation, and the limits of its driver.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use crate::error::{Error, Kind, Result};
use crate::format::field::raw_struct;
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

raw_struct! {
    /// Header of a QCOW2 image of version 3. Unlike all else here, its integers are big endian.
    pub struct RawHeader, "QCOW2 header", 104 {
        magic: [u8; 4], "bytes", "'QFI' fb";
        version: U32, "u32", "3 (2 has no fields from `incompatible` on)";
        backing_offset: U64, "u64 bytes", "where the name of the backing image is; 0 without one";
        backing_bytes: U32, "u32 bytes", "length of that name, at most 1023";
        cluster_bits: U32, "u32", "log2 of the cluster size, 12 to 21 when written";
        size_bytes: U64, "u64 bytes", "size of the virtual disk, a multiple of 512";
        encryption: U32, "u32", "0: none";
        l1_entries: U32, "u32", "entries of the L1 table";
        l1_offset: U64, "u64 bytes", "where the L1 table is";
        refcount_table_offset: U64, "u64 bytes", "where the refcount table is";
        refcount_table_clusters: U32, "u32", "its length";
        snapshots: U32, "u32", "internal snapshots: 0";
        snapshots_offset: U64, "u64 bytes", "0";
        incompatible: U64, "u64 bits", "features that a reader must know: 0";
        compatible: U64, "u64 bits", "features that it may ignore: 0";
        autoclear: U64, "u64 bits", "features that a writer must clear: 0";
        refcount_order: U32, "u32", "log2 of the bits of a refcount: 4";
        header_bytes: U32, "u32 bytes", "104";
    }
}

/// First four bytes.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Smallest cluster that is written: 4 KiB, in which header and backing name always fit.
pub const CLUSTER_BITS_MIN: u32 = 12;
/// Largest cluster: 2 MiB.
pub const CLUSTER_BITS_MAX: u32 = 21;
/// Longest name of a backing image in bytes.
pub const BACKING_BYTES_MAX: usize = 1023;
/// The size of a virtual disk is a multiple of this.
pub const SECTOR_BYTES: u64 = 512;
/// An L2 entry of a cluster that reads as zeros whatever the backing image holds.
pub const ZERO_ENTRY: u64 = 1;
/// The L1 table that QEMU accepts is no longer than 32 MiB.
const L1_ENTRIES_MAX: u64 = (32 << 20) / ENTRY_BYTES;
/// The refcount table that it accepts, 8 MiB.
const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;
/// Refcount 1, so that the entry may be written to in place.
const COPIED: u64 = 1 << 63;
const ENTRY_BYTES: u64 = 8;
const REFCOUNT_BYTES: u64 = 2;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// Format of a backing image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackingFormat {
    /// The bytes of the disk.
    Raw,
    /// QCOW2.
    Qcow2,
}

impl BackingFormat {
    /// As QEMU calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// The image below an overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// Its path as stored: relative to the overlay, or absolute.
    pub name: Vec<u8>,
    /// Its format; always written, because guessing it is a known way to be fooled by a guest.
    pub format: BackingFormat,
}

/// Sizes and tables of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// log2 of the cluster size in bytes.
    pub cluster_bits: u32,
    /// Size of the virtual disk in bytes, a multiple of [`SECTOR_BYTES`].
    pub size_bytes: u64,
}

impl Geometry {
    /// The geometry for a disk of `bytes` bytes, rounded up to whole sectors.
    ///
    /// # Errors
    /// `Kind::Usage` for a cluster size out of bounds, or too small for so large a disk.
    pub fn new(cluster_bits: u32, bytes: u64) -> Result<Self> {
        let usage = |what: String| Error::new(Kind::Usage, what);
        if !(CLUSTER_BITS_MIN..=CLUSTER_BITS_MAX).contains(&cluster_bits) {
            return Err(usage(format!(
                "clusters of 2^{cluster_bits} bytes, expected 2^{CLUSTER_BITS_MIN} to 2^{CLUSTER_BITS_MAX}"
            )));
        }
        let size_bytes = bytes
            .checked_next_multiple_of(SECTOR_BYTES)
            .ok_or_else(|| usage(format!("{bytes} bytes are too many for a disk")))?;
        let geometry = Self { cluster_bits, size_bytes };
        if geometry.l1_entries() > L1_ENTRIES_MAX {
            let what = format!("a disk of {bytes} bytes needs clusters of more than 2^{cluster_bits} bytes");
            return Err(usage(what));
        }
        Ok(geometry)
    }

    /// Cluster size in bytes.
    #[must_use]
    pub fn cluster_bytes(&self) -> u64 {
        1u64.checked_shl(self.cluster_bits).unwrap_or(u64::MAX)
    }

    /// Entries of one L2 table.
    #[must_use]
    pub fn l2_entries(&self) -> u64 {
        1u64.checked_shl(self.cluster_bits.saturating_sub(3)).unwrap_or(u64::MAX)
    }

    /// Entries of the L1 table, at least 1.
    #[must_use]
    pub fn l1_entries(&self) -> u64 {
        self.size_bytes.div_ceil(self.cluster_bytes().saturating_mul(self.l2_entries())).max(1)
    }

    /// The part of the L1 table and the entry in the L2 table that map guest cluster `cluster`.
    #[must_use]
    pub fn place(&self, cluster: u64) -> (u64, u64) {
        let entries = self.l2_entries().max(1);
        (cluster.checked_div(entries).unwrap_or(0), cluster.checked_rem(entries).unwrap_or(0))
    }

    /// Byte offset of host cluster `cluster`.
    #[must_use]
    pub fn offset(&self, cluster: u64) -> u64 {
        cluster.saturating_mul(self.cluster_bytes())
    }

    /// Clusters that `bytes` bytes fill.
    #[must_use]
    pub fn clusters_of(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_bytes())
    }

    /// The entry, of L1 or L2, for something at host cluster `cluster`.
    #[must_use]
    pub fn entry(&self, cluster: u64) -> u64 {
        self.offset(cluster) | COPIED
    }

    /// How many clusters refcounts take if `used` clusters lie before them.
    ///
    /// # Errors
    /// `Kind::Usage` if the image would be larger than QEMU can count.
    pub fn refcounts(&self, used: u64) -> Result<Refcounts> {
        let per_block = self.cluster_bytes() / REFCOUNT_BYTES;
        let (mut blocks, mut table) = (1u64, 1u64);
        // Blocks count themselves and the table too; each round adds what the round before took.
        loop {
            let total = used.saturating_add(blocks).saturating_add(table);
            let needed = total.div_ceil(per_block.max(1));
            let needed_table = self.clusters_of(needed.saturating_mul(ENTRY_BYTES));
            if needed_table.saturating_mul(self.cluster_bytes())
                > REFCOUNT_TABLE_BYTES_MAX.max(self.cluster_bytes())
            {
                let what =
                    format!("{used} clusters are more than a QCOW2 image of this cluster size can count");
                return Err(Error::new(Kind::Usage, what).hint("larger clusters need fewer refcounts"));
            }
            if (needed, needed_table) == (blocks, table) {
                return Ok(Refcounts { first: used, blocks, table, total });
            }
            (blocks, table) = (needed.max(blocks), needed_table.max(table));
        }
    }

    /// Cluster 0: header, extensions and backing name.
    ///
    /// # Errors
    /// `Kind::Usage` if the name is too long.
    pub fn header(
        &self,
        l1_offset: u64,
        refcounts: &Refcounts,
        backing: Option<&Backing>,
    ) -> Result<Vec<u8>> {
        let mut raw = RawHeader::new_zeroed();
        raw.magic = MAGIC;
        raw.version = U32::new(3);
        raw.cluster_bits = U32::new(self.cluster_bits);
        raw.size_bytes = U64::new(self.size_bytes);
        raw.l1_entries = U32::new(u32::try_from(self.l1_entries()).unwrap_or(u32::MAX));
        raw.l1_offset = U64::new(l1_offset);
        raw.refcount_table_offset = U64::new(self.offset(refcounts.table_first()));
        raw.refcount_table_clusters = U32::new(u32::try_from(refcounts.table).unwrap_or(u32::MAX));
        raw.refcount_order = U32::new(4);
        raw.header_bytes = U32::new(104);
        let mut rest = Vec::new();
        if let Some(backing) = backing {
            let name = &backing.name;
            if name.len() > BACKING_BYTES_MAX {
                let what = format!(
                    "the backing name has {} bytes, expected at most {BACKING_BYTES_MAX}",
                    name.len()
                );
                return Err(Error::new(Kind::Usage, what));
            }
            let format = backing.format.name().as_bytes();
            rest.extend_from_slice(&EXTENSION_BACKING_FORMAT.to_be_bytes());
            rest.extend_from_slice(&u32::try_from(format.len()).unwrap_or(0).to_be_bytes());
            rest.extend_from_slice(format);
            rest.resize(rest.len().next_multiple_of(8), 0);
            rest.extend_from_slice(&[0; 8]);
            raw.backing_offset = U64::new(size_of::<RawHeader>().saturating_add(rest.len()) as u64);
            raw.backing_bytes = U32::new(u32::try_from(name.len()).unwrap_or(u32::MAX));
            rest.extend_from_slice(name);
        }
        let mut out = raw.as_bytes().to_vec();
        out.extend_from_slice(&rest);
        out.resize(usize::try_from(self.cluster_bytes()).unwrap_or(out.len()), 0);
        Ok(out)
    }
}

/// Where the refcounts of an image lie: blocks, then the table that names them. Counted in host clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refcounts {
    /// First refcount block.
    pub first: u64,
    /// Number of blocks.
    pub blocks: u64,
    /// Length of the table.
    pub table: u64,
    /// Length of the whole image.
    pub total: u64,
}

impl Refcounts {
    /// First cluster of the table.
    #[must_use]
    pub fn table_first(&self) -> u64 {
        self.first.saturating_add(self.blocks)
    }

    /// The block number `block`: 1 for each of its clusters inside the image.
    #[must_use]
    pub fn block(&self, geometry: &Geometry, block: u64) -> Vec<u8> {
        let per_block = geometry.cluster_bytes() / REFCOUNT_BYTES;
        let used = self.total.saturating_sub(block.saturating_mul(per_block)).min(per_block);
        let mut out = 1u16.to_be_bytes().repeat(usize::try_from(used).unwrap_or(0));
        out.resize(usize::try_from(geometry.cluster_bytes()).unwrap_or(out.len()), 0);
        out
    }

    /// The table.
    #[must_use]
    pub fn table(&self, geometry: &Geometry) -> Vec<u8> {
        let offsets = (self.first..self.table_first()).map(|cluster| geometry.offset(cluster));
        table(offsets, self.table.saturating_mul(geometry.cluster_bytes()))
    }
}

/// Entries as bytes, filled up with zeros to `bytes`.
#[must_use]
pub fn table(entries: impl Iterator<Item = u64>, bytes: u64) -> Vec<u8> {
    let mut out: Vec<u8> = entries.flat_map(u64::to_be_bytes).collect();
    out.resize(usize::try_from(bytes).unwrap_or(out.len()), 0);
    out
}

/// What an overlay must know of the image below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Size of the virtual disk in bytes.
    pub size_bytes: u64,
    /// log2 of its cluster size.
    pub cluster_bits: u32,
}

/// Reads the header of an image, version 2 or 3; `None` if these bytes begin no QCOW2 image.
///
/// # Errors
/// `Kind::Damaged` if it is cut short or makes no sense, `Kind::Unsupported` for another version.
pub fn decode(bytes: &[u8]) -> Result<Option<Summary>> {
    if !bytes.starts_with(&MAGIC) {
        return Ok(None);
    }
    let (raw, _) = RawHeader::read_from_prefix(bytes)
        .map_err(|_| Error::damaged(format!("QCOW2 header has only {} bytes", bytes.len())))?;
    if !(2..=3).contains(&raw.version.get()) {
        let what = format!("QCOW2 image is of version {}, expected 2 or 3", raw.version);
        return Err(Error::new(Kind::Unsupported, what));
    }
    let cluster_bits = raw.cluster_bits.get();
    if !(9..=CLUSTER_BITS_MAX).contains(&cluster_bits) {
        let what = format!("cluster bits are {cluster_bits}, expected 9 to {CLUSTER_BITS_MAX}");
        return Err(Error::damaged(what).at_offset(20));
    }
    Ok(Some(Summary { size_bytes: raw.size_bytes.get(), cluster_bits }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GEOMETRY: Geometry = Geometry { cluster_bits: 16, size_bytes: 1 << 30 };

    #[test]
    fn the_header_is_laid_out_as_specified() {
        let refcounts = GEOMETRY.refcounts(10).unwrap();
        assert_eq!(refcounts, Refcounts { first: 10, blocks: 1, table: 1, total: 12 });
        let backing = Backing { name: b"base.raw".to_vec(), format: BackingFormat::Raw };
        let bytes = GEOMETRY.header(0x90000, &refcounts, Some(&backing)).unwrap();
        assert_eq!(bytes.len(), 65536);
        let expected = "514649fb00000003\
             0000000000000080\
             00000008\
             00000010\
             0000000040000000\
             00000000\
             00000002\
             0000000000090000\
             00000000000b0000\
             00000001\
             00000000\
             0000000000000000\
             0000000000000000\
             0000000000000000\
             0000000000000000\
             00000004\
             00000068\
             e2792aca00000003\
             7261770000000000\
             0000000000000000\
             626173652e726177";
        assert_eq!(hex::encode(&bytes[..136]), expected);
        assert!(bytes[136..].iter().all(|byte| *byte == 0));
        assert_eq!(decode(&bytes).unwrap(), Some(Summary { size_bytes: 1 << 30, cluster_bits: 16 }));
        let plain = GEOMETRY.header(0x90000, &refcounts, None).unwrap();
        assert_eq!(plain[8..20], [0; 12]);
        assert!(plain[104..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn sizes_are_whole_sectors_and_bounded() {
        assert_eq!(Geometry::new(16, 1).unwrap().size_bytes, 512);
        assert_eq!(Geometry::new(16, 0).unwrap().l1_entries(), 1);
        assert_eq!(Geometry::new(16, 64 << 40).unwrap().l1_entries(), 131_072);
        assert_eq!(Geometry::new(16, (2 << 50) + 1).unwrap_err().kind(), Kind::Usage);
        Geometry::new(21, 1 << 60).unwrap();
        for bits in [11, 22] {
            assert_eq!(Geometry::new(bits, 1).unwrap_err().kind(), Kind::Usage);
        }
        assert!(Geometry::new(21, u64::MAX).is_err());
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused() {
        let refcounts = GEOMETRY.refcounts(10).unwrap();
        let backing = |len| Backing { name: vec![b'x'; len], format: BackingFormat::Qcow2 };
        GEOMETRY.header(0, &refcounts, Some(&backing(1023))).unwrap();
        assert_eq!(GEOMETRY.header(0, &refcounts, Some(&backing(1024))).unwrap_err().kind(), Kind::Usage);
    }

    #[test]
    fn refcounts_count_themselves() {
        for bits in [12, 16, 21] {
            let geometry = Geometry { cluster_bits: bits, size_bytes: 1 << 40 };
            let per_block = geometry.cluster_bytes() / 2;
            for used in
                [1, per_block - 3, per_block - 2, per_block - 1, per_block, 5 * per_block, 700 * per_block]
            {
                let found = geometry.refcounts(used).unwrap();
                assert_eq!(found.total, used + found.blocks + found.table);
                assert!(found.blocks * per_block >= found.total);
                let ones: u64 = (0..found.blocks)
                    .map(|block| {
                        let bytes = found.block(&geometry, block);
                        bytes.chunks(2).filter(|pair| *pair == [0, 1]).count() as u64
                    })
                    .sum();
                assert_eq!(ones, found.total, "2^{bits}, {used} used");
                assert_eq!(found.table(&geometry).len() as u64, found.table * geometry.cluster_bytes());
            }
        }
        assert!(Geometry { cluster_bits: 12, size_bytes: 1 << 43 }.refcounts(u64::MAX >> 13).is_err());
    }

    proptest! {
        #[test]
        fn hostile_headers_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            if let Some(magic) = bytes.first_chunk_mut() {
                *magic = MAGIC;
            }
            let _ = decode(&bytes);
        }
    }
}
