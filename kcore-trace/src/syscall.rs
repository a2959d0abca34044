//! The bpf system call, for what aya does not offer: tries, test runs, batches, statistics,
//! what a link missed.
//!
//! In: a command and its attributes. Out: what the kernel returned, or its error.
//! Commands and attributes: `include/uapi/linux/bpf.h`.

use std::io;
use std::mem::{offset_of, size_of, zeroed};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use aya_obj::generated::{bpf_attr, bpf_btf_info, bpf_cmd, bpf_link_info, bpf_prog_info};

/// Attributes of which nothing is set.
pub(crate) fn attributes() -> bpf_attr {
    // SAFETY: plain data, for which zero is a valid value.
    unsafe { zeroed() }
}

/// Calls the kernel.
///
/// # Safety
///
/// Every pointer in `attr` is valid for what the command does with it, until the call returns.
pub(crate) unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: the union is as long as it is said to be; the rest is the caller's promise.
    let result = unsafe {
        let attr = &raw mut *attr;
        libc::syscall(libc::SYS_bpf, command as i32, attr, size_of::<bpf_attr>())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as i32)
}

/// What a command opens.
///
/// # Safety
///
/// As for [`bpf`], and the command returns a descriptor.
pub(crate) unsafe fn open(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, attr) }?;
    // SAFETY: the kernel has just opened it, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the kernel says of an object, and how many bytes of that it knows; the others are zero.
///
/// # Safety
///
/// `T` is what the kernel writes of such an object: plain data, for which zero is a valid value.
unsafe fn info<T>(object: BorrowedFd<'_>) -> io::Result<(T, usize)> {
    // SAFETY: the caller's promise.
    unsafe { info_into(object, zeroed()) }
}

/// The same, and what it has room for is written there.
///
/// # Safety
///
/// As for [`info`], and every pointer in it is valid for as many bytes as it says.
unsafe fn info_into<T>(object: BorrowedFd<'_>, mut info: T) -> io::Result<(T, usize)> {
    let mut attr = attributes();
    attr.info.bpf_fd = object.as_raw_fd() as u32;
    attr.info.info_len = size_of::<T>() as u32;
    attr.info.info = &raw mut info as u64;
    // SAFETY: the buffer is as long as it is said to be; the rest is the caller's promise.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    // SAFETY: the kernel leaves the length there.
    let known = unsafe { attr.info.info_len };
    Ok((info, known as usize))
}

/// What the kernel says of a program; fields that it does not know are zero.
pub(crate) fn program_info(program: BorrowedFd<'_>) -> io::Result<bpf_prog_info> {
    // SAFETY: integers only.
    let (info, _) = unsafe { info(program) }?;
    Ok(info)
}

/// The kernel's own types as they lie in its memory: copied once, where a read of their file copies them twice,
/// page by page. From 5.11 on, for who has CAP_SYS_ADMIN, once the kernel has looked into them itself
/// (`btf_get_info_by_fd` in `kernel/bpf/btf.c`).
///
/// # Errors
///
/// They are not to be had like that.
pub(crate) fn kernel_types() -> io::Result<Vec<u8>> {
    const NAME: &[u8] = b"vmlinux\0";
    // They are the first, unless somebody else's were there before the kernel looked.
    let mut attr = attributes();
    // SAFETY: nothing is pointed to, and the kernel leaves the id there.
    let id = unsafe {
        bpf(bpf_cmd::BPF_BTF_GET_NEXT_ID, &mut attr)?;
        attr.__bindgen_anon_6.next_id
    };
    let mut attr = attributes();
    attr.__bindgen_anon_6.__bindgen_anon_1.btf_id = id;
    // SAFETY: nothing is pointed to, and the command opens an object.
    let types = unsafe { open(bpf_cmd::BPF_BTF_GET_FD_BY_ID, &mut attr) }?;
    let mut name = [0; NAME.len()];
    let asked = bpf_btf_info {
        name: name.as_mut_ptr() as u64,
        name_len: name.len() as u32,
        // SAFETY: plain data, for which zero is a valid value.
        ..unsafe { zeroed() }
    };
    // SAFETY: there is room for the name, and none is said to be for anything else.
    let (found, _) = unsafe { info_into(types.as_fd(), asked) }?;
    if found.kernel_btf == 0 || name != NAME {
        return Err(io::ErrorKind::NotFound.into());
    }
    let mut bytes = vec![0; found.btf_size as usize];
    let asked = bpf_btf_info {
        btf: bytes.as_mut_ptr() as u64,
        btf_size: found.btf_size,
        // SAFETY: as above.
        ..unsafe { zeroed() }
    };
    // SAFETY: there is room for as many bytes.
    unsafe { info_into(types.as_fd(), asked) }?;
    Ok(bytes)
}

/// Opens a link by its id. It stays attached as long as this is open.
pub(crate) fn open_link(id: u32) -> io::Result<OwnedFd> {
    let mut attr = attributes();
    attr.__bindgen_anon_6.__bindgen_anon_1.link_id = id;
    // SAFETY: the attributes hold no pointer, and the command opens a link.
    unsafe { open(bpf_cmd::BPF_LINK_GET_FD_BY_ID, &mut attr) }
}

/// How often a kprobe was passed and its program did not run: a kprobe was being handled on the CPU,
/// or no instance was left for the return (`trace_kprobe_missed` in `kernel/trace/trace_kprobe.c`).
/// Nothing if the kernel does not tell: before 6.7 the struct had no such field, and was shorter.
pub(crate) fn missed_kprobes(link: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    // SAFETY: integers only.
    let (info, known): (bpf_link_info, _) = unsafe { info(link) }?;
    // SAFETY: of a link to a kprobe.
    let missed = unsafe {
        let event = &info.__bindgen_anon_1.perf_event;
        event.__bindgen_anon_1.kprobe.missed
    };
    Ok((known >= MISSED_END).then_some(missed))
}

/// Where the field ends in `struct bpf_link_info`, which grew by it.
const MISSED_END: usize = offset_of!(
    bpf_link_info,
    __bindgen_anon_1.perf_event.__bindgen_anon_1.kprobe.missed
) + size_of::<u64>();
