//! A load in several rounds, each from another state of the kernel, and when each began and ended.
//!
//! In: a file's path, a number and a command. Out: the file, with a line for each round: nanoseconds
//! of CLOCK_MONOTONIC, the clock that all processes share, at its beginning and its end. What
//! stands before this wrapper in a command line is thereby timed from outside, each tool in the
//! same way.
//!
//! What one vmalloc costs depends on the shape of the trees of areas, by a few percent; whatever
//! watches allocates areas too, so that one shape with it and another one without would be
//! compared. Each round therefore begins with one more area that stays: what is compared is the
//! middle of many shapes.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Wrapped;
use super::empty::array_map;

pub(crate) const NAME: &str = "--bench-rounds";

/// Pages of the first area that stays: from here on the kernel takes vmalloc for it.
const FIRST_PAGES: u32 = 9;

pub(super) fn run(wrapped: &Wrapped) -> Result<u8> {
    let path = wrapped.argument(0)?;
    let rounds: u32 = wrapped.argument(1)?.parse()?;
    let mut areas = Vec::new();
    let mut lines = String::new();
    for round in 0..rounds {
        areas.push(array_map(FIRST_PAGES + round % 5)?);
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
