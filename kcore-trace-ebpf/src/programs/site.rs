//! Who called: from a return address to the vmalloc function it lies in.
//!
//! In: the context of a hook on a lock function. Out: a [`Site`]. A return address is looked up
//! once by halving the table of text ranges and then remembered in a cache that compares the whole
//! address, so that it cannot lie (kernel text lies within 4 GiB, so its low half is enough).

use core::mem::MaybeUninit;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::bpf_get_stack;
use kcore_trace_ebpf::layout::{ENTRY_BYTES, FRAMES, SITE_CACHE, SITES, SiteRange, text};
use kcore_trace_ebpf::words::{Intent, Op};

use super::constants::{acquire_function, kernel};
use super::maps::{SITE_MEMO, SITE_RANGES};
use super::{Context, choose, hidden, record, sign};

/// What the table says of a return address.
#[derive(Clone, Copy)]
pub(crate) struct Site {
    pub(crate) op: u32,
    pub(crate) intent: u32,
    pub(crate) takes_block_lock: bool,
    /// Of a stack: whether the function called one by which a lock is taken.
    pub(crate) takes_directly: bool,
}

const CACHE_MASK: u64 = SITE_CACHE as u64 - 1;
/// Cached answer for an address in no function that takes a lock.
const NOWHERE: u64 = 1 << NOWHERE_BIT;
const NOWHERE_BIT: u32 = 31;
/// Of such an answer: it is in one by which a lock is taken. Of a stack: a frame was.
const LOCK_FUNCTION_BIT: u32 = 17;
/// Of the site of a stack: it called such a one, which was not interrupted.
const DIRECTLY_BIT: u32 = 18;
/// Of a stack: a frame was in a function that called such a one.
const CALLER_BIT: u32 = 19;
/// Marks a cached answer.
const VALID: u64 = 1 << 30;

/// The site of a return address.
#[inline(always)]
pub(crate) fn of(address: u64) -> Option<Site> {
    let packed = packed(address);
    (packed & NOWHERE == 0).then(|| unpack(packed))
}

/// The site of a return address as one word, or [`NOWHERE`].
#[inline(always)]
fn packed(address: u64) -> u64 {
    let entry = remembered(address);
    if is_of_another(entry, address) == 0 {
        return answer(entry);
    }
    let packed = search(address);
    remember(address, packed);
    packed
}

/// Where the answer for an address is remembered, if it is.
#[inline(always)]
fn memo(address: u64) -> *mut u64 {
    let slot = hidden(address ^ address >> 8) & CACHE_MASK;
    // SAFETY: the slot is inside the array.
    unsafe { SITE_MEMO.get().cast::<u64>().add(slot as usize) }
}

#[inline(always)]
fn remembered(address: u64) -> u64 {
    // SAFETY: one word, which is read and written whole.
    unsafe { read_volatile(memo(address)) }
}

#[inline(always)]
fn remember(address: u64, packed: u64) {
    // SAFETY: as above.
    unsafe { write_volatile(memo(address), (VALID | packed) << 32 | low(address)) };
}

#[inline(always)]
fn low(address: u64) -> u64 {
    address & 0xffff_ffff
}

/// Zero, if what is remembered is about that address.
#[inline(always)]
fn is_of_another(entry: u64, address: u64) -> u64 {
    (entry ^ (VALID << 32 | low(address))) & (VALID << 32 | 0xffff_ffff)
}

#[inline(always)]
fn answer(entry: u64) -> u64 {
    entry >> 32 & !VALID
}

#[inline(always)]
fn unpack(packed: u64) -> Site {
    Site {
        op: (packed & 0xff) as u32,
        intent: (packed >> 8 & 0xff) as u32,
        takes_block_lock: packed >> 16 & 1 != 0,
        takes_directly: packed >> DIRECTLY_BIT & 1 != 0,
    }
}

/// The answer for an address that is not remembered.
///
/// Halves the table without a branch: each would double the paths that the verifier follows. Where the
/// search begins is read from the table, so that the verifier does not know it either and sees the same
/// state whichever way it goes.
#[inline(always)]
fn search(address: u64) -> u64 {
    // A call may be the last instruction of its function; the byte before belongs to it.
    let address = address.wrapping_sub(1);
    // SAFETY: a word of a static, which is written before any program runs.
    let mut index = unsafe { read_volatile(&raw const (*SITE_RANGES.get()).first) };
    let mut step = SITES as u64 / 2;
    for _ in 0..SITES.trailing_zeros() {
        index += not_above(range(index + step).start, address) * step;
        step /= 2;
    }
    let range = range(index);
    let lies_in_it = not_above(range.start, address) & (not_above(range.end, address) ^ 1);
    choose(lies_in_it, pack(range), NOWHERE)
}

/// One if `start` is not above `address`, else zero. Both lie in the upper half of the address space, or
/// the address is one of user space or none, so the sign of the difference tells.
#[inline(always)]
fn not_above(start: u64, address: u64) -> u64 {
    sign(start.wrapping_sub(address).wrapping_sub(1))
}

#[inline(always)]
fn range(index: u64) -> &'static SiteRange {
    let index = hidden(index) & (SITES as u64 - 1);
    // SAFETY: the index is inside the array, which is written before any program runs.
    unsafe {
        let first = (&raw const (*SITE_RANGES.get()).ranges).cast::<SiteRange>();
        &*first.add(index as usize)
    }
}

#[inline(always)]
fn pack(range: &SiteRange) -> u64 {
    let is_lock_function = u64::from(range.is_lock_function);
    u64::from(range.op)
        | u64::from(range.intent) << 8
        | u64::from(range.takes_block_lock) << 16
        | is_lock_function << LOCK_FUNCTION_BIT
        | is_lock_function << NOWHERE_BIT
}

/// Whether an address is in core kernel text.
#[inline(always)]
fn is_text(address: u64) -> bool {
    address >= kernel::<{ text::START }>() && address < kernel::<{ text::END }>()
}

/// Where the caller of a hooked function can be read.
#[derive(Clone, Copy)]
pub(crate) enum Caller {
    /// By fexit on a function of one argument: its index in [`acquire`].
    Trampoline(Context, usize),
    /// By fentry, which does not ask for it.
    Entry(Context),
    /// By a kprobe at the entry.
    Probe(Context),
}

impl Caller {
    /// The context of the program.
    #[inline(always)]
    pub(crate) fn context(self) -> Context {
        match self {
            Self::Trampoline(ctx, _) | Self::Entry(ctx) | Self::Probe(ctx) => ctx,
        }
    }
}

/// Return address of the hooked function, or zero where it can't be read.
#[inline(always)]
pub(crate) fn caller(from: Caller) -> u64 {
    match from {
        Caller::Probe(ctx) => {
            // SAFETY: the helper checks the address.
            unsafe { bpf_probe_read_kernel(ctx.probe_sp() as *const u64) }.unwrap_or(0)
        }
        Caller::Entry(_) => 0,
        Caller::Trampoline(ctx, function) => behind_trampoline(ctx, acquire_function(function)),
    }
}

/// What lies above the context of an fexit on a function of one argument
/// (`arch_prepare_bpf_trampoline` in `arch/x86/net/bpf_jit_comp.c`): the return value, the saved
/// frame pointer, the return into the head of the hooked function, unless the trampoline is jumped
/// to (possible from 7.0 on), and the return address.
#[inline(always)]
fn behind_trampoline(ctx: Context, function: u64) -> u64 {
    // SAFETY: the helper checks the address.
    let read = unsafe { bpf_probe_read_kernel(ctx.as_ptr().add(3).cast::<[u64; 2]>()) };
    let Ok([head_or_caller, caller]) = read else {
        return 0;
    };
    let own_head = head_or_caller.wrapping_sub(function) < ENTRY_BYTES;
    let found = if own_head { caller } else { head_or_caller };
    record::forget(if is_text(found) { found } else { 0 })
}

/// The innermost vmalloc function of a stack, and the op of the outermost.
pub(crate) struct Stack {
    pub(crate) site: Site,
    pub(crate) op: u32,
}

/// Walks the kernel stack: only for a contended lock of ours, where no op hook tells the op.
#[inline(always)]
pub(crate) fn stack(ctx: Context) -> Option<Stack> {
    let mut frames = MaybeUninit::<[u64; FRAMES]>::uninit();
    let size = size_of_val(&frames) as u32;
    let first = frames.as_mut_ptr().cast::<u64>();
    // SAFETY: the buffer is as long as it is said to be. A word of it is written first, since the verifier of
    // 5.10 takes no stack that nobody has used so far down.
    let bytes = unsafe {
        write_volatile(first, 0);
        bpf_get_stack(ctx.as_ptr().cast(), first.cast(), size, 0)
    };
    if bytes <= 0 {
        return None;
    }
    // SAFETY: the helper fills the whole buffer, with zeros behind the last frame.
    let frames = unsafe { frames.assume_init_ref() };
    let (mut found, mut missing) = (Walked::begin(), 0);
    for &frame in frames {
        let entry = remembered(frame);
        missing |= is_of_another(entry, frame);
        found.pass(answer(entry));
    }
    if missing != 0 {
        found = look_all_up(frames);
    }
    if found.innermost & NOWHERE != 0 {
        return None;
    }
    Some(Stack {
        site: unpack(found.innermost),
        op: found.op as u32,
    })
}

/// What is known of a stack of which all frames were looked up, whatever is remembered.
#[inline(always)]
fn look_all_up(frames: &[u64; FRAMES]) -> Walked {
    let mut found = Walked::begin();
    for &frame in frames {
        let site = search(frame);
        remember(frame, site);
        found.pass(site);
    }
    found
}

/// What is known of a stack so far, from the innermost frame outwards.
struct Walked {
    /// The first site, or what was found before it, with [`NOWHERE`].
    innermost: u64,
    /// Of the last site with an op.
    op: u64,
}

impl Walked {
    #[inline(always)]
    fn begin() -> Self {
        Self {
            innermost: record::forget(NOWHERE),
            op: record::forget(Op::Other as u64),
        }
    }

    /// Without branches, for the verifier, as in [`look_up`].
    #[inline(always)]
    fn pass(&mut self, site: u64) {
        const _: () = assert!(Op::Other as u64 == 0);
        let is_nowhere = site >> NOWHERE_BIT & 1;
        let is_first = self.innermost >> NOWHERE_BIT & 1;
        // One, unless the op is zero.
        let has_op = (site & 0xff).wrapping_add(0xff) >> 8 & 1;
        // An interrupt comes while a lock is taken, and takes another: only the innermost are of that one.
        let taking = self.innermost >> LOCK_FUNCTION_BIT & 1;
        let called = self.innermost >> CALLER_BIT & 1;
        let calls = taking & (site >> LOCK_FUNCTION_BIT & 1 ^ 1);
        let site_here = site
            | taking << LOCK_FUNCTION_BIT
            | (called | calls) << CALLER_BIT
            | (taking & (called ^ 1)) << DIRECTLY_BIT;
        self.innermost = choose(is_first, site_here, self.innermost);
        self.op = choose(has_op & !is_nowhere, site & 0xff, self.op);
    }
}

/// Whether one of the words just above a slow path's context looks like a return into a function
/// that takes a `vmap_block.lock`: cheap enough for every contended lock of the kernel, and what
/// it lets through is then checked by walking the stack.
#[inline(always)]
pub(crate) fn may_be_block_taker(words_at: u64) -> bool {
    // SAFETY: the helper checks the address.
    let Ok(words) = (unsafe { bpf_probe_read_kernel(words_at as *const [u64; 16]) }) else {
        return false;
    };
    let start = kernel::<{ text::BLOCK_TAKERS_START }>();
    let length = kernel::<{ text::BLOCK_TAKERS_END }>().wrapping_sub(start);
    let mut hit = false;
    for &word in &words {
        hit |= word.wrapping_sub(start) < length;
    }
    hit
}

/// The site of an acquisition that is in no table: the cautious one.
pub(crate) const UNKNOWN: Site = Site {
    op: Op::Other as u32,
    intent: Intent::Write as u32,
    takes_block_lock: false,
    takes_directly: false,
};
