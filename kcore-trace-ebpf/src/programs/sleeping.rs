//! The programs on rwsems and mutexes.
//!
//! Hooked like spinlocks: by fexit when the lock is owned, by kprobe at the entry. A waiter that is
//! killed or interrupted returns without the lock and is counted as aborted, never as an
//! acquisition. A holder may sleep and be moved to another CPU: a hold is counted on the one that it began on.

use kcore_trace_ebpf::layout::{acquire, address, block};
use kcore_trace_ebpf::words::{Kind, Lock, Mode};

use super::constants::{blocks, lock as address_of};
use super::holder::At;
use super::lock::{self, Taken};
use super::site::{self, Caller};
use super::slot::Here;
use super::spin::is_block_lock;
use super::waits::Returned;
use super::{Context, op, programs, record};

/// How an acquire function or its slow path says that it did not get the lock.
#[derive(Clone, Copy)]
enum Outcome {
    /// It always gets it.
    Certain,
    /// It returns zero, or a negative error.
    ZeroIsSuccess,
    /// It returns one, or zero: a trylock.
    ZeroIsFailure,
    /// It returns the lock, or an `ERR_PTR`.
    Pointer,
}

/// `include/linux/err.h`.
const MAX_ERRNO: u64 = 4095;

impl Outcome {
    #[inline(always)]
    fn got_it(self, returned: u64) -> bool {
        match self {
            Self::Certain => true,
            Self::ZeroIsSuccess => returned as i32 == 0,
            Self::ZeroIsFailure => returned as i32 != 0,
            Self::Pointer => returned < MAX_ERRNO.wrapping_neg(),
        }
    }
}

/// The kinds of sleeping locks, and the acquisitions of each.
#[derive(Clone, Copy)]
enum Type {
    Rwsem(Mode),
    Mutex,
}

#[inline(always)]
fn role(kind: Type, address: u64) -> Option<Lock> {
    match kind {
        Type::Rwsem(_) if address == address_of::<{ address::RWSEM_VMAP_AREA }>() => {
            Some(Lock::VmapArea)
        }
        Type::Rwsem(_) if address == address_of::<{ address::RWSEM_KCLIST }>() => {
            Some(Lock::Kclist)
        }
        Type::Mutex if address == address_of::<{ address::MUTEX_VMAP_PURGE }>() => {
            Some(Lock::VmapPurge)
        }
        _ => None,
    }
}

/// The lock at an address, of which the verifier forgets address and role.
#[inline(always)]
fn taken(kind: Type, address: u64, lock: Lock) -> Taken {
    known(kind, address, lock).forgotten()
}

/// The same, of which it knows them.
#[inline(always)]
fn known(kind: Type, address: u64, lock: Lock) -> Taken {
    let (kind, mode) = match kind {
        Type::Rwsem(mode) => (Kind::Rwsem, mode),
        Type::Mutex => (Kind::Mutex, Mode::Exclusive),
    };
    Taken::numbered(address, lock as u32, Some(kind), mode)
}

/// Whether `vmap_block.lock` is a mutex and someone is in a function that may take one.
#[inline(always)]
fn blocks_in_use(kind: Type) -> bool {
    matches!(kind, Type::Mutex)
        && blocks::<{ block::KIND }>() == block::MUTEX
        && op::block_scopes() != 0
}

#[inline(always)]
fn identify(kind: Type, address: u64, here: Here, caller: Caller) -> Option<Taken> {
    if let Some(lock) = role(kind, address) {
        return Some(taken(kind, address, lock));
    }
    if !blocks_in_use(kind) || !op::in_block_scope(here) {
        return None;
    }
    if let Some(site) = site::of(site::caller(caller))
        && site.takes_block_lock
        && is_block_lock(address)
    {
        return Some(taken(kind, address, Lock::VmapBlock));
    }
    lock::forget(address);
    None
}

#[inline(always)]
fn returned(ctx: Context, kind: Type, outcome: Outcome, function: usize) {
    let here = Here::Trampoline(ctx);
    let got_it = match outcome {
        Outcome::Certain => true,
        _ => outcome.got_it(ctx.arg(1)),
    };
    let caller = Caller::Trampoline(ctx, function);
    let Some(taken) = identify(kind, ctx.address(0), here, caller) else {
        return;
    };
    let taken = match outcome {
        Outcome::ZeroIsFailure => taken.trying(),
        _ => taken,
    };
    lock::returned(taken, got_it, here, caller);
}

#[inline(always)]
fn called(ctx: Context, kind: Type, outcome: Outcome) {
    let sp = ctx.probe_sp();
    let (here, caller) = (Here::Number(sp), Caller::Probe(ctx));
    let Some(taken) = identify(kind, ctx.probe_arg0(), here, caller) else {
        return;
    };
    match outcome {
        Outcome::Certain => lock::acquired(taken, here, caller),
        Outcome::ZeroIsFailure => lock::trying(taken.trying(), here, caller),
        _ => lock::trying(taken, here, caller),
    }
}

#[inline(always)]
fn released(ctx: Context, kind: Type, address: u64) {
    if let Some(lock) = role(kind, address) {
        // Without forgetting role and address: the way from here on is short.
        lock::release(ctx, known(kind, address, lock));
    } else if blocks_in_use(kind) {
        lock::release_if_held(ctx, taken(kind, address, Lock::VmapBlock));
    }
}

#[inline(always)]
fn downgraded(address: u64) {
    if let Some(lock) = role(READ, address) {
        lock::downgrade(taken(WRITE, address, lock), taken(READ, address, lock));
    }
}

/// The acquire function, which is hooked too, entered the slow path.
#[inline(always)]
fn slow_path(kind: Type, address: u64, here: Here) {
    let known = role(kind, address);
    if known.is_some() || (blocks_in_use(kind) && op::in_block_scope(here)) {
        let lock = record::role(known.unwrap_or(Lock::VmapBlock)).into();
        let at = match kind {
            Type::Rwsem(_) => At::of_role(lock),
            Type::Mutex => At::of(lock, address),
        };
        lock::slow_path(at, address, known.is_some());
    }
}

/// A slow path was entered, and nothing else of the acquisition is hooked.
#[inline(always)]
fn slow_path_alone(ctx: Context, kind: Type, address: u64) {
    let block_mutexes = matches!(kind, Type::Mutex) && blocks::<{ block::KIND }>() == block::MUTEX;
    let lock = match role(kind, address) {
        Some(lock) => lock,
        None if block_mutexes && is_block_lock(address) => Lock::VmapBlock,
        None => return,
    };
    // Before the stack is walked, so that the verifier follows the walk once for all roles.
    let taken = taken(kind, address, lock);
    let Some(stack) = site::stack(ctx) else {
        return;
    };
    if !taken.is(Lock::VmapBlock) || stack.site.takes_block_lock {
        lock::slow_path_alone(taken, &stack);
    }
}

/// Declares the programs of an acquire function.
macro_rules! acquire_function {
    ($kind:expr, Certain, $function:ident: $fexit:ident $kprobe:ident) => {
        programs! {
            "fexit" $fexit(ctx) { returned(ctx, $kind, Outcome::Certain, acquire::$function) }
            "kprobe" $kprobe(ctx) { called(ctx, $kind, Outcome::Certain) }
        }
    };
    ($kind:expr, $outcome:ident, $function:ident: $fexit:ident $kprobe:ident $kretprobe:ident) => {
        programs! {
            "fexit" $fexit(ctx) { returned(ctx, $kind, Outcome::$outcome, acquire::$function) }
            "kprobe" $kprobe(ctx) { called(ctx, $kind, Outcome::$outcome) }
            "kretprobe" $kretprobe(ctx) {
                lock::tried(ctx, Outcome::$outcome.got_it(ctx.probe_ret()), true)
            }
        }
    };
}

/// Declares the programs of a slow path.
macro_rules! slow_path_function {
    ($kind:expr, $outcome:ident: $fentry:ident $kprobe:ident $kretprobe:ident) => {
        programs! {
            "fentry" $fentry(ctx) { slow_path($kind, ctx.address(0), Here::Trampoline(ctx)) }
            "kprobe" $kprobe(ctx) {
                slow_path($kind, ctx.probe_arg0(), Here::Number(ctx.probe_sp()))
            }
            "kretprobe" $kretprobe(ctx) {
                lock::latest_slow_path_done(ctx, Outcome::$outcome.got_it(ctx.probe_ret()), true)
            }
        }
    };
}

/// Declares the programs that see a slow path alone, which has so many arguments.
macro_rules! slow_path_alone {
    ($kind:expr, $outcome:ident, $args:literal:
     $fentry:ident $fexit:ident $kprobe:ident $kretprobe:ident) => {
        programs! {
            "fentry" $fentry(ctx) { slow_path_alone(ctx, $kind, ctx.address(0)) }
            "fexit" $fexit(ctx) {
                let got_it = match Outcome::$outcome {
                    Outcome::Certain => true,
                    outcome => outcome.got_it(ctx.arg($args)),
                };
                lock::slow_path_alone_done(Returned::Sleeping, ctx.address(0), got_it)
            }
            "kprobe" $kprobe(ctx) { slow_path_alone(ctx, $kind, ctx.probe_arg0()) }
            "kretprobe" $kretprobe(ctx) {
                let got_it = Outcome::$outcome.got_it(ctx.probe_ret());
                lock::latest_slow_path_alone_done(Returned::Sleeping, got_it)
            }
        }
    };
}

const READ: Type = Type::Rwsem(Mode::Shared);
const WRITE: Type = Type::Rwsem(Mode::Exclusive);

acquire_function!(READ, Certain, DOWN_READ: dread_fx dread_kp);
acquire_function!(READ, ZeroIsSuccess, DOWN_READ_INTERRUPTIBLE: dreadint_fx dreadint_kp dreadint_kr);
acquire_function!(READ, ZeroIsSuccess, DOWN_READ_KILLABLE: dreadkill_fx dreadkill_kp dreadkill_kr);
acquire_function!(READ, ZeroIsFailure, DOWN_READ_TRYLOCK: dreadtry_fx dreadtry_kp dreadtry_kr);
acquire_function!(WRITE, Certain, DOWN_WRITE: dwrite_fx dwrite_kp);
acquire_function!(WRITE, ZeroIsSuccess, DOWN_WRITE_KILLABLE: dwritekill_fx dwritekill_kp dwritekill_kr);
acquire_function!(WRITE, ZeroIsFailure, DOWN_WRITE_TRYLOCK: dwritetry_fx dwritetry_kp dwritetry_kr);
acquire_function!(Type::Mutex, Certain, MUTEX_LOCK: mutex_fx mutex_kp);
acquire_function!(Type::Mutex, ZeroIsSuccess, MUTEX_LOCK_INTERRUPTIBLE: mutexint_fx mutexint_kp mutexint_kr);
acquire_function!(Type::Mutex, ZeroIsSuccess, MUTEX_LOCK_KILLABLE: mutexkill_fx mutexkill_kp mutexkill_kr);
acquire_function!(Type::Mutex, ZeroIsFailure, MUTEX_TRYLOCK: mutextry_fx mutextry_kp mutextry_kr);

slow_path_function!(READ, Pointer: readslow_fe readslow_kp readslow_kr);
slow_path_function!(WRITE, Pointer: writeslow_fe writeslow_kp writeslow_kr);
slow_path_function!(Type::Mutex, Certain: mutexslow_fe mutexslow_kp mutexslow_kr);
slow_path_function!(Type::Mutex, ZeroIsSuccess: mutexslowk_fe mutexslowk_kp mutexslowk_kr);
slow_path_function!(Type::Mutex, ZeroIsSuccess: mutexslowi_fe mutexslowi_kp mutexslowi_kr);

slow_path_alone!(READ, Pointer, 3: readwait_fe readwait_fx readwait_kp readwait_kr);
slow_path_alone!(READ, Pointer, 2: readwait2_fe readwait2_fx readwait2_kp readwait2_kr);
slow_path_alone!(WRITE, Pointer, 2: writewait_fe writewait_fx writewait_kp writewait_kr);
slow_path_alone!(Type::Mutex, Certain, 1: mutexwait_fe mutexwait_fx mutexwait_kp mutexwait_kr);

programs! {
    "fentry" uread_fe(ctx) { released(ctx, READ, ctx.address(0)) }
    "kprobe" uread_kp(ctx) { released(ctx, READ, ctx.probe_arg0()) }
    "fentry" uwrite_fe(ctx) { released(ctx, WRITE, ctx.address(0)) }
    "kprobe" uwrite_kp(ctx) { released(ctx, WRITE, ctx.probe_arg0()) }
    "fentry" downgrade_fe(ctx) { downgraded(ctx.address(0)) }
    "kprobe" downgrade_kp(ctx) { downgraded(ctx.probe_arg0()) }
    "fentry" unmutex_fe(ctx) { released(ctx, Type::Mutex, ctx.address(0)) }
    "kprobe" unmutex_kp(ctx) { released(ctx, Type::Mutex, ctx.probe_arg0()) }
}
