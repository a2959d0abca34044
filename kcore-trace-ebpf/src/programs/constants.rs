//! What userspace sets before loading.
//!
//! Most constants are immediates of the code, which userspace replaces: a load of one is one
//! instruction, and the verifier removes what is not reached with it. Where one is only calculated with,
//! it takes none. Those that are asked for by an
//! index are read-only data.
//!
//! Out: one function per constant. Invariant: a constant that is not set is zero, and zero means
//! that the thing is not there.

use core::arch::asm;
use core::ptr::read_volatile;

use kcore_trace_ebpf::layout::{Slot, acquire, constant, read};

use super::by_constant;

macro_rules! constants {
    ($($name:ident = $array:ident),+) => {$(
        #[inline(always)]
        pub(crate) fn $name<const INDEX: usize>() -> u64 {
            let value: u64;
            // SAFETY: an instruction that loads a constant.
            unsafe {
                asm!(
                    "{0} = {1} ll",
                    out(reg) value,
                    const constant::mark(constant::$array, INDEX),
                    // Not pure: it is cheaper to load a constant again than to keep it.
                    options(nomem, nostack)
                );
            };
            value
        }
    )+};
}

constants!(
    lock = LOCKS,
    nodes = NODES,
    blocks = BLOCKS,
    kernel = TEXT,
    flags = FLAGS
);

/// Whether a flag is set. Each way begins with a jump to the next instruction: the verifier, which goes
/// one of them only, then removes the other together with the branch.
#[inline(always)]
pub(crate) fn is_set<const FLAG: usize>() -> bool {
    let is_set = flags::<FLAG>() != 0;
    // SAFETY: they do nothing. Not the same, or the compiler makes one of them.
    unsafe {
        if is_set {
            asm!("goto +0 /* set */", options(nomem, nostack));
        } else {
            asm!("goto +0 /* not set */", options(nomem, nostack));
        }
    }
    is_set
}

/// A number below that of task slots, of a hash.
#[inline(always)]
pub(crate) fn among_slots(hash: u64) -> u64 {
    by_constant!(hash, "&=", constant::short_mark(constant::SLOT_MASK))
}

/// The slots of tasks: 448 KiB, with more than 64 CPUs 7 KiB for each. They are the only value of an array that
/// userspace makes before it loads, so that their address stands in the code and nothing is looked up.
#[inline(always)]
pub(crate) fn tasks() -> *mut Slot {
    let first;
    // SAFETY: an instruction that loads an address.
    unsafe {
        asm!("{0} = {1} ll", out(reg) first, const constant::TASKS, options(nomem, nostack));
    }
    first
}

/// A number times that of possible CPUs.
#[inline(always)]
pub(crate) fn times_cpus(number: u32) -> u32 {
    by_constant!(number, "*=", constant::short_mark(constant::CPUS))
}

/// Addresses of the functions that take a lock.
#[unsafe(no_mangle)]
static ACQUIRE: [u64; acquire::COUNT] = [0; acquire::COUNT];
#[unsafe(no_mangle)]
static READS: [u64; read::COUNT] = [0; read::COUNT];

macro_rules! tables {
    ($($name:ident = $array:ident),+) => {$(
        #[inline(always)]
        pub(crate) fn $name(index: usize) -> u64 {
            // SAFETY: the static is initialised; the read is volatile because userspace replaces
            // the value after compilation.
            unsafe { read_volatile(&$array[index]) }
        }
    )+};
}

tables!(acquire_function = ACQUIRE, reads = READS);
