//! Who reads /proc/kcore and /proc/vmallocinfo, and what that does to others: a row for each process
//! and file.
//!
//! In: reads that begin and end, and the waits and holds of whoever is in one. A row is found by a
//! hash in a set of four. It goes to another reader when the set is full, userspace has read it whole
//! and nobody has touched it for a while; a reader that finds no row is counted with all others of
//! that kind.
//!
//! Invariant: whatever is counted for a row is counted for its owner. Two readers may grab one row
//! at the same moment, and a long read may lose its own; so the owner is compared when a lock is
//! taken and when the read ends, and what is the loser's goes to the others.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_get_current_comm};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use kcore_trace_ebpf::layout::{
    READER_WAYS, READERS, ReadFrame, ReaderRow, Slot, blame, flag, miss, read, reader,
};
use kcore_trace_ebpf::words::{Lock, Source};

use super::constants::{is_set, reads};
use super::maps;
use super::record::{self, add};
use super::slot::{self, Here, equal};
use super::{choose, sign};

/// A row that nobody has touched for so long may go to another reader.
const IDLE_NS: u64 = 2_000_000_000;

/// [`ReadFrame::owner`] of a read by the current process.
#[inline(always)]
pub(crate) fn owner(source: Source) -> u64 {
    let process = (bpf_get_current_pid_tgid() >> 32) as u32;
    reader::owner(process, source)
}

#[inline(always)]
fn comm() -> [u64; 2] {
    let mut comm = [0u64; 2];
    // SAFETY: the buffer is as long as it is said to be.
    unsafe { bpf_get_current_comm((&raw mut comm).cast(), 16) };
    comm
}

/// No row at all.
const NONE: u64 = u32::MAX as u64;

/// The row of the current process.
#[inline(always)]
pub(crate) fn row(owner: u64) -> u32 {
    let comm = comm();
    let hash = owner.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let first = hash & u64::from((READERS - 1) & !(READER_WAYS - 1));
    let mine = search(first, |row| {
        // SAFETY: a map value.
        unsafe {
            equal((*row).owner, owner)
                & equal((*row).comm[0], comm[0])
                & equal((*row).comm[1], comm[1])
        }
    });
    if mine != NONE {
        return mine as u32;
    }
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    // A free row before one that another may come back to.
    // SAFETY: map values.
    let free = search(first, |row| unsafe { equal((*row).owner, 0) });
    // SAFETY: map values.
    let idle = search(first, |row| unsafe { is_idle(row, now) });
    let number = choose(equal(free, NONE), idle, free) as u32;
    let Some(row) = maps::READERS.get_ptr_mut(number) else {
        record::miss(miss::NO_READER);
        return others(owner);
    };
    // SAFETY: a map value.
    unsafe { take_over(row, owner, comm, now) };
    number
}

/// The first row of a set of which the bit is set, or [`NONE`]; without a branch for each.
#[inline(always)]
fn search(first: u64, bit: impl Fn(*const ReaderRow) -> u64) -> u64 {
    let mut found = NONE;
    for way in (0..u64::from(READER_WAYS)).rev() {
        let number = first | way;
        if let Some(row) = maps::READERS.get_ptr(number as u32) {
            found = choose(bit(row), number, found);
        }
    }
    found
}

/// One if nobody has touched the row for a while and userspace has read it whole, else zero.
#[inline(always)]
unsafe fn is_idle(row: *const ReaderRow, now: u64) -> u64 {
    // SAFETY: the caller passes a map value.
    unsafe {
        let is_read = equal((*row).seen_ns, (*row).touched_ns);
        let untouched_ns = now.wrapping_sub((*row).touched_ns);
        is_read & sign(IDLE_NS.wrapping_sub(untouched_ns))
    }
}

/// The row of those without one, for the file that the owner reads.
#[inline(always)]
fn others(owner: u64) -> u32 {
    READERS + (owner as u8 as u32).wrapping_sub(1)
}

#[inline(always)]
unsafe fn take_over(row: *mut ReaderRow, owner: u64, comm: [u64; 2], now: u64) {
    // SAFETY: the caller passes a map value.
    unsafe {
        write_volatile(&raw mut (*row).owner, 0);
        write_volatile(&raw mut (*row).generation, (*row).generation + 1);
        (*row).comm = comm;
        (*row).cgroup = match reads(read::CGROUPS) {
            0 => 0,
            _ => bpf_get_current_cgroup_id(),
        };
        (*row).touched_ns = now;
        (*row).seen_ns = 0;
        for counter in [
            &raw mut (*row).reads,
            &raw mut (*row).bytes,
            &raw mut (*row).read_ns,
            &raw mut (*row).waits,
            &raw mut (*row).wait_ns,
            &raw mut (*row).holds,
            &raw mut (*row).hold_ns,
            &raw mut (*row).inflicted_waits,
            &raw mut (*row).inflicted_ns,
        ] {
            write_volatile(counter, 0);
        }
        write_volatile(&raw mut (*row).owner, owner);
    }
}

/// Where what the read does is counted now: its own row while it has it.
#[inline(always)]
unsafe fn row_of(frame: *const ReadFrame) -> u32 {
    // SAFETY: the caller passes a frame in a map value; rows are map values.
    unsafe {
        let mine = (*frame).row;
        match maps::READERS.get_ptr_mut(mine) {
            Some(row) if read_volatile(&raw const (*row).owner) == (*frame).owner => mine,
            _ => others((*frame).owner),
        }
    }
}

/// The row of the read that the task is in, plus one; zero if it is in none.
///
/// # Safety
/// `slot` is a map value.
#[inline(always)]
pub(crate) unsafe fn current(slot: *const Slot, here: Here) -> u32 {
    if !is_set::<{ flag::INSIDE }>() {
        return 0;
    }
    // SAFETY: the caller says that the slot is valid.
    unsafe {
        let frame = (*slot).read.frame;
        if frame != 0 && slot::is_live(frame, slot::stack_address(here)) {
            row_of(&raw const (*slot).read) + 1
        } else {
            0
        }
    }
}

/// A read of the current process ended.
///
/// # Safety
/// `frame` lies in a map value.
#[inline(always)]
pub(crate) unsafe fn ended(frame: *const ReadFrame, bytes: u64, end_ns: u64) {
    // SAFETY: the caller says that the frame is valid; rows are map values.
    unsafe {
        let number = row_of(frame);
        if number != (*frame).row {
            record::miss(miss::NO_READER);
        }
        let Some(row) = maps::READERS.get_ptr_mut(number) else {
            return;
        };
        add(&raw mut (*row).reads, 1);
        add(&raw mut (*row).bytes, bytes);
        add(
            &raw mut (*row).read_ns,
            end_ns.wrapping_sub((*frame).since_ns),
        );
        (*row).touched_ns = end_ns;
    }
}

/// The row with a number that is zero for none, else one more than that of the row.
#[inline(always)]
fn numbered(number: u32) -> Option<*mut ReaderRow> {
    match number {
        0 => None,
        _ => maps::READERS.get_ptr_mut(number - 1),
    }
}

/// A wait of a reader ended with the lock.
#[inline(always)]
pub(crate) fn waited(reader: u32, wait_ns: u64) {
    if let Some(row) = numbered(reader) {
        // SAFETY: a map value.
        unsafe {
            add(&raw mut (*row).waits, 1);
            add(&raw mut (*row).wait_ns, wait_ns);
        }
    }
}

/// A hold of a reader ended, under that cell. A long read keeps its row by that.
#[inline(always)]
pub(crate) fn held(reader: u32, cell: u32, hold_ns: u64, end_ns: u64) {
    if let Some(row) = numbered(reader)
        && blame::lock(cell.into()) != Lock::Kclist as u64
    {
        // SAFETY: a map value.
        unsafe {
            add(&raw mut (*row).holds, 1);
            add(&raw mut (*row).hold_ns, hold_ns);
            (*row).touched_ns = end_ns;
        }
    }
}

/// Someone waited for a lock that a reader held.
#[inline(always)]
pub(crate) fn inflicted(reader: u32, wait_ns: u64) {
    if let Some(row) = numbered(reader) {
        // SAFETY: a map value; the helper has no preconditions.
        unsafe {
            add(&raw mut (*row).inflicted_waits, 1);
            add(&raw mut (*row).inflicted_ns, wait_ns);
            (*row).touched_ns = bpf_ktime_get_ns();
        }
    }
}
