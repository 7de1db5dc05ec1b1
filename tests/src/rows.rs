//! The table of docs/nvme-errors.md, as tests read it.

/// The page.
pub const PAGE: &str = include_str!("../../docs/nvme-errors.md");
/// So many rows there are.
pub const COUNT: u32 = 38;

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its number, from 1.
    pub number: u32,
    /// What befalls the driver.
    pub condition: &'static str,
    /// The files that handle it, as names in code: below the driver's folder if they are no paths.
    pub handled: Vec<&'static str>,
    /// The tests that show it, as `file::name`; a name may end in `*`.
    pub tests: Vec<&'static str>,
    /// How `nvme_error_rows` brings it about.
    pub injected: &'static str,
}

/// All rows of the page, in its order.
#[must_use]
pub fn rows() -> Vec<Row> {
    PAGE.lines().filter_map(row).collect()
}

/// What befalls the driver in a row; empty where there is no such row.
#[must_use]
pub fn condition(number: u32) -> &'static str {
    let found = rows().into_iter().find(|row| row.number == number);
    found.map_or("", |row| row.condition)
}

fn row(line: &'static str) -> Option<Row> {
    let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
    let number = cells.next()?.parse().ok()?;
    let (condition, _does) = (cells.next()?, cells.next()?);
    let (handled, tests) = (code(cells.next()?), code(cells.next()?));
    Some(Row { number, condition, handled, tests, injected: cells.next()? })
}

/// What is between backquotes.
fn code(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}
