//! Dumps for people: headings, aligned names and values, tables. Never parsed.

use super::{escape, size};
use crate::dump::{Field, Node, Part, Render};
use std::fmt::Write;

/// Writes the parts of a dump as text.
#[derive(Default)]
pub struct Text {
    begun: bool,
}

impl Render for Text {
    fn begin(&mut self) -> String {
        String::new()
    }

    fn part(&mut self, part: &Part) -> String {
        let mut out = String::new();
        if std::mem::replace(&mut self.begun, true) {
            out.push('\n');
        }
        let _ = writeln!(out, "== {}", escape::line(&part.heading));
        fields(&part.fields, 2, &mut out);
        out
    }

    fn end(&mut self, part: &Part) -> String {
        self.part(part)
    }
}

/// Names and values, a line each, values aligned; what is no single value comes below its name.
fn fields(list: &[Field], indent: usize, out: &mut String) {
    let width = list.iter().filter(|(_, node)| !is_nested(node)).map(|(name, _)| title(name).len()).max();
    let width = width.unwrap_or(0);
    let blank = " ".repeat(indent);
    if let Some(rows) = rows_of_fields(list) {
        return table(&rows, indent, out);
    }
    for (name, node) in list {
        match node {
            Node::Map(fields_below) => {
                let _ = writeln!(out, "{blank}{name}");
                fields(fields_below, indent + 2, out);
            }
            Node::List(rows) if is_nested(node) => {
                if list.len() > 1 {
                    let _ = writeln!(out, "{blank}{name}");
                }
                table(rows, if list.len() > 1 { indent + 2 } else { indent }, out);
            }
            Node::Raw(address, bytes) => {
                let _ = writeln!(out, "{blank}{name}, {} bytes", bytes.len());
                hex_lines(*address, bytes, indent + 2, out);
            }
            node => {
                let _ = writeln!(out, "{blank}{:width$}  {}", title(name), long(node));
            }
        }
    }
}

/// Fields that come with their bytes are a table: name, value, place, bytes.
fn rows_of_fields(list: &[Field]) -> Option<Vec<Node>> {
    let row = |(name, node): &Field| match node {
        Node::Map(inner) if inner.iter().any(|(name, _)| *name == "bytes") => {
            let mut row = vec![("field", Node::Word(name))];
            row.extend(inner.iter().cloned());
            Some(Node::Map(row))
        }
        Node::Map(inner) if matches!(inner.as_slice(), [("value", _)]) => {
            Some(Node::Map(vec![("field", Node::Word(name)), ("value", inner.first()?.1.clone())]))
        }
        _ => None,
    };
    (!list.is_empty()).then(|| list.iter().map(row).collect()).flatten()
}

fn is_nested(node: &Node) -> bool {
    match node {
        Node::Map(_) | Node::Raw(..) => true,
        Node::List(list) => list.iter().any(|node| matches!(node, Node::Map(_))),
        _ => false,
    }
}

/// A name for people: a time does not look like seconds here.
fn title(name: &str) -> &str {
    name.strip_suffix("_secs").unwrap_or(name)
}

/// A value beside its name.
fn long(node: &Node) -> String {
    match node {
        Node::Bytes(bytes) if *bytes >= 1024 => format!("{bytes} ({})", size::human(*bytes)),
        Node::Bytes(bytes) => size::human(*bytes),
        node => cell(node),
    }
}

/// A value in a table.
fn cell(node: &Node) -> String {
    match node {
        Node::None => "-".to_owned(),
        Node::Flag(flag) => (if *flag { "yes" } else { "no" }).to_owned(),
        Node::Count(number) | Node::Bytes(number) => number.to_string(),
        Node::Signed(number) => number.to_string(),
        Node::Time(secs) => super::time::rfc3339(*secs).unwrap_or_else(|| format!("@{secs}")),
        Node::Word(text) => (*text).to_owned(),
        Node::Text(text) if text.is_empty() => "\"\"".to_owned(),
        Node::Text(text) => escape::line(text),
        Node::Hex(text) => text.clone(),
        Node::Raw(_, bytes) => hex::encode(bytes),
        Node::List(list) => list.iter().map(cell).collect::<Vec<_>>().join(", "),
        Node::Map(fields) => {
            let words: Vec<_> = fields.iter().map(|(name, node)| format!("{name} {}", cell(node))).collect();
            words.join(" ")
        }
    }
}

/// Rows under the names of their values; numbers to the right.
fn table(rows: &[Node], indent: usize, out: &mut String) {
    let mut columns: Vec<(&'static str, usize, bool)> = Vec::new();
    for row in rows {
        let Node::Map(fields) = row else { continue };
        for (name, node) in fields {
            let number = matches!(node, Node::Count(_) | Node::Bytes(_) | Node::Signed(_) | Node::None);
            let width = cell(node).chars().count();
            match columns.iter_mut().find(|column| column.0 == *name) {
                Some(column) => {
                    column.1 = column.1.max(width);
                    column.2 &= number;
                }
                None => columns.push((name, width.max(title(name).len()), number)),
            }
        }
    }
    let mut line = |cells: &dyn Fn(&'static str) -> String| {
        let mut text = " ".repeat(indent);
        for (name, width, number) in &columns {
            let cell = cells(name);
            let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
            let _ = if *number { write!(text, "{pad}{cell}  ") } else { write!(text, "{cell}{pad}  ") };
        }
        let _ = writeln!(out, "{}", text.trim_end());
    };
    line(&|name| title(name).to_owned());
    for row in rows {
        let Node::Map(fields) = row else { continue };
        line(&|name| {
            fields.iter().find(|field| field.0 == name).map(|field| cell(&field.1)).unwrap_or_default()
        });
    }
}

/// Sixteen bytes a line; lines equal to the one before are left out.
fn hex_lines(address: u64, bytes: &[u8], indent: usize, out: &mut String) {
    let blank = " ".repeat(indent);
    let mut last: Option<&[u8]> = None;
    let mut skipped = false;
    let lines = bytes.chunks(16).count();
    for (number, line) in bytes.chunks(16).enumerate() {
        if last == Some(line) && number + 1 < lines {
            if !skipped {
                let _ = writeln!(out, "{blank}*");
            }
            skipped = true;
            continue;
        }
        (last, skipped) = (Some(line), false);
        let digits: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let letters: String = line
            .iter()
            .map(|byte| if (0x20..0x7f).contains(byte) { char::from(*byte) } else { '.' })
            .collect();
        let at = address.saturating_add(16 * number as u64);
        let _ = writeln!(out, "{blank}{at:>12}  {:<47}  {letters}", digits.join(" "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_aligned_and_escaped() {
        let row = |id, name: &str| {
            Node::Map(vec![("id", Node::Count(id)), ("name", Node::Text(name.into())), ("at", Node::Time(0))])
        };
        let part = Part::new(
            "x",
            "things\x1b",
            vec![
                ("size", Node::Bytes(1 << 20)),
                ("names", Node::List(vec![Node::Word("a"), Node::Word("b")])),
                ("rows", Node::List(vec![row(5, "a\x1bb"), row(1234, "")])),
                ("raw", Node::Raw(4096, [vec![0; 64], b"end\x1b".to_vec()].concat())),
            ],
        );
        let expected = "== things\\u{1b}
  size   1048576 (1.0 MiB)
  names  a, b
  rows
      id  name      at
       5  a\\u{1b}b  1970-01-01T00:00:00Z
    1234  \"\"        1970-01-01T00:00:00Z
  raw, 68 bytes
            4096  00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................
    *
            4160  65 6e 64 1b                                      end.
";
        assert_eq!(Text::default().part(&part), expected);
    }
}
