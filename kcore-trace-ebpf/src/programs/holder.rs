//! Who holds a lock, for those who come to wait for it.
//!
//! In: acquisitions and releases that are seen when the lock is owned. Out: the purpose of whoever
//! holds a lock, held it last, or took it last to share it. A lock is found by a hash of its
//! address; each place is one word that has the address as well, so that a lock is not taken for
//! another.
//!
//! Invariant: of two locks with one place, the one that was written last is known, and of the other
//! the holder is unknown.

use core::ptr::{read_volatile, write_volatile};

use kcore_trace_ebpf::layout::blame;

use super::hidden;
use super::maps::Shared;

const PLACES: usize = 256;

/// A place of its own cache line: the holders of two locks do not disturb each other.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Place(u64);

static HOLDERS: Shared<[Place; PLACES]> = Shared::new([Place(0); PLACES]);

#[inline(always)]
fn place(address: u64) -> *mut u64 {
    // 2^64 over the golden ratio; the upper bits of the product are those that all others move.
    let hash = (address >> blame::SPINLOCK_BITS).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
    let index = hidden(hash) & (PLACES as u64 - 1);
    // SAFETY: the index is inside the array.
    unsafe { HOLDERS.get().cast::<Place>().add(index as usize).cast() }
}

/// Its holder has released it; the cell stays, for those who came while it changed hands.
const RELEASED: u64 = 1 << 31;

/// The lock was taken, under that cell.
#[inline(always)]
pub(crate) fn took(address: u64, cell: u32) {
    let word = blame::name(address) | (u64::from(cell) + 1);
    // SAFETY: a place, written whole.
    unsafe { write_volatile(place(address), word) };
}

/// Its one holder releases it.
#[inline(always)]
pub(crate) fn left(address: u64) {
    let place = place(address);
    // SAFETY: as above. A lock with the same place that is taken in between may be marked, or lose
    // its place: then its waiters are put down to its last holder, or to nobody.
    unsafe { write_volatile(place, read_volatile(place) | RELEASED) };
}

/// The purpose of its holder, or [`blame::UNKNOWN`].
#[inline(always)]
pub(crate) fn of(address: u64) -> u32 {
    purpose(address, 0)
}

/// The purpose of its holder, or of the one before: who has just waited for it waited for that one
/// at the end.
#[inline(always)]
pub(crate) fn last(address: u64) -> u32 {
    purpose(address, RELEASED)
}

#[inline(always)]
fn purpose(address: u64, ignored: u64) -> u32 {
    // SAFETY: a place, read whole.
    let word = unsafe { read_volatile(place(address)) } & !ignored;
    let cell = word as u32;
    if cell == 0 || u64::from(cell) >= RELEASED || word ^ u64::from(cell) != blame::name(address) {
        return blame::UNKNOWN;
    }
    blame::purpose(u64::from(cell) - 1) as u32
}
