//! The signals that the load generator waits for.
//!
//! Owns the signal mask while load runs: SIGINT, SIGTERM and SIGCHLD are blocked and fetched by
//! [`Signals::wait`], so that there is one place where anything asynchronous comes in. Forked
//! processes inherit the mask: a Ctrl-C at the terminal reaches them too, and must not end them in
//! the middle of an op.
//!
//! Invariant: dropping [`Signals`] puts the mask back as it was.

use std::time::Duration;
use std::{io, mem, ptr};

pub(super) struct Signals {
    waited_for: libc::sigset_t,
    before: libc::sigset_t,
}

impl Signals {
    pub(super) fn block() -> io::Result<Self> {
        // SAFETY: a signal set is plain data, and all zeros is a valid value.
        let (mut waited_for, mut before) =
            unsafe { mem::zeroed::<(libc::sigset_t, libc::sigset_t)>() };
        // SAFETY: both sets are valid for writing.
        let result = unsafe {
            libc::sigemptyset(&raw mut waited_for);
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGCHLD] {
                libc::sigaddset(&raw mut waited_for, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const waited_for, &raw mut before)
        };
        match result {
            0 => Ok(Self { waited_for, before }),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Sleeps until one of the signals comes, or for `timeout`.
    pub(super) fn wait(&self, timeout: Duration) -> Option<libc::c_int> {
        let timeout = libc::timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // SAFETY: the set and the time are valid for reading, and no information is asked for.
        let signal = unsafe {
            libc::sigtimedwait(
                &raw const self.waited_for,
                ptr::null_mut(),
                &raw const timeout,
            )
        };
        (signal > 0).then_some(signal)
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // SAFETY: the set is the one that pthread_sigmask filled in.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut())
        };
    }
}
