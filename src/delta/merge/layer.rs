//! One delta over the merge of those before it.

use super::piece::Piece;
use crate::delta::read::{Pieces, ReadExtent, Reader};
use crate::error::Result;
use crate::format::delta::Geometry;
use std::collections::VecDeque;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

type Bytes = Box<dyn Read + Send>;

/// Pieces in ascending order, disjoint. The last `None` means that every delta below was sound to its end.
pub(super) trait Stream: Send {
    fn next_piece(&mut self) -> Result<Option<Piece>>;
}

/// The first delta of a chain.
pub(super) struct First {
    reader: Reader<Bytes>,
    geometry: Geometry,
    path: Arc<PathBuf>,
}

impl First {
    pub(super) fn new(path: PathBuf, reader: Reader<Bytes>) -> Self {
        Self { geometry: reader.header().geometry(), reader, path: Arc::new(path) }
    }
}

impl Stream for First {
    fn next_piece(&mut self) -> Result<Option<Piece>> {
        let extent = self.reader.next_extent().map_err(|error| error.at_path(&self.path))?;
        let piece = |extent| Piece::new(extent, self.geometry, Arc::clone(&self.path), Vec::new());
        extent.map(piece).transpose()
    }
}

/// A later delta and all before it.
pub(super) struct Layer {
    below: Box<dyn Stream>,
    /// What was taken from below and not yet handed on: at most one piece, or none once below has ended.
    held: VecDeque<Piece>,
    upper: Pieces<Bytes>,
    next: Option<ReadExtent>,
    geometry: Geometry,
    path: Arc<PathBuf>,
}

impl Layer {
    pub(super) fn new(below: Box<dyn Stream>, path: PathBuf, reader: Reader<Bytes>) -> Self {
        let geometry = reader.header().geometry();
        let (held, upper) = (VecDeque::new(), Pieces::new(reader));
        Self { below, held, upper, next: None, geometry, path: Arc::new(path) }
    }

    /// The next piece from below.
    fn front(&mut self) -> Result<Option<Piece>> {
        match self.held.pop_front() {
            Some(piece) => Ok(Some(piece)),
            None => self.below.next_piece(),
        }
    }

    /// Lays an extent over what is below it.
    fn cover(&mut self, extent: ReadExtent) -> Result<Piece> {
        let end = extent.head.chunk.saturating_add(u64::from(extent.head.chunks));
        let mut covered = Vec::new();
        while let Some(piece) = self.front()? {
            if piece.chunk >= end {
                self.held.push_front(piece);
                break;
            }
            let (inside, rest) = piece.split(end);
            covered.push(inside);
            if rest.chunks > 0 {
                self.held.push_front(rest);
                break;
            }
        }
        Piece::new(extent, self.geometry, Arc::clone(&self.path), covered)
            .map_err(|error| error.at_path(&self.path))
    }
}

impl Stream for Layer {
    fn next_piece(&mut self) -> Result<Option<Piece>> {
        let target_end = self.geometry.target_chunks();
        loop {
            if self.next.is_none() {
                self.next = self.upper.next_piece().map_err(|error| error.at_path(&self.path))?;
            }
            let limit = self.next.as_ref().map(|extent| extent.head.chunk);
            match self.front()? {
                Some(piece) if limit.is_none_or(|limit| piece.chunk < limit) => {
                    // What this delta cuts off is read all the same, for below must prove sound to its end.
                    let (inside, rest) = piece.split(limit.unwrap_or(target_end).min(target_end));
                    if rest.chunks > 0 && rest.chunk < target_end {
                        self.held.push_front(rest);
                    }
                    if inside.chunks > 0 {
                        return Ok(Some(inside));
                    }
                }
                piece => {
                    self.held.extend(piece);
                    return self.next.take().map(|extent| self.cover(extent)).transpose();
                }
            }
        }
    }
}
