//! What a delta makes of its base, read at any place: nothing is written, nothing is unpacked beforehand.

use super::buffer::Buffer;
use super::decode::Decoder;
use super::load::to_usize;
use super::read::{ReadExtent, Reader};
use crate::block::ReadAt;
use crate::error::{Error, Kind, Result};
use crate::format::delta::{End, ExtentKind, Geometry, Header};
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of the delta that are read at a time while it is checked.
const PIECE: usize = 1 << 20;

/// The target of a delta.
pub struct Patched {
    delta: Arc<dyn ReadAt>,
    base: Option<Arc<dyn ReadAt>>,
    header: Header,
    geometry: Geometry,
    /// Ascending.
    places: Vec<Place>,
    recent: Mutex<Recent>,
}

/// Where an extent is: its chunks, and its byte in the delta.
struct Place {
    first: u64,
    end: u64,
    offset: u64,
}

/// The extent that was decoded last, by its number: reads mostly go on where one has ended.
struct Recent {
    decoder: Decoder,
    extent: Option<(usize, Buffer)>,
}

impl Patched {
    /// Reads `delta` to its end, which proves it whole, and keeps where everything is: some bytes for each extent.
    /// `base` is what it applies to.
    ///
    /// # Errors
    /// `Kind::Mismatch` for a base of another size; `Kind::Usage` without a base that is needed; `Kind::Unsupported`
    /// for a delta of 2008; as [`Reader::next_extent`].
    pub fn open(delta: Arc<dyn ReadAt>, base: Option<Arc<dyn ReadAt>>) -> Result<Self> {
        let input = BufReader::with_capacity(PIECE, From { device: delta.as_ref(), offset: 0 });
        let open = || {
            let mut reader = Reader::open(input)?;
            let mut places = Vec::new();
            while let Some(extent) = reader.next_extent()? {
                let end = extent.head.chunk.saturating_add(u64::from(extent.head.chunks));
                places.push(Place { first: extent.head.chunk, end, offset: extent.offset_bytes });
            }
            Ok((reader.header().clone(), reader.geometry, places))
        };
        let (header, geometry, places) = open().map_err(|error: Error| error.at_path(delta.path()))?;
        match (&base, geometry.source_size) {
            (None, Some(_)) => {
                return Err(Error::new(
                    Kind::Usage,
                    "the delta holds what has changed only: it needs its base",
                ));
            }
            (Some(base), Some(size)) if base.size() != size => {
                let what = format!("it has {} bytes, the base of the delta has {size}", base.size());
                return Err(Error::new(Kind::Mismatch, what).at_path(base.path()));
            }
            _ => {}
        }
        let recent = Mutex::new(Recent { decoder: Decoder::new(geometry)?, extent: None });
        Ok(Self { delta, base, header, geometry, places, recent })
    }

    /// Bytes `from..` of the base; zeroes where it has none.
    fn read_base(&self, buf: &mut [u8], from: u64) -> Result<()> {
        let size = self.base.as_ref().map_or(0, |base| base.size());
        let have = to_usize(size.saturating_sub(from).min(buf.len() as u64));
        let (there, beyond) = buf.split_at_mut(have);
        beyond.fill(0);
        match &self.base {
            Some(base) if !there.is_empty() => base.read_at(there, from),
            _ => Ok(()),
        }
    }

    fn extent(&self, place: &Place) -> Result<ReadExtent> {
        let input = From { device: self.delta.as_ref(), offset: place.offset };
        let mut reader = Reader {
            input,
            header: self.header.clone(),
            geometry: self.geometry,
            hasher: blake3::Hasher::new(),
            offset: place.offset,
            next_chunk: place.first,
            counted: End::default(),
            end: None,
            // It was read whole; what an extent decodes to has sums of its own.
            known: Some([0; 32]),
            legacy: None,
        };
        let extent = reader.next_extent()?;
        extent.ok_or_else(|| {
            Error::damaged("the delta has changed since it was opened").at_offset(place.offset)
        })
    }

    /// Fills `buf` with what extent `number` makes of it, from byte `skip` of the extent.
    fn read_extent(&self, number: usize, place: &Place, skip: usize, buf: &mut [u8]) -> Result<()> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.extent.as_ref().is_none_or(|(known, _)| *known != number) {
            let extent = self.extent(place)?;
            // Its length is bounded by the volume only.
            if extent.head.kind == ExtentKind::Zero {
                buf.fill(0);
                return Ok(());
            }
            let offset = recent.decoder.offset(&extent);
            let mut base = Buffer::unwritten(recent.decoder.base_len(&extent));
            self.read_base(&mut base, offset)?;
            if let Some(wrong) =
                recent.decoder.base_matches(&extent, &base).iter().position(|matches| !matches)
            {
                let chunk = extent.head.chunk.saturating_add(wrong as u64);
                let what = format!("chunk {chunk} of the base is not what the delta was made from");
                return Err(Error::new(Kind::Mismatch, what).at_offset(self.geometry.offset(chunk)));
            }
            recent.extent = None;
            recent.extent = Some((number, recent.decoder.decode(&extent, &base)?));
        }
        let data = recent.extent.as_ref().map(|(_, data)| data.as_ref()).unwrap_or_default();
        let end = skip.saturating_add(buf.len());
        let data: &[u8] = data;
        let found =
            data.get(skip..end).ok_or_else(|| Error::damaged("an extent of the delta is too short"))?;
        buf.copy_from_slice(found);
        Ok(())
    }
}

impl ReadAt for Patched {
    fn size(&self) -> u64 {
        self.geometry.target_size
    }

    fn path(&self) -> &Path {
        self.delta.path()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let end =
            offset.checked_add(buf.len() as u64).filter(|end| *end <= self.size()).ok_or_else(|| {
                let what = format!("{} bytes at {offset} end past its {} bytes", buf.len(), self.size());
                Error::damaged(what).at_path(self.path())
            })?;
        let bytes = |place: &Place| {
            let chunks = place.end.saturating_sub(place.first);
            let first = self.geometry.offset(place.first);
            first..first.saturating_add(self.geometry.result_bytes(place.first, chunks))
        };
        let mut at = offset;
        let mut number = self.places.partition_point(|place| bytes(place).end <= offset);
        while at < end {
            let next = self.places.get(number);
            let range = next.map_or(end..end, bytes);
            let stop = if at < range.start { range.start.min(end) } else { range.end.min(end) };
            let piece = buf.get_mut(to_usize(at - offset)..to_usize(stop - offset)).unwrap_or_default();
            match next {
                Some(place) if at >= range.start => {
                    let skip = to_usize(at - range.start);
                    self.read_extent(number, place, skip, piece)
                        .map_err(|error| error.at_path(self.path()))?;
                    number += 1;
                }
                _ => self.read_base(piece, at)?,
            }
            at = stop;
        }
        Ok(())
    }
}

/// A device as a stream, from some byte on.
struct From<'a> {
    device: &'a dyn ReadAt,
    offset: u64,
}

impl Read for From<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let length = to_usize(self.device.size().saturating_sub(self.offset).min(buf.len() as u64));
        let buf = buf.get_mut(..length).unwrap_or_default();
        self.device.read_at(buf, self.offset).map_err(std::io::Error::other)?;
        self.offset = self.offset.saturating_add(length as u64);
        Ok(length)
    }
}
