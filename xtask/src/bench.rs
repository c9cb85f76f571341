//! First figures of throughput, as ratios to what a user would run instead, measured side by side in one run.
//! Everything is in the page cache, so this says what the program costs, not what a disk can do.

use crate::demo::{build, letter, noise};
use crate::report::table;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Bytes that `ddsnap write` hands to the store at once, and so between two flushes.
const COMMIT_BYTES: usize = 4 << 20;

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Size of the volume in MiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(16..=65536))]
    size: u64,
    /// Runs of each side; the median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=99))]
    runs: u16,
}

/// One comparison: what it is, how to prepare a run, what we run, what they run.
struct Case<'a> {
    name: &'static str,
    rival: &'static str,
    before: Box<dyn Fn() -> Result<()> + 'a>,
    ours: Box<dyn Fn() -> Result<()> + 'a>,
    theirs: Box<dyn Fn() -> Result<()> + 'a>,
}

/// Measures and prints the table.
pub fn run(args: &Args) -> Result<()> {
    let binary = build(false)?;
    let folder = tempfile::Builder::new().prefix("ddsnap-bench-").tempdir()?;
    let bench = Bench { binary, folder: folder.path().to_path_buf(), size: args.size << 20 };
    bench.prepare()?;
    let mut rows = Vec::new();
    for case in bench.cases() {
        println!("{} ...", case.name);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        // In turns, so that whatever else the machine does hits both.
        for _ in 0..args.runs {
            (case.before)()?;
            ours.push(seconds(&case.ours).with_context(|| case.name)?);
            (case.before)()?;
            theirs.push(seconds(&case.theirs).with_context(|| case.rival)?);
        }
        let (ours, theirs) = (median(ours), median(theirs));
        rows.push(vec![
            case.name.into(),
            rate(args.size, ours),
            case.rival.into(),
            rate(args.size, theirs),
            format!("{:.2}", theirs / ours),
        ]);
    }
    println!("\n{}", table(&["ddsnap", " MiB/s", "instead", " MiB/s", " ratio"], &rows));
    println!("{} MiB, medians of {}; a ratio above 1 means that ddsnap is faster.", args.size, args.runs);
    Ok(())
}

fn seconds(act: &dyn Fn() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    act()?;
    Ok(start.elapsed().as_secs_f64())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

fn rate(size_mib: u64, seconds: f64) -> String {
    format!("{:.0}", size_mib as f64 / seconds)
}

struct Bench {
    binary: PathBuf,
    folder: PathBuf,
    size: u64,
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn ddsnap(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args).current_dir(&self.folder);
        command
    }

    fn program(&self, name: &str, args: &[&str]) -> Command {
        let mut command = Command::new(name);
        command.args(args).current_dir(&self.folder);
        command
    }

    /// A volume, half of it compressible, new data for it, a store with one snapshot, and a raw delta of it.
    fn prepare(&self) -> Result<()> {
        for (name, seed) in [("vol.img", 0), ("new.img", 1 << 40)] {
            let mut file = File::create(self.path(name))?;
            let mut text = Vec::new();
            for i in 0..self.size >> 20 {
                text.clear();
                while text.len() < 512 << 10 {
                    text.extend(letter(seed + i * 64 + text.len() as u64));
                }
                text.truncate(512 << 10);
                file.write_all(&text)?;
                file.write_all(&noise(seed + i, 512 << 10))?;
            }
        }
        self.fresh_store()?;
        finish(&mut self.ddsnap(&["create-delta", "vol.snap", "0", "-r", "-g", "0", "-o", "full.delta"]))?;
        self.fresh_target()
    }

    fn fresh_store(&self) -> Result<()> {
        match fs::remove_file(self.path("vol.snap")) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
        // Room for every chunk once, and for what a store needs besides.
        let size = format!("{}M", (self.size >> 20) * 3 / 2 + 64);
        finish(&mut self.ddsnap(&["initialize", "--size", &size, "vol.snap", "vol.img"]))?;
        finish(&mut self.ddsnap(&["create", "vol.snap", "0"]))
    }

    fn fresh_target(&self) -> Result<()> {
        File::create(self.path("target.img"))?.set_len(self.size)?;
        Ok(())
    }

    fn cases(&self) -> Vec<Case<'_>> {
        let nothing = || Box::new(|| Ok(()));
        let raw = ["create-delta", "vol.snap", "0", "-r", "-g", "0"];
        let packed = ["create-delta", "vol.snap", "0", "-g", "1"];
        let dd = ["if=full.delta", "of=target.img", "bs=1M", "conv=notrunc,fsync", "status=none"];
        vec![
            Case {
                name: "create-delta, raw",
                rival: "cat",
                before: nothing(),
                ours: Box::new(move || drain(&mut self.ddsnap(&raw))),
                theirs: Box::new(|| drain(&mut self.program("cat", &["vol.img"]))),
            },
            Case {
                name: "create-delta, zstd 1",
                rival: "zstd -1 -T0",
                before: nothing(),
                ours: Box::new(move || drain(&mut self.ddsnap(&packed))),
                theirs: Box::new(|| drain(&mut self.program("zstd", &["-q", "-1", "-T0", "-c", "vol.img"]))),
            },
            Case {
                name: "apply-delta, raw",
                rival: "dd conv=fsync",
                before: Box::new(|| self.fresh_target()),
                ours: Box::new(|| finish(&mut self.ddsnap(&["apply-delta", "full.delta", "target.img"]))),
                theirs: Box::new(move || finish(&mut self.program("dd", &dd))),
            },
            Case {
                name: "write, all copied out",
                rival: "read, write, flush, write",
                before: Box::new(|| self.fresh_store()),
                ours: Box::new(|| {
                    let input = File::open(self.path("new.img"))?;
                    finish_with(&mut self.ddsnap(&["write", "vol.snap"]), input.into())
                }),
                theirs: Box::new(|| self.copy_out_by_hand()),
            },
        ]
    }

    /// What copying out cannot do without: read the old data, write it elsewhere, flush, write the new data.
    fn copy_out_by_hand(&self) -> Result<()> {
        let origin = File::options().read(true).write(true).open(self.path("vol.img"))?;
        let input = File::open(self.path("new.img"))?;
        let copy = File::create(self.path("copy"))?;
        let (mut old, mut new) = (vec![0; COMMIT_BYTES], vec![0; COMMIT_BYTES]);
        for offset in (0..self.size).step_by(COMMIT_BYTES) {
            input.read_exact_at(&mut new, offset)?;
            origin.read_exact_at(&mut old, offset)?;
            copy.write_all_at(&old, offset)?;
            copy.sync_data()?;
            origin.write_all_at(&new, offset)?;
        }
        origin.sync_data()?;
        Ok(())
    }
}

fn finish(command: &mut Command) -> Result<()> {
    finish_with(command, Stdio::null())
}

fn finish_with(command: &mut Command, input: Stdio) -> Result<()> {
    let text = crate::shell::words(command);
    let output = command.stdin(input).output().with_context(|| format!("cannot run {text}"))?;
    ensure!(
        output.status.success(),
        "{text}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Runs a command and reads what it writes into a pipe, as ssh would.
fn drain(command: &mut Command) -> Result<()> {
    let text = crate::shell::words(command);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut output = child.stdout.take().context("no pipe")?;
    let bytes = std::io::copy(&mut output, &mut std::io::sink())?;
    let status = child.wait()?;
    ensure!(status.success() && bytes > 0, "{text}: {status} after {bytes} bytes");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]).to_bits(), 2f64.to_bits());
        assert!(median(Vec::new()).is_nan());
    }
}
