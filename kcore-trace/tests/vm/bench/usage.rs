//! What a command takes.
//!
//! In: a file and a command. Out: in the file, the nanoseconds that the command ran for and the most
//! memory that it had resident, in KiB, as one line.

use std::fs;
use std::mem::MaybeUninit;
use std::time::Instant;

use anyhow::{Context as _, Result};

use super::Wrapped;

pub(super) const NAME: &str = "--bench-usage";

pub(super) fn run(wrapped: &Wrapped) -> Result<u8> {
    let file = wrapped.argument(0)?;
    let begun = Instant::now();
    let code = wrapped.run()?;
    let ns = begun.elapsed().as_nanos();
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the struct is plain data that the kernel fills in; zero is a valid value of it.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr());
        usage.assume_init()
    };
    fs::write(file, format!("{ns} {}\n", usage.ru_maxrss))
        .with_context(|| format!("failed to write `{file}`"))?;
    Ok(code)
}
