//! Load by BPF array maps: one map is one vmalloc, and its end one vfree.
//!
//! Owns the few bytes of bpf(2) that this takes, without a library, so that a map is made by one
//! system call and nothing else. The kernel allocates an array map by kmalloc up to
//! `PAGE_SIZE << PAGE_ALLOC_COSTLY_ORDER`, which is 8 pages, and by vmalloc above that: 16 pages
//! and a header are always vmalloc'ed.
//!
//! Invariant: closing the last descriptor only queues the map to be freed. The vfree runs later,
//! in a kworker; [`settle`] waits for it as well as user space can tell.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use super::memory::page_bytes;
use super::work::Work;

/// Elements of a map, each of the size of a page.
pub(super) const ENTRIES: u32 = 16;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_TYPE_ARRAY: u32 = 2;

/// The head of `union bpf_attr` for `BPF_MAP_CREATE`; the kernel takes what it is not given as 0.
#[repr(C)]
struct CreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// The head of `union bpf_attr` for `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
struct UpdateAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Makes an array map of [`ENTRIES`] pages: one vmalloc, by this task.
pub(crate) fn create() -> io::Result<OwnedFd> {
    create_array(
        u32::try_from(page_bytes()).map_err(io::Error::other)?,
        ENTRIES,
    )
}

/// Fails if maps cannot be made; allocates nothing by vmalloc, so that no op is done before its
/// time.
pub(super) fn check() -> io::Result<()> {
    create_array(8, 1).map(drop)
}

fn create_array(value_size: u32, max_entries: u32) -> io::Result<OwnedFd> {
    let attr = CreateAttr {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size,
        max_entries,
        map_flags: 0,
    };
    // SAFETY: BPF_MAP_CREATE reads `attr` and no other memory.
    let fd = unsafe { bpf(BPF_MAP_CREATE, &attr) }?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Fills every element of a map made by [`create`] with one word, over and over.
pub(super) fn fill(map: &OwnedFd, word: u64) -> io::Result<()> {
    let value = word.to_ne_bytes().repeat(page_bytes() / size_of::<u64>());
    for key in 0..ENTRIES {
        let attr = UpdateAttr {
            map_fd: map.as_raw_fd().cast_unsigned(),
            padding: 0,
            key: (&raw const key).addr() as u64,
            value: value.as_ptr().addr() as u64,
            flags: 0,
        };
        // SAFETY: the kernel reads 4 bytes at `key` and one page at `value`; both live on.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &attr) }?;
    }
    Ok(())
}

/// # Safety
///
/// `attr` is what `command` wants, and every address in it is valid for what the kernel does.
unsafe fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<libc::c_int> {
    // SAFETY: `attr` is readable for its size; the rest is the caller's promise.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    libc::c_int::try_from(result).map_err(io::Error::other)
}

/// Before Linux 5.11 the memory of maps counted as locked memory, and the limit is low.
///
/// A refusal is no error: where the limit matters, making a map says so.
pub(super) fn lift_memlock_limit() {
    let limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the limit is valid for reading.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
}

/// One op: make a map and close it.
pub(super) struct Maps;

impl Work for Maps {
    fn step(&mut self, _left: u64) -> io::Result<u64> {
        create()?;
        Ok(1)
    }
}

/// Memory in vmalloc areas in KiB: `VmallocUsed`, which kernels before 5.3 show as 0.
pub(super) fn vmalloc_used_kib() -> Option<u64> {
    meminfo_kib(&fs::read_to_string("/proc/meminfo").ok()?, "VmallocUsed").filter(|used| *used > 0)
}

/// A field of `/proc/meminfo`, in KiB.
pub(super) fn meminfo_kib(meminfo: &str, field: &str) -> Option<u64> {
    let value = meminfo
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim_end().parse().ok()
}

/// Waits until maps that were closed, and stacks of threads that ended, are freed.
///
/// They are taken as freed when `VmallocUsed` is back at `used_before_kib` or has not fallen for
/// half a second, since others may have allocated as well; after 10 s nobody waits any longer.
/// Where the kernel does not tell, half a second has to be enough.
pub(super) fn settle(used_before_kib: Option<u64>) {
    const QUIET: Duration = Duration::from_millis(500);
    const LIMIT: Duration = Duration::from_secs(10);

    let start = Instant::now();
    let mut lowest = u64::MAX;
    let mut fell = start;
    while start.elapsed() < LIMIT && fell.elapsed() < QUIET {
        if let Some(used) = vmalloc_used_kib() {
            if used_before_kib.is_some_and(|before| used <= before) {
                return;
            }
            if used < lowest {
                (lowest, fell) = (used, Instant::now());
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_meminfo_are_found_by_their_whole_name() {
        let meminfo =
            "VmallocTotal:   34359738367 kB\nVmallocUsed:       14204 kB\nHugePages_Total:  0\n";
        assert_eq!(meminfo_kib(meminfo, "VmallocUsed"), Some(14204));
        assert_eq!(meminfo_kib(meminfo, "Vmalloc"), None);
        assert_eq!(meminfo_kib(meminfo, "HugePages_Total"), None);
    }
}
