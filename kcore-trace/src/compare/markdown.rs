//! The comparison to paste into a mail: plain lines, and one table that reads without rendering.
//!
//! Invariant: the table has what was found, and of a row without a difference how long its waits and
//! holds or its latency were; the columns stand straight in a fixed-width font.

use super::metric::{Metric, Point, Span};
use super::verdict::{Finding, Verdict};
use super::{Comparison, LockRow, Number, OpRow, shown, tables};

const HEAD: [&str; 6] = [
    "lock",
    "op",
    "number",
    "baseline",
    "candidate",
    "change (interval)",
];
/// Columns of words; the others are numbers.
const WORDS: usize = 3;

type Row = [String; HEAD.len()];

pub(super) fn render(comparison: &Comparison) -> String {
    let mut text = format!("{}\n\n", escaped(&comparison.summary));
    for (name, values) in shown::head(comparison) {
        for value in values {
            text += &format!("- {name}: {}\n", escaped(&value));
        }
    }
    let locks = tables::groups(&comparison.locks).flat_map(|group| {
        let name = escaped(&tables::name(group));
        let rows = group.iter().flat_map(|row| lock_rows(&name, row));
        rows.collect::<Vec<_>>()
    });
    let ops = comparison.ops.iter().flat_map(op_rows);
    let rows: Vec<_> = locks.chain(ops).collect();
    text + "\n" + &table(&rows)
}

fn lock_rows(name: &str, row: &LockRow) -> Vec<Row> {
    let taken = row.taken_as();
    let words = [name.to_owned(), format!("{}, {taken}", row.op)];
    let steady = [
        Metric::PerOp(Span::Wait),
        Metric::Of(Span::Hold, Point::Mean),
    ];
    rows(
        words,
        row.verdict,
        row.verdict_name(),
        &row.numbers,
        &steady,
    )
}

fn op_rows(row: &OpRow) -> Vec<Row> {
    let words = ["(operation)".into(), row.op.name().into()];
    let steady = [Metric::Of(Span::Latency, Point::Mean)];
    rows(
        words,
        row.verdict,
        row.verdict_name(),
        &row.numbers,
        &steady,
    )
}

/// The numbers that differ, or else those that always say something.
fn rows(
    words: [String; 2],
    verdict: Verdict,
    verdict_name: &str,
    numbers: &[Number],
    steady: &[Metric],
) -> Vec<Row> {
    let [lock, op] = words;
    let differs = matches!(verdict, Verdict::Worse | Verdict::Better);
    let shown = numbers.iter().filter(|number| {
        number.finding.is_difference() || (!differs && steady.contains(&number.metric))
    });
    let lines: Vec<Row> = shown
        .map(|number| {
            let [a, b] =
                [number.baseline, number.candidate].map(|side| shown::value(number.metric, side));
            [
                lock.clone(),
                op.clone(),
                shown::metric(number),
                a,
                b,
                change(number),
            ]
        })
        .collect();
    if lines.is_empty() {
        let nothing = || shown::DASH.to_owned();
        let change = verdict_name.to_owned();
        return vec![[lock, op, nothing(), nothing(), nothing(), change]];
    }
    lines
}

fn change(number: &Number) -> String {
    match number.finding {
        Finding::NoDifference | Finding::CannotTell => number.finding.name().into(),
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
    let mut last: [&str; 2] = ["", ""];
    for row in rows {
        let mut row_shown = row.clone();
        // What is the same as above is left out, so that the eye finds what is not.
        if last[0] == row[0] {
            row_shown[0].clear();
            if last[1] == row[1] {
                row_shown[1].clear();
            }
        }
        last = [&row[0], &row[1]];
        lines.push(line(&row_shown, &widths));
    }
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

/// Names and commands may hold what Markdown would take for its own.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|")
}
