//! `cargo xtask interop`: diffs exchanged with a real Ceph. No part of the normal test run, for it needs Ceph's
//! packages; QEMU and bmaptool are asked by the normal tests, where they are installed.

use crate::shell::{cargo, has, root, run as shell};
use anyhow::{Context, Result, bail};
use std::process::Command;

/// What must be there, and the Debian packages that bring it.
const PROGRAMS: [&str; 4] = ["ceph-mon", "ceph-osd", "ceph", "rbd"];
const PACKAGES: [&str; 3] = ["ceph-mon", "ceph-osd", "ceph-common"];

/// Installs what is missing where that is possible, starts a monitor and an OSD in memory, exchanges diffs.
pub fn run() -> Result<()> {
    let missing = || PROGRAMS.iter().any(|program| !has(program));
    if missing() && is_root()? && has("apt-get") {
        let mut install = Command::new("apt-get");
        install.args(["install", "-y", "--no-install-recommends"]).args(PACKAGES);
        shell(&mut install)?;
    }
    if missing() {
        println!("SKIPPED: interop with Ceph needs {} ({})", PROGRAMS.join(", "), PACKAGES.join(", "));
        return Ok(());
    }
    shell(cargo().args(["build", "--release", "--locked", "--package", "ddsnap"]))?;
    let metadata = cargo().args(["metadata", "--format-version=1", "--no-deps"]).output()?;
    let text = String::from_utf8(metadata.stdout).context("cargo metadata is no text")?;
    let folder = text.split("\"target_directory\":\"").nth(1).and_then(|rest| rest.split('"').next());
    let Some(folder) = folder else { bail!("cargo metadata names no target directory") };
    let script = root().join("xtask/src/interop.sh");
    shell(Command::new("bash").arg(script).arg(format!("{folder}/release/ddsnap")))
}

fn is_root() -> Result<bool> {
    let output = Command::new("id").arg("-u").output().context("cannot run `id`")?;
    Ok(output.stdout == b"0\n")
}
