//! Who holds a lock, for those who come to wait for it; and the exclusive holds of locks with a fixed address.
//!
//! In: acquisitions and releases that are seen when the lock is owned. Out: the purpose of whoever
//! holds a lock, or was the first of those who share it, and which reader it is. Each acquisition of
//! a lock that nobody has is a turn. Who comes when a turn is over waits for the one that gets the
//! lock next, and is told by that one. A lock with a fixed address has a place of its own. Those of
//! blocks are found by a hash, and what is known of a holder there has the address as well, so that a
//! lock is not taken for another.
//!
//! Invariant: of two locks with one place, the one that was taken last is known, and of the other
//! the holder is unknown.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_kernel};
use kcore_trace_ebpf::layout::{
    Held, Place, Slot, blame, flag, holder as layout, miss, node, state,
};
use kcore_trace_ebpf::words::{Lock, Mode};

use super::constants::{flags, is_set, nodes};
use super::maps::HOLDERS;
use super::record::{self, Cpu, add_half};
use super::slot::{self, equal};
use super::{choose, hidden, sign};

/// How many are told of one turn; of those beyond, the holder stays unknown.
const TOLD: u32 = 16;

/// Where the holder of a lock is kept.
#[derive(Clone, Copy)]
pub(crate) struct At {
    place: *mut Place,
    /// One if other locks may have that place too, else zero.
    hashed: u64,
}

impl At {
    /// Of a spinlock or a mutex, by the number of its role: all but those of blocks have a fixed address.
    /// Without a branch.
    #[inline(always)]
    pub(crate) fn of(lock: u64, address: u64) -> Self {
        let is_block = equal(lock, Lock::VmapBlock as u64);
        let number = choose(
            is_block,
            layout::hashed(address),
            Self::number_of_fixed(lock, address),
        );
        Self::numbered(number, is_block)
    }

    /// Of a lock that has a fixed address, by the number of its role.
    #[inline(always)]
    pub(crate) fn fixed(lock: u64, address: u64) -> Self {
        Self::numbered(Self::number_of_fixed(lock, address), 0)
    }

    /// The same of one that belongs to no node.
    #[inline(always)]
    pub(crate) fn of_role(lock: u64) -> Self {
        Self::numbered(layout::fixed(lock), 0)
    }

    #[inline(always)]
    fn number_of_fixed(lock: u64, address: u64) -> u64 {
        let mut number = layout::fixed(lock);
        if nodes::<{ node::SPAN }>() != 0 {
            let distance = address.wrapping_sub(nodes::<{ node::BASE }>());
            let node = node::number(distance, nodes::<{ node::RECIPROCAL }>());
            let belongs_to_none = sign(lock.wrapping_sub(Lock::NodeBusy as u64));
            number = choose(belongs_to_none, number, layout::of_node(node, lock));
        }
        number
    }

    /// Of any other lock.
    #[inline(always)]
    pub(crate) fn hashed(address: u64) -> Self {
        Self::numbered(layout::hashed(address), 1)
    }

    #[inline(always)]
    fn numbered(number: u64, hashed: u64) -> Self {
        let number = hidden(number) & (layout::PLACES as u64 - 1);
        // SAFETY: the number is inside the array.
        let place = unsafe { HOLDERS.get().cast::<Place>().add(number as usize) };
        Self { place, hashed }
    }

    /// Whether the latest turn is one of that lock.
    #[inline(always)]
    unsafe fn is_of(self, address: u64) -> bool {
        if self.hashed == 0 {
            return true;
        }
        // SAFETY: a place; its word is read whole.
        unsafe { read_volatile(&raw const (*self.place).name) == blame::name(address) }
    }
}

/// Who holds a lock.
#[derive(Clone, Copy)]
pub(crate) struct Holder {
    /// What for, or [`blame::UNKNOWN`].
    pub(crate) purpose: u16,
    /// Its row among readers, plus one; zero if it is none.
    pub(crate) reader: u16,
    /// The lower half of the number of its turn.
    pub(crate) turn: u16,
    /// Process and thread, or as in its [`Place`]; zero if they are not known.
    pub(crate) task: u64,
}

pub(crate) const UNKNOWN: Holder = Holder {
    purpose: blame::UNKNOWN as u16,
    reader: 0,
    turn: 0,
    task: 0,
};

/// A lock whose hold is not kept at its place was taken, under that cell, by a reader if the number is not
/// zero. Which turn that is, the lower half of its number: whoever shares the lock has the turn of the first.
#[inline(always)]
pub(crate) fn took(at: At, address: u64, mode: Mode, cell: u32, reader: u16) -> u16 {
    let place = at.place;
    // SAFETY: a place, each word of it read and written whole.
    unsafe {
        let latest = read_volatile(&raw const (*place).latest);
        match mode {
            Mode::Exclusive => write_volatile(&raw mut (*place).sharing, 0),
            Mode::Shared if !at.is_of(address) => {
                write_volatile(&raw mut (*place).sharing, 1);
            }
            Mode::Shared => {
                let shared = read_volatile(&raw const (*place).sharing) != 0;
                add_half(&raw mut (*place).sharing, 1);
                if shared && latest & 1 != 0 {
                    return (latest >> 1) as u16;
                }
            }
        }
        // What is being written is not to be read.
        let over = latest & !1;
        write_volatile(&raw mut (*place).latest, over);
        if at.hashed != 0 {
            write_volatile(&raw mut (*place).name, blame::name(address));
        }
        let task = if is_set::<{ flag::INSIDE }>() {
            bpf_get_current_pid_tgid()
        } else {
            0
        };
        turn(at, address, over, cell, reader.into(), task);
        (over >> 1).wrapping_add(1) as u16
    }
}

/// A turn begins, after one that is over.
#[inline(always)]
unsafe fn turn(at: At, address: u64, over: u32, cell: u32, reader: u32, task: u64) {
    let place = at.place;
    // SAFETY: a place, each word of it read and written whole.
    unsafe {
        write_volatile(&raw mut (*place).cell, cell);
        write_volatile(&raw mut (*place).reader, reader);
        write_volatile(&raw mut (*place).task, task);
        write_volatile(&raw mut (*place).latest, over.wrapping_add(3));
        if read_volatile(&raw const (*place).asking) != 0 {
            answer(at, address);
        }
    }
}

/// Who takes a lock exclusively that has a fixed address, and where that is counted.
pub(crate) struct Taker {
    /// Its row among readers, plus one; zero if it is none.
    pub(crate) reader: u32,
    /// The address of the task.
    pub(crate) task: u64,
    pub(crate) cpu: u32,
    /// [`record::Cpu::of_cell`].
    pub(crate) of_cell: u32,
    /// Whether others may share the lock at other times, and one of them may have left unseen.
    pub(crate) may_share: bool,
}

/// A lock with a fixed address was taken exclusively: its hold begins.
#[inline(always)]
pub(crate) fn begin(at: At, address: u64, cell: u32, taker: Taker) {
    let place = at.place;
    // SAFETY: a place, each word of it read and written whole.
    unsafe {
        let mut over = read_volatile(&raw const (*place).latest);
        if over & 1 != 0 {
            // It was released unseen.
            record::miss(miss::UNMATCHED_ACQUISITION);
            over -= 1;
            write_volatile(&raw mut (*place).latest, over);
        }
        if taker.may_share {
            write_volatile(&raw mut (*place).sharing, 0);
        }
        write_volatile(&raw mut (*place).cpu, taker.cpu);
        write_volatile(&raw mut (*place).counters, taker.of_cell);
        // Whoever waits for it asks for its ids, while it has the lock or has just released it.
        turn(at, address, over, cell, taker.reader, taker.task);
        // Last, so that our own work is not booked as a hold.
        write_volatile(&raw mut (*place).since_ns, bpf_ktime_get_ns());
    }
}

/// A hold, wherever it is kept.
pub(crate) struct Hold {
    pub(crate) cell: u32,
    pub(crate) reader: u32,
    pub(crate) since_ns: u64,
    /// Where it is counted.
    pub(crate) cpu: Cpu,
    /// [`Cpu::of_cell`].
    pub(crate) of_cell: u32,
}

impl Hold {
    /// One that a task keeps.
    ///
    /// # Safety
    /// `held` lies in a map value.
    #[inline(always)]
    pub(crate) unsafe fn of(held: *const Held) -> Self {
        let cpu = record::cpu();
        // SAFETY: the caller vouches for it.
        unsafe {
            Self {
                cell: (*held).cell,
                reader: (*held).reader.into(),
                since_ns: (*held).since_ns,
                cpu,
                of_cell: cpu.of_cell((*held).cell),
            }
        }
    }
}

/// The spinlocks with a fixed address, where there are no nodes.
const SPINLOCKS: [Lock; 3] = [Lock::VmapArea, Lock::FreeVmapArea, Lock::PurgeVmapArea];

/// How many spinlocks a task holds whose holds are kept at their places: of those that belong to no node, since
/// an audit of a kernel with nodes has tasks keep them.
#[inline(always)]
pub(crate) fn spinlocks_held(task: u64) -> u64 {
    if !is_set::<{ flag::HOLDS_AT_PLACE }>() {
        return 0;
    }
    let spinlocks = flags::<{ flag::SPINLOCKS }>();
    let mut held = 0;
    for lock in SPINLOCKS {
        held += spinlocks >> lock as u64 & is_held(At::of_role(lock as u64), task);
    }
    held
}

/// One if a task holds a lock whose holds are kept at its place, else zero.
#[inline(always)]
fn is_held(at: At, task: u64) -> u64 {
    let place = at.place;
    // SAFETY: a place, each word of it read whole.
    unsafe {
        let goes_on = u64::from(read_volatile(&raw const (*place).latest)) & 1;
        goes_on & equal(read_volatile(&raw const (*place).task), task)
    }
}

/// The locks with a fixed address whose holders may sleep, the first one in some kernels: where it is a
/// spinlock, whoever sleeps has it not.
const SLEEPING: [Lock; 3] = [Lock::VmapArea, Lock::Kclist, Lock::VmapPurge];

/// How many of them a task holds exclusively, that may sleep now.
#[inline(always)]
pub(crate) fn sleeping_held(task: u64) -> u64 {
    let mut held = 0;
    if is_set::<{ flag::HOLDS_AT_PLACE }>() {
        for lock in SLEEPING {
            held += is_held(At::of_role(lock as u64), task);
        }
    }
    held
}

/// The cells of those holds.
#[inline(always)]
pub(crate) fn each_sleeping_held(task: u64, each: impl Fn(u32)) {
    if !is_set::<{ flag::HOLDS_AT_PLACE }>() {
        return;
    }
    for lock in SLEEPING {
        let at = At::of_role(lock as u64);
        if is_held(at, task) != 0 {
            // SAFETY: a place, whose word is read whole.
            each(unsafe { read_volatile(&raw const (*at.place).cell) });
        }
    }
}

/// The hold of a lock with a fixed address ends, if it was seen to begin: by a task, if one is told.
#[inline(always)]
pub(crate) fn end(at: At, by: Option<u64>) -> Option<Hold> {
    let place = at.place;
    // SAFETY: a place, each word of it read and written whole.
    unsafe {
        let latest = read_volatile(&raw const (*place).latest);
        if latest & 1 == 0 {
            return None;
        }
        if let Some(task) = by
            && read_volatile(&raw const (*place).task) != task
        {
            return None;
        }
        let cell = read_volatile(&raw const (*place).cell);
        let reader = read_volatile(&raw const (*place).reader);
        let since_ns = read_volatile(&raw const (*place).since_ns);
        let cpu = record::cpu_numbered(read_volatile(&raw const (*place).cpu));
        let of_cell = read_volatile(&raw const (*place).counters);
        write_volatile(&raw mut (*place).latest, latest.wrapping_sub(1));
        Some(Hold {
            cell,
            reader,
            since_ns,
            cpu,
            of_cell,
        })
    }
}

/// Tells those who asked for the next holder, the last one first.
#[inline(always)]
fn answer(at: At, address: u64) {
    let place = at.place;
    // SAFETY: a place, each word of it read and written whole.
    unsafe {
        let mut asking = read_volatile(&raw const (*place).asking);
        write_volatile(&raw mut (*place).asking, 0);
        let number = read_volatile(&raw const (*place).latest) >> 1;
        let over = number.wrapping_sub(1);
        let mut holder = read(at, number, address);
        if is_set::<{ flag::INSIDE }>() {
            // It is the one that tells.
            holder.task = bpf_get_current_pid_tgid();
        }
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
}

/// A holder releases it: the turn is over, if nobody shares it any more.
#[inline(always)]
pub(crate) fn left(at: At, address: u64, mode: Mode) {
    let place = at.place;
    // SAFETY: as above.
    unsafe {
        // Another lock with the same place was taken meanwhile.
        if !at.is_of(address) {
            return;
        }
        if let Mode::Shared = mode {
            add_half(&raw mut (*place).sharing, u32::MAX);
            if read_volatile(&raw const (*place).sharing) != 0 {
                return;
            }
        }
        let latest = read_volatile(&raw const (*place).latest);
        write_volatile(&raw mut (*place).latest, latest & !1);
    }
}

/// Stands for the turn that is over, where the holder was not seen at all. Turns have 31 bits.
const UNSEEN: u32 = u32::MAX;

/// A task begins to wait: remembers for whom, or asks.
///
/// # Safety
/// `held` lies in the slot, which is a map value.
#[inline(always)]
pub(crate) unsafe fn ask(at: At, slot: *const Slot, held: *mut Held, address: u64) {
    let place = at.place;
    // SAFETY: a place, each word of it read and written whole, and what the caller vouches for.
    unsafe {
        let latest = read_volatile(&raw const (*place).latest);
        let over = latest >> 1;
        let mut holder = read(at, over, address);
        let seen = u32::from(holder.purpose) != blame::UNKNOWN;
        if seen && latest & 1 != 0 && latest == read_volatile(&raw const (*place).latest) {
            waits_for(place, over);
            holder = with_ids(holder);
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
            remember(held, with_ids(read(at, number, address)));
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
pub(crate) unsafe fn blamed(at: At, held: *const Held) -> Holder {
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
        let place = at.place;
        let latest = read_volatile(&raw const (*place).latest) >> 1;
        // One that came between without having seen that somebody asks is known here.
        match latest.wrapping_sub((*held).holder_task as u32) {
            0 | 1 => with_ids(read(at, latest, address)),
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
pub(crate) fn is_waited_for(at: At, turn: u16) -> bool {
    let place = at.place;
    // SAFETY: a place, each word of it read whole.
    unsafe { read_volatile(&raw const (*place).waited_for) as u16 == turn }
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
unsafe fn read(at: At, number: u32, address: u64) -> Holder {
    let place = at.place;
    // SAFETY: a place, each word of it read whole.
    unsafe {
        if number == 0 || !at.is_of(address) {
            return UNKNOWN;
        }
        let cell = read_volatile(&raw const (*place).cell);
        let reader = read_volatile(&raw const (*place).reader) as u16;
        let task = read_volatile(&raw const (*place).task);
        // Another lock with the same place was taken meanwhile.
        if !at.is_of(address) {
            return UNKNOWN;
        }
        Holder {
            purpose: blame::purpose(cell.into()) as u16,
            reader,
            turn: number as u16,
            task,
        }
    }
}

/// The same, with its task by process and thread, where somebody asks for it.
#[inline(always)]
fn with_ids(holder: Holder) -> Holder {
    if !is_set::<{ flag::INSIDE }>() {
        return holder;
    }
    let task = ids(holder.task);
    Holder { task, ..holder }
}

/// Process and thread of a task that is known by them or by its address; zero if they cannot be read.
#[inline(always)]
fn ids(task: u64) -> u64 {
    if task >> 63 == 0 {
        return task;
    }
    let at = task
        .wrapping_add(flags::<{ flag::TASK_IDS }>())
        .wrapping_sub(1);
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(at as *const u64) }.unwrap_or(0)
}
