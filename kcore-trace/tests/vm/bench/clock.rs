//! When a command began, by the clock that all processes share.
//!
//! In: a file's path, when whatever is around this was started, and a command. Out: the file, with
//! both times.

use anyhow::{Context as _, Result};

use super::Wrapped;
use super::rounds::now;

pub(super) const NAME: &str = "--bench-clock";

pub(super) fn run(wrapped: &Wrapped) -> Result<u8> {
    let path = wrapped.argument(0)?;
    let times = format!("{} {}", wrapped.argument(1)?, now().as_nanos());
    std::fs::write(path, times).with_context(|| format!("failed to write {path}"))?;
    wrapped.run()
}
