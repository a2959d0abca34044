//! What `-v` shows beyond results: log records of this program, and of the programs in the kernel.
//!
//! Owns the logger of the process, which writes to stderr. Off unless asked for: then the level
//! that the kernel's side is loaded with is zero, and the verifier removes the code.

use std::io::Write as _;

use log::{LevelFilter, Log, Metadata, Record};

struct Stderr;

static STDERR: Stderr = Stderr;

impl Log for Stderr {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let mut stderr = std::io::stderr().lock();
        // With nowhere to write to, a diagnostic is lost, and nothing else.
        let _ = writeln!(stderr, "kcore-trace: {}", record.args());
    }

    fn flush(&self) {}
}

/// Turns diagnostics on.
pub fn enable() {
    if log::set_logger(&STDERR).is_ok() {
        log::set_max_level(LevelFilter::Debug);
    }
}

/// The level for programs in the kernel, as `aya-log-ebpf` counts: zero is off.
pub(crate) fn kernel_level() -> u8 {
    log::max_level() as u8
}
