//! `restore`: a store from a dump of its metadata.

use super::common::OldArgs;
use super::{open, overlap};
use crate::block::file::FileWriter;
use crate::block::memory::Memory;
use crate::block::overlay::Overlay;
use crate::block::signature::probe_signature;
use crate::block::{ReadAt, WriteAt};
use crate::dump::{Dumped, read_tables};
use crate::error::{Error, Kind, Result};
use crate::store::View;
use crate::store::restore::{Target, restore};
use crate::ui::exit::Exit;
use crate::ui::{Ui, time};
use std::fs::File;
use std::io::{BufReader, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

const EXAMPLES: &str = "Examples:
  ddsnap dump --format yaml data.snap > data.yaml; ddsnap restore -y data.yaml data.snap
  ddsnap dump --format yaml data.snap | ddsnap restore - copy.snap
  ddsnap dump --anonymous --format yaml data.snap | ddsnap restore --dry-run - bug.snap";

/// Make a snapshot store from a dump of its metadata
///
/// On the device that was dumped, the preserved data are still in place, and every snapshot reads as it did when the
/// dump was made. Anywhere else they are missing: everything about the snapshots can be asked, but what they
/// preserved cannot be read. A file that does not exist is made, sparse.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A whole dump in YAML; '-' is standard input
    #[arg(value_name = "DUMP")]
    dump: PathBuf,
    /// Where the store is to be: a block device or a file
    #[arg(value_name = "STORE")]
    store: PathBuf,
    /// Overwrite what is there, and take a dump that fits it badly, without asking
    #[arg(short, long)]
    yes: bool,
    /// Do everything in memory, and tell what would be done; the exit status is as without it
    #[arg(long)]
    dry_run: bool,
}

/// Runs the command.
///
/// # Errors
/// `Kind::Damaged` if the dump is no whole, sound dump; `Kind::Refused` if something of value would be overwritten, or
/// the dump is older than the store; `Kind::Busy`, `Kind::NoSpace`, `Kind::Io`.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let doing = || format!("cannot restore {}", args.store.display());
    restore_store(args, ui).map_err(|error| error.doing(doing()))?;
    Ok(Exit::Done)
}

fn restore_store(args: &Args, ui: &Ui) -> Result<()> {
    overlap::ensure_output_elsewhere(&args.store, &[&args.dump])?;
    let input = input(args, ui)?;
    let dumped = read_tables(BufReader::new(rewound(&input)?)).map_err(|error| error.at_path(&args.dump))?;
    let made = !args.store.exists();
    if !made {
        open::ensure_not_held(&args.store)?;
    }
    let size = dumped.device_bytes.max(dumped.superblock.end());
    let device: Arc<dyn WriteAt> = match (args.dry_run, made) {
        (true, true) => Arc::new(Memory::new(size).named(args.store.clone())),
        (true, false) => Arc::new(Overlay::new(open::store_reader(&args.store, &OldArgs::default())?)),
        (false, true) => Arc::new(FileWriter::create(&args.store, size)?),
        (false, false) => Arc::new(open::store_writer(&args.store, &OldArgs::default())?),
    };
    let result = write(args, &input, dumped, &device, made, ui);
    if result.is_err() && made && !args.dry_run {
        // It was not there before, so nothing of the user's is lost.
        let _ = std::fs::remove_file(&args.store);
    }
    result
}

/// The dump as a file that can be read twice: nothing is written before all of it is known to be whole.
fn input(args: &Args, ui: &Ui) -> Result<File> {
    if args.dump.as_os_str() != "-" {
        let file =
            File::open(&args.dump).map_err(|error| Error::io("cannot open it", error).at_path(&args.dump))?;
        let regular = file.metadata().is_ok_and(|meta| meta.is_file());
        return match regular {
            true => Ok(file),
            false => {
                Err(Error::new(Kind::Usage, "it is no regular file; '-' reads from a pipe")
                    .at_path(&args.dump))
            }
        };
    }
    let spool = |error| Error::io("cannot keep the dump in a temporary file", error);
    let mut file = tempfile::tempfile().map_err(spool)?;
    std::io::copy(&mut ui.data_input()?, &mut file).map_err(spool)?;
    Ok(file)
}

fn rewound(file: &File) -> Result<&File> {
    let mut again = file;
    again.seek(SeekFrom::Start(0)).map_err(|error| Error::io("cannot read the dump again", error))?;
    Ok(file)
}

fn write(
    args: &Args,
    input: &File,
    dumped: Dumped,
    device: &Arc<dyn WriteAt>,
    made: bool,
    ui: &Ui,
) -> Result<()> {
    let store = args.store.display();
    let target = Target::look(device.as_ref(), &dumped.superblock, &dumped.tables, ui.progress())?;
    let at_stake = at_stake(&dumped, device.as_ref(), &target)?;
    for reason in at_stake.iter().filter(|_| args.dry_run) {
        ui.print(&format!("would need -y: {reason}"))?;
    }
    if !args.yes && !args.dry_run && !at_stake.is_empty() {
        ui.confirm(&format!("{store}: {}", at_stake.join("; ")), "-y")?;
    }
    let uncertain = uncertain(&dumped, &target);
    let doubt = uncertain.clone().map(|why| (time::now_secs(), why));
    let (sb, tables) = (dumped.superblock.clone(), dumped.tables.clone());
    ui.progress().stage("restoring", None);
    let mut entries = dumped.entries(BufReader::new(rewound(input)?)).map(|entry| {
        ui.progress().check()?;
        entry.map_err(|error| error.at_path(&args.dump))
    });
    let count = restore(device, sb, tables, &target, &mut entries, doubt)
        .map_err(|error| error.at_path(&args.store))?;
    let reading: Arc<dyn ReadAt> = Arc::<dyn WriteAt>::clone(device);
    let snapshots = View::open(reading, None)?.snapshots().len();
    let what = format!(
        "{store}: store {} with {snapshots} snapshots and {count} index entries",
        dumped.superblock.uuid
    );
    match args.dry_run {
        true if made => ui.print(&format!("would make {what}"))?,
        true => ui.print(&format!("would write {what}"))?,
        false => ui.explain(&what),
    }
    if let Some(why) = uncertain {
        ui.warn(&format!("every snapshot is marked as tainted: {why}"));
    }
    Ok(())
}

/// What must be insisted on.
fn at_stake(dumped: &Dumped, device: &dyn ReadAt, target: &Target) -> Result<Vec<String>> {
    let mut reasons = Vec::new();
    for uuid in target.stores.iter().filter(|uuid| **uuid != dumped.superblock.uuid) {
        reasons.push(format!("it holds another store, {uuid}, which would be lost"));
    }
    match probe_signature(device)? {
        Some(found) if !found.starts_with("a ddsnap store") => {
            reasons.push(format!("it holds {found}, which would be lost"));
        }
        Some(found) if target.stores.is_empty() => {
            reasons.push(format!("it holds {found}, which would be lost"))
        }
        _ => {}
    }
    if let Some(newer) = &target.newer {
        reasons.push(format!("the store was written after the dump was made: {newer}"));
    }
    if dumped.anonymous && !target.stores.is_empty() {
        reasons.push("the dump is anonymous: its names and checksums are not those of any data".to_owned());
    }
    if !dumped.complete {
        reasons.push(format!("the dump is of a damaged store: {} things in it were damaged", dumped.damaged));
    }
    Ok(reasons)
}

/// Why what the snapshots read cannot be proven, if it cannot.
fn uncertain(dumped: &Dumped, target: &Target) -> Option<String> {
    match &target.newer {
        Some(newer) => Some(format!("what was preserved after the dump was made is not in it ({newer})")),
        None if !dumped.complete => {
            Some("the index or the log was damaged when the dump was made".to_owned())
        }
        None => None,
    }
}
