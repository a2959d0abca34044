//! Which node a lock belongs to: acquisitions and waits of the locks of nodes, counted by node.
//!
//! In: what was just counted in a cell, and the address of the lock. The cell says which lock of a
//! node it is, so that only the number of the node is taken from the address, by a multiplication.
//!
//! Invariant: what is counted here was counted in a cell at the same place, so that the nodes of a
//! lock add up to it. On a kernel without nodes the verifier removes everything in here.

use kcore_trace_ebpf::layout::{NodeCounters, node};
use kcore_trace_ebpf::words::{Intent, Mode, Op, cell};

use super::constants::nodes;
use super::maps::NODE_COUNTERS;
use super::record::{self, Cpu};

/// A lock was taken.
#[inline(always)]
pub(crate) fn acquired(cpu: Cpu, cell: u32, address: impl FnOnce() -> u64) {
    if nodes::<{ node::SPAN }>() == 0 {
        return;
    }
    if let Some(counters) = counters(cpu, cell, address()) {
        // SAFETY: the counters are a map value.
        unsafe { record::add(&raw mut (*counters).acquisitions, 1) };
    }
}

/// A wait ended with the lock.
#[inline(always)]
pub(crate) fn waited(cpu: Cpu, cell: u32, address: u64, wait_ns: u64) {
    if nodes::<{ node::SPAN }>() == 0 {
        return;
    }
    if let Some(counters) = counters(cpu, cell, address) {
        // SAFETY: the counters are a map value.
        unsafe {
            record::add(&raw mut (*counters).contended, 1);
            record::add(&raw mut (*counters).wait_sum_ns, wait_ns);
        }
    }
}

#[inline(always)]
fn counters(cpu: Cpu, cell: u32, address: u64) -> Option<*mut NodeCounters> {
    let lock = lock_of(cell)?;
    let base = nodes::<{ node::BASE }>();
    let distance = if base != 0 {
        address.wrapping_sub(base)
    } else {
        address & nodes::<{ node::ALIGN }>().wrapping_sub(1)
    };
    if distance >= nodes::<{ node::SPAN }>() {
        return None;
    }
    let number = node::number(distance, nodes::<{ node::RECIPROCAL }>());
    let first = cpu.id() * nodes::<{ node::COUNTERS }>() as u32;
    NODE_COUNTERS.get_ptr_mut(first + node::counters(number, lock) as u32)
}

/// Which lock of a node a cell counts, if it is one: an index into [`node::LOCKS`].
#[inline(always)]
fn lock_of(index: u32) -> Option<u64> {
    let distance = u64::from(index.wrapping_sub(FIRST));
    if distance >= (node::LOCKS.len() * cell::PER_LOCK) as u64 {
        return None;
    }
    Some(node::number(
        distance,
        node::reciprocal(cell::PER_LOCK as u64),
    ))
}

/// The first cell of [`node::LOCKS`], whose cells follow each other.
const FIRST: u32 = first_cell(0);

const _: () = assert!(
    first_cell(1) == FIRST + cell::PER_LOCK as u32
        && first_cell(2) == FIRST + 2 * cell::PER_LOCK as u32
);

const fn first_cell(lock: usize) -> u32 {
    cell::index(node::LOCKS[lock], Mode::Exclusive, Intent::Read, Op::Other) as u32
}
