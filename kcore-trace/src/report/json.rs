//! The report for programs: one JSON object, indented, with a line break at its end.
//!
//! The form is that of [`Report`] and of nothing else, so that the type is its documentation.

use std::io;

use super::Report;

pub(super) fn render(report: &Report) -> io::Result<String> {
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    Ok(text)
}
