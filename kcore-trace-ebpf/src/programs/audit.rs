//! May this path sleep? In which contexts each site takes each lock.
//!
//! In: acquisitions, and calls of functions that are asked about. Out: for each CPU a table of site,
//! lock and context with a count and an example stack. The context is what the preempt count of the
//! CPU and the depth of RCU read sections of the task say beyond what our own hook adds to them,
//! which userspace has seen in a task that may sleep; by kprobe also the flags of the processor.
//!
//! Invariant: an acquisition is counted in one row, or as a miss: there is no row left, or an
//! interrupt came while one was being begun. Off, it costs nothing: the flag is a constant.

use core::arch::asm;
use core::ffi::c_void;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_get_stack, bpf_this_cpu_ptr};
use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_kernel};
use kcore_trace_ebpf::layout::{
    AUDIT_ROWS, AUDIT_STACKS, AUDIT_WAYS, AuditRow, AuditState, AuditTable, HELD, Slot, Stack,
    audit, blame, flag, miss, state,
};
use kcore_trace_ebpf::words::{Context as Word, Mode, Op};

use super::constants::{flags, is_set};
use super::maps::{self, Shared};
use super::record::{self, add};
use super::site::Caller;
use super::{Context, choose, hidden, holder, programs, slot};

/// What userspace knows and wants to know.
#[unsafe(link_section = ".bss.audit")]
#[unsafe(no_mangle)]
static AUDIT_STATE: Shared<AuditState> = Shared::new(AuditState {
    ready: 0,
    witness: 0,
    seen: 0,
    spinning: 0,
    sleeping: 0,
    rcu: 0,
});

/// Whether contexts are looked at.
#[inline(always)]
pub(crate) fn looks() -> bool {
    is_set::<{ flag::AUDIT }>()
}

/// An acquisition, as far as its hook knows it.
#[derive(Clone, Copy)]
pub(crate) struct Acquisition {
    /// [`audit::how`].
    pub(crate) how: u64,
    /// The return address.
    pub(crate) site: u64,
    /// Whether the hook is on an acquired spinlock, which has preemption off.
    pub(crate) spins: bool,
}

/// One, unless the bits are all zero; of the lower half of a word.
#[inline(always)]
fn any(bits: u64) -> u64 {
    hidden(bits + 0xffff_ffff) >> 32
}

/// One if `a` is above `b`; of the lower half of words.
#[inline(always)]
fn above(a: u64, b: u64) -> u64 {
    hidden(b.wrapping_sub(a)) >> 63
}

const fn bit(context: Word, set: u64) -> u64 {
    set << context as u32
}

/// How many vmap locks the current task holds that are spinlocks.
#[inline(always)]
fn spinlocks_held() -> u64 {
    let Some(slot) = slot::find() else { return 0 };
    // SAFETY: the slot is a map value.
    unsafe { spinlocks_kept(slot) + holder::spinlocks_held((*slot).owner) }
}

/// Those that the task keeps itself.
#[inline(always)]
unsafe fn spinlocks_kept(slot: *const Slot) -> u64 {
    let mut held = 0;
    // SAFETY: the caller passes a map value; the index is inside the array.
    unsafe {
        if (*slot).in_use == 0 {
            return 0;
        }
        for index in 0..HELD {
            let lock = &raw const (*slot).held[index];
            let spins =
                flags::<{ flag::SPINLOCKS }>() >> (blame::lock((*lock).cell.into()) & 63) & 1;
            let difference = u64::from((*lock).state ^ state::HELD);
            held += spins & (any(difference) ^ 1);
        }
    }
    held
}

/// Interrupts that were off at the hook, as a context: a trampoline cannot tell.
#[inline(always)]
pub(crate) fn interrupts_off(caller: Caller) -> u64 {
    match caller {
        Caller::Trampoline(..) | Caller::Entry(_) => 0,
        Caller::Probe(ctx) => bit(Word::InterruptsOff, interrupts(ctx) ^ 1),
    }
}

/// `X86_EFLAGS_IF` of the registers of a probe.
#[inline(always)]
fn interrupts(ctx: Context) -> u64 {
    hidden(ctx.probe_flags()) >> 9 & 1
}

/// A lock was taken, or will be.
#[inline(always)]
pub(crate) fn acquired(caller: Caller, acquisition: Acquisition) {
    let Acquisition { how, site, spins } = acquisition;
    let how = how | u64::from(spins) << 32;
    count(caller.context(), site, how, interrupts_off(caller));
}

/// An op began, seen by its own hook.
#[inline(always)]
pub(crate) fn entered(caller: Caller, op: Op) {
    if looks() {
        called(caller, audit::OP_FUNCTION, op, ONLY_ATOMIC);
    }
}

/// Among what stands above how: a task that may sleep is not worth counting.
const ONLY_ATOMIC: u64 = 1 << 1;

/// A function was called; a number stands for its address.
#[inline(always)]
fn called(caller: Caller, function: u64, op: Op, only: u64) {
    let how = audit::how(audit::NO_LOCK, Mode::Exclusive, false, op as u64);
    // A probe has preemption off, as a spinlock has; also where all else is hooked by trampolines.
    let beside = u64::from(matches!(caller, Caller::Probe(_))) | only;
    count(
        caller.context(),
        function,
        how | beside << 32,
        interrupts_off(caller),
    );
}

/// Counts at a site, in the contexts that are known and those that are seen here. How has above it
/// whether the hook has preemption off, as one on an acquired spinlock, and [`ONLY_ATOMIC`].
///
/// A function of its own, which is verified apart.
#[inline(never)]
fn count(ctx: Context, site: u64, how: u64, known: u64) -> u64 {
    let Some(table) = maps::AUDIT.get_ptr_mut(record::cpu_id()) else {
        return 0;
    };
    let (how, beside) = (how & 0xffff_ffff, how >> 32);
    let spins = beside & 1;
    // SAFETY: the table is a map value, the state a static; the helpers check addresses.
    unsafe {
        let preempt_count = preempt_count(table);
        let rcu = rcu_depth();
        let state = AUDIT_STATE.get();
        if read_volatile(&raw const (*state).ready) == 0 {
            let is_lock = how & 15 != audit::NO_LOCK;
            if spins != 0
                && is_lock
                && bpf_get_current_task() == read_volatile(&raw const (*state).witness)
            {
                let words = audit::words(preempt_count as u32, rcu as u32);
                write_volatile(&raw mut (*state).seen, words);
            }
            return 0;
        }
        let spinning = read_volatile(&raw const (*state).spinning);
        let sleeping = read_volatile(&raw const (*state).sleeping);
        let base = choose(spins, spinning, sleeping);
        let no_rcu = read_volatile(&raw const (*state).rcu);
        let counts = preempt_count & audit::ALL;
        let mut contexts = known;
        // Nearly always nothing is beyond that of a task that may sleep. A spinlock that is held raises the
        // count, but where the kernel keeps none, which is zero here then.
        if counts != base || rcu != no_rcu || spinning == 0 {
            let spinlocks = spinlocks_held();
            // What the task's own vmap spinlocks have off is told apart.
            contexts |= told(counts, base + spinlocks, rcu, no_rcu);
            contexts |= bit(Word::Spinlock, any(spinlocks));
        }
        if contexts == 0 && beside & ONLY_ATOMIC != 0 {
            return 0;
        }
        let key = audit::key(site, how, contexts);
        match row(table, key) {
            Some(row) => add(&raw mut (*row).count, 1),
            None => begin_row(ctx, table, key, contexts),
        }
    }
    0
}

/// The first of its kind on this CPU.
#[inline(always)]
unsafe fn begin_row(ctx: Context, table: *mut AuditTable, key: u64, contexts: u64) {
    // SAFETY: the caller passes a map value.
    unsafe {
        if let Some(row) = free(table, key)
            && read_volatile(&raw const (*table).busy) == 0
        {
            write_volatile(&raw mut (*table).busy, 1);
            // Whoever came in between has ended by now.
            let is_free = read_volatile(&raw const (*row).key) == 0;
            let mut room = None;
            if is_free {
                write_volatile(&raw mut (*row).count, 1);
                room = room_for_stack(table, contexts);
                write_volatile(&raw mut (*row).key, key);
            }
            // To walk the stack takes long, and an interrupt meanwhile may have a row of its own to begin.
            write_volatile(&raw mut (*table).busy, 0);
            if let Some(number) = room {
                (*row).stack = keep_stack(ctx, table, number);
            }
            if is_free {
                return;
            }
        }
        record::miss(miss::NO_AUDIT_ROW);
    }
}

/// What is beyond that of a task that may sleep.
#[inline(always)]
fn told(counts: u64, base: u64, rcu: u64, no_rcu: u64) -> u64 {
    let interrupt = bit(Word::Nmi, any(counts & audit::NMI))
        | bit(Word::Hardirq, any(counts & audit::HARDIRQ))
        | bit(Word::Softirq, any(counts & audit::SERVING_SOFTIRQ));
    // An interrupt may not sleep, whatever it interrupted.
    let is_task = any(interrupt) ^ 1;
    let task = bit(Word::SoftirqsOff, any(counts & audit::SOFTIRQS_OFF))
        | bit(Word::PreemptionOff, above(counts & audit::PREEMPT, base))
        | bit(Word::Rcu, above(rcu, no_rcu));
    interrupt | (task * is_task)
}

/// The preempt count of this CPU.
#[inline(always)]
unsafe fn preempt_count(table: *const AuditTable) -> u64 {
    let offset = flags::<{ flag::COUNT_OFFSET }>();
    // SAFETY: the verifier knows the type of the variable, and checks the constant offset against it;
    // or the helper checks the address, which is a map value.
    unsafe {
        if offset != 0 {
            let variable: u64;
            asm!("{0} = {1} ll", out(reg) variable, const audit::VARIABLE, options(pure, nomem, nostack));
            read_typed(bpf_this_cpu_ptr(variable as *const c_void), offset)
        } else {
            read_half((*table).preempt_count_at)
        }
    }
}

/// The depth of RCU read sections of the current task; zero where it is not known.
#[inline(always)]
unsafe fn rcu_depth() -> u64 {
    let offset = flags::<{ flag::RCU_OFFSET }>();
    if offset == 0 {
        return 0;
    }
    // SAFETY: the verifier knows the type of the task, and checks the constant offset against it; or
    // the helper checks the address.
    unsafe {
        if is_set::<{ flag::TYPED_TASK }>() {
            read_typed(bpf_get_current_task_btf().cast(), offset)
        } else {
            read_half(bpf_get_current_task() + offset - 1)
        }
    }
}

/// Four bytes of what the verifier knows the type of, at an offset that is given plus one.
#[inline(always)]
unsafe fn read_typed(pointer: *const c_void, offset: u64) -> u64 {
    // Hidden, so that the one is taken off before it becomes part of the pointer: some compilers in
    // the kernel read zero at a negative offset.
    let offset = hidden(offset - 1);
    // SAFETY: the verifier checks the offset, which it knows, against the type.
    unsafe { read_volatile(pointer.cast::<u8>().add(offset as usize).cast::<u32>()).into() }
}

/// Four bytes of kernel memory; zero where they can't be read.
#[inline(always)]
unsafe fn read_half(address: u64) -> u64 {
    // SAFETY: the helper checks the address.
    let read = unsafe { bpf_probe_read_kernel(address as *const u32) };
    read.unwrap_or(0).into()
}

#[inline(always)]
unsafe fn at(table: *mut AuditTable, key: u64, way: u64) -> *mut AuditRow {
    // The uppermost bits, which every bit of the key has a part in.
    let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - AUDIT_ROWS.trailing_zeros());
    let index = hidden(hash + way) & (AUDIT_ROWS as u64 - 1);
    // SAFETY: the caller passes a map value; the index is inside the array.
    unsafe {
        (&raw mut (*table).rows)
            .cast::<AuditRow>()
            .add(index as usize)
    }
}

#[inline(always)]
unsafe fn row(table: *mut AuditTable, key: u64) -> Option<*mut AuditRow> {
    for way in 0..AUDIT_WAYS as u64 {
        // SAFETY: the caller passes a map value.
        unsafe {
            let row = at(table, key, way);
            if (*row).key == key {
                return Some(row);
            }
        }
    }
    None
}

#[inline(always)]
unsafe fn free(table: *mut AuditTable, key: u64) -> Option<*mut AuditRow> {
    for way in 0..AUDIT_WAYS as u64 {
        // SAFETY: the caller passes a map value.
        unsafe {
            let row = at(table, key, way);
            if (*row).key == 0 {
                return Some(row);
            }
        }
    }
    None
}

/// The number of a place for an example stack, from now on in use. Two thirds of the room are for contexts
/// that forbid to sleep.
#[inline(always)]
unsafe fn room_for_stack(table: *mut AuditTable, contexts: u64) -> Option<u64> {
    // SAFETY: the caller passes a map value.
    unsafe {
        let used = read_volatile(&raw const (*table).used_stacks);
        let room = match contexts {
            0 => AUDIT_STACKS as u64 / 3,
            _ => AUDIT_STACKS as u64,
        };
        if used >= room {
            return None;
        }
        write_volatile(&raw mut (*table).used_stacks, used + 1);
        Some(used)
    }
}

/// Keeps the stack as an example, and says where, plus one; zero if it cannot be walked.
#[inline(always)]
unsafe fn keep_stack(ctx: Context, table: *mut AuditTable, number: u64) -> u64 {
    let index = hidden(number);
    if index >= AUDIT_STACKS as u64 {
        return 0;
    }
    // SAFETY: the caller passes a map value; the index is inside the array, and the helper writes no
    // more than it is told.
    unsafe {
        let stack = (&raw mut (*table).stacks)
            .cast::<Stack>()
            .add(index as usize);
        let size = size_of::<Stack>() as u32;
        let bytes = bpf_get_stack(ctx.as_ptr().cast(), stack.cast(), size, 0);
        match bytes > 0 {
            true => index + 1,
            false => 0,
        }
    }
}

programs! {
    // void vfree(const void *)
    "fentry" avfree_fe(ctx) { called(Caller::Entry(ctx), 0, Op::Free, ONLY_ATOMIC) }
    "kprobe" avfree_kp(ctx) { called(Caller::Probe(ctx), 0, Op::Free, ONLY_ATOMIC) }

    // void vfree_atomic(const void *), which puts off whatever it is given
    "fentry" avfreea_fe(ctx) { called(Caller::Entry(ctx), 1, Op::Free, 0) }
    "kprobe" avfreea_kp(ctx) { called(Caller::Probe(ctx), 1, Op::Free, 0) }
}
