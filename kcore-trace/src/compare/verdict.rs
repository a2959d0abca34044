//! When a difference is one.
//!
//! Owns the rule by which a number, a row and a comparison are judged: [`find`] says it for a
//! number, [`of_row`] for a row. Invariant: nothing is found inside the band, and nothing at all
//! from fewer samples than it takes to know how much they vary.

use serde::Serialize;

use super::metric::{BUCKET_WIDTH, Metric, Scale, Span};
use super::rows::Number;
use super::stats::Estimate;

/// How sure the intervals of one row are, all together.
pub(super) const CONFIDENCE: f64 = 0.99;
/// What a share may differ by and be the same: as much as may be lost of it.
const SHARE_BAND: f64 = super::obstacle::LOSS_BOUND;

/// What was found of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finding {
    Worse,
    Better,
    /// Of a number that is neither good nor bad.
    More,
    Fewer,
    NoDifference,
    CannotTell,
}

/// What was found of a row or of all rows. The order is that of importance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Worse,
    Better,
    NoDifference,
    CannotTell,
}

/// The error of each interval of a row with so many, by Bonferroni: all of them together miss with
/// a probability of at most one less [`CONFIDENCE`].
pub(super) fn error_of_each(intervals: usize) -> f64 {
    (1.0 - CONFIDENCE) / intervals.max(1) as f64
}

/// What a value may differ by and be the same, in its own unit: the width of a bucket, or what the
/// tool itself may have added, whichever is more.
pub(super) fn band(metric: Metric, baseline: f64, own_cost: f64) -> f64 {
    let least = match metric {
        Metric::ContendedShare => SHARE_BAND,
        Metric::AcquisitionsPerOp => 0.0,
        // Less than a nanosecond of an operation is nothing that a clock shows.
        Metric::PerOp(_) => own_cost.max(1.0),
        Metric::Of(..) => own_cost,
    };
    least.max(baseline * BUCKET_WIDTH)
}

/// A difference is found if its whole interval lies beyond the band.
pub(super) fn find(metric: Metric, baseline: f64, estimate: &Estimate, band: f64) -> Finding {
    let in_unit = |difference: f64| match metric.scale() {
        Scale::Absolute => difference,
        Scale::Relative => baseline * difference.exp_m1(),
    };
    let (up, down) = match metric {
        Metric::AcquisitionsPerOp => (Finding::More, Finding::Fewer),
        Metric::ContendedShare | Metric::PerOp(_) | Metric::Of(..) => {
            (Finding::Worse, Finding::Better)
        }
    };
    if in_unit(estimate.low) > band {
        up
    } else if in_unit(estimate.high) < -band {
        down
    } else {
        Finding::NoDifference
    }
}

/// Marks the findings that a change in how often something happens explains.
///
/// Percentiles and means are those of what happened. Where a lock is taken or waited for more or
/// less often than before, they are of other events: once short waits are gone, the rest is longer
/// on average and nobody is worse off. Then the time in all for each operation decides, and those
/// that say the contrary do not count.
pub(super) fn overrule(numbers: &mut [Number]) {
    let finding = |numbers: &[Number], metric| {
        let mut found = numbers.iter().filter(|number| number.metric == metric);
        found.next().map(|number| number.finding)
    };
    let acquired = finding(numbers, Metric::AcquisitionsPerOp);
    let share = finding(numbers, Metric::ContendedShare);
    let as_often = acquired.is_none_or(|found| !found.is_difference());
    let waited_as_often = as_often && share.is_none_or(|found| !found.is_difference());
    for (span, same_events) in [(Span::Wait, waited_as_often), (Span::Hold, as_often)] {
        let Some(decides) = finding(numbers, Metric::PerOp(span)).filter(|_| !same_events) else {
            continue;
        };
        for number in numbers.iter_mut() {
            let depends = match number.metric {
                Metric::Of(of, _) => of == span,
                Metric::ContendedShare => span == Span::Wait,
                Metric::AcquisitionsPerOp | Metric::PerOp(_) => false,
            };
            number.overruled |= depends && number.finding.is_contrary_to(decides);
        }
    }
}

/// A row is worse if any of its numbers is, and only then better if any is.
pub(super) fn of_row(numbers: &[Number]) -> Verdict {
    let counts = |finding| {
        let mut valid = numbers.iter().filter(|number| !number.overruled);
        valid.any(|number| number.finding == finding)
    };
    if counts(Finding::Worse) {
        Verdict::Worse
    } else if counts(Finding::Better) {
        Verdict::Better
    } else if numbers
        .iter()
        .any(|number| number.finding != Finding::CannotTell)
    {
        Verdict::NoDifference
    } else {
        Verdict::CannotTell
    }
}

impl Finding {
    pub(super) const fn is_difference(self) -> bool {
        match self {
            Self::Worse | Self::Better | Self::More | Self::Fewer => true,
            Self::NoDifference | Self::CannotTell => false,
        }
    }

    fn is_contrary_to(self, other: Self) -> bool {
        matches!(
            (self, other),
            (Self::Worse, Self::Better) | (Self::Better, Self::Worse)
        )
    }

    /// For a person.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Worse => "worse",
            Self::Better => "better",
            Self::More => "more",
            Self::Fewer => "fewer",
            Self::NoDifference => "no difference",
            Self::CannotTell => "cannot tell",
        }
    }
}

impl Verdict {
    /// For a person.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Worse => Finding::Worse.name(),
            Self::Better => Finding::Better.name(),
            Self::NoDifference => Finding::NoDifference.name(),
            Self::CannotTell => Finding::CannotTell.name(),
        }
    }
}
