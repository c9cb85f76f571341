//! Files: not too long, introduced by their purpose, and part of something.

use super::Finding;
use super::scan::{Source, words};
use std::collections::BTreeSet;

/// From here on a file should become a folder; tests do not count.
const LINES_WARN: usize = 700;
/// From here on it must.
const LINES_MAX: usize = 900;

/// Length and introduction of one file.
pub fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let lines = source.lines_of_code();
    if lines > LINES_WARN {
        let what = format!("{lines} lines: make it a folder by meaning (at most {LINES_MAX})");
        findings.push(Finding { warning: lines <= LINES_MAX, ..Finding::error(source.path(), 0, what) });
    }
    let opens_folder =
        ["mod.rs", "lib.rs", "main.rs"].iter().any(|name| source.path().ends_with(&format!("/{name}")));
    if opens_folder && !source.text().starts_with("//!") {
        findings.push(Finding::error(source.path(), 1, "begin with `//!`: what it owns and what it refuses"));
    }
    findings
}

/// Every file must be reached from a root by `mod` declarations, or nothing compiles it.
pub fn check_reachable(sources: &[Source]) -> Vec<Finding> {
    let mut reached: BTreeSet<&str> = BTreeSet::new();
    let mut open: Vec<&Source> = sources.iter().filter(|source| is_root(source.path())).collect();
    while let Some(source) = open.pop() {
        if !reached.insert(source.path()) {
            continue;
        }
        let children = declared(source);
        open.extend(sources.iter().filter(|other| children.contains(other.path())));
    }
    sources
        .iter()
        .filter(|source| !reached.contains(source.path()))
        .map(|source| Finding::error(source.path(), 0, "no `mod` reaches this file"))
        .collect()
}

fn is_root(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        ["src", "lib.rs"] | ["src", "bin", _] | ["tests", "main.rs"] | ["xtask", "src", "main.rs"] => true,
        // Targets that Cargo builds one by one.
        ["benches", _] | ["fuzz", "fuzz_targets", _] | [_, "build.rs"] => true,
        // Reached by `#[path]`, which this does not follow.
        ["fuzz", "targets", "mod.rs"] => true,
        _ => false,
    }
}

/// The paths that the `mod name;` declarations of a file may mean.
fn declared(source: &Source) -> BTreeSet<String> {
    let path = source.path();
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    let stem = file.strip_suffix(".rs").unwrap_or(file);
    let own = matches!(stem, "mod" | "lib" | "main") || is_root(path);
    let base = if own { folder.to_owned() } else { format!("{folder}/{stem}") };
    let mut paths = BTreeSet::new();
    for at in words(source.code(), "mod") {
        let rest = source.code().get(at + 3..).unwrap_or_default();
        let Some(end) = rest.find([';', '{']) else { continue };
        let (name, after) = rest.split_at(end);
        let name = name.trim();
        if after.starts_with(';') && name.chars().all(|c| c.is_alphanumeric() || c == '_') {
            paths.insert(format!("{base}/{name}.rs"));
            paths.insert(format!("{base}/{name}/mod.rs"));
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_files_warn_and_longer_ones_fail() {
        let file = |lines| check(&Source::new("src/x.rs", &"a();\n".repeat(lines)));
        assert_eq!(file(700), []);
        assert!(file(701)[0].warning && file(900)[0].warning);
        assert!(!file(901)[0].warning);
        let tested = format!("a();\n#[cfg(test)]\nmod tests {{\n{}}}\n", "    a();\n".repeat(2000));
        assert_eq!(check(&Source::new("src/x.rs", &tested)), [], "tests do not count");
    }

    #[test]
    fn a_folder_says_what_it_is_for() {
        assert_eq!(check(&Source::new("src/x/mod.rs", "//! Words.\n")), []);
        assert_eq!(check(&Source::new("src/x/mod.rs", "use a;\n")).len(), 1);
        assert_eq!(check(&Source::new("src/x/y.rs", "use a;\n")), []);
    }

    #[test]
    fn dead_files_are_found() {
        let sources = [
            Source::new("src/lib.rs", "pub mod a;\nmod c { fn f() {} }\n// mod dead;\n"),
            Source::new("src/a/mod.rs", "mod b;\n"),
            Source::new("src/a/b.rs", "mod deep;\n"),
            Source::new("src/a/b/deep.rs", ""),
            Source::new("src/c.rs", ""),
            Source::new("src/dead.rs", "mod deader;\n"),
            Source::new("src/dead/deader.rs", ""),
            Source::new("src/bin/x.rs", ""),
            Source::new("tests/main.rs", "mod cli;\n"),
            Source::new("tests/cli.rs", ""),
            Source::new("fuzz/fuzz_targets/y.rs", ""),
        ];
        let dead: Vec<String> = check_reachable(&sources).into_iter().map(|finding| finding.path).collect();
        assert_eq!(dead, ["src/c.rs", "src/dead.rs", "src/dead/deader.rs"]);
    }
}
