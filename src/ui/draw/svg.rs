//! SVG written by hand: rectangles, lines and words, with whole numbers for coordinates.
//!
//! Every figure has a title and a description, and its colours are classes of one style sheet, so that it can be
//! seen on light, on dark, on paper, and be told to those who do not see it.

use crate::ui::escape;

/// Colours and type of all figures.
pub const STYLE: &str = include_str!("figure.css");

/// Text as it may stand between tags and in attributes of HTML and XML.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in escape::line(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // XML has no such characters, not even written as numbers.
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Where words begin, end, or have their middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// They begin here.
    Start,
    /// This is their middle.
    Middle,
    /// They end here.
    End,
}

/// A figure being drawn.
pub struct Svg {
    id: &'static str,
    width: u64,
    title: String,
    description: String,
    body: String,
}

impl Svg {
    /// An empty figure, `width` units wide; `id` must be its own on the page.
    #[must_use]
    pub fn new(id: &'static str, width: u64, title: &str, description: &str) -> Self {
        let (title, description) = (title.to_owned(), description.to_owned());
        Self { id, width, title, description, body: String::new() }
    }

    /// A rectangle. One without area is left out.
    pub fn rect(&mut self, (x, y): (u64, u64), (width, height): (u64, u64), class: &str) {
        if width > 0 && height > 0 {
            let shape = format!(
                "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"/>"
            );
            self.body.push_str(&shape);
        }
    }

    /// A line.
    pub fn line(&mut self, (x1, y1): (u64, u64), (x2, y2): (u64, u64), class: &str) {
        self.body
            .push_str(&format!("<line class=\"{class}\" x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\"/>"));
    }

    /// A path through `points`; with `close`, an area.
    pub fn path(&mut self, points: &[(u64, u64)], close: bool, class: &str) {
        let steps: Vec<String> = points.iter().map(|(x, y)| format!("{x} {y}")).collect();
        let end = if close { "Z" } else { "" };
        self.body.push_str(&format!("<path class=\"{class}\" d=\"M{}{end}\"/>", steps.join("L")));
    }

    /// Words on the baseline `y`.
    pub fn words(&mut self, (x, y): (u64, u64), anchor: Anchor, class: &str, words: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let words = escaped(words);
        self.body.push_str(&format!(
            "<text class=\"{class}\" x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{words}</text>"
        ));
    }

    /// What `draw` draws belongs together; a pointer that rests on it sees `title`.
    pub fn group(&mut self, title: &str, draw: impl FnOnce(&mut Self)) {
        self.body.push_str(&format!("<g><title>{}</title>", escaped(title)));
        draw(self);
        self.body.push_str("</g>\n");
    }

    /// The figure as an element of a page that has [`STYLE`].
    #[must_use]
    pub fn element(&self, height: u64) -> String {
        self.finish(height, "", "")
    }

    /// The figure as a file.
    #[must_use]
    pub fn file(&self, height: u64) -> String {
        let style = format!("<style>{STYLE}</style>\n");
        let ground = format!("<rect class=\"ground\" width=\"{}\" height=\"{height}\"/>", self.width);
        let body = format!("{style}{ground}\n");
        let size =
            format!(" xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\"", self.width);
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}\n", self.finish(height, &size, &body))
    }

    fn finish(&self, height: u64, attributes: &str, first: &str) -> String {
        let Self { id, width, body, .. } = self;
        let (title, description) = (escaped(&self.title), escaped(&self.description));
        format!(
            "<svg{attributes} class=\"figure\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
             aria-labelledby=\"{id}-title {id}-desc\">\n<title id=\"{id}-title\">{title}</title>\n\
             <desc id=\"{id}-desc\">{description}</desc>\n{first}{body}</svg>"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_can_become_markup() {
        let text = escaped("<script>alert('x')</script>&\"\u{1b}\u{202e}\u{ffff}\n");
        assert_eq!(
            text,
            "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;&quot;\\u{1b}\\u{202e}\u{fffd}\\n"
        );
    }
}
