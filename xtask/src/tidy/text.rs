//! Lines: not too long, and free of what is only meant for the moment or the machine they were written on.

use super::Finding;

const CHARS_MAX: usize = 120;

/// Leftovers and why they must go. Written in two halves, so that this list does not find itself.
const LEFTOVERS: [(&str, &str); 6] = [
    (concat!("todo", "!("), "finish it or leave it out"),
    (concat!("dbg", "!("), "a leftover of debugging"),
    (concat!("FIX", "ME"), "fix it"),
    (concat!("issue", " #"), "say what it was: readers have no tracker at hand"),
    (concat!("/ho", "me/"), "a path of one machine"),
    (concat!("/wo", "rk/"), "a path of one machine"),
];

/// Checks the lines of one file; prose may have long lines, code may not.
pub fn check(path: &str, text: &str, is_code: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let chars = line.chars().count();
        if is_code && chars > CHARS_MAX {
            let what = format!("line of {chars} characters, at most {CHARS_MAX}");
            findings.push(Finding::error(path, number, what));
        }
        for (word, why) in LEFTOVERS {
            if line.contains(word) {
                findings.push(Finding::error(path, number, format!("`{word}`: {why}")));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_of_code_are_found() {
        assert_eq!(check("x.rs", &"ä".repeat(120), true), []);
        assert_eq!(check("x.rs", &"ä".repeat(121), true).len(), 1);
        assert_eq!(check("x.md", &"ä".repeat(121), false), []);
    }

    #[test]
    fn every_leftover_is_found() {
        for (word, _) in LEFTOVERS {
            let found = check("x.md", &format!("fine\nx {word}12 y\n"), false);
            assert_eq!((found.len(), found[0].line), (1, 2), "{word}");
        }
    }
}
