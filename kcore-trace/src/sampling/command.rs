//! The command that is measured: found before anything is attached, started when all is.
//!
//! In: words. Out: a [`Child`] that is waited for, gets the signals that we get, and is told to
//! stop when measuring ends before it does, if it was to end then. Invariant: a command that cannot
//! be started is an error before a recording is written, and none is waited for against the user's
//! will.

use std::env;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::process;
use tokio::time::{sleep_until, timeout};

use super::{Caught, FOREVER};
use crate::stress;

/// How long a command may take to end once it was asked to.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How long one may take that was killed: until it returns from the kernel.
const LAST_CALL: Duration = Duration::from_secs(1);

/// A command that exists.
pub(crate) struct Command {
    program: PathBuf,
    words: Vec<OsString>,
}

impl Command {
    /// Looks the program up as a shell does; nothing for no words.
    pub(crate) fn find(words: &[OsString]) -> Result<Option<Self>> {
        let Some(name) = words.first() else {
            return Ok(None);
        };
        let path = Path::new(name);
        let found = if path.components().count() > 1 {
            Some(path.to_owned()).filter(|path| is_executable(path))
        } else {
            let folders = env::var_os("PATH").unwrap_or_default();
            env::split_paths(&folders)
                .map(|folder| folder.join(name))
                .find(|path| is_executable(path))
        };
        match found {
            Some(program) => Ok(Some(Self {
                program,
                words: words.to_vec(),
            })),
            None => bail!(
                "command `{}` was not found, or is not executable",
                path.display()
            ),
        }
    }

    pub(crate) fn spawn(self) -> Result<Child> {
        let mut command = process::Command::new(&self.program);
        command.arg0(&self.words[0]).args(&self.words[1..]);
        command.env(stress::RECORDED, "1");
        // One that there is no recording for would go on unattended.
        command.kill_on_drop(true);
        let child = command
            .spawn()
            .with_context(|| format!("failed to start command `{}`", self.program.display()))?;
        Ok(Child {
            child,
            started: Instant::now(),
            ended: None,
        })
    }
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// The command while it runs.
pub(crate) struct Child {
    child: process::Child,
    started: Instant,
    ended: Option<Instant>,
}

impl Child {
    /// Passes a signal on, unless the command got it too.
    pub(crate) fn signal(&self, signal: Caught) {
        if signal.by_key {
            return;
        }
        if let Some(pid) = self.child.id() {
            // SAFETY: the child has not been waited for, so that the id is still its own.
            unsafe { libc::kill(pid as i32, signal.number) };
        }
    }

    /// How long it ran, in nanoseconds; nothing while it runs.
    pub(crate) fn ran_ns(&self) -> Option<u64> {
        Some((self.ended? - self.started).as_nanos() as u64)
    }

    pub(crate) fn is_running(&self) -> bool {
        self.ended.is_none()
    }

    /// Asks the command to end.
    pub(crate) fn terminate(&self) {
        self.signal(Caught::sent(libc::SIGTERM, "SIGTERM"));
    }

    /// Waits for a command that outlives measuring, and tells whether it had to be killed: when
    /// patience ends, if it does, or at the second signal. The first one is passed on.
    pub(crate) async fn outlive(
        mut self,
        mut next_signal: impl AsyncFnMut() -> Caught,
        patience: Option<Duration>,
    ) -> bool {
        let deadline = tokio::time::Instant::now() + patience.unwrap_or(FOREVER);
        let mut passed_on = false;
        loop {
            tokio::select! {
                // How it ended has no bearing on what was measured.
                _ = self.child.wait() => return false,
                signal = next_signal() => {
                    if std::mem::replace(&mut passed_on, true) {
                        break;
                    }
                    self.signal(signal);
                }
                () = sleep_until(deadline) => break,
            }
        }
        // One that is stuck in the kernel is left to it.
        let _ = timeout(LAST_CALL, self.child.kill()).await;
        true
    }
}

/// Resolves with the exit code when the command ends (128 and the signal when it was killed);
/// never when there is none.
pub(crate) async fn ended(child: &mut Option<Child>) -> Result<i32> {
    let Some(child) = child else {
        return std::future::pending().await;
    };
    let status = child
        .child
        .wait()
        .await
        .context("failed to wait for the command")?;
    child.ended = Some(Instant::now());
    let by_signal = status.signal().map(|signal| 128 + signal);
    Ok(status.code().or(by_signal).unwrap_or(-1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::event_loop;

    /// What happens to a command that goes on for long, and gets these signals.
    fn outlives(signals: &[i32], patience: Option<Duration>) -> (bool, bool) {
        let words = ["sleep", "1000"].map(OsString::from);
        let command = Command::find(&words).unwrap().unwrap();
        event_loop().unwrap().block_on(async {
            let child = command.spawn().unwrap();
            let pid = child.child.id().unwrap() as i32;
            let mut signals = signals.iter();
            let next_signal = async || match signals.next() {
                Some(&number) => Caught::sent(number, ""),
                None => std::future::pending().await,
            };
            let killed = child.outlive(next_signal, patience).await;
            // SAFETY: no signal is sent, it is only asked whether the process is there.
            (killed, unsafe { libc::kill(pid, 0) } == 0)
        })
    }

    #[test]
    fn the_first_signal_after_measuring_is_the_commands() {
        assert_eq!(outlives(&[libc::SIGHUP], None), (false, false));
    }

    #[test]
    fn a_command_that_goes_on_is_killed_by_the_second_signal() {
        assert_eq!(outlives(&[libc::SIGURG, libc::SIGURG], None), (true, false));
    }

    #[test]
    fn a_command_that_goes_on_is_killed_when_patience_ends() {
        assert_eq!(outlives(&[], Some(Duration::ZERO)), (true, false));
    }
}
