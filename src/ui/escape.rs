//! Makes text that came from an image, a delta or a file name harmless before it reaches a terminal.

use std::fmt::Write;

/// `text` with control characters, and characters that reorder or hide text, written as escapes. The result
/// is always one line.
#[must_use]
pub fn line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() || is_hidden(c) => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// Characters that print nothing themselves but change how their neighbours are shown.
fn is_hidden(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_become_escapes() {
        assert_eq!(line("a\x1b[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
        assert_eq!(line("\u{202e}gpj"), "\\u{202e}gpj");
    }

    #[test]
    fn ordinary_text_is_untouched() {
        assert_eq!(line("Zürich 1,024 \"x\""), "Zürich 1,024 \"x\"");
    }
}
