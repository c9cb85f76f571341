//! Who may import whom. Arrows go down only, so that a reader who opens one file knows its place, and the lower
//! layers can be tested and fuzzed alone.

use super::Finding;
use super::scan::{Source, closing_brace, words};

/// For each module of the library, the modules it may name. A module may always name itself.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("units", &[]),
    ("error", &["units"]),
    ("progress", &["error", "units"]),
    ("format", &["error", "units"]),
    ("block", &["error"]),
    ("point", &["block", "format", "error", "units", "progress"]),
    ("store", &["point", "block", "format", "error", "units", "progress"]),
    ("legacy", &["point", "block", "format", "error", "units", "progress"]),
    ("delta", &["store", "legacy", "point", "block", "format", "error", "units", "progress"]),
    ("upgrade", &["delta", "store", "legacy", "point", "block", "format", "error", "units", "progress"]),
    ("export", &["delta", "point", "format", "error", "units", "progress"]),
    ("map", &["point", "error", "units", "progress"]),
    ("dump", &["store", "legacy", "block", "format", "error", "units", "progress"]),
    ("ublk", &["format", "error", "units"]),
    ("serve", &["ublk", "store", "legacy", "point", "block", "format", "error", "units", "progress"]),
    ("dm", &["ublk", "block", "format", "error", "units", "progress"]),
    (
        "ui",
        &[
            "dump", "delta", "map", "store", "legacy", "point", "block", "format", "error", "units",
            "progress",
        ],
    ),
    (
        "cmd",
        &[
            "ui", "serve", "dm", "ublk", "dump", "export", "upgrade", "delta", "map", "store", "legacy",
            "point", "block", "format", "error", "units", "progress",
        ],
    ),
];

/// What only `cmd` and `ui` may do: know the command line, print, exit, read the environment.
const UPPER_ONLY: [&str; 9] = [
    "clap::",
    "println!",
    "eprintln!",
    "print!",
    "eprint!",
    "process::exit",
    "std::env",
    "env::var",
    "comfy_table",
];

/// Checks the arrows and the globs of one file.
pub fn check(source: &Source) -> Vec<Finding> {
    let mut findings = globs(source);
    let Some(module) = module_of(source.path()) else { return findings };
    let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == module) else {
        let what = format!("module `{module}` has no place in the import table of tidy");
        findings.push(Finding::error(source.path(), 0, what));
        return findings;
    };
    for (at, name) in crate_names(source.code()) {
        let line = source.line_of(at);
        // A macro or a re-export at the top of the crate is no module.
        let known = MAY_IMPORT.iter().any(|(module, _)| *module == name);
        if known && name != module && !allowed.contains(&name.as_str()) && !source.is_test(line) {
            let what = format!("`{module}` must not import `{name}`");
            findings.push(Finding::error(source.path(), line, what));
        }
    }
    if !matches!(module, "cmd" | "ui") {
        for word in UPPER_ONLY {
            let hits = source
                .code()
                .match_indices(word)
                .map(|(at, _)| at)
                .filter(|&at| starts_name(source.code(), at));
            for line in hits.map(|at| source.line_of(at)).filter(|&line| !source.is_test(line)) {
                let what = format!("`{word}` belongs into cmd or ui");
                findings.push(Finding::error(source.path(), line, what));
            }
        }
    }
    findings
}

fn starts_name(code: &str, at: usize) -> bool {
    let before = at.checked_sub(1).and_then(|i| code.as_bytes().get(i));
    before.is_none_or(|b| !b.is_ascii_alphanumeric() && *b != b'_')
}

/// The module of the library a file belongs to; `None` outside the library and for its root.
fn module_of(path: &str) -> Option<&str> {
    let below = path.strip_prefix("src/").filter(|below| !below.starts_with("bin/") && *below != "lib.rs")?;
    below.split('/').next().map(|name| name.strip_suffix(".rs").unwrap_or(name))
}

/// Position and first name of every `crate::name` and of every name in `crate::{…}`.
fn crate_names(code: &str) -> Vec<(usize, String)> {
    let mut names = Vec::new();
    for at in words(code, "crate") {
        let Some(after) = code.get(at + 5..).and_then(|rest| rest.strip_prefix("::")) else { continue };
        if !after.starts_with('{') {
            names.push((at, leading_name(after)));
            continue;
        }
        let open = at + 7;
        let end = closing_brace(code, open).unwrap_or(code.len());
        let list = code.get(open + 1..end.saturating_sub(1)).unwrap_or_default();
        let mut depth = 0usize;
        for part in list.split_inclusive(['{', '}', ',']) {
            let name = leading_name(part.trim_start());
            if depth == 0 && !name.is_empty() {
                names.push((at, name));
            }
            match part.as_bytes().last() {
                Some(b'{') => depth += 1,
                Some(b'}') => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
    }
    names
}

fn leading_name(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// A glob hides where a name comes from; only tests may take all of what they test, and a prelude.
fn globs(source: &Source) -> Vec<Finding> {
    let code = source.code();
    words(code, "use")
        .filter_map(|at| {
            let statement = code.get(at..)?.split(';').next()?;
            let line = source.line_of(at);
            let own = statement.split_whitespace().eq(["use", "super::*"]);
            let allowed = source.is_test(line) && (own || statement.trim_end().ends_with("::prelude::*"));
            let what = "import names, not a glob (only `use super::*` and preludes in tests)";
            (statement.contains("::*") && !allowed).then(|| Finding::error(source.path(), line, what))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        check(&Source::new(path, text)).iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn arrows_go_down_only() {
        let text = "use crate::error::Error;\nuse crate::store::View;\nuse crate::block::{self, file};\n";
        assert_eq!(lines("src/delta/apply.rs", text), [0; 0]);
        assert_eq!(lines("src/store/mod.rs", text), [0; 0], "itself is allowed");
        assert_eq!(lines("src/block/file.rs", text), [2]);
        assert_eq!(lines("src/format/record.rs", text), [2, 3]);
        assert_eq!(lines("src/units.rs", text), [1, 2, 3]);
        assert_eq!(lines("src/bin/ddsnap.rs", text), [0; 0]);
        assert_eq!(lines("tests/main.rs", text), [0; 0]);
    }

    #[test]
    fn groups_and_paths_in_code_count_too() {
        let text = "use crate::{error::{Error, Kind}, ui::table, units};\nfn f() { crate::cmd::main(); }\n";
        assert_eq!(lines("src/store/log.rs", text), [1, 2]);
        assert_eq!(lines("src/cmd/list.rs", text), [0; 0]);
        let nested = "use crate::{error::{store, Kind}};\n";
        assert_eq!(lines("src/block/file.rs", nested), [0; 0], "a name inside another module is not ours");
        assert_eq!(lines("src/block/file.rs", "// crate::cmd\nlet x = \"crate::cmd\";\n"), [0; 0]);
        let test = "#[cfg(test)]\nmod tests {\n    use crate::store::View;\n}\n";
        assert_eq!(lines("src/block/file.rs", test), [0; 0], "a test may build on anything");
    }

    #[test]
    fn engines_do_not_print_exit_or_look_around() {
        let text =
            "println!(\"x\");\nstd::process::exit(1);\nstd::env::args();\nuse clap::Parser;\nwriteln!(f);\n";
        assert_eq!(lines("src/delta/apply.rs", text), [4, 1, 2, 3]);
        assert_eq!(lines("src/ui/mod.rs", text), [0; 0]);
        assert_eq!(lines("xtask/src/main.rs", text), [0; 0]);
    }

    #[test]
    fn a_new_module_needs_a_place() {
        let findings = check(&Source::new("src/novel/mod.rs", ""));
        assert!(findings[0].what.contains("`novel` has no place"), "{findings:?}");
    }

    #[test]
    fn globs_only_in_tests() {
        let text = "use std::fmt::*;\nuse super::*;\nuse a::{b, c::*};\n\
            #[cfg(test)]\nmod tests {\n    use super::*;\n    use std::fs::*;\n\
            use p::prelude::*;\n}\nuse q::prelude::*;\n";
        assert_eq!(lines("src/block/file.rs", text), [1, 2, 3, 7, 10]);
        assert_eq!(lines("src/block/file.rs", "let x = a * b; // use x::*\n"), [0; 0]);
    }
}
