//! The rows of a comparison: locks and ops of both sides, matched and judged.
//!
//! In come two sides and the cost of the tool; out come rows with their numbers. Rows of locks are
//! matched by role, op and intent: the same look-up takes a spinlock exclusively in one era and an
//! rwsem shared in another. Invariant: every cell that counted anything on either side is in
//! exactly one row.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use kcore_trace_ebpf::words::{Intent, Kind, Lock, Mode, Op};
use serde::Serialize;

use super::metric::{self, Gap, Metric, Scale, Span, Tally};
use super::role::Role;
use super::side::Side;
use super::stats::{self, Estimate};
use super::verdict::{self, Finding, Verdict};
use crate::model::{Cell, CellKey, Header, Measured, saturating_sum};
use crate::units;

/// The shortest time that is measured: what a logarithm takes for zero.
const SHORTEST_NS: f64 = 1.0;
/// The logarithm of the largest ratio that two counts or two times can have.
const LARGEST_RATIO: f64 = u64::BITS as f64 * std::f64::consts::LN_2;

/// A number on both sides, and what became of it.
#[derive(Clone, Debug, Serialize)]
pub struct Number {
    pub metric: Metric,
    /// Nanoseconds, a share from 0 to 1, or acquisitions; null where it cannot be had. The mean of
    /// the samples, geometric where the change is relative; of all samples taken together if the
    /// number cannot be had from each.
    pub baseline: Option<f64>,
    pub candidate: Option<f64>,
    pub change: Option<Change>,
    /// What the values may differ by and be the same, in their unit.
    pub band: Option<f64>,
    pub finding: Finding,
    /// Whether the finding follows from a change of how often something happens, and so does not
    /// count for the row.
    pub overruled: bool,
    /// Why it cannot be told.
    pub reason: Option<String>,
}

/// A change from baseline to candidate, and the interval that the true one lies in.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Change {
    pub scale: Scale,
    /// 0.5 is half as much again if the scale is relative; otherwise in the unit of the values.
    pub estimate: f64,
    pub low: f64,
    pub high: f64,
}

/// One lock on one side, as one op took it with one intent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LockSide {
    #[serde(with = "crate::words::list")]
    pub locks: Vec<Lock>,
    /// Null if the kernel's type of this lock is not known.
    #[serde(serialize_with = "crate::words::optional")]
    pub kind: Option<Kind>,
    #[serde(with = "crate::words::list")]
    pub modes: Vec<Mode>,
    /// Null where an uncontended acquisition is not seen.
    pub acquisitions: Option<u64>,
    /// Null where waits are not seen.
    pub contended: Option<u64>,
    pub wait_sum_ns: Option<u64>,
    /// Null where holds are not seen.
    pub hold_sum_ns: Option<u64>,
}

/// A lock in its role, as one op takes it with one intent.
#[derive(Clone, Debug, Serialize)]
pub struct LockRow {
    pub role: Role,
    #[serde(with = "crate::words")]
    pub op: Op,
    #[serde(with = "crate::words")]
    pub intent: Intent,
    pub verdict: Verdict,
    /// Null on the side that has no such row.
    pub baseline: Option<LockSide>,
    pub candidate: Option<LockSide>,
    /// Empty if only one side has the row.
    pub numbers: Vec<Number>,
}

/// One op on one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct OpSide {
    pub count: u64,
    /// Null where ops are only counted.
    pub latency_sum_ns: Option<u64>,
}

/// One vmalloc operation.
#[derive(Clone, Debug, Serialize)]
pub struct OpRow {
    #[serde(with = "crate::words")]
    pub op: Op,
    pub verdict: Verdict,
    pub baseline: Option<OpSide>,
    pub candidate: Option<OpSide>,
    pub numbers: Vec<Number>,
}

/// What a row of locks is matched by.
type Key = (Role, Op, Intent);

/// The rows of locks: those of one role stand together, the role that has the weightiest verdict
/// first, then the one waited for longest; so it is within a role.
pub(super) fn locks(baseline: &Side, candidate: &Side, own_cost: f64) -> Vec<LockRow> {
    let sides = [baseline, candidate].map(LockSamples::new);
    let totals = sides.iter().map(|side| &side.total);
    let keys: BTreeSet<Key> = totals
        .flat_map(|total| total.cells.keys().copied())
        .collect();
    let mut rows: Vec<_> = keys
        .into_iter()
        .map(|key| lock_row(key, &sides, own_cost))
        .collect();
    let mut of_role = BTreeMap::new();
    for row in &rows {
        let weightiest = of_role.entry(row.role).or_insert_with(|| row.weight());
        *weightiest = row.weight().min(*weightiest);
    }
    rows.sort_by_key(|row| (of_role[&row.role], row.role, row.weight()));
    rows
}

fn lock_row(key: Key, sides: &[LockSamples<'_>; 2], own_cost: f64) -> LockRow {
    let [baseline, candidate] = [0, 1].map(|side| sides[side].total.side(key));
    let numbers = if baseline.is_some() && candidate.is_some() {
        let samples = [0, 1].map(|side| sides[side].tallies(key));
        judge(metric::of_lock(), &samples, own_cost)
    } else {
        Vec::new()
    };
    let (role, op, intent) = key;
    LockRow {
        role,
        op,
        intent,
        verdict: verdict::of_row(&numbers),
        baseline,
        candidate,
        numbers,
    }
}

/// The rows of ops, the weightiest verdict first, then the op that took most time.
pub(super) fn ops(baseline: &Side, candidate: &Side, own_cost: f64) -> Vec<OpRow> {
    let sides = [baseline, candidate];
    let seen = sides.iter().flat_map(|side| &side.total.ops);
    let ops: BTreeSet<Op> = seen
        .filter(|(_, cell)| cell.count != 0)
        .map(|(&op, _)| op)
        .collect();
    let mut rows: Vec<_> = ops
        .into_iter()
        .map(|op| op_row(op, sides, own_cost))
        .collect();
    rows.sort_by_key(OpRow::weight);
    rows
}

fn op_row(op: Op, sides: [&Side; 2], own_cost: f64) -> OpRow {
    let [baseline, candidate] = sides.map(|side| OpSide::new(side, op));
    let numbers = if baseline.is_some() && candidate.is_some() {
        let samples = sides.map(|side| {
            let tally = |measured| op_tally(side.header(), measured, op);
            Samples {
                total: tally(&side.total),
                each: side.samples.iter().map(tally).collect(),
            }
        });
        judge(metric::OF_OP.into_iter(), &samples, own_cost)
    } else {
        Vec::new()
    };
    OpRow {
        op,
        verdict: verdict::of_row(&numbers),
        baseline,
        candidate,
        numbers,
    }
}

impl LockRow {
    /// Whether there is nothing to compare it with.
    pub fn on_one_side(&self) -> bool {
        self.baseline.is_none() || self.candidate.is_none()
    }

    /// What rows are ordered by.
    fn weight(&self) -> (Verdict, bool, Reverse<(u64, u64)>) {
        (self.verdict, self.on_one_side(), Reverse(self.time_ns()))
    }

    /// The time waited, then held, on the side where that is longer.
    fn time_ns(&self) -> (u64, u64) {
        let sides = [&self.baseline, &self.candidate].into_iter().flatten();
        let times = sides.map(|side| (side.wait_sum_ns, side.hold_sum_ns));
        let times = times.map(|(wait, hold)| (wait.unwrap_or(0), hold.unwrap_or(0)));
        times.fold((0, 0), |(wait, hold), time| {
            (wait.max(time.0), hold.max(time.1))
        })
    }
}

impl OpRow {
    /// Whether there is nothing to compare it with.
    pub fn on_one_side(&self) -> bool {
        self.baseline.is_none() || self.candidate.is_none()
    }

    /// What rows are ordered by.
    fn weight(&self) -> (Verdict, bool, Reverse<(u64, u64)>) {
        (self.verdict, self.on_one_side(), Reverse(self.time_ns()))
    }

    /// The time taken, and how often, on the side where that is longer.
    fn time_ns(&self) -> (u64, u64) {
        let sides = [self.baseline, self.candidate].into_iter().flatten();
        let times = sides.map(|side| (side.latency_sum_ns.unwrap_or(0), side.count));
        times.max().unwrap_or_default()
    }
}

impl OpSide {
    fn new(side: &Side, op: Op) -> Option<Self> {
        let cell = side.total.ops.get(&op).filter(|cell| cell.count != 0)?;
        Some(Self {
            count: cell.count,
            latency_sum_ns: (!cell.latency.is_empty()).then(|| cell.latency.sum_ns()),
        })
    }
}

/// The locks of one side.
struct LockSamples<'a> {
    total: LockCells<'a>,
    each: Vec<LockCells<'a>>,
}

impl<'a> LockSamples<'a> {
    fn new(side: &'a Side) -> Self {
        let cells = |measured| LockCells::new(side.header(), measured);
        Self {
            total: cells(&side.total),
            each: side.samples.iter().map(cells).collect(),
        }
    }

    fn tallies(&self, key: Key) -> Samples {
        Samples {
            total: self.total.tally(key),
            each: self.each.iter().map(|sample| sample.tally(key)).collect(),
        }
    }
}

/// The cells of one measurement, by what rows are matched by.
struct LockCells<'a> {
    header: &'a Header,
    measured: &'a Measured,
    cells: BTreeMap<Key, (Vec<CellKey>, Cell)>,
}

impl<'a> LockCells<'a> {
    fn new(header: &'a Header, measured: &'a Measured) -> Self {
        let mut cells: BTreeMap<Key, (Vec<CellKey>, Cell)> = BTreeMap::new();
        for (&key, cell) in &measured.cells {
            if *cell == Cell::default() {
                continue;
            }
            let row = (Role::of(key.lock), key.op, key.intent);
            let (keys, sum) = cells.entry(row).or_default();
            keys.push(key);
            sum.add(cell);
        }
        Self {
            header,
            measured,
            cells,
        }
    }

    fn side(&self, key: Key) -> Option<LockSide> {
        let (keys, cell) = self.cells.get(&key)?;
        let locks: BTreeSet<_> = keys.iter().map(|key| key.lock).collect();
        let modes: BTreeSet<_> = keys.iter().map(|key| key.mode).collect();
        let (role, ..) = key;
        let waits = role.shows_waits(self.header);
        let holds = role.shows_holds(self.header);
        Some(LockSide {
            kind: keys
                .first()
                .and_then(|key| self.header.kinds.get(&key.lock).copied()),
            locks: locks.into_iter().collect(),
            modes: modes.into_iter().collect(),
            acquisitions: self.acquisitions(cell),
            contended: waits.then_some(cell.contended),
            wait_sum_ns: waits.then(|| cell.wait.sum_ns()),
            hold_sum_ns: holds.then(|| cell.hold.sum_ns()),
        })
    }

    fn tally(&self, key: Key) -> Tally {
        let (role, op, _) = key;
        let operations = self.measured.ops.get(&op).map_or(0, |op| op.count);
        let (_, cell) = self.cells.get(&key).cloned().unwrap_or_default();
        let waits = role.shows_waits(self.header);
        let holds = role.shows_holds(self.header);
        Tally {
            operations,
            acquisitions: self.acquisitions(&cell),
            contended: waits.then_some(cell.contended),
            wait: waits.then_some(cell.wait),
            hold: holds.then_some(cell.hold),
            latency: None,
        }
    }

    fn acquisitions(&self, cell: &Cell) -> Option<u64> {
        let seen = self.header.sees_acquisitions();
        seen.then_some(cell.acquisitions)
    }
}

/// An op, and the acquisitions of all locks in it.
fn op_tally(header: &Header, measured: &Measured, op: Op) -> Tally {
    let cells = measured.cells.iter().filter(|(key, _)| key.op == op);
    let acquisitions = saturating_sum(cells.map(|(_, cell)| cell.acquisitions));
    let cell = measured.ops.get(&op).cloned().unwrap_or_default();
    Tally {
        operations: cell.count,
        acquisitions: header.sees_acquisitions().then_some(acquisitions),
        latency: (!cell.latency.is_empty()).then_some(cell.latency),
        ..Tally::default()
    }
}

/// A row on one side.
struct Samples {
    total: Tally,
    each: Vec<Tally>,
}

fn judge(
    metrics: impl Iterator<Item = Metric>,
    sides: &[Samples; 2],
    own_cost: f64,
) -> Vec<Number> {
    let taken: Vec<_> = metrics
        .map(|metric| {
            let values = [0, 1].map(|side| Values::take(metric, &sides[side]));
            (metric, values)
        })
        .collect();
    let intervals = taken
        .iter()
        .filter(|(_, values)| {
            values
                .iter()
                .all(|side| side.samples.len() >= stats::FEWEST)
        })
        .count();
    let error = verdict::error_of_each(intervals);
    let mut numbers: Vec<_> = taken
        .into_iter()
        .map(|(metric, values)| {
            let events = events(metric, sides);
            number(metric, values, error, own_cost * events)
        })
        .collect();
    verdict::overrule(&mut numbers);
    numbers
}

/// How often the tool may have added its own cost to one value, on the side where that is more.
fn events(metric: Metric, sides: &[Samples; 2]) -> f64 {
    let per_op = |number: fn(&Tally) -> u64| {
        let of = |side: &Samples| {
            let operations = side.total.operations as f64;
            (operations > 0.0).then(|| number(&side.total) as f64 / operations)
        };
        sides.iter().filter_map(of).fold(0.0, f64::max)
    };
    match metric {
        Metric::PerOp(Span::Wait) => per_op(|tally| tally.contended.unwrap_or(0)),
        Metric::PerOp(_) | Metric::Of(Span::Latency, _) => {
            per_op(|tally| tally.acquisitions.unwrap_or(0))
        }
        Metric::Of(Span::Wait | Span::Hold, _)
        | Metric::AcquisitionsPerOp
        | Metric::ContendedShare => 1.0,
    }
}

/// The values of one number on one side.
struct Values {
    /// As they are compared: logarithms where the scale is relative.
    samples: Vec<f64>,
    /// How many samples there are, with a value or without.
    all: usize,
    /// What they vary by at least.
    least_variance: f64,
    /// Why there is none from some of them.
    gap: Option<Gap>,
    /// That of all samples taken together.
    total: Option<f64>,
}

impl Values {
    fn take(metric: Metric, side: &Samples) -> Self {
        let short = metric.shortage(&side.total);
        let all = side.each.iter().map(|tally| match short {
            Some(gap) => Err(gap),
            None => metric.value(tally),
        });
        let all: Vec<_> = all.collect();
        let compared = |value: f64| match (metric.scale(), metric) {
            (Scale::Absolute, _) => value,
            (Scale::Relative, Metric::Of(..)) => value.max(SHORTEST_NS).ln(),
            (Scale::Relative, _) => value.ln(),
        };
        let valid = side
            .each
            .iter()
            .zip(&all)
            .filter(|(_, value)| value.is_ok());
        let variances: Vec<_> = valid
            .map(|(tally, _)| metric.least_variance(tally))
            .collect();
        Self {
            samples: all.iter().flatten().map(|&value| compared(value)).collect(),
            all: all.len(),
            least_variance: variances.iter().sum::<f64>() / variances.len().max(1) as f64,
            gap: all.iter().find_map(|value| value.err()),
            total: metric.value(&side.total).ok(),
        }
    }

    /// What stands for this side.
    fn center(&self, scale: Scale) -> Option<f64> {
        if self.samples.is_empty() {
            return self.total;
        }
        let mean = stats::mean(&self.samples);
        Some(match scale {
            Scale::Absolute => mean,
            // Without the last digits, which are those of the logarithm.
            Scale::Relative => (mean.exp() * 1e6).round() / 1e6,
        })
    }

    /// Why its samples do not say how much they vary.
    fn shortage(&self) -> Option<String> {
        if self.samples.len() >= stats::FEWEST {
            return None;
        }
        Some(match self.gap {
            Some(gap @ Gap::TooFewTogether(..)) => {
                let all = units::counted(self.all as u64, "sample");
                format!("{gap} in {all} together")
            }
            Some(gap) => {
                let lacking = self.all - self.samples.len();
                let all = units::counted(self.all as u64, "sample");
                format!("{gap} in {lacking} of {all}")
            }
            None => "there is only one sample".into(),
        })
    }
}

fn number(metric: Metric, values: [Values; 2], error: f64, own_cost: f64) -> Number {
    let scale = metric.scale();
    let [a, b] = &values;
    let [baseline, candidate] = [a, b].map(|side| side.center(scale));
    let least = [a.least_variance, b.least_variance];
    let estimate = stats::welch(&a.samples, &b.samples, error, least);
    let judged = baseline.zip(estimate).map(|(baseline, estimate)| {
        let band = verdict::band(metric, baseline, own_cost);
        let finding = verdict::find(metric, baseline, &estimate, band);
        (band, finding, Change::new(scale, baseline, estimate))
    });
    Number {
        metric,
        baseline,
        candidate,
        change: judged.map(|(_, _, change)| change),
        band: judged.map(|(band, _, _)| band),
        finding: judged.map_or(Finding::CannotTell, |(_, finding, _)| finding),
        overruled: false,
        reason: reason(a.shortage(), b.shortage()),
    }
}

/// Why it cannot be told, of which side.
fn reason(baseline: Option<String>, candidate: Option<String>) -> Option<String> {
    match (baseline, candidate) {
        (Some(a), Some(b)) if a == b => Some(format!("both sides: {a}")),
        (Some(a), Some(b)) => Some(format!("baseline: {a}; candidate: {b}")),
        (Some(a), None) => Some(format!("baseline: {a}")),
        (None, Some(b)) => Some(format!("candidate: {b}")),
        (None, None) => None,
    }
}

impl Change {
    fn new(scale: Scale, baseline: f64, estimate: Estimate) -> Self {
        let shown = |difference: f64| match scale {
            // Nothing that is compared can be negative.
            Scale::Absolute => difference.max(-baseline),
            // Of two noisy samples the interval is wider than anything that can be.
            Scale::Relative => difference.min(LARGEST_RATIO).exp_m1(),
        };
        Self {
            scale,
            estimate: shown(estimate.difference),
            low: shown(estimate.low),
            high: shown(estimate.high),
        }
    }
}
