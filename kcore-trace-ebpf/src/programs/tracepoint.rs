//! The programs on BTF tracepoints, for kernels that allow neither fentry nor kprobes.
//!
//! In: `lock:contention_begin` and `contention_end`, and the `vmalloc` events. A lock is known by
//! its address where that is known, else by who called, read from the stack, and by where it
//! lies: static locks in the kernel image, the locks of nodes at their offsets in an array that the
//! page allocator aligned. Holds and uncontended acquisitions are not seen.
//!
//! A mutex begins several times in one wait (`__mutex_lock_common` spins and sleeps in turn): only
//! the first begin starts the clock.

use kcore_trace_ebpf::layout::{address, block, node, text};
use kcore_trace_ebpf::words::{Lock, Mode, Op};

use super::constants::{blocks, kernel, lock as address_of, nodes};
use super::lock::{self, Taken};
use super::record;
use super::spin::{self, is_block_lock};
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
        return if nodes::<{ node::SPAN }>() != 0 {
            Some(Lock::FreeVmapArea)
        } else {
            None
        };
    }
    if nodes::<{ node::SPAN }>() != 0
        && nodes::<{ node::BASE }>() == 0
        && nodes::<{ node::ALIGN }>() != 0
    {
        let offset = lock & (nodes::<{ node::ALIGN }>() - 1);
        if offset < nodes::<{ node::SPAN }>()
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
    if guessed != 0 && !is_confirmed(role, stack.site) {
        return;
    }
    let shared = kind & flags::READ != 0;
    let mode = if shared {
        Mode::Shared
    } else {
        Mode::Exclusive
    };
    lock::slow_path_of(Taken::numbered(lock, role, mode), &stack);
}

programs! {
    "tp_btf" begin_btf(ctx) {
        if ctx.arg(1) & flags::PERCPU == 0 {
            begin(ctx)
        }
    }
    "tp_btf" end_btf(ctx) { lock::slow_path_done(ctx, ctx.address(0), ctx.arg(1) as i32 == 0, false) }
    "tp_btf" alloc_btf(_ctx) { op::count(Op::Alloc) }
    "tp_btf" free_btf(_ctx) { op::count(Op::Free) }
    "tp_btf" purge_btf(_ctx) { op::count(Op::Purge) }
}
