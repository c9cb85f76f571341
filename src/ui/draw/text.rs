//! Maps for terminals: one character a cell.

use super::{LEVEL_WORDS, levels, offset, percent, tag, ticks};
use crate::map::Map;
use crate::point::Point;
use crate::ui::size;

/// What stands for each step of [`LEVEL_WORDS`].
const SHADES: [char; 5] = ['·', '░', '▒', '▓', '█'];
/// The same in colour (of the 256 of xterm), readable on dark and on light.
const COLORS: [u8; 5] = [244, 67, 32, 172, 160];
/// Columns behind the cells of an interval: how much changed, and its share.
const NUMBERS: usize = 20;
const AVERAGE: &str = "average";
/// Rows of a map of two points.
const GRID_ROWS: u64 = 16;

/// What a terminal offers.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Characters in a line.
    pub columns: usize,
    /// Whether colours are shown.
    pub color: bool,
}

/// Cells that fit in a row of [`history`] of these points.
#[must_use]
pub fn history_cells(points: &[Point], look: Look) -> u64 {
    let labels = points.windows(2).filter_map(|pair| Some(interval(pair.first()?, pair.last()?)));
    let widest = labels.map(|label| label.chars().count()).max().unwrap_or(0).max(AVERAGE.len());
    (look.columns.saturating_sub(widest + 2 + NUMBERS)).max(8) as u64
}

/// Cells that fit in a map of two points.
#[must_use]
pub fn difference_cells(look: Look) -> u64 {
    GRID_ROWS * grid_columns(look) as u64
}

/// A power of two, so that rows begin at round offsets.
fn grid_columns(look: Look) -> usize {
    const LABEL: usize = 10;
    1 << look.columns.saturating_sub(LABEL).max(8).ilog2()
}

/// One row for each interval, oldest first, with an axis above and their average below.
#[must_use]
pub fn history(map: &Map, look: Look) -> Vec<String> {
    let labels: Vec<String> = map.rows.iter().map(|row| interval(&row.from, &row.to)).collect();
    let width = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0).max(AVERAGE.len());
    let line = |label: &str, cells: &[u64], times: u64| {
        let changed = cells.iter().fold(0u64, |sum, cell| sum.saturating_add(*cell)) / times.max(1);
        let whole = u128::from(map.scale.size_bytes());
        let cells = shade(&levels(cells, &map.scale, times), look.color);
        format!("{label:>width$}  {cells}  {:>10}  {:>6}", size::human(changed), percent(changed, whole))
    };
    let mut lines = vec![axis(map, width + 2)];
    if map.left_out > 0 {
        lines.push(format!("{:>width$}  ({} older intervals, not shown)", "...", map.left_out));
    }
    lines.extend(map.rows.iter().zip(&labels).map(|(row, label)| line(label, &row.cells, 1)));
    if map.intervals() > 1 {
        lines.push(line(AVERAGE, &map.churn, map.intervals()));
    }
    lines.push(String::new());
    lines.push(legend(map, look.color));
    lines
}

/// What differs between two points, from the beginning of the volume on, line after line.
#[must_use]
pub fn difference(map: &Map, look: Look) -> Vec<String> {
    let columns = grid_columns(look);
    let levels = levels(&map.churn, &map.scale, 1);
    let start = |row: usize| offset(map.scale.cell_bytes().saturating_mul((row * columns) as u64));
    let count = levels.len().div_ceil(columns);
    let width = (0..count).map(|row| start(row).len()).max().unwrap_or(0);
    let rows = levels.chunks(columns).enumerate();
    let mut lines: Vec<String> =
        rows.map(|(row, cells)| format!("{:>width$}  {}", start(row), shade(cells, look.color))).collect();
    lines.push(String::new());
    lines.push(legend(map, look.color));
    lines
}

fn interval(from: &Point, to: &Point) -> String {
    format!("{} → {}", tag(from), tag(to))
}

fn legend(map: &Map, color: bool) -> String {
    let steps =
        (0..SHADES.len()).zip(LEVEL_WORDS).map(|(step, words)| format!("{} {words}", shade(&[step], color)));
    format!(
        "{} a cell, changed:  {}",
        size::human(map.scale.cell_bytes()),
        steps.collect::<Vec<_>>().join("  ")
    )
}

/// A line of offsets, each marked above the cell it lies in.
fn axis(map: &Map, indent: usize) -> String {
    let mut line = " ".repeat(indent);
    let cells = map.scale.cells();
    for tick in ticks(map.scale.size_bytes(), (cells / 10).clamp(2, 8)) {
        let cell = usize::try_from(tick / map.scale.cell_bytes()).unwrap_or(usize::MAX);
        let label = format!("╷{}", offset(tick));
        let have = line.chars().count();
        let at = indent.saturating_add(cell);
        if at + label.chars().count() > indent + usize::try_from(cells).unwrap_or(0) || have > at {
            continue;
        }
        line.push_str(&" ".repeat(at - have));
        line.push_str(&label);
    }
    line
}

fn shade(levels: &[usize], color: bool) -> String {
    let mut text = String::new();
    let mut last = None;
    for &level in levels {
        if color && last != Some(level) {
            text.push_str(&format!("\x1b[38;5;{}m", COLORS.get(level).copied().unwrap_or(7)));
            last = Some(level);
        }
        text.push(SHADES.get(level).copied().unwrap_or('?'));
    }
    if color && !levels.is_empty() {
        text.push_str("\x1b[0m");
    }
    text
}
