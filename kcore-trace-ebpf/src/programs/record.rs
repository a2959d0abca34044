//! Writing the counters: durations into sums and histograms, misses into their count.
//!
//! Counts, sums and buckets are added atomically although the maps are per CPU: some hooks run
//! preemptible, and an interrupt may count the same thing between a load and a store. Minimum and
//! maximum are not: a lost race there needs two extremes within the same few nanoseconds.

use core::hint::black_box;
use core::intrinsics::{AtomicOrdering, atomic_xadd};

use kcore_trace_ebpf::bucket;
use kcore_trace_ebpf::layout::{CellCounters, Durations, OpCounters};

use super::maps::{CELLS, HIST_OF, HISTS, MISSES, OPS};

/// The counters of a cell on this CPU.
#[inline(always)]
pub(crate) fn cell(index: u32) -> Option<*mut CellCounters> {
    CELLS.get_ptr_mut(index)
}

/// The counters of an op on this CPU.
#[inline(always)]
pub(crate) fn op(index: u32) -> Option<*mut OpCounters> {
    OPS.get_ptr_mut(index)
}

/// Adds to a counter.
///
/// # Safety
/// `counter` points to a counter in a map value.
#[inline(always)]
pub(crate) unsafe fn add(counter: *mut u64, value: u64) {
    // SAFETY: the caller says that the pointer is valid; map values are aligned to eight bytes.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, value) };
}

/// Adds a duration to sum, minimum, maximum and the histogram of its series.
///
/// # Safety
/// `durations` points into a map value.
#[inline(always)]
pub(crate) unsafe fn duration(durations: *mut Durations, series: usize, ns: u64) {
    // SAFETY: the caller says that the pointer is valid.
    unsafe {
        add(&raw mut (*durations).sum_ns, ns);
        if (*durations).inverted_min_ns < !ns {
            (*durations).inverted_min_ns = !ns;
        }
        if (*durations).max_ns < ns {
            (*durations).max_ns = ns;
        }
    }
    histogram(series, ns);
}

#[inline(always)]
fn histogram(series: usize, ns: u64) {
    let Some(&number) = HIST_OF.get(series as u32) else {
        return;
    };
    if number == 0 {
        return miss(kcore_trace_ebpf::layout::miss::NO_HISTOGRAM);
    }
    let Some(histogram) = HISTS.get_ptr_mut(number - 1) else {
        return;
    };
    // Hidden from the compiler, which would remove the check that the verifier needs.
    let bucket = black_box(bucket::index(ns));
    if bucket < bucket::COUNT as u32 {
        // SAFETY: the bucket is inside the histogram.
        unsafe {
            let counter = histogram.cast::<u32>().add(bucket as usize);
            atomic_xadd::<u32, u32, { AtomicOrdering::Relaxed }>(counter, 1);
        }
    }
}

/// Counts something that could not be counted as it should.
#[inline(always)]
pub(crate) fn miss(reason: u32) {
    if let Some(counter) = MISSES.get_ptr_mut(reason) {
        // SAFETY: the counter is a map value.
        unsafe { add(counter, 1) };
    }
}
