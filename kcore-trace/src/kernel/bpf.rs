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

/// Whether fentry programs can be loaded against that function (its BTF id).
pub fn try_fentry(btf_id: u32) -> Result<(), Refusal> {
    load(BPF_TRACE_FENTRY as u32, btf_id)
}

/// Whether programs can be loaded against the BTF tracepoint of that typedef (its BTF id).
pub fn try_tracepoint(btf_id: u32) -> Result<(), Refusal> {
    load(BPF_TRACE_RAW_TP as u32, btf_id)
}

/// Whether kprobes exist and may be opened here.
pub fn try_kprobe() -> Result<(), String> {
    const PMU: &str = "/sys/bus/event_source/devices/kprobe/type";
    match fs::metadata(PMU) {
        Ok(_) => Ok(()),
        Err(_) => Err("this kernel has no kprobe events (CONFIG_KPROBE_EVENTS is off)".into()),
    }
}

/// `r0 = 0`: BPF_ALU64 | BPF_MOV | BPF_K (`include/uapi/linux/bpf.h`).
const MOVE_CONSTANT: u8 = 0xb7;
/// BPF_JMP | BPF_EXIT.
const EXIT: u8 = 0x95;

/// Loads `return 0` as a tracing program.
fn load(attach_type: u32, btf_id: u32) -> Result<(), Refusal> {
    // SAFETY: plain data, for which zero is a valid value.
    let mut code: [bpf_insn; 2] = unsafe { zeroed() };
    code[0].code = MOVE_CONSTANT;
    code[1].code = EXIT;
    // SAFETY: as above.
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
