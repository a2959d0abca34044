//! The instructions that each way of watching adds to an op.

use std::fmt;

use serde::Serialize;
use statrs::{
    distribution::{ContinuousCDF as _, StudentsT},
    statistics::Statistics as _,
};

use super::number;
use crate::bench::{
    guest::{self, What},
    ledger::Ledger,
    rows::{AGAIN, BASE, ONE_PROBE, ROWS, Row},
};
use crate::lab::build::variants;

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
    /// How far it may be off, in 95 of 100 such measurements.
    pub(crate) added_within: Option<f64>,
    /// The same of empty programs on the same hooks.
    pub(crate) floor_per_op: Option<f64>,
    /// Added, by the floor; nothing where the floor is within what it may be off.
    pub(crate) ratio: Option<f64>,
    /// Seconds of the guest from exec to the start of the load, in the mean of all starts.
    pub(crate) ready_s: Option<f64>,
    /// Why there is no number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    #[serde(skip)]
    about: &'static str,
}

pub(crate) struct Table {
    pub(crate) rows: Vec<Line>,
}

impl Table {
    pub(crate) fn of(ledger: &Ledger, kernels: &[&'static str], rows: &[&'static Row]) -> Self {
        let lines = kernels.iter().flat_map(|kernel| {
            rows.iter()
                .filter(|row| row.name != BASE && row.kernel(kernel).is_some())
                .map(|row| line(ledger, kernel, row))
        });
        Self {
            rows: lines.collect(),
        }
    }

    /// A row on the same kernel as that one.
    fn beside(&self, line: &Line, name: &str) -> Option<&Line> {
        let mut lines = self.rows.iter();
        lines.find(|other| other.kernel == line.kernel && other.name == name)
    }
}

fn line(ledger: &Ledger, kernel: &'static str, row: &'static Row) -> Line {
    let measured = |name: &str| {
        let row = ROWS.iter().find(|row| row.name == name)?;
        ledger.get(&guest::id(kernel, What::Row(row)))
    };
    let rounds = |name: &str| Some(measured(name)?.rounds.as_slice());
    let added = |name: &str| Difference::of(rounds(BASE)?, rounds(name)?);
    let floor = row.floor().and_then(|floor| added(&floor));
    let own = measured(row.name);
    let reason = match own {
        None => Some("not measured yet".to_owned()),
        Some(measured) => measured.reason.clone(),
    };
    let base = measured(BASE).and_then(|base| base.per_op());
    let added = added(row.name);
    let without_base = || base.is_none().then(|| format!("`{BASE}` was not measured"));
    Line {
        name: row.name,
        kernel,
        level: row.level,
        base_per_op: base,
        added_per_op: added.map(|added| added.mean),
        added_within: added.map(|added| added.within),
        floor_per_op: floor.map(|floor| floor.mean),
        ratio: ratio(added, floor),
        ready_s: own.and_then(|own| own.ready_s),
        reason: reason.or_else(without_base),
        about: row.about,
    }
}

/// The mean of the differences of two rows, round by round: each round began from the same shape
/// in both.
#[derive(Clone, Copy)]
struct Difference {
    mean: f64,
    /// Half of its interval of 95 %.
    within: f64,
}

impl Difference {
    fn of(base: &[f64], row: &[f64]) -> Option<Self> {
        if base.len() != row.len() || base.len() < 2 {
            return None;
        }
        let differences: Vec<_> = base.iter().zip(row).map(|(base, row)| row - base).collect();
        let count = differences.len() as f64;
        let mean = (&differences).mean();
        let squares = differences.iter().map(|one| (one - mean).powi(2));
        let error = (squares.sum::<f64>() / (count - 1.0) / count).sqrt();
        let quantile = StudentsT::new(0.0, 1.0, count - 1.0)
            .ok()?
            .inverse_cdf(0.975);
        Some(Self {
            mean,
            within: error * quantile,
        })
    }
}

/// How much more than its floor something costs, where that can be said.
fn ratio(added: Option<Difference>, floor: Option<Difference>) -> Option<f64> {
    let floor = floor.filter(|floor| floor.mean > floor.within)?;
    Some(added?.mean / floor.mean)
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kernel = "";
        for line in &self.rows {
            if kernel != line.kernel {
                kernel = line.kernel;
                heading(f, line)?;
            }
            let one_probe = self.beside(line, ONE_PROBE);
            let full = self.beside(line, "full");
            match &line.reason {
                Some(reason) => writeln!(f, "  {:16} not measured: {reason}", line.name)?,
                None => numbers(f, line, full, one_probe)?,
            }
        }
        for line in self.rows.iter().filter(|line| line.name == AGAIN) {
            if let Some((added, base)) = line.added_per_op.zip(line.base_per_op) {
                writeln!(
                    f,
                    "\n{}: the same, measured twice, differs by {:.2} parts per million",
                    line.kernel,
                    (added / base * 1e6).abs()
                )?;
            }
        }
        Ok(())
    }
}

fn heading(f: &mut fmt::Formatter<'_>, line: &Line) -> fmt::Result {
    let base = line.base_per_op.map_or("?".into(), |n| format!("{n:.0}"));
    let of_the_lab = variants::VARIANTS
        .iter()
        .any(|variant| variant.name == line.kernel);
    let op = if of_the_lab {
        "one vmalloc and vfree, which take"
    } else {
        "one operation of `kcore-trace stress`, which takes"
    };
    writeln!(
        f,
        "\n{}: instructions added to {op} {base} without\n",
        line.kernel
    )?;
    writeln!(
        f,
        "  {:16} {:>9} {:>7} {:>9} {:>8} {:>7} {:>8} {:>9} {:>10}",
        "", "added", "±", "of base", "floor", "x floor", "by full", "attached", "by 1 probe"
    )
}

fn numbers(
    f: &mut fmt::Formatter<'_>,
    line: &Line,
    full: Option<&Line>,
    one_probe: Option<&Line>,
) -> fmt::Result {
    let by = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| a / b);
    let share = by(line.added_per_op, line.base_per_op).map(|share| share * 100.0);
    writeln!(
        f,
        "  {:16} {:>9} {:>7} {:>9} {:>8} {:>7} {:>8} {:>9} {:>10}  {}",
        line.name,
        number(line.added_per_op, 1, ""),
        number(line.added_within, 1, ""),
        number(share, 2, " %"),
        number(line.floor_per_op, 1, ""),
        number(line.ratio, 2, ""),
        number(
            by(line.added_per_op, full.and_then(|l| l.added_per_op)),
            2,
            ""
        ),
        number(line.ready_s, 3, " s"),
        number(by(line.ready_s, one_probe.and_then(|l| l.ready_s)), 2, ""),
        line.about
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_compared_one_by_one() {
        let base = [100.0, 900.0, 500.0];
        let row = [111.0, 910.0, 509.0];
        let difference = Difference::of(&base, &row).unwrap();
        assert!((difference.mean - 10.0).abs() < 1e-9);
        assert!(
            (difference.within - 2.484).abs() < 0.001,
            "{}",
            difference.within
        );
        assert!(Difference::of(&base, &row[1..]).is_none());
    }

    #[test]
    fn there_is_no_ratio_to_a_floor_that_may_be_nothing() {
        let of = |mean, within| Some(Difference { mean, within });
        assert_eq!(ratio(of(6.0, 1.0), of(5.0, 9.0)), None);
        assert_eq!(ratio(of(6.0, 1.0), of(3.0, 1.0)), Some(2.0));
    }
}
