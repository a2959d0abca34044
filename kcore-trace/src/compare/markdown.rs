//! The comparison to paste into a mail: plain lines, and one table that reads without rendering.
//!
//! Invariant: the table has what was found, and of a row without a difference how long its waits and
//! holds or its latency were; the columns stand straight in a fixed-width font.

use super::metric::{Metric, Point, Span};
use super::verdict::{Finding, Verdict};
use super::{Comparison, LockRow, Number, OpRow, blame, nodes, shown, tables};
use crate::table::printable;

const HEAD: [&str; 5] = [
    "lock, op, as",
    "number",
    "baseline",
    "candidate",
    "change (interval)",
];
/// Columns of words; the others are numbers.
const WORDS: usize = 2;

type Row = [String; HEAD.len()];

pub(super) fn render(comparison: &Comparison) -> String {
    let mut text = format!("{}\n\n", escaped(&comparison.summary));
    for (name, values) in shown::head(comparison) {
        for value in values {
            text += &format!("- {name}: {}\n", escaped(&value));
        }
    }
    for line in nodes::lines(&comparison.nodes) {
        text += &format!("- nodes: {}\n", escaped(&line));
    }
    for line in blame::lines(&comparison.blame) {
        text += &format!("- who waited for whom: {}\n", escaped(&line));
    }
    let locks = tables::groups(&comparison.locks).flat_map(group_rows);
    let ops = comparison.ops.iter().flat_map(op_rows);
    let rows: Vec<_> = locks.chain(ops).collect();
    text + "\n" + &table(&rows)
}

/// The lock, what became of it below, and the rows of its ops.
fn group_rows(group: &[LockRow]) -> Vec<Row> {
    let name = tables::name(group).replace(" →", "\n→");
    let names = name.lines().map(|line| words(escaped(line), "", ""));
    let rows = group.iter().flat_map(|row| {
        let steady = [
            Metric::PerOp(Span::Wait),
            Metric::Of(Span::Hold, Point::Mean),
        ];
        let name = tables::indented(row);
        rows(name, row.verdict, row.verdict_name(), &row.numbers, &steady)
    });
    names.chain(rows).collect()
}

fn op_rows(row: &OpRow) -> Vec<Row> {
    let steady = [Metric::Of(Span::Latency, Point::Mean)];
    let name = format!("operation {}", row.op);
    rows(name, row.verdict, row.verdict_name(), &row.numbers, &steady)
}

/// A row without numbers.
fn words(name: String, number: &str, change: &str) -> Row {
    let nothing = String::new;
    [name, number.into(), nothing(), nothing(), change.into()]
}

/// The numbers that differ, or else those that always say something; only the first row says whose
/// they are.
fn rows(
    mut name: String,
    verdict: Verdict,
    verdict_name: &str,
    numbers: &[Number],
    steady: &[Metric],
) -> Vec<Row> {
    let differs = matches!(verdict, Verdict::Worse | Verdict::Better);
    let shown: Vec<_> = numbers
        .iter()
        .filter(|number| {
            number.finding.is_difference() || (!differs && steady.contains(&number.metric))
        })
        .collect();
    if shown.is_empty() {
        return vec![words(name, shown::DASH, verdict_name)];
    }
    let lines = shown.into_iter().map(|number| {
        let [a, b] =
            [number.baseline, number.candidate].map(|side| shown::value(number.metric, side));
        let name = std::mem::take(&mut name);
        [name, shown::metric(number), a, b, change(number)]
    });
    lines.collect()
}

fn change(number: &Number) -> String {
    match number.finding {
        Finding::NoDifference => number.finding.name().into(),
        Finding::CannotTell => match &number.reason {
            Some(reason) => format!("{}: {reason}", number.finding.name()),
            None => number.finding.name().into(),
        },
        Finding::Worse | Finding::Better | Finding::More | Finding::Fewer => {
            format!("{} ({})", shown::change(number), shown::interval(number))
        }
    }
}

fn table(rows: &[Row]) -> String {
    let head = HEAD.map(String::from);
    let width = |index: usize| {
        let cells = [&head].into_iter().chain(rows).map(|row| &row[index]);
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..HEAD.len()).map(width).collect();
    let rule: Vec<_> = widths
        .iter()
        .enumerate()
        .map(|(index, &width)| {
            if index < WORDS {
                "-".repeat(width)
            } else {
                "-".repeat(width - 1) + ":"
            }
        })
        .collect();
    let mut lines = vec![line(&head, &widths), format!("| {} |", rule.join(" | "))];
    lines.extend(rows.iter().map(|row| line(row, &widths)));
    lines.join("\n") + "\n"
}

fn line(row: &Row, widths: &[usize]) -> String {
    let cells = row.iter().zip(widths).enumerate();
    let cells = cells.map(|(index, (cell, &width))| {
        if index < WORDS {
            format!("{cell:width$}")
        } else {
            format!("{cell:>width$}")
        }
    });
    format!("| {} |", cells.collect::<Vec<_>>().join(" | "))
}

/// Names and commands may hold what Markdown or a terminal would take for its own.
fn escaped(text: &str) -> String {
    printable(text).replace('|', "\\|")
}
