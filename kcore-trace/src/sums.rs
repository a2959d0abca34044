//! Counters over all CPUs, several of them at a time.
//!
//! In: where each CPU has its counters, in memory that the kernel goes on writing. Out: the sum of each, and
//! where it is asked for the largest. With hundreds of CPUs this is what a snapshot does most, so that it
//! takes 32 bytes at a time where the processor has AVX2, and elsewhere one counter, since hardly a machine with
//! so many CPUs has not.
//!
//! Invariant: a counter is read whole, since processors read eight bytes at once that are aligned; and 32 bytes
//! at a time come to what one by one would.

use std::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_add_epi64, _mm256_blendv_epi8, _mm256_cmpgt_epi64,
    _mm256_set1_epi64x, _mm256_setzero_si256, _mm256_xor_si256,
};
use std::mem::{transmute_copy, zeroed};
use std::ptr::read_volatile;

use crate::mapped::Plain;

/// What is counted: integers that a vector has some of.
pub(crate) trait Counter: Copy {
    fn wrapping_plus(self, other: Self) -> Self;
}

impl Counter for u32 {
    fn wrapping_plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
}

impl Counter for u64 {
    fn wrapping_plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
}

/// The sum of each counter, wrapping.
///
/// # Safety
///
/// Each points to counters of that type only, aligned to 32 bytes.
pub(crate) unsafe fn of<C: Counter, T: Plain, const VECTORS: usize>(
    cpus: impl Iterator<Item = *mut T>,
) -> T {
    // SAFETY: the caller's word, and the processor's.
    unsafe {
        match is_x86_feature_detected!("avx2") {
            true => counters(vectors::<C, _, VECTORS>(cpus)),
            false => one_by_one(cpus, C::wrapping_plus),
        }
    }
}

/// The sum of each counter of 64 bits, wrapping, and the largest.
///
/// # Safety
///
/// As of [`of`].
pub(crate) unsafe fn with_maxima<T: Plain, const VECTORS: usize>(
    cpus: impl Iterator<Item = *mut T> + Clone,
) -> (T, T) {
    // SAFETY: the caller's word, and the processor's.
    unsafe {
        if is_x86_feature_detected!("avx2") {
            let (sums, maxima) = vectors_with_maxima::<_, VECTORS>(cpus);
            (counters(sums), counters(maxima))
        } else {
            let sums = one_by_one(cpus.clone(), u64::wrapping_add);
            (sums, one_by_one(cpus, u64::max))
        }
    }
}

/// # Safety
///
/// Each points to values of that type only.
unsafe fn one_by_one<T: Plain, C: Copy>(
    cpus: impl Iterator<Item = *mut T>,
    with: impl Fn(C, C) -> C,
) -> T {
    // SAFETY: integers only; a counter is inside what the caller points to.
    unsafe {
        let mut all: T = zeroed();
        let counters = (&raw mut all).cast::<C>();
        for cpu in cpus {
            for index in 0..size_of::<T>() / size_of::<C>() {
                let counter = counters.add(index);
                *counter = with(*counter, read_volatile(cpu.cast::<C>().add(index)));
            }
        }
        all
    }
}

#[target_feature(enable = "avx2")]
unsafe fn vectors<C, T, const VECTORS: usize>(
    cpus: impl Iterator<Item = *mut T>,
) -> [__m256i; VECTORS] {
    let mut sums = [_mm256_setzero_si256(); VECTORS];
    for cpu in cpus {
        for (index, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's word; [`counters`] asks whether that many are inside.
            let more = unsafe { read_volatile(cpu.cast::<__m256i>().add(index)) };
            *sum = match size_of::<C>() {
                4 => _mm256_add_epi32(*sum, more),
                _ => _mm256_add_epi64(*sum, more),
            };
        }
    }
    sums
}

#[target_feature(enable = "avx2")]
unsafe fn vectors_with_maxima<T, const VECTORS: usize>(
    cpus: impl Iterator<Item = *mut T>,
) -> ([__m256i; VECTORS], [__m256i; VECTORS]) {
    // A processor with AVX2 compares signed numbers only: those are in the order of unsigned ones whose
    // highest bit is the other.
    let sign = _mm256_set1_epi64x(i64::MIN);
    let mut sums = [_mm256_setzero_si256(); VECTORS];
    let mut maxima = [sign; VECTORS];
    for cpu in cpus {
        for (index, (sum, max)) in sums.iter_mut().zip(&mut maxima).enumerate() {
            // SAFETY: as above.
            let more = unsafe { read_volatile(cpu.cast::<__m256i>().add(index)) };
            *sum = _mm256_add_epi64(*sum, more);
            let signed = _mm256_xor_si256(more, sign);
            *max = _mm256_blendv_epi8(*max, signed, _mm256_cmpgt_epi64(signed, *max));
        }
    }
    (sums, maxima.map(|max| _mm256_xor_si256(max, sign)))
}

/// Counters that stand side by side in vectors.
fn counters<T: Plain, const VECTORS: usize>(vectors: [__m256i; VECTORS]) -> T {
    const { assert!(size_of::<T>() == VECTORS * size_of::<__m256i>()) };
    // SAFETY: integers only, of the same size.
    unsafe { transmute_copy(&vectors) }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    #[repr(C, align(32))]
    struct Aligned<C: Copy, const N: usize>([C; N]);

    // SAFETY: integers only, without padding.
    unsafe impl Plain for Aligned<u32, 16> {}
    // SAFETY: integers only, without padding.
    unsafe impl Plain for Aligned<u64, 8> {}

    fn pointers<T>(cpus: &mut [T]) -> impl Iterator<Item = *mut T> + Clone {
        let first = cpus.as_mut_ptr();
        (0..cpus.len()).map(move |index| first.wrapping_add(index))
    }

    fn fold<C: Copy + Default, const N: usize>(
        cpus: &[Aligned<C, N>],
        with: impl Fn(C, C) -> C,
    ) -> [C; N] {
        std::array::from_fn(|index| {
            cpus.iter()
                .fold(C::default(), |all, cpu| with(all, cpu.0[index]))
        })
    }

    proptest! {
        #[test]
        fn sums_of_32_bits_are_those_of_each_counter(
            mut cpus in vec(prop::array::uniform16(any::<u32>()).prop_map(Aligned), 0..5),
        ) {
            let expected = fold(&cpus, u32::wrapping_add);
            // SAFETY: aligned counters.
            let sums = unsafe { of::<u32, _, 2>(pointers(&mut cpus)) };
            prop_assert_eq!(sums.0, expected);
            // SAFETY: the same.
            let sums = unsafe { one_by_one(pointers(&mut cpus), u32::wrapping_add) };
            prop_assert_eq!(sums.0, expected);
        }

        #[test]
        fn sums_and_maxima_of_64_bits_are_those_of_each_counter(
            mut cpus in vec(prop::array::uniform8(any::<u64>()).prop_map(Aligned), 0..5),
        ) {
            let expected = [fold(&cpus, u64::wrapping_add), fold(&cpus, u64::max)];
            // SAFETY: aligned counters.
            unsafe {
                let sums = of::<u64, _, 2>(pointers(&mut cpus));
                prop_assert_eq!(sums.0, expected[0]);
                let (sums, maxima) = with_maxima::<_, 2>(pointers(&mut cpus));
                prop_assert_eq!([sums.0, maxima.0], expected);
                let sums = one_by_one(pointers(&mut cpus), u64::wrapping_add);
                let maxima = one_by_one(pointers(&mut cpus), u64::max);
                prop_assert_eq!([sums.0, maxima.0], expected);
            }
        }
    }
}
