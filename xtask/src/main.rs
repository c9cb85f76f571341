//! The project's chores: `cargo xtask demo` shows the program at work, `cargo xtask test` says whether a change
//! may land. Everything else here is a part of one of the two or of a release.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "chores talk to the person who runs them")]

mod bench;
mod demo;
mod dist;
mod docs;
mod interop;
mod man;
mod report;
mod shell;
mod soak;
mod test;
mod tidy;
mod vm;

use clap::Parser;
use std::process::ExitCode;

/// Chores of the ddsnap project.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
enum Chore {
    /// See the program at work: a real file system, two snapshots, a replica, compared byte by byte
    Demo(demo::Args),
    /// Everything that must hold before a change lands: format, lints, tests, tidy, documents, licences
    Test(test::Args),
    /// Rules of the house that no lint knows: who imports whom, lengths, leftovers
    Tidy,
    /// Write the generated parts of docs/
    Docs(docs::Args),
    /// Write the manual pages and shell completions
    Man(docs::Args),
    /// Measure beside what a user would run instead, and write docs/benchmarks.md
    Bench(bench::Args),
    /// Kill commands at any moment (kill -9), and compare every byte that must still be there
    Soak(soak::Args),
    /// Test with real kernel devices, or run a command, in a throw-away machine (user-mode Linux)
    Vmtest(vm::Args),
    /// Exchange diffs with a real Ceph, installed by apt where that is possible
    Interop,
    /// Build a release archive: binary, pages, completions, licences
    Dist,
}

fn main() -> ExitCode {
    let result = match Chore::parse() {
        Chore::Demo(args) => demo::run(&args),
        Chore::Bench(args) => bench::run(&args),
        Chore::Test(args) => test::run(&args),
        Chore::Tidy => tidy::run(),
        Chore::Docs(args) => docs::run(args.check),
        Chore::Man(args) => man::run(args.check),
        Chore::Soak(args) => soak::run(&args),
        Chore::Vmtest(args) => vm::run(&args),
        Chore::Interop => interop::run(),
        Chore::Dist => dist::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
