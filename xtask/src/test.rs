//! `cargo xtask test`: everything that must hold before a change lands, with the time each step took.

use crate::report::table;
use crate::shell::{cargo, has, root, run as shell};
use crate::{bench, docs, man, tidy, vm};
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Arguments of `test`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Stop at the first step that fails
    #[arg(long)]
    fail_fast: bool,
    /// Run only the steps whose name contains this word
    #[arg(long)]
    only: Option<String>,
}

type Step = (&'static str, fn() -> Result<()>);

/// Cheap steps first: who forgot to format should not wait for the tests to hear of it.
const STEPS: [Step; 9] = [
    ("format", || shell(cargo().args(["fmt", "--all", "--", "--check"]))),
    ("tidy", tidy::run),
    ("lints", || {
        shell(cargo().args(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))
    }),
    ("tests", tests),
    ("virtual machine", virtual_machine),
    ("benchmarks work", bench::smoke),
    ("documents", || docs::run(true)),
    ("manual", || man::run(true)),
    ("dependencies", dependencies),
];

/// Runs the steps and prints what came of each.
pub fn run(args: &Args) -> Result<()> {
    let chosen = |name: &str| args.only.as_deref().is_none_or(|word| name.contains(word));
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for (name, step) in STEPS {
        if !chosen(name) || (args.fail_fast && !failed.is_empty()) {
            rows.push(vec![name.into(), "not run".into(), String::new()]);
            continue;
        }
        println!("\n=== {name}");
        let start = Instant::now();
        let result = step();
        let took = start.elapsed();
        if let Err(error) = &result {
            println!("=== {name} FAILED: {error:#}");
            failed.push(name);
        }
        let verdict = if result.is_ok() { "ok" } else { "FAILED" };
        rows.push(vec![name.into(), verdict.into(), seconds(took)]);
    }
    println!("\n{}", table(&["step", "result", " seconds"], &rows));
    if chosen("tests") {
        println!("{}", skipped());
    }
    if rows.iter().all(|row| row.get(1).is_some_and(|verdict| verdict == "not run")) {
        bail!("no step is called so; the steps are: {}", STEPS.map(|(name, _)| name).join(", "));
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("failed: {}", failed.join(", "));
}

/// Where the tests note what they did not run, for want of a program or of leave.
fn skip_list() -> PathBuf {
    root().join("target/skipped")
}

fn tests() -> Result<()> {
    let list = skip_list();
    std::fs::create_dir_all(root().join("target"))?;
    std::fs::write(&list, "")?;
    shell(cargo().args(["test", "--workspace", "--locked"]).env("DDSNAP_SKIPPED", &list))
}

/// The tests that need devices of the kernel.
fn virtual_machine() -> Result<()> {
    match vm::step()? {
        Some(reason) => note_skipped(&format!("{reason}\n")),
        None => Ok(()),
    }
}

/// Notes reasons, a line each, why something was not tested.
pub fn note_skipped(reasons: &str) -> Result<()> {
    std::fs::create_dir_all(root().join("target"))?;
    let mut list = OpenOptions::new().append(true).create(true).open(skip_list())?;
    Ok(list.write_all(reasons.as_bytes())?)
}

/// One line: how many cases did not run, and why.
fn skipped() -> String {
    let list = std::fs::read_to_string(skip_list()).unwrap_or_default();
    let mut reasons = BTreeMap::<&str, u32>::new();
    for reason in list.lines() {
        *reasons.entry(reason).or_default() += 1;
    }
    let count: u32 = reasons.values().sum();
    let reasons: Vec<String> = reasons.iter().map(|(reason, count)| format!("{reason} ({count})")).collect();
    match count {
        0 => "skipped: nothing".to_owned(),
        _ => format!("SKIPPED {count} cases: {}", reasons.join("; ")),
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64())
}

/// Licences, sources and duplicates of every dependency. Advisories need a download and are left to a schedule.
fn dependencies() -> Result<()> {
    if !has("cargo-deny") {
        println!("cargo-deny is not installed: installing it (several minutes, once)");
        // Unoptimised: it compiles in half the time and has little to do.
        shell(cargo().args(["install", "--locked", "--debug", "cargo-deny"]))?;
    }
    shell(cargo().args(["deny", "--workspace", "--locked", "check", "bans", "licenses", "sources"]))
}
