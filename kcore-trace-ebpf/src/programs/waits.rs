//! How many waits go on, where nothing but slow paths is hooked.
//!
//! Most contended locks of a kernel are none of ours: when one of them was waited for, there is no task to look
//! for if nobody waits for ours. In: the cells of waits that begin and end. Out: whether there may be one.
//!
//! A wait for a spinlock is counted by the CPU, which the waiter does not leave; one for a lock that lets
//! others run by all CPUs together. Invariant: who waits is counted. One whose end is not seen is counted for
//! ever, and from then on every task is looked for.

use core::ptr::read_volatile;

use kcore_trace_ebpf::layout::{blame, flag};

use super::constants::flags;
use super::maps::{COUNTERS, Shared};
use super::record;

static ASLEEP: Shared<u64> = Shared::new(0);

/// The kind of lock whose slow path has returned, as far as a hook knows.
#[derive(Clone, Copy)]
pub(crate) enum Returned {
    Spinlock,
    Sleeping,
    Either,
}

#[inline(always)]
pub(crate) fn begins(cell: u32) {
    count(cell, 1);
}

#[inline(always)]
pub(crate) fn ends(cell: u32) {
    count(cell, u64::MAX);
}

#[inline(always)]
fn count(cell: u32, change: u64) {
    let spinlocks = flags::<{ flag::SPINLOCKS }>();
    // SAFETY: a word of a map value, and one of a static.
    unsafe {
        if spinlocks >> blame::lock(cell.into()) & 1 == 0 {
            record::add(ASLEEP.get(), change);
        } else if let Some(counters) = COUNTERS.get_ptr_mut(record::cpu_id()) {
            record::add(&raw mut (*counters).spinning, change);
        }
    }
}

/// Whether a slow path that returned may have been that of a lock of ours.
#[inline(always)]
pub(crate) fn may_be_one(returned: Returned) -> bool {
    // SAFETY: a word of a map value, and one of a static, read whole.
    unsafe {
        let asleep = || read_volatile(ASLEEP.get());
        let spinning = || {
            let counters = COUNTERS.get_ptr_mut(record::cpu_id());
            counters.map_or(0, |counters| read_volatile(&raw const (*counters).spinning))
        };
        match returned {
            Returned::Spinlock => spinning() != 0,
            Returned::Sleeping => asleep() != 0,
            Returned::Either => spinning() | asleep() != 0,
        }
    }
}
