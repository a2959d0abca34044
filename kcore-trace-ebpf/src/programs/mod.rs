//! What runs in the kernel.
//!
//! The law of this folder: count in the kernel, no event per measurement. Constant work at a hook;
//! an address is compared before anything else is done. Arrays only: a hash map takes locks of its
//! own, and one of them may be the lock that is being watched. No stack is walked but at a
//! contended lock of ours, where no op hook tells the op. Searches have no branches: the verifier
//! follows each way of each, and verifying is most of what starting takes. A program is in one piece,
//! but for what is seldom asked for: each function that it calls is one more area in the trees that are
//! being watched. User memory is never read: hardened usercopy looks vmalloc addresses up, under the
//! very lock that may be held here.
//!
//! [`constants`] and [`maps`] are what the programs share with userspace; [`site`] tells who
//! called; [`slot`] remembers what a task is doing; [`record`] writes the counters, [`node`] those of
//! single nodes, [`blame`] those of waiters by holder, which [`holder`] knows, [`reader`] those of
//! processes that read, [`worst`] the longest waits, [`audit`] contexts; [`lock`] is the state machine
//! of an acquisition, and [`waits`] tells whether one may be waited for; [`spin`], [`sleeping`],
//! [`op`], [`read`], [`inside`] and [`tracepoint`] are the programs, each a few lines that fetch
//! arguments.

use core::arch::asm;
use core::ptr::read_volatile;

mod audit;
mod blame;
mod constants;
mod holder;
mod inside;
mod lock;
mod maps;
mod node;
mod op;
mod read;
mod reader;
mod record;
mod site;
mod sleeping;
mod slot;
mod spin;
mod tracepoint;
mod waits;
mod worst;

/// Declares programs: kind, name, and a body over the context. Each has a section of its own, so that it can
/// be left out.
macro_rules! programs {
    ($($kind:literal $name:ident($ctx:ident) $body:block)+) => {$(
        #[unsafe(no_mangle)]
        #[unsafe(link_section = concat!($kind, "/", stringify!($name)))]
        extern "C" fn $name($ctx: $crate::programs::Context) -> i32 {
            $body;
            0
        }
    )+};
}
pub(crate) use programs;

/// One instruction that calculates with a constant, which the compiler can neither change nor leave out.
macro_rules! by_constant {
    ($value:expr, $operator:literal, $constant:expr) => {{
        let mut value = $value;
        // SAFETY: an instruction on a register.
        unsafe {
            core::arch::asm!(
                concat!("{0} ", $operator, " {1}"),
                inout(reg) value,
                const $constant,
                options(pure, nomem, nostack)
            );
        }
        value
    }};
}
pub(crate) use by_constant;

/// The context of a program, whatever its type.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Context(*mut u64);

impl Context {
    /// Argument `n` of a traced function or BTF tracepoint; of fexit, the return value after them.
    ///
    /// The read is volatile, so that it stays where it is written: before the context is used as
    /// an address, or else the compiler reads through that other pointer, which older verifiers
    /// refuse ("dereference of modified ctx ptr").
    #[inline(always)]
    pub(crate) fn arg(self, n: usize) -> u64 {
        // SAFETY: the verifier checks the access against the number of arguments.
        unsafe { read_volatile(self.0.add(n)) }
    }

    /// Argument `n`, a kernel address, as a number.
    #[inline(always)]
    pub(crate) fn address(self, n: usize) -> u64 {
        number(self.arg(n))
    }

    /// Word `n` of `struct pt_regs`, in a kprobe (`arch/x86/include/asm/ptrace.h`).
    #[inline(always)]
    fn reg(self, n: usize) -> u64 {
        // SAFETY: the verifier checks the access against the size of pt_regs.
        unsafe { *self.0.add(n) }
    }

    /// First argument, in a kprobe.
    #[inline(always)]
    pub(crate) fn probe_arg0(self) -> u64 {
        self.reg(14)
    }

    /// Second argument, in a kprobe.
    #[inline(always)]
    pub(crate) fn probe_arg1(self) -> u64 {
        self.reg(13)
    }

    /// Third argument, in a kprobe.
    #[inline(always)]
    pub(crate) fn probe_arg2(self) -> u64 {
        self.reg(12)
    }

    /// Return value, in a kretprobe.
    #[inline(always)]
    pub(crate) fn probe_ret(self) -> u64 {
        self.reg(10)
    }

    /// Flags of the processor, in a kprobe.
    #[inline(always)]
    pub(crate) fn probe_flags(self) -> u64 {
        self.reg(18)
    }

    /// Stack pointer, in a kprobe: where the return address lies.
    #[inline(always)]
    pub(crate) fn probe_sp(self) -> u64 {
        self.reg(19)
    }

    #[inline(always)]
    pub(crate) fn as_ptr(self) -> *mut u64 {
        self.0
    }
}

/// A kernel pointer as a number that can be calculated with.
///
/// The verifier knows contexts and typed arguments as pointers and refuses arithmetic on them, but for
/// negation, which leaves a number that it knows nothing of (`check_alu_op` in `kernel/bpf/verifier.c`,
/// where pointers may be leaked: CAP_PERFMON).
#[inline(always)]
pub(crate) fn number(pointer: u64) -> u64 {
    let mut number = pointer;
    // SAFETY: two instructions that undo each other.
    unsafe {
        asm!("{0} = -{0}", "{0} = -{0}", inout(reg) number, options(pure, nomem, nostack));
    }
    number
}

/// The same value, of which the compiler knows nothing any more: it removes checks that the verifier
/// needs, and makes branches of arithmetic that was written to have none.
#[inline(always)]
pub(crate) fn hidden(mut value: u64) -> u64 {
    // SAFETY: no instruction.
    unsafe { asm!("/* {0} */", inout(reg) value, options(pure, nomem, nostack)) };
    value
}

/// The same value, calculated by here: the compiler puts calculations off to where the result is used, and what
/// goes into them is then what the verifier compares where ways meet.
#[inline(always)]
pub(crate) fn calculated(mut value: u64) -> u64 {
    // SAFETY: no instruction. Not pure, so that it stays where it is.
    unsafe { asm!("/* {0} calculated */", inout(reg) value, options(nomem, nostack)) };
    value
}

/// The highest bit: one if the value is negative. Hidden from the compiler, which would make a branch of
/// what is done with it.
#[inline(always)]
pub(crate) fn sign(value: u64) -> u64 {
    hidden(value >> 63)
}

/// `a` if the bit is one, `b` if it is zero: without a branch, which would double the paths that the
/// verifier follows, and without a mask, of which some verifiers make a branch of their own.
#[inline(always)]
pub(crate) fn choose(bit: u64, a: u64, b: u64) -> u64 {
    b.wrapping_add(hidden(bit).wrapping_mul(a.wrapping_sub(b)))
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// The verifier proves that no program can get here.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
