//! Who holds a lock, for those who come to wait for it.
//!
//! In: acquisitions and releases that are seen when the lock is owned. Out: the purpose of whoever
//! holds a lock, or was the first of those who share it, and which reader it is. Each acquisition of
//! a lock that nobody has is a turn. Who comes when a turn is over waits for the one that gets the
//! lock next, and is told by that one. A lock is found by a hash of its address; what is known of its
//! holder has the address as well, so that a lock is not taken for another.
//!
//! Invariant: of two locks with one place, the one that was taken last is known, and of the other
//! the holder is unknown.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use kcore_trace_ebpf::layout::{Held, READERS, Slot, blame, flag, holder as layout, state};
use kcore_trace_ebpf::words::{Mode, cell};

use super::constants::is_set;
use super::maps::Shared;
use super::record::add_half;
use super::{hidden, slot};

/// How many are told of one turn; of those beyond, the holder stays unknown.
const TOLD: u32 = 16;

/// A place of its own cache line: the holders of two locks do not disturb each other.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Place {
    /// The number of the latest turn, twice, and one more when that turn is over.
    latest: u32,
    /// How many share it, by our own count: of two readers that leave together each would see the
    /// other in the lock's.
    sharing: u32,
    /// The lock's name, and the reader and the cell of the latest turn.
    word: u64,
    /// The task of the latest turn.
    task: u64,
    /// Where the last task that asked who is next waits, by [`slot::reference`]; zero if nobody does.
    asking: u32,
    /// The turn that somebody waits for. Kept where stacks are.
    waited_for: u32,
}

const NEVER: Place = Place {
    latest: 0,
    sharing: 0,
    word: 0,
    task: 0,
    asking: 0,
    waited_for: 0,
};

static HOLDERS: Shared<[Place; layout::PLACES]> = Shared::new([NEVER; layout::PLACES]);

#[inline(always)]
fn place(address: u64) -> *mut Place {
    let index = hidden(layout::place(address)) & (layout::PLACES as u64 - 1);
    // SAFETY: the index is inside the array.
    unsafe { HOLDERS.get().cast::<Place>().add(index as usize) }
}

/// Where the row of a reader begins, plus one: a cell and one fit below it.
const READER_BITS: u32 = 9;
const _: () = assert!(cell::COUNT < 1 << READER_BITS && READERS < 1 << (32 - READER_BITS));

/// Who holds a lock.
#[derive(Clone, Copy)]
pub(crate) struct Holder {
    /// What for, or [`blame::UNKNOWN`].
    pub(crate) purpose: u16,
    /// Its row among readers, plus one; zero if it is none.
    pub(crate) reader: u16,
    /// The lower half of the number of its turn.
    pub(crate) turn: u16,
    /// Process and thread; zero if they are not known.
    pub(crate) task: u64,
}

pub(crate) const UNKNOWN: Holder = Holder {
    purpose: blame::UNKNOWN as u16,
    reader: 0,
    turn: 0,
    task: 0,
};

/// The lock was taken, under that cell, by a reader if the number is not zero. Which turn that is, the
/// lower half of its number: whoever shares the lock has the turn of the first.
#[inline(always)]
pub(crate) fn took(address: u64, mode: Mode, cell: u32, reader: u16) -> u16 {
    let who = u64::from(reader) << READER_BITS | (u64::from(cell) + 1);
    let place = place(address);
    // SAFETY: a place, each word of it read and written whole.
    unsafe {
        let latest = read_volatile(&raw const (*place).latest);
        match mode {
            Mode::Exclusive => write_volatile(&raw mut (*place).sharing, 0),
            Mode::Shared if !is_of(place, address) => {
                write_volatile(&raw mut (*place).sharing, 1);
            }
            Mode::Shared => {
                let shared = read_volatile(&raw const (*place).sharing) != 0;
                add_half(&raw mut (*place).sharing, 1);
                if shared && latest & 1 == 0 {
                    return (latest >> 1) as u16;
                }
            }
        }
        // What is being written is not to be read.
        write_volatile(&raw mut (*place).latest, latest | 1);
        write_volatile(&raw mut (*place).word, blame::name(address) | who);
        if is_set::<{ flag::INSIDE }>() {
            write_volatile(&raw mut (*place).task, bpf_get_current_pid_tgid());
        }
        let number = (latest >> 1) + 1;
        write_volatile(&raw mut (*place).latest, number << 1);
        if read_volatile(&raw const (*place).asking) != 0 {
            answer(address);
        }
        number as u16
    }
}

/// Whether the latest turn is one of that lock.
#[inline(always)]
unsafe fn is_of(place: *const Place, address: u64) -> bool {
    // SAFETY: the caller passes a place; its word is read whole.
    let word = unsafe { read_volatile(&raw const (*place).word) };
    (word ^ blame::name(address)) >> 32 == 0
}

/// Tells those who asked for the next holder, the last one first.
#[inline(never)]
fn answer(address: u64) -> u64 {
    let place = place(address);
    // SAFETY: a place, each word of it read and written whole.
    unsafe {
        let mut asking = read_volatile(&raw const (*place).asking);
        write_volatile(&raw mut (*place).asking, 0);
        let number = read_volatile(&raw const (*place).latest) >> 1;
        let over = number.wrapping_sub(1);
        let holder = read(place, number, address);
        for _ in 0..TOLD {
            let Some(waiting) = slot::referred(asking) else {
                break;
            };
            let asked = (*waiting).holder_task;
            let waits = (*waiting).address == address && (*waiting).state == state::WAITING;
            if !waits || u32::from((*waiting).holder) != blame::UNKNOWN || asked as u32 != over {
                break;
            }
            asking = (asked >> 32) as u32;
            remember(waiting, holder);
            waits_for(place, number);
        }
    }
    0
}

/// A holder releases it: the turn is over, if nobody shares it any more.
#[inline(always)]
pub(crate) fn left(address: u64, mode: Mode) {
    let place = place(address);
    // SAFETY: as above.
    unsafe {
        // Another lock with the same place was taken meanwhile.
        if !is_of(place, address) {
            return;
        }
        if let Mode::Shared = mode {
            add_half(&raw mut (*place).sharing, u32::MAX);
            if read_volatile(&raw const (*place).sharing) != 0 {
                return;
            }
        }
        let latest = read_volatile(&raw const (*place).latest);
        write_volatile(&raw mut (*place).latest, latest | 1);
    }
}

/// Stands for the turn that is over, where the holder was not seen at all. Turns have 31 bits.
const UNSEEN: u32 = u32::MAX;

/// A task begins to wait: remembers for whom, or asks.
///
/// # Safety
/// `held` lies in the slot, which is a map value.
#[inline(always)]
pub(crate) unsafe fn ask(slot: *const Slot, held: *mut Held, address: u64) {
    let place = place(address);
    // SAFETY: a place, each word of it read and written whole, and what the caller vouches for.
    unsafe {
        let latest = read_volatile(&raw const (*place).latest);
        let over = latest >> 1;
        let mut holder = read(place, over, address);
        let seen = u32::from(holder.purpose) != blame::UNKNOWN;
        if seen && latest & 1 == 0 && latest == read_volatile(&raw const (*place).latest) {
            waits_for(place, over);
            // It was the first to share the lock that others still have.
            if is_set::<{ flag::INSIDE }>() && holder.task == bpf_get_current_pid_tgid() {
                holder.reader = 0;
                holder.task = 0;
            }
            return remember(held, holder);
        }
        if !seen {
            return remember(held, not_yet(0, UNSEEN));
        }
        let before = read_volatile(&raw const (*place).asking);
        remember(held, not_yet(before, over));
        write_volatile(&raw mut (*place).asking, slot::reference(slot, held));
        // Who took it meanwhile may have seen nobody ask.
        let number = read_volatile(&raw const (*place).latest) >> 1;
        if number != over {
            waits_for(place, number);
            remember(held, read(place, number, address));
        }
    }
}

/// A holder that is not known yet: who asked before, and the turn that is over.
#[inline(always)]
fn not_yet(before: u32, over: u32) -> Holder {
    Holder {
        task: u64::from(before) << 32 | u64::from(over),
        ..UNKNOWN
    }
}

/// For whom a task has waited that has the lock now. If nobody had it since it asked, it waited for
/// a release. What it remembers stays, since who asked before it is found by that.
///
/// # Safety
/// `held` lies in a map value.
#[inline(always)]
pub(crate) unsafe fn blamed(held: *const Held) -> Holder {
    // SAFETY: the caller vouches for it; a place, each word of it read whole.
    unsafe {
        if u32::from((*held).holder) != blame::UNKNOWN {
            return Holder {
                purpose: (*held).holder,
                reader: (*held).holding_reader,
                turn: (*held).turn,
                task: (*held).holder_task,
            };
        }
        let address = (*held).address;
        let place = place(address);
        let latest = read_volatile(&raw const (*place).latest) >> 1;
        // One that came between without having seen that somebody asks is known here.
        match latest.wrapping_sub((*held).holder_task as u32) {
            0 | 1 => read(place, latest, address),
            _ => UNKNOWN,
        }
    }
}

/// Notes that a turn is waited for.
#[inline(always)]
unsafe fn waits_for(place: *mut Place, number: u32) {
    if is_set::<{ flag::STACKS }>() {
        // SAFETY: the caller passes a place.
        unsafe { write_volatile(&raw mut (*place).waited_for, number) };
    }
}

/// Whether somebody waits for that turn.
#[inline(always)]
pub(crate) fn is_waited_for(address: u64, turn: u16) -> bool {
    // SAFETY: a place, each word of it read whole.
    unsafe { read_volatile(&raw const (*place(address)).waited_for) as u16 == turn }
}

#[inline(always)]
unsafe fn remember(held: *mut Held, holder: Holder) {
    // SAFETY: the caller passes a map value.
    unsafe {
        (*held).holder_task = holder.task;
        (*held).holding_reader = holder.reader;
        (*held).turn = holder.turn;
        (*held).holder = holder.purpose;
    }
}

#[inline(always)]
unsafe fn read(place: *const Place, number: u32, address: u64) -> Holder {
    // SAFETY: the caller passes a place; each word of it is read whole.
    let (word, task) = unsafe {
        (
            read_volatile(&raw const (*place).word),
            read_volatile(&raw const (*place).task),
        )
    };
    let who = u64::from(word as u32);
    if who == 0 || word ^ who != blame::name(address) {
        return UNKNOWN;
    }
    let cell = (who & ((1 << READER_BITS) - 1)) - 1;
    Holder {
        purpose: blame::purpose(cell) as u16,
        reader: (who >> READER_BITS) as u16,
        turn: number as u16,
        task,
    }
}
