//! A load under the kernel's function graph tracer.
//!
//! In: functions, and a command. Out: the command's exit code. The functions are traced with all
//! that they call, into the kernel's own buffer, which goes round.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::Wrapped;

pub(super) const NAME: &str = "--bench-graph";

const FOLDER: &str = "/sys/kernel/tracing";

pub(super) fn run(wrapped: &Wrapped) -> Result<u8> {
    let filter = format!("{FOLDER}/set_graph_function");
    for function in &wrapped.arguments {
        // One that was inlined away is seen in its caller.
        if let Err(error) = append(&filter, function) {
            eprintln!("{function}: {error}");
        }
    }
    let taken = fs::read_to_string(&filter).with_context(|| format!("failed to read {filter}"))?;
    ensure!(
        taken.lines().any(|line| !line.starts_with('#')),
        "the kernel traces none of the functions"
    );
    eprintln!("traced: {}", taken.trim().replace('\n', " "));
    set("function_graph")?;
    let code = wrapped.run();
    set("nop")?;
    code
}

fn append(path: &str, line: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    fs::OpenOptions::new()
        .append(true)
        .open(path)?
        .write_all(format!("{line}\n").as_bytes())
}

fn set(tracer: &str) -> Result<()> {
    let path = format!("{FOLDER}/current_tracer");
    fs::write(&path, tracer).with_context(|| format!("the kernel has no tracer {tracer}"))
}
