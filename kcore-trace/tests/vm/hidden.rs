//! What a kernel without CONFIG_KALLSYMS_ALL shows: the symbols of its text (`scripts/kallsyms.c`).
//!
//! In: a command. Out: the same, which sees /proc/kallsyms without variables, and nobody else does.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::ptr::null;

use anyhow::{Context as _, Result};

use crate::tool;

const SYMBOLS: &CStr = c"/proc/kallsyms";

/// Hides variables from a command.
pub(crate) fn hide_variables(command: &mut Command) -> Result<()> {
    let symbols = fs::read_to_string(SYMBOLS.to_str()?)?;
    let address = |line: &str| line.split(' ').next().map(str::to_owned);
    let bound = |name: &str| {
        symbols
            .lines()
            .find(|line| line.ends_with(name))
            .and_then(address)
    };
    let (start, end) = (bound(" _stext"), bound(" _etext"));
    let is_text = |line: &&str| (&start..=&end).contains(&&address(line));
    let functions: String = symbols
        .lines()
        .filter(is_text)
        .flat_map(|line| [line, "\n"])
        .collect();
    let path = tool::files()?.join("functions");
    fs::write(&path, functions).context("failed to write the symbols of functions")?;
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: between fork and exec there are system calls only.
    unsafe { command.pre_exec(move || stand_in(&path)) };
    Ok(())
}

/// Puts a file in the place of the symbols, for this process and its children.
fn stand_in(path: &CStr) -> io::Result<()> {
    let done = |result| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    let everything = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: the strings live until the calls return.
    unsafe {
        done(libc::unshare(libc::CLONE_NEWNS))?;
        done(libc::mount(
            null(),
            c"/".as_ptr(),
            null(),
            everything,
            null(),
        ))?;
        let place = SYMBOLS.as_ptr();
        done(libc::mount(
            path.as_ptr(),
            place,
            null(),
            libc::MS_BIND,
            null(),
        ))
    }
}
