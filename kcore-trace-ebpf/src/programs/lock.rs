//! The state machine of one acquisition, the same for every kind of lock.
//!
//! By fentry and fexit: [`slow_path`] (if contended) → [`acquired`] or [`failed`] → [`release`].
//! By kprobes, where an exit hook is dear: [`acquired`] at the entry of a function that can't fail,
//! or [`trying`] and [`tried`] around one that can, then [`slow_path`] and [`latest_slow_path_done`].
//! Where nothing but slow paths is hooked, at level contended and by tracepoint: [`slow_path_alone`], then
//! [`slow_path_alone_done`] or [`latest_slow_path_alone_done`]. Their programs have nothing of what the others
//! do: what a program never comes to still takes its time when it is loaded. By kprobe, spinlocks whose
//! releases are not hooked begin to wait like that at level full too.
//!
//! A wait is kept by the task, in its slot, and so is a hold. By fentry, the exclusive hold of a lock with a
//! fixed address is kept at the place of the lock, where it is found without looking for the task.
//!
//! Invariant: an acquisition is counted once, under the cell that its release will be counted
//! under, and a wait is counted only when it ended.

use core::ptr::read_volatile;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_log_ebpf::debug;
use kcore_trace_ebpf::layout::{self, Held, Slot, flag, miss, state, text};
use kcore_trace_ebpf::words::{Intent, Kind, Lock, Mode, Op, cell};

use super::audit::{self, Acquisition};
use super::blame as blamed;
use super::constants::{is_set, kernel};
use super::holder::{self, At, Hold};
use super::record::{self, Cpu, Series};
use super::site::{self, Caller, Site};
use super::slot::{self, Here};
use super::waits::{self, Returned};
use super::{Context, hidden, inside, node, number, op, reader, worst};

/// A lock as it is being taken or released.
#[derive(Clone, Copy)]
pub(crate) struct Taken {
    /// Of a spinlock perhaps what the verifier knows as a pointer: most have no use for the number.
    address: u64,
    /// The number of the role: a whole word, so that it is compared as it is.
    lock: u64,
    mode: Mode,
    /// Not known by tracepoint, where it makes no difference.
    kind: Option<Kind>,
    /// Whether it is only tried.
    tries: bool,
}

impl Taken {
    /// The same, of which the verifier forgets both address and role, so that it follows one path for all.
    #[inline(always)]
    pub(crate) fn forgotten(self) -> Self {
        Self {
            address: record::forget(self.address),
            lock: record::forget(self.lock),
            ..self
        }
    }

    /// A spinlock, of which the verifier forgets the role alone: its address may be a pointer.
    #[inline(always)]
    pub(crate) fn spinlock(address: u64, lock: Lock) -> Self {
        Self {
            address,
            lock: record::forget(lock as u64),
            mode: Mode::Exclusive,
            kind: Some(Kind::Spinlock),
            tries: false,
        }
    }

    /// The same, by a function that does not wait.
    #[inline(always)]
    pub(crate) fn trying(self) -> Self {
        Self {
            tries: true,
            ..self
        }
    }

    /// One whose role is known as a number.
    #[inline(always)]
    pub(crate) fn numbered(address: u64, lock: u32, kind: Option<Kind>, mode: Mode) -> Self {
        Self {
            address,
            lock: lock.into(),
            mode,
            kind,
            tries: false,
        }
    }

    #[inline(always)]
    fn address(self) -> u64 {
        if self.spins() {
            number(self.address)
        } else {
            self.address
        }
    }

    #[inline(always)]
    fn spins(self) -> bool {
        self.kind == Some(Kind::Spinlock)
    }

    /// Whether its release is hooked too, so that the holder is worth remembering.
    #[inline(always)]
    fn followed(self) -> bool {
        !self.spins() || is_set::<{ flag::SPIN_RELEASES }>()
    }

    #[inline(always)]
    pub(crate) fn is(self, lock: Lock) -> bool {
        self.lock == lock as u64
    }

    /// Whether its address is fixed: no block has an rwsem.
    #[inline(always)]
    fn has_place(self) -> bool {
        self.kind == Some(Kind::Rwsem) || !self.is(Lock::VmapBlock)
    }

    /// Where its holder is kept.
    #[inline(always)]
    fn at(self) -> At {
        if self.has_place() {
            self.at_its_place()
        } else {
            At::hashed(self.address())
        }
    }

    /// The same of a lock that has a place.
    #[inline(always)]
    fn at_its_place(self) -> At {
        if self.spins() {
            At::fixed(self.lock, self.address())
        } else {
            At::of_role(self.lock)
        }
    }

    /// The same of a lock that was waited for: much comes after, which the verifier would follow twice.
    #[inline(always)]
    fn at_of_waited(self) -> At {
        if self.kind == Some(Kind::Rwsem) {
            self.at_its_place()
        } else {
            At::of(self.lock, self.address())
        }
    }

    /// Who must have taken what is released now. While one holds a spinlock no program of another task runs
    /// in between; of others an acquisition and the release before it may both have been missed.
    #[inline(always)]
    fn releaser(self) -> Option<u64> {
        (!self.spins()).then(slot::current)
    }

    /// Whether its holds are kept at its place, if it has one.
    #[inline(always)]
    fn is_kept_at_place(self) -> bool {
        matches!(self.mode, Mode::Exclusive) && is_set::<{ flag::HOLDS_AT_PLACE }>()
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// The site of a return address; one that is in no table is counted.
#[inline(always)]
fn site(address: u64) -> Site {
    match site::of(address) {
        Some(site) => site,
        None => {
            record::miss(miss::UNKNOWN_SITE);
            if is_set::<{ flag::LOGS }>() {
                say_unknown(address.wrapping_sub(kernel::<{ text::START }>()));
            }
            site::UNKNOWN
        }
    }
}

static CELLS: [u16; cell::BY_OP.len()] = cell::BY_OP;

/// The cell of an acquisition in an op, where that does not depend on the site.
#[inline(always)]
fn cell_by_op(taken: Taken, op: u32) -> Option<u32> {
    let index = of_mode(taken) * cell::OPS as u64 + u64::from(op);
    let index = hidden(index) & (CELLS.len() as u64 - 1);
    // SAFETY: the index is inside the table; hidden from the compiler, or it removes the mask that
    // tells the verifier so.
    match unsafe { read_volatile(CELLS.as_ptr().add(index as usize)) } {
        cell::BY_SITE => None,
        cell => Some(cell.into()),
    }
}

/// The cell of an acquisition at a site, in an op if one is known.
#[inline(always)]
fn cell_by_site(taken: Taken, op: Option<u32>, site: Site) -> u32 {
    let op = op.unwrap_or(site.op);
    match cell_by_op(taken, op) {
        Some(cell) => cell,
        None => cell_of(taken, intent_at(taken, site), op),
    }
}

/// What a site does with a lock. Its intent is about the index: of a block everybody but a reader of
/// /proc/kcore changes something.
#[inline(always)]
fn intent_at(taken: Taken, site: Site) -> u32 {
    if taken.is(Lock::VmapBlock) && site.op != Op::Vread as u32 {
        Intent::Write as u32
    } else {
        site.intent
    }
}

#[inline(always)]
fn cell_of(taken: Taken, intent: u32, op: u32) -> u32 {
    // As in `cell::index`.
    (of_mode(taken) as u32 * Intent::COUNT as u32 + intent) * Op::COUNT as u32 + op
}

#[inline(always)]
fn of_mode(taken: Taken) -> u64 {
    taken.lock * Mode::COUNT as u64 + taken.mode as u64
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

/// What an acquisition is counted under.
#[derive(Clone, Copy)]
struct Class {
    cell: u32,
    /// The return address, where somebody asks for it.
    site: u64,
}

/// The site of a caller whose return address was read, or else is read now.
#[inline(always)]
fn site_of<const AUDITED: bool>(read: u64, caller: Caller) -> Site {
    if AUDITED && audit::looks() {
        site(read)
    } else {
        site(site::caller(caller))
    }
}

#[inline(always)]
unsafe fn classify<const AUDITED: bool>(
    slot: *mut Slot,
    taken: Taken,
    here: Here,
    caller: Caller,
) -> Class {
    // Only where it is asked for: to read who called is half of what an acquisition costs.
    let read = if AUDITED && audit::looks() {
        site::caller(caller)
    } else {
        0
    };
    let sp = slot::stack_address(here);
    // SAFETY: the caller passes a map value.
    let live = unsafe { slot::live_op(slot, sp) };
    let Some(live) = live else {
        let cell = cell_by_site(taken, None, site_of::<AUDITED>(read, caller));
        return Class { cell, site: read };
    };
    // SAFETY: as above.
    let looks_up = || unsafe { slot::looks_up(slot, sp) };
    if let Some(cell) = cell_by_op(taken, live.op) {
        if let Mode::Shared = taken.mode {
            op::learn(live, looks_up());
        }
        return Class { cell, site: read };
    }
    let looks_up = looks_up();
    let intent = if op::tells_look_ups(live) {
        if looks_up {
            Intent::Read as u32
        } else {
            Intent::Write as u32
        }
    } else {
        let site = site_of::<AUDITED>(read, caller);
        let intent = intent_at(taken, site);
        op::learn(live, looks_up && intent == Intent::Read as u32);
        intent
    };
    let cell = cell_of(taken, intent, live.op);
    Class { cell, site: read }
}

/// The task owns the lock, or is about to without having met a slow path.
#[inline(always)]
pub(crate) fn acquired(taken: Taken, here: Here, caller: Caller) {
    returned(taken, true, here, caller);
}

/// An acquire function returned: with the lock, or it was only tried, or the waiter was killed.
#[inline(always)]
pub(crate) fn returned(taken: Taken, got_it: bool, here: Here, caller: Caller) {
    // Asked once: what depends on it is known to the compiler then.
    if !taken.is_kept_at_place() {
        decided::<false, true>(taken, got_it, here, caller);
    } else if audit::looks() {
        decided::<true, true>(taken, got_it, here, caller);
    } else {
        decided::<true, false>(taken, got_it, here, caller);
    }
}

/// The same, where holds are kept at the place of the lock if it has one of its own, or else by tasks; and
/// where there may be an audit.
#[inline(always)]
fn decided<const AT_PLACE: bool, const AUDITED: bool>(
    taken: Taken,
    got_it: bool,
    here: Here,
    caller: Caller,
) {
    let Some(slot) = slot::claim() else { return };
    let cpu = record::cpu();
    // SAFETY: the slot and what is found in it are map values.
    unsafe {
        let Class { cell, site } = classify::<AUDITED>(slot, taken, here, caller);
        // However it was found, the verifier knows no more of it from here on than how many there are.
        let index = record::masked(cell);
        if !got_it {
            failed(slot, cpu, taken, index);
            return;
        }
        let of_cell = cpu.of_cell(index);
        let Some(counters) = record::counters(of_cell) else {
            return;
        };
        if AUDITED {
            audited(taken, Class { cell: index, site }, caller);
        }
        record::add(&raw mut (*counters).acquisitions, 1);
        node::acquired(cpu, index, || taken.address());
        let mut reader = reader::current(slot, here);
        if !AT_PLACE {
            reader = record::forget_half(reader);
        }
        let waiting = slot::held(slot, taken.address(), state::WAITING);
        if let Some(waiting) = waiting {
            (*waiting).reader = reader as u16;
            let wait_ns = now().wrapping_sub((*waiting).since_ns);
            wait_ended(
                taken.at_of_waited(),
                caller.context(),
                cpu,
                waiting,
                index,
                wait_ns,
            );
        }
        if AT_PLACE && taken.has_place() {
            if let Some(waiting) = waiting {
                slot::vacate(slot, waiting);
            }
            let at = taken.at_its_place();
            let taker = holder::Taker {
                reader,
                task: (*slot).owner,
                cpu: cpu.id(),
                of_cell,
                may_share: taken.kind == Some(Kind::Rwsem),
            };
            return holder::begin(at, taken.address(), index, taker);
        }
        let held = match waiting {
            Some(waiting) => waiting,
            None if taken.followed() => {
                let Some(room) = room_for(slot, taken) else {
                    return;
                };
                room
            }
            None => {
                record::occurs(index);
                return;
            }
        };
        (*held).cell = index;
        (*held).reader = reader as u16;
        if taken.followed() && blamed::counts() {
            (*held).turn = holder::took(
                taken.at(),
                taken.address(),
                taken.mode,
                index,
                reader as u16,
            );
            if let Mode::Shared = taken.mode
                && is_set::<{ flag::INSIDE }>()
                && taken.is(Lock::VmapArea)
            {
                inside::shared(caller.context(), index);
            }
        }
        become_held(slot, held, taken.followed());
    }
}

/// Tells the audit where the lock was taken, or will be.
#[inline(always)]
fn audited(taken: Taken, class: Class, caller: Caller) {
    if !audit::looks() {
        return;
    }
    let op = class.cell % Op::COUNT as u32;
    let how = layout::audit::how(taken.lock, taken.mode, taken.tries, op.into());
    let acquisition = Acquisition {
        how,
        site: class.site,
        spins: taken.spins(),
    };
    audit::acquired(caller, acquisition);
}

/// Room for a lock. A task that takes exclusively what it holds has released it unseen.
#[inline(always)]
unsafe fn room_for(slot: *mut Slot, taken: Taken) -> Option<*mut Held> {
    // SAFETY: the caller passes a map value.
    unsafe {
        if let Mode::Exclusive = taken.mode
            && let Some(stale) = slot::held(slot, taken.address(), state::HELD)
        {
            record::miss(miss::UNMATCHED_ACQUISITION);
            return Some(stale);
        }
        slot::occupy(slot, taken.address(), state::HELD)
    }
}

/// An acquire function that may fail was called; [`tried`] tells the outcome.
#[inline(always)]
pub(crate) fn trying(taken: Taken, here: Here, caller: Caller) {
    let Some(slot) = slot::claim() else { return };
    // SAFETY: the slot and what is found in it are map values.
    unsafe {
        let class = classify::<true>(slot, taken, here, caller);
        audited(taken, class, caller);
        let Some(room) = slot::occupy(slot, taken.address(), state::TRYING) else {
            return;
        };
        (*room).cell = class.cell;
        (*room).reader = record::forget_half(reader::current(slot, here)) as u16;
        since_now(slot, room);
    }
}

/// The acquire function that [`trying`] saw has returned.
#[inline(always)]
pub(crate) fn tried(ctx: Context, got_it: bool, followed: bool) {
    let Some(slot) = slot::find() else { return };
    let cpu = record::cpu();
    // SAFETY: the slot and what is found in it are map values.
    unsafe {
        let tried = slot::latest(slot, state::TRYING, state::TRYING_WAITING);
        let Some(held) = tried else { return };
        let index = (*held).cell;
        let Some(counters) = cpu.cell(index) else {
            return;
        };
        let waited = (*held).state == state::TRYING_WAITING;
        if !got_it {
            give_up(slot, held, cpu, waited);
            return;
        }
        record::add(&raw mut (*counters).acquisitions, 1);
        node::acquired(cpu, index, || (*held).address);
        if waited {
            let wait_ns = now().wrapping_sub((*held).since_ns);
            wait_ended(unknown_place(held), ctx, cpu, held, index, wait_ns);
        }
        become_held(slot, held, followed);
    }
}

/// Where a holder would be kept, at hooks that know no holders.
#[inline(always)]
unsafe fn unknown_place(held: *const Held) -> At {
    // SAFETY: the caller passes a map value.
    At::hashed(unsafe { (*held).address })
}

/// The clock of a hold or a wait starts. Read last, so that our own work is not booked as either.
#[inline(always)]
unsafe fn since_now(slot: *mut Slot, held: *mut Held) {
    // SAFETY: the caller passes map values.
    unsafe {
        let since_ns = now();
        (*held).since_ns = since_ns;
        (*slot).touched_ns = since_ns;
    }
}

#[inline(always)]
unsafe fn become_held(slot: *mut Slot, held: *mut Held, followed: bool) {
    // SAFETY: the caller passes map values.
    unsafe {
        if followed {
            (*held).state = state::HELD;
            since_now(slot, held);
        } else {
            record::occurs((*held).cell);
            slot::vacate(slot, held);
        }
    }
}

#[inline(always)]
unsafe fn wait_counted(cpu: Cpu, held: *mut Held, index: u32, wait_ns: u64) {
    record::waited(index, wait_ns);
    // SAFETY: the caller passes a map value.
    node::waited(cpu, index, unsafe { (*held).address }, wait_ns);
}

#[inline(always)]
unsafe fn wait_ended(at: At, ctx: Context, cpu: Cpu, held: *mut Held, index: u32, wait_ns: u64) {
    // SAFETY: the caller passes map values.
    unsafe {
        wait_counted(cpu, held, index, wait_ns);
        if is_set::<{ flag::INSIDE }>() {
            reader::waited((*held).reader.into(), wait_ns);
        }
        if blamed::counts() {
            let holder = holder::blamed(at, held);
            blamed::waited(index, holder.purpose.into(), wait_ns);
            if is_set::<{ flag::INSIDE }>() {
                reader::inflicted(holder.reader.into(), wait_ns);
            }
        }
        if is_set::<{ flag::INSIDE }>() {
            worst::waited(at, ctx, held, index, wait_ns);
            inside::waited(held, index);
        }
    }
}

#[inline(always)]
unsafe fn give_up(slot: *mut Slot, held: *mut Held, cpu: Cpu, waited: bool) {
    // SAFETY: the caller passes map values.
    unsafe {
        if waited {
            let wait_ns = now().wrapping_sub((*held).since_ns);
            record::occurs((*held).cell);
            if let Some(rare) = cpu.rare((*held).cell) {
                record::add(&raw mut (*rare).aborted, 1);
                record::add(&raw mut (*rare).aborted_wait_ns, wait_ns);
            }
        } else {
            try_failed(cpu, (*held).cell);
        }
        slot::vacate(slot, held);
    }
}

#[inline(always)]
unsafe fn try_failed(cpu: Cpu, cell: u32) {
    record::occurs(cell);
    if let Some(rare) = cpu.rare(cell) {
        // SAFETY: a map value.
        unsafe { record::add(&raw mut (*rare).try_failed, 1) };
    }
}

#[inline(always)]
unsafe fn failed(slot: *mut Slot, cpu: Cpu, taken: Taken, index: u32) {
    // SAFETY: the caller passes a map value.
    unsafe {
        match slot::held(slot, taken.address(), state::WAITING) {
            Some(waiting) => {
                // Where only the slow path was seen before, the cell was not known.
                (*waiting).cell = index;
                give_up(slot, waiting, cpu, true);
            }
            None => try_failed(cpu, index),
        }
    }
}

/// The task entered the slow path of a lock whose acquire function is hooked too, so that it need
/// not be known here which cell the wait belongs to, nor, where blocks are taken, whether it is one of
/// ours.
#[inline(always)]
pub(crate) fn slow_path(at: At, address: u64, is_ours: bool) {
    // Forgotten, so that the verifier follows one path for both.
    let cell = record::forget_half(if is_ours { 0 } else { cell::UNKNOWN });
    let Some(slot) = slot::claim() else { return };
    // SAFETY: the slot and what is found in it are map values.
    unsafe {
        if is_set::<{ flag::AT_ENTRY }>() {
            // The wait began at the entry of the acquire function.
            if let Some(held) = slot::held(slot, address, state::TRYING) {
                (*held).state = state::TRYING_WAITING;
            } else if let Some(held) = slot::held(slot, address, state::HELD) {
                (*held).state = state::WAITING;
            }
        } else {
            wait_begins(slot, address, cell, blamed::counts().then_some(at), false);
        }
    }
}

/// The task entered a slow path and nothing else of the acquisition is known: who called is read
/// from the stack.
#[inline(always)]
pub(crate) fn slow_path_alone(taken: Taken, stack: &site::Stack) {
    let cell = record::forget_half(cell_by_site(taken, Some(stack.op), stack.site));
    let Some(slot) = slot::claim() else { return };
    let alone = !is_set::<{ flag::EVERY_ACQUISITION }>();
    // SAFETY: the slot is a map value.
    unsafe { wait_begins(slot, taken.address(), cell, None, alone) };
}

#[inline(always)]
unsafe fn wait_begins(slot: *mut Slot, address: u64, cell: u32, asks: Option<At>, alone: bool) {
    // SAFETY: the caller passes a map value.
    unsafe {
        let held = match slot::held(slot, address, state::WAITING) {
            Some(stale) => {
                (*stale).slept_ns = 0;
                stale
            }
            None => {
                let Some(room) = slot::occupy(slot, address, state::WAITING) else {
                    return;
                };
                if alone {
                    waits::begins(cell);
                }
                room
            }
        };
        (*held).cell = cell;
        if let Some(at) = asks {
            holder::ask(at, slot, held, address);
        }
        since_now(slot, held);
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

/// The slow path returned, and nothing else of the acquisition is hooked.
#[inline(always)]
pub(crate) fn slow_path_alone_done(returned: Returned, address: u64, got_it: bool) {
    if !waits::may_be_one(returned) {
        return;
    }
    let Some(slot) = slot::find() else { return };
    // SAFETY: the slot and what is found in it are map values.
    unsafe {
        if let Some(held) = slot::held(slot, address, state::WAITING) {
            done_alone(slot, held, got_it);
        }
    }
}

/// The same, to a hook that does not know of which lock.
#[inline(always)]
pub(crate) fn latest_slow_path_alone_done(returned: Returned, got_it: bool) {
    if !waits::may_be_one(returned) {
        return;
    }
    let Some(slot) = slot::find() else { return };
    // SAFETY: the slot and what is found in it are map values.
    unsafe {
        if let Some(held) = slot::latest(slot, state::WAITING, state::WAITING) {
            done_alone(slot, held, got_it);
        }
    }
}

#[inline(always)]
unsafe fn done_alone(slot: *mut Slot, held: *mut Held, got_it: bool) {
    let cpu = record::cpu();
    // SAFETY: the caller passes map values.
    unsafe {
        let cell = (*held).cell;
        if got_it {
            let wait_ns = now().wrapping_sub((*held).since_ns);
            wait_counted(cpu, held, cell, wait_ns);
            become_held(slot, held, false);
        } else {
            give_up(slot, held, cpu, true);
        }
        waits::ends(cell);
    }
}

/// The slow path of an acquisition whose entry is hooked too returned, to a hook that does not know of which
/// lock.
#[inline(always)]
pub(crate) fn latest_slow_path_done(ctx: Context, got_it: bool, followed: bool) {
    let Some(slot) = slot::find() else { return };
    let cpu = record::cpu();
    // SAFETY: the slot and what is found in it are map values.
    unsafe {
        let waited = slot::latest(slot, state::WAITING, state::WAITING);
        let Some(held) = waited else { return };
        if !got_it {
            give_up(slot, held, cpu, true);
            return;
        }
        let wait_ns = now().wrapping_sub((*held).since_ns);
        wait_ended(unknown_place(held), ctx, cpu, held, (*held).cell, wait_ns);
        become_held(slot, held, followed);
    }
}

/// A task waits for a lock no more, if it was thought to: the lock turned out not to be one of ours, or that
/// the task got it was not seen.
#[inline(always)]
pub(crate) fn forget(address: u64) {
    let Some(slot) = slot::find() else { return };
    // SAFETY: the slot and what is found in it are map values.
    unsafe {
        if let Some(held) = slot::held(slot, address, state::WAITING) {
            slot::vacate(slot, held);
        }
    }
}

/// The release function was called, with a lock that has a fixed address.
#[inline(always)]
pub(crate) fn release(ctx: Context, taken: Taken) {
    let end_ns = now();
    if !taken.is_kept_at_place() {
        if !try_release(ctx, taken, end_ns) {
            record::miss(miss::UNMATCHED_RELEASE);
        }
        return;
    }
    match holder::end(taken.at_its_place(), taken.releaser()) {
        Some(hold) => hold_ended(&hold, end_ns),
        None => {
            record::miss(miss::UNMATCHED_RELEASE);
            if !taken.spins() {
                forget(taken.address());
            }
        }
    }
}

/// The release function was called with a lock that may be one of ours.
#[inline(always)]
pub(crate) fn release_if_held(ctx: Context, taken: Taken) {
    try_release(ctx, taken, now());
}

#[inline(always)]
fn try_release(ctx: Context, taken: Taken, end_ns: u64) -> bool {
    let Some(slot) = slot::find() else {
        return false;
    };
    // SAFETY: the slot and what is found in it are map values.
    unsafe {
        let Some(held) = slot::held(slot, taken.address(), state::HELD) else {
            // That it has the lock was not seen, or the lock is none of ours: it waits no more.
            if let Some(waiting) = slot::held(slot, taken.address(), state::WAITING) {
                slot::vacate(slot, waiting);
            }
            return false;
        };
        hold_ended(&Hold::of(held), end_ns);
        if is_set::<{ flag::STACKS }>() && blamed::counts() {
            worst::released(taken.at(), ctx, held, end_ns);
        }
        slot::vacate(slot, held);
    }
    if blamed::counts() {
        holder::left(taken.at(), taken.address(), taken.mode);
    }
    true
}

#[inline(always)]
fn hold_ended(held: &Hold, end_ns: u64) {
    let cpu = held.cpu;
    let index = held.cell;
    let Some(counters) = record::counters(held.of_cell) else {
        return;
    };
    // SAFETY: map values.
    unsafe {
        let hold_ns = end_ns.wrapping_sub(held.since_ns);
        record::add(&raw mut (*counters).releases, 1);
        let series = Series::hold(index);
        let hold = &raw mut (*counters).hold;
        cpu.duration(hold, series, hold_ns, || {
            record::occurs(index);
        });
        if is_set::<{ flag::INSIDE }>() {
            reader::held(held.reader, index, hold_ns, end_ns);
        }
    }
}

/// A write hold became a read hold.
#[inline(always)]
pub(crate) fn downgrade(before: Taken, taken: Taken) {
    let end_ns = now();
    let Some(slot) = slot::claim() else { return };
    // SAFETY: the slot and what is found in it are map values.
    unsafe {
        let (hold, held) = if before.is_kept_at_place() {
            let Some(hold) = holder::end(before.at_its_place(), before.releaser()) else {
                return record::miss(miss::UNMATCHED_RELEASE);
            };
            let Some(room) = slot::occupy(slot, taken.address(), state::HELD) else {
                return;
            };
            (*room).reader = hold.reader as u16;
            (hold, room)
        } else {
            let Some(held) = slot::held(slot, taken.address(), state::HELD) else {
                return record::miss(miss::UNMATCHED_RELEASE);
            };
            (Hold::of(held), held)
        };
        hold_ended(&hold, end_ns);
        let op = hold.cell % Op::COUNT as u32;
        let index = cell_of(taken, Intent::Read as u32, op);
        let Some(counters) = record::cpu().cell(index) else {
            return slot::vacate(slot, held);
        };
        record::add(&raw mut (*counters).acquisitions, 1);
        if blamed::counts() {
            (*held).turn = holder::took(
                taken.at(),
                taken.address(),
                taken.mode,
                index,
                (*held).reader,
            );
        }
        (*held).cell = index;
        (*held).since_ns = now();
    }
}
