//! When a command began and ended, by the clock that all processes share.
//!
//! In: a file's path and a command. Out: the file, with two numbers: nanoseconds of
//! CLOCK_MONOTONIC. What stands before it in a command line is thereby timed from outside, each
//! tool in the same way.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Wrapped;

pub(crate) const NAME: &str = "--bench-clock";

pub(super) fn run(wrapped: &Wrapped) -> Result<u8> {
    let path = wrapped.argument(0)?;
    let began = now();
    let code = wrapped.run()?;
    let text = format!("{} {}", began.as_nanos(), now().as_nanos());
    std::fs::write(path, text).with_context(|| format!("failed to write {path}"))?;
    Ok(code)
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
