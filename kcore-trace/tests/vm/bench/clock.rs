//! When a command began, by the clock that all processes share, and how long programs ran meanwhile.
//!
//! In: a file's path, when whatever is around this was started, perhaps the word `programs`, and a command.
//! Out: the file, with both times; behind them, if it was asked for, the nanoseconds that the command took and
//! those that BPF programs ran on all CPUs together, as the kernel times them.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};

use super::Wrapped;
use super::rounds::now;

pub(super) const NAME: &str = "--bench-clock";

pub(super) fn run(wrapped: &Wrapped) -> Result<u8> {
    let path = wrapped.argument(0)?;
    let mut times = format!("{} {}", wrapped.argument(1)?, now().as_nanos());
    let keep = |times: &str| {
        std::fs::write(path, times).with_context(|| format!("failed to write {path}"))
    };
    keep(&times)?;
    if wrapped.argument(2).is_err() {
        return wrapped.run();
    }
    let timing = enable_stats(Stats::RunTime).context("the kernel times no programs")?;
    let (began, before) = (now(), run_times_ns()?);
    let code = wrapped.run()?;
    let (took, after) = (now() - began, run_times_ns()?);
    drop(timing);
    // One that is gone is of whatever watched before.
    let grown = after
        .iter()
        .map(|(id, ns)| ns - before.get(id).unwrap_or(&0));
    let programs: u128 = grown.sum();
    times.push_str(&format!(" {} {programs}", took.as_nanos()));
    keep(&times)?;
    Ok(code)
}

/// How long each program that is loaded has run, by its id.
fn run_times_ns() -> Result<BTreeMap<u32, u128>> {
    let times = loaded_programs().map(|program| {
        let program = program?;
        Ok((program.id(), program.run_time().as_nanos()))
    });
    times.collect()
}
