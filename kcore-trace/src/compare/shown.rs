//! How the parts of a comparison read to a person, in whatever format.
//!
//! In come numbers and rows, out come phrases. Invariant: a change is only written as a number
//! where it was found to be one.

use kcore_trace_ebpf::words::{Intent, Kind, Mode};

use super::metric::{Metric, Scale};
use super::obstacle;
use super::verdict::{Finding, Verdict};
use super::{Change, Comparison, LockRow, LockSide, Number, OpRow, Origin, Sampling};
use crate::units;

/// For what is no difference.
pub(super) const SAME: &str = "=";
/// For what cannot be told.
pub(super) const UNKNOWN: &str = "?";
/// For a number that is not there.
pub(super) const DASH: &str = "–";
const ARROW: &str = "→";

/// A value of a number, in its unit.
pub(super) fn value(metric: Metric, value: Option<f64>) -> String {
    let Some(value) = value else {
        return DASH.into();
    };
    match metric {
        Metric::AcquisitionsPerOp => units::number(value),
        Metric::ContendedShare => units::fraction(value),
        Metric::PerOp(_) | Metric::Of(..) if value > 0.0 && value < 0.5 => "<1 ns".into(),
        Metric::PerOp(_) | Metric::Of(..) => units::duration(value.round() as u64),
    }
}

/// The name of a number; in parentheses if it does not count.
pub(super) fn metric(number: &Number) -> String {
    let name = number.metric.name();
    if number.overruled {
        format!("({name})")
    } else {
        name
    }
}

/// What became of a number: its change if there is one.
pub(super) fn change(number: &Number) -> String {
    match (number.finding, &number.change) {
        (Finding::NoDifference, _) => SAME.into(),
        (Finding::CannotTell, _) | (_, None) => UNKNOWN.into(),
        (_, Some(change)) => match Unit::of(number, change) {
            Unit::Relative(scale) => units::change(change.estimate * scale),
            Unit::Points => format!("{} pt", units::percents(change.estimate)),
            Unit::Time => signed_duration(change.estimate),
        },
    }
}

/// What became of a number: its value on the other side, where it cannot be told whether that is
/// a change.
fn change_or_value(number: &Number) -> String {
    match (number.finding, number.candidate) {
        (Finding::CannotTell, Some(_)) => {
            format!("{UNKNOWN} {}", value(number.metric, number.candidate))
        }
        _ => change(number),
    }
}

/// What became of a number; in parentheses if it does not count.
pub(super) fn counted_change(number: &Number) -> String {
    let change = change_or_value(number);
    if number.overruled {
        format!("({change})")
    } else {
        change
    }
}

/// The interval that its true change lies in.
pub(super) fn interval(number: &Number) -> String {
    let Some(change) = &number.change else {
        return String::new();
    };
    let ends = [change.low, change.high];
    match Unit::of(number, change) {
        Unit::Relative(scale) if ends[1] * scale >= 9.0 => {
            let [low, high] = ends.map(|end| units::number((1.0 + end * scale).max(0.0)));
            format!("×{low} … ×{high}")
        }
        Unit::Relative(scale) => percents(ends.map(|end| end * scale), "%"),
        Unit::Points => percents(ends, "pt"),
        Unit::Time => ends.map(signed_duration).join(" … "),
    }
}

fn percents(ends: [f64; 2], unit: &str) -> String {
    let [low, high] = ends.map(units::percents);
    format!("{low} … {high} {unit}")
}

fn signed_duration(ns: f64) -> String {
    let sign = if ns < 0.0 { '−' } else { '+' };
    format!("{sign}{}", units::duration(ns.abs().round() as u64))
}

/// In what a change is written: as a part of the baseline wherever there is one.
enum Unit {
    /// Times this, a part of the baseline.
    Relative(f64),
    Points,
    Time,
}

impl Unit {
    fn of(number: &Number, change: &Change) -> Self {
        match (change.scale, number.metric, number.baseline) {
            (Scale::Relative, ..) => Self::Relative(1.0),
            (Scale::Absolute, Metric::ContendedShare, _) => Self::Points,
            (Scale::Absolute, _, Some(baseline)) if baseline >= 1.0 => {
                Self::Relative(1.0 / baseline)
            }
            (Scale::Absolute, ..) => Self::Time,
        }
    }
}

/// One thing, or what it was and what it is if these differ.
pub(super) fn both(baseline: &str, candidate: &str) -> String {
    if baseline == candidate {
        baseline.into()
    } else {
        format!("{baseline} {ARROW} {candidate}")
    }
}

impl LockRow {
    /// The names of the locks.
    pub(super) fn lock_name(&self) -> String {
        self.of_sides(both, |side| {
            let names: Vec<_> = side.locks.iter().map(|lock| lock.name()).collect();
            names.join(", ")
        })
    }

    pub(super) fn kind_name(&self) -> String {
        self.of_sides(both, |side| {
            side.kind.map_or("unknown", Kind::name).to_owned()
        })
    }

    /// How the lock is taken, on both sides.
    pub(super) fn taken_as(&self) -> String {
        self.of_sides(both, |side| taken_as(side, self.intent))
    }

    fn of_sides(
        &self,
        both: fn(&str, &str) -> String,
        text: impl Fn(&LockSide) -> String,
    ) -> String {
        match [&self.baseline, &self.candidate].map(|side| side.as_ref().map(&text)) {
            [Some(a), Some(b)] => both(&a, &b),
            [a, b] => a.or(b).unwrap_or_default(),
        }
    }

    /// Whether a number is known of any side.
    pub(super) fn has(&self, metric: Metric) -> bool {
        let mut numbers = self.numbers.iter();
        numbers
            .any(|number| number.metric == metric && number.baseline.or(number.candidate).is_some())
    }

    pub(super) fn verdict_name(&self) -> &'static str {
        verdict(
            self.verdict,
            self.baseline.is_some(),
            self.candidate.is_some(),
        )
    }
}

impl OpRow {
    pub(super) fn verdict_name(&self) -> &'static str {
        verdict(
            self.verdict,
            self.baseline.is_some(),
            self.candidate.is_some(),
        )
    }
}

/// The verdict, or the only side that has the row.
fn verdict(verdict: Verdict, in_baseline: bool, in_candidate: bool) -> &'static str {
    match (in_baseline, in_candidate) {
        (true, false) => "gone",
        (false, true) => "new",
        (true, true) | (false, false) => verdict.name(),
    }
}

/// The mode of an rwsem, the intent where there is but one mode.
fn taken_as(side: &LockSide, intent: Intent) -> String {
    let names = side
        .modes
        .iter()
        .map(|mode| match (side.kind, mode, intent) {
            (_, Mode::Shared, Intent::Read) => "shared",
            (_, Mode::Shared, Intent::Write) => "shared/wr",
            (Some(Kind::Rwsem), Mode::Exclusive, Intent::Write) => "exclusive",
            (Some(Kind::Rwsem), Mode::Exclusive, Intent::Read) => "excl/read",
            (_, Mode::Exclusive, intent) => intent.name(),
        });
    names.collect::<Vec<_>>().join(", ")
}

/// What stands at the top: what was found, in one sentence.
pub(super) fn sentence(comparison: &Comparison) -> String {
    let rows = &comparison.rows;
    let all = units::counted(rows.on_both_sides() as u64, "row");
    match comparison.verdict {
        Verdict::Worse => {
            let better = match rows.better {
                0 => String::new(),
                better => format!(" and better in {better}"),
            };
            let worse = rows.worse;
            format!(
                "The candidate is worse in {worse} of {all}{better}{}.",
                example(comparison)
            )
        }
        Verdict::Better => format!(
            "The candidate is better in {} of {all} and worse in none{}.",
            rows.better,
            example(comparison)
        ),
        Verdict::NoDifference if rows.cannot_tell == 0 => {
            format!("No difference was found in {all}.")
        }
        Verdict::NoDifference => format!(
            "No difference was found in {} of {all}; of {} it cannot be told.",
            rows.no_difference, rows.cannot_tell
        ),
        Verdict::CannotTell => {
            format!("Of {all} it cannot be told whether they differ: record more repeats.")
        }
    }
}

/// The largest change of the weightiest row.
fn example(comparison: &Comparison) -> String {
    let locks = comparison.locks.iter().map(|row| {
        let name = format!("{} in {}", row.lock_name(), row.op);
        (row.verdict, name, &row.numbers)
    });
    let ops = comparison.ops.iter().map(|row| {
        let name = format!("operation {}", row.op);
        (row.verdict, name, &row.numbers)
    });
    let mut rows = locks.chain(ops);
    let found = rows.find(|(verdict, ..)| *verdict == comparison.verdict);
    let Some((name, number)) = found.and_then(|(_, name, numbers)| Some((name, largest(numbers)?)))
    else {
        return String::new();
    };
    let [a, b] = [number.baseline, number.candidate].map(|side| value(number.metric, side));
    let (metric, change, interval) = (number.metric.name(), change(number), interval(number));
    format!(": {name}, {metric} {a} {ARROW} {b}, {change} ({interval})")
}

/// The number whose change for the worse, or else for the better, is most of its baseline.
fn largest(numbers: &[Number]) -> Option<&Number> {
    let of = |finding| {
        let valid = numbers
            .iter()
            .filter(move |number| number.finding == finding && !number.overruled);
        valid.max_by(|a, b| a.relative_change().total_cmp(&b.relative_change()))
    };
    of(Finding::Worse).or_else(|| of(Finding::Better))
}

impl Number {
    /// How much of the baseline its change is, without a sign.
    fn relative_change(&self) -> f64 {
        let Some(change) = &self.change else {
            return 0.0;
        };
        match (change.scale, self.baseline) {
            (Scale::Relative, _) => change.estimate.abs(),
            (Scale::Absolute, Some(baseline)) if baseline > 0.0 => {
                (change.estimate / baseline).abs()
            }
            (Scale::Absolute, _) => 0.0,
        }
    }
}

/// A name, and what is said under it.
pub(super) type Line = (&'static str, Vec<String>);

/// What is compared, and what that is worth.
pub(super) fn head(comparison: &Comparison) -> Vec<Line> {
    let [a, b] = [&comparison.baseline, &comparison.candidate];
    let same = |text: fn(&Origin) -> String| vec![both(&text(a), &text(b))];
    let warnings = comparison.warnings.iter().map(ToString::to_string);
    let mut lines = vec![
        ("WARNING", warnings.collect()),
        ("baseline", vec![side(a)]),
        ("candidate", vec![side(b)]),
        ("host", same(host)),
        ("command", same(|origin| obstacle::workload(&origin.header))),
        ("measured", same(measured)),
        ("lost", same(lost)),
        ("method", vec![method(comparison)]),
        ("band", vec![band(comparison)]),
        ("note", comparison.remarks.clone()),
    ];
    lines.retain(|(_, values)| !values.is_empty());
    lines
}

fn host(origin: &Origin) -> String {
    origin.header.host.phrases().join(", ")
}

fn measured(origin: &Origin) -> String {
    let header = &origin.header;
    let (level, hooks) = (header.level.name(), &header.hooks);
    let (waits, holds) = (obstacle::waits(header), obstacle::holds(header));
    format!("level {level}, hooks {hooks}; {waits}, {holds}")
}

/// What a side is: kernel, era, and how it was sampled.
pub(super) fn side(origin: &Origin) -> String {
    let kernel = format!(
        "{}, era {}",
        origin.header.kernel.release, origin.header.kernel.era
    );
    let samples = origin.samples as u64;
    let sampled = match origin.sampling {
        Sampling::Repeats => units::counted(samples, "repeat"),
        Sampling::Intervals => format!("1 recording in {}", units::counted(samples, "part")),
    };
    let measured = units::elapsed(origin.duration_ns);
    format!("{kernel}, {sampled}, {measured} in all")
}

/// What was lost of a side.
pub(super) fn lost(origin: &Origin) -> String {
    let loss = &origin.loss;
    let parts = [
        (loss.share > 0.0).then(|| format!("{} of acquisitions", units::fraction(loss.share))),
        (loss.ops_share > 0.0)
            .then(|| format!("{} of operations", units::fraction(loss.ops_share))),
        (loss.counts.recursion_misses != 0).then(|| {
            let runs = units::counted(loss.counts.recursion_misses, "run");
            format!("at most {runs} of a program, for any lock")
        }),
    ];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        "nothing".into()
    } else {
        parts.join(", ")
    }
}

/// What is no difference.
pub(super) fn band(comparison: &Comparison) -> String {
    let band = &comparison.band;
    let bucket = units::fraction(band.bucket);
    let own = match (band.own_cost_ns, &band.reason) {
        (Some(ns), _) => format!(
            ", or {} for each wait and hold, the shortest hold seen",
            units::duration(ns)
        ),
        (None, reason) => format!(
            "; the cost of the tool is unknown: {}",
            reason.as_deref().unwrap_or(UNKNOWN)
        ),
    };
    format!("no difference below {bucket}, the width of a bucket{own}")
}

pub(super) fn method(comparison: &Comparison) -> String {
    let method = &comparison.method;
    format!(
        "{} of the ratio (shares, times per op: of the difference); intervals of a row hold with \
         {:.0} % together",
        method.name,
        100.0 * method.confidence
    )
}
