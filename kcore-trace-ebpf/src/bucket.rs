//! Histogram buckets: log-linear, 32 to a power of two, for durations in nanoseconds.
//!
//! A bucket is at most 1/32 (3.125 %) of its lower bound wide; values below 32 have a bucket each.
//! The last bucket takes everything from 2^36 − 2^31 ns (66.6 s) up.
//!
//! Invariant: [`index`] is monotone, total, and below [`COUNT`]; [`lower`] is its smallest
//! preimage.

/// log2 of the buckets in one power of two.
pub const SUB_BITS: u32 = 5;
/// Buckets in one power of two.
pub const SUB: u32 = 1 << SUB_BITS;
/// Values at or above two to this power share the last bucket.
pub const MAX_BITS: u32 = 36;
/// Octaves: the buckets below [`SUB`], then those of each power of two.
pub const OCTAVES: usize = (MAX_BITS - SUB_BITS + 1) as usize;
/// Number of buckets.
pub const COUNT: usize = OCTAVES * SUB as usize;

/// The bucket of a duration in nanoseconds.
#[inline(always)]
pub fn index(value_ns: u64) -> u32 {
    let entry = |index: u64| SHORT[(index & (SHORT_NS - 1)) as usize].into();
    index_by(value_ns, entry, |byte| exponent(byte, entry)) as u32
}

/// The same, with copies of [`SHORT`] and of [`exponent`].
///
/// The verifier cannot follow the bound of a `leading_zeros`, whose check LLVM removes, and halving
/// takes three times as many instructions as a table.
#[inline(always)]
pub fn index_by(
    value_ns: u64,
    short: impl Fn(u64) -> u64,
    exponent_of: impl Fn(u64) -> u64,
) -> u64 {
    if value_ns < SHORT_NS {
        return short(value_ns);
    }
    // Else by the byte with the highest bit: a shift by a constant each, since one by a register is six
    // instructions of x86-64.
    let (bits, byte) = if value_ns >> (SHORT_BITS + 8) == 0 {
        (SHORT_BITS, value_ns >> SHORT_BITS)
    } else if value_ns >> (SHORT_BITS + 16) == 0 {
        (SHORT_BITS + 8, value_ns >> (SHORT_BITS + 8))
    } else if value_ns >> MAX_BITS == 0 {
        (SHORT_BITS + 16, value_ns >> (SHORT_BITS + 16))
    } else {
        return COUNT as u64 - 1;
    };
    let shift = u64::from(bits - SUB_BITS) + exponent_of(byte);
    // The top SUB_BITS + 1 bits of the value, of which the first is set.
    shift * SUB as u64 + (value_ns >> shift)
}

/// log2 of [`SHORT_NS`].
const SHORT_BITS: u32 = 12;
const _: () = assert!(SHORT_BITS + 24 == MAX_BITS);
/// Durations below it have their bucket in a table: nearly all of a spinlock.
pub const SHORT_NS: u64 = 1 << SHORT_BITS;

/// The bucket of each short duration.
pub const SHORT: [u8; SHORT_NS as usize] = {
    let mut buckets = [0; SHORT_NS as usize];
    let mut ns = 0;
    while ns < buckets.len() {
        let shift = match ns.checked_ilog2() {
            Some(exponent) if exponent > SUB_BITS => exponent - SUB_BITS,
            _ => 0,
        };
        buckets[ns] = (shift * SUB) as u8 + (ns >> shift) as u8;
        ns += 1;
    }
    buckets
};

/// The exponent of the highest power of two in a byte; of none, 0. It is the number of the octave
/// in which sixteen times the byte is.
#[inline(always)]
pub fn exponent(byte: u64, entry: impl Fn(u64) -> u64) -> u64 {
    entry(byte << (SUB_BITS - 1)) >> SUB_BITS
}

/// The smallest duration in nanoseconds that falls into a bucket.
pub const fn lower(index: u32) -> u64 {
    if index < 2 * SUB {
        return index as u64;
    }
    let shift = index / SUB - 1;
    ((index % SUB + SUB) as u64) << shift
}

/// The largest duration in nanoseconds of a bucket; of the last one, the largest it resolves.
pub const fn upper(index: u32) -> u64 {
    if index + 1 >= COUNT as u32 {
        (1 << MAX_BITS) - 1
    } else {
        lower(index + 1) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::Histogram;
    use proptest::prelude::*;

    #[test]
    fn every_boundary_falls_into_its_own_bucket() {
        for bucket in 0..COUNT as u32 {
            assert_eq!(index(lower(bucket)), bucket);
            assert_eq!(index(upper(bucket)), bucket);
        }
    }

    #[test]
    fn buckets_are_contiguous_from_zero() {
        assert_eq!(lower(0), 0);
        for bucket in 1..COUNT as u32 {
            assert_eq!(lower(bucket), upper(bucket - 1) + 1);
        }
    }

    #[test]
    fn a_bucket_is_at_most_a_thirty_second_of_its_lower_bound_wide() {
        for bucket in SUB..COUNT as u32 {
            let width = upper(bucket) - lower(bucket) + 1;
            assert!(width * 32 <= lower(bucket), "bucket {bucket}");
        }
    }

    #[test]
    fn everything_above_the_range_falls_into_the_last_bucket() {
        for value in [1 << MAX_BITS, u64::MAX >> 1, u64::MAX] {
            assert_eq!(index(value), COUNT as u32 - 1);
        }
        assert!(
            upper(COUNT as u32 - 1) > 68_000_000_000,
            "68 s are resolved"
        );
    }

    /// `hdrhistogram` with two significant digits is finer than our buckets, so its
    /// equivalent range lies inside one of ours.
    #[test]
    fn hdrhistogram_agrees_on_every_side_of_every_boundary() {
        let oracle = Histogram::<u64>::new_with_bounds(1, 1 << MAX_BITS, 2).unwrap();
        for bucket in 1..COUNT as u32 {
            for value in [lower(bucket), upper(bucket)] {
                assert_eq!(index(oracle.lowest_equivalent(value)), bucket, "{value}");
                assert_eq!(index(oracle.highest_equivalent(value)), bucket, "{value}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_duration_lies_in_its_bucket(value in 0u64..1 << MAX_BITS) {
            let bucket = index(value);
            prop_assert!((lower(bucket)..=upper(bucket)).contains(&value));
        }

        #[test]
        fn the_index_never_falls_as_the_duration_grows(a: u64, b: u64) {
            prop_assert_eq!(a <= b || index(a) >= index(b), true);
        }
    }
}
