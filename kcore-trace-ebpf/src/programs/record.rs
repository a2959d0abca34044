//! Writing the counters: durations into sums and histograms, misses into their count.
//!
//! Counts, sums and buckets are added atomically although each CPU has its own: some hooks run
//! preemptible, and an interrupt may count the same thing between a load and a store. Minimum and
//! maximum are not: a lost race there needs two extremes within the same few nanoseconds.

use core::intrinsics::{AtomicOrdering, atomic_xadd};
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use kcore_trace_ebpf::bucket;
use kcore_trace_ebpf::layout::{CellCounters, Durations, OpCounters, RareCounters, miss, series};
use kcore_trace_ebpf::words::{Lock, Op};

use super::constants::times_cpus;
use super::maps::{ACTIVE, CELLS, COUNTERS, HIST_OF, HISTS, RARE};
use super::{by_constant, calculated, hidden};

/// This CPU, which finds what it counts.
#[derive(Clone, Copy)]
pub(crate) struct Cpu {
    id: u32,
}

/// The CPU that we are on.
#[inline(always)]
pub(crate) fn cpu() -> Cpu {
    Cpu { id: cpu_id() }
}

/// A CPU that we were on.
#[inline(always)]
pub(crate) fn cpu_numbered(id: u32) -> Cpu {
    Cpu { id }
}

/// Its number alone.
#[inline(always)]
pub(crate) fn cpu_id() -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_smp_processor_id() }
}

/// The same value, of which the verifier knows nothing any more.
///
/// It follows the paths to here one by one, and what comes after once for all whose values look the same
/// to it. By no sum: of one with a constant it remembers what it was added to (6.10 and later).
#[inline(always)]
pub(crate) fn forget(value: u64) -> u64 {
    calculated(value ^ unknown_zero())
}

/// The same of half a word.
#[inline(always)]
pub(crate) fn forget_half(value: u32) -> u32 {
    forget(value.into()) as u32
}

/// The same cell, of which the verifier knows how many there are and no more.
#[inline(always)]
pub(crate) fn masked(cell: u32) -> u32 {
    by_constant!(cell, "&=", series::CELLS - 1)
}

/// Zero, of which the verifier knows nothing.
#[inline(always)]
fn unknown_zero() -> u64 {
    // SAFETY: the last two of a static, at a multiple of eight bytes: of a word of four it would know
    // how large it can be.
    unsafe {
        let last = HIST_OF.get().cast::<u32>().add(series::ALWAYS_ZERO);
        read_volatile(last.cast::<u64>())
    }
}

/// The number of a role, as [`forget`] leaves it.
#[inline(always)]
pub(crate) fn role(lock: Lock) -> u32 {
    forget_half(lock as u32)
}

impl Cpu {
    #[inline(always)]
    pub(crate) fn id(self) -> u32 {
        self.id
    }

    /// The counters of a cell.
    #[inline(always)]
    pub(crate) fn cell(self, index: u32) -> Option<*mut CellCounters> {
        counters(self.of_cell(index))
    }

    /// What is seldom written of them.
    #[inline(always)]
    pub(crate) fn rare(self, index: u32) -> Option<*mut RareCounters> {
        RARE.get_ptr_mut(self.of_cell(index))
    }

    /// Where the counters of a cell are.
    #[inline(always)]
    pub(crate) fn of_cell(self, index: u32) -> u32 {
        times_cpus(index).wrapping_add(self.id)
    }

    /// The counters of an op.
    #[inline(always)]
    pub(crate) fn op(self, index: u32) -> Option<*mut OpCounters> {
        // Hidden from the compiler, which would remove the check that the verifier needs.
        let index = hidden(index.into());
        if index >= Op::COUNT as u64 {
            return None;
        }
        let counters = COUNTERS.get_ptr_mut(self.id)?;
        // SAFETY: a map value; the index is inside the array.
        unsafe {
            let first = (&raw mut (*counters).ops).cast::<OpCounters>();
            Some(first.add(index as usize))
        }
    }

    /// Adds a duration to sum, minimum, maximum and the histogram of its series, and calls back if it is
    /// the longest so far, as the first one is: a branch of its own would be one more way for the
    /// verifier to follow.
    ///
    /// # Safety
    /// `durations` points into a map value.
    #[inline(always)]
    pub(crate) unsafe fn duration(
        self,
        durations: *mut Durations,
        series: Series,
        ns: u64,
        longest: impl FnOnce(),
    ) {
        // SAFETY: the caller says that the pointer is valid.
        unsafe {
            add(&raw mut (*durations).sum_ns, ns);
            if (*durations).inverted_min_ns < !ns {
                (*durations).inverted_min_ns = !ns;
            }
            if (*durations).max_ns < ns {
                (*durations).max_ns = ns;
                longest();
            }
        }
        self.histogram(series, ns);
    }

    /// Adds a duration to the histogram of its series.
    #[inline(always)]
    fn histogram(self, series: Series, ns: u64) {
        // SAFETY: a word of a static.
        let first = unsafe { read_volatile(series.0) };
        let bucket = bucket::index_by(ns, short, exponent);
        let octave = u64::from(first) + bucket / u64::from(bucket::SUB);
        // Where there is no histogram there is no such octave.
        let number = times_cpus(octave as u32).wrapping_add(self.id);
        let Some(octave) = HISTS.get_ptr_mut(number) else {
            return miss(miss::NO_HISTOGRAM);
        };
        let bucket = hidden(bucket) % u64::from(bucket::SUB);
        // SAFETY: the bucket is inside the octave.
        unsafe {
            let counter = octave.cast::<u32>().add(bucket as usize);
            add_half(counter, 1);
        }
    }
}

/// A series, by where its histogram is written.
#[derive(Clone, Copy)]
pub(crate) struct Series(*const u32);

impl Series {
    #[inline(always)]
    pub(crate) fn wait(cell: u32) -> Self {
        Self::numbered(series::wait(0), cell, series::CELLS)
    }

    #[inline(always)]
    pub(crate) fn hold(cell: u32) -> Self {
        Self::numbered(series::hold(0), cell, series::CELLS)
    }

    #[inline(always)]
    pub(crate) fn op(op: u32) -> Self {
        Self::numbered(series::op(0), op, series::OPS)
    }

    #[inline(always)]
    fn numbered(first: usize, number: u32, room: usize) -> Self {
        // Hidden from the compiler, or it removes the mask that tells the verifier.
        let number = hidden(number.into()) as usize & (room - 1);
        // SAFETY: inside the static.
        Self(unsafe { HIST_OF.get().cast::<u32>().add(first + number) })
    }
}

/// Counters of a cell on a CPU, as [`Cpu::of_cell`] tells where they are.
#[inline(always)]
pub(crate) fn counters(of_cell: u32) -> Option<*mut CellCounters> {
    CELLS.get_ptr_mut(of_cell)
}

/// A wait ended with the lock.
#[inline(always)]
pub(crate) fn waited(cell: u32, ns: u64) {
    let cpu = cpu();
    let (Some(counters), Some(rare)) = (cpu.cell(cell), cpu.rare(cell)) else {
        return;
    };
    // SAFETY: map values.
    unsafe {
        add(&raw mut (*counters).contended, 1);
        add(&raw mut (*counters).wait_sum_ns, ns);
        if (*counters).wait_max_ns < ns {
            (*counters).wait_max_ns = ns;
            occurs(cell);
        }
        if (*rare).inverted_wait_min_ns < !ns {
            (*rare).inverted_wait_min_ns = !ns;
        }
    }
    cpu.histogram(Series::wait(cell), ns);
}

/// Something is counted in a cell, perhaps for the first time: userspace is to look at it.
#[inline(always)]
pub(crate) fn occurs(cell: u32) {
    let number = masked(cell) as usize;
    // SAFETY: the cell is inside the static.
    unsafe { write_volatile(ACTIVE.get().cast::<u32>().add(number), 1) };
}

static SHORT: [u8; bucket::SHORT.len()] = bucket::SHORT;

/// The bucket of a duration that is short.
#[inline(always)]
fn short(ns: u64) -> u64 {
    // SAFETY: inside the table.
    unsafe { read_volatile(SHORT.as_ptr().add(ns as usize)).into() }
}

#[inline(always)]
fn exponent(byte: u64) -> u64 {
    // Hidden from the compiler, or it removes the mask that tells the verifier that it is a byte.
    bucket::exponent(hidden(byte) & 0xff, short)
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
    if let Some(counters) = COUNTERS.get_ptr_mut(cpu_id()) {
        // SAFETY: a map value; all reasons are constants inside the array.
        unsafe {
            let first = (&raw mut (*counters).misses).cast::<u64>();
            add(first.add(reason as usize), 1);
        }
    }
}
