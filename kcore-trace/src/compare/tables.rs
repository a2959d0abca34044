//! The tables of the text comparison: locks, ops, and the differences that were found.
//!
//! In come rows of a comparison, out go lines without trailing blanks. Invariant: a change stands
//! beside what it is a change of.

use super::metric::{Metric, Point, Span};
use super::shown;
use super::{Comparison, LockRow, Number, OpRow};
use crate::table::{align, new_table};

/// What is shown of waits, most important last.
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
const LATENCIES: [Metric; 3] = [
    Metric::Of(Span::Latency, Point::P50),
    Metric::Of(Span::Latency, Point::P99),
    Metric::Of(Span::Latency, Point::Mean),
];

/// The locks, each under the line that names it, with what the numbers were and how they changed.
pub(super) fn locks(rows: &[LockRow], metrics: &[Metric]) -> String {
    let words = ["\nlock, op", "\nas", "\nverdict"].map(String::from);
    let mut table = new_table(words.into_iter().chain(heads(metrics)).collect());
    for group in groups(rows) {
        table.add_row(vec![stacked(&name(group)), stacked(&group[0].kind_name())]);
        for row in group {
            let words = [
                format!("  {}", row.op),
                row.taken_as(),
                row.verdict_name().into(),
            ];
            let numbers = numbers(&row.numbers, metrics);
            table.add_row(words.into_iter().chain(numbers).collect::<Vec<_>>());
        }
    }
    align_pairs(&mut table, 3, metrics.len());
    table.trim_fmt()
}

/// The ops, with what their latency was and how it changed.
pub(super) fn ops(rows: &[OpRow]) -> String {
    let words = ["\nop", "\nverdict"].map(String::from);
    let timed = rows.iter().any(|row| {
        let sides = [row.baseline, row.candidate].into_iter().flatten();
        sides.into_iter().any(|side| side.latency_sum_ns.is_some())
    });
    let metrics = if timed { &LATENCIES[..] } else { &[] };
    let mut table = new_table(words.into_iter().chain(heads(metrics)).collect());
    for row in rows {
        let words = [row.op.name().into(), row.verdict_name().into()];
        let numbers = numbers(&row.numbers, metrics);
        table.add_row(words.into_iter().chain(numbers).collect::<Vec<_>>());
    }
    align_pairs(&mut table, 2, metrics.len());
    table.trim_fmt()
}

/// Every difference that was found, with its interval; nothing if there is none.
pub(super) fn differences(comparison: &Comparison) -> Option<String> {
    let head = [
        "lock, op",
        "as",
        "number",
        "baseline",
        "candidate",
        "change",
        "interval",
    ];
    let mut table = new_table(head.map(String::from).to_vec());
    for group in groups(&comparison.locks) {
        let mut lines = group.iter().flat_map(|row| {
            let words = [format!("  {}", row.op), row.taken_as()];
            difference_lines(words, &row.numbers)
        });
        if let Some(first) = lines.next() {
            table.add_row(vec![stacked(&name(group)), stacked(&group[0].kind_name())]);
            table.add_rows([first].into_iter().chain(lines));
        }
    }
    for row in &comparison.ops {
        let words = [format!("operation {}", row.op), String::new()];
        table.add_rows(difference_lines(words, &row.numbers));
    }
    if table.is_empty() {
        return None;
    }
    for index in 3..=6 {
        align(&mut table, index, index == 6);
    }
    Some(table.trim_fmt())
}

/// One line for each difference; only the first says whose it is.
fn difference_lines(mut words: [String; 2], numbers: &[Number]) -> Vec<Vec<String>> {
    let found = numbers
        .iter()
        .filter(|number| number.finding.is_difference());
    let lines = found.map(|number| {
        let words = std::mem::take(&mut words);
        words.into_iter().chain(difference(number)).collect()
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

/// What changed into what, below each other.
fn stacked(change: &str) -> String {
    change.replace(" →", "\n→")
}

/// Two columns for each number, of which the first has its name.
fn heads(metrics: &[Metric]) -> impl Iterator<Item = String> {
    let heads = metrics.iter();
    heads.flat_map(|metric| [format!("{}\nbaseline", metric.name()), "\nchange".into()])
}

/// What each number was and how it changed.
fn numbers(numbers: &[Number], metrics: &[Metric]) -> Vec<String> {
    let texts = metrics.iter().flat_map(|metric| {
        let number = numbers.iter().find(|number| number.metric == *metric);
        let value = number.map(|number| shown::value(*metric, number.baseline));
        [
            value.unwrap_or_default(),
            number.map(shown::change).unwrap_or_default(),
        ]
    });
    texts.collect()
}

fn align_pairs(table: &mut comfy_table::Table, first: usize, pairs: usize) {
    for index in 0..2 * pairs {
        align(table, first + index, index % 2 == 0);
    }
}
