//! A QCOW2 image, written from front to back; only the header comes last.

use super::raw::{cannot_write, is_zero, write_runs};
use super::read::each_span;
use super::spans::Spans;
use crate::error::{Error, Kind, Result};
use crate::format::qcow2::{Backing, Geometry, ZERO_ENTRY, table};
use crate::point::{Point, PointSource};
use crate::progress::Progress;
use std::io::{Seek, SeekFrom, Write};

/// How to write a QCOW2 image.
pub struct Qcow2Options<'a> {
    /// log2 of the cluster size in bytes.
    pub cluster_bits: u32,
    /// Write only what differs from an older image.
    pub overlay: Option<Overlay<'a>>,
}

/// What an overlay lies over.
pub struct Overlay<'a> {
    /// The point that the image below holds.
    pub from: &'a Point,
    /// How the image names the one below.
    pub backing: Backing,
}

/// What an image came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Qcow2Summary {
    /// Size of the virtual disk: that of the point, rounded up to whole sectors.
    pub disk_bytes: u64,
    /// Clusters that hold data.
    pub data_clusters: u64,
    /// Clusters marked to read as zeros.
    pub zero_clusters: u64,
    /// Length of the file.
    pub file_bytes: u64,
}

/// Writes `point` as a QCOW2 image: what is zero is left out, or, over another image, marked as zero.
///
/// `out` must be empty and able to seek, and what is skipped must read as zeros.
///
/// # Errors
/// `Kind::Usage` if the clusters are too small for the volume; of the source and of `out`; `Kind::Interrupted`.
pub fn export_qcow2<W: Write + Seek>(
    source: &dyn PointSource,
    point: &Point,
    options: &Qcow2Options<'_>,
    out: &mut W,
    progress: &dyn Progress,
) -> Result<Qcow2Summary> {
    let geometry = Geometry::new(options.cluster_bits, point.size_bytes)?;
    let overlay = options.overlay.as_ref();
    let from = overlay.map(|overlay| overlay.from);
    let changes = source.changed(from.map(|from| from.id), point.id)?;
    let size = point.size_bytes;
    // What lies past the end of the smaller of both reads as zeros on one side. The cluster that holds this end is
    // written even where nothing changed, for what is below may go on inside the last sector.
    let tail = from
        .filter(|from| from.size_bytes != size)
        .map_or(size, |from| from.size_bytes.min(size.saturating_sub(1)));
    let spans = Spans::new(changes, source.chunk_bits(), geometry.cluster_bytes(), size, tail);
    progress.stage("exporting", from.is_none().then_some(size));
    let below = from.map_or(0, |from| from.size_bytes);
    let mut image = Image::begin(geometry, below, out)?;
    each_span(source, point.id, spans, progress, |offset, bytes| image.put(offset, bytes))?;
    image.finish(overlay.map(|overlay| &overlay.backing))
}

/// An image being written.
struct Image<'a, W> {
    geometry: Geometry,
    /// Where what is below ends: no zeros need marking from there on.
    below: u64,
    out: &'a mut W,
    /// First host cluster that is free.
    next: u64,
    l1: Vec<u64>,
    /// The L2 table of the region that is being written, and which one that is.
    l2: Vec<u64>,
    region: u64,
    summary: Qcow2Summary,
}

impl<'a, W: Write + Seek> Image<'a, W> {
    fn begin(geometry: Geometry, below: u64, out: &'a mut W) -> Result<Self> {
        out.seek(SeekFrom::Start(geometry.offset(1))).map_err(cannot_seek)?;
        let entries = to_usize(geometry.l1_entries());
        Ok(Self {
            geometry,
            below,
            out,
            next: 1,
            l1: vec![0; entries],
            l2: vec![0; to_usize(geometry.l2_entries())],
            region: 0,
            summary: Qcow2Summary {
                disk_bytes: geometry.size_bytes,
                data_clusters: 0,
                zero_clusters: 0,
                file_bytes: 0,
            },
        })
    }

    /// Takes the bytes of whole clusters (the last may be cut short) from byte `offset` on.
    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let cluster_bytes = self.geometry.cluster_bytes();
        let mut cluster = offset / cluster_bytes;
        for bytes in bytes.chunks(to_usize(cluster_bytes)) {
            if !is_zero(bytes) {
                let host = self.data(bytes)?;
                self.set(cluster, self.geometry.entry(host))?;
                self.summary.data_clusters = self.summary.data_clusters.saturating_add(1);
            } else if self.geometry.offset(cluster) < self.below {
                self.set(cluster, ZERO_ENTRY)?;
                self.summary.zero_clusters = self.summary.zero_clusters.saturating_add(1);
            }
            cluster = cluster.saturating_add(1);
        }
        Ok(())
    }

    /// Writes one cluster of data and returns where.
    fn data(&mut self, bytes: &[u8]) -> Result<u64> {
        let missing = self.geometry.cluster_bytes().saturating_sub(bytes.len() as u64);
        write_runs(self.out, bytes, true, |_| Ok(()))?;
        let by = i64::try_from(missing).unwrap_or(0);
        if by > 0 {
            self.out.seek(SeekFrom::Current(by)).map_err(cannot_seek)?;
        }
        Ok(self.take(1))
    }

    fn take(&mut self, clusters: u64) -> u64 {
        let first = self.next;
        self.next = self.next.saturating_add(clusters);
        first
    }

    fn set(&mut self, cluster: u64, entry: u64) -> Result<()> {
        let (region, index) = self.geometry.place(cluster);
        if region != self.region {
            self.end_region()?;
            self.region = region;
        }
        match self.l2.get_mut(to_usize(index)) {
            Some(place) => *place = entry,
            None => return Err(Error::new(Kind::Io, format!("cluster {cluster} has no place in its table"))),
        }
        Ok(())
    }

    /// Writes the table of the region, unless nothing in it is allocated.
    fn end_region(&mut self) -> Result<()> {
        if self.l2.iter().all(|entry| *entry == 0) {
            return Ok(());
        }
        let bytes = table(self.l2.iter().copied(), self.geometry.cluster_bytes());
        self.out.write_all(&bytes).map_err(cannot_write)?;
        let host = self.take(1);
        let entry = self.geometry.entry(host);
        match self.l1.get_mut(to_usize(self.region)) {
            Some(place) => *place = entry,
            None => {
                return Err(Error::new(
                    Kind::Io,
                    format!("region {} has no place in its table", self.region),
                ));
            }
        }
        self.l2.fill(0);
        Ok(())
    }

    fn finish(mut self, backing: Option<&Backing>) -> Result<Qcow2Summary> {
        self.end_region()?;
        let geometry = self.geometry;
        let l1_clusters = geometry.clusters_of(geometry.l1_entries().saturating_mul(8));
        let l1 = table(self.l1.iter().copied(), geometry.offset(l1_clusters));
        self.out.write_all(&l1).map_err(cannot_write)?;
        let l1_offset = geometry.offset(self.take(l1_clusters));
        let refcounts = geometry.refcounts(self.next)?;
        for block in 0..refcounts.blocks {
            self.out.write_all(&refcounts.block(&geometry, block)).map_err(cannot_write)?;
        }
        self.out.write_all(&refcounts.table(&geometry)).map_err(cannot_write)?;
        let header = geometry.header(l1_offset, &refcounts, backing)?;
        self.out.seek(SeekFrom::Start(0)).map_err(cannot_seek)?;
        self.out.write_all(&header).map_err(cannot_write)?;
        self.summary.file_bytes = geometry.offset(refcounts.total);
        Ok(self.summary)
    }
}

fn cannot_seek(error: std::io::Error) -> Error {
    Error::io("cannot seek", error)
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
