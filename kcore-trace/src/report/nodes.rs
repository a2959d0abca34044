//! The locks of nodes, node by node: rows of a report, and its view by node.
//!
//! In comes what was measured; out come rows, a table for a person and one for a spreadsheet.
//! Invariant: every node of a lock has a row, also one that was not used, since how many there are
//! is what a share is judged by.

use std::io;

use kcore_trace_ebpf::words::Lock;
use serde::Serialize;

use super::Report;
use crate::imbalance::Spread;
use crate::model::{Header, Measured, saturating_sum};
use crate::table::{align, new_table};
use crate::units;

/// One lock of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct NodeRow {
    #[serde(with = "crate::words")]
    pub lock: Lock,
    pub node: usize,
    /// Null where an uncontended acquisition is not seen.
    pub acquisitions: Option<u64>,
    /// Null where waits are not seen.
    pub contended: Option<u64>,
    pub wait_sum_ns: Option<u64>,
}

pub(super) fn rows(header: &Header, measured: &Measured) -> Vec<NodeRow> {
    let of_lock = measured.nodes.iter().flat_map(|(&lock, nodes)| {
        (0..nodes.count()).map(move |node| {
            let number =
                |seen: bool, column: &[u64]| seen.then(|| column.get(node).copied().unwrap_or(0));
            let sees_waits = header.sees_waits(lock);
            NodeRow {
                lock,
                node,
                acquisitions: number(header.sees_acquisitions(), &nodes.acquisitions),
                contended: number(sees_waits, &nodes.contended),
                wait_sum_ns: number(sees_waits, &nodes.wait_sum_ns),
            }
        })
    });
    of_lock.collect()
}

pub(super) fn spreads(header: &Header, measured: &Measured) -> Vec<Spread> {
    let locks = measured.nodes.iter();
    locks
        .map(|(&lock, nodes)| Spread::of(lock, nodes, header.sees_waits(lock)))
        .collect()
}

/// How uneven the nodes of each lock are, a line each.
pub(super) fn lines(report: &Report) -> Vec<String> {
    let spreads = report.spreads.iter();
    spreads
        .filter_map(|spread| Some(format!("{}: {}", spread.lock, spread.phrase()?)))
        .collect()
}

/// The view by node for a person.
pub(super) fn text(report: &Report) -> String {
    if report.nodes.is_empty() {
        return "No lock of a node was seen: kernels up to 6.8 have none.".into();
    }
    let seen =
        |number: fn(&NodeRow) -> Option<u64>| report.nodes.iter().any(|row| number(row).is_some());
    let acquired: &[&str] = match seen(|row| row.acquisitions) {
        true => &["acquired", "share"],
        false => &[],
    };
    let waits: &[&str] = match seen(|row| row.contended) {
        true => &["contended", "wait total", "share"],
        false => &[],
    };
    let head = ["lock, node"].iter().chain(acquired).chain(waits);
    let mut table = new_table(head.map(ToString::to_string).collect());
    for rows in report.nodes.chunk_by(|a, b| a.lock == b.lock) {
        let sum =
            |number: fn(&NodeRow) -> Option<u64>| saturating_sum(rows.iter().filter_map(number));
        let acquisitions = sum(|row| row.acquisitions);
        let wait_ns = sum(|row| row.wait_sum_ns);
        table.add_row([rows[0].lock.name()]);
        for row in rows {
            let mut cells = vec![format!("  {}", row.node)];
            if let Some(number) = row.acquisitions {
                cells.extend([units::count(number), units::share(number, acquisitions)]);
            }
            if let (Some(contended), Some(ns)) = (row.contended, row.wait_sum_ns) {
                cells.extend([
                    units::count(contended),
                    units::duration(ns),
                    units::share(ns, wait_ns),
                ]);
            }
            table.add_row(cells);
        }
    }
    for index in 1..=acquired.len() + waits.len() {
        align(&mut table, index, index == 1 || index == acquired.len() + 1);
    }
    let lines = lines(report);
    let below = if lines.is_empty() {
        String::new()
    } else {
        format!("\n\n{}", lines.join("\n"))
    };
    format!("Locks by node\n\n{}{below}", table.trim_fmt())
}

/// The view by node for a spreadsheet.
pub(super) fn csv(report: &Report) -> io::Result<String> {
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(["lock", "node", "acquisitions", "contended", "wait_sum_ns"])?;
    for row in &report.nodes {
        let number = |seen: Option<u64>| seen.map_or(String::new(), |number| number.to_string());
        table.write_record([
            row.lock.name(),
            &row.node.to_string(),
            &number(row.acquisitions),
            &number(row.contended),
            &number(row.wait_sum_ns),
        ])?;
    }
    let bytes = table.into_inner().map_err(|error| error.into_error())?;
    String::from_utf8(bytes).map_err(io::Error::other)
}
