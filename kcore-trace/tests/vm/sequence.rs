//! Several loads as one command, for cases that can tell them apart in one recording.
//!
//! In: the arguments of this binary for each load, with [`THEN`] between them. Out: an exit code; the
//! first load that fails is the last.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use crate::tool;

/// The first argument that asks for it.
pub(crate) const EACH: &str = "--each";
/// Stands between one load and the next.
pub(crate) const THEN: &str = "--then";

pub(crate) fn main(arguments: &[OsString]) -> ExitCode {
    for load in arguments.split(|word| word == THEN) {
        match Command::new(tool::EXE).args(load).status() {
            Ok(status) if status.success() => {}
            outcome => {
                eprintln!("{load:?} ended with {outcome:?}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
