//! A page of HTML that needs nothing else: no script, no file beside it, no network.
//!
//! It is well formed as XML too, so a test can read it. A policy in its head forbids everything but its own styles:
//! even a mistake in escaping could neither run nor load anything.

use super::svg::{STYLE, escaped};

const PAGE_STYLE: &str = include_str!("page.css");

/// One column: heading, and whether its cells are numbers (set to the right).
pub type Column = (&'static str, bool);

/// A page being written.
pub struct Page {
    title: String,
    body: String,
}

impl Page {
    /// An empty page.
    #[must_use]
    pub fn new(title: &str) -> Self {
        Self { title: title.to_owned(), body: String::new() }
    }

    /// The head of the page: the title, and a line below it.
    pub fn header(&mut self, above: &str, below: &str) {
        let (above, title, below) = (escaped(above), escaped(&self.title), escaped(below));
        self.body.push_str(&format!(
            "<header><p class=\"above\">{above}</p><h1>{title}</h1><p class=\"below\">{below}</p></header>\n"
        ));
    }

    /// Key figures: what, the value, and a class for its colour.
    pub fn tiles(&mut self, tiles: &[(&str, String, &str)]) {
        self.body.push_str("<dl class=\"tiles\">\n");
        for (what, value, class) in tiles {
            let value = escaped(value);
            self.body
                .push_str(&format!("<div class=\"tile {class}\"><dt>{what}</dt><dd>{value}</dd></div>\n"));
        }
        self.body.push_str("</dl>\n");
    }

    /// Something that must be read first.
    pub fn notice(&mut self, words: &str) {
        self.body.push_str(&format!("<p class=\"notice\" role=\"alert\">{}</p>\n", escaped(words)));
    }

    /// A section with a heading and a sentence that says what it shows.
    pub fn section(&mut self, heading: &str, words: &str, fill: impl FnOnce(&mut Self)) {
        let (heading, words) = (escaped(heading), escaped(words));
        self.body.push_str(&format!("<section>\n<h2>{heading}</h2>\n<p>{words}</p>\n"));
        fill(self);
        self.body.push_str("</section>\n");
    }

    /// A figure with the title above it.
    pub fn figure(&mut self, title: &str, svg: &str) {
        self.body
            .push_str(&format!("<figure>\n<figcaption>{}</figcaption>\n{svg}\n</figure>\n", escaped(title)));
    }

    /// A table; a long one can be scrolled, and is printed whole.
    pub fn table(&mut self, caption: &str, columns: &[Column], rows: &[Vec<String>]) {
        let caption = escaped(caption);
        self.body.push_str(&format!(
            "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{caption}\"><table>\n\
             <caption>{caption}</caption>\n<thead><tr>"
        ));
        for (heading, numeric) in columns {
            self.body.push_str(&format!("<th scope=\"col\"{}>{heading}</th>", class(*numeric)));
        }
        self.body.push_str("</tr></thead>\n<tbody>\n");
        for row in rows {
            self.body.push_str("<tr>");
            for (cell, (_, numeric)) in row.iter().zip(columns) {
                self.body.push_str(&format!("<td{}>{}</td>", class(*numeric), escaped(cell)));
            }
            self.body.push_str("</tr>\n");
        }
        self.body.push_str("</tbody></table></div>\n");
    }

    /// The whole page; `foot` stands below everything.
    #[must_use]
    pub fn finish(&self, foot: &str) -> String {
        let (title, foot, body) = (escaped(&self.title), escaped(foot), &self.body);
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n\
             <meta charset=\"utf-8\"/>\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
             <meta name=\"color-scheme\" content=\"light dark\"/>\n<title>{title}</title>\n\
             <style>\n{STYLE}{PAGE_STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n\
             <footer>{foot}</footer>\n</body>\n</html>\n"
        )
    }
}

fn class(numeric: bool) -> &'static str {
    if numeric { " class=\"number\"" } else { "" }
}
