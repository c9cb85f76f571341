//! Reads Rust source far enough to tell code from comments and strings, and tests from the rest. Not a parser:
//! it knows just the tokens that could hide a brace or a word.

/// A source file, once as it is and once with everything but code blanked out.
pub struct Source {
    path: String,
    text: String,
    /// As long as `text`, line for line; comments, strings and character literals are spaces.
    code: String,
    /// For each line, whether it lies in a `#[cfg(test)]` module.
    in_test: Vec<bool>,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let code = blank(text);
        let in_test = mark_tests(path, &code);
        Self { path: path.into(), text: text.into(), code, in_test }
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn code(&self) -> &str {
        &self.code
    }

    /// Whether a line, counted from 1, belongs to a test.
    pub fn is_test(&self, line: usize) -> bool {
        line.checked_sub(1).and_then(|index| self.in_test.get(index)).copied().unwrap_or(false)
    }

    /// Lines outside tests.
    pub fn lines_of_code(&self) -> usize {
        self.in_test.iter().filter(|test| !**test).count()
    }

    /// The line, counted from 1, of a byte of `code`.
    pub fn line_of(&self, at: usize) -> usize {
        line_of(&self.code, at)
    }
}

fn line_of(code: &str, at: usize) -> usize {
    code.as_bytes().iter().take(at).filter(|&&b| b == b'\n').count() + 1
}

/// The byte after the brace that closes the one at `open`, if any.
pub fn closing_brace(code: &str, open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (i, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(i + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// Positions where `word` stands alone in `code`.
pub fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_name = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let bytes = code.as_bytes();
        let before = at.checked_sub(1).and_then(|i| bytes.get(i));
        !is_name(before) && !is_name(bytes.get(at + word.len()))
    })
}

/// Files below tests/ are tests as a whole; elsewhere the modules after `#[cfg(test)]` are.
fn mark_tests(path: &str, code: &str) -> Vec<bool> {
    let whole = path.starts_with("tests/") || path.starts_with("benches/") || path.ends_with("tests.rs");
    let mut marks = vec![whole; code.lines().count()];
    for (at, attribute) in code.match_indices("#[cfg(test)]") {
        let after = at + attribute.len();
        let Some(rest) = code.get(after..) else { continue };
        let Some(stop) = rest.find(['{', ';']).map(|i| after + i) else { continue };
        let Some(end) = closing_brace(code, stop).filter(|_| code.as_bytes().get(stop) == Some(&b'{')) else {
            continue;
        };
        let (first, last) = (line_of(code, at), line_of(code, end));
        marks.iter_mut().take(last).skip(first - 1).for_each(|mark| *mark = true);
    }
    marks
}

/// Blanks comments, strings and character literals, keeping every line break and the length in bytes.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let len = match rest {
            [b'/', b'/', ..] => rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len()),
            [b'/', b'*', ..] => block_comment(rest),
            [b'"', ..] => string(rest),
            [b'r', b'"' | b'#', ..] | [b'b', b'r', b'"' | b'#', ..] if starts_word(bytes, at) => {
                raw_string(rest)
            }
            [b'\'', ..] => character(rest),
            _ => 0,
        };
        if len == 0 {
            at += 1;
            continue;
        }
        for byte in out.iter_mut().skip(at).take(len).filter(|byte| **byte != b'\n') {
            *byte = b' ';
        }
        at += len;
    }
    // Blanks replace whole characters, for no delimiter is part of a longer one.
    String::from_utf8(out).unwrap_or_default()
}

fn starts_word(bytes: &[u8], at: usize) -> bool {
    at.checked_sub(1).and_then(|i| bytes.get(i)).is_none_or(|b| !b.is_ascii_alphanumeric() && *b != b'_')
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut i) = (0usize, 0);
    while let Some(tail) = rest.get(i..).filter(|tail| !tail.is_empty()) {
        if tail.starts_with(b"/*") {
            depth += 1;
            i += 2;
        } else if tail.starts_with(b"*/") {
            depth -= 1;
            i += 2;
            if depth == 0 {
                return i;
            }
        } else {
            i += 1;
        }
    }
    rest.len()
}

fn string(rest: &[u8]) -> usize {
    let mut i = 1;
    while let Some(&byte) = rest.get(i) {
        match byte {
            b'\\' => i += 2,
            b'"' => return i + 1,
            _ => i += 1,
        }
    }
    rest.len()
}

/// `r"…"`, `r#"…"#` and their byte forms; 0 if it is a raw identifier.
fn raw_string(rest: &[u8]) -> usize {
    let prefix = usize::from(rest.first() == Some(&b'b')) + 1;
    let hashes = rest.iter().skip(prefix).take_while(|&&b| b == b'#').count();
    let open = prefix + hashes;
    if rest.get(open) != Some(&b'"') {
        return 0;
    }
    let mut close = vec![b'"'];
    close.resize(hashes + 1, b'#');
    let body = rest.get(open + 1..).unwrap_or_default();
    let end = body.windows(close.len()).position(|window| window == close);
    end.map_or(rest.len(), |end| open + 1 + end + close.len())
}

/// A character literal; 0 if the quote begins a lifetime.
fn character(rest: &[u8]) -> usize {
    if rest.get(1) == Some(&b'\\') {
        // '\'' and '\\' too: the byte after the backslash never ends the literal.
        let end = rest.iter().skip(3).position(|&b| b == b'\'');
        return end.map_or(0, |end| end + 4);
    }
    // One character of up to four bytes, then a quote.
    (2..=5).find(|&i| rest.get(i) == Some(&b'\'') && is_one_char(rest.get(1..i))).map_or(0, |i| i + 1)
}

fn is_one_char(bytes: Option<&[u8]>) -> bool {
    bytes.and_then(|bytes| std::str::from_utf8(bytes).ok()).is_some_and(|text| text.chars().count() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_left() {
        let cases = [
            ("a // b {\nc", "a \nc"),
            ("a /* b /* { */ */ c", "a c"),
            (r#"f("a \" {", b)"#, r"f( , b)"),
            (r##"f(r#"a " {"#, b)"##, "f( , b)"),
            ("x = '{';", "x = ;"),
            (r"x = '\'';", "x = ;"),
            ("x = 'ä';", "x = ;"),
            ("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}"),
            ("let r#type = bar\"x\";", "let r#type = bar ;"),
            ("b\"{\" + br\"{\"", "b + "),
        ];
        for (text, expected) in cases {
            // How many blanks stand for what was there is known from the length.
            let (blanked, words) = (blank(text), |text: &str| text.replace(' ', ""));
            assert_eq!((words(&blanked), blanked.len()), (words(expected), text.len()), "{text}");
        }
    }

    #[test]
    fn tests_are_marked_and_nothing_else() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n\
            #[cfg(test)]\nmod t;\nfn d() {}\n";
        let source = Source::new("src/x.rs", text);
        let marks: Vec<bool> = (1..=9).map(|line| source.is_test(line)).collect();
        assert_eq!(marks, [false, true, true, true, true, false, false, false, false]);
        assert_eq!(source.lines_of_code(), 5);
        assert!(Source::new("tests/x.rs", text).is_test(1));
        assert!(!source.is_test(0) && !source.is_test(10));
    }

    #[test]
    fn words_stand_alone() {
        assert_eq!(words("clap clap_x xclap (clap)", "clap").collect::<Vec<_>>(), [0, 19]);
    }
}
