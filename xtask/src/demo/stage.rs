//! Runs the program in the folder of the demonstration, shows what a person would type and see, and keeps count.

use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

const PIECE_BYTES: usize = 1 << 20;

pub struct Stage<'a> {
    binary: &'a Path,
    folder: &'a Path,
    /// Rows of the last table.
    pub timings: Vec<Vec<String>>,
    /// Claims that were checked and held.
    pub checks: usize,
}

/// Bytes as people read them.
pub fn mib(bytes: u64) -> String {
    if bytes < 1 << 20 { format!("{} KiB", bytes.div_ceil(1 << 10)) } else { format!("{} MiB", bytes >> 20) }
}

impl<'a> Stage<'a> {
    pub fn new(binary: &'a Path, folder: &'a Path) -> Self {
        Self { binary, folder, timings: Vec::new(), checks: 0 }
    }

    pub fn folder(&self) -> &Path {
        self.folder
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn chapter(&self, title: &str) {
        println!("\n== {title}");
    }

    pub fn say(&self, text: &str) {
        println!("\n  {text}");
    }

    /// Shows a claim that was checked.
    pub fn passed(&mut self, claim: &str) {
        self.checks += 1;
        println!("  [ok] {claim}");
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.binary);
        command.args(args).current_dir(self.folder).stdin(Stdio::null());
        command
    }

    /// Runs the program and shows what it prints; it must succeed.
    pub fn run(&self, args: &[&str]) -> Result<()> {
        self.run_expecting(args, 0)
    }

    /// Runs the program, which must end with that status.
    pub fn run_expecting(&self, args: &[&str], status: i32) -> Result<()> {
        println!("  $ ddsnap {}", args.join(" "));
        let output = self.command(args).output().context("cannot run ddsnap")?;
        for stream in [&output.stdout, &output.stderr] {
            for line in String::from_utf8_lossy(stream).lines() {
                println!("    {line}");
            }
        }
        ensure!(
            output.status.code() == Some(status),
            "ddsnap {} ended with {}, expected status {status}",
            args.join(" "),
            output.status
        );
        if status != 0 {
            println!("    (status {status})");
        }
        Ok(())
    }

    /// Runs `from | to` and returns the bytes that went through the pipe.
    pub fn pipe(&self, from: &[&str], to: &[&str]) -> Result<u64> {
        println!("  $ ddsnap {} | ddsnap {}", from.join(" "), to.join(" "));
        let mut from = self.command(from).stdout(Stdio::piped()).spawn().context("cannot run ddsnap")?;
        let mut to = self.command(to).stdin(Stdio::piped()).spawn().context("cannot run ddsnap")?;
        let mut source = from.stdout.take().context("no pipe to read from")?;
        let mut sink = to.stdin.take().context("no pipe to write to")?;
        // Passed on by us, so that it can be counted.
        let sent = std::io::copy(&mut source, &mut sink);
        drop(sink);
        drop(source);
        let (from, to) = (from.wait()?, to.wait()?);
        if !from.success() || !to.success() {
            bail!("the pipe broke: sender {from}, receiver {to}");
        }
        Ok(sent?)
    }

    /// Does something that moves `bytes` and notes how long it took.
    pub fn timed<T>(
        &mut self,
        what: &str,
        bytes: u64,
        act: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let start = Instant::now();
        let result = act(self)?;
        let seconds = start.elapsed().as_secs_f64().max(1e-6);
        // Sizes here are far below the numbers that a float cannot hold.
        let size_mib = bytes as f64 / f64::from(1 << 20);
        let row = [
            what.into(),
            format!("{size_mib:.1}"),
            format!("{seconds:.2}"),
            format!("{:.0}", size_mib / seconds),
        ];
        self.timings.push(row.to_vec());
        Ok(result)
    }

    /// Claims that two files hold the same bytes.
    pub fn same(&mut self, a: &str, b: &str, claim: &str) -> Result<()> {
        match first_difference(&self.path(a), &self.path(b))? {
            None => {
                self.passed(&format!("{claim}: {a} and {b} are the same, byte by byte"));
                Ok(())
            }
            Some(offset) => bail!("{a} and {b} differ at byte {offset}; expected: {claim}"),
        }
    }

    /// BLAKE3 of a file.
    pub fn digest(&self, name: &str) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(self.path(name))?)?;
        Ok(hasher.finalize().to_hex().to_string())
    }
}

/// The first byte in which two files differ; the end of the shorter one counts.
fn first_difference(a: &Path, b: &Path) -> Result<Option<u64>> {
    let open = |path: &Path| File::open(path).with_context(|| format!("cannot open {}", path.display()));
    let (mut a, mut b) = (open(a)?, open(b)?);
    let (mut buf_a, mut buf_b) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    let mut offset = 0;
    loop {
        let (len_a, len_b) = (read_full(&mut a, &mut buf_a)?, read_full(&mut b, &mut buf_b)?);
        let (piece_a, piece_b) = (&buf_a[..len_a], &buf_b[..len_b]);
        if piece_a != piece_b {
            let same = piece_a.iter().zip(piece_b).take_while(|(a, b)| a == b).count();
            return Ok(Some(offset + same as u64));
        }
        if len_a == 0 {
            return Ok(None);
        }
        offset += len_a as u64;
    }
}

fn read_full(file: &mut File, buf: &mut [u8]) -> Result<usize> {
    let mut len = 0;
    while len < buf.len() {
        match file.read(&mut buf[len..])? {
            0 => break,
            got => len += got,
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_found_wherever_it_is() {
        let dir = tempfile::TempDir::new().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let mut bytes = vec![7; PIECE_BYTES + 10];
        let a = file("a", &bytes);
        let shorter = file("shorter", &bytes[..PIECE_BYTES + 9]);
        bytes[PIECE_BYTES + 5] = 8;
        let b = file("b", &bytes);
        assert_eq!(first_difference(&a, &a).unwrap(), None);
        assert_eq!(first_difference(&a, &b).unwrap(), Some(PIECE_BYTES as u64 + 5));
        assert_eq!(first_difference(&a, &shorter).unwrap(), Some(PIECE_BYTES as u64 + 9));
        assert_eq!(first_difference(&shorter, &a).unwrap(), Some(PIECE_BYTES as u64 + 9));
    }
}
