//! Who waits for whom: the wait of each contended acquisition, by what its holder was doing.
//!
//! In: waits that ended with the lock. Out: the counters of waiter and holder. Counted where every
//! acquisition is seen when the lock is owned, since only then its holder is known.
//!
//! Invariant: what is counted here was counted in a cell at the same place.

use core::ptr::read_volatile;

use kcore_trace_ebpf::layout::{blame, flag};
use kcore_trace_ebpf::words::Lock;

use super::constants::{is_set, times_cpus};
use super::hidden;
use super::maps::BLAME;
use super::record;

/// Whether holders are known.
#[inline(always)]
pub(crate) fn counts() -> bool {
    is_set::<{ flag::EVERY_ACQUISITION }>() && !is_set::<{ flag::AT_ENTRY }>()
}

static PLACES: [u8; Lock::COUNT] = blame::PLACES;

/// A wait ended with the lock, where holders are known.
#[inline(always)]
pub(crate) fn waited(cell: u32, holder: u32, wait_ns: u64) {
    let lock = hidden(blame::lock(cell.into()));
    if lock >= Lock::COUNT as u64 {
        return;
    }
    // SAFETY: the lock is inside the table.
    let place = unsafe { read_volatile(PLACES.as_ptr().add(lock as usize)) };
    let row = blame::row(place.into(), blame::purpose(cell.into()));
    let Some(row) = BLAME.get_ptr_mut(times_cpus(row as u32).wrapping_add(record::cpu_id())) else {
        return;
    };
    // Hidden last: a check of another copy is none for the verifier.
    let offset = hidden(u64::from(holder) * size_of::<u32>() as u64) as usize;
    if offset >= blame::HOLDERS * size_of::<u32>() {
        return;
    }
    // SAFETY: the row is a map value; the holder is inside both arrays, of four and of eight bytes each.
    unsafe {
        let waits = (&raw mut (*row).waits).cast::<u32>();
        record::add_half(waits.byte_add(offset), 1);
        let sums = (&raw mut (*row).wait_sum_ns).cast::<u64>();
        record::add(sums.byte_add(2 * offset), wait_ns);
    }
}
