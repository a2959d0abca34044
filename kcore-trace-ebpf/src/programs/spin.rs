//! The programs on spinlocks.
//!
//! `_raw_spin_lock` is hooked at its exit, where the lock is held and preemption is off: a program
//! that is preempted would make the kernel skip it for every other task on that CPU. By kprobe,
//! which runs with preemption off, it is hooked at its entry, since a return probe costs several
//! times as much. `spin_lock(&x)` passes the address of x itself (`include/linux/spinlock.h`).

use aya_ebpf::helpers::bpf_probe_read_kernel;
use kcore_trace_ebpf::layout::{acquire, address, block, flag, node, node_lock};
use kcore_trace_ebpf::words::{Kind, Lock, Mode};

use super::constants::{blocks, is_set, lock as address_of, nodes};
use super::holder::At;
use super::lock::{self, Taken};
use super::site::{self, Caller};
use super::slot::Here;
use super::waits::Returned;
use super::{Context, number, op, programs, record};

/// The role of a spinlock that has a fixed address, which may be what the verifier knows as a pointer.
#[inline(always)]
pub(crate) fn role(address: u64) -> Option<Lock> {
    if nodes::<{ node::SPAN }>() != 0 && nodes::<{ node::BASE }>() != 0 {
        let offset = number(address).wrapping_sub(nodes::<{ node::BASE }>());
        if offset < nodes::<{ node::SPAN }>() {
            return node_role(offset);
        }
    }
    if address == address_of::<{ address::SPIN_VMAP_AREA }>() {
        Some(Lock::VmapArea)
    } else if address == address_of::<{ address::SPIN_FREE_VMAP_AREA }>() {
        Some(Lock::FreeVmapArea)
    } else if address == address_of::<{ address::SPIN_PURGE_VMAP_AREA }>() {
        Some(Lock::PurgeVmapArea)
    } else {
        None
    }
}

/// The role of a lock by its distance from the first node.
#[inline(always)]
pub(crate) fn node_role(distance: u64) -> Option<Lock> {
    let stride = nodes::<{ node::STRIDE }>();
    if stride == 0 {
        return None;
    }
    node_lock(
        distance % stride,
        nodes::<{ node::BUSY_OFFSET }>(),
        nodes::<{ node::LAZY_OFFSET }>(),
        nodes::<{ node::POOL_OFFSET }>(),
    )
}

/// Whether a lock that was taken in a function that takes `vmap_block.lock` is one: beyond it are the
/// address of an area and the number of free pages. A `vmap_block_queue` has two pointers there, and the
/// `xarray` of blocks the address of a node with a bit set, or nothing.
#[inline(always)]
pub(crate) fn is_block_lock(address: u64) -> bool {
    let words = address.wrapping_add(blocks::<{ block::WORDS_DISTANCE }>());
    // SAFETY: the helper checks the address.
    match unsafe { bpf_probe_read_kernel(words as *const [u64; 2]) } {
        Ok([area, free]) => {
            let is_object = area > block::KERNEL && area.is_multiple_of(size_of::<u64>() as u64);
            is_object && free <= block::MAX_PAGES
        }
        Err(_) => false,
    }
}

/// Whether `vmap_block.lock` is a spinlock and someone is in a function that may take one.
#[inline(always)]
fn blocks_in_use() -> bool {
    blocks::<{ block::KIND }>() == block::SPINLOCK && op::block_scopes() != 0
}

/// Whether releases of spinlocks are hooked.
#[inline(always)]
fn followed() -> bool {
    is_set::<{ flag::SPIN_RELEASES }>()
}

/// The lock at an address that the verifier may know as a pointer, when it is one of ours.
#[inline(always)]
fn identify(pointer: u64, here: Here, caller: Caller) -> Option<Taken> {
    if let Some(lock) = role(pointer) {
        let address = match caller {
            // Of a number the verifier knows which one it is, once it is found to be a lock of ours.
            Caller::Probe(_) => record::forget(pointer),
            _ => pointer,
        };
        return Some(Taken::spinlock(address, lock));
    }
    let address = number(pointer);
    if !blocks_in_use() || !op::in_block_scope(here) {
        return None;
    }
    if let Some(site) = site::of(site::caller(caller))
        && site.takes_block_lock
        && is_block_lock(address)
    {
        return Some(Taken::spinlock(address, Lock::VmapBlock));
    }
    // Another lock in there, whose slow path was remembered in case it was a block's.
    lock::forget(address);
    None
}

#[inline(always)]
fn released(ctx: Context, pointer: u64) {
    if let Some(lock) = role(pointer) {
        // Without forgetting the role: the way from here on is short.
        let taken = Taken::numbered(pointer, lock as u32, Some(Kind::Spinlock), Mode::Exclusive);
        lock::release(ctx, taken);
    } else if blocks_in_use() {
        lock::release_if_held(ctx, Taken::spinlock(number(pointer), Lock::VmapBlock));
    }
}

/// The acquire function, which is hooked too, entered the slow path.
#[inline(always)]
fn slow_path(address: u64, here: Here) {
    let known = role(address);
    if known.is_some() || (blocks_in_use() && op::in_block_scope(here)) {
        let lock = record::role(known.unwrap_or(Lock::VmapBlock));
        let at = At::of(lock.into(), address);
        lock::slow_path(at, address, known.is_some());
    }
}

/// A slow path was entered, and nothing else of the acquisition is known.
#[inline(always)]
fn slow_path_alone(ctx: Context, address: u64, stack_words: u64) {
    let lock = match role(address) {
        Some(lock) => lock,
        None if blocks::<{ block::KIND }>() == block::SPINLOCK
            && site::may_be_block_taker(stack_words)
            && is_block_lock(address) =>
        {
            Lock::VmapBlock
        }
        None => return,
    };
    // Before the stack is walked, so that the verifier follows the walk once for all roles.
    let role = record::role(lock);
    let Some(stack) = site::stack(ctx) else {
        return;
    };
    if role != Lock::VmapBlock as u32 || stack.site.takes_block_lock {
        let taken = Taken::numbered(address, role, Some(Kind::Spinlock), Mode::Exclusive);
        lock::slow_path_alone(taken, &stack);
    }
}

/// By trampoline: the words on the stack above a context of two arguments.
#[inline(always)]
fn alone(ctx: Context) {
    slow_path_alone(ctx, ctx.address(0), ctx.as_ptr() as u64 + 16);
}

#[inline(always)]
fn alone_by_probe(ctx: Context) {
    slow_path_alone(ctx, ctx.probe_arg0(), ctx.probe_sp());
}

#[inline(always)]
fn entered_by_probe(ctx: Context) {
    // At the entry of an acquisition whose release is not hooked nothing was remembered.
    if followed() {
        slow_path(ctx.probe_arg0(), Here::Number(ctx.probe_sp()));
    } else {
        alone_by_probe(ctx);
    }
}

#[inline(always)]
fn acquired_by(ctx: Context, function: usize) {
    let here = Here::Trampoline(ctx);
    let caller = Caller::Trampoline(ctx, function);
    if let Some(taken) = identify(ctx.arg(0), here, caller) {
        lock::acquired(taken, here, caller);
    }
}

#[inline(always)]
fn tried_by(ctx: Context, function: usize) {
    let here = Here::Trampoline(ctx);
    let caller = Caller::Trampoline(ctx, function);
    let (pointer, returned) = (ctx.arg(0), ctx.arg(1));
    if let Some(taken) = identify(pointer, here, caller) {
        lock::returned(taken.trying(), returned as i32 != 0, here, caller);
    }
}

programs! {
    "fexit" spinlock_fx(ctx) { acquired_by(ctx, acquire::RAW_SPIN_LOCK) }
    "fexit" spintry_fx(ctx) { tried_by(ctx, acquire::RAW_SPIN_TRYLOCK) }
    "fentry" spinunlock_fe(ctx) { released(ctx, ctx.arg(0)) }

    "kprobe" spinlock_kp(ctx) {
        let sp = ctx.probe_sp();
        let (here, caller) = (Here::Number(sp), Caller::Probe(ctx));
        if let Some(taken) = identify(ctx.probe_arg0(), here, caller) {
            lock::acquired(taken, here, caller);
        }
    }
    "kprobe" spintry_kp(ctx) {
        let sp = ctx.probe_sp();
        let (here, caller) = (Here::Number(sp), Caller::Probe(ctx));
        if let Some(taken) = identify(ctx.probe_arg0(), here, caller) {
            lock::trying(taken.trying(), here, caller);
        }
    }
    "kretprobe" spintry_kr(ctx) { lock::tried(ctx, ctx.probe_ret() as i32 != 0, followed()) }
    "kprobe" spinunlock_kp(ctx) { released(ctx, ctx.probe_arg0()) }
}

/// Declares the programs of a slow path.
macro_rules! slow_path_function {
    ($fentry:ident $kprobe:ident $kretprobe:ident) => {
        programs! {
            "fentry" $fentry(ctx) { slow_path(ctx.address(0), Here::Trampoline(ctx)) }
            "kprobe" $kprobe(ctx) { entered_by_probe(ctx) }
            "kretprobe" $kretprobe(ctx) { lock::latest_slow_path_done(ctx, true, followed()) }
        }
    };
}

/// Declares the programs that see a slow path alone.
macro_rules! slow_path_alone {
    ($fentry:ident $fexit:ident $kprobe:ident $kretprobe:ident) => {
        programs! {
            "fentry" $fentry(ctx) { alone(ctx) }
            "fexit" $fexit(ctx) {
                lock::slow_path_alone_done(Returned::Spinlock, ctx.address(0), true)
            }
            "kprobe" $kprobe(ctx) { alone_by_probe(ctx) }
            "kretprobe" $kretprobe(_ctx) {
                lock::latest_slow_path_alone_done(Returned::Spinlock, true)
            }
        }
    };
}

slow_path_function!(spinslow_fe spinslow_kp spinslow_kr);
slow_path_function!(spinslowpv_fe spinslowpv_kp spinslowpv_kr);

slow_path_alone!(spinwait_fe spinwait_fx spinwait_kp spinwait_kr);
slow_path_alone!(spinwaitpv_fe spinwaitpv_fx spinwaitpv_kp spinwaitpv_kr);
