//! Reads of /proc/kcore that all stay inside the kernel at the same time.
//!
//! In: how many. Out: an exit code. Each read is of one header's bytes, into a page that this process
//! hands out only when all of them wait for it, so that the function that reads has been entered so many times
//! and left not once.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::process::ExitCode;
use std::ptr::null_mut;
use std::thread;

use anyhow::{Context as _, Result, ensure};

/// The first argument that asks for it.
pub(crate) const READERS: &str = "--stuck-readers";

const PAGE_BYTES: usize = 4096;
const HEADER_BYTES: usize = 64;

/// `struct uffd_msg` of `include/uapi/linux/userfaultfd.h`.
const MESSAGE_BYTES: usize = 32;
/// `UFFD_API`.
const API: u64 = 0xaa;
/// `UFFDIO_REGISTER_MODE_MISSING`.
const MISSING: u64 = 1;

/// `_IOWR(0xaa, NUMBER, so many bytes)`.
const fn request(number: u64, bytes: usize) -> u64 {
    3 << 30 | (bytes as u64) << 16 | 0xaa << 8 | number
}

pub(crate) fn main(arguments: &[OsString]) -> ExitCode {
    let count = arguments
        .first()
        .and_then(|word| word.to_str()?.parse().ok());
    match count.context("how many?").and_then(read_all) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn read_all(count: usize) -> Result<()> {
    let kcore = File::open("/proc/kcore").context("no /proc/kcore")?;
    // SAFETY: the kernel chooses a free range, so that no memory in use is touched.
    let page = unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        libc::mmap(null_mut(), PAGE_BYTES, protection, flags, -1, 0)
    };
    ensure!(page != libc::MAP_FAILED, io::Error::last_os_error());
    let page = page as usize;
    let mut faults = handled(page).context("no userfaultfd")?;
    thread::scope(|scope| {
        let readers: Vec<_> = (0..count)
            .map(|_| scope.spawn(|| read_into(&kcore, page)))
            .collect();
        let mut message = [0; MESSAGE_BYTES];
        for _ in 0..count {
            faults.read_exact(&mut message)?;
        }
        // `struct uffdio_zeropage`: a range, a mode, and what was done.
        ask(
            &faults,
            request(4, 32),
            &mut [page as u64, PAGE_BYTES as u64, 0, 0],
        )?;
        for reader in readers {
            reader
                .join()
                .map_err(|_panic| anyhow::anyhow!("a reader panicked"))??;
        }
        Ok(())
    })
}

/// The faults of a page, which from here on wait.
fn handled(page: usize) -> Result<File> {
    // SAFETY: the call takes flags only, and the descriptor is nobody else's.
    let faults = unsafe {
        let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC);
        ensure!(fd >= 0, io::Error::last_os_error());
        File::from_raw_fd(fd as i32)
    };
    // `struct uffdio_api`: what we want, features, and what can be asked for.
    ask(&faults, request(0x3f, 24), &mut [API, 0, 0])?;
    // `struct uffdio_register`: a range, a mode, and what can be asked for.
    ask(
        &faults,
        request(0, 32),
        &mut [page as u64, PAGE_BYTES as u64, MISSING, 0],
    )?;
    Ok(faults)
}

fn ask(faults: &File, request: u64, words: &mut [u64]) -> io::Result<()> {
    // SAFETY: the words are as many as the request says.
    let result = unsafe { libc::ioctl(faults.as_raw_fd(), request as _, words.as_mut_ptr()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn read_into(kcore: &File, page: usize) -> io::Result<()> {
    // SAFETY: the page stays mapped, and nothing here refers to what is in it.
    let read = unsafe { libc::pread(kcore.as_raw_fd(), page as *mut _, HEADER_BYTES, 0) };
    if read == HEADER_BYTES as isize {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
