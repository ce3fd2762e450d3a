//! Tables for people: columns two spaces apart, numbers to the right, no frames.

use std::fmt;

/// Rows under headings. A column of numbers only is set to the right.
#[derive(Debug, Default)]
pub(crate) struct Table {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(headings: &[&str]) -> Table {
        Table {
            headings: headings.iter().map(|h| (*h).to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; it must have as many cells as there are headings.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.headings.len());
        self.rows.push(cells.into());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.headings.len();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells
                .chain(self.headings.get(column))
                .map(|cell| cell.chars().count())
                .max()
        };
        let widths: Vec<_> = (0..columns)
            .map(|column| width(column).unwrap_or(0))
            .collect();
        // With or without a unit: `512`, `64 MiB`, `33.3 %`; not a UUID that starts with a digit.
        let is_number = |cell: &String| {
            let number = cell.split(' ').next().unwrap_or_default();
            cell == "-" || number.parse::<f64>().is_ok()
        };
        let right: Vec<_> = (0..columns)
            .map(|column| {
                let mut cells = self
                    .rows
                    .iter()
                    .filter_map(|row| row.get(column))
                    .peekable();
                cells.peek().is_some() && cells.all(is_number)
            })
            .collect();
        for row in std::iter::once(&self.headings).chain(&self.rows) {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let pad = " ".repeat(widths[column] - cell.chars().count());
                if column > 0 {
                    line.push_str("  ");
                }
                if right[column] {
                    line.push_str(&pad);
                    line.push_str(cell);
                } else {
                    line.push_str(cell);
                    line.push_str(&pad);
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_right_and_words_left() {
        let mut table = Table::new(&["NAME", "BLOCKS", "STATE"]);
        table.row(["a".into(), "5".into(), "ready".into()]);
        table.row(["longer".into(), "1000000".into(), "".into()]);
        assert_eq!(
            table.to_string(),
            "NAME     BLOCKS  STATE\na             5  ready\nlonger  1000000\n"
        );
    }

    #[test]
    fn a_uuid_is_no_number() {
        let mut table = Table::new(&["A RATHER LONG HEADING", "SIZE"]);
        table.row(["4d558542-7d7f".into(), "64 MiB".into()]);
        table.row(["5".into(), "-".into()]);
        let text = table.to_string();
        assert!(text.lines().nth(1).unwrap().starts_with("4d55"), "{text}");
        assert!(text.lines().nth(2).unwrap().ends_with("     -"), "{text}");
    }

    #[test]
    fn an_empty_table_shows_its_headings() {
        assert_eq!(Table::new(&["A", "B"]).to_string(), "A  B\n");
    }
}
