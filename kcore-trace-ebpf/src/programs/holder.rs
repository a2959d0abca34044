//! Who holds a lock, for those who come to wait for it.
//!
//! In: acquisitions and releases that are seen when the lock is owned. Out: the purpose of whoever
//! holds a lock, held it last, or took it last to share it, and which reader it is. A lock is found by a hash of its
//! address; each place is one word that has the address as well, so that a lock is not taken for
//! another.
//!
//! Invariant: of two locks with one place, the one that was written last is known, and of the other
//! the holder is unknown.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use kcore_trace_ebpf::layout::{READERS, blame, flag};
use kcore_trace_ebpf::words::cell;

use super::constants::flags;
use super::hidden;
use super::maps::Shared;

const PLACES: usize = 256;

/// A place of its own cache line: the holders of two locks do not disturb each other.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Place {
    word: u64,
    /// The task of the holder, written while the word says that there is none: who reads the same
    /// word before and after it has read a pair.
    task: u64,
}

static HOLDERS: Shared<[Place; PLACES]> = Shared::new([Place { word: 0, task: 0 }; PLACES]);

#[inline(always)]
fn place(address: u64) -> *mut Place {
    // 2^64 over the golden ratio; the upper bits of the product are those that all others move.
    let hash = (address >> blame::SPINLOCK_BITS).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
    let index = hidden(hash) & (PLACES as u64 - 1);
    // SAFETY: the index is inside the array.
    unsafe { HOLDERS.get().cast::<Place>().add(index as usize) }
}

/// Its holder has released it; the rest stays, for those who came while it changed hands.
const RELEASED: u64 = 1 << 31;
/// Where the row of a reader begins, plus one: a cell and one fit below it.
const READER_BITS: u32 = 9;
const _: () = assert!(cell::COUNT < 1 << READER_BITS && READERS < 1 << (31 - READER_BITS));

/// Who holds a lock.
#[derive(Clone, Copy)]
pub(crate) struct Holder {
    /// What for, or [`blame::UNKNOWN`].
    pub(crate) purpose: u16,
    /// Its row among readers, plus one; zero if it is none.
    pub(crate) reader: u16,
    /// Process and thread; zero if they are not known.
    pub(crate) task: u64,
}

pub(crate) const UNKNOWN: Holder = Holder {
    purpose: blame::UNKNOWN as u16,
    reader: 0,
    task: 0,
};

/// The lock was taken, under that cell, by a reader if the number is not zero.
#[inline(always)]
pub(crate) fn took(address: u64, cell: u32, reader: u32) {
    let who = u64::from(reader) << READER_BITS | (u64::from(cell) + 1);
    let word = blame::name(address) | who;
    let place = place(address);
    // SAFETY: a place, each word of it written whole.
    unsafe {
        if flags(flag::INSIDE) != 0 {
            write_volatile(&raw mut (*place).word, 0);
            write_volatile(&raw mut (*place).task, bpf_get_current_pid_tgid());
        }
        write_volatile(&raw mut (*place).word, word);
    }
}

/// Its one holder releases it.
#[inline(always)]
pub(crate) fn left(address: u64) {
    let place = place(address);
    // SAFETY: as above. A lock with the same place that is taken in between may be marked, or lose
    // its place: then its waiters are put down to its last holder, or to nobody.
    unsafe {
        let word = read_volatile(&raw const (*place).word);
        write_volatile(&raw mut (*place).word, word | RELEASED);
    }
}

/// Its holder.
#[inline(always)]
pub(crate) fn of(address: u64) -> Holder {
    read(address, 0)
}

/// Its holder, or the one before: who has just waited for it waited for that one at the end.
#[inline(always)]
pub(crate) fn last(address: u64) -> Holder {
    read(address, RELEASED)
}

#[inline(always)]
fn read(address: u64, ignored: u64) -> Holder {
    let place = place(address);
    // SAFETY: a place, each word of it read whole.
    let [before, task, after] = unsafe {
        [
            read_volatile(&raw const (*place).word),
            read_volatile(&raw const (*place).task),
            read_volatile(&raw const (*place).word),
        ]
    };
    let word = before & !ignored;
    let who = u64::from(word as u32);
    if who == 0 || who >= RELEASED || word ^ who != blame::name(address) {
        return UNKNOWN;
    }
    let cell = (who & ((1 << READER_BITS) - 1)) - 1;
    Holder {
        purpose: blame::purpose(cell) as u16,
        reader: (who >> READER_BITS) as u16,
        task: if before == after { task } else { 0 },
    }
}
