//! Who waited for whom, readers and writers, on both sides.
//!
//! In come two sides; out comes a row for each role of a lock that was waited for, with the parts of
//! the time waited on each side, and what a person reads of it. Shown and not judged: parts say
//! nothing about how long anybody waited. Invariant: a side of which holders are not known has none.

use std::collections::BTreeMap;

use serde::Serialize;

use super::role::Role;
use super::shown::DASH;
use super::side::Side;
use crate::blame::{self, BlameShares, Part};
use crate::table::{align, new_table};
use crate::units;

/// The waits for the locks of a role.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BlameRow {
    pub role: Role,
    /// Null on a side where nobody waited, or where holders are not known.
    pub baseline: Option<BlameShares>,
    pub candidate: Option<BlameShares>,
}

pub(super) fn rows(baseline: &Side, candidate: &Side) -> Vec<BlameRow> {
    let mut rows: BTreeMap<Role, BlameRow> = BTreeMap::new();
    for (index, side) in [baseline, candidate].into_iter().enumerate() {
        let shares = side
            .headers
            .first()
            .and_then(|header| blame::shares(header, &side.total).ok());
        for shares in shares.into_iter().flatten() {
            let role = Role::of(shares.lock);
            let row = rows.entry(role).or_insert(BlameRow {
                role,
                baseline: None,
                candidate: None,
            });
            let place = if index == 0 {
                &mut row.baseline
            } else {
                &mut row.candidate
            };
            *place = Some(shares);
        }
    }
    rows.into_values().collect()
}

/// The table of who waited for whom, if anybody did.
pub(super) fn table(rows: &[BlameRow]) -> Option<String> {
    if rows.is_empty() {
        return None;
    }
    let head = [
        "\nlock",
        "\nside",
        "\nwaited",
        "readers\nfor readers",
        "readers\nfor writers",
        "writers\nfor readers",
        "writers\nfor writers",
        "\nunknown",
    ];
    let mut table = new_table(head.map(String::from).to_vec());
    for row in rows {
        for (side, shares) in [("baseline", row.baseline), ("candidate", row.candidate)] {
            let lock = shares.map_or(row.role.first_lock(), |shares| shares.lock);
            let mut cells = vec![lock.name().to_owned(), side.to_owned()];
            match shares {
                Some(shares) => {
                    let all = shares.wait_sum_ns();
                    cells.push(units::duration(all));
                    let parts = shares.parts();
                    let part = |(_, part): &(_, Part)| units::share(part.wait_sum_ns, all);
                    cells.extend(parts.iter().map(part));
                }
                None => cells.extend([DASH; 6].map(String::from)),
            }
            table.add_row(cells);
        }
    }
    for index in 2..head.len() {
        align(&mut table, index, index == 2);
    }
    Some(format!(
        "Who waited for whom, as parts of the time waited; not judged\n\n{}",
        table.trim_fmt()
    ))
}

/// The same as lines of a list.
pub(super) fn lines(rows: &[BlameRow]) -> Vec<String> {
    let side = |shares: Option<BlameShares>| shares.map_or(DASH.into(), |it| it.sentence());
    let lines = rows.iter().map(|row| {
        let (a, b) = (side(row.baseline), side(row.candidate));
        format!("baseline {a}; candidate {b}")
    });
    lines.collect()
}
