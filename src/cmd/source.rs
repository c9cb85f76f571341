//! What changelists and deltas are made of: two points of a volume, or two plain devices or files.

use super::common::{AcceptArgs, SnapName, VolArgs};
use super::open;
use crate::block::ReadAt;
use crate::block::file::FileReader;
use crate::error::{Error, Kind, Result};
use crate::format::changelist;
use crate::point::files::Files;
use crate::point::{Point, PointId, PointSource};
use crate::units::Tag;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Chunks of this size when plain files are compared.
pub const COMPARE_CHUNK_BITS: u32 = 14;

/// A source, which two of its points are meant, and the paths that a result must not overwrite.
pub struct Source {
    points: Box<dyn PointSource>,
    /// The older point; `None` for a whole volume.
    pub from: Option<PointId>,
    /// The newer point.
    pub to: PointId,
    inputs: Vec<PathBuf>,
    is_fixed: bool,
}

impl Source {
    /// Two points of a volume. The origin is opened only if `with_data`.
    ///
    /// # Errors
    /// What opening says; `Kind::NotFound`, `Kind::Refused` for the points.
    pub fn volume(
        vol: &VolArgs,
        from: Option<&SnapName>,
        to: &SnapName,
        accept: &AcceptArgs,
        with_data: bool,
    ) -> Result<Self> {
        let view = if with_data { open::view_with_origin(vol)? } else { open::view(&vol.vol)? };
        let point =
            |name: &SnapName| open::readable_point(&view, &vol.vol, name, accept).map(|point| point.id);
        let (from, to) = (from.map(point).transpose()?, point(to)?);
        let inputs = vec![vol.vol.clone(), open::origin_path(vol, &view.info())];
        let is_fixed = from != Some(PointId::Origin) && to != PointId::Origin && !accept.accept_taint;
        Ok(Self { points: Box::new(view), from, to, inputs, is_fixed })
    }

    /// Two plain devices or files, with the tags that they shall be known by. With `with_data`, what differs
    /// will be read after it was compared.
    ///
    /// # Errors
    /// What opening says.
    pub fn files(old: (&Path, Tag), new: (&Path, Tag), chunk_bits: u32, with_data: bool) -> Result<Self> {
        let open = |(path, tag): (&Path, Tag)| {
            let file: Arc<dyn ReadAt> = Arc::new(FileReader::open_origin_read(path)?);
            Ok::<_, Error>((file, tag))
        };
        let files = Files::new(Some(open(old)?), open(new)?, chunk_bits)?;
        let files = if with_data { files } else { files.read_once() };
        let inputs = vec![old.0.to_path_buf(), new.0.to_path_buf()];
        let (from, to) = (Some(Files::OLD), Files::NEW);
        Ok(Self { points: Box::new(files), from, to, inputs, is_fixed: false })
    }

    /// Where the points can be read.
    #[must_use]
    pub fn points(&self) -> &dyn PointSource {
        &*self.points
    }

    /// True if the points cannot have changed as long as they have the same identities: sound snapshots of a store.
    #[must_use]
    pub fn is_fixed(&self) -> bool {
        self.is_fixed
    }

    /// What is known of a point of this source.
    ///
    /// # Errors
    /// `Kind::NotFound`.
    pub fn point(&self, id: PointId) -> Result<Point> {
        let mut points = self.points.points().into_iter();
        points.find(|point| point.id == id).ok_or_else(|| Error::new(Kind::NotFound, "no such point"))
    }

    /// Refuses to write the result over what it is made of.
    ///
    /// # Errors
    /// `Kind::Usage`.
    pub fn ensure_output_elsewhere(&self, output: &Path) -> Result<()> {
        let inputs: Vec<&Path> = self.inputs.iter().map(PathBuf::as_path).collect();
        open::ensure_output_elsewhere(output, &inputs)
    }
}

/// True if a changelist file lies at `path`, so that the command is meant in the shape of 2008.
#[must_use]
pub fn is_changelist(path: &Path) -> bool {
    let mut magic = [0; 8];
    let read = std::fs::File::open(path).and_then(|file| {
        if !file.metadata()?.is_file() {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut magic, 0)
    });
    // As in 2008, what follows the first zero byte does not count.
    read.is_ok() && magic[..4] == changelist::MAGIC[..4]
}

/// Reads an operand that names a point.
///
/// # Errors
/// `Kind::Usage`.
pub fn snap_name(operand: &OsStr) -> Result<SnapName> {
    let text = operand.to_string_lossy();
    text.parse().map_err(|what: String| Error::new(Kind::Usage, what))
}

/// A wrong number of operands.
#[must_use]
pub fn wrong_operands(expected: &str, found: &[OsString]) -> Error {
    let found = found.iter().map(|operand| operand.to_string_lossy()).collect::<Vec<_>>().join(" ");
    Error::new(Kind::Usage, format!("the operands are '{found}', expected {expected}"))
}
