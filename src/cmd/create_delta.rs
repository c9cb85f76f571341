//! `create-delta`: the chunks that turn one point into another, as a stream.

use super::common::{AcceptArgs, BlockSizeArgs, OldArgs, RateArgs, VolArgs, parse_hold};
use super::hold;
use super::source::{COMPARE_CHUNK_BITS, List, Source, is_list, snap_name, wrong_operands};
use super::transfer::Limited;
use crate::delta::{
    CreateOptions, CreateSummary, LegacyMode, LegacyOptions, create, create_legacy, create_rbd, resume_file,
    resume_stream, sidecar_path,
};
use crate::error::{Error, Kind, Result};
use crate::format::delta::{Encoding, ResumePoint};
use crate::point::Changes;
use crate::ui::exit::Exit;
use crate::ui::output::Output;
use crate::ui::{Ui, size};
use crate::units::Tag;
use std::ffi::{OsStr, OsString};
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "Examples:
  ddsnap create-delta data.snap 1 2 -o today.delta
  ddsnap create-delta data.snap 1 2 - | ddsnap apply-delta - copy.img
  ddsnap create-delta data.snap 2 --resume -o full.delta
  ddsnap create-delta --compare monday.img data.img -o today.delta
  ddsnap create-delta 1-2.changes today.delta monday.img second.img";

/// Make a delta that turns one point into another
///
/// What the operands mean is told by the first: a snapshot store, or a changelist file as in 2008; what
/// thin_delta, era_invalidate or nbdinfo printed of a dirty bitmap will do for a changelist. With only
/// one snapshot, the delta holds the whole volume. The delta goes to standard output unless -o, or DELTA,
/// names a file; a file appears under its name when it is complete, or not at all.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
#[command(override_usage = "ddsnap create-delta [OPTIONS] VOL [SNAP1] SNAP2 [-o DELTA]
       ddsnap create-delta [OPTIONS] CHANGELIST DELTA SNAPDEV1 SNAPDEV2
       ddsnap create-delta [OPTIONS] CHANGELIST DELTA DEVSTEM
       ddsnap create-delta [OPTIONS] --compare OLD NEW [-o DELTA]")]
#[command(group = clap::ArgGroup::new("coding").args(["xdelta", "raw", "best"]))]
pub struct Args {
    /// See above; DEVSTEM stands for the two devices DEVSTEM(SNAP1) and DEVSTEM(SNAP2)
    #[arg(value_name = "OPERAND", required = true, num_args = 1..=4)]
    operands: Vec<OsString>,
    /// Where the delta goes; '-' is standard output
    #[arg(short, long, value_name = "DELTA")]
    output: Option<PathBuf>,
    /// Compare two plain devices or files
    #[arg(long, conflicts_with = "origin")]
    compare: bool,
    /// Store changed data as its difference from the old (VCDIFF); only in the format of 2008
    #[arg(short, long)]
    xdelta: bool,
    /// Store changed data as it is
    #[arg(short, long)]
    raw: bool,
    /// Store each extent in the smallest way; may refer to the old data, and a plain target then needs --undo. In
    /// the format of 2008, where it is the default, it also means level 9 if -g does not say otherwise
    #[arg(short, long)]
    best: bool,
    /// Compression level from 0 (none) to 19; in the format of 2008 from 0, the default, to 9
    #[arg(short = 'g', long, value_name = "LEVEL", value_parser = clap::value_parser!(i32).range(0..=19))]
    level: Option<i32>,
    /// Format of the delta
    #[arg(long, value_enum, default_value_t = Format::Delta)]
    format: Format,
    /// Where the origin is now, if not where the store remembers it
    #[arg(long, value_name = "PATH")]
    origin: Option<PathBuf>,
    #[command(flatten)]
    old: OldArgs,
    /// Go on where an interrupted run with the same operands ended; until it is complete, the delta lies in
    /// DELTA.part
    #[arg(long, conflicts_with = "resume_token")]
    resume: bool,
    /// Leave out what the receiver has: TOKEN is what 'apply-delta --resume-token' prints there
    #[arg(long, value_name = "TOKEN")]
    resume_token: Option<ResumePoint>,
    /// Hold both snapshots for the target NAME, and let go of what it needed before SNAP1
    #[arg(long, value_name = "NAME", value_parser = parse_hold, conflicts_with = "compare")]
    hold: Option<String>,
    #[command(flatten)]
    block_size: BlockSizeArgs,
    #[command(flatten)]
    accept: AcceptArgs,
    #[command(flatten)]
    rate: RateArgs,
}

/// What a delta can be written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// The own format: checksums of old and new data, compressed
    Delta,
    /// The diff of Ceph's block devices, version 1, as 'rbd import-diff' reads it
    Rbd,
    /// The delta of 2008, as its 'delta apply' reads it: byte sums, no sizes
    #[value(name = "2008")]
    Legacy,
}

/// Runs the command.
///
/// # Errors
/// `Kind::NotFound`, `Kind::Refused` for the points; `Kind::Damaged` for a changelist; what writing says.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    let first = args.operands.first().map(|first| first.display().to_string()).unwrap_or_default();
    make(args, ui).map_err(|error| error.doing(format!("cannot create delta from {first}")))?;
    Ok(Exit::Done)
}

/// What the operands mean.
struct Plan {
    /// It is a list of 2008 that starts from no snapshot.
    is_whole: bool,
    source: Source,
    changelist: Option<PathBuf>,
    output: PathBuf,
}

fn make(args: &Args, ui: &Ui) -> Result<()> {
    if args.format == Format::Legacy {
        return make_legacy(args, ui);
    }
    if args.xdelta {
        return Err(Error::new(Kind::Unsupported, "xdelta is not available in the format of these deltas")
            .hint("-b stores each extent in the smallest way there is; --format 2008 has xdelta"));
    }
    if args.format == Format::Rbd && (args.raw || args.best || args.level.is_some()) {
        return Err(Error::new(
            Kind::Usage,
            "an rbd diff holds changed data as it is: leave out -r, -b and -g",
        ));
    }
    if args.format == Format::Rbd && (args.resume || args.resume_token.is_some()) {
        return Err(Error::new(Kind::Usage, "an rbd diff cannot be continued: leave out --resume"));
    }
    let plan = plan(args, ui)?;
    plan.source.ensure_output_elsewhere(&plan.output)?;
    let changes = open_list(args, &plan)?;
    if args.format == Format::Rbd {
        return make_rbd(args, &plan, changes, ui);
    }
    let (mut output, summary) = match &args.resume_token {
        _ if args.resume => make_resumable(args, &plan, changes, ui)?,
        Some(point) => send_rest(args, &plan, changes, point, ui)?,
        None => {
            let mut output = Output::create(&plan.output)?;
            let summary = make_whole(args, &plan, changes, &mut output, ui)?;
            (output, summary)
        }
    };
    output.flush().map_err(|error| Error::io("cannot write the delta", error))?;
    output.commit()?;
    ui.explain(&format!(
        "{} chunks ({}) in a delta of {}",
        summary.chunks,
        size::human(summary.data_bytes),
        size::human(summary.stream_bytes)
    ));
    Ok(())
}

fn make_whole(
    args: &Args,
    plan: &Plan,
    changes: Option<Changes<'_>>,
    output: &mut Output,
    ui: &Ui,
) -> Result<CreateSummary> {
    let Source { from, to, .. } = plan.source;
    create(plan.source.points(), from, to, changes, &options(args), output, ui.progress())
}

/// Goes on in the part that an earlier run left, or starts afresh and says why.
fn make_resumable(
    args: &Args,
    plan: &Plan,
    changes: Option<Changes<'_>>,
    ui: &Ui,
) -> Result<(Output, CreateSummary)> {
    let mut output = Output::resumable(&plan.output)?;
    let path = output.path().to_path_buf();
    let failed = move |error| Error::io("cannot use the part", error).at_path(&path);
    if output.file_mut().metadata().map_err(&failed)?.len() > 0 {
        let Source { from, to, .. } = plan.source;
        let resumed = match (plan.source.is_fixed(), changes.is_none()) {
            (true, true) => {
                let (source, file) = (plan.source.points(), output.file_mut());
                resume_file(source, (from, to), &options(args), file, ui.progress())
            }
            _ => Ok(Err("only what is made from snapshots is sure to be the same as before")),
        };
        match resumed.map_err(kept)? {
            Ok(summary) => return Ok((output, summary)),
            Err(why) => ui.warn(&format!("the part of an earlier run is not used: {why}")),
        }
        let file = output.file_mut();
        file.set_len(0).and_then(|()| file.rewind()).map_err(&failed)?;
    }
    let summary = make_whole(args, plan, changes, &mut output, ui).map_err(kept)?;
    Ok((output, summary))
}

fn kept(error: Error) -> Error {
    match error.hint_text() {
        None => error.hint("what is made is kept; the same command goes on from there"),
        Some(_) => error,
    }
}

/// Sends what a receiver lacks, or everything if what it has is of something else.
fn send_rest(
    args: &Args,
    plan: &Plan,
    changes: Option<Changes<'_>>,
    point: &ResumePoint,
    ui: &Ui,
) -> Result<(Output, CreateSummary)> {
    if plan.output.as_os_str() != "-" {
        let what = "--resume-token goes with a delta on standard output";
        return Err(Error::new(Kind::Usage, what).hint("--resume continues a delta in a file"));
    }
    let mut output = Output::create(&plan.output)?;
    let Source { from, to, .. } = plan.source;
    let (source, options) = (plan.source.points(), options(args));
    let sent = resume_stream(source, (from, to), changes, &options, point, &mut output, ui.progress())?;
    if let Some(summary) = sent {
        return Ok((output, summary));
    }
    ui.warn("the receiver has the beginning of another delta: sending all of this one");
    let changes = open_list(args, plan)?;
    let summary = make_whole(args, plan, changes, &mut output, ui)?;
    Ok((output, summary))
}

fn make_rbd(args: &Args, plan: &Plan, changes: Option<Changes<'_>>, ui: &Ui) -> Result<()> {
    let beside = sidecar_path(&plan.output);
    plan.source.ensure_output_elsewhere(&beside)?;
    let output = Output::create(&plan.output)?;
    let has_place = output.is_fresh_file();
    let mut output = Limited::new(output, args.rate.rate_limit, ui.stop_wanted());
    let Source { from, to, .. } = plan.source;
    let summary = create_rbd(plan.source.points(), from, to, changes, &mut output, ui.progress())?;
    output.into_inner().commit()?;
    if has_place {
        // After the diff: until then, an older description beside it does not agree and is refused.
        let mut output = Output::create(&beside)?;
        output
            .write_all(summary.sidecar.encode().as_bytes())
            .map_err(|error| Error::io("cannot write", error).at_path(&beside))?;
        output.commit()?;
    }
    ui.explain(&format!(
        "{} of data and {} of zeros in a diff of {}",
        size::human(summary.data_bytes),
        size::human(summary.zero_bytes),
        size::human(summary.sidecar.stream_bytes)
    ));
    Ok(())
}

/// A delta of 2008.
fn make_legacy(args: &Args, ui: &Ui) -> Result<()> {
    if args.resume || args.resume_token.is_some() {
        return Err(Error::new(Kind::Usage, "a delta of 2008 cannot be continued: leave out --resume"));
    }
    let level = match (args.level, args.best) {
        (None, best) => {
            if best {
                9
            } else {
                0
            }
        }
        (Some(level), _) => u32::try_from(level).ok().filter(|level| *level <= 9).ok_or_else(|| {
            Error::new(Kind::Usage, format!("the level is {level}, a delta of 2008 has 0 to 9"))
        })?,
    };
    let mode = match (args.raw, args.xdelta) {
        (true, _) => LegacyMode::Raw,
        (_, true) => LegacyMode::Xdelta,
        _ => LegacyMode::Best,
    };
    let mut plan = plan(args, ui)?;
    plan.source.ensure_output_elsewhere(&plan.output)?;
    let mut changes = open_list(args, &plan)?;
    if plan.is_whole {
        ensure_whole(changes.take(), &plan.source)?;
        plan.source.from = None;
    }
    let Source { from, to, .. } = plan.source;
    let mut output = Limited::new(Output::create(&plan.output)?, args.rate.rate_limit, ui.stop_wanted());
    let options = LegacyOptions { mode, level, threads: 0 };
    let source = plan.source.points();
    let summary = create_legacy(source, from, to, changes, &options, &mut output, ui.progress())?;
    output.into_inner().commit()?;
    ui.explain(&format!(
        "{} chunks ({}) in a delta of 2008 of {}",
        summary.chunks,
        size::human(summary.data_bytes),
        size::human(summary.stream_bytes)
    ));
    Ok(())
}

/// A list that starts from no snapshot makes a whole volume, so it must name as many chunks as that has.
fn ensure_whole(changes: Option<Changes<'_>>, source: &Source) -> Result<()> {
    let mut named = 0u64;
    for range in changes.into_iter().flatten() {
        let range = range?;
        named = named.saturating_add(range.end.saturating_sub(range.start));
    }
    let chunks = source.point(source.to)?.size_bytes.div_ceil(1u64 << source.points().chunk_bits());
    if named == chunks {
        return Ok(());
    }
    let what = format!(
        "the list starts from no snapshot and names {named} chunks, but a whole volume has all {chunks}"
    );
    Err(Error::new(Kind::Refused, what)
        .hint("in 2008, the first chunks would have been stored as if they were all"))
}

fn plan(args: &Args, ui: &Ui) -> Result<Plan> {
    let mut operands = args.operands.as_slice();
    let first = operands.first().map(Path::new).unwrap_or(Path::new(""));
    if !args.compare && (operands.len() == 4 && !ends_with_dash(operands) || is_list(first)) {
        return plan_of_2008(args, operands);
    }
    let mut output = args.output.clone();
    if ends_with_dash(operands) && output.is_none() {
        output = Some("-".into());
        operands = &operands[..operands.len() - 1];
    }
    let to_file = output.as_ref().is_some_and(|output| output.as_os_str() != "-");
    if args.resume && !to_file {
        let what = "--resume goes with a delta in a file";
        return Err(
            Error::new(Kind::Usage, what).hint("name it with -o; a stream goes on with --resume-token")
        );
    }
    let source = match (args.compare, operands) {
        (true, [old, new]) => {
            Source::files((Path::new(old), Tag(0)), (Path::new(new), Tag(1)), COMPARE_CHUNK_BITS, true)?
        }
        (false, [vol, snaps @ ..]) if matches!(snaps.len(), 1 | 2) => {
            let vol = VolArgs { vol: vol.into(), origin: args.origin.clone(), old: args.old.clone() };
            let names = snaps.iter().map(|snap| snap_name(snap)).collect::<Result<Vec<_>>>()?;
            let (from, to) = match names.as_slice() {
                [from, to] => (Some(from), to),
                [to, ..] => (None, to),
                [] => return Err(wrong_operands("VOL [SNAP1] SNAP2", operands)),
            };
            if let Some(name) = &args.hold {
                hold::move_along(&vol, from, to, name)?;
            }
            Source::volume(&vol, from, to, &args.accept, true, ui)?
        }
        (true, found) => return Err(wrong_operands("OLD NEW", found)),
        (false, found) => return Err(wrong_operands("VOL [SNAP1] SNAP2", found)),
    };
    Ok(Plan { is_whole: false, source, changelist: None, output: output.unwrap_or_else(|| "-".into()) })
}

fn ends_with_dash(operands: &[OsString]) -> bool {
    operands.last().is_some_and(|last| last == "-")
}

fn plan_of_2008(args: &Args, operands: &[OsString]) -> Result<Plan> {
    if args.output.is_some() {
        return Err(Error::new(Kind::Usage, "-o and the operand DELTA are one too many"));
    }
    if args.hold.is_some() {
        return Err(Error::new(Kind::Usage, "--hold needs snapshots of a VOL"));
    }
    let (changelist, output, devices) = match operands {
        [changelist, output, devices @ ..] if matches!(devices.len(), 1 | 2) => (changelist, output, devices),
        found => return Err(wrong_operands("CHANGELIST DELTA SNAPDEV1 SNAPDEV2", found)),
    };
    let list = List::open(Path::new(changelist), args.block_size.block_size)?;
    let (old_tag, new_tag) = list.tags;
    let path = |index: usize, tag: Tag| match devices {
        [stem] => PathBuf::from(stem_device(stem, tag)),
        both => PathBuf::from(&both[index]),
    };
    let new = path(1, new_tag);
    // Only the format of 2008 reads so much into a tag. The older device is then not needed, and may not be there.
    let is_whole = args.format == Format::Legacy && old_tag == Tag::ORIGIN;
    let old = if is_whole { new.clone() } else { path(0, old_tag) };
    let source = Source::files((&old, old_tag), (&new, new_tag), list.chunk_bits, true)?;
    Ok(Plan { is_whole, source, changelist: Some(changelist.into()), output: output.into() })
}

/// `/dev/mapper/vol` and tag 3 name `/dev/mapper/vol(3)`.
fn stem_device(stem: &OsStr, tag: Tag) -> OsString {
    let mut device = stem.to_os_string();
    device.push(format!("({tag})"));
    device
}

/// The changes that the list names, if there is one.
fn open_list(args: &Args, plan: &Plan) -> Result<Option<Changes<'static>>> {
    let Some(path) = &plan.changelist else { return Ok(None) };
    let list = List::open(path, args.block_size.block_size)?;
    list.changes(plan.source.point(plan.source.to)?.size_bytes).map(Some)
}

fn options(args: &Args) -> CreateOptions {
    let encoding = match (args.raw || args.level == Some(0), args.best) {
        (true, _) => Encoding::Raw,
        (_, true) => Encoding::Best,
        _ => Encoding::Zstd,
    };
    CreateOptions {
        encoding,
        level: args.level.unwrap_or(3),
        base_crc: true,
        threads: 0,
        rate_limit: args.rate.rate_limit,
    }
}
