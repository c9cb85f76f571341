//! Servers, ours and others', and fio on what they serve.

use crate::bench::lab::{Lab, finish, need};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// What fio writes: known, so that it can be found again, and no zeroes.
pub const BYTES: [u8; 4] = [0xde, 0xad, 0xbe, 0xef];

/// Writes all of a volume, at random.
pub const OVERWRITE: [&str; 4] = ["--rw=randwrite", "--bs=16k", "--iodepth=32", "--end_fsync=1"];

/// A server that is ended with this.
pub struct Served {
    child: Child,
    /// Words that tell fio where it is.
    place: Vec<String>,
}

/// A file or device, used past the page cache.
pub fn device(path: &Path) -> Vec<String> {
    vec!["--ioengine=libaio".into(), "--direct=1".into(), format!("--filename={}", path.display())]
}

/// Runs fio on `place`; returns its report and how many seconds it took.
pub fn fio(lab: &Lab, place: &[String], args: &[&str]) -> Result<(Value, f64)> {
    let size = format!("--size={}", lab.size());
    let pattern = format!("--buffer_pattern=0x{}", BYTES.map(|byte| format!("{byte:02x}")).concat());
    let common = ["--name=x", &size, &pattern, "--output-format=json"];
    let begun = Instant::now();
    let output = finish(lab.program("fio", &common).args(place).args(args))?;
    let took = begun.elapsed().as_secs_f64();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let start = text.find('{').context("fio reports nothing")?;
    let report: Value = serde_json::from_str(text.get(start..).unwrap_or_default())?;
    Ok((report["jobs"][0].clone(), took))
}

impl Served {
    /// Waits until `is_up`; then it is at `place`.
    pub fn start(mut child: Child, is_up: impl Fn() -> bool, place: Vec<String>) -> Result<Self> {
        let begun = Instant::now();
        while !is_up() {
            if let Some(status) = child.try_wait()? {
                bail!("a server ended at once: {status}");
            }
            ensure!(begun.elapsed() < Duration::from_secs(60), "no server: {}", place.join(" "));
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(200));
        Ok(Self { child, place })
    }

    fn nbd(lab: &Lab, child: Child, socket: &str, export: &str) -> Result<Self> {
        let path = lab.path(socket);
        let uri = format!("--uri=nbd+unix:///{export}?socket={}", path.display());
        Self::start(child, || path.exists(), vec!["--ioengine=nbd".into(), uri])
    }

    /// Our server of `data.snap`, over NBD.
    pub fn ours(lab: &Lab) -> Result<Self> {
        Self::ours_of(lab, "data.snap")
    }

    /// As [`Served::ours`], of another store.
    pub fn ours_of(lab: &Lab, store: &str) -> Result<Self> {
        let mut command = lab.ddsnap(&["server", store, "--socket", "sock", "--nbd", "unix:nbd"]);
        Self::nbd(lab, command.stderr(Stdio::null()).spawn()?, "nbd", "origin")
    }

    /// Our server of `data.snap`, as file `fuse/origin`.
    pub fn ours_as_file(lab: &Lab) -> Result<Self> {
        fs::create_dir_all(lab.path("fuse"))?;
        let mut command = lab.ddsnap(&["server", "data.snap", "--socket", "sock", "--fuse", "fuse"]);
        let file = lab.path("fuse/origin");
        Self::start(command.stderr(Stdio::null()).spawn()?, || file.exists(), device(&file))
    }

    /// Another server of NBD; `args` tell it to listen at `other`.
    pub fn other(lab: &Lab, program: &str, args: &[&str]) -> Result<Self> {
        need(program)?;
        if lab.path("other").exists() {
            fs::remove_file(lab.path("other"))?;
        }
        Self::nbd(lab, lab.program(program, args).spawn()?, "other", "")
    }

    /// A file as it is, without any snapshot, over NBD.
    pub fn file(lab: &Lab, image: &str) -> Result<Self> {
        let socket = lab.path("other").display().to_string();
        Self::other(lab, "nbdkit", &["-f", "-U", &socket, "file", image])
    }

    /// The words that tell fio where it is.
    pub fn place(&self) -> &[String] {
        &self.place
    }

    /// As [`fio`] on it.
    pub fn fio(&self, lab: &Lab, args: &[&str]) -> Result<(Value, f64)> {
        fio(lab, &self.place, args)
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as a service manager does, and waits.
    pub fn end(mut self) -> Result<()> {
        self.terminate();
        let status = self.child.wait()?;
        ensure!(status.success() || status.code().is_none(), "a server ended: {status}");
        Ok(())
    }

    fn terminate(&self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // One that has ended already needs none.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.terminate();
            let _ = self.child.wait();
        }
    }
}
