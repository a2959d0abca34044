//! The interval of a difference between two groups of samples.
//!
//! Owns the method: Welch's t-interval, which does not take both groups to vary alike. In come
//! samples, out comes the difference of their means and where the true one lies. Nothing here knows
//! what the samples are; on logarithms a difference is a ratio.
//!
//! B. L. Welch, "The generalization of 'Student's' problem when several different population
//! variances are involved", Biometrika 34 (1947), 28–35; the degrees of freedom are those of
//! F. E. Satterthwaite, Biometrics Bulletin 2 (1946), 110–114.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// The fewest samples that say how much samples vary.
pub(super) const FEWEST: usize = 2;

/// A difference, candidate less baseline, and the ends of its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Estimate {
    pub(super) difference: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// The mean of some numbers, of which there is at least one.
pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The interval that misses the true difference with a probability of `error`; nothing where a
/// group has fewer samples than [`FEWEST`].
///
/// `least_variance` is what a sample of each group varies by at least, even where all samples look
/// the same: by rounding, and by how few events it was taken from.
pub(super) fn welch(
    baseline: &[f64],
    candidate: &[f64],
    error: f64,
    least_variance: [f64; 2],
) -> Option<Estimate> {
    if baseline.len() < FEWEST || candidate.len() < FEWEST {
        return None;
    }
    let difference = mean(candidate) - mean(baseline);
    let a = Group::new(baseline, least_variance[0]);
    let b = Group::new(candidate, least_variance[1]);
    let squared_error = a.squared_error + b.squared_error;
    // Groups without any variance have no degrees of freedom and need none.
    let reach = if squared_error > 0.0 {
        let freedom = squared_error.powi(2) / (a.per_freedom() + b.per_freedom());
        let student = StudentsT::new(0.0, 1.0, freedom)
            .expect("the degrees of freedom are between one and all samples");
        student.inverse_cdf(1.0 - error / 2.0) * squared_error.sqrt()
    } else {
        0.0
    };
    Some(Estimate {
        difference,
        low: difference - reach,
        high: difference + reach,
    })
}

/// How well the mean of one group is known.
struct Group {
    /// The square of the standard error of the mean.
    squared_error: f64,
    freedom: f64,
}

impl Group {
    fn new(values: &[f64], least_variance: f64) -> Self {
        let mean = mean(values);
        let freedom = (values.len() - 1) as f64;
        let variance = values
            .iter()
            .map(|value| (value - mean).powi(2))
            .sum::<f64>()
            / freedom;
        Self {
            squared_error: variance.max(least_variance) / values.len() as f64,
            freedom,
        }
    }

    fn per_freedom(&self) -> f64 {
        self.squared_error.powi(2) / self.freedom
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) -> bool {
        (found - expected).abs() < 1e-3
    }

    #[test]
    fn the_interval_is_that_of_the_textbook() {
        // Equal variances and sizes: 8 degrees of freedom, for which the table has 2.306.
        let baseline = [1.0, 2.0, 3.0, 4.0, 5.0];
        let candidate = baseline.map(|value| value + 10.0);
        let estimate = welch(&baseline, &candidate, 0.05, [0.0; 2]).unwrap();
        assert_eq!(estimate.difference, 10.0);
        assert!(close(estimate.high, 10.0 + 2.306), "{estimate:?}");
        assert!(close(estimate.low, 10.0 - 2.306), "{estimate:?}");
    }

    #[test]
    fn a_group_that_varies_more_costs_degrees_of_freedom() {
        // 4.0 and 0.04 of squared error over 4 and 4 degrees give 4.08, for which t is 2.755.
        let baseline = [-4.0, -2.0, 0.0, 2.0, 4.0].map(|value| value * f64::sqrt(2.0));
        let candidate = baseline.map(|value| value / 10.0);
        let estimate = welch(&baseline, &candidate, 0.05, [0.0; 2]).unwrap();
        assert!(
            close(estimate.high / 4.04_f64.sqrt(), 2.755),
            "{estimate:?}"
        );
    }

    #[test]
    fn far_quantiles_of_few_degrees_are_right() {
        // From the table of t: 2 degrees, 0.9995 on one side, 31.599.
        let estimate = welch(&[0.0, 2.0], &[0.0, 2.0], 0.001, [0.0; 2]).unwrap();
        assert!((estimate.high / 2.0_f64.sqrt() - 31.599).abs() < 1e-2);
    }

    #[test]
    fn one_sample_tells_nothing() {
        assert_eq!(welch(&[1.0], &[1.0, 2.0], 0.01, [0.0; 2]), None);
        assert_eq!(welch(&[1.0, 2.0], &[], 0.01, [0.0; 2]), None);
    }

    #[test]
    fn samples_that_do_not_vary_have_an_interval_of_no_width_unless_they_were_rounded() {
        let exact = welch(&[1.0, 1.0], &[1.0, 1.0], 0.01, [0.0; 2]).unwrap();
        assert_eq!((exact.low, exact.high), (0.0, 0.0));
        let rounded = welch(&[1.0, 1.0], &[1.0, 1.0], 0.01, [1e-4; 2]).unwrap();
        assert!(rounded.low < 0.0 && rounded.high > 0.0);
    }
}
