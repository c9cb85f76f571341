//! Where a volume changed: changed bytes counted in cells of equal size, ready to be drawn.
//!
//! Stands on [`PointSource`] alone. What is kept in memory is cells, never chunks, so a volume of any size and any
//! number of changes will do; it draws nothing.

use crate::error::{Error, Kind, Result};
use crate::point::{ChunkRange, Point, PointId, PointSource};
use crate::progress::Progress;

/// How a volume is cut into cells of equal size; the last one may be shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale {
    size_bytes: u64,
    chunk_bits: u32,
    cell_chunks: u64,
}

impl Scale {
    /// Cuts `size_bytes` bytes, in chunks of 2^`chunk_bits` bytes (below 64), into at most `cells` cells.
    #[must_use]
    pub fn new(size_bytes: u64, chunk_bits: u32, cells: u64) -> Self {
        let chunks = chunks_of(size_bytes, chunk_bits);
        Self { size_bytes, chunk_bits, cell_chunks: chunks.div_ceil(cells.max(1)).max(1) }
    }

    /// As [`Scale::new`], with cells of a power of two of chunks, so that rows of a power of two of cells begin at
    /// round offsets.
    #[must_use]
    pub fn round(size_bytes: u64, chunk_bits: u32, cells: u64) -> Self {
        let mut scale = Self::new(size_bytes, chunk_bits, cells);
        scale.cell_chunks = scale.cell_chunks.checked_next_power_of_two().unwrap_or(1 << 63);
        scale
    }

    /// Bytes that all cells together stand for.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Bytes in a chunk.
    #[must_use]
    pub fn chunk_bytes(&self) -> u64 {
        1 << self.chunk_bits
    }

    /// Bytes in a cell that is not the last one.
    #[must_use]
    pub fn cell_bytes(&self) -> u64 {
        self.cell_chunks.saturating_mul(1 << self.chunk_bits)
    }

    /// Number of cells.
    #[must_use]
    pub fn cells(&self) -> u64 {
        chunks_of(self.size_bytes, self.chunk_bits).div_ceil(self.cell_chunks)
    }

    /// Bytes of the volume in `cell`; 0 past the end.
    #[must_use]
    pub fn bytes_in(&self, cell: u64) -> u64 {
        self.size_bytes.saturating_sub(cell.saturating_mul(self.cell_bytes())).min(self.cell_bytes())
    }

    /// Adds the bytes of `range` to the cells that it lies in. What lies past the end is not counted.
    fn add(&self, range: ChunkRange, cells: &mut [u64]) {
        let end = range.end.min(chunks_of(self.size_bytes, self.chunk_bits));
        let mut chunk = range.start;
        while chunk < end {
            let cell = chunk / self.cell_chunks;
            let stop = end.min((cell + 1).saturating_mul(self.cell_chunks));
            let byte = |chunk: u64| chunk.saturating_mul(self.chunk_bytes()).min(self.size_bytes);
            let slot = usize::try_from(cell).ok().and_then(|cell| cells.get_mut(cell));
            if let Some(slot) = slot {
                *slot = slot.saturating_add(byte(stop) - byte(chunk));
            }
            chunk = stop;
        }
    }
}

fn chunks_of(bytes: u64, chunk_bits: u32) -> u64 {
    bytes.div_ceil(1 << chunk_bits)
}

/// What differs between two points, cell by cell.
#[derive(Debug, Clone)]
pub struct Row {
    /// The older point.
    pub from: Point,
    /// The newer point.
    pub to: Point,
    /// Bytes that may differ in each cell.
    pub cells: Vec<u64>,
}

impl Row {
    /// Bytes that may differ.
    #[must_use]
    pub fn changed_bytes(&self) -> u64 {
        self.cells.iter().fold(0, |sum, cell| sum.saturating_add(*cell))
    }
}

/// Rows over the same cells.
#[derive(Debug, Clone)]
pub struct Map {
    /// What the cells are.
    pub scale: Scale,
    /// Oldest first.
    pub rows: Vec<Row>,
    /// Older intervals that have no row but count in `churn`.
    pub left_out: u64,
    /// For each cell the changed bytes of all intervals, those without a row too.
    pub churn: Vec<u64>,
}

impl Map {
    /// The same with rows for the newest `rows` intervals only.
    #[must_use]
    pub fn newest(mut self, rows: usize) -> Self {
        let older = self.rows.len().saturating_sub(rows);
        self.rows.drain(..older);
        self.left_out += older as u64;
        self
    }

    /// Intervals that `churn` counts.
    #[must_use]
    pub fn intervals(&self) -> u64 {
        self.left_out + self.rows.len() as u64
    }
}

/// What changed in every interval between neighbouring points of `source`, in at most `cells` cells a row. Takes time
/// in proportion to what changed, and memory for `cells` numbers an interval.
///
/// # Errors
/// What the source says; `Kind::Interrupted`.
pub fn history(source: &dyn PointSource, cells: u64, progress: &dyn Progress) -> Result<Map> {
    let points = source.points();
    let size = points.iter().map(|point| point.size_bytes).max().unwrap_or(0);
    let scale = Scale::new(size, source.chunk_bits(), cells);
    let mut map = Map { scale, rows: Vec::new(), left_out: 0, churn: no_cells(&scale) };
    for pair in points.windows(2) {
        let [from, to] = pair else { continue };
        let row = row(source, scale, from, to, progress)?;
        for (sum, cell) in map.churn.iter_mut().zip(&row.cells) {
            *sum = sum.saturating_add(*cell);
        }
        map.rows.push(row);
    }
    Ok(map)
}

/// What differs between two points, in at most `cells` cells of a round size. Rows and cells are those of one row.
///
/// # Errors
/// As [`history`]; `Kind::NotFound` if the source has no such point.
pub fn difference(
    source: &dyn PointSource,
    (from, to): (PointId, PointId),
    cells: u64,
    progress: &dyn Progress,
) -> Result<Map> {
    let points = source.points();
    let find = |id: PointId| {
        let found = points.iter().find(|point| point.id == id);
        found.ok_or_else(|| Error::new(Kind::NotFound, "there is no such point"))
    };
    let (from, to) = (find(from)?, find(to)?);
    let scale = Scale::round(from.size_bytes.max(to.size_bytes), source.chunk_bits(), cells);
    let row = row(source, scale, from, to, progress)?;
    Ok(Map { scale, churn: row.cells.clone(), rows: vec![row], left_out: 0 })
}

fn no_cells(scale: &Scale) -> Vec<u64> {
    vec![0; usize::try_from(scale.cells()).unwrap_or(0)]
}

fn row(
    source: &dyn PointSource,
    scale: Scale,
    from: &Point,
    to: &Point,
    progress: &dyn Progress,
) -> Result<Row> {
    let mut cells = no_cells(&scale);
    for range in source.changed(Some(from.id), to.id)? {
        progress.check()?;
        scale.add(range?, &mut cells);
    }
    // A source lists what lies inside the newer point; the tail that only the older one had is gone, which differs.
    let chunks = |point: &Point| chunks_of(point.size_bytes, source.chunk_bits());
    scale.add(ChunkRange { start: chunks(to), end: chunks(from) }, &mut cells);
    Ok(Row { from: from.clone(), to: to.clone(), cells })
}

#[cfg(test)]
mod tests;
