//! Writing the counters: durations into sums and histograms, misses into their count.
//!
//! Counts, sums and buckets are added atomically although each CPU has its own: some hooks run
//! preemptible, and an interrupt may count the same thing between a load and a store. Minimum and
//! maximum are not: a lost race there needs two extremes within the same few nanoseconds.

use core::intrinsics::{AtomicOrdering, atomic_xadd};
use core::ptr::read_volatile;

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use kcore_trace_ebpf::bucket;
use kcore_trace_ebpf::layout::{CellCounters, CpuCounters, Durations, OpCounters, miss, series};
use kcore_trace_ebpf::words::{Lock, Op, cell};

use super::constants::cpus;
use super::hidden;
use super::maps::{COUNTERS, HIST_OF, HISTS};

/// No role: of a lock that is not known.
pub(crate) const NO_ROLE: u32 = u32::MAX;

/// This CPU, and what it counts.
#[derive(Clone, Copy)]
pub(crate) struct Cpu {
    id: u32,
    counters: *mut CpuCounters,
}

/// The CPU that we are on.
#[inline(always)]
pub(crate) fn cpu() -> Option<Cpu> {
    let id = cpu_id();
    let counters = COUNTERS.get_ptr_mut(id)?;
    Some(Cpu { id, counters })
}

/// Its number alone.
#[inline(always)]
pub(crate) fn cpu_id() -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_smp_processor_id() }
}

impl Cpu {
    #[inline(always)]
    pub(crate) fn id(self) -> u32 {
        self.id
    }

    /// The same value, of which the verifier knows nothing any more.
    ///
    /// It follows the paths to here one by one, and what comes after once for all whose values look
    /// the same to it.
    #[inline(always)]
    pub(crate) fn forget(self, value: u32) -> u32 {
        // SAFETY: a map value.
        value.wrapping_add(unsafe { read_volatile(&raw const (*self.counters).zero) } as u32)
    }

    /// The number of a role, or [`NO_ROLE`], as [`Cpu::forget`] leaves it.
    #[inline(always)]
    pub(crate) fn role(self, lock: Option<Lock>) -> u32 {
        self.forget(lock.map_or(NO_ROLE, |lock| lock as u32))
    }

    /// The counters of a cell.
    #[inline(always)]
    pub(crate) fn cell(self, index: u32) -> Option<*mut CellCounters> {
        // Hidden from the compiler, which would remove the check that the verifier needs.
        let index = hidden(index.into());
        if index >= cell::COUNT as u64 {
            return None;
        }
        // SAFETY: a map value; the index is inside the array.
        unsafe {
            let first = (&raw mut (*self.counters).cells).cast::<CellCounters>();
            Some(first.add(index as usize))
        }
    }

    /// The counters of an op.
    #[inline(always)]
    pub(crate) fn op(self, index: u32) -> Option<*mut OpCounters> {
        let index = hidden(index.into());
        if index >= Op::COUNT as u64 {
            return None;
        }
        // SAFETY: as above.
        unsafe {
            let first = (&raw mut (*self.counters).ops).cast::<OpCounters>();
            Some(first.add(index as usize))
        }
    }

    /// Adds a duration to sum, minimum, maximum and the histogram of its series.
    ///
    /// # Safety
    /// `durations` points into a map value.
    #[inline(always)]
    pub(crate) unsafe fn duration(self, durations: *mut Durations, series: u32, ns: u64) {
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
        self.histogram(series, ns);
    }

    #[inline(always)]
    fn histogram(self, series: u32, ns: u64) {
        let series = hidden(series.into());
        if series >= series::COUNT as u64 {
            return;
        }
        // SAFETY: the series is inside the array.
        let number = unsafe { read_volatile(HIST_OF.get().cast::<u32>().add(series as usize)) };
        if number == 0 {
            return miss(miss::NO_HISTOGRAM);
        }
        let Some(histogram) = HISTS.get_ptr_mut((number - 1) * cpus() + self.id) else {
            return;
        };
        let bucket = hidden(self.forget(bucket::index_by(ns, exponent)).into());
        if bucket < bucket::COUNT as u64 {
            // SAFETY: the bucket is inside the histogram.
            unsafe {
                let counter = histogram.cast::<u32>().add(bucket as usize);
                add_half(counter, 1);
            }
        }
    }
}

#[unsafe(no_mangle)]
static EXPONENTS: [u8; 256] = bucket::EXPONENTS;

#[inline(always)]
fn exponent(byte: u64) -> u64 {
    // SAFETY: the index is inside the table; hidden from the compiler, or it removes the mask that
    // tells the verifier so.
    unsafe { read_volatile(EXPONENTS.as_ptr().add((hidden(byte) & 0xff) as usize)).into() }
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

/// Adds to a word of four bytes.
///
/// # Safety
/// `word` is one in a map value, aligned to its size.
#[inline(always)]
pub(crate) unsafe fn add_half(word: *mut u32, value: u32) {
    // SAFETY: the caller says that the pointer is valid.
    unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::Relaxed }>(word, value) };
}

/// Counts something that could not be counted as it should.
#[inline(always)]
pub(crate) fn miss(reason: u32) {
    if let Some(cpu) = cpu() {
        // SAFETY: a map value; all reasons are constants inside the array.
        unsafe {
            let first = (&raw mut (*cpu.counters).misses).cast::<u64>();
            add(first.add(reason as usize), 1);
        }
    }
}
