//! Dumps for machines: YAML that `restore` reads, a document a part, and one JSON document.

use super::node::{Node, Part};
use sha2::{Digest, Sha256};

/// What writes the parts of a dump.
pub trait Render {
    /// What comes before the first part.
    fn begin(&mut self) -> String;
    /// One part.
    fn part(&mut self, part: &Part) -> String;
    /// The last part.
    fn end(&mut self, part: &Part) -> String;
}

/// `text` in quotes, with everything escaped that could reach a terminal as more than a character, or that
/// YAML does not take as it is. Valid in JSON and YAML.
fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() || is_hidden(c) => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Characters that print nothing themselves but change how others are shown, and those that YAML refuses.
fn is_hidden(c: char) -> bool {
    let shapes = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}');
    shapes || matches!(c, '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

/// How names stand before their values.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Yaml,
    Json,
}

fn name(style: Style, name: &str, out: &mut String) {
    match style {
        Style::Yaml => {
            out.push_str(name);
            out.push_str(": ");
        }
        Style::Json => {
            quote(name, out);
            out.push(':');
        }
    }
}

/// A value on one line.
fn flow(style: Style, node: &Node, out: &mut String) {
    let comma = if style == Style::Yaml { ", " } else { "," };
    match node {
        Node::None => out.push_str("null"),
        Node::Flag(flag) => out.push_str(if *flag { "true" } else { "false" }),
        Node::Count(number) | Node::Bytes(number) => out.push_str(&number.to_string()),
        Node::Signed(number) | Node::Time(number) => out.push_str(&number.to_string()),
        Node::Word(text) => quote(text, out),
        Node::Text(text) | Node::Hex(text) => quote(text, out),
        Node::Raw(_, bytes) => quote(&hex::encode(bytes), out),
        Node::List(list) => {
            out.push('[');
            for (number, node) in list.iter().enumerate() {
                if number > 0 {
                    out.push_str(comma);
                }
                flow(style, node, out);
            }
            out.push(']');
        }
        Node::Map(fields) => {
            out.push('{');
            for (number, (field, node)) in fields.iter().enumerate() {
                if number > 0 {
                    out.push_str(comma);
                }
                name(style, field, out);
                flow(style, node, out);
            }
            out.push('}');
        }
    }
}

/// A stream of YAML documents. Its last line is the SHA-256 of all bytes before it.
#[derive(Default)]
pub struct Yaml {
    hash: Sha256,
}

impl Yaml {
    fn document(part: &Part) -> String {
        let mut out = format!("---\npart: {}\n", part.name);
        for (field, node) in &part.fields {
            out.push_str(field);
            match node {
                Node::List(rows) if rows.iter().any(|row| matches!(row, Node::Map(_))) => {
                    out.push_str(":\n");
                    for row in rows {
                        out.push_str("- ");
                        flow(Style::Yaml, row, &mut out);
                        out.push('\n');
                    }
                }
                node => {
                    out.push_str(": ");
                    flow(Style::Yaml, node, &mut out);
                    out.push('\n');
                }
            }
        }
        out
    }

    fn hashed(&mut self, text: String) -> String {
        self.hash.update(&text);
        text
    }
}

impl Render for Yaml {
    fn begin(&mut self) -> String {
        String::new()
    }

    fn part(&mut self, part: &Part) -> String {
        self.hashed(Self::document(part))
    }

    fn end(&mut self, part: &Part) -> String {
        let text = self.hashed(Self::document(part));
        let sum = hex::encode(std::mem::take(&mut self.hash).finalize());
        format!("{text}sha256: \"{sum}\"\n")
    }
}

/// One JSON document, a line a part.
pub struct Json {
    schema: &'static str,
    parts: u64,
}

impl Json {
    /// A document of the form `schema`.
    #[must_use]
    pub fn new(schema: &'static str) -> Self {
        Self { schema, parts: 0 }
    }

    fn object(part: &Part) -> String {
        let mut fields = vec![("part", Node::Word(part.name))];
        fields.extend(part.fields.iter().cloned());
        let mut out = String::new();
        flow(Style::Json, &Node::Map(fields), &mut out);
        out
    }
}

impl Render for Json {
    fn begin(&mut self) -> String {
        format!("{{\"schema\":\"{}\",\"parts\":[\n", self.schema)
    }

    fn part(&mut self, part: &Part) -> String {
        self.parts += 1;
        let comma = if self.parts > 1 { ",\n" } else { "" };
        format!("{comma}{}", Self::object(part))
    }

    fn end(&mut self, part: &Part) -> String {
        format!("{}\n]}}\n", self.part(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Part {
        let hostile = "a\x1b[2J\"\\\n---\n\u{202e}\u{85}é😀\u{7f}: #&*";
        let row = Node::Map(vec![("id", Node::Count(u64::MAX)), ("name", Node::Text(hostile.into()))]);
        Part::new(
            "sample",
            "",
            vec![
                ("none", Node::None),
                ("time", Node::Time(-5)),
                ("sum", Node::Hex("0123".into())),
                ("rows", Node::List(vec![row.clone(), row])),
                ("numbers", Node::List(vec![Node::Count(1), Node::Count(2)])),
                ("nothing", Node::List(Vec::new())),
                ("map", Node::Map(vec![("flag", Node::Flag(true))])),
            ],
        )
    }

    #[test]
    fn json_and_yaml_say_the_same_and_nothing_reaches_a_terminal() {
        let mut json = Json::new("sample/1");
        let text = json.begin() + &json.part(&sample()) + &json.end(&sample());
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let yaml = Yaml::default().part(&sample());
        assert!(yaml.chars().chain(text.chars()).all(|c| c == '\n' || !c.is_control()));
        assert_eq!(yaml.lines().filter(|line| *line == "---").count(), 1);
        let parsed: serde_json::Value = serde_yaml::from_str(&yaml).unwrap();
        assert_eq!(parsed, json["parts"][0]);
        assert_eq!(parsed["rows"][1]["id"], serde_json::json!(u64::MAX));
        assert_eq!(json["parts"][1], json["parts"][0]);
    }

    #[test]
    fn the_end_of_a_yaml_dump_names_the_sum_of_what_comes_before() {
        let mut yaml = Yaml::default();
        let before = yaml.part(&sample());
        let end = yaml.end(&Part::new("end", "", Vec::new()));
        let sum = hex::encode(Sha256::digest(before + "---\npart: end\n"));
        assert_eq!(end, format!("---\npart: end\nsha256: \"{sum}\"\n"));
    }
}
