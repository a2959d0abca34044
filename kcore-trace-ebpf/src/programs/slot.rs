//! What a task is doing: the op it is in and the locks it holds or waits for.
//!
//! A slot is found by a hash of the task's address in a set of four; it stays the task's while no
//! other needs it. Two tasks may grab the same idle slot at the same moment; the owner is compared
//! at every hook, so the loser finds nothing and is counted as a miss instead of mixing in.
//!
//! Stack addresses say what is still true: an op is live while the current stack pointer is below
//! its frame on the same stack, so a missed exit heals by itself, and an interrupt, which has a
//! stack of its own (x86-64: `irq_stack_union`), is never taken for the task below it.

use aya_ebpf::helpers::{bpf_get_current_task, bpf_ktime_get_ns};
use kcore_trace_ebpf::layout::{HELD, Held, OpFrame, SLOT_WAYS, Slot, miss, state};

use super::constants::slot_mask;
use super::maps::TASKS;
use super::{Context, number, record};

/// `THREAD_SIZE` and `IRQ_STACK_SIZE` of x86-64: stacks are aligned to it.
const STACK_BYTES: u64 = 16384;
/// A frame that no stack pointer is above: of an op that spans several calls.
pub(crate) const SPANNING: u64 = u64::MAX;
/// A slot that is not idle and was not touched for so long belongs to a task that is gone.
const ABANDONED_NS: u64 = 60_000_000_000;

/// Where a hook stands on the stack.
#[derive(Clone, Copy)]
pub(crate) enum Here {
    /// The context of a trampoline lies on the stack.
    Trampoline(Context),
    /// The stack pointer, where the context has it as a number.
    Number(u64),
}

#[inline(always)]
fn first_of_set(task: u64) -> u32 {
    // task_struct is aligned to a cache line at least; the multiplier is 2^64 over the golden ratio.
    let hash = (task >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    hash as u32 & slot_mask() & !(SLOT_WAYS - 1)
}

#[inline(always)]
fn current() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_task() }
}

/// The slot of the current task, if it has one.
#[inline(always)]
pub(crate) fn find() -> Option<*mut Slot> {
    let task = current();
    let first = first_of_set(task);
    for way in 0..SLOT_WAYS {
        let slot = TASKS.get_ptr_mut(first | way)?;
        // SAFETY: a map value.
        if unsafe { (*slot).owner } == task {
            return Some(slot);
        }
    }
    None
}

/// The slot of the current task, a new one if need be.
#[inline(always)]
pub(crate) fn claim() -> Option<*mut Slot> {
    if let Some(slot) = find() {
        return Some(slot);
    }
    take_over()
}

#[inline(always)]
fn take_over() -> Option<*mut Slot> {
    let task = current();
    let first = first_of_set(task);
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    for way in 0..SLOT_WAYS {
        let slot = TASKS.get_ptr_mut(first | way)?;
        // SAFETY: a map value.
        unsafe {
            if is_idle(slot) || now.wrapping_sub((*slot).touched_ns) > ABANDONED_NS {
                clear(slot);
                (*slot).touched_ns = now;
                (*slot).owner = task;
                return Some(slot);
            }
        }
    }
    record::miss(miss::NO_SLOT);
    None
}

#[inline(always)]
unsafe fn is_idle(slot: *const Slot) -> bool {
    // SAFETY: the caller passes a map value.
    unsafe {
        let mut busy = (*slot).ops[0].frame | (*slot).ops[1].frame | (*slot).block_scope;
        for index in 0..HELD {
            busy |= u64::from((*slot).held[index].state);
        }
        busy == 0
    }
}

#[inline(always)]
unsafe fn clear(slot: *mut Slot) {
    // SAFETY: the caller passes a map value.
    unsafe {
        (*slot).block_scope = 0;
        (*slot).ops[0].frame = 0;
        (*slot).ops[1].frame = 0;
        for index in 0..HELD {
            (*slot).held[index].state = state::FREE;
        }
    }
}

/// The stack address as a number.
#[inline(always)]
pub(crate) fn stack_address(here: Here) -> u64 {
    match here {
        Here::Number(number) => number,
        Here::Trampoline(ctx) => number(ctx.as_ptr() as u64),
    }
}

#[inline(always)]
pub(crate) fn same_stack(a: u64, b: u64) -> bool {
    a ^ b < STACK_BYTES
}

/// Whether what was entered at `frame` is still going on, seen from a callee at `sp`. A callee that
/// was jumped to at the end of its caller has the same place on the stack.
#[inline(always)]
pub(crate) fn is_live(frame: u64, sp: u64) -> bool {
    frame == SPANNING || (frame >= sp && same_stack(frame, sp))
}

/// The op that is going on.
///
/// # Safety
/// `slot` is a map value.
#[inline(always)]
pub(crate) unsafe fn live_op(slot: *const Slot, sp: u64) -> Option<u32> {
    // SAFETY: the caller says that the slot is valid.
    unsafe {
        let [task, interrupt] = &(*slot).ops;
        if is_live(task.frame, sp) {
            Some(task.op)
        } else if is_live(interrupt.frame, sp) {
            Some(interrupt.op)
        } else {
            None
        }
    }
}

/// Where a new op is to be remembered: nowhere when it is inside another.
///
/// No op function calls itself (but for an allocation in the reclaim of another): a second entry
/// means that the end of the first was not seen.
///
/// # Safety
/// `slot` is a map value.
#[inline(always)]
pub(crate) unsafe fn outermost(slot: *mut Slot, sp: u64, function: u32) -> Option<*mut OpFrame> {
    // SAFETY: the caller says that the slot is valid.
    unsafe {
        let task = &raw mut (*slot).ops[0];
        // A frame on another stack is the task's, with an interrupt here on top of it.
        let place =
            if (*task).frame == 0 || (*task).frame == SPANNING || same_stack((*task).frame, sp) {
                task
            } else {
                &raw mut (*slot).ops[1]
            };
        let repeated = (*place).frame != 0 && (*place).function == function;
        if is_live((*place).frame, sp) && !repeated {
            return None;
        }
        if (*place).frame != 0 {
            record::miss(miss::UNFINISHED_OP);
        }
        Some(place)
    }
}

/// The lock at that address in that state.
///
/// # Safety
/// `slot` is a map value.
#[inline(always)]
pub(crate) unsafe fn held(slot: *mut Slot, address: u64, wanted: u32) -> Option<*mut Held> {
    for index in 0..HELD {
        // SAFETY: the caller says that the slot is valid; the index is inside the array.
        unsafe {
            let held = &raw mut (*slot).held[index];
            if (*held).state == wanted && (*held).address == address {
                return Some(held);
            }
        }
    }
    None
}

/// The lock in that state that came last, for a return hook that has no arguments.
///
/// # Safety
/// `slot` is a map value.
#[inline(always)]
pub(crate) unsafe fn latest(slot: *mut Slot, a: u32, b: u32) -> Option<*mut Held> {
    let mut since = 0;
    let mut address = 0;
    let mut wanted = 0;
    for index in 0..HELD {
        // SAFETY: the caller says that the slot is valid; the index is inside the array.
        unsafe {
            let held = &raw const (*slot).held[index];
            if ((*held).state == a || (*held).state == b) && (*held).since_ns > since {
                since = (*held).since_ns;
                address = (*held).address;
                wanted = (*held).state;
            }
        }
    }
    if since == 0 {
        return None;
    }
    // SAFETY: as above.
    unsafe { self::held(slot, address, wanted) }
}

/// Room for another lock.
///
/// # Safety
/// `slot` is a map value.
#[inline(always)]
pub(crate) unsafe fn room(slot: *mut Slot) -> Option<*mut Held> {
    for index in 0..HELD {
        // SAFETY: the caller says that the slot is valid; the index is inside the array.
        unsafe {
            let held = &raw mut (*slot).held[index];
            if (*held).state == state::FREE {
                return Some(held);
            }
        }
    }
    record::miss(miss::NO_SLOT);
    None
}
