//! How text for a person looks: tables with a rule under the head and no other line, and sentences
//! that are no wider than the terminal.
//!
//! Owns the looks that report and comparison share. A table begins with columns of words; those of
//! numbers are set apart with [`align`]. Names come from whoever chose them: what would move the
//! cursor or break a line is written as an escape.

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

/// A text of which everything can be seen: what cannot be is written as in Rust, such as `\u{1b}`.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // Which would be escaped too, and can be seen.
            '\'' | '"' | '\\' => shown.push(c),
            c => shown.extend(c.escape_debug()),
        }
    }
    shown
}

/// The same of a text of several lines, which stay.
pub(crate) fn printable_lines(text: &str) -> String {
    let lines = text.split('\n').map(printable);
    lines.collect::<Vec<_>>().join("\n")
}

/// The words of a command as one would type them.
pub(crate) fn command_line(words: &[String]) -> String {
    let words = words.iter().map(|word| quoted(word));
    words.collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_=+./:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", printable(&word.replace('\'', r"'\''")))
}

/// Columns of the widest line.
pub(crate) fn width(table: &str) -> usize {
    table
        .lines()
        .map(|line| line.chars().count())
        .max()
        .unwrap_or(0)
}

/// A text in lines no wider than the terminal, if there is one.
pub(crate) fn fitted(text: &str, columns: Option<u16>) -> Vec<String> {
    match columns {
        Some(columns) => wrap(text, columns.into()),
        None => vec![text.to_owned()],
    }
}

/// A text in lines of so many characters; a longer word has a line to itself, and a number keeps
/// its unit.
pub(crate) fn wrap(text: &str, columns: usize) -> Vec<String> {
    const UNITS: [&str; 6] = ["ns", "µs", "ms", "s", "%", "pt"];
    let is_unit = |word: &str| UNITS.contains(&word.trim_end_matches(['.', ',', ')']));
    let mut words: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match words.last_mut().filter(|_| is_unit(word)) {
            Some(number) => *number += &format!(" {word}"),
            None => words.push(word.to_owned()),
        }
    }
    let mut lines: Vec<String> = Vec::new();
    for word in words {
        let room = |line: &&mut String| line.chars().count() + word.chars().count() < columns;
        match lines.last_mut().filter(room) {
            Some(line) => *line += &format!(" {word}"),
            None => lines.push(word),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_escaped_and_all_else_stays() {
        for (text, shown) in [
            ("crash", "crash"),
            ("kworker/1:2-events", "kworker/1:2-events"),
            (r#"a\x2db 'c' "d""#, r#"a\x2db 'c' "d""#),
            ("größer → 3 µs █▏", "größer → 3 µs █▏"),
            ("\x1b[2J\n\r\t\x07", r"\u{1b}[2J\n\r\t\u{7}"),
            ("\u{9b}31m \u{202e}x", r"\u{9b}31m \u{202e}x"),
        ] {
            assert_eq!(printable(text), shown);
        }
        assert_eq!(printable_lines("a\n\x1b\nb\n"), "a\n\\u{1b}\nb\n");
    }

    #[test]
    fn a_command_can_be_told_from_one_of_other_words() {
        let line = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
            command_line(&words)
        };
        assert_eq!(line(&["make", "-j8", "CC=gcc"]), "make -j8 CC=gcc");
        assert_eq!(
            line(&["sh", "-c", "echo it's; true", ""]),
            r"sh -c 'echo it'\''s; true' ''"
        );
        assert_eq!(line(&["printf", "\x1b[2J\n"]), r"printf '\u{1b}[2J\n'");
    }

    #[test]
    fn lines_are_broken_between_words_and_never_before_a_unit() {
        let lines = wrap("hold p50 1.20 µs → 1.80 µs, +50 %", 13);
        assert_eq!(lines, ["hold p50", "1.20 µs →", "1.80 µs,", "+50 %"]);
    }
}
