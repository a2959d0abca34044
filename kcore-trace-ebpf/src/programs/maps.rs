//! Every map. Arrays only, created whole before anything is attached.
//!
//! Counters are per CPU and cumulative; userspace subtracts snapshots and never resets.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray};
use kcore_trace_ebpf::layout::{
    CellCounters, HISTOGRAMS, Histogram, OpCounters, SITE_CACHE, SITES, SLOTS, SiteRange, Slot,
    miss, series,
};
use kcore_trace_ebpf::words::{Op, cell};

/// One per lock, mode, intent and op: 37 KiB per CPU.
#[map]
pub(crate) static CELLS: PerCpuArray<CellCounters> =
    PerCpuArray::with_max_entries(cell::COUNT as u32, 0);

/// One per op.
#[map]
pub(crate) static OPS: PerCpuArray<OpCounters> = PerCpuArray::with_max_entries(Op::COUNT as u32, 0);

/// A pool of histograms: 448 KiB per CPU. A tenth of the cells occurs on any one kernel, so
/// userspace hands them out.
#[map]
pub(crate) static HISTS: PerCpuArray<Histogram> = PerCpuArray::with_max_entries(HISTOGRAMS, 0);

/// The histogram of a series, plus one; zero for none. Written by userspace.
#[map]
pub(crate) static HIST_OF: Array<u32> = Array::with_max_entries(series::COUNT as u32, 0);

/// What could not be counted as it should, by reason.
#[map]
pub(crate) static MISSES: PerCpuArray<u64> = PerCpuArray::with_max_entries(miss::COUNT, 0);

/// What tasks are doing, found by a hash of the task's address: 240 KiB.
#[map]
pub(crate) static TASKS: Array<Slot> = Array::with_max_entries(SLOTS, 0);

/// Text ranges of the vmalloc functions, ascending, the rest at the end of the address space.
/// Written by userspace before anything is attached.
#[map]
pub(crate) static SITE_RANGES: Array<SiteRange> = Array::with_max_entries(SITES as u32, 0);

/// Return addresses that were looked up: the low half of the address, the site above it.
#[map]
pub(crate) static SITE_MEMO: Array<u64> = Array::with_max_entries(SITE_CACHE as u32, 0);
