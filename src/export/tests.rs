//! Images read back by a reader of their own, so that no tool is needed.

use super::{BlockMap, Overlay, Qcow2Options, RawOptions, export_qcow2, export_raw};
use crate::block::ReadAt;
use crate::block::memory::Memory;
use crate::error::Kind;
use crate::format::qcow2::{Backing, BackingFormat};
use crate::point::files::Files;
use crate::point::{Point, PointId, PointSource};
use crate::progress::Silent;
use crate::units::Tag;
use std::io::Cursor;
use std::sync::Arc;

fn files(old: Option<&[u8]>, new: &[u8], chunk_bits: u32) -> Files {
    let memory = |bytes: &[u8]| -> Arc<dyn ReadAt> { Arc::new(Memory::from_bytes(bytes)) };
    Files::new(old.map(|old| (memory(old), Tag(0))), (memory(new), Tag(1)), chunk_bits).unwrap()
}

fn point(source: &dyn PointSource, id: PointId) -> Point {
    source.points().into_iter().find(|point| point.id == id).unwrap()
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

fn image(old: Option<&[u8]>, new: &[u8], chunk_bits: u32, cluster_bits: u32) -> Vec<u8> {
    let source = files(old, new, chunk_bits);
    let from = old.map(|_| point(&source, Files::OLD));
    let backing = Backing { name: b"below".to_vec(), format: BackingFormat::Raw };
    let overlay = from.as_ref().map(|from| Overlay { from, backing });
    let mut out = Cursor::new(Vec::new());
    let options = Qcow2Options { cluster_bits, overlay };
    let summary = export_qcow2(&source, &point(&source, Files::NEW), &options, &mut out, &Silent).unwrap();
    let bytes = out.into_inner();
    assert_eq!(summary.file_bytes, bytes.len() as u64);
    bytes
}

fn number(bytes: &[u8], at: u64) -> u64 {
    let at = usize::try_from(at).unwrap();
    u64::from_be_bytes(*bytes[at..].first_chunk().unwrap())
}

/// The disk that an image shows over `below`, and a check that every cluster has one owner and is counted once.
fn show(image: &[u8], below: &[u8]) -> Vec<u8> {
    let cluster = 1u64 << u32::from_be_bytes(*image[20..].first_chunk().unwrap());
    let (size, l1, refcounts) = (number(image, 24), number(image, 40), number(image, 48));
    let mut owners = vec![0u16; image.len() / usize::try_from(cluster).unwrap()];
    let mut own = |offset: u64, count: u64| {
        assert_eq!(offset % cluster, 0);
        for at in offset / cluster..offset / cluster + count {
            owners[usize::try_from(at).unwrap()] += 1;
        }
    };
    let regions = size.div_ceil(cluster * (cluster / 8)).max(1);
    own(0, 1);
    own(l1, (regions * 8).div_ceil(cluster));
    let table_clusters = u64::from(u32::from_be_bytes(*image[56..].first_chunk().unwrap()));
    own(refcounts, table_clusters);
    let mut disk = below.to_vec();
    disk.resize(usize::try_from(size).unwrap(), 0);
    for region in 0..regions {
        let l2 = number(image, l1 + region * 8) & !(1 << 63);
        if l2 == 0 {
            continue;
        }
        own(l2, 1);
        for index in 0..cluster / 8 {
            let entry = number(image, l2 + index * 8);
            let guest = (region * (cluster / 8) + index) * cluster;
            let end = (guest + cluster).min(size);
            let place =
                (guest < size).then(|| usize::try_from(guest).unwrap()..usize::try_from(end).unwrap());
            match (entry, place) {
                (0, _) => {}
                (1, Some(place)) => disk[place].fill(0),
                (entry, Some(place)) => {
                    assert!(entry >> 63 == 1 && entry & 1 == 0, "{entry:#x}");
                    let host = entry & !(1 << 63);
                    own(host, 1);
                    let host = usize::try_from(host).unwrap();
                    let len = place.len();
                    disk[place].copy_from_slice(&image[host..host + len]);
                }
                (entry, None) => panic!("entry {entry:#x} maps byte {guest} of {size}"),
            }
        }
    }
    for index in 0..table_clusters * (cluster / 8) {
        let block = number(image, refcounts + index * 8);
        if block != 0 {
            own(block, 1);
        }
    }
    for (at, owned) in owners.iter().enumerate() {
        let block = number(image, refcounts + at as u64 / (cluster / 2) * 8);
        let place = usize::try_from(block + at as u64 % (cluster / 2) * 2).unwrap();
        let counted = u16::from_be_bytes(*image[place..].first_chunk().unwrap());
        assert_eq!((counted, *owned), (1, 1), "cluster {at}");
    }
    disk
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

#[test]
fn a_whole_image_shows_the_point() {
    for (len, chunk_bits, cluster_bits) in
        [(0, 12, 16), (1, 12, 16), (1_000_001, 14, 12), (3 << 20, 12, 16), (5_000_000, 20, 21)]
    {
        let mut disk = noise(1, len);
        let hole = len / 5..len / 2;
        disk[hole].fill(0);
        let image = image(None, &disk, chunk_bits, cluster_bits);
        assert!(show(&image, &[]) == padded(&disk), "{len} bytes, 2^{cluster_bits}");
    }
}

#[test]
fn zeros_take_no_room() {
    let mut disk = vec![0; 64 << 20];
    assert_eq!(image(None, &disk, 14, 16).len(), 4 << 16);
    disk[40 << 20] = 1;
    let image = image(None, &disk, 14, 16);
    assert_eq!(image.len(), 6 << 16);
    assert!(show(&image, &[]) == disk);
}

/// Every combination of sizes, with chunks smaller and larger than clusters; in between some chunks become zero.
#[test]
fn an_overlay_shows_the_newer_point_over_the_older() {
    const SIZES: [usize; 5] = [600_000, 600_001, 589_824, 589_823, 1_300_007];
    for (chunk_bits, cluster_bits) in [(12, 16), (14, 14), (18, 12)] {
        for old_len in SIZES {
            for new_len in SIZES {
                let old = noise(1, old_len);
                let mut new = old.clone();
                new.resize(new_len, 0);
                new[70_000..70_010].fill(7);
                new[131_072..262_144].fill(0);
                new[590_000.min(new_len - 1)..].fill(0);
                if new_len > 1_000_000 {
                    new[1_000_000..1_100_000].fill(9);
                }
                let image = image(Some(&old), &new, chunk_bits, cluster_bits);
                let what =
                    format!("{old_len} to {new_len}, chunks 2^{chunk_bits}, clusters 2^{cluster_bits}");
                assert!(show(&image, &padded(&old)) == padded(&new), "{what}");
            }
        }
    }
}

#[test]
fn an_overlay_holds_only_what_changed() {
    let old = noise(1, 8 << 20);
    let mut new = old.clone();
    new[3 << 20] ^= 1;
    new[5 << 20..6 << 20].fill(0);
    let image = image(Some(&old), &new, 14, 16);
    assert_eq!(image.len(), 6 << 16, "header, one cluster, L2, L1, refcount block and table");
    assert!(show(&image, &old) == new);
}

#[test]
fn growth_by_a_lot_of_zeros_takes_no_room() {
    let old: Arc<dyn ReadAt> = Arc::new(Memory::from_bytes(&noise(1, 100_000)));
    let new: Arc<dyn ReadAt> = Arc::new(Memory::new(2 << 30));
    let source = Files::new(Some((old, Tag(0))), (new, Tag(1)), 20).unwrap();
    let from = point(&source, Files::OLD);
    let backing = Backing { name: b"below".to_vec(), format: BackingFormat::Raw };
    let options = Qcow2Options { cluster_bits: 16, overlay: Some(Overlay { from: &from, backing }) };
    let mut out = Cursor::new(Vec::new());
    let summary = export_qcow2(&source, &point(&source, Files::NEW), &options, &mut out, &Silent).unwrap();
    assert_eq!((summary.data_clusters, summary.zero_clusters, summary.file_bytes), (0, 2, 5 << 16));
}

#[test]
fn a_failing_output_is_an_error() {
    let source = files(None, &noise(1, 200_000), 14);
    let mut bytes = [0; 100_000];
    let mut out = Cursor::new(bytes.as_mut_slice());
    let options = Qcow2Options { cluster_bits: 12, overlay: None };
    let error = export_qcow2(&source, &point(&source, Files::NEW), &options, &mut out, &Silent).unwrap_err();
    assert_eq!(error.kind(), Kind::Io);
}

fn raw(disk: &[u8], sparse: bool) -> (Vec<u8>, String) {
    let source = files(None, disk, 14);
    let mut map = BlockMap::new();
    let mut out = Cursor::new(Vec::new());
    let options = RawOptions { sparse, map: Some(&mut map) };
    export_raw(&source, &point(&source, Files::NEW), options, &mut out, &Silent).unwrap();
    let mut bytes = out.into_inner();
    bytes.resize(disk.len(), 0);
    let mut text = Vec::new();
    map.write(disk.len() as u64, &mut text).unwrap();
    (bytes, String::from_utf8(text).unwrap())
}

#[test]
fn a_raw_image_and_its_map_agree() {
    let mut disk = noise(1, 3_000_001);
    disk[8192..1_500_000].fill(0);
    disk[2_000_000..2_990_000].fill(0);
    disk[1_048_575] = 1;
    for sparse in [true, false] {
        let (bytes, map) = raw(&disk, sparse);
        assert!(bytes == disk);
        // Block 255 ends at 1 MiB; 366 and 729 hold the ends of the zeros.
        let ranges: Vec<&str> = map
            .lines()
            .filter_map(|line| line.trim().strip_suffix(" </Range>")?.split("> ").nth(1))
            .collect();
        assert_eq!(ranges, ["0-1", "255", "366-488", "729-732"], "{map}");
        assert!(map.contains("<MappedBlocksCount> 130 </MappedBlocksCount>"), "{map}");
        let sum = map.split("<BmapFileChecksum> ").nth(1).unwrap()[..64].to_owned();
        let blank = map.replace(&sum, &"0".repeat(64));
        let found: [u8; 32] = <sha2::Sha256 as sha2::Digest>::digest(blank.as_bytes()).into();
        assert_eq!(hex::encode(found), sum);
    }
}
