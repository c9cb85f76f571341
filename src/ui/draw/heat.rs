//! Maps as figures: a row for each interval, or one volume line after line.

use super::svg::{Anchor, Svg};
use super::{LEVEL_WORDS, levels, offset, percent, tag, ticks, title, when};
use crate::map::{Map, Row};
use crate::ui::size;

/// Cells in a row of a figure.
pub const COLUMNS: u64 = 128;
/// Rows of a figure of two points.
const GRID_ROWS: u64 = 32;
/// Units of a figure with no more than [`COLUMNS`] cells in a row.
const WIDTH: u64 = 960;
/// Room for sizes, right of the cells.
const RIGHT: u64 = 88;
const ROW: u64 = 16;
const CELL_HEIGHT: u64 = 14;
const AVERAGE: &str = "average";

/// Where cells lie.
#[derive(Clone, Copy)]
struct Frame {
    left: u64,
    cell: u64,
    width: u64,
}

impl Frame {
    /// For rows of `cells` cells, with labels of up to `letters` letters.
    fn new(cells: u64, letters: usize) -> Self {
        let left = (letters as u64 * 7 + 16).max(104);
        let cells = cells.max(1);
        let cell = (WIDTH.saturating_sub(left + RIGHT) / cells).max(1);
        Self { left, cell, width: WIDTH.max(left + cells * cell + RIGHT) }
    }
}

/// Cells of a figure of two points with rows of up to `columns` cells.
#[must_use]
pub fn difference_cells(columns: u64) -> u64 {
    GRID_ROWS << columns.max(1).ilog2()
}

/// One row for each interval, oldest first, and their average below. `head` stands above, if anything does.
/// Returns the figure and its height.
#[must_use]
pub fn history(map: &Map, head: &str) -> (Svg, u64) {
    let size = map.scale.size_bytes();
    let labels: Vec<String> =
        map.rows.iter().map(|row| format!("{} → {}", tag(&row.from), tag(&row.to))).collect();
    let letters = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
    let frame = Frame::new(map.scale.cells(), letters);
    let description = format!(
        "A heat map. Each of {} rows is the time between two neighbouring snapshots, oldest first; from left to right \
         lies the volume, from byte 0 to {}. The stronger the colour of a cell, the more of its {} changed.",
        map.rows.len(),
        size::human(size),
        size::human(map.scale.cell_bytes())
    );
    let mut svg =
        Svg::new("map", frame.width, "Where the volume changed, interval by interval", &description);
    let mut y = heading(&mut svg, head);
    axis(&mut svg, map, frame, y);
    y += 22;
    if map.left_out > 0 {
        let words = format!("{} older intervals are not shown, but counted in the average", map.left_out);
        svg.words((frame.left, y + 11), Anchor::Start, "soft", &words);
        y += ROW;
    }
    for (row, label) in map.rows.iter().zip(&labels) {
        let levels = levels(&row.cells, &map.scale, 1);
        let size = size::human(row.changed_bytes());
        line(&mut svg, frame, y, (&sentence(row, map.scale.size_bytes()), label, &size), &levels);
        y += ROW;
    }
    if map.intervals() > 1 {
        y += 6;
        let changed = map.churn.iter().fold(0u64, |sum, cell| sum.saturating_add(*cell));
        let mean = changed / map.intervals();
        let words = format!("An interval on average: {} of the volume", percent(mean, u128::from(size)));
        let levels = levels(&map.churn, &map.scale, map.intervals());
        line(&mut svg, frame, y, (&words, AVERAGE, &size::human(mean)), &levels);
        y += ROW;
    }
    let end = legend(&mut svg, map, frame, y + 10);
    (svg, end)
}

/// What differs between two points, from the beginning of the volume on, line after line of up to `columns` cells.
/// Returns the figure and its height.
#[must_use]
pub fn difference(map: &Map, columns: u64, head: &str) -> (Svg, u64) {
    let columns = 1usize << columns.max(1).ilog2();
    let words = map.rows.first().map(|row| sentence(row, map.scale.size_bytes())).unwrap_or_default();
    let description = format!(
        "{words}. The volume from its first byte at the top left to its last at the bottom right, {} a cell.",
        size::human(map.scale.cell_bytes())
    );
    let levels = levels(&map.churn, &map.scale, 1);
    let frame = Frame::new(levels.len().min(columns) as u64, 0);
    let mut svg = Svg::new("map", frame.width, "Where two points of the volume differ", &description);
    let mut y = heading(&mut svg, head);
    let starts = (0u64..).map(|row| map.scale.cell_bytes().saturating_mul(row * columns as u64));
    for (cells, start) in levels.chunks(columns).zip(starts) {
        line(&mut svg, frame, y, (&format!("from byte {start}"), &offset(start), ""), cells);
        y += ROW;
    }
    let end = legend(&mut svg, map, frame, y + 10);
    (svg, end)
}

/// A row: what it is in a sentence, its label, what stands behind it, and its cells.
fn line(svg: &mut Svg, frame: Frame, y: u64, (words, label, behind): (&str, &str, &str), levels: &[usize]) {
    svg.group(words, |svg| {
        let class = if label == AVERAGE { "strong" } else { "" };
        svg.words((frame.left - 8, y + 11), Anchor::End, class, label);
        cells(svg, levels, frame, y);
        svg.words((frame.width - 8, y + 11), Anchor::End, "soft", behind);
    });
}

/// All there is to say of an interval.
fn sentence(row: &Row, size_bytes: u64) -> String {
    let changed = row.changed_bytes();
    format!(
        "{} to {}: {} may differ ({}); {} to {}",
        title(&row.from),
        title(&row.to),
        size::human(changed),
        percent(changed, u128::from(size_bytes)),
        when(&row.from),
        when(&row.to)
    )
}

fn heading(svg: &mut Svg, head: &str) -> u64 {
    if head.is_empty() {
        return 0;
    }
    svg.words((8, 24), Anchor::Start, "head", head);
    44
}

/// Neighbours of one level are one rectangle.
fn cells(svg: &mut Svg, levels: &[usize], frame: Frame, y: u64) {
    const CLASSES: [&str; 5] = ["l0", "l1", "l2", "l3", "l4"];
    let mut x = frame.left;
    for run in levels.chunk_by(|a, b| a == b) {
        let class = run.first().and_then(|level| CLASSES.get(*level)).copied().unwrap_or("l0");
        let length = run.len() as u64 * frame.cell;
        svg.rect((x, y), (length, CELL_HEIGHT), class);
        x += length;
    }
}

fn axis(svg: &mut Svg, map: &Map, frame: Frame, y: u64) {
    for tick in ticks(map.scale.size_bytes(), 8) {
        let at = u128::from(tick) * u128::from(frame.cell) / u128::from(map.scale.cell_bytes());
        let x = frame.left + u64::try_from(at).unwrap_or(0);
        svg.line((x, y + 4), (x, y + 18), "tick");
        svg.words((x + 4, y + 14), Anchor::Start, "soft", &offset(tick));
    }
}

/// Returns the height of the figure.
fn legend(svg: &mut Svg, map: &Map, frame: Frame, y: u64) -> u64 {
    let words = format!("{} a cell, of which changed", size::human(map.scale.cell_bytes()));
    svg.words((frame.left, y + 11), Anchor::Start, "soft", &words);
    for ((step, words), x) in LEVEL_WORDS.iter().enumerate().zip((frame.left + 230..).step_by(96)) {
        svg.rect((x, y), (CELL_HEIGHT, CELL_HEIGHT), &format!("l{step}"));
        svg.words((x + 20, y + 11), Anchor::Start, "soft", words);
    }
    y + 24
}
