//! The programs on BTF tracepoints, for kernels that allow neither fentry nor kprobes.
//!
//! In: `lock:contention_begin` and `contention_end`, and the `vmalloc` events. A lock is known by
//! its address where that is known, else by who called, read from the stack, and by where it
//! lies: static locks in the kernel image, the locks of nodes at their offsets in an array that the
//! page allocator aligned. Where they are is learnt from the first that is seen to be taken by a function of
//! vmalloc: from then on no other lock is asked for its taker. Holds and uncontended acquisitions are not seen.
//!
//! A mutex begins several times in one wait (`__mutex_lock_common` spins and sleeps in turn): only
//! the first begin starts the clock.

use core::ptr::{read_volatile, write_volatile};

use kcore_trace_ebpf::layout::{address, block, node, text};
use kcore_trace_ebpf::words::{Lock, Mode, Op};

use super::constants::{blocks, kernel, lock as address_of, nodes};
use super::lock::{self, Taken};
use super::maps::Shared;
use super::record;
use super::spin::{self, is_block_lock};
use super::waits::Returned;
use super::{Context, op, programs, site};

/// `LCB_F_*` of `include/trace/events/lock.h`, unchanged from 5.19 to 7.3.
mod flags {
    pub(super) const SPIN: u64 = 1;
    pub(super) const READ: u64 = 2;
    pub(super) const WRITE: u64 = 4;
    pub(super) const PERCPU: u64 = 16;
    pub(super) const MUTEX: u64 = 32;
}

/// The role of a lock whose address userspace knew.
#[inline(always)]
fn known(lock: u64) -> Option<Lock> {
    if let Some(role) = spin::role(lock) {
        return Some(role);
    }
    if lock == address_of::<{ address::RWSEM_VMAP_AREA }>() {
        Some(Lock::VmapArea)
    } else if lock == address_of::<{ address::RWSEM_KCLIST }>() {
        Some(Lock::Kclist)
    } else if lock == address_of::<{ address::MUTEX_VMAP_PURGE }>() {
        Some(Lock::VmapPurge)
    } else {
        None
    }
}

#[inline(always)]
fn in_image(address: u64) -> bool {
    address >= kernel::<{ text::IMAGE_START }>() && address < kernel::<{ text::IMAGE_END }>()
}

/// Where the locks are of which there is one place only, as was seen: the array of nodes, and the static
/// spinlock. Zero while they were not: until then whatever could be one of them is asked for its taker.
static NODES_AT: Shared<u64> = Shared::new(0);
static STATIC_AT: Shared<u64> = Shared::new(0);

/// Whether a place is another than the one that was seen.
#[inline(always)]
fn is_elsewhere(place: u64, seen: &Shared<u64>) -> bool {
    // SAFETY: a word of a static, read whole.
    let seen = unsafe { read_volatile(seen.get()) };
    seen != 0 && seen != place
}

/// Where the array of nodes begins, if the lock lies in it.
#[inline(always)]
fn nodes_around(lock: u64) -> u64 {
    lock & !(nodes::<{ node::ALIGN }>().wrapping_sub(1))
}

/// A lock that was guessed has its role. Its place is the only one if the function that takes it takes no
/// `vmap_block.lock`, which may lie anywhere.
#[inline(always)]
fn learn(lock: u64, role: u32, site: site::Site) {
    if site.takes_block_lock {
        return;
    }
    if role == Lock::FreeVmapArea as u32 {
        keep_first(lock, &STATIC_AT);
    } else if role != Lock::VmapPurge as u32 {
        keep_first(nodes_around(lock), &NODES_AT);
    }
}

/// Not written again, since all CPUs that wait for a lock read it.
#[inline(always)]
fn keep_first(place: u64, seen: &Shared<u64>) {
    // SAFETY: a word of a static, read and written whole.
    unsafe {
        if read_volatile(seen.get()) == 0 {
            write_volatile(seen.get(), place);
        }
    }
}

/// The role that a lock would have by its type and its place, if a function of vmalloc takes it.
#[inline(always)]
fn guess(lock: u64, kind: u64) -> Option<Lock> {
    if kind & flags::MUTEX != 0 {
        return if in_image(lock) {
            Some(Lock::VmapPurge)
        } else {
            None
        };
    }
    if kind & flags::SPIN == 0 || kind & (flags::READ | flags::WRITE) != 0 {
        return None;
    }
    if in_image(lock) {
        // With nodes, one static spinlock is left. Without, three, and only an address tells.
        return if nodes::<{ node::SPAN }>() != 0 && !is_elsewhere(lock, &STATIC_AT) {
            Some(Lock::FreeVmapArea)
        } else {
            None
        };
    }
    if nodes::<{ node::SPAN }>() != 0
        && nodes::<{ node::BASE }>() == 0
        && nodes::<{ node::ALIGN }>() != 0
    {
        let offset = lock.wrapping_sub(nodes_around(lock));
        if offset < nodes::<{ node::SPAN }>()
            && !is_elsewhere(nodes_around(lock), &NODES_AT)
            && let Some(role) = spin::node_role(offset)
        {
            return Some(role);
        }
    }
    if blocks::<{ block::KIND }>() == block::SPINLOCK && is_block_lock(lock) {
        return Some(Lock::VmapBlock);
    }
    None
}

/// Whether a lock that was guessed has its role: the function takes it itself. Those that it calls take locks
/// of their own, static ones among them.
#[inline(always)]
fn is_confirmed(role: u32, site: site::Site) -> bool {
    site.takes_directly && (role != Lock::VmapBlock as u32 || site.takes_block_lock)
}

#[inline(always)]
fn begin(ctx: Context) {
    let lock = ctx.address(0);
    let kind = ctx.arg(1);
    // Most contended locks of a kernel are none of ours. What tells so is asked before the stack is walked,
    // which takes ten times as long as all else.
    let (role, guessed) = match known(lock) {
        Some(role) => (role, 0),
        None => match guess(lock, kind) {
            Some(role) => (role, 1),
            None => return,
        },
    };
    // So that the verifier follows the walk once for all roles.
    let (role, guessed) = (record::role(role), record::forget(guessed));
    let lock = record::forget(lock);
    if lock::is_waiting(lock) {
        return;
    }
    let Some(stack) = site::stack(ctx) else {
        return;
    };
    if guessed != 0 {
        if !is_confirmed(role, stack.site) {
            return;
        }
        learn(lock, role, stack.site);
    }
    let shared = kind & flags::READ != 0;
    let mode = if shared {
        Mode::Shared
    } else {
        Mode::Exclusive
    };
    lock::slow_path_alone(Taken::numbered(lock, role, None, mode), &stack);
}

programs! {
    "tp_btf" begin_btf(ctx) {
        if ctx.arg(1) & flags::PERCPU == 0 {
            begin(ctx)
        }
    }
    "tp_btf" end_btf(ctx) { lock::slow_path_alone_done(Returned::Either, ctx.address(0), ctx.arg(1) as i32 == 0) }
    "tp_btf" alloc_btf(_ctx) { op::count(Op::Alloc) }
    "tp_btf" free_btf(_ctx) { op::count(Op::Free) }
    "tp_btf" purge_btf(_ctx) { op::count(Op::Purge) }
}
