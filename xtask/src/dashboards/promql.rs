//! The queries that dashboards are made of, for either form of histograms.
//!
//! Prometheus keeps a native histogram as one series and a classic one as a series for each bucket;
//! a dashboard does not know which its reader has. Each query here is the native one `or` the
//! classic one; both have the same labels, so that with both there it is not doubled.

/// The window of rates, which Grafana fills in.
pub(super) const WINDOW: &str = "$__rate_interval";

/// Seconds of a histogram per second, a series for each of its label sets.
pub(super) fn seconds(histogram: &str, filter: &str) -> String {
    format!(
        "(histogram_sum(rate({histogram}{{{filter}}}[{WINDOW}])) or rate({histogram}_sum{{{filter}}}[{WINDOW}]))"
    )
}

/// Samples of a histogram per second, a series for each of its label sets.
pub(super) fn samples(histogram: &str, filter: &str) -> String {
    format!(
        "(histogram_count(rate({histogram}{{{filter}}}[{WINDOW}])) or rate({histogram}_count{{{filter}}}[{WINDOW}]))"
    )
}

/// A quantile, by some labels.
pub(super) fn quantile(q: f64, histogram: &str, filter: &str, by: &str) -> String {
    joined_quantile(q, histogram, filter, by, "")
}

/// A quantile, by some labels of which some come from another metric; of what had no sample there is
/// none, and no line of gaps either.
pub(super) fn joined_quantile(
    q: f64,
    histogram: &str,
    filter: &str,
    by: &str,
    join: &str,
) -> String {
    let with_le = if by.is_empty() {
        "le".to_owned()
    } else {
        format!("{by}, le")
    };
    format!(
        "((histogram_quantile({q}, sum by ({by}) (rate({histogram}{{{filter}}}[{WINDOW}]){join})) or histogram_quantile({q}, sum by ({with_le}) (rate({histogram}_bucket{{{filter}}}[{WINDOW}]){join}))) >= 0)"
    )
}

/// Buckets over time: the native histogram, and the classic one where there is no native one.
pub(super) fn buckets(histogram: &str, filter: &str) -> [String; 2] {
    [
        format!("sum(rate({histogram}{{{filter}}}[{WINDOW}]))"),
        format!(
            "sum by (le) (rate({histogram}_bucket{{{filter}}}[{WINDOW}])) unless on () group({histogram}{{{filter}}})"
        ),
    ]
}
