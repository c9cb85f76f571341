//! The rules of the house that no lint knows: who may import whom, how long a file, a function and a line may
//! be, and what must not be left behind. A style that no test enforces is a wish.

mod files;
mod functions;
mod imports;
mod scan;
mod text;

use crate::shell::root;
use anyhow::{Context, Result, bail};
use scan::Source;
use std::fs;
use std::path::Path;

/// Folders with Rust code.
const CODE: [&str; 5] = ["src", "tests", "benches", "fuzz", "xtask"];
/// Other places whose text is checked for leftovers.
const PROSE: [&str; 11] = [
    ".ci",
    "docs",
    "man",
    "testdata",
    "README.md",
    "CHANGELOG.md",
    "Cargo.toml",
    "clippy.toml",
    "deny.toml",
    "rustfmt.toml",
    ".gitignore",
];

/// Checks everything and lists what it finds; warnings alone do not fail.
pub fn run() -> Result<()> {
    let mut sources = Vec::new();
    for folder in CODE {
        collect(folder, &mut |path, text| {
            if path.ends_with(".rs") {
                sources.push(Source::new(path, text));
            }
        })?;
    }
    let mut findings = Vec::new();
    for source in &sources {
        findings.extend(imports::check(source));
        findings.extend(functions::check(source));
        findings.extend(files::check(source));
        findings.extend(text::check(source.path(), source.text(), true));
    }
    findings.extend(files::check_reachable(&sources));
    for place in PROSE {
        collect(place, &mut |path, text| findings.extend(text::check(path, text, false)))?;
    }
    for finding in &findings {
        println!("{finding}");
    }
    let errors = findings.iter().filter(|finding| !finding.warning).count();
    if sources.is_empty() {
        bail!("found no source files to check");
    }
    if errors > 0 {
        bail!("tidy: {errors} errors in {} files", sources.len());
    }
    println!("tidy: {} files, {} warnings", sources.len(), findings.len());
    Ok(())
}

/// Something to put right.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    /// From 1; 0 for the file as a whole.
    line: usize,
    what: String,
    warning: bool,
}

impl Finding {
    fn error(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self { path: path.into(), line, what: what.into(), warning: false }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let level = if self.warning { "warning" } else { "error" };
        let Self { path, line, what, .. } = self;
        if *line == 0 {
            write!(f, "{path}: {level}: {what}")
        } else {
            write!(f, "{path}:{line}: {level}: {what}")
        }
    }
}

/// Calls `visit` with path (below the workspace) and text of every text file at `place`, in order of name.
fn collect(place: &str, visit: &mut dyn FnMut(&str, &str)) -> Result<()> {
    let full = root().join(place);
    if full.is_file() {
        // What is not text (a golden image) has no style.
        if let Ok(text) = String::from_utf8(fs::read(&full).with_context(|| format!("cannot read {place}"))?)
        {
            visit(place, &text);
        }
        return Ok(());
    }
    let Ok(entries) = fs::read_dir(&full) else { return Ok(()) };
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    for name in names {
        let skip = ["target", "corpus", "artifacts", "coverage"]
            .iter()
            .any(|skip| Path::new(skip) == Path::new(&name));
        if !skip {
            collect(&format!("{place}/{}", name.to_string_lossy()), visit)?;
        }
    }
    Ok(())
}
