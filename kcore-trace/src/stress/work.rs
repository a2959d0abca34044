//! The kinds of load, and what one op of each is.
//!
//! Owns [`Kind`], the words and remedies that users see, and [`Job`], the description that a
//! process turns into its [`Work`] after the fork. In: how many ops are left; out: how many were
//! done.
//!
//! Invariant: a step does whole ops only, never more than are left, and an error means that its
//! ops were not done.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Mutex;
use std::thread;

use super::kcore::{Kcore, Reading};
use super::maps::Maps;

/// What a process does over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Maps,
    Kcore,
    Vmallocinfo,
    Threads,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Maps, Self::Kcore, Self::Vmallocinfo, Self::Threads];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Maps => "maps",
            Self::Kcore => "kcore",
            Self::Vmallocinfo => "vmallocinfo",
            Self::Threads => "threads",
        }
    }

    /// What one op does, as the object of "failed to".
    pub(super) fn action(self) -> &'static str {
        match self {
            Self::Maps => "create a BPF array map",
            Self::Kcore => "read a page of `/proc/kcore`",
            Self::Vmallocinfo => "read `/proc/vmallocinfo`",
            Self::Threads => "start a thread",
        }
    }

    /// What the user can do about an error number.
    pub(super) fn remedy(self, errno: i32) -> Option<&'static str> {
        let remedy = match (self, errno) {
            (Self::Maps, libc::EPERM) => {
                "run as root or grant CAP_BPF (CAP_SYS_ADMIN before Linux 5.8)"
            }
            (Self::Maps, libc::ENOSYS) => "this kernel has no bpf(2), it needs CONFIG_BPF_SYSCALL",
            (Self::Kcore, libc::EPERM | libc::EACCES) => {
                "run as root or grant CAP_SYS_RAWIO and CAP_BPF; lockdown=confidentiality forbids it to all"
            }
            (Self::Kcore, libc::ENOENT) => {
                "this kernel has no such file, it needs CONFIG_PROC_KCORE"
            }
            (Self::Kcore, libc::ENODATA) => "the kernel gave less than a page",
            (Self::Kcore, libc::EINVAL) => {
                "this kernel cannot splice from it, which came with 5.11: leave out --via splice"
            }
            (Self::Vmallocinfo, libc::EPERM | libc::EACCES) => "run as root",
            (Self::Vmallocinfo, libc::ENOENT) => "procfs has to be mounted at /proc",
            (Self::Threads, libc::EAGAIN) => {
                "raise the limits on threads: ulimit -u, pids.max of the cgroup, kernel.threads-max"
            }
            (_, libc::ENOMEM) => "use fewer processes or a machine with more memory",
            (_, libc::EMFILE | libc::ENFILE) => {
                "raise the limit on open files: ulimit -n, fs.file-max"
            }
            _ => return None,
        };
        Some(remedy)
    }
}

/// What one process is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    Maps,
    /// Reads at a position of `/proc/kcore`.
    Kcore {
        position: u64,
        reading: Reading,
    },
    Vmallocinfo,
    Threads,
}

impl Job {
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Maps => Kind::Maps,
            Self::Kcore { .. } => Kind::Kcore,
            Self::Vmallocinfo => Kind::Vmallocinfo,
            Self::Threads => Kind::Threads,
        }
    }

    /// Gets ready to work: whatever is opened or allocated once.
    pub(super) fn open(self) -> io::Result<Box<dyn Work>> {
        Ok(match self {
            Self::Maps => Box::new(Maps),
            Self::Kcore { position, reading } => Box::new(Kcore::open(position, reading)?),
            Self::Vmallocinfo => Box::new(Vmallocinfo::new()),
            Self::Threads => Box::new(Threads),
        })
    }
}

/// Something that is done a counted number of times.
pub(super) trait Work {
    /// Does at least one and at most `left` ops, and returns how many; `left` is not 0.
    ///
    /// # Errors
    ///
    /// The error of the system call that failed.
    fn step(&mut self, left: u64) -> io::Result<u64>;
}

/// One op: read all of `/proc/vmallocinfo`.
pub(super) struct Vmallocinfo {
    buffer: Box<[u8]>,
}

impl Vmallocinfo {
    pub(super) const PATH: &str = "/proc/vmallocinfo";

    fn new() -> Self {
        Self {
            buffer: vec![0; 64 << 10].into_boxed_slice(),
        }
    }
}

impl Work for Vmallocinfo {
    fn step(&mut self, _left: u64) -> io::Result<u64> {
        let mut file = File::open(Self::PATH)?;
        while file.read(&mut self.buffer)? > 0 {}
        Ok(1)
    }
}

/// One op: start and join a thread, [`BURST`] of them at a time.
///
/// Kernel stacks are vmalloc'ed (CONFIG_VMAP_STACK), but each CPU keeps two stacks of threads that
/// ended; more threads than that have to be alive together to get past it.
pub(super) struct Threads;

/// Threads that are alive together.
const BURST: u64 = 16;

/// Bytes of a thread's stack in user space, which is no part of the load.
const STACK_BYTES: usize = 64 << 10;

impl Work for Threads {
    fn step(&mut self, left: u64) -> io::Result<u64> {
        let burst = left.min(BURST);
        let gate = Mutex::new(());
        thread::scope(|scope| {
            // Nobody passes before all are there; after an error those that are there go too.
            let _closed = gate.lock();
            for _ in 0..burst {
                let thread = thread::Builder::new().stack_size(STACK_BYTES);
                thread.spawn_scoped(scope, || drop(gate.lock()))?;
            }
            Ok(burst)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_never_exceeds_what_is_left() {
        assert_eq!(Threads.step(3).unwrap(), 3);
        assert_eq!(Threads.step(1_000_000).unwrap(), BURST);
    }

    #[test]
    fn a_refused_system_call_comes_with_a_remedy() {
        assert!(Kind::Maps.remedy(libc::EPERM).unwrap().contains("CAP_BPF"));
        assert!(
            Kind::Kcore
                .remedy(libc::ENOENT)
                .unwrap()
                .contains("CONFIG_PROC_KCORE")
        );
        assert_eq!(Kind::Maps.remedy(libc::EBADF), None);
    }
}
