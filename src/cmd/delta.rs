//! `delta`: what can be done with deltas; also the names that 2008 had for making and applying them.

use super::{apply_delta, changelist, create_delta, delta_invert, delta_merge, documents};
use crate::block::ReadAt;
use crate::block::file::FileReader;
use crate::delta::{DeltaInfo, Verdict, info, verify};
use crate::error::{Error, Result};
use crate::format::delta::{PointLabel, VERSION};
use crate::point::Identity;
use crate::ui::exit::Exit;
use crate::ui::{Ui, escape, size};
use crate::units::Tag;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

const INFO_EXAMPLES: &str = "Examples:
  ddsnap delta info 1-2.delta
  ddsnap delta info --json - < 1-2.delta";

const VERIFY_EXAMPLES: &str = "Examples:
  ddsnap delta verify 1-2.delta
  ddsnap delta verify 1-2.delta copy.img";

/// Inspect, verify, merge and invert deltas; make and apply them by their names of 2008
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Info(InfoArgs),
    Verify(VerifyArgs),
    Merge(delta_merge::Args),
    Invert(delta_invert::Args),
    Create(create_delta::Args),
    Apply(apply_delta::Args),
    Changelist(changelist::Args),
}

/// Tell what a delta holds
///
/// The whole delta is read and its sums are checked; data is not decoded.
#[derive(Debug, clap::Args)]
#[command(after_help = INFO_EXAMPLES)]
struct InfoArgs {
    /// The delta; '-' is standard input
    #[arg(value_name = "DELTA")]
    delta: PathBuf,
    /// Print one JSON document (schema ddsnap.delta-info/1)
    #[arg(long)]
    json: bool,
}

/// Tell whether a delta is sound, and whether a base is the right one
///
/// Every sum is checked and every extent decoded, as far as that is possible without BASE. The answer "no" is
/// exit status 3.
#[derive(Debug, clap::Args)]
#[command(after_help = VERIFY_EXAMPLES)]
struct VerifyArgs {
    /// The delta; '-' is standard input
    #[arg(value_name = "DELTA")]
    delta: PathBuf,
    /// The device or file that it is to be applied to
    #[arg(value_name = "BASE")]
    base: Option<PathBuf>,
    /// Print one JSON document (schema ddsnap.delta-verify/1)
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// `Kind::Damaged` if a delta to be shown is not sound; what reading says.
pub fn run(args: &Args, ui: &Ui) -> Result<Exit> {
    match &args.command {
        Command::Info(args) => run_info(args, ui),
        Command::Verify(args) => run_verify(args, ui),
        Command::Merge(args) => delta_merge::run(args, ui),
        Command::Invert(args) => delta_invert::run(args, ui),
        Command::Create(args) => create_delta::run(args, ui),
        Command::Apply(args) => apply_delta::run(args, ui),
        Command::Changelist(args) => changelist::run(args, ui),
    }
}

/// Opens a delta to be read once; `-` is standard input.
///
/// # Errors
/// What the system says.
pub(super) fn open(path: &Path, ui: &Ui) -> Result<Box<dyn Read + Send>> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(ui.data_input()?));
    }
    let file = File::open(path).map_err(|error| Error::io("cannot open", error).at_path(path))?;
    Ok(Box::new(BufReader::with_capacity(1 << 20, file)))
}

fn run_info(args: &InfoArgs, ui: &Ui) -> Result<Exit> {
    let doing = || format!("cannot read delta {}", args.delta.display());
    let result = open(&args.delta, ui).and_then(|mut input| info(&mut input, ui.progress()));
    let info = result.map_err(|error| error.doing(doing()))?;
    if args.json {
        let mut document = info_json(&info);
        document["schema"] = json!("ddsnap.delta-info/1");
        ui.json(&document)?;
    } else {
        for line in info_lines(&info) {
            ui.print(&line)?;
        }
    }
    Ok(Exit::Done)
}

fn run_verify(args: &VerifyArgs, ui: &Ui) -> Result<Exit> {
    let doing = || format!("cannot verify delta {}", args.delta.display());
    let verdict = judge(args, ui).map_err(|error| error.doing(doing()))?;
    let (word, reason, exit) = match &verdict {
        Verdict::Sound { undecoded: 0, .. } => ("sound", None, Exit::Done),
        Verdict::Sound { undecoded, .. } => {
            ("sound", Some(format!("{undecoded} extents refer to a base, and none was given")), Exit::Done)
        }
        Verdict::Damaged(error) => ("damaged", Some(error.to_string()), Exit::Damaged),
        Verdict::WrongBase(error) => ("wrong-base", Some(error.to_string()), Exit::Damaged),
    };
    if args.json {
        let info = if let Verdict::Sound { info, .. } = &verdict { info_json(info) } else { Value::Null };
        ui.json(
            &json!({ "schema": "ddsnap.delta-verify/1", "verdict": word, "reason": reason, "info": info }),
        )?;
    } else {
        let words = word.replace('-', " ");
        let reason = reason.map(|reason| format!(": {}", escape::line(&reason))).unwrap_or_default();
        ui.print(&format!("{words}{reason}"))?;
    }
    Ok(exit)
}

fn judge(args: &VerifyArgs, ui: &Ui) -> Result<Verdict> {
    let mut input = open(&args.delta, ui)?;
    let base = args.base.as_deref().map(FileReader::open_origin_read).transpose()?;
    let base = base.as_ref().map(|base| base as &dyn ReadAt);
    verify(&mut *input, base, 0, ui.progress())
}

fn label_json(label: &PointLabel) -> Value {
    let identity = Identity { volume: label.volume, id: label.id, generation: label.generation };
    json!({
        "tag": (label.tag != Tag::ORIGIN).then_some(label.tag.0),
        "name": label.name,
        "size_bytes": label.size_bytes,
        "identity": label.is_known().then(|| documents::identity(&identity)),
    })
}

fn info_json(info: &DeltaInfo) -> Value {
    let header = &info.header;
    let kinds: Vec<Value> = info
        .kinds
        .iter()
        .map(|(kind, count)| {
            json!({
                "kind": kind,
                "extents": count.extents,
                "chunks": count.chunks,
                "data_bytes": count.data_bytes,
                "payload_bytes": count.payload_bytes,
                "largest_bytes": count.largest_bytes,
                "with_base_crcs": count.with_base_crcs,
                "ratio": ratio(count.data_bytes, count.payload_bytes),
            })
        })
        .collect();
    let is_legacy = info.legacy.is_some();
    let label_json = |label: &PointLabel| {
        let mut document = label_json(label);
        if info.legacy.is_some_and(|facts| !facts.sized) {
            document["size_bytes"] = Value::Null;
        }
        document
    };
    json!({
        "format": if is_legacy { "2008" } else { "delta" },
        "format_version": (!is_legacy).then_some(VERSION),
        "chunk_size": 1u64 << header.chunk_bits,
        "encoding": (!is_legacy).then(|| header.encoding.name()),
        "level": (!is_legacy).then_some(header.level),
        "source": header.source.as_ref().map(label_json),
        "target": label_json(&header.target),
        "end_bytes": info.legacy.map(|facts| facts.end_bytes),
        "undoes": header.undoes.map(hex::encode),
        "extents": info.extents,
        "chunks": info.chunks,
        "data_bytes": info.data_bytes,
        "payload_bytes": info.payload_bytes,
        "stream_bytes": info.stream_bytes,
        "largest_bytes": info.kinds.iter().map(|(_, count)| count.largest_bytes).max(),
        "ratio": ratio(info.data_bytes, info.stream_bytes),
        "proves_base": info.has_base_crcs,
        "digest": hex::encode(info.digest),
        "kinds": kinds,
    })
}

/// How many bytes of data a byte stands for, to three places; `None` where nothing stands for something.
#[expect(clippy::cast_precision_loss, reason = "a ratio need not be exact to the byte")]
fn ratio(data: u64, stored: u64) -> Option<f64> {
    (stored > 0).then(|| (data as f64 / stored as f64 * 1000.0).round() / 1000.0)
}

fn label_text(label: &PointLabel) -> String {
    let what = match (label.is_known(), label.tag == Tag::ORIGIN, &label.name) {
        (false, _, _) => "a plain device or file".to_owned(),
        (true, true, _) => format!("the origin of volume {}", label.volume),
        (true, false, Some(name)) => format!("snapshot {} ({name}) of volume {}", label.tag, label.volume),
        (true, false, None) => format!("snapshot {} of volume {}", label.tag, label.volume),
    };
    format!("{}, {} bytes", escape::line(&what), label.size_bytes)
}

fn tag_text(tag: Tag) -> String {
    if tag == Tag::ORIGIN { "an origin".to_owned() } else { format!("snapshot {tag}") }
}

fn info_lines(info: &DeltaInfo) -> Vec<String> {
    let header = &info.header;
    let (from, to, encoding) = match &info.legacy {
        Some(facts) => {
            let to = format!("{}, up to byte {}", tag_text(header.target.tag), facts.end_bytes);
            (header.source.as_ref().map(|label| tag_text(label.tag)), to, "of 2008".to_owned())
        }
        None => {
            let encoding = format!("{}, level {}", header.encoding.name(), header.level);
            (header.source.as_ref().map(label_text), label_text(&header.target), encoding)
        }
    };
    let mut lines = vec![
        format!("From:      {}", from.as_deref().unwrap_or("nothing (a whole volume)")),
        format!("To:        {to}"),
        format!("Encoding:  {encoding}"),
        format!(
            "Chunks:    {} of {} bytes in {} extents",
            info.chunks,
            1u64 << header.chunk_bits,
            info.extents
        ),
        format!("Data:      {} ({} bytes)", size::human(info.data_bytes), info.data_bytes),
        format!(
            "Delta:     {} ({} bytes){}",
            size::human(info.stream_bytes),
            info.stream_bytes,
            ratio(info.data_bytes, info.stream_bytes)
                .map_or(String::new(), |ratio| format!(", ratio {ratio}"))
        ),
        format!("Base:      {}", base_text(info)),
        format!("Digest:    {}", hex::encode(info.digest)),
    ];
    if let Some(undone) = header.undoes {
        lines.push(format!("Undoes:    {}", hex::encode(undone)));
    }
    for (kind, count) in info.kinds.iter().filter(|(_, count)| count.extents > 0) {
        lines.push(format!(
            "  {:<9} {} extents, {} chunks, {} bytes in {} bytes, largest {} bytes",
            kind, count.extents, count.chunks, count.data_bytes, count.payload_bytes, count.largest_bytes
        ));
    }
    lines
}

/// How far a target can prove to be the base.
fn base_text(info: &DeltaInfo) -> String {
    let carrying: u64 = info.kinds.iter().map(|(_, count)| count.with_base_crcs).sum();
    match (&info.header.source, carrying) {
        (None, _) => "none needed".to_owned(),
        _ if info.legacy.is_some() => {
            "every extent has a sum of its bytes, which does not prove their order".to_owned()
        }
        (_, carrying) if carrying == info.extents => "every chunk proves it by a checksum".to_owned(),
        (_, 0) => "no checksums of it".to_owned(),
        (_, carrying) => format!("checksums of it in {carrying} of {} extents", info.extents),
    }
}
