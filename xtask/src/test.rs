//! `cargo xtask test`: everything that must hold before a change lands, with the time each step took.

use crate::report::table;
use crate::shell::{cargo, has, run as shell};
use crate::{bench, docs, man, tidy};
use anyhow::{Result, bail};
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
const STEPS: [Step; 8] = [
    ("format", || shell(cargo().args(["fmt", "--all", "--", "--check"]))),
    ("tidy", tidy::run),
    ("lints", || {
        shell(cargo().args(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))
    }),
    ("tests", || shell(cargo().args(["test", "--workspace", "--locked"]))),
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
    if rows.iter().all(|row| row.get(1).is_some_and(|verdict| verdict == "not run")) {
        bail!("no step is called so; the steps are: {}", STEPS.map(|(name, _)| name).join(", "));
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("failed: {}", failed.join(", "));
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
