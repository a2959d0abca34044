//! A distribution of durations in nanoseconds: what one histogram of the kernel became.
//!
//! Owns the only histogram type of userspace: an `hdrhistogram` for percentiles, beside the count,
//! the sum, the minimum and the maximum as the kernel counted them. In come the kernel's buckets;
//! out go percentiles and the numbers of every report.
//!
//! Invariant: the histogram is finer than the kernel's buckets, so that no precision is lost a
//! second time, and has its samples in the middles of those; it may hold fewer samples than `count`, since a
//! sample can find no histogram in the kernel; and it exists only where there are samples, so that an empty
//! distribution costs nothing.

use std::fmt;
use std::iter;

use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer as HdrDeserializer, Serializer as _, V2Serializer};
use kcore_trace_ebpf::bucket;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::ser::{self, SerializeStruct, Serializer};
use serde::{Deserialize, Serialize};

const LOWEST_NS: u64 = 1;
const HIGHEST_NS: u64 = 1 << bucket::MAX_BITS;
/// Gives 128 buckets to a power of two, four to each bucket of the kernel.
const SIGNIFICANT_DIGITS: u8 = 2;
/// The most samples of a histogram, so that no sum over its buckets overflows.
const MOST_SAMPLES: u64 = i64::MAX as u64;

/// The numbers of a distribution that no bucket rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exact {
    pub count: u64,
    pub sum_ns: u64,
    /// The shortest sample; without meaning while `count` is zero.
    pub min_ns: u64,
    /// The longest sample; without meaning while `count` is zero.
    pub max_ns: u64,
}

/// Durations in nanoseconds, with percentiles within one bucket of the kernel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    exact: Exact,
    histogram: Option<Histogram<u64>>,
}

/// The samples between two durations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bucket {
    /// The shortest duration that falls into it.
    pub lower_ns: u64,
    /// The longest duration that falls into it.
    pub upper_ns: u64,
    pub count: u64,
}

impl Distribution {
    /// The distribution of one histogram of the kernel, or of the difference of two.
    ///
    /// `buckets` are pairs of an index of [`bucket`] and a number of samples, which are taken to lie in the
    /// middle of the bucket. With a count of zero the distribution is empty.
    pub fn from_buckets(exact: Exact, buckets: impl IntoIterator<Item = (u32, u64)>) -> Self {
        if exact.count == 0 {
            return Self::default();
        }
        let mut histogram = None;
        for (index, count) in buckets {
            if count != 0 {
                let histogram = histogram.get_or_insert_with(empty_histogram);
                record(histogram, MIDDLES_NS[index as usize], count);
            }
        }
        Self { exact, histogram }
    }

    /// Adds samples that were measured later, or elsewhere.
    pub fn add(&mut self, other: &Self) {
        if other.is_empty() {
            return;
        }
        self.exact = if self.is_empty() {
            other.exact
        } else {
            self.exact.plus(other.exact)
        };
        if let Some(added) = &other.histogram {
            match &mut self.histogram {
                Some(histogram) => {
                    for (middle_ns, count) in samples(added) {
                        record(histogram, middle_ns, count);
                    }
                }
                none => *none = Some(added.clone()),
            }
        }
    }

    /// The samples that were added after `earlier`; nothing if that is no earlier state of this.
    ///
    /// The extremes stay those of all samples, so that they are bounds.
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        if earlier.is_empty() {
            return Some(self.clone());
        }
        let exact = Exact {
            count: self.exact.count.checked_sub(earlier.exact.count)?,
            sum_ns: self.exact.sum_ns.checked_sub(earlier.exact.sum_ns)?,
            ..self.exact
        };
        if exact.count == 0 {
            return Some(Self::default());
        }
        let mut histogram = self.histogram.clone();
        if let Some(before) = &earlier.histogram {
            histogram.as_mut()?.subtract(before).ok()?;
        }
        let histogram = histogram.filter(|histogram| !histogram.is_empty());
        Some(Self { exact, histogram })
    }

    /// Moves extremes that are those of earlier samples too to where these samples can have theirs: at
    /// most a bucket of the kernel away from the true ones, if every sample found a histogram.
    pub(crate) fn narrow_extremes(&mut self) {
        let Exact {
            count,
            sum_ns,
            min_ns,
            max_ns,
        } = &mut self.exact;
        if *count == 0 {
            return;
        }
        if let Some(histogram) = &self.histogram
            && histogram.len() == *count
        {
            let lowest = bucket::index(histogram.min());
            let highest = bucket::index(histogram.max());
            *min_ns = (*min_ns).max(bucket::lower(lowest));
            // The last bucket has no end.
            if (highest as usize) < bucket::COUNT - 1 {
                *max_ns = (*max_ns).min(bucket::upper(highest));
            }
        }
        *max_ns = (*max_ns).min(*sum_ns);
        if *count == 1 {
            *min_ns = *sum_ns;
            *max_ns = *sum_ns;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.exact.count == 0
    }

    /// How many samples there are, including those that found no histogram.
    pub fn count(&self) -> u64 {
        self.exact.count
    }

    /// The sum of all samples in nanoseconds.
    pub fn sum_ns(&self) -> u64 {
        self.exact.sum_ns
    }

    /// The shortest sample in nanoseconds.
    ///
    /// The kernel keeps extremes since measuring began, so that of a single interval this is a
    /// lower bound.
    pub fn min_ns(&self) -> Option<u64> {
        (!self.is_empty()).then_some(self.exact.min_ns)
    }

    /// The longest sample in nanoseconds; of a single interval, an upper bound.
    pub fn max_ns(&self) -> Option<u64> {
        (!self.is_empty()).then_some(self.exact.max_ns)
    }

    /// The mean in nanoseconds.
    pub fn mean_ns(&self) -> Option<f64> {
        (!self.is_empty()).then(|| self.exact.sum_ns as f64 / self.exact.count as f64)
    }

    /// The variance as a part of the square of the mean, from the buckets.
    pub fn relative_variance(&self) -> Option<f64> {
        let histogram = self.histogram.as_ref()?;
        let mean = histogram.mean();
        (mean > 0.0).then(|| (histogram.stdev() / mean).powi(2))
    }

    /// The duration in nanoseconds that `percentile` (0 to 100) of the samples do not exceed.
    ///
    /// It is at most one bucket of the kernel away from the true one, and never outside of the
    /// shortest and the longest sample. Nothing, where no sample found a histogram.
    pub fn percentile_ns(&self, percentile: f64) -> Option<u64> {
        let histogram = self.histogram.as_ref()?;
        let middle = histogram.median_equivalent(histogram.value_at_percentile(percentile));
        Some(middle.max(self.exact.min_ns).min(self.exact.max_ns))
    }

    /// The buckets that hold samples, from short to long.
    pub fn buckets(&self) -> impl Iterator<Item = Bucket> {
        self.histogram.iter().flat_map(|histogram| {
            histogram.iter_recorded().map(|step| Bucket {
                lower_ns: histogram.lowest_equivalent(step.value_iterated_to()),
                upper_ns: histogram.highest_equivalent(step.value_iterated_to()),
                count: step.count_at_value(),
            })
        })
    }

    /// The samples by powers of two, from the shortest to the longest, empty powers in between
    /// included.
    pub fn octaves(&self) -> Vec<Bucket> {
        let mut octaves: Vec<Bucket> = Vec::new();
        for bucket in self.buckets() {
            let first = octave(bucket.lower_ns);
            let next = octaves.last().map(|last| octave(last.upper_ns + 1));
            let missing = iter::successors(next, |last| Some(octave(last.upper_ns + 1)))
                .take_while(|octave| octave.lower_ns <= first.lower_ns);
            octaves.extend(missing);
            match octaves.last_mut() {
                Some(last) => last.count += bucket.count,
                None => octaves.push(Bucket {
                    count: bucket.count,
                    ..first
                }),
            }
        }
        octaves
    }
}

impl Exact {
    fn plus(self, other: Self) -> Self {
        Self {
            count: self.count.saturating_add(other.count),
            sum_ns: self.sum_ns.saturating_add(other.sum_ns),
            min_ns: self.min_ns.min(other.min_ns),
            max_ns: self.max_ns.max(other.max_ns),
        }
    }
}

fn empty_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(LOWEST_NS, HIGHEST_NS, SIGNIFICANT_DIGITS)
        .expect("the bounds are constants that a test constructs")
}

/// Adds samples, as many as there is room for.
fn record(histogram: &mut Histogram<u64>, value_ns: u64, count: u64) {
    let count = count.min(MOST_SAMPLES.saturating_sub(histogram.len()));
    if count != 0 {
        histogram.saturating_record_n(value_ns, count);
    }
}

/// The middle of each bucket of the kernel.
static MIDDLES_NS: [u64; bucket::COUNT] = {
    let mut middles = [0; bucket::COUNT];
    let mut index = 0;
    while index < bucket::COUNT {
        middles[index] = bucket::lower(index as u32).midpoint(bucket::upper(index as u32));
        index += 1;
    }
    middles
};

/// How many samples are in the middles of which buckets of the kernel, from short to long.
///
/// A quarter of what an iterator of the histogram goes through, and nothing below the shortest.
fn samples(histogram: &Histogram<u64>) -> impl Iterator<Item = (u64, u64)> {
    let extremes = [histogram.min(), histogram.max()];
    let [first, last] = extremes.map(|ns| bucket::index(ns) as usize);
    let middles = MIDDLES_NS[first..=last].iter();
    let samples = middles.map(|&middle_ns| (middle_ns, histogram.count_at(middle_ns)));
    samples.filter(|(_, count)| *count != 0)
}

/// The same with every sample in the middle of its bucket, as they are but in a file of somebody else.
fn in_middles(histogram: Histogram<u64>) -> Histogram<u64> {
    let found = samples(&histogram).map(|(_, count)| count).sum::<u64>();
    if found == histogram.len() {
        return histogram;
    }
    let mut moved = empty_histogram();
    for step in histogram.iter_recorded() {
        let index = bucket::index(step.value_iterated_to());
        record(
            &mut moved,
            MIDDLES_NS[index as usize],
            step.count_at_value(),
        );
    }
    moved
}

/// The empty octave that a duration falls into; below 2 ns there is only one.
fn octave(value_ns: u64) -> Bucket {
    let lower_ns = if value_ns < 2 {
        0
    } else {
        1 << value_ns.ilog2()
    };
    Bucket {
        lower_ns,
        upper_ns: (2 * lower_ns).max(2) - 1,
        count: 0,
    }
}

/// `{ count, sum_ns, min_ns, max_ns, histogram }`, the last as bytes of the HdrHistogram V2
/// encoding, empty where there is no histogram.
impl Serialize for Distribution {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Exact {
            count,
            sum_ns,
            min_ns,
            max_ns,
        } = self.exact;
        let mut wire = serializer.serialize_struct("Distribution", 5)?;
        wire.serialize_field("count", &count)?;
        wire.serialize_field("sum_ns", &sum_ns)?;
        wire.serialize_field("min_ns", &min_ns)?;
        wire.serialize_field("max_ns", &max_ns)?;
        let encoded = encode(self.histogram.as_ref()).map_err(ser::Error::custom)?;
        wire.serialize_field("histogram", &Bytes(encoded))?;
        wire.end()
    }
}

impl<'de> Deserialize<'de> for Distribution {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Wire {
            count,
            sum_ns,
            min_ns,
            max_ns,
            histogram,
        } = Wire::deserialize(deserializer)?;
        let histogram = decode(&histogram.0).map_err(de::Error::custom)?;
        Ok(Self {
            exact: Exact {
                count,
                sum_ns,
                min_ns,
                max_ns,
            },
            histogram,
        })
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Wire {
    count: u64,
    sum_ns: u64,
    min_ns: u64,
    max_ns: u64,
    histogram: Bytes,
}

fn encode(histogram: Option<&Histogram<u64>>) -> Result<Vec<u8>, String> {
    let mut encoded = Vec::new();
    if let Some(histogram) = histogram {
        V2Serializer::new()
            .serialize(histogram, &mut encoded)
            .map_err(|error| error.to_string())?;
    }
    Ok(encoded)
}

fn decode(mut encoded: &[u8]) -> Result<Option<Histogram<u64>>, String> {
    if encoded.is_empty() {
        return Ok(None);
    }
    check_shape(encoded)?;
    let histogram: Histogram<u64> = HdrDeserializer::new()
        .deserialize(&mut encoded)
        .map_err(|error| error.to_string())?;
    if histogram.len() > MOST_SAMPLES {
        return Err("a histogram has more samples than there can be".into());
    }
    let histogram = (!histogram.is_empty()).then_some(histogram);
    Ok(histogram.map(in_middles))
}

/// Refuses foreign bounds and lengths before memory is allocated for them.
fn check_shape(encoded: &[u8]) -> Result<(), String> {
    /// Cookie, length of the counts, offset, digits, lowest, highest, ratio.
    const HEAD: usize = 40;
    let length = encoded
        .get(4..8)
        .and_then(|length| Some(u32::from_be_bytes(length.try_into().ok()?)));
    if length.map(|length| HEAD + length as usize) != Some(encoded.len()) {
        return Err("a histogram is cut".into());
    }
    let bounds = [
        &0u32.to_be_bytes()[..],
        &u32::from(SIGNIFICANT_DIGITS).to_be_bytes(),
        &LOWEST_NS.to_be_bytes(),
        &HIGHEST_NS.to_be_bytes(),
    ];
    if encoded.get(8..32) != Some(&bounds.concat()) {
        return Err("a histogram has other bounds than those of this format".into());
    }
    Ok(())
}

/// A byte string, which serde would otherwise write as a list of numbers.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_byte_buf(BytesVisitor)
    }
}

struct BytesVisitor;

impl<'de> Visitor<'de> for BytesVisitor {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a byte string")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
        Ok(Bytes(bytes.to_vec()))
    }

    fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
        Ok(Bytes(bytes))
    }

    /// Formats without byte strings, JSON among them, give a list.
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Bytes, A::Error> {
        let mut bytes = Vec::new();
        while let Some(byte) = list.next_element()? {
            bytes.push(byte);
        }
        Ok(Bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn distribution(samples: &[u64]) -> Distribution {
        let buckets = samples.iter().map(|&sample| (bucket::index(sample), 1));
        Distribution::from_buckets(exact(samples), buckets)
    }

    fn exact(samples: &[u64]) -> Exact {
        Exact {
            count: samples.len() as u64,
            sum_ns: samples.iter().sum(),
            min_ns: samples.iter().copied().min().unwrap_or(0),
            max_ns: samples.iter().copied().max().unwrap_or(0),
        }
    }

    /// Durations of every size alike, from nothing to beyond the last bucket.
    fn durations() -> impl Strategy<Value = Vec<u64>> {
        vec(
            (0u32..38, any::<u64>()).prop_map(|(bits, seed)| seed & ((1 << bits) - 1)),
            1..300,
        )
    }

    #[test]
    fn an_empty_distribution_has_a_count_and_a_sum_and_nothing_else() {
        let empty = Distribution::default();
        assert_eq!((empty.count(), empty.sum_ns()), (0, 0));
        assert_eq!(
            (empty.min_ns(), empty.max_ns(), empty.mean_ns()),
            (None, None, None)
        );
        assert_eq!(empty.percentile_ns(50.0), None);
        assert_eq!(empty.buckets().count(), 0);
        assert!(empty.octaves().is_empty());
    }

    #[test]
    fn extremes_known_from_earlier_do_not_fill_an_empty_interval() {
        let exact = Exact {
            count: 0,
            sum_ns: 0,
            min_ns: 7,
            max_ns: 9,
        };
        assert_eq!(
            Distribution::from_buckets(exact, [(bucket::index(8), 1)]),
            Distribution::default()
        );
    }

    #[test]
    fn samples_that_found_no_histogram_are_counted_all_the_same() {
        let exact = Exact {
            count: 3,
            sum_ns: 1500,
            min_ns: 500,
            max_ns: 500,
        };
        let distribution = Distribution::from_buckets(exact, [(bucket::index(500), 1)]);
        assert_eq!(distribution.count(), 3);
        assert_eq!(distribution.mean_ns(), Some(500.0));
        assert_eq!(
            distribution
                .buckets()
                .map(|bucket| bucket.count)
                .sum::<u64>(),
            1
        );
    }

    #[test]
    fn a_percentile_never_leaves_the_range_of_the_samples() {
        let single = distribution(&[1_000_003]);
        for percentile in [0.0, 50.0, 99.9, 100.0] {
            assert_eq!(single.percentile_ns(percentile), Some(1_000_003));
        }
    }

    #[test]
    fn octaves_are_contiguous_and_keep_the_empty_ones_in_between() {
        let octaves = distribution(&[0, 1, 2, 3, 9]).octaves();
        let rows: Vec<_> = octaves
            .iter()
            .map(|o| (o.lower_ns, o.upper_ns, o.count))
            .collect();
        assert_eq!(rows, [(0, 1, 2), (2, 3, 2), (4, 7, 0), (8, 15, 1)]);
    }

    #[test]
    fn a_histogram_of_other_bounds_is_refused() {
        let mut encoded = encode(distribution(&[5]).histogram.as_ref()).unwrap();
        encoded[31] ^= 1;
        assert!(decode(&encoded).unwrap_err().contains("other bounds"));
    }

    #[test]
    fn a_histogram_of_more_samples_than_can_be_added_is_refused_and_none_becomes_one() {
        let mut histogram = empty_histogram();
        for ns in [1, 2, 3] {
            histogram.saturating_record_n(ns, MOST_SAMPLES);
        }
        let encoded = encode(Some(&histogram)).unwrap();
        assert!(decode(&encoded).unwrap_err().contains("more samples"));

        let buckets = (0..bucket::COUNT as u32).map(|index| (index, u64::MAX));
        let mut most = Distribution::from_buckets(exact(&[1]), buckets);
        most.add(&most.clone());
        assert_eq!(most.percentile_ns(50.0), Some(1));
        assert_eq!(most.octaves().len(), 1);
        let encoded = encode(most.histogram.as_ref()).unwrap();
        assert_eq!(decode(&encoded).unwrap(), most.histogram);
    }

    #[test]
    fn samples_elsewhere_in_a_bucket_are_moved_to_its_middle() {
        let mut foreign = empty_histogram();
        let [bucket, other] = [70_000, 9_000_000].map(bucket::index);
        for (ns, count) in [
            (bucket::lower(bucket), 2),
            (bucket::upper(bucket), 3),
            (MIDDLES_NS[other as usize], 4),
            (HIGHEST_NS, 5),
        ] {
            foreign.saturating_record_n(ns, count);
        }
        let decoded = decode(&encode(Some(&foreign)).unwrap()).unwrap().unwrap();
        let last = bucket::COUNT as u32 - 1;
        let expected = [(bucket, 5), (other, 4), (last, 5)];
        let expected = expected.map(|(index, count)| (MIDDLES_NS[index as usize], count));
        assert!(samples(&decoded).eq(expected));
        assert_eq!(decoded.len(), 14);
    }

    #[test]
    fn a_cut_histogram_is_refused() {
        let encoded = encode(distribution(&[5, 70_000]).histogram.as_ref()).unwrap();
        for end in 1..encoded.len() {
            decode(&encoded[..end]).unwrap_err();
        }
    }

    #[test]
    fn the_only_sample_is_both_extremes_whatever_was_before_it() {
        let exact = Exact {
            min_ns: 2,
            max_ns: 9_000,
            ..exact(&[700])
        };
        let mut without_histogram = Distribution::from_buckets(exact, []);
        let mut distribution = Distribution::from_buckets(exact, [(bucket::index(700), 1)]);
        for distribution in [&mut without_histogram, &mut distribution] {
            distribution.narrow_extremes();
            assert_eq!(distribution.min_ns(), Some(700));
            assert_eq!(distribution.max_ns(), Some(700));
        }
    }

    proptest! {
        #[test]
        fn narrowed_extremes_are_bounds_and_within_a_bucket_of_the_true_ones(
            early in durations(), late in durations()
        ) {
            let mut all = distribution(&early);
            all.add(&distribution(&late));
            let mut rest = all.since(&distribution(&early)).unwrap();
            rest.narrow_extremes();
            let (shortest, longest) = (*late.iter().min().unwrap(), *late.iter().max().unwrap());
            let (min_ns, max_ns) = (rest.min_ns().unwrap(), rest.max_ns().unwrap());
            prop_assert!(min_ns <= shortest && longest <= max_ns);
            prop_assert_eq!(bucket::index(min_ns), bucket::index(shortest));
            prop_assert_eq!(bucket::index(max_ns), bucket::index(longest));
        }

        #[test]
        fn count_sum_minimum_and_maximum_are_exact(samples in durations()) {
            let distribution = distribution(&samples);
            prop_assert_eq!(distribution.count(), samples.len() as u64);
            prop_assert_eq!(distribution.sum_ns(), samples.iter().sum::<u64>());
            prop_assert_eq!(distribution.min_ns(), samples.iter().copied().min());
            prop_assert_eq!(distribution.max_ns(), samples.iter().copied().max());
        }

        #[test]
        fn what_was_added_since_is_found_again(early in durations(), late in durations()) {
            let before = distribution(&early);
            let mut after = before.clone();
            after.add(&distribution(&late));
            let since = after.since(&before).unwrap();
            prop_assert_eq!(since.count(), late.len() as u64);
            prop_assert_eq!(since.sum_ns(), late.iter().sum::<u64>());
            prop_assert!(since.buckets().eq(distribution(&late).buckets()));
            prop_assert_eq!(before.since(&after), None);
            prop_assert_eq!(before.since(&before), Some(Distribution::default()));
        }

        #[test]
        fn a_percentile_lies_in_the_kernel_bucket_of_the_true_one(
            mut samples in durations(),
            percentile in 0.0f64..=100.0,
        ) {
            let found = distribution(&samples).percentile_ns(percentile).unwrap();
            samples.sort_unstable();
            let rank = (percentile / 100.0 * samples.len() as f64).ceil() as usize;
            let truth = samples[rank.max(1) - 1];
            prop_assert_eq!(bucket::index(found), bucket::index(truth));
        }

        #[test]
        fn adding_two_is_the_same_as_recording_all(a in durations(), b in durations()) {
            let mut sum = distribution(&a);
            sum.add(&distribution(&b));
            prop_assert_eq!(sum, distribution(&[a, b].concat()));
        }

        #[test]
        fn adding_nothing_changes_nothing(samples in durations()) {
            let mut sum = distribution(&samples);
            sum.add(&Distribution::default());
            prop_assert_eq!(&sum, &distribution(&samples));
            let mut sum = Distribution::default();
            sum.add(&distribution(&samples));
            prop_assert_eq!(sum, distribution(&samples));
        }

        #[test]
        fn octaves_hold_every_sample(samples in durations()) {
            let octaves = distribution(&samples).octaves();
            let held: u64 = octaves.iter().map(|octave| octave.count).sum();
            prop_assert_eq!(held, samples.len() as u64);
            for pair in octaves.windows(2) {
                prop_assert_eq!(pair[0].upper_ns + 1, pair[1].lower_ns);
            }
        }

        #[test]
        fn a_distribution_survives_a_file(samples in vec(0u64..1 << 38, 0..100)) {
            let before = distribution(&samples);
            let packed = rmp_serde::to_vec_named(&before).unwrap();
            prop_assert_eq!(&rmp_serde::from_slice::<Distribution>(&packed).unwrap(), &before);
            let json = serde_json::to_string(&before).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Distribution>(&json).unwrap(), &before);
        }
    }
}
