//! Figures: maps and charts as text, as SVG, as a page of HTML.
//!
//! Draws what it is given and prints nothing; it knows points, cells and numbers, no kind of store. Text that came
//! from elsewhere (names, paths, events) is escaped here, wherever it ends up.

pub mod chart;
pub mod heat;
pub mod page;
pub mod report;

pub mod svg;
pub mod text;

use crate::map::Scale;
use crate::point::Point;
use crate::ui::time;
use crate::units::Tag;

/// How much of a cell changed, in steps that are the same in every picture.
pub const LEVEL_WORDS: [&str; 5] = ["none", "≤ 0.1 %", "≤ 1 %", "≤ 10 %", "more"];

/// The step of `part` in `whole`: an index into [`LEVEL_WORDS`].
#[must_use]
pub fn level(part: u64, whole: u128) -> usize {
    let part = u128::from(part);
    match part {
        0 => 0,
        _ if part * 1000 <= whole => 1,
        _ if part * 100 <= whole => 2,
        _ if part * 10 <= whole => 3,
        _ => 4,
    }
}

/// The steps of all cells, each of which could have changed `times` times.
fn levels(cells: &[u64], scale: &Scale, times: u64) -> Vec<usize> {
    let whole = |cell: u64| u128::from(scale.bytes_in(cell)) * u128::from(times);
    cells.iter().zip(0..).map(|(part, cell)| level(*part, whole(cell))).collect()
}

/// `0 %`, `<0.1 %`, `4.6 %`, `100 %`: never more than it is, and 0 only for nothing.
#[must_use]
pub fn percent(part: u64, whole: u128) -> String {
    let tenths = (u128::from(part) * 1000).checked_div(whole).unwrap_or(0);
    match tenths {
        _ if part == 0 => "0 %".to_owned(),
        0 => "<0.1 %".to_owned(),
        1000.. => "100 %".to_owned(),
        _ => format!("{}.{} %", tenths / 10, tenths % 10),
    }
}

/// A byte offset as an operand: `0`, `4096`, `512k`, `1536M`.
#[must_use]
pub fn offset(bytes: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "k")];
    let unit = units.iter().find(|(bits, _)| bytes > 0 && bytes.is_multiple_of(1 << bits));
    unit.map_or_else(|| bytes.to_string(), |(bits, unit)| format!("{}{unit}", bytes >> bits))
}

/// Round offsets from 0 to below `size`, at most `count` (2 or more) of them.
fn ticks(size: u64, count: u64) -> Vec<u64> {
    let step = size.div_ceil(count.max(1)).max(1).checked_next_power_of_two().unwrap_or(1 << 63);
    (0..).map_while(|tick: u64| tick.checked_mul(step)).take_while(|tick| *tick < size).collect()
}

/// How a picture names a point: by its tag.
#[must_use]
pub fn tag(point: &Point) -> String {
    if point.tag == Tag::ORIGIN { "origin".to_owned() } else { point.tag.to_string() }
}

/// How a sentence names a point: by its tag, and by its name if it has one.
fn title(point: &Point) -> String {
    match &point.name {
        Some(name) => format!("{} ({name})", tag(point)),
        None => tag(point),
    }
}

/// When a point was made, in UTC; the origin is always now.
fn when(point: &Point) -> String {
    if point.tag == Tag::ORIGIN { "now".to_owned() } else { time::utc(point.created_secs) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::size;

    #[test]
    fn a_change_is_never_drawn_as_none_and_the_steps_end_where_they_say() {
        let whole = 1000;
        let steps: Vec<usize> = [0, 1, 2, 10, 11, 100, 101, 1000].map(|part| level(part, whole)).to_vec();
        assert_eq!(steps, [0, 1, 2, 2, 3, 3, 4, 4]);
        assert_eq!(level(1, u128::MAX), 1);
        assert_eq!(level(u64::MAX, 0), 4);
    }

    #[test]
    fn shares_do_not_lie() {
        let text = |part| percent(part, 1_000_000);
        assert_eq!(
            [0, 1, 999, 1000, 46_999, 999_999, 1_000_000].map(text),
            ["0 %", "<0.1 %", "<0.1 %", "0.1 %", "4.6 %", "99.9 %", "100 %"]
        );
        assert_eq!(percent(5, 0), "<0.1 %");
    }

    #[test]
    fn offsets_can_be_pasted_back() {
        for bytes in [0, 1, 4096, 512 << 10, 1536 << 20, 3 << 30, 64 << 40, u64::MAX] {
            assert_eq!(size::parse(&offset(bytes)), Ok(bytes));
        }
        assert_eq!([offset(512 << 10), offset(1536 << 20)], ["512k", "1536M"]);
    }

    #[test]
    fn ticks_are_few_and_round() {
        assert_eq!(ticks(1000, 4), [0, 256, 512, 768]);
        assert_eq!(ticks(0, 4), [0; 0]);
        assert!(ticks(u64::MAX, 6).len() <= 6);
    }
}
