//! Rows 7 and 8: through FUSE, and a file system on it.

use super::served::{OVERWRITE, Served, device};
use super::{Side, compare_reads, ensure_overwritten, in_turns, overwrite_ours, times, volume};
use crate::bench::data::{Pattern, sparse};
use crate::bench::lab::{Lab, Missing, finish, need};
use crate::bench::sheet::{Goal, Line, Row, mib, time};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

pub fn rows() -> Vec<Row> {
    vec![
        Row {
            number: 7,
            what: "a volume as a file",
            volumes: 24,
            commands: "fio --ioengine=libaio --direct=1, otherwise as rows 4 and 5\n\
                       ddsnap server data.snap --fuse DIR; bindfs -f SOURCE DIR",
            limit: "Beneath both is the page cache: what is measured is the way through FUSE and back.",
            measure: through_fuse,
        },
        Row {
            number: 8,
            what: "unpacking a large source tree, and sync",
            volumes: 24,
            commands: "tar -xf tree.tar -C ext4; sync -f ext4\n\
                       ext4 on a loop device with direct I/O on the file that the server shows\n\
                       the same on the file itself, without server and snapshots\n\
                       the bytes alone: the same on the file itself, then dd bs=8M oflag=dsync of as many as our \
                       store has taken",
            limit: "The historical benchmark of snapshots. What the tree overwrites is copied out once, however many \
                    snapshots there are; flushes of the file system's journal wait for it. The last line is what \
                    nobody can save on this device who keeps what was there.",
            measure: unpack,
        },
    ]
}

/// The folder of `data.img` once more, through FUSE.
fn passthrough(lab: &Lab) -> Result<Served> {
    need("bindfs")?;
    let (there, file) = (lab.path("through"), lab.path("through/data.img"));
    fs::create_dir_all(&there)?;
    let source = lab.path("").display().to_string();
    let child = lab.program("bindfs", &["-f", &source, "through"]).spawn()?;
    Served::start(child, || file.exists(), device(&file))
}

fn through_fuse(lab: &Lab) -> Result<Vec<Line>> {
    volume(lab, 1)?;
    let mut lines = compare_reads(lab, Served::ours_as_file, ("bindfs", passthrough))?;
    let overwrite_theirs = || {
        Pattern::new(1).fill(&lab.path("data.img"), lab.size())?;
        lab.settle()?;
        let served = passthrough(lab)?;
        let took = served.fio(lab, &OVERWRITE)?.1;
        served.end()?;
        ensure_overwritten(lab, &lab.path("data.img"))?;
        Ok(took)
    };
    let sides: [Side<'_>; 2] = [
        ("16 KiB at random, 32 at a time, no snapshot", &|| overwrite_ours(lab, 0, Served::ours_as_file)),
        ("bindfs", &overwrite_theirs),
    ];
    lines.extend(times(lab, &sides, Goal::AtLeast(0.9))?);
    Ok(lines)
}

/// Sources of the crates that this program is made of, packed; their bytes.
fn tree(lab: &Lab) -> Result<u64> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let sources = home.context("no home folder")?.join("registry/src");
    if !sources.is_dir() {
        bail!(Missing("cargo keeps no sources here".into()));
    }
    finish(lab.program("tar", &["-cf", "tree.tar", "-C"]).arg(sources).arg("."))?;
    Ok(fs::metadata(lab.path("tree.tar"))?.len())
}

/// A loop device, until it is dropped.
struct Loop(String);

impl Loop {
    fn new(file: &Path) -> Result<Self> {
        let output = Command::new("losetup").args(["-f", "--show", "--direct-io=on"]).arg(file).output()?;
        if !output.status.success() {
            bail!(Missing(format!("no loop device: {}", String::from_utf8_lossy(&output.stderr).trim())));
        }
        Ok(Self(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // The kernel takes it away when nobody uses it any more.
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// Seconds that saving so many bytes of the volume takes at least: in one piece, as fast as can be.
fn save(lab: &Lab, bytes: u64) -> Result<f64> {
    let (count, from) = (format!("count={bytes}"), "iflag=count_bytes,fullblock");
    let begun = Instant::now();
    let args = ["if=data.img", "of=saved.img", "bs=8M", &count, from, "oflag=dsync", "status=none"];
    finish(&mut lab.program("dd", &args))?;
    let took = begun.elapsed().as_secs_f64();
    fs::remove_file(lab.path("saved.img"))?;
    Ok(took)
}

/// Seconds that unpacking takes on the file system in `file`.
fn unpack_on(lab: &Lab, file: &Path) -> Result<f64> {
    let device = Loop::new(file)?;
    fs::create_dir_all(lab.path("ext4"))?;
    finish(&mut lab.program("mount", &[&device.0, "ext4"]))?;
    let measured = || {
        let begun = Instant::now();
        finish(&mut lab.program("tar", &["-xf", "tree.tar", "-C", "ext4"]))?;
        finish(&mut lab.program("sync", &["-f", "ext4"]))?;
        Ok(begun.elapsed().as_secs_f64())
    };
    let took = measured();
    finish(&mut lab.program("umount", &["ext4"]))?;
    took
}

/// An empty file system on a volume that has been in use: no byte of it is a hole.
fn empty_file_system(lab: &Lab, size: u64) -> Result<()> {
    Pattern::new(1).fill(&lab.path("data.img"), size)?;
    finish(&mut lab.program("mkfs.ext4", &["-q", "-F", "-E", "nodiscard", "data.img"])).map(drop)
}

fn unpack_ours(lab: &Lab, size: u64, snapshots: u32) -> Result<f64> {
    empty_file_system(lab, size)?;
    sparse(&lab.path("data.snap"), 2 * size)?;
    lab.run(&["initialize", "--yes", "data.snap", "data.img"])?;
    (1..=snapshots).try_for_each(|tag| lab.run(&["create", "data.snap", &tag.to_string()]))?;
    lab.settle()?;
    let served = Served::ours_as_file(lab)?;
    let took = unpack_on(lab, &lab.path("fuse/origin"))?;
    served.end()?;
    finish(&mut lab.program("e2fsck", &["-fn", "data.img"]))?;
    lab.run(&["fsck", "-n", "--data", "data.snap"])?;
    Ok(took)
}

fn unpack_bare(lab: &Lab, size: u64) -> Result<f64> {
    empty_file_system(lab, size)?;
    lab.settle()?;
    unpack_on(lab, &lab.path("data.img"))
}

/// Bytes of chunks in the store.
fn preserved(lab: &Lab) -> Result<u64> {
    let status = finish(&mut lab.ddsnap(&["status", "--json", "data.snap"]))?;
    let status: Value = serde_json::from_slice(&status.stdout)?;
    status["store"]["data_bytes"].as_u64().context("no bytes of data are told")
}

fn unpack(lab: &Lab) -> Result<Vec<Line>> {
    const COUNTS: [u32; 4] = [0, 1, 10, 100];
    need("mkfs.ext4")?;
    let bytes = tree(lab)?;
    let size = (bytes * 2).next_multiple_of(64 << 20).max(lab.size());
    let names = COUNTS.map(|count| format!("{count} snapshots"));
    let acts = COUNTS.map(|count| move || unpack_ours(lab, size, count));
    let bare = || unpack_bare(lab, size);
    let mut sides: Vec<Side<'_>> = vec![("the file itself", &bare)];
    sides.extend(names.iter().zip(&acts).map(|(name, act)| (name.as_str(), act as &dyn Fn() -> Result<f64>)));
    let found: Vec<f64> = in_turns(lab, &sides)?.into_iter().collect::<Result<_, _>>().map_err(Missing)?;
    let [bare, ours @ ..] = &found[..] else { bail!("no side") };
    let line = |(name, took): (&String, &f64)| {
        let what = format!("{} in a tar file, {name}", mib(bytes));
        Line::new(what, time(*took), "the file itself", time(*bare)).judged(
            took / bare,
            "x",
            Goal::AtMost(1.3),
        )
    };
    let mut lines: Vec<Line> = names.iter().zip(ours).map(line).collect();
    // The side that came last had snapshots.
    let kept = preserved(lab)?;
    let alone = || Ok(unpack_bare(lab, size)? + save(lab, kept)?);
    let found = in_turns(lab, &[("the bytes alone", &alone)])?.into_iter().next().context("no side")?;
    let alone = found.map_err(Missing)?;
    let what = format!("the bytes alone, {} of them saved", mib(kept));
    let line = Line::new(what, time(alone), "the file itself", time(*bare));
    lines.push(line.judged(alone / bare, "x", Goal::Told));
    Ok(lines)
}
