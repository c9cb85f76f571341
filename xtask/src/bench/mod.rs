//! `cargo xtask bench`: what the program costs, measured side by side in one run with what a user would run
//! instead. Each row also compares the bytes it made: a fast wrong answer is a failure.
//!
//! | file | owns |
//! |---|---|
//! | `lab` | the scratch folder, running and timing, alternating repetitions |
//! | `data` | volumes, their changes, and stores made by the engine itself |
//! | `streams` | rows 1 to 6: deltas and comparisons against cat, zstd, dd and cmp |
//! | `engine` | rows 7 to 10: changelists, copy-outs and deletes in small and large stores |
//! | `large` | rows 11 to 13: a sparse terabyte, memory and space |
//! | `check` | rows 14 to 16: fsck against thin_check and dd |
//! | `old` | rows 17 and 18: a store of 2008 |
//! | `online` | `bench online`: a served volume, with a page of its own |
//! | `sheet` | the table, its verdicts, and docs/benchmarks.md |

mod check;
mod data;
mod engine;
mod lab;
mod large;
mod old;
mod online;
mod sheet;
mod streams;

use crate::demo::build;
use crate::shell::{cargo, run as shell};
use anyhow::{Context, Result, bail, ensure};
use lab::Lab;
use sheet::{Line, Row};
use std::path::PathBuf;
use std::time::Instant;

/// MiB of the volume for which the goals are meant.
const FULL_SIZE: u64 = 4096;

/// MiB below which constant costs hide what the rows are about: such a run does not replace docs/benchmarks.md.
const WRITE_SIZE: u64 = 1024;

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// Only these rows of the table (repeatable)
    #[arg(long, value_name = "ROW", value_parser = clap::value_parser!(u8).range(1..=18))]
    only: Vec<u8>,
    /// Size of the volume in MiB; other sizes of the rows are in proportion to it
    #[arg(long, value_name = "MIB", default_value_t = FULL_SIZE)]
    #[arg(value_parser = clap::value_parser!(u64).range(16..=65536))]
    size: u64,
    /// Folder for the scratch files; the build folder by default
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Repetitions of each side, alternating; the median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=99))]
    runs: u16,
}

/// Other tables.
#[derive(Debug, clap::Subcommand)]
enum What {
    /// Measure a served volume, and write docs/benchmarks-online.md
    Online(online::Args),
}

/// Measures and prints the table; a whole run, of a GiB at least and five repetitions, also writes docs/benchmarks.md.
pub fn run(args: &Args) -> Result<()> {
    if let Some(What::Online(args)) = &args.what {
        // Nothing is measured inside this process.
        return online::run(args);
    }
    if cfg!(debug_assertions) {
        return run_optimised();
    }
    let lines = measure(args, build(false)?)?;
    if args.only.is_empty() && args.size >= WRITE_SIZE && args.runs >= 5 {
        let folder = args.dir.clone().unwrap_or_else(|| crate::shell::root().join("target"));
        sheet::write(&rows(), &lines, &sheet::machine(&folder, args.size, args.runs))?;
    }
    Ok(())
}

/// Every row with tiny sizes and the development build: proves that each can be measured and that its bytes are
/// right, and says nothing of time.
pub fn smoke() -> Result<()> {
    let args = Args { what: None, only: Vec::new(), size: 16, dir: None, runs: 1 };
    measure(&args, build(true)?)?;
    online::smoke()
}

/// The engine is also measured inside this process, so it must be a release build as well.
fn run_optimised() -> Result<()> {
    println!("Building the release build of the benchmarks ...");
    let mut command = cargo();
    command.args(["run", "--quiet", "--locked", "--release", "--package", "xtask", "--"]);
    shell(command.args(std::env::args_os().skip(1)))
}

fn rows() -> Vec<Row> {
    [streams::rows(), engine::rows(), large::rows(), check::rows(), old::rows()]
        .into_iter()
        .flatten()
        .collect()
}

fn measure(args: &Args, binary: PathBuf) -> Result<Vec<Line>> {
    let chosen: Vec<Row> =
        rows().into_iter().filter(|row| args.only.is_empty() || args.only.contains(&row.number)).collect();
    let lab = Lab::new(binary, args.dir.as_deref(), args.size << 20, args.runs.into())?;
    // Rows clean up after themselves, so the hungriest one decides.
    let needed = chosen.iter().map(|row| row.volumes).max().unwrap_or(0) * lab.size() / 4 + (1 << 30);
    let free = lab.free_bytes()?;
    ensure!(
        free >= needed,
        "the scratch folder has {} MiB free, {} MiB are needed; --dir and --size change both",
        free >> 20,
        needed >> 20
    );
    let mut lines = Vec::new();
    for row in &chosen {
        let start = Instant::now();
        println!("{:2}  {} ...", row.number, row.what);
        match (row.measure)(&lab) {
            Ok(found) => lines.extend(found.into_iter().map(|line| line.of(row.number))),
            Err(error) => match error.downcast_ref::<lab::Missing>() {
                // A tool that this machine lacks must not pass for a measurement, nor stop the others.
                Some(missing) if std::env::var_os("CI").is_none() => {
                    println!("    NOT MEASURED: {missing}");
                    lines.push(Line::not_measured(row.number, missing.to_string()));
                }
                _ => return Err(error).with_context(|| format!("row {}: {}", row.number, row.what)),
            },
        }
        println!("    {:.1} s", start.elapsed().as_secs_f64());
        lab.clear()?;
        if lab.stop_wanted() {
            bail!("interrupted");
        }
    }
    println!("\n{}", sheet::console(&lines));
    println!("{} MiB, medians of {} alternating repetitions of each side.", args.size, args.runs);
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_numbered_without_gaps() {
        let numbers: Vec<u8> = rows().iter().map(|row| row.number).collect();
        assert_eq!(numbers, (1..=18).collect::<Vec<_>>());
    }
}
