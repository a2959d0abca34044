//! What userspace sets before loading: read-only data, which the verifier folds into the code.
//!
//! Out: one function per constant. Invariant: a constant that is not set is zero, and zero means
//! that the thing is not there.

use core::ptr::read_volatile;

use kcore_trace_ebpf::layout::{acquire, address, block, flag, node, read, text};

#[unsafe(no_mangle)]
static LOCKS: [u64; address::COUNT] = [0; address::COUNT];
#[unsafe(no_mangle)]
static NODES: [u64; node::COUNT] = [0; node::COUNT];
#[unsafe(no_mangle)]
static BLOCKS: [u64; block::COUNT] = [0; block::COUNT];
#[unsafe(no_mangle)]
static TEXT: [u64; text::COUNT] = [0; text::COUNT];
/// Addresses of the functions that take a lock.
#[unsafe(no_mangle)]
static ACQUIRE: [u64; acquire::COUNT] = [0; acquire::COUNT];
#[unsafe(no_mangle)]
static FLAGS: [u64; flag::COUNT] = [0; flag::COUNT];
#[unsafe(no_mangle)]
static READS: [u64; read::COUNT] = [0; read::COUNT];
/// Number of sets of task slots less one.
#[unsafe(no_mangle)]
static SET_MASK: u64 = 0;
/// Number of possible CPUs.
#[unsafe(no_mangle)]
static CPUS: u64 = 0;

macro_rules! constants {
    ($($name:ident = $array:ident),+) => {$(
        #[inline(always)]
        pub(crate) fn $name(index: usize) -> u64 {
            // SAFETY: the static is initialised; the read is volatile because userspace replaces
            // the value after compilation.
            unsafe { read_volatile(&$array[index]) }
        }
    )+};
}

constants!(
    lock = LOCKS,
    nodes = NODES,
    blocks = BLOCKS,
    kernel = TEXT,
    acquire_function = ACQUIRE,
    flags = FLAGS,
    reads = READS
);

#[inline(always)]
pub(crate) fn set_mask() -> u32 {
    // SAFETY: as above.
    unsafe { read_volatile(&SET_MASK) as u32 }
}

#[inline(always)]
pub(crate) fn cpus() -> u32 {
    // SAFETY: as above.
    unsafe { read_volatile(&CPUS) as u32 }
}
