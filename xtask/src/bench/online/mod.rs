//! `cargo xtask bench online`: what a server costs whoever writes and reads through it, beside what one would run
//! instead. All sides are used the same way by the same fio, in turns.
//!
//! | file | owns |
//! |---|---|
//! | `nbd` | rows 1 to 6: through NBD |
//! | `files` | rows 7 and 8: through FUSE, and a file system on it |
//! | `machine` | rows 9 and 10: devices of a kernel, in a throw-away machine |
//! | `served` | servers, and fio on what they serve |

mod files;
mod machine;
mod nbd;
mod served;

use super::data::Pattern;
use super::lab::{Lab, Missing, median, need};
use super::sheet::{self, Goal, Line, Row, figure, time};
use anyhow::{Context, Result, bail, ensure};
use served::{BYTES, OVERWRITE, Served};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Arguments of `bench online`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these rows of the table (repeatable)
    #[arg(long, value_name = "ROW", value_parser = clap::value_parser!(u8).range(1..=10))]
    only: Vec<u8>,
    /// Size of the volume in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    #[arg(value_parser = clap::value_parser!(u64).range(64..=65536))]
    size: u64,
    /// Folder for the scratch files; the build folder by default
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Repetitions of each side, alternating; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    runs: u16,
    /// In the machine of rows 9 and 10: measure this program there
    #[arg(long, value_name = "FILE", hide = true)]
    inside: Option<PathBuf>,
}

const HEAD: &str = "# Benchmarks of a served volume

Written by `cargo xtask bench online`, never by hand. All sides were used the same way by the same fio, in turns; the
medians count. What was written was compared with what it should be, and the snapshot with what the volume was before.
The numbers tell of these versions on this machine and of nothing else:

";

/// Seconds of a measurement that has no end of its own. A small volume is there to show that it works.
fn seconds(lab: &Lab) -> u64 {
    if lab.size() < 256 << 20 { 2 } else { 10 }
}

/// Measures and prints the table; a whole run also writes docs/benchmarks-online.md.
pub fn run(args: &Args) -> Result<()> {
    if let Some(binary) = &args.inside {
        let lab = Lab::new(binary.clone(), args.dir.as_deref(), args.size << 20, args.runs.into())?;
        return args.only.iter().try_for_each(|row| machine::inside(&lab, *row));
    }
    let lines = measure(args, crate::demo::build(false)?)?;
    println!("\n{}", sheet::console(&lines));
    if args.only.is_empty() {
        let folder = args.dir.clone().unwrap_or_else(|| crate::shell::root().join("target"));
        let what = format!("- volume: {} MiB; {} repetitions of each side\n", args.size, args.runs);
        let facts = [sheet::host(&folder), vec![sheet::load(), what]].concat().join("\n");
        sheet::write_page("docs/benchmarks-online.md", HEAD, &rows(), &lines, &facts)?;
    }
    Ok(())
}

/// The rows that need nothing but fio, on a small volume and with the development build: they can be measured, and the
/// bytes are right.
pub fn smoke() -> Result<()> {
    let args = Args { only: vec![2, 6], size: 64, dir: None, runs: 1, inside: None };
    measure(&args, crate::demo::build(true)?).map(drop)
}

fn measure(args: &Args, binary: PathBuf) -> Result<Vec<Line>> {
    need("fio")?;
    let lab = Lab::new(binary, args.dir.as_deref(), args.size << 20, args.runs.into())?;
    let mut lines = Vec::new();
    for row in rows().iter().filter(|row| args.only.is_empty() || args.only.contains(&row.number)) {
        println!("{:2}  {} ...", row.number, row.what);
        let found = (row.measure)(&lab).with_context(|| format!("row {}: {}", row.number, row.what))?;
        lines.extend(found.into_iter().map(|line| line.of(row.number)));
        lab.clear()?;
    }
    Ok(lines)
}

fn rows() -> Vec<Row> {
    [nbd::rows(), files::rows(), machine::rows()].into_iter().flatten().collect()
}

type Side<'a> = (&'a str, &'a dyn Fn() -> Result<f64>);

/// The medians of all sides, run in turns; why a side could not be run, where a tool is missing.
fn in_turns(lab: &Lab, sides: &[Side<'_>]) -> Result<Vec<Result<f64, String>>> {
    let mut found: Vec<Result<Vec<f64>, String>> = sides.iter().map(|_| Ok(Vec::new())).collect();
    for _ in 0..lab.runs() {
        for ((name, side), found) in sides.iter().zip(&mut found) {
            ensure!(!lab.stop_wanted(), "interrupted");
            let Ok(values) = found else { continue };
            match side() {
                Ok(value) => {
                    println!("    {name}: {}", figure(value, ""));
                    values.push(value);
                }
                Err(error) => match error.downcast_ref::<Missing>() {
                    Some(missing) => *found = Err(format!("{name}: {missing}")),
                    None => return Err(error.context((*name).to_owned())),
                },
            }
        }
    }
    Ok(found.into_iter().map(|values| values.map(median)).collect())
}

/// A line for each side but the first, which is ours: the first one's time against each.
fn times(lab: &Lab, sides: &[Side<'_>], goal: Goal) -> Result<Vec<Line>> {
    let mut found = in_turns(lab, sides)?.into_iter();
    let ours = found.next().context("no side")?.map_err(Missing)?;
    let others = sides.iter().skip(1).zip(found);
    Ok(others
        .map(|((name, _), other)| match other {
            Ok(theirs) => {
                Line::new(sides[0].0, time(ours), *name, time(theirs)).judged(theirs / ours, "x", goal)
            }
            Err(why) => Line::not_measured(0, why),
        })
        .collect())
}

/// A new volume with a store and `snapshots`.
fn volume(lab: &Lab, snapshots: u32) -> Result<()> {
    if lab.path("data.snap").exists() {
        fs::remove_file(lab.path("data.snap"))?;
    }
    Pattern::new(1).fill(&lab.path("data.img"), lab.size())?;
    let size = format!("{}M", (lab.size() >> 19) + 512);
    lab.run(&["initialize", "--size", &size, "data.snap", "data.img"])?;
    (1..=snapshots).try_for_each(|tag| lab.run(&["create", "data.snap", &tag.to_string()]))?;
    lab.settle()
}

/// Seconds that overwriting a volume with so many snapshots takes, as it is served; then every byte is looked at.
fn overwrite_ours(lab: &Lab, snapshots: u32, serve: Serve) -> Result<f64> {
    volume(lab, snapshots)?;
    let served = serve(lab)?;
    let took = served.fio(lab, &OVERWRITE)?.1;
    served.end()?;
    ensure_overwritten(lab, &lab.path("data.img"))?;
    if snapshots > 0 {
        lab.run(&["export", "data.snap", &snapshots.to_string(), "exported.img"])?;
        Pattern::new(1).fill(&lab.path("expected.img"), lab.size())?;
        lab.same("exported.img", "expected.img")?;
        ["exported.img", "expected.img"].iter().try_for_each(|name| fs::remove_file(lab.path(name)))?;
    }
    Ok(took)
}

/// Fails unless every byte of a volume is what fio wrote.
fn ensure_overwritten(lab: &Lab, path: &Path) -> Result<()> {
    let (mut file, mut buf) = (File::open(path)?, vec![0; 1 << 20]);
    let expected = BYTES.repeat(buf.len() / BYTES.len());
    for at in 0..lab.size() >> 20 {
        file.read_exact(&mut buf)?;
        ensure!(buf == expected, "MiB {at} of {} is not what fio wrote", path.display());
    }
    Ok(())
}

/// A way to read that has no end of its own.
struct Shape {
    what: &'static str,
    args: [&'static str; 3],
    /// What fio calls the speed.
    field: &'static str,
    /// In what it is told.
    unit: f64,
    words: &'static str,
}

const SHAPES: [Shape; 2] = [
    Shape {
        what: "1 MiB in order, 4 at a time",
        args: ["--rw=read", "--bs=1M", "--iodepth=4"],
        field: "bw_bytes",
        unit: 1048576.0,
        words: " MiB/s",
    },
    Shape {
        what: "4 KiB at random, 32 at a time",
        args: ["--rw=randread", "--bs=4k", "--iodepth=32"],
        field: "iops",
        unit: 1.0,
        words: " a second",
    },
];

impl Shape {
    /// How fast `place` is read.
    fn measure(&self, lab: &Lab, place: &[String]) -> Result<f64> {
        let runtime = format!("--runtime={}", seconds(lab) / 2);
        let report = served::fio(lab, place, &[&self.args[..], &["--time_based", &runtime]].concat())?.0;
        let speed = report["read"][self.field].as_f64().context("fio tells no speed")?;
        Ok(speed / self.unit)
    }

    fn line(&self, ours: f64, against: &str, theirs: f64) -> Line {
        let told = |speed| figure(speed, self.words);
        let line = Line::new(self.what, told(ours), against, told(theirs));
        line.judged(ours / theirs, "x", Goal::AtLeast(0.9))
    }
}

type Serve = fn(&Lab) -> Result<Served>;

/// Reads of a volume that is there, as we serve it and as another program does.
fn compare_reads(lab: &Lab, ours: Serve, (name, theirs): (&str, Serve)) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for shape in SHAPES {
        let read = |serve: Serve| -> Result<f64> {
            let served = serve(lab)?;
            let speed = shape.measure(lab, served.place())?;
            served.end()?;
            Ok(speed)
        };
        let sides: [Side<'_>; 2] = [(shape.what, &|| read(ours)), (name, &|| read(theirs))];
        let found: Vec<_> = in_turns(lab, &sides)?.into_iter().collect::<Result<_, _>>().map_err(Missing)?;
        let [ours, theirs] = found[..] else { bail!("two sides") };
        lines.push(shape.line(ours, name, theirs));
    }
    Ok(lines)
}
