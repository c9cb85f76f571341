//! Tables for people, and files that are either written or compared.

use crate::shell::root;
use anyhow::{Context, Result, bail};
use comfy_table::{Cell, CellAlignment, Table, presets};
use std::fs;

/// A table with a heading; columns whose heading begins with a space hold numbers and align right.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(headings.iter().map(|heading| heading.trim()));
    for row in rows {
        table.add_row(row.iter().enumerate().map(|(i, text)| {
            let numeric = headings.get(i).is_some_and(|heading| heading.starts_with(' '));
            let align = if numeric { CellAlignment::Right } else { CellAlignment::Left };
            Cell::new(text).set_alignment(align)
        }));
    }
    table
}

/// Writes generated text to `path` below the workspace, or with `check` fails if it differs from what is there.
pub fn write_or_check(path: &str, text: &str, check: bool, chore: &str) -> Result<()> {
    let full = root().join(path);
    let found = fs::read_to_string(&full).ok();
    if found.as_deref() == Some(text) {
        return Ok(());
    }
    if check {
        let line = found.as_deref().map(|found| first_difference(found, text));
        match line {
            Some(line) => bail!("{path} is stale from line {line} on; run `cargo xtask {chore}`"),
            None => bail!("{path} does not exist; run `cargo xtask {chore}`"),
        }
    }
    if let Some(folder) = full.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(&full, text).with_context(|| format!("cannot write {path}"))?;
    println!("wrote {path}");
    Ok(())
}

/// The first line (from 1) in which two texts differ.
fn first_difference(a: &str, b: &str) -> usize {
    let same = a.lines().zip(b.lines()).take_while(|(a, b)| a == b).count();
    same + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_first_line_that_differs() {
        assert_eq!(first_difference("a\nb\nc", "a\nx\nc"), 2);
        assert_eq!(first_difference("a\nb", "a\nb\nc"), 3);
    }

    #[test]
    fn a_missing_file_fails_the_check() {
        let error = write_or_check("docs/no-such-file.md", "x", true, "docs").unwrap_err();
        assert_eq!(error.to_string(), "docs/no-such-file.md does not exist; run `cargo xtask docs`");
    }
}
