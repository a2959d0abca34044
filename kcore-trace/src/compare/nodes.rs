//! How unevenly nodes are used, on both sides.
//!
//! In come two sides; out comes a row for each lock that nodes have, with the spread of each side,
//! and what a person reads of it. Shown and not judged: an uneven load is uneven on any kernel.
//! Invariant: a side without nodes is never called even.

use std::collections::BTreeSet;

use kcore_trace_ebpf::words::Lock;
use serde::Serialize;

use super::role::Role;
use super::shown::DASH;
use super::side::Side;
use crate::imbalance::{Imbalance, Spread};
use crate::table::{align, new_table};
use crate::units;

/// A lock that every node has.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct NodeRow {
    #[serde(with = "crate::words")]
    pub lock: Lock,
    pub role: Role,
    /// Null on a side that has no nodes, or that did not use this lock of them.
    pub baseline: Option<Spread>,
    pub candidate: Option<Spread>,
}

pub(super) fn rows(baseline: &Side, candidate: &Side) -> Vec<NodeRow> {
    let sides = [baseline, candidate];
    let nodes = sides.iter().map(|side| &side.total.nodes);
    let locks: BTreeSet<Lock> = nodes.flat_map(|side| side.keys().copied()).collect();
    let spread = |side: usize, lock: Lock| {
        let nodes = sides[side].total.nodes.get(&lock)?;
        Some(Spread::of(
            lock,
            nodes,
            sides[side].header().sees_waits(lock),
        ))
    };
    locks
        .into_iter()
        .map(|lock| NodeRow {
            lock,
            role: Role::of(lock),
            baseline: spread(0, lock),
            candidate: spread(1, lock),
        })
        .collect()
}

/// Whether there is a side of which something can be said.
fn worth_showing(row: &NodeRow) -> bool {
    let sides = [row.baseline, row.candidate].into_iter().flatten();
    sides.map(|side| side.nodes).max() > Some(1)
}

/// The table of nodes, if any side has several.
pub(super) fn table(rows: &[NodeRow]) -> Option<String> {
    let rows: Vec<_> = rows.iter().filter(|row| worth_showing(row)).collect();
    if rows.is_empty() {
        return None;
    }
    let head = [
        "\nlock",
        "\nside",
        "\nnodes",
        "acquired\nmost",
        "\nshare",
        "\n×mean",
        "waited\nmost",
        "\nshare",
        "\n×mean",
    ];
    let mut table = new_table(head.map(String::from).to_vec());
    for row in rows {
        let sides = [("baseline", row.baseline), ("candidate", row.candidate)];
        let mut name = row.lock.name();
        for (side, spread) in sides {
            let mut cells = vec![std::mem::take(&mut name).to_owned(), side.to_owned()];
            cells.push(spread.map_or(DASH.into(), |spread| spread.nodes.to_string()));
            cells.extend(busiest(spread.and_then(|spread| spread.acquisitions)));
            cells.extend(busiest(spread.and_then(|spread| spread.wait)));
            table.add_row(cells);
        }
    }
    for index in 2..head.len() {
        align(&mut table, index, index % 3 == 0);
    }
    Some(format!(
        "Nodes, the busiest of each lock; ×1.00 of the mean is even\n\n{}",
        table.trim_fmt()
    ))
}

fn busiest(imbalance: Option<Imbalance>) -> [String; 3] {
    match imbalance {
        Some(imbalance) => [
            format!("node {}", imbalance.busiest),
            units::fraction(imbalance.share),
            format!("×{}", units::number(imbalance.max_over_mean)),
        ],
        None => [DASH; 3].map(String::from),
    }
}

/// The same as lines of a list.
pub(super) fn lines(rows: &[NodeRow]) -> Vec<String> {
    let lines = rows.iter().filter(|row| worth_showing(row)).map(|row| {
        let side = |spread: Option<Spread>| {
            let phrase = spread.and_then(|spread| spread.phrase());
            phrase.unwrap_or_else(|| "not by node".into())
        };
        let (a, b) = (side(row.baseline), side(row.candidate));
        format!("{}: baseline {a}; candidate {b}", row.lock)
    });
    lines.collect()
}
