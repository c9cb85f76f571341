//! Pages that show commands with what they print: the commands are run, and print it.

use crate::harness::{Dir, Run};
use std::path::Path;

/// Runs the commands of the console blocks of `page` one after the other, and returns the page with what they print.
pub fn played(page: &str, run: impl Fn(&str) -> Run) -> String {
    let mut out = String::new();
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        out += &format!("{line}\n");
        if line != "```console" {
            continue;
        }
        while let Some(line) = lines.next_if(|line| *line != "```") {
            let Some(command) = line.strip_prefix("$ ") else { continue };
            let run = run(command);
            out += &format!("{line}\n{}{}", run.text(), run.stderr);
            if run.code != Some(0) {
                out += &format!("(exit status {})\n", run.code.unwrap_or(-1));
            }
        }
    }
    out
}

#[test]
fn the_page_on_old_disks_is_true() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = Dir::new();
    for (file, name) in [("store.img", "old.snap"), ("origin.img", "old.img")] {
        let packed = root.join(format!("testdata/legacy/crash-dropped-root-512/{file}.zst"));
        dir.write(name, &zstd::decode_all(std::fs::File::open(packed).unwrap()).unwrap());
    }
    let path = root.join("docs/zumastor.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let found = played(&page, |command| dir.shell(command));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &found).unwrap();
    }
    // Only the times of what is made while it runs differ.
    assert_eq!(dir.mask(&found), dir.mask(&page));
}
