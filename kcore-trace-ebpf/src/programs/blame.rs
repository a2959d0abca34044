//! Who waits for whom: the wait of each contended acquisition, by what its holder was doing.
//!
//! In: waits that ended with the lock. Out: the counters of waiter and holder. Counted where every
//! acquisition is seen when the lock is owned, since only then its holder is known.
//!
//! Invariant: what is counted here was counted in a cell at the same place.

use core::ptr::read_volatile;

use kcore_trace_ebpf::layout::{blame, flag};
use kcore_trace_ebpf::words::Lock;

use super::constants::flags;
use super::hidden;
use super::maps::BLAME;
use super::record::{self, Cpu};

/// Whether holders are known.
#[inline(always)]
pub(crate) fn counts() -> bool {
    flags(flag::EVERY_ACQUISITION) != 0 && flags(flag::AT_ENTRY) == 0
}

static PLACES: [u8; Lock::COUNT] = blame::PLACES;

/// A wait ended with the lock, where holders are known.
#[inline(always)]
pub(crate) fn waited(cpu: Cpu, cell: u32, holder: u32, wait_ns: u64) {
    let lock = hidden(blame::lock(cell.into()));
    if lock >= Lock::COUNT as u64 {
        return;
    }
    // SAFETY: the lock is inside the table.
    let place = unsafe { read_volatile(PLACES.as_ptr().add(lock as usize)) };
    let index = blame::index(place.into(), blame::purpose(cell.into()), holder.into());
    let first = cpu.id() * blame::COUNT as u32;
    if let Some(counters) = BLAME.get_ptr_mut(first + index as u32) {
        // SAFETY: the counters are a map value.
        unsafe {
            record::add(&raw mut (*counters).waits, 1);
            record::add(&raw mut (*counters).wait_sum_ns, wait_ns);
        }
    }
}
