//! The numbers that are compared, and how each is taken from what was counted.
//!
//! Owns [`Metric`], the list of them for a lock and for an op, and the rules for when one can be
//! had. In comes a [`Tally`], what one sample says about a row; out comes a number or the reason
//! why there is none. Invariant: less is better in each of them but [`Metric::AcquisitionsPerOp`],
//! which is neither.

use std::fmt;

use kcore_trace_ebpf::bucket;
use serde::{Serialize, Serializer};

use crate::distribution::Distribution;
use crate::units;

/// The width of a bucket of the kernel as a part of its lower bound, at most.
pub(super) const BUCKET_WIDTH: f64 = 1.0 / (1 << bucket::SUB_BITS) as f64;

/// How many samples have to lie beyond a percentile for it to be one: fewer, and it follows their
/// number more than their distribution.
const BEYOND_PERCENTILE: f64 = 10.0;
/// The fewest events of a side, all its samples together, that a mean is taken of, and of a sample
/// that a sum for each operation is.
const FEWEST: u64 = 10;

/// What takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    Wait,
    Hold,
    Latency,
}

/// A number of a distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    P50,
    P90,
    P99,
    P999,
    Mean,
}

/// A number that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Acquisitions for each operation.
    AcquisitionsPerOp,
    /// The part of acquisitions that had to wait, 0 to 1.
    ContendedShare,
    /// Nanoseconds in all for each operation: the one number that does not depend on how many
    /// acquisitions an operation takes in an era.
    PerOp(Span),
    /// Nanoseconds of those that happened.
    Of(Span, Point),
}

/// How two values are set against each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// As a ratio, less one: the samples are compared by their logarithms.
    Relative,
    /// As a difference, in the unit of the values, which may be zero.
    Absolute,
}

const POINTS: [Point; 5] = [Point::P50, Point::P90, Point::P99, Point::P999, Point::Mean];

/// What is compared of an op.
pub(super) const OF_OP: [Metric; POINTS.len()] = of(Span::Latency);

/// What is compared of a lock, in the order of output.
pub(super) fn of_lock() -> impl Iterator<Item = Metric> {
    let spans = [Span::Wait, Span::Hold].into_iter();
    [Metric::AcquisitionsPerOp, Metric::ContendedShare]
        .into_iter()
        .chain(spans.flat_map(|span| [Metric::PerOp(span)].into_iter().chain(of(span))))
}

const fn of(span: Span) -> [Metric; POINTS.len()] {
    let mut metrics = [Metric::PerOp(span); POINTS.len()];
    let mut index = 0;
    while index < POINTS.len() {
        metrics[index] = Metric::Of(span, POINTS[index]);
        index += 1;
    }
    metrics
}

/// What one sample says about a row; what is not seen is nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// Operations that ended; of some there are none because they are not counted.
    pub(super) operations: u64,
    pub(super) acquisitions: Option<u64>,
    pub(super) contended: Option<u64>,
    pub(super) wait: Option<Distribution>,
    pub(super) hold: Option<Distribution>,
    pub(super) latency: Option<Distribution>,
}

/// Why there is no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gap {
    NoOperations,
    NoAcquisitions,
    NoWaits,
    NoHolds,
    NoLatency,
    /// Fewer than so many of what takes time.
    TooFew(Span, u64),
    /// The same, of all samples together.
    TooFewTogether(Span, u64),
}

impl Metric {
    /// The name in JSON.
    pub(super) fn id(self) -> String {
        match self {
            Self::AcquisitionsPerOp => "acquisitions_per_op".into(),
            Self::ContendedShare => "contended_share".into(),
            Self::PerOp(span) => format!("{}_per_op_ns", span.id()),
            Self::Of(span, point) => format!("{}_{}_ns", span.id(), point.id()),
        }
    }

    /// The name for a person.
    pub(super) fn name(self) -> String {
        match self {
            Self::AcquisitionsPerOp => "acquired/op".into(),
            Self::ContendedShare => "contended".into(),
            Self::PerOp(span) => format!("{}/op", span.id()),
            Self::Of(span, point) => format!("{} {}", span.id(), point.name()),
        }
    }

    /// The name where it is clear what takes time.
    pub(super) fn short_name(self) -> String {
        match self {
            Self::Of(_, point) => point.name().into(),
            Self::AcquisitionsPerOp | Self::ContendedShare | Self::PerOp(_) => self.name(),
        }
    }

    /// Shares and times for each operation can be zero, so they have no logarithm.
    pub(super) const fn scale(self) -> Scale {
        match self {
            Self::ContendedShare | Self::PerOp(_) => Scale::Absolute,
            Self::AcquisitionsPerOp | Self::Of(..) => Scale::Relative,
        }
    }

    /// The variance that a value has at least, as it is compared, by how few events it is taken
    /// from: so much would it vary if these came by chance, one independent of the other. Repeats
    /// of an emulated machine can be more alike than that, and then say too little.
    ///
    /// Shares vary as the binomial distribution says, sums as those of a number of durations that
    /// itself varies as Poisson says, means by the root of that number, and the ranks of percentiles
    /// as binomial numbers, to which comes the rounding to buckets.
    pub(super) fn least_variance(self, tally: &Tally) -> f64 {
        match self {
            // How often an operation takes a lock is written in its code.
            Self::AcquisitionsPerOp => 0.0,
            Self::ContendedShare => match (tally.acquisitions, tally.contended) {
                // One more of either kind, so that none at all is not taken for never.
                (Some(acquisitions @ 1..), Some(contended)) => {
                    let all = acquisitions as f64;
                    let share = (contended as f64 + 1.0) / (all + 2.0);
                    (share * (1.0 - share)).max(0.0) / all
                }
                _ => 0.0,
            },
            Self::PerOp(span) => tally.span(span).map_or(0.0, |durations| {
                let count = durations.count().max(1) as f64;
                let each_op = durations.sum_ns() as f64 / tally.operations.max(1) as f64;
                let relative = 1.0 + durations.relative_variance().unwrap_or(0.0);
                each_op.powi(2) * relative / count
            }),
            Self::Of(span, point) => tally
                .span(span)
                .map_or(0.0, |durations| point.least_variance(durations)),
        }
    }

    /// Why there is no number of a side that has all of this, whatever each sample says.
    pub(super) fn shortage(self, total: &Tally) -> Option<Gap> {
        match self {
            Self::Of(span, Point::Mean) => match total.span(span) {
                Ok(durations) if durations.count() < FEWEST => {
                    Some(Gap::TooFewTogether(span, FEWEST))
                }
                Ok(_) => None,
                Err(gap) => Some(gap),
            },
            Self::AcquisitionsPerOp | Self::ContendedShare | Self::PerOp(_) | Self::Of(..) => None,
        }
    }

    /// The number, in nanoseconds where it is a time.
    ///
    /// # Errors
    ///
    /// Why it cannot be had from this sample.
    pub(super) fn value(self, tally: &Tally) -> Result<f64, Gap> {
        let operations = || match tally.operations {
            0 => Err(Gap::NoOperations),
            operations => Ok(operations as f64),
        };
        let acquisitions = || match tally.acquisitions {
            Some(acquisitions @ 1..) => Ok(acquisitions as f64),
            Some(0) | None => Err(Gap::NoAcquisitions),
        };
        match self {
            Self::AcquisitionsPerOp => Ok(acquisitions()? / operations()?),
            Self::ContendedShare => {
                let contended = tally.contended.ok_or(Gap::NoWaits)?;
                Ok(contended as f64 / acquisitions()?)
            }
            Self::PerOp(span) => match tally.operations {
                1..FEWEST => Err(Gap::TooFew(Span::Latency, FEWEST)),
                _ => Ok(tally.span(span)?.sum_ns() as f64 / operations()?),
            },
            Self::Of(span, point) => point
                .value(tally.span(span)?)
                .ok_or(Gap::TooFew(span, point.fewest())),
        }
    }
}

impl Tally {
    fn span(&self, span: Span) -> Result<&Distribution, Gap> {
        match span {
            Span::Wait => self.wait.as_ref().ok_or(Gap::NoWaits),
            Span::Hold => self.hold.as_ref().ok_or(Gap::NoHolds),
            Span::Latency => self.latency.as_ref().ok_or(Gap::NoLatency),
        }
    }
}

impl Span {
    const fn id(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Hold => "hold",
            Self::Latency => "latency",
        }
    }

    const fn plural(self) -> &'static str {
        match self {
            Self::Wait => "waits",
            Self::Hold => "holds",
            Self::Latency => "operations",
        }
    }
}

impl Point {
    const fn id(self) -> &'static str {
        match self {
            Self::P999 => "p999",
            Self::P50 | Self::P90 | Self::P99 | Self::Mean => self.name(),
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
            Self::Mean => "mean",
        }
    }

    const fn percentile(self) -> Option<f64> {
        match self {
            Self::P50 => Some(50.0),
            Self::P90 => Some(90.0),
            Self::P99 => Some(99.0),
            Self::P999 => Some(99.9),
            Self::Mean => None,
        }
    }

    /// The fewest durations of one sample it can be taken from.
    fn fewest(self) -> u64 {
        self.percentile().map_or(1, |percentile| {
            (100.0 * BEYOND_PERCENTILE / (100.0 - percentile)).round() as u64
        })
    }

    /// That of the logarithm of the value.
    fn least_variance(self, durations: &Distribution) -> f64 {
        let count = durations.count().max(1) as f64;
        let Some(percentile) = self.percentile() else {
            let relative = durations.relative_variance().unwrap_or(0.0);
            // A handful says little of how much it varies: as much, then, as if it came by chance.
            let few = count < FEWEST as f64;
            return if few { relative.max(1.0) } else { relative } / count;
        };
        let part = percentile / 100.0;
        let ranks = 100.0 * (part * (1.0 - part) / count).sqrt();
        let ends = [percentile - ranks, percentile + ranks];
        let [low, high] = ends.map(|end| durations.percentile_ns(end.clamp(0.0, 100.0)));
        let spread = match (low, high) {
            (Some(low @ 1..), Some(high)) => (high as f64 / low as f64).ln() / 2.0,
            _ => 0.0,
        };
        // That of a uniform error as wide as a bucket.
        spread.powi(2) + BUCKET_WIDTH.powi(2) / 12.0
    }

    fn value(self, distribution: &Distribution) -> Option<f64> {
        if distribution.count() < self.fewest() {
            return None;
        }
        match self.percentile() {
            Some(percentile) => distribution.percentile_ns(percentile).map(|ns| ns as f64),
            None => distribution.mean_ns(),
        }
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoOperations => f.write_str("no operation was counted"),
            Self::NoAcquisitions => f.write_str("no acquisition was seen"),
            Self::NoWaits => f.write_str("no wait can be seen"),
            Self::NoHolds => f.write_str("no hold can be seen"),
            Self::NoLatency => f.write_str("no operation was timed"),
            Self::TooFew(span, fewest) | Self::TooFewTogether(span, fewest) => {
                write!(f, "fewer than {} {}", units::count(*fewest), span.plural())
            }
        }
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distribution::Exact;

    /// So many waits of the same length.
    fn waits(count: u64, ns: u64) -> Distribution {
        let exact = Exact {
            count,
            sum_ns: count * ns,
            min_ns: ns,
            max_ns: ns,
        };
        Distribution::from_buckets(exact, [(bucket::index(ns), count)])
    }

    #[test]
    fn a_percentile_needs_ten_samples_beyond_it() {
        let fewest = POINTS.map(Point::fewest);
        assert_eq!(fewest, [20, 100, 1_000, 10_000, 1]);
        let value = |count| {
            let tally = Tally {
                wait: Some(waits(count, 40)),
                ..Tally::default()
            };
            Metric::Of(Span::Wait, Point::P90).value(&tally)
        };
        assert_eq!(value(100), Ok(40.0));
        assert_eq!(value(99), Err(Gap::TooFew(Span::Wait, 100)));
    }

    #[test]
    fn a_mean_needs_ten_samples_of_a_side_and_few_of_them_vary_much() {
        let mean = Metric::Of(Span::Wait, Point::Mean);
        let tally = |count| Tally {
            wait: Some(waits(count, 40)),
            ..Tally::default()
        };
        assert_eq!(mean.shortage(&tally(10)), None);
        assert_eq!(
            mean.shortage(&tally(9)),
            Some(Gap::TooFewTogether(Span::Wait, 10))
        );
        assert_eq!(mean.value(&tally(2)), Ok(40.0));
        assert_eq!(mean.least_variance(&tally(2)), 0.5);
        assert_eq!(mean.least_variance(&tally(10)), 0.0);
    }

    #[test]
    fn what_is_not_seen_is_no_zero() {
        let tally = Tally::default();
        for metric in of_lock().chain(OF_OP) {
            assert!(metric.value(&tally).is_err(), "{}", metric.id());
        }
    }

    #[test]
    fn waits_that_cannot_be_seen_are_no_share_and_no_time_of_zero() {
        let tally = Tally {
            operations: 10,
            acquisitions: Some(30),
            ..Tally::default()
        };
        let of_waits = of(Span::Wait).into_iter();
        for metric in of_waits.chain([Metric::ContendedShare, Metric::PerOp(Span::Wait)]) {
            assert_eq!(metric.value(&tally), Err(Gap::NoWaits), "{}", metric.id());
        }
        assert_eq!(Metric::AcquisitionsPerOp.value(&tally), Ok(3.0));
    }

    #[test]
    fn no_wait_at_all_is_a_share_and_a_time_of_zero() {
        let tally = Tally {
            operations: 10,
            acquisitions: Some(30),
            contended: Some(0),
            wait: Some(Distribution::default()),
            ..Tally::default()
        };
        assert_eq!(Metric::AcquisitionsPerOp.value(&tally), Ok(3.0));
        assert_eq!(Metric::ContendedShare.value(&tally), Ok(0.0));
        assert_eq!(Metric::PerOp(Span::Wait).value(&tally), Ok(0.0));
    }
}
