//! Tables for people; never parsed.

use super::escape;
use comfy_table::{CellAlignment, Table, TableStyle};

/// One column: heading, and whether its cells are numbers (set to the right).
pub type Column = (&'static str, bool);

/// The lines of a table without frames. Cells are escaped here.
#[must_use]
pub fn lines(columns: &[Column], rows: &[Vec<String>]) -> Vec<String> {
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    table.set_header(columns.iter().map(|column| column.0));
    for row in rows {
        table.add_row(row.iter().map(|cell| escape::line(cell)));
    }
    for (index, column) in columns.iter().enumerate() {
        if let Some(handle) = table.column_mut(index) {
            handle.set_padding((0, 2));
            handle.set_cell_alignment(if column.1 { CellAlignment::Right } else { CellAlignment::Left });
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_cells_are_escaped() {
        let lines = lines(
            &[("Tag", true), ("Name", false)],
            &[vec!["5".into(), "a\x1bb".into()], vec!["1234".into(), "c".into()]],
        );
        assert_eq!(lines, [" Tag  Name", "   5  a\\u{1b}b", "1234  c"]);
    }
}
