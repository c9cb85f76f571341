//! Charts of numbers of bytes: upright bars, a curve over time, bars made of parts.

use super::svg::{Anchor, Svg};
use crate::ui::{size, time};

const WIDTH: u64 = 960;
/// Where the plane of bars and curves begins and how large it is.
const LEFT: u64 = 72;
const TOP: u64 = 12;
const PLANE: (u64, u64) = (WIDTH - LEFT - 8, 160);
/// Most bars side by side; more are put together.
const BARS: usize = 110;
/// Letters of a label left of a bar.
const LETTERS: usize = 20;

/// What a figure is, for those who see it and those who do not.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    /// Its own on the page.
    pub id: &'static str,
    /// Its title.
    pub title: &'a str,
    /// What can be seen, in a sentence or two.
    pub description: &'a str,
}

/// One upright bar.
#[derive(Debug, Clone)]
pub struct Bar {
    /// What stands below it.
    pub label: String,
    /// What it is, in a sentence.
    pub words: String,
    /// Bytes.
    pub value: u64,
}

/// Upright bars from left to right. Where they are too many, neighbours become one.
#[must_use]
pub fn bars(about: About<'_>, bars: &[Bar]) -> String {
    let together = bars.len().div_ceil(BARS).max(1);
    let bars: Vec<Bar> = bars.chunks(together).filter_map(unite).collect();
    let mut svg = Svg::new(about.id, WIDTH, about.title, about.description);
    let top = plane(&mut svg, bars.iter().map(|bar| bar.value).max().unwrap_or(0));
    let count = bars.len().max(1) as u64;
    let letters = bars.iter().map(|bar| bar.label.chars().count()).max().unwrap_or(0) as u64;
    let every = (count * (letters * 7 + 14)).div_ceil(PLANE.0).max(1);
    for (bar, number) in bars.iter().zip(0u64..) {
        let (x, end) = (LEFT + number * PLANE.0 / count, LEFT + (number + 1) * PLANE.0 / count);
        // A gap where there is room for one, and no bar broader than a thumb.
        let gap = ((end - x) / 5).clamp(1, 8);
        let width = (end - x).saturating_sub(gap).clamp(1, 48);
        let x = x + (end - x - width) / 2;
        let height = scaled(bar.value, top, PLANE.1).max(u64::from(bar.value > 0));
        svg.group(&bar.words, |svg| svg.rect((x, TOP + PLANE.1 - height), (width, height), "l3"));
        if number.is_multiple_of(every) {
            let at = (x + width / 2, TOP + PLANE.1 + 18);
            svg.words(at, Anchor::Middle, "soft", &bar.label);
        }
    }
    svg.element(TOP + PLANE.1 + 28)
}

fn unite(bars: &[Bar]) -> Option<Bar> {
    let (first, last) = (bars.first()?, bars.last()?);
    if bars.len() == 1 {
        return Some(first.clone());
    }
    let value = bars.iter().fold(0u64, |sum, bar| sum.saturating_add(bar.value));
    let words = format!(
        "{} intervals, from {} on to {}: {}",
        bars.len(),
        first.label,
        last.label,
        size::human(value)
    );
    Some(Bar { label: first.label.clone(), words, value })
}

/// A value at a time.
#[derive(Debug, Clone)]
pub struct Moment {
    /// Seconds since 1970.
    pub secs: i64,
    /// What it is, in a sentence.
    pub words: String,
    /// Bytes.
    pub value: u64,
}

/// A curve through values at their times, from left to right.
#[must_use]
pub fn curve(about: About<'_>, moments: &[Moment]) -> String {
    let mut svg = Svg::new(about.id, WIDTH, about.title, about.description);
    let top = plane(&mut svg, moments.iter().map(|moment| moment.value).max().unwrap_or(0));
    let times = moments.iter().map(|moment| moment.secs);
    let (first, last) = (times.clone().min().unwrap_or(0), times.max().unwrap_or(0));
    let x = |secs: i64| {
        let done = u128::from(secs.abs_diff(first)) * u128::from(PLANE.0);
        LEFT + done.checked_div(u128::from(last.abs_diff(first))).map_or(0, |x| u64::try_from(x).unwrap_or(0))
    };
    let floor = TOP + PLANE.1;
    let points: Vec<(u64, u64)> =
        moments.iter().map(|moment| (x(moment.secs), floor - scaled(moment.value, top, PLANE.1))).collect();
    if let (Some(start), Some(end)) = (points.first(), points.last()) {
        let mut area = points.clone();
        area.extend([(end.0, floor), (start.0, floor)]);
        svg.path(&area, true, "area");
        svg.path(&points, false, "curve");
    }
    for (moment, (x, y)) in moments.iter().zip(&points) {
        let corner = (x.saturating_sub(2), y.saturating_sub(2));
        svg.group(&moment.words, |svg| svg.rect(corner, (5, 5), "l4"));
    }
    for (secs, anchor) in [(first, Anchor::Start), (last, Anchor::End)] {
        if anchor == Anchor::Start || first != last {
            svg.words((x(secs), floor + 18), anchor, "soft", &time::utc(secs));
        }
    }
    svg.element(floor + 28)
}

/// A bar made of parts.
#[derive(Debug, Clone)]
pub struct Parts {
    /// What stands left of it.
    pub label: String,
    /// What it is, in a sentence.
    pub words: String,
    /// Class of the style sheet and bytes of each part.
    pub parts: Vec<(&'static str, u64)>,
    /// What stands right of it.
    pub behind: String,
}

/// Bars from top to bottom, all to one scale. `legend` says what each class is.
#[must_use]
pub fn parts(about: About<'_>, rows: &[Parts], legend: &[(&str, &str)]) -> String {
    const ROW: u64 = 22;
    const HEIGHT: u64 = 16;
    let label = |row: &Parts| shortened(&row.label);
    let letters = rows.iter().map(|row| label(row).chars().count()).max().unwrap_or(0) as u64;
    let left = letters * 7 + 16;
    let width = WIDTH - left - 96;
    let sum = |row: &Parts| row.parts.iter().fold(0u64, |sum, part| sum.saturating_add(part.1));
    let top = rows.iter().map(sum).max().unwrap_or(0);
    let mut svg = Svg::new(about.id, WIDTH, about.title, about.description);
    let mut y = 4;
    for row in rows {
        svg.group(&row.words, |svg| {
            svg.words((left - 8, y + 12), Anchor::End, "", &label(row));
            let mut before = 0u64;
            for (class, value) in &row.parts {
                let x = left + scaled(before, top, width);
                before = before.saturating_add(*value);
                let end = left + scaled(before, top, width);
                svg.rect((x, y), ((end - x).max(u64::from(*value > 0)), HEIGHT), class);
            }
            svg.words((left + scaled(before, top, width) + 8, y + 12), Anchor::Start, "soft", &row.behind);
        });
        y += ROW;
    }
    let mut x = left;
    for (class, words) in legend {
        svg.rect((x, y + 8), (14, 14), class);
        svg.words((x + 20, y + 19), Anchor::Start, "soft", words);
        x += 44 + words.chars().count() as u64 * 7;
    }
    svg.element(y + if legend.is_empty() { 4 } else { 32 })
}

fn shortened(label: &str) -> String {
    match label.char_indices().nth(LETTERS) {
        Some((at, _)) => format!("{}…", label.get(..at).unwrap_or_default()),
        None => label.to_owned(),
    }
}

/// Draws the lines behind bars or a curve whose greatest value is `max`; returns what the upper edge stands for.
fn plane(svg: &mut Svg, max: u64) -> u64 {
    let step = max.div_ceil(4).max(1).checked_next_power_of_two().unwrap_or(1 << 62);
    let count = max.div_ceil(step).max(1);
    let top = step.saturating_mul(count);
    for line in 0..=count {
        let y = TOP + PLANE.1 - PLANE.1 * line / count;
        svg.line((LEFT, y), (LEFT + PLANE.0, y), "rule");
        // A single byte is no mark on an axis: without any value, 0 is all there is.
        if max > 0 || line == 0 {
            svg.words((LEFT - 8, y + 4), Anchor::End, "soft", &round_size(step.saturating_mul(line)));
        }
    }
    top
}

fn scaled(value: u64, top: u64, length: u64) -> u64 {
    let scaled = (u128::from(value) * u128::from(length)).checked_div(u128::from(top)).unwrap_or(0);
    u64::try_from(scaled).unwrap_or(length).min(length)
}

/// A size on an axis: `512 MiB` where that is exact.
fn round_size(bytes: u64) -> String {
    if bytes == 0 { "0".to_owned() } else { size::human(bytes).replacen(".0 ", " ", 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABOUT: About<'static> = About { id: "x", title: "t", description: "d" };

    /// Nothing begins left or right of the figure.
    fn assert_inside(figure: &str) {
        for (_, rest) in figure.match_indices(" x=\"").map(|(at, found)| figure.split_at(at + found.len())) {
            let x: u64 = rest.split('"').next().unwrap().parse().unwrap();
            assert!(x <= WIDTH, "{x} in {figure}");
        }
    }

    #[test]
    fn no_number_is_too_large_and_none_is_too_few() {
        for value in [0, 1, 1000, u64::MAX] {
            for count in [0, 1, 2, BARS, 1000] {
                let bar = Bar { label: "1".into(), words: "w".into(), value };
                let figure = bars(ABOUT, &vec![bar; count]);
                assert!(figure.matches("<rect").count() <= BARS);
                assert_inside(&figure);
                for secs in [0, i64::MIN, i64::MAX] {
                    let moment = Moment { secs, words: "w".into(), value };
                    assert_inside(&curve(ABOUT, &vec![moment.clone(); count]));
                    assert_inside(&curve(ABOUT, &[moment.clone(), Moment { secs: 5, ..moment }]));
                }
                let label = "a name far too long for its place".to_owned();
                let row =
                    Parts { label, words: "w".into(), parts: vec![("own", value); 3], behind: String::new() };
                assert_inside(&parts(ABOUT, &vec![row; count], &[("own", "w")]));
            }
        }
    }

    #[test]
    fn bars_that_become_one_lose_nothing() {
        let bar = Bar { label: "1".into(), words: "w".into(), value: 3 << 20 };
        let text = bars(ABOUT, &vec![bar; 2 * BARS]);
        assert_eq!(text.matches("2 intervals, from 1 on to 1: 6.0 MiB").count(), BARS);
    }
}
