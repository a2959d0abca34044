//! Trying what this kernel lets us load, and reading a few of its words.
//!
//! A try loads the smallest program of a type against a real function or tracepoint and closes it
//! again; what a try attaches it detaches. A word is read by a program of a few instructions that
//! returns it. Invariant: a refusal is a reason for a person, never a panic.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use aya_obj::generated::{
    BPF_PSEUDO_BTF_ID,
    bpf_attach_type::{BPF_TRACE_FENTRY, BPF_TRACE_RAW_TP},
    bpf_cmd,
    bpf_prog_type::{BPF_PROG_TYPE_RAW_TRACEPOINT, BPF_PROG_TYPE_TRACING},
};

use super::assembly::code::{ADD, CALL, LOAD_4, MOVE, MOVE_X, SHIFT_RIGHT, STORE_8};
use super::assembly::{EXIT, Instruction, helper, instruction, load, load_constant};
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
    // SAFETY: nothing is pointed to: a tracing program was loaded for what it is attached to. The link
    // detaches when it is closed.
    unsafe { syscall::open(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attr) }.map(drop)
}

/// Whether a program can be loaded against that which reads kernel memory.
pub fn try_read(target: Target) -> Result<(), Refusal> {
    load_tracing(
        target,
        &[
            instruction(MOVE_X, 1, 10, 0),
            instruction(ADD, 1, 0, -8),
            instruction(MOVE, 2, 0, 8),
            instruction(MOVE, 3, 0, 0),
            instruction(CALL, 0, 0, helper::PROBE_READ_KERNEL),
            instruction(MOVE, 0, 0, 0),
            EXIT,
        ],
    )
    .map(drop)
}

/// Whether a program can be loaded against that which reads a CPU's own variable by its type, at an
/// offset.
pub fn try_read_per_cpu(target: Target, variable: u32, offset: i16) -> Result<(), Refusal> {
    let [variable, other_half] = load_constant(1, BPF_PSEUDO_BTF_ID as u8, variable.into());
    load_tracing(
        target,
        &[
            variable,
            other_half,
            instruction(CALL, 0, 0, helper::THIS_CPU_PTR),
            instruction(LOAD_4, 0, 0, 0).at(offset),
            instruction(MOVE, 0, 0, 0),
            EXIT,
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

/// A program that does nothing.
const EMPTY: [Instruction; 2] = [instruction(MOVE, 0, 0, 0), EXIT];

/// Loads a tracing program.
fn load_tracing(target: Target, program: &[Instruction]) -> Result<OwnedFd, Refusal> {
    let (attach_type, btf_id) = match target {
        Target::Function(id) => (BPF_TRACE_FENTRY as u32, id),
        Target::Tracepoint(id) => (BPF_TRACE_RAW_TP as u32, id),
    };
    load(program, BPF_PROG_TYPE_TRACING as u32, attach_type, btf_id)
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
            instruction(CALL, 0, 0, helper::GET_CURRENT_TASK),
            instruction(SHIFT_RIGHT, 0, 0, shift),
            EXIT,
        ])
    };
    Ok(u64::from(half(32)?) << 32 | u64::from(half(0)?))
}

fn peek_half(address: u64) -> Result<u32, Refusal> {
    let [low, high] = load_constant(3, 0, address);
    run(&[
        instruction(STORE_8, 10, 0, 0).at(-8),
        instruction(MOVE_X, 1, 10, 0),
        instruction(ADD, 1, 0, -8),
        instruction(MOVE, 2, 0, 4),
        low,
        high,
        instruction(CALL, 0, 0, helper::PROBE_READ_KERNEL),
        instruction(LOAD_4, 0, 10, 0).at(-8),
        EXIT,
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
