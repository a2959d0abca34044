//! The programs on vmalloc operations: which op a task is in, and how long it took.
//!
//! In: entry and exit of the op functions. Out: the counters of ops, and the live op in the task's
//! slot, under which its acquisitions are counted. An op inside another belongs to the outer one; a
//! look-up inside a free tells what its acquisitions are for.
//! While anyone is in a function that may take a `vmap_block.lock`, [`block_scopes`] is not zero.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::helpers::generated::bpf_get_func_arg;
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_probe_read_kernel};
use kcore_trace_ebpf::layout::{Slot, flag};
use kcore_trace_ebpf::words::Op;

use super::constants::is_set;
use super::maps::Shared;
use super::record::Series;
use super::site::Caller;
use super::slot::{self, Here, Live};
use super::{Context, audit, programs, record};

static BLOCK_SCOPES: Shared<u64> = Shared::new(0);

/// How many tasks are in a function that may take a `vmap_block.lock`.
#[inline(always)]
pub(crate) fn block_scopes() -> u64 {
    // SAFETY: the counter is a static.
    unsafe { read_volatile(BLOCK_SCOPES.get()) }
}

/// Whether the current task is in a function that may take a `vmap_block.lock`.
#[inline(always)]
pub(crate) fn in_block_scope(here: Here) -> bool {
    let Some(slot) = slot::find() else {
        return false;
    };
    // SAFETY: the slot is a map value.
    unsafe {
        let sp = slot::stack_address(here);
        slot::is_live((*slot).block_scope, sp)
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn enter(op: Op, function: u32, here: Here, caller: Caller) {
    let Some(slot) = slot::claim() else { return };
    // SAFETY: the slot and the op in it are map values.
    unsafe {
        let sp = slot::stack_address(here);
        if let Op::Find = op
            && slot::looks_up_inside(slot, sp, function)
        {
            return;
        }
        let Some(frame) = slot::outermost(slot, sp, function) else {
            if let Op::Find = op {
                slot::look_up(slot, sp);
            }
            return;
        };
        (*slot).look_up = 0;
        (*frame).op = op as u32;
        (*frame).function = function;
        (*frame).frame = sp;
        let since_ns = now();
        (*frame).since_ns = since_ns;
        (*slot).touched_ns = since_ns;
        if function != VFREE && function != INNER_VFREE {
            audit::entered(caller, op);
        }
    }
}

/// The functions that vfree leads to; the audit hooks itself where it begins.
const VFREE: u32 = 2;
const INNER_VFREE: u32 = 4;

/// Whether vfree calls a function to look the area up, as was seen: it looks up once, perhaps by what the
/// compiler put into it (`mm/vmalloc.c`, up to 6.2).
static CALLS_TO_LOOK_UP: Shared<u64> = Shared::new(0);

/// Whether what an op takes outside of hooked look-ups is taken to change something. To read who called
/// costs nearly as much as all else of an acquisition.
#[inline(always)]
pub(crate) fn tells_look_ups(live: Live) -> bool {
    // SAFETY: the word is a static.
    let calls = unsafe { read_volatile(CALLS_TO_LOOK_UP.get()) } != 0;
    live.op == Op::Free as u32 && (!is_set::<{ flag::FREES_READ }>() || calls)
}

/// What an acquisition is for was told without asking whether it was made by a look-up that was called: by its
/// site, or since who shares the lock reads.
#[inline(always)]
pub(crate) fn learn(live: Live, called: bool) {
    if called && (live.function == VFREE || live.function == INNER_VFREE) {
        // SAFETY: the word is a static.
        unsafe { write_volatile(CALLS_TO_LOOK_UP.get(), 1) };
    }
}

#[inline(always)]
fn exit(op: Op, here: Here) {
    let Some(slot) = slot::find() else { return };
    // SAFETY: the slot and the op in it are map values.
    unsafe {
        let sp = slot::stack_address(here);
        if let Op::Find = op
            && (*slot).look_up == sp
        {
            (*slot).look_up = 0;
            return;
        }
        let frame = if (*slot).ops[0].frame == sp {
            &raw mut (*slot).ops[0]
        } else if (*slot).ops[1].frame == sp {
            &raw mut (*slot).ops[1]
        } else {
            return;
        };
        let end_ns = now();
        (*frame).frame = 0;
        ended((*frame).op, end_ns.wrapping_sub((*frame).since_ns));
    }
}

#[inline(always)]
fn ended(op: u32, ns: u64) {
    let cpu = record::cpu();
    let Some(counters) = cpu.op(op) else { return };
    // SAFETY: the counters are a map value.
    unsafe {
        record::add(&raw mut (*counters).count, 1);
        cpu.duration(&raw mut (*counters).latency, Series::op(op), ns, || ());
    }
}

/// Counts an op of which only a tracepoint is seen.
#[inline(always)]
pub(crate) fn count(op: Op) {
    if let Some(counters) = record::cpu().op(op as u32) {
        // SAFETY: the counters are a map value.
        unsafe { record::add(&raw mut (*counters).count, 1) };
    }
}

#[inline(always)]
fn enter_block_scope(here: Here) {
    let Some(slot) = slot::claim() else { return };
    // SAFETY: the slot is a map value.
    unsafe {
        let sp = slot::stack_address(here);
        if slot::is_live((*slot).block_scope, sp) {
            return;
        }
        if (*slot).block_scope == 0 {
            record::add(BLOCK_SCOPES.get(), 1);
        }
        (*slot).block_scope = sp;
    }
}

#[inline(always)]
fn exit_block_scope(here: Here) {
    let Some(slot) = slot::find() else { return };
    // SAFETY: the slot is a map value.
    unsafe {
        let sp = slot::stack_address(here);
        if (*slot).block_scope == sp {
            (*slot).block_scope = 0;
            record::add(BLOCK_SCOPES.get(), 1u64.wrapping_neg());
            slot::forget_foreign(slot);
        }
    }
}

/// A task is forgotten: it may take no `vmap_block.lock` any more, as far as is known.
///
/// # Safety
/// `slot` is a map value.
#[inline(always)]
pub(crate) unsafe fn leave_block_scope(slot: *const Slot) {
    // SAFETY: the caller says that the slot is valid; the counter is a static.
    unsafe {
        let is_in_one = slot::equal((*slot).block_scope, 0) ^ 1;
        record::add(BLOCK_SCOPES.get(), is_in_one.wrapping_neg());
    }
}

/// Declares the four programs of an op function, each named by function and attach type. The
/// number tells the functions apart.
macro_rules! op_function {
    ($function:tt $op:ident $(, unless $skip:ident)?: $fentry:ident $fexit:ident $kprobe:ident $kretprobe:ident) => {
        programs! {
            "fentry" $fentry(ctx) {
                $(if $skip(untyped(ctx)) { return 0; })?
                enter(Op::$op, $function, Here::Trampoline(ctx), Caller::Entry(ctx))
            }
            "fexit" $fexit(ctx) { exit(Op::$op, Here::Trampoline(ctx)) }
            "kprobe" $kprobe(ctx) {
                $(if $skip(ctx.probe_arg0()) { return 0; })?
                enter(Op::$op, $function, Here::Number(ctx.probe_sp()), Caller::Probe(ctx))
            }
            "kretprobe" $kretprobe(ctx) { exit(Op::$op, Here::Number(ctx.probe_sp() - 8)) }
        }
    };
}

/// Declares the four programs that mark a function that may take a `vmap_block.lock`.
macro_rules! block_scope_function {
    ($fentry:ident $fexit:ident $kprobe:ident $kretprobe:ident) => {
        programs! {
            "fentry" $fentry(ctx) { enter_block_scope(Here::Trampoline(ctx)) }
            "fexit" $fexit(ctx) { exit_block_scope(Here::Trampoline(ctx)) }
            "kprobe" $kprobe(ctx) { enter_block_scope(Here::Number(ctx.probe_sp())) }
            "kretprobe" $kretprobe(ctx) { exit_block_scope(Here::Number(ctx.probe_sp() - 8)) }
        }
    };
}

/// The first argument of a function that takes a `const void *`, which some verifiers do not let
/// a program load ("arg0 type UNKNOWN is not a struct").
#[inline(always)]
fn untyped(ctx: Context) -> u64 {
    if !is_set::<{ flag::ARGUMENT_HELPER }>() {
        // SAFETY: the helper checks the address.
        return unsafe { bpf_probe_read_kernel(ctx.as_ptr()) }.unwrap_or(0);
    }
    let mut argument = 0;
    // SAFETY: the helper writes a word.
    unsafe { bpf_get_func_arg(ctx.as_ptr().cast(), 0, &raw mut argument) };
    argument
}

/// Freeing nothing is no operation.
#[inline(always)]
fn is_null(address: u64) -> bool {
    address == 0
}

op_function!(1 Alloc: alloc_fe alloc_fx alloc_kp alloc_kr);
op_function!(VFREE Free, unless is_null: vfree_fe vfree_fx vfree_kp vfree_kr);
op_function!(3 Free, unless is_null: vunmap_fe vunmap_fx vunmap_kp vunmap_kr);
op_function!(INNER_VFREE Free, unless is_null: uvunmap_fe uvunmap_fx uvunmap_kp uvunmap_kr);
op_function!(5 Free: freearea_fe freearea_fx freearea_kp freearea_kr);
op_function!(18 Free, unless is_null: iounmap_fe iounmap_fx iounmap_kp iounmap_kr);
op_function!(6 Find: findvm_fe findvm_fx findvm_kp findvm_kr);
op_function!(7 Find: findva_fe findva_fx findva_kp findva_kr);
op_function!(8 Vread: vread_fe vread_fx vread_kp vread_kr);
op_function!(9 Vmallocinfo: info_fe info_fx info_kp info_kr);
op_function!(10 Purge: purge_fe purge_fx purge_kp purge_kr);
op_function!(11 Purge: drain_fe drain_fx drain_kp drain_kr);
op_function!(12 Purge: pnode_fe pnode_fx pnode_kp pnode_kr);
op_function!(13 MapRam: mapram_fe mapram_fx mapram_kp mapram_kr);
op_function!(14 UnmapRam: unmapram_fe unmapram_fx unmapram_kp unmapram_kr);
op_function!(15 UnmapAliases: aliases_fe aliases_fx aliases_kp aliases_kr);
op_function!(16 Pcpu: pcpuget_fe pcpuget_fx pcpuget_kp pcpuget_kr);
op_function!(17 Pcpu: pcpufree_fe pcpufree_fx pcpufree_kp pcpufree_kr);

block_scope_function!(bs0_fe bs0_fx bs0_kp bs0_kr);
block_scope_function!(bs1_fe bs1_fx bs1_kp bs1_kr);
block_scope_function!(bs2_fe bs2_fx bs2_kp bs2_kr);
block_scope_function!(bs3_fe bs3_fx bs3_kp bs3_kr);
block_scope_function!(bs4_fe bs4_fx bs4_kp bs4_kr);

/// Up to 6.8 a read of /proc/vmallocinfo holds its locks from `s_start` to `s_stop`, so the op
/// spans calls that return in between.
#[inline(always)]
fn enter_spanning(op: Op, sp: u64) {
    let Some(slot) = slot::claim() else { return };
    // SAFETY: the slot and the op in it are map values.
    unsafe {
        let frame = &raw mut (*slot).ops[0];
        (*frame).op = op as u32;
        // No op function has this number, so that none is taken for this op's second entry.
        (*frame).function = 0;
        (*frame).frame = slot::spanning(sp);
        let since_ns = now();
        (*frame).since_ns = since_ns;
        (*slot).touched_ns = since_ns;
    }
}

programs! {
    "kprobe" seqstart_kp(ctx) { enter_spanning(Op::Vmallocinfo, ctx.probe_sp()) }
    "kretprobe" seqstop_kr(ctx) {
        exit(Op::Vmallocinfo, Here::Number(slot::spanning(ctx.probe_sp())))
    }
}
