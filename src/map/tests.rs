//! Counting in cells, over a source that exists only in words.

use super::*;
use crate::point::{Changes, Identity};
use crate::progress::Silent;
use crate::units::{Epoch, Tag, Uuid};

/// Points of given sizes, and the ranges of chunks that differ between each and the next.
struct Words {
    sizes: Vec<u64>,
    changes: Vec<Vec<(u64, u64)>>,
    chunk_bits: u32,
}

fn id(number: usize) -> PointId {
    PointId::Snapshot(Epoch(number as u64))
}

impl PointSource for Words {
    fn chunk_bits(&self) -> u32 {
        self.chunk_bits
    }

    fn points(&self) -> Vec<Point> {
        let point = |(number, size_bytes): (usize, &u64)| Point {
            id: id(number),
            tag: Tag(u32::try_from(number).unwrap()),
            name: None,
            size_bytes: *size_bytes,
            created_secs: 0,
            identity: Identity { volume: Uuid([0; 16]), id: number as u64, generation: 0 },
        };
        self.sizes.iter().enumerate().map(point).collect()
    }

    fn changed(&self, from: Option<PointId>, _to: PointId) -> Result<Changes<'_>> {
        let at = (0..self.sizes.len()).position(|number| Some(id(number)) == from).unwrap();
        Ok(Box::new(self.changes[at].iter().map(|(start, end)| Ok(ChunkRange { start: *start, end: *end }))))
    }

    fn read(&self, _: PointId, _: u64, _: &mut [u8]) -> Result<()> {
        Err(Error::new(Kind::NotFound, "nobody should read"))
    }

    fn known_crc(&self, _: PointId, _: u64) -> Result<Option<u32>> {
        Ok(None)
    }
}

#[test]
fn every_byte_lies_in_exactly_one_cell() {
    for size in [0, 1, 4095, 4096, 4097, 100_000, 1 << 20, (1 << 46) - 1, 1 << 46, u64::MAX] {
        for cells in [0, 1, 2, 7, 64, 1000] {
            for scale in [Scale::new(size, 12, cells), Scale::round(size, 12, cells)] {
                assert!(scale.cells() <= cells.max(1), "{scale:?}");
                let sum: u128 = (0..scale.cells()).map(|cell| u128::from(scale.bytes_in(cell))).sum();
                assert_eq!(sum, u128::from(size), "{scale:?}");
                assert!(size == 0 || scale.bytes_in(scale.cells() - 1) > 0, "{scale:?}");
            }
        }
    }
    assert_eq!(Scale::round(1 << 46, 14, 1000).cell_bytes(), 1 << 37);
}

#[test]
fn ranges_are_cut_where_cells_end_and_counted_in_bytes() {
    // 10 chunks of 4 KiB but for the last 96 bytes, in 4 cells of 3 chunks.
    let source = Words { sizes: vec![40_864; 2], changes: vec![vec![(1, 4), (9, 10)]], chunk_bits: 12 };
    let map = history(&source, 4, &Silent).unwrap();
    assert_eq!(map.scale.cell_bytes(), 3 * 4096);
    assert_eq!(map.rows[0].cells, [2 * 4096, 4096, 0, 4000]);
    assert_eq!(map.rows[0].changed_bytes(), 3 * 4096 + 4000);
}

#[test]
fn the_newest_intervals_have_rows_and_all_of_them_count() {
    let changes = vec![vec![(0, 1)], vec![(0, 2)], vec![], vec![(1, 2)]];
    let source = Words { sizes: vec![8192; 5], changes, chunk_bits: 12 };
    let map = history(&source, 2, &Silent).unwrap().newest(2);
    assert_eq!((map.rows.len(), map.left_out, map.intervals()), (2, 2, 4));
    assert_eq!(map.rows.iter().map(|row| row.to.tag.0).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(map.churn, [2 * 4096, 2 * 4096]);
}

#[test]
fn what_only_one_point_has_differs_whichever_is_the_newer() {
    for sizes in [vec![8192, 20_000], vec![20_000, 8192]] {
        // The source lists what lies inside the newer point.
        let listed = if sizes[1] > sizes[0] { vec![(2, 5)] } else { vec![] };
        let source = Words { sizes, changes: vec![listed], chunk_bits: 12 };
        let map = difference(&source, (id(0), id(1)), 8, &Silent).unwrap();
        assert_eq!(map.rows[0].changed_bytes(), 20_000 - 8192);
    }
}

#[test]
fn a_source_without_two_points_has_no_rows() {
    for count in 0..2 {
        let source = Words { sizes: vec![4096; count], changes: vec![], chunk_bits: 12 };
        let map = history(&source, 10, &Silent).unwrap();
        assert!(map.rows.is_empty() && map.intervals() == 0);
    }
}

#[test]
fn a_volume_of_64_tib_needs_cells_only() {
    let chunks = 1u64 << (46 - 12);
    let changes = vec![vec![(0, chunks)], (0..100_000).map(|n| (n * 171_000, n * 171_000 + 1)).collect()];
    let source = Words { sizes: vec![1 << 46; 3], changes, chunk_bits: 12 };
    let map = history(&source, 100, &Silent).unwrap();
    assert_eq!(map.rows[0].changed_bytes(), 1 << 46);
    assert_eq!(map.rows[1].changed_bytes(), 100_000 * 4096);
    assert_eq!(map.churn.len(), 100);
}

#[test]
fn numbers_of_a_hostile_source_do_not_overflow() {
    let changes = vec![vec![(u64::MAX - 1, u64::MAX), (0, u64::MAX)]];
    let source = Words { sizes: vec![u64::MAX; 2], changes, chunk_bits: 20 };
    let map = history(&source, 3, &Silent).unwrap();
    assert_eq!(map.rows[0].cells.len(), 3);
}
