//! How tables for a person look: a rule under the head, and no other line.
//!
//! Owns the looks that report and comparison share. A table begins with columns of words; those of
//! numbers are set apart with [`align`].

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};

const STYLE: TableStyle =
    TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));
/// Blanks before a group of columns that belong together, beside the one before each column.
const GROUP_GAP: u16 = 2;

/// A table whose head says how many columns there are; all begin as columns of words.
pub(crate) fn new_table(head: Vec<String>) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE).set_header(head);
    for column in table.column_iter_mut() {
        column.set_padding((0, 1));
    }
    table
}

/// Makes a column one of numbers, which stand under each other.
pub(crate) fn align(table: &mut Table, index: usize, begins_group: bool) {
    if let Some(column) = table.column_mut(index) {
        column.set_cell_alignment(CellAlignment::Right);
        column.set_padding((if begins_group { GROUP_GAP } else { 0 }, 0));
    }
}

/// Columns of the widest line.
pub(crate) fn width(table: &str) -> usize {
    table
        .lines()
        .map(|line| line.chars().count())
        .max()
        .unwrap_or(0)
}
