//! Loading a module whose work is done by loading it, and what the kernel itself counted meanwhile.
//!
//! In: the module's file and parameters. Out: an exit code, and as files what the kernel's own
//! counters say of exactly that work, where a kernel of the lab's has such: `/proc/lock_stat`
//! (CONFIG_LOCK_STAT) and the events of queued spinlocks and rwsems (CONFIG_LOCK_EVENT_COUNTS).

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};

/// The first argument that asks for it: a case records `/proc/self/exe --load-module FILE
/// PARAMETERS`.
pub(crate) const MODULE: &str = "--load-module";
/// Stands between the parameters of one loading and of the next.
pub(crate) const THEN: &str = "--then";

/// Where the kernel's counters are kept, by the end of an artefact's name.
pub(crate) const COUNTERS: [(&str, &str); 2] =
    [("lockstat", "/tmp/lockstat"), ("events", "/tmp/events")];

const LOCK_STAT: &str = "/proc/lock_stat";
const EVENTS: &str = "/sys/kernel/debug/lock_event_counts";

pub(crate) fn main(arguments: &[OsString]) -> ExitCode {
    match load(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn load(arguments: &[OsString]) -> Result<()> {
    let words: Vec<_> = arguments
        .iter()
        .map(|word| word.to_string_lossy())
        .collect();
    let (path, parameters) = words.split_first().context("no module is named")?;
    reset_counters();
    for parameters in parameters.split(|word| word == THEN) {
        once(path, &parameters.join(" "))?;
    }
    keep_counters()
}

fn once(path: &str, parameters: &str) -> Result<()> {
    let file = File::open(path).with_context(|| format!("failed to open {path}"))?;
    let parameters = CString::new(parameters)?;
    // SAFETY: the descriptor is open and the string lives until the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            file.as_raw_fd(),
            parameters.as_ptr(),
            0,
        )
    };
    let error = io::Error::last_os_error();
    // It refuses to stay, on purpose.
    ensure!(
        result != 0 && error.raw_os_error() == Some(libc::EAGAIN),
        "the load of {path} ended with {result}, {error}"
    );
    Ok(())
}

/// Sets the kernel's counters back. Most kernels have none.
fn reset_counters() {
    fs::write(LOCK_STAT, "0").ok();
    fs::write(format!("{EVENTS}/.reset_counts"), "1").ok();
}

fn keep_counters() -> Result<()> {
    let [(_, lock_stat), (_, events)] = COUNTERS;
    if let Ok(text) = fs::read(LOCK_STAT) {
        fs::write(lock_stat, text)?;
    }
    let mut lines = Vec::new();
    for entry in fs::read_dir(EVENTS).into_iter().flatten() {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            let count = fs::read_to_string(format!("{EVENTS}/{name}"))?;
            lines.push(format!("{name} {}", count.trim()));
        }
    }
    lines.sort();
    if !lines.is_empty() {
        fs::write(events, lines.join("\n"))?;
    }
    Ok(())
}
