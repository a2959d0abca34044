//! The comparison for a person.
//!
//! Says first what is compared and what that is worth, then what was found in one sentence, then
//! shows the rows, the weightiest first, and every difference with its interval. Invariant: a
//! number that is not complete never stands without the line that says so.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::metric::Metric;
use super::shown::{self, Line};
use super::tables::{self, HOLDS, WAITS};
use super::verdict::Finding;
use super::{Comparison, Number, OpRow, blame, inside, nodes};
use crate::table::{self, printable, wrap};
use crate::units;

/// Width of the names at the left of the first block.
const NAME_WIDTH: usize = 10;
/// Columns where there is no terminal: those of a page.
const PAGE_COLUMNS: u16 = 120;

pub(super) fn render(comparison: &Comparison, columns: Option<u16>) -> String {
    let columns = usize::from(columns.unwrap_or(PAGE_COLUMNS));
    let mut blocks = vec![
        lines(&shown::head(comparison), columns),
        wrap(&comparison.summary, columns).join("\n"),
    ];
    blocks.extend(locks(comparison, columns));
    blocks.extend(ops(&comparison.ops));
    blocks.extend(nodes::table(&comparison.nodes));
    blocks.extend(blame::table(&comparison.blame));
    blocks.extend(comparison.inside.iter().flat_map(inside::tables));
    if let Some(table) = tables::differences(comparison) {
        blocks.push(format!(
            "Differences, with intervals that hold together within a row\n\n{table}"
        ));
    }
    blocks.extend(notes(comparison, columns));
    blocks.extend(unknown(comparison, columns));
    blocks.join("\n\n") + "\n"
}

/// Names at the left, what they say at the right of them.
fn lines(head: &[Line], columns: usize) -> String {
    let room = columns.saturating_sub(NAME_WIDTH + 2);
    let mut text = String::new();
    for (name, values) in head {
        let lines = values
            .iter()
            .flat_map(|value| wrap(&printable(value), room));
        for (index, line) in lines.enumerate() {
            let name = if index == 0 { name } else { "" };
            writeln!(text, "{name:NAME_WIDTH$}  {line}").expect("a string takes every write");
        }
    }
    text.trim_end().to_owned()
}

/// The table of locks: waits beside holds if there is room for both.
fn locks(comparison: &Comparison, columns: usize) -> Option<String> {
    if comparison.locks.is_empty() {
        return None;
    }
    let table = |metrics: &[Metric]| {
        let measured = |metric: &Metric| comparison.locks.iter().any(|row| row.has(*metric));
        let metrics: Vec<_> = metrics.iter().copied().filter(measured).collect();
        tables::locks(&comparison.locks, &metrics)
    };
    let fitting = |metrics: &[_]| Some(table(metrics)).filter(|it| table::width(it) <= columns);
    let few_waits = [WAITS[0], WAITS[2]];
    let two_tables = || {
        let waits = fitting(&WAITS).unwrap_or_else(|| table(&few_waits));
        [waits, table(&HOLDS)].join("\n\n")
    };
    let tables = fitting(&[&WAITS[..], &HOLDS].concat())
        .or_else(|| fitting(&[&few_waits[..], &HOLDS].concat()))
        .unwrap_or_else(two_tables);
    Some(format!("Locks, by verdict\n\n{tables}"))
}

/// The table of ops, if there is something to show of them.
fn ops(rows: &[OpRow]) -> Option<String> {
    if rows.is_empty() {
        return None;
    }
    let mut sides = rows.iter().flat_map(|row| [row.baseline, row.candidate]);
    if sides.any(|side| side.is_some_and(|side| side.latency_sum_ns.is_some())) {
        let table = tables::ops(rows);
        return Some(format!(
            "Operations and their latency, by verdict\n\n{table}"
        ));
    }
    let names: Vec<_> = rows.iter().map(|row| row.op.name()).collect();
    let names = names.join(", ");
    Some(format!("Operations were counted and not timed: {names}"))
}

/// What the signs in the tables mean, only where they stand.
fn notes(comparison: &Comparison, columns: usize) -> Option<String> {
    let locks = comparison.locks.iter().flat_map(|row| &row.numbers);
    let numbers: Vec<_> = locks
        .chain(comparison.ops.iter().flat_map(|row| &row.numbers))
        .collect();
    let any = |is: fn(&Number) -> bool| numbers.iter().any(|number| is(number));
    let rows = comparison.rows.on_one_side;
    let notes = [
        (
            any(|number| number.finding == Finding::NoDifference),
            "=  no difference: the interval reaches into the band",
        ),
        (
            any(|number| number.finding == Finding::CannotTell),
            "?  cannot tell; what stands behind it is the number of the candidate",
        ),
        (
            any(|number| number.overruled),
            "(…)  does not count: the lock is taken or waited for more or less often, and the time \
             in all per operation says the contrary",
        ),
        (rows != 0, "new, gone: on one side only"),
    ];
    let notes: Vec<_> = notes
        .into_iter()
        .filter(|(applies, _)| *applies)
        .flat_map(|(_, note)| wrap(note, columns))
        .collect();
    (!notes.is_empty()).then(|| notes.join("\n"))
}

/// So many rows are named, more are counted.
const NAMED_ROWS: usize = 2;

/// Why it cannot be told of numbers that have a column, and of which rows.
fn unknown(comparison: &Comparison, columns: usize) -> Option<String> {
    let mut rows_of: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    let mut note = |name: String, numbers: &[Number], shown: &[Metric]| {
        for number in numbers.iter().filter(|it| shown.contains(&it.metric)) {
            if let (Finding::CannotTell, Some(reason)) = (number.finding, &number.reason) {
                let key = (reason.clone(), number.metric.name());
                rows_of.entry(key).or_default().push(name.clone());
            }
        }
    };
    let has_column = |metric: &Metric| comparison.locks.iter().any(|row| row.has(*metric));
    let of_locks: Vec<_> = WAITS.into_iter().chain(HOLDS).filter(has_column).collect();
    for row in &comparison.locks {
        let name = format!("{} in {}, {}", row.lock_name(), row.op, row.taken_as());
        note(name, &row.numbers, &of_locks);
    }
    let timed = |row: &&OpRow| row.numbers.iter().any(|it| it.baseline.is_some());
    for row in comparison.ops.iter().filter(timed) {
        note(
            format!("operation {}", row.op),
            &row.numbers,
            &tables::LATENCIES,
        );
    }
    let lines: Vec<_> = rows_of
        .iter()
        .flat_map(|((reason, metric), rows)| {
            let rows = match rows.len() {
                ..=NAMED_ROWS => rows.join(" and "),
                many => units::counted(many as u64, "row"),
            };
            wrap(&format!("{metric} of {rows}: {reason}"), columns)
        })
        .collect();
    (!lines.is_empty()).then(|| format!("What cannot be told, and why\n\n{}", lines.join("\n")))
}
