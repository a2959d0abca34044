//! A load while another tool watches that cannot start a command itself.
//!
//! In: the tool's words and a command. Out: the command's exit code, and what the tool prints when
//! it is told to end. The command begins when the tool has nothing left to do but to sleep.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::Wrapped;

pub(super) const NAME: &str = "--bench-beside";

const POLL: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(300);

pub(super) fn run(wrapped: &Wrapped) -> Result<u8> {
    let (program, arguments) = wrapped.arguments.split_first().context("no tool")?;
    let mut command = Command::new(program);
    let mut tool = command
        .args(arguments)
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("failed to start `{program}`"))?;
    wait_until_asleep(&mut tool)?;
    let code = wrapped.run();
    // SAFETY: the tool has not been waited for, so that the id is still its own.
    unsafe { libc::kill(tool.id() as i32, libc::SIGINT) };
    let status = tool.wait()?;
    ensure!(status.success(), "`{program}` ended with {status}");
    code
}

/// Waits until the tool sleeps for a time of its own choice: it has attached by then.
fn wait_until_asleep(tool: &mut Child) -> Result<()> {
    let sleeps = [libc::SYS_nanosleep, libc::SYS_clock_nanosleep].map(|call| format!("{call} "));
    let path = format!("/proc/{}/syscall", tool.id());
    let mut waited = Duration::ZERO;
    loop {
        if let Some(status) = tool.try_wait()? {
            bail!("it ended with {status} before it watched anything");
        }
        let call = fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))?;
        if sleeps.iter().any(|sleep| call.starts_with(sleep)) {
            return Ok(());
        }
        ensure!(waited < PATIENCE, "it did not get ready, it is in {call}");
        thread::sleep(POLL);
        waited += POLL;
    }
}
