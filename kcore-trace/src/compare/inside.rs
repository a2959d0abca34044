//! What happened inside holds and reads of /proc/kcore, on both sides.
//!
//! In come two sides; out comes a row for each role of a lock, and one for reads, with what was seen
//! on each side. Shown and not judged: faults and retries are what the designs differ in, whether
//! that is better is for the times to say. Invariant: a side on which nobody looked has none.

use std::collections::BTreeMap;

use serde::Serialize;

use super::role::Role;
use super::shown::DASH;
use super::side::Side;
use crate::model::{Copies, Inside, SeenInside};
use crate::table::{align, new_table};
use crate::units;

/// What was seen, on each side.
#[derive(Clone, Debug, Serialize)]
pub struct InsideRows {
    pub holds: Vec<HoldRow>,
    pub reads: Sides<Copies>,
}

/// Inside the holds of the locks of a role.
#[derive(Clone, Debug, Serialize)]
pub struct HoldRow {
    pub role: Role,
    #[serde(flatten)]
    pub sides: Sides<SeenInside>,
}

/// A sum of each side; null where nobody looked.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sides<T> {
    pub baseline: Option<T>,
    pub candidate: Option<T>,
}

impl<T> Sides<T> {
    fn named(self) -> [(&'static str, Option<T>); 2] {
        [("baseline", self.baseline), ("candidate", self.candidate)]
    }
}

fn looked(side: &Side) -> bool {
    side.headers.iter().all(|header| header.inside)
}

/// The rows; nothing if nobody looked on either side.
pub(super) fn rows(baseline: &Side, candidate: &Side) -> Option<InsideRows> {
    let sides = [baseline, candidate];
    if !sides.iter().any(|side| looked(side)) {
        return None;
    }
    let mut roles: BTreeMap<Role, [Inside; 2]> = BTreeMap::new();
    for (index, side) in sides.iter().enumerate() {
        for (key, inside) in &side.total.inside {
            roles.entry(Role::of(key.lock)).or_default()[index].add(inside);
        }
    }
    let seen = |side: &Side, role: Role, sum: Inside| {
        looked(side).then(|| sum.seen(role.shows_waits(side.header())))
    };
    let reads = |side: &Side| {
        looked(side).then(|| {
            let mut sum = Copies::default();
            side.total
                .copies
                .values()
                .for_each(|copies| sum.add(copies));
            sum
        })
    };
    let holds = roles.into_iter().map(|(role, [a, b])| HoldRow {
        role,
        sides: Sides {
            baseline: seen(baseline, role, a),
            candidate: seen(candidate, role, b),
        },
    });
    Some(InsideRows {
        holds: holds.collect(),
        reads: Sides {
            baseline: reads(baseline),
            candidate: reads(candidate),
        },
    })
}

/// The tables of what there is.
pub(super) fn tables(rows: &InsideRows) -> Vec<String> {
    let read = rows.reads.named();
    let read = read
        .iter()
        .any(|(_, reads)| reads.is_some_and(|it| it.reads > 0));
    let holds = (!rows.holds.is_empty()).then(|| holds(&rows.holds));
    holds
        .into_iter()
        .chain(read.then(|| reads(rows.reads)))
        .collect()
}

fn holds(rows: &[HoldRow]) -> String {
    let head = [
        "lock", "side", "faults", "time", "off CPU", "time", "asleep", "time",
    ];
    let mut table = new_table(head.map(String::from).to_vec());
    for row in rows {
        for (side, inside) in row.sides.named() {
            let mut cells = vec![row.role.first_lock().name().to_owned(), side.to_owned()];
            cells.extend(inside.map_or([DASH; 6].map(String::from), |inside| {
                [
                    units::count(inside.faults),
                    units::duration(inside.fault_ns),
                    units::count(inside.switches),
                    units::duration(inside.off_cpu_ns),
                    inside.sleeps.map_or(DASH.into(), units::count),
                    inside.sleep_ns.map_or(DASH.into(), units::duration),
                ]
            }));
            table.add_row(cells);
        }
    }
    for index in 2..head.len() {
        align(&mut table, index, index % 2 == 0);
    }
    format!(
        "Inside holds: page faults, times off the CPU, and waits asleep; not judged\n\n{}",
        table.trim_fmt()
    )
}

fn reads(sides: Sides<Copies>) -> String {
    let head = [
        "side",
        "reads",
        "bytes",
        "passes",
        "cut short",
        "page faults",
        "time",
    ];
    let mut table = new_table(head.map(String::from).to_vec());
    for (side, copies) in sides.named() {
        let mut cells = vec![side.to_owned()];
        cells.extend(copies.map_or([DASH; 6].map(String::from), |copies| {
            [
                units::count(copies.reads),
                units::bytes(copies.bytes),
                units::count(copies.passes),
                units::count(copies.short_passes),
                units::count(copies.faults),
                units::duration(copies.fault_ns),
            ]
        }));
        table.add_row(cells);
    }
    for index in 1..head.len() {
        align(&mut table, index, matches!(index, 1 | 3 | 5));
    }
    let table = table.trim_fmt();
    format!("Reads of /proc/kcore; not judged\n\n{table}")
}
