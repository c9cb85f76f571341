//! `initialize`: a new, empty snapshot store for an origin.

use super::common::parse_size;
use super::{open, overlap};
use crate::block::file::{FileReader, FileWriter};
use crate::block::signature::probe_signature;
use crate::block::{ReadAt, WriteAt};
use crate::error::{Error, Kind, Result};
use crate::format::{checkpoint, record};
use crate::legacy;
use crate::store::{InitOptions, Writer};
use crate::ui::exit::Exit;
use crate::ui::{Ui, time};
use crate::units::index;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const CHUNK_DEFAULT: u32 = 16 << 10;
pub(super) const BLOCK_DEFAULT: u32 = 4 << 10;

const EXAMPLES: &str = "Examples:
  ddsnap initialize --size 64M new.snap data.img
  ddsnap initialize -y -c 64k data.snap data.img
  ddsnap initialize --dry-run data.snap data.img";

/// Make a snapshot store for an origin
///
/// The store is a block device or a file that exists (or is made by --size); all of it will be used. It
/// must have room for what changes on the origin while snapshots are kept. The origin's data is not touched.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Overwrite a store or a file system without asking
    #[arg(short, long)]
    yes: bool,
    /// Chunk size, the unit of copying: a power of two from 4k to 1M [default: 16k]
    #[arg(short, long = "chunk-size", value_name = "CHUNK", value_parser = parse_size)]
    chunk: Option<u64>,
    /// Metadata block size: a power of two from 4k to 64k [default: 4k]
    #[arg(short, long = "block-size", value_name = "BLOCK", value_parser = parse_size)]
    block: Option<u64>,
    /// Journal size; no longer means anything
    #[arg(short, long = "journal-size", value_name = "JOURNAL", value_parser = parse_size)]
    journal: Option<u64>,
    /// Make STORE as a new sparse file of this size
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,
    /// Only print what would be overwritten, and why; the exit status is as without it
    #[arg(long)]
    dry_run: bool,
    /// The snapshot store to make
    #[arg(value_name = "STORE")]
    store: PathBuf,
    /// The block device or file whose past is to be kept
    #[arg(value_name = "ORIGIN")]
    origin: PathBuf,
    /// Metadata device of 2008; new stores have none
    #[arg(value_name = "META")]
    meta: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// `Kind::Refused` if the store holds something and the user does not insist; `Kind::Usage` for sizes that
/// make no sense.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let doing = || format!("cannot initialize {}", args.store.display());
    if args.journal.is_some() {
        ui.warn("-j is ignored: a store has no journal of its own, the whole of it is a log");
    }
    initialize(args, ui).map_err(|error| error.doing(doing()))?;
    Ok(Exit::Done)
}

fn initialize(args: &Args, ui: &Ui) -> Result<()> {
    if let Some(meta) = &args.meta {
        return Err(Error::new(
            Kind::Usage,
            format!("{} is one operand too many: a store keeps its metadata itself", meta.display()),
        )
        .hint("leave META out; separate metadata devices existed only in stores of 2008"));
    }
    if overlap::is_same(&args.store, &args.origin) {
        return Err(Error::new(
            Kind::Usage,
            "STORE and ORIGIN are the same; the origin would be overwritten",
        ));
    }
    if args.store.exists() {
        open::ensure_not_held(&args.store)?;
    }
    let origin = FileReader::open_origin_read(&args.origin)?;
    let options = options(args, &origin)?;
    drop(origin);
    if args.dry_run {
        return dry_run(args, ui);
    }
    let made = args.size.is_some();
    let store: Arc<dyn WriteAt> = Arc::new(match args.size {
        Some(size) => FileWriter::create(&args.store, size).map_err(|error| match error.kind() {
            Kind::Exists => error.hint("without --size, the existing file is used as it is"),
            _ => error,
        })?,
        None => FileWriter::open(&args.store).map_err(|error| missing_hint(error, &args.store))?,
    });
    let result = write_store(args, &store, &options, ui);
    if result.is_err() && made {
        // It was not there before, so nothing of the user's is lost.
        let _ = std::fs::remove_file(&args.store);
    }
    result
}

fn write_store(args: &Args, store: &Arc<dyn WriteAt>, options: &InitOptions, ui: &Ui) -> Result<()> {
    if let Some(content) = content(store)?
        && !args.yes
    {
        ui.confirm(&format!("{} holds {content}, which would be lost", args.store.display()), "-y")?;
    }
    Writer::initialize(store, options)?;
    store.flush()?;
    ui.explain(&format!(
        "{} of {} bytes is now the snapshot store of {} of {} bytes, chunk size {}",
        args.store.display(),
        store.size(),
        options.origin_path.display(),
        options.origin_size,
        options.chunk_size
    ));
    Ok(())
}

fn dry_run(args: &Args, ui: &Ui) -> Result<()> {
    let path = args.store.display();
    if let Some(size) = args.size {
        return ui.print(&format!("would create {path} of {size} bytes: --size was given"));
    }
    let store = FileReader::open(&args.store).map_err(|error| missing_hint(error, &args.store))?;
    let reason = match content(&store)? {
        Some(content) => format!("it holds {content}, so -y or an answer is needed"),
        None => "nothing known is on it".to_owned(),
    };
    ui.print(&format!("would overwrite {path} of {} bytes: {reason}", store.size()))
}

fn options(args: &Args, origin: &FileReader) -> Result<InitOptions> {
    let narrow = |name: &str, size: Option<u64>, default: u32| match size {
        None => Ok(default),
        Some(size) => u32::try_from(size)
            .map_err(|_| Error::new(Kind::Usage, format!("a {name} size of {size} bytes is too large"))),
    };
    if origin.size() == 0 {
        return Err(Error::new(Kind::Usage, "the origin has no bytes").at_path(&args.origin));
    }
    let origin_path = std::fs::canonicalize(&args.origin)
        .map_err(|error| Error::io("cannot find its absolute path", error).at_path(&args.origin))?;
    Ok(InitOptions {
        chunk_size: narrow("chunk", args.chunk, CHUNK_DEFAULT)?,
        block_size: narrow("block", args.block, BLOCK_DEFAULT)?,
        origin_path,
        origin_size: origin.size(),
        now_secs: time::now_secs(),
    })
}

pub(super) fn missing_hint(error: Error, store: &Path) -> Error {
    if error.kind() == Kind::NotFound {
        let path = store.display();
        error.hint(format!("create it first: 'truncate -s SIZE {path}', or let --size SIZE make it"))
    } else {
        error
    }
}

/// What is on the device that somebody may want to keep.
pub(super) fn content(store: &dyn ReadAt) -> Result<Option<&'static str>> {
    if open::has_superblock(store)? {
        return Ok(Some("a ddsnap store"));
    }
    if legacy::is_store(store)? {
        return Ok(Some(
            "a ddsnap store of 2008 ('ddsnap upgrade' makes one of today of it, with all its snapshots)",
        ));
    }
    if let Some(found) = probe_signature(store)? {
        return Ok(Some(found));
    }
    Ok(has_remains(store)?.then_some("the remains of a ddsnap store (`ddsnap fsck --rebuild` may revive it)"))
}

/// True if records or checkpoints of a store lie in the first MiBs, although its superblocks are gone.
fn has_remains(store: &dyn ReadAt) -> Result<bool> {
    let length = store.size().min(REMAINS_BYTES);
    let mut bytes = vec![0; index(length)];
    store.read_at(&mut bytes, 0)?;
    let magics = [record::MAGIC, checkpoint::MAGIC];
    Ok(bytes.chunks(4096).any(|block| magics.iter().any(|magic| block.starts_with(magic))))
}

/// How far a store without superblocks is looked for.
const REMAINS_BYTES: u64 = 8 << 20;
