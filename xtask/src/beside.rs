//! Running a command beside what the user sees.
//!
//! In: a command that asks nobody anything. Out: what it printed, when it is waited for: until then it would
//! be lost among what others print.
//!
//! Invariant: what was started is waited for, or ended with all that it has started.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::command::shown;

/// Itself, for other chores: what was built in its place meanwhile is another program.
pub(crate) const THIS_PROGRAM: &str = "/proc/self/exe";

/// How often it is looked whether a command has printed more.
const GLANCE: Duration = Duration::from_millis(100);

/// A command that runs.
pub(crate) struct Beside {
    line: String,
    child: Child,
    stdout: File,
    stderr: File,
}

/// A command that has ended.
pub(crate) struct Ended {
    /// The command as a user would type it.
    pub(crate) line: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Beside {
    /// Starts a command, which has no input.
    ///
    /// # Errors
    ///
    /// There is no such program, or no room for what it prints.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let line = shown(command);
        let file = || tempfile::tempfile().context("failed to create a file; `df /tmp`");
        let (stdout, stderr) = (file()?, file()?);
        command
            .stdin(Stdio::null())
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?);
        let child = command.spawn();
        Ok(Self {
            child: child.with_context(|| format!("failed to start `{line}`"))?,
            line,
            stdout,
            stderr,
        })
    }

    /// Waits for its end. What it has said on stderr goes to `hear`, and then what it says there, as it comes.
    ///
    /// # Errors
    ///
    /// What it printed cannot be read.
    pub(crate) fn end(mut self, mut hear: impl FnMut(&str)) -> Result<Ended> {
        let mut heard = 0;
        loop {
            // Asked first: what it printed before it ended is there then.
            let status = self.child.try_wait()?;
            let stderr = printed(&self.stderr)?;
            let said = &stderr[heard..];
            // Of a line that is not whole the rest comes later.
            let whole = match status {
                Some(_) => said.len(),
                None => said.rfind('\n').map_or(0, |end| end + 1),
            };
            hear(&said[..whole]);
            heard += whole;
            if let Some(status) = status {
                return Ok(Ended {
                    line: std::mem::take(&mut self.line),
                    status,
                    stdout: printed(&self.stdout)?,
                    stderr,
                });
            }
            thread::sleep(GLANCE);
        }
    }
}

impl Drop for Beside {
    /// Ends it and all that it has started, if nobody waited for it.
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let mut processes = vec![self.child.id()];
            descendants(self.child.id(), &mut processes);
            for process in processes {
                // It may have ended; and what belongs to root ends by itself.
                _ = kill(Pid::from_raw(process as i32), Signal::SIGTERM);
            }
        }
        _ = self.child.wait();
    }
}

/// The processes that a process has started, and those that they have.
fn descendants(process: u32, found: &mut Vec<u32>) {
    let threads = fs::read_dir(format!("/proc/{process}/task"));
    for thread in threads.into_iter().flatten().flatten() {
        let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|id| id.parse().ok()) {
            found.push(child);
            descendants(child, found);
        }
    }
}

/// All that is in a file that another process writes to, whose place in it is not moved.
fn printed(file: &File) -> io::Result<String> {
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn shell(script: &str) -> Beside {
        Beside::start(Command::new("sh").args(["-c", script])).unwrap()
    }

    #[test]
    fn what_a_command_prints_is_kept_apart_until_it_has_ended() {
        let mut heard = Vec::new();
        let beside = shell("echo result; printf 'half ' >&2; echo line >&2; exit 3");
        let ended = beside.end(|text| heard.push(text.to_owned())).unwrap();
        assert_eq!(ended.status.code(), Some(3));
        assert_eq!(ended.stdout, "result\n");
        assert_eq!(ended.stderr, "half line\n");
        assert_eq!(heard.concat(), ended.stderr);
        assert!(ended.line.starts_with("sh -c"));
    }

    #[test]
    fn a_command_is_heard_while_it_runs() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // It ends when it was heard.
        let beside = shell(&format!("echo begun >&2; read word < {}", fifo.display()));
        let mut heard = String::new();
        let ended = beside.end(|text| {
            if !text.is_empty() && heard.is_empty() {
                std::fs::write(&fifo, "end\n").unwrap();
            }
            heard += text;
        });
        assert!(ended.unwrap().status.success());
        assert_eq!(heard, "begun\n");
    }

    #[test]
    fn a_command_that_nobody_waits_for_is_ended() {
        let beside = shell("sleep 1000 & wait");
        let begun = Instant::now();
        let started = loop {
            let mut started = Vec::new();
            descendants(beside.child.id(), &mut started);
            if !started.is_empty() {
                break started;
            }
            assert!(begun.elapsed() < PATIENCE, "nothing was started");
            thread::yield_now();
        };
        drop(beside);
        // What nobody waits for any more may be there until init has noticed, as a zombie.
        let runs = |process: &u32| {
            let stat = fs::read_to_string(format!("/proc/{process}/stat"));
            stat.is_ok_and(|stat| !stat.contains(") Z "))
        };
        while started.iter().any(runs) {
            assert!(begun.elapsed() < PATIENCE, "it runs on");
            thread::sleep(GLANCE);
        }
    }
}
