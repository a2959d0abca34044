//! A load in several rounds, each from another state of the kernel, and when each began and ended.
//!
//! In: a file's path, when whatever is around this was started, a number of rounds, another for the shapes,
//! and a command. Out: the file, with a line for the time until here and one for each round: nanoseconds of
//! CLOCK_MONOTONIC, the clock that all processes share, at its beginning and its end. What stands before
//! this wrapper in a command line is thereby timed from outside, each tool in the same way.
//!
//! What one vmalloc costs depends on the shape of the trees of areas: a level more is 28
//! instructions. Whatever watches has areas too, and a single one can take two levels off. So each
//! round first changes the shape, as does each start of what watches, since where its areas come to lie
//! is decided then. What is compared is the mean over many. The changes are the same in every boot.

use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Wrapped;
use super::empty::{Attached, Empty, array_map};

pub(crate) const NAME: &str = "--bench-rounds";

pub(super) fn run(wrapped: &Wrapped) -> Result<u8> {
    let path = wrapped.argument(0)?;
    let mut lines = format!("{} {}\n", wrapped.argument(1)?, now().as_nanos());
    let rounds: u32 = wrapped.argument(2)?.parse()?;
    let mut shape = Shape::new(wrapped.argument(3)?.parse()?)?;
    for _ in 0..rounds {
        shape.change()?;
        let began = now();
        let code = wrapped.run()?;
        if code != 0 {
            return Ok(code);
        }
        writeln!(lines, "{} {}", began.as_nanos(), now().as_nanos())?;
    }
    std::fs::write(path, lines).with_context(|| format!("failed to write {path}"))?;
    Ok(0)
}

/// System calls that no load makes: a program on each is an area of its own, beyond those of
/// vmalloc, and runs never.
const NEVER_CALLED: [&str; 24] = [
    "__x64_sys_acct",
    "__x64_sys_adjtimex",
    "__x64_sys_chroot",
    "__x64_sys_delete_module",
    "__x64_sys_fchmod",
    "__x64_sys_fchown",
    "__x64_sys_getpriority",
    "__x64_sys_getsid",
    "__x64_sys_link",
    "__x64_sys_mincore",
    "__x64_sys_personality",
    "__x64_sys_pivot_root",
    "__x64_sys_readlinkat",
    "__x64_sys_sethostname",
    "__x64_sys_setpgid",
    "__x64_sys_setpriority",
    "__x64_sys_setregid",
    "__x64_sys_setreuid",
    "__x64_sys_settimeofday",
    "__x64_sys_swapoff",
    "__x64_sys_swapon",
    "__x64_sys_truncate",
    "__x64_sys_umount",
    "__x64_sys_ustat",
];

/// Areas that are there besides those of the load and of what watches.
pub(crate) struct Shape {
    empty: Empty,
    maps: Vec<OwnedFd>,
    programs: Vec<Attached>,
    random: u64,
}

impl Shape {
    const MOST_MAPS: u64 = 300;

    /// None yet; `first` begins the sequence of changes.
    pub(crate) fn new(first: u64) -> Result<Self> {
        Ok(Self {
            empty: Empty::new(NEVER_CALLED.into_iter())?,
            maps: Vec::new(),
            programs: Vec::new(),
            random: first,
        })
    }

    /// Frees some areas here and there, and makes others.
    pub(crate) fn change(&mut self) -> Result<()> {
        let freed = self.below(self.maps.len() as u64 + 1);
        for _ in 0..freed {
            let index = self.below(self.maps.len() as u64) as usize;
            self.maps.swap_remove(index);
        }
        let made = self.below(Self::MOST_MAPS - self.maps.len() as u64);
        for _ in 0..made {
            // Above eight pages it is vmalloc that gives them.
            let pages = 9 + self.below(16) as u32;
            self.maps.push(array_map(pages)?);
        }
        self.programs.clear();
        let first = self.below(NEVER_CALLED.len() as u64) as usize;
        let empty = &self.empty;
        // Not every kernel has all of them.
        let programs = NEVER_CALLED[first..].iter();
        self.programs
            .extend(programs.filter_map(|name| empty.fentry(name).ok()));
        Ok(())
    }

    /// A number below that one, the next of a sequence that is always the same (an LCG with
    /// Knuth's constants).
    fn below(&mut self, bound: u64) -> u64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % bound.max(1)
    }
}

/// Takes from the kernel what makes equal work cost unequal: a CPU's list of free pages that is
/// just full is refilled and emptied by dozens of pages at every allocation and free, several
/// times the cost of all else. A list that may be long is never full.
pub(crate) fn settle() -> Result<()> {
    let path = "/proc/sys/vm/percpu_pagelist_high_fraction";
    std::fs::write(path, "8").with_context(|| format!("failed to write {path}"))
}

/// The clock.
pub(crate) fn now() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a local variable. This clock exists everywhere.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
