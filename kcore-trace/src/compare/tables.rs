//! The tables of the text comparison: locks, ops, and the differences that were found.
//!
//! In come rows of a comparison, out go lines without trailing blanks. Invariant: a change stands
//! beside what it is a change of.

use comfy_table::Table;

use super::metric::{Metric, Point, Span};
use super::shown;
use super::{Comparison, LockRow, Number, OpRow};
use crate::table::{align, new_table};

/// What is shown of waits.
pub(super) const WAITS: [Metric; 3] = [
    Metric::ContendedShare,
    Metric::PerOp(Span::Wait),
    Metric::Of(Span::Wait, Point::P99),
];
/// What is shown of holds.
pub(super) const HOLDS: [Metric; 2] = [
    Metric::Of(Span::Hold, Point::P50),
    Metric::Of(Span::Hold, Point::P99),
];
/// What is shown of the latency of ops.
pub(super) const LATENCIES: [Metric; 3] = [
    Metric::Of(Span::Latency, Point::P50),
    Metric::Of(Span::Latency, Point::P99),
    Metric::Of(Span::Latency, Point::Mean),
];

/// The locks, each with its kind on the line that names it, and what the numbers of its rows were
/// and how they changed.
pub(super) fn locks(rows: &[LockRow], metrics: &[Metric]) -> String {
    let words = ["lock\n  op, as", "kind\nverdict"].map(String::from);
    let names = metrics.iter().map(|metric| metric.name());
    let mut table = new_table(words.into_iter().chain(heads(names)).collect());
    for group in groups(rows) {
        table.add_row([name(group), kind(group)].map(|change| stacked(&change)));
        for row in group {
            let words = [indented(row), row.verdict_name().into()];
            let numbers = numbers(&row.numbers, metrics);
            table.add_row(words.into_iter().chain(numbers).collect::<Vec<_>>());
        }
    }
    align_pairs(&mut table, metrics.len());
    table.trim_fmt()
}

/// The ops, with what their latency was and how it changed.
pub(super) fn ops(rows: &[OpRow]) -> String {
    let names = LATENCIES.iter().map(|metric| metric.short_name());
    let words = ["\nop", "\nverdict"].map(String::from);
    let mut table = new_table(words.into_iter().chain(heads(names)).collect());
    for row in rows {
        let words = [row.op.name().into(), row.verdict_name().into()];
        let numbers = numbers(&row.numbers, &LATENCIES);
        table.add_row(words.into_iter().chain(numbers).collect::<Vec<_>>());
    }
    align_pairs(&mut table, LATENCIES.len());
    table.trim_fmt()
}

/// Every difference that was found, with its interval; nothing if there is none.
pub(super) fn differences(comparison: &Comparison) -> Option<String> {
    let head = [
        "lock, op, as",
        "number",
        "baseline",
        "candidate",
        "change",
        "interval",
    ];
    let mut table = new_table(head.map(String::from).to_vec());
    for group in groups(&comparison.locks) {
        let lines = group
            .iter()
            .flat_map(|row| difference_lines(indented(row), &row.numbers));
        let lines: Vec<_> = lines.collect();
        if !lines.is_empty() {
            table.add_row([stacked(&name(group))]);
            table.add_rows(lines);
        }
    }
    for row in &comparison.ops {
        table.add_rows(difference_lines(
            format!("operation {}", row.op),
            &row.numbers,
        ));
    }
    if table.is_empty() {
        return None;
    }
    for index in 2..head.len() {
        align(&mut table, index, false);
    }
    Some(table.trim_fmt())
}

/// One line for each difference; only the first says whose it is.
fn difference_lines(mut name: String, numbers: &[Number]) -> Vec<Vec<String>> {
    let found = numbers
        .iter()
        .filter(|number| number.finding.is_difference());
    let lines = found.map(|number| {
        let name = std::mem::take(&mut name);
        [name].into_iter().chain(difference(number)).collect()
    });
    lines.collect()
}

fn difference(number: &Number) -> [String; 5] {
    let [a, b] = [number.baseline, number.candidate].map(|side| shown::value(number.metric, side));
    [
        shown::metric(number),
        a,
        b,
        shown::change(number),
        shown::interval(number),
    ]
}

/// The rows of each role.
pub(super) fn groups(rows: &[LockRow]) -> impl Iterator<Item = &[LockRow]> {
    rows.chunk_by(|a, b| a.role == b.role)
}

/// The locks of one role: those of a row that both sides have, if there is one.
pub(super) fn name(group: &[LockRow]) -> String {
    let both = group.iter().find(|row| !row.on_one_side());
    both.or(group.first())
        .map(LockRow::lock_name)
        .unwrap_or_default()
}

/// The kinds of the locks of one role.
fn kind(group: &[LockRow]) -> String {
    let both = group.iter().find(|row| !row.on_one_side());
    both.or(group.first())
        .map(LockRow::kind_name)
        .unwrap_or_default()
}

/// A row below the line that names its lock.
pub(super) fn indented(row: &LockRow) -> String {
    format!("  {}, {}", row.op, row.taken_as())
}

/// What changed into what, below each other.
fn stacked(change: &str) -> String {
    change.replace(" →", "\n→")
}

/// Two columns for each number, of which the first has its name.
fn heads(names: impl Iterator<Item = String>) -> impl Iterator<Item = String> {
    names.flat_map(|name| [format!("{name}\nbaseline"), "\nchange".into()])
}

/// What each number was and how it changed.
fn numbers(numbers: &[Number], metrics: &[Metric]) -> Vec<String> {
    let texts = metrics.iter().flat_map(|metric| {
        let number = numbers.iter().find(|number| number.metric == *metric);
        let value = number.map(|number| shown::value(*metric, number.baseline));
        [
            value.unwrap_or_default(),
            number.map(shown::counted_change).unwrap_or_default(),
        ]
    });
    texts.collect()
}

/// Aligns the pairs of columns that stand after two columns of words.
fn align_pairs(table: &mut Table, pairs: usize) {
    for index in 0..2 * pairs {
        align(table, 2 + index, index % 2 == 0);
    }
}
