//! Trying what this kernel lets us load, and reading a few of its words.
//!
//! A try loads the smallest program of a type against a real function or tracepoint and closes it
//! again; nothing is attached. Invariant: a refusal is a reason for a person, never a panic.

use std::fs;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use aya::maps::Array;
use aya::programs::{RawTracePoint, TestRun as _};
use aya::{Ebpf, EbpfLoader};
use aya_obj::generated::{
    bpf_attach_type::{BPF_TRACE_FENTRY, BPF_TRACE_RAW_TP},
    bpf_attr, bpf_cmd, bpf_insn,
    bpf_prog_type::BPF_PROG_TYPE_TRACING,
};

/// How many words [`peek`] reads at once.
pub const WORDS: usize = 8;

/// Why a try failed, as an error of the kernel.
pub type Refusal = io::Error;

/// What programs are attached to, by its BTF id.
#[derive(Clone, Copy)]
pub enum Target {
    /// A function, by fentry.
    Function(u32),
    /// The typedef of a BTF tracepoint.
    Tracepoint(u32),
}

/// Whether a program can be loaded against that.
pub fn try_load(target: Target) -> Result<(), Refusal> {
    load(target, &[instruction(MOVE_CONSTANT, 0, 0, 0), EXIT_ZERO])
}

/// Whether a program can be loaded against that which reads kernel memory.
pub fn try_read(target: Target) -> Result<(), Refusal> {
    load(
        target,
        &[
            instruction(MOVE, 1, 10, 0),
            instruction(ADD_CONSTANT, 1, 0, -8),
            instruction(MOVE_CONSTANT, 2, 0, 8),
            instruction(MOVE_CONSTANT, 3, 0, 0),
            instruction(CALL, 0, 0, PROBE_READ_KERNEL),
            instruction(MOVE_CONSTANT, 0, 0, 0),
            EXIT_ZERO,
        ],
    )
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
/// constant (BPF_K) or a register (BPF_X); BPF_JMP with BPF_CALL or BPF_EXIT.
const MOVE_CONSTANT: u8 = 0xb7;
const MOVE: u8 = 0xbf;
const ADD_CONSTANT: u8 = 0x07;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// The helper `bpf_probe_read_kernel`.
const PROBE_READ_KERNEL: i32 = 113;

/// An instruction: code, destination and source register, constant.
type Instruction = (u8, u8, u8, i32);

const EXIT_ZERO: Instruction = instruction(EXIT, 0, 0, 0);

const fn instruction(code: u8, destination: u8, source: u8, constant: i32) -> Instruction {
    (code, destination, source, constant)
}

/// Loads a tracing program.
fn load(target: Target, program: &[Instruction]) -> Result<(), Refusal> {
    let (attach_type, btf_id) = match target {
        Target::Function(id) => (BPF_TRACE_FENTRY as u32, id),
        Target::Tracepoint(id) => (BPF_TRACE_RAW_TP as u32, id),
    };
    let code: Vec<bpf_insn> = program
        .iter()
        .map(|&(code, destination, source, constant)| {
            // SAFETY: plain data, for which zero is a valid value.
            let mut insn: bpf_insn = unsafe { zeroed() };
            insn.code = code;
            insn.set_dst_reg(destination);
            insn.set_src_reg(source);
            insn.imm = constant;
            insn
        })
        .collect();
    // SAFETY: as above, plain data.
    let mut attr: bpf_attr = unsafe { zeroed() };
    // SAFETY: the variant of BPF_PROG_LOAD is the one that is passed below.
    let args = unsafe { &mut attr.__bindgen_anon_3 };
    args.prog_type = BPF_PROG_TYPE_TRACING as u32;
    args.insn_cnt = code.len() as u32;
    args.insns = code.as_ptr() as u64;
    args.license = c"GPL".as_ptr() as u64;
    args.expected_attach_type = attach_type;
    args.attach_btf_id = btf_id;
    // SAFETY: the pointers in `attr` outlive the call.
    let fd = unsafe {
        let attr = &raw const attr;
        libc::syscall(
            libc::SYS_bpf,
            bpf_cmd::BPF_PROG_LOAD as i32,
            attr,
            size_of::<bpf_attr>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    Ok(())
}

/// Reads words of kernel memory: of each address that is not zero, the eight bytes there, zero
/// where they can't be read. Kernel 5.10 or later (test run of raw tracepoint programs).
pub fn peek(addresses: [u64; WORDS]) -> Result<[u64; WORDS]> {
    let mut object = EbpfLoader::new()
        .btf(None)
        .load(aya::include_bytes_aligned!(concat!(
            env!("OUT_DIR"),
            "/peek"
        )))
        .context("failed to load the program that reads kernel words")?;
    let mut map: Array<_, u64> = map(&mut object, "ADDRESSES")?;
    for (index, address) in (0..).zip(addresses) {
        map.set(index, address, 0)?;
    }
    let program: &mut RawTracePoint = object
        .program_mut("peek")
        .context("the object has no program `peek`")?
        .try_into()?;
    program
        .load()
        .context("the kernel refused the program `peek`")?;
    program
        .test_run(Default::default())
        .context("failed to run the program `peek`")?;
    let map: Array<_, u64> = map_ref(&object, "WORDS")?;
    let mut words = [0; WORDS];
    for (index, word) in (0..).zip(&mut words) {
        *word = map.get(&index, 0)?;
    }
    Ok(words)
}

fn map<'a>(object: &'a mut Ebpf, name: &str) -> Result<Array<&'a mut aya::maps::MapData, u64>> {
    let map = object
        .map_mut(name)
        .with_context(|| format!("the object has no map `{name}`"))?;
    Ok(Array::try_from(map)?)
}

fn map_ref<'a>(object: &'a Ebpf, name: &str) -> Result<Array<&'a aya::maps::MapData, u64>> {
    let map = object
        .map(name)
        .with_context(|| format!("the object has no map `{name}`"))?;
    Ok(Array::try_from(map)?)
}
