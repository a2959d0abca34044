//! The longest waits of each CPU, one by one: who waited, and for whom.
//!
//! In: waits that ended with the lock. Out: a table for each CPU, in which a longer wait takes the
//! place of the shortest. A wait that is not among the longest costs one comparison, so that no
//! stream of events is needed to find them. If asked for, the stacks of waiter and holder beside each:
//! a holder that others wait for leaves its own when it releases the lock, and the waiter takes it
//! from there.
//!
//! Invariant: the longest waits of all CPUs are among those in the tables. One that ends in an
//! interrupt while the table is being written is counted as a miss.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::helpers::generated::{bpf_get_current_comm, bpf_get_stack};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use kcore_trace_ebpf::layout::{
    HOLDER_STACKS, Held, Stack, WORST, WorstStacks, WorstTable, WorstWait, blame, flag, miss,
};

use super::blame as blamed;
use super::constants::is_set;
use super::holder::{self, At};
use super::maps;
use super::record;
use super::{Context, choose, hidden};

/// A hold leaves its stack if it took that part of the shortest wait in the list.
const PART: u64 = 8;
/// Or if none was left for so long: to take one costs about a microsecond, during which others wait.
const SELDOM_NS: u64 = 1_000_000;

/// A wait ended with the lock, which is counted under that cell.
///
/// # Safety
/// `held` lies in a map value.
#[inline(always)]
pub(crate) unsafe fn waited(at: At, ctx: Context, held: *const Held, cell: u32, wait_ns: u64) {
    let id = record::cpu_id();
    let Some(table) = maps::WORST.get_ptr_mut(id) else {
        return;
    };
    // SAFETY: a map value, and one that the caller vouches for.
    unsafe {
        if wait_ns <= (*table).least_ns {
            return;
        }
        if (*table).busy != 0 {
            record::miss(miss::WORST_BUSY);
            return;
        }
        write_volatile(&raw mut (*table).busy, 1);
        let slept_ns = (*held).slept_ns;
        let task = bpf_get_current_pid_tgid();
        // Nobody waits for himself: who held the lock in between is not known.
        let mut holder = holder::UNKNOWN;
        if blamed::counts() {
            holder = holder::blamed(at, held);
            if holder.task == task {
                holder = holder::UNKNOWN;
            }
        }
        let index = shortest(table);
        if let Some(place) = nth(table, index) {
            (*place).wait_ns = wait_ns;
            (*place).slept_ns = slept_ns;
            (*place).holder_task = holder.task;
            (*place).cell = cell;
            (*place).holder = holder.purpose.into();
            (*place).task = task;
            bpf_get_current_comm((&raw mut (*place).comm).cast(), 16);
            (*place).ended_ns = bpf_ktime_get_ns();
        }
        if is_set::<{ flag::STACKS }>() {
            let turn = match holder.purpose.into() {
                blame::UNKNOWN => 0,
                _ => blame::turn((*held).address, holder.turn),
            };
            keep_stacks(ctx, id, index, held, turn);
        }
        if let Some(place) = nth(table, shortest(table)) {
            (*table).least_ns = (*place).wait_ns;
        }
        write_volatile(&raw mut (*table).busy, 0);
    }
}

/// Keeps where the waiter is, beside its wait, and where the holder was that had that turn, if it is
/// known and its stack still there: the kernel's part of the stacks.
#[inline(never)]
unsafe fn keep_stacks(ctx: Context, cpu: u32, index: u64, held: *const Held, turn: u64) -> u64 {
    let Some(stacks) = maps::WORST_STACKS.get_ptr_mut(cpu) else {
        return 0;
    };
    let offset = hidden(index * size_of::<[Stack; 2]>() as u64);
    if offset > (size_of::<WorstStacks>() - size_of::<[Stack; 2]>()) as u64 {
        return 0;
    }
    // SAFETY: a map value; the offset is that of a pair in the array.
    unsafe {
        let [waiter, holder] = &mut *stacks.byte_add(offset as usize).cast::<[Stack; 2]>();
        take_stack(ctx, waiter);
        holder[0] = 0;
        if turn == 0 {
            return 0;
        }
        let place = place_of((*held).address, turn as u16);
        let Some(left) = maps::HOLDER_STACKS.get_ptr_mut(place) else {
            return 0;
        };
        // Turns are numbered from the start again when there were many.
        let is_its = read_volatile(&raw const (*left).turn) == turn
            && (*left).left_ns.wrapping_sub((*held).since_ns) >> 63 == 0;
        if !is_its {
            return 0;
        }
        *holder = (*left).stack;
        if read_volatile(&raw const (*left).turn) != turn {
            holder[0] = 0;
        }
    }
    0
}

/// The stack of the program's own task; the helper writes no more than it is told, with zeros behind
/// the last frame.
///
/// # Safety
/// `stack` lies in a map value.
#[inline(always)]
unsafe fn take_stack(ctx: Context, stack: *mut Stack) {
    let size = size_of::<Stack>() as u32;
    // SAFETY: the caller vouches for the stack.
    unsafe {
        if bpf_get_stack(ctx.as_ptr().cast(), stack.cast(), size, 0) <= 0 {
            (*stack)[0] = 0;
        }
    }
}

/// Where the stack of a holder is left: turns of one lock follow each other.
#[inline(always)]
fn place_of(address: u64, turn: u16) -> u32 {
    let first = ((address >> blame::SPINLOCK_BITS) as u32).wrapping_mul(7);
    (first + u32::from(turn)) & (HOLDER_STACKS as u32 - 1)
}

/// A hold ends, and the holder still has the lock: if others wait for it, it leaves its stack. Not
/// always, since they wait for that as well.
///
/// # Safety
/// `held` lies in a map value.
#[inline(always)]
pub(crate) unsafe fn released(at: At, ctx: Context, held: *const Held, end_ns: u64) {
    // SAFETY: the caller vouches for one, the others are map values.
    unsafe {
        let (address, turn) = ((*held).address, (*held).turn);
        if !holder::is_waited_for(at, turn) {
            return;
        }
        let cpu = record::cpu();
        let Some(table) = maps::WORST.get_ptr_mut(cpu.id()) else {
            return;
        };
        let hold_ns = end_ns.wrapping_sub((*held).since_ns);
        let least_ns = (*table).least_ns;
        let is_long = least_ns != 0 && hold_ns >= least_ns / PART;
        if !is_long && end_ns.wrapping_sub((*table).left_ns) < SELDOM_NS {
            return;
        }
        (*table).left_ns = end_ns;
        if let Some(left) = maps::HOLDER_STACKS.get_ptr_mut(place_of(address, turn)) {
            write_volatile(&raw mut (*left).turn, 0);
            (*left).left_ns = end_ns;
            take_stack(ctx, &raw mut (*left).stack);
            write_volatile(&raw mut (*left).turn, blame::turn(address, turn));
        }
    }
}

/// The number of the shortest wait of a table; without a branch for each.
#[inline(always)]
unsafe fn shortest(table: *mut WorstTable) -> u64 {
    let (mut least, mut place) = (u64::MAX >> 1, 0);
    for index in 0..WORST {
        // SAFETY: the caller passes a map value; the index is inside the array.
        let wait_ns = unsafe { (*table).waits[index].wait_ns };
        let less = wait_ns.wrapping_sub(least) >> 63;
        least = choose(less, wait_ns, least);
        place = choose(less, index as u64, place);
    }
    place
}

#[inline(always)]
unsafe fn nth(table: *mut WorstTable, index: u64) -> Option<*mut WorstWait> {
    let index = hidden(index);
    if index >= WORST as u64 {
        return None;
    }
    // SAFETY: the caller passes a map value; the index is inside the array.
    unsafe {
        Some(
            (&raw mut (*table).waits)
                .cast::<WorstWait>()
                .add(index as usize),
        )
    }
}
