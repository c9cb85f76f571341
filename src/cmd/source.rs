//! What changelists and deltas are made of: two points of a volume, or two plain devices or files.

use super::common::{AcceptArgs, SnapName, VolArgs};
use super::{open, overlap};
use crate::block::ReadAt;
use crate::block::file::FileReader;
use crate::delta::ChangelistReader;
use crate::error::{Error, Kind, Result};
use crate::format::changelist::{self, Ending};
use crate::point::files::Files;
use crate::point::import::{self, Import, ImportOptions};
use crate::point::{Changes, Point, PointId, PointSource};
use crate::ui::Ui;
use crate::units::Tag;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufReader, Read};
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
        ui: &Ui,
    ) -> Result<Self> {
        let view = match with_data {
            true => open::view_with_origin(vol, ui)?,
            false => open::view(&vol.vol, &vol.old, ui)?,
        };
        let point = |name: &SnapName| {
            open::readable_point(view.as_ref(), &vol.vol, name, accept).map(|point| point.id)
        };
        let (from, to) = (from.map(point).transpose()?, point(to)?);
        view.hold(&from.into_iter().chain([to]).collect::<Vec<_>>())?;
        let info = view.info();
        let inputs = overlap::inputs(&info.store_path, &vol.old, open::origin_path(vol, &info));
        // Snapshots of 2008 can have been written to, and nothing shows it.
        let is_known = view.info().legacy.is_none();
        let is_fixed =
            is_known && from != Some(PointId::Origin) && to != PointId::Origin && !accept.accept_taint;
        Ok(Self { points: view, from, to, inputs, is_fixed })
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
        overlap::ensure_output_elsewhere(output, &self.inputs)
    }
}

/// A list of changes in a file: a changelist, or what another tool printed.
pub struct List {
    /// log2 of the chunk size in bytes.
    pub chunk_bits: u32,
    /// How the older and the newer point are known.
    pub tags: (Tag, Tag),
    changes: ListChanges,
}

enum ListChanges {
    Changelist(PathBuf),
    Imported(Box<Import>, PathBuf),
}

impl List {
    /// Opens the list at `path`, whatever it is.
    ///
    /// # Errors
    /// `Kind::Damaged` if it is none; `Kind::Usage` for a block size that is missing or not wanted; `Kind::Io`.
    pub fn open(path: &Path, block_size: Option<u64>) -> Result<Self> {
        let head = head(path).unwrap_or_default();
        if import::recognise(&head).is_some() {
            let file = File::open(path).map_err(|error| Error::io("cannot open", error).at_path(path))?;
            return Self::import(Box::new(file), path, block_size);
        }
        let header = *read_changelist(path)?.header();
        if block_size.is_some() {
            let what = "a changelist says itself how large its chunks are: --block-size is not for it";
            return Err(Error::new(Kind::Usage, what).at_path(path));
        }
        let changes = ListChanges::Changelist(path.to_path_buf());
        Ok(Self { chunk_bits: header.chunk_bits, tags: (header.source, header.target), changes })
    }

    /// Begins to read what another tool printed; `path` is for messages.
    ///
    /// # Errors
    /// As [`Import::open`].
    pub fn import(input: Box<dyn Read + Send>, path: &Path, block_size: Option<u64>) -> Result<Self> {
        let options = ImportOptions { block_size, chunk_bits: COMPARE_CHUNK_BITS };
        let import = Import::open(input, options).map_err(|error| error.at_path(path))?;
        let (chunk_bits, tags) = (import.chunk_bits(), import.tags());
        Ok(Self { chunk_bits, tags, changes: ListChanges::Imported(Box::new(import), path.to_path_buf()) })
    }

    /// The changes. The list must tell of the first `size_bytes` bytes, if it is of a kind that tells how far it
    /// goes.
    ///
    /// # Errors
    /// `Kind::Damaged` for a changelist that was cut short. What is wrong with another list shows as it is read.
    pub fn changes(self, size_bytes: u64) -> Result<Changes<'static>> {
        let (ranges, path): (Changes<'static>, _) = match self.changes {
            ListChanges::Imported(import, path) => (Box::new((*import).covering(size_bytes)), path),
            ListChanges::Changelist(path) => {
                let summary = read_changelist(&path)?.summarize().map_err(|error| error.at_path(&path))?;
                if summary.ending == Ending::Unmarked {
                    let what = "the changelist has no end marker: it was cut short";
                    return Err(Error::damaged(what).at_path(&path));
                }
                (Box::new(read_changelist(&path)?), path)
            }
        };
        Ok(Box::new(ranges.map(move |range| range.map_err(|error| error.at_path(&path)))))
    }
}

fn read_changelist(path: &Path) -> Result<ChangelistReader<BufReader<File>>> {
    let file = File::open(path).map_err(|error| Error::io("cannot open", error).at_path(path))?;
    ChangelistReader::open(BufReader::new(file)).map_err(|error| error.at_path(path))
}

/// The first bytes of a regular file.
fn head(path: &Path) -> Option<Vec<u8>> {
    let file = File::open(path).ok()?;
    file.metadata().ok()?.is_file().then_some(())?;
    let mut head = Vec::new();
    let limit = import::HEAD_BYTES as u64;
    file.take(limit).read_to_end(&mut head).ok()?;
    Some(head)
}

/// True if a list of changes lies at `path`, so that the command is meant in the shape of 2008.
#[must_use]
pub fn is_list(path: &Path) -> bool {
    // As in 2008, what follows the first zero byte of the magic does not count.
    head(path).is_some_and(|head| {
        head.len() >= 8 && head.starts_with(&changelist::MAGIC[..4]) || import::recognise(&head).is_some()
    })
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
