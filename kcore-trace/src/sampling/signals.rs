//! The signals that end measuring, or are passed on to the command.
//!
//! In: SIGINT, SIGTERM and SIGHUP. Out: [`Caught`], one after another. Owns what the process does on
//! these signals. Invariant: a hangup that was ignored when the process was started is ignored still, by
//! the command too, which inherits that.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Whether a process has sent SIGINT since it was last caught. The key of a terminal sends it as the
/// kernel, and to the command as well.
static INTERRUPT_WAS_SENT: AtomicBool = AtomicBool::new(false);

/// A signal that ends measuring, or is passed on to the command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caught {
    pub(crate) number: i32,
    pub(crate) name: &'static str,
    /// Whether the command got it too, by a key of the terminal.
    pub(crate) by_key: bool,
}

impl Caught {
    pub(crate) fn sent(number: i32, name: &'static str) -> Self {
        let by_key = false;
        Self {
            number,
            name,
            by_key,
        }
    }
}

/// The signals that end measuring.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// Nothing where it is ignored.
    hangup: Option<Signal>,
}

impl Signals {
    pub(crate) fn new() -> Result<Self> {
        let catch = |kind| signal(kind).context("failed to catch signals");
        // Under `nohup`. A shell has what a script puts into the background ignore SIGINT too, but only
        // on behalf of the keys, and `kill -INT` is how a recorder there is ended.
        let hangup = match is_ignored(libc::SIGHUP)? {
            true => None,
            false => Some(catch(SignalKind::hangup())?),
        };
        watch_interrupts()?;
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hangup,
        })
    }

    pub(crate) async fn next(&mut self) -> Caught {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => Caught {
                by_key: !INTERRUPT_WAS_SENT.swap(false, Ordering::Relaxed),
                ..Caught::sent(libc::SIGINT, "SIGINT")
            },
            _ = self.terminate.recv() => Caught::sent(libc::SIGTERM, "SIGTERM"),
            _ = hangup => Caught::sent(libc::SIGHUP, "SIGHUP"),
        }
    }
}

/// Has it noted where each SIGINT is from, which tokio does not tell, before it is caught.
fn watch_interrupts() -> Result<()> {
    let note = |info: &libc::siginfo_t| {
        if info.si_code != libc::SI_KERNEL {
            INTERRUPT_WAS_SENT.store(true, Ordering::Relaxed);
        }
    };
    // SAFETY: all that is done in the handler is to store to an atomic.
    unsafe { signal_hook_registry::register_sigaction(libc::SIGINT, note) }
        .context("failed to catch signals")?;
    Ok(())
}

fn is_ignored(signal: i32) -> Result<bool> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: nothing is changed, and the call writes to a local variable.
    let failed = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) } != 0;
    if failed {
        return Err(io::Error::last_os_error()).context("failed to ask what a signal does");
    }
    // SAFETY: the struct is plain data that the kernel filled in.
    Ok(unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN)
}
