//! Trying what this kernel lets us load, and reading a few of its words.
//!
//! A try loads the smallest program of a type against a real function or tracepoint and closes it
//! again; what a try attaches it detaches. A word is read by a program of a few instructions that
//! returns it. Invariant: a refusal is a reason for a person, never a panic.

use std::fs;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use aya_obj::generated::{
    BPF_PSEUDO_BTF_ID,
    bpf_attach_type::{BPF_TRACE_FENTRY, BPF_TRACE_RAW_TP},
    bpf_cmd, bpf_insn,
    bpf_prog_type::{BPF_PROG_TYPE_RAW_TRACEPOINT, BPF_PROG_TYPE_TRACING},
};

use crate::syscall;

/// Why a try failed, as an error of the kernel.
pub type Refusal = io::Error;

/// What programs are attached to, by its BTF id.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// A function, by fentry.
    Function(u32),
    /// The typedef of a BTF tracepoint.
    Tracepoint(u32),
}

/// Whether a program can be loaded against that.
pub fn try_load(target: Target) -> Result<(), Refusal> {
    load_tracing(target, &EMPTY).map(drop)
}

/// Whether a program can be attached to that.
pub fn try_attach(target: Target) -> Result<(), Refusal> {
    let program = load_tracing(target, &EMPTY)?;
    let mut attr = syscall::attributes();
    attr.raw_tracepoint.prog_fd = program.as_raw_fd() as u32;
    // SAFETY: nothing is pointed to: a tracing program was loaded for what it is attached to.
    let link = unsafe { syscall::bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attr) }?;
    // SAFETY: the kernel has just given us this descriptor, which detaches when it is closed.
    drop(unsafe { OwnedFd::from_raw_fd(link) });
    Ok(())
}

/// Whether a program can be loaded against that which reads kernel memory.
pub fn try_read(target: Target) -> Result<(), Refusal> {
    load_tracing(
        target,
        &[
            instruction(MOVE, 1, 10, 0),
            instruction(ADD_CONSTANT, 1, 0, -8),
            instruction(MOVE_CONSTANT, 2, 0, 8),
            instruction(MOVE_CONSTANT, 3, 0, 0),
            instruction(CALL, 0, 0, PROBE_READ_KERNEL),
            instruction(MOVE_CONSTANT, 0, 0, 0),
            EXIT_PROGRAM,
        ],
    )
    .map(drop)
}

/// Whether a program can be loaded against that which reads a CPU's own variable by its type, at an
/// offset.
pub fn try_read_per_cpu(target: Target, variable: u32, offset: i16) -> Result<(), Refusal> {
    load_tracing(
        target,
        &[
            Instruction {
                source: BPF_PSEUDO_BTF_ID as u8,
                ..instruction(LOAD_CONSTANT, 1, 0, variable as i32)
            },
            instruction(0, 0, 0, 0),
            instruction(CALL, 0, 0, THIS_CPU_PTR),
            instruction(LOAD_HALF, 0, 0, 0).at(offset),
            instruction(MOVE_CONSTANT, 0, 0, 0),
            EXIT_PROGRAM,
        ],
    )
    .map(drop)
}

/// Whether kprobes exist and may be opened here.
pub fn try_kprobe() -> Result<(), String> {
    const PMU: &str = "/sys/bus/event_source/devices/kprobe/type";
    match fs::metadata(PMU) {
        Ok(_) => Ok(()),
        Err(_) => Err("this kernel has no kprobe events (CONFIG_KPROBE_EVENTS is off)".into()),
    }
}

/// Codes of instructions (`include/uapi/linux/bpf.h`): BPF_ALU64 with BPF_MOV or BPF_ADD, of a
/// constant (BPF_K) or a register (BPF_X), or BPF_RSH; BPF_LD of a 64-bit constant in two instructions;
/// BPF_ST and BPF_LDX of a 32-bit and a 64-bit word; BPF_JMP with BPF_CALL or BPF_EXIT.
const MOVE_CONSTANT: u8 = 0xb7;
const LOAD_CONSTANT: u8 = 0x18;
const STORE_ZERO: u8 = 0x7a;
const LOAD_HALF: u8 = 0x61;
const MOVE: u8 = 0xbf;
const ADD_CONSTANT: u8 = 0x07;
const SHIFT_RIGHT_CONSTANT: u8 = 0x77;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// The helpers `bpf_get_current_task`, `bpf_probe_read_kernel` and `bpf_this_cpu_ptr`.
const GET_CURRENT_TASK: i32 = 35;
const PROBE_READ_KERNEL: i32 = 113;
const THIS_CPU_PTR: i32 = 154;

/// An instruction: code, destination and source register, offset, constant.
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    destination: u8,
    source: u8,
    offset: i16,
    constant: i32,
}

const EXIT_PROGRAM: Instruction = instruction(EXIT, 0, 0, 0);

/// A program that does nothing.
const EMPTY: [Instruction; 2] = [instruction(MOVE_CONSTANT, 0, 0, 0), EXIT_PROGRAM];

const fn instruction(code: u8, destination: u8, source: u8, constant: i32) -> Instruction {
    Instruction {
        code,
        destination,
        source,
        offset: 0,
        constant,
    }
}

impl Instruction {
    /// The same with an offset from the register that is an address.
    const fn at(self, offset: i16) -> Self {
        Self { offset, ..self }
    }
}

/// Loads a tracing program.
fn load_tracing(target: Target, program: &[Instruction]) -> Result<OwnedFd, Refusal> {
    let (attach_type, btf_id) = match target {
        Target::Function(id) => (BPF_TRACE_FENTRY as u32, id),
        Target::Tracepoint(id) => (BPF_TRACE_RAW_TP as u32, id),
    };
    load(program, BPF_PROG_TYPE_TRACING as u32, attach_type, btf_id)
}

fn load(
    program: &[Instruction],
    prog_type: u32,
    attach_type: u32,
    btf_id: u32,
) -> Result<OwnedFd, Refusal> {
    let code: Vec<bpf_insn> = program
        .iter()
        .map(|instruction| {
            // SAFETY: plain data, for which zero is a valid value.
            let mut insn: bpf_insn = unsafe { zeroed() };
            insn.code = instruction.code;
            insn.set_dst_reg(instruction.destination);
            insn.set_src_reg(instruction.source);
            insn.off = instruction.offset;
            insn.imm = instruction.constant;
            insn
        })
        .collect();
    let mut attr = syscall::attributes();
    // SAFETY: the variant of BPF_PROG_LOAD is the one that is passed below.
    let args = unsafe { &mut attr.__bindgen_anon_3 };
    args.prog_type = prog_type;
    args.insn_cnt = code.len() as u32;
    args.insns = code.as_ptr() as u64;
    args.license = c"GPL".as_ptr() as u64;
    args.expected_attach_type = attach_type;
    args.attach_btf_id = btf_id;
    // SAFETY: instructions and licence outlive the call.
    let fd = unsafe { syscall::bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr) }?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The eight bytes of kernel memory at that address; zero where they can't be read. Kernel 5.10
/// or later (test run of raw tracepoint programs).
pub fn peek(address: u64) -> Result<u64> {
    let [low, high] = [0, 4].map(|offset| {
        peek_half(address + offset)
            .with_context(|| format!("failed to read kernel memory at {offset} bytes into a word"))
    });
    Ok(u64::from(high?) << 32 | u64::from(low?))
}

/// The address of our own `task_struct`. Kernel 5.10 or later.
pub fn current_task() -> Result<u64, Refusal> {
    let half = |shift| {
        run(&[
            instruction(CALL, 0, 0, GET_CURRENT_TASK),
            instruction(SHIFT_RIGHT_CONSTANT, 0, 0, shift),
            EXIT_PROGRAM,
        ])
    };
    Ok(u64::from(half(32)?) << 32 | u64::from(half(0)?))
}

fn peek_half(address: u64) -> Result<u32, Refusal> {
    run(&[
        instruction(STORE_ZERO, 10, 0, 0).at(-8),
        instruction(MOVE, 1, 10, 0),
        instruction(ADD_CONSTANT, 1, 0, -8),
        instruction(MOVE_CONSTANT, 2, 0, 4),
        instruction(LOAD_CONSTANT, 3, 0, address as i32),
        instruction(0, 0, 0, (address >> 32) as i32),
        instruction(CALL, 0, 0, PROBE_READ_KERNEL),
        instruction(LOAD_HALF, 0, 10, 0).at(-8),
        EXIT_PROGRAM,
    ])
}

/// Runs a program as this task; it returns 32 bits.
fn run(program: &[Instruction]) -> Result<u32, Refusal> {
    let program = load(program, BPF_PROG_TYPE_RAW_TRACEPOINT as u32, 0, 0)?;
    let mut attr = syscall::attributes();
    attr.test.prog_fd = program.as_raw_fd() as u32;
    // SAFETY: nothing is pointed to.
    unsafe { syscall::bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr) }?;
    // SAFETY: the kernel has written this variant.
    Ok(unsafe { attr.test.retval })
}
