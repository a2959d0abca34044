//! The kernel's buckets as Prometheus knows buckets: classic bounds, and native histograms.
//!
//! In: a number of samples for each bucket of the kernel. Out: counts for [`BOUNDS`], or the spans
//! and deltas of a native histogram of schema 5, whose buckets grow by 2^(1/32), 2.2 %.
//!
//! Each bucket of the kernel goes whole to the one that its middle lies in, so that a quantile that
//! Prometheus computes lies within one native bucket of what `report` shows; both are at most half
//! a bucket of the kernel, 1.6 %, from the truth. Samples of unknown length, which found no
//! histogram in the kernel, are counted above every bound, in the bucket of infinity.
//!
//! Invariant: the buckets together hold exactly the samples that were given.

use std::sync::LazyLock;

use kcore_trace_ebpf::bucket;

/// Buckets in a power of two of a native histogram, as a power of two itself.
pub(crate) const SCHEMA: i32 = 5;
/// Below this a native histogram counts zeros; Prometheus's own default.
pub(crate) const ZERO_THRESHOLD: f64 =
    prometheus_client::metrics::histogram::DEFAULT_NATIVE_HISTOGRAM_ZERO_THRESHOLD;
/// The native bucket of what is infinitely long: the one above that of the largest number.
const INFINITE: i32 = (f64::MAX_EXP << SCHEMA) + 1;
/// Empty native buckets that are cheaper to list than to skip.
const LISTED_GAP: i32 = 2;

/// Upper bounds of the classic buckets in seconds: two to a power of ten, from shorter than a cache
/// miss of a spinning CPU to longer than the watchdog of a stalled one.
pub(crate) const BOUNDS: [f64; 18] = [
    1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0,
    10.0, 30.0,
];

/// Where the samples of each bucket of the kernel go.
struct Place {
    /// Index into [`BOUNDS`], or their number for what is longer.
    classic: usize,
    /// Number of the native bucket; nothing for zero.
    native: Option<i32>,
}

static PLACES: LazyLock<Vec<Place>> = LazyLock::new(|| {
    let places = (0..bucket::COUNT as u32).map(|index| {
        let middle_ns = bucket::lower(index).midpoint(bucket::upper(index));
        let seconds = middle_ns as f64 / 1e9;
        Place {
            classic: BOUNDS.partition_point(|bound| *bound < seconds),
            native: (middle_ns > 0).then(|| native_index(seconds)),
        }
    });
    places.collect()
});

/// The native bucket of a positive number: the first whose upper bound is not below it.
fn native_index(seconds: f64) -> i32 {
    (seconds.log2() * f64::from(1 << SCHEMA)).ceil() as i32
}

/// Samples by the classic bounds, not cumulated, with those above all of them at the end.
pub(crate) fn classic(buckets: &[u64], unknown: u64) -> [(f64, u64); BOUNDS.len() + 1] {
    let mut counts = [(f64::INFINITY, 0); BOUNDS.len() + 1];
    for (count, bound) in counts.iter_mut().zip(BOUNDS) {
        count.0 = bound;
    }
    for (place, count) in PLACES.iter().zip(buckets) {
        counts[place.classic].1 += count;
    }
    counts[BOUNDS.len()].1 += unknown;
    counts
}

/// The positive side of a native histogram, and its zeros.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Native {
    pub(crate) zeros: u64,
    /// How many buckets lie between a span and the one before it, and how long it is.
    pub(crate) spans: Vec<(i32, u32)>,
    /// The count of the first bucket, then differences.
    pub(crate) deltas: Vec<i64>,
}

/// Samples as a native histogram.
pub(crate) fn native(buckets: &[u64], unknown: u64) -> Native {
    let mut native = Native::default();
    let mut filling = Filling::default();
    for (place, &count) in PLACES.iter().zip(buckets).filter(|(_, count)| **count > 0) {
        match place.native {
            Some(index) => filling.add(&mut native, index, count),
            None => native.zeros += count,
        }
    }
    if unknown > 0 {
        filling.add(&mut native, INFINITE, unknown);
    }
    filling.flush(&mut native);
    native
}

/// The bucket that is being filled: several of the kernel's can fall into one.
#[derive(Default)]
struct Filling {
    bucket: Option<(i32, u64)>,
    next: i32,
    last_count: i64,
}

impl Filling {
    fn add(&mut self, native: &mut Native, index: i32, count: u64) {
        match &mut self.bucket {
            Some((filled, sum)) if *filled == index => *sum += count,
            _ => {
                self.flush(native);
                self.bucket = Some((index, count));
            }
        }
    }

    fn flush(&mut self, native: &mut Native) {
        let Some((index, count)) = self.bucket.take() else {
            return;
        };
        let gap = index - self.next;
        match native.spans.last_mut() {
            Some((_, length)) if gap <= LISTED_GAP => {
                *length += gap as u32 + 1;
                for _ in 0..gap {
                    self.push(native, 0);
                }
            }
            _ => native.spans.push((gap, 1)),
        }
        self.push(native, count as i64);
        self.next = index + 1;
    }

    fn push(&mut self, native: &mut Native, count: i64) {
        native.deltas.push(count - self.last_count);
        self.last_count = count;
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// What a scraper makes of spans and deltas: buckets with their number.
    fn expanded(native: &Native) -> Vec<(i32, u64)> {
        let (mut index, mut count, mut deltas) = (0, 0, native.deltas.iter());
        let mut buckets = Vec::new();
        for &(offset, length) in &native.spans {
            index += offset;
            for _ in 0..length {
                count += deltas.next().unwrap();
                buckets.push((index, u64::try_from(count).unwrap()));
                index += 1;
            }
        }
        assert_eq!(deltas.next(), None);
        buckets
    }

    fn one(index: u32) -> Vec<u64> {
        let mut buckets = vec![0; bucket::COUNT];
        buckets[index as usize] = 1;
        buckets
    }

    /// Of a native bucket, by the definition of a standard schema.
    fn upper_bound(index: i32) -> f64 {
        (f64::from(index) / 32.0).exp2()
    }

    #[test]
    fn each_bucket_of_the_kernel_is_in_the_native_bucket_of_its_middle() {
        for index in 1..bucket::COUNT as u32 {
            let middle = bucket::lower(index).midpoint(bucket::upper(index)) as f64 / 1e9;
            let native = native(&one(index), 0);
            let [(place, 1)] = expanded(&native)[..] else {
                panic!("{native:?}");
            };
            assert!(
                upper_bound(place - 1) < middle && middle <= upper_bound(place) * 1.000_000_1,
                "bucket {index}"
            );
        }
    }

    #[test]
    fn zero_is_in_the_bucket_of_zeros() {
        let native = native(&one(0), 0);
        assert_eq!((native.zeros, native.spans.len()), (1, 0));
    }

    #[test]
    fn samples_of_unknown_length_are_in_the_bucket_of_infinity() {
        let buckets = vec![0; bucket::COUNT];
        assert_eq!(expanded(&native(&buckets, 7)), [(32_769, 7)]);
        assert_eq!(classic(&buckets, 7).last(), Some(&(f64::INFINITY, 7)));
    }

    #[test]
    fn a_duration_at_a_classic_bound_is_within_it_up_to_half_a_bucket() {
        for bound in BOUNDS {
            let ns = (bound * 1e9) as u64;
            let below = classic(&one(bucket::index(ns * 98 / 100)), 0);
            let above = classic(&one(bucket::index(ns * 102 / 100)), 0);
            let place = |counts: &[(f64, u64)]| counts.iter().position(|(_, n)| *n == 1).unwrap();
            assert_eq!(place(&below) + 1, place(&above), "{bound}");
        }
    }

    proptest! {
        #[test]
        fn no_sample_is_lost_or_invented(
            samples in vec((0..bucket::COUNT, 1u64..1 << 40), 0..200),
            unknown in 0u64..1000,
        ) {
            let mut buckets = vec![0; bucket::COUNT];
            for (index, count) in samples {
                buckets[index] += count;
            }
            let given: u64 = buckets.iter().sum::<u64>() + unknown;
            let classic: u64 = classic(&buckets, unknown).iter().map(|(_, count)| count).sum();
            prop_assert_eq!(classic, given);
            let native = native(&buckets, unknown);
            let held: u64 = expanded(&native).iter().map(|(_, count)| count).sum();
            prop_assert_eq!(native.zeros + held, given);
        }
    }
}
