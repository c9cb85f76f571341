//! A function fits a screen.

use super::Finding;
use super::scan::{Source, closing_brace, words};

/// Lines between the braces of a function.
const LINES_MAX: usize = 70;

/// Functions that may be longer: file, name, and why splitting would make them harder to read.
const ALLOWED: &[(&str, &str, &str)] = &[];

/// Checks every function of a file outside its tests.
pub fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for at in words(source.code(), "fn") {
        let Some((name, lines)) = measure(source.code(), at) else { continue };
        let line = source.line_of(at);
        let allowed = ALLOWED.iter().any(|(path, function, _)| *path == source.path() && *function == name);
        if lines > LINES_MAX && !source.is_test(line) && !allowed {
            let what = format!("function `{name}` has {lines} lines, at most {LINES_MAX} fit a screen");
            findings.push(Finding::error(source.path(), line, what));
        }
    }
    findings
}

/// Name and lines of the function whose `fn` is at `at`; `None` if it has no body or no name.
fn measure(code: &str, at: usize) -> Option<(String, usize)> {
    let after = code.get(at + 2..)?;
    let name: String = after.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    if name.is_empty() {
        return None;
    }
    let open = body_start(code, at)?;
    let end = closing_brace(code, open)?;
    let breaks = code.get(open..end)?.matches('\n').count();
    Some((name, breaks.saturating_sub(1)))
}

/// The brace that opens the body. A `;` outside brackets ends a declaration without one.
fn body_start(code: &str, at: usize) -> Option<usize> {
    let mut depth = 0i32;
    for (i, byte) in code.bytes().enumerate().skip(at) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return Some(i),
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(lines: usize) -> String {
        format!("fn f(x: [u8; 2]) -> u8 {{\n{}}}\n", "    a(\"}\");\n".repeat(lines))
    }

    #[test]
    fn seventy_lines_fit_and_one_more_does_not() {
        assert_eq!(check(&Source::new("src/x.rs", &function(LINES_MAX))), []);
        let findings = check(&Source::new("src/x.rs", &function(LINES_MAX + 1)));
        assert_eq!(findings.len(), 1);
        assert!(findings[0].what.contains("`f` has 71 lines"), "{findings:?}");
    }

    #[test]
    fn tests_and_declarations_do_not_count() {
        let test = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", function(100));
        assert_eq!(check(&Source::new("src/x.rs", &test)), []);
        let declared =
            format!("trait T {{\n    fn f(x: [u8; 2]);\n}}\nstruct S {{\n{}}}\n", "    a: u8,\n".repeat(100));
        assert_eq!(check(&Source::new("src/x.rs", &declared)), []);
        let pointer = format!("type F = fn(u8) -> u8;\nstruct S {{\n{}}}\n", "    a: u8,\n".repeat(100));
        assert_eq!(check(&Source::new("src/x.rs", &pointer)), []);
    }
}
