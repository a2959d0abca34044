//! What happens inside holds and waits: page faults that a holder takes, and the time that holders
//! and waiters are off their CPU; and who shares a lock with readers.
//!
//! In: switches between tasks, page faults inside reads, shared acquisitions. Out: the counters of the
//! cell of each lock that the task holds. A fault or a switch inside two holds is counted in both.
//!
//! Invariant: a task that neither holds nor waits for one of our locks costs a look at its slot when it leaves
//! its CPU or comes back, and one at the three places of locks whose holders may sleep; nothing is written.

use core::ptr::read_volatile;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use kcore_trace_ebpf::layout::{HELD, Held, InsideCounters, Slot, state};

use super::maps::INSIDE;
use super::record::add;
use super::{Context, holder, programs, slot};

/// Each lock that is held, under the counters of its cell.
///
/// # Safety
/// `slot` is a map value.
#[inline(always)]
unsafe fn each_hold(slot: *mut Slot, each: impl Fn(*mut InsideCounters)) {
    let of_cell = |cell| {
        if let Some(counters) = INSIDE.get_ptr_mut(cell) {
            each(counters);
        }
    };
    // SAFETY: the caller says that the slot is valid; the index is inside the array.
    unsafe {
        for index in 0..HELD {
            let held = &raw const (*slot).held[index];
            if (*held).state == state::HELD {
                of_cell((*held).cell);
            }
        }
        holder::each_sleeping_held((*slot).owner, of_cell);
    }
}

/// Whether a task holds a lock or waits for one, as far as it may sleep meanwhile.
///
/// # Safety
/// `slot` is a map value.
#[inline(always)]
unsafe fn is_at_lock(slot: *const Slot) -> bool {
    // SAFETY: the caller says that the slot is valid.
    unsafe { (*slot).in_use != 0 || holder::sleeping_held((*slot).owner) != 0 }
}

/// A page fault was served.
///
/// # Safety
/// `slot` is a map value.
#[inline(always)]
pub(crate) unsafe fn faulted(slot: *mut Slot, faults: u64, fault_ns: u64) {
    // SAFETY: the caller says that the slot is valid; counters are map values.
    unsafe {
        if !is_at_lock(slot) {
            return;
        }
        each_hold(slot, |counters| {
            add(&raw mut (*counters).faults, faults);
            add(&raw mut (*counters).fault_ns, fault_ns);
        });
    }
}

/// A wait ended with the lock, which is counted under that cell.
///
/// # Safety
/// `held` lies in a map value.
#[inline(always)]
pub(crate) unsafe fn waited(held: *mut Held, cell: u32) {
    // SAFETY: the caller says that the lock is valid; counters are map values.
    unsafe {
        let slept_ns = (*held).slept_ns;
        if slept_ns == 0 {
            return;
        }
        (*held).slept_ns = 0;
        if let Some(counters) = INSIDE.get_ptr_mut(cell) {
            add(&raw mut (*counters).sleeps, 1);
            add(&raw mut (*counters).sleep_ns, slept_ns);
        }
    }
}

/// Where the count of readers begins in `rw_semaphore.count`, its first member
/// (`kernel/locking/rwsem.c`, 5.3 to 7.3).
const READER_SHIFT: u32 = 8;

/// A lock was taken to be shared, under that cell: with whom, the lock itself tells, which counts the
/// reader already. It is the first argument of the hooked function, through which a program may read.
#[inline(always)]
pub(crate) fn shared(ctx: Context, cell: u32) {
    let lock = ctx.arg(0) as *const u64;
    // SAFETY: a read of a typed argument; counters are map values.
    unsafe {
        let count = read_volatile(lock);
        if count >> (READER_SHIFT + 1) != 0
            && let Some(counters) = INSIDE.get_ptr_mut(cell)
        {
            add(&raw mut (*counters).joined, 1);
        }
    }
}

#[inline(always)]
fn switched_out(task: u64, preempted: u64) {
    let Some(slot) = slot::of(task) else { return };
    // SAFETY: a map value; the helper has no preconditions.
    unsafe {
        if is_at_lock(slot) {
            (*slot).preempted = preempted as u32 & 1;
            (*slot).off_since_ns = bpf_ktime_get_ns();
        }
    }
}

#[inline(always)]
fn switched_in(task: u64) {
    let Some(slot) = slot::of(task) else { return };
    // SAFETY: the slot and what is found in it are map values.
    unsafe {
        // Volatile, so that it is read once.
        let since_ns = read_volatile(&raw const (*slot).off_since_ns);
        if since_ns == 0 {
            return;
        }
        (*slot).off_since_ns = 0;
        let off_ns = bpf_ktime_get_ns().wrapping_sub(since_ns);
        let preempted = (*slot).preempted.into();
        each_hold(slot, |counters| {
            add(&raw mut (*counters).switches, 1);
            add(&raw mut (*counters).preemptions, preempted);
            add(&raw mut (*counters).off_cpu_ns, off_ns);
        });
        for index in 0..HELD {
            let held = &raw mut (*slot).held[index];
            let state = (*held).state;
            if state == state::WAITING || state == state::TRYING_WAITING {
                (*held).slept_ns += off_ns;
            }
        }
    }
}

#[inline(always)]
fn switch(ctx: Context) {
    let (preempted, out, in_) = (ctx.arg(0), ctx.address(1), ctx.address(2));
    switched_out(out, preempted);
    switched_in(in_);
}

programs! {
    // The first three arguments of the tracepoint, 5.10 to 7.3 (`include/trace/events/sched.h`).
    "tp_btf" switch_btf(ctx) { switch(ctx) }
}
