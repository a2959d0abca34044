//! The programs on reads: of /proc/kcore, where they copy to and how, and of /proc/vmallocinfo.
//!
//! In: entry and exit of the functions that read, of the pass over vmalloc memory inside, of the
//! fault-in between two passes, and of page faults. Out: the counters of copies by destination, the
//! reader's row, and the live read in the task's slot, under which its waits and holds are counted.
//! While nobody reads /proc/kcore, a page fault costs one comparison.

use core::ptr::read_volatile;

use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_probe_read_kernel};
use kcore_trace_ebpf::layout::reader::{owner, reads_file};
use kcore_trace_ebpf::layout::{CopyCounters, ReadFrame, Slot, read};
use kcore_trace_ebpf::words::{Destination, Source};

use super::constants::reads;
use super::maps::{COPIES, Shared};
use super::record::add;
use super::slot::{self, Here};
use super::{Context, inside, programs, reader};

/// How many tasks read /proc/kcore, as far as their slots say.
static READS_IN_PROGRESS: Shared<u64> = Shared::new(0);

/// `VM_FAULT_RETRY` of `include/linux/mm_types.h`: nothing was served, and it will be tried again.
const FAULT_RETRY: u64 = 0x400;

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// The type of an iterator.
#[inline(always)]
fn destination(iterator: u64) -> u32 {
    let offset = reads(read::TYPE_OFFSET);
    if offset == 0 {
        return Destination::Other as u32;
    }
    // SAFETY: the helper checks the address.
    let seen = unsafe { bpf_probe_read_kernel((iterator + offset - 1) as *const u8) };
    let seen = seen.map_or(0, |seen| u64::from(seen) + 1);
    let mut found = Destination::Other as u32;
    for index in 1..Destination::COUNT {
        if seen != 0 && seen == reads(read::TYPES + index) {
            found = index as u32;
        }
    }
    found
}

/// How many bytes a `seq_file` has.
#[inline(always)]
fn seq_bytes(seq_file: u64) -> u64 {
    let offset = reads(read::COUNT_OFFSET);
    if seq_file == 0 || offset == 0 {
        return 0;
    }
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel((seq_file + offset - 1) as *const u64) }.unwrap_or(0)
}

/// Counts the task among those that read /proc/kcore, or no more. Whether it is one is asked of what
/// its slot says: the end of a read, of whichever file, may have been missed.
#[inline(always)]
unsafe fn count_in_progress(read: *const ReadFrame, change: u64) {
    // SAFETY: the caller passes a frame in a map value.
    unsafe {
        if (*read).frame != 0 && reads_file((*read).owner, Source::Kcore) {
            add(READS_IN_PROGRESS.get(), change);
        }
    }
}

/// A task is forgotten: it reads nothing any more, as far as is known. Without a branch, for the verifier.
///
/// # Safety
/// `slot` is a map value.
#[inline(always)]
pub(crate) unsafe fn leave(slot: *const Slot) {
    // SAFETY: the caller says that the slot is valid; the counter is a static.
    unsafe {
        let read = &raw const (*slot).read;
        let of_kcore = owner(0, Source::Kcore);
        let reads_kcore = slot::equal((*read).owner & 0xff, of_kcore);
        let reads_kcore = reads_kcore & (slot::equal((*read).frame, 0) ^ 1);
        add(READS_IN_PROGRESS.get(), reads_kcore.wrapping_neg());
    }
}

#[inline(always)]
fn begin(frame: u64, source: Source, destination: u32, seq_file: u64) {
    let owner = reader::owner(source);
    let row = reader::row(owner);
    let Some(slot) = slot::claim() else { return };
    // SAFETY: the slot is a map value.
    unsafe {
        let read = &raw mut (*slot).read;
        count_in_progress(read, 1u64.wrapping_neg());
        (*read).owner = owner;
        (*read).row = row;
        (*read).destination = destination;
        (*read).seq_file = seq_file;
        (*read).fault_since_ns = 0;
        (*read).frame = frame;
        count_in_progress(read, 1);
        let since_ns = now();
        (*read).since_ns = since_ns;
        (*slot).touched_ns = since_ns;
    }
}

/// The read that was entered there ended; nothing if it is not known.
#[inline(always)]
fn end(frame: u64) -> Option<*mut Slot> {
    let slot = slot::find()?;
    // SAFETY: the slot is a map value.
    unsafe {
        if (*slot).read.frame != frame {
            return None;
        }
        count_in_progress(&raw const (*slot).read, 1u64.wrapping_neg());
        (*slot).read.frame = 0;
    }
    Some(slot)
}

#[inline(always)]
fn kcore_ended(here: Here, returned: u64) {
    let end_ns = now();
    let Some(slot) = end(slot::stack_address(here)) else {
        return;
    };
    let bytes = positive(returned);
    // SAFETY: the slot and the counters are map values.
    unsafe {
        if let Some(counters) = copies(slot) {
            add(&raw mut (*counters).reads, 1);
            add(&raw mut (*counters).bytes, bytes);
        }
        reader::ended(&raw const (*slot).read, bytes, end_ns);
    }
}

#[inline(always)]
fn vmallocinfo_ended(frame: u64) {
    let end_ns = now();
    let Some(slot) = end(frame) else {
        return;
    };
    // SAFETY: the slot is a map value.
    unsafe {
        let bytes = seq_bytes((*slot).read.seq_file);
        reader::ended(&raw const (*slot).read, bytes, end_ns);
    }
}

/// A number of bytes, or a negative error.
#[inline(always)]
fn positive(returned: u64) -> u64 {
    if returned >> 63 == 0 { returned } else { 0 }
}

/// The counters of the copies that the task is in.
#[inline(always)]
unsafe fn copies(slot: *const Slot) -> Option<*mut CopyCounters> {
    // SAFETY: the caller passes a map value.
    COPIES.get_ptr_mut(unsafe { (*slot).read.destination })
}

/// The slot of a task that reads /proc/kcore, inside that read.
#[inline(always)]
fn reading(here: Here) -> Option<*mut Slot> {
    // SAFETY: the counter is a static.
    if unsafe { read_volatile(READS_IN_PROGRESS.get()) } == 0 {
        return None;
    }
    let slot = slot::find()?;
    // SAFETY: the slot is a map value.
    let frame = unsafe { (*slot).read.frame };
    (frame != 0 && !slot::spans(frame) && slot::is_live(frame, slot::stack_address(here)))
        .then_some(slot)
}

#[inline(always)]
fn passed(here: Here, wanted: Option<u64>, returned: u64) {
    let Some(slot) = reading(here) else { return };
    let bytes = positive(returned);
    // SAFETY: the slot and the counters are map values.
    unsafe {
        let wanted = wanted.unwrap_or((*slot).read.wanted);
        let Some(counters) = copies(slot) else { return };
        add(&raw mut (*counters).passes, 1);
        add(&raw mut (*counters).pass_bytes, bytes);
        if bytes < wanted {
            add(&raw mut (*counters).short_passes, 1);
        }
    }
}

#[inline(always)]
fn will_pass(here: Here, wanted: u64) {
    if let Some(slot) = reading(here) {
        // SAFETY: the slot is a map value.
        unsafe { (*slot).read.wanted = wanted };
    }
}

#[inline(always)]
fn faults_in(here: Here) {
    // SAFETY: the slot and the counters are map values.
    unsafe {
        if let Some(counters) = reading(here).and_then(|slot| copies(slot)) {
            add(&raw mut (*counters).fault_ins, 1);
        }
    }
}

#[inline(always)]
fn fault_begins(here: Here) {
    if let Some(slot) = reading(here) {
        // SAFETY: the slot is a map value.
        unsafe { (*slot).read.fault_since_ns = now() };
    }
}

#[inline(always)]
fn fault_ended(here: Here, returned: u64) {
    let Some(slot) = reading(here) else { return };
    // SAFETY: the slot and the counters are map values.
    unsafe {
        let since_ns = (*slot).read.fault_since_ns;
        if since_ns == 0 {
            return;
        }
        (*slot).read.fault_since_ns = 0;
        let fault_ns = now().wrapping_sub(since_ns);
        let faults = u64::from(returned & FAULT_RETRY == 0);
        if let Some(counters) = copies(slot) {
            add(&raw mut (*counters).faults, faults);
            add(&raw mut (*counters).fault_ns, fault_ns);
        }
        inside::faulted(slot, faults, fault_ns);
    }
}

/// Where a return probe stands: what was the stack pointer at the entry.
#[inline(always)]
fn returned(ctx: Context) -> Here {
    Here::Number(ctx.probe_sp() - 8)
}

#[inline(always)]
fn called(ctx: Context) -> Here {
    Here::Number(ctx.probe_sp())
}

programs! {
    // ssize_t read_kcore_iter(struct kiocb *, struct iov_iter *)
    "fentry" kiter_fe(ctx) {
        let frame = slot::stack_address(Here::Trampoline(ctx));
        begin(frame, Source::Kcore, destination(ctx.address(1)), 0)
    }
    "fexit" kiter_fx(ctx) { kcore_ended(Here::Trampoline(ctx), ctx.arg(2)) }
    "kprobe" kiter_kp(ctx) {
        begin(ctx.probe_sp(), Source::Kcore, destination(ctx.probe_arg1()), 0)
    }
    "kretprobe" kiter_kr(ctx) { kcore_ended(returned(ctx), ctx.probe_ret()) }

    // ssize_t read_kcore(struct file *, char __user *, size_t, loff_t *)
    "fentry" kbuffer_fe(ctx) {
        let frame = slot::stack_address(Here::Trampoline(ctx));
        begin(frame, Source::Kcore, Destination::Ubuf as u32, 0)
    }
    "fexit" kbuffer_fx(ctx) { kcore_ended(Here::Trampoline(ctx), ctx.arg(4)) }
    "kprobe" kbuffer_kp(ctx) {
        begin(ctx.probe_sp(), Source::Kcore, Destination::Ubuf as u32, 0)
    }
    "kretprobe" kbuffer_kr(ctx) { kcore_ended(returned(ctx), ctx.probe_ret()) }

    // long vread(char *, char *, unsigned long), which gives nothing where nothing is mapped
    "fexit" bounce_fx(ctx) { passed(Here::Trampoline(ctx), Some(0), ctx.arg(3)) }
    "kprobe" bounce_kp(ctx) { will_pass(called(ctx), 0) }
    "kretprobe" bounce_kr(ctx) { passed(returned(ctx), None, ctx.probe_ret()) }

    // long vread_iter(struct iov_iter *, const char *, size_t)
    "fexit" pass_fx(ctx) { passed(Here::Trampoline(ctx), Some(ctx.arg(2)), ctx.arg(3)) }
    "kprobe" pass_kp(ctx) { will_pass(called(ctx), ctx.probe_arg2()) }
    "kretprobe" pass_kr(ctx) { passed(returned(ctx), None, ctx.probe_ret()) }

    // size_t fault_in_safe_writeable(const char __user *, size_t)
    "fentry" faultin_fe(ctx) { faults_in(Here::Trampoline(ctx)) }
    "kprobe" faultin_kp(ctx) { faults_in(called(ctx)) }

    // vm_fault_t handle_mm_fault(vma, address, flags, regs)
    "fentry" fault_fe(ctx) { fault_begins(Here::Trampoline(ctx)) }
    "fexit" fault_fx(ctx) { fault_ended(Here::Trampoline(ctx), ctx.arg(4)) }
    "kprobe" fault_kp(ctx) { fault_begins(called(ctx)) }
    "kretprobe" fault_kr(ctx) { fault_ended(returned(ctx), ctx.probe_ret()) }

    // int vmalloc_info_show(struct seq_file *, void *)
    "fentry" vinfo_fe(ctx) {
        let frame = slot::stack_address(Here::Trampoline(ctx));
        begin(frame, Source::Vmallocinfo, 0, ctx.address(0))
    }
    "fexit" vinfo_fx(ctx) { vmallocinfo_ended(slot::stack_address(Here::Trampoline(ctx))) }
    "kprobe" vinfo_kp(ctx) {
        begin(ctx.probe_sp(), Source::Vmallocinfo, 0, ctx.probe_arg0())
    }
    "kretprobe" vinfo_kr(ctx) { vmallocinfo_ended(ctx.probe_sp() - 8) }

    // void *s_start(struct seq_file *, loff_t *), void s_stop(struct seq_file *, void *)
    "kprobe" vstart_kp(ctx) {
        let frame = slot::spanning(ctx.probe_sp());
        begin(frame, Source::Vmallocinfo, 0, ctx.probe_arg0());
    }
    "kretprobe" vstop_kr(ctx) { vmallocinfo_ended(slot::spanning(ctx.probe_sp())) }
}
