//! The state machine of one acquisition, the same for every kind of lock.
//!
//! By fentry and fexit: [`slow_path`] (if contended) → [`acquired`] or [`failed`] → [`release`].
//! By kprobes, where an exit hook is dear: [`acquired`] at the entry of a function that can't fail,
//! or [`trying`] and [`tried`] around one that can, then [`slow_path`] and [`slow_path_done`].
//! At level contended: [`slow_path_of`] and [`slow_path_done`] alone.
//!
//! Invariant: an acquisition is counted once, under the cell that its release will be counted
//! under, and a wait is counted only when it ended.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_log_ebpf::debug;
use kcore_trace_ebpf::layout::{CellCounters, Held, Slot, flag, miss, series, state, text};
use kcore_trace_ebpf::words::{Intent, Lock, Mode, Op, cell};

use super::constants::{flags, kernel};
use super::record;
use super::site::{self, Caller, Site};
use super::slot::{self, Here};

/// A lock as it is being taken or released.
#[derive(Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) address: u64,
    pub(crate) lock: Lock,
    pub(crate) mode: Mode,
    /// Whether its release is hooked too, so that the holder is worth remembering.
    pub(crate) followed: bool,
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn cell_of(taken: Taken, site: Site, op: u32) -> u32 {
    let intent = match (taken.mode, taken.lock) {
        (Mode::Shared, _) => Intent::Read as u32,
        // A site's intent is about the index: of a block everybody but a reader of /proc/kcore
        // changes something.
        (_, Lock::VmapBlock) if site.op != Op::Vread as u32 => Intent::Write as u32,
        _ => site.intent,
    };
    let first = cell::index(taken.lock, taken.mode, Intent::Read, Op::Other) as u32;
    first + intent * Op::COUNT as u32 + op
}

/// The site of an acquisition; one that is in no table is counted.
#[inline(always)]
pub(crate) fn site(caller: Caller) -> Site {
    let address = site::caller(caller);
    match site::of(address) {
        Some(site) => site,
        None => {
            record::miss(miss::UNKNOWN_SITE);
            say_unknown(address.wrapping_sub(kernel(text::START)));
            site::UNKNOWN
        }
    }
}

/// Tells whoever asked for diagnostics which function the table of call sites lacks: as a distance
/// from `_stext`, which a symbol table resolves and which gives no address away.
#[inline(never)]
fn say_unknown(distance: u64) {
    debug!(
        &(),
        "a lock was taken by an unknown caller at _stext+0x{:x}", distance
    );
}

#[inline(always)]
unsafe fn classify(slot: *mut Slot, taken: Taken, here: Here, site: Site) -> u32 {
    // SAFETY: the caller passes a map value.
    let op = unsafe {
        let sp = slot::stack_address(here);
        slot::live_op(slot, sp)
    };
    cell_of(taken, site, op.unwrap_or(site.op))
}

/// The task owns the lock, or is about to without having met a slow path.
#[inline(always)]
pub(crate) fn acquired(taken: Taken, here: Here, site: Site) {
    let Some(slot) = slot::claim() else { return };
    // SAFETY: the slot and what is found in it are map values.
    unsafe {
        let index = classify(slot, taken, here, site);
        let Some(counters) = record::cell(index) else {
            return;
        };
        record::add(&raw mut (*counters).acquisitions, 1);
        let held = match slot::held(slot, taken.address, state::WAITING) {
            Some(waiting) => {
                let wait_ns = now().wrapping_sub((*waiting).since_ns);
                record::add(&raw mut (*counters).contended, 1);
                record::duration(
                    &raw mut (*counters).wait,
                    series::wait(index as usize),
                    wait_ns,
                );
                waiting
            }
            None if taken.followed => {
                let Some(room) = room_for(slot, taken) else {
                    return;
                };
                (*room).address = taken.address;
                room
            }
            None => return,
        };
        if !taken.followed {
            (*held).state = state::FREE;
            return;
        }
        (*held).cell = index;
        (*held).state = state::HELD;
        // Read last, so that our own work is not booked as holding.
        let since_ns = now();
        (*held).since_ns = since_ns;
        (*slot).touched_ns = since_ns;
    }
}

/// Room for a lock. A task that takes exclusively what it holds has released it unseen.
#[inline(always)]
unsafe fn room_for(slot: *mut Slot, taken: Taken) -> Option<*mut Held> {
    // SAFETY: the caller passes a map value.
    unsafe {
        if let Mode::Exclusive = taken.mode
            && let Some(stale) = slot::held(slot, taken.address, state::HELD)
        {
            record::miss(miss::UNMATCHED_ACQUISITION);
            return Some(stale);
        }
        slot::room(slot)
    }
}

/// An acquire function that may fail was called; [`tried`] tells the outcome.
#[inline(always)]
pub(crate) fn trying(taken: Taken, here: Here, site: Site) {
    let Some(slot) = slot::claim() else { return };
    // SAFETY: the slot and what is found in it are map values.
    unsafe {
        let index = classify(slot, taken, here, site);
        let Some(room) = slot::room(slot) else { return };
        (*room).address = taken.address;
        (*room).cell = index;
        (*room).state = state::TRYING;
        let since_ns = now();
        (*room).since_ns = since_ns;
        (*slot).touched_ns = since_ns;
    }
}

/// The acquire function that [`trying`] saw has returned.
#[inline(always)]
pub(crate) fn tried(got_it: bool, followed: bool) {
    let Some(slot) = slot::find() else { return };
    // SAFETY: the slot and what is found in it are map values.
    unsafe {
        let tried = slot::latest(slot, state::TRYING, state::TRYING_WAITING);
        let Some(held) = tried else { return };
        let index = (*held).cell;
        let Some(counters) = record::cell(index) else {
            return;
        };
        if !got_it {
            give_up(held, counters, (*held).state == state::TRYING_WAITING);
            return;
        }
        record::add(&raw mut (*counters).acquisitions, 1);
        if (*held).state == state::TRYING_WAITING {
            wait_ended(held, counters);
        }
        become_held(held, followed);
    }
}

#[inline(always)]
unsafe fn become_held(held: *mut Held, followed: bool) {
    // SAFETY: the caller passes a map value.
    unsafe {
        (*held).state = if followed { state::HELD } else { state::FREE };
        (*held).since_ns = now();
    }
}

#[inline(always)]
unsafe fn wait_ended(held: *mut Held, counters: *mut CellCounters) {
    // SAFETY: the caller passes map values.
    unsafe {
        let index = (*held).cell;
        let wait_ns = now().wrapping_sub((*held).since_ns);
        record::add(&raw mut (*counters).contended, 1);
        record::duration(
            &raw mut (*counters).wait,
            series::wait(index as usize),
            wait_ns,
        );
    }
}

#[inline(always)]
unsafe fn give_up(held: *mut Held, counters: *mut CellCounters, waited: bool) {
    // SAFETY: the caller passes map values.
    unsafe {
        if waited {
            record::add(&raw mut (*counters).aborted, 1);
            let wait_ns = now().wrapping_sub((*held).since_ns);
            record::add(&raw mut (*counters).aborted_wait_ns, wait_ns);
        } else {
            record::add(&raw mut (*counters).try_failed, 1);
        }
        (*held).state = state::FREE;
    }
}

/// An acquire function returned without the lock: a trylock, or a killed waiter.
#[inline(always)]
pub(crate) fn failed(taken: Taken, here: Here, site: Site) {
    let Some(slot) = slot::claim() else { return };
    // SAFETY: the slot and what is found in it are map values.
    unsafe {
        let index = classify(slot, taken, here, site);
        let Some(counters) = record::cell(index) else {
            return;
        };
        match slot::held(slot, taken.address, state::WAITING) {
            Some(waiting) => give_up(waiting, counters, true),
            None => record::add(&raw mut (*counters).try_failed, 1),
        }
    }
}

/// The task entered the slow path of a lock whose acquire function is hooked too, so that it need
/// not be known here which cell the wait belongs to.
#[inline(always)]
pub(crate) fn slow_path(address: u64) {
    let Some(slot) = slot::claim() else { return };
    // SAFETY: the slot and what is found in it are map values.
    unsafe {
        if flags(flag::AT_ENTRY) != 0 {
            // The wait began at the entry of the acquire function.
            if let Some(held) = slot::held(slot, address, state::TRYING) {
                (*held).state = state::TRYING_WAITING;
            } else if let Some(held) = slot::held(slot, address, state::HELD) {
                (*held).state = state::WAITING;
            }
        } else {
            wait_begins(slot, address, 0);
        }
    }
}

/// The task entered a slow path and nothing else of the acquisition is hooked: who called is read
/// from the stack.
#[inline(always)]
pub(crate) fn slow_path_of(taken: Taken, stack: &site::Stack) {
    let Some(slot) = slot::claim() else { return };
    // SAFETY: the slot is a map value.
    unsafe { wait_begins(slot, taken.address, cell_of(taken, stack.site, stack.op)) };
}

#[inline(always)]
unsafe fn wait_begins(slot: *mut Slot, address: u64, cell: u32) {
    // SAFETY: the caller passes a map value.
    unsafe {
        let held = match slot::held(slot, address, state::WAITING) {
            Some(stale) => stale,
            None => {
                let Some(room) = slot::room(slot) else { return };
                room
            }
        };
        (*held).address = address;
        (*held).cell = cell;
        (*held).state = state::WAITING;
        let since_ns = now();
        (*held).since_ns = since_ns;
        (*slot).touched_ns = since_ns;
    }
}

/// Whether a wait for that lock is known: a second `contention_begin` of one wait.
#[inline(always)]
pub(crate) fn is_waiting(address: u64) -> bool {
    let Some(slot) = slot::find() else {
        return false;
    };
    // SAFETY: the slot is a map value.
    unsafe { slot::held(slot, address, state::WAITING) }.is_some()
}

/// The slow path returned.
#[inline(always)]
pub(crate) fn slow_path_done(address: u64, got_it: bool, followed: bool) {
    let Some(slot) = slot::find() else { return };
    // SAFETY: the slot and what is found in it are map values.
    unsafe {
        if let Some(held) = slot::held(slot, address, state::WAITING) {
            done(held, got_it, followed);
        }
    }
}

/// The slow path returned, to a hook that does not know of which lock.
#[inline(always)]
pub(crate) fn latest_slow_path_done(got_it: bool, followed: bool) {
    let Some(slot) = slot::find() else { return };
    // SAFETY: the slot and what is found in it are map values.
    unsafe {
        if let Some(held) = slot::latest(slot, state::WAITING, state::WAITING) {
            done(held, got_it, followed);
        }
    }
}

#[inline(always)]
unsafe fn done(held: *mut Held, got_it: bool, followed: bool) {
    // SAFETY: the caller passes a map value.
    unsafe {
        let Some(counters) = record::cell((*held).cell) else {
            return;
        };
        if !got_it {
            give_up(held, counters, true);
            return;
        }
        wait_ended(held, counters);
        become_held(held, followed && flags(flag::EVERY_ACQUISITION) != 0);
    }
}

/// A lock turned out not to be one of ours after its slow path was remembered.
#[inline(always)]
pub(crate) fn forget(address: u64) {
    let Some(slot) = slot::find() else { return };
    // SAFETY: the slot and what is found in it are map values.
    unsafe {
        if let Some(held) = slot::held(slot, address, state::WAITING) {
            (*held).state = state::FREE;
        }
    }
}

/// The release function was called.
#[inline(always)]
pub(crate) fn release(address: u64) {
    let end_ns = now();
    if !try_release(address, end_ns) {
        record::miss(miss::UNMATCHED_RELEASE);
    }
}

/// The release function was called with a lock that may be one of ours.
#[inline(always)]
pub(crate) fn release_if_held(address: u64) {
    try_release(address, now());
}

#[inline(always)]
fn try_release(address: u64, end_ns: u64) -> bool {
    let Some(slot) = slot::find() else {
        return false;
    };
    // SAFETY: the slot and what is found in it are map values.
    unsafe {
        let Some(held) = slot::held(slot, address, state::HELD) else {
            return false;
        };
        hold_ended(held, end_ns);
        (*held).state = state::FREE;
    }
    true
}

#[inline(always)]
unsafe fn hold_ended(held: *mut Held, end_ns: u64) {
    // SAFETY: the caller passes a map value.
    unsafe {
        let index = (*held).cell;
        let Some(counters) = record::cell(index) else {
            return;
        };
        let hold_ns = end_ns.wrapping_sub((*held).since_ns);
        record::add(&raw mut (*counters).releases, 1);
        record::duration(
            &raw mut (*counters).hold,
            series::hold(index as usize),
            hold_ns,
        );
    }
}

/// A write hold became a read hold.
#[inline(always)]
pub(crate) fn downgrade(taken: Taken) {
    let end_ns = now();
    let Some(slot) = slot::find() else { return };
    // SAFETY: the slot and what is found in it are map values.
    unsafe {
        let Some(held) = slot::held(slot, taken.address, state::HELD) else {
            return record::miss(miss::UNMATCHED_RELEASE);
        };
        hold_ended(held, end_ns);
        let op = (*held).cell % Op::COUNT as u32;
        let index = cell_of(taken, site::UNKNOWN, op);
        let Some(counters) = record::cell(index) else {
            return;
        };
        record::add(&raw mut (*counters).acquisitions, 1);
        (*held).cell = index;
        (*held).since_ns = now();
    }
}
