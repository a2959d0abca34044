//! The tool on the running kernel, in half a minute.
//!
//! Owns the demo's script: what is called with which arguments and what is said
//! in between. Builds as the user; only the finished tool runs as root. An
//! error of the tool is the tool's: its message and exit code pass through.

use std::{
    fs,
    process::{Command, ExitCode, ExitStatus},
};

use anyhow::{Context as _, Result};

use crate::{
    cargo,
    command::{self, shown},
    places::Places,
    privilege::Privilege,
    setup,
};

/// How `record` is called; RECORDING and TOOL stand for paths.
const RECORD: &[&str] = &[
    "record",
    "-o",
    "RECORDING",
    "--force",
    "-d",
    "10s",
    "--",
    "TOOL",
    "stress",
    "--maps",
    "4",
    "--vmallocinfo",
    "1",
    "-d",
    "10s",
];

/// The command `cargo xtask demo`.
pub(crate) fn run(places: &Places) -> Result<ExitCode> {
    let tools = setup::for_build(places)?;
    heading("Building the tool");
    let mut build = cargo::build(places, &tools)?;
    command::run(build.args(["build", "--locked", "--release", "--package", "kcore-trace"]))?;

    let tool = places.target.join("release/kcore-trace");
    let folder = places.target.join("demo");
    fs::create_dir_all(&folder)?;
    let recording = folder.join("demo.kct");
    let privilege = Privilege::find();
    let as_root = |arguments: &[&str]| -> Result<Command> {
        let mut command = privilege
            .command(&tool)
            .with_context(|| format!("tracing needs root; `sudo {} plan`", tool.display()))?;
        let tool = tool.display().to_string();
        let recording = recording.display().to_string();
        command.args(arguments.iter().map(|argument| match *argument {
            "TOOL" => &tool,
            "RECORDING" => &recording,
            other => other,
        }));
        Ok(command)
    };

    heading("What this kernel lets us measure");
    if let Some(code) = failure(as_root(&["plan"])?)? {
        return Ok(code);
    }
    heading("Ten seconds of vmalloc load, recorded");
    if let Some(code) = failure(as_root(RECORD)?)? {
        return Ok(code);
    }
    heading("Who waited, and for which lock");
    let mut report = Command::new(&tool);
    if let Some(code) = failure_of(report.arg("report").arg(&recording))? {
        return Ok(code);
    }
    heading("Next");
    let (tool, recording) = (tool.display(), recording.display());
    let sudo = privilege.prefix();
    println!("  {tool} report {recording} --format json");
    println!("  {sudo}{tool} record -o mine.kct -d 30s -- YOUR-COMMAND");
    println!("  {sudo}{tool} report mine.kct");
    Ok(ExitCode::SUCCESS)
}

fn heading(text: &str) {
    println!("\n== {text}\n");
}

fn failure(mut command: Command) -> Result<Option<ExitCode>> {
    failure_of(&mut command)
}

/// Shows and runs a command; its exit code if it failed.
fn failure_of(command: &mut Command) -> Result<Option<ExitCode>> {
    println!("$ {}\n", shown(command));
    let status = command
        .status()
        .with_context(|| format!("failed to start `{}`", shown(command)))?;
    Ok((!status.success()).then(|| exit_code(status)))
}

/// The code of a program that failed; a signal, which has none, becomes 2.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    ExitCode::from(code.unwrap_or(2))
}
