//! The report for spreadsheets: one table for locks and ops.
//!
//! The first column tells the two apart; a row leaves empty what the other kind has, and what was
//! not measured. Invariant: every row has every column, and all times are nanoseconds.

use std::io;

use kcore_trace_ebpf::words::Kind;

use super::{Counts, Dist, LockRow, LockTotal, OpRow, Report};

/// What a row is about: `record` is `lock` or `op`.
const KEYS: [&str; 6] = ["record", "lock", "kind", "mode", "intent", "op"];
const COUNTS: [&str; 7] = [
    "count",
    "acquisitions",
    "contended",
    "releases",
    "aborted",
    "aborted_wait_ns",
    "try_failed",
];
/// The distributions of a row; each has all of [`DIST`].
const DISTS: [&str; 3] = ["wait", "hold", "latency"];
const DIST: [&str; 8] = [
    "count", "sum_ns", "min_ns", "max_ns", "p50_ns", "p90_ns", "p99_ns", "p999_ns",
];

/// A row for each lock and op.
pub(super) fn by_op(report: &Report) -> io::Result<String> {
    render(report, report.locks.iter().map(lock))
}

/// A row for each lock.
pub(super) fn by_lock(report: &Report) -> io::Result<String> {
    render(report, report.lock_totals.iter().map(total))
}

fn render(report: &Report, locks: impl Iterator<Item = Vec<String>>) -> io::Result<String> {
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(header())?;
    for row in locks {
        table.write_record(row)?;
    }
    for row in &report.ops {
        table.write_record(op(row))?;
    }
    let bytes = table.into_inner().map_err(|error| error.into_error())?;
    String::from_utf8(bytes).map_err(io::Error::other)
}

fn header() -> Vec<String> {
    let dists = DISTS
        .iter()
        .flat_map(|which| DIST.iter().map(move |number| format!("{which}_{number}")));
    let names = KEYS.iter().chain(&COUNTS).map(ToString::to_string);
    names.chain(dists).collect()
}

fn lock(row: &LockRow) -> Vec<String> {
    let kind = row.kind.map_or("", Kind::name);
    let keys = [
        "lock",
        row.lock.name(),
        kind,
        row.mode.name(),
        row.intent.name(),
        row.op.name(),
    ];
    line(keys, counts(&row.counts), [row.wait, row.hold, None])
}

fn total(total: &LockTotal) -> Vec<String> {
    let kind = total.kind.map_or("", Kind::name);
    let keys = ["lock", total.lock.name(), kind, "", "", ""];
    let dists = [total.wait, total.hold, None];
    line(keys, counts(&total.counts), dists)
}

/// How often a lock was taken, in the order of [`COUNTS`].
fn counts(counts: &Counts) -> [Option<u64>; COUNTS.len()] {
    [
        None,
        counts.acquisitions,
        counts.contended,
        counts.releases,
        counts.aborted,
        counts.aborted_wait_ns,
        Some(counts.try_failed),
    ]
}

fn op(row: &OpRow) -> Vec<String> {
    let keys = ["op", "", "", "", "", row.op.name()];
    let mut counts = [None; COUNTS.len()];
    counts[0] = Some(row.count);
    line(keys, counts, [None, None, row.latency])
}

fn line(
    keys: [&str; KEYS.len()],
    counts: [Option<u64>; COUNTS.len()],
    dists: [Option<Dist>; DISTS.len()],
) -> Vec<String> {
    let numbers = counts
        .into_iter()
        .chain(dists.into_iter().flat_map(numbers));
    let numbers = numbers.map(|number| number.map_or(String::new(), |number| number.to_string()));
    keys.map(String::from).into_iter().chain(numbers).collect()
}

/// The numbers of a distribution in the order of [`DIST`].
fn numbers(dist: Option<Dist>) -> [Option<u64>; DIST.len()] {
    dist.map_or([None; DIST.len()], |dist| {
        [
            Some(dist.count),
            Some(dist.sum_ns),
            dist.min_ns,
            dist.max_ns,
            dist.p50_ns,
            dist.p90_ns,
            dist.p99_ns,
            dist.p999_ns,
        ]
    })
}
