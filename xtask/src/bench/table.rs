//! The table that a run ends with.
//!
//! In: the ledger. Out: a line for each row on each kernel, as text or as data. Invariant: a row
//! that was asked for is there, measured or with its reason.

use std::fmt;

use serde::Serialize;

use super::{
    guest,
    ledger::Ledger,
    rows::{AGAIN, BASE, ROWS, Row},
};

/// A row on a kernel.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) name: &'static str,
    pub(crate) kernel: &'static str,
    pub(crate) level: Option<&'static str>,
    /// Instructions an op with nothing watching.
    pub(crate) base_per_op: Option<f64>,
    /// Instructions that watching adds to an op.
    pub(crate) added_per_op: Option<f64>,
    /// The same of empty programs on the same hooks.
    pub(crate) floor_per_op: Option<f64>,
    /// Added, by the floor.
    pub(crate) ratio: Option<f64>,
    /// Why there is no number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    #[serde(skip)]
    about: &'static str,
}

pub(crate) struct Table {
    started_at: String,
    pub(crate) rows: Vec<Line>,
}

impl Table {
    pub(crate) fn of(ledger: &Ledger, kernels: &[&'static str], rows: &[&'static Row]) -> Self {
        let lines = kernels.iter().flat_map(|kernel| {
            rows.iter()
                .filter(|row| row.name != BASE)
                .map(|row| line(ledger, kernel, row))
        });
        Self {
            started_at: ledger.started_at().to_owned(),
            rows: lines.collect(),
        }
    }
}

fn line(ledger: &Ledger, kernel: &'static str, row: &'static Row) -> Line {
    let per_op = |name: &str| {
        let row = ROWS.iter().find(|row| row.name == name)?;
        ledger.get(&guest::id(kernel, row))?.per_op
    };
    let base = per_op(BASE);
    let added = |name: &str| Some(per_op(name)? - base?);
    let floor = row.floor().and_then(|floor| added(&floor));
    let added = added(row.name);
    let reason = match ledger.get(&guest::id(kernel, row)) {
        None => Some("not measured".to_owned()),
        Some(measured) => measured.reason.clone(),
    };
    let without_base = || base.is_none().then(|| format!("`{BASE}` was not measured"));
    Line {
        name: row.name,
        kernel,
        level: row.level,
        base_per_op: base,
        added_per_op: added,
        floor_per_op: floor,
        ratio: added.zip(floor).map(|(added, floor)| added / floor),
        reason: reason.or_else(without_base),
        about: row.about,
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nInstructions that watching adds to one vmalloc and vfree, from {}",
            self.started_at
        )?;
        let mut kernel = "";
        for line in &self.rows {
            if kernel != line.kernel {
                kernel = line.kernel;
                let base = line
                    .base_per_op
                    .map_or("not measured".into(), |n| format!("{n:.1}"));
                writeln!(f, "\n{kernel}, without anything {base}")?;
                writeln!(
                    f,
                    "  {:18} {:>12} {:>9} {:>9} {:>7}",
                    "row", "added", "of base", "floor", "ratio"
                )?;
            }
            let number = |n: Option<f64>, digits| {
                n.map_or_else(|| "–".to_owned(), |n| format!("{n:.digits$}"))
            };
            match &line.reason {
                Some(reason) => writeln!(f, "  {:18} not measured: {reason}", line.name)?,
                None => {
                    let share = line.added_per_op.zip(line.base_per_op);
                    let share = share.map(|(added, base)| added / base * 100.0);
                    writeln!(
                        f,
                        "  {:18} {:>12} {:>7} % {:>9} {:>7}  {}",
                        line.name,
                        number(line.added_per_op, 1),
                        number(share, 2),
                        number(line.floor_per_op, 1),
                        number(line.ratio, 2),
                        line.about
                    )?;
                }
            }
        }
        let repeated = self.rows.iter().filter(|line| line.name == AGAIN);
        for line in repeated {
            if let Some((added, base)) = line.added_per_op.zip(line.base_per_op) {
                writeln!(
                    f,
                    "\n{}: the same measured twice differs by {:.2} parts per million",
                    line.kernel,
                    (added / base * 1e6).abs()
                )?;
            }
        }
        Ok(())
    }
}
