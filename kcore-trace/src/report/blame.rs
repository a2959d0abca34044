//! Who waited for whom: rows of a report, and their table for a person.
//!
//! In comes what was measured; out come rows, and under them what readers and writers waited for
//! each other. The holder is the one at the beginning of a wait, or the next one if the lock was
//! just changing hands; who came after has no part of its own. Invariant: a holder that is not
//! known is a row of its own, and all rows of a lock have the time that was waited for it.

use std::cmp::Reverse;

use kcore_trace_ebpf::words::Lock;
use serde::Serialize;

use crate::blame::{self, BlameShares};
use crate::model::{Header, Measured, Purpose};
use crate::table::{align, fitted, new_table};
use crate::units;

/// Rows that a person is shown.
const SHOWN: usize = 12;

/// Waits by who waited for whom.
#[derive(Clone, Debug, Serialize)]
pub struct BlameMatrix {
    /// The most time first.
    pub rows: Vec<BlameRow>,
    /// One for each lock that was waited for, the most time first.
    pub shares: Vec<BlameShares>,
}

/// The waits of one kind of waiter for one kind of holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BlameRow {
    #[serde(with = "crate::words")]
    pub lock: Lock,
    pub waiter: Purpose,
    /// Null if it is not known.
    pub holder: Option<Purpose>,
    pub waits: u64,
    pub wait_sum_ns: u64,
}

/// The matrix.
///
/// # Errors
///
/// Why holders are not known.
pub(super) fn matrix(header: &Header, measured: &Measured) -> Result<BlameMatrix, &'static str> {
    let shares = blame::shares(header, measured)?;
    let rows = measured.blame.iter().map(|(key, blame)| BlameRow {
        lock: key.lock,
        waiter: key.waiter,
        holder: key.holder,
        waits: blame.waits,
        wait_sum_ns: blame.wait_sum_ns,
    });
    let mut rows: Vec<_> = rows.collect();
    rows.sort_by_key(|row| (Reverse(row.wait_sum_ns), row.lock, row.waiter, row.holder));
    Ok(BlameMatrix { rows, shares })
}

/// The matrix for a person; nothing if nobody waited.
pub(super) fn text(matrix: &BlameMatrix, columns: Option<u16>) -> Option<String> {
    if matrix.shares.is_empty() {
        return None;
    }
    let head = ["lock, waiter", "for", "waits", "wait total", "share"];
    let mut table = new_table(head.map(String::from).to_vec());
    let shown = &matrix.rows[..matrix.rows.len().min(SHOWN)];
    for shares in &matrix.shares {
        let rows = shown.iter().filter(|row| row.lock == shares.lock);
        for (index, row) in rows.enumerate() {
            if index == 0 {
                table.add_row([shares.lock.name()]);
            }
            table.add_row([
                format!("  {}", name(row.waiter)),
                row.holder.map_or("unknown".into(), name),
                units::count(row.waits),
                units::duration(row.wait_sum_ns),
                units::share(row.wait_sum_ns, shares.wait_sum_ns()),
            ]);
        }
    }
    for index in 2..head.len() {
        align(&mut table, index, index == 2);
    }
    let mut lines = Vec::new();
    let more = (matrix.rows.len() - shown.len()) as u64;
    if more > 0 {
        let more = units::counted(more, "more pair");
        lines.push(format!("{more} of less time; --format json has all"));
    }
    for shares in &matrix.shares {
        lines.push(shares.sentence());
        lines.extend(shares.verdict());
    }
    let lines: Vec<_> = lines
        .iter()
        .flat_map(|line| fitted(line, columns))
        .collect();
    let lines = lines.join("\n");
    Some(if matrix.rows.is_empty() {
        lines
    } else {
        let table = table.trim_fmt();
        format!("Who waited for whom: for the holder when the wait began\n\n{table}\n\n{lines}")
    })
}

fn name(purpose: Purpose) -> String {
    format!("{}, {}", purpose.op, purpose.intent)
}
