//! What the bench runs around a load, in a guest or on the machine's own kernel.
//!
//! Each is a wrapper `--bench-… ARGUMENTS -- COMMAND`: it makes ready, runs the command, and
//! ends with its exit code, so that any of them can stand where `kcore-trace record --` stands.
//! [`rounds`] runs its command several times and notes when, [`clock`] notes only that, [`usage`]
//! what it took, [`floor`] puts empty programs on the hooks of a plan, [`graph`] turns a tracer of the
//! kernel's on, [`beside`] starts another tool, [`recorder`] looks at ours from outside, [`crowd`]
//! makes it believe that it has many CPUs, [`day`] makes long recordings of short ones.

mod beside;
mod clock;
mod crowd;
mod day;
mod empty;
mod floor;
mod graph;
mod recorder;
pub(crate) mod rounds;
mod usage;

use std::ffi::OsString;
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context as _, Result};

/// Runs the wrapper of that name; nothing, if there is none.
pub(crate) fn main(arguments: &[OsString]) -> Option<ExitCode> {
    let (name, rest) = arguments.split_first()?;
    let run = match name.to_str()? {
        beside::NAME => beside::run,
        clock::NAME => clock::run,
        day::NAME => day::run,
        floor::NAME => floor::run,
        graph::NAME => graph::run,
        recorder::NAME => recorder::run,
        rounds::NAME => rounds::run,
        usage::NAME => usage::run,
        _ => return None,
    };
    let outcome = Wrapped::parse(rest).and_then(|wrapped| run(&wrapped));
    Some(match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    })
}

/// The arguments of a wrapper and the command after `--`.
pub(crate) struct Wrapped {
    arguments: Vec<String>,
    command: Vec<OsString>,
}

impl Wrapped {
    fn parse(words: &[OsString]) -> Result<Self> {
        let end = words.iter().position(|word| word == "--");
        let end = end.context("no `--` before the command")?;
        let arguments = words[..end].iter();
        Ok(Self {
            arguments: arguments
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
            command: words[end + 1..].to_vec(),
        })
    }

    fn argument(&self, index: usize) -> Result<&str> {
        let argument = self.arguments.get(index).map(String::as_str);
        argument.context("an argument is missing")
    }

    /// Runs the command to its end.
    fn run(&self) -> Result<u8> {
        let (program, arguments) = self.command.split_first().context("no command")?;
        let status = Command::new(program).args(arguments).status();
        let status =
            status.with_context(|| format!("failed to start `{}`", program.to_string_lossy()))?;
        Ok(code(status))
    }
}

fn code(status: ExitStatus) -> u8 {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.unwrap_or(2)
}
