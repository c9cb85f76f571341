//! A release archive that can be unpacked anywhere: binary, manual pages, completions, units of systemd, licences.

use crate::shell::{cargo, root, run as shell};
use crate::{docs, man};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::process::Command;

/// What goes along with the binary: place in the project, place in the archive.
const PARTS: [(&str, &str); 7] = [
    ("man", "share/man/man8"),
    ("completions", "share/ddsnap/completions"),
    ("systemd", "lib/systemd/system"),
    ("LICENSE-MIT", "LICENSE-MIT"),
    ("LICENSE-APACHE", "LICENSE-APACHE"),
    ("README.md", "README.md"),
    ("CHANGELOG.md", "CHANGELOG.md"),
];

/// Builds `target/dist/ddsnap-VERSION-TARGET.tar.gz`. The same sources give the same archive.
pub fn run() -> Result<()> {
    docs::run(true)?;
    man::run(true)?;
    shell(cargo().args(["build", "--release", "--locked", "--package", "ddsnap"]))?;
    let name = format!("ddsnap-{}-{}", env!("CARGO_PKG_VERSION"), host()?);
    let dist = root().join("target/dist");
    let folder = dist.join(&name);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot clear {}", folder.display()))?;
    }
    fs::create_dir_all(folder.join("bin"))?;
    let binary = folder.join("bin/ddsnap");
    fs::copy(root().join("target/release/ddsnap"), &binary).context("cannot copy the binary")?;
    shell(Command::new("strip").arg(&binary))?;
    for (from, to) in PARTS {
        copy(&root().join(from), &folder.join(to))?;
    }
    let archive = dist.join(format!("{name}.tar.gz"));
    let fixed = ["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mode=u=rwX,go=rX"];
    // gzip -n leaves the time of packing out.
    shell(
        Command::new("tar")
            .args(fixed)
            .arg(format!("--mtime=@{}", commit_time()))
            .args(["--use-compress-program", "gzip -n", "-cf"])
            .arg(&archive)
            .arg("-C")
            .arg(&dist)
            .arg(&name),
    )?;
    println!("{} ({} bytes)", archive.display(), fs::metadata(&archive)?.len());
    Ok(())
}

/// Copies a file, or the files (not the folders) of a folder.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let doing = || format!("cannot copy {}", from.display());
    if from.is_file() {
        fs::copy(from, to).with_context(doing)?;
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(doing)? {
        let entry = entry.with_context(doing)?;
        if entry.path().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).with_context(doing)?;
        }
    }
    Ok(())
}

/// The target triple that cargo builds for.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("cannot run rustc")?;
    let text = String::from_utf8(output.stdout)?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc names no host")?.to_owned())
}

/// Time of the commit, so that the archive does not depend on when it was made; 0 outside a checkout.
fn commit_time() -> String {
    let output = Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(root()).output();
    let time = output.ok().and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    let time = time.trim();
    if time.is_empty() { "0".into() } else { time.into() }
}
