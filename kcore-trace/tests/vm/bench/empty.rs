//! Programs that only return, and how they are attached.
//!
//! In: functions and tracepoints by name. Out: descriptors that detach when they are closed, and
//! plain maps. Bare
//! system calls, because what is measured is the kernel's part and nothing else.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use aya_obj::generated::{
    PERF_EVENT_IOC_ENABLE, PERF_EVENT_IOC_SET_BPF, PERF_FLAG_FD_CLOEXEC, bpf_attach_type,
    bpf_attach_type::{BPF_TRACE_FENTRY, BPF_TRACE_FEXIT, BPF_TRACE_RAW_TP},
    bpf_attr, bpf_cmd, bpf_insn,
    bpf_map_type::BPF_MAP_TYPE_ARRAY,
    bpf_prog_type::{BPF_PROG_TYPE_KPROBE, BPF_PROG_TYPE_TRACING},
    perf_event_attr,
};
use kcore_trace::kernel::btf::{self, Btf};

/// Keeps a program attached.
pub(super) struct Attached {
    _descriptors: Vec<OwnedFd>,
}

/// Makes empty programs.
pub(super) struct Empty {
    btf: Btf,
}

impl Empty {
    /// For these functions and tracepoints.
    pub(super) fn new<'a>(targets: impl Iterator<Item = &'a str>) -> Result<Self> {
        let mut names: HashSet<String> = HashSet::new();
        for target in targets {
            names.insert(target.to_owned());
            names.insert(typedef(target));
        }
        let names = names.iter().map(String::as_str).collect();
        // Where there is no BTF there are kprobes.
        let btf = match std::fs::read(btf::PATH) {
            Ok(bytes) => Btf::parse(&bytes, &names)?,
            Err(_) => Btf::default(),
        };
        Ok(Self { btf })
    }

    pub(super) fn fentry(&self, function: &str) -> Result<Attached> {
        tracing(BPF_TRACE_FENTRY, self.function(function)?)
    }

    pub(super) fn fexit(&self, function: &str) -> Result<Attached> {
        tracing(BPF_TRACE_FEXIT, self.function(function)?)
    }

    pub(super) fn tracepoint(&self, name: &str) -> Result<Attached> {
        let id = self.btf.typedef(&typedef(name));
        tracing(BPF_TRACE_RAW_TP, id.context("BTF does not know it")?)
    }

    /// By name, or at an address where the name is not unique.
    pub(super) fn kprobe(
        &self,
        function: &str,
        address: Option<u64>,
        at_return: bool,
    ) -> Result<Attached> {
        let program = load(BPF_PROG_TYPE_KPROBE as u32, None)?;
        let event = perf_event(function, address, at_return)?;
        let set = [
            (PERF_EVENT_IOC_SET_BPF, program.as_raw_fd()),
            (PERF_EVENT_IOC_ENABLE, 0),
        ];
        for (request, argument) in set {
            // SAFETY: both requests take an integer.
            let done = unsafe { libc::ioctl(event.as_raw_fd(), request.into(), argument) };
            if done != 0 {
                return Err(io::Error::last_os_error()).context("failed to attach");
            }
        }
        Ok(Attached {
            _descriptors: vec![event, program],
        })
    }

    fn function(&self, name: &str) -> Result<u32> {
        let function = self.btf.function(name);
        Ok(function.context("BTF does not know it")?.id)
    }
}

/// The typedef that stands for a BTF tracepoint.
fn typedef(tracepoint: &str) -> String {
    format!("btf_trace_{tracepoint}")
}

fn tracing(kind: bpf_attach_type, id: u32) -> Result<Attached> {
    let program = load(BPF_PROG_TYPE_TRACING as u32, Some((kind as u32, id)))?;
    // SAFETY: plain data, for which zero is a valid value.
    let mut attr: bpf_attr = unsafe { zeroed() };
    attr.raw_tracepoint.prog_fd = program.as_raw_fd() as u32;
    let link = bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &attr).context("failed to attach")?;
    Ok(Attached {
        _descriptors: vec![link, program],
    })
}

/// Loads `return 0`.
fn load(kind: u32, target: Option<(u32, u32)>) -> Result<OwnedFd> {
    /// BPF_ALU64 | BPF_MOV | BPF_K and BPF_JMP | BPF_EXIT (`include/uapi/linux/bpf.h`).
    const CODES: [u8; 2] = [0xb7, 0x95];
    let code = CODES.map(|code| {
        // SAFETY: plain data, for which zero is a valid value.
        let mut instruction: bpf_insn = unsafe { zeroed() };
        instruction.code = code;
        instruction
    });
    // SAFETY: as above, plain data.
    let mut attr: bpf_attr = unsafe { zeroed() };
    // SAFETY: the variant of BPF_PROG_LOAD is the one that is passed below.
    let args = unsafe { &mut attr.__bindgen_anon_3 };
    args.prog_type = kind;
    args.insn_cnt = code.len() as u32;
    args.insns = code.as_ptr() as u64;
    args.license = c"GPL".as_ptr() as u64;
    if let Some((attach_type, id)) = target {
        args.expected_attach_type = attach_type;
        args.attach_btf_id = id;
    }
    bpf(bpf_cmd::BPF_PROG_LOAD, &attr).context("failed to load")
}

/// Makes an array map of so many pages, which is a vmalloc above eight of them.
pub(super) fn array_map(pages: u32) -> io::Result<OwnedFd> {
    const PAGE: u32 = 4096;
    // SAFETY: plain data, for which zero is a valid value.
    let mut attr: bpf_attr = unsafe { zeroed() };
    // SAFETY: the variant of BPF_MAP_CREATE is the one that is passed below.
    let args = unsafe { &mut attr.__bindgen_anon_1 };
    args.map_type = BPF_MAP_TYPE_ARRAY as u32;
    args.key_size = size_of::<u32>() as u32;
    args.value_size = PAGE;
    args.max_entries = pages;
    bpf(bpf_cmd::BPF_MAP_CREATE, &attr)
}

/// A call of bpf(2) that returns a descriptor.
fn bpf(command: bpf_cmd, attr: &bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: `attr` and what it points to outlive the call.
    let fd = unsafe {
        let attr = std::ptr::from_ref(attr);
        libc::syscall(libc::SYS_bpf, command as i32, attr, size_of::<bpf_attr>())
    };
    owned(fd)
}

fn perf_event(function: &str, address: Option<u64>, at_return: bool) -> Result<OwnedFd> {
    const PMU: &str = "/sys/bus/event_source/devices/kprobe";
    let read = |file: &str| -> Result<String> {
        let path = format!("{PMU}/{file}");
        std::fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))
    };
    let name = CString::new(function)?;
    // SAFETY: plain data, for which zero is a valid value.
    let mut attr: perf_event_attr = unsafe { zeroed() };
    attr.type_ = read("type")?.trim().parse()?;
    attr.size = size_of::<perf_event_attr>() as u32;
    if at_return {
        let format = read("format/retprobe")?;
        let bit = format.trim().strip_prefix("config:");
        let bit: u32 = bit.context("an unknown format of kprobe events")?.parse()?;
        attr.config = 1 << bit;
    }
    match address {
        Some(address) => attr.__bindgen_anon_4.kprobe_addr = address,
        None => attr.__bindgen_anon_3.kprobe_func = name.as_ptr() as u64,
    }
    // SAFETY: `attr` and the name that it points to outlive the call. All processes, one CPU: the
    // probe fires on every CPU all the same.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attr,
            -1,
            0,
            -1,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    owned(fd).context("failed to create the probe")
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
