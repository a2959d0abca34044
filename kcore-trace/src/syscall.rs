//! The bpf system call, for what aya does not offer: tries, test runs, batches, statistics.
//!
//! In: a command and its attributes. Out: what the kernel returned, or its error.
//! Commands and attributes: `include/uapi/linux/bpf.h`.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_prog_info};

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

/// What the kernel says of a program; fields that it does not know are zero.
pub(crate) fn program_info(program: BorrowedFd<'_>) -> io::Result<bpf_prog_info> {
    // SAFETY: plain data, for which zero is a valid value.
    let mut info: bpf_prog_info = unsafe { zeroed() };
    let mut attr = attributes();
    attr.info.bpf_fd = program.as_raw_fd() as u32;
    attr.info.info_len = size_of::<bpf_prog_info>() as u32;
    attr.info.info = &raw mut info as u64;
    // SAFETY: the buffer is as long as it is said to be.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}
