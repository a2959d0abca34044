//! What is said on stderr: messages, and with `-v` log records of this program and warnings of
//! libraries; with `-vv` what the programs in the kernel say too. And what is said of a stdout that is lost.
//!
//! Owns the logger of the process. Unless the programs are asked, the level that they are loaded with
//! is zero, and the verifier removes the code.
//!
//! Invariant: measuring goes on where nobody reads stderr any more.

use std::fmt::Display;
use std::io::{self, Write as _};

use log::{Level, LevelFilter, Log, Metadata, Record};

struct Stderr;

static STDERR: Stderr = Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // A library tells thousands of steps of loading.
        metadata.level() <= Level::Warn || metadata.target().starts_with(env!("CARGO_CRATE_NAME"))
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        say(format_args!("kcore-trace: {}", record.args()));
    }

    fn flush(&self) {}
}

/// Writes a line to stderr.
pub(crate) fn say(line: impl Display) {
    // With nowhere to write to, a message is lost, and nothing else.
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// What stdout did not take.
pub(crate) fn unwritten(error: io::Error) -> anyhow::Error {
    anyhow::Error::new(error).context("failed to write to stdout")
}

/// Turns diagnostics on: for one, those of this program; for more, also of those in the kernel.
pub fn enable(verbosity: u8) {
    let level = match verbosity {
        0 => return,
        1 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    if log::set_logger(&STDERR).is_ok() {
        log::set_max_level(level);
    }
}

/// The level for programs in the kernel, as `aya-log-ebpf` counts: zero is off.
pub(crate) fn kernel_level() -> u8 {
    match log::max_level() {
        LevelFilter::Trace => LevelFilter::Debug as u8,
        _ => 0,
    }
}
