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
    HOLDER_STACKS, Held, Stack, WORST, WorstTable, WorstWait, blame, flag, miss,
};

use super::blame as blamed;
use super::constants::flags;
use super::holder::{self, Holder};
use super::maps;
use super::record::{self, Cpu};
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
pub(crate) unsafe fn waited(
    ctx: Context,
    cpu: Cpu,
    held: *const Held,
    cell: u32,
    holder: Holder,
    wait_ns: u64,
) {
    let Some(table) = maps::WORST.get_ptr_mut(cpu.id()) else {
        return;
    };
    // SAFETY: a map value, and one that the caller vouches for.
    unsafe {
        if wait_ns <= (*table).least_ns {
            return;
        }
        if (*table).busy != 0 {
            return record::miss(miss::WORST_BUSY);
        }
        write_volatile(&raw mut (*table).busy, 1);
        let slept_ns = (*held).slept_ns;
        let task = bpf_get_current_pid_tgid();
        // Nobody waits for himself: who held the lock in between is not known.
        let holder = if holder.task == task {
            holder::UNKNOWN
        } else {
            holder
        };
        let index = shortest(table);
        if let Some(place) = at(table, index) {
            (*place).wait_ns = wait_ns;
            (*place).slept_ns = slept_ns;
            (*place).holder_task = holder.task;
            (*place).cell = cell;
            (*place).holder = holder.purpose.into();
            (*place).task = task;
            bpf_get_current_comm((&raw mut (*place).comm).cast(), 16);
            (*place).ended_ns = bpf_ktime_get_ns();
        }
        if flags(flag::STACKS) != 0 {
            keep_stacks(ctx, cpu, index, (*held).address, holder.turn);
        }
        if let Some(place) = at(table, shortest(table)) {
            (*table).least_ns = (*place).wait_ns;
        }
        write_volatile(&raw mut (*table).busy, 0);
    }
}

/// Keeps where the waiter is, beside its wait, and where the holder was, if that is still there: the
/// kernel's part of the stacks.
#[inline(always)]
unsafe fn keep_stacks(ctx: Context, cpu: Cpu, index: u64, address: u64, turn: u16) {
    let Some(stacks) = maps::WORST_STACKS.get_ptr_mut(cpu.id()) else {
        return;
    };
    let index = hidden(index);
    if index >= WORST as u64 {
        return;
    }
    // SAFETY: a map value; the index is inside the array.
    unsafe {
        let [waiter, holder] = &mut *stacks.cast::<[Stack; 2]>().add(index as usize);
        take_stack(ctx, waiter);
        holder[0] = 0;
        let Some(left) = maps::HOLDER_STACKS.get_ptr_mut(place_of(address, turn)) else {
            return;
        };
        let key = blame::turn(address, turn);
        if !blamed::counts() || read_volatile(&raw const (*left).turn) != key {
            return;
        }
        *holder = (*left).stack;
        if read_volatile(&raw const (*left).turn) != key {
            holder[0] = 0;
        }
    }
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
    ((address >> blame::SPINLOCK_BITS) as u32).wrapping_mul(7) + u32::from(turn)
        & (HOLDER_STACKS as u32 - 1)
}

/// A hold ends, and the holder still has the lock: if others wait for it, it leaves its stack. Not
/// always, since they wait for that as well.
///
/// # Safety
/// `held` lies in a map value.
#[inline(always)]
pub(crate) unsafe fn released(ctx: Context, held: *const Held, end_ns: u64) {
    // SAFETY: the caller vouches for one, the others are map values.
    unsafe {
        let (address, turn) = ((*held).address, (*held).turn);
        if !holder::is_waited_for(address, turn) {
            return;
        }
        let Some(cpu) = record::cpu() else { return };
        let Some(table) = maps::WORST.get_ptr_mut(cpu.id()) else {
            return;
        };
        let hold_ns = end_ns.wrapping_sub((*held).since_ns);
        let is_long = hold_ns >= (*table).least_ns / PART;
        if !is_long && end_ns.wrapping_sub((*table).left_ns) < SELDOM_NS {
            return;
        }
        (*table).left_ns = end_ns;
        if let Some(left) = maps::HOLDER_STACKS.get_ptr_mut(place_of(address, turn)) {
            write_volatile(&raw mut (*left).turn, 0);
            take_stack(ctx, &raw mut (*left).stack);
            write_volatile(&raw mut (*left).turn, blame::turn(address, turn));
        }
    }
}

/// The number of the shortest wait of a table; without a branch for each.
#[inline(never)]
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
unsafe fn at(table: *mut WorstTable, index: u64) -> Option<*mut WorstWait> {
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
