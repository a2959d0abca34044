//! The longest waits of each CPU, one by one: who waited, and for whom.
//!
//! In: waits that ended with the lock. Out: a table for each CPU, in which a longer wait takes the
//! place of the shortest. A wait that is not among the longest costs one comparison, so that no
//! stream of events is needed to find them. If asked for, the waiter's stack beside each.
//!
//! Invariant: the longest waits of all CPUs are among those in the tables. One that ends in an
//! interrupt while the table is being written is counted as a miss.

use core::ptr::write_volatile;

use aya_ebpf::helpers::generated::{bpf_get_current_comm, bpf_get_stack};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use kcore_trace_ebpf::layout::{Held, Stack, WORST, WorstTable, WorstWait, flag, miss};

use super::constants::flags;
use super::holder::{self, Holder};
use super::maps;
use super::record::{self, Cpu};
use super::{Context, choose, hidden};

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
            keep_stack(ctx, cpu, index);
        }
        if let Some(place) = at(table, shortest(table)) {
            (*table).least_ns = (*place).wait_ns;
        }
        write_volatile(&raw mut (*table).busy, 0);
    }
}

/// Keeps where the waiter is, beside its wait: the kernel's part of the stack. That of the holder is
/// on another CPU.
#[inline(always)]
unsafe fn keep_stack(ctx: Context, cpu: Cpu, index: u64) {
    let Some(stacks) = maps::WORST_STACKS.get_ptr_mut(cpu.id()) else {
        return;
    };
    let index = hidden(index);
    if index >= WORST as u64 {
        return;
    }
    // SAFETY: a map value; the index is inside the array, and the helper writes no more than it is
    // told, with zeros behind the last frame.
    unsafe {
        let stack = stacks.cast::<Stack>().add(index as usize);
        let size = size_of::<Stack>() as u32;
        if bpf_get_stack(ctx.as_ptr().cast(), stack.cast(), size, 0) <= 0 {
            (*stack)[0] = 0;
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
