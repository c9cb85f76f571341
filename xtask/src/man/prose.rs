//! `man/parts/NAME.md`: the little of Markdown that a manual page needs, as roff. A first part without heading goes
//! to DESCRIPTION, each `# Heading` begins a section of its own.

use crate::shell::root;
use anyhow::{Context, Result};
use std::fs;
use std::io::ErrorKind;

/// The prose of one page, as roff.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Prose {
    /// Belongs behind the first words of DESCRIPTION.
    pub description: String,
    /// Whole sections.
    pub sections: String,
}

/// Reads the prose of a page; a page without prose is complete too.
pub fn read(page: &str) -> Result<Prose> {
    let path = format!("man/parts/{page}.md");
    match fs::read_to_string(root().join(&path)) {
        Ok(text) => Ok(convert(&text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Prose::default()),
        Err(e) => Err(e).with_context(|| format!("cannot read {path}")),
    }
}

fn convert(text: &str) -> Prose {
    let mut prose = Prose::default();
    let mut verbatim = false;
    let mut in_section = false;
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("# ").or(line.strip_prefix("## ")).filter(|_| !verbatim) {
            in_section = true;
            prose.sections.push_str(&format!(".SH \"{}\"\n", escape(&heading.to_uppercase())));
            continue;
        }
        let out = if in_section { &mut prose.sections } else { &mut prose.description };
        if line.starts_with("```") {
            verbatim = !verbatim;
            out.push_str(if verbatim { ".PP\n.RS 4\n.nf\n" } else { ".fi\n.RE\n" });
        } else if verbatim {
            out.push_str(&escape(line));
            out.push('\n');
        } else if line.trim().is_empty() {
            out.push_str(".PP\n");
        } else if let Some(item) = line.strip_prefix("- ").or(line.strip_prefix("* ")) {
            out.push_str(&format!(".IP \\(bu 2\n{}\n", inline(item)));
        } else {
            out.push_str(&format!("{}\n", inline(line.trim_start())));
        }
    }
    prose
}

/// `code` is bold, *words* are italic.
fn inline(line: &str) -> String {
    let mut out = String::new();
    let (mut code, mut emphasis) = (false, false);
    for piece in escape(line).split_inclusive(['`', '*']) {
        let (words, mark) = match piece.as_bytes().last() {
            Some(b'`') => (&piece[..piece.len() - 1], Some('`')),
            Some(b'*') if !code => (&piece[..piece.len() - 1], Some('*')),
            _ => (piece, None),
        };
        out.push_str(words);
        match mark {
            Some('`') => {
                code = !code;
                out.push_str(if code { "\\fB" } else { "\\fR" });
            }
            Some(_) => {
                emphasis = !emphasis;
                out.push_str(if emphasis { "\\fI" } else { "\\fR" });
            }
            None => {}
        }
    }
    out
}

/// Takes the meaning from what roff would act on.
pub fn escape(line: &str) -> String {
    let text = line.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

/// Escapes each line of a text.
pub fn escape_lines(text: &str) -> String {
    text.trim_end().lines().map(escape).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_becomes_roff() {
        let prose = convert("More `a-b` and *words*.\n\n# Files\n- one\n```\n.x \\ y\n```\n");
        assert_eq!(prose.description, "More \\fBa\\-b\\fR and \\fIwords\\fR.\n.PP\n");
        let sections = ".SH \"FILES\"\n.IP \\(bu 2\none\n.PP\n.RS 4\n.nf\n\\&.x \\e y\n.fi\n.RE\n";
        assert_eq!(prose.sections, sections);
    }

    #[test]
    fn a_star_in_code_is_a_star() {
        assert_eq!(inline("`a*b` c"), "\\fBa*b\\fR c");
    }
}
