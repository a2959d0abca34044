//! What a task is doing: the op it is in and the locks it holds or waits for, but for holds that are kept
//! at the place of the lock ([`super::holder`]).
//!
//! A slot is found by a hash of the task's address, or is one of three beside that one; it stays the task's
//! while no other needs it. Two tasks may grab the same idle slot at the same moment; the owner is compared
//! at every hook, so the loser finds nothing and is counted as a miss instead of mixing in.
//!
//! Stack addresses say what is still true: an op is live while the current stack pointer is below
//! its frame on the same stack, so a missed exit heals by itself, and an interrupt, which has a
//! stack of its own (x86-64: `irq_stack_union`), is never taken for the task below it.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::helpers::{bpf_get_current_task, bpf_ktime_get_ns};
use kcore_trace_ebpf::layout::{HELD, Held, OpFrame, SLOT_WAYS, Slot, miss, state};
use kcore_trace_ebpf::words::cell;

use super::constants::{among_slots, tasks};
use super::{Context, choose, hidden, number, op, read, record, sign};

/// `THREAD_SIZE` and `IRQ_STACK_SIZE` of x86-64: stacks are aligned to it.
const STACK_BYTES: u64 = 16384;
/// A slot that is not idle and was not touched for so long belongs to a task that is gone. An hour: a wait of
/// minutes is what is looked for most.
const ABANDONED_NS: u64 = 3_600_000_000_000;
/// Whoever touched a slot so lately is likely to come back to it.
const RECENT_NS: u64 = 1_000_000_000;

/// Where a hook stands on the stack.
#[derive(Clone, Copy)]
pub(crate) enum Here {
    /// The context of a trampoline lies on the stack.
    Trampoline(Context),
    /// The stack pointer, where the context has it as a number.
    Number(u64),
}

/// The address of the current task.
#[inline(always)]
pub(crate) fn current() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_task() }
}

/// Where a task is looked for first: the others of its slots are the neighbours.
#[inline(always)]
fn first_of(task: u64) -> u64 {
    // What 2^32 has more than itself over the golden ratio: it fits into an immediate. Of its product with the
    // address, which is that of a cache line at least, the middle is what all of the address moves.
    among_slots(task.wrapping_mul(0x61c8_8647) >> 20)
}

/// The slot of a number below that of slots.
#[inline(always)]
fn at(number: u64) -> *mut Slot {
    let offset = number.wrapping_mul(size_of::<Slot>() as u64);
    // SAFETY: inside the array, as the verifier checks.
    unsafe { tasks().byte_add(offset as usize) }
}

/// The same of a number of which the verifier knows nothing.
#[inline(always)]
fn numbered(number: u64) -> *mut Slot {
    at(among_slots(number))
}

/// Beyond the number of any slot.
const NOWHERE: u64 = u32::MAX as u64;

/// The slot of the current task, if it has one.
#[inline(always)]
pub(crate) fn find() -> Option<*mut Slot> {
    of(current())
}

/// The slot of a task, if it has one.
#[inline(always)]
pub(crate) fn of(task: u64) -> Option<*mut Slot> {
    let mut slot = at(first_of(task));
    // SAFETY: a map value.
    if unsafe { (*slot).owner } != task {
        slot = match elsewhere(task) {
            NOWHERE => return None,
            number => numbered(number),
        };
    }
    Some(slot)
}

/// The slot of the current task, a new one if need be.
#[inline(always)]
pub(crate) fn claim() -> Option<*mut Slot> {
    let task = current();
    let mut slot = at(first_of(task));
    // SAFETY: a map value.
    if unsafe { (*slot).owner } != task {
        let mut number = elsewhere(task);
        if number == NOWHERE {
            number = take_over(task);
        }
        if number == NOWHERE {
            return None;
        }
        slot = numbered(number);
    }
    Some(slot)
}

/// The number of a task's slot that is not the first one, or [`NOWHERE`]. Not a function apart: of a program
/// that calls one the verifier has to remember much more (`mark_all_scalars_precise`).
#[inline(always)]
fn elsewhere(task: u64) -> u64 {
    let first = first_of(task);
    let mut found = NOWHERE;
    for way in 1..u64::from(SLOT_WAYS) {
        let number = first ^ way;
        // SAFETY: a map value.
        let owner = unsafe { (*at(number)).owner };
        found = choose(equal(owner, task), number, found);
    }
    found
}

/// Gives a task a slot that nobody needs: the first one, unless another task touched it lately, or else the
/// one that was not touched for longest.
#[inline(always)]
fn take_over(task: u64) -> u64 {
    const NEVER: u64 = i64::MAX as u64;
    let first = first_of(task);
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let (mut found, mut oldest) = (NOWHERE, NEVER);
    for way in 0..u64::from(SLOT_WAYS) {
        let number = first ^ way;
        let slot = at(number);
        // SAFETY: a map value.
        let (free, touched) = unsafe {
            let free = is_idle(slot) | is_abandoned(slot, now);
            (free, (*slot).touched_ns)
        };
        let touched = match way {
            0 => choose(
                sign(RECENT_NS.wrapping_sub(now.wrapping_sub(touched))),
                0,
                touched,
            ),
            _ => touched,
        };
        let touched = choose(free, touched, NEVER);
        let older = sign(touched.wrapping_sub(oldest));
        found = choose(older, number, found);
        oldest = choose(older, touched, oldest);
    }
    if found == NOWHERE {
        record::miss(miss::NO_SLOT);
        return NOWHERE;
    }
    let slot = numbered(found);
    // SAFETY: a map value.
    unsafe {
        op::leave_block_scope(slot);
        read::leave(slot);
        clear(slot);
        (*slot).touched_ns = now;
        (*slot).number = found as u32 + 1;
        (*slot).owner = task;
    }
    found
}

/// Bits of a reference that say where in a slot something is.
const PLACE_BITS: u32 = 9;
const _: () = assert!(size_of::<Slot>() <= 1 << PLACE_BITS);

/// What another task finds a lock by, never zero.
///
/// # Safety
/// `slot` is a map value, and `held` lies in it.
#[inline(always)]
pub(crate) unsafe fn reference(slot: *const Slot, held: *const Held) -> u32 {
    let place = number(held as u64).wrapping_sub(number(slot as u64)) as u32;
    // SAFETY: the caller says that the slot is valid.
    let slot = unsafe { (*slot).number };
    slot << PLACE_BITS | place
}

/// The lock that a reference is to.
#[inline(always)]
pub(crate) fn referred(reference: u32) -> Option<*mut Held> {
    let number = (reference >> PLACE_BITS).checked_sub(1)?;
    let slot = numbered(number.into());
    let place = hidden(u64::from(reference) & ((1 << PLACE_BITS) - 1));
    if place > (size_of::<Slot>() - size_of::<Held>()) as u64 {
        return None;
    }
    // SAFETY: a held lock at that place is inside the map value.
    Some(unsafe { slot.byte_add(place as usize).cast() })
}

/// One if the task does nothing that has to be remembered, else zero.
#[inline(always)]
unsafe fn is_idle(slot: *const Slot) -> u64 {
    // SAFETY: the caller passes a map value.
    unsafe {
        let ops = (*slot).ops[0].frame | (*slot).ops[1].frame;
        equal(
            ops | (*slot).block_scope | (*slot).read.frame | (*slot).in_use,
            0,
        )
    }
}

/// One if the task was not seen for long, else zero.
#[inline(always)]
unsafe fn is_abandoned(slot: *const Slot, now: u64) -> u64 {
    // SAFETY: the caller passes a map value.
    let untouched_ns = unsafe { now.wrapping_sub((*slot).touched_ns) };
    sign(ABANDONED_NS.wrapping_sub(untouched_ns))
}

#[inline(always)]
unsafe fn clear(slot: *mut Slot) {
    // SAFETY: the caller passes a map value.
    unsafe {
        // Volatile, or the compiler calls a function that writes all four.
        write_volatile(&raw mut (*slot).block_scope, 0);
        write_volatile(&raw mut (*slot).in_use, 0);
        write_volatile(&raw mut (*slot).look_up, 0);
        (*slot).ops[0].frame = 0;
        (*slot).ops[1].frame = 0;
        (*slot).read.frame = 0;
        (*slot).read.fault_since_ns = 0;
        (*slot).off_since_ns = 0;
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
    frame >= sp && same_stack(frame, sp)
}

/// The frame of what spans several calls: it is left when the stack is.
#[inline(always)]
pub(crate) fn spanning(sp: u64) -> u64 {
    sp | (STACK_BYTES - 1)
}

/// Whether a frame is that of what spans several calls; any other is at a multiple of eight.
#[inline(always)]
pub(crate) fn spans(frame: u64) -> bool {
    frame & 1 != 0
}

/// An op that is going on. Not where it is remembered, which the verifier would tell apart.
#[derive(Clone, Copy)]
pub(crate) struct Live {
    pub(crate) op: u32,
    /// Which of its functions was entered.
    pub(crate) function: u32,
}

impl Live {
    #[inline(always)]
    fn of(frame: &OpFrame) -> Self {
        // SAFETY: words of a map value. Volatile, or the compiler reads them where it has forgotten which.
        unsafe {
            Self {
                op: read_volatile(&raw const frame.op),
                function: read_volatile(&raw const frame.function),
            }
        }
    }
}

/// The op that is going on.
///
/// # Safety
/// `slot` is a map value.
#[inline(always)]
pub(crate) unsafe fn live_op(slot: *const Slot, sp: u64) -> Option<Live> {
    // SAFETY: the caller says that the slot is valid.
    unsafe {
        let [task, interrupt] = &(*slot).ops;
        if is_live(task.frame, sp) {
            Some(Live::of(task))
        } else if is_live(interrupt.frame, sp) {
            Some(Live::of(interrupt))
        } else {
            None
        }
    }
}

/// Whether a look-up is going on inside another op.
///
/// # Safety
/// `slot` is a map value.
#[inline(always)]
pub(crate) unsafe fn looks_up(slot: *const Slot, sp: u64) -> bool {
    // SAFETY: the caller says that the slot is valid.
    is_live(unsafe { (*slot).look_up }, sp)
}

/// A look-up begins inside an op of the same stack: nearly all do, and it is told by less than [`outermost`].
///
/// # Safety
/// `slot` is a map value.
#[inline(always)]
pub(crate) unsafe fn looks_up_inside(slot: *mut Slot, sp: u64, function: u32) -> bool {
    // SAFETY: the caller says that the slot is valid.
    unsafe {
        let outer = &raw const (*slot).ops[0];
        let frame = (*outer).frame;
        let inside = frame > sp && same_stack(frame, sp) && (*outer).function != function;
        if inside {
            (*slot).look_up = sp;
        }
        inside
    }
}

/// A look-up begins inside another op.
///
/// # Safety
/// `slot` is a map value.
#[inline(always)]
pub(crate) unsafe fn look_up(slot: *mut Slot, sp: u64) {
    // SAFETY: the caller says that the slot is valid.
    unsafe {
        let below = (*slot).look_up;
        // Another stack's is the task's, with an interrupt here on top of it.
        if below == 0 || same_stack(below, sp) {
            (*slot).look_up = sp;
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
        if (*task).frame == 0 {
            return Some(task);
        }
        // A frame on another stack is the task's, with an interrupt here on top of it.
        let place = if same_stack((*task).frame, sp) {
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
    // SAFETY: the caller says that the slot is valid.
    unsafe {
        if (*slot).in_use == 0 {
            return None;
        }
        // Nearly always it is the only one.
        let first = &raw mut (*slot).held[0];
        if (*first).address == address && (*first).state == wanted {
            return Some(first);
        }
        search(slot, |held| {
            equal((*held).address, address) & equal((*held).state.into(), wanted.into())
        })
    }
}

/// The lock in that state that came last, for a return hook that has no arguments.
///
/// # Safety
/// `slot` is a map value.
#[inline(always)]
pub(crate) unsafe fn latest(slot: *mut Slot, a: u32, b: u32) -> Option<*mut Held> {
    let mut since = 0u64;
    let mut address = 0;
    let mut wanted = u64::from(state::FREE);
    for index in 0..HELD {
        // SAFETY: the caller says that the slot is valid; the index is inside the array.
        unsafe {
            let held = &raw const (*slot).held[index];
            let state = u64::from((*held).state);
            let fits = equal(state, a.into()) | equal(state, b.into());
            let later = fits & (since.wrapping_sub((*held).since_ns) >> 63);
            since = choose(later, (*held).since_ns, since);
            address = choose(later, (*held).address, address);
            wanted = choose(later, state, wanted);
        }
    }
    if since == 0 {
        return None;
    }
    // SAFETY: as above.
    unsafe { self::held(slot, address, wanted as u32) }
}

/// The first lock of which the bit is set. Without a branch for each: the verifier would follow
/// what comes after it once for every lock.
#[inline(always)]
unsafe fn search(slot: *mut Slot, bit: impl Fn(*const Held) -> u64) -> Option<*mut Held> {
    const NONE: u64 = HELD as u64;
    let mut found = NONE;
    for index in (0..HELD).rev() {
        // SAFETY: the caller passes a map value; the index is inside the array.
        let held = unsafe { &raw const (*slot).held[index] };
        found = choose(bit(held), index as u64, found);
    }
    let found = hidden(found);
    if found >= NONE {
        return None;
    }
    // SAFETY: the index is inside the array.
    unsafe { Some((&raw mut (*slot).held).cast::<Held>().add(found as usize)) }
}

/// One if both are the same, else zero.
#[inline(always)]
pub(crate) fn equal(a: u64, b: u64) -> u64 {
    let difference = a ^ b;
    sign(difference | hidden(difference.wrapping_neg())) ^ 1
}

/// Room for another lock, from now on in that state.
///
/// # Safety
/// `slot` is a map value.
#[inline(always)]
pub(crate) unsafe fn occupy(slot: *mut Slot, address: u64, state: u32) -> Option<*mut Held> {
    // SAFETY: the caller says that the slot is valid.
    unsafe {
        let room = if (*slot).in_use == 0 {
            &raw mut (*slot).held[0]
        } else {
            free(slot)?
        };
        (*slot).in_use += 1;
        (*room).address = address;
        (*room).state = state;
        (*room).slept_ns = 0;
        Some(room)
    }
}

#[inline(always)]
unsafe fn free(slot: *mut Slot) -> Option<*mut Held> {
    // SAFETY: the caller passes a map value.
    let free = unsafe { search(slot, |held| equal((*held).state.into(), state::FREE.into())) };
    if free.is_none() {
        record::miss(miss::NO_SLOT);
    }
    free
}

/// Forgets waits for locks that turned out to be none of ours without having been told apart: only some ways
/// to take a lock are hooked. None is waited for when a function that takes blocks returns.
///
/// # Safety
/// `slot` is a map value.
#[inline(always)]
pub(crate) unsafe fn forget_foreign(slot: *mut Slot) {
    // SAFETY: the caller says that the slot is valid.
    if unsafe { (*slot).in_use } == 0 {
        return;
    }
    for index in 0..HELD {
        // SAFETY: as above; the index is inside the array.
        unsafe {
            let held = &raw mut (*slot).held[index];
            let waits = equal((*held).state.into(), state::WAITING.into());
            let foreign = waits & equal((*held).cell.into(), cell::UNKNOWN.into());
            (*held).state = choose(foreign, state::FREE.into(), (*held).state.into()) as u32;
            (*slot).in_use -= foreign;
        }
    }
}

/// The lock is neither held nor waited for any more.
///
/// # Safety
/// `slot` is a map value, and `held` lies in it and is not free.
#[inline(always)]
pub(crate) unsafe fn vacate(slot: *mut Slot, held: *mut Held) {
    // SAFETY: the caller says that both are valid.
    unsafe {
        (*held).state = state::FREE;
        (*slot).in_use -= 1;
    }
}
