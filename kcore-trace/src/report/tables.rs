//! The tables of the text report: locks and ops.
//!
//! In come rows of a report, out go lines without trailing blanks. Invariant: a dash means that
//! nothing happened; what was not measured is blank, and has no column if that is so everywhere.

use kcore_trace_ebpf::words::{Intent, Kind, Mode};

use super::{By, Counts, Dist, LockRow, LockTotal, OpRow, Report};
use crate::table::{align, new_table};
use crate::units;

/// Which durations of a lock stand in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sides {
    Both,
    Waits,
    Holds,
}

/// For what did not happen.
const DASH: &str = "–";
/// What is shown of a distribution.
const DIST: [&str; 4] = ["p50", "p99", "max", "total"];

/// A number of the lock table. Those of durations say which of [`DIST`].
#[derive(Clone, Copy, Debug)]
enum Column {
    Acquired,
    /// Contended acquisitions as a share of all.
    ContendedShare,
    Contended,
    Wait(usize),
    Hold(usize),
}

/// What the numbers of a line are taken from.
struct Source<'a> {
    counts: &'a Counts,
    wait: Option<&'a Dist>,
    hold: Option<&'a Dist>,
}

impl Column {
    /// Two lines, the first of which names a group.
    fn head(self) -> String {
        match self {
            Self::Acquired => "\nacquired".into(),
            Self::ContendedShare | Self::Contended => "\ncontended".into(),
            Self::Wait(number @ 0) => format!("wait\n{}", DIST[number]),
            Self::Hold(number @ 0) => format!("hold\n{}", DIST[number]),
            Self::Wait(number) | Self::Hold(number) => format!("\n{}", DIST[number]),
        }
    }

    fn begins_group(self) -> bool {
        matches!(self, Self::Wait(0) | Self::Hold(0))
    }

    /// The number; blank if it was not measured.
    fn text(self, source: &Source<'_>) -> String {
        let counts = source.counts;
        let share = |(part, all)| units::share(part, all);
        let text = match self {
            Self::Acquired => counts.acquisitions.map(units::count),
            Self::ContendedShare => counts.contended.zip(counts.acquisitions).map(share),
            Self::Contended => counts.contended.map(units::count),
            Self::Wait(number) => source.wait.map(|wait| numbers(wait)[number].clone()),
            Self::Hold(number) => source.hold.map(|hold| numbers(hold)[number].clone()),
        };
        text.unwrap_or_default()
    }
}

/// The locks, each with a line for every op that took it if that is asked for, under a line that has
/// their sum if there is more than one.
pub(super) fn locks(report: &Report, by: By, sides: Sides) -> String {
    let columns = lock_columns(report, sides);
    let names = match by {
        By::Op => ["\nlock, op", "\nas"],
        By::Lock | By::Node | By::Process | By::Site => ["\nlock", "\nkind"],
    };
    let names = names.map(String::from);
    let heads = columns.iter().map(|column| column.head());
    let mut table = new_table(names.into_iter().chain(heads).collect());
    for total in &report.lock_totals {
        let rows: Vec<_> = report
            .locks
            .iter()
            .filter(|row| by == By::Op && row.lock == total.lock)
            .collect();
        table.add_row(total_line(total, rows.len() != 1, &columns));
        for row in rows {
            table.add_row(row_line(row, &columns));
        }
    }
    for (index, column) in columns.iter().enumerate() {
        align(&mut table, index + 2, column.begins_group());
    }
    table.trim_fmt()
}

fn total_line(total: &LockTotal, with_sum: bool, columns: &[Column]) -> Vec<String> {
    let source = Source {
        counts: &total.counts,
        wait: total.wait.as_ref(),
        hold: total.hold.as_ref(),
    };
    let names = [total.lock.name(), total.kind.map_or("unknown", Kind::name)].map(String::from);
    let sums = columns
        .iter()
        .filter(|_| with_sum)
        .map(|column| column.text(&source));
    names.into_iter().chain(sums).collect()
}

fn row_line(row: &LockRow, columns: &[Column]) -> Vec<String> {
    let source = Source {
        counts: &row.counts,
        wait: row.wait.as_ref(),
        hold: row.hold.as_ref(),
    };
    let names = [format!("  {}", row.op), taken_as(row).to_owned()];
    names
        .into_iter()
        .chain(columns.iter().map(|column| column.text(&source)))
        .collect()
}

/// How the lock was taken: the mode of an rwsem, the intent where there is but one mode.
fn taken_as(row: &LockRow) -> &'static str {
    match (row.kind, row.mode, row.intent) {
        (Some(Kind::Rwsem), Mode::Exclusive, Intent::Read) => "excl/read",
        (Some(Kind::Rwsem), Mode::Exclusive, Intent::Write) => "exclusive",
        (_, Mode::Shared, Intent::Write) => "shared/wr",
        (_, Mode::Shared, Intent::Read) => "shared",
        (_, Mode::Exclusive, intent) => intent.name(),
    }
}

/// Whether the lock could be shared here and is not.
pub(super) fn reads_exclusively(row: &LockRow) -> bool {
    (row.mode, row.intent) == (Mode::Exclusive, Intent::Read)
}

/// The columns whose numbers were measured, for any lock.
fn lock_columns(report: &Report, sides: Sides) -> Vec<Column> {
    let any = |seen: fn(&LockTotal) -> bool| report.lock_totals.iter().any(seen);
    let acquired = any(|total| total.counts.acquisitions.is_some());
    let contended = any(|total| total.counts.contended.is_some());
    let mut columns = match (acquired, contended) {
        (true, true) => vec![Column::Acquired, Column::ContendedShare],
        (true, false) => vec![Column::Acquired],
        (false, _) => vec![Column::Contended],
    };
    if sides != Sides::Holds && any(|total| total.wait.is_some_and(|wait| wait.count != 0)) {
        columns.extend((0..DIST.len()).map(Column::Wait));
    }
    if sides != Sides::Waits && any(|total| total.hold.is_some()) {
        columns.extend((0..DIST.len()).map(Column::Hold));
    }
    columns
}

/// What is shown of a distribution, in the order of [`DIST`].
fn numbers(dist: &Dist) -> [String; DIST.len()] {
    let numbers = if dist.count == 0 {
        [None; DIST.len()]
    } else {
        [dist.p50_ns, dist.p99_ns, dist.max_ns, Some(dist.sum_ns)]
    };
    numbers.map(|ns| ns.map_or(DASH.into(), units::duration))
}

/// The ops, with their durations where those were measured.
pub(super) fn ops(rows: &[OpRow], duration_ns: u64) -> String {
    let timed = rows.iter().any(|row| row.latency.is_some());
    let dists = DIST.iter().filter(|_| timed);
    let head = ["op", "count", "rate"].iter().chain(dists);
    let mut table = new_table(head.map(ToString::to_string).collect());
    for row in rows {
        let rate = units::rate(row.count, duration_ns).unwrap_or_else(|| DASH.into());
        let mut cells = vec![row.op.name().to_owned(), units::count(row.count), rate];
        cells.extend(row.latency.iter().flat_map(numbers));
        table.add_row(cells);
    }
    for index in 1..=2 {
        align(&mut table, index, false);
    }
    for index in 3..3 + if timed { DIST.len() } else { 0 } {
        align(&mut table, index, index == 3);
    }
    table.trim_fmt()
}
