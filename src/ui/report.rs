//! Errors as people see them: one line that tells everything once, then at most one hint.

use super::escape;
use crate::error::Error;

/// The lines that tell of `error`, each ready for a terminal.
#[must_use]
pub fn lines(error: &Error) -> Vec<String> {
    let mut text = format!("ddsnap: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    let mut lines = vec![escape::line(&text)];
    if let Some(hint) = error.hint_text() {
        lines.push(format!("hint: {}", escape::line(hint)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use std::path::Path;

    #[test]
    fn an_error_is_one_line_with_its_causes_and_one_hint() {
        let inner = Error::new(Kind::Io, "read failed").at_offset(4096);
        let error = Error::io("no such device", std::io::Error::other(inner))
            .at_path(Path::new("/dev/x\ny"))
            .doing("cannot list snapshots of a store")
            .hint("look at the kernel log");
        assert_eq!(
            lines(&error),
            [
                "ddsnap: cannot list snapshots of a store: /dev/x\\ny: no such device: at byte 4096: read failed",
                "hint: look at the kernel log"
            ]
        );
    }
}
